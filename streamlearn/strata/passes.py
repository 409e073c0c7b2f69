"""Further passes: kept ratings arranged in tiles, and swept by lanes on disjoint users and items.

With L lanes the users of a bucket are cut into L parts and the items into L classes, alike in
popularity; L times in a bucket each lane takes its own users and a class that no other has, so no
row is anybody else's meanwhile. What comes out is a function of the ratings, their order and L.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final, TypeVar, cast

import numpy as np

from streamlearn.compute.kernels import ridge
from streamlearn.compute.kernels import strata as kernels
from streamlearn.compute.kernels.factors import ITEM
from streamlearn.config import MfConfig
from streamlearn.errors import DataError, DivergedError, ResourceError
from streamlearn.messages import F32, F64, I32, I64, U32, U64
from streamlearn.online.losses import new_validation
from streamlearn.online.mf import numbers_of, rates_of
from streamlearn.online.progressive import Validation
from streamlearn.online.totals import RatingTotals
from streamlearn.shards.memory import Reservation
from streamlearn.shards.table import ExactTable
from streamlearn.strata.ratings import KeptRatings
from streamlearn.strata.rows import FactorRows
from streamlearn.strata.sampling import Sampling

__all__ = ["Passes", "Tiling", "cache_bytes"]

_T = TypeVar("_T")


_BUCKET: Final = 1 << kernels.BUCKET_BITS
_CACHE_FILE: Final = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_CACHE_DEFAULT: Final = 1 << 20
# A block of users has half of the second cache, a tier of items so many second caches: what is ours
# of the third.
_TIER_CACHES: Final = 16
# Two items and four users then fit in the first cache. (At dim 32 two that take turns are learned
# 1.10 times as fast, three or four hardly faster; from 256 on it makes no difference.)
_WOVEN_ROW_BYTES: Final = 1024
# Rows that share no cache line whatever they are: 16 biases.
_ROWS_APART: Final = 16
# Ratings whose scores are looked at together where the sums alone do not tell enough.
_PIECE: Final = 1 << 14
# A smaller limit is not held against a bucket that is arranged.
_ROOM_MIN: Final = 4 << 20
_NO_PLACES: Final[U32] = np.zeros(0, np.uint32)


def cache_bytes() -> int:
    """Return the size of this machine's second-level cache, or a common one."""
    try:
        text = _CACHE_FILE.read_text().strip()
        return int(text.removesuffix("K")) << (10 if text.endswith("K") else 0)
    except (OSError, ValueError):
        return _CACHE_DEFAULT


