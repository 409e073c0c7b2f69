"""Further passes: whatever the arrangement, each rating is learned once, as by the slow twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import strata as kernels
from streamlearn.config import MfConfig
from streamlearn.errors import DataError, DivergedError, ResourceError
from streamlearn.messages import F32, U64
from streamlearn.online.losses import new_validation
from streamlearn.online.mf import MfSolver, scored
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.table import ExactTable
from streamlearn.strata import passes as module
from streamlearn.strata.passes import Passes, Tiling, cache_bytes
from streamlearn.strata.ratings import KeptRatings
from streamlearn.strata.rows import RowsCut
from tests.online.test_mf import batch_of, some_keys, table_of
from tests.reference.mf import Factors, MfTwin

MB = 1 << 20


class Kept:
    """A model that has learned a stream once, and kept it."""

    def __init__(
        self, config: MfConfig, keys: U64, ratings: F32, directory: Path, bytes_max: int = 64 * MB
    ) -> None:
        self.config = config
        self.table: ExactTable = table_of(config)
        self.solver = MfSolver(config, self.table)
        self.kept = KeptRatings(bytes_max, directory)
        self.solver.recorder = self.kept.add
        for first in range(0, len(keys), 512):
            part = slice(first, first + 512)
            batch = batch_of(keys[part], ratings[part])
            scratch = self.solver.scratch(batch.rows_max, batch.nnz)
            self.solver.learn(batch, scratch, Nothing(), 1)
        self.directory = directory
        self.bytes_max = bytes_max

    def passes(self, lanes: int = 1, cache: int = 0) -> Passes:
        return Passes(
            self.config,
            self.table,
            self.kept,
            self.solver.intercept,
            lanes=lanes,
            bytes_max=self.bytes_max,
            directory=self.directory,
            cache=cache,
        )

    def twin(self) -> MfTwin:
        """Return a twin that stands where the table does."""
        twin = MfTwin(self.config, young=False)
        twin.mean, twin.count = (float(number) for number in self.table.intercept)
        arena = self.table.arena
        assert arena is not None
        for segment in self.table.key_order():
            rows = self.table.rows(segment)
            biases = self.solver.weights(rows[:, 1])
            factors = arena.coordinates_at(self.table.find(rows[:, 0]))
            for key, bias, row in zip(rows[:, 0].tolist(), biases, factors, strict=True):
                twin.rows[key] = Factors(float(bias), row.astype(np.float64))
        return twin


def ratings_of(
    rows: int, users: int, items: int, seed: int = 0, *, clicks: bool = False
) -> tuple[U64, F32]:
    """Return ratings of pairs that are all different, popular items more often."""
    rng = np.random.default_rng(seed)
    weight = 1 / (np.arange(items) + 2.0)
    u = rng.integers(0, users, 3 * rows)
    i = rng.choice(items, 3 * rows, p=weight / weight.sum())
    _, first = np.unique(u * items + i, return_index=True)
    picked = rng.permutation(first)[:rows]
    u, i = u[picked], i[picked]
    truth = rng.normal(size=(users + items, 2))
    r = np.rint(3 + np.einsum("nd,nd->n", truth[u], truth[users + i]))
    r = (r > 3).astype(float) if clicks else r.clip(1, 5)
    keys = np.stack([some_keys(users, 1)[u], some_keys(items, 2)[i]], axis=1)
    return keys, r.astype(np.float32)


def arranged(passes: Passes, number: int, lanes: int) -> list[list[U64]]:
    """Return a bucket's ratings by phase and lane."""
    bucket = passes._buckets[number]
    words = np.array(passes._load(number)[: bucket.count])
    found = []
    for phase in range(lanes):
        row = []
        for lane in range(lanes):
            at = lane * lanes + (lane + phase) % lanes
            row.append(words[bucket.starts[at] : bucket.starts[at + 1]])
        found.append(row)
    return found


