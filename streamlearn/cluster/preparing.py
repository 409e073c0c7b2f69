"""A minibatch on its way: localised and cut by shard before the pull, stepped and encoded after it.

What a worker computes, without anything that waits. :class:`Preparer` belongs to the parse lane,
:class:`Stepper` to the step lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from streamlearn import columns
from streamlearn.cluster.batcher import Cut
from streamlearn.cluster.copies import NO_PLAN, Copies, Plan, copies_max
from streamlearn.cluster.users import Users
from streamlearn.config import JobConfig, MfConfig
from streamlearn.messages import F32, I64
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.progressive import Validation
from streamlearn.online.steps import Gradients, Step, Values, new_step
from streamlearn.online.totals import AnyTotals
from streamlearn.protocol import Mark, Pulled
from streamlearn.residuals import VectorResiduals

__all__ = ["Buffers", "Part", "Prepared", "Preparer", "Pushed", "Stepper", "codings", "marked"]

# What encoding lost is remembered for this many keys, 12 bytes each: the frequent ones, in the
# second-level cache.
_RESIDUAL_BITS: Final = 17
# And, of embeddings' gradients, for this many at most, and within this memory.
_VECTOR_RESIDUAL_BITS: Final = 15
_VECTOR_RESIDUAL_BYTES_MAX: Final = 64 << 20
_EMPTY: Final = memoryview(b"")
_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)
_CODINGS: Final = {
    "float32": columns.FLOAT32,
    "float16": columns.FLOAT16,
    "byte": columns.BYTE,
}


def codings(job: JobConfig) -> tuple[int, int]:
    """Return how weights and gradients travel."""
    tables = job.tables
    # most weights are zero where there is an L1 penalty
    return (
        _CODINGS[tables.pull_values] | columns.SPARSE,
        _CODINGS[tables.push_values] | (columns.SPARSE if tables.kkt > 0 else 0),
    )


@dataclass(slots=True)
class Buffers:
    """What one minibatch in flight is kept in; used again."""

    batch: Minibatch
    localized: Localized


@dataclass(frozen=True, slots=True)
class Part:
    """A minibatch's keys of one shard: ``keys[first:end]``, as they travel.

    Attributes
    ----------
    items : memoryview or None
        Of matrix factorization, which of them are items, as that travels.
    """

    first: int
    end: int
    keys: memoryview
    signature: int
    items: memoryview | None = None

    @property
    def count(self) -> int:
        """Keys."""
        return self.end - self.first


@dataclass(slots=True)
class Prepared:
    """A minibatch that can be pulled for.

    Attributes
    ----------
    cut : Cut
    buffers : Buffers
    parts : list of Part
        By shard.
    items : int64[u] or [0]
        Of matrix factorization, 1 for each key that is an item.
    plan : Plan
        What is done with copies.
    place : tuple of str, int, int
        Of a topic model: partition, pass and number of the minibatch.
    """

    cut: Cut
    buffers: Buffers
    parts: list[Part]
    items: I64
    plan: Plan = NO_PLAN
    place: tuple[str, int, int] = ("", 0, 0)


@dataclass(slots=True)
class Pushed:
    """What of a minibatch goes to one shard: encoded gradients and counts, and of which lengths.

    ``shares`` are of ``PushFactors``; ``documents``, ``topics`` and ``fit`` of PushTopics.
    """

    values: memoryview
    counts: memoryview
    lengths: memoryview = _EMPTY
    vectors: memoryview = _EMPTY
    shares: memoryview = _EMPTY
    documents: memoryview = _EMPTY
    topics: memoryview = _EMPTY
    fit: memoryview = _EMPTY


class Preparer:
    """Localises minibatches and encodes their keys.

    Parameters
    ----------
    job : JobConfig
    lows : sequence of int
        First prefix of each shard, in order.
    nnz_max : int
        Features of a minibatch.
    """

    def __init__(self, job: JobConfig, lows: Sequence[int], nnz_max: int) -> None:
        self._bounds = (*lows, 256)
        self._localizer = Localizer(nnz_max)
        self._intercept = job.model.intercept
        self._rated = isinstance(job.model, MfConfig)
        self._users_apart = isinstance(job.model, MfConfig) and job.model.users == "worker"

    def prepare(self, cut: Cut, buffers: Buffers) -> Prepared:
        """Localise a minibatch, and cut its keys by shard."""
        localized = self._localizer.localize(
            cut.batch, buffers.localized, intercept=self._intercept and cut.batch.rows > 0
        )
        items: I64 = np.zeros(localized.unique if self._rated else 0, np.int64)
        if self._rated:
            items[localized.inverse[1::2]] = 1
        if self._users_apart and localized.unique:
            users = items == 0
            users[: int(localized.intercept)] = False
            localized.set_aside(users)
            items[int(localized.intercept) : localized.shared] = 1
            items[localized.shared :] = 0
        bounds = localized.bounds(self._bounds)
        parts = []
        for shard, prefix in enumerate(self._bounds[:-1]):
            first, end = int(bounds[shard]), int(bounds[shard + 1])
            keys = columns.encode_keys(localized.keys[first:end], prefix << 56)
            told = columns.encode_lengths(items[first:end], (1,)).data if self._rated else None
            parts.append(Part(first, end, keys.data, columns.signature(keys), told))
        return Prepared(cut, buffers, parts, items)


class Stepper:
    """Steps minibatches with the weights that were pulled.

    Parameters
    ----------
    job : JobConfig
    rows_max : int
        Examples of a minibatch.
    validation : Validation
        Told of every example before it teaches.
    step : Step, optional
        What computes; by default that of the job's model.
    classes : int
        Scores of an example; 0: one number.

    Attributes
    ----------
    last : tuple of float, float, int
        Label, score and number of features of the last example.
    dropped : int
        Examples whose score was not finite, of which nothing was learned.
    users : Users or None
        Those of the partition that is learned, where they stand here.
    """

    def __init__(
        self,
        job: JobConfig,
        rows_max: int,
        validation: Validation,
        step: Step | None = None,
        classes: int = 0,
    ) -> None:
        self.users: Users | None = None
        self.last: tuple[float, float, int] = (np.nan, np.nan, 0)
        self.validation = validation
        self.dropped = 0
        self._step = step if step is not None else new_step(job.model, copies_max(job))
        self._tiers = job.model.tiers
        self._coding = codings(job)[1]
        self._kkt = job.tables.kkt
        # what is rounded, or not sent, comes later
        loses = self._coding & ~columns.SPARSE == columns.BYTE or self._kkt > 0
        self._residuals = columns.Residuals(_RESIDUAL_BITS) if loses else None
        self._vector_residuals = None
        if self._tiers is not None and self._coding & ~columns.SPARSE == columns.BYTE:
            dim, parts = self._tiers.dim, self._tiers.parts
            most = _VECTOR_RESIDUAL_BYTES_MAX // (4 * dim * parts)
            bits = min(_VECTOR_RESIDUAL_BITS, most.bit_length() - 1)
            self._vector_residuals = VectorResiduals(bits, dim, parts)
        self._l1 = float(job.model.l1)
        self._scores: F32 = np.zeros((rows_max, classes) if classes else rows_max, np.float32)
        self._weights: F32 = np.zeros(1, np.float32)

    def step(
        self, prepared: Prepared, pulled: Sequence[Pulled], seed: int, epoch: int
    ) -> tuple[list[Pushed], AnyTotals]:
        """Score and learn a minibatch.

        Parameters
        ----------
        pulled : sequence of Pulled
            By shard.
        seed : int
            Of the rounding; a new one for each minibatch.
        epoch : int
            Pass over the source, from 0; occurrences are told in the first.

        Returns
        -------
        list of Pushed
            By shard.
        AnyTotals
            Of the minibatch's examples.

        Raises
        ------
        ColumnError
            A shard sent something else than weights.
        """
        batch, localized = prepared.cut.batch, prepared.buffers.localized
        taken = self._decode(prepared, pulled)
        weights = taken.weights
        before = self.validation.sums()
        rows = batch.rows
        vectors, dims, shares = _NO_VECTORS, taken.dims, columns.NOTHING
        if rows:
            stepped = self._step.step(batch, localized, taken, self._scores, seed, epoch)
            gradients, vectors = stepped.weights, stepped.vectors
            shares = stepped.shares
            dims = stepped.dims if stepped.dims is not None else dims
            self.dropped += stepped.dropped
            self.validation.update(self._scores[:rows], batch.labels[:rows], batch.weights[:rows])
            features = int(batch.indptr[rows] - batch.indptr[rows - 1])
            score = self.validation.last_score(self._scores[:rows])
            self.last = (float(batch.labels[rows - 1]), score, features)
        else:
            gradients = np.zeros(0, np.float32)
        shared = localized.shared
        if self.users is not None and rows:
            vectors = self._hold_users(localized, stepped, epoch)
            gradients, dims = gradients[:shared], dims[:shared]
            weights = weights[:shared]
        keys = localized.keys[:shared]
        wanted = gradients
        if self._residuals is not None and len(keys):
            self._residuals.add(keys, gradients)
            if self._kkt > 0:
                wanted = gradients.copy()
                columns.unsent(
                    weights, gradients, self._l1, self._kkt, has_intercept=localized.intercept
                )
        pushed_vectors = self._encode_vectors(prepared, dims, vectors, seed)
        pushed = []
        decoded = np.zeros(len(keys), np.float32) if self._residuals is not None else None
        for shard, part in enumerate(prepared.parts):
            values = gradients[part.first : part.end]
            column = columns.encode_values(values, self._coding, seed * 1024 + shard)
            if decoded is not None:
                columns.decode_values(
                    column, part.count, self._coding, decoded[part.first : part.end]
                )
            told = localized.counts[part.first : part.end] if epoch == 0 else None
            lengths = pulled[shard].lengths
            if self._tiers is not None and dims is not taken.dims:
                there = dims[part.first : part.end]
                lengths = columns.encode_lengths(there, self._tiers.dims).data
            pushed.append(
                Pushed(
                    column.data,
                    columns.encode_counts(told).data if told is not None else _EMPTY,
                    lengths,
                    pushed_vectors[shard],
                    shares[2 * part.first : 2 * part.end].data,
                )
            )
        if decoded is not None and self._residuals is not None and len(keys):
            self._residuals.keep(keys, wanted, decoded)
        return pushed, self.validation.totals_of(self.validation.sums() - before)

    def _hold_users(self, localized: Localized, stepped: Gradients, epoch: int) -> F32:
        """Hand what is of users that stand here to them; return what of factors is of others."""
        assert self.users is not None
        assert self._tiers is not None
        assert stepped.dims is not None
        shared = localized.shared
        edge = int(stepped.dims[:shared].sum()) * self._tiers.parts
        self.users.hold(
            localized.keys[shared:],
            stepped.weights[shared:],
            localized.counts[shared:] if epoch == 0 else None,
            stepped.dims[shared:],
            stepped.vectors[edge:],
            stepped.shares[2 * shared :],
        )
        return stepped.vectors[:edge]

    def try_out(self, batch: Minibatch, localized: Localized) -> None:
        """Step a minibatch with weights of zero, so that kernels are there when they are needed."""
        values = Values(np.zeros(localized.unique, np.float32))
        if self._tiers is not None:
            dims = np.full(localized.unique, self._tiers.dim, np.int64)
            dims[: int(localized.intercept)] = 0
            vectors = np.zeros(int(dims.sum()) * self._tiers.parts, np.float32)
            values = Values(values.weights, dims, [vectors])
            if self._vector_residuals is not None:
                self._vector_residuals.add(localized.keys, dims, vectors)
                self._vector_residuals.keep(localized.keys, dims, vectors, vectors)
        self._step.step(batch, localized, values, self._scores, 0)
        copies, some = Copies(2, 1), np.ones(localized.unique, np.int64)
        copies.answered(copies.plan(localized.keys, some, 0), localized.keys, 0, 1, 0)
        rows = batch.rows
        self.validation.update(self._scores[:rows], batch.labels[:rows], batch.weights[:rows])
        self.validation.summary()

    def close(self) -> None:
        """End what it computes with."""

    def _encode_vectors(
        self, prepared: Prepared, dims: I64, vectors: F32, seed: int
    ) -> list[memoryview]:
        """Encode embeddings' gradients by shard, with what was lost before and is held."""
        if self._tiers is None:
            return [_EMPTY] * len(prepared.parts)
        keys = prepared.buffers.localized.keys[: len(dims)]
        coding, residuals = self._coding & ~columns.SPARSE, self._vector_residuals
        if residuals is not None:
            residuals.add(keys, dims, vectors)
        decoded = np.empty_like(vectors)
        encoded = []
        first = 0
        for shard, part in enumerate(prepared.parts):
            end = first + int(dims[part.first : part.end].sum()) * self._tiers.parts
            # other dice than those of the weights
            dice = seed * 1024 + 512 + shard
            column = columns.encode_values(vectors[first:end], coding, dice)
            if residuals is not None:
                columns.decode_values(column, end - first, coding, decoded[first:end])
            encoded.append(column.data)
            first = end
        if residuals is not None:
            residuals.keep(keys, dims, vectors, decoded)
        return encoded

    def _decode(self, prepared: Prepared, pulled: Sequence[Pulled]) -> Values:
        unique = prepared.buffers.localized.unique
        if len(self._weights) < unique:
            self._weights = np.zeros(2 * unique, np.float32)
        weights = self._weights[:unique]
        for part, answer in zip(prepared.parts, pulled, strict=True):
            columns.decode_values(
                answer.values, part.count, answer.coding, weights[part.first : part.end]
            )
        if self._tiers is None:
            return Values(weights)
        dims = np.zeros(unique, np.int64)
        vectors = []
        for part, answer in zip(prepared.parts, pulled, strict=True):
            there = columns.decode_lengths(answer.lengths, part.count, self._tiers.dims)
            dims[part.first : part.end] = there
            total = int(there.sum()) * self._tiers.parts
            coding = answer.coding & ~columns.SPARSE
            vectors.append(columns.decode_values(answer.vectors, total, coding))
        shared = prepared.buffers.localized.shared
        if self.users is not None and shared < unique:
            own = self.users.pull(prepared.buffers.localized.keys[shared:])
            weights[shared:], dims[shared:] = own[:2]
            vectors.append(own[2])
        return Values(weights, dims, vectors, *prepared.plan)


def marked(before: Mark, cut: Cut, totals: AnyTotals, stored_bytes: int) -> Mark:
    """Return where a partition stands once a minibatch is applied.

    Parameters
    ----------
    before : Mark
        Where it stood, in the same pass; of the kind that has the sums of ``totals``.
    """
    sums = {name: getattr(before, name) + more for name, more in totals._asdict().items()}
    return msgspec.structs.replace(
        before,
        sequence=before.sequence + 1,
        offset=cut.offset,
        records=cut.records,
        done=cut.done,
        bad_records=before.bad_records + len(cut.bad),
        subsampled=before.subsampled + int(cut.batch.state[4]),
        bytes=before.bytes + max(0, cut.offset - before.offset),
        stored_bytes=before.stored_bytes + stored_bytes,
        **sums,
    )
