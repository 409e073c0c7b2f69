"""Giving back what compiling leaves behind: of a small process that is the larger part."""

from __future__ import annotations

import ctypes
import gc
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["few_arenas", "give_back"]

_PAGEOUT: Final = 21  # MADV_PAGEOUT of Linux; mmap has no name for it
_ARENA_MAX: Final = -8  # M_ARENA_MAX of mallopt
_COMPILER: Final = "libllvmlite"


def few_arenas() -> None:
    """Keep the C library from giving each thread a heap of its own; call before threads start.

    Lanes allocate little, and a heap that compiling has filled once is never given back whole.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


def give_back() -> None:
    """Collect garbage, return free heap to the system, and let go of the compiler's code.

    The compiler's pages are clean copies of its file: should a kernel be compiled after all, they
    are read again. What is alive now is left out of later garbage collections: there are half a
    million objects of it, and a collection in the middle of learning takes 0.1 s.
    """
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        for first, end in _code_of(_COMPILER):
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _PAGEOUT)


def _code_of(name: str) -> list[tuple[int, int]]:
    """Return the address ranges of a library's code: its executable mappings, whole pages."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name in line and line.split(maxsplit=2)[1].startswith("r-x"):
            first, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            assert first % mmap.PAGESIZE == 0
            ranges.append((first, end))
    return ranges
