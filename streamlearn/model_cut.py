"""Snapshots of a model while it is learned.

A snapshot begins with a :class:`ModelCut` in the learn lane, which notes everything small at once
and lets the table be taken piece by piece between minibatches; the pieces are written in another
lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from streamlearn.config import DeepConfig
from streamlearn.dense_blob import write_dense
from streamlearn.errors import StreamlearnError
from streamlearn.model import TOPICS, Counts, Model
from streamlearn.online.lda import LdaSolver
from streamlearn.online.solvers import DeviceSolver
from streamlearn.shards.cut import Part
from streamlearn.shards.image import write_part
from streamlearn.shards.snapshot import SnapshotWriter, next_sequence, prune
from streamlearn.shards.table import ExactTable

__all__ = ["ModelCut"]


class ModelCut:
    """A model as it was at the moment this object was made, written while it goes on changing.

    Made, stepped and closed in the learn lane; ``write`` and ``commit`` run in the lane that
    writes.

    Parameters
    ----------
    model : Model
    root : Path
        Directory of snapshots.
    quarantine_size : int
        Bytes of ``bad_records.jsonl`` that belong to this moment.
    now : float
        Seconds since the epoch.
    """

    def __init__(self, model: Model, root: Path, quarantine_size: int, now: float) -> None:
        self.cut = model.new_cut(model.table)
        model = model.told()
        self.at_once = bool(getattr(self.cut, "at_once", False))  # nobody keeps old lines for it
        self._root = root
        self._keep = model.job.output.snapshots_kept
        self.failed: StreamlearnError | None = None
        self._writer: SnapshotWriter | None = None
        self._exact = isinstance(model.table, ExactTable)
        self._arrays = {f"names.{k}": v for k, v in _copied(model.names.state()).items()}
        self._arrays |= {f"validation.{k}": v for k, v in _copied(model.validation.state()).items()}
        self._arrays["intercept"] = self.cut.intercept
        if isinstance(model.solver, LdaSolver):
            self._arrays |= {f"solver.{k}": v for k, v in model.solver.state().items()}
            held = model.solver.topics_of() if model.solver.topics_of else {}
            self._arrays |= {f"{TOPICS}{k}": v for k, v in held.items()}
        self._dense: dict[str, Any] | None = None
        if isinstance(model.job.model, DeepConfig):
            self._dense = cast("DeviceSolver", model.solver).state()
        self._meta: dict[str, Any] = {
            "kind": model.job.model.kind,
            "job": msgspec.to_builtins(model.job),
            "created_seconds": now,
            "counts": {name: getattr(model.counts, name) for name in Counts.__slots__},
            "epoch": model.epoch,
            "swept": model.swept,
            "words_digest": model.words_digest,
            "fields": list(model.names.fields),
            "dense": list(model.dense),
            "dense_names": list(model.dense_names),
            "quarantine_size": 0 if model.sealed else quarantine_size,
            "replayed_size": model.replayed_size,
            "features": model.table.features if self._exact else 0,
            "summary": {
                name: value
                for name, value in model.validation.summary().items()
                if np.isfinite(value)
            },
            "positions": {
                name: [p.version, p.position.offset, p.position.records, p.position.done]
                for name, p in model.positions.items()
            },
        }

    def take(self) -> Part | None:
        """Take the next part of the table; None once all are taken (the cut is then closed)."""
        part = self.cut.take()
        if part is None:
            self.cut.close()
        return part

    def write(self, part: Part) -> None:
        """Write a part of the table."""
        number = f"{part.number:03d}" if self._exact else f"{part.number:05d}"
        write_part(self._open(), part, number)

    def commit(self, **more: Any) -> dict[str, Any]:
        """Write the rest and give the snapshot its name; return sequence, path and bytes.

        ``more`` is meta that takes the place of what the cut noted, where the rows are not those of
        the model's table.
        """
        writer = self._open()
        shapes: dict[str, Any] = {}
        for name, array in self._arrays.items():
            plain = np.ascontiguousarray(array)
            shapes[name] = [str(plain.dtype), list(plain.shape)]
            with writer.open(name) as blob:
                blob.write(plain)
        if self._dense is not None:
            write_dense(writer, self._dense)
        path = writer.commit(self._meta | more | {"arrays": shapes})
        self._writer = None
        size = 0
        with suppress(OSError):  # the snapshot is there: what is left to do is done after the next
            size = sum(file.stat().st_size for file in path.iterdir())
            prune(self._root, self._keep, trusted=writer.sequence)
        return {"sequence": writer.sequence, "path": str(path), "bytes": size}

    def abort(self, error: StreamlearnError) -> None:
        """Remove what was written, and remember why."""
        self.failed = error
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _open(self) -> SnapshotWriter:
        if self._writer is None:
            self._writer = SnapshotWriter(self._root, next_sequence(self._root))
        return self._writer


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.array(value) for name, value in state.items()}
