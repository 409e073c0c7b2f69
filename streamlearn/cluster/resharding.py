"""Resharding: the snapshots of N shards, drained at one moment, become those of M.

The new shards are written whole before anything says that they count, and the old ones are removed
only after that; which number counts is the caller's to note in between.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from streamlearn.cluster.stored_shards import SHARDS, StoredShards, shard_directory
from streamlearn.embeddings import Tiers
from streamlearn.errors import RunError
from streamlearn.shards.arena import Part, sliced
from streamlearn.shards.clock import Clocks
from streamlearn.shards.directory import fsync_directory
from streamlearn.shards.image import ImageMeta, snapshot_meta, write_part, write_topics
from streamlearn.shards.recovery import SNAPSHOTS
from streamlearn.shards.shard import prefixes_of
from streamlearn.shards.snapshot import SnapshotWriter
from streamlearn.shards.topics import Kept, Minibatch, pieces_of

__all__ = ["remove_shards", "reshard"]

# Of topics that a new shard holds until they are written.
_TOPICS_BYTES: Final = 16 << 20
_FIRST: Final = 1  # sequence of a new shard's first snapshot


def reshard(directory: Path, of: int, into: int, *, now: float) -> None:
    """Write the state of ``of`` shards as ``into`` shards beside them.

    A new shard begins with a snapshot and an empty log, at log record 0; what was applied of each
    partition, the minute and the clock that workers go on from are the old shards'.

    Parameters
    ----------
    directory : Path
        The cluster's output directory. What an earlier attempt left of ``into`` shards is removed.
    of, into : int
    now : float
        Seconds since the epoch.

    Raises
    ------
    ClusterError
        The old shards are not at one moment of the stream.
    SnapshotError
        A snapshot is damaged or cannot be written.
    """
    assert of != into
    with StoredShards(directory, of) as shards:
        remove_shards(directory, into)
        with ExitStack() as aborted:
            targets = [_Target(directory, index, into) for index in range(into)]
            for target in targets:
                aborted.callback(target.writer.abort)  # nothing happens after commit
            for part in shards.parts():
                for target in targets:
                    target.take(part, shards.job.model.tiers)
            for partition, sequence, kept in shards.topics():
                for target in targets:
                    target.take_topics(partition, sequence, kept)
            clocks = _clocks(shards.images)
            for target in targets:
                image = ImageMeta(
                    signature=shards.images[0].signature,
                    shard=(target.index, into),
                    lsn=0,
                    minute=max(image.minute for image in shards.images),
                    marks=shards.marks,
                    clocks=clocks,
                    features=target.features,
                    cursors=[target.low] * 2,
                    chosen=all(image.chosen for image in shards.images),
                    prior=shards.images[0].prior if target.index == 0 else None,
                )
                target.write_topics()
                target.writer.commit(snapshot_meta(image, shards.job, now))
        fsync_directory(directory / SHARDS)


def remove_shards(directory: Path, of: int) -> None:
    """Remove all of the state of ``of`` shards, where there is any.

    Raises
    ------
    RunError
        The system does not let it go.
    """
    for index in range(of):
        path = shard_directory(directory, index, of)
        try:
            if path.exists():
                shutil.rmtree(path)
        except OSError as error:
            raise RunError(f"cannot remove {path}", cause=error.strerror) from error


def _clocks(images: Sequence[ImageMeta]) -> dict[str, list[int]]:
    """Return clocks without members that go on from the highest there was."""
    highest = 0
    for image in images:
        clocks = Clocks()
        clocks.restore(image.clocks)
        highest = max(highest, clocks.highest)
    clocks = Clocks()
    clocks.restore({"": [0, highest]})
    return clocks.state()


class _Target:
    """A new shard being written."""

    def __init__(self, directory: Path, index: int, of: int) -> None:
        self.index = index
        self.low, self.high = prefixes_of(index, of)
        self.features = 0
        self.writer = SnapshotWriter(shard_directory(directory, index, of) / SNAPSHOTS, _FIRST)
        self._parts = self._pieces = 0
        self._topics: list[Minibatch] = []
        self._topics_bytes = 0

    def take(self, part: Part, tiers: Tiers | None) -> None:
        """Write the rows that are this shard's, of some in the order of keys."""
        prefixes = part.rows[:, 0] >> np.uint64(56)
        first, end = np.searchsorted(prefixes, np.array([self.low, self.high], np.uint64))
        if first < end:
            own = sliced(part, int(first), int(end), tiers)
            write_part(self.writer, own, f"{self._parts:03d}")
            self._parts += 1
            self.features += int(end - first)

    def take_topics(self, partition: str, sequence: int, kept: Kept) -> None:
        """Take a minibatch's topics that are this shard's, of all in the order of keys."""
        first = int(kept.prefixes[: self.low].sum())
        prefixes = kept.prefixes[self.low : self.high]
        topics = kept.topics[first : first + int(prefixes.sum())]
        if len(topics):
            self._topics.append(Minibatch(partition, sequence, Kept(prefixes, topics)))
            self._topics_bytes += topics.nbytes
        if self._topics_bytes > _TOPICS_BYTES:
            self.write_topics()

    def write_topics(self) -> None:
        """Write the topics that were taken."""
        for piece in pieces_of(self._topics):
            write_topics(self.writer, piece, self._pieces)
            self._pieces += 1
        self._topics, self._topics_bytes = [], 0
