"""Users that stand with the worker that reads them, where no user is in two objects.

The users of a partition are a shard by itself (:class:`streamlearn.shards.shard.Shard`), in the
process of the worker that learns the partition, without a log: rows, and the mark up to where the
partition is in them. It is kept in the worker's directory now and then, and when the partition
ends. Whoever goes on with the partition, a restarted worker or another one, begins with the newest
that it finds there or beside it, and from that mark on: minibatches that the shards have already
are dropped by them, as they are for a shard that came back with less. Where nothing is found it
begins at the first record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from streamlearn.config import JobConfig
from streamlearn.errors import ClusterError, RefusedError, SnapshotError, TableFullError
from streamlearn.messages import F32, I64, U8, U32, U64
from streamlearn.protocol import AnyMark, PushFactors
from streamlearn.shards.arena import dims_of
from streamlearn.shards.cut import Cut, Nothing, Part
from streamlearn.shards.image import (
    ImageMeta,
    load_image,
    read_meta,
    read_parts,
    snapshot_meta,
    write_part,
)
from streamlearn.shards.shard import Gradients, Located, Shard, ShardSpec
from streamlearn.shards.snapshot import (
    SnapshotReader,
    SnapshotWriter,
    newest,
    next_sequence,
    prune,
)
from streamlearn.tables import embeddings_bytes_max, features_max

__all__ = ["USERS", "Keeping", "StoredUsers", "Users", "furthest", "users_spec"]

# Of a worker's directory.
USERS: Final = "users"
_KEPT: Final = 2
# Share of users that may be in several objects: those at the edges of ranges, and no more.
_TWICE_MAX: Final = 0.01
_LOW: Final = np.uint64(0xFFFFFFFF)
_EMPTY: Final = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where a worker keeps users.

    Attributes
    ----------
    directory : Path
        The worker's own; those of others are beside it.
    now : callable
        Seconds since the epoch.
    """

    directory: Path
    now: Callable[[], float]


def users_spec(job: JobConfig, signature: str) -> ShardSpec:
    """Return what the users of a partition are: all keys, as many as there may be in all."""
    return ShardSpec(0, 1, job, signature, features_max(job), embeddings_bytes_max(job))


def furthest(directory: Path, partition: str, signature: str) -> SnapshotReader | None:
    """Return the snapshot of a partition's users that is furthest, of all workers' in a directory.

    One that is damaged, or of another job, is passed over. Whoever asks closes it.
    """
    best: tuple[tuple[int, int], SnapshotReader] | None = None
    for root in sorted(directory.glob(f"*/{USERS}/{_slug(partition)}")):
        reader, _ = newest(root)
        if reader is None:
            continue
        at = _at(reader, partition, signature)
        if at is None or (best is not None and at <= best[0]):
            reader.close()
            continue
        if best is not None:
            best[1].close()
        best = (at, reader)
    return best[1] if best is not None else None


def _at(reader: SnapshotReader, partition: str, signature: str) -> tuple[int, int] | None:
    try:
        meta = read_meta(reader)
    except SnapshotError:
        return None
    marks = [mark for mark in meta.marks if mark.partition == partition]
    if meta.signature != signature or not marks:
        return None
    return marks[0].epoch, marks[0].sequence


def _slug(partition: str) -> str:
    return hashlib.blake2b(partition.encode(), digest_size=16).hexdigest()


class Users:
    """The users of one partition.

    What is pulled, held and applied belongs to the step lane.

    Parameters
    ----------
    shard : Shard
    partition : str
    keeping : Keeping
    """

    def __init__(self, shard: Shard, partition: str, keeping: Keeping) -> None:
        self._shard = shard
        self._partition = partition
        self._keeping = keeping
        self._held: tuple[Located, Gradients] | None = None

    @classmethod
    def open(cls, spec: ShardSpec, partition: str, keeping: Keeping) -> Users:
        """Return those that are kept, or none yet.

        Raises
        ------
        SnapshotError
            What is kept is damaged.
        """
        reader = furthest(keeping.directory.parent, partition, spec.signature)
        if reader is None:
            return cls(Shard(spec), partition, keeping)
        with reader:
            return cls(load_image(reader, spec), partition, keeping)

    @property
    def mark(self) -> AnyMark | None:
        """Up to where the partition is in them; None: they have nothing of it."""
        return self._shard.marks.get(self._partition)

    def pull(self, keys: U64) -> tuple[F32, I64, F32]:
        """Return biases, how many factors each key has, and those, back to back.

        Parameters
        ----------
        keys : uint64[n]
            Ascending.
        """
        shard, arena = self._shard, self._shard.table.arena
        assert arena is not None
        located = shard.locate(keys)
        weights = shard.values(located)
        dims = arena.lengths(located.slots, weights, False)
        return weights, dims, arena.pull(located.slots, dims)

    def hold(
        self, keys: U64, weights: F32, counts: U32 | None, dims: I64, vectors: F32, shares: U8
    ) -> None:
        """Hold what a step made of them, until it is known where the partition stands then.

        Parameters are those of a push (``shards.shard.Gradients``), copied.
        """
        told = None if counts is None else counts.copy()
        items: I64 = np.zeros(len(keys), np.int64)
        gradients = Gradients(
            weights.copy(), told, dims.copy(), vectors.copy(), items, shares.copy()
        )
        self._held = (self._shard.locate(keys.copy()), gradients)

    def drop(self) -> None:
        """Forget what is held: its minibatch comes again."""
        self._held = None

    def apply(self, mark: AnyMark) -> None:
        """Apply what is held; nothing happens where the partition is beyond it.

        Raises
        ------
        TableFullError
            There is no room for so many users.
        """
        shard = self._shard
        held, self._held = self._held, None
        if shard.verdict(mark) != "next":
            return
        if held is None:  # a minibatch without records
            held = (shard.locate(np.zeros(0, np.uint64)), Gradients(np.zeros(0, np.float32), None))
        located, gradients = held
        located = shard.relocate(located)
        try:
            shard.check_fits(located)
        except RefusedError as error:
            most = shard.spec.features_max
            raise TableFullError(
                f"{self._partition} has more users than tables.features_max = {most:,}",
                hint=error.hint,
            ) from error
        record = PushFactors(
            0, "", 0, 0, 0, 0, 0, _EMPTY, 0, _EMPTY, _EMPTY, mark
        )  # what it has is decoded already
        shard.apply(shard.lsn + 1, record, located, gradients)

    def image(self) -> tuple[ImageMeta, list[Part]]:
        """Return a copy of all, of this moment."""
        shard = self._shard
        cut = shard.keeper = Cut(shard.table)
        parts = []
        while (part := cut.take()) is not None:
            parts.append(part)
        cut.close()
        shard.keeper = Nothing()
        return ImageMeta.of(shard), parts

    def save(self, image: tuple[ImageMeta, list[Part]]) -> None:
        """Keep what :meth:`image` returned; raises SnapshotError."""
        meta, parts = image
        root = self._keeping.directory / USERS / _slug(self._partition)
        with SnapshotWriter(root, next_sequence(root)) as writer:
            for part in parts:
                write_part(writer, part, f"{part.number:03d}")
            writer.commit(snapshot_meta(meta, self._shard.spec.job, self._keeping.now()))
        prune(root, _KEPT, trusted=writer.sequence)


