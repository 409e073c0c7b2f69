"""Coherence of topics, against counting by sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamlearn.coherence import Coherence
from streamlearn.online.tokens import word_keys
from tests.reference import topics as twin

WORDS = [f"w{chr(97 + i)}" for i in range(12)]
KEYS = word_keys(WORDS)


def counted(documents: list[list[str]], places: Any, pieces: int = 1) -> Coherence:
    coherence = Coherence(KEYS, np.array(places, np.int64))
    for some in np.array_split(np.arange(len(documents)), pieces):
        flat = [word for i in some for word in documents[i]]
        keys = word_keys(flat) if flat else np.zeros(0, np.uint64)
        coherence.add(keys, np.cumsum([0, *(len(documents[i]) for i in some)]))
    return coherence


@pytest.mark.parametrize("pieces", [1, 3])
def test_coherence_is_what_sets_say(pieces: int) -> None:
    rng = np.random.default_rng(0)
    documents = [
        [WORDS[i] if i < 11 else "other" for i in rng.integers(0, 12, rng.integers(0, 12))]
        for _ in range(200)
    ]
    # the same word in several topics, too few words, and one that is nowhere
    places = [[0, 1, 2, 3], [3, 2, 11, 0], [5, -1, -1, -1], [-1] * 4, [7, 8, -1, -1]]
    coherence = counted(documents, places, pieces)
    assert coherence.documents == 200
    expected = [twin.coherence(documents, [WORDS[i] for i in row if i >= 0]) for row in places]
    np.testing.assert_allclose(coherence.npmi(), [npmi for npmi, _ in expected])
    np.testing.assert_allclose(coherence.umass(), [umass for _, umass in expected])


def test_words_that_are_always_or_never_together() -> None:
    documents = [["wa", "wb", "wa"], ["wb", "wa"]]
    assert counted(documents, [[0, 1]]).npmi().tolist() == [1.0]
    assert counted([["wa"], ["wb"]], [[0, 1]]).npmi().tolist() == [-1.0]
    assert np.isnan(counted([["wa"]], [[0, 1]]).npmi()).all()
    assert np.isnan(counted([], [[0, 1]]).umass()).all()
    assert np.isnan(counted(documents, [[-1, -1]]).npmi()).all()
