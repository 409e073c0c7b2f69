"""Sweeps: kept documents arranged in blocks, and the topics of all their tokens drawn anew.

Blocks are swept one after the other, each by all lanes (``online.topic_blocks``); counts are those
of all tokens whenever no block is being swept. Where tokens do not fit memory, the later blocks
stand in a file, and the next one is read while one is swept.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels import esca as kernels
from streamlearn.compute.kernels import topic_priors
from streamlearn.compute.kernels.mixtures import complete
from streamlearn.config import LdaConfig
from streamlearn.errors import DataError, RunError, SnapshotError
from streamlearn.messages import F32, I32, I64, U32
from streamlearn.online.lda import LdaSolver, numbers_of
from streamlearn.online.topic_blocks import Block, Sweeper, Swept, arranged, room
from streamlearn.topics.documents import KeptDocuments, Spill
from streamlearn.topics.vocabulary import chosen

__all__ = ["BLOCK_TOKENS", "Sweeps"]

# Tokens of a block: the lists of their documents then fit the third cache (16 MB while topics are
# spread, a third of that later). Twice as many are no faster; with a quarter a fifth of the time is
# for building phi of words that have few tokens each, at 1,000 topics.
BLOCK_TOKENS: Final = 1 << 22
# Below so many words for each topic, all tokens of a word begin with one topic. With many topics
# that is far ahead (IMDB, 1,000 topics, 31 words each: as good after 10 sweeps as by chance after
# 50); with few it is behind (100 topics, 313 words each), at 300 topics the two are even.
_WORDS_PER_TOPIC: Final = 100
# Draws of a pass are keyed apart from those of the next.
_BLOCKS_MAX: Final = 1 << 24


class Sweeps:
    """Kept documents and the counts of their words, ready to be swept.

    Parameters
    ----------
    model : LdaConfig
    solver : LdaSolver
        Whose counts and priors are changed.
    kept : KeptDocuments
        Whose documents are taken out of it.
    lanes : int
    bytes_max : int
        Named limit (``tables.tokens_bytes_max``): of memory for tokens.
    directory : Path
        Of the file for what is more.
    topics : mapping of str to uint16[...], optional
        Topics of the tokens as a snapshot has them, by block; else they are drawn by chance.
    block_tokens : int
        Tokens of a block at most, but for a longer document.

    Attributes
    ----------
    blocks, tokens, documents : int
    left_out : int
        Tokens of words that are not in the vocabulary.

    Raises
    ------
    DataError
        No word is left.
    ResourceError
        Counts, or tokens, do not fit.
    SnapshotError
        ``topics`` are of other documents.
    """

    def __init__(
        self,
        model: LdaConfig,
        solver: LdaSolver,
        kept: KeptDocuments,
        *,
        lanes: int,
        bytes_max: int,
        directory: Path,
        topics: Mapping[str, Any] | None = None,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        self._model, self._solver = model, solver
        self._bytes_max, self._block_tokens = bytes_max, block_tokens
        slots = chosen(model, solver, kept.documents, again=topics is not None)
        solver.give_counts(slots)
        self._rows = solver.places_at(slots)
        solver.priors.words = len(slots)
        self._dense = self._numbers(slots)
        self._spill = Spill(directory, "tokens.")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._next: tuple[int, Future[U32]] | None = None
        self._blocks: list[Block] = []
        self._places: list[int] = []  # in the file; -1: in memory
        self.tokens = self.documents = 0
        self._in_memory = 0
        self._sweeper = Sweeper(lanes)
        self._arrange(kept, topics)
        self.left_out = kept.tokens - self.tokens
        kept.close()
        self._held = self._find(kept)
        if topics is None:
            solver.priors.totals[:] = 0
            for number in range(self.blocks):
                self._count(number)
        else:
            self.check()

    def _numbers(self, slots: I64) -> U32:
        """Return each word's number in the vocabulary by its number in the table, or GONE."""
        dense: U32 = np.full(self._solver.numbers + 1, kernels.GONE, np.uint32)
        numbers = numbers_of(self._solver.table.words[slots * 4 + 1])
        dense[numbers.astype(np.int64) - 1] = np.arange(len(slots), dtype=np.uint32)
        return dense

    def _arrange(self, kept: KeptDocuments, topics: Mapping[str, Any] | None) -> None:
        longest = min(self._block_tokens, max(kept.tokens, 1))
        words: U32 = np.empty(longest, np.uint32)
        lengths: I32 = np.zeros(kernels.DOCUMENTS_MAX, np.int32)
        state: I64 = np.zeros(3, np.int64)

        def close() -> None:
            self._close(words[: state[0]], lengths[: state[1]], topics)
            state[:2] = 0

        for numbers, sizes in kept.take():
            state[2] = first = 0
            while first < len(sizes):
                end = kernels.dense_words(numbers, sizes, first, self._dense, words, lengths, state)
                if end == first:
                    if state[1]:
                        close()
                        continue
                    words = np.empty(int(sizes[first]), np.uint32)  # one document that is longer
                first = end
        if state[1]:
            close()
        if not self.tokens:
            raise DataError(
                f"of {kept.tokens:,} tokens none is of a word that may have topics",
                hint="model.min_df and model.max_df say which words may",
            )

    def _close(self, words: U32, lengths: I32, topics: Mapping[str, Any] | None) -> None:
        """Arrange a block that is full."""
        number, vocabulary = len(self._blocks), len(self._rows)
        begun = topics is not None
        by_word = vocabulary < _WORDS_PER_TOPIC * self._model.topics
        block = arranged(
            words, lengths.copy(), vocabulary, self._solver.key(0 if by_word else number),
            topics=0 if begun else self._model.topics, by_word=by_word,
        )  # fmt: skip
        if topics is not None:
            stored = topics.get(str(number))
            known = 0 if stored is None else len(stored)
            if stored is None or known != len(words):
                raise SnapshotError(
                    f"the snapshot has topics of {known:,} tokens in block {number}, but the "
                    f"source has {len(words):,}",
                    hint="it is not what was learned: start over in another --out",
                )
            block.tokens |= stored
        block.divide(self._sweeper.lanes)
        self._blocks.append(block)
        self.tokens += len(words)
        self.documents += len(lengths)
        size = block.tokens.nbytes
        if self._in_memory + size <= self._bytes_max:
            self._in_memory += size
            self._places.append(-1)
        else:
            self._places.append(self._spill.append(block.tokens))
            block.tokens = block.tokens[:0]

    def _count(self, number: int) -> None:
        """Count the topics that a block begins with."""
        block = self._load(number)
        priors = self._solver.priors
        kernels.add_counts(
            block.tokens, block.present, block.starts, self._solver.counts, self._rows,
            priors.topics, priors.totals, 1,
        )  # fmt: skip
        self._drop(block, number)

    def _find(self, kept: KeptDocuments) -> tuple[I64, I64]:
        keys, bounds = kept.held_out.all()
        return self._solver.places_at(self._solver.table.find(keys)), bounds

    # ---------------------------------------------------------------- one block at a time

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._blocks)

    def _size(self, number: int) -> int:
        return int(self._blocks[number].starts[-1])

    def _fetch(self, number: int) -> U32:
        tokens: U32 = np.empty(self._size(number), np.uint32)
        self._spill.read(self._places[number], tokens)
        return tokens

    def _load(self, number: int) -> Block:
        """Return a block with its tokens, and begin to read the one behind it."""
        block = self._blocks[number]
        if self._places[number] >= 0:
            ahead, self._next = self._next, None
            there = ahead is not None and ahead[0] == number
            block.tokens = ahead[1].result() if ahead and there else self._fetch(number)
        behind = (number + 1) % self.blocks
        if self._places[behind] >= 0 and behind != number and self._next is None:
            self._next = behind, self._reader.submit(self._fetch, behind)
        return block

    def _drop(self, block: Block, number: int, *, changed: bool = False) -> None:
        if self._places[number] >= 0:
            if changed:
                self._spill.write(self._places[number], block.tokens)
            block.tokens = block.tokens[:0]

    def size(self, number: int) -> int:
        """Return how many documents a block has."""
        return len(self._blocks[number].bounds) - 1

    def sweep(self, number: int, epoch: int) -> Swept:
        """Draw the topics of a block's tokens anew.

        Parameters
        ----------
        number : int
        epoch : int
            Passes that are complete, on which the draws depend.
        """
        block, solver = self._load(number), self._solver
        key = solver.key((epoch + 1) * _BLOCKS_MAX + number)
        swept = self._sweeper.sweep(block, solver.priors, solver.counts, self._rows, key)
        self._drop(block, number, changed=True)
        return swept

    def optimize(self) -> None:
        """Fit the priors to the topics that tokens have now (``kernels.topic_priors``)."""
        priors, model = self._solver.priors, self._model
        if model.optimize in ("alpha", "both"):
            tallies = topic_priors.Tallies.of(priors.topics)
            for number in range(self.blocks):
                block = self._load(number)
                lists, heads = self._sweeper.list(block)
                topic_priors.tally_documents(
                    lists, heads, block.lengths, tallies.counts, tallies.lengths
                )
                self._drop(block, number)
            topic_priors.fit_alpha(priors.alpha, tallies.counts, tallies.lengths)
        if model.optimize in ("beta", "both"):
            held: I64 = np.zeros(topic_priors.BINS, np.int64)
            topic_priors.tally_words(self._solver.counts, self._rows, priors.topics, held)
            priors.beta = float(
                topic_priors.fit_beta(priors.beta, held, priors.totals, len(self._rows))
            )

    # ---------------------------------------------------------------- how well, and whether all

    def held_out(self) -> tuple[F32, F32]:
        """Return of held-out documents the logarithms of how probable they are, and of how much.

        Every other token is predicted from the rest, by all lanes.

        Returns
        -------
        float32[documents], float32[documents]
            See ``kernels.mixtures.complete``.
        """
        places, bounds = self._held
        count = len(bounds) - 1
        scores: F32 = np.zeros(count, np.float32)
        tokens: F32 = np.zeros(count, np.float32)
        priors, lanes = self._solver.priors, self._sweeper.lanes
        alpha, beta, inverse, _ = priors.arrays()
        marks = np.searchsorted(bounds, np.linspace(0, bounds[-1], lanes + 1)).astype(np.int64)
        marks[0], marks[-1] = 0, count

        def work(lane: int) -> None:
            complete(
                bounds, marks[lane], marks[lane + 1], places, self._solver.counts, priors.topics,
                alpha, beta, inverse, room(3 * kernels.SPREAD, np.float32).reshape(3, -1), scores,
                tokens,
            )  # fmt: skip

        self._sweeper.each(work)
        return scores, tokens

    def check(self) -> None:
        """Raise RunError where counts do not add up to the tokens."""
        totals, found = self._solver.priors.totals, self._solver.recount()
        if not np.array_equal(totals, found) or int(totals.sum()) != self.tokens:
            raise RunError(
                f"counts of topics are {int(found.sum()):,} by word and {int(totals.sum()):,} by "
                f"topic, but there are {self.tokens:,} tokens",
                hint="the snapshot is of other documents, or this is a defect",
            )

    def topics(self) -> dict[str, Any]:
        """Return the topics of all tokens, uint16[...] by block, as copies: for a snapshot."""
        held: dict[str, Any] = {}
        for number in range(self.blocks):
            block = self._load(number)
            held[str(number)] = block.tokens.astype(np.uint16)
            self._drop(block, number)
        return held

    def close(self) -> None:
        """Let go of tokens, lanes and file."""
        self._reader.shutdown()
        self._sweeper.close()
        self._spill.close()
        self._blocks.clear()
