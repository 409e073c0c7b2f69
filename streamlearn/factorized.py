"""A factorization, taken out of a model: its users and items, and what they predict with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels.factors import ITEM
from streamlearn.config import MfConfig
from streamlearn.errors import ConfigError
from streamlearn.messages import F32, I64, U32, U64
from streamlearn.model import Model
from streamlearn.online.mf import numbers_of
from streamlearn.shards.arena import dims_of
from streamlearn.shards.table import ExactTable

__all__ = [
    "Factorized",
    "Places",
    "Side",
    "extremes",
    "factorized",
    "factors_told",
    "ids_of",
    "need_factorization",
]

_COUNT: Final = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Side:
    """Users, or items, in the order in which they were met.

    Attributes
    ----------
    keys, counts : uint64[n], uint32[n]
        What ``rating_keys`` makes of their ids; how often each was rated, or rated.
    biases : float32[n]
    factors : float32[n, dim]
    """

    keys: U64
    biases: F32
    factors: F32
    counts: U32


class Places:
    """Where each of some keys stands.

    Parameters
    ----------
    keys : uint64[n]
        All different.
    """

    def __init__(self, keys: U64) -> None:
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def find(self, keys: U64) -> I64:
        """Return the places of keys, int64[m]; -1 for those that are not there."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._order[at], -1)


@dataclass(frozen=True, slots=True)
class Factorized:
    """What a factorization predicts with: ``<p, q> + b_user + b_item + mean``.

    Attributes
    ----------
    mean : float
        b_0.
    """

    users: Side
    items: Side
    mean: float


def need_factorization(model: Model, what: str) -> None:
    """Refuse a model of another kind.

    Raises
    ------
    ConfigError
        The model is no factorization; ``what`` is what needs one.
    """
    kind = model.job.model.kind
    if kind != "mf":
        raise ConfigError(
            f"{what} needs users and items, but the model is {kind}",
            hint="streamlearn train RATINGS --model mf --out DIR",
        )


def factorized(model: Model, *, factors: bool = True) -> Factorized:
    """Return copies of what a model of kind ``mf`` predicts with; of who was learned, that is.

    Parameters
    ----------
    factors : bool
        False: leave them out, float32[n, 0].
    """
    geometry = model.geometry
    assert geometry is not None
    columns: list[tuple[Any, ...]] = []
    for part in model.parts(embeddings=factors):
        numbers = numbers_of(part.rows[:, 1])
        counts = (part.rows[:, 2] & _COUNT).astype(np.uint32)
        vectors = np.zeros((len(part.keys), 0), np.float32)
        if factors:
            vectors = geometry.coordinates(part.rows, part.vectors)
        learned = (numbers > 0) | (dims_of(part.rows[:, 3]) > 0)
        columns.append(
            tuple(one[learned] for one in (part.keys, numbers, part.weights, vectors, counts))
        )
    keys, numbers, biases, vectors, counts = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    item = _items(model, keys, numbers)

    def side(which: Any) -> Side:
        at = np.flatnonzero(which)
        at = at[np.argsort(numbers[at], kind="stable")]
        return Side(keys[at], biases[at], vectors[at], counts[at])

    return Factorized(side(~item), side(item), model.solver.intercept)


def factors_told(model: Model) -> dict[str, Any]:
    """Say how large a factorization is, and what its mean is."""
    config, table = model.job.model, model.table
    assert isinstance(config, MfConfig)
    assert isinstance(table, ExactTable)
    assert table.arena is not None
    it = factorized(model, factors=False)
    return {
        "users": len(it.users.keys),
        "items": len(it.items.keys),
        "dim": config.dim,
        "loss": config.loss,
        "table_bytes": table.nbytes,
        "factors_bytes": table.arena.nbytes,
        "factors_refused": table.arena.refused,
        "names": len(model.names),
        "mean": it.mean,
    }


def extremes(model: Model, top: int) -> dict[str, list[dict[str, Any]]]:
    """Return the items of highest and of lowest bias, and those most rated, by name."""
    items = factorized(model, factors=False).items
    orders = {
        "highest_bias": np.argsort(-items.biases, kind="stable"),
        "lowest_bias": np.argsort(items.biases, kind="stable"),
        "most_rated": np.argsort(-items.counts.astype(np.int64), kind="stable"),
    }
    found = {}
    for name, order in orders.items():
        at = order[:top]
        columns = (ids_of(model, items.keys[at]), items.biases[at], items.counts[at])
        found[name] = [
            {"item": item, "bias": float(bias), "count": int(count)}
            for item, bias, count in zip(*columns, strict=True)
        ]
    return found


def ids_of(model: Model, keys: U64) -> list[str]:
    """Return the ids of users or items; ``#key`` where the id was not kept."""
    names = model.names.lookup(keys)
    return [
        f"#{key}" if name is None else name.partition("=")[2]
        for name, key in zip(names, keys.tolist(), strict=True)
    ]


def _items(model: Model, keys: U64, numbers: U32) -> Any:
    """Say which rows are items: by their number, or by name where they have none."""
    item = numbers & ITEM != 0
    bare = np.flatnonzero(numbers == 0)
    if len(bare):
        names = model.names.lookup(keys[bare])
        item[bare] = [name is not None and name.startswith("item=") for name in names]
    return item
