"""Documents in memory: the same keys however they are handed in and cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from streamlearn.config import SourceConfig
from streamlearn.online import corpora
from streamlearn.online.corpora import Corpus, Counts, Texts, WordLists, read_corpus
from streamlearn.online.tokens import Tokeniser, word_keys

TOKENISER = Tokeniser(SourceConfig())
LISTS = [["tea", "pie", "tea"], [], ["tram"], ["pie"] * 5, ["größe", "tea"]]
TEXTS = ["Tea, pie &amp; TEA", " ", "<i>tram</i> a", "pie\npie pie pie pie", "GRÖSSE? größe tea"]
TEXTS[4] = "Größe tea"
WORDS = ["pie", "tea", "tram", "größe", "never"]


def keys_of(corpus: Corpus) -> list[list[int]]:
    return [
        piece.keys[first:last].tolist()
        for piece in corpus.pieces()
        for first, last in zip(piece.bounds[:-1], piece.bounds[1:], strict=True)
    ]


def matrix() -> np.ndarray[Any, Any]:
    return np.array([[words.count(word) for word in WORDS] for words in LISTS])


@pytest.mark.parametrize("tokens", [1, 4, 1 << 18])
@pytest.mark.parametrize("documents", [1, 2, 4096])
def test_documents_are_cut_without_a_seam(
    tokens: int, documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_TOKENS", tokens)
    monkeypatch.setattr(corpora, "_DOCUMENTS", documents)
    expected = [word_keys(words).tolist() if words else [] for words in LISTS]
    found: list[tuple[Any, type]] = [(TEXTS, Texts), (LISTS, WordLists)]
    for x, kind in found:
        corpus = read_corpus(x, TOKENISER, None)
        assert isinstance(corpus, kind)
        assert len(corpus) == 5
        assert keys_of(corpus) == expected
        assert keys_of(corpus) == expected
    order = {int(key): i for i, key in enumerate(word_keys(WORDS))}
    by_column = [sorted(row, key=lambda key: order[key]) for row in expected]
    for form in (matrix(), sp.csr_matrix(matrix()), matrix().tolist(), matrix().astype(np.float32)):
        corpus = read_corpus(form, TOKENISER, WORDS)
        assert isinstance(corpus, Counts)
        assert keys_of(corpus) == by_column


@pytest.mark.parametrize("x", [TEXTS, LISTS, matrix()], ids=["texts", "words", "matrix"])
def test_words_are_spelt_by_their_keys(x: Any) -> None:
    words: dict[int, str] = {}
    for piece in read_corpus(x, TOKENISER, WORDS).pieces():
        for wanted in (np.unique(piece.keys), np.unique(piece.keys)[:1], piece.keys[:0]):
            told = piece.spell(wanted)
            begin = 0
            spelt = {}
            for key, end in zip(told.keys.tolist(), told.ends.tolist(), strict=True):
                spelt[key] = told.text[begin:end].tobytes().decode()
                begin = end
            assert set(spelt) >= set(wanted.tolist())
            words |= spelt
    assert words == {int(word_keys([word])[0]): word for word in WORDS[:4]}


def test_columns_without_words_are_numbers() -> None:
    (row,) = keys_of(read_corpus([[0, 2, 1]], TOKENISER, None))
    assert row == word_keys(["1", "1", "2"]).tolist()
