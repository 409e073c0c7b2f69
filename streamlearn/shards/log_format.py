"""The bytes of a shard's log: files of records in order, every byte of them checked.

A file is called by the number (*lsn*) of its first record and begins with a header::

    magic 8 | version u32 | identity bytes u32 | first lsn u64 | identity | crc u32

A record follows the one before without a gap::

    magic u32 | size u32 | lsn u64 | durable u64 | crc of payload u32 | crc of header u32 | payload

All little-endian; every checksum is a CRC-32. A record's header is summed on top of its file's, so
that a record means something in its own file only. ``durable`` is the highest lsn that was known to
have reached the disk when the record was written: that is how a reader tells records that were
acknowledged and then damaged from a tail that nobody was promised.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

from isal import isal_zlib

from streamlearn.errors import LogError
from streamlearn.shards.disk import Disk

__all__ = [
    "FORMAT_VERSION",
    "IDENTITY_BYTES_MAX",
    "LSN_MAX",
    "RECORD_BYTES",
    "RECORD_BYTES_MAX",
    "FileReader",
    "claimed",
    "file_header",
    "file_name",
    "first_lsn_of",
    "header_problem",
    "record_header",
    "seed_of",
]

FORMAT_VERSION: Final = 1
IDENTITY_BYTES_MAX: Final = 4096
# More than a record a nanosecond for a century.
LSN_MAX: Final = (1 << 63) - 1
# A push of the largest columns that the protocol allows.
RECORD_BYTES_MAX: Final = 1 << 30
# Bytes of a record before its payload.
RECORD_BYTES: Final = 32

# What is read at once: a hundred typical pushes, so that one cut by the end is read twice cheaply.
_CHUNK_BYTES = 8 << 20

_NAME = re.compile(r"([0-9]{20})\.log")
_FILE = struct.Struct("<8sIIQ")
_FILE_MAGIC = b"SLlog\r\n\x1a"
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<IIQQII")
_FIELDS = struct.Struct("<IIQQI")
_SUMMED = _FIELDS.size
_MAGIC = 0xA7D3_5E91
_MAGIC_BYTES = _CRC.pack(_MAGIC)


def file_name(first_lsn: int) -> str:
    """Return the name of the file that begins with a record; names sort as their lsns do."""
    return f"{first_lsn:020d}.log"


def first_lsn_of(name: str) -> int:
    """Return the lsn in a file's name; 0 where it is no log file's."""
    match = _NAME.fullmatch(name)
    first = int(match[1]) if match else 0
    return first if first <= LSN_MAX else 0


def file_header(identity: str, first_lsn: int) -> bytes:
    """Return the header of a file."""
    name = identity.encode()
    assert len(name) <= IDENTITY_BYTES_MAX
    body = _FILE.pack(_FILE_MAGIC, FORMAT_VERSION, len(name), first_lsn) + name
    return body + _CRC.pack(isal_zlib.crc32(body))


def header_problem(found: bytes, expected: bytes, path: str) -> str:
    """Say what is wrong with a file's header; empty where nothing is.

    Parameters
    ----------
    found : bytes
        The first bytes of the file, as many as a header can have.
    expected : bytes
        What :func:`file_header` says of it.
    path : str

    Raises
    ------
    LogError
        The header is sound, but another's: of another version, job, shard or place.
    """
    if found[: len(expected)] == expected:
        return ""
    if len(found) < _FILE.size:
        return "ends inside its header"
    magic, version, size, first_lsn = _FILE.unpack_from(found)
    end = _FILE.size + size
    if (
        magic != _FILE_MAGIC
        or size > IDENTITY_BYTES_MAX
        or len(found) < end + _CRC.size
        or _CRC.unpack_from(found, end)[0] != isal_zlib.crc32(found[:end])
    ):
        return "has a damaged header"
    if version != FORMAT_VERSION:
        raise LogError(
            f"log {path} has format version {version}, expected {FORMAT_VERSION}",
            hint="open it with the release that wrote it",
        )
    theirs = found[_FILE.size : end].decode(errors="replace")
    ours = expected[_FILE.size : -_CRC.size].decode()
    if theirs != ours:
        raise LogError(f"log {path} is of '{theirs}', expected '{ours}'")
    raise LogError(
        f"log {path} says that it begins with record {first_lsn}, "
        f"expected {first_lsn_of(PurePath(path).name)}"
    )


def seed_of(header: bytes) -> int:
    """Return what the checksums of a file's record headers start from."""
    return isal_zlib.crc32(header)


