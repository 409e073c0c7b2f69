"""Tar archives, read as a stream: POSIX ustar and pax, GNU's long names, and what came before.

Everything is checked that can be: checksums of headers, sizes, and that the archive has the end it
should have. Member by member, so memory is bounded whatever the archive holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from streamlearn.errors import DataError

__all__ = ["BLOCK_BYTES", "Member", "TarReader", "is_tar"]

BLOCK_BYTES: Final = 512

# Names and extended headers at most: they are kept in memory.
_EXTENDED_BYTES_MAX: Final = 1 << 20
_DIGITS_MAX: Final = 18
_FILES: Final = b"\x000 7"
_EXTENDED: Final = b"xgXLKNV"  # describe the member that follows, or all of them
_SPARSE: Final = b"S"
_HIDDEN: Final = (".", "_")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes
    ----------
    name : str
    offset : int
        Plain offset of its header in the archive.
    size : int
    hidden : bool
        Whether it, or a directory that it is in, has a name that begins with ``.`` or ``_``.
    """

    name: str
    offset: int
    size: int
    hidden: bool


def is_tar(head: bytes) -> bool:
    """Say whether an object that begins with so many bytes (512 will do) is a tar archive."""
    block = head[:BLOCK_BYTES]
    return len(block) == BLOCK_BYTES and block[0] != 0 and _checksum_fits(block)


class TarReader:
    """Reads one archive.

    Parameters
    ----------
    uri : str
        The archive, for errors.

    Attributes
    ----------
    member : Member
        The one whose bytes come now.
    """

    def __init__(self, uri: str) -> None:
        self.member = Member("", 0, 0, hidden=True)
        self._uri = uri
        self._at = 0  # plain bytes consumed
        self._block = b""  # beginning of a header
        self._left = 0  # bytes of the member still to come
        self._padding = 0
        self._extended: bytearray | None = None  # what is being read of an extended header
        self._kind = b""
        self._name = ""  # of the next member, where an extended header gave one
        self._size = -1
        self._zeros = 0

    def feed(self, data: bytes) -> Iterator[bytes | Member]:
        """Yield the bytes of regular files as they come, and each such member once it is complete.

        Raises
        ------
        DataError
            The archive is damaged, or has a sparse file.
        """
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                piece = data[at : at + step]
                self._left -= step
                at += step
                self._at += step
                if self._extended is not None:
                    self._extended += piece
                else:
                    yield piece
                if not self._left:
                    yield from self._member_ended()
            elif self._padding:
                step = min(self._padding, size - at)
                self._padding -= step
                at += step
                self._at += step
            else:
                step = min(BLOCK_BYTES - len(self._block), size - at)
                self._block += data[at : at + step]
                at += step
                self._at += step
                if len(self._block) == BLOCK_BYTES:
                    block, self._block = self._block, b""
                    yield from self._header(block)

    def finish(self) -> None:
        """Say that the archive ends here.

        Raises
        ------
        DataError
            It may not.
        """
        if self._left or self._padding:
            where = f"within {self.member.name!r}, {self._left:,} bytes before its end"
            if not self._left:
                where = f"behind {self.member.name!r}"
        elif self._block:
            where = "within a header"
        elif self._zeros == 0:
            where = "without the mark of its end"
        else:
            return
        raise DataError(
            f"{self._uri}: the tar archive ends too early at plain byte {self._at}, {where}",
            hint="everything before it has been read; fetch or pack the archive anew",
        )

    def _header(self, block: bytes) -> Iterator[Member]:
        offset = self._at - BLOCK_BYTES
        if block.count(0) == BLOCK_BYTES:
            self._zeros += 1
            return
        if not _checksum_fits(block):
            raise self._damaged(offset, "has a header whose checksum is wrong")
        self._zeros = 0
        kind = block[156:157]
        size = _number(block[124:136])
        if size < 0:
            raise self._damaged(offset, f"has a header with the size {block[124:136]!r}")
        if kind in _EXTENDED:
            self._begin_extended(kind, size, offset)
            return
        name = self._name or _name(block)
        size = self._size if self._size >= 0 else size
        self._name, self._size = "", -1
        if kind in _SPARSE:
            raise self._damaged(offset, f"has the sparse file {name!r}, which is not read")
        # links, directories and devices have no data, whatever their header says
        regular = kind in _FILES and not (name.endswith("/") and kind in b"\x00")
        kept = size if regular or kind not in b"123456" else 0
        parts = [part for part in name.split("/") if part not in {".", ".."}]
        hidden = any(part.startswith(_HIDDEN) for part in parts)
        self.member = Member(name, offset, size, hidden or not regular)
        self._left, self._padding = kept, -kept % BLOCK_BYTES
        if regular and not size:
            yield self.member

    def _begin_extended(self, kind: bytes, size: int, offset: int) -> None:
        if size > _EXTENDED_BYTES_MAX:
            raise self._damaged(offset, f"has an extended header of {size:,} bytes")
        self._kind, self._extended = kind, bytearray()
        self.member = Member("extended header", offset, size, hidden=True)
        self._left, self._padding = size, -size % BLOCK_BYTES
        if not size:
            self._extended = None

    def _member_ended(self) -> Iterator[Member]:
        if self._extended is None:
            yield self.member
            return
        data, self._extended = bytes(self._extended), None
        if self._kind == b"L":
            self._name = data.rstrip(b"\0").decode(errors="replace")
        elif self._kind in b"xX":
            self._read_pax(data)

    def _read_pax(self, data: bytes) -> None:
        """Read records ``length key=value`` of POSIX pax."""
        offset = self.member.offset
        while data:
            length, blank, _ = data.partition(b" ")
            size = int(length) if length.isdigit() and len(length) <= _DIGITS_MAX else 0
            key, equals, value = data[len(length) + 1 : size - 1].partition(b"=")
            if not (blank and equals and data[size - 1 : size] == b"\n"):
                raise self._damaged(offset, "has an extended header that cannot be read")
            data = data[size:]
            if key == b"path":
                self._name = value.decode(errors="replace")
            elif key == b"size":
                if not value.isdigit() or len(value) > _DIGITS_MAX:
                    raise self._damaged(offset, f"has an extended header with the size {value!r}")
                self._size = int(value)
            elif key.startswith(b"GNU.sparse."):
                name = self._name or value.decode(errors="replace")
                raise self._damaged(offset, f"has the sparse file {name!r}, which is not read")

    def _damaged(self, offset: int, what: str) -> DataError:
        return DataError(
            f"{self._uri}: the tar archive {what}, at plain byte {offset}",
            hint="everything before it has been read",
        )


def _checksum_fits(block: bytes) -> bool:
    """Say whether a checksum is right: of bytes without a sign, or, as some had it, with."""
    said = _number(block[148:156])
    if said <= 0:  # what is no archive seldom has a number there
        return False
    found = sum(block) - sum(block[148:156]) + 8 * 32
    if said == found:
        return True
    return said == found - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _number(field: bytes) -> int:
    """Return the number of a header's field, octal or GNU's base 256; -1 where it is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if not digits.strip(b"01234567") else -1


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode(errors="replace")
