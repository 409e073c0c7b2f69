"""The shard: the same records give the same bytes, whatever was read, cut or found in between."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn import columns
from streamlearn.errors import ColumnError, RefusedError
from streamlearn.protocol import Fault, Join, Leave, Pulled, Push, Pushed, Tick, encode
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.shard import INTERCEPT_KEY, Shard, prefixes_of
from tests.reference.embeddings import (
    Embedding,
    adagrad,
    as_bytes,
    check_arena,
    earned,
    embeddings_of,
    grown,
)
from tests.reference.rules import RuleTwin
from tests.reference.tables import small_tables
from tests.shard_parts import (
    Desk,
    MemoryLog,
    changed,
    job,
    keys_of,
    mark,
    pull,
    push,
    replayed,
    spec,
)

SPEC = spec(job(), index=1, of=3)
KEYS = keys_of(SPEC, *range(12))
# Weights are seldom zero, embeddings of three lengths are earned soon, and move a lot.
FM = {
    "kind": "fm", "dim_by_count": {"0": 3, "2": 8, "5": 17}, "order": 3, "l1": 0.1, "v_lr": 0.1,
    "v_init_scale": 0.5,
}  # fmt: skip
FM_SPEC = spec(job(model=FM), index=1, of=3)
# Embeddings that end anywhere in a line, with one sum for each.
NET = {
    "kind": "deep", "v_rule": "rowwise", "dim": 17, "threshold": 1, "l1": 0.1, "v_lr": 0.1,
    "v_init_scale": 0.5,
}  # fmt: skip
TIERS = FM_SPEC.job.model.tiers


def applied(of=SPEC, *records) -> Shard:
    """Return a shard after some records."""
    made = Shard(of)
    for lsn, record in enumerate(records, 1):
        made.apply(lsn, record)
    return made


@pytest.mark.parametrize("of", [1, 2, 3, 7, 256])
def test_shards_share_the_keys_out(of):
    ranges = [prefixes_of(index, of) for index in range(of)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 256
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    specs = [spec(job(), index, of) for index in range(of)]
    assert specs[0].low == 0
    assert specs[-1].high == (1 << 64) - 1
    assert all(a.high + 1 == b.low for a, b in itertools.pairwise(specs))
    assert specs[0].low <= INTERCEPT_KEY <= specs[0].high
    assert len({one.identity for one in specs}) == of


def test_pushes_are_applied_by_the_rule_of_the_model():
    of = spec(job(model={"l1": 0.5, "alpha": 0.2, "beta": 1.0}), 0, 1)
    keys = np.array([INTERCEPT_KEY, *keys_of(of, 1, 2, 3)], np.uint64)
    twin = RuleTwin("ftrl", alpha=0.2, beta=1.0, l1=0.5, dtype=np.float32)
    made = Shard(of)
    rng = np.random.default_rng(1)
    for lsn in range(1, 6):
        gradients = rng.normal(0, 1, len(keys)).astype(np.float32)
        made.apply(lsn, push(of, keys, gradients, clock=lsn - 1))
        twin.push(keys.tolist(), gradients, bare=INTERCEPT_KEY)
    expected = [twin.weight(key, key == INTERCEPT_KEY) for key in keys.tolist()]
    assert made.values(made.locate(keys)).tolist() == expected
    assert expected[0] != 0


def test_reading_changes_nothing():
    made = applied(SPEC, push(SPEC, KEYS[:4]))
    before = made.digest()
    located = made.locate(KEYS)
    assert (located.slots[4:] < 0).all() or (located.slots < 0).sum() == 8
    assert np.count_nonzero(made.values(located)) == 4
    assert made.digest() == before


def test_values_of_no_keys():
    made = Shard(SPEC)
    assert made.values(made.locate(KEYS[:0])).tolist() == []


def test_counts_and_minutes_are_kept():
    many = changed(
        push(SPEC, KEYS[:2]),
        counts=columns.encode_counts(np.array([1, 700], np.uint32)).data,
    )
    made = applied(SPEC, Tick(9), many, push(SPEC, KEYS[:2], clock=1, counts=False))
    rows = {int(row[0]): int(row[2]) for row in made.table.rows_at(made.locate(KEYS[:2]).slots)}
    assert [rows[int(key)] & 0xFFFFFFFF for key in KEYS[:2]] == [1, 700]
    assert {word >> 32 for word in rows.values()} == {9}


def test_verdicts():
    made = Shard(SPEC)
    assert made.verdict(mark(1)) == "next"
    assert made.verdict(mark(2)) == "gap"
    assert made.verdict(mark(1, epoch=1)) == "gap"
    made.apply(1, push(SPEC, KEYS))
    assert made.verdict(mark(1)) == "duplicate"
    assert made.verdict(mark(2)) == "next"
    assert made.verdict(mark(3)) == "gap"
    assert made.verdict(mark(1, epoch=1)) == "gap"
    made.apply(2, push(SPEC, KEYS, at=mark(2, done=True), clock=1))
    assert made.verdict(mark(1)) == "duplicate"
    assert made.verdict(mark(3)) == "gap"
    assert made.verdict(mark(1, epoch=1)) == "next"
    assert made.verdict(mark(2, epoch=1)) == "gap"
    made.apply(3, push(SPEC, KEYS, at=mark(1, epoch=1), clock=2))
    assert made.verdict(mark(900)) == "duplicate"


def test_verdict_refuses_another_cut_and_another_version():
    made = applied(SPEC, push(SPEC, KEYS))
    with pytest.raises(RefusedError, match="ended at byte 100, but the push ends it at 99"):
        made.verdict(mark(1, offset=99))
    with pytest.raises(RefusedError, match="version v, but the push is of version w"):
        made.verdict(mark(2, version="w"))


def test_records_of_the_log_that_come_again_are_passed_over():
    made = applied(SPEC, Join("a", 1, 0), push(SPEC, KEYS))
    rows = made.table.rows_at(made.locate(KEYS).slots)
    made.apply(3, push(SPEC, KEYS, clock=4))
    made.apply(4, push(SPEC, KEYS, at=mark(9), clock=5))
    assert (made.table.rows_at(made.locate(KEYS).slots) == rows).all()
    assert (made.lsn, made.pushes) == (4, 1)
    assert made.marks["p"] == mark(1)
    assert made.clocks.members["a"].clock == 6


def test_records_are_applied_in_order():
    made = Shard(SPEC)
    with pytest.raises(AssertionError):
        made.apply(2, Tick(1))
    made.apply(1, Tick(1))
    with pytest.raises(AssertionError):
        made.apply(1, Tick(1))


def test_time_does_not_go_back():
    made = applied(SPEC, Tick(9), Tick(5))
    assert made.minute == 9


def test_columns_of_the_log_are_checked():
    made = Shard(SPEC)
    for wrong in (
        changed(push(SPEC, KEYS), values=memoryview(bytes(3))),
        changed(push(SPEC, KEYS), keys=memoryview(b"\x01\x02")),
        changed(push(SPEC, KEYS), counts=memoryview(b"\x01\x02")),
    ):
        with pytest.raises(ColumnError):
            made.apply(1, wrong)
    assert made.table.features == 0
    made.apply(1, push(SPEC, KEYS))


def test_gradients_that_are_no_numbers_are_refused():
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ColumnError):
            Shard(SPEC).decode_gradients(push(SPEC, KEYS, np.full(12, value)))
        of_vectors = push(FM_SPEC, KEYS[:1], dims=[3], vectors=np.full(6, value, np.float32))
        with pytest.raises(ColumnError):
            Shard(FM_SPEC).decode_gradients(of_vectors)


def test_full_table_is_refused_before_it_changes():
    made = applied(spec(job(), 1, 3, features_max=10), push(SPEC, KEYS[:8]))
    before = made.digest()
    with pytest.raises(RefusedError, match="holds 8 features of at most 10, and 4 more come") as e:
        made.check_fits(made.locate(KEYS))
    assert e.value.code == "full"
    made.check_fits(made.locate(KEYS[:10]))
    assert made.digest() == before


def test_rows_that_came_since_are_found_where_room_is_short():
    made = applied(spec(job(), 1, 3, features_max=12))
    located = made.locate(KEYS)
    made.apply(1, push(SPEC, KEYS))
    found = made.relocate(located)
    assert (found.slots >= 0).all()
    made.check_fits(found)


def test_expiry_is_of_the_log():
    of = spec(job(ttl_seconds=600.0), 1, 3)
    records = [Tick(100), push(SPEC, KEYS)]
    records += [Tick(100 + minute) for minute in range(1, 60)]
    made = applied(of, *records)
    assert made.table.features == 0
    assert made.forgotten == len(KEYS)
    half = applied(of, *records[:12])
    assert half.table.features == len(KEYS)


def test_expiry_leaves_the_floor():
    of = spec(job(ttl_seconds=60.0, features_min=24), 1, 3)
    made = applied(of, Tick(1), push(SPEC, KEYS), *(Tick(minute) for minute in range(10, 100)))
    assert made.table.features == 8


def records_of(seed: int, count: int = 60) -> list:
    """Return records of two workers that push, join, leave, and of time."""
    rng = np.random.default_rng(seed)
    sequences = {"p": 0, "q": 0}
    out: list = [Join("a", 1, 0), Join("b", 2, 0)]
    for step in range(count):
        what = rng.integers(12)
        if what == 0:
            out.append(Tick(step * 3))
        elif what == 1:
            out.append(Leave("b", 2))
        elif what == 2:
            out.append(Join("b", 2, step))
        else:
            name = "pq"[rng.integers(2)]
            sequences[name] += 1
            numbers = (400 * rng.random(rng.integers(0, 120)) ** 2).astype(int).tolist()
            keys = keys_of(SPEC, *numbers)
            gradients = rng.normal(0, 2, len(keys))
            out.append(
                push(SPEC, keys, gradients, at=mark(sequences[name], name), clock=step,
                     worker="ab"[rng.integers(2)], incarnation=int(rng.integers(1, 3))),
            )  # fmt: skip
    return out


def embedded_records_of(of, seed: int, count: int = 60) -> list:
    """Return records of two workers, whose pushes have the lengths that they pulled a while ago.

    So rows have grown meanwhile, or are gone.
    """
    rng = np.random.default_rng(seed)
    made = Shard(of)
    out: list = []
    waiting: list = []
    sequences = {"p": 0, "q": 0}

    def add(record):
        out.append(record)
        made.apply(len(out), record)

    add(Join("a", 1, 0))
    add(Join("b", 2, 0))
    for step in range(count):
        if rng.integers(6) == 0:
            add(Tick(step * 3))
        numbers = (400 * rng.random(rng.integers(0, 120)) ** 2).astype(int).tolist()
        keys = keys_of(of, *numbers)
        located = made.locate(keys)
        dims = made.table.arena.lengths(located.slots, made.values(located), False)
        waiting.append((keys, dims))
        if len(waiting) <= rng.integers(1, 8):
            continue
        keys, dims = waiting.pop(0)
        name = "pq"[rng.integers(2)]
        sequences[name] += 1
        vectors = rng.normal(0, 1, int(dims.sum()) * of.job.model.tiers.parts)
        add(
            push(of, keys, rng.normal(0, 2, len(keys)), at=mark(sequences[name], name), clock=step,
                 worker="ab"[rng.integers(2)], incarnation=int(rng.integers(1, 3)),
                 dims=dims, vectors=vectors),
        )  # fmt: skip
    return out


def pushed_and_there(made: Shard, record: Push) -> tuple[np.ndarray, np.ndarray]:
    """Return how many coordinates a push's gradients have, and the embeddings by now."""
    located = made.locate(made.decode_keys(record))
    there = made.table.arena.lengths(located.slots, np.ones(record.count, np.float32), False)
    return made.decode_gradients(record).dims, there


