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

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from isal import isal_zlib

from streamlearn.errors import SnapshotError
from streamlearn.messages import U8
from streamlearn.shards import manifest as manifests
from streamlearn.shards.directory import remove, sweep
from streamlearn.shards.disk import REAL_DISK, Disk, Lock
from streamlearn.shards.manifest import PARTIAL, Blob, Manifest, OtherVersionError, is_sequence
from streamlearn.shards.snapshot_writer import BlobWriter, SnapshotWriter

__all__ = [
    "BlobWriter",
    "SnapshotReader",
    "SnapshotWriter",
    "listing",
    "newest",
    "next_sequence",
    "prune",
    "verify",
]


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

    def __init__(self, path: Path, manifest: Manifest, disk: Disk, lock: Lock | None) -> None:
        self.path = path
        self.sequence = manifest.sequence
        self.kind = manifest.kind
        self.meta = manifest.meta
        self.sizes = {name: blob.size for name, blob in manifest.blobs.items()}
        self._manifest = manifest
        self._disk = disk
        self._lock = lock
        self._closed = False

    @classmethod
    def open(cls, path: Path, disk: Disk = REAL_DISK) -> SnapshotReader:
        """Open a snapshot directory, check its manifest and that each file is there in full.

        Raises
        ------
        SnapshotError
            Not a snapshot, damaged, or of another format version; says what was expected and found.
        """
        lock: Lock | None = None
        try:
            lock = disk.lock(path, shared=True)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise SnapshotError(f"cannot open snapshot {path}", cause=error.strerror) from error
        except OSError:
            pass  # a file system without locks: then prune must be trusted
        try:
            manifest = manifests.read(path, disk)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return cls(path, manifest, disk, lock)

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
            self._check_size(name)  # before memory is taken
            target: U8 = np.empty(blob.size, np.uint8)
        else:
            target = np.frombuffer(into, np.uint8)
            assert target.flags.writeable
            if len(target) != blob.size:
                raise SnapshotError(
                    f"snapshot {self.path}: '{name}' has {blob.size} bytes, expected {len(target)}"
                )
        piece_bytes = self._manifest.piece_bytes
        self._check_size(name)
        for index in range(len(blob.crc32)):
            start = index * piece_bytes
            self._read_piece(name, index, target[start : start + piece_bytes])
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
        self._check_size(name)
        for index in range(len(blob.crc32)):
            piece = scratch[: blob.size - index * piece_bytes]
            self._read_piece(name, index, piece)
            yield piece

    def verify(self) -> None:
        """Read and check every piece of every file; SnapshotError at the first damaged one."""
        for name in self.sizes:
            for _ in self.stream(name):
                pass

    def close(self) -> None:
        """Let go of the snapshot; again does nothing."""
        self._closed = True
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _blob(self, name: str) -> Blob:
        assert not self._closed
        self.require(kind=self.kind, blobs=(name,))
        return self._manifest.blobs[name]

    def _check_size(self, name: str) -> None:
        size = self.sizes[name]
        try:
            found = self._disk.size(self.path / name)
        except OSError as error:
            raise SnapshotError(
                f"snapshot {self.path}: cannot open '{name}'", cause=error.strerror
            ) from error
        if found != size:
            raise SnapshotError(
                f"snapshot {self.path} is damaged: '{name}' has {found} bytes, expected {size}"
            )

    def _read_piece(self, name: str, index: int, target: U8) -> None:
        start = index * self._manifest.piece_bytes
        span = f"bytes {start}-{start + len(target)} of '{name}'"
        try:
            done = self._disk.read_into(self.path / name, target.data, start)
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


def next_sequence(root: Path, disk: Disk = REAL_DISK) -> int:
    """Return a sequence above all snapshots in ``root``, partial ones too; 1 where none is."""
    if not disk.exists(root):
        return 1
    names = (name.removesuffix(PARTIAL) for name in disk.names(root))
    return 1 + max((int(name) for name in names if is_sequence(name)), default=0)


def newest(root: Path, disk: Disk = REAL_DISK) -> tuple[SnapshotReader | None, list[str]]:
    """Open the newest whole snapshot, every byte of it checked.

    Returns
    -------
    reader : SnapshotReader or None
        None where no snapshot is whole.
    skipped : list of str
        A sentence for each newer one that is not, newest first.
    """
    skipped: list[str] = []
    for path in reversed(_snapshots(root, disk)):
        try:
            reader = SnapshotReader.open(path, disk)
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


def verify(path: Path, disk: Disk = REAL_DISK) -> None:
    """Read a snapshot to its end; SnapshotError where any byte of it is wrong."""
    with SnapshotReader.open(path, disk) as reader:
        reader.verify()


def listing(root: Path, disk: Disk = REAL_DISK) -> list[dict[str, Any]]:
    """Return what the manifests say of each snapshot, oldest first; reads no other file.

    Returns
    -------
    list of dict
        ``sequence``, ``path``, ``bytes``, ``kind``, ``meta``, ``blobs`` (name to bytes) and
        ``problem``: empty, or a sentence where the manifest or a file's size is wrong (``bytes``,
        ``kind``, ``meta``, ``blobs`` are then empty).
    """
    rows: list[dict[str, Any]] = []
    for path in _snapshots(root, disk):
        row: dict[str, Any] = {"sequence": int(path.name), "path": str(path)}
        try:
            with SnapshotReader.open(path, disk) as reader:
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


def prune(
    root: Path, keep: int, *, trusted: int | None = None, disk: Disk = REAL_DISK
) -> list[Path]:
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
    disk : Disk, optional

    Returns
    -------
    list of Path
        The snapshots removed. One that the system does not let go is left for the next time.
    """
    assert keep >= 1
    removed: list[Path] = []
    for name in disk.names(root) if disk.exists(root) else []:
        if name.endswith(PARTIAL):
            with suppress(OSError):
                sweep(disk, root / name)
    whole = 0
    sound = False
    for path in reversed(_snapshots(root, disk)):
        enough = whole >= keep and sound
        try:
            with SnapshotReader.open(path, disk) as reader:
                if not sound and reader.sequence != trusted:
                    reader.verify()
        except OtherVersionError:
            continue
        except SnapshotError:
            if not enough:
                continue
        if enough:
            with suppress(OSError):
                _retire(path, disk)
                removed.append(path)
        else:
            whole += 1
            sound = True
    return removed


def _sentence(error: SnapshotError) -> str:
    return error.message + (f" ({error.cause})" if error.cause else "")


def _snapshots(root: Path, disk: Disk) -> list[Path]:
    if not disk.exists(root):
        return []
    return [root / name for name in disk.names(root) if is_sequence(name)]


def _retire(path: Path, disk: Disk) -> None:
    """Remove a snapshot; its name goes first, so that no half of it is ever seen.

    BlockingIOError where someone reads it.
    """
    lock = disk.lock(path)
    try:
        partial = path.with_name(path.name + PARTIAL)
        disk.rename(path, partial)
        disk.sync_directory(path.parent)
        remove(disk, partial)
    finally:
        lock.release()
