"""Private factorization's kernels: noise as the clock says, and the posterior as it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import private as kernels
from streamlearn.config import MfConfig
from streamlearn.online.losses import new_validation
from tests.reference import private as twins
from tests.strata.test_passes import Kept, ratings_of

SEED = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E], np.uint64)
ITEM = 1 << 31


def aligned(rows: int, dim: int, seed: int, scale: float = 1.0) -> Any:
    """Return rows of whole 64-byte lines, aligned, zero behind ``dim``."""
    width = -(-dim // 16) * 16
    room = np.zeros(rows * width + 16, np.float32)
    start = -(room.ctypes.data // 4) % 16
    held = room[start : start + rows * width].reshape(rows, width)
    held[:, :dim] = np.random.default_rng(seed).normal(0, scale, (rows, dim))
    return held


def words_of(users: Any, items: Any, codes: Any) -> Any:
    users, items, codes = (np.asarray(one).astype(np.uint64) for one in (users, items, codes))
    return items << np.uint64(32) | users << np.uint64(19) | codes


@pytest.mark.parametrize("dim", [1, 5, 16, 40])
def test_noise_has_the_mean_and_the_variance_of_the_time_that_went_by(dim: int) -> None:
    count, rate, hold, temperature = 4000, 0.7, 3.0, 0.25
    paces = np.zeros((count, 4), np.float32)
    paces[:, 2], paces[:, 3] = 0.02, 100
    turns = np.zeros((count, 2), np.int32)
    turns[:, 1] = 200  # noise came after 100 touches
    turns[: count // 2, 0] = 130
    turns[count // 2 :, 0] = 100
    rows, biases = aligned(count, dim, 1), np.full(count, 2.0, np.float32)
    rows[:, :dim] = 2
    law = np.array([rate, hold, temperature, 1.0])
    kernels.settle(rows, biases, paces, turns, ITEM, dim, law, SEED, 4)
    time = rate * 0.02 * 30
    held = np.concatenate([rows[:, :dim], biases[:, None]], axis=1)
    assert (held[count // 2 :] == 2).all()  # nothing went by
    moved = held[: count // 2]
    assert moved.mean() == pytest.approx(2 * np.exp(-hold * time), abs=0.02)
    assert moved.var() == pytest.approx(2 * time * temperature, rel=0.1)
    each = moved.var(axis=0)
    assert each.min() > 1.4 * time * temperature
    assert each.max() < 2.6 * time * temperature
    if dim > 1:
        apart = np.corrcoef(moved.T) - np.eye(dim + 1)
        assert abs(apart).max() < 0.12
    assert not rows[:, dim:].any()
    assert (turns == [0, 100]).all()


class Drawn:
    """Users and items that are swept by the kernel, and by the slow twin."""

    def __init__(
        self, dim: int, *, ratings: int = 400, users: int = 12, items: int = 9, **law: float
    ) -> None:
        rng = np.random.default_rng(dim)
        self.dim, self.b0 = dim, np.float32(3.2)
        self.values = np.array([[r, a] for r in (1, 2, 3, 4, 5) for a in (1.0, 0.5)], np.float32)
        self.u, self.i = rng.integers(0, users, ratings), rng.integers(0, items, ratings)
        self.c = rng.integers(0, len(self.values), ratings)
        self.words = words_of(self.u, self.i, self.c)
        self.users, self.items = aligned(users, dim, 1, 0.3), aligned(items, dim, 2, 0.3)
        self.user_biases, self.item_biases = (np.zeros(n, np.float32) for n in (users, items))
        self.law = np.array(
            [law.get("rate", 0.5), law.get("hold", 4.0), law.get("T", 0.5), law.get("c", 1.5)]
        )
        a = self.values[self.c, 1]
        total = np.bincount(self.u, a, users)
        self.weights = np.minimum(1, law.get("tau", 20.0) / np.maximum(total, 1e-9))
        self.counts = np.bincount(self.u, minlength=users), np.bincount(self.i, minlength=items)
        weighed = self.weights * total, np.bincount(self.i, a * self.weights[self.u], items)
        self.paces, self.turns = [], []
        for n, m, w in zip(self.counts, weighed, (self.weights, np.ones(items)), strict=True):
            pace, due = 1 / np.maximum(m + self.law[1], 8), np.maximum(np.ceil(n / 4), 1)
            one = np.stack([pace * w, w, pace / np.maximum(n, 1), due], axis=1).astype(np.float32)
            self.paces.append(one)
            self.turns.append(np.stack([0 * due, due], axis=1).astype(np.int32))
        self.twin = twins.PrivateTwin(SEED, self.law[2], self.law[1], self.law[3], 4, 8.0, 5)
        for side, kind in ((0, 0), (1, ITEM)):
            held = (self.users, self.items)[side]
            for row in range(len(held)):
                self.twin.rows[row | kind] = twins.DrawnRow(
                    row | kind, np.append(held[row, :dim].astype(float), 0.0),
                    int(self.counts[side][row]), float(weighed[side][row]),
                    float(self.weights[row]) if side == 0 else 1.0,
                )  # fmt: skip

    def sweep(self, turn: int = 5) -> Any:
        sums = np.zeros(8)
        dropped = kernels.sweep(
            self.words, 0, len(self.words), self.users, self.items, self.user_biases,
            self.item_biases, *self.paces, *self.turns, 0, self.dim, self.users.shape[1] // 16,
            self.values, self.b0, self.law, SEED, turn, sums,
        )  # fmt: skip
        return dropped, sums

    def settle(self, turn: int = 5) -> None:
        for side, kind in ((0, 0), (1, ITEM)):
            kernels.settle(
                (self.users, self.items)[side], (self.user_biases, self.item_biases)[side],
                self.paces[side], self.turns[side], kind, self.dim, self.law, SEED, turn,
            )  # fmt: skip

    def held(self, side: int) -> Any:
        rows = (self.users, self.items)[side][:, : self.dim]
        return np.concatenate(
            [rows, (self.user_biases, self.item_biases)[side][:, None]], axis=1
        ).astype(float)


@pytest.mark.parametrize("dim", [1, 7, 16, 33])
def test_passes_are_the_slow_twins(dim: int) -> None:
    drawn = Drawn(dim)
    assert (drawn.weights < 1).any()
    assert (drawn.weights == 1).any() or dim == 33
    for turn in (5, 6):
        errors, weights = [], []
        dropped, sums = drawn.sweep(turn)
        drawn.settle(turn)
        drawn.twin.beyond = 0
        for u, i, c in zip(drawn.u, drawn.i, drawn.c, strict=True):
            r, a = drawn.values[c]
            score = drawn.twin.learn(
                int(u), int(i) | ITEM, float(r), float(a), float(drawn.b0), drawn.law[0]
            )
            errors.append(float(r) - score)
            weights.append(float(a))
        drawn.twin.settle(drawn.law[0])
        assert dropped == 0
        e, a = np.array(errors), np.array(weights)
        assert sums[0] == pytest.approx((a * e * e).sum(), rel=1e-4)
        assert sums[1] == pytest.approx((a * abs(e)).sum(), rel=1e-4)
        assert sums[5] == a.sum()
        assert sums[6] == len(e)
        assert sums[7] == drawn.twin.beyond > 0
        for side, kind in ((0, 0), (1, ITEM)):
            expected = [drawn.twin.rows[row | kind].x for row in range(len(drawn.held(side)))]
            assert drawn.held(side) == pytest.approx(np.array(expected), abs=2e-4)
        assert not drawn.users[:, dim:].any()


def test_a_score_that_is_not_finite_teaches_nothing_and_is_counted() -> None:
    drawn = Drawn(3, T=0.0)
    drawn.user_biases[0] = np.nan
    before = drawn.items.copy()
    drawn.words = drawn.words[drawn.u == 0]
    dropped, sums = drawn.sweep()
    assert dropped == len(drawn.words)
    assert sums.tolist() == [0] * 8
    assert np.isfinite(drawn.items).all()
    assert not drawn.item_biases.any()
    assert (np.abs(drawn.items) <= np.abs(before)).all()  # the prior alone


def test_without_noise_and_prior_a_pass_is_a_plain_sweep(tmp_path: Path) -> None:
    keys, ratings = ratings_of(2000, 150, 60)
    config = MfConfig(dim=20, alpha=0.03, decay=0.0, l2=0.0)
    plain = Kept(config, keys, ratings, tmp_path).passes()
    rows = plain.rows
    users, items = aligned(len(rows.users), 20, 0), aligned(len(rows.items), 20, 0)
    users[:], items[:] = rows.users, rows.items
    biases = rows.user_biases.copy(), rows.item_biases.copy()
    words = np.array(plain._load(0)[: plain.count])
    paces = [np.ones((len(one), 4), np.float32) for one in biases]
    turns = [np.ones((len(one), 2), np.int32) for one in biases]
    for turn in range(3):
        validation, sums = new_validation(config, 1000), np.zeros(8)
        plain.sweep(0, turn, validation)
        dropped = kernels.sweep(
            words, 0, len(words), users, items, *biases, *paces, *turns, 0, 20, rows.lines,
            plain._values, plain._b0, np.array([0.03, 0.0, 0.0, np.inf]), SEED, turn, sums,
        )  # fmt: skip
        assert dropped == 0
        assert validation.totals_of(sums[:7]).figures()["rmse"] == pytest.approx(
            validation.summary()["rmse"], rel=1e-5
        )
    for one, other in zip(
        (users, items, *biases),
        (rows.users, rows.items, rows.user_biases, rows.item_biases),
        strict=True,
    ):
        assert one == pytest.approx(other, abs=1e-5)
    plain.close()


def test_rows_are_drawn_from_the_posterior_where_that_is_known() -> None:
    """Where users stand still, each item's row has a normal posterior of known mean and shape."""
    dim, temperature, hold = 2, 0.3, 2.0
    drawn = Drawn(dim, ratings=1200, users=40, T=temperature, hold=hold, c=1e9, tau=25.0, rate=0.1)
    drawn.users[:, :dim] *= 3
    drawn.paces[0][:, [0, 2]] = 0
    drawn.paces[1][:, 3] = np.ceil(drawn.counts[1] / 16)
    drawn.turns[1][:, 1] = drawn.paces[1][:, 3]
    samples = np.zeros((20_000, 9, dim + 1))
    for turn in range(len(samples)):
        drawn.sweep(turn)
        drawn.settle(turn)
        samples[turn] = drawn.held(1)
    values = drawn.values[drawn.c].astype(float)
    x = np.concatenate([drawn.users[:, :dim], np.ones((40, 1))], axis=1)[drawn.u].astype(float)
    w, y = values[:, 1] * drawn.weights[drawn.u], values[:, 0] - float(drawn.b0)
    off = []
    for item in range(9):
        mine = drawn.i == item
        shape = (x[mine] * w[mine, None]).T @ x[mine] + hold * np.eye(dim + 1)
        mean = np.linalg.solve(shape, (x[mine] * (w * y)[mine, None]).sum(axis=0))
        half = np.linalg.cholesky(temperature * np.linalg.inv(shape))
        standard = np.linalg.solve(half, (samples[200:, item] - mean).T)  # N(0, 1), were it exact
        off.append(np.abs(standard.mean(axis=1)).max())
        assert np.cov(standard) == pytest.approx(np.eye(dim + 1), abs=0.15)
    assert max(off) < 0.3
    assert np.mean(off) < 0.15


def test_ratings_are_tallied() -> None:
    drawn = Drawn(3)
    users = np.zeros((12, 3))
    kernels.tally_users(drawn.words, len(drawn.words), drawn.values, 2.0, 4.0, users)
    ratings, weights = drawn.values[drawn.c].T.astype(float)
    assert users[:, 0] == pytest.approx(drawn.counts[0])
    assert users[:, 1] == pytest.approx(np.bincount(drawn.u, weights, 12))
    assert users[:, 2] == pytest.approx(np.bincount(drawn.u, ratings.clip(2, 4), 12))
    items = np.zeros((9, 2))
    kernels.tally_items(drawn.words, len(drawn.words), drawn.values, drawn.paces[0], items)
    weighed = np.bincount(drawn.i, weights * drawn.weights[drawn.u], 9)
    assert items[:, 0] == pytest.approx(drawn.counts[1])
    assert items[:, 1] == pytest.approx(weighed, rel=1e-5)