TABLES = pytest.mark.parametrize(
    "tables",
    [{}, {"ttl_seconds": 600.0}, {"when_full": "evict", "ttl_seconds": 1200.0}],
    ids=["plain", "expiry", "evict"],
)


@TABLES
@pytest.mark.parametrize("rule", ["ftrl", "adagrad", "sgd", "difacto", "rowwise"])
def test_same_records_give_the_same_bytes(tables, rule):
    features_max = 150 if "when_full" in tables else 5000
    model = {"difacto": FM, "rowwise": NET}.get(rule, {"l1": 0.1, "rule": rule})
    embedded = "kind" in model
    of = spec(job(model=model, **tables), 1, 3, features_max=features_max)
    with small_tables():
        records = embedded_records_of(of, 1) if embedded else records_of(1)
        plain, busy = Shard(of), Shard(of)
        rng = np.random.default_rng(3)
        held: list = []
        cut: Cut | None = None
        grew = gone = 0
        for lsn, record in enumerate(records, 1):
            if isinstance(record, Push) and embedded:
                pushed, there = pushed_and_there(plain, record)
                grew += np.count_nonzero((pushed > 0) & (pushed < there))
                gone += np.count_nonzero((pushed > 0) & (there == 0))
            plain.apply(lsn, record)
            # the other one is read, is cut, and applies with rows that were found long before
            if isinstance(record, Push):
                early = next((one for one in held if one[0] is record), None)
                located = early[1] if early else busy.locate(busy.decode_keys(record))
                busy.apply(lsn, record, busy.relocate(located), busy.decode_gradients(record))
            else:
                busy.apply(lsn, record)
            for later in records[lsn : lsn + 6]:
                if isinstance(later, Push) and rng.random() < 0.5:
                    located = busy.locate(busy.decode_keys(later))
                    busy.vectors(located, busy.values(located), columns.FLOAT32)
            if cut is None and rng.random() < 0.3:
                cut = busy.keeper = Cut(busy.table)
            elif cut is not None and cut.take() is None:
                cut.close()
                cut, busy.keeper = None, Nothing()
        assert busy.digest() == plain.digest()
        assert plain.table.features > 0
        if "when_full" in tables:
            assert plain.table.evicted > 0
        if embedded:
            held = embeddings_of(busy.table)
            assert as_bytes(held) == as_bytes(embeddings_of(plain.table))
            check_arena(busy.table)
            assert sum(bool(one.m.any()) for one in held.values()) > 20
            assert grew > 20 or rule == "rowwise"  # which has one length only
            assert (gone > 0) == bool(tables)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(0, 30))