@dataclass(frozen=True, slots=True)
class Tiling:
    """How ratings are arranged.

    Attributes
    ----------
    lanes : int
        Parts of users, and classes of items.
    block : int
        Users of a block, a power of two.
    stride : int
        Places of a class of items.
    tier : int
        Places of a tier.
    weaves : bool
        Whether two items take turns (``kernels.strata.arrange``).
    """

    lanes: int
    block: int
    stride: int
    tier: int
    weaves: bool = False

    @classmethod
    def fitting(cls, cache: int, row_bytes: int, users: int, items: int, lanes: int) -> Tiling:
        """Return the tiling for a second cache of so many bytes."""
        block = max(_ROWS_APART, min(cache // 2 // row_bytes, _BUCKET))
        if lanes > 1:  # so that parts come out alike
            block = max(_ROWS_APART, min(block, min(users, _BUCKET) // (4 * lanes)))
        stride = -(-items // lanes)
        stride = max(1, -(-stride // _ROWS_APART)) * _ROWS_APART
        tier = max(_ROWS_APART, min(_TIER_CACHES * cache // row_bytes, stride))
        weaves = row_bytes <= _WOVEN_ROW_BYTES
        return cls(lanes, 1 << block.bit_length() - 1, stride, tier, weaves)

    @property
    def tiers(self) -> int:
        """Tiers of a class."""
        return -(-self.stride // self.tier)

    @property
    def blocks(self) -> int:
        """Blocks of a bucket."""
        return _BUCKET // self.block

    def places(self, counts: I64) -> U32:
        """Return the place of each item by how often it was rated: by popularity, in classes."""
        rank = np.empty(len(counts), np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        return (rank % self.lanes * self.stride + rank // self.lanes).astype(np.uint32)

    def parts(self, words: U64) -> I32:
        """Return part and block of each user of a bucket, int32[BUCKET, 2], parts of like size."""
        user = np.arange(_BUCKET)
        block = user // self.block
        part = np.zeros(_BUCKET, np.int64)
        if self.lanes > 1:
            of = (words >> np.uint64(kernels.CODE_BITS)) & np.uint64(_BUCKET - 1)
            before = np.zeros(self.blocks, np.int64)
            counts = np.bincount(of.astype(np.int64) // self.block, minlength=self.blocks)
            np.cumsum(counts[:-1], out=before[1:])
            middle = before + counts // 2
            part = np.minimum(middle * self.lanes // max(1, len(words)), self.lanes - 1)[block]
        return np.stack([part, block], axis=1).astype(np.int32)


@dataclass(slots=True)
class _Bucket:
    """A bucket's ratings, arranged: where they are, and where each part and class begins.

    ``labels`` (float64[parts * classes, 4]) is what the ratings of each say by themselves.
    """

    offset: int
    count: int
    starts: I64
    blocks_of: I32
    labels: F64


class Passes:
    """Ratings and rows, ready to be swept.

    Parameters
    ----------
    model : MfConfig
    table : ExactTable
        Whose factors are taken out of it, until :meth:`close`.
    kept : KeptRatings
        Whose ratings are taken out of it.
    b0 : float
    lanes : int
    bytes_max : int
        Named limit (``tables.ratings_bytes_max``), where ratings are kept in a file.
    directory : Path
        Of that file.
    cache : int, optional
        Bytes of the second cache; by default this machine's.
    seed : bytes, optional
        Of a private model, see :class:`~streamlearn.strata.sampling.Sampling`.

    Attributes
    ----------
    buckets : int
    count, duplicates : int
        Ratings, and how many were left out as the same user rated the same item later.
    rows : FactorRows
    tiling : Tiling
    sampling : Sampling or None
        What draws the rows of a private model.
    """

    def __init__(
        self,
        model: MfConfig,
        table: ExactTable,
        kept: KeptRatings,
        b0: float,
        *,
        lanes: int,
        bytes_max: int,
        directory: Path,
        cache: int = 0,
        seed: bytes = b"",
    ) -> None:
        assert table.arena is not None
        self._model, self._table = model, table
        self._b0 = np.float32(b0)
        tiers = table.arena.geometry.tiers
        items, users = len(kept.item_counts), kept.users
        row_bytes = 64 * tiers.lines(tiers.dim)
        self.tiling = Tiling.fitting(cache or cache_bytes(), row_bytes, users, items, lanes)
        self._places = self.tiling.places(kept.item_counts)
        self._values, self._zero = _with_zeros(kept.values, model)
        self._even = bool((kept.values[:, 1] == 1).all())
        self.buckets = kept.buckets
        self._file: IO[bytes] | None = None
        sizes = [kept.size(bucket) for bucket in range(self.buckets)]
        largest = max(sizes, default=0)
        expands = 1 + (model.negatives if model.loss == "logistic" else 0)
        self._scratch: U64 = np.empty(largest * expands, np.uint64)
        self._drawn: U64 = np.empty(largest * expands if expands > 1 else 0, np.uint64)
        if kept.in_file:
            self._check_fits(largest, bytes_max)
            self._file = tempfile.TemporaryFile(dir=directory, prefix="ratings.")  # noqa: SIM115 - closed by `close`
        self._words: U64 = (
            np.empty(largest, np.uint64)
            if self._file
            else Reservation(max(8, 8 * sum(sizes))).words
        )
        self._ahead: U64 = np.empty(largest if self._file else 0, np.uint64)
        self._buckets = self._arrange(kept, sizes)
        self.count = sum(bucket.count for bucket in self._buckets)
        self.duplicates = sum(sizes) - self.count
        kept.close()
        self.rows = FactorRows(table, users, self._places, self.tiling.stride * self.tiling.lanes)
        self._held = self._find(kept)
        self._pool = ThreadPoolExecutor(lanes + 1, thread_name_prefix="lane-sweep")
        self._next: tuple[int, Future[U64]] | None = None
        self.sampling: Sampling | None = None
        if model.epsilon:
            self.sampling = self._sample_by(Sampling(model, self.rows, self._values, seed))

    def _sample_by(self, sampling: Sampling) -> Sampling:
        for number, bucket in enumerate(self._buckets):
            sampling.weigh(number, self._load(number), bucket.count)
        sampling.begin(self._table)
        self._b0 = np.float32(sampling.mean)
        return sampling

    def _check_fits(self, largest: int, bytes_max: int) -> None:
        need = 8 * (len(self._scratch) + len(self._drawn) + 2 * largest)
        if need > max(bytes_max, _ROOM_MIN):
            raise ResourceError(
                f"a bucket of {_BUCKET:,} users has {largest:,} ratings, which take {need:,} bytes "
                f"to arrange, but tables.ratings_bytes_max = {bytes_max:,}",
                hint="raise tables.ratings_bytes_max",
            )

    def _arrange(self, kept: KeptRatings, sizes: list[int]) -> list[_Bucket]:
        found, offset = [], 0
        for number, size in enumerate(sizes):
            at = 0 if self._file else offset
            words = self._words[at : at + size]
            taken = kept.take(number, words)
            assert taken == size, (taken, size)
            blocks_of = self.tiling.parts(words)
            starts = np.zeros(self.tiling.lanes**2 + 1, np.int64)
            left = self._tile(words, size, self._places, blocks_of, starts)
            if self._file is not None:
                self._write(words[:left])
            labels = np.zeros((len(starts) - 1, 4))
            for which, sums in enumerate(labels):
                first, end = int(starts[which]), int(starts[which + 1])
                kernels.label_sums(words, first, end, self._values, sums)
            found.append(_Bucket(offset, left, starts, blocks_of, labels))
            offset += left
        return found

    def _tile(self, words: U64, n: int, places: U32, blocks_of: I32, starts: I64) -> int:
        tiling = self.tiling
        return int(
            kernels.arrange(
                words, self._scratch, n, places, blocks_of, tiling.lanes, tiling.stride,
                tiling.tier, tiling.tiers, tiling.blocks, int(tiling.weaves), starts,
            )
        )  # fmt: skip

    def _write(self, words: U64) -> None:
        assert self._file is not None
        try:
            self._file.write(words.tobytes())
            self._file.flush()
        except OSError as error:
            raise ResourceError("cannot keep ratings", cause=error.strerror) from error

    def _find(self, kept: KeptRatings) -> tuple[I64, F32, F32]:
        """Return the held-out ratings by numbers and places, -1 for who was never met."""
        keys, ratings, weights = kept.held_out.all()
        return self._pairs(keys), ratings, weights

    def _pairs(self, keys: U64) -> I64:
        """Return users' numbers and items' places by their keys (uint64[n, 2]), -1 for none."""
        pairs = np.full(keys.shape, -1, np.int64)
        for column in (0, 1):
            slots = self._table.find(np.ascontiguousarray(keys[:, column]))
            there = np.flatnonzero(slots >= 0)
            numbers = numbers_of(self._table.rows_at(slots[there])[:, 1])
            met = (numbers & ~ITEM) > 0
            at = (numbers[met] & ~ITEM).astype(np.int64) - 1
            pairs[there[met], column] = self._places[at] if column else at
        return pairs

    # ---------------------------------------------------------------- sweeping

    def sweep(self, number: int, epoch: int, validation: Validation) -> tuple[int, int]:
        """Learn a bucket's ratings, each predicted first; return how many, and how many dropped.

        Parameters
        ----------
        number : int
            Of the bucket.
        epoch : int
            Of the pass, from 0: what its step goes by.
        validation : Validation
            Told of each rating.
        """
        bucket = self._buckets[number]
        words = self._load(number)
        count, starts = bucket.count, bucket.starts
        if len(self._drawn):
            seed = np.uint64((epoch << 32) + number + 1)
            count = int(
                kernels.draw_negatives(
                    words, count, self._values, self._zero, self._model.negatives,
                    self._places, seed, self._drawn,
                )
            )  # fmt: skip
            words, starts = self._drawn, np.zeros_like(starts)
            count = self._tile(words, count, _NO_PLACES, bucket.blocks_of, starts)
        rates = rates_of(self._model, epoch)
        lanes = self.tiling.lanes
        dropped = 0
        for phase in range(lanes):
            tasks = []
            for lane in range(lanes):
                which = lane * lanes + (lane + phase) % lanes
                first, end = int(starts[which]), int(starts[which + 1])
                labels = bucket.labels[which]
                tasks.append(self._task(number, words, first, end, rates, labels))
            for told, lost in self._run(tasks):
                validation.merge_part(told)
                dropped += lost
        if self.sampling is not None and number + 1 == self.buckets:
            self.sampling.settle()
        return count, dropped

    def _task(
        self, number: int, words: U64, first: int, end: int, rates: F32, labels: F64
    ) -> Callable[[], tuple[Validation, int]]:
        rows, model = self.rows, self._model
        if self.sampling is not None:
            return self.sampling.task(number, words, first, end, float(rates[0]))
        size = rows.lines * 64
        base = number * _BUCKET
        users = rows.users.ctypes.data + base * size
        items = rows.items.ctypes.data
        biases = rows.user_biases[base : base + _BUCKET]

        def task() -> tuple[Validation, int]:
            told = new_validation(model, max(1, end - first))
            if model.loss == "squared":
                sums: F64 = np.zeros(3)
                learn = kernels.sweep if self._even else kernels.sweep_weighted
                done = learn(
                    words, first, end, users, items, rows.lines, biases, rows.item_biases,
                    self._values, self._b0, rates, sums,
                )  # fmt: skip
                if done < 0:
                    raise DivergedError(
                        f"factors grow without bound at a step of {rates[0]:g}",
                        hint="take a smaller model.alpha (0.05 / s for ratings that deviate by s)",
                    )
                squares, absolutes, errors = sums
                rating, rating_square, weight, count = labels
                told.set_totals(
                    RatingTotals(
                        squares, absolutes, rating, rating_square, rating - errors, weight,
                        int(count),
                    )
                )  # fmt: skip
                return told, 0
            scores, ratings, weights = (np.zeros(_PIECE, np.float32) for _ in range(3))
            dropped = 0
            for start in range(first, end, _PIECE):
                stop = min(start + _PIECE, end)
                dropped += int(
                    kernels.sweep_clicks(
                        words, start, stop, users, items, rows.lines, biases, rows.item_biases,
                        self._values, self._b0, rates, scores, ratings, weights,
                    )
                )  # fmt: skip
                n = stop - start
                told.update(scores[:n], ratings[:n], weights[:n])
            return told, dropped

        return task

    def _run(self, tasks: Sequence[Callable[[], _T]]) -> list[_T]:
        futures = [self._pool.submit(task) for task in tasks]
        return [future.result() for future in futures]

    def _load(self, number: int) -> U64:
        """Return a bucket's ratings; the next bucket's are read meanwhile, where from a file."""
        bucket = self._buckets[number]
        if self._file is None:
            return self._words[bucket.offset : bucket.offset + bucket.count]
        if self._next is not None and self._next[0] == number:
            words = self._next[1].result()
        else:
            words = self._read(number, self._words)
        free = self._ahead if words is self._words else self._words
        after = (number + 1) % self.buckets
        self._next = (after, self._pool.submit(self._read, after, free))
        return words

    def _read(self, number: int, out: U64) -> U64:
        assert self._file is not None
        bucket = self._buckets[number]
        size = 8 * bucket.count
        view = memoryview(cast("Any", out.view(np.uint8)))[:size]
        done = 0
        while done < size:
            got = os.preadv(self._file.fileno(), [view[done:]], 8 * bucket.offset + done)
            if not got:
                raise DataError(
                    f"the file of kept ratings ends at byte {8 * bucket.offset + done:,}, but "
                    f"{8 * self.count:,} were written"
                )
            done += got
        return out

    def fit_users(self, number: int) -> None:
        """Have the row of each user of a bucket be what its own ratings say, items as they are."""
        bucket, rows = self._buckets[number], self.rows
        words, n = self._load(number), bucket.count
        starts: I64 = np.zeros(_BUCKET + 1, np.int64)
        order: I64 = np.zeros(n, np.int64)
        ridge.by_user(words, n, starts, order)
        part = slice(number * _BUCKET, (number + 1) * _BUCKET)
        users, biases = rows.users[part], rows.user_biases[part]

        def task(first: int, end: int) -> Callable[[], None]:
            return lambda: ridge.fit_users(
                words, starts, order, first, end, users, rows.items, biases, rows.item_biases,
                self._values, self._b0, rows.dim, self._model.l2,
            )  # fmt: skip

        lanes = self.tiling.lanes
        ends = np.searchsorted(starts[: len(users)], np.arange(1, lanes) * n / lanes)
        self._run([task(*cut) for cut in pairwise([0, *ends.tolist(), len(users)])])

    def held_out(self, window: int) -> Validation | None:
        """Score the ratings that are held out; None where there are none."""
        pairs, ratings, weights = self._held
        if not len(ratings):
            return None
        validation = new_validation(self._model, window)
        for first in range(0, len(ratings), _PIECE):
            part = slice(first, first + _PIECE)
            validation.update(self._predict(pairs[part]), ratings[part], weights[part])
        return validation

    def scored(self, keys: U64) -> F32:
        """Return the scores of pairs of users and items, uint64[n, 2], as the rows are now."""
        return self._predict(self._pairs(keys))

    def _predict(self, pairs: I64) -> F32:
        rows, scores = self.rows, np.empty(len(pairs), np.float32)
        kernels.predict(
            pairs, rows.users.ctypes.data, rows.items.ctypes.data, rows.lines, rows.user_biases,
            rows.item_biases, self._b0, scores,
        )  # fmt: skip
        return scores

    def close(self, *, give_back: bool = True) -> None:
        """End the lanes; put the rows back into the table."""
        self._pool.shutdown()
        if self._file is not None:
            self._file.close()
        if give_back:
            self.rows.give_back()


def _with_zeros(values: F32, model: MfConfig) -> tuple[F32, I64]:
    """Return rating and weight by code, and of each code that of a 0 of the same weight."""
    if not (model.loss == "logistic" and model.negatives):
        return values.copy(), np.zeros(0, np.int64)
    zeros = values.copy()
    zeros[:, 0] = 0
    return np.concatenate([values, zeros]), np.arange(len(values), 2 * len(values))
