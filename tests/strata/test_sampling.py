"""Private models in passes: what a user weighs, what is drawn, and what it says of itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels.factors import ITEM, MEAN_OVER
from streamlearn.config import MfConfig
from streamlearn.messages import F32, U64
from streamlearn.online.losses import new_validation
from streamlearn.online.mf import numbers_of
from streamlearn.strata.passes import Passes
from streamlearn.strata.sampling import SEED_BYTES, Sampling, seal
from tests.strata.test_passes import Kept, ratings_of

SEED = bytes(range(SEED_BYTES))
PRIVATE = MfConfig(dim=6, epochs=10, epsilon=200.0, user_ratings_max=12.0)


def begun(
    config: MfConfig,
    keys: U64,
    ratings: F32,
    directory: Path,
    lanes: int = 1,
    seed: bytes = SEED,
    kept_bytes_max: int = 1 << 26,
) -> tuple[Kept, Passes]:
    model = Kept(config, keys, ratings, directory, kept_bytes_max)
    passes = Passes(
        config, model.table, model.kept, model.solver.intercept, lanes=lanes, bytes_max=1 << 26,
        directory=directory, seed=seed,
    )  # fmt: skip
    return model, passes


def sampling_of(passes: Passes) -> Sampling:
    assert passes.sampling is not None
    return passes.sampling


def swept(passes: Passes, epochs: int = 8) -> float:
    """Take some passes; return the RMSE of the last."""
    for epoch in range(1, epochs):
        validation = new_validation(passes._model, 1000)
        for number in range(passes.buckets):
            passes.sweep(number, epoch, validation)
    return float(validation.summary()["rmse"])


def held(passes: Passes) -> list[Any]:
    rows = passes.rows
    return [one.copy() for one in (rows.users, rows.items, rows.user_biases, rows.item_biases)]


def test_the_first_pass_learns_nothing_but_who_there_is(tmp_path: Path) -> None:
    keys, ratings = ratings_of(1500, 100, 50)
    model = Kept(PRIVATE, keys, ratings, tmp_path)
    plain = Kept(MfConfig(dim=6, alpha=1e-12), keys, ratings, tmp_path)
    rows = [
        np.concatenate([m.table.rows(s) for s in range(m.table.segments)]) for m in (model, plain)
    ]
    rows = [one[np.argsort(one[:, 0])] for one in rows]
    assert (rows[0][:, 0] == rows[1][:, 0]).all()
    assert (numbers_of(rows[0][:, 1]) == numbers_of(rows[1][:, 1])).all()
    assert not (rows[0][:, 1] & np.uint64(0xFFFFFFFF)).any()  # biases
    assert not (rows[0][:, 2] & np.uint64(0xFFFFFFFF)).any()  # counts
    assert model.table.arena is not None
    assert plain.table.arena is not None
    drawn = [m.table.arena.coordinates_at(m.table.find(rows[0][:, 0])) for m in (model, plain)]  # type: ignore[union-attr]
    assert drawn[0] == pytest.approx(drawn[1], abs=1e-6)
    assert model.kept.count == len(ratings)


def test_users_weigh_no_more_than_they_may(tmp_path: Path) -> None:
    keys, ratings = ratings_of(3000, 150, 90)
    _, passes = begun(PRIVATE, keys, ratings, tmp_path)
    sampling = sampling_of(passes)
    _, users = np.unique(keys[:, 0], return_inverse=True)
    counts = np.bincount(users)
    paces = sampling._user_paces
    _, first = np.unique(keys[:, 0], return_index=True)
    by_number = counts[users[np.sort(first)]]
    assert paces[:, 1] == pytest.approx(np.minimum(1, 12 / by_number), rel=1e-6)
    weighed = paces[:, 1] * by_number
    assert weighed.max() <= 12.0001
    hold = sampling.budget.temperature / 0.2**2
    assert paces[:, 2] == pytest.approx(1 / np.maximum(weighed + hold, 8) / by_number, rel=1e-5)
    assert paces[:, 0] == pytest.approx(paces[:, 2] * by_number * paces[:, 1], rel=1e-5)
    assert passes.sampling is not None
    swept(passes)
    report = sampling.report()
    assert report["users"] == len(counts)
    assert report["users_clipped"] == (counts > 12).sum()
    assert 0 < report["ratings_clipped_share"] < 0.5


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_rows_are_a_function_of_seed_and_lanes(lanes: int, tmp_path: Path) -> None:
    keys, ratings = ratings_of(3000, 200, 90)
    found = []
    for seed in (SEED, SEED, SEED[::-1]):
        model, passes = begun(PRIVATE, keys, ratings, tmp_path, lanes, seed)
        assert swept(passes) < 1.35
        found.append([*held(passes), model.table.intercept.copy()])
    for one, same, other in zip(*found, strict=True):
        assert (one == same).all()
        assert not np.allclose(one, other, atol=1e-4)


def test_a_large_epsilon_predicts_about_as_well_as_none(tmp_path: Path) -> None:
    keys, ratings = ratings_of(6000, 200, 90)
    free = Kept(MfConfig(dim=6, epochs=10), keys, ratings, tmp_path).passes()
    plain = swept(free, 30)
    found = {}
    for epsilon in (1e5, 30.0):
        config = MfConfig(dim=6, epochs=30, epsilon=epsilon, user_ratings_max=100.0, error_max=4.0)
        _, passes = begun(config, keys, ratings, tmp_path)
        found[epsilon] = swept(passes, 30)
    assert found[1e5] < plain + 0.1
    assert found[30.0] > plain + 0.15


def test_buckets_from_a_file_are_drawn_as_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.strata.ratings._CHUNKS_MIN", 8)
    keys, ratings = ratings_of(30_000, 24_000, 60)
    found = []
    for limit in (1 << 26, 1 << 17):
        model, passes = begun(PRIVATE, keys, ratings, tmp_path, lanes=2, kept_bytes_max=limit)
        assert (passes._file is not None) == (limit < 1 << 26)
        assert passes.buckets == 3
        swept(passes, 3)
        for number in range(passes.buckets):
            passes.fit_users(number)
        found.append([*held(passes), model.table.intercept.copy()])
        passes.close()
    for one, other in zip(*found, strict=True):
        assert (one == other).all()


def test_the_mean_is_that_of_users_with_noise(tmp_path: Path) -> None:
    keys, ratings = ratings_of(2000, 150, 60)
    _, users = np.unique(keys[:, 0], return_inverse=True)
    cut = ratings.clip(2, 4)
    exact = (np.bincount(users, cut) / np.bincount(users)).mean()
    found = []
    for i in range(60):
        config = MfConfig(dim=1, epochs=2, epsilon=50.0, rating_min=2.0, rating_max=4.0)
        model, passes = begun(config, keys, ratings, tmp_path, seed=bytes([i] * SEED_BYTES))
        found.append(sampling_of(passes).mean)
        assert model.table.intercept[0] == np.float32(found[-1])
        assert model.table.intercept[1] == MEAN_OVER
        passes.close(give_back=False)
    scale = 2 / len(np.unique(users)) / 0.5
    off = np.array(found) - exact
    assert abs(off.mean()) < 5 * scale / np.sqrt(30)
    assert 0.6 * scale < np.abs(off).mean() < 1.5 * scale


def test_without_a_mean_all_of_epsilon_is_for_rows(tmp_path: Path) -> None:
    keys, ratings = ratings_of(500, 50, 20)
    config = MfConfig(dim=2, epochs=2, epsilon=10.0, intercept=False)
    model, passes = begun(config, keys, ratings, tmp_path)
    assert sampling_of(passes).mean == 0
    assert sampling_of(passes).budget.epsilon_sample == 10
    assert model.table.intercept[0] == 0


def test_users_rows_of_their_own_predict_better(tmp_path: Path) -> None:
    keys, ratings = ratings_of(6000, 300, 60)
    for lanes in (1, 2):
        _, passes = begun(PRIVATE, keys, ratings, tmp_path, lanes)
        drawn = swept(passes)
        users, items, *_ = held(passes)
        for number in range(passes.buckets):
            passes.fit_users(number)
        assert (passes.rows.items == items).all()
        assert not np.allclose(passes.rows.users, users)
        scores = passes.scored(keys)
        assert np.sqrt(np.mean((scores - ratings) ** 2)) < drawn - 0.05


def test_a_sealed_table_says_nothing_but_its_rows(tmp_path: Path) -> None:
    keys, ratings = ratings_of(2000, 150, 60)
    model, passes = begun(PRIVATE, keys, ratings, tmp_path)
    swept(passes)
    table = model.table
    passes.close()
    before = np.concatenate([table.rows(s) for s in table.key_order()])
    seal(table)
    after = np.concatenate([table.rows(s) for s in table.key_order()])
    assert not after[:, 2].any()
    for column in (0, 3):
        assert (after[:, column] == before[:, column]).all()
    assert ((after[:, 1] ^ before[:, 1]) & np.uint64(0xFFFFFFFF) == 0).all()
    after = after[np.argsort(after[:, 0])]
    numbers = numbers_of(after[:, 1])
    item = numbers & ITEM != 0
    assert ((numbers_of(before[np.argsort(before[:, 0]), 1]) & ITEM != 0) == item).all()
    assert (numbers[~item] == np.arange(1, 1 + (~item).sum())).all()
    assert (numbers[item] & ~ITEM == np.arange(1, 1 + item.sum())).all()


def test_the_report_says_what_was_spent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, ratings = ratings_of(500, 50, 20)
    _, passes = begun(PRIVATE, keys, ratings, tmp_path)
    swept(passes, 10)
    with caplog.at_level(logging.WARNING, "streamlearn"):
        report = sampling_of(passes).report()
    assert not caplog.messages
    assert report["epsilon"] == 200
    assert report["epsilon_mean"] == pytest.approx(0.5)
    assert report["epsilon_of_another_sample"] == pytest.approx(199.5)
    assert report["epsilon_rating"] == pytest.approx(0.5 + 199.5 / 12)
    assert report["temperature"] == pytest.approx(2 * (12 * 4 / 2) / 199.5)
    assert report["published"] == "all"
    assert report["rates_sum"] > 5
    assert report["rate_last"] == pytest.approx(50 * 0.05 / 10**0.7)
    _, passes = begun(PRIVATE, keys, ratings, tmp_path)
    swept(passes, 3)
    with caplog.at_level(logging.WARNING, "streamlearn"):
        assert sampling_of(passes).report()["rates_sum"] < 5
    assert "take more passes" in caplog.text
