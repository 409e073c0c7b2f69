"""Reserved address space: pages that cost nothing until they are written, huge where advised."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import suppress
from typing import Final

import numpy as np

from streamlearn.errors import ResourceError
from streamlearn.messages import U64

__all__ = ["HUGE_BYTES", "Reservation"]

HUGE_BYTES: Final = 2 << 20
_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
_HUGEPAGE: Final = getattr(mmap, "MADV_HUGEPAGE", None)
_DONTNEED: Final = getattr(mmap, "MADV_DONTNEED", 4)
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE of Linux; mmap has no name for it


class Reservation:
    """Private zero pages over a range of addresses, taken from memory only as they are written.

    Parameters
    ----------
    size_bytes : int
        Rounded up to whole huge pages.

    Attributes
    ----------
    words : uint64[size_bytes / 8]
        The memory, aligned to a huge page.

    Raises
    ------
    ResourceError
        The system refuses so many addresses (``ulimit -v``, strict overcommit).
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // HUGE_BYTES) * HUGE_BYTES
        try:
            self._map = mmap.mmap(
                -1,
                self.size_bytes + HUGE_BYTES,
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE,
            )
        except (OSError, ValueError, OverflowError) as error:
            raise ResourceError(
                f"cannot reserve {self.size_bytes / 1e9:.1f} GB of addresses for a table",
                cause=str(error),
                hint="lower tables.features_max or tables.bits, or raise the limit on virtual "
                "memory",
            ) from error
        whole = np.frombuffer(self._map, np.uint8)
        self._skip = -whole.ctypes.data % HUGE_BYTES
        self.words: U64 = whole[self._skip : self._skip + self.size_bytes].view(np.uint64)

    def advise_huge(self, first_byte: int, end_byte: int) -> None:
        """Advise huge pages for those that lie wholly within ``[first_byte, end_byte)``.

        A hint, never an error.
        """
        first = -(-first_byte // HUGE_BYTES) * HUGE_BYTES
        end = end_byte // HUGE_BYTES * HUGE_BYTES
        if _HUGEPAGE is None or first >= end:
            return
        with suppress(OSError):  # a kernel without huge pages: slower, not wrong
            self._map.madvise(_HUGEPAGE, self._skip + first, end - first)

    def populate(self, first_byte: int, end_byte: int) -> None:
        """Take the pages of ``[first_byte, end_byte)`` from memory now, outside the GIL.

        Where the system does not know how (before Linux 5.14), they are taken as they are written.

        Raises
        ------
        ResourceError
            There is not so much memory.
        """
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        address = self.words.ctypes.data + first_byte // mmap.PAGESIZE * mmap.PAGESIZE
        size = self.words.ctypes.data + end_byte - address
        if madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _POPULATE_WRITE) != 0:
            number = ctypes.get_errno()
            if number in (errno.ENOMEM, errno.EFAULT):
                raise ResourceError(
                    f"there is no memory for a table of {size / 1e9:.1f} GB",
                    cause=os.strerror(number),
                    hint="lower tables.bits",
                )

    def discard(self, first_byte: int, end_byte: int) -> None:
        """Make the bytes (whole words) zero and give back the pages that lie wholly within."""
        first = -(-(self._skip + first_byte) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._skip + end_byte) // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= end:
            self.clear(first_byte, end_byte)
            return
        self.clear(first_byte, first - self._skip)
        self.clear(end - self._skip, end_byte)
        self._map.madvise(_DONTNEED, first, end - first)

    def clear(self, first_byte: int, end_byte: int) -> None:
        """Make the bytes zero again; their pages stay.

        (Giving back the last, partial huge page, to take it again as a whole one once the region
        covers it, made learning on a growing table 10 % slower.)
        """
        self.words[first_byte // 8 : end_byte // 8] = 0
