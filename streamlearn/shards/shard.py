"""A shard: a range of a table's keys, and how far every partition has been applied to it.

A deterministic state machine whose only input is its log: the same records in the same order give
the same bytes, whatever was read in between. Reads change nothing (rows are made by pushes), time
comes from ``Tick`` records, and exactly-once from the marks, which belong to the state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, Literal, cast

import numpy as np

from streamlearn import columns
from streamlearn.compute.kernels.rules import v_rates_of
from streamlearn.config import JobConfig, LdaConfig, LrConfig, MfConfig
from streamlearn.errors import ColumnError, RefusedError
from streamlearn.messages import F32, I64, U8, U32, U64
from streamlearn.protocol import Choose, Join, Leave, Mark, Push, PushFactors, PushTopics, Tick
from streamlearn.shards.arena import Arena, split_slots
from streamlearn.shards.clock import Clocks
from streamlearn.shards.cut import Keeper, Nothing
from streamlearn.shards.rules import Updater
from streamlearn.shards.table import ExactTable
from streamlearn.shards.topics import Moves, TopicStore

__all__ = ["INTERCEPT_KEY", "Gradients", "Located", "Shard", "ShardSpec", "Verdict", "prefixes_of"]

# The constant feature that every example has: the least odd number, so it leads the list that it is
# in, and it is the first shard's.
INTERCEPT_KEY: Final = 1
# Segments looked at for rows past their time, at each tick: all of them within an hour or so.
_SEGMENTS_A_TICK: Final = 4

_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)
Verdict = Literal["next", "duplicate", "gap"]
Record = Push | Join | Leave | Tick | Choose


def prefixes_of(index: int, of: int) -> tuple[int, int]:
    """Return the top bytes ``[low, high)`` of the keys that shard ``index`` of ``of`` holds."""
    return 256 * index // of, 256 * (index + 1) // of


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """What a shard is, beside its contents.

    Attributes
    ----------
    index, of : int
        It is shard ``index`` of ``of``.
    job : JobConfig
        Whose model and tables it holds.
    signature : str
        Of the job: what workers and shards must agree on.
    features_max : int
        Rows at most.
    embeddings_bytes_max : int
        Memory of embeddings at most.
    """

    index: int
    of: int
    job: JobConfig
    signature: str
    features_max: int
    embeddings_bytes_max: int = 1 << 40

    @property
    def prefixes(self) -> tuple[int, int]:
        """Top bytes ``[low, high)`` of its keys."""
        return prefixes_of(self.index, self.of)

    @property
    def low(self) -> int:
        """The least key that it may hold."""
        return self.prefixes[0] << 56

    @property
    def high(self) -> int:
        """The greatest key that it may hold."""
        return (self.prefixes[1] << 56) - 1

    @property
    def identity(self) -> str:
        """What stands in its files: another shard's, or another job's, are not taken for them."""
        return f"{self.signature} shard {self.index} of {self.of}"


@dataclass(frozen=True, slots=True)
class Located:
    """Keys and where their rows were when somebody looked.

    Attributes
    ----------
    keys : uint64[n]
        Ascending.
    slots : int64[n]
        -1 where the table has no row.
    generations : int64[256]
        Of the table then.
    """

    keys: U64
    slots: I64
    generations: I64


@dataclass(frozen=True, slots=True)
class Gradients:
    """A push, decoded.

    Attributes
    ----------
    values : float32[n]
        Gradients of weights.
    counts : uint32[n] or None
        Occurrences.
    dims : int64[n] or None
        How many coordinates of each key's embedding ``vectors`` has gradients of; None: no model
        with embeddings.
    vectors : float32[m]
        As ``Arena.pull`` lays them out.
    items, shares : int64[n], uint8[2 * n], or None
        Of matrix factorization: 1 for items, 0 for users; how much of each row is kept before what
        is sent is added (``compute.kernels.mf_steps``).
    topics : Moves or None
        Of a topic model: all of it.
    """

    values: F32
    counts: U32 | None
    dims: I64 | None = None
    vectors: F32 = field(default_factory=lambda: _NO_VECTORS)
    items: I64 | None = None
    shares: U8 | None = None
    topics: Moves | None = None


class Shard:
    """The state: a table, marks, clocks and the minute.

    Parameters
    ----------
    spec : ShardSpec
    table : ExactTable, optional
        Of the spec's prefixes; by default an empty one.

    Attributes
    ----------
    marks : dict
        By partition.
    lsn : int
        Number of the last record applied.
    minute : int
        Since the epoch, by the last tick.
    pushes, duplicates : int
        Applied, and dropped since they had been, by this object.
    topics : TopicStore or None
        Of a topic model.
    """

    def __init__(self, spec: ShardSpec, table: ExactTable | None = None) -> None:
        job = spec.job
        self.spec = spec
        self.table = table if table is not None else self.new_table(spec)
        self.updater = Updater.of(job.model)
        self._tiers = job.model.tiers if not isinstance(job.model, LrConfig) else None
        self._v_rates = _NO_VECTORS
        if not isinstance(job.model, LrConfig):
            self._v_rates = v_rates_of(*job.model.v_rates)
        self.marks: dict[str, Mark] = {}
        self.clocks = Clocks()
        self.lsn = 0
        self.minute = 0
        self.pushes = 0
        self.forgotten = 0
        self.keeper: Keeper = Nothing()  # of the cut that is open
        self._ttl_minutes = int(-(-job.tables.ttl_seconds // 60))
        self.topics: TopicStore | None = None
        if isinstance(job.model, LdaConfig):
            first = spec.index == 0
            self.topics = TopicStore(job.model, self.table, spec.prefixes, first=first)

    @staticmethod
    def new_table(spec: ShardSpec, rows: int = 0) -> ExactTable:
        """Return an empty table for a shard, laid out for ``rows`` rows."""
        tables = spec.job.tables
        when_full = cast('Literal["error", "evict"]', tables.when_full)
        if rows:
            table = ExactTable.sized(
                rows, spec.features_max, when_full, prefixes=spec.prefixes,
                split_slots=split_slots(spec.job.model.tiers),
            )  # fmt: skip
        else:
            table = ExactTable(spec.features_max, when_full, prefixes=spec.prefixes)
        table.features_min = tables.features_min // spec.of
        if not isinstance(spec.job.model, LrConfig):
            Arena.of(table, spec.job.model, spec.embeddings_bytes_max)
        return table

    # ---------------------------------------------------------------- reading

    def locate(self, keys: U64) -> Located:
        """Find the rows of ascending keys."""
        generations = self.table.generations.copy()
        return Located(keys, self.table.find(keys), generations)

    def values(self, located: Located) -> F32:
        """Return the weight of each key, 0 where it has no row."""
        slots = located.slots
        has_intercept = len(slots) > 0 and int(located.keys[0]) == INTERCEPT_KEY
        out = np.empty(len(slots), np.float32)
        return self.updater.values(self.table, slots, has_intercept, out)

    def vectors(
        self, located: Located, weights: F32, coding: int, copied: I64 | None = None
    ) -> tuple[U8, U8]:
        """Return the lengths and the embeddings of keys whose weights were read, as they travel.

        Parameters
        ----------
        copied : int64[n], optional
            Not 0: whoever asks has a copy, and is sent none.

        Raises
        ------
        ValueError
            An embedding does not fit the coding.
        """
        arena = self.table.arena
        if arena is None or self._tiers is None or not len(located.keys):
            return columns.NOTHING, columns.NOTHING
        bare = int(located.keys[0]) == INTERCEPT_KEY
        dims = arena.lengths(located.slots, weights, bare)
        if copied is not None:
            dims[copied != 0] = 0
        lengths = columns.encode_lengths(dims, self._tiers.dims)
        if not len(lengths):
            return lengths, columns.NOTHING
        packed = arena.pull(located.slots, dims)
        return lengths, columns.encode_values(packed, coding & ~columns.SPARSE)

    # ---------------------------------------------------------------- what may be applied

    def verdict(self, mark: Mark) -> Verdict:
        """Say whether a minibatch comes next in its partition, has been applied, or leaves a gap.

        Raises
        ------
        RefusedError
            It has been applied, but ended elsewhere: whoever sent it cuts minibatches otherwise, or
            reads another content.
        """
        known = self.marks.get(mark.partition)
        at = (known.epoch, known.sequence) if known is not None else (0, 0)
        asked = (mark.epoch, mark.sequence)
        if known is not None and known.version != mark.version:
            raise RefusedError(
                f"{mark.partition} was begun as version {known.version}, but the push is of "
                f"version {mark.version}",
                code="invalid",
            )
        if asked <= at:
            if known is not None and asked == at and known.offset != mark.offset:
                raise RefusedError(
                    f"minibatch {mark.sequence} of {mark.partition} ended at byte {known.offset}, "
                    f"but the push ends it at {mark.offset}",
                    code="invalid",
                )
            return "duplicate"
        if known is None or known.done:
            follows = mark.sequence == 1 and mark.epoch == (known.epoch + 1 if known else 0)
        else:
            follows = mark.epoch == known.epoch and mark.sequence == known.sequence + 1
        return "next" if follows else "gap"

    def relocate(self, located: Located) -> Located:
        """Find rows again that were laid out anew since; the slots are written.

        Where room is short, also those that others have made since: how many are missing then
        decides what is refused or forgotten, and must not depend on when somebody looked.
        """
        table, keys, slots = self.table, located.keys, located.slots
        table.refresh(keys, slots, located.generations)
        unknown = np.flatnonzero(slots < 0)
        if len(unknown) and table.features + len(unknown) > table.features_max:
            slots[unknown] = table.find(keys[unknown])
        return Located(keys, slots, table.generations.copy())

    def check_fits(self, located: Located) -> None:
        """Refuse a push whose new rows the table has no room for; it is as it was.

        Parameters
        ----------
        located : Located
            As :meth:`relocate` returns it.

        Raises
        ------
        RefusedError
            The table is full.
        """
        missing = int(np.count_nonzero(located.slots < 0))
        if missing and not self.table.would_fit(missing, len(located.slots) - missing):
            raise RefusedError(
                f"shard {self.spec.index} is full: it holds {self.table.features:,} features of "
                f"at most {self.spec.features_max:,}, and {missing:,} more come",
                hint="raise tables.features_max, set tables.when_full = 'evict', or add shards",
                code="full",
            )

    # ---------------------------------------------------------------- applying the log

    def apply(
        self,
        lsn: int,
        record: Record,
        located: Located | None = None,
        gradients: Gradients | None = None,
    ) -> None:
        """Apply the log's next record.

        Parameters
        ----------
        lsn : int
            Its number, one more than the last.
        record : Push, Join, Leave, Tick or Choose
            A push must come next in its partition; others of it are passed over.
        located, gradients : optional
            A push's keys and columns, where they have been decoded before.

        Raises
        ------
        ColumnError
            A column is not what it must be: the log holds something that no shard wrote.
        """
        assert lsn == self.lsn + 1, (lsn, self.lsn)
        if isinstance(record, Push):
            if self.verdict(record.mark) == "next":
                keys = located or self.locate(self.decode_keys(record))
                told = gradients or self.decode_gradients(record)
                if told.topics is not None:
                    self._update_topics(keys, told.topics, record.mark)
                else:
                    self._update(keys, told)
                self.marks[record.mark.partition] = record.mark
                self.pushes += 1
            self.clocks.advance(record.worker, record.incarnation, record.clock)
        elif isinstance(record, Join):
            self.clocks.join(record.worker, record.incarnation, record.clock)
        elif isinstance(record, Leave):
            self.clocks.leave(record.worker, record.incarnation)
        elif isinstance(record, Choose):
            if self.topics is None:
                raise ColumnError(f"a Choose for a model {self.spec.job.model.kind}")
            self.topics.choose(self.documents, self.keeper)
        elif record.minute > self.minute:
            self.minute = record.minute
            if self._ttl_minutes:
                gone = self.table.expire(
                    self.minute, self._ttl_minutes, self.table.features_min, _SEGMENTS_A_TICK
                )
                self.forgotten += len(gone)
        self.lsn = lsn

    def decode_keys(self, push: Push) -> U64:
        """Decode a push's own keys; raises ColumnError."""
        return columns.decode_keys(push.keys, push.count, self.spec.low, self.spec.high)

    @property
    def documents(self) -> int:
        """Examples of all marks: of a topic model in its first pass, documents."""
        return sum(mark.examples for mark in self.marks.values())

    def _update_topics(self, located: Located, moves: Moves, mark: Mark) -> None:
        assert self.topics is not None
        if not len(located.keys):
            return
        located = self.relocate(located)
        if moves.documents is not None:
            self.table.insert(located.keys, located.slots, self.keeper)
            known = self.marks.get(mark.partition)
            documents = self.documents + mark.examples - (known.examples if known else 0)
            self.topics.count(located.slots, moves, documents, self.minute, self.keeper)
        if mark.epoch or self.topics.online:
            self.topics.move(located.slots, located.keys, moves, mark, self.keeper)

    def _update(self, located: Located, gradients: Gradients) -> None:
        if not len(located.keys):
            return
        located = self.relocate(located)
        keys, slots = located.keys, located.slots
        self.table.insert(keys, slots, self.keeper)
        has_intercept = int(keys[0]) == INTERCEPT_KEY
        arena = self.table.arena
        if arena is not None and gradients.items is not None and gradients.shares is not None:
            arena.ready(slots, gradients.items, gradients.shares, has_intercept, self.keeper)
        self.updater.push(
            self.table,
            slots,
            gradients.values,
            gradients.counts,
            self.minute,
            has_intercept,
            self.keeper,
        )
        if arena is not None and gradients.dims is not None:
            lines = self.keeper.vector_lines
            arena.push(slots, gradients.dims, gradients.vectors, self._v_rates, lines)
            if gradients.items is None:
                l1 = float(self.updater.rates[2])
                arena.admit(slots, l1, has_intercept, self.keeper, gradients.counts)

    def decode_gradients(self, push: Push) -> Gradients:
        """Decode a push's gradients and counts.

        Raises
        ------
        ColumnError
            A column is not what its count, coding and lengths say.
        """
        if isinstance(push, PushFactors) != isinstance(self.spec.job.model, MfConfig):
            raise ColumnError(f"a {type(push).__name__} for a model {self.spec.job.model.kind}")
        if isinstance(push, PushTopics) != (self.topics is not None):
            raise ColumnError(f"a {type(push).__name__} for a model {self.spec.job.model.kind}")
        if isinstance(push, PushTopics) and self.topics is not None:
            moves = self.topics.decode(push)
            return Gradients(np.zeros(push.count, np.float32), None, topics=moves)
        values = columns.decode_values(push.values, push.count, push.coding)
        if len(values) != push.count:
            raise ColumnError(f"{push.count} keys, but {len(values)} gradients")
        counts = columns.decode_counts(push.counts, push.count) if len(push.counts) else None
        if self._tiers is None:
            if len(push.lengths) or len(push.vectors):
                raise ColumnError("gradients of embeddings for a model without them")
            return Gradients(values, counts)
        dims = columns.decode_lengths(push.lengths, push.count, self._tiers.dims)
        total = int(dims.sum()) * self._tiers.parts
        vectors = columns.decode_values(push.vectors, total, push.coding & ~columns.SPARSE)
        items = shares = None
        if isinstance(push, PushFactors):
            items = columns.decode_lengths(push.items, push.count, (1,))
            shares = np.frombuffer(push.shares, np.uint8)
            if len(shares) != 2 * push.count:
                raise ColumnError(f"{len(shares)} shares for {push.count} keys, expected two each")
        return Gradients(values, counts, dims, vectors, items, shares)

    # ---------------------------------------------------------------- as a whole

    def digest(self) -> str:
        """Return a digest of rows, marks and clocks: equal for equal states."""
        digest, vectors = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        arena = self.table.arena
        for segment in self.table.key_order():
            rows = self.table.rows(segment)
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
            vectors.update((arena.take(rows) if arena is not None else _NO_VECTORS).tobytes())
            digest.update(rows.tobytes())
        digest.update(vectors.digest())
        for piece in self.topics.digested() if self.topics is not None else ():
            digest.update(piece)
        digest.update(repr([self.marks[name] for name in sorted(self.marks)]).encode())
        cursors = self.table.cursors.tolist()
        digest.update(repr((self.clocks.state(), self.minute, self.lsn, cursors)).encode())
        return digest.hexdigest()
