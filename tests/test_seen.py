"""What users have rated is remembered pair by pair, however it came."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn import seen as module
from streamlearn.errors import SnapshotError
from streamlearn.factorized import Places
from streamlearn.seen import SeenRatings


@pytest.mark.parametrize("waiting", [0, 7, 1000])
def test_pairs_are_those_that_were_added(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    monkeypatch.setattr(module, "_WAITING_MAX", waiting)
    rng = np.random.default_rng(waiting)
    keys = rng.integers(1, 1 << 63, 60).astype(np.uint64)
    users, items = keys[:20], keys[20:]
    seen, twin = SeenRatings(), set()
    for turn in range(30):
        pairs = np.stack([rng.choice(users, 9), rng.choice(items, 9)], axis=1)
        if turn % 2:
            seen.add(pairs)
        else:
            for user, item in pairs.tolist():
                seen.add_one(user, item)
        twin |= {tuple(pair) for pair in pairs.tolist()}
        asked, known = rng.permutation(users)[:8], rng.permutation(items)[:25]
        found = seen.pairs(asked, Places(known))
        low = np.uint64(32)
        told = {
            (int(asked[pair >> low]), int(known[pair & np.uint64(0xFFFFFFFF)])) for pair in found
        }
        wanted = {(u, i) for u, i in twin if u in asked.tolist() and i in known.tolist()}
        assert told == wanted
        assert seen.count == 9 * (turn + 1)
    again = SeenRatings()
    again.restore(seen.state())
    assert again.count == seen.count
    assert set(again.pairs(users, Places(items)).tolist()) == set(
        seen.pairs(users, Places(items)).tolist()
    )


def test_nothing_is_seen_at_first() -> None:
    seen = SeenRatings()
    keys = np.arange(1, 4, dtype=np.uint64)
    assert seen.count == 0
    assert len(seen.pairs(keys, Places(keys))) == 0
    seen.add(np.zeros((0, 2), np.uint64))
    seen.add_one(1, 2)
    assert seen.pairs(keys, Places(keys)).tolist() == [1]
    assert len(seen.pairs(keys[:0], Places(keys))) == 0


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("users", np.zeros(1, np.int64)),
        ("users", np.zeros(3, np.uint64)),
        ("starts", np.array([0, 5], np.int64)),
        ("starts", np.array([1, 1], np.int64)),
        ("codes", np.array([9], np.uint32)),
        ("items", np.zeros(0, np.uint64)),
    ],
)
def test_arrays_that_contradict_one_another_are_refused(name: str, array: np.ndarray) -> None:
    seen = SeenRatings()
    seen.add_one(1, 2)
    state = seen.state()
    with pytest.raises(SnapshotError):
        SeenRatings().restore(state | {name: array})
    del state[name]
    with pytest.raises(SnapshotError, match=name):
        SeenRatings().restore(state)
