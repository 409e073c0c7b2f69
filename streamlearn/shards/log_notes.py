"""Notes beside a log: how far it has reached the disk, so that a lost end is missed."""

from __future__ import annotations

import struct
from pathlib import PurePath

from isal import isal_zlib

from streamlearn.errors import LogError
from streamlearn.shards.disk import Disk, File

__all__ = ["Notes"]


class Notes:
    """The file ``durable``: after each sync, the lsn that it brought to disk.

    It is not synced itself and need not be: what it says is true whenever it says it. Twelve bytes
    a note, the last one counts, and the file begins anew when it is long.
    """

    _NAME = "durable"
    _NOTE = struct.Struct("<QI")
    _BYTES_MAX = 1 << 16

    def __init__(self, disk: Disk, directory: str, identity: str) -> None:
        self._disk = disk
        self._path = str(PurePath(directory) / self._NAME)
        self._seed = isal_zlib.crc32(identity.encode())
        self._file: File | None = None

    def read(self, skipped: list[str]) -> int:
        """Return the highest lsn noted, 0 where none is; tells ``skipped`` of damage."""
        try:
            text = self._disk.read(self._path, 0, 2 * self._BYTES_MAX)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise LogError(f"cannot read {self._path}", cause=error.strerror) from error
        highest = 0
        damaged = len(text) % self._NOTE.size != 0
        for at in range(0, len(text) - self._NOTE.size + 1, self._NOTE.size):
            lsn, crc = self._NOTE.unpack_from(text, at)
            if crc == isal_zlib.crc32(text[at : at + 8], self._seed):
                highest = max(highest, lsn)
            else:
                damaged = True
        if damaged:
            skipped.append(f"{self._path} has notes that are damaged or not whole")
        return highest

    def reset(self) -> None:
        """Forget all notes for good: records that they vouch for were given up."""
        self._begin().sync()

    def write(self, lsn: int) -> None:
        """Note that all records up to ``lsn`` are on disk."""
        try:
            file = self._file
            if file is None or file.size >= self._BYTES_MAX:
                file = self._begin()
            body = lsn.to_bytes(8, "little")
            file.write(self._NOTE.pack(lsn, isal_zlib.crc32(body, self._seed)))
        except OSError:
            # Notes sharpen what can be said of damage; a full disk must not stop the log for them.
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> File:
        if self._file is None:
            known = self._disk.exists(self._path)
            self._file = self._disk.append(self._path) if known else self._disk.create(self._path)
        self._file.truncate(0)
        return self._file
