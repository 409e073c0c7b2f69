"""The table of fixed size: rows without keys, which keys of the same top bits share."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamlearn.embeddings import Tiers
from streamlearn.messages import F32, I64, U64
from streamlearn.shards.arena import LINE_FLOATS, Geometry
from streamlearn.shards.memory import Reservation

__all__ = ["HashedTable", "HashedVectors"]


_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)


class HashedVectors:
    """An embedding for each row of a hashed table, one behind the other.

    Attributes
    ----------
    geometry : Geometry
        Of the longest of the tiers; there are no counts to earn others by.
    words : uint64[...]
        The memory, eight words to a line.
    values : float32[2 ** bits * row_floats]
        The same; zero until a row is touched.
    row_floats : int
    """

    def __init__(self, bits: int, tiers: Tiers, *, l1_shrk: bool) -> None:
        self.geometry = Geometry(tiers, l1_shrk=l1_shrk)
        self.row_floats = tiers.floats(tiers.dim)
        size = 4 * self.row_floats << bits
        self._memory = Reservation(size)
        self._memory.advise_huge(0, size)
        self._memory.populate(0, size)
        self.words: U64 = self._memory.words
        self.values: F32 = self.words.view(np.float32)[: self.row_floats << bits]

    @property
    def row_lines(self) -> int:
        """64-byte lines of a row."""
        return self.row_floats // LINE_FLOATS


class HashedTable:
    """``2 ** bits`` rows of 8 bytes (two float32 columns) without keys: fixed memory, collisions.

    Parameters
    ----------
    bits : int
    tiers : Tiers, optional
        Of embeddings, whose longest every row has; by default there are none.
    l1_shrk : bool
        Whether embeddings are left out while the weight of their row is zero.

    Attributes
    ----------
    words : uint64[2 ** bits]
        A key's row is its top ``bits`` bits: ``words[key >> shift]``.
    vectors : HashedVectors or None
    """

    index: Final = "hashed"

    def __init__(self, bits: int, tiers: Tiers | None = None, *, l1_shrk: bool = False) -> None:
        self.bits = bits
        self.shift = np.uint64(64 - bits)
        self._memory = Reservation(8 << bits)
        self._memory.advise_huge(0, 8 << bits)
        # Learning would touch nearly every page within seconds, and wait for each.
        self._memory.populate(0, 8 << bits)
        self.words: U64 = self._memory.words[: 1 << bits]
        self.intercept = np.zeros(2, np.float32)
        self.vectors = HashedVectors(bits, tiers, l1_shrk=l1_shrk) if tiers is not None else None

    def find(self, keys: U64) -> I64:
        """Return the row of each key."""
        return np.asarray(keys, np.uint64).__rshift__(self.shift).astype(np.int64)

    def load(self, first: int, rows: U64, vectors: F32) -> None:
        """Put rows and their embeddings where they were, from row ``first`` on.

        Raises
        ------
        ValueError
            There are other embeddings than rows.
        """
        expected = len(rows) * (self.vectors.row_floats if self.vectors is not None else 0)
        if len(vectors) != expected:
            raise ValueError(f"{len(vectors)} numbers of embeddings, expected {expected}")
        self.words[first : first + len(rows)] = rows
        if self.vectors is not None:
            at = first * self.vectors.row_floats
            self.vectors.values[at : at + expected] = vectors

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
        """Bytes of the table, without embeddings."""
        return 8 << self.bits

    @property
    def embeddings_bytes(self) -> int:
        """Bytes of embeddings."""
        return 4 * self.vectors.row_floats << self.bits if self.vectors is not None else 0

    def put_vectors(self, rows: I64, vectors: F32) -> None:
        """Put rows' embeddings where they were, as :meth:`vectors_at` returned them."""
        if self.vectors is not None:
            self.vectors.values.reshape(-1, self.vectors.row_floats)[rows] = vectors

    def vectors_at(self, rows: I64) -> F32:
        """Return copies of rows' embeddings, float32[n, row_floats], as they lie in memory."""
        if self.vectors is None:
            return _NO_VECTORS
        return self.vectors.values.reshape(-1, self.vectors.row_floats)[rows]
