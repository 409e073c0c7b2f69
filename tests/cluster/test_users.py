"""Users that stand with their worker: the same model, kept, gone on with, gathered once each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.cluster.users import USERS, Keeping, StoredUsers, Users, furthest, users_spec
from streamlearn.config import JobConfig
from streamlearn.errors import ClusterError, TableFullError
from streamlearn.protocol import RatingMark
from streamlearn.shards.shard import INTERCEPT_KEY, Shard
from tests.cluster.test_preparing import Learning
from tests.reference.mf_runs import batch_of, ratings_of, some_batches
from tests.shard_parts import changed, job

DIM = 20
MODEL: dict[str, Any] = {"kind": "mf", "dim": DIM, "alpha": 0.05}
SIGNATURE = "of this job"


def of_job(**model: Any) -> JobConfig:
    return job(model=MODEL | {"users": "worker"} | model)


def keeping(directory: Path, name: str = "a") -> Keeping:
    return Keeping(directory / name, lambda: 1.0)


def opened(directory: Path, name: str = "a", partition: str = "p") -> Users:
    """Return a partition's users as a worker finds them."""
    spec = users_spec(of_job(), SIGNATURE)
    return Users.open(spec, partition, keeping(directory, name))


class Apart(Learning):
    """A worker whose users stand with it, and shards."""

    def __init__(self, users: Users, of: int, **model: Any) -> None:
        super().__init__(of_job(**model), of)
        self.stepper.users = self.users = users

    def learn(self, batch: Any, pulled: Any = None) -> Any:
        totals = super().learn(batch, pulled)
        self.users.apply(self.mark)
        return totals


def rows_of(shard: Shard) -> dict[int, tuple[float, list[float]]]:
    """Return bias and factors by key."""
    out: dict[int, tuple[float, list[float]]] = {}
    arena = shard.table.arena
    assert arena is not None
    for segment in shard.table.key_order():
        keys = shard.table.rows(segment)[:, 0]
        slots = shard.table.find(keys)
        biases = shard.updater.values(shard.table, slots, False, np.empty(len(slots), np.float32))
        found = zip(
            keys.tolist(), biases.tolist(), arena.coordinates_at(slots).tolist(), strict=True
        )
        out |= {key: (bias, factors) for key, bias, factors in found}
    return out


def users_in(batches: list[Any]) -> set[int]:
    return {user for batch in batches for user, *_ in ratings_of(batch)}


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("of", [1, 3])
@pytest.mark.parametrize("intercept", [True, False])
def test_what_is_learned_is_what_is_learned_with_users_on_shards(
    tmp_path: Path, of: int, intercept: bool
) -> None:
    more = {"intercept": intercept}
    apart, whole = Apart(opened(tmp_path), of, **more), Learning(job(model=MODEL | more), of)
    batches = some_batches(1, 40, 12)
    for batch in batches:
        mine, theirs = apart.learn(batch), whole.learn(batch)
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-6)
    users = users_in(batches)
    there = {key for shard in apart.shards for key in rows_of(shard)} - {INTERCEPT_KEY}
    here = rows_of(apart.users._shard)
    assert here.keys() == users
    assert not there & users
    expected: dict[int, Any] = {}
    for shard in whole.shards:
        expected |= rows_of(shard)
    for key, (bias, factors) in here.items():
        assert bias == pytest.approx(expected[key][0], abs=1e-5)
        np.testing.assert_allclose(factors, expected[key][1], atol=1e-5)
    for shard in apart.shards:
        for key, (bias, factors) in rows_of(shard).items():
            assert bias == pytest.approx(expected[key][0], abs=1e-5)
            np.testing.assert_allclose(factors, expected[key][1], atol=1e-5)


def test_only_items_travel(tmp_path: Path) -> None:
    apart = Apart(opened(tmp_path), 2)
    for batch in some_batches(2, 30, 3):
        prepared = apart.prepare(batch)
        users, items = users_in([batch]), {item for _, item, *_ in ratings_of(batch)}
        keys = prepared.buffers.localized.keys
        shared = prepared.parts[-1].end
        assert set(keys[:shared].tolist()) == items | {INTERCEPT_KEY}
        assert set(keys[shared:].tolist()) == users
        assert (np.diff(keys[:shared].astype(object)) > 0).all()
        assert (np.diff(keys[shared:].astype(object)) > 0).all()
        apart.learn(batch)
    for pushes in apart.pushes:
        assert sum(push.count for push in pushes) < 20


