"""Compression of message bodies, used only where it saves time; opening them within bounds.

Columns are coded already, so most bodies do not shrink; which do depends on the kind of message
and on the data. ``auto`` therefore tries a body of each kind now and then, and remembers what was
worth it. It counts bodies, not seconds: the same messages give the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import lz4.block
import zstandard

from streamlearn.net.frame import Buffer, FrameError

__all__ = ["AUTO", "COMPRESSIONS", "LZ4", "NONE", "PLAIN", "ZSTD", "Packer", "unpack"]

PLAIN, LZ4, ZSTD = 0, 1, 2  # flags of a frame
NONE: Final = "none"
AUTO: Final = "auto"
COMPRESSIONS: Final = (NONE, "lz4", "zstd", AUTO)

# Below this a header and a system call cost more than the bytes.
_BODY_BYTES_MIN: Final = 1024
# Of so many bodies of a kind one is tried with every codec.
_TRIAL_EVERY: Final = 64
# A zstd frame may ask its reader for a window of this at most: that of the highest level we use
# is 512 KiB, but a single segment's window is its size, which the frame limit bounds.
_ZSTD_LEVEL: Final = 1

# Nanoseconds a byte of body, both ends together, on incompressible to well compressible columns,
# and of a byte on a wire of 1 Gbit/s. On a faster network the wire costs less and `none` is right.
_WIRE_COST: Final = 8.0
_COST: Final[Mapping[int, float]] = {PLAIN: 0.0, LZ4: 2.5, ZSTD: 5.0}


def _lz4(body: Buffer) -> bytes:
    packed: bytes = lz4.block.compress(body, store_size=False)
    return packed


class Packer:
    """Compresses bodies, each by itself.

    Parameters
    ----------
    compression : str
        One of ``COMPRESSIONS``.
    """

    def __init__(self, compression: str) -> None:
        assert compression in COMPRESSIONS, compression
        zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False)
        self._codecs: dict[int, Callable[[Buffer], bytes]] = {LZ4: _lz4, ZSTD: zstd.compress}
        self._fixed = {NONE: PLAIN, "lz4": LZ4, "zstd": ZSTD}.get(compression)
        self._chosen: dict[object, int] = {}
        self._until_trial: dict[object, int] = {}

    def pack(self, kind: object, body: Buffer) -> tuple[int, Buffer]:
        """Return a body as it goes over the wire, and the flags that say how.

        Parameters
        ----------
        kind : hashable
            Of message: bodies of one kind are taken to be alike.
        """
        if self._fixed == PLAIN or len(body) < _BODY_BYTES_MIN:
            return PLAIN, body
        codec = self._fixed
        if codec is None:
            left = self._until_trial.get(kind, 0)
            if not left:
                self._until_trial[kind] = _TRIAL_EVERY - 1
                return self._try(kind, body)
            self._until_trial[kind] = left - 1
            codec = self._chosen[kind]
            if codec == PLAIN:
                return PLAIN, body
        packed = self._codecs[codec](body)
        return (codec, packed) if len(packed) < len(body) else (PLAIN, body)

    def _try(self, kind: object, body: Buffer) -> tuple[int, Buffer]:
        """Take the codec with the least cost on this body, for those that follow, too."""
        best: tuple[int, Buffer] = (PLAIN, body)
        least = len(body) * _WIRE_COST
        for codec, compress in self._codecs.items():
            packed = compress(body)
            cost = len(packed) * _WIRE_COST + len(body) * _COST[codec]
            if cost < least and len(packed) < len(body):
                best, least = (codec, packed), cost
        self._chosen[kind] = best[0]
        return best


def unpack(flags: int, body: Buffer, plain_size: int) -> Buffer:
    """Return a body as it was before packing.

    Parameters
    ----------
    plain_size : int
        What the header says; within the limit already. Never more memory than this is taken.

    Raises
    ------
    FrameError
        It cannot be opened, or is not of that size.
    """
    if flags == PLAIN:
        return body
    try:
        if flags == LZ4:
            plain: bytes = lz4.block.decompress(body, uncompressed_size=plain_size)
        elif flags == ZSTD:
            plain = _open_zstd(body, plain_size)
        else:
            raise FrameError(f"a body with flags {flags}", reason="compression")
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise FrameError(
            "a compressed body cannot be opened", cause=str(error), reason="compression"
        ) from error
    if len(plain) != plain_size:
        raise FrameError(
            f"a body of {len(plain)} bytes, its header says {plain_size}", reason="compression"
        )
    return plain


def _open_zstd(body: Buffer, plain_size: int) -> bytes:
    # The frame's own header is believed by the library where it names a size: it must agree first.
    size = zstandard.frame_content_size(body)
    if size != plain_size:
        raise FrameError(
            f"a zstd frame of {'unknown size' if size < 0 else f'{size} bytes'}, "
            f"its header says {plain_size}",
            reason="compression",
        )
    return zstandard.ZstdDecompressor().decompress(
        body, max_output_size=plain_size, allow_extra_data=False
    )
