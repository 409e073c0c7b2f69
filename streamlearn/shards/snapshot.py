"""Snapshot files: a directory a snapshot, written streaming, atomic, never half-loaded.

``ROOT/000000000042/`` holds named binary files and ``manifest.json``, which is written last; the
directory is called ``000000000042.partial`` until every byte is on disk and then renamed. So a
directory without the suffix is whole unless its medium damaged it later, and that every reader
checks: the manifest before anything else, then each piece of a file before the piece is used.
Nothing here knows what is in the files, nor the time: both are the caller's.

Whoever writes or reads a snapshot holds a ``flock`` on its directory. The kernel drops it when the
process dies, which is how :func:`prune` tells a dead writer's leavings from a snapshot that is
being written.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from isal import isal_zlib

from streamlearn.errors import SnapshotError
from streamlearn.messages import U8
from streamlearn.shards import manifest as manifests
from streamlearn.shards.directory import (
    fsync_directory,
    locked,
    make_directory,
    open_directory,
)
from streamlearn.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    PIECE_BYTES,
    Blob,
    Manifest,
    OtherVersionError,
    is_blob_name,
    is_sequence,
)

__all__ = [
    "BlobWriter",
    "SnapshotReader",
    "SnapshotWriter",
    "listing",
    "newest",
    "next_sequence",
    "prune",
]

_PARTIAL: Final = ".partial"


class BlobWriter:
    """One named file of a snapshot being written; made by :meth:`SnapshotWriter.open`."""

    def __init__(self, snapshot: SnapshotWriter, name: str, piece_bytes: int) -> None:
        self._snapshot = snapshot
        self._name = name
        self._piece_bytes = piece_bytes
        self._crcs: list[int] = []
        self._crc = 0
        self._size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(snapshot.partial / name, flags, 0o644)

    def write(self, buffer: Any) -> None:
        """Append the bytes of a C-contiguous buffer or array of any type.

        Parameters
        ----------
        buffer : buffer
            Not kept; must not change until the call returns. Large ones are best: each call is at
            least one ``write``.

        Raises
        ------
        SnapshotError
            The disk is full or fails; the snapshot is then aborted.
        """
        assert self._fd >= 0, f"{self._name} is closed"
        data = np.frombuffer(buffer, np.uint8)
        with self._snapshot.guarded(self._name):
            start = 0
            while start < len(data):
                room = self._piece_bytes - self._size % self._piece_bytes
                # what is summed is what was handed to the disk: a short write sums only its part
                written = os.write(self._fd, data[start : start + room].data)
                self._crc = isal_zlib.crc32(data[start : start + written], self._crc)
                start += written
                self._size += written
                if self._size % self._piece_bytes == 0:
                    self._crcs.append(self._crc)
                    self._crc = 0

    def close(self) -> None:
        """Bring the file to disk and close it; raises SnapshotError as :meth:`write` does."""
        if self._fd < 0:
            return
        with self._snapshot.guarded(self._name):
            os.fsync(self._fd)
        self.drop()
        if self._size % self._piece_bytes:
            self._crcs.append(self._crc)
        self._snapshot.blobs[self._name] = Blob(self._size, tuple(self._crcs))

    def drop(self) -> None:
        """Close the file without a thought for what is in it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.drop()