def test_byte_pushes_of_items_leave_users_exact(tmp_path: Path) -> None:
    apart = Apart(opened(tmp_path), 1)
    short = Learning(job(model=MODEL | {"users": "worker"}, push_values="byte"), 1)
    short.stepper.users = users = opened(tmp_path, "b")
    for batch in some_batches(3, 40, 10):
        apart.learn(batch)
        short.learn(batch)
        users.apply(short.mark)
    assert short.mark.loss == pytest.approx(apart.mark.loss, rel=0.02)


# ---------------------------------------------------------------- kept, and gone on with


def test_kept_users_are_gone_on_with_by_whoever_finds_them(tmp_path: Path) -> None:
    batches = some_batches(4, 20, 8)
    whole = Apart(opened(tmp_path / "1"), 2)
    for batch in batches:
        whole.learn(batch)
    broken = Apart(opened(tmp_path / "2", "a"), 2)
    for batch in batches[:5]:
        broken.learn(batch)
        if broken.mark.sequence == 3:
            broken.users.save(broken.users.image())
    # the worker is gone; another one begins where what is kept ends, and shards have more
    found = opened(tmp_path / "2", "b")
    assert found.mark == changed(found.mark, sequence=3)
    broken.stepper.users = broken.users = found
    after = broken.mark
    broken.mark = found.mark
    for batch in batches[3:]:
        broken.learn(batch)
        if broken.mark.sequence <= after.sequence:
            assert broken.mark.offset == (batches.index(batch) + 1) * 10
    assert broken.mark.sequence == 8
    assert rows_of(found._shard).keys() == rows_of(whole.users._shard).keys()
    assert counts(found) == counts(whole.users)


def counts(users: Users) -> dict[int, int]:
    table = users._shard.table
    rows = np.concatenate([table.rows(segment) for segment in table.key_order()])
    return {row[0]: row[2] & 0xFFFFFFFF for row in rows.tolist()}


def test_minibatch_that_comes_again_is_passed_over(tmp_path: Path) -> None:
    apart = Apart(opened(tmp_path), 1)
    (batch,) = some_batches(5, 20, 1)
    apart.learn(batch)
    before = rows_of(apart.users._shard)
    prepared = apart.prepare(batch)
    apart.stepper.step(prepared, apart.pulled(prepared), 0, 0)
    apart.users.apply(apart.mark)  # that of the minibatch before
    assert rows_of(apart.users._shard) == before


def test_what_was_stepped_and_never_pushed_is_dropped(tmp_path: Path) -> None:
    apart = Apart(opened(tmp_path), 1)
    first, second = some_batches(6, 20, 2)
    apart.learn(first)
    before = rows_of(apart.users._shard)
    prepared = apart.prepare(second)
    apart.stepper.step(prepared, apart.pulled(prepared), 1, 0)
    apart.users.drop()
    apart.users.apply(changed(apart.mark, sequence=2))
    assert rows_of(apart.users._shard) == before
    assert apart.users.mark.sequence == 2


def test_furthest_of_all_workers_counts(tmp_path: Path) -> None:
    for name, taught in (("a", 2), ("b", 4), ("c", 3)):
        apart = Apart(
            Users(Shard(users_spec(of_job(), SIGNATURE)), "p", keeping(tmp_path, name)), 1
        )
        for batch in some_batches(7, 10, taught):
            apart.learn(batch)
        apart.users.save(apart.users.image())
    found = opened(tmp_path, "z")
    assert found.mark is not None
    assert found.mark.sequence == 4
    assert furthest(tmp_path, "p", "of another job") is None
    assert furthest(tmp_path, "q", SIGNATURE) is None
    (path,) = (tmp_path / "b" / USERS).glob("*/*")
    (path / "manifest.json").write_bytes(b"")
    found = opened(tmp_path, "z")
    assert found.mark is not None
    assert found.mark.sequence == 3


def test_snapshot_has_what_there_was_at_its_moment(tmp_path: Path) -> None:
    apart = Apart(opened(tmp_path), 1)
    first, second = some_batches(8, 30, 2)
    apart.learn(first)
    then = rows_of(apart.users._shard)
    image = apart.users.image()
    apart.learn(second)
    apart.users.save(image)
    again = opened(tmp_path)
    assert rows_of(again._shard) == then
    assert again.mark is not None
    assert again.mark.sequence == 1


