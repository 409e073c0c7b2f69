"""What is in a model, and its way into open formats."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.errors import ConfigError, RunError
from streamlearn.messages import F32, U32, U64
from streamlearn.model import Model, load

__all__ = ["export", "inspect", "sizes", "strongest"]


def inspect(directory: Path, top: int) -> dict[str, Any]:
    """Say what is in a model: counts, sparsity, and the largest weights by name."""
    model = load(directory)
    report: dict[str, Any] = {
        "model": model.job.model.kind,
        "snapshot": model.resumed_from,
        "index": model.job.tables.index,
        "examples": model.counts.examples,
        "bad_records": model.counts.bad_records,
        **sizes(model),
        "intercept": model.solver.intercept,
        **{
            name: value
            for name, value in model.validation.summary().items()
            if name in {"logloss", "auc", "calibration", "normalized_entropy"}
        },
        "weights": strongest(model, top),
    }
    return report


def strongest(model: Model, top: int) -> list[dict[str, Any]]:
    """Return the ``top`` features of largest absolute weight, by name where it is known."""
    best: list[tuple[float, int, float, int]] = []
    for keys, weights, counts in _weights(model):
        size = np.abs(weights)
        order = np.argpartition(size, -min(top, len(size)))[-top:] if top < len(size) else ...
        for key, weight, count in zip(keys[order], weights[order], counts[order], strict=True):
            entry = (abs(float(weight)), int(key), float(weight), int(count))
            if weight == 0 or top == 0:
                continue
            if len(best) < top:
                heapq.heappush(best, entry)
            elif entry > best[0]:
                heapq.heapreplace(best, entry)
    best.sort(reverse=True)
    names = _names(model, np.array([key for _, key, _, _ in best], np.uint64))
    exact = model.table.index == "exact"
    return [
        {"feature": name, "weight": weight} | ({"count": count} if exact else {})
        for name, (_, _, weight, count) in zip(names, best, strict=True)
    ]


def export(directory: Path, target: Path) -> dict[str, Any]:
    """Write the non-zero weights of a model, in the format of the target's suffix.

    ``.npz``: arrays ``keys`` (uint64), ``weights`` (float32), ``counts`` (uint32), ``names`` (str,
    empty where unknown) and ``intercept``. ``.parquet``: the same columns (needs the ``arrow``
    extra). ``.txt``: ``key weight name`` a line, the intercept first.

    Raises
    ------
    ConfigError
        Another suffix, or pyarrow is missing.
    RunError
        The file cannot be written.
    """
    model = load(directory)
    parts = [
        (keys[weights != 0], weights[weights != 0], counts[weights != 0])
        for keys, weights, counts in _weights(model)
    ]
    keys: U64 = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.uint64)
    weights: F32 = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.float32)
    counts: U32 = np.concatenate([part[2] for part in parts]) if parts else np.empty(0, np.uint32)
    names = [name or "" for name in model.names.lookup(_name_keys(model, keys))]
    intercept = model.solver.intercept
    try:
        if target.suffix == ".npz":
            np.savez(
                target,
                keys=keys,
                weights=weights,
                counts=counts,
                names=np.array(names, dtype=np.str_),
                intercept=np.float32(intercept),
            )
        elif target.suffix == ".parquet":
            _write_parquet(target, keys, weights, counts, names, intercept)
        elif target.suffix == ".txt":
            with target.open("w", encoding="utf-8") as file:
                file.write(f"0 {intercept:.9g} (intercept)\n")
                file.writelines(
                    f"{key} {weight:.9g} {_one_line(name)}".rstrip() + "\n"
                    for key, weight, name in zip(keys, weights, names, strict=True)
                )
        else:
            raise ConfigError(f"export writes .npz, .parquet or .txt, but got {target.name}")
    except OSError as error:
        raise RunError(f"cannot write {target}", cause=error.strerror) from error
    return {
        "file": str(target),
        "nonzeros": len(keys),
        "named": sum(1 for name in names if name),
        "intercept": intercept,
    }


def _one_line(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _write_parquet(
    target: Path, keys: U64, weights: F32, counts: U32, names: list[str], intercept: float
) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed",
            hint="pip install 'streamlearn[arrow]'",
        ) from error
    table = pa.table({"key": keys, "weight": weights, "count": counts, "name": names})
    table = table.replace_schema_metadata({"intercept": repr(float(intercept))})
    pq.write_table(table, target)


def sizes(model: Model) -> dict[str, Any]:
    """Say how large a model is, by a scan of its table."""
    features = nonzeros = 0
    for part in model.parts():
        features += len(part.weights)
        nonzeros += int(np.count_nonzero(part.weights))
    return {
        "features": features,
        "nonzeros": nonzeros,
        "sparsity": 1 - nonzeros / features if features else None,
        "table_bytes": model.table.nbytes,
        "names": len(model.names),
    }


def _weights(model: Model) -> Iterator[tuple[U64, F32, U32]]:
    """Yield (keys, weights, counts) part by part; counts are 0 where the table keeps none."""
    for part in model.parts():
        if part.rows.ndim == 2:
            counts = (part.rows[:, 2] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        else:
            counts = np.zeros(len(part.keys), np.uint32)
        yield part.keys, part.weights, counts


def _name_keys(model: Model, keys: U64) -> U64:
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
    found = model.names.lookup(_name_keys(model, keys))
    return [name or f"#{key}" for name, key in zip(found, keys.tolist(), strict=True)]
