"""Vector loops over embedding rows, beside sums in float64 and one AdaGrad step at a time.

Through ``kernels.blocks``, as all kernels use them: rows of several lengths in one example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels.blocks import sum_blocks, teach_blocks
from streamlearn.compute.kernels.rules import v_rates_of
from streamlearn.embeddings import Tiers
from tests.reference.embeddings import Embedding, laid_out, taken_apart
from tests.reference.fm import score, slopes

EPS = 2.0**-24
# An embedding's step may be off by this share of it: ``_Lanes.over_root``.
STEP_ERROR = 2.0**-10
TIERS = [
    Tiers(2, (0,), (16,)),
    Tiers(3, (0,), (16,)),
    Tiers(2, (0,), (8,)),
    Tiers(3, (0,), (5,)),
    Tiers(2, (0, 1, 2), (3, 8, 20)),
    Tiers(3, (0, 1, 2), (2, 5, 7)),
    Tiers(3, (0, 1), (16, 48)),
]


@dataclass
class Example:
    """Embeddings of an example, the longest first, in a memory of their own.

    ``dims`` are their lengths, ``V``, ``m`` float32[order - 1, n, dim].
    """

    tiers: Tiers
    dims: np.ndarray
    V: np.ndarray
    m: np.ndarray
    x: np.ndarray

    @classmethod
    def drawn(cls, tiers: Tiers, n: int, seed: int, scale: float = 0.5) -> Example:
        rng = np.random.default_rng(seed)
        dims = np.sort(rng.choice(tiers.dims, n))[::-1]
        shape = (tiers.parts, n, tiers.dim)
        inside = np.arange(tiers.dim) < dims[:, None]
        V = np.where(inside, rng.uniform(-scale, scale, shape), 0).astype(np.float32)
        m = np.where(inside, rng.uniform(0, 2, shape), 0).astype(np.float32)
        return cls(tiers, dims, V, m, rng.uniform(-1.5, 1.5, n).astype(np.float32))

    def __post_init__(self) -> None:
        tiers, n = self.tiers, len(self.dims)
        row = tiers.floats(tiers.dim) + 16
        memory = np.zeros((n + 1) * row + 16, np.float32)
        memory = memory[-memory.ctypes.data % 64 // 4 :]
        self.memory = memory[: (n + 1) * row].reshape(n + 1, row)
        self.memory[:] = 7  # what belongs to others
        for i, dim in enumerate(self.dims):
            one = Embedding(self.V[:, i, :dim], self.m[:, i, :dim])
            self.memory[i, : tiers.floats(dim)] = laid_out(one, tiers)
        self.addresses = self.memory.ctypes.data + 4 * row * np.arange(n + 1)
        self.ends = np.array([np.count_nonzero(self.dims >= dim) for dim in tiers.dims])
        blocks = -(-tiers.dim // tiers.lanes)
        self.sums = np.full(4 * tiers.lanes * (blocks + 1), np.nan, np.float32)
        self.xs = np.append(self.x, np.float32(9))

    def arguments(self) -> tuple[Any, ...]:
        return self.ends, np.array(self.tiers.dims)

    def score(self) -> float:
        return sum_blocks(
            *self.arguments(), self.addresses.ctypes.data, self.xs.ctypes.data, self.tiers.lanes,
            self.tiers.order, self.sums.ctypes.data,
        )  # fmt: skip

    def _cut(self, gradient: float) -> np.ndarray:
        """Return gradient times value as kernels make it, cut at 2**51."""
        return np.clip(np.float64(gradient) * self.xs, -(2.0**51), 2.0**51).astype(np.float32)

    def teach(self, gradient: float, rates: np.ndarray) -> None:
        gxs = self._cut(gradient)
        teach_blocks(
            True, *self.arguments(), self.addresses.ctypes.data, self.xs.ctypes.data,
            gxs.ctypes.data, self.tiers.lanes, self.tiers.order, self.sums, *rates[:3],
        )  # fmt: skip

    def add_slopes(self, gradient: float) -> None:
        gxs = self._cut(gradient)
        teach_blocks(
            False, *self.arguments(), self.addresses.ctypes.data, self.xs.ctypes.data,
            gxs.ctypes.data, self.tiers.lanes, self.tiers.order, self.sums,
            *np.zeros(3, np.float32),
        )  # fmt: skip

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return V and m as they are now; what is not theirs is as it was."""
        V, m = np.zeros_like(self.V), np.zeros_like(self.m)
        for i, dim in enumerate(self.dims):
            size = self.tiers.floats(dim)
            V[:, i, :dim], m[:, i, :dim] = taken_apart(self.memory[i, :size], dim, self.tiers)
            assert (self.memory[i, size:] == 7).all(), "a row beyond its end was written"
        assert (self.memory[-1] == 7).all()
        return V, m

    def exact_score(self) -> float:
        V, x = self.V.astype(float), self.x.astype(float)
        return float(score(0.0, np.zeros(len(x)), V, x, self.dims))

    def score_error(self) -> float:
        """Return how far sums in float32 may be off, in any order."""
        n, a = len(self.x), np.abs(self.V.astype(float) * self.x[:, None])
        total = a.sum(axis=1)
        # a power sum rounds n + 3 times, and what is made of three of them a few times more; then
        # coordinates are added up
        rounds = 3 * (n + 3) + 8 + self.tiers.dim
        return float(rounds * EPS * ((total[0] ** 2).sum() + (total[1:] ** 3).sum()))

    def exact_slopes(self, gradient: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient, and how far that in float32 may be off."""
        V, x = self.V.astype(float), self.x.astype(float)
        gx = np.float32(gradient) * self.x
        exact = gradient * slopes(V, x, self.dims)
        total = np.abs(V * x[:, None]).sum(axis=1)
        powers = np.stack([total[part] ** (part + 1) for part in range(len(V))])[:, None]
        rounds = 3 * (len(x) + 3) + 8
        return exact, rounds * EPS * 3 * np.abs(gx).astype(float)[:, None] * powers


@pytest.mark.parametrize("n", [0, 1, 2, 7, 39])
@pytest.mark.parametrize("tiers", TIERS)
def test_the_score_is_the_twins(tiers: Tiers, n: int) -> None:
    for seed in range(3):
        example = Example.drawn(tiers, n, seed)
        before = example.memory.copy()
        assert example.score() == pytest.approx(
            example.exact_score(), rel=0, abs=example.score_error()
        )
        np.testing.assert_array_equal(example.memory, before)


@pytest.mark.parametrize("tiers", TIERS)
def test_an_embedding_alone_adds_nothing(tiers: Tiers) -> None:
    example = Example.drawn(tiers, 1, 5)
    assert example.score() == pytest.approx(0, abs=example.score_error())
    _, m = example.read()
    example.teach(1.0, v_rates_of(0.1, 1.0, 0.0, 0.0))
    if tiers.order == 2:
        np.testing.assert_allclose(example.read()[1], m, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 39])
@pytest.mark.parametrize("tiers", TIERS)
def test_slopes_are_the_twins_and_add_up(tiers: Tiers, n: int) -> None:
    example = Example.drawn(tiers, n, n)
    example.m[:] = 0
    example.__post_init__()
    example.score()
    total, error = np.zeros(example.V.shape), np.zeros(example.V.shape)
    for gradient in (0.75, -0.25, -2.0):
        example.add_slopes(gradient)
        exact, off = example.exact_slopes(gradient)
        total += exact
        error += off + EPS * np.abs(total)
    V, m = example.read()
    np.testing.assert_array_equal(V, example.V)
    assert (np.abs(m - total) <= error).all()


@pytest.mark.parametrize("l2", [0.0, 0.05])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 39])
@pytest.mark.parametrize("tiers", TIERS)
def test_a_step_is_the_twins(tiers: Tiers, n: int, l2: float) -> None:
    example = Example.drawn(tiers, n, n)
    rate, beta = 0.1, 0.5
    example.score()
    example.teach(0.75, v_rates_of(rate, beta, l2, 0.0))
    exact, off = example.exact_slopes(0.75)
    inside = np.arange(tiers.dim) < example.dims[:, None]
    V, m = example.V.astype(float), example.m.astype(float)
    g = np.where(inside, exact + np.float32(l2) * V, 0)
    off = off + EPS * (np.abs(g) + l2)
    expected_m = m + g**2
    m_off = 2 * np.abs(g) * off + off**2 + 3 * EPS * expected_m
    root = np.sqrt(expected_m)
    step = rate * g / (beta + root)
    # what the sums are off moves the root, which is at least beta with beta
    step_off = (STEP_ERROR + 8 * EPS) * np.abs(step) + rate / beta * (
        off + np.abs(g) * np.sqrt(m_off) / beta
    )
    now_V, now_m = example.read()
    assert (np.abs(now_m - expected_m) <= m_off + 1e-30).all()
    assert (np.abs(now_V - (V - step)) <= step_off + EPS).all()


@pytest.mark.parametrize("tiers", TIERS)
@pytest.mark.parametrize("gradient", [3e38, -3e38, 2.0**50])
def test_no_gradient_makes_an_embedding_anything_but_numbers(tiers: Tiers, gradient: float) -> None:
    example = Example.drawn(tiers, 7, 1)
    example.score()
    for _ in range(20):
        example.teach(gradient, v_rates_of(0.1, 0.5, 0.01, 0.0))
    V, m = example.read()
    assert np.isfinite(V).all()
    assert np.isfinite(m).all()
    # a step is at most the rate, whatever the gradient
    assert (np.abs(V - example.V) <= 20 * 0.1 * (1 + STEP_ERROR) + 1e-6).all()
    other = Example.drawn(tiers, 7, 1)
    other.score()
    for _ in range(20):
        other.add_slopes(gradient)
    assert np.isfinite(other.read()[1]).all()


@pytest.mark.parametrize("tiers", TIERS)
def test_a_sum_of_squares_at_its_end_grows_no_more(tiers: Tiers) -> None:
    example = Example.drawn(tiers, 7, 1)
    inside = np.arange(tiers.dim) < example.dims[:, None]
    example.m[:] = np.where(inside, np.float32(2.0**126), 0)
    example.__post_init__()
    example.score()
    for _ in range(5):
        example.teach(1e38, v_rates_of(0.1, 0.5, 0.01, 0.0))
    _, m = example.read()
    np.testing.assert_array_equal(m, example.m)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tiers", TIERS)
def test_values_that_are_not_finite_make_the_score_so(tiers: Tiers, bad: float) -> None:
    example = Example.drawn(tiers, 7, 1)
    example.xs[3] = bad
    assert not np.isfinite(example.score())


@pytest.mark.parametrize("tiers", TIERS)
def test_the_same_example_gives_the_same_bytes(tiers: Tiers) -> None:
    one, other = (Example.drawn(tiers, 39, 1) for _ in range(2))
    assert one.score() == other.score()
    for example in (one, other):
        example.teach(0.5, v_rates_of(0.1, 0.5, 0.01, 0.0))
    assert one.memory.tobytes() == other.memory.tobytes()
