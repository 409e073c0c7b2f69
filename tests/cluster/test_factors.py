"""Matrix factorization between workers and shards: one process' model, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from streamlearn import columns
from streamlearn.compute.kernels.factors import ITEM
from streamlearn.messages import F32, U8, U64
from streamlearn.model import Model
from streamlearn.online.mf import numbers_of
from streamlearn.protocol import (
    Fault,
    KeyMiss,
    Pull,
    Pulled,
    PulledFactors,
    PullFactors,
    Push,
    Pushed,
    PushFactors,
)
from streamlearn.shards.cut import Cut, Nothing, Part
from streamlearn.shards.shard import INTERCEPT_KEY, Shard
from tests.cluster.test_feeding import Feeding
from tests.cluster.test_preparing import NNZ, Learning
from tests.reference.fm import v_init
from tests.reference.mf import MfTwin
from tests.reference.mf_runs import some_batches, taught
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

DIM = 20  # not whole lines
MODEL: dict[str, Any] = {"kind": "mf", "dim": DIM, "alpha": 0.05, "l2": 0.03}
SPEC = spec(job(tau=-1, model=MODEL), index=1, of=2)
KEYS = keys_of(SPEC, *range(20))
ITEMS = (KEYS % np.uint64(3) == 0).astype(np.int64)
EMPTY = memoryview(b"")


class Alone:
    """One process, one lane."""

    def __init__(self, **model: Any) -> None:
        self.model = Model.new(job(model=MODEL | model), ())
        self.scratch = self.model.solver.scratch(64, NNZ)

    def learn(self, batch: Any) -> F32:
        scores: F32 = self.model.solver.learn(batch, self.scratch, Nothing(), 0).copy()
        return scores


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("of", [1, 3])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("intercept", [True, False])
def test_one_lane_and_shards_with_one_worker_learn_what_the_slow_twin_does(
    intercept: bool, loss: str, of: int
) -> None:
    more = {"loss": loss, "intercept": intercept}
    alone, made = Alone(**more), Learning(job(model=MODEL | more), of)
    twin = MfTwin(made.specs[0].job.model)
    batches = some_batches(1, 40, 15, users=30, items=20, loss=loss)
    for batch in batches:
        expected = taught(twin, batch)
        # the logit of all but a millionth is off by as much in float32
        np.testing.assert_allclose(alone.learn(batch), expected, atol=1e-4, rtol=2e-3)
        totals = made.learn(batch)
        np.testing.assert_allclose(made.stepper._scores[:40], expected, atol=1e-4, rtol=2e-3)
        assert totals.examples == 40
    biases, factors = made.weights(), made.embeddings()
    if intercept:
        mean = biases.pop(INTERCEPT_KEY)
        del factors[INTERCEPT_KEY]
        assert mean == pytest.approx(twin.mean, abs=1e-5)
        assert alone.model.table.intercept[0] == pytest.approx(twin.mean, abs=1e-5)
    assert biases.keys() == twin.rows.keys()
    keys = np.array(sorted(biases), np.uint64)
    ours = dict(zip(keys.tolist(), alone.model.weights_at(keys).tolist(), strict=True))
    theirs = dict(zip(keys.tolist(), alone.model.embeddings_at(keys), strict=True))
    for key, row in twin.rows.items():
        assert biases[key] == pytest.approx(row.bias, abs=1e-5)
        assert ours[key] == pytest.approx(row.bias, abs=1e-5)
        np.testing.assert_allclose(factors[key], row.factors, atol=1e-5)
        np.testing.assert_allclose(theirs[key], row.factors, atol=1e-5)
    for shard in made.shards:
        told = counts_of(shard)
        met = {key: seen for key, seen in counts_of_batches(batches).items() if key in told}
        told.pop(INTERCEPT_KEY, None)
        assert told == met


def counts_of(shard: Shard) -> dict[int, int]:
    """Return how often each key was met."""
    rows = [shard.table.rows(segment) for segment in shard.table.key_order()]
    return {row[0]: row[2] & 0xFFFFFFFF for row in np.concatenate(rows).tolist()}


def counts_of_batches(batches: list[Any]) -> dict[int, int]:
    keys = np.concatenate([batch.keys[: batch.nnz] for batch in batches])
    return dict(zip(*(a.tolist() for a in np.unique(keys, return_counts=True)), strict=True))


def test_number_of_shards_makes_no_difference():
    made = [Learning(job(model=MODEL), of) for of in (1, 2, 7)]
    for batch in some_batches(2, 30, 12):
        totals = [one.learn(batch) for one in made]
        assert totals[0] == totals[1] == totals[2]
    for one in made[1:]:
        assert one.weights() == made[0].weights()
        assert one.embeddings() == made[0].embeddings()


def test_further_passes_are_shorter_steps_of_the_source_as_it_is_read_again():
    made, twin = Learning(job(model=MODEL), 2), MfTwin(SPEC.job.model)
    batches = some_batches(3, 40, 6)
    losses = []
    for epoch in range(3):
        mean, count = twin.mean, twin.count
        for batch in batches:
            expected = taught(twin, batch, epoch)
            twin.mean, twin.count = (mean, count) if epoch else (twin.mean, twin.count)
            made.learn(batch)
            np.testing.assert_allclose(made.stepper._scores[:40], expected, atol=1e-4)
        losses.append(made.mark.loss)
        seen = [counts_of(shard) for shard in made.shards]
        for shard in made.shards:
            shard.marks["p"] = changed(made.mark, done=True)
        made.mark = changed(made.mark, epoch=epoch + 1, sequence=0)
    first, second, third = losses[0], losses[1] - losses[0], losses[2] - losses[1]
    assert third < second < first
    assert seen == [counts_of(shard) for shard in made.shards]
    assert sum(sum(one.values()) for one in seen) == 6 * 40 * 3  # users, items, constant feature


def test_values_of_one_byte_learn_as_well():
    exact = Learning(job(model=MODEL), 1)
    short = Learning(job(model=MODEL, push_values="byte", pull_values="float16"), 1)
    for batch in some_batches(4, 50, 80, users=40, items=30):
        exact.learn(batch)
        short.learn(batch)
    assert short.mark.loss == pytest.approx(exact.mark.loss, rel=0.01)
    assert short.mark.loss < 0.8 * 80 * 50 * 0.75 * np.var([1, 2, 3, 4, 5])
    mean = exact.weights()[INTERCEPT_KEY]
    assert short.weights()[INTERCEPT_KEY] == pytest.approx(mean, abs=0.01)
    size = sum(len(one.vectors) for pushes in short.pushes for one in pushes)
    whole = sum(len(one.vectors) for pushes in exact.pushes for one in pushes)
    assert size < 0.26 * whole


@pytest.mark.parametrize("late", [1, 3])
def test_many_late_workers_do_not_overshoot(late: int) -> None:
    """Each minibatch is learned from rows that lack the last pushes; steps are far too large."""
    made = Learning(job(model=MODEL | {"alpha": 0.3}), 1)
    batches = some_batches(5, 60, 60, users=8, items=6)
    waiting: list[Any] = []
    for batch in batches:
        prepared = made.prepare(batch)
        waiting.append((batch, made.pulled(prepared)))
        if len(waiting) > late:
            made.learn(*waiting.pop(0))
    assert made.stepper.dropped == 0
    assert all(abs(weight) < 10 for weight in made.weights().values())
    assert np.abs(np.array(list(made.embeddings().values()))).max() < 10


# ---------------------------------------------------------------- pulls and pushes of a shard


def desk(of=SPEC, **more: Any) -> Desk:
    """Return a desk with a log and workers ``a`` and ``b`` on connections 1 and 2."""
    made = Desk(of, log=MemoryLog(), **more)
    made.join(1, "a", 1, 0)
    made.join(2, "b", 2, 0)
    return made


def factors_pull(keys: U64 = KEYS, *, clock: int = 0, copied: Any = (), of=SPEC) -> PullFactors:
    plain = pull(of, keys, clock=clock)
    held = np.array(copied if len(copied) else [0] * len(keys), np.int64)
    told = columns.encode_lengths(held, (1,)).data
    return PullFactors(**msgspec.structs.asdict(plain), copied=told)


def changes(keys: U64 = KEYS, *, clock: int = 0, of=SPEC, by: float = 0.5, **more: Any) -> Any:
    settled = {
        "gradients": np.full(len(keys), by), "dims": [DIM] * len(keys),
        "vectors": np.full(len(keys) * DIM, by), "items": (keys % np.uint64(3) == 0).astype("i8"),
    } | more  # fmt: skip
    return push(of, keys, clock=clock, **settled)


def of_b(clock: int, **more: Any) -> PushFactors:
    return changes(clock=clock, worker="b", incarnation=2, at=mark(clock + 1, "q"), **more)


def held(shard: Shard) -> dict[int, tuple[float, list[float]]]:
    """Return bias and factors of each key."""
    arena = shard.table.arena
    assert arena is not None
    out = {}
    for segment in shard.table.key_order():
        rows = shard.table.rows(segment)
        biases = (rows[:, 1] & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
        numbers = arena.coordinates_at(shard.table.find(rows[:, 0]))
        found = zip(rows[:, 0].tolist(), biases.tolist(), numbers.tolist(), strict=True)
        out |= {key: (bias, factors) for key, bias, factors in found}
    return out


def begun(key: int) -> F32:
    scale = SPEC.job.model.v_init_scale
    return np.array([v_init(key, 0, f, scale) for f in range(DIM)], np.float32)


def test_rows_begin_with_what_their_key_says_and_changes_are_of_that():
    made = desk()
    answer = made.asked(1, factors_pull())
    assert isinstance(answer, PulledFactors)
    assert (bytes(answer.lengths), bytes(answer.vectors)) == (b"", b"")
    assert isinstance(made.asked(1, changes()), Pushed)
    for key, (bias, factors) in held(made.shard).items():
        assert bias == 0.5
        np.testing.assert_allclose(factors, begun(key) + np.float32(0.5), atol=1e-6)
    answer = made.asked(1, factors_pull(clock=1))
    assert columns.decode_lengths(answer.lengths, 20, (DIM,)).tolist() == [DIM] * 20
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_rows_say_whether_they_are_items():
    made = desk()
    made.asked(1, changes())
    made.asked(1, changes(clock=1, items=np.zeros(20, np.int64)))  # said once, it stays
    rows = made.shard.table.rows_at(made.shard.table.find(KEYS))
    numbers = numbers_of(rows[:, 1])
    assert ((numbers & ITEM != 0) == (ITEMS != 0)).all()
    assert (numbers & ~ITEM == 1).all()


def test_so_much_is_kept_of_a_row_as_the_push_says():
    made = desk()
    made.asked(1, changes())
    before = held(made.shard)
    shares = np.arange(40, dtype=np.uint8) * 6
    made.asked(1, changes(clock=1, shares=shares, by=0.25))
    for i, key in enumerate(KEYS.tolist()):
        bias, factors = held(made.shard)[key]
        assert bias == pytest.approx(shares[2 * i] / 255 * before[key][0] + 0.25, abs=1e-6)
        kept = np.float32(shares[2 * i + 1] / 255) * np.array(before[key][1], np.float32)
        np.testing.assert_allclose(factors, kept + np.float32(0.25), atol=1e-6)
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_factors_that_a_worker_has_copies_of_do_not_travel():
    made = desk()
    made.asked(1, changes())
    copied = np.arange(20) % 4 != 0
    answer = made.asked(1, factors_pull(clock=1, copied=copied.astype(int)))
    assert isinstance(answer, PulledFactors)
    lengths = columns.decode_lengths(answer.lengths, 20, (DIM,))
    assert lengths.tolist() == np.where(copied, 0, DIM).tolist()
    assert len(answer.vectors) == 5 * DIM * 4
    biases = columns.decode_values(answer.values, 20, answer.coding)
    assert biases.tolist() == [0.5] * 20  # they always come


def test_answer_says_up_to_which_minibatch_nothing_is_missing():
    made = desk()
    assert made.asked(1, factors_pull()).clock == 0
    for clock in range(3):
        made.asked(1, changes(clock=clock))
    assert made.asked(1, factors_pull(clock=3)).clock == 0  # worker b has done nothing yet
    made.asked(2, of_b(0))
    assert made.asked(1, factors_pull(clock=3)).clock == 1
    reader = msgspec.structs.replace(factors_pull(clock=9), incarnation=0)
    assert isinstance(made.asked(1, reader), PulledFactors)
    assert type(made.asked(1, pull(SPEC, KEYS, clock=3))) is Pulled


def test_push_that_names_its_pull_says_which_factors_it_has_where_others_came():
    made = desk()
    made.asked(1, changes())
    copied = [1] * 10 + [0] * 10
    request = made.ask(1, factors_pull(clock=1, copied=copied))
    told = changes(clock=1, named=request, at=mark(2))
    assert isinstance(told, PushFactors)
    assert len(told.keys) == 0
    assert isinstance(made.asked(1, told), Pushed)
    assert {bias for bias, _ in held(made.shard).values()} == {1.0}
    for key, (_, factors) in held(made.shard).items():
        np.testing.assert_allclose(factors, begun(key) + 1, atol=1e-5)
    last = made.log.messages[-1]
    assert isinstance(last, PushFactors)
    assert columns.decode_lengths(last.lengths, 20, (DIM,)).tolist() == [DIM] * 20
    assert len(last.keys) > 0
    # and those of the answer, where it says none
    request = made.ask(1, factors_pull(clock=2, copied=copied))
    told = changes(clock=2, named=request, at=mark(3), dims=(), vectors=np.ones(10 * DIM))
    assert len(told.lengths) == 0
    assert isinstance(made.asked(1, told), Pushed)
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_forgotten_pull_is_made_up_for_with_the_same_bytes():
    made, other = desk(), desk()
    request = made.ask(1, factors_pull())
    other.ask(1, factors_pull())
    named = changes(named=request)
    assert isinstance(other.asked(1, named), Pushed)
    made.close(1)
    made.join(3, "a", 1, 0)
    assert isinstance(made.asked(3, named), KeyMiss)
    assert isinstance(made.asked(3, changes()), Pushed)
    assert held(made.shard) == held(other.shard)


def test_rows_that_were_forgotten_since_the_pull_begin_anew():
    small = spec(job(tau=-1, when_full="evict", model=MODEL), index=1, of=2, features_max=40)
    made = desk(small)
    made.asked(2, of_b(0, of=small))
    request = made.ask(1, factors_pull(of=small))
    for clock in range(1, 5):
        others = keys_of(small, *range(100 * clock, 100 * clock + 30))
        who = {"worker": "b", "incarnation": 2, "at": mark(clock + 1, "q")}
        assert isinstance(made.asked(2, changes(others, clock=clock, of=small, **who)), Pushed)
    assert made.shard.table.evicted > 60
    assert isinstance(made.asked(1, changes(of=small, named=request)), Pushed)
    now = {key: row for key, row in held(made.shard).items() if key in KEYS}
    assert len(now) == 20
    assert sum(bias == 0.5 for bias, _ in now.values()) > 10
    for key, (bias, factors) in now.items():
        np.testing.assert_allclose(factors, begun(key) + np.float32(bias), atol=1e-6)
    assert replayed(small, made.log).digest() == made.shard.digest()


def test_row_that_comes_in_a_later_pass_has_factors_although_nothing_is_counted():
    made = desk()
    made.asked(1, changes(counts=False))
    assert set(counts_of(made.shard).values()) == {0}
    for key, (_, factors) in held(made.shard).items():
        np.testing.assert_allclose(factors, begun(key) + np.float32(0.5), atol=1e-6)


def test_rows_that_there_is_no_room_for_learn_biases_alone():
    room = replace(SPEC, embeddings_bytes_max=5 * 2 * 64)
    made = desk(room)
    made.asked(1, changes(of=room))
    answer = made.asked(1, factors_pull(clock=1))
    assert np.count_nonzero(columns.decode_lengths(answer.lengths, 20, (DIM,))) == 5
    made.asked(1, changes(of=room, clock=1))
    assert {bias for bias, _ in held(made.shard).values()} == {1.0}
    assert made.service.figures()["embeddings_refused"] > 0
    assert replayed(room, made.log).digest() == made.shard.digest()


def test_rows_that_moved_since_the_pull():
    with small_tables():
        made = desk()
        made.asked(2, of_b(0))
        request = made.ask(1, factors_pull())
        many = keys_of(SPEC, *range(1000, 4000))
        who = {"worker": "b", "incarnation": 2, "at": mark(2, "q")}
        made.asked(2, changes(many, clock=1, **who))
        assert made.shard.table.growths > 0
        assert isinstance(made.asked(1, changes(named=request, at=mark(1))), Pushed)
        found = held(made.shard)
        for key in KEYS.tolist():
            np.testing.assert_allclose(found[key][1], begun(key) + 1, atol=1e-5)
        assert replayed(SPEC, made.log).digest() == made.shard.digest()


LENGTHS = columns.encode_lengths(np.full(20, DIM), (DIM,)).data


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shares": memoryview(bytes(39))}, "39 shares for 20 keys, expected two each"),
        ({"shares": EMPTY}, "0 shares for 20 keys, expected two each"),
        ({"items": memoryview(bytes(7))}, "a length column of 7 bytes"),
        ({"items": memoryview(b"\0" * 3 + b"\xff" * 5)}, "behind its 20 entries"),
        ({"vectors": memoryview(bytes(4 * 19 * DIM))}, "is not 400 values"),
        ({"lengths": EMPTY}, "is not 0 values"),
        ({"mark": mark(1)}, "the mark is of a model with another loss"),
    ],
    ids=["shares", "no shares", "items", "more items", "vectors", "lengths", "mark"],
)
def test_push_that_is_none_is_refused_and_changes_nothing(wrong: Any, says: str) -> None:
    made = desk()
    before = made.shard.digest()
    fault = made.fault(1, changed(changes(), **wrong))
    assert (fault.code, fault.again) == ("invalid", False)
    assert says in fault.message
    assert made.shard.digest() == before
    assert isinstance(made.asked(1, changes()), Pushed)


def test_pushes_are_those_of_the_model():
    made = desk()
    whole = msgspec.structs.asdict(changes())
    plain = Push(**{name: whole[name] for name in Push.__struct_fields__})
    assert made.fault(1, plain) == Fault("invalid", "a Push for a model mf", again=False)
    lr = spec(job(tau=-1), index=1, of=2)
    other = Desk(lr, log=MemoryLog())
    other.join(1, "a", 1, 0)
    told = changed(changes(), mark=mark(1), lengths=EMPTY, vectors=EMPTY)
    assert other.fault(1, told).message == "a PushFactors for a model lr"
    assert isinstance(other.asked(1, push(lr, KEYS)), Pushed)


def test_copies_that_are_none_are_refused():
    made = desk()
    whole = factors_pull()
    fault = made.fault(1, changed(whole, copied=memoryview(bytes(9))))
    assert (fault.code, fault.again) == ("invalid", False)
    assert isinstance(made.asked(1, whole), Pulled)
    assert isinstance(whole, Pull)


# ---------------------------------------------------------------- as a whole


def test_cut_is_of_its_moment_while_changes_go_on():
    shard = Shard(SPEC)
    shard.apply(1, changes())
    arena = shard.table.arena
    assert arena is not None
    expected: dict[int, tuple[list[int], F32]] = {}
    for segment in shard.table.key_order():
        rows = shard.table.rows(segment)
        expected |= by_key(Part(segment, rows, arena.take(rows)))
    cut = shard.keeper = Cut(shard.table)
    shares = np.full(40, 100, np.uint8)
    shard.apply(2, changes(clock=1, shares=shares))
    shard.apply(3, changes(keys_of(SPEC, *range(10, 60)), clock=2))
    found: dict[int, tuple[list[int], F32]] = {}
    while (part := cut.take()) is not None:
        found |= by_key(part)
    assert found.keys() == expected.keys()
    for key, (row, vectors) in expected.items():
        assert found[key][0] == row
        assert np.array_equal(found[key][1], vectors)
    assert held(shard)[KEYS.tolist()[0]][0] != 0.5


def by_key(part: Part) -> dict[int, tuple[list[int], F32]]:
    width = 32
    has = np.cumsum(part.rows[:, 3] >> np.uint64(48) > 0) * width
    return {
        row[0]: (row, part.vectors[end - width : end])
        for row, end in zip(part.rows.tolist(), has.tolist(), strict=True)
    }


def test_follower_has_the_same():
    made = Feeding(spec(job(model=MODEL)), log=MemoryLog())

    def learn(times: int) -> None:
        for _ in range(times):
            keys = keys_of(made.spec, *range(made.clock, made.clock + 5))
            told = changes(keys, clock=made.clock, of=made.spec, shares=bytes(range(100, 110)))
            made.ask(1, told)
            made.clock += 1

    learn(4)
    copy = made.copy(2)
    copy.follow()
    made.settle()
    learn(4)
    made.settle()
    assert copy.shard.digest() == made.shard.digest()
    assert (copy.images, copy.faults) == (1, [])
    assert len(held(copy.shard)) == 12


def test_bytes_that_travel_are_few():
    """Two bytes a key beside its factors, and an eighth for each of three maps."""
    of_job = job(model=MODEL, push_values="byte", pull_values="float16")
    made = Learning(of_job, 1)
    for batch in some_batches(6, 60, 5, users=40, items=40):
        made.learn(batch)
    (last,) = made.pushes[-1]
    count = last.count
    sizes: list[U8 | memoryview] = [last.items, last.shares, last.lengths]
    assert [len(one) for one in sizes] == [8 * -(-count // 64), 2 * count, 8 * -(-count // 64)]
    assert len(last.vectors) == (count - 1) * DIM + -(-(count - 1) * DIM // 256)
