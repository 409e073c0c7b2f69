"""Columns of topic models: counts of words by topic, and topics of tokens, as messages carry them.

As those of :mod:`streamlearn.columns`: bytes are checked before anything is taken from them, and
whatever comes, nothing but :class:`ColumnError` is raised.

=========  =========================================================================================
column     bytes
=========  =========================================================================================
rows       of each word how many of its counts are not 0, *n*. Where 2 *n* is at least the number
           of topics, all counts; else of each that is not 0 how many zeros stand between it and the
           one before, and the count. All as numbers of seven bits a byte, the lowest first, the top
           bit says that there is more; the shortest way; below 2**31
topics     of each token its topic, or the number of topics where it has none: as many bits as that
           number has, one behind the other from the lowest bit of each byte on, then zeros
totals     of each topic its tokens, int64; tallies likewise
floats     float64
=========  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamlearn.columns import NOTHING, Bytes
from streamlearn.compute.kernels import topic_wire as wire
from streamlearn.compute.kernels.topic_priors import BINS
from streamlearn.errors import ColumnError
from streamlearn.messages import F64, I32, I64, U8

__all__ = [
    "NO_TOPIC",
    "U16",
    "WordRows",
    "decode_floats",
    "decode_tallies",
    "decode_topics",
    "decode_totals",
    "encode_rows",
    "encode_topics",
    "encode_totals",
]

U16: TypeAlias = NDArray[np.uint16]
# Of a token that has none.
NO_TOPIC: Final = 0xFFFF


def encode_rows(counts: I32, places: I64, topics: int) -> U8:
    """Return the bytes of words' counts.

    Parameters
    ----------
    counts : int32[...]
        Memory of all; none negative.
    places : int64[n]
        Where each word's begin.
    topics : int
    """
    out: U8 = np.empty(int(wire.rows_size(counts, places, topics)), np.uint8)
    wire.pack_rows(counts, places, topics, out)
    return out


class WordRows:
    """Counts of words as they came from several shards, to be read piece by piece.

    Parameters
    ----------
    columns : sequence of bytes-like
        By shard.
    sizes : sequence of int
        Words of each: no more than its keys.
    topics : int

    Raises
    ------
    ColumnError
        A column is not so many rows and nothing else.
    """

    def __init__(self, columns: Sequence[Bytes], sizes: Sequence[int], topics: int) -> None:
        self.topics = topics
        self._columns: list[U8] = []
        self._bounds: list[I64] = []
        self._firsts = [0]
        for data, size in zip(columns, sizes, strict=True):
            column = np.frombuffer(data, np.uint8)
            column.flags.writeable = False
            if size > column.size:
                raise ColumnError(f"counts of {size} words cannot be {column.size} bytes")
            bounds: I64 = np.empty(size + 1, np.int64)
            if not wire.row_bounds(column, topics, bounds):
                raise ColumnError(f"{column.size} bytes are not the counts of {size} words")
            self._columns.append(column)
            self._bounds.append(bounds)
            self._firsts.append(self._firsts[-1] + size)

    def __len__(self) -> int:
        return self._firsts[-1]

    def fill(self, words: I64, stride: int, out: I32) -> None:
        """Write the counts of words (int64[n], ascending) to int32[>= n * stride]."""
        marks = np.searchsorted(words, self._firsts)
        for number, (column, bounds) in enumerate(zip(self._columns, self._bounds, strict=True)):
            a, b = int(marks[number]), int(marks[number + 1])
            if a < b:
                own = words[a:b] - self._firsts[number]
                wire.fill_rows(column, bounds, own, self.topics, stride, out[a * stride :])


def _width(topics: int) -> int:
    return topics.bit_length()


def encode_topics(values: U16, topics: int) -> U8:
    """Return the bytes of tokens' topics, each below ``topics`` or ``NO_TOPIC``."""
    if not values.size:
        return NOTHING
    width = _width(topics)
    out: U8 = np.empty(-(-values.size * width // 8), np.uint8)
    wire.pack_topics(np.minimum(values, np.uint16(topics)), width, out)
    return out


def decode_topics(data: Bytes, count: int, topics: int, *, whole: bool) -> U16:
    """Return the topics that bytes are, uint16[count].

    Parameters
    ----------
    whole : bool
        Whether each must have one.

    Raises
    ------
    ColumnError
        The bytes are not ``count`` topics and nothing else.
    """
    column = np.frombuffer(data, np.uint8)
    column.flags.writeable = False
    width = _width(topics)
    if count < 0 or column.size != -(-count * width // 8):
        raise ColumnError(f"{column.size} bytes are not the topics of {count} tokens")
    out: U16 = np.empty(count, np.uint16)
    if not wire.unpack_topics(column, width, topics - whole, out):
        raise ColumnError(f"a topic is not below {topics}, or bits stand behind the last")
    if not whole:
        out[out == topics] = NO_TOPIC
    return out


def encode_totals(totals: I64) -> U8:
    """Return the bytes of how many tokens each topic has."""
    return np.ascontiguousarray(totals, np.int64).view(np.uint8)


def decode_totals(data: Bytes, topics: int) -> I64:
    """Return how many tokens each topic has, int64[topics]; raises ColumnError."""
    return _numbers(data, topics, "totals of topics")


def decode_tallies(data: Bytes) -> I64:
    """Return how often counts stand in rows, int64[BINS]; raises ColumnError."""
    return _numbers(data, BINS, "tallies")


def _numbers(data: Bytes, count: int, what: str) -> I64:
    column = np.frombuffer(data, np.uint8)
    if column.size != 8 * count:
        raise ColumnError(f"{column.size} bytes are not {count} {what}")
    numbers: I64 = column.view(np.int64)
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= 1 << 53:
        raise ColumnError(f"{what} are negative, or beyond 2**53")
    return numbers


def decode_floats(data: Bytes, count: int) -> F64:
    """Return float64[count] that are finite and not negative; raises ColumnError."""
    column = np.frombuffer(data, np.uint8)
    if column.size != 8 * count:
        raise ColumnError(f"{column.size} bytes are not {count} numbers")
    numbers: F64 = column.view(np.float64)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ColumnError("a number is negative, infinite or none")
    return numbers
