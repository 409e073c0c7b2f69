"""A model's way into open formats: ``docs/formats.md`` describes them for who reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamlearn.config import DeepConfig, FmConfig
from streamlearn.errors import ConfigError, RunError
from streamlearn.factorized import Factorized, factorized, ids_of
from streamlearn.inspection import columns_of, looked_at, name_keys
from streamlearn.messages import F32, I64, U32, U64
from streamlearn.model import Model
from streamlearn.predicted import one_line
from streamlearn.topic_exports import export_topics

__all__ = ["GRAPHS", "export"]

# What nets alone are written as: ``streamlearn.deep_export``.
GRAPHS: Final = (".pt2", ".onnx", ".safetensors")


@dataclass(frozen=True, slots=True)
class _Exported:
    """What a model predicts with.

    Attributes
    ----------
    keys, weights, counts, names
        By feature; an empty name is not known.
    dims, embeddings : int64[n], float32[n, dim * (order - 1)]
        Coordinates of each embedding (0: none), and those, zero beyond them; order 3 behind 2.
    order : int
        2 or 3; 1 where the model has no embeddings.
    """

    intercept: float
    keys: U64
    weights: F32
    counts: U32
    names: list[str]
    dims: I64
    embeddings: F32
    order: int

    @classmethod
    def of(cls, model: Model) -> _Exported:
        geometry = model.geometry
        config = model.job.model
        # of a feature whose weight is zero, the embedding is not used either
        shrinks = not isinstance(config, FmConfig | DeepConfig) or config.l1_shrk
        order = geometry.tiers.order if geometry is not None else 1
        width = geometry.tiers.dim * geometry.tiers.parts if geometry is not None else 0
        columns, embeddings = [], [np.zeros((0, width), np.float32)]
        for part in model.parts():
            found = columns_of(model, part)
            kept = found.weights != 0
            if not shrinks:
                kept |= found.dims > 0
            columns.append(
                (found.keys[kept], found.weights[kept], found.counts[kept], found.dims[kept])
            )
            if geometry is not None and part.rows.ndim == 2:
                embeddings.append(geometry.coordinates(part.rows, part.vectors)[kept])
            elif geometry is not None:
                longest = part.vectors.reshape(len(part.keys), -1)
                embeddings.append(geometry.all_coordinates(longest[kept]))
        keys, weights, counts, dims = (
            np.concatenate([np.zeros(0, kind), *(one[i] for one in columns)])
            for i, kind in enumerate((np.uint64, np.float32, np.uint32, np.int64))
        )
        names = [name or "" for name in model.names.lookup(name_keys(model, keys))]
        return cls(
            model.solver.intercept, keys, weights, counts, names, dims,
            np.concatenate(embeddings), order,
        )  # fmt: skip

    def part(self, order: int) -> F32:
        """Return the coordinates that are for one order, float32[n, dim]."""
        width = self.embeddings.shape[1] // (self.order - 1)
        return self.embeddings[:, (order - 2) * width : (order - 1) * width]


def export(directory: Path, target: Path) -> dict[str, Any]:
    """Write what a model predicts with, in the format of the target's suffix.

    Of each feature whose weight is not zero (and, where ``model.l1_shrk`` is off, of each that has
    an embedding) the key, weight, count, name and embedding. Of a factorization: of each user and
    each item the id, key, bias, factors and count. Of a net, by further suffixes, the whole of it
    as a graph, or its dense part.

    Raises
    ------
    ConfigError
        Another suffix, or pyarrow is missing.
    RunError
        The file cannot be written.
    """
    writers = {".npz": _write_npz, ".parquet": _write_parquet, ".txt": _write_text}
    graphs = target.suffix in GRAPHS
    if target.suffix not in writers and not graphs:
        raise ConfigError(
            "export writes .npz, .parquet or .txt, of nets also .pt2, .onnx or .safetensors, but "
            f"got {target.name}"
        )
    with looked_at(directory) as model:
        if graphs and not isinstance(model.job.model, DeepConfig):
            raise ConfigError(
                f"{target.suffix} is for nets (deep), but the model is {model.job.model.kind}",
                hint="export .npz, .parquet or .txt",
            )
        try:
            if graphs:
                return _export_net(model, target)
            if model.job.model.kind == "mf":
                return _export_factors(model, target)
            if model.job.model.kind == "lda":
                return export_topics(model, target, _pyarrow)
            exported = _Exported.of(model)
            writers[target.suffix](target, exported)
        except OSError as error:
            raise RunError(f"cannot write {target}", cause=error.strerror) from error
    told = {
        "file": str(target),
        "nonzeros": int(np.count_nonzero(exported.weights)),
        "named": sum(1 for name in exported.names if name),
        "intercept": exported.intercept,
    }
    if exported.order > 1:
        told["embeddings"] = int(np.count_nonzero(exported.dims))
    return told


def _export_net(model: Model, target: Path) -> dict[str, Any]:
    from streamlearn.deep_export import export_deep  # which brings torch

    return export_deep(model, target)


def _write_npz(target: Path, it: _Exported) -> None:
    arrays: dict[str, Any] = {
        "keys": it.keys,
        "weights": it.weights,
        "counts": it.counts,
        "names": np.array(it.names, dtype=np.str_),
        "intercept": np.float32(it.intercept),
    }
    if it.order > 1:
        arrays["dims"] = it.dims.astype(np.uint16)
        arrays["embeddings"] = it.embeddings
        arrays["order"] = np.int64(it.order)
    np.savez(target, **arrays)


def _pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed",
            hint="pip install 'streamlearn[arrow]'",
        ) from error
    return pyarrow, pyarrow.parquet


def _write_parquet(target: Path, it: _Exported) -> None:
    pa, pq = _pyarrow()
    columns = {"key": it.keys, "weight": it.weights, "count": it.counts, "name": it.names}
    said = {"intercept": repr(float(it.intercept))}
    if it.order > 1:
        columns["dim"] = it.dims.astype(np.uint16)
        said["order"] = str(it.order)
    ends = np.concatenate([[0], np.cumsum(it.dims)]).astype(np.int64)
    for order in range(2, it.order + 1):
        values = it.part(order)
        used = np.arange(values.shape[1]) < it.dims[:, None]
        # null, not an empty list, where there is none
        lists = pa.LargeListArray.from_arrays(ends, values[used], mask=pa.array(it.dims == 0))
        columns[f"embedding_{order}"] = lists
    pq.write_table(pa.table(columns).replace_schema_metadata(said), target)


def _write_text(target: Path, it: _Exported) -> None:
    with target.open("w", encoding="utf-8") as file:
        file.write(f"0 {it.intercept:.9g} {'0 ' if it.order > 1 else ''}(intercept)\n")
        for i, (key, weight, name) in enumerate(zip(it.keys, it.weights, it.names, strict=True)):
            embedding = ""
            if it.order > 1:  # how many numbers follow, and those: what is left is the name
                dim = int(it.dims[i])
                parts = [it.part(order)[i, :dim].tolist() for order in range(2, it.order + 1)]
                numbers = [f"{value:.9g}" for part in parts for value in part]
                embedding = " ".join([str(len(numbers)), *numbers, ""])
            file.write(f"{key} {weight:.9g} {embedding}{one_line(name)}".rstrip() + "\n")


def _export_factors(model: Model, target: Path) -> dict[str, Any]:
    """Write what a factorization predicts with."""
    it = factorized(model)
    ids = {"user": ids_of(model, it.users.keys), "item": ids_of(model, it.items.keys)}
    if target.suffix == ".npz":
        _write_factors_npz(target, it, ids)
    elif target.suffix == ".parquet":
        _write_factors_parquet(target, it, ids)
    else:
        raise ConfigError(f"export of mf writes .npz or .parquet, but got {target.name}")
    return {
        "file": str(target),
        "users": len(it.users.keys),
        "items": len(it.items.keys),
        "dim": it.items.factors.shape[1],
        "mean": it.mean,
    }


def _write_factors_npz(target: Path, it: Factorized, ids: dict[str, list[str]]) -> None:
    arrays: dict[str, Any] = {"mean": np.float32(it.mean)}
    for kind, side in (("user", it.users), ("item", it.items)):
        arrays |= {
            f"{kind}_ids": np.array(ids[kind], dtype=np.str_),
            f"{kind}_keys": side.keys,
            f"{kind}_biases": side.biases,
            f"{kind}_factors": side.factors,
            f"{kind}_counts": side.counts,
        }
    np.savez(target, **arrays)


def _write_factors_parquet(target: Path, it: Factorized, ids: dict[str, list[str]]) -> None:
    pa, pq = _pyarrow()
    tables = []
    for kind, side in (("user", it.users), ("item", it.items)):
        n, dim = side.factors.shape
        ends = np.arange(n + 1, dtype=np.int64) * dim
        columns = {
            "kind": [kind] * n,
            "id": ids[kind],
            "key": side.keys,
            "bias": side.biases,
            "factors": pa.LargeListArray.from_arrays(ends, side.factors.reshape(-1)),
            "count": side.counts,
        }
        tables.append(pa.table(columns))
    said = {"mean": repr(float(it.mean))}
    pq.write_table(pa.concat_tables(tables).replace_schema_metadata(said), target)
