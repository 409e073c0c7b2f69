"""The disk as shards see it: what a crash may take, and what it may not, said once.

Everything that must outlive a process goes through a :class:`Disk`, so that a test can stand one
in that loses power. The promises are those of POSIX and no more:

* bytes written to a file last once :meth:`File.sync` has returned, and so does a cut of it;
* a name (of a new file, a renamed or a removed one) lasts once :meth:`Disk.sync_directory` of the
  directory that holds it has returned; renaming is one step, whenever it happens;
* until then either may be there after a crash or not, in any order, and bytes may be there in part.

Errors are the system's own (``OSError``): what a failure means is for those who write to say.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

__all__ = ["REAL_DISK", "Buffer", "Disk", "File", "Lock", "RealDisk", "StrPath"]

StrPath: TypeAlias = str | os.PathLike[str]
# Bytes, or anything C-contiguous that has them.
Buffer: TypeAlias = Any

# POSIX promises 16 buffers a call and Linux takes 1024.
_BUFFERS_MAX = 1024


class File(Protocol):
    """A file open for appending.

    Attributes
    ----------
    size : int
        Bytes in it, after a failed write, too.
    """

    size: int

    def write(self, *buffers: Buffer) -> None:
        """Append the bytes of all buffers, in order; after an OSError a part of them may be there.

        Parameters
        ----------
        *buffers : bytes-like, C-contiguous
            Gathered by the system, not joined here; none is kept.
        """

    def sync(self) -> None:
        """Bring all bytes to disk. After an OSError nobody knows which are: give the file up."""

    def truncate(self, size: int) -> None:
        """Cut the file to its first ``size`` bytes; lasts with the next :meth:`sync`."""

    def close(self) -> None:
        """Let go of it, nothing synced; again does nothing."""


class Lock(Protocol):
    """Something held until it is let go or its process dies."""

    def release(self) -> None:
        """Let go; again does nothing."""


class Disk(Protocol):
    """Files and directories. All methods raise OSError as the system does."""

    def names(self, directory: StrPath) -> list[str]:
        """Return what stands in a directory, sorted."""

    def exists(self, path: StrPath) -> bool:
        """Say whether a file or directory is there."""

    def make_directory(self, directory: StrPath) -> None:
        """Make a directory and those above it where missing; its name lasts on return, old or new.

        What another process made and left before its name was on disk is brought there, too.
        """

    def remove_directory(self, directory: StrPath) -> None:
        """Remove an empty directory."""

    def sync_directory(self, directory: StrPath) -> None:
        """Make the names in a directory last."""

    def create(self, path: StrPath) -> File:
        """Make a new, empty file; FileExistsError where there is one."""

    def append(self, path: StrPath) -> File:
        """Open a file that is there, to go on at its end."""

    def read(self, path: StrPath, offset: int = 0, size: int = -1) -> bytes:
        """Return bytes of a file from ``offset`` on; fewer than ``size`` only at its end."""

    def read_into(self, path: StrPath, into: memoryview, offset: int = 0) -> int:
        """Fill memory from a file; return how many bytes, fewer than asked only at its end."""

    def size(self, path: StrPath) -> int:
        """Return a file's bytes."""

    def rename(self, path: StrPath, to: StrPath) -> None:
        """Give a file or directory another name; a file of that name is replaced in one step."""

    def remove(self, path: StrPath) -> None:
        """Remove a file."""

    def lock(self, directory: StrPath, *, shared: bool = False) -> Lock:
        """Hold a directory alone, or beside others; BlockingIOError where that cannot be now."""

    def lock_file(self, path: StrPath, text: bytes) -> Lock:
        """Hold a file alone, made where missing, its content ``text``; errors as :meth:`lock`."""


