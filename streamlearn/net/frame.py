"""Frames: a fixed header, trusted before its body, and the reader that cuts a stream into them.

No socket, no clock. The layout is in ``docs/protocol.md``. The reader lends memory to whoever
receives: small frames are read many at once into one piece of memory and copied out of it; a
larger body is received into memory of its own, taken when its header has been checked against the
limits and whoever keeps the accounts has agreed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
from isal.isal_zlib import crc32

from streamlearn.errors import ProtocolError

__all__ = [
    "ALIVE",
    "ANSWER",
    "CHALLENGE",
    "ERROR",
    "HEADER_BYTES",
    "HELLO",
    "KINDS",
    "MAGIC",
    "PROOF",
    "REASONS",
    "REQUEST",
    "UNSETTLED_BYTES_MAX",
    "VERSION",
    "WELCOME",
    "Frame",
    "FrameError",
    "FrameReader",
    "pack_header",
]

MAGIC: Final = b"SLRN"
VERSION: Final = 1
HEADER_BYTES: Final = 40
# Nothing more is taken from a peer before it has said who it is: the longest hello and proof are
# 210 bytes.
UNSETTLED_BYTES_MAX: Final = 256

HELLO, CHALLENGE, PROOF, WELCOME, REQUEST, ANSWER, ALIVE, ERROR = range(1, 9)
KINDS: Final = ("", "hello", "challenge", "proof", "welcome", "request", "answer", "alive", "error")

# Why a connection ends, by the number that stands in an error frame; also the labels of a metric.
REASONS: Final = (
    "lost",  # never sent: the connection broke without a word
    "malformed",  # a header or body is not what the layout says
    "version",
    "cluster",
    "access",
    "checksum",
    "size",
    "order",  # a frame that this state of the connection does not allow
    "message",  # a body that is no message, or one that this side does not take
    "compression",
    "busy",  # more sessions than the server takes
    "silent",
    "slow",  # answers that are not read
    "draining",  # nobody's fault: this process ends
    "internal",
)

# What one read takes at most while small frames come in; a body behind it is received in place.
# With 64 KiB bodies of that size are copied whole and cost half as much again; with 8 KiB there are
# more reads of small frames.
_STAGING_BYTES: Final = 16 << 10
# A body of up to this size is copied out of what has been read; larger ones have pages of their
# own that are not cleared first.
_BYTEARRAY_BYTES_MAX: Final = 4 << 10

_HEAD: Final = struct.Struct("<4sBBBBQQIII")
_HEAD_WHOLE: Final = struct.Struct("<4sBBBBQQIIII")
_PART_BYTES: Final = _HEAD.size
_PACK: Final = _HEAD.pack
_CRC_PACK: Final = struct.Struct("<I").pack
_UNPACK: Final = _HEAD_WHOLE.unpack_from

Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = tuple[int, int, int, int, Buffer]  # kind, flags, request id, plain size, body


class FrameError(ProtocolError):
    """A frame that cannot be taken.

    Parameters
    ----------
    reason : str
        One of ``REASONS``.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        reason: str = "malformed",
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.reason = reason


def pack_header(
    cluster_id: int, kind: int, request_id: int, body: Buffer, plain_size: int, flags: int = 0
) -> bytes:
    """Return the header of a frame whose body is ``body``, as it will be sent.

    Parameters
    ----------
    plain_size : int
        Bytes of the body once decompressed.
    flags : int
        How the body is compressed (``packing``), 0: not.
    """
    part = _PACK(
        MAGIC, VERSION, kind, flags, 0, cluster_id, request_id, len(body), plain_size, crc32(body)
    )
    return part + _CRC_PACK(crc32(part))


def _no_limit(_cost: int) -> bool:
    return True


