"""The topics of documents as they are told: which, and what share each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from streamlearn.messages import F32, I64
from streamlearn.online.minibatch import Minibatch
from streamlearn.topic_inference import TopicReader

__all__ = ["Mixture", "MixturesOut", "mixtures_of", "strongest_topics"]


class Mixture(NamedTuple):
    """The topics of a document.

    Attributes
    ----------
    topics, shares : list of int, list of float
        The largest first; all topics, in their order, where all are wanted.
    tokens, unknown : int
        Tokens that were looked at, and those left out, as their words have no topics.
    """

    topics: list[int]
    shares: list[float]
    tokens: int
    unknown: int


class MixturesOut(Protocol):
    """Who is told of documents' topics.

    Attributes
    ----------
    top : int
        Topics of each document that are wanted; 0: all.
    """

    top: int

    def __call__(self, mixtures: Sequence[Mixture | None]) -> None:
        """Take the next documents, in order; None: a bad record."""
        ...


def mixtures_of(reader: TopicReader, batch: Minibatch, top: int) -> tuple[list[Mixture], list[int]]:
    """Return the topics of a minibatch's documents, and where the record of each begins.

    A document of several rows is one.
    """
    rows = batch.rows
    if not rows:
        return [], []
    lines = batch.lines[:rows]
    first = np.concatenate([[0], np.flatnonzero(np.diff(lines)) + 1])
    bounds: I64 = np.append(batch.indptr[first], batch.indptr[rows]).astype(np.int64)
    shares, known = reader.mixtures(batch.keys[: batch.nnz], bounds)
    topics = strongest_topics(shares, top)
    some = shares if topics is None else np.take_along_axis(shares, topics, axis=1)
    unknown = (np.diff(bounds) - known).tolist()
    numbers = [list(range(shares.shape[1]))] * len(first) if topics is None else topics.tolist()
    columns = zip(numbers, some.tolist(), known.tolist(), unknown, strict=True)
    return [Mixture(*one) for one in columns], lines[first].tolist()


def strongest_topics(shares: F32, top: int) -> I64 | None:
    """Return the topics of largest share, int64[documents, top], of equals the first; None: all."""
    count = shares.shape[1]
    if not top:
        return None
    if top >= count:
        return np.argsort(-shares, axis=1, kind="stable")
    some = np.sort(np.argpartition(-shares, top - 1, axis=1)[:, :top], axis=1)
    order = np.argsort(-np.take_along_axis(shares, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)
