"""Documents that came last, whose topics are drawn again as more come.

A single pass gives the first documents topics of which nothing is known yet. So documents are kept
for a while, and all of them are swept once more whenever they have become so many more, or so many
of them are new: each is drawn as often as in a few passes, the last times with what the later ones
taught (rejuvenation; Canini, Shi and Griffiths, "Online Inference of Topics with Latent
Dirichlet Allocation", AISTATS 2009).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels import esca
from streamlearn.errors import SnapshotError
from streamlearn.messages import I32, I64, U64
from streamlearn.online.topic_blocks import Block, Priors, Sweeper

__all__ = ["TOKENS_MAX", "Recent"]

# Tokens that are kept, four bytes each and as many again for their words and documents.
TOKENS_MAX: Final = 1 << 22
# Sweeps over documents that have just come.
FIRST_SWEEPS: Final = 2
_ARRAYS: Final = ("tokens", "starts", "bounds")


class Recent:
    """Blocks of the documents that came last, with topics that are counted.

    Parameters
    ----------
    draws : int
        How often the topics of a document are drawn while it is here, about.
    documents_max : int
        The most that are kept; 0: as many as ``TOKENS_MAX`` allows.
    places_of : callable
        Given keys of words, where each has its counts; -1: nowhere any more.

    Attributes
    ----------
    tokens, documents : int
    """

    def __init__(self, draws: int, documents_max: int, places_of: Callable[[U64], I64]) -> None:
        self._draws, self._documents_max = draws, documents_max
        self._places_of = places_of
        self._blocks: deque[tuple[Block, U64]] = deque()
        self._since = 0
        self.tokens = self.documents = 0

    def add(
        self, block: Block, keys: U64, priors: Priors, counts: I32, sweeper: Sweeper,
        key: Callable[[], int],
    ) -> None:  # fmt: skip
        """Take documents in: draw their topics, count them, and draw those of others again.

        Parameters
        ----------
        block : Block
            Its words are places in ``keys``.
        keys : uint64[words]
            All with counts.
        key : callable
            Gives what a draw depends on, another each time.
        """
        rows = self._places_of(keys)
        sweeper.begin(block, priors, counts, rows, key())
        _add(block, rows, priors, counts, 1)
        for _ in range(min(FIRST_SWEEPS, self._draws)):
            sweeper.sweep(block, priors, counts, rows, key())
        self._append(block, keys)
        self._since += len(block.tokens)
        if self._draws > FIRST_SWEEPS and self._since * (self._draws - FIRST_SWEEPS) >= self.tokens:
            self._since = 0
            for one, words in self._blocks:
                sweeper.sweep(one, priors, counts, self._places_of(words), key())

    def _append(self, block: Block, keys: U64) -> None:
        self._blocks.append((block, keys))
        self.tokens += len(block.tokens)
        self.documents += len(block.bounds) - 1
        most = self._documents_max or self.documents
        while len(self._blocks) > 1 and (self.tokens > TOKENS_MAX or self.documents > most):
            oldest, _ = self._blocks.popleft()
            self.tokens -= len(oldest.tokens)
            self.documents -= len(oldest.bounds) - 1

    def take_off(self, priors: Priors, counts: I32) -> None:
        """Take the documents that are here off the counts."""
        for block, keys in self._blocks:
            _add(block, self._places_of(keys), priors, counts, -1)

    def put_back(self, priors: Priors, counts: I32) -> None:
        """Count them again."""
        for block, keys in self._blocks:
            _add(block, self._places_of(keys), priors, counts, 1)

    def drop_words(self) -> None:
        """Let go of the tokens of words whose counts are gone."""
        for number, (block, keys) in enumerate(self._blocks):
            gone = self._places_of(keys) < 0
            if not gone.any():
                continue
            stay = ~gone[block.present]
            sizes = np.diff(block.starts)
            tokens = block.tokens[np.repeat(stay, sizes)]
            starts = np.concatenate([[0], np.cumsum(sizes[stay])]).astype(np.int32)
            lengths = np.bincount(tokens >> 16, minlength=len(block.bounds) - 1)
            bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            renumbered = np.cumsum(~gone) - 1
            present = renumbered[block.present[stay]].astype(np.uint32)
            self.tokens -= len(block.tokens) - len(tokens)
            less = Block(tokens, present, starts, bounds)
            less.divide(1)
            self._blocks[number] = less, keys[~gone]

    def state(self) -> dict[str, Any]:
        """Return all as arrays, copies: for a snapshot."""
        held: dict[str, Any] = {"recent": np.array([len(self._blocks), self._since], np.int64)}
        for number, (block, keys) in enumerate(self._blocks):
            held[f"recent.{number}.keys"] = keys[block.present]
            held |= {f"recent.{number}.{name}": getattr(block, name).copy() for name in _ARRAYS}
        return held

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned.

        Raises
        ------
        SnapshotError
            An array is missing, or they contradict one another.
        """
        if "recent" not in state:
            return
        count, self._since = (int(number) for number in state["recent"])
        for number in range(count):
            try:
                keys, tokens, starts, bounds = (
                    state[f"recent.{number}.{name}"] for name in ("keys", *_ARRAYS)
                )
            except KeyError as error:
                raise SnapshotError(f"solver's {error} is missing") from error
            if len(starts) != len(keys) + 1 or not starts[-1] == bounds[-1] == len(tokens):
                raise SnapshotError(f"solver's recent block {number} contradicts itself")
            present = np.arange(len(keys), dtype=np.uint32)
            block = Block(tokens.copy(), present, starts.copy(), bounds.copy())
            block.divide(1)
            self._append(block, keys.copy())


def _add(block: Block, rows: I64, priors: Priors, counts: I32, sign: int) -> None:
    esca.add_counts(
        block.tokens, block.present, block.starts, counts, rows, priors.topics, priors.totals, sign
    )