def test_rows_found_before_others_pushed_give_the_same_bytes(seed, ahead):
    of = spec(job(when_full="evict"), 1, 3, features_max=150)
    with small_tables():
        records = records_of(seed, 40)
        plain, busy = Shard(of), Shard(of)
        found: dict[int, object] = {}
        for at, record in enumerate(records):
            for number in range(at, min(at + ahead, len(records))):
                later = records[number]
                if number not in found and isinstance(later, Push):
                    found[number] = busy.locate(busy.decode_keys(later))
            plain.apply(at + 1, record)
            busy.apply(at + 1, record, found.get(at))
        assert busy.digest() == plain.digest()


def test_digest_tells_states_apart():
    one = push(SPEC, KEYS)
    digests = {
        applied(SPEC, *records).digest()
        for records in (
            (),
            (one,),
            (push(SPEC, KEYS, np.full(12, 1.5)),),
            (push(SPEC, KEYS[:11]),),
            (changed(one, mark=mark(1, weight=2.0)),),
            (Tick(3),),
            (Join("a", 1, 0),),
            (Join("a", 1, 1),),
        )
    }
    assert len(digests) == 8


# --- embeddings -----------------------------------------------------------------------------------


def apply_to_twin(
    of, made: Shard, held: dict[int, Embedding], record: Push, dims: np.ndarray
) -> None:
    """Apply a push to a shard, and what it does to embeddings to a dictionary."""
    keys = made.decode_keys(record)
    gradients = made.decode_gradients(record)
    made.apply(made.lsn + 1, record)
    ends = np.cumsum(dims * TIERS.parts)
    for key, dim, end in zip(keys.tolist(), dims.tolist(), ends.tolist(), strict=True):
        g = gradients.vectors[end - dim * TIERS.parts : end].reshape(TIERS.parts, dim)
        if key in held:
            held[key] = adagrad(held[key], g, made._v_rates)
    located = made.locate(keys)
    weights = made.values(located).tolist()
    for key, row, weight in zip(
        keys.tolist(), made.table.rows_at(located.slots).tolist(), weights, strict=True
    ):
        dim = earned(TIERS, row[2] & 0xFFFFFFFF)
        known = held[key].V.shape[1] if key in held else 0
        if dim > known and weight and key != INTERCEPT_KEY:
            held[key] = grown(held.get(key), key, dim, TIERS, of.job.model.v_init_scale)


