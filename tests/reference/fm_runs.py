"""The same examples learned in several ways, and how far they may be apart from the slow twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamlearn import columns
from streamlearn.config import ClusterConfig, FmConfig, JobConfig
from streamlearn.lanes import Parcel, Portion
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.steps import Values, new_step
from streamlearn.shards.arena import Arena
from streamlearn.shards.cut import Nothing
from streamlearn.shards.shard import INTERCEPT_KEY, Shard, ShardSpec
from streamlearn.shards.table import ExactTable
from tests.reference.embeddings import Embedding, embeddings_of
from tests.reference.fm import WORD, Machine, slopes
from tests.reference.tables import Learning, image, minibatch
from tests.shard_parts import push

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.online.minibatch import Minibatch

MIX = 0x9E3779B97F4A7C15
COUNT = (1 << 32) - 1
NOTHING = Nothing()
State = dict[int, tuple[float, float, int]]


def stays(number: int, dropout: float) -> bool:
    """Return whether dropout leaves the number of a gradient that chance gives this."""
    h = number * MIX & WORD
    h = (h ^ h >> 32) * MIX & WORD
    return bool(np.float32(h >> 40) * np.float32(2.0**-24) < np.float32(1) - np.float32(dropout))


def embedded_masks(twin: Machine, keys: list[int]) -> dict[int, NDArray[Any]]:
    """Return what dropout leaves of an example's gradients, as the fused kernel draws it."""
    out = {}
    chance = sum(keys) & WORD
    for key in keys:
        seen = twin.rows[key].count if key in twin.rows else 0
        seed = ((chance ^ key) + seen) * MIX & WORD
        out[key] = np.array(
            [
                [stays(seed + part * 1024 + f & WORD, twin.config.v_dropout) for f in range(dim)]
                for part in range(twin.tiers.parts)
                for dim in [twin.used(key)]
            ]
        )
    return out


def step_masks(twin: Machine, keys: list[int], seed: int) -> dict[int, NDArray[Any]]:
    """Return the same as a worker draws it, for a minibatch."""
    out, at = {}, 0
    for key in sorted(set(keys)):
        shape = (twin.tiers.parts, twin.used(key))
        numbers = range(at, at + shape[0] * shape[1])
        drawn = [stays(seed + i & WORD, twin.config.v_dropout) for i in numbers]
        out[key] = np.array(drawn).reshape(shape)
        at = numbers.stop
    return out


class Bounded(Machine):
    """A twin that knows how far float32 may be from it.

    Attributes
    ----------
    moved : dict of int to float64[order - 1, dim]
        By key, the sizes of all steps of each coordinate, summed.
    """

    def __init__(self, config: FmConfig, step_error: float) -> None:
        super().__init__(config)
        self.step_error = step_error
        self.moved: dict[int, NDArray[np.float64]] = {}

    def learn_one(self, keys: list[int], batch: Minibatch, **more: Any) -> float:
        """Learn a minibatch of one example; return its score before."""
        before = {key: self.rows[key].V for key in keys if key in self.rows}
        score = float(self.learn(batch, **more)[0])
        for key in keys:
            V = self.rows[key].V
            sums = self.moved.get(key, np.zeros((V.shape[0], 0)))
            self.moved[key] = np.zeros(V.shape)
            self.moved[key][:, : sums.shape[1]] = sums
            if key in before:
                old = before[key]
                self.moved[key][:, : old.shape[1]] += np.abs(V[:, : old.shape[1]] - old)
        return score

    def off_by(self, key: int) -> float:
        """Return how far an embedding's coordinates may be off.

        Each step is off by ``step_error`` of itself, and all of them together bend the steps that
        follow: at most as much again while steps are few and small.
        """
        moved = self.moved.get(key)
        most = float(moved.max()) if moved is not None and moved.size else 0.0
        return 2 * self.step_error * most + 1e-6

    def score_off_by(self, keys: list[int], x: NDArray[np.float64]) -> float:
        """Return how far the score of an example may be off, before it is learned."""
        _, _, V, x, lengths = self._dense(keys, x)
        by_V = np.abs(slopes(V, x, lengths)).sum(axis=(0, 2))
        V_part = sum(float(s) * self.off_by(key) for s, key in zip(by_V, keys, strict=True))
        return V_part + (1 + float(np.abs(x).sum())) * self.weight_off_by()

    def weight_off_by(self) -> float:
        """Return how far a weight may be off: a score that is off moves gradients by a quarter."""
        worst = max((self.off_by(key) for key in self.moved), default=0.0)
        return 1e-5 + worst


class Embedded:
    """On a table in the process; ``resolved``: rows are known before."""

    step_error = 2.0**-10  # ``kernels.vectors``: by estimates of roots

    def __init__(self, config: FmConfig, *, resolved: bool = False) -> None:
        self.table = ExactTable(100_000)
        Arena.of(self.table, config, 1 << 40)
        self.learning = Learning(self.table, config)
        self.resolved = resolved

    def learn(self, batch: Minibatch, *, counts: bool = True) -> NDArray[np.float32]:
        solver, scratch = self.learning.solver, self.learning.scratch
        solver.counting = counts
        if not self.resolved:
            return self.learning.learn(batch)
        keys = batch.keys[: batch.nnz]
        distinct = np.unique(keys)
        self.table.insert(distinct, self.table.find(distinct), NOTHING)
        slots = np.zeros(len(batch.keys), np.uint32)
        slots[: batch.nnz] = self.table.find(keys)
        return solver.learn_resolved(batch, slots, scratch, NOTHING, 1).copy()

    def masks(self, twin: Machine, keys: list[int]) -> dict[int, NDArray[Any]]:
        return embedded_masks(twin, keys)

    def state(self) -> State:
        """Return z, n and count of each key."""
        return state_of(self.table)

    def embeddings(self) -> dict[int, Embedding]:
        return embeddings_of(self.table)


