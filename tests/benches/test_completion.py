from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import completion
import topic_truth


def _log_likelihood(
    phi: np.ndarray, alpha: np.ndarray, lens: np.ndarray, w: np.ndarray, iterations: int
) -> float:
    """Judge the slow and obvious way, in float64."""
    total, judged = 0.0, 0
    for document in np.split(w, np.cumsum(lens)[:-1]):
        observed, other = document[::2], document[1::2]
        theta = np.full(len(phi), 1 / len(phi))
        for _ in range(iterations):
            shares = theta[:, None] * phi[:, observed]
            n = (shares / shares.sum(0)).sum(1)
            theta = (alpha + n) / (alpha.sum() + len(observed))
        total += np.log(theta @ phi[:, other]).sum()
        judged += len(other)
    return total / judged


@pytest.mark.parametrize("topics", [1, 7, 64])
@pytest.mark.parametrize("iterations", [1, 50])
def test_equals_the_slow_twin(topics: int, iterations: int) -> None:
    rng = np.random.default_rng(topics)
    phi = rng.dirichlet(np.full(30, 0.3), topics)
    alpha = rng.uniform(0.01, 0.5, topics)
    lens = np.array([1, 2, 0, 3, 40, 41], np.int32)
    w = rng.integers(0, 30, lens.sum(), np.int32)
    expected = _log_likelihood(phi, alpha, lens, w, iterations)
    assert completion.log_likelihood(phi, alpha, lens, w, iterations) == pytest.approx(
        expected, abs=2e-5
    )


def test_what_is_known_by_hand() -> None:
    # the observed word is the first topic's alone: theta = (1.5, 0.5) / 2
    phi = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    lens, w = np.array([2], np.int32), np.array([0, 2], np.int32)
    found = completion.log_likelihood(phi, 0.5, lens, w)
    assert found == pytest.approx(np.log(0.25 * 0.5), abs=1e-6)


def test_order_matters_since_every_other_position_is_judged() -> None:
    phi = np.array([[0.9, 0.1], [0.1, 0.9]])
    lens = np.array([4], np.int32)
    apart, mixed = (np.array(w, np.int32) for w in ([0, 1, 0, 1], [0, 0, 1, 1]))
    assert completion.log_likelihood(phi, 0.1, lens, apart) < completion.log_likelihood(
        phi, 0.1, lens, mixed
    )


def test_nothing_is_better_than_the_truth(tmp_path: Path) -> None:
    corpus = topic_truth.generated(10, 300, 8, tmp_path, length=60)
    phi, drawn = topic_truth.draw(1500, 300, 8, 0.1, 60.0, 5)
    lens = np.array([len(one) for one in drawn], np.int32)
    w = np.concatenate(drawn)
    truth = completion.log_likelihood(phi, 0.1, lens, w)
    rng = np.random.default_rng(1)
    marginal = np.tile(np.bincount(w, minlength=300) / len(w) + 1e-9, (8, 1))
    others = [phi * rng.uniform(0.8, 1.25, phi.shape) for _ in range(5)]
    others += [marginal, 0.9 * phi + 0.1 * marginal, np.roll(phi, 1, axis=1) + 1e-9]
    for other in others:
        judged = completion.log_likelihood(other / other.sum(1, keepdims=True), 0.1, lens, w)
        assert judged < truth
    assert corpus.phi is not None
    assert completion.log_likelihood(
        corpus.phi, 0.1, corpus.held_lens, corpus.held_w
    ) > completion.log_likelihood(
        np.full(corpus.phi.shape, 1 / len(corpus.words)), 0.1, corpus.held_lens, corpus.held_w
    )


LENS, W = np.array([3], np.int32), np.array([0, 1, 0], np.int32)


@pytest.mark.parametrize(
    ("phi", "alpha", "lens", "w", "message"),
    [
        ([[0.5, 0.4]], 0.1, LENS, W, "sum to .*; expected 1"),
        ([[0.5, np.nan]], 0.1, LENS, W, "expected 1"),
        ([[0.5, 0.5]], 0.0, LENS, W, "alpha is 0; expected more than zero"),
        ([[0.5, 0.5]], 0.1, LENS, W + 1, "words from 1 to 2; expected them below 2"),
        ([[1.0, 0.0]], 0.1, LENS, W, "impossible by all topics"),
        ([[0.5, 0.5]], 0.1, LENS - 2, W[:1], "no document has two tokens"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    phi: list[list[float]], alpha: float, lens: np.ndarray, w: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        completion.log_likelihood(np.array(phi), alpha, lens, w)