def test_embeddings_are_pushed_and_earned_by_the_settings_of_the_model():
    of = spec(job(model=FM), 0, 1)
    keys = np.array([INTERCEPT_KEY, *keys_of(of, 1, 2, 3, 4)], np.uint64)
    made, held = Shard(of), {}
    rng = np.random.default_rng(1)
    lengths = []
    for clock in range(8):
        located = made.locate(keys)
        weights = made.values(located)
        dims = made.table.arena.lengths(located.slots, weights, True)
        column, packed = made.vectors(located, weights, columns.FLOAT32)
        assert columns.decode_lengths(column, len(keys), TIERS.dims).tolist() == dims.tolist()
        expected = [held[k].V.tobytes() for k, d in zip(keys.tolist(), dims, strict=True) if d]
        assert packed.tobytes() == b"".join(expected)
        record = push(
            of, keys, rng.normal(0, 1, 5), clock=clock, dims=dims,
            vectors=rng.normal(0, 1, int(dims.sum()) * 2),
        )  # fmt: skip
        apply_to_twin(of, made, held, record, dims)
        assert as_bytes(embeddings_of(made.table)) == as_bytes(held)
        lengths.append(dims.max())
    assert sorted(set(lengths)) == [0, 3, 8, 17]
    assert INTERCEPT_KEY not in held
    assert made.values(made.locate(keys))[0] != 0


