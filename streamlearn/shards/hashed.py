"""The table of fixed size: rows without keys, which keys of the same top bits share."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamlearn.messages import I64, U64
from streamlearn.shards.memory import Reservation

__all__ = ["HashedTable"]


class HashedTable:
    """``2 ** bits`` rows of 8 bytes (two float32 columns) without keys: fixed memory, collisions.

    Attributes
    ----------
    words : uint64[2 ** bits]
        A key's row is its top ``bits`` bits: ``words[key >> shift]``.
    """

    index: Final = "hashed"

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.shift = np.uint64(64 - bits)
        self._memory = Reservation(8 << bits)
        self._memory.advise_huge(0, 8 << bits)
        # Learning would touch nearly every page within seconds, and wait for each.
        self._memory.populate(0, 8 << bits)
        self.words: U64 = self._memory.words[: 1 << bits]
        self.intercept = np.zeros(2, np.float32)

    def find(self, keys: U64) -> I64:
        """Return the row of each key."""
        return np.asarray(keys, np.uint64).__rshift__(self.shift).astype(np.int64)

    def arguments(self) -> tuple[Any, ...]:
        """Return what learn kernels are given of the table."""
        return self.words, self.shift, self.intercept

    score_arguments = arguments

    def make_room(self, segment: int) -> None:
        """Refuse: a table of fixed size is never asked to."""
        raise AssertionError(segment)

    @property
    def features(self) -> int:
        """Rows that have been touched; a scan of the table."""
        return int(np.count_nonzero(self.words))

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return 8 << self.bits
