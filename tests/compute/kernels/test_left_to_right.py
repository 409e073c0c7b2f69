"""Documents judged by particles: as probable as the sum over all topics says, on average."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels.left_to_right import read_documents
from tests.reference.topics import probability

TOPICS, WORDS, LINE = 3, 5, 16
ALPHA = np.array([0.3, 0.7, 0.2], np.float32)
BETA = np.float32(0.1)
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 9, (WORDS, TOPICS)).astype(np.int32)
INVERSE = (1 / (COUNTS.sum(axis=0) + WORDS * BETA)).astype(np.float32)
DOCUMENT = np.array([0, 3, 3, 1, 4, 0])


def read(
    documents: list[Any],
    particles: int = 20,
    redrawn: int = 100,
    seed: int = 0,
    counts: Any = COUNTS,
    alpha: Any = ALPHA,
    inverse: Any = INVERSE,
) -> tuple[Any, Any]:
    """Judge documents, lists of words' numbers; -1 is a word without topics."""
    topics = counts.shape[1]
    memory = np.zeros((len(counts), -(-topics // LINE) * LINE), np.int32)
    memory[:, :topics] = counts
    bounds = np.cumsum([0, *map(len, documents)])
    words = np.concatenate([np.array(one, np.int64) for one in documents])
    longest = max(1, *map(len, documents))
    scores, tokens = np.full(len(documents), 9, np.float32), np.zeros(len(documents), np.float32)
    read_documents(
        bounds, 0, len(documents), (words * 2 + 2 * seed + 101).astype(np.uint64),
        np.where(words < 0, -1, words * memory.shape[1]), memory.reshape(-1), topics, alpha, BETA,
        inverse, redrawn, np.empty(longest, np.int64), np.empty((particles, longest), np.uint16),
        np.zeros((particles, memory.shape[1]), np.int32),
        np.zeros((particles, memory.shape[1]), np.float32), np.empty(particles),
        np.zeros(memory.shape[1], np.float32), scores, tokens,
    )  # fmt: skip
    return scores, tokens


def exact(document: Any) -> float:
    phi = (COUNTS + BETA).astype(np.float64) * INVERSE
    return probability(document, ALPHA.astype(np.float64), phi)


@pytest.mark.parametrize("particles", [1, 2, 20])
@pytest.mark.parametrize("redrawn", [0, 2, 100])
def test_estimates_are_right_on_average(particles: int, redrawn: int) -> None:
    count = 4000 if particles < 20 else 1500
    estimates = np.exp(
        [float(read([DOCUMENT], particles, redrawn, seed)[0][0]) for seed in range(count)]
    )
    error = estimates.std() / np.sqrt(count)
    assert abs(estimates.mean() - exact(DOCUMENT)) < 4 * error
    assert error < 0.01 * estimates.mean()


def test_one_token_is_known_exactly() -> None:
    scores, tokens = read([[word] for word in range(WORDS)])
    np.testing.assert_allclose(scores, [np.log(exact([word])) for word in range(WORDS)], rtol=1e-5)
    assert (tokens == 1).all()


def test_more_particles_are_steadier() -> None:
    spread = [
        np.std([read([DOCUMENT], n, 100, seed)[0][0] for seed in range(200)]) for n in (1, 20)
    ]
    assert spread[1] < spread[0] / 2


def test_words_without_topics_are_left_out() -> None:
    scores, tokens = read([[-1, *DOCUMENT[:3], -1, *DOCUMENT[3:]], DOCUMENT, [], [-1, -1]])
    assert scores[0] == pytest.approx(scores[1], abs=0.5)
    assert tokens.tolist() == [6, 6, 0, 0]
    assert scores[2:].tolist() == [0, 0]


def test_chance_depends_on_a_document_alone() -> None:
    others = [RNG.integers(0, WORDS, 9) for _ in range(5)]
    alone, _ = read([DOCUMENT])
    among, _ = read([others[0], DOCUMENT, *others[1:], DOCUMENT])
    assert among[1] == among[-1] == alone[0]


def test_topics_that_cannot_be_are_never_drawn() -> None:
    alpha = np.array([0, 1, 0], np.float32)
    scores, _ = read([DOCUMENT], alpha=alpha)
    phi = (COUNTS[DOCUMENT, 1] + BETA) * INVERSE[1]
    assert scores[0] == pytest.approx(np.log(phi).sum(), rel=1e-5)


@pytest.mark.parametrize("topics", [1, 15, 16, 17, 33, 100])
def test_any_number_of_topics_will_do(topics: int) -> None:
    counts = np.ones((WORDS, topics), np.int32)
    inverse = np.full(topics, 1 / (WORDS + WORDS * BETA), np.float32)
    alpha = np.full(topics, 0.1, np.float32)
    scores, _ = read([DOCUMENT], counts=counts, inverse=inverse, alpha=alpha)
    # all topics are alike, and so are all words
    assert scores[0] == pytest.approx(len(DOCUMENT) * np.log(1 / WORDS), rel=1e-5)


def test_long_documents_have_finite_probabilities() -> None:
    long = RNG.integers(0, WORDS, 3000)
    scores, tokens = read([long], 5, 4)
    assert tokens[0] == 3000
    assert -2.5 < scores[0] / 3000 < -1
