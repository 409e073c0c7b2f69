"""Writing a snapshot: files first, each brought to disk, then the manifest, then the name.

The layout stands in :mod:`streamlearn.shards.snapshot`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from isal import isal_zlib

from streamlearn.errors import SnapshotError
from streamlearn.shards import manifest as manifests
from streamlearn.shards.directory import remove, sweep
from streamlearn.shards.disk import REAL_DISK, Disk, File, Lock
from streamlearn.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    PARTIAL,
    PIECE_BYTES,
    Blob,
    Manifest,
    is_blob_name,
)

__all__ = ["BlobWriter", "SnapshotWriter"]


class BlobWriter:
    """One named file of a snapshot being written; made by :meth:`SnapshotWriter.open`."""

    def __init__(self, snapshot: SnapshotWriter, name: str, piece_bytes: int) -> None:
        self._snapshot = snapshot
        self._name = name
        self._piece_bytes = piece_bytes
        self._crcs: list[int] = []
        self._crc = 0
        self._size = 0
        self._file: File | None = snapshot.disk.create(snapshot.partial / name)

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
        assert self._file is not None, f"{self._name} is closed"
        data = np.frombuffer(buffer, np.uint8)
        with self._snapshot.guarded(self._name):
            start = 0
            while start < len(data):
                room = self._piece_bytes - self._size % self._piece_bytes
                piece = data[start : start + room]
                self._file.write(piece.data)
                self._crc = isal_zlib.crc32(piece, self._crc)
                start += len(piece)
                self._size += len(piece)
                if self._size % self._piece_bytes == 0:
                    self._crcs.append(self._crc)
                    self._crc = 0

    def close(self) -> None:
        """Bring the file to disk and close it; raises SnapshotError as :meth:`write` does."""
        if self._file is None:
            return
        with self._snapshot.guarded(self._name):
            self._file.sync()
        self.drop()
        if self._size % self._piece_bytes:
            self._crcs.append(self._crc)
        self._snapshot.blobs[self._name] = Blob(self._size, tuple(self._crcs))

    def drop(self) -> None:
        """Close the file without a thought for what is in it."""
        if self._file is not None:
            self._file.close()
            self._file = None

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
    disk : Disk, optional

    Raises
    ------
    SnapshotError
        The directory cannot be made, or this sequence is there or being written.
    """

    def __init__(
        self,
        root: Path,
        sequence: int,
        *,
        piece_bytes: int = PIECE_BYTES,
        disk: Disk = REAL_DISK,
    ) -> None:
        assert 0 <= sequence < 10**12
        assert 0 < piece_bytes <= PIECE_BYTES
        self.disk = disk
        self.root = root
        self.sequence = sequence
        self.path = root / f"{sequence:012d}"
        self.partial = root / f"{sequence:012d}{PARTIAL}"
        self.blobs: dict[str, Blob] = {}
        self._opened: dict[str, BlobWriter] = {}
        self._piece_bytes = piece_bytes
        self._lock: Lock | None = None
        self._begun = False
        if disk.exists(self.path):
            raise SnapshotError(f"cannot write snapshot {self.path}: it is already there")
        with self.guarded(""):
            disk.make_directory(root)
            sweep(disk, self.partial)
            if disk.exists(self.partial):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.partial))
            self._begun = True
            disk.make_directory(self.partial)
            self._lock = disk.lock(self.partial)

    def open(self, name: str) -> BlobWriter:
        """Start a file of this snapshot; several may be open at once.

        Parameters
        ----------
        name : str
            Lower case letters, digits, ``_``, ``-`` and ``.``; at most 64, each name once.
        """
        assert is_blob_name(name), name
        assert name not in self._opened, name
        assert self._begun, "committed or aborted"
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
        assert self._begun, "committed or aborted"
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
            file = self.disk.create(self.partial / MANIFEST_NAME)
            try:
                file.write(text)
                file.sync()
            finally:
                file.close()
        with self.guarded(""):
            self.disk.sync_directory(self.partial)
            self.disk.rename(self.partial, self.path)
            # from here on the snapshot is whole, whatever happens; this makes the name itself last
            self.disk.sync_directory(self.root)
        self._unlock()
        return self.path

    def abort(self) -> None:
        """Remove what was written; nothing happens after ``commit`` or another ``abort``."""
        if not self._begun:
            return
        for blob in self._opened.values():
            blob.drop()
        remove(self.disk, self.partial)
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
        self._begun = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()
