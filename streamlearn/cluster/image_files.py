"""Images of a shard on their way into a snapshot's files, written part by part in a lane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from streamlearn.config import JobConfig
from streamlearn.errors import SnapshotError
from streamlearn.protocol import FollowTopics
from streamlearn.shards.cut import Part
from streamlearn.shards.disk import Disk
from streamlearn.shards.image import ImageMeta, snapshot_meta, write_part, write_topics
from streamlearn.shards.snapshot import SnapshotWriter, next_sequence, prune

__all__ = ["ImageFiles"]

# Parts of an image waiting to be written: 8 MB each.
_PARTS_WAITING_MAX: Final = 2


class Posted(Protocol):
    """A lane, as far as images need it."""

    def post(self, work: Callable[[], None]) -> None:
        """Run work after all that was posted before."""
        ...


class ImageFiles:
    """An image's way into a snapshot's files; it is called in the requests' lane.

    Parameters
    ----------
    root : Path
        Of the snapshots.
    disk : Disk
    job : JobConfig
    lane : Posted
        Where parts are written.
    loop : AbstractEventLoop

    Attributes
    ----------
    meta : ImageMeta or None
        Of the image, once it has begun.
    taken : Future
        Done once all parts are on their way to the disk; fails where one cannot be written.
    """

    def __init__(
        self,
        root: Path,
        disk: Disk,
        job: JobConfig,
        lane: Posted,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.meta: ImageMeta | None = None
        self.taken: asyncio.Future[None] = loop.create_future()
        self._root = root
        self._disk = disk
        self._job = job
        self._lane = lane
        self._loop = loop
        self._waiting = 0
        self._pieces = 0
        self._writer: SnapshotWriter | None = None
        self._error: SnapshotError | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes another part now."""
        return self._waiting < _PARTS_WAITING_MAX

    @property
    def gone(self) -> bool:
        """Whether it was given up."""
        return self._error is not None

    def begin(self, meta: ImageMeta) -> None:
        """Begin with the image of this moment."""
        self.meta = meta

    def part(self, part: Part) -> None:
        """Have a part written."""
        self._waiting += 1
        self._lane.post(lambda: self._write(lambda to: write_part(to, part, f"{part.number:03d}")))

    def topics(self, piece: FollowTopics) -> None:
        """Have topics of tokens written."""
        self._waiting += 1
        number, self._pieces = self._pieces, self._pieces + 1
        self._lane.post(lambda: self._write(lambda to: write_topics(to, piece, number)))

    def end(self) -> None:
        """Have all of it."""
        self._lane.post(lambda: self._tell(self._error))

    def _write(self, write: Callable[[SnapshotWriter], None]) -> None:
        try:
            if self._error is None:
                write(self._opened())
        except SnapshotError as error:
            self._error = error
            self._tell(error)
        finally:
            self._waiting -= 1

    def _tell(self, error: SnapshotError | None) -> None:
        def tell() -> None:
            if not self.taken.done():
                if error is not None:
                    self.taken.set_exception(error)
                else:
                    self.taken.set_result(None)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(tell)

    def _opened(self) -> SnapshotWriter:
        if self._writer is None:
            root, disk = self._root, self._disk
            try:
                self._writer = SnapshotWriter(root, next_sequence(root, disk), disk=disk)
            except OSError as error:
                raise SnapshotError(f"cannot read {root}", cause=error.strerror) from error
        return self._writer

    def commit(self, now: float) -> dict[str, Any]:
        """Write the rest and give the snapshot its name; in the snapshots' lane."""
        assert self.meta is not None
        writer = self._opened()
        path = writer.commit(snapshot_meta(self.meta, self._job, now))
        with suppress(OSError, SnapshotError):  # it is there: what is left is done after the next
            prune(
                writer.root,
                self._job.output.snapshots_kept,
                trusted=writer.sequence,
                disk=self._disk,
            )
        size = sum(blob.size for blob in writer.blobs.values())
        return {
            "sequence": writer.sequence,
            "path": str(path),
            "bytes": size,
            "lsn": self.meta.lsn,
            "created_seconds": now,
        }