class FrameReader:
    """Cuts what is received into frames.

    Whoever receives asks :meth:`buffer` for memory, says with :meth:`advance` how much of it has
    been filled, and then takes frames from :meth:`next` until there is none.

    Parameters
    ----------
    cluster_id : int
    sizes : mapping of int to int
        The kinds of frame that may come next, each with the most bytes that its body may have.
    admit : callable, optional
        Given the bytes that a message's body will take (``cost``), says whether there is room now.

    Attributes
    ----------
    waiting : int
        Bytes of a frame that was not admitted; 0: none waits. :meth:`admitted` says that there is
        room after all; without it :meth:`next` asks anew.
    """

    def __init__(
        self,
        cluster_id: int,
        sizes: Mapping[int, int],
        admit: Callable[[int], bool] = _no_limit,
    ) -> None:
        self._cluster_id = cluster_id
        self._sizes = sizes
        self._admit = admit
        self._staging = bytearray(UNSETTLED_BYTES_MAX)
        self._view = memoryview(self._staging)
        self._begin = 0
        self._end = 0
        self._head: tuple[int, int, int, int, int, int] | None = None
        self._admitted = False
        self._body: memoryview | None = None
        self._filled = 0
        self._received = 0
        self._settled = False
        self.waiting = 0

    @property
    def received(self) -> bool:
        """Whether anything has been received."""
        return self._received > 0

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._head is not None or self._end > self._begin

    def expect(self, sizes: Mapping[int, int]) -> None:
        """Let other kinds come next."""
        self._sizes = sizes

    def settle(self) -> None:
        """Take more than what an unknown peer may send: it is known now."""
        assert not self._settled
        self._settled = True
        rest = self._view[self._begin : self._end]
        self._staging = bytearray(_STAGING_BYTES)
        self._view = memoryview(self._staging)
        self._view[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def admitted(self) -> None:
        """Say that there is room now for the frame that waits."""
        assert self.waiting
        self.waiting = 0
        self._admitted = True

    def buffer(self) -> memoryview:
        """Return memory to receive into; it is never empty.

        Raises
        ------
        FrameError
            A peer that is not known yet has sent more than it may.
        """
        if self._body is not None:
            return self._body[self._filled :]
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin:
            size = self._end - self._begin
            self._staging[:size] = self._staging[self._begin : self._end]
            self._begin, self._end = 0, size
        if not self._settled:
            room = UNSETTLED_BYTES_MAX - self._received
            if room <= 0:
                raise FrameError(
                    f"more than {UNSETTLED_BYTES_MAX} bytes came before the handshake was settled",
                    reason="size",
                )
            return self._view[self._end : self._end + room]
        assert self._end < len(self._staging), "received without taking frames"
        return self._view[self._end :]

    def advance(self, count: int) -> None:
        """Say that ``count`` bytes of the buffer have been filled."""
        self._received += count
        if self._body is not None:
            self._filled += count
        else:
            self._end += count

    def next(self) -> Frame | None:
        """Return the next frame, None where more must be received or there is no room for it.

        Raises
        ------
        FrameError
            What was received is no frame that may come now; says what, and what was expected.
        """
        head = self._head
        if head is None:
            if self._end - self._begin < HEADER_BYTES:
                if self._end > self._begin:
                    self._check_begin()
                return None
            head = self._read_header()
            self._admitted = False
        size = head[3]
        if not self._admitted:
            if size and REQUEST <= head[0] <= ANSWER:
                cost = size if not head[1] else size + head[4]
                if not self._admit(cost):
                    self._head, self.waiting = head, cost
                    return None
            self.waiting = 0
            self._admitted = True
        body: Buffer
        if self._body is not None:
            if self._filled < size:
                return None
            body, self._body = self._body, None
        else:
            begin = self._begin
            available = self._end - begin
            if available >= size:
                self._begin = begin + size
                if size <= _BYTEARRAY_BYTES_MAX:
                    body = bytes(self._view[begin : begin + size])
                else:
                    body = _memory(size)
                    body[:] = self._view[begin : begin + size]
            else:
                self._head = head
                self._body = _memory(size)
                self._body[:available] = self._view[begin : self._end]
                self._filled = available
                self._begin = self._end = 0
                return None
        self._head = None
        kind, flags, request_id, _, plain_size, crc = head
        if crc32(body) != crc:
            raise FrameError(
                f"the checksum of a {KINDS[kind]}'s body is {crc32(body):08x}, "
                f"its header says {crc:08x}",
                reason="checksum",
            )
        return kind, flags, request_id, plain_size, body

    def _check_begin(self) -> None:
        """See at the first bytes that somebody speaks another protocol."""
        if self._end - self._begin >= len(MAGIC):
            begin = bytes(self._view[self._begin : self._begin + len(MAGIC)])
            if begin != MAGIC:
                raise _strange(begin)

    def _read_header(self) -> tuple[int, int, int, int, int, int]:
        """Take the next header; check all that it says before any of it is used."""
        begin = self._begin
        magic, version, kind, flags, zero, cluster_id, request_id, size, plain_size, crc, own = (
            _UNPACK(self._staging, begin)
        )
        if magic != MAGIC:
            raise _strange(magic)
        if crc32(self._view[begin : begin + _PART_BYTES]) != own:
            raise FrameError("the checksum of a frame's header is wrong", reason="checksum")
        if version != VERSION:
            raise FrameError(
                f"the peer speaks version {version} of the protocol, this side version {VERSION}",
                reason="version",
            )
        if cluster_id != self._cluster_id:
            raise FrameError(
                f"the peer belongs to cluster {cluster_id:016x}, this side to "
                f"{self._cluster_id:016x}",
                reason="cluster",
            )
        limit = self._sizes.get(kind)
        if limit is None:
            name = KINDS[kind] if 0 < kind < len(KINDS) else f"frame of kind {kind}"
            expected = " or ".join(KINDS[one] for one in self._sizes)
            raise FrameError(f"a {name} came, expected {expected}", reason="order")
        if size > limit or plain_size > limit:
            raise FrameError(
                f"a {KINDS[kind]} of {max(size, plain_size)} bytes, at most {limit} are allowed",
                reason="size",
            )
        message = REQUEST <= kind <= ANSWER
        if zero or (flags and not message) or (request_id == 0) == message:
            raise FrameError(
                f"a {KINDS[kind]} with flags {flags}, reserved byte {zero} and request id "
                f"{request_id}"
            )
        if (size >= plain_size) if flags else (size != plain_size):
            raise FrameError(
                f"a {KINDS[kind]} of {size} bytes with flags {flags} says that it is "
                f"{plain_size} bytes when opened",
                reason="size",
            )
        self._begin = begin + HEADER_BYTES
        return kind, flags, request_id, size, plain_size, crc


def _strange(begin: bytes) -> FrameError:
    """Tell a frame that was damaged under way from another protocol."""
    damaged = sum(one != other for one, other in zip(begin, MAGIC, strict=True)) == 1
    return FrameError(
        f"a frame begins with {begin!r}, expected {MAGIC!r}",
        reason="checksum" if damaged else "malformed",
    )


def _memory(size: int) -> memoryview:
    """Return memory that is not cleared first, and not touched before it is filled."""
    return np.empty(size, np.uint8).data