class RealDisk:
    """The file systems of this machine."""

    def names(self, directory: StrPath) -> list[str]:
        """Return what stands in a directory, sorted."""
        return sorted(path.name for path in Path(directory).iterdir())

    def exists(self, path: StrPath) -> bool:
        """Say whether a file or directory is there."""
        return Path(path).exists()

    def make_directory(self, directory: StrPath) -> None:
        """Make a directory and those above it where missing; the names last on return."""
        path = Path(directory)
        missing = []
        while not path.exists():
            missing.append(path)
            path = path.parent
        # Whoever made this one may have died before its name was on disk.
        with suppress(PermissionError):
            self.sync_directory(path.parent)
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self.sync_directory(path.parent)
        if not path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def remove_directory(self, directory: StrPath) -> None:
        """Remove an empty directory."""
        Path(directory).rmdir()

    def sync_directory(self, directory: StrPath) -> None:
        """Make the names in a directory last."""
        fd = _open_directory(directory)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def create(self, path: StrPath) -> RealFile:
        """Make a new, empty file; FileExistsError where there is one."""
        return RealFile(path, os.O_CREAT | os.O_EXCL)

    def append(self, path: StrPath) -> RealFile:
        """Open a file that is there, to go on at its end."""
        return RealFile(path, 0)

    def read(self, path: StrPath, offset: int = 0, size: int = -1) -> bytes:
        """Return bytes of a file from ``offset`` on; fewer than ``size`` only at its end."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            left = max(0, os.fstat(fd).st_size - offset)
            wanted = left if size < 0 else min(size, left)
            whole = os.pread(fd, wanted, offset)
            if len(whole) < wanted:  # more than 2 GiB, or a file that is being cut
                parts = [whole]
                done = len(whole)
                while done < wanted and (part := os.pread(fd, wanted - done, offset + done)):
                    parts.append(part)
                    done += len(part)
                whole = b"".join(parts)
            return whole
        finally:
            os.close(fd)

    def read_into(self, path: StrPath, into: memoryview, offset: int = 0) -> int:
        """Fill memory from a file; return how many bytes, fewer than asked only at its end."""
        into = into.cast("B")
        done = 0
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while done < len(into) and (count := os.preadv(fd, [into[done:]], offset + done)):
                done += count
        finally:
            os.close(fd)
        return done

    def size(self, path: StrPath) -> int:
        """Return a file's bytes."""
        return Path(path).stat().st_size

    def rename(self, path: StrPath, to: StrPath) -> None:
        """Give a file or directory another name; a file of that name is replaced in one step."""
        Path(path).rename(Path(to))

    def remove(self, path: StrPath) -> None:
        """Remove a file."""
        Path(path).unlink()

    def lock(self, directory: StrPath, *, shared: bool = False) -> FlockLock:
        """Hold a directory alone, or beside others; BlockingIOError where that cannot be now."""
        return FlockLock(_open_directory(directory), shared=shared)

    def lock_file(self, path: StrPath, text: bytes) -> FlockLock:
        """Hold a file alone, made where missing, its content ``text``; errors as :meth:`lock`."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        lock = FlockLock(fd, shared=False)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, text, 0)
        except BaseException:
            lock.release()
            raise
        return lock


class RealFile:
    """A file of this machine; made by :class:`RealDisk`."""

    def __init__(self, path: StrPath, flags: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
        self.size = 0 if flags & os.O_EXCL else os.fstat(self._fd).st_size

    def write(self, *buffers: Buffer) -> None:
        """Append the bytes of all buffers, in order; after an OSError a part of them may be there.

        Parameters
        ----------
        *buffers : bytes-like, C-contiguous
            Gathered by the system, not joined here; none is kept.
        """
        left = [view.cast("B") for buffer in buffers if (view := memoryview(buffer)).nbytes]
        while left:
            if len(left) == 1:
                written = os.write(self._fd, left[0])
            else:
                written = os.writev(self._fd, left[:_BUFFERS_MAX])
            self.size += written
            left = _behind(left, written)

    def sync(self) -> None:
        """Bring all bytes to disk. After an OSError nobody knows which are: give the file up."""
        os.fsync(self._fd)

    def truncate(self, size: int) -> None:
        """Cut the file to its first ``size`` bytes; lasts with the next :meth:`sync`."""
        os.ftruncate(self._fd, size)
        self.size = size

    def close(self) -> None:
        """Let go of it, nothing synced; again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class FlockLock:
    """A ``flock`` on a descriptor, which it owns: the kernel lets go of it when the process dies.

    Raises
    ------
    BlockingIOError
        Another holds it; the descriptor is closed.
    """

    def __init__(self, fd: int, *, shared: bool) -> None:
        self._fd = fd
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go; again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


REAL_DISK = RealDisk()


def _open_directory(path: StrPath) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _behind(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what is left of buffers behind their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
