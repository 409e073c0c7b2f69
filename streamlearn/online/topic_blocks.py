"""Blocks of documents whose topics are drawn by lanes, without locks (``kernels.esca``)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels import esca as kernels
from streamlearn.compute.kernels.topic_lists import LANES
from streamlearn.messages import F32, F64, I32, I64, U32, U64

__all__ = ["Block", "Priors", "Sweeper", "Swept", "arranged", "room"]

_LINE_BYTES: Final = 64


@dataclass(slots=True)
class Priors:
    """What every token's topic goes by, beside its own document and word.

    Attributes
    ----------
    alpha : float64[topics]
        Prior of each topic in a document.
    beta : float
        Prior of a word in a topic.
    totals : int64[topics]
        Tokens of each topic.
    words : int
        Words in the vocabulary.
    """

    alpha: F64
    beta: float
    totals: I64
    words: int = 0

    @property
    def topics(self) -> int:
        """How many there are."""
        return len(self.alpha)

    def arrays(self) -> tuple[F32, np.float32, F32, F32]:
        """Return alpha, beta, 1 / (T + V beta) and 1 / (1 - that) as kernels take them."""
        inverse = 1.0 / (self.totals + max(self.words, 1) * self.beta)
        over = np.ones_like(inverse)
        np.divide(1.0, 1.0 - inverse, out=over, where=self.totals > 0)
        arrays = [room(kernels.SPREAD, np.float32) for _ in range(3)]
        for array, values in zip(arrays, (self.alpha, inverse, over), strict=True):
            array[: self.topics] = values
        alpha, one, two = arrays
        return alpha, np.float32(self.beta), one, two


@dataclass(slots=True)
class Block:
    """Documents, their tokens word by word.

    Attributes
    ----------
    tokens : uint32[n]
        See ``kernels.esca``.
    present, starts : uint32[words], int32[words + 1]
        Words that are there, and where the tokens of each begin.
    bounds : int32[documents + 1]
        Where each document would begin, were they document by document.
    parts : int64[lanes + 1]
        Of ``present``: each lane's.
    documents : int64[lanes + 1]
        Documents of each lane.
    fills : list of int32[documents]
        By lane: where its tokens go, of each document.
    """

    tokens: U32
    present: U32
    starts: I32
    bounds: I32
    parts: I64 = field(default_factory=lambda: np.zeros(1, np.int64))
    documents: I64 = field(default_factory=lambda: np.zeros(1, np.int64))
    fills: list[I32] = field(default_factory=list)

    def divide(self, lanes: int) -> None:
        """Divide words and documents between lanes, tokens evenly."""
        marks = np.linspace(0, len(self.tokens), lanes + 1)
        self.parts, self.documents = (
            _between(np.searchsorted(ends, marks), len(ends) - 1)
            for ends in (self.starts, self.bounds)
        )
        self.fills = [self.bounds[:-1].copy()]
        for lane in range(lanes - 1):
            first, end = (int(self.starts[at]) for at in self.parts[lane : lane + 2])
            counts = np.bincount(self.tokens[first:end] >> 16, minlength=len(self.bounds) - 1)
            self.fills.append((self.fills[-1] + counts).astype(np.int32))

    @property
    def lengths(self) -> I32:
        """Tokens of each document."""
        return np.diff(self.bounds)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep over a block says.

    Attributes
    ----------
    log_likelihood : float
        Sum over tokens of the logarithm of the probability of each, given all others.
    tokens : int
    by_word : int
        Tokens whose topic was drawn from their word's mass.
    """

    log_likelihood: float
    tokens: int
    by_word: int


def arranged(
    words: U32, lengths: I32, vocabulary: int, key: int, *, topics: int = 0, by_word: bool = False
) -> Block:
    """Arrange documents word by word.

    Parameters
    ----------
    words : uint32[n]
        Numbers in the vocabulary, document by document.
    lengths : int32[documents]
        At most ``kernels.esca.DOCUMENTS_MAX``.
    vocabulary : int
    key : int
        What the first topics depend on.
    topics : int
        0: the first topic is 0.
    by_word : bool
        Whether all tokens of a word begin with one topic.
    """
    tokens: U32 = np.empty(len(words), np.uint32)
    most = min(vocabulary, len(words))
    present: U32 = np.empty(most, np.uint32)
    starts: I32 = np.empty(most + 1, np.int32)
    there = kernels.arrange(
        words, lengths, np.zeros(vocabulary, np.int32), present, starts, tokens, topics,
        int(by_word), np.uint64(key),
    )  # fmt: skip
    bounds: I32 = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    return Block(tokens, present[:there].copy(), starts[: there + 1].copy(), bounds)