class Sharded:
    """By pulls and pushes of a shard, encoded as they travel, one after the other."""

    step_error = 2.0**-20

    def __init__(self, config: FmConfig) -> None:
        job = JobConfig(model=config, cluster=ClusterConfig(name="test"))
        self.spec = ShardSpec(0, 1, job, "s", 100_000)
        self.shard = Shard(self.spec)
        self.step = new_step(config)
        self.seed = 0
        self.dropped = 0

    @property
    def table(self) -> ExactTable:
        return self.shard.table

    def learn(self, batch: Minibatch, *, counts: bool = True) -> NDArray[np.float32]:
        localized = Localizer(batch.nnz_max).localize(
            batch, Localized(batch.nnz_max), intercept=self.step.intercept
        )
        shard, keys = self.shard, localized.keys.copy()
        located = shard.locate(keys)
        weights = shard.values(located)
        lengths, packed = shard.vectors(located, weights, columns.FLOAT32)
        tiers = self.spec.job.model.tiers
        dims = columns.decode_lengths(lengths, len(keys), tiers.dims)
        total = int(dims.sum()) * tiers.parts
        vectors = columns.decode_values(packed, total, columns.FLOAT32)
        scores = np.zeros(batch.rows, np.float32)
        values = Values(weights, dims, [vectors])
        gradients = self.step.step(batch, localized, values, scores, self.seed)
        self.dropped += gradients.dropped
        record = push(
            self.spec, keys, gradients.weights, clock=shard.lsn, counts=False, dims=dims,
            vectors=gradients.vectors,
        )  # fmt: skip
        decoded = shard.decode_gradients(record)
        if counts:
            told = columns.encode_counts(localized.counts)
            decoded = type(decoded)(
                decoded.values, columns.decode_counts(told, len(keys)), dims, decoded.vectors
            )
        shard.apply(shard.lsn + 1, record, None, decoded)
        self.seed += 1
        return scores

    def masks(self, twin: Machine, keys: list[int]) -> dict[int, NDArray[Any]]:
        return step_masks(twin, keys, self.seed)

    def state(self) -> State:
        out = state_of(self.table)
        out.pop(INTERCEPT_KEY, None)
        return out

    def embeddings(self) -> dict[int, Embedding]:
        return embeddings_of(self.table)


class Laned:
    """By a worker lane's step and the portion of a shard lane, one after the other."""

    step_error = 2.0**-20

    def __init__(self, config: FmConfig) -> None:
        self.table = ExactTable(100_000)
        Arena.of(self.table, config, 1 << 40)
        self.portion = Portion(0, self.table, config, (0, 256))
        self.step = new_step(config)
        self.seed = 0
        self.dropped = 0

    def learn(self, batch: Minibatch, *, counts: bool = True) -> NDArray[np.float32]:
        parcel = Parcel(batch.rows_max, batch.nnz_max, 1)
        localized = Localizer(batch.nnz_max).localize(
            batch, parcel.localized, intercept=self.step.intercept
        )
        parcel.bounds[:] = localized.bounds((0, 256))
        parcel.counting = counts
        self.portion.pull(parcel)
        parcel.gradients = self.step.step(batch, localized, parcel.values, parcel.scores, self.seed)
        self.dropped += parcel.gradients.dropped
        self.portion.push(parcel)
        self.seed += 1
        return parcel.scores[: batch.rows].copy()

    def masks(self, twin: Machine, keys: list[int]) -> dict[int, NDArray[Any]]:
        return step_masks(twin, keys, self.seed)

    def state(self) -> State:
        return state_of(self.table)

    def embeddings(self) -> dict[int, Embedding]:
        return embeddings_of(self.table)


def state_of(table: ExactTable) -> State:
    """Return z, n and count by key."""
    rows = image(table)
    columns_ = np.ascontiguousarray(rows[:, 1]).view(np.float32).reshape(-1, 2)
    counts = (rows[:, 2] & np.uint64(COUNT)).tolist()
    return {
        key: (*numbers, count)
        for key, numbers, count in zip(rows[:, 0].tolist(), columns_.tolist(), counts, strict=True)
    }


def vocabulary(size: int, seed: int = 0) -> list[int]:
    """Return so many keys, ascending, none of them the intercept's."""
    keys = np.random.default_rng(seed).integers(1 << 8, 1 << 63, size, np.uint64)
    return np.unique(keys << np.uint64(1) | np.uint64(1)).tolist()


def some_examples(count: int, seed: int, *, values: bool) -> list[Minibatch]:
    """Return minibatches of one example each, no key twice in it, some without features."""
    rng = np.random.default_rng(seed)
    keys = vocabulary(20)
    out = []
    for _ in range(count):
        places = np.unique((rng.pareto(0.7, rng.integers(0, 9)) * 3).astype(int) % len(keys))
        chosen = [keys[place] for place in rng.permutation(places)]
        x = [rng.uniform(-1.5, 1.5, len(chosen))] if values else None
        label, weight = float(rng.integers(2)), float(rng.choice([1.0, 2.0]))
        out.append(minibatch([chosen], [label], [weight], x))
    return out
