"""What is in a model: how large it is, and what weighs most in it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np

from streamlearn.config import DeepConfig
from streamlearn.deep_inspection import longest, net_told
from streamlearn.factorized import extremes, factors_told
from streamlearn.messages import F32, I64, U32, U64
from streamlearn.model import Held, Model, load, stored_job
from streamlearn.shards.arena import dims_of
from streamlearn.shards.table import ExactTable
from streamlearn.topic_model import topics_told

if TYPE_CHECKING:
    from streamlearn.online.deep import DeepSolver

__all__ = ["Columns", "columns_of", "inspect", "looked_at", "name_keys", "sizes", "strongest"]


_TOPIC_SIZES: Final = ("vocabulary", "words", "table_bytes", "counts_bytes", "names")


@dataclass(frozen=True, slots=True)
class Columns:
    """What a part of a model holds, by feature.

    Attributes
    ----------
    keys, weights : uint64[n], float32[n]
        As in ``Held``.
    counts : uint32[n]
        0 where the table keeps none.
    dims : int64[n]
        Coordinates of their embeddings; 0: they have none.
    """

    keys: U64
    weights: F32
    counts: U32
    dims: I64


@contextmanager
def looked_at(directory: Path) -> Iterator[Model]:
    """Load a model to look at: a net on the CPU, wherever it was learned."""
    job = stored_job(directory)
    if isinstance(job.model, DeepConfig):
        compute = msgspec.structs.replace(job.compute, device="cpu")
        job = msgspec.structs.replace(job, compute=compute)
    model = load(directory, job)
    try:
        yield model
    finally:
        model.close()


def inspect(directory: Path, top: int) -> dict[str, Any]:
    """Say what is in a model: counts, sparsity, embeddings, and the largest weights by name.

    Of a factorization: users, items, and the items of highest and lowest bias and most ratings; of
    topics: how many, of how many words, documents and tokens, and the priors; of a net its layers,
    and the largest weights and embeddings where it has some.
    """
    with looked_at(directory) as model:
        return _told(model, top)


def _told(model: Model, top: int) -> dict[str, Any]:
    report: dict[str, Any] = {
        "model": model.job.model.kind,
        "snapshot": model.resumed_from,
        "index": model.job.tables.index,
        "examples": model.counts.examples,
        "bad_records": model.counts.bad_records,
    }
    figures = model.validation.headlines(model.validation.summary())
    if model.job.model.kind == "mf":
        return report | factors_told(model) | figures | extremes(model, top)
    if model.job.model.kind == "lda":
        return report | topics_told(model) | figures
    if isinstance(model.job.model, DeepConfig):
        return report | figures | _net_told(model, top)
    report |= {**sizes(model), "intercept": model.solver.intercept, **figures}
    if model.has_embeddings:
        report["dimensions"] = dimensions(model)
    return report | {"weights": strongest(model, top)}


def _net_told(model: Model, top: int) -> dict[str, Any]:
    """Say what is in a net, and of its features which weigh most."""
    needs = cast("DeepSolver", model.solver).step.needs
    told = {**sizes(model), **net_told(model)}
    if not needs.wide:
        del told["nonzeros"], told["sparsity"]
    if needs.dim:
        told["dimensions"] = dimensions(model)
        keys, norms = longest(model, top)
        told["largest_embeddings"] = [
            {"feature": name, "norm": norm}
            for name, norm in zip(_names(model, keys), norms.tolist(), strict=True)
        ]
    return told | ({"weights": strongest(model, top)} if needs.wide else {})


def strongest(model: Model, top: int) -> list[dict[str, Any]]:
    """Return the ``top`` features of largest absolute weight, by name where it is known.

    With their counts where the table keeps some, and, where there are embeddings, how many
    coordinates theirs have.
    """
    best: list[tuple[float, int, float, int, int]] = []
    for part in _columns(model):
        size = np.abs(part.weights)
        order = np.argpartition(size, -min(top, len(size)))[-top:] if top < len(size) else ...
        keys, weights = part.keys[order].tolist(), part.weights[order].tolist()
        counts, dims = part.counts[order].tolist(), part.dims[order].tolist()
        for key, weight, count, dim in zip(keys, weights, counts, dims, strict=True):
            entry = (abs(weight), key, weight, count, dim)
            if weight == 0 or top == 0:
                continue
            if len(best) < top:
                heapq.heappush(best, entry)
            elif entry > best[0]:
                heapq.heapreplace(best, entry)
    best.sort(reverse=True)
    names = _names(model, np.array([key for _, key, *_ in best], np.uint64))
    exact, embedded = model.table.index == "exact", model.has_embeddings
    return [
        {"feature": name, "weight": weight}
        | ({"count": count} if exact else {})
        | ({"dim": dim} if embedded else {})
        for name, (_, _, weight, count, dim) in zip(names, best, strict=True)
    ]


def dimensions(model: Model) -> list[dict[str, Any]]:
    """Say how many features have embeddings of which length, the count that earns it, and memory.

    Of a hashed table, whose rows all have the longest, those that were touched; the memory is of
    all.
    """
    geometry = model.geometry
    assert geometry is not None
    tiers = geometry.tiers
    found = np.zeros(tiers.dim + 1, np.int64)
    for part in _columns(model):
        found += np.bincount(part.dims, minlength=len(found))
    if not isinstance(model.table, ExactTable):
        size = model.table.embeddings_bytes
        return [{"dim": tiers.dim, "features": int(found[tiers.dim]), "bytes": size}]
    bare = {"dim": 0, "above_count": None, "features": int(found[0]), "bytes": 0}
    return [bare] + [
        {
            "dim": dim,
            "above_count": count,
            "features": int(found[dim]),
            "bytes": int(found[dim]) * 4 * tiers.floats(dim),
        }
        for count, dim in zip(tiers.counts, tiers.dims, strict=True)
    ]


def sizes(model: Model) -> dict[str, Any]:
    """Say how large a model is; by a scan of its table, where that is of features."""
    if model.job.model.kind == "lda":
        told = topics_told(model)
        return {name: told[name] for name in _TOPIC_SIZES}
    features = nonzeros = embeddings = 0
    for part in _columns(model):
        features += len(part.weights)
        nonzeros += int(np.count_nonzero(part.weights))
        embeddings += int(np.count_nonzero(part.dims))
    return {
        "features": features,
        "nonzeros": nonzeros,
        "sparsity": 1 - nonzeros / features if features else None,
        "table_bytes": model.table.nbytes,
        **({"embeddings": embeddings, **_embeddings(model)} if model.has_embeddings else {}),
        "names": len(model.names),
    }


def columns_of(model: Model, part: Held) -> Columns:
    """Return what a part of a model's table holds, by feature."""
    n = len(part.keys)
    if part.rows.ndim == 2:
        counts = (part.rows[:, 2] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        dims = dims_of(part.rows[:, 3]) if model.has_embeddings else np.zeros(n, np.int64)
    else:
        geometry = model.geometry
        counts = np.zeros(n, np.uint32)
        dims = np.full(n, geometry.tiers.dim if geometry is not None else 0, np.int64)
    return Columns(part.keys, part.weights, counts, dims)


def _columns(model: Model) -> Iterator[Columns]:
    for part in model.parts(embeddings=False):
        yield columns_of(model, part)


def _embeddings(model: Model) -> dict[str, int]:
    """Return the memory of embeddings, and how often one was refused for want of it."""
    table = model.table
    if not isinstance(table, ExactTable):
        return {"embeddings_bytes": table.embeddings_bytes}
    assert table.arena is not None
    return {"embeddings_bytes": table.arena.nbytes, "embeddings_refused": table.arena.refused}


def name_keys(model: Model, keys: U64) -> U64:
    """Return the keys to look names up by; a hashed row goes by the first known key in it."""
    if model.table.index == "exact" or not len(keys):
        return keys
    known = model.names.keys
    rows = model.table.find(known).astype(np.uint64)
    order = np.argsort(rows, kind="stable")
    at = np.searchsorted(rows[order], keys)
    found = np.zeros(len(keys), np.uint64)
    inside = at < len(rows)
    hit = inside.copy()
    hit[inside] = rows[order[at[inside]]] == keys[inside]
    found[hit] = known[order[at[hit]]]
    return found


def _names(model: Model, keys: U64) -> list[str]:
    found = model.names.lookup(name_keys(model, keys))
    return [name or f"#{key}" for name, key in zip(found, keys.tolist(), strict=True)]
