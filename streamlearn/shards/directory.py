"""Output directories: one writer at a time, and what dead writers left."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from streamlearn.errors import ResourceError
from streamlearn.shards.disk import REAL_DISK, Disk, Lock

__all__ = ["DirectoryLock", "fsync_directory", "remove", "sweep"]


class DirectoryLock:
    """Keeps a second process from writing in the same output directory, until released or dead.

    Parameters
    ----------
    directory : Path
        Made where missing; the lock is on ``.lock`` in it, which also says who holds it.
    disk : Disk, optional

    Raises
    ------
    ResourceError
        Another process holds it (says which), or the directory cannot be written.
    """

    def __init__(self, directory: Path, disk: Disk = REAL_DISK) -> None:
        path = directory / ".lock"
        self._lock: Lock | None = None
        try:
            disk.make_directory(directory)
            owner = f"process {os.getpid()} on {socket.gethostname()}"
            self._lock = disk.lock_file(path, owner.encode())
        except BlockingIOError as error:
            holder = disk.read(path, 0, 200).decode(errors="replace").strip()
            raise ResourceError(
                f"{directory} is being written by {holder or 'another process'}",
                hint="stop that process or choose another output directory",
            ) from error
        except OSError as error:
            raise ResourceError(f"cannot write in {directory}", cause=error.strerror) from error

    def release(self) -> None:
        """Let another process have the directory; again does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def fsync_directory(path: Path) -> None:
    """Bring the names in a directory to disk."""
    REAL_DISK.sync_directory(path)


def sweep(disk: Disk, partial: Path) -> None:
    """Remove what a dead writer left; BlockingIOError where the writer lives."""
    if disk.exists(partial):
        lock = disk.lock(partial)
        try:
            remove(disk, partial)
        finally:
            lock.release()


def remove(disk: Disk, directory: Path) -> None:
    """Remove a directory of files as far as the system lets us; what stays is swept later."""
    with suppress(OSError):
        for name in disk.names(directory):
            disk.remove(directory / name)
        disk.remove_directory(directory)