def record_header(seed: int, lsn: int, durable: int, size: int, crc: int) -> bytes:
    """Return the header of a record whose payload has ``size`` bytes and the checksum ``crc``."""
    fields = _FIELDS.pack(_MAGIC, size, lsn, durable, crc)
    return fields + _CRC.pack(isal_zlib.crc32(fields, seed))


class FileReader:
    """Walks over the records of one file and stops, without an error, where they end.

    Parameters
    ----------
    disk, path
        Where it stands.
    size : int
        Bytes of it that count.
    seed : int
        See :func:`seed_of`.
    offset, lsn : int
        The record to begin with.

    Attributes
    ----------
    offset : int
        Behind the last whole record.
    lsn : int
        Of the record expected there.
    durable : int
        The highest claim of the records seen.
    problem : str
        Why the walk ended before ``size``; empty where it did not.
    """

    def __init__(
        self, disk: Disk, path: str, size: int, *, seed: int, offset: int, lsn: int
    ) -> None:
        self.path = path
        self.offset = offset
        self.lsn = lsn
        self.durable = 0
        self.problem = ""
        self._disk = disk
        self._size = size
        self._seed = seed

    def __iter__(self) -> Iterator[tuple[int, memoryview]]:
        """Yield lsn and payload of each record; a payload stays valid as long as it is held.

        Raises
        ------
        LogError
            The system cannot read the file.
        """
        wanted = _CHUNK_BYTES
        while not self.problem and self.offset < self._size:
            asked = min(wanted, self._size - self.offset)
            chunk = memoryview(_read(self._disk, self.path, self.offset, asked))
            at = 0
            missing = RECORD_BYTES
            while at + missing <= len(chunk):
                size, durable, crc = self._header(chunk[at : at + RECORD_BYTES])
                if self.problem:
                    return
                missing = RECORD_BYTES + size
                if at + missing > len(chunk):
                    break
                payload = chunk[at + RECORD_BYTES : at + missing]
                if isal_zlib.crc32(payload) != crc:
                    self.problem = "has a record with a wrong checksum"
                    return
                at += missing
                missing = RECORD_BYTES
                lsn = self.lsn
                self.lsn += 1
                self.offset += RECORD_BYTES + size
                self.durable = max(self.durable, durable)
                yield lsn, payload
            if len(chunk) < asked:
                self.problem = "is shorter than it was"
            elif 0 < self._size - self.offset < missing:
                self.problem = "ends inside a record"
            wanted = max(_CHUNK_BYTES, missing)

    def _header(self, header: memoryview) -> tuple[int, int, int]:
        """Return a record's size, claim and checksum; sets ``problem`` if it is not the next."""
        magic, size, lsn, durable, crc, own = _HEADER.unpack(header)
        if magic != _MAGIC or isal_zlib.crc32(header[:_SUMMED], self._seed) != own:
            self.problem = "has a damaged record header"
        elif lsn != self.lsn:
            self.problem = f"has record {lsn} where {self.lsn} belongs"
        elif size > RECORD_BYTES_MAX:
            self.problem = f"has a record of {size} bytes"
        return size, durable, crc


def claimed(disk: Disk, path: str, size: int, *, seed: int, offset: int, lsn: int) -> int:
    """Search damaged bytes for headers of records and return the highest claim of any.

    Parameters
    ----------
    disk, path, size, seed
        As :class:`FileReader`.
    offset : int
        Where to begin; records need not.
    lsn : int
        Headers of records before this one do not count.

    Returns
    -------
    int
        The highest lsn that a header says had reached the disk; 0 where none is found.
    """
    highest = 0
    while offset + RECORD_BYTES <= size:
        chunk = _read(disk, path, offset, min(_CHUNK_BYTES, size - offset))
        at = -1
        while 0 <= (at := chunk.find(_MAGIC_BYTES, at + 1)) <= len(chunk) - RECORD_BYTES:
            header = chunk[at : at + RECORD_BYTES]
            _, _, found, durable, _, own = _HEADER.unpack(header)
            if lsn <= found and isal_zlib.crc32(header[:_SUMMED], seed) == own:
                highest = max(highest, durable)
        if len(chunk) < RECORD_BYTES:
            break
        offset += len(chunk) - RECORD_BYTES + 1
    return highest


def _read(disk: Disk, path: str, offset: int, size: int) -> bytes:
    try:
        return disk.read(path, offset, size)
    except OSError as error:
        raise LogError(f"cannot read log {path} at byte {offset}", cause=error.strerror) from error
