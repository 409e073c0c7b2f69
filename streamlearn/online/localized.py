"""A minibatch in terms of its distinct keys: what a worker pulls, steps with and pushes.

A shard sees each key of a minibatch once, in order; a worker finds a feature's weight by an index
into what it pulled. Buffers are allocated once and used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import localize as kernels
from streamlearn.messages import F32, I32, I64, U32, U64
from streamlearn.online.minibatch import Minibatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["INTERCEPT_KEY", "Localized", "Localizer"]

# The constant feature: the smallest odd number, so it is always the first key of a minibatch.
INTERCEPT_KEY: Final = 1
# Slots of the table for each key that is expected: at a load of a third, one key in
# ten is not where its bits say; a larger table costs more to clear than that does.
_SLOTS_PER_KEY: Final = 3
_LOAD_MAX: Final = 0.6
# Probes beyond the first a feature, on average, after which keys are sorted instead: mixed keys
# need a tenth of one.
_STEPS_PER_KEY_MAX: Final = 8
_BITS_MIN: Final = 8
# Distinct keys grow with this power of a minibatch's features (Heaps' law; click logs: 0.75): the
# last minibatch of a block is smaller than those around it.
_HEAPS: Final = 0.75


class Localized:
    """The distinct keys of one minibatch, and what goes with them to a shard and back.

    Parameters
    ----------
    nnz_max : int
        Features of a minibatch at most.

    Attributes
    ----------
    unique, nnz : int
        Distinct keys; features.
    shared : int
        Keys that shards hold, which come first; all, but where some were set aside.
    intercept : bool
        Whether entry 0 is :data:`INTERCEPT_KEY`.
    """

    __slots__ = (
        *("_counts", "_gradients", "_inverse", "_keys"),
        *("intercept", "nnz", "shared", "unique"),
    )

    def __init__(self, nnz_max: int) -> None:
        self.unique = 0
        self.nnz = 0
        self.shared = 0
        self.intercept = False
        # one more for the intercept, and one that the kernel writes beyond the last
        self._keys: U64 = np.zeros(nnz_max + 2, np.uint64)
        self._counts: U32 = np.zeros(nnz_max + 2, np.uint32)
        self._inverse: I32 = np.zeros(nnz_max, np.int32)
        self._gradients: F32 = np.zeros(nnz_max + 2, np.float32)

    @property
    def keys(self) -> U64:
        """The distinct keys, uint64[u]; a view. Those that are shared ascend, and the others."""
        return self._keys[: self.unique]

    @property
    def counts(self) -> U32:
        """How often each stands in the minibatch (the intercept: once an example), uint32[u]."""
        return self._counts[: self.unique]

    @property
    def inverse(self) -> I32:
        """Index into ``keys`` of each feature of the minibatch, int32[nnz]; a view."""
        return self._inverse[: self.nnz]

    @property
    def gradients(self) -> F32:
        """Room for one gradient a key, float32[u]: a step writes it, a push sends it."""
        return self._gradients[: self.unique]

    def bounds(self, prefixes: Sequence[int]) -> I64:
        """Return where the keys of each range of prefixes begin.

        Parameters
        ----------
        prefixes : sequence of int
            Ascending, 0 to 256: what a key's top 8 bits are compared with.

        Returns
        -------
        int64[len(prefixes)]
            The shared keys with prefixes ``[prefixes[i], prefixes[i + 1])`` are
            ``keys[bounds[i]:bounds[i + 1]]``.
        """
        lows = np.array([prefix << 56 for prefix in prefixes if prefix < 256], np.uint64)
        bounds = np.full(len(prefixes), self.shared, np.int64)
        bounds[: len(lows)] = np.searchsorted(self.keys[: self.shared], lows)
        return bounds

    def set_aside(self, aside: NDArray[np.bool_]) -> None:
        """Move keys behind the others, which stay shared; both in the order that they have.

        Parameters
        ----------
        aside : bool[u]
            Which keys; not the constant feature.
        """
        order = np.argsort(aside, kind="stable")
        place: I32 = np.empty(self.unique, np.int32)
        place[order] = np.arange(self.unique, dtype=np.int32)
        self._keys[: self.unique] = self.keys[order]
        self._counts[: self.unique] = self.counts[order]
        self._inverse[: self.nnz] = place[self.inverse]
        self.shared = self.unique - int(np.count_nonzero(aside))


class Localizer:
    """Localises minibatches, one at a time; the scratch memory of one worker.

    Parameters
    ----------
    nnz_max : int
        Features of a minibatch at most.
    """

    def __init__(self, nnz_max: int) -> None:
        self._nnz_max = nnz_max
        self._slots: I32 = np.zeros(nnz_max + 2, np.int32)
        self._bits = 0
        self._keys_per_feature = 1.0  # as if a minibatch had one feature, see _HEAPS
        self._table: U64 = np.zeros(0, np.uint64)
        self._ranks: I32 = np.zeros(0, np.int32)

    def localize(self, batch: Minibatch, out: Localized, *, intercept: bool) -> Localized:
        """Write the distinct keys of a minibatch, their counts and each feature's index to ``out``.

        What comes out depends on the minibatch alone.

        Parameters
        ----------
        batch : Minibatch
            At most ``nnz_max`` features, of this object and of ``out``.
        out : Localized
            Overwritten.
        intercept : bool
            Whether entry 0 is to be the constant feature, once an example. (A feature with its key
            is then the same feature.)

        Returns
        -------
        Localized
            ``out``.
        """
        n = batch.nnz
        assert n <= self._nnz_max, f"{n} features, but room for {self._nnz_max}"
        assert n <= len(out._inverse), f"{n} features, but room for {len(out._inverse)}"
        out.nnz, out.intercept = n, intercept
        expected = min(float(n), self._keys_per_feature * n**_HEAPS)
        self._expect(_bits_for(int(_SLOTS_PER_KEY * expected)))
        while True:
            size = 1 << self._bits
            count = kernels.localize(
                batch.keys, n, int(intercept), batch.rows, np.uint64(64 - self._bits),
                int(size * _LOAD_MAX), _STEPS_PER_KEY_MAX * n + 1024,
                self._table[: size + kernels.SLACK], self._slots, self._ranks, out._keys,
                out._inverse, out._counts,
            )  # fmt: skip
            if count != kernels.CROWDED:
                break
            if size * _LOAD_MAX > n + 1:  # so it is not for their number that keys are crowded
                self._sort(batch, out, intercept=intercept)
                return out
            self._expect(self._bits + 2)
        out.unique = out.shared = int(count)
        self._keys_per_feature = out.unique / max(n, 1) ** _HEAPS
        return out

    def _expect(self, bits: int) -> None:
        """Address the table with ``bits`` bits from now on."""
        self._bits = bits
        size = (1 << bits) + kernels.SLACK
        if len(self._table) < size:
            self._table = np.zeros(size, np.uint64)
            self._ranks = np.zeros(size, np.int32)

    def _sort(self, batch: Minibatch, out: Localized, *, intercept: bool) -> None:
        """Do the same by sorting: for keys that are not mixed."""
        n = batch.nnz
        extra = np.full(int(intercept), INTERCEPT_KEY, np.uint64)
        keys, inverse, counts = np.unique(
            np.concatenate([batch.keys[:n], extra]), return_inverse=True, return_counts=True
        )
        out.unique = out.shared = len(keys)
        out._keys[: len(keys)] = keys
        out._inverse[:n] = inverse[:n]
        out._counts[: len(keys)] = counts
        if intercept:
            out._counts[0] += np.uint32(batch.rows) - np.uint32(1)


def _bits_for(slots: int) -> int:
    """Return the least number of bits that address so many slots."""
    return max(_BITS_MIN, (slots - 1).bit_length())