def test_a_gradient_that_is_shorter_than_the_embedding_by_now_moves_its_beginning():
    made, held = Shard(FM_SPEC), {}
    keys, rng = KEYS[:4], np.random.default_rng(1)
    for clock in range(7):
        dims = np.full(4, [3, 0, 8, 3, 0, 17, 3][clock])  # sometimes longer than it is
        record = push(
            FM_SPEC, keys, rng.normal(0, 1, 4), clock=clock, dims=dims,
            vectors=rng.normal(0, 1, int(dims.sum()) * 2),
        )  # fmt: skip
        apply_to_twin(FM_SPEC, made, held, record, dims)
        assert as_bytes(embeddings_of(made.table)) == as_bytes(held)
    assert {one.V.shape for one in held.values()} == {(2, 17)}
    assert all(one.m[:, :3].all() and not one.m[:, 8:].any() for one in held.values())


def test_a_gradient_of_a_row_that_was_forgotten_is_one_for_a_new_row():
    of = spec(job(model=FM, ttl_seconds=60.0), 1, 3)
    ticks = [Tick(minute) for minute in range(10, 100)]
    first = [push(of, KEYS, clock=clock) for clock in range(3)]
    late = push(of, KEYS, clock=3, dims=np.full(12, 8), vectors=np.ones(12 * 8 * 2))
    made = applied(of, Tick(1), *first, *ticks)
    assert (made.table.features, made.table.arena.nbytes) == (0, 0)
    made.apply(made.lsn + 1, late)
    begun = applied(of, push(of, KEYS, clock=0))
    assert as_bytes(embeddings_of(made.table)) == as_bytes(embeddings_of(begun.table))
    assert {one.V.shape for one in embeddings_of(made.table).values()} == {(2, 3)}
    check_arena(made.table)


def test_counts_that_do_not_travel_earn_nothing():
    made = applied(FM_SPEC, *(push(FM_SPEC, KEYS, clock=i, counts=False) for i in range(4)))
    assert embeddings_of(made.table) == {}
    assert made.values(made.locate(KEYS)).all()


def test_reading_embeddings_changes_nothing():
    made = applied(FM_SPEC, *(push(FM_SPEC, KEYS[:6], clock=clock) for clock in range(3)))
    before = made.digest()
    located = made.locate(KEYS)
    lengths, vectors = made.vectors(located, made.values(located), columns.FLOAT16)
    dims = columns.decode_lengths(lengths, len(KEYS), TIERS.dims)
    assert dims.tolist() == [8] * 6 + [0] * 6
    assert len(vectors) == 6 * 8 * 2 * 2
    assert made.digest() == before
    nothing = made.vectors(made.locate(KEYS[:0]), np.zeros(0, np.float32), columns.FLOAT32)
    assert [len(column) for column in nothing] == [0, 0]


def test_digest_tells_embeddings_apart():
    first = [push(FM_SPEC, KEYS, clock=0)]
    moves = [np.zeros(6), np.eye(6)[0], np.eye(6)[5], -np.eye(6)[5]]
    digests = {
        applied(FM_SPEC, *first, push(FM_SPEC, KEYS[:1], clock=1, dims=[3], vectors=move)).digest()
        for move in moves
    }
    assert len(digests) == len(moves)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["error", "evict"]))
