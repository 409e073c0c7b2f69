"""The shard: the same records give the same bytes, whatever was read, cut or found in between."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn import columns
from streamlearn.errors import ColumnError, RefusedError
from streamlearn.protocol import Join, Leave, Push, Tick
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.shard import INTERCEPT_KEY, Shard, decode_gradients, prefixes_of
from tests.reference.rules import RuleTwin
from tests.reference.tables import small_tables
from tests.shard_parts import changed, job, keys_of, mark, push, spec

SPEC = spec(job(), index=1, of=3)
KEYS = keys_of(SPEC, *range(12))


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
            decode_gradients(push(SPEC, KEYS, np.full(12, value)))


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


@pytest.mark.parametrize(
    "tables",
    [{}, {"ttl_seconds": 600.0}, {"when_full": "evict", "ttl_seconds": 1200.0}],
    ids=["plain", "expiry", "evict"],
)
@pytest.mark.parametrize("rule", ["ftrl", "adagrad", "sgd"])
def test_same_records_give_the_same_bytes(tables, rule):
    features_max = 150 if "when_full" in tables else 5000
    of = spec(job(model={"l1": 0.1, "rule": rule}, **tables), 1, 3, features_max=features_max)
    with small_tables():
        plain, busy = Shard(of), Shard(of)
        rng = np.random.default_rng(3)
        held: list = []
        cut: Cut | None = None
        for lsn, record in enumerate(records_of(1), 1):
            plain.apply(lsn, record)
            # the other one is read, is cut, and applies with rows that were found long before
            if isinstance(record, Push):
                early = next((one for one in held if one[0] is record), None)
                located = early[1] if early else busy.locate(busy.decode_keys(record))
                busy.apply(lsn, record, busy.relocate(located), decode_gradients(record))
            else:
                busy.apply(lsn, record)
            for later in records_of(1)[lsn : lsn + 6]:
                if isinstance(later, Push) and rng.random() < 0.5:
                    busy.values(busy.locate(busy.decode_keys(later)))
            if cut is None and rng.random() < 0.3:
                cut = busy.keeper = Cut(busy.table)
            elif cut is not None and cut.take() is None:
                cut.close()
                cut, busy.keeper = None, Nothing()
        assert busy.digest() == plain.digest()
        assert plain.table.features > 0
        if "when_full" in tables:
            assert plain.table.evicted > 0


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