class Sweeper:
    """Lanes and their room, to draw the topics of blocks.

    Parameters
    ----------
    lanes : int

    Notes
    -----
    What is drawn is the same for any number of lanes.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane-sweep")
        width = kernels.SPREAD + _LINE_BYTES // 4
        self._scratch = [room(4 * width, np.float32).reshape(4, width) for _ in range(lanes)]
        self._topics = room(0, np.uint16)
        self._lists: U32 = room(0, np.uint32)
        self._heads: U64 = np.zeros(kernels.DOCUMENTS_MAX, np.uint64)

    def close(self) -> None:
        """End the lanes."""
        self._pool.shutdown()

    def begin(self, block: Block, priors: Priors, counts: I32, rows: I64, key: int) -> None:
        """Draw topics by words alone; see ``kernels.esca.begin``."""
        alpha, beta, inverse, _ = priors.arrays()

        def work(lane: int) -> None:
            first, end = (int(at) for at in block.parts[lane : lane + 2])
            start: Any = kernels.begin  # numba's stubs count the arguments of another function
            start(
                first, end, block.present, block.starts, block.tokens, counts, rows, priors.topics,
                alpha, beta, inverse, np.uint64(key), self._scratch[lane],
            )  # fmt: skip
            self._scratch[lane][0, priors.topics :] = 0

        self.each(work)

    def sweep(
        self, block: Block, priors: Priors, counts: I32, rows: I64, key: int, *,
        counted: bool = True,
    ) -> Swept:  # fmt: skip
        """Draw the topic of every token of a block anew; ``priors.totals`` is of after it then.

        Parameters
        ----------
        counts : int32[...]
            Memory of the words' rows; changed where ``counted``.
        rows : int64[vocabulary]
            Where each word's begins.
        key : int
            What chance depends on; another for each sweep and block.
        counted : bool
            Whether the block's tokens are in ``counts`` and ``priors.totals``.
        """
        topics = priors.topics
        self.list(block)
        alpha, beta, inverse, over = priors.arrays()
        moved = [np.zeros(topics, np.int32) for _ in range(self.lanes)]
        sums = [np.zeros(2 * LANES) for _ in range(self.lanes)]

        def work(lane: int) -> None:
            first, end = (int(at) for at in block.parts[lane : lane + 2])
            draw: Any = kernels.sweep  # numba's stubs count the arguments of another function
            draw(
                first, end, block.present, block.starts, block.tokens, self._heads, self._lists,
                counts, rows, topics, alpha, beta, inverse, over, int(counted), np.uint64(key),
                moved[lane], self._scratch[lane], sums[lane],
            )  # fmt: skip

        self.each(work)
        if counted:
            for one in moved:
                priors.totals += one
        lengths = block.lengths[block.lengths > 0].astype(np.float64)
        norm = float((lengths * np.log(lengths - 1 + priors.alpha.sum())).sum())
        loglik = sum(float(one[0]) for one in sums) - norm
        return Swept(loglik, len(block.tokens), sum(int(one[1]) for one in sums))

    def list(self, block: Block) -> tuple[U32, U64]:
        """List the topics that each document has; see ``kernels.esca.list_topics``."""
        tokens, bounds, documents = block.tokens, block.bounds, block.documents
        if len(self._topics) < len(tokens):
            self._topics = room(len(tokens), np.uint16)
        need = len(tokens) + LANES * (len(bounds) + self.lanes)
        if len(self._lists) < need:
            self._lists = room(need, np.uint32)

        def bring(lane: int) -> None:
            first, end = (int(block.starts[at]) for at in block.parts[lane : lane + 2])
            kernels.scatter(tokens, first, end, block.fills[lane].copy(), self._topics)

        def collect(lane: int) -> None:
            first, end = (int(at) for at in documents[lane : lane + 2])
            place = -(-(int(bounds[first]) + LANES * (first + lane)) // LANES) * LANES
            kernels.list_topics(first, end, bounds, self._topics, self._lists, self._heads, place)

        self.each(bring)
        self.each(collect)
        return self._lists, self._heads

    def each(self, work: Callable[[int], None]) -> None:
        """Have each lane do its part."""
        if self.lanes == 1:
            work(0)
            return
        for done in [self._pool.submit(work, lane) for lane in range(self.lanes)]:
            done.result()


def room(size: int, kind: Any) -> Any:
    """Return zeros whose first is at the beginning of a cache line."""
    width = np.dtype(kind).itemsize
    whole = np.zeros(size + _LINE_BYTES // width, kind)
    first = -whole.ctypes.data % _LINE_BYTES // width
    return whole[first : first + size]


def _between(inner: I64, end: int) -> I64:
    parts = inner.astype(np.int64)
    parts[0], parts[-1] = 0, end
    return parts
