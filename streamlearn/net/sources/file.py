"""Files, directories and globs on this machine."""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import stat
from collections.abc import Iterator
from typing import TypeAlias

from streamlearn.errors import ObjectChangedError, SourceError, SourceMissingError
from streamlearn.net.sources.blocks import Offload, settle
from streamlearn.net.sources.source import NothingMatchedError, StoredObject

__all__ = ["FileStore"]

# Names of no interest in a directory: hidden files, and what jobs leave beside their data
# (_SUCCESS, _metadata, _temporary/).
_MARKERS = (".", "_")


class FileStore:
    """What a path names: a file, all files below a directory, or whatever a glob matches.

    ``*``, ``?`` and ``[...]`` match within a name, ``**`` any number of directories. Below a
    directory, and by a glob that does not ask for them, names that begin with ``.`` or ``_`` are
    passed over. A path that exists is that path, whatever characters it has.

    Parameters
    ----------
    uri : str
        Path, or ``file://`` URL.
    offload : Offload
        Runs system calls, so that a slow disk never holds the loop.
    """

    ranged = True

    def __init__(self, uri: str, *, offload: Offload = asyncio.to_thread) -> None:
        self._uri = uri
        self._path = _absolute(uri)
        self._offload = offload

    async def list(self) -> _Objects:
        """List the files by path."""
        return await settle(self._offload(_files, self._uri, self._path))

    async def fetch(self, stored: StoredObject, start: int, into: memoryview) -> int:
        """Read straight into memory, and make sure that the file is still the one listed."""
        return await settle(self._offload(_read, stored, start, into))

    async def beside(self, uri: str) -> StoredObject | None:
        """Describe the file with a path; None where there is none."""
        return await settle(self._offload(_beside, uri))

    async def aclose(self) -> None:
        """Do nothing: no file stays open."""


_Objects: TypeAlias = list[StoredObject]  # within the class, `list` is the method


# Paths are kept as text here: there may be millions of them, and `..` and globs stay as they are.


def _absolute(uri: str) -> str:
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))  # noqa: PTH100, PTH111


def _files(uri: str, path: str) -> _Objects:
    try:
        listed = [_stored(path) for path in sorted(set(_paths(path)))]
    except OSError as error:
        raise _missing(uri, error) from error
    found = [stored for stored in listed if stored is not None]
    if not found:
        raise NothingMatchedError(
            f"no file matches {uri}",
            hint="names that begin with . or _ are passed over; quote globs in a shell",
        )
    return found


def _paths(path: str) -> Iterator[str]:
    if glob.has_magic(path) and not os.path.lexists(path):
        asked = {part for part in path.split("/") if part.startswith(_MARKERS)}
        for match in glob.iglob(path, recursive=True):  # noqa: PTH207
            markers = {part for part in match.split("/") if part.startswith(_MARKERS)}
            if not markers - asked or _name(path).startswith(_MARKERS):
                yield from _below(match, set())
        return
    os.stat(path)  # noqa: PTH116 -- says why, where it is not there
    yield from _below(path, set())


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _below(path: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the file, or the files below the directory; links are followed, but not in circles."""
    if not os.path.isdir(path):  # noqa: PTH112
        yield path
        return
    status = os.stat(path)  # noqa: PTH116
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(path) as entries:
        names = [entry.path for entry in entries if not entry.name.startswith(_MARKERS)]
    for name in names:
        yield from _below(name, seen)


def _stored(path: str) -> StoredObject | None:
    """Describe a regular file; None for anything else, and for what went away meanwhile."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return StoredObject(
        path, status.st_size, _version(status), status.st_mtime_ns / 1e9, settled=False
    )


def _beside(path: str) -> StoredObject | None:
    try:
        return _stored(path)
    except OSError as error:
        raise _missing(path, error) from error


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _read(stored: StoredObject, start: int, into: memoryview) -> int:
    try:
        fd = os.open(stored.uri, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _missing(stored.uri, error) from error
    try:
        count = 0
        while count < len(into):
            got = os.preadv(fd, [into[count:]], start + count)
            if got == 0:
                break
            count += got
        # Seen after reading: had it changed before, it would show as well.
        version = _version(os.fstat(fd))
    except OSError as error:
        raise SourceError(
            f"cannot read {stored.uri} at byte {start}", cause=_reason(error)
        ) from error
    finally:
        os.close(fd)
    if stored.version and version != stored.version:
        raise ObjectChangedError(
            f"{stored.uri} changed while it was read: size and time {version}, "
            f"expected {stored.version}",
            hint="start again once nobody writes to it, or use --follow, which waits for that",
        )
    return count


def _missing(uri: str, error: OSError) -> SourceMissingError:
    path = error.filename or uri
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"let this user read it: chmod +r {path}"
    return SourceMissingError(f"cannot open {path}", cause=_reason(error), hint=hint)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
