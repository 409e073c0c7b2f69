"""Rows of a private model: drawn from the posterior of the ratings, by Langevin dynamics.

One sample of all rows is what :class:`~streamlearn.privacy.Budget` pays for. The guarantee is that
of a sample, as in the papers (``kernels.private``): it is exact where the chain has mixed, so that
a row's place says nothing of where it began, and steps are small. Every row takes steps by what
its own ratings weigh: in a pass at ``rate`` it comes as near to where the others draw it as
1 - exp(-rate), whether it has five ratings or fifty thousand. (At one step for all, rows that are
rated often would be drawn around by their last few ratings, far more than the density says.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels import private as kernels
from streamlearn.compute.kernels import strata
from streamlearn.compute.kernels.factors import ITEM, MEAN_OVER
from streamlearn.config import MfConfig
from streamlearn.messages import F32, F64, I32, U64
from streamlearn.online.losses import new_validation
from streamlearn.online.mf import numbers_of
from streamlearn.online.progressive import Validation
from streamlearn.privacy import Budget
from streamlearn.shards.table import ExactTable
from streamlearn.strata.rows import FactorRows

__all__ = ["SEED_BYTES", "Sampling", "seal"]

_log = logging.getLogger("streamlearn.training")

# For the noise of rows, and for that of the mean.
SEED_BYTES: Final = 32
# What the rate of a pass is in steps of ``alpha``: of a row that is rated so often, all it takes.
_STEPS: Final = 50.0
# A row that little holds in place is paced as if so much did, so that no step overshoots.
_HOLD_MIN: Final = 8.0
# Noise comes so often in a pass: a row's variance is then too large by 1 / 16, at rate 1.
_NOISES: Final = 16
# Rates of all passes together below which rows still say where they began: by exp(-5) of it.
_MIXED: Final = 5.0
# Rate of the last pass above which it matters who was learned last in it: by a quarter more than
# on average, and it is the more the larger the rate.
_LAST_MAX: Final = 0.5
_BUCKET: Final = 1 << strata.BUCKET_BITS


class Sampling:
    """Draws the rows of a private model, pass by pass.

    Parameters
    ----------
    model : MfConfig
        With an ``epsilon``.
    rows : FactorRows
        Changed in place.
    values : float32[codes, 2]
        Rating and weight by code.
    seed : bytes
        ``SEED_BYTES`` of them, of which nobody else knows any.

    Attributes
    ----------
    mean : float
        b_0: the mean of all users' mean ratings, with Laplace noise; known after :meth:`begin`.
    passes : int
        That are complete.
    """

    def __init__(self, model: MfConfig, rows: FactorRows, values: F32, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES, f"a seed of {len(seed)} bytes, expected {SEED_BYTES}"
        self.budget = Budget.of(model)
        self.mean, self.passes = 0.0, 0
        self._model, self._rows, self._values = model, rows, values
        words = np.frombuffer(seed, np.uint32).astype(np.uint64)
        self._seed: U64 = words[:3].copy()
        self._dice = np.random.Generator(np.random.Philox(key=words[4:6] << 32 | words[6:8]))
        temperature = self.budget.temperature
        self._hold = temperature / model.prior_scale**2
        self._law: F64 = np.array([0.0, self._hold, temperature, model.error_max])
        users, places = len(rows.user_biases), len(rows.item_biases)
        self._user_paces: F32 = np.zeros((users, 4), np.float32)
        self._item_paces: F32 = np.zeros((places, 4), np.float32)
        self._user_turns: I32 = np.zeros((users, 2), np.int32)
        self._item_turns: I32 = np.zeros((places, 2), np.int32)
        self._item_tallies: F64 = np.zeros((places, 2))
        self._means = 0.0
        self._users_clipped = 0
        self._rates = 0.0
        self._beyond: list[tuple[int, int]] = []  # errors, and of how many ratings, by task
        self._clipped_share = 0.0

    # ---------------------------------------------------------------- before the first pass

    def weigh(self, number: int, words: U64, n: int) -> None:
        """Count the ratings of a bucket's users and what they weigh; of each bucket, once."""
        base = number * _BUCKET
        paces = self._user_paces[base : base + _BUCKET]
        model = self._model
        tallies: F64 = np.zeros((_BUCKET, 3))
        kernels.tally_users(words, n, self._values, model.rating_min, model.rating_max, tallies)
        counts, weights, sums = tallies[: len(paces)].T
        # weights of less than nothing, or of NaN, are refused where records are read
        shares = np.minimum(1.0, model.user_ratings_max / np.maximum(weights, 1e-300))
        self._users_clipped += int((shares < 1).sum())
        middle = (model.rating_min + model.rating_max) / 2
        self._means += float(np.where(counts > 0, sums / np.maximum(counts, 1), middle).sum())
        paces[:] = self._paces(counts, shares * weights, shares)
        kernels.tally_items(words, n, self._values, paces, self._item_tallies)

    def begin(self, table: ExactTable) -> None:
        """Pace the items, as all buckets are weighed, and draw the mean (it goes to the table)."""
        counts, weights = self._item_tallies.T
        self._item_paces[:] = self._paces(counts, weights, np.ones_like(counts))
        for paces, turns in (
            (self._user_paces, self._user_turns),
            (self._item_paces, self._item_turns),
        ):
            turns[:, 1] = paces[:, 3]
        model = self._model
        if model.intercept:
            # another user in one's place moves the mean by the whole range of a mean, at most
            users = len(self._user_paces)
            reach = (model.rating_max - model.rating_min) / users
            self.mean = self._means / users + self._dice.laplace(
                scale=reach / self.budget.epsilon_mean
            )
        table.intercept[:] = self.mean, MEAN_OVER

    def _paces(self, counts: F64, weights: F64, shares: F64) -> F64:
        """Return the paces of rows, as ``kernels.private.sweep`` has them."""
        pace = 1.0 / np.maximum(weights + self._hold, _HOLD_MIN)
        due = np.maximum(np.ceil(counts / _NOISES), 1.0)
        return np.stack([pace * shares, shares, pace / np.maximum(counts, 1.0), due], axis=1)

    # ---------------------------------------------------------------- in passes

    def task(
        self, number: int, words: U64, first: int, end: int, rate: float
    ) -> Callable[[], tuple[Validation, int]]:
        """Return what sweeps ratings of a bucket, at ``rate`` (the pass's step); as ``Passes``."""
        self._law[0] = _STEPS * rate
        rows = self._rows
        base = number * _BUCKET
        part = slice(base, base + _BUCKET)
        b0 = np.float32(self.mean)

        def task() -> tuple[Validation, int]:
            told = new_validation(self._model, max(1, end - first))
            sums: F64 = np.zeros(8)
            sweep: Any = kernels.sweep  # numba's stubs count the arguments of another function
            dropped = sweep(
                words, first, end, rows.users[part], rows.items, rows.user_biases[part],
                rows.item_biases, self._user_paces[part], self._item_paces, self._user_turns[part],
                self._item_turns, base, rows.dim, rows.lines, self._values, b0, self._law,
                self._seed, self.passes, sums,
            )  # fmt: skip
            told.set_totals(told.totals_of(sums[:7]))
            self._beyond.append((int(sums[7]), end - first))
            return told, int(dropped)

        return task

    def settle(self) -> None:
        """End a pass: its last noise."""
        rows = self._rows
        for kind, held, biases, paces, turns in (
            (0, rows.users, rows.user_biases, self._user_paces, self._user_turns),
            (int(ITEM), rows.items, rows.item_biases, self._item_paces, self._item_turns),
        ):
            kernels.settle(
                held, biases, paces, turns, kind, rows.dim, self._law, self._seed, self.passes
            )
        self.passes += 1
        self._rates += float(self._law[0])
        self._beyond, beyond = [], self._beyond
        told, total = np.array(beyond, np.int64).reshape(-1, 2).sum(axis=0)
        self._clipped_share = float(told / max(1, total))

    # ---------------------------------------------------------------- after the last pass

    def report(self) -> dict[str, Any]:
        """Return what was spent, and on what."""
        budget, model, last = self.budget, self._model, float(self._law[0])
        if self._rates < _MIXED or last > _LAST_MAX:
            _log.warning(
                "the model may be less private than epsilon says: for a sample of its density the "
                "rates of all passes should add up to %g (they do to %.1f), and that of the last "
                "one should be %g or less (it is %.2f): take more passes",
                _MIXED, self._rates, _LAST_MAX, last,
            )  # fmt: skip
        return {
            "epsilon": model.epsilon,
            "epsilon_mean": budget.epsilon_mean,
            "epsilon_rating": budget.epsilon_rating,
            "epsilon_of_another_sample": budget.epsilon_sample,
            "user_ratings_max": model.user_ratings_max,
            "error_max": model.error_max,
            "temperature": budget.temperature,
            "users": len(self._user_paces),
            "users_clipped": self._users_clipped,
            "ratings_clipped_share": self._clipped_share,
            "rates_sum": self._rates,
            "rate_last": last,
            "published": model.published,
        }


def seal(table: ExactTable) -> None:
    """Have a table's rows say nothing of ratings but by biases and factors.

    Users and items are numbered in the order of their keys, not in that of their ratings, by which
    the numbers of items that one user was the first to rate would follow one another; nobody has
    a count or was seen last.
    """
    segments = [np.sort(table.rows(segment)[:, 0]) for segment in table.key_order()]
    keys = np.concatenate(segments)
    slots = table.find(keys)
    numbers = numbers_of(table.rows_at(slots)[:, 1])
    item = numbers & ITEM != 0
    for side, kind in ((~item & (numbers > 0), np.uint32(0)), (item, ITEM)):
        numbers[side] = np.arange(1, side.sum() + 1, dtype=np.uint32) | kind
    low = table.words[slots * 4 + 1] & np.uint64(0xFFFFFFFF)
    table.words[slots * 4 + 1] = low | numbers.astype(np.uint64) << np.uint64(32)
    table.words[slots * 4 + 2] = 0