class StoredUsers:
    """The users that workers have kept, of all partitions.

    Parameters
    ----------
    directory : Path
        Of the workers' directories.
    signature : str
        Of the job.
    marks : sequence of AnyMark
        What the shards have applied.

    Attributes
    ----------
    notes : list of str
        What was passed over, a sentence each.

    Raises
    ------
    ClusterError
        The users of a partition are missing or not where the shards are, or many are in several
        objects.
    """

    def __init__(self, directory: Path, signature: str, marks: Sequence[AnyMark]) -> None:
        self.notes: list[str] = []
        self._open = ExitStack()
        self._readers: list[SnapshotReader] = []
        try:
            for mark in marks:
                self._readers.append(self._reader(directory, signature, mark))
            self._owner = self._owners()
        except BaseException:
            self._open.close()
            raise

    def _reader(self, directory: Path, signature: str, mark: AnyMark) -> SnapshotReader:
        reader = furthest(directory, mark.partition, signature)
        if reader is not None:
            self._open.callback(reader.close)
        at = _at(reader, mark.partition, signature) if reader is not None else None
        if reader is None or at != (mark.epoch, mark.sequence):
            known = f"minibatch {at[1]} of pass {at[0]}" if at else "nothing"
            raise ClusterError(
                f"the workers in {directory} have users of {mark.partition} up to {known}, but the "
                f"shards are at minibatch {mark.sequence} of pass {mark.epoch}",
                hint="start them once more and let them drain; the workers' directories belong "
                "together",
            )
        return reader

    def _owners(self) -> dict[int, int]:
        """Return which partition's row counts of the users that several have, by key."""
        keys, counts, owners = [], [], []
        for number, reader in enumerate(self._readers):
            for part in read_parts(reader):
                keys.append(part.rows[:, 0])
                counts.append(part.rows[:, 2] & _LOW)
                owners.append(np.full(len(part.rows), number, np.int64))
        if not keys:
            return {}
        key, count, owner = (np.concatenate(arrays) for arrays in (keys, counts, owners))
        order = np.lexsort((-owner, count, key))  # of each key, that of most ratings is the last
        key, owner = key[order], owner[order]
        same = key[1:] == key[:-1]
        last = np.append(~same, True)
        several = np.append(False, same) & last
        twice, users = int(np.count_nonzero(several)), int(np.count_nonzero(last))
        if twice > _TWICE_MAX * users:
            raise ClusterError(
                f"{twice:,} of {users:,} users are in more than one object of the source",
                hint='`model.users = "worker"` is for sources that are split by user: leave it out',
            )
        if twice:
            self.notes.append(
                f"{twice:,} of {users:,} users are in more than one object of the source; of each "
                "the row that more ratings taught was taken"
            )
        return dict(zip(key[several].tolist(), owner[several].tolist(), strict=True))

    def parts(self) -> Iterator[Part]:
        """Yield the rows of all users in parts, each user once."""
        several = np.array(sorted(self._owner), np.uint64)
        for number, reader in enumerate(self._readers):
            for part in read_parts(reader):
                rows = part.rows
                stay = ~np.isin(rows[:, 0], several)
                for at in np.flatnonzero(~stay).tolist():
                    stay[at] = self._owner[int(rows[at, 0])] == number
                has = dims_of(rows[:, 3]) > 0
                vectors = part.vectors.reshape(int(np.count_nonzero(has)), -1)
                yield Part(part.number, rows[stay], vectors[stay[has]].reshape(-1))

    def close(self) -> None:
        """Let go of the snapshots."""
        self._open.close()

    def __enter__(self) -> StoredUsers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
