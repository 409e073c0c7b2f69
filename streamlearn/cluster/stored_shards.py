"""The shards of a cluster as they lie on disk: all of them, at one moment of the stream.

A cluster's shards stand in ``OUT/shards/000-of-002`` and so on. Their newest snapshots make a whole
where all shards have applied the same, which is so once they have drained: then nothing is in
their logs that is not in the snapshots, and the marks of all say the same.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import numpy as np

from streamlearn.config import JobConfig
from streamlearn.errors import ClusterError, SnapshotError
from streamlearn.messages import U32
from streamlearn.protocol import Mark, Push, decode
from streamlearn.shards.cut import Part
from streamlearn.shards.directory import DirectoryLock
from streamlearn.shards.disk import RealDisk
from streamlearn.shards.image import ROWS, ImageMeta, read_meta, read_part, read_topics
from streamlearn.shards.log import Log
from streamlearn.shards.recovery import LOG, SNAPSHOTS
from streamlearn.shards.shard import prefixes_of
from streamlearn.shards.snapshot import SnapshotReader, newest
from streamlearn.shards.topics import Kept, Minibatch, minibatches_of

__all__ = [
    "SHARDS",
    "StoredShards",
    "counts_of_shards",
    "only_shards",
    "shard_directory",
]

SHARDS: Final = "shards"
# Of a mark, what depends on the stream alone.
_PLACE: Final = (
    *("partition", "version", "epoch", "sequence", "offset", "records", "done"),
    *("examples", "bad_records", "subsampled", "bytes"),
)
_NAME: Final = re.compile(r"(\d{3})-of-(\d{3})")


def shard_directory(directory: Path, index: int, of: int) -> Path:
    """Return the directory of a shard in a cluster's output directory."""
    return directory / SHARDS / f"{index:03d}-of-{of:03d}"


def counts_of_shards(directory: Path) -> list[int]:
    """Return for which numbers of shards there is any state, ascending."""
    root = directory / SHARDS
    if not root.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in root.iterdir() if any(path.iterdir()))
    return sorted({int(match[2]) for match in found if match})


def only_shards(directory: Path) -> int:
    """Return for how many shards there is state.

    Raises
    ------
    ClusterError
        For none, or for several numbers of them.
    """
    found = counts_of_shards(directory)
    if len(found) != 1:
        numbers = " and of ".join(map(str, found)) or "no"
        raise ClusterError(
            f"{directory} has the state of {numbers} shards",
            hint=f"each shard's directory stands in {directory / SHARDS}, as 000-of-002"
            + ("; remove those that do not count" if found else ""),
        )
    return found[0]