def test_rows_that_grew_or_went_meanwhile_give_the_same_bytes_again(seed, when_full):
    features_max = 150 if when_full == "evict" else 5000
    tables = {"when_full": when_full, "ttl_seconds": 1200.0}
    of = spec(job(model=FM, **tables), 1, 3, features_max=features_max)
    with small_tables():
        records = embedded_records_of(of, seed, 40)
        log = MemoryLog()
        for record in records:
            log.append([encode(record)])
        one, other = replayed(of, log), replayed(of, log)
        assert one.digest() == other.digest()
        check_arena(one.table)


def wrong_vectors() -> dict[str, dict]:
    """Return columns of a push of two keys that do not fit each other, or the model."""
    good = push(FM_SPEC, KEYS[:2], dims=[3, 8], vectors=np.ones(22))
    bad = np.ones(22, np.float32)
    bad[7] = np.nan
    lengths = bytes(good.lengths)
    return {
        "too few": {"vectors": good.vectors[:-4]},
        "too many": {"vectors": memoryview(bytes(good.vectors) + bytes(4))},
        "none": {"vectors": memoryview(b"")},
        "no lengths": {"lengths": memoryview(b"")},
        "not finite": {"vectors": memoryview(bad.tobytes())},
        "a length that there is not": {"lengths": memoryview(lengths[:-1] + b"\x03")},
        "a length too few": {"lengths": memoryview(lengths[:-1])},
        "a length too many": {"lengths": memoryview(lengths + b"\x00")},
        "of more keys": {"lengths": memoryview(b"\x07" + lengths[1:] + b"\x00")},
        "halves": {"coding": columns.FLOAT16, "values": memoryview(bytes(4))},
    }


@pytest.mark.parametrize("name", wrong_vectors())
def test_vectors_that_do_not_fit_are_refused_before_they_reach_the_log(name):
    log = MemoryLog()
    desk = Desk(FM_SPEC, log=log)
    desk.join(1, "a", 1, 0)
    good = push(FM_SPEC, KEYS[:2], dims=[3, 8], vectors=np.ones(22))
    desk.asked(1, push(FM_SPEC, KEYS[:2]))
    records, before = len(log.records), desk.shard.digest()
    late = changed(good, clock=1, mark=mark(2))
    fault = desk.asked(1, changed(late, **wrong_vectors()[name]))
    assert isinstance(fault, Fault), fault
    assert (len(log.records), desk.shard.digest()) == (records, before)
    assert isinstance(desk.asked(1, late), Pushed)
    assert len(log.records) == records + 1
    assert replayed(FM_SPEC, log).digest() == desk.shard.digest()


def test_vectors_for_a_model_without_embeddings_are_refused():
    made = Shard(SPEC)
    good = push(FM_SPEC, KEYS[:2], dims=[3, 8], vectors=np.ones(22))
    for wrong in (good, changed(good, lengths=b""), changed(good, vectors=b"")):
        with pytest.raises(ColumnError, match="embeddings for a model without them"):
            made.decode_gradients(wrong)
        with pytest.raises(ColumnError):
            made.apply(1, wrong)
    assert made.table.features == 0


def test_a_push_has_the_lengths_of_the_pull_that_it_names():
    log = MemoryLog()
    desk = Desk(FM_SPEC, log=log)
    desk.join(1, "a", 1, 0)
    for clock in range(3):
        desk.asked(1, push(FM_SPEC, KEYS[:2], clock=clock))
    asked = desk.ask(1, pull(FM_SPEC, KEYS[:3], clock=3))
    answer = desk.answers[1, asked]
    assert isinstance(answer, Pulled)
    dims = columns.decode_lengths(answer.lengths, 3, TIERS.dims)
    assert dims.tolist() == [8, 8, 0]
    for clock in range(3, 6):  # they grow meanwhile
        desk.asked(1, push(FM_SPEC, KEYS[:2], clock=clock))
    before = embeddings_of(desk.shard.table)
    assert {one.V.shape for one in before.values()} == {(2, 17)}
    named = push(FM_SPEC, KEYS[:3], clock=6, named=asked, vectors=np.ones(2 * 8 * 2))
    assert isinstance(desk.asked(1, named), Pushed)
    after = embeddings_of(desk.shard.table)
    for key, was in before.items():
        assert (after[key].m[:, :8] > was.m[:, :8]).all()
        assert (after[key].V[:, 8:] == was.V[:, 8:]).all()
    assert after.keys() == {*KEYS[:3].tolist()}
    assert replayed(FM_SPEC, log).digest() == desk.shard.digest()
