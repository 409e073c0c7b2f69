"""What an embedding is: how long it is by a feature's count, and how it lies in memory.

An embedding has ``dim`` numbers for each order beyond the first, and, where AdaGrad updates it, as
many sums of squared gradients. In memory it is cut into *blocks* of ``lanes`` coordinates, the
length of the vectors that kernels compute with: block b holds the coordinates from ``b * lanes``
on,

    values (order 2), sums (order 2) [, values (order 3), sums (order 3)]

each ``lanes`` numbers, zero beyond the last coordinate; the sums only where there are some. So a
longer embedding begins with the blocks of the shorter one that it was, and rows are whole 64-byte
lines.

Where AdaGrad goes by rows, the embedding has one sum, of means of squared gradients, and no others;
it lies right behind the last coordinate, as if it were one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

__all__ = ["DIM_MAX", "FACTORS_MAX", "TIERS_MAX", "TOPICS_MAX", "Tiers"]

# Numbers in an embedding for each order: at 512 of third order a row is 8 KB, a quarter of a first
# cache.
DIM_MAX: Final = 512
# Numbers in a row of a factorized matrix, which is alone in its cache: 16 KB.
FACTORS_MAX: Final = 4096
# Counts of a word, one for each topic; a token's topic is a number of 16 bits.
TOPICS_MAX: Final = (1 << 16) - 1
# Lengths that embeddings of one table may have.
TIERS_MAX: Final = 8
_COUNT_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Tiers:
    """Which embedding a feature earns: the longest of those whose count it exceeds.

    Parameters
    ----------
    order : int
        2 or 3: of the interactions that embeddings are for.
    counts, dims : tuple of int
        By tier, both strictly ascending.
    sums : bool
        Whether there are sums of squared gradients, one for each coordinate.
    row_sum : bool
        Whether there is one for the whole row in their place; of order 2 only.

    Raises
    ------
    ValueError
        They are not, or beyond a limit.
    """

    order: int
    counts: tuple[int, ...]
    dims: tuple[int, ...]
    sums: bool = True
    row_sum: bool = False

    def __post_init__(self) -> None:
        tiers = list(zip(self.counts, self.dims, strict=True))
        ascend = all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(tiers))
        if not (ascend and 0 < len(tiers) <= TIERS_MAX):
            raise ValueError(f"tiers {dict(tiers)} are not 1 to {TIERS_MAX}, ascending")
        if not (self.counts[0] >= 0 and self.counts[-1] <= _COUNT_MAX):
            raise ValueError(f"counts {self.counts} are not from 0 to {_COUNT_MAX}")
        most = DIM_MAX if self.sums or self.row_sum else TOPICS_MAX
        if not 1 <= self.dims[0] <= self.dims[-1] <= most:
            raise ValueError(f"dims {self.dims} are not from 1 to {most}")
        if self.order not in (2, 3):
            raise ValueError(f"order {self.order} is not 2 or 3")
        if self.row_sum and (self.sums or self.order != 2):
            raise ValueError("one sum for a row stands in the place of others, and is of order 2")

    @property
    def dim(self) -> int:
        """The longest embedding."""
        return self.dims[-1]

    @property
    def parts(self) -> int:
        """Vectors of ``dim`` numbers in an embedding: one for each order beyond the first."""
        return self.order - 1

    @property
    def lanes(self) -> int:
        """Coordinates of a block: 16 where that wastes nothing (or 8 are no line), else 8."""
        return 16 if not self.sums or all(dim % 16 == 0 for dim in self.dims) else 8

    @property
    def block_floats(self) -> int:
        """Floats of a block, a multiple of 16."""
        return (1 + self.sums) * self.parts * self.lanes

    def floats(self, dim: int) -> int:
        """Return the floats in memory of an embedding of ``dim`` coordinates, a multiple of 16."""
        numbers = dim + self.row_sum if dim else 0
        return -(-numbers // self.lanes) * self.block_floats

    def lines(self, dim: int) -> int:
        """Return the 64-byte lines of an embedding of ``dim`` coordinates."""
        return self.floats(dim) // 16
