"""What encoding lost of the gradients of embeddings, to be sent with their next ones.

Error feedback as :class:`streamlearn.columns.Residuals` has it for weights, for rows of several
numbers.
"""

from __future__ import annotations

import numpy as np

from streamlearn.compute.kernels import residuals as kernels
from streamlearn.messages import F32, I64, U64

__all__ = ["VectorResiduals"]


class VectorResiduals:
    """Holds rows for recently sent keys; another key may take a key's place.

    Parameters
    ----------
    bits : int
        1 to 32: 2**bits entries.
    dim, parts : int
        Numbers of an entry: ``dim * parts``.
    """

    def __init__(self, bits: int, dim: int, parts: int) -> None:
        if not 1 <= bits <= 32:
            raise ValueError(f"residuals take 1 to 32 bits, not {bits}")
        self._parts = parts
        self._shift = np.uint64(64 - bits)
        self._held: U64 = np.zeros(1 << bits, np.uint64)
        self._lengths: I64 = np.zeros(1 << bits, np.int64)
        self._residuals: F32 = np.zeros((1 << bits, dim * parts), np.float32)

    def add(self, keys: U64, dims: I64, gradients: F32) -> None:
        """Add what is held to gradients, in place.

        Parameters
        ----------
        keys, dims : uint64[n], int64[n]
            And how many coordinates of each there are; 0: none.
        gradients : float32[sum of dims * parts]
        """
        self._check(dims, gradients)
        kernels.add(
            self._held, self._lengths, self._residuals, self._shift, keys, dims, self._parts,
            gradients,
        )  # fmt: skip

    def keep(self, keys: U64, dims: I64, wanted: F32, decoded: F32) -> None:
        """Hold ``wanted - decoded`` for the keys, in place of what was held.

        Parameters
        ----------
        wanted, decoded : float32[sum of dims * parts]
            What :meth:`add` left, and what the other side makes of it.
        """
        self._check(dims, wanted)
        self._check(dims, decoded)
        kernels.keep(
            self._held, self._lengths, self._residuals, self._shift, keys, dims, self._parts,
            wanted, decoded,
        )  # fmt: skip

    def _check(self, dims: I64, gradients: F32) -> None:
        expected = int(dims.sum()) * self._parts
        if len(gradients) != expected:
            raise ValueError(f"{len(gradients)} gradients of embeddings, expected {expected}")
