"""Directories that outlive a loss of power, and locks on them that die with their process."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from streamlearn.errors import ResourceError

__all__ = [
    "DirectoryLock",
    "fsync_directory",
    "locked",
    "make_directory",
    "open_directory",
    "remove",
    "sweep",
]


class DirectoryLock:
    """Keeps a second process from writing in the same output directory, until released or dead.

    Parameters
    ----------
    directory : Path
        Made where missing; the lock is on ``.lock`` in it, which also says who holds it.

    Raises
    ------
    ResourceError
        Another process holds it (says which), or the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / ".lock"
        try:
            make_directory(directory)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceError(f"cannot write in {directory}", cause=error.strerror) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError as error:
            owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip()
            os.close(self._fd)
            self._fd = -1
            if isinstance(error, BlockingIOError):
                raise ResourceError(
                    f"{directory} is being written by {owner or 'another process'}",
                    hint="stop that process or choose another output directory",
                ) from error
            raise ResourceError(f"cannot lock {path}", cause=error.strerror) from error

    def release(self) -> None:
        """Let another process have the directory; again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def open_directory(path: Path) -> int:
    """Return a descriptor of a directory, to lock or to bring to disk."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def fsync_directory(path: Path) -> None:
    """Bring the names in a directory to disk."""
    fd = open_directory(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory whose name lasts."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        fsync_directory(path.parent)


def locked(path: Path) -> int:
    """Return a descriptor that holds a directory alone; BlockingIOError where someone uses it."""
    fd = open_directory(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sweep(partial: Path) -> None:
    """Remove what a dead writer left; BlockingIOError where the writer lives."""
    if partial.exists():
        fd = locked(partial)
        try:
            remove(partial)
        finally:
            os.close(fd)


def remove(directory: Path) -> None:
    """Remove a directory of files as far as the system lets us; what stays is swept later."""
    with suppress(OSError):
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
