"""Ratings that are kept while the first pass streams by: eight bytes each, in memory or in a file.

They are kept by bucket of users, in chunks of a page. Where the memory that they may have is full,
whole chunks go to a file without a name in the output directory: it goes when the process does, as
it is no more than what the source says.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from streamlearn.compute.kernels import strata as kernels
from streamlearn.errors import DataError, ResourceError
from streamlearn.messages import F32, I64, U64
from streamlearn.online.mf import Learned
from streamlearn.shards.memory import Reservation

__all__ = ["HeldOut", "KeptRatings"]

_WORD_BYTES: Final = 8
_CHUNK_BYTES: Final = kernels.CHUNK * _WORD_BYTES
# Chunks that become free to take at a time.
_CHUNKS_AT_ONCE: Final = 1 << 14
# Chunks, at least: each bucket has one that is being filled.
_CHUNKS_MIN: Final = 1 << 10


class HeldOut:
    """Ratings that are scored after each pass and never learned."""

    def __init__(self) -> None:
        self._keys: list[U64] = []
        self._ratings: list[F32] = []
        self.count = 0

    def add(self, keys: U64, ratings: F32, weights: F32) -> None:
        """Append ratings: uint64[n, 2] user and item, float32[n], float32[n]."""
        self._keys.append(keys.copy())
        self._ratings.append(np.stack([ratings, weights], axis=1))
        self.count += len(ratings)

    def all(self) -> tuple[U64, F32, F32]:
        """Return keys (uint64[n, 2]), ratings and weights, in the order in which they came."""
        if not self.count:
            empty = np.zeros(0, np.float32)
            return np.zeros((0, 2), np.uint64), empty, empty
        self._keys = [np.concatenate(self._keys)]
        self._ratings = [np.concatenate(self._ratings)]
        values = self._ratings[0]
        return self._keys[0], np.ascontiguousarray(values[:, 0]), np.ascontiguousarray(values[:, 1])


class KeptRatings:
    """Ratings by bucket of users.

    Parameters
    ----------
    bytes_max : int
        Named limit (``tables.ratings_bytes_max``): of memory; what is more goes to a file.
    directory : Path
        Where that file is.

    Attributes
    ----------
    users, items : int
        Up to which numbers there are some.
    held_out : HeldOut
    """

    def __init__(self, bytes_max: int, directory: Path) -> None:
        self._bytes_max = bytes_max
        self._directory = directory
        self._chunks_max = max(bytes_max // _CHUNK_BYTES, _CHUNKS_MIN)
        self._memory = Reservation(self._chunks_max * _CHUNK_BYTES)
        self._file: IO[bytes] | None = None
        self._file_chunks = 0
        self._given = 0  # chunks that were ever free to take
        self._free: I64 = np.zeros(_CHUNKS_AT_ONCE, np.int64)
        self._fills: I64 = np.zeros(0, np.int64)
        self._last: I64 = np.zeros(0, np.int64)
        self._before: I64 = np.zeros(0, np.int64)
        self._owners = np.zeros(0, np.int32)
        self._spilled: dict[int, list[I64]] = {}  # by bucket, chunks in the file in their order
        self._slots = np.zeros(2 * kernels.CODES_MAX, np.int32)
        self._values: F32 = np.zeros((kernels.CODES_MAX, 2), np.float32)
        self._state: I64 = np.zeros(4, np.int64)
        self._item_counts: I64 = np.zeros(0, np.int64)
        self.users = self.items = 0
        self.held_out = HeldOut()

    @property
    def count(self) -> int:
        """Ratings kept."""
        return int(self._item_counts.sum())

    @property
    def item_counts(self) -> I64:
        """How often each item was rated, int64[items]."""
        return self._item_counts[: self.items]

    @property
    def values(self) -> F32:
        """Rating and weight by code, float32[codes, 2]."""
        return self._values[: max(1, int(self._state[2]))]

    @property
    def buckets(self) -> int:
        """Buckets of users, some of which may be empty."""
        return -(-self.users >> kernels.BUCKET_BITS) if self.users else 0

    @property
    def in_file(self) -> bool:
        """Whether some are in the file."""
        return self._file is not None

    def add(self, learned: Learned) -> None:
        """Keep what was learned of a minibatch; the recorder of an ``MfSolver``.

        Raises
        ------
        DataError
            There are more different ratings than can be told apart.
        ResourceError
            The file cannot be written.
        """
        held = learned.held != 0
        if held.any():
            self.held_out.add(learned.keys[held], learned.ratings[held], learned.weights[held])
        kept = learned.pairs[~held]
        if not len(kept):
            return
        self._expect(int(kept[:, 0].max()), int(kept[:, 1].max()))
        state = self._state
        state[0] = 0
        while True:
            record: Any = kernels.record  # numba's stubs count the arguments of another function
            record(
                learned.pairs, learned.ratings, learned.weights, learned.held, self._memory.words,
                self._free, self._fills, self._last, self._before, self._owners, self._slots,
                self._values, self._item_counts, state,
            )  # fmt: skip
            if state[3] == 0:
                return
            if state[3] == 2:
                raise DataError(
                    f"there are more than {kernels.CODES_MAX:,} different ratings (with their "
                    "weights), which is the most that further passes can keep",
                    hint="round the ratings, or learn in one pass: --epochs 1",
                )
            self._make_room()

    def _expect(self, user: int, item: int) -> None:
        """Make room for the counts of users and items up to these."""
        self.users = max(self.users, user + 1)
        buckets = self.buckets
        if buckets > len(self._fills):
            self._fills = _grown(self._fills, 2 * buckets, 0)
            self._last = _grown(self._last, 2 * buckets, -1)
        self.items = max(self.items, item + 1)
        if item >= len(self._item_counts):
            self._item_counts = _grown(self._item_counts, 2 * item + 1024, 0)

    def _make_room(self) -> None:
        if self._given < self._chunks_max:
            end = min(self._given + _CHUNKS_AT_ONCE, self._chunks_max)
            fresh = np.arange(end - 1, self._given - 1, -1)
            self._given = end
            self._before = _grown(self._before, end, -1)
            self._owners = _grown(self._owners, end, 0)
        else:
            fresh = self._spill()
        if len(fresh) > len(self._free):
            self._free = np.zeros(len(fresh), np.int64)
        self._free[: len(fresh)] = fresh
        self._state[1] = len(fresh)

    def _spill(self) -> I64:
        """Write every full chunk to the file; return those that are free now."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, prefix="ratings.")  # noqa: SIM115 - closed with this
        gone = []
        for bucket in np.flatnonzero(self._last[: self.buckets] >= 0).tolist():
            last = int(self._last[bucket])
            chain = self._chain(int(self._before[last]))
            self._before[last] = -1
            gone.append(chain)
            self._spilled.setdefault(bucket, []).append(
                np.arange(self._file_chunks, self._file_chunks + len(chain))
            )
            self._file_chunks += len(chain)
            try:
                self._file.write(self._words(chain).tobytes())
            except OSError as error:
                raise ResourceError(
                    f"cannot keep ratings in {self._directory}", cause=error.strerror
                ) from error
        free = np.concatenate(gone)
        if not len(free):
            raise ResourceError(
                f"tables.ratings_bytes_max = {self._bytes_max:,} bytes are too few for "
                f"{self.buckets:,} buckets of users, {_CHUNK_BYTES:,} bytes each at least",
                hint="raise tables.ratings_bytes_max",
            )
        return free

    def _chain(self, chunk: int) -> I64:
        """Return a chunk and those before it, the oldest first."""
        found = []
        while chunk >= 0:
            found.append(chunk)
            chunk = int(self._before[chunk])
        return np.array(found[::-1], np.int64)

    def _words(self, chunks: I64) -> U64:
        whole: U64 = self._memory.words.reshape(-1, kernels.CHUNK)[chunks]
        return whole

    def size(self, bucket: int) -> int:
        """Return how many ratings a bucket has."""
        last = int(self._last[bucket]) if bucket < len(self._last) else -1
        if last < 0:
            return 0
        chunks = sum(len(part) for part in self._spilled.get(bucket, ()))
        before = int(self._before[last])
        while before >= 0:
            chunks += 1
            before = int(self._before[before])
        return chunks * kernels.CHUNK + int(self._fills[bucket])

    def take(self, bucket: int, out: U64) -> int:
        """Move a bucket's ratings, in the order in which they came, to ``out``; return how many.

        Raises
        ------
        DataError
            The file is shorter than it was written.
        """
        n = 0
        for part in self._spilled.pop(bucket, ()):
            assert self._file is not None
            self._file.flush()
            size = len(part) * _CHUNK_BYTES
            data = os.pread(self._file.fileno(), size, int(part[0]) * _CHUNK_BYTES)
            if len(data) != size:
                raise DataError(
                    f"the file of kept ratings has {len(data):,} bytes where {size:,} were written"
                )
            words = np.frombuffer(data, np.uint64)
            out[n : n + len(words)] = words
            n += len(words)
        last = int(self._last[bucket]) if bucket < len(self._last) else -1
        if last < 0:
            return 0
        chain = self._chain(last)
        words = self._words(chain).reshape(-1)
        words = words[: len(words) - kernels.CHUNK + int(self._fills[bucket])]
        out[n : n + len(words)] = words
        self._last[bucket] = -1
        for first, end in _runs(np.sort(chain)):
            self._memory.discard(first * _CHUNK_BYTES, end * _CHUNK_BYTES)
        return n + len(words)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()


def _grown(array: Any, size: int, fill: int) -> Any:
    if size <= len(array):
        return array
    more = np.full(size, fill, array.dtype)
    more[: len(array)] = array
    return more


def _runs(ids: I64) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges ``[first, end)``."""
    if not len(ids):
        return []
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(ids, breaks)]
