"""Topics over a local table of words: words are counted, documents judged, and learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.compute.kernels import mixtures, words
from streamlearn.compute.kernels.esca import DOCUMENTS_MAX, GONE, SPREAD
from streamlearn.config import LdaConfig
from streamlearn.errors import ResourceError, SnapshotError, TableFullError
from streamlearn.messages import F32, I32, I64, U8, U32, U64
from streamlearn.online.fm import Keeper
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.recent import Recent
from streamlearn.online.topic_blocks import Priors, Sweeper, arranged, room

__all__ = ["LdaScratch", "LdaSolver", "ReadDocuments", "numbers_of"]

_LOW: Final = np.uint64(0xFFFFFFFF)
_HIGH: Final = np.uint64(32)
# Of a row's word 3: how many counts there are.
_DIM: Final = np.uint64(48)
# Of a half-life: how long documents are drawn again, of which nothing is forgotten meanwhile.
_RECENT_SHARE: Final = 0.25
# Half-lives that pass before counts are thinned: a pass over all of them.
_THINNED_AT_ONCE: Final = 0.02
# What draws are keyed by: beside it the number of what is drawn.
_SEED: Final = 0x1DA


class ReadDocuments(NamedTuple):
    """Documents of a minibatch that were read; views, valid while they are told of.

    Attributes
    ----------
    keys : uint64[n]
        Of the tokens' words.
    numbers : uint32[n]
        Of the words, from 0 on; 2**32 - 1: none.
    bounds : int64[documents + 1]
    held : uint8[documents]
        Whether each is held out.
    """

    keys: U64
    numbers: U32
    bounds: I64
    held: U8


class LdaScratch:
    """Buffers of one learning lane.

    Parameters
    ----------
    rows_max, nnz_max : int
        Of the minibatches that it will see.

    Attributes
    ----------
    scores : float32[rows_max]
        Of the last minibatch's documents: the logarithm of how probable each was.
    fresh : uint8[rows_max]
        How many words of each document were new.
    """

    def __init__(self, rows_max: int, nnz_max: int) -> None:
        self.state: I64 = np.zeros(8, np.int64)
        self.scores: F32 = np.zeros(rows_max, np.float32)
        self.fresh: U8 = np.zeros(rows_max, np.uint8)
        self.held: U8 = np.zeros(rows_max, np.uint8)
        self.numbers: U32 = np.zeros(nnz_max, np.uint32)
        self.slots: U32 = np.zeros(nnz_max, np.uint32)
        self.mixing = room(3 * SPREAD, np.float32).reshape(3, SPREAD)


def numbers_of(columns: U64) -> U32:
    """Return the numbers in rows' word 1 (uint64[n]), from 1 on; 0: none."""
    return (columns >> _HIGH).astype(np.uint32)


