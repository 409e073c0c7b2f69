"""What tests of deep steps share: minibatches of fields, pulled values, a lane on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np

from streamlearn.compute.cuda import StreamLane
from streamlearn.kinds import DeepConfig
from streamlearn.online.deep import DeepStep
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.nets import Sizes
from streamlearn.online.steps import Gradients, Values

Feature = tuple[int, int, float]  # field, key, value

DIM = 3
FIELDS = 2
COLUMNS = 3
SIZES = Sizes((COLUMNS,), FIELDS, 1)


class Examples:
    """A minibatch, localised.

    Parameters
    ----------
    rows : sequence of lists of (field, key, value)
    dense : float[rows, d], optional
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Feature]],
        labels: Sequence[float],
        *,
        dense: Any = None,
        weights: Sequence[float] | None = None,
        values: bool = True,
        shape: tuple[int, ...] = (COLUMNS,),
    ) -> None:
        self.rows = [list(row) for row in rows]
        n, nnz = len(rows), sum(map(len, rows))
        batch = self.batch = Minibatch(
            max(n, 1), FEATURES_PER_RECORD_MAX + nnz, has_values=values, has_fields=True,
            dense=shape if dense is not None else (),
        )  # fmt: skip
        at = 0
        for r, row in enumerate(rows):
            for field, key, value in row:
                batch.keys[at], batch.fields[at] = key, field
                if values:
                    batch.values[at] = value
                at += 1
            batch.indptr[r + 1] = at
        batch.labels[:n] = labels
        batch.weights[:n] = 1 if weights is None else weights
        if dense is not None:
            batch.dense[:n] = np.asarray(dense).reshape(n, batch.dense.shape[1])
        batch.state[:2] = n, nnz
        self.localized = Localizer(batch.nnz_max).localize(
            batch, Localized(batch.nnz_max), intercept=False
        )

    @property
    def keys(self) -> list[int]:
        return [int(key) for key in self.localized.keys]


def examples(seed: int, rows: int = 6, keys: int = 7, **more: Any) -> Examples:
    """Return random examples: up to four features each, some of one field, some keys twice."""
    dice = np.random.default_rng(seed)
    drawn = [
        [
            (int(dice.integers(FIELDS)), 2 * int(dice.integers(keys)) + 3, float(dice.normal()))
            for _ in range(dice.integers(5))
        ]
        for _ in range(rows)
    ]
    dense = dice.normal(size=(rows, COLUMNS)) * [1, 20, 0.1] + [0, 300, 5]
    dense[dice.random(dense.shape) < 0.1] = np.nan
    settings: dict[str, Any] = {
        "labels": dice.integers(0, 2, rows).tolist(),
        "dense": dense,
        "weights": dice.uniform(0.5, 2, rows).tolist(),
    }
    return Examples(drawn, **(settings | more))


class Tables:
    """Weights and embeddings of keys as shards would hold them, updated by plain steps."""

    def __init__(self, seed: int = 1, kind: Any = np.float32) -> None:
        self._seed = seed
        self._kind = kind
        self.weights: dict[int, Any] = {}
        self.vectors: dict[int, Any] = {}
        self.unknown: set[int] = set()

    def know(self, keys: Sequence[int]) -> None:
        """Have values for keys, by key alone."""
        for key in keys:
            if key not in self.weights:
                dice = np.random.default_rng((self._seed, key))
                self.weights[key] = self._kind(np.float32(dice.normal() / 4))
                drawn = dice.normal(size=DIM).astype(np.float32) / 4
                self.vectors[key] = drawn.astype(self._kind)

    def pull(self, keys: Sequence[int], runs: int = 1) -> Values:
        """Return what keys have; those in ``unknown`` have no embedding and weight 0."""
        self.know(keys)
        known = [key not in self.unknown for key in keys]
        dims = np.array([DIM if one else 0 for one in known], np.int64)
        weights = np.array(
            [self.weights[k] if one else 0 for k, one in zip(keys, known, strict=True)], np.float32
        )
        held = [self.vectors[k] for k, one in zip(keys, known, strict=True) if one]
        packed = np.concatenate([np.zeros(0), *held]).astype(np.float32)
        cuts = np.linspace(0, len(held), runs + 1).astype(int) * DIM
        vectors = [packed[a:b] for a, b in pairwise(cuts.tolist())]
        return Values(weights, dims, vectors)

    def push(self, keys: Sequence[int], by_weight: Any, by_vector: Any, rate: float = 0.1) -> None:
        """Step with gradients, one of each kind a key."""
        for i, key in enumerate(keys):
            self.weights[key] -= self._kind(rate) * by_weight[i]
            self.vectors[key] -= self._kind(rate) * by_vector[i]


def by_key(values: Values, gradients: Gradients) -> list[Any]:
    """Return the embeddings' gradients a row each; zeros where a key has none."""
    out, at = [], 0
    for dim in values.dims.tolist():
        out.append(gradients.vectors[at : at + dim] if dim else np.zeros(DIM, np.float32))
        at += dim
    return out


@contextmanager
def stepping(sizes: Sizes = SIZES, lane: Any = None, **model: Any) -> Iterator[DeepStep]:
    """Make a step: wide and deep of one hidden layer, unless told otherwise."""
    settings: dict[str, Any] = {"net": "wide_deep", "settings": {"hidden": (4,)}, "dim": DIM}
    own = lane or StreamLane("cpu")
    exchange = model.pop("exchange_with", None)
    step = DeepStep(DeepConfig(**(settings | model)), sizes, own, exchange=exchange)
    try:
        yield step
    finally:
        step.close()


def learn(step: DeepStep, tables: Tables, one: Examples) -> tuple[Any, Gradients]:
    """Pull, step and push; return scores and gradients."""
    values = tables.pull(one.keys)
    scores = np.full(max(one.batch.rows, 1), 7, np.float32)
    gradients = step.step(one.batch, one.localized, values, scores, 0)
    tables.push(one.keys, gradients.weights, by_key(values, gradients))
    return scores, gradients


def snapshot(step: DeepStep) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in step.state().items()}


class Prompt:
    """Streams of a device that is the CPU, and does at once what is posted to it."""

    def room(self, count: int, dtype: Any, *, pinned: bool) -> Any:
        import torch

        return torch.full((count,), 77, dtype=dtype)

    def copy(self, stream: str, to: Any, source: Any) -> None:
        to.copy_(source)

    def record(self, stream: str) -> Prompt:
        return self

    def wait(self, stream: str, event: Any) -> None:
        """Nothing is under way."""

    def synchronize(self) -> None:
        """Nothing is under way."""

    def keep(self, stream: str, tensor: Any) -> None:
        """Nothing is under way."""

    def computing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def seconds(self, begun: Any, ended: Any) -> float:
        return 0.0
