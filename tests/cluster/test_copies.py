"""Copies of rows: which are used, for how long, and who stands where."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.cluster.copies import NO_PLAN, Copies, Plan, copies_max
from streamlearn.messages import I64, U64
from tests.shard_parts import job

ROOM = 1024
KEYS = np.array([n * (1 << 54) + 1 for n in range(1, 9)], np.uint64)  # each has its own place
ALL = np.ones(len(KEYS), np.int64)


def used(plan: Plan) -> list[bool]:
    return (plan.used >= 0).tolist()


def pulled(copies: Copies, clock: int, fresh: int | None = None, keys: U64 = KEYS) -> Plan:
    """Plan a minibatch of items, and have it answered at once."""
    plan = copies.plan(keys, np.ones(len(keys), np.int64), clock)
    copies.answered(plan, keys, 0, len(keys), clock if fresh is None else fresh)
    return plan


def test_copies_are_used_as_long_as_they_lack_nothing_that_reads_may_not_lack() -> None:
    copies = Copies(ROOM, 3)
    first = pulled(copies, 10, fresh=9)
    assert not any(used(first))
    assert (first.kept >= 0).all()
    for clock in (11, 12):
        plan = pulled(copies, clock)
        assert all(used(plan))
        assert plan.used.tolist() == plan.kept.tolist() == first.kept.tolist()
    assert not any(used(pulled(copies, 13)))  # what others did from minibatch 10 on must be there
    assert all(used(pulled(copies, 14)))


def test_row_that_was_asked_for_is_no_copy_before_it_has_come() -> None:
    copies = Copies(ROOM, 4)
    first = copies.plan(KEYS, ALL, 0)
    second = copies.plan(KEYS, ALL, 1)
    assert not any(used(second))
    assert second.kept.tolist() == first.kept.tolist()
    copies.answered(first, KEYS, 0, 3, 0)  # by the first of two shards
    third = copies.plan(KEYS, ALL, 2)
    assert used(third) == [True] * 3 + [False] * 5
    copies.answered(second, KEYS, 0, len(KEYS), 1)
    copies.answered(third, KEYS, 0, len(KEYS), 2)
    assert used(copies.plan(KEYS, ALL, 5)) == [True] * 8
    assert used(copies.plan(KEYS, ALL, 6)) == [False] * 3 + [True] * 5


def test_users_are_not_copied() -> None:
    copies = Copies(ROOM, 4)
    items = np.array([1, 0] * 4, np.int64)
    for clock in (0, 1):
        plan = copies.plan(KEYS, items, clock)
        copies.answered(plan, KEYS, 0, len(KEYS), clock)
        assert ((plan.kept >= 0) == (items != 0)).all()
    assert used(plan) == [True, False] * 4


def test_place_is_held_while_its_copy_may_be_used() -> None:
    copies = Copies(2, 3)
    one, other = KEYS[:1], KEYS[1:2]
    assert pulled(copies, 0, keys=one).kept.tolist() == [0]
    assert pulled(copies, 1, keys=other).kept.tolist() == [-1]
    assert used(pulled(copies, 2, keys=one)) == [True]
    taken = pulled(copies, 4, keys=other)
    assert (taken.used.tolist(), taken.kept.tolist()) == ([-1], [0])
    assert pulled(copies, 5, keys=one).kept.tolist() == [-1]
    assert used(pulled(copies, 5, keys=other)) == [True]


def test_late_answer_of_a_row_whose_place_was_taken_changes_nothing() -> None:
    copies = Copies(2, 2)
    one, other = KEYS[:1], KEYS[1:2]
    some = np.ones(1, np.int64)
    late = copies.plan(one, some, 0)
    copies.plan(other, some, 5)
    copies.answered(late, one, 0, 1, 5)
    assert used(copies.plan(other, some, 6)) == [False]


def test_what_was_planned_is_forgotten() -> None:
    copies = Copies(ROOM, 4)
    pulled(copies, 0)
    copies.forget()
    assert not any(used(pulled(copies, 1)))


def test_any_staleness_is_some_minibatches() -> None:
    copies = Copies(ROOM, -1)
    pulled(copies, 100)
    assert all(used(copies.plan(KEYS, ALL, 116)))
    assert not any(used(copies.plan(KEYS, ALL, 117)))
    far = Copies(ROOM, 1 << 20)
    pulled(far, 100)
    assert not any(used(far.plan(KEYS, ALL, 117)))


def test_without_room_there_are_none() -> None:
    copies = Copies(0, 4)
    plan = copies.plan(KEYS, ALL, 0)
    assert plan is NO_PLAN
    copies.answered(plan, KEYS, 0, len(KEYS), 0)


@pytest.mark.parametrize(
    ("dim", "bytes_max", "expected"),
    [(16, 0, 0), (16, 127, 0), (16, 128, 2), (16, 1000, 8), (17, 1000, 4), (16, 1 << 40, 1 << 20)],
)
def test_as_many_as_there_is_memory_for(dim: int, bytes_max: int, expected: int) -> None:
    settings = {"tau": 4, "copies_bytes_max": bytes_max}
    assert copies_max(job(model={"kind": "mf", "dim": dim}, **settings)) == expected
    assert copies_max(job(model={"kind": "mf", "dim": dim}, **settings | {"tau": 0})) == 0
    assert copies_max(job(model={"kind": "fm", "dim": dim}, **settings)) == 0


def some(count: int, seed: int) -> tuple[U64, I64]:
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(1, 1 << 63, count, np.uint64)) * np.uint64(2) + np.uint64(1)
    return keys, rng.integers(0, 2, len(keys))


def test_no_two_keys_stand_in_one_place() -> None:
    copies = Copies(64, 2)
    for clock in range(30):
        keys, items = some(40, clock % 5)
        plan = copies.plan(keys, items, clock)
        copies.answered(plan, keys, 0, len(keys), clock)
        places = plan.kept[plan.kept >= 0].tolist()
        assert len(set(places)) == len(places)
        assert (plan.used <= plan.kept).all()
        assert (copies._held[plan.kept[plan.kept >= 0]] == keys[plan.kept >= 0]).all()