class StoredShards:
    """The newest snapshots of all shards; locked while this is open, so that none is running.

    Parameters
    ----------
    directory : Path
        The cluster's output directory.
    of : int
        How many shards there are.

    Attributes
    ----------
    images : list of ImageMeta
        What each holds beside rows.
    marks : list of Mark
        What all have applied, by partition.
    skipped : list of str
        A sentence for each snapshot that is newer and not whole.

    Raises
    ------
    ClusterError
        A shard is missing, has more in its log than in its snapshot, or has applied something else
        than the others: start them once more and let them drain.
    SnapshotError
        No snapshot of a shard is whole.
    ResourceError
        A shard is running.
    """

    def __init__(self, directory: Path, of: int) -> None:
        self.directory = directory
        self.of = of
        self.skipped: list[str] = []
        self._open = ExitStack()
        try:
            self._readers = [self._reader(index) for index in range(of)]
            self.images = [read_meta(reader) for reader in self._readers]
            for index in range(of):
                self._check(index)
        except BaseException:
            self._open.close()
            raise
        self.marks: list[Mark] = self.images[0].marks

    @property
    def job(self) -> JobConfig:
        """The job that the first shard ran with."""
        reader = self._readers[0]
        reader.require(kind=reader.kind, keys=("job",))
        try:
            return msgspec.convert(reader.meta["job"], JobConfig)
        except msgspec.ValidationError as error:
            raise SnapshotError(
                f"snapshot {reader.path} was written by another version", cause=str(error)
            ) from error

    @property
    def features(self) -> int:
        """Rows of all shards."""
        return sum(image.features for image in self.images)

    def parts(self) -> Iterator[Part]:
        """Yield the rows of all shards in parts, all in the order of their keys."""
        for reader in self._readers:
            names = [name for name in reader.sizes if name.startswith(ROWS) and reader.sizes[name]]
            last = 0
            for name in sorted(names, key=lambda name: _first_key(reader, name)):
                part = read_part(reader, name.removeprefix(ROWS))
                keys = part.rows[:, 0]
                if int(keys[0]) <= last or np.any(keys[1:] <= keys[:-1]):
                    raise SnapshotError(
                        f"snapshot {reader.path}: the keys of '{name}' do not ascend"
                    )
                last = int(keys[-1])
                yield part

    def _reader(self, index: int) -> SnapshotReader:
        path = shard_directory(self.directory, index, self.of)
        if not path.is_dir():
            raise ClusterError(
                f"shard {index} of {self.of} is missing: there is no {path}",
                hint="put it back, or start over in another --out",
            )
        lock = DirectoryLock(path)
        self._open.callback(lock.release)
        reader, skipped = newest(path / SNAPSHOTS)
        self.skipped += skipped
        if reader is None:
            raise self._undrained(index, "; ".join(skipped) or "it has no snapshot")
        self._open.callback(reader.close)
        return reader

    def _check(self, index: int) -> None:
        image, first = self.images[index], self.images[0]
        if image.signature != first.signature or image.shard != (index, self.of):
            raise ClusterError(
                f"{self._readers[index].path} is of job {image.signature}, shard {image.shard[0]} "
                f"of {image.shard[1]}; expected job {first.signature}, shard {index} of {self.of}"
            )
        if (pushes := self._pushes_behind(index, image)) > 0:
            raise self._undrained(index, f"its log has {pushes:,} pushes behind its snapshot")
        if any(map(_differ, image.marks, first.marks)) or len(image.marks) != len(first.marks):
            raise self._undrained(index, _difference(index, image.marks, first.marks))

    def _pushes_behind(self, index: int, image: ImageMeta) -> int:
        """Count the pushes that a shard's log has and its snapshot has not."""
        path = shard_directory(self.directory, index, self.of) / LOG
        if not path.is_dir() or not any(path.iterdir()):
            return 0
        identity = f"{image.signature} shard {index} of {self.of}"
        log = Log.open(RealDisk(), str(path), identity, after=image.lsn)
        try:
            return sum(isinstance(decode(body), Push) for _, body in log.read(image.lsn))
        finally:
            log.close()

    def _undrained(self, index: int, why: str) -> ClusterError:
        return ClusterError(
            f"the {self.of} shards in {self.directory} have not drained",
            cause=f"shard {index}: {why}",
            hint=f"start them once more (streamlearn up … --shards {self.of}) and let them drain",
        )

    def topics(self) -> Iterator[tuple[str, int, Kept]]:
        """Yield the topics of tokens of all minibatches (partition, number, those of all shards).

        Where some are of no shard they are left out.
        """
        each = [self._topics_of(index) for index in range(self.of)]
        merged = heapq.merge(*each, key=lambda one: (one[1].partition, one[1].sequence, one[0]))
        for (partition, sequence), many in groupby(
            merged, lambda one: (one[1].partition, one[1].sequence)
        ):
            prefixes: U32 = np.zeros(256, np.uint32)
            topics = []
            for index, one in many:
                low, high = prefixes_of(index, self.of)
                prefixes[low:high] = one.kept.prefixes
                topics.append(one.kept.topics)
            yield partition, sequence, Kept(prefixes, np.concatenate(topics))

    def _topics_of(self, index: int) -> Iterator[tuple[int, Minibatch]]:
        low, high = prefixes_of(index, self.of)
        for piece in read_topics(self._readers[index]):
            for one in minibatches_of(piece, high - low):
                yield index, one

    def close(self) -> None:
        """Let go of the shards."""
        self._open.close()

    def __enter__(self) -> StoredShards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _first_key(reader: SnapshotReader, name: str) -> int:
    pieces: Any = reader.stream(name)
    try:
        return int(next(pieces)[:8].view(np.uint64)[0])
    finally:
        pieces.close()


def _differ(one: Mark | None, other: Mark | None) -> bool:
    """Say whether marks are of different moments of the stream.

    Losses may differ: a minibatch that came to one shard, and after a crash once more for the other
    alone, was scored with other weights then.
    """
    if one is None or other is None:
        return one is not other
    return any(getattr(one, name) != getattr(other, name) for name in _PLACE)


def _difference(index: int, marks: Sequence[Mark], others: Sequence[Mark]) -> str:
    """Say where two shards differ first."""
    mine, theirs = ({mark.partition: mark for mark in one} for one in (marks, others))
    for name in sorted(mine.keys() | theirs.keys()):
        one, two = mine.get(name), theirs.get(name)
        if _differ(one, two):
            return f"it has applied {_at(one)} of {name}, shard 0 {_at(two)}"
    return f"its marks are in another order than those of shard 0, not {index}"


def _at(mark: Mark | None) -> str:
    return f"{mark.sequence} minibatches of pass {mark.epoch}" if mark else "nothing"