class SnapshotWriter:
    """Writes one snapshot: open blobs, write them, ``commit``; anything else leaves nothing behind.

    Use as a context manager: leaving it without ``commit`` aborts.

    Parameters
    ----------
    root : Path
        Directory of snapshots, made where missing.
    sequence : int
        Number of this snapshot, larger than all there (:func:`next_sequence`).
    piece_bytes : int
        Bytes that share a checksum.

    Raises
    ------
    SnapshotError
        The directory cannot be made, or this sequence is there or being written.
    """

    def __init__(self, root: Path, sequence: int, *, piece_bytes: int = PIECE_BYTES) -> None:
        assert 0 <= sequence < 10**12
        assert 0 < piece_bytes <= PIECE_BYTES
        self.root = root
        self.sequence = sequence
        self.path = root / f"{sequence:012d}"
        self.partial = root / f"{sequence:012d}{_PARTIAL}"
        self.blobs: dict[str, Blob] = {}
        self._opened: dict[str, BlobWriter] = {}
        self._piece_bytes = piece_bytes
        self._fd = -1
        if self.path.exists():
            raise SnapshotError(f"cannot write snapshot {self.path}: it is already there")
        with self.guarded(""):
            make_directory(root)
            _sweep(self.partial)
            self.partial.mkdir()
            self._fd = open_directory(self.partial)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def open(self, name: str) -> BlobWriter:
        """Start a file of this snapshot; several may be open at once.

        Parameters
        ----------
        name : str
            Lower case letters, digits, ``_``, ``-`` and ``.``; at most 64, each name once.
        """
        assert is_blob_name(name), name
        assert name not in self._opened, name
        assert self._fd >= 0, "committed or aborted"
        with self.guarded(name):
            blob = self._opened[name] = BlobWriter(self, name, self._piece_bytes)
        return blob

    def commit(self, meta: Mapping[str, Any]) -> Path:
        """Bring everything to disk, and only then give the snapshot its name.

        Parameters
        ----------
        meta : mapping
            What a reader must know before it reads a file: ``kind`` (the model, str) and anything
            else that JSON can say. Not-a-number and infinity become null, tuples lists.

        Returns
        -------
        Path
            The snapshot's directory. When this returns, the snapshot survives a loss of power.

        Raises
        ------
        SnapshotError
            The disk is full or fails; snapshots before this one are untouched.
        """
        assert isinstance(meta["kind"], str)
        assert self._fd >= 0, "committed or aborted"
        for blob in self._opened.values():
            blob.close()
        text = manifests.encode(
            Manifest(
                format_version=FORMAT_VERSION,
                sequence=self.sequence,
                kind=meta["kind"],
                piece_bytes=self._piece_bytes,
                meta=dict(meta),
                blobs=self.blobs,
            )
        )
        with self.guarded(MANIFEST_NAME):
            if len(text) > MANIFEST_BYTES_MAX:
                raise OSError(errno.EFBIG, f"{len(text)} bytes, at most {MANIFEST_BYTES_MAX}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(self.partial / MANIFEST_NAME, flags, 0o644)
            try:
                at = 0
                while at < len(text):
                    at += os.write(fd, text[at:])
                os.fsync(fd)
            finally:
                os.close(fd)
        with self.guarded(""):
            os.fsync(self._fd)
            self.partial.rename(self.path)
            # from here on the snapshot is whole, whatever happens; this makes the name itself last
            fsync_directory(self.root)
        self._unlock()
        return self.path

    def abort(self) -> None:
        """Remove what was written; nothing happens after ``commit`` or another ``abort``."""
        if self._fd < 0:
            return
        for blob in self._opened.values():
            blob.drop()
        _remove(self.partial)
        self._unlock()

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Abort, and say what could not be written and why, where the system refuses."""
        try:
            yield
        except OSError as error:
            self.abort()
            raise SnapshotError(
                f"cannot write snapshot {self.path}" + (f": {name}" if name else ""),
                cause=error.strerror or str(error),
                hint="free some space or write elsewhere; the snapshots before it are untouched",
            ) from error

    def _unlock(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


class SnapshotReader:
    """A snapshot whose manifest holds; its files are checked piece by piece as they are read.

    Made by :meth:`open`. While it is open, :func:`prune` leaves the snapshot alone.

    Attributes
    ----------
    path : Path
    sequence : int
    kind : str
    meta : dict
        As given to ``commit``.
    sizes : dict of str to int
        Bytes of each file.
    """

    def __init__(self, path: Path, manifest: Manifest, fd: int) -> None:
        self.path = path
        self.sequence = manifest.sequence
        self.kind = manifest.kind
        self.meta = manifest.meta
        self.sizes = {name: blob.size for name, blob in manifest.blobs.items()}
        self._manifest = manifest
        self._fd = fd

    @classmethod
    def open(cls, path: Path) -> SnapshotReader:
        """Open a snapshot directory, check its manifest and that each file is there in full.

        Raises
        ------
        SnapshotError
            Not a snapshot, damaged, or of another format version; says what was expected and found.
        """
        try:
            fd = open_directory(path)
        except OSError as error:
            raise SnapshotError(f"cannot open snapshot {path}", cause=error.strerror) from error
        try:
            with suppress(OSError):  # a file system without locks: then prune must be trusted
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            manifest = manifests.read(path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, manifest, fd)

    def require(
        self,
        *,
        kind: str,
        keys: Collection[str] = (),
        blobs: Collection[str] = (),
        **expected: object,
    ) -> None:
        """Refuse a snapshot of another model.

        Parameters
        ----------
        kind : str
            The model that will be loaded.
        keys, blobs : collection of str
            Names that must be in ``meta`` and among the files.
        **expected
            Values that ``meta`` must have, as JSON gives them back.

        Raises
        ------
        SnapshotError
            Says which model, key, file or value was expected and what was found.
        """
        if self.kind != kind:
            raise SnapshotError(
                f"snapshot {self.path} is of model '{self.kind}', expected '{kind}'"
            )
        for name in (*keys, *expected):
            if name not in self.meta:
                found = ", ".join(sorted(self.meta))
                raise SnapshotError(f"snapshot {self.path} lacks the key '{name}', it has {found}")
        for name, value in expected.items():
            if self.meta[name] != value:
                raise SnapshotError(
                    f"snapshot {self.path} has {name} = {self.meta[name]!r}, expected {value!r}"
                )
        for name in blobs:
            if name not in self.sizes:
                found = ", ".join(sorted(self.sizes)) or "none"
                raise SnapshotError(f"snapshot {self.path} lacks the file '{name}', it has {found}")

    def read(self, name: str, into: Any = None) -> U8:
        """Return a whole file, every piece of it checked.

        Parameters
        ----------
        name : str
        into : writable C-contiguous buffer or array, optional
            Where to put it, of exactly the file's size. On an error its contents mean nothing.

        Returns
        -------
        uint8[size]
            A view of ``into``, or a new array, taken only after the size on disk equals the
            manifest's.

        Raises
        ------
        SnapshotError
            No such file, another size than ``into``, or damaged (says which bytes).
        """
        blob = self._blob(name)
        if into is None:
            with self._opened(name):  # its size is checked before memory is taken
                target: U8 = np.empty(blob.size, np.uint8)
        else:
            target = np.frombuffer(into, np.uint8)
            assert target.flags.writeable
            if len(target) != blob.size:
                raise SnapshotError(
                    f"snapshot {self.path}: '{name}' has {blob.size} bytes, expected {len(target)}"
                )
        piece_bytes = self._manifest.piece_bytes
        with self._opened(name) as fd:
            for index in range(len(blob.crc32)):
                start = index * piece_bytes
                self._read_piece(fd, name, index, target[start : start + piece_bytes])
        return target

    def stream(self, name: str) -> Iterator[U8]:
        """Yield a file piece by piece, each checked before it is handed on, in one buffer.

        Raises
        ------
        SnapshotError
            As :meth:`read`; pieces yielded before it were sound.
        """
        blob = self._blob(name)
        piece_bytes = self._manifest.piece_bytes
        scratch: U8 = np.empty(min(piece_bytes, blob.size), np.uint8)
        with self._opened(name) as fd:
            for index in range(len(blob.crc32)):
                piece = scratch[: blob.size - index * piece_bytes]
                self._read_piece(fd, name, index, piece)
                yield piece

    def verify(self) -> None:
        """Read and check every piece of every file; SnapshotError at the first damaged one."""
        for name in self.sizes:
            for _ in self.stream(name):
                pass

    def close(self) -> None:
        """Let go of the snapshot; again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _blob(self, name: str) -> Blob:
        assert self._fd >= 0, "closed"
        self.require(kind=self.kind, blobs=(name,))
        return self._manifest.blobs[name]

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        size = self.sizes[name]
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SnapshotError(
                f"snapshot {self.path}: cannot open '{name}'", cause=error.strerror
            ) from error
        try:
            if (found := os.fstat(fd).st_size) != size:
                raise SnapshotError(
                    f"snapshot {self.path} is damaged: '{name}' has {found} bytes, expected {size}"
                )
            yield fd
        finally:
            os.close(fd)

    def _read_piece(self, fd: int, name: str, index: int, target: U8) -> None:
        start = index * self._manifest.piece_bytes
        span = f"bytes {start}-{start + len(target)} of '{name}'"
        done = 0
        try:
            while done < len(target):
                count = os.preadv(fd, [target[done:].data], start + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise SnapshotError(
                f"snapshot {self.path}: cannot read {span}", cause=error.strerror
            ) from error
        expected = self._manifest.blobs[name].crc32[index]
        found = isal_zlib.crc32(target[:done])
        if done < len(target) or found != expected:
            raise SnapshotError(
                f"snapshot {self.path} is damaged: {span} have checksum {found:08x}, "
                f"expected {expected:08x}"
            )

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def next_sequence(root: Path) -> int:
    """Return a sequence above all snapshots in ``root``, partial ones too; 1 where none is."""
    if not root.is_dir():
        return 1
    names = (path.name.removesuffix(_PARTIAL) for path in root.iterdir())
    return 1 + max((int(name) for name in names if is_sequence(name)), default=0)


def newest(root: Path) -> tuple[SnapshotReader | None, list[str]]:
    """Open the newest whole snapshot, every byte of it checked.

    Returns
    -------
    reader : SnapshotReader or None
        None where no snapshot is whole.
    skipped : list of str
        A sentence for each newer one that is not, newest first.
    """
    skipped: list[str] = []
    for path in reversed(_snapshots(root)):
        try:
            reader = SnapshotReader.open(path)
            try:
                reader.verify()
            except BaseException:
                reader.close()
                raise
        except SnapshotError as error:
            skipped.append(_sentence(error))
        else:
            return reader, skipped
    return None, skipped


def listing(root: Path) -> list[dict[str, Any]]:
    """Return what the manifests say of each snapshot, oldest first; reads no other file.

    Returns
    -------
    list of dict
        ``sequence``, ``path``, ``bytes``, ``kind``, ``meta``, ``blobs`` (name to bytes) and
        ``problem``: empty, or a sentence where the manifest or a file's size is wrong (``bytes``,
        ``kind``, ``meta``, ``blobs`` are then empty).
    """
    rows: list[dict[str, Any]] = []
    for path in _snapshots(root):
        row: dict[str, Any] = {"sequence": int(path.name), "path": str(path)}
        try:
            with SnapshotReader.open(path) as reader:
                row |= {
                    "bytes": sum(reader.sizes.values()),
                    "kind": reader.kind,
                    "meta": reader.meta,
                    "blobs": reader.sizes,
                    "problem": "",
                }
        except SnapshotError as error:
            row |= {"bytes": 0, "kind": "", "meta": {}, "blobs": {}, "problem": _sentence(error)}
        rows.append(row)
    return rows


def prune(root: Path, keep: int, *, trusted: int | None = None) -> list[Path]:
    """Remove all but the newest ``keep`` whole snapshots, and what dead writers left.

    A snapshot counts as whole by its manifest and file sizes; but nothing is removed before one of
    the kept ones has been read to the end and found sound, so at least one that loads stays.
    Damaged ones go once ``keep`` whole ones are newer. What is being read or written, or is of
    another format version, stays.

    Parameters
    ----------
    root : Path
    keep : int
        At least 1.
    trusted : int, optional
        Sequence of a snapshot that this process has just committed, which need not be read again.

    Returns
    -------
    list of Path
        The snapshots removed. One that the system does not let go is left for the next time.
    """
    assert keep >= 1
    removed: list[Path] = []
    for path in root.glob(f"*{_PARTIAL}"):
        with suppress(OSError):
            _sweep(path)
    whole = 0
    sound = False
    for path in reversed(_snapshots(root)):
        enough = whole >= keep and sound
        try:
            with SnapshotReader.open(path) as reader:
                if not sound and reader.sequence != trusted:
                    reader.verify()
        except OtherVersionError:
            continue
        except SnapshotError:
            if not enough:
                continue
        if enough:
            with suppress(OSError):
                _retire(path)
                removed.append(path)
        else:
            whole += 1
            sound = True
    return removed


def _sentence(error: SnapshotError) -> str:
    return error.message + (f" ({error.cause})" if error.cause else "")


def _snapshots(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if is_sequence(path.name))


def _sweep(partial: Path) -> None:
    """Remove what a dead writer left; BlockingIOError where the writer lives."""
    if partial.exists():
        fd = locked(partial)
        try:
            _remove(partial)
        finally:
            os.close(fd)


def _retire(path: Path) -> None:
    """Remove a snapshot; its name goes first, so that no half of it is ever seen.

    BlockingIOError where someone reads it.
    """
    fd = locked(path)
    try:
        partial = path.with_name(path.name + _PARTIAL)
        path.rename(partial)
        _remove(partial)
    finally:
        os.close(fd)


def _remove(directory: Path) -> None:
    """Remove a directory of files as far as the system lets us; what stays is swept later."""
    with suppress(OSError):
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
