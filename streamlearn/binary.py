"""Records that are no text, as the lines that records are: what unpackers write and formats read.

Such a record is *stuffed* (see :mod:`streamlearn.compute.kernels.stuffing`), so that it has no
newline. What it is before that:

* of ``idx``: the label as a float64, little endian, and the item's bytes as they are stored. The
  first record of an object is an :class:`IdxHeader`, which is text and not stuffed.
* of ``samples``: a :class:`Sample`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from streamlearn.compute.kernels import stuffing
from streamlearn.errors import DataError

__all__ = ["IDX_TYPES", "LABEL_BYTES", "IdxHeader", "Sample", "shape_text", "stuff", "unstuff"]

# Types of idx files: what NumPy calls them; numbers of several bytes are big endian.
IDX_TYPES: Final = {
    "ubyte": "u1",
    "byte": "i1",
    "short": ">i2",
    "int": ">i4",
    "float": ">f4",
    "double": ">f8",
}
LABEL_BYTES: Final = 8

_HEAD: Final = struct.Struct("<QHI")  # bytes where it is too long, else 0; those of key; members
_MEMBER: Final = struct.Struct("<BI")  # bytes of the extension, and of the member
_NOT_KEPT: Final = 0xFFFFFFFF
_KEY_BYTES_MAX: Final = 4096
# Around a sample, so that no line of them begins with a byte order mark or ends with a return.
_BEGIN: Final = b"S"
_END: Final = b"."


def stuff(data: bytes) -> bytes:
    """Return bytes without newlines that stand for others."""
    out = np.empty(stuffing.stuffed_bytes_max(len(data)), np.uint8)
    return out[: stuffing.stuff(np.frombuffer(data, np.uint8), 0, len(data), out, 0)].tobytes()


def unstuff(record: bytes) -> bytes:
    """Return the bytes that a record stands for.

    Raises
    ------
    DataError
        It was not made by :func:`stuff`.
    """
    out = np.empty(len(record), np.uint8)
    size = stuffing.unstuff(np.frombuffer(record, np.uint8), 0, len(record), out)
    if size < 0:
        raise DataError("the record is damaged: a group of bytes goes beyond its end")
    return out[:size].tobytes()


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as errors name it: ``1 x 28 x 28``."""
    return " x ".join(map(str, shape))


@dataclass(frozen=True, slots=True)
class IdxHeader:
    """The first record of an idx object: what its items are, and whether they have labels.

    Attributes
    ----------
    type : str
        One of :data:`IDX_TYPES`.
    shape : tuple of int
        Of an item.
    labelled : bool
    labels : str
        Where labels are, or were looked for; empty: the object's name does not tell.
    """

    type: str
    shape: tuple[int, ...]
    labelled: bool
    labels: str

    def encode(self) -> bytes:
        """Return the record, without its newline."""
        shape = ",".join(map(str, self.shape))
        words = ("idx", self.type, shape, "labels" if self.labelled else "none", self.labels)
        return " ".join(words).replace("\n", " ").encode()

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Read what :meth:`encode` writes.

        Raises
        ------
        DataError
            It is something else.
        """
        words = record.decode(errors="replace").split(" ", 4)
        sizes = words[2].split(",") if len(words) == 5 else []
        good = bool(sizes) and words[0] == "idx" and words[1] in IDX_TYPES
        if not good or not all(size.isdecimal() for size in sizes):
            raise DataError(f"expected the first record of an idx file, found {record[:60]!r}")
        return cls(words[1], tuple(map(int, sizes)), words[3] == "labels", words[4])


@dataclass(frozen=True, slots=True)
class Sample:
    """Members of an archive that belong together.

    Attributes
    ----------
    key : str
        What their names have in common.
    members : tuple of (str, bytes or None)
        Extension and content; None where that is of no use to any format, and was not kept.
    too_long : int
        How many bytes it has, where these are more than a record may have: then there are no
        members. Else 0.
    """

    key: str
    members: tuple[tuple[str, bytes | None], ...] = ()
    too_long: int = 0

    def encode(self) -> bytes:
        """Return the record, stuffed, without its newline."""
        key = self.key.encode()[:_KEY_BYTES_MAX]
        parts = [_BEGIN, _HEAD.pack(self.too_long, len(key), len(self.members)), key]
        for extension, content in self.members:
            name = extension.encode()[:255]
            parts += [_MEMBER.pack(len(name), _NOT_KEPT if content is None else len(content)), name]
            parts += [] if content is None else [content]
        return stuff(b"".join([*parts, _END]))

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Read what :meth:`encode` writes.

        Raises
        ------
        DataError
            It is something else.
        """
        data = unstuff(record)
        try:
            if data[:1] != _BEGIN:
                raise DataError(f"expected a sample, found a record of {len(record)} other bytes")
            too_long, key_bytes, count = _HEAD.unpack_from(data, 1)
            at = 1 + _HEAD.size
            key = data[at : at + key_bytes].decode(errors="replace")
            at += key_bytes
            members: list[tuple[str, bytes | None]] = []
            for _ in range(count):
                name_bytes, size = _MEMBER.unpack_from(data, at)
                at += _MEMBER.size
                name = data[at : at + name_bytes].decode(errors="replace")
                at += name_bytes
                kept = 0 if size == _NOT_KEPT else size
                members.append((name, None if size == _NOT_KEPT else data[at : at + kept]))
                at += kept
        except struct.error:
            at = -1
        if data[at:] != _END or at < 0:
            raise DataError("the sample is damaged: it ends too early")
        return cls(key, tuple(members), too_long)