def taken_apart(words: U64) -> tuple[Any, Any, Any]:
    """Return place, user and code of words."""
    place = (words >> np.uint64(32)).astype(np.int64)
    user = ((words >> np.uint64(kernels.CODE_BITS)) & np.uint64(8191)).astype(np.int64)
    return place, user, (words & np.uint64(kernels.CODES_MAX - 1)).astype(np.int64)


CASES = {
    "one lane": (MfConfig(dim=16, alpha=0.05), 1, 0),
    "part of a line": (MfConfig(dim=7, alpha=0.05, decay=0.0), 1, 0),
    "small tiles": (MfConfig(dim=40, alpha=0.05), 1, 8 * 1024),
    "two lanes": (MfConfig(dim=16, alpha=0.05), 2, 0),
    "three lanes, small tiles": (MfConfig(dim=16, alpha=0.05), 3, 4 * 1024),
    "no b_0": (MfConfig(dim=16, intercept=False), 1, 0),
    "clicks": (MfConfig(dim=16, loss="logistic", alpha=0.1), 2, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_passes_are_the_twins_in_the_same_order(name: str, tmp_path: Path) -> None:
    config, lanes, cache = CASES[name]
    clicks = config.loss == "logistic"
    keys, ratings = ratings_of(3000, 200, 90, clicks=clicks)
    model = Kept(config, keys, ratings, tmp_path)
    twin = model.twin()
    passes = model.passes(lanes, cache)
    assert passes.count == len(ratings)
    users = list(dict.fromkeys(keys[:, 0].tolist()))
    items = list(dict.fromkeys(keys[:, 1].tolist()))
    at = {int(place): item for item, place in zip(items, passes._places, strict=True)}
    known = {(int(u), int(i)): float(r) for (u, i), r in zip(keys, ratings, strict=True)}
    for epoch in (1, 2):
        validation = new_validation(config, 1000)
        errors = []
        for number in range(passes.buckets):
            phases = arranged(passes, number, lanes)
            count, dropped = passes.sweep(number, epoch, validation)
            assert dropped == 0
            assert count == sum(len(words) for phase in phases for words in phase)
            for words in (words for phase in phases for words in phase):
                place, user, code = taken_apart(words)
                for p, u, c in zip(place, user, code, strict=True):
                    pair = users[number * 8192 + u], at[int(p)]
                    rating, weight = passes._values[c]
                    assert rating == known[pair]
                    assert weight == 1
                    score = twin.learn_one(*pair, float(rating), epoch=epoch)
                    errors.append(rating - score)
        summary = validation.summary()
        assert summary["examples"] == len(ratings)
        if not clicks:
            assert summary["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), abs=1e-4)
            assert summary["mae"] == pytest.approx(np.mean(np.abs(errors)), abs=1e-4)
            assert summary["baseline_rmse"] == pytest.approx(np.std(ratings), abs=1e-4)
        else:
            assert 0.5 < summary["auc"] <= 1
    passes.close()
    slots = model.table.find(np.array(users + items, np.uint64))
    assert model.table.arena is not None
    factors = model.table.arena.coordinates_at(slots)
    biases = model.solver.weights(model.table.rows_at(slots)[:, 1])
    for key, bias, row in zip(users + items, biases, factors, strict=True):
        assert bias == pytest.approx(twin.rows[key].bias, abs=3e-4)
        assert row == pytest.approx(twin.rows[key].factors, abs=3e-4)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_lanes_share_no_user_and_no_item_at_a_time(lanes: int, tmp_path: Path) -> None:
    config = MfConfig(dim=16)
    keys, ratings = ratings_of(4000, 300, 100)
    passes = Kept(config, keys, ratings, tmp_path).passes(lanes)
    seen = []
    for phase in arranged(passes, 0, lanes):
        users = [set(taken_apart(words)[1].tolist()) for words in phase]
        places = [set(taken_apart(words)[0].tolist()) for words in phase]
        for one in range(lanes):
            for other in range(one):
                assert not users[one] & users[other]
                assert not places[one] & places[other]
                # nor a line of biases
                assert not {p // 16 for p in places[one]} & {p // 16 for p in places[other]}
                assert not {u // 16 for u in users[one]} & {u // 16 for u in users[other]}
        seen += [len(words) for words in phase]
    assert sum(seen) == len(ratings)
    if lanes > 1:
        assert min(seen) > len(ratings) / lanes**2 / 2
    passes.close()


def test_ratings_are_arranged_in_tiles_by_item(tmp_path: Path) -> None:
    config = MfConfig(dim=16)
    keys, ratings = ratings_of(4000, 300, 100)
    passes = Kept(config, keys, ratings, tmp_path).passes(cache=64 * 2)
    tiling = passes.tiling
    assert tiling.block == 16
    assert tiling.tier == 32
    (words,) = arranged(passes, 0, 1)[0]
    assert tiling.weaves
    place, user, _ = taken_apart(words)
    tile = place // tiling.tier * tiling.blocks + user // tiling.block
    assert (np.diff(tile) >= 0).all()
    turns = 0
    for number in np.unique(tile):
        inside = [
            (int(p), int(u))
            for p, u in zip(place[tile == number], user[tile == number], strict=True)
        ]
        assert inside == woven(sorted(inside))
        turns += inside != sorted(inside)
    assert turns > 3
    counts = np.bincount(place)
    assert (np.diff(counts) <= 0).all()  # by popularity
    passes.close()


def woven(ratings: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return a tile's ratings, by place and user, with two items at a time taking turns."""
    runs: dict[int, list[tuple[int, int]]] = {}
    for place, user in ratings:
        runs.setdefault(place, []).append((place, user))
    items = list(runs.values())
    out = []
    for one, other in zip(items[::2], [*items[1::2], []], strict=False):
        for at in range(0, max(len(one), len(other)), 2):
            out += one[at : at + 2] + other[at : at + 2]
    return out


def test_of_two_ratings_of_a_pair_the_later_stays(tmp_path: Path) -> None:
    config = MfConfig(dim=16)
    keys, ratings = ratings_of(500, 60, 40)
    twice = np.concatenate([keys, keys[::3]])
    later = np.concatenate([ratings, 6 - ratings[::3]])
    model = Kept(config, twice, later, tmp_path)
    passes = model.passes(2)
    assert passes.count == len(keys)
    assert passes.duplicates == len(keys[::3])
    expected = {(int(u), int(i)): float(r) for (u, i), r in zip(twice, later, strict=True)}
    users = list(dict.fromkeys(keys[:, 0].tolist()))
    items = list(dict.fromkeys(keys[:, 1].tolist()))
    at = {int(place): item for item, place in zip(items, passes._places, strict=True)}
    found = {}
    for phase in arranged(passes, 0, 2):
        for words in phase:
            for p, u, c in zip(*taken_apart(words), strict=True):
                found[users[u], at[int(p)]] = float(passes._values[c, 0])
    assert found == expected
    passes.close()


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_file_gives_the_same_bytes(
    lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.strata.ratings._CHUNKS_MIN", 8)
    config = MfConfig(dim=16)
    keys, ratings = ratings_of(30_000, 24_000, 60)  # three buckets
    digests = []
    for limit in (64 * MB, MB // 8):
        model = Kept(config, keys, ratings, tmp_path, limit)
        assert model.kept.in_file == (limit < MB)
        model.bytes_max = 64 * MB
        passes = model.passes(lanes)
        assert passes.buckets == 3
        for epoch in (1, 2):
            validation = new_validation(config, 1000)
            for number in range(passes.buckets):
                passes.sweep(number, epoch, validation)
        passes.close()
        assert model.table.arena is not None
        every = model.table.find(np.unique(keys))
        rows = model.table.rows_at(every)[:, 1].tobytes()
        factors = model.table.arena.coordinates_at(every).tobytes()
        digests.append((rows, factors, validation.summary()["rmse"]))
    assert digests[0] == digests[1]


def test_a_file_that_is_cut_short_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlearn.strata.ratings._CHUNKS_MIN", 8)
    keys, ratings = ratings_of(30_000, 24_000, 60)
    model = Kept(MfConfig(dim=16), keys, ratings, tmp_path, MB // 8)
    model.bytes_max = 64 * MB
    passes = model.passes()
    assert passes._file is not None
    passes._file.truncate(1000)
    with pytest.raises(DataError, match=r"ends at byte 1,000, but \d+,\d+ were written"):
        passes.sweep(0, 1, new_validation(model.config, 1000))
    passes.close()


def test_a_bucket_that_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.strata.ratings._CHUNKS_MIN", 4)
    monkeypatch.setattr(module, "_ROOM_MIN", 0)
    keys, ratings = ratings_of(30_000, 8_000, 60)
    model = Kept(MfConfig(dim=16), keys, ratings, tmp_path, MB // 8)
    with pytest.raises(
        ResourceError, match=r"has 30,000 ratings, which take 720,000 bytes .* = 131,072"
    ):
        model.passes()
    model.kept.close()


def test_more_different_ratings_than_can_be_told_apart_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptRatings(MB, tmp_path)
    kept._values = kept._values[:50]
    config = MfConfig(dim=16)
    solver = MfSolver(config, table_of(config))
    solver.recorder = kept.add
    keys, _ = ratings_of(60, 20, 20)
    ratings = np.arange(60, dtype=np.float32)
    batch = batch_of(keys, ratings)
    with pytest.raises(DataError, match="different ratings"):
        solver.learn(batch, solver.scratch(60, 120), Nothing(), 1)


def test_what_is_held_out_is_scored_as_the_table_would(tmp_path: Path) -> None:
    config = MfConfig(dim=16, held_out=0.2)
    keys, ratings = ratings_of(3000, 200, 90)
    model = Kept(config, keys, ratings, tmp_path)
    held, expected, weights = model.kept.held_out.all()
    assert 400 < len(held) < 800
    passes = model.passes(2)
    passes.sweep(0, 1, new_validation(config, 1000))
    validation = passes.held_out(1000)
    assert validation is not None
    assert validation.summary()["examples"] == len(held)
    told = validation.summary()["rmse"]
    passes.close()
    assert (weights == 1).all()
    scores = scored(model.solver, held)
    assert told == pytest.approx(np.sqrt(np.mean((scores - expected) ** 2)), abs=1e-5)


def test_nothing_held_out_is_nothing(tmp_path: Path) -> None:
    keys, ratings = ratings_of(300, 20, 30)
    passes = Kept(MfConfig(dim=16), keys, ratings, tmp_path).passes()
    assert passes.held_out(10) is None
    passes.close()


def test_rows_go_back_as_they_came(tmp_path: Path) -> None:
    config = MfConfig(dim=20, held_out=0.1)
    keys, ratings = ratings_of(3000, 200, 90)
    model = Kept(config, keys, ratings, tmp_path)
    table, every = model.table, np.unique(keys)
    assert table.arena is not None
    before = table.rows_at(table.find(every))[:, :3].tobytes()
    factors = table.arena.coordinates_at(table.find(every)).tobytes()
    cut = Cut(table)
    parts = []
    while (part := cut.take()) is not None:
        parts.append(part)
    cut.close()
    passes = model.passes(2)
    assert table.arena.nbytes == 0
    dense = RowsCut(table, passes.rows)
    for part in parts:
        taken = dense.take()
        assert taken is not None
        assert taken.number == part.number
        assert taken.rows.tobytes() == part.rows.tobytes()
        assert taken.vectors.tobytes() == part.vectors.tobytes()
    assert dense.take() is None
    dense.close()
    passes.close()
    assert table.rows_at(table.find(every))[:, :3].tobytes() == before
    assert table.arena.coordinates_at(table.find(every)).tobytes() == factors


def test_rows_can_be_kept_and_restored(tmp_path: Path) -> None:
    keys, ratings = ratings_of(1000, 50, 40)
    model = Kept(MfConfig(dim=16), keys, ratings, tmp_path)
    passes = model.passes()
    copy = passes.rows.copy()
    before = passes.rows.items.tobytes()
    passes.sweep(0, 1, new_validation(model.config, 1000))
    assert passes.rows.items.tobytes() != before
    passes.rows.restore(copy)
    assert passes.rows.items.tobytes() == before
    passes.close()


@pytest.mark.parametrize("lanes", [1, 2])
def test_negatives_are_drawn_anew_in_each_pass(lanes: int, tmp_path: Path) -> None:
    config = MfConfig(dim=16, loss="logistic", negatives=4, alpha=0.05)
    keys, ratings = ratings_of(3000, 200, 90, clicks=True)
    model = Kept(config, keys, ratings, tmp_path)
    passes = model.passes(lanes)
    positives = int(ratings.sum())
    counts = []
    for epoch in (1, 2, 3):
        validation = new_validation(config, 10_000)
        count, dropped = passes.sweep(0, epoch, validation)
        assert dropped == 0
        assert validation.summary()["examples"] == count
        counts.append(count)
    # some are drawn twice for a user, or are the item itself
    assert all(len(keys) + 2.5 * positives < count for count in counts)
    assert all(count <= len(keys) + 4 * positives for count in counts)
    assert len(set(counts)) > 1
    passes.close()


def test_ratings_may_have_weights(tmp_path: Path) -> None:
    config = MfConfig(dim=16, decay=0.0)
    keys, ratings = ratings_of(800, 50, 40)
    weights = np.random.default_rng(0).choice([0.5, 1.0, 3.0], len(ratings)).astype(np.float32)
    table = table_of(config)
    solver, kept = MfSolver(config, table), KeptRatings(MB, tmp_path)
    solver.recorder = kept.add
    batch = batch_of(keys, ratings, weights.tolist())
    solver.learn(batch, solver.scratch(800, 1600), Nothing(), 1)
    passes = Passes(
        config, table, kept, solver.intercept, lanes=1, bytes_max=MB, directory=tmp_path
    )
    found = {tuple(pair) for pair in passes._values.tolist()}
    assert found == {(float(r), float(w)) for r, w in zip(ratings, weights, strict=True)}
    validation = new_validation(config, 1000)
    passes.sweep(0, 1, validation)
    assert validation.summary()["weight"] == pytest.approx(weights.sum())
    passes.close()


def test_tilings_fit_their_caches() -> None:
    for cache, row_bytes in ((512 << 10, 128), (2 << 20, 1024), (512 << 10, 8192)):
        tiling = Tiling.fitting(cache, row_bytes, 500_000, 17_770, 1)
        assert tiling.block * row_bytes <= cache // 2
        assert tiling.block * row_bytes > cache // 8
        assert tiling.tier * row_bytes <= 16 * cache
        assert tiling.tiers * tiling.tier >= tiling.stride >= 17_770
    assert cache_bytes() >= 1 << 15


def test_places_are_by_popularity_and_apart() -> None:
    counts = np.random.default_rng(0).integers(0, 1000, 205)
    for lanes in (1, 2, 3):
        tiling = Tiling.fitting(1 << 20, 64, 1000, 205, lanes)
        places = tiling.places(counts)
        assert len(set(places.tolist())) == 205
        assert places.max() < lanes * tiling.stride
        kind = places // tiling.stride
        for one in range(lanes):
            mine = counts[kind == one][np.argsort(places[kind == one])]
            assert (np.diff(mine) <= 0).all()
        totals = np.bincount(kind, weights=counts, minlength=lanes)
        assert totals.max() < totals.min() * 1.1


def test_factors_that_grow_without_bound_end_the_passes(tmp_path: Path) -> None:
    keys, ratings = ratings_of(800, 50, 40)
    model = Kept(MfConfig(dim=16), keys, ratings, tmp_path)
    passes = model.passes()
    passes._model = MfConfig(dim=16, alpha=1e6)

    def sweep_ten_times() -> None:
        for _ in range(10):
            passes.sweep(0, 1, new_validation(model.config, 1000))

    with pytest.raises(DivergedError, match=r"without bound at a step of 615572"):
        sweep_ten_times()
    passes.close()