class LdaSolver:
    """Counts words on a table of exact keys, and learns the topics of documents.

    Parameters
    ----------
    model : LdaConfig
    table : ExactTable
        With an arena of one number for each topic, which is taken for an integer.

    Attributes
    ----------
    online : bool
        Whether a document is learned when it comes; else words are only counted, and
        :attr:`recorder` is told of what was read.
    counting : bool
        As of other solvers; words are counted whenever documents are learned.
    recorder : callable or None
        Told of each minibatch once it is read (:class:`ReadDocuments`).
    priors : Priors
    documents : int
        That have been learned, or whose words were counted.
    topics_of : callable or None
        Gives the topics of all tokens for a snapshot, by name, where further passes have some.

    Notes
    -----
    A row of the table is as ``kernels.words`` has it; its counts in the arena are int32. A snapshot
    must be taken before more is learned: no old lines are kept of counts.
    """

    def __init__(self, model: LdaConfig, table: Any) -> None:
        self.table = table
        self.online = model.epochs == 1
        self.counting = True
        self.recorder: Callable[[ReadDocuments], None] | None = None
        self.topics_of: Callable[[], Mapping[str, Any]] | None = None
        topics = model.topics
        self.priors = Priors(
            np.full(topics, model.alpha_0), model.topic_word_prior, np.zeros(topics, np.int64)
        )
        self._model = model
        self._below = np.uint64(round(model.held_out * 2.0**32))
        self._sums: I64 = np.zeros(4, np.int64)
        self._stamps: U32 = np.zeros(1024, np.uint32)
        self._numbered = False
        self._sweeper: Sweeper | None = None
        self._drawn = 0
        self._recent = Recent(
            model.draws,
            int(model.half_life * _RECENT_SHARE),
            lambda keys: self.places_at(table.find(keys)),
        )
        self._thinned = 0.0
        self._evicted = 0

    # ---------------------------------------------------------------- as of every solver

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> LdaScratch:
        """Return buffers for a lane that learns or scores."""
        return LdaScratch(rows_max, nnz_max)

    def learn(self, batch: Minibatch, scratch: LdaScratch, keeper: Keeper, tick: int) -> F32:
        """Judge each document, then learn it; return the logarithms of their probabilities.

        Parameters
        ----------
        batch : Minibatch
            Its weights are set to the tokens that each logarithm is of.
        tick : int
            As for ``LogisticSolver.learn``.

        Raises
        ------
        TableFullError
            As for ``LogisticSolver.learn``.
        """
        count = batch.nnz
        keys = batch.keys[:count]
        slots = self.table.find(keys)
        while (slots < 0).any():
            missing = np.unique(keys[slots < 0])
            if not self.table.would_fit(len(missing)):
                missing = np.unique(keys)
            found = self.table.find(missing)
            self.table.insert(missing, found, keeper)
            slots = self.table.find(keys)
        scratch.slots[:count] = slots
        return self.learn_resolved(batch, scratch.slots, scratch, keeper, tick)

    def learn_resolved(
        self, batch: Minibatch, slots: U32, scratch: LdaScratch, keeper: Keeper, tick: int
    ) -> F32:
        """Judge and learn a minibatch whose rows are known; see :meth:`learn`.

        Parameters
        ----------
        slots : uint32[nnz]
            Of the minibatch's keys in the table.
        """
        s, rows, count = scratch, batch.rows, batch.nnz
        bounds = batch.indptr[: rows + 1]
        self._number(count)
        words.set_aside(batch.keys, bounds, rows, self._below, s.held)
        if self._sums[3] + rows > int(_LOW):
            self._stamps.fill(0)
            self._sums[3] = 0
        count_documents: Any = words.count_documents  # see ``learn`` of other solvers
        count_documents(
            bounds, rows, s.held, slots, self.table.words, self._sums, self._stamps,
            np.uint64(tick), s.scores, batch.weights, s.fresh, s.numbers,
            *keeper.arguments(count),
        )  # fmt: skip
        if self.online:
            self._judge(batch, slots[:count].astype(np.int64), s)
            self._teach(batch, slots, s)
        if self.recorder is not None:
            self.recorder(
                ReadDocuments(batch.keys[:count], s.numbers[:count], bounds, s.held[:rows])
            )
        return s.scores[:rows]

    def score(self, batch: Minibatch, scratch: LdaScratch) -> F32:
        """Predict every other token of documents from the rest; see ``kernels.mixtures``.

        The minibatch's weights are set to the tokens that were predicted.
        """
        self._judge(batch, self.table.find(batch.keys[: batch.nnz]), scratch)
        return scratch.scores[: batch.rows]

    def weights(self, columns: U64) -> F32:
        """Return how many tokens there were of words, from their columns (uint64[n])."""
        return (columns & _LOW).astype(np.float32)

    @property
    def intercept(self) -> float:
        """There is none."""
        return 0.0

    # ---------------------------------------------------------------- what was learned

    @property
    def documents(self) -> int:
        """Documents that have been learned, or whose words were counted."""
        return int(self._sums[2])

    @property
    def numbers(self) -> int:
        """Words that were ever numbered."""
        self._number(0)
        return int(self._sums[0])

    @property
    def counts(self) -> I32:
        """Memory of all words' counts, int32[...]."""
        counts: I32 = self.table.arena.values.view(np.int32)
        return counts

    def vocabulary(self) -> tuple[U64, I64]:
        """Return keys (uint64[V]) and slots (int64[V]) of the words that have topics, by key."""
        keys = [np.zeros(0, np.uint64)]
        for segment in self.table.key_order():
            rows = self.table.rows(segment)
            keys.append(np.sort(rows[rows[:, 3] >> _DIM != 0, 0]))
        held = np.concatenate(keys)
        return held, self.table.find(held)

    def places_at(self, slots: I64) -> I64:
        """Return where the counts of rows begin in :attr:`counts`; -1: they have none."""
        places: I64 = np.empty(len(slots), np.int64)
        words.places_of(slots, self.table.words, places)
        return places

    def counts_at(self, keys: U64) -> I32:
        """Return the counts of words by topic, int32[n, topics]; zeros for those without."""
        places = self.places_at(self.table.find(keys))
        out: I32 = np.zeros((len(keys), self._model.topics), np.int32)
        has = places >= 0
        out[has] = self.counts[places[has, None] + np.arange(self._model.topics)]
        return out

    def phi_at(self, keys: U64) -> F32:
        """Return the probability of words in each topic, float32[n, topics]."""
        priors = self.priors
        norm = priors.totals + max(priors.words, 1) * priors.beta
        return ((self.counts_at(keys) + priors.beta) / norm).astype(np.float32)

    def recount(self) -> I64:
        """Return how many tokens each topic has by the counts of words, int64[topics]."""
        topics, counts = self._model.topics, self.counts
        total: I64 = np.zeros(topics, np.int64)
        _, slots = self.vocabulary()
        for place in self.places_at(slots).tolist():
            total += counts[place : place + topics]
        return total

    def state(self) -> dict[str, Any]:
        """Return what a snapshot keeps beside the table, as copies."""
        priors = self.priors
        return {
            "alpha": priors.alpha.copy(),
            "beta": np.array([priors.beta]),
            "totals": priors.totals.copy(),
            "sums": self._sums.copy(),
            "drawn": np.array([self._drawn, priors.words], np.int64),
            "thinned": np.array([self._thinned]),
            **self._recent.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned.

        Raises
        ------
        SnapshotError
            An array is missing or has another size.
        """
        topics = self._model.topics
        sizes = {"alpha": topics, "beta": 1, "totals": topics, "sums": 4, "drawn": 2, "thinned": 1}
        for name, size in sizes.items():
            if name not in state or state[name].size != size:
                raise SnapshotError(f"solver's {name!r} is missing or not of {size} numbers")
        beta = float(state["beta"][0])
        self.priors = Priors(
            state["alpha"].astype(np.float64), beta, state["totals"].astype(np.int64)
        )
        self._sums[:] = state["sums"]
        self._sums[3] = 0
        self._drawn, self.priors.words = (int(number) for number in state["drawn"])
        self._thinned = float(state["thinned"][0])
        self._recent.restore(state)

    def look_up(self, batch: Minibatch) -> tuple[ReadDocuments, int]:
        """Return a minibatch as :attr:`recorder` was told of it when it was learned.

        Returns
        -------
        ReadDocuments
        int
            Tokens of documents that are not held out whose words the table does not hold.
        """
        rows, count = batch.rows, batch.nnz
        bounds = batch.indptr[: rows + 1]
        numbers, held = np.empty(count, np.uint32), np.empty(rows, np.uint8)
        words.set_aside(batch.keys, bounds, rows, self._below, held)
        words.look_up(self.table.find(batch.keys[:count]), count, self.table.words, numbers)
        unknown = (numbers == GONE) & (np.repeat(held, np.diff(bounds)) == 0)
        return ReadDocuments(batch.keys[:count], numbers, bounds, held), int(unknown.sum())

    def give_counts(self, slots: I64) -> None:
        """Give words a count for each topic, zeros, where they have none.

        Raises
        ------
        ResourceError
            There is no room for so many: ``tables.embeddings_bytes_max``.
        """
        arena = self.table.arena
        done = words.give_rows(
            slots, self._model.topics, arena.geometry.layout, self.table.words, arena.used,
            arena.live, arena.room,
        )  # fmt: skip
        arena.advise()
        if done < len(slots):
            need = len(slots) * arena.geometry.tiers.lines(self._model.topics) * 64
            raise ResourceError(
                f"counts of {len(slots):,} words in {self._model.topics:,} topics take {need:,} "
                f"bytes, more than tables.embeddings_bytes_max = {arena.bytes_max:,}",
                hint="raise it, or keep fewer words: model.min_df, model.max_df, "
                "model.vocabulary_max",
            )

    def key(self, number: int) -> int:
        """Return what the draws of a number are keyed by."""
        return ((_SEED << 40) + number) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF

    # ---------------------------------------------------------------- documents as they come

    def _number(self, count: int) -> None:
        """Make ready to number as many words as a minibatch may bring."""
        if not self._numbered:
            self._numbered = True
            most = 0
            for segment in self.table.key_order():
                numbers = numbers_of(self.table.rows(segment)[:, 1])
                most = max(most, int(numbers.max(initial=0)))
            self._sums[0] = max(most, int(self._sums[0]))
        need = int(self._sums[0]) + count + 1
        if need > len(self._stamps):
            stamps: U32 = np.zeros(2 * need, np.uint32)
            stamps[: len(self._stamps)] = self._stamps
            self._stamps = stamps

    def _judge(self, batch: Minibatch, slots: I64, s: LdaScratch) -> None:
        """Write of each document how probable every other of its tokens is."""
        priors, rows = self.priors, batch.rows
        alpha, beta, inverse, _ = priors.arrays()
        mixtures.complete(
            batch.indptr, 0, rows, self.places_at(slots), self.counts, priors.topics, alpha, beta,
            inverse, s.mixing, s.scores, batch.weights,
        )  # fmt: skip

    def _teach(self, batch: Minibatch, slots: U32, s: LdaScratch) -> None:
        """Learn the documents of a minibatch: draw their tokens' topics, and count them in."""
        table, rows, count = self.table, batch.rows, batch.nnz
        lengths = np.diff(batch.indptr[: rows + 1]).astype(np.int32)
        mine = np.repeat(s.held[:rows] == 0, lengths)
        numbers, first = np.unique(s.numbers[:count][mine], return_index=True)
        if not len(numbers):
            return
        chosen = slots[:count][mine][first].astype(np.int64)
        df = (table.words[chosen * 4 + 2] & _LOW).astype(np.int64)
        self._forget(rows)
        wanted = (df >= self._model.min_df) & (df <= self._model.df_most(self.documents))
        self._admit(chosen[wanted], df[wanted])
        known = wanted & (self.places_at(chosen) >= 0)
        if not known.any():
            return
        keys = table.words[chosen[known] * 4]
        dense: U32 = np.full(int(numbers[-1]) + 1, GONE, np.uint32)
        dense[numbers[known]] = np.arange(len(keys), dtype=np.uint32)
        if self._sweeper is None:
            self._sweeper = Sweeper(1)
        tokens = np.where(mine, dense[np.where(mine, s.numbers[:count], numbers[0])], GONE)
        kept = tokens != GONE
        sizes = np.bincount(np.repeat(np.arange(rows), lengths)[kept], minlength=rows)
        words_of, bounds = tokens[kept], np.concatenate([[0], np.cumsum(sizes)])
        for start in range(0, rows, DOCUMENTS_MAX):
            end = min(start + DOCUMENTS_MAX, rows)
            part = words_of[bounds[start] : bounds[end]]
            self._draw(part, sizes[start:end].astype(np.int32), keys)

    def _draw(self, tokens: U32, sizes: I32, keys: U64) -> None:
        """Draw topics of documents, uint32[n] places in ``keys``, and count them."""
        assert self._sweeper is not None
        block = arranged(tokens, sizes, len(keys), 0)
        block.divide(1)
        self._recent.add(block, keys, self.priors, self.counts, self._sweeper, self._next_key)

    def _next_key(self) -> int:
        self._drawn += 1
        return self.key(self._drawn)

    def _admit(self, slots: I64, df: I64) -> None:
        """Give counts to words that have earned some, the most frequent first."""
        new = self.places_at(slots) < 0
        if not new.any():
            return
        most = self._model.vocabulary_max or len(slots) + self.priors.words
        order = np.argsort(-df[new], kind="stable")[: max(0, most - self.priors.words)]
        some = slots[new][order]
        try:
            self.give_counts(some)
        except ResourceError as error:
            raise TableFullError(error.message, hint=error.hint) from error
        self.priors.words += len(some)

    def _forget(self, documents: int) -> None:
        """Let old counts go, and notice what a full table has forgotten."""
        evicted = int(self.table.evicted)
        if evicted != self._evicted:
            self._evicted = evicted
            self._recent.drop_words()
            self.priors.totals[:] = self.recount()
            self.priors.words = len(self.vocabulary()[0])
        if not self._model.half_life:
            return
        self._thinned += documents / self._model.half_life
        if self._thinned < _THINNED_AT_ONCE:
            return
        kept = 2.0**-self._thinned
        self._thinned = 0.0
        _, slots = self.vocabulary()
        self._recent.take_off(self.priors, self.counts)
        words.thin(
            self.counts, self.places_at(slots), self._model.topics, np.float32(kept),
            np.uint64(self._next_key()), self.priors.totals,
        )  # fmt: skip
        self._recent.put_back(self.priors, self.counts)
