"""Where frames begin and end in a stream of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["Splitter"]


class Splitter:
    """Cuts what a program writes into whole frames.

    Parameters
    ----------
    frame_bytes : callable
        Size of the frame whose first bytes are given, None where more are needed to tell, -1 where
        these are no frames.

    Attributes
    ----------
    lost : bool
        Whether this is no stream of frames: from there on bytes come as they are.
    """

    def __init__(self, frame_bytes: Callable[[bytes], int | None]) -> None:
        self.lost = False
        self._frame_bytes = frame_bytes
        self._held = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes of a frame that is not whole."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that are whole with these bytes."""
        held = self._held
        held += data
        while held and not self.lost:
            size = self._frame_bytes(bytes(held[:64]))
            if size is None or (size >= 0 and len(held) < size):
                return
            if size <= 0:
                self.lost = True
                break
            frame = bytes(held[:size])
            del held[:size]
            yield frame
        if held:
            rest = bytes(held)
            held.clear()
            yield rest
