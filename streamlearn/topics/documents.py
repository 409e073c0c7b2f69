"""Documents that are kept while the first pass streams by: four bytes a token, in memory or a file.

Where the memory that they may have is full, whole chunks go to a file without a name in the output
directory: it goes when the process does, as it is no more than what the source says.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from streamlearn.errors import ResourceError
from streamlearn.messages import I32, I64, U32, U64
from streamlearn.online.lda import ReadDocuments

__all__ = ["HeldOut", "KeptDocuments", "Spill"]

# Tokens of a chunk, and documents that it may have: empty ones take room, too.
_CHUNK: Final = 1 << 20
_CHUNK_BYTES: Final = 4 * _CHUNK
# A smaller limit is not held against a chunk.
_CHUNKS_MIN: Final = 1


class Spill:
    """A file without a name, for what does not fit memory.

    Parameters
    ----------
    directory : Path
    prefix : str
        Of its name for the moment that it has one.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory, self._prefix = directory, prefix
        self._file: IO[bytes] | None = None
        self.size = 0

    def append(self, array: Any) -> int:
        """Write an array behind the others; return where.

        Raises
        ------
        ResourceError
            It cannot be written.
        """
        at = self.size
        self.size += array.nbytes
        self.write(at, array)
        return at

    def write(self, offset: int, array: Any) -> None:
        """Write an array in the place of what is there."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, prefix=self._prefix)  # noqa: SIM115 - closed by `close`
            view, done = memoryview(array).cast("B"), 0
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], offset + done)
        except OSError as error:
            raise ResourceError(
                f"cannot keep tokens in a file in {self._directory}",
                cause=error.strerror,
                hint="make room there, or raise tables.tokens_bytes_max so that they fit memory",
            ) from error

    def read(self, offset: int, out: Any) -> None:
        """Fill an array with what was written."""
        assert self._file is not None
        view, done = memoryview(out).cast("B"), 0
        while done < len(view):
            got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            assert got > 0, "the file is shorter than what was written"
            done += got

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class HeldOut:
    """Documents that are judged after some passes and never learned, by their words' keys."""

    def __init__(self) -> None:
        self._keys: list[U64] = []
        self._lengths: list[I64] = []
        self.count = 0

    def add(self, keys: U64, lengths: I64) -> None:
        """Append documents: uint64[tokens], int64[documents]."""
        self._keys.append(keys.copy())
        self._lengths.append(lengths.copy())
        self.count += len(lengths)

    def all(self) -> tuple[U64, I64]:
        """Return keys (uint64[tokens]) and where each document begins (int64[documents + 1])."""
        if not self.count:
            return np.zeros(0, np.uint64), np.zeros(1, np.int64)
        self._keys = [np.concatenate(self._keys)]
        self._lengths = [np.concatenate(self._lengths)]
        bounds: I64 = np.zeros(self.count + 1, np.int64)
        np.cumsum(self._lengths[0], out=bounds[1:])
        return self._keys[0], bounds


class KeptDocuments:
    """Documents in the order in which they were read, their words by number.

    Parameters
    ----------
    bytes_max : int
        Named limit (``tables.tokens_bytes_max``): of memory; what is more goes to a file.
    directory : Path
        Where that file is.

    Attributes
    ----------
    tokens, documents : int
    held_out : HeldOut
    """

    def __init__(self, bytes_max: int, directory: Path) -> None:
        self._chunks_max = max(_CHUNKS_MIN, bytes_max // _CHUNK_BYTES)
        self._spill = Spill(directory, "documents.")
        self._full: list[U32 | int] = []  # a chunk, or where it is in the file
        self._sizes: list[int] = []
        self._lengths: list[I32] = []
        self._numbers: U32 = np.empty(_CHUNK, np.uint32)
        self._used = 0
        self._waiting: list[I32] = []
        self.tokens = self.documents = 0
        self.held_out = HeldOut()

    def add(self, read: ReadDocuments) -> None:
        """Keep documents that were read; the recorder of an ``LdaSolver``.

        Raises
        ------
        ResourceError
            The file cannot be written.
        """
        lengths = np.diff(read.bounds)
        numbers = read.numbers
        held = read.held != 0
        if held.any():
            mine = np.repeat(held, lengths)
            self.held_out.add(read.keys[mine], lengths[held])
            numbers, lengths = numbers[~mine], lengths[~held]
        self._append(numbers, lengths.astype(np.int32))

    def _append(self, numbers: U32, lengths: I32) -> None:
        """Append documents that are kept whole: a chunk ends where one does."""
        ends = np.cumsum(lengths, dtype=np.int64)
        first = done = 0
        while first < len(lengths):
            room = _CHUNK - self._used
            last = int(np.searchsorted(ends, done + room, side="right"))
            if last == first:
                if self._used:
                    self._close_chunk()
                    continue
                last = first + 1  # one document that is longer than a chunk
                self._numbers = np.empty(max(_CHUNK, int(lengths[first])), np.uint32)
            size = int(ends[last - 1]) - done
            self._numbers[self._used : self._used + size] = numbers[done : done + size]
            self._used += size
            self._waiting.append(lengths[first:last])
            done += size
            first = last
        self.tokens += len(numbers)
        self.documents += len(lengths)

    def _close_chunk(self) -> None:
        chunk = self._numbers[: self._used]
        if len(self._full) < self._chunks_max:
            self._full.append(chunk if self._used > _CHUNK // 2 else chunk.copy())
            self._numbers = np.empty(_CHUNK, np.uint32)
        else:
            self._full.append(self._spill.append(chunk))
        self._sizes.append(self._used)
        self._lengths.append(np.concatenate(self._waiting))
        self._used, self._waiting = 0, []

    def take(self) -> Iterator[tuple[U32, I32]]:
        """Yield chunks, uint32[tokens] and int32[documents], each of which is then let go of.

        Nothing may be added any more.
        """
        if self._waiting:
            self._close_chunk()
        self._numbers = np.empty(0, np.uint32)
        for number, size in enumerate(self._sizes):
            chunk = self._full[number]
            self._full[number] = 0
            if isinstance(chunk, int):
                numbers: U32 = np.empty(size, np.uint32)
                self._spill.read(chunk, numbers)
                chunk = numbers
            yield chunk, self._lengths[number]

    def close(self) -> None:
        """Let go of everything that is not held out."""
        self._spill.close()
        self._full.clear()