def test_more_users_than_there_may_be_are_an_error(tmp_path: Path) -> None:
    small = job(model=MODEL | {"users": "worker"}, features_max=8)
    apart = Apart(Users(Shard(users_spec(small, SIGNATURE)), "p", keeping(tmp_path)), 1)
    before = rows_of(apart.users._shard)
    with pytest.raises(TableFullError, match=r"p has more users than tables.features_max = 8"):
        apart.learn(batch_of(ratings_by(range(9))))
    assert rows_of(apart.users._shard) == before


# ---------------------------------------------------------------- gathered


def kept(directory: Path, name: str, partition: str, ratings: list[Any]) -> RatingMark:
    """Have a worker learn a partition and keep its users; return the mark."""
    users = Users(Shard(users_spec(of_job(), SIGNATURE)), partition, keeping(directory, name))
    apart = Apart(users, 1)
    apart.mark = changed(apart.mark, partition=partition)
    for first in range(0, len(ratings), 10):
        apart.learn(batch_of(ratings[first : first + 10]))
    users.save(users.image())
    return apart.mark


def ratings_by(users: range, count: int = 3) -> list[Any]:
    return [(2 * u + 101, 2 * (u % 7) + 11, 3.0, 1.0) for u in users for _ in range(count)]


def test_users_of_all_partitions_are_gathered(tmp_path: Path) -> None:
    marks = [
        kept(tmp_path, "a", "p", ratings_by(range(30))),
        kept(tmp_path, "b", "q", ratings_by(range(30, 50))),
    ]
    with StoredUsers(tmp_path, SIGNATURE, marks) as stored:
        keys = np.concatenate([part.rows[:, 0] for part in stored.parts()])
        assert sorted(keys.tolist()) == [2 * u + 101 for u in range(50)]
        assert stored.notes == []
        for part in stored.parts():
            assert len(part.vectors) == 32 * len(part.rows)


def test_user_at_the_edge_of_two_ranges_is_the_one_of_most_ratings(tmp_path: Path) -> None:
    many = ratings_by(range(200))
    marks = [
        kept(tmp_path, "a", "p", [*many, *ratings_by(range(200, 201), 2)]),
        kept(tmp_path, "b", "q", [*ratings_by(range(200, 201), 5), *ratings_by(range(300, 320))]),
    ]
    with StoredUsers(tmp_path, SIGNATURE, marks) as stored:
        parts = list(stored.parts())
    rows = np.concatenate([part.rows for part in parts])
    (edge,) = rows[rows[:, 0] == 501]
    assert int(edge[2]) & 0xFFFFFFFF == 5
    assert len(rows) == 221
    assert stored.notes == [
        "1 of 221 users are in more than one object of the source; of each the row that more "
        "ratings taught was taken"
    ]
    for part in parts:
        assert len(part.vectors) == 32 * len(part.rows)


def test_source_that_is_not_split_by_user_is_said_to_be_so(tmp_path: Path) -> None:
    marks = [
        kept(tmp_path, "a", "p", ratings_by(range(30))),
        kept(tmp_path, "b", "q", ratings_by(range(20, 50))),
    ]
    with pytest.raises(ClusterError, match="10 of 50 users are in more than one object") as caught:
        StoredUsers(tmp_path, SIGNATURE, marks)
    assert caught.value.hint is not None
    assert "split by user" in caught.value.hint


def test_users_that_are_missing_or_behind_are_named(tmp_path: Path) -> None:
    mark = kept(tmp_path, "a", "p", ratings_by(range(30)))
    with pytest.raises(ClusterError, match="users of q up to nothing, but the shards are at"):
        StoredUsers(tmp_path, SIGNATURE, [mark, changed(mark, partition="q")])
    ahead = changed(mark, sequence=mark.sequence + 1)
    with pytest.raises(ClusterError, match=r"up to minibatch 9 of pass 0, .* at minibatch 10"):
        StoredUsers(tmp_path, SIGNATURE, [ahead])


def test_nothing_is_gathered_of_nothing(tmp_path: Path) -> None:
    with StoredUsers(tmp_path, SIGNATURE, []) as stored:
        assert list(stored.parts()) == []
