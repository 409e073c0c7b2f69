"""The topics of documents, asked for while a topic model is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.config import SourceConfig
from streamlearn.messages import U64
from streamlearn.net.http import AskedError
from streamlearn.online.lda import LdaSolver
from streamlearn.online.tokens import Tokeniser, word_keys
from streamlearn.topic_inference import TopicReader
from streamlearn.topic_mixtures import strongest_topics

__all__ = ["AskedDocument", "DocumentReader", "topics_of_documents"]

# Tokens of a request, times topics: learning waits for about half a second.
PRODUCTS_MAX: Final = 1 << 26
TOPICS_TOLD_MAX: Final = 1000
_TOP: Final = 10


class AskedDocument(NamedTuple):
    """A document whose topics are asked for.

    Attributes
    ----------
    keys : uint64[tokens]
    n : int
        Topics of it that are wanted.
    """

    keys: U64
    n: int


class DocumentReader:
    """Reads documents in questions: ``text``, or ``words``, and perhaps ``n``.

    Parameters
    ----------
    source : SourceConfig
        Says what a word is.
    """

    def __init__(self, source: SourceConfig) -> None:
        self._tokeniser = Tokeniser(source)

    def read(self, question: Mapping[str, Any]) -> AskedDocument:
        """Read one.

        Raises
        ------
        AskedError
            It says neither, or something else.
        """
        for name in question:
            if name not in ("text", "words", "n"):
                raise AskedError(400, f"{name!r} means nothing here, only text, words, n do")
        n = question.get("n", _TOP)
        if isinstance(n, str) and n.isdecimal():
            n = int(n)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= TOPICS_TOLD_MAX:
            raise AskedError(
                400, f"n is {n!r}, expected a whole number from 1 to {TOPICS_TOLD_MAX:,}"
            )
        text, words = question.get("text"), question.get("words")
        if (text is None) == (words is None):
            raise AskedError(400, "expected either text or words")
        if text is not None:
            if not isinstance(text, str):
                raise AskedError(400, f"text is {text!r}, expected a text")
            return AskedDocument(self._tokeniser.keys(text), n)
        words = [words] if isinstance(words, str) else words
        if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
            raise AskedError(400, f"words is {words!r}, expected a list of words")
        return AskedDocument(word_keys(words) if words else np.zeros(0, np.uint64), n)


def topics_of_documents(
    solver: LdaSolver, documents: Sequence[AskedDocument]
) -> list[dict[str, Any]]:
    """Return the topics of documents with their shares, the largest first.

    Raises
    ------
    AskedError
        They are too long together, or there are no topics yet.
    """
    if not solver.priors.words:
        raise AskedError(503, "there are no topics yet: the first pass only reads")
    bounds = np.cumsum([0, *(len(one.keys) for one in documents)]).astype(np.int64)
    if bounds[-1] * solver.priors.topics > PRODUCTS_MAX and len(documents) > 1:
        raise AskedError(
            400,
            f"{bounds[-1]:,} words and {solver.priors.topics:,} topics are more than the "
            f"{PRODUCTS_MAX:,} products of a request: ask for fewer documents at once",
        )
    reader = TopicReader(solver, 1, None)
    keys = np.concatenate([np.zeros(0, np.uint64), *(one.keys for one in documents)])
    try:
        shares, known = reader.mixtures(keys, bounds)
    finally:
        reader.close()
    told = []
    for i, one in enumerate(documents):
        topics = strongest_topics(shares[i : i + 1], one.n)
        assert topics is not None
        pairs = zip(topics[0].tolist(), shares[i, topics[0]].tolist(), strict=True)
        told.append(
            {
                "topics": [{"topic": topic, "share": share} for topic, share in pairs],
                "tokens": int(known[i]),
                "unknown_tokens": len(one.keys) - int(known[i]),
            }
        )
    return told
