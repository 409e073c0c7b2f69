"""What a shard of a topic model holds beside rows: the topic of every token of its words.

The counts of words by topic are sums over tokens, and change only as tokens go from one topic to
another: a push says which topic each token of a minibatch is to have, and what it had stands here.
So counts always are those of the topics that are kept here, whatever was lost or came twice, and
belong to one cut with them.

A single pass over the source (``model.epochs = 1``, and sources that go on) keeps no topics: its
tokens are added and never moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from streamlearn import columns, topic_columns
from streamlearn.compute.kernels import topic_priors
from streamlearn.compute.kernels import topic_pushes as kernels
from streamlearn.compute.kernels import words as words_kernels
from streamlearn.config import LdaConfig
from streamlearn.errors import ColumnError, RefusedError
from streamlearn.messages import F64, I32, I64, U32, U64
from streamlearn.protocol import FollowTopics, Mark, PushTopics
from streamlearn.shards.cut import Keeper
from streamlearn.shards.table import ExactTable
from streamlearn.topic_columns import NO_TOPIC, U16

__all__ = [
    "FIT_FROM",
    "Kept",
    "Minibatch",
    "Moves",
    "Prior",
    "TopicStore",
    "minibatches_of",
    "pieces_of",
]

_LOW: Final = np.uint64(0xFFFFFFFF)
_DIM: Final = np.uint64(48)
_PREFIX: Final = np.uint64(56)
_LINE: Final = np.uint64((1 << 48) - 1)
_LINE_INTS: Final = 16
# Of topics that go into one message or file of an image.
_PIECE_BYTES: Final = 4 << 20
# The pass from which on priors are fitted, from 0: not before topics have taken shape.
FIT_FROM: Final = 10
_NONE: Final[U16] = np.zeros(0, np.uint16)


class Kept(NamedTuple):
    """Topics of a minibatch's tokens: of the shard's words that have topics, in their order.

    Attributes
    ----------
    prefixes : uint32[prefixes of the shard]
        How many are of words with each prefix.
    topics : uint16[n]
    """

    prefixes: U32
    topics: U16


class Minibatch(NamedTuple):
    """What is kept of one minibatch."""

    partition: str
    sequence: int
    kept: Kept


@dataclass(frozen=True, slots=True)
class Moves:
    """A push of topics, decoded.

    Attributes
    ----------
    tokens : uint32[n]
        Of each word in the minibatch.
    documents : uint32[n] or None
        That have the word; None: nothing is to be counted.
    there : int64[n]
        Not 0: topics of the word's tokens come.
    topics : uint16[m]
    fit : float64[topics + 1] or [0]
        Sums by which alpha is fitted.
    """

    tokens: U32
    documents: U32 | None
    there: I64
    topics: U16
    fit: F64


class Prior(msgspec.Struct, forbid_unknown_fields=True):
    """Alpha while it is fitted, a step of its fixed point in each pass.

    Attributes
    ----------
    alpha : list of float
        By topic.
    sums : list of float
        See ``compute.kernels.topic_fits``: of the minibatches of the pass that is made.
    epoch : int
        That pass.
    """

    alpha: list[float]
    sums: list[float]
    epoch: int = 0

    def add(self, epoch: int, fit: F64) -> None:
        """Add the sums of a minibatch; the first of a pass makes the step of the one before."""
        if epoch > self.epoch:
            whole = self.sums[-1]
            if self.epoch >= FIT_FROM and whole > 0:
                self.alpha = [
                    min(max(alpha * part / whole, topic_priors.ALPHA_MIN), topic_priors.ALPHA_MAX)
                    for alpha, part in zip(self.alpha, self.sums[:-1], strict=True)
                ]
            self.sums = [0.0] * len(self.sums)
            self.epoch = epoch
        if epoch == self.epoch and len(fit):
            self.sums = [one + more for one, more in zip(self.sums, fit.tolist(), strict=True)]


class TopicStore:
    """Topics of tokens, and the sums that go with the counts of words.

    Parameters
    ----------
    model : LdaConfig
    table : ExactTable
        With an arena.
    prefixes : tuple of int
        Top bytes of the shard's keys, ``[low, high)``.
    first : bool
        Whether it is the first shard's, where alpha is fitted.

    Attributes
    ----------
    chosen : bool
        Whether it is settled which words have topics.
    totals : int64[topics]
        Tokens of each topic.
    words : int
        With topics.
    online : bool
        Whether topics are not kept, since there is one pass.
    kept : dict
        By partition, of each of its minibatches; None: it has none yet.
    prior : Prior or None
        Alpha, where it is fitted here.
    """

    def __init__(
        self, model: LdaConfig, table: ExactTable, prefixes: tuple[int, int], *, first: bool
    ) -> None:
        assert table.arena is not None
        self.online = model.epochs == 1
        self.chosen = self.online
        self.prior: Prior | None = None
        if first and not self.online and model.optimize in ("alpha", "both"):
            self.prior = Prior([model.alpha_0] * model.topics, [0.0] * (model.topics + 1))
        self._tallies_beta = not self.online and model.optimize in ("beta", "both")
        self._tallied: tuple[int, I64] = (-1, np.zeros(0, np.int64))
        self.totals: I64 = np.zeros(model.topics, np.int64)
        self.words = 0
        self.kept: dict[str, list[Kept | None]] = {}
        self._model = model
        self._table = table
        self._arena = table.arena
        self._low, self._high = prefixes

    @property
    def topics(self) -> int:
        """How many there are."""
        return len(self.totals)

    @property
    def counts(self) -> I32:
        """Memory of all words' counts."""
        counts: I32 = self._arena.values.view(np.int32)
        return counts

    @property
    def nbytes(self) -> int:
        """Bytes of the topics of tokens."""
        return sum(one.topics.nbytes for many in self.kept.values() for one in many if one)

    # ---------------------------------------------------------------- reading

    def read(
        self, slots: I64, partition: str, epoch: int, sequence: int, documents: int
    ) -> dict[str, Any]:
        """Return what PulledTopics says of words beside which they are, as keywords.

        Parameters
        ----------
        slots : int64[n]
            -1: none.
        documents : int
            That were counted.
        """
        places = self._places(slots)
        if self.online:  # those that have turned out to be in too many documents are left out
            df = self._table.words[np.maximum(slots, 0) * 4 + 2] & _LOW
            places[df.astype(np.int64) > self._model.df_most(documents)] = -1
        there = np.where(places >= 0, self.topics, 0)
        kept = self._kept_of(partition, sequence)
        return {
            "lengths": columns.encode_lengths(there, (self.topics,)).data,
            "vectors": topic_columns.encode_rows(
                self.counts, places[places >= 0], self.topics
            ).data,
            "words": self.words,
            "totals": topic_columns.encode_totals(self.totals.copy()).data,
            "topics": topic_columns.encode_topics(kept, self.topics).data,
            "alpha": _bytes_of([] if self.prior is None else self.prior.alpha),
            "tallies": self._tallies(epoch).view(np.uint8).data,
        }

    def _tallies(self, epoch: int) -> I64:
        """Return how often each count stands in the rows, as of the beginning of a pass."""
        if not self._tallies_beta or epoch < FIT_FROM:
            return np.zeros(0, np.int64)
        if self._tallied[0] != epoch:
            tallied: I64 = np.zeros(topic_priors.BINS, np.int64)
            for segment in self._table.key_order():
                rows = self._table.rows(segment)
                held = rows[rows[:, 3] >> _DIM != 0, 3]
                places = (held & _LINE).astype(np.int64) * _LINE_INTS
                topic_priors.tally_words(self.counts, places, self.topics, tallied)
            self._tallied = epoch, tallied
        return self._tallied[1]

    def _places(self, slots: I64) -> I64:
        """Return where the counts of rows begin; -1: they have none."""
        places: I64 = np.empty(len(slots), np.int64)
        words_kernels.places_of(slots, self._table.words, places)
        return places

    def _kept_of(self, partition: str, sequence: int) -> U16:
        kept = self.kept.get(partition, [])
        one = kept[sequence - 1] if 0 < sequence <= len(kept) else None
        return _NONE if one is None else one.topics

    # ---------------------------------------------------------------- pushes

    def decode(self, push: PushTopics) -> Moves:
        """Decode a push.

        Raises
        ------
        ColumnError
            A column is not what it must be, or a minibatch has other tokens than it had.
        """
        if len(push.values) or len(push.vectors):
            raise ColumnError("a push of topics has no gradients")
        tokens = columns.decode_counts(push.counts, push.count)
        documents = None
        if len(push.documents):
            documents = columns.decode_counts(push.documents, push.count)
        there = columns.decode_lengths(push.lengths, push.count, (self.topics,))
        total = int(tokens[there != 0].sum(dtype=np.uint64))
        topics = topic_columns.decode_topics(push.topics, total, self.topics, whole=True)
        if not self.online and push.mark.epoch:
            had = len(self._kept_of(push.mark.partition, push.mark.sequence))
            if had and had != total:
                raise ColumnError(
                    f"minibatch {push.mark.sequence} of {push.mark.partition} has topics of "
                    f"{had} tokens, but those of {total} come"
                )
            if documents is not None:
                raise ColumnError("words are counted in the first pass only")
        fit: F64 = np.zeros(0, np.float64)
        if len(push.fit):
            if self.prior is None:
                raise ColumnError("no prior is fitted here")
            fit = topic_columns.decode_floats(push.fit, self.topics + 1)
        return Moves(tokens, documents, there, topics, fit)

    def count(self, slots: I64, moves: Moves, documents: int, minute: int, keeper: Keeper) -> None:
        """Count the words of a push; where topics are not kept, words may earn some by it.

        Parameters
        ----------
        slots : int64[n]
        documents : int
            That are counted by now.
        """
        assert moves.documents is not None
        kernels.count_words(
            self._table.words, slots, moves.tokens, moves.documents, np.uint64(minute),
            *keeper.arguments(len(slots)),
        )  # fmt: skip
        if not self.online:
            return
        rows = self._table.rows_at(slots)
        df = (rows[:, 2] & _LOW).astype(np.int64)
        earned = (rows[:, 3] >> _DIM == 0) & (df >= self._model.min_df)
        self._give(slots[earned & (df <= self._model.df_most(documents))], keeper)

    def move(self, slots: I64, keys: U64, moves: Moves, mark: Mark, keeper: Keeper) -> None:
        """Give the tokens of a minibatch the topics that a push says."""
        if not len(moves.topics) and self.online:
            return
        old = _NONE if self.online else self._kept_of(mark.partition, mark.sequence)
        new = moves.topics.copy()
        lines = min(2 * len(new), len(slots) * -(-self.topics // _LINE_INTS))
        kernels.move_topics(
            self._table.words, slots, moves.there, moves.tokens, old, new, self.counts,
            self._arena.words, self.totals, *keeper.vector_lines.arguments(lines),
        )  # fmt: skip
        if self.prior is not None:
            self.prior.add(mark.epoch, moves.fit)
        if self.online or not len(new):
            return
        own = np.where(moves.there != 0, moves.tokens, 0)
        at = (keys >> _PREFIX).astype(np.int64) - self._low
        prefixes = np.bincount(at, own, self._high - self._low).astype(np.uint32)
        kept = self.kept.setdefault(mark.partition, [])
        kept.extend([None] * (mark.sequence - len(kept)))
        kept[mark.sequence - 1] = Kept(prefixes, new)

    def check_room(self, documents: int) -> None:
        """Refuse to choose words for whose counts there is no room.

        Raises
        ------
        RefusedError
        """
        lines = self._arena.geometry.tiers.lines(self.topics)
        count = len(self._wanted(documents))
        need = count * lines * 64
        if need + self._arena.nbytes > self._arena.bytes_max:
            raise RefusedError(
                f"counts of {count:,} words in {self.topics:,} topics take {need:,} bytes, more "
                "than this shard's part of tables.embeddings_bytes_max, "
                f"{self._arena.bytes_max:,}",
                hint="raise it, add shards, or keep fewer words: model.min_df, model.max_df",
                code="full",
            )

    def choose(self, documents: int, keeper: Keeper) -> None:
        """Give topics to the words that may have some, as of all that was counted."""
        if not self.chosen:
            self._give(self._wanted(documents), keeper)
            self.chosen = True

    def _wanted(self, documents: int) -> I64:
        table, wanted = self._table, [np.zeros(0, np.uint64)]
        for segment in table.key_order():
            rows = table.rows(segment)
            df = (rows[:, 2] & _LOW).astype(np.int64)
            may = (df >= self._model.min_df) & (df <= self._model.max_df * documents)
            wanted.append(np.sort(rows[may & (rows[:, 3] >> _DIM == 0), 0]))
        slots: I64 = table.find(np.concatenate(wanted))
        return slots

    def _give(self, slots: I64, keeper: Keeper) -> None:
        """Give words counts of zero, as far as there is room."""
        if not len(slots):
            return
        saving, *cut = keeper.arguments(len(slots))
        if saving:
            kernels.keep_lines(self._table.words, slots, *cut)
        arena = self._arena
        self.words += int(
            words_kernels.give_rows(
                slots, self.topics, arena.geometry.layout, self._table.words, arena.used,
                arena.live, arena.room,
            )
        )  # fmt: skip
        arena.advise()

    # ---------------------------------------------------------------- as a whole

    def pieces(self) -> Iterator[FollowTopics]:
        """Yield all topics of tokens, in pieces; of this moment, whatever is pushed meanwhile."""
        kept = {name: list(many) for name, many in sorted(self.kept.items())}
        return pieces_of(
            Minibatch(name, sequence, one)
            for name, many in kept.items()
            for sequence, one in enumerate(many, 1)
            if one is not None
        )

    def put(self, piece: FollowTopics) -> None:
        """Add a piece that :meth:`pieces` yielded; raises ColumnError."""
        for partition, sequence, one in minibatches_of(piece, self._high - self._low):
            if np.any((one.topics >= self.topics) & (one.topics != NO_TOPIC)):
                raise ColumnError(f"a topic is not below {self.topics}")
            kept = self.kept.setdefault(partition, [])
            if sequence <= len(kept):
                raise ColumnError(f"topics of {partition} come twice")
            kept.extend([None] * (sequence - 1 - len(kept)))
            kept.append(one)

    def recount(self) -> None:
        """Sum up what the rows say, as they were loaded."""
        self.totals[:] = 0
        self.words = 0
        counts = self.counts
        for segment in self._table.key_order():
            rows = self._table.rows(segment)
            rows = rows[rows[:, 3] >> _DIM != 0]
            self.words += len(rows)
            for place in ((rows[:, 3] & _LINE).astype(np.int64) * _LINE_INTS).tolist():
                self.totals += counts[place : place + self.topics]

    def digested(self) -> Iterator[bytes]:
        """Yield bytes that are equal for equal states."""
        yield repr((self.chosen, self.words, self.prior)).encode()
        yield self.totals.tobytes()
        for name, many in sorted(self.kept.items()):
            yield name.encode()
            for one in many:
                yield b"-" if one is None else one.prefixes.tobytes() + one.topics.tobytes()


def minibatches_of(piece: FollowTopics, width: int) -> list[Minibatch]:
    """Return the minibatches of a piece of a shard that has ``width`` prefixes.

    Raises
    ------
    ColumnError
        It is not whole minibatches.
    """
    if len(piece.prefixes) % (4 * width) or len(piece.topics) % 2 or not piece.first:
        raise ColumnError("a piece of topics is not whole minibatches")
    prefixes = np.frombuffer(piece.prefixes, np.uint32).reshape(-1, width)
    topics = np.frombuffer(piece.topics, np.uint16)
    sizes = prefixes.sum(axis=1, dtype=np.int64)
    if len(topics) != int(sizes.sum()) or not sizes.all():
        raise ColumnError(f"a piece has {len(topics)} topics, but names {sizes.tolist()[:9]}")
    ends = np.cumsum(sizes)
    return [
        Minibatch(
            piece.partition, piece.first + at, Kept(one.copy(), topics[end - size : end].copy())
        )
        for at, (one, end, size) in enumerate(zip(prefixes, ends, sizes, strict=True))
    ]


def pieces_of(minibatches: Iterable[Minibatch]) -> Iterator[FollowTopics]:
    """Yield minibatches in pieces, which a message or a file holds each.

    Parameters
    ----------
    minibatches : iterable of Minibatch
        Those of a partition together, ascending.
    """
    some: list[Minibatch] = []
    size = 0

    def piece() -> FollowTopics:
        return FollowTopics(
            some[0].partition,
            some[0].sequence,
            np.concatenate([one.kept.prefixes for one in some]).view(np.uint8).data,
            np.concatenate([one.kept.topics for one in some]).view(np.uint8).data,
        )

    for one in minibatches:
        follows = some and (one.partition, one.sequence) == (
            some[-1].partition,
            some[-1].sequence + 1,
        )
        if some and (not follows or size >= _PIECE_BYTES):
            yield piece()
            some, size = [], 0
        some.append(one)
        size += one.kept.topics.nbytes
    if some:
        yield piece()


def _bytes_of(numbers: Sequence[float]) -> memoryview:
    return np.array(numbers, np.float64).view(np.uint8).data
