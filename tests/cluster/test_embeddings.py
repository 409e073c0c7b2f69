"""Factorization machines between workers, shards and followers: lengths, resends, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamlearn import columns
from streamlearn.cluster import feeding
from streamlearn.cluster.service import Service
from streamlearn.messages import F32, I64
from streamlearn.protocol import Fault, FollowPart, KeyMiss, Pulled, Push, Pushed
from streamlearn.shards.arena import dims_of
from streamlearn.shards.shard import Shard
from tests.cluster.test_feeding import Feeding
from tests.reference.embeddings import Embedding, as_bytes, by_row, embeddings_of
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

# Three lengths, none a multiple of a block's; earned at once, and soon longer.
MODEL: dict[str, Any] = {
    "kind": "fm", "order": 3, "dim_by_count": {"0": 3, "1": 9, "3": 17}, "v_lr": 0.5,
    "v_init_scale": 0.3,
}  # fmt: skip
SPEC = spec(job(tau=-1, model=MODEL), index=1, of=2)
# One length, with one sum for each embedding.
NET = spec(
    job(tau=-1, model={"kind": "deep", "v_rule": "rowwise", "dim": 96, "v_lr": 0.5}), index=1, of=2
)
PLAIN = spec(job(tau=-1), index=1, of=2)
TIERS = SPEC.job.model.tiers
assert TIERS is not None
DIMS, PARTS = TIERS.dims, TIERS.parts
KEYS = keys_of(SPEC, *range(20))
EMPTY = memoryview(b"")


def desk(of=SPEC, **more: Any) -> Desk:
    """Return a desk with a log and workers ``a`` and ``b`` on connections 1 and 2."""
    made = Desk(of, log=MemoryLog(), **more)
    made.join(1, "a", 1, 0)
    made.join(2, "b", 2, 0)
    return made


def of_b(keys, clock: int, dims=(), vectors=(), **more: Any) -> Push:
    """Return a push of worker ``b``, of a partition of its own."""
    who = {"worker": "b", "incarnation": 2, "at": mark(clock + 1, "q")}
    return push(SPEC, keys, clock=clock, dims=dims, vectors=vectors, **who, **more)


def dims_in(answer: Any) -> I64:
    """Return the lengths of what was pulled."""
    assert isinstance(answer, Pulled), answer
    return columns.decode_lengths(answer.lengths, answer.count, DIMS)


def vectors_in(answer: Any) -> F32:
    """Return the embeddings of what was pulled."""
    total = int(dims_in(answer).sum()) * PARTS
    return columns.decode_values(answer.vectors, total, answer.coding & ~columns.SPARSE)


def held(shard: Shard) -> dict[int, tuple[int, list[float]]]:
    """Return how often each key was seen, and its embedding."""
    arena = shard.table.arena
    assert arena is not None
    found = {}
    for segment in shard.table.key_order():
        rows = shard.table.rows(segment)
        numbers = arena.coordinates_at(shard.table.find(rows[:, 0]))
        for row, own in zip(rows.tolist(), numbers.tolist(), strict=True):
            found[row[0]] = (row[2] & 0xFFFFFFFF, own)
    return found


def taught(made: Desk, times: int) -> None:
    """Let worker ``b`` teach all keys so often."""
    for clock in range(times):
        assert isinstance(made.asked(2, of_b(KEYS, clock)), Pushed)


# ---------------------------------------------------------------- what is pulled and pushed


def test_nobodys_embedding_is_nothing():
    made = desk()
    answer = made.asked(1, pull(SPEC, KEYS))
    assert (bytes(answer.lengths), bytes(answer.vectors)) == (b"", b"")


def test_lengths_are_those_that_counts_have_earned():
    made = desk()
    for times, dim in ((1, 3), (2, 9), (3, 9), (4, 17), (5, 17)):
        assert isinstance(made.asked(2, of_b(KEYS, times - 1)), Pushed)
        answer = made.asked(1, pull(SPEC, KEYS, incarnation=0))
        assert set(dims_in(answer).tolist()) == {dim}
        vectors = vectors_in(answer).reshape(len(KEYS), PARTS, dim)
        assert np.all(np.abs(vectors) <= 0.3)
        assert len(np.unique(vectors)) > 0.9 * vectors.size
    some = made.asked(1, pull(SPEC, keys_of(SPEC, 3, 400), incarnation=0))
    assert sorted(dims_in(some).tolist()) == [0, 17]


def test_constant_feature_has_no_embedding():
    first = spec(job(tau=-1, model=MODEL))
    keys = np.concatenate([np.array([1], np.uint64), keys_of(first, 5, 6)])
    made = Desk(first, log=MemoryLog())
    made.join(1, "a", 1, 0)
    for clock in range(5):
        # whatever is sent for it
        told = push(first, keys, clock=clock, dims=[3, 3, 3], vectors=np.ones(18))
        assert isinstance(made.asked(1, told), Pushed)
    answer = made.asked(1, pull(first, keys, clock=5))
    assert dims_in(answer).tolist() == [0, 17, 17]
    assert int(dims_of(made.shard.table.rows_at(made.shard.table.find(keys[:1]))[:, 3])[0]) == 0


@pytest.mark.parametrize("coding", [columns.FLOAT16, columns.BYTE, 16 | columns.FLOAT32])
def test_embeddings_travel_as_weights_do_but_whole(coding):
    made = desk()
    taught(made, 2)
    exact = vectors_in(made.asked(1, pull(SPEC, KEYS, incarnation=0)))
    answer = made.asked(1, pull(SPEC, KEYS, incarnation=0, coding=coding))
    kind = coding & ~columns.SPARSE
    near = vectors_in(answer)
    assert near == pytest.approx(exact, abs=0.3 * {0: 0, 1: 2**-10, 2: 2**-3}[kind])
    size = {0: 4, 1: 2, 2: 1}[kind] * len(exact)
    assert size <= len(answer.vectors) <= size + len(exact) // 256 + 1


def test_push_that_names_its_pull_steps_every_coordinate():
    made = desk()
    taught(made, 2)
    request = made.ask(1, pull(SPEC, KEYS, clock=2))
    answer = made.answers[1, request]
    dims, before = dims_in(answer), vectors_in(answer)
    gradients = np.random.default_rng(0).normal(0, 1, len(before)).astype(np.float32)
    told = push(SPEC, KEYS, clock=2, named=request, vectors=gradients, counts=False, at=mark(1))
    assert made.asked(1, told) == Pushed(1, duplicate=False)
    after = made.asked(1, pull(SPEC, KEYS, clock=3))
    assert np.array_equal(dims_in(after), dims)
    model = SPEC.job.model
    g = gradients + np.float32(model.v_l2) * before
    moved = before - model.v_lr * g / (model.v_lr_beta + np.abs(g))
    assert vectors_in(after) == pytest.approx(moved, abs=1e-6)
    last = made.log.messages[-1]
    assert isinstance(last, Push)
    assert bytes(last.lengths) == bytes(answer.lengths)
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_rows_that_grew_since_the_pull_are_stepped_as_far_as_was_pulled():
    made = desk()
    taught(made, 3)
    request = made.ask(1, pull(SPEC, KEYS, clock=3))
    dims = dims_in(made.answers[1, request])
    assert set(dims.tolist()) == {9}
    made.asked(2, of_b(KEYS, 3))  # the fourth: 17 numbers now
    before = held(made.shard)
    gradients = np.ones(int(dims.sum()) * PARTS, np.float32)
    told = push(SPEC, KEYS, clock=3, named=request, vectors=gradients, counts=False)
    assert isinstance(made.asked(1, changed(told, mark=mark(1))), Pushed)
    after = held(made.shard)
    for key in KEYS.tolist():
        was, now = (np.array(one[key][1]).reshape(PARTS, 17) for one in (before, after))
        assert np.all(now[:, :9] < was[:, :9])
        assert np.array_equal(now[:, 9:], was[:, 9:])
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_rows_that_were_forgotten_since_the_pull_begin_anew():
    small = spec(job(tau=-1, when_full="evict", model=MODEL), index=1, of=2, features_max=40)
    made = desk(small)
    keys = keys_of(small, *range(20))
    made.asked(2, push(small, keys, worker="b", incarnation=2, at=mark(1, "q")))
    request = made.ask(1, pull(small, keys))
    for clock in range(1, 5):
        others = keys_of(small, *range(100 * clock, 100 * clock + 30))
        told = push(small, others, clock=clock, worker="b", incarnation=2, at=mark(clock + 1, "q"))
        assert isinstance(made.asked(2, told), Pushed)
    assert made.shard.table.evicted > 60
    vectors = np.ones(20 * 3 * PARTS, np.float32)
    told = push(small, keys, named=request, vectors=vectors)
    assert isinstance(made.asked(1, told), Pushed)
    # what was stepped is gone with the rows: those that are there were drawn anew
    answer = made.asked(1, pull(small, keys, clock=1))
    dims, fresh = dims_in(answer), desk(small)
    assert np.count_nonzero(dims == 3) > 10
    fresh.asked(1, push(small, keys))
    drawn = held(fresh.shard)
    for key, (count, numbers) in held(made.shard).items():
        if count == 1 and key in drawn:
            assert numbers == drawn[key][1]
    assert replayed(small, made.log).digest() == made.shard.digest()


def test_rows_that_moved_since_the_pull():
    with small_tables():
        made = desk()
        taught(made, 2)
        request = made.ask(1, pull(SPEC, KEYS, clock=2))
        dims = dims_in(made.answers[1, request])
        many = keys_of(SPEC, *range(1000, 4000))
        made.asked(2, of_b(many, 2))
        assert made.shard.table.growths > 0
        before = held(made.shard)
        vectors = np.ones(int(dims.sum()) * PARTS, np.float32)
        told = push(SPEC, KEYS, clock=2, named=request, vectors=vectors, at=mark(1))
        assert isinstance(made.asked(1, told), Pushed)
        after = held(made.shard)
        assert {key for key in after if after[key] != before[key]} == set(KEYS.tolist())
        assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_forgotten_pull_is_made_up_for_with_keys_and_lengths():
    made, other = desk(), desk()
    for one in (made, other):
        taught(one, 2)
    request = made.ask(1, pull(SPEC, KEYS, clock=2))
    answer = made.answers[1, request]
    assert other.ask(1, pull(SPEC, KEYS, clock=2)) == request
    vectors = np.linspace(-1, 1, len(vectors_in(answer)), dtype=np.float32)
    named = push(SPEC, KEYS, clock=2, named=request, vectors=vectors, at=mark(1))
    assert isinstance(other.asked(1, named), Pushed)
    made.close(1)
    made.join(3, "a", 1, 2)
    before = made.shard.digest()
    assert made.asked(3, named) == KeyMiss(request)
    assert made.shard.digest() == before
    again = push(SPEC, KEYS, clock=2, dims=dims_in(answer), vectors=vectors, at=mark(1))
    assert again.vectors == named.vectors
    assert isinstance(made.asked(3, again), Pushed)
    assert held(made.shard) == held(other.shard)
    assert replayed(SPEC, made.log).digest() == made.shard.digest()
    # and once more: it has been applied
    assert made.asked(3, again) == Pushed(1, duplicate=True)
    assert held(made.shard) == held(other.shard)


def test_where_there_is_no_room_nobody_gets_one_and_it_is_counted():
    few = spec(job(tau=-1, model=MODEL), index=1, of=2)
    lines = TIERS.lines(3)
    made = Desk(
        type(few)(1, 2, few.job, few.signature, few.features_max, 64 * lines * 7), log=MemoryLog()
    )
    made.join(2, "b", 2, 0)
    made.asked(2, of_b(KEYS, 0))
    dims = dims_in(made.asked(2, pull(SPEC, KEYS, clock=1, incarnation=2)))
    assert sorted(dims.tolist()) == [0] * 13 + [3] * 7
    figures = made.service.figures()
    assert figures["embeddings_bytes"] == 64 * lines * 7
    assert figures["embeddings_refused"] == 13
    assert replayed(made.spec, made.log).digest() == made.shard.digest()


def test_models_without_embeddings_say_nothing_of_them():
    made = desk(PLAIN)
    made.asked(1, push(PLAIN, KEYS))
    answer = made.asked(1, pull(PLAIN, KEYS, clock=1))
    assert (bytes(answer.lengths), bytes(answer.vectors)) == (b"", b"")
    assert not any("embeddings" in name for name in made.service.figures())


def test_one_sum_a_row_is_where_it_was_when_a_log_is_read_again():
    tiers = NET.job.model.tiers
    keys, made = keys_of(NET, *range(20)), Desk(NET, log=MemoryLog())
    made.join(1, "a", 1, 0)
    embedding: dict[int, Embedding] = {}
    for clock in range(4):
        request = made.ask(1, pull(NET, keys, clock=clock))
        answer = made.answers[1, request]
        dims = columns.decode_lengths(answer.lengths, answer.count, tiers.dims)
        assert dims.tolist() == [96 if clock else 0] * 20
        slopes = np.random.default_rng(clock).normal(0, 1, int(dims.sum())).astype(np.float32)
        told = push(NET, keys, clock=clock, named=request, vectors=slopes, at=mark(clock + 1))
        assert isinstance(made.asked(1, told), Pushed)
        now = embeddings_of(made.shard.table)
        for key, g in zip(keys.tolist(), slopes.reshape(20, -1), strict=True):
            if key in embedding:
                one = by_row(embedding[key], g[None], made.shard._v_rates)
                assert as_bytes({0: one}) == as_bytes({0: now[key]})
        embedding = now
    assert all(one.m.item() > 0 for one in embedding.values())
    again = replayed(NET, made.log)
    assert again.digest() == made.shard.digest()
    assert as_bytes(embeddings_of(again.table)) == as_bytes(embedding)


# ---------------------------------------------------------------- what is refused


def with_vectors(dims: Any, floats: Any, **fields: Any) -> Push:
    """Return a push with keys, lengths and gradients of embeddings."""
    return changed(push(SPEC, KEYS, clock=2, dims=dims, vectors=floats, at=mark(1)), **fields)


def code(number: int) -> memoryview:
    """Return lengths of which the first is number ``number`` of the tiers."""
    column = bytearray(columns.encode_lengths(np.array([3, *[0] * 19], np.int64), DIMS))
    column[-1] = number
    return memoryview(column)


THREE = [3] * 20
RIGHT = np.ones(20 * 3 * PARTS, np.float32)
FEW = [3, *[0] * 19]
WRONG = {
    "more coordinates than vectors": with_vectors([9] * 20, RIGHT),
    "fewer coordinates than vectors": with_vectors([3, *[0] * 19], RIGHT),
    "lengths and no vectors": with_vectors(THREE, []),
    "vectors and no lengths": with_vectors([], RIGHT),
    "one number less": with_vectors(THREE, RIGHT[:-1]),
    "one byte less": with_vectors(THREE, RIGHT, vectors=memoryview(RIGHT.tobytes())[:-1]),
    "unknown tier": with_vectors(FEW, RIGHT[:6], lengths=code(3)),
    "tier 255": with_vectors(FEW, RIGHT[:6], lengths=code(255)),
    "no bitmap": with_vectors(FEW, RIGHT[:6], lengths=memoryview(b"\1")),
    "bits behind the keys": with_vectors(
        FEW, RIGHT[:6], lengths=memoryview(b"\1\0\0\1\0\0\0\0\0\0")
    ),
    "bitmap of none": with_vectors([], [], lengths=memoryview(bytes(8))),
    "a code too many": with_vectors(FEW, RIGHT[:6], lengths=memoryview(bytes(code(0)) + b"\0")),
    "nan": with_vectors(THREE, np.where(np.arange(120) == 7, np.nan, 1)),
    "infinite": with_vectors(THREE, np.where(np.arange(120) == 7, -np.inf, 1)),
    "in another coding": with_vectors(THREE, RIGHT, coding=columns.FLOAT16),
}


@pytest.mark.parametrize("why", WRONG)
def test_wrong_gradients_of_embeddings_are_refused_whole(why):
    made = desk()
    taught(made, 2)
    before, records = made.shard.digest(), len(made.log.records)
    fault = made.fault(1, WRONG[why])
    assert (fault.code, fault.again) == ("invalid", False)
    assert fault.message
    assert made.shard.digest() == before
    assert len(made.log.records) == records
    assert isinstance(made.asked(1, with_vectors(THREE, RIGHT)), Pushed)


@pytest.mark.parametrize("size", [0, 1, 119, 121])
def test_a_push_that_does_not_have_what_it_pulled_is_refused_whole(size):
    made = desk()
    taught(made, 1)
    request = made.ask(1, pull(SPEC, KEYS, clock=1))
    before = made.shard.digest()
    told = push(SPEC, KEYS, clock=1, named=request, vectors=np.ones(size), at=mark(1))
    fault = made.fault(1, told)
    assert (fault.code, fault.again) == ("invalid", False)
    assert made.shard.digest() == before
    # the pull is still known
    right = push(SPEC, KEYS, clock=1, named=request, vectors=np.ones(120), at=mark(1))
    assert isinstance(made.asked(1, right), Pushed)


def test_what_a_push_says_of_lengths_beside_its_pull_is_not_looked_at():
    made = desk()
    taught(made, 1)
    request = made.ask(1, pull(SPEC, KEYS, clock=1))
    told = push(SPEC, KEYS, clock=1, named=request, vectors=np.ones(120), at=mark(1))
    assert isinstance(made.asked(1, changed(told, lengths=code(200))), Pushed)
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


@pytest.mark.parametrize(
    ("lengths", "vectors"), [(b"", bytes(4)), (bytes(8), b""), (b"\1" + bytes(7), bytes(8))]
)
def test_embeddings_of_a_model_without_them_are_refused(lengths, vectors):
    made = desk(PLAIN)
    before = made.shard.digest()
    told = push(PLAIN, KEYS)
    wrong = changed(told, lengths=memoryview(lengths), vectors=memoryview(vectors))
    fault = made.fault(1, wrong)
    assert (fault.code, fault.again) == ("invalid", False)
    assert "embeddings" in fault.message
    assert made.shard.digest() == before
    assert made.asked(1, told) == Pushed(1, duplicate=False)


def test_count_beyond_memory_is_refused():
    made = desk()
    wrong = changed(with_vectors(FEW, RIGHT[:6]), count=1 << 60)
    assert made.fault(1, wrong).code == "invalid"


# ---------------------------------------------------------------- followers


@pytest.mark.parametrize("of", [SPEC, NET], ids=["fm", "net"])
@pytest.mark.parametrize("rows", [1 << 18, 1 << 7])
def test_follower_is_sent_the_state_in_pieces_and_then_records(rows, of, monkeypatch):
    monkeypatch.setattr(feeding, "_PART_ROWS", rows)
    with small_tables():
        made = Feeding(of, log=MemoryLog())
        sent: list[Any] = []
        for _ in range(3):
            made.push(7)
            copy = made.copy(2 + len(made.copies))
            take = copy.take
            copy.take = lambda one, take=take: (sent.append(one), take(one))
            copy.follow()
            made.push(3)
            made.settle()
            assert copy.shard.digest() == made.shard.digest()
        made.push(5)
        made.settle()
    parts = [one for one in sent if isinstance(one, FollowPart)]
    assert sum(len(one.vectors) for one in parts) > 0
    assert (len(parts) > 6) == (rows == 1 << 7)
    for copy in made.copies.values():
        assert copy.shard.digest() == made.shard.digest()
        assert (copy.images, copy.faults) == (1, [])


def test_follower_is_read_from_as_its_shard_is():
    made = Feeding(SPEC, log=MemoryLog())
    made.push(9)
    copy = made.copy(2)
    copy.follow()
    made.settle()
    reader = Desk(SPEC, shard=copy.shard)
    assert isinstance(reader.service, Service)
    reader.open(1)
    keys = keys_of(SPEC, *range(14))
    theirs = made.service.shard
    located = theirs.locate(keys)
    lengths, vectors = theirs.vectors(located, theirs.values(located), columns.FLOAT32)
    answer = reader.asked(1, pull(SPEC, keys, incarnation=0))
    assert not isinstance(answer, Fault)
    assert bytes(answer.lengths) == bytes(lengths)
    assert bytes(answer.vectors) == bytes(vectors)
    assert len(vectors) > 0
