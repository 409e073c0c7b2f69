"""Gathering: the shards and workers of a cluster become one model, as ``train`` leaves it.

What the shards have applied, by their marks, is what counts: examples, losses, positions, and which
bad records belong to it. The workers have what shards never see: names, the histogram of
predictions that the AUC needs, the bad records themselves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np

from streamlearn.cluster.gathered_topics import GatheredTopics
from streamlearn.cluster.stored_shards import StoredShards
from streamlearn.cluster.users import StoredUsers
from streamlearn.compute.kernels.factors import ITEM, MEAN_OVER
from streamlearn.config import DeepConfig, JobConfig, LdaConfig, MfConfig
from streamlearn.dense_blob import read_dense
from streamlearn.errors import SnapshotError, StreamlearnError
from streamlearn.messages import U64, Position
from streamlearn.model import Counts, Model, Progressed
from streamlearn.model_cut import ModelCut
from streamlearn.online.formats import Described
from streamlearn.online.lda import LdaSolver
from streamlearn.online.losses import new_validation, validation_of
from streamlearn.online.mf import numbers_of
from streamlearn.online.names import Names
from streamlearn.online.progressive import Validation
from streamlearn.online.solvers import DeviceSolver
from streamlearn.online.totals import AnyTotals
from streamlearn.protocol import Mark
from streamlearn.quarantine import merge_quarantines
from streamlearn.shards.arena import dims_of, sliced
from streamlearn.shards.shard import INTERCEPT_KEY
from streamlearn.shards.snapshot import SnapshotReader, newest

__all__ = ["BAD_RECORDS", "STATE", "WORKERS", "Gathered", "gather", "totals_of"]

WORKERS: Final = "workers"
# Of a worker's directory: its snapshots, of this kind, and its bad records.
STATE: Final = "state"
WORKER_KIND: Final = "worker"
BAD_RECORDS: Final = "bad_records.jsonl"
_LOW: Final = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was gathered.

    Attributes
    ----------
    path : str
        The snapshot.
    model : Model
        All but its rows.
    features, nonzeros, embeddings : int
        Rows, those whose weight is not zero, and those that have an embedding.
    whole : bool
        Whether every partition that was begun is applied to its end.
    notes : list of str
        What was passed over, a sentence each.
    """

    path: str
    model: Model
    features: int
    nonzeros: int
    embeddings: int
    whole: bool
    notes: list[str]


def gather(
    directory: Path,
    job: JobConfig | None,
    of: int,
    *,
    now: float,
    seconds: float = 0.0,
    cpu_seconds: float = 0.0,
) -> Gathered:
    """Write the model that the shards and workers in an output directory hold into ``model/``.

    Parameters
    ----------
    directory : Path
    job : JobConfig or None
        What they ran with; None: as the first shard has noted it.
    of : int
        How many shards there are.
    now : float
        Seconds since the epoch.
    seconds, cpu_seconds : float
        How long it took them, for the model's counts.

    Raises
    ------
    ClusterError
        The shards are not at one moment of the stream, or one is missing.
    SnapshotError
        A snapshot is damaged or cannot be written.
    """
    with StoredShards(directory, of) as shards, ExitStack() as opened:
        notes = list(shards.skipped)
        workers = []
        for path in sorted((directory / WORKERS).glob("*")):
            reader, skipped = newest(path / STATE)
            notes += skipped
            if reader is not None:
                opened.callback(reader.close)
                workers.append(_Worker.read(reader))
        # A worker knows the format where the job leaves it to the first record.
        known = next((worker.job for worker in workers if worker.job is not None), None)
        job = known or job or shards.job
        names = _merged_names(workers, max(1, job.output.names_max))
        dense = _dense_of(workers) if isinstance(job.model, DeepConfig) else None
        inputs: dict[str, Any] = {}
        if dense is not None:
            inputs = {"dense": dense.shape, "dense_names": dense.names}
        model = Model.new(job, names.fields, **inputs)
        opened.callback(model.close)
        if dense is not None:
            cast("DeviceSolver", model.solver).restore(read_dense(dense.reader))
        model.names = names
        model.validation = _merged_validation(workers, job)
        model.validation.set_totals(totals_of(job, shards.marks))
        model.counts = counts_of(shards.marks)
        model.counts.seconds, model.counts.cpu_seconds = seconds, cpu_seconds
        model.epoch, model.positions = _positions(shards.marks)
        size = merge_quarantines(
            sorted((directory / WORKERS).glob(f"*/{BAD_RECORDS}")),
            directory / BAD_RECORDS,
            _Applied(shards.marks),
        )
        users = None
        if isinstance(job.model, MfConfig) and job.model.users == "worker":
            signature = shards.images[0].signature
            users = opened.enter_context(StoredUsers(directory / WORKERS, signature, shards.marks))
            notes += users.notes
        topics = None
        if isinstance(job.model, LdaConfig) and isinstance(model.solver, LdaSolver):
            prior = shards.images[0].prior
            topics = GatheredTopics(job.model, shards.parts(), shards.marks, prior)
            model.solver.restore(model.solver.state() | topics.state())
            model.swept = -1 if all(mark.done for mark in shards.marks) else 0
        number = topics.numbered if topics is not None else None
        if isinstance(job.model, MfConfig):
            number = _People().numbered
        written = _write(model, shards, users, number, directory / "model", size, now)
        path_, features, nonzeros, embeddings = written
        whole = all(mark.done for mark in shards.marks)
        return Gathered(path_, model, features, nonzeros, embeddings, whole, notes)


def counts_of(marks: Sequence[Mark]) -> Counts:
    """Return the sums that marks say."""
    return Counts(
        examples=sum(mark.examples for mark in marks),
        bad_records=sum(mark.bad_records for mark in marks),
        subsampled=sum(mark.subsampled for mark in marks),
        bytes=sum(mark.bytes for mark in marks),
        stored_bytes=sum(mark.stored_bytes for mark in marks),
    )


def totals_of(job: JobConfig, marks: Sequence[Mark]) -> AnyTotals:
    """Return the sums of progressive validation that marks say: each example counted once."""
    kind = validation_of(job.model).totals_type
    return kind._make(sum(getattr(mark, name) for mark in marks) for name in kind._fields)


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker keeps."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    job: JobConfig | None
    reader: SnapshotReader
    steps: int = -1  # of the dense part of a net
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def read(cls, reader: SnapshotReader) -> _Worker:
        reader.require(kind=WORKER_KIND, keys=("arrays",))
        arrays = {
            name: reader.read(name).view(np.dtype(dtype)).reshape(shape)
            for name, (dtype, shape) in reader.meta["arrays"].items()
        }
        job = None
        if "job" in reader.meta:
            try:
                job = msgspec.convert(reader.meta["job"], JobConfig)
            except msgspec.ValidationError as error:
                raise SnapshotError(
                    f"snapshot {reader.path} was written by another version", cause=str(error)
                ) from error
        told = reader.meta.get("dense", {"steps": -1, "shape": (), "names": ()})
        shape, named = tuple(told["shape"]), tuple(told["names"])
        return cls(arrays, job, reader, int(told["steps"]), shape, named)

    def part(self, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


def _dense_of(workers: Sequence[_Worker]) -> _Worker:
    """Return the worker whose dense part has made most steps."""
    furthest = max(workers, key=lambda worker: worker.steps, default=None)
    if furthest is None or furthest.steps < 0:
        raise SnapshotError(
            "no worker has kept the dense part of the net",
            hint="put workers/NAME/state of one of them back",
        )
    return furthest


def _merged_names(workers: Sequence[_Worker], names_max: int) -> Names:
    """Return the names that workers know; of two for a key, the first worker's."""
    merged = Names((), names_max)
    for number, worker in enumerate(workers):
        state = worker.part("names.")
        if number == 0:
            merged.restore(state)
            continue
        one = Names((), max(1, len(state["keys"])), max(1, len(state["text"])))
        one.restore(state)
        merged.use_fields(one.fields)
        merged.insert(Described(state["keys"], state["fields"], state["ends"], state["text"]))
    return merged


def _merged_validation(workers: Sequence[_Worker], job: JobConfig) -> Validation:
    """Return the workers' validations as one, whose sums are not yet those of the shards.

    A worker that died has scored some minibatches that were never applied, and another has scored
    them again: the histogram, which ranks predictions, may hold an example twice; what marks say
    does not.
    """
    merged = new_validation(job.model, job.output.window)
    for number, worker in enumerate(workers):
        one = new_validation(job.model, job.output.window)
        one.restore(worker.part("validation."))
        if number:
            merged.merge(one)
        else:
            merged = one
    return merged


def _positions(marks: Sequence[Mark]) -> tuple[int, dict[str, Progressed]]:
    """Return the pass that is being made, and the positions in it, by partition."""
    epoch = max((mark.epoch for mark in marks), default=0)
    return epoch, {
        mark.partition: Progressed(mark.version, Position(mark.offset, mark.records, mark.done))
        for mark in marks
        if mark.epoch == epoch
    }


class _Applied:
    """Says of a place in an object whether marks have it."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self._of: dict[str, list[tuple[int, Mark]]] = {}
        for mark in marks:
            uri, start = _start_of(mark.partition)
            self._of.setdefault(uri, []).append((start, mark))
        for ranges in self._of.values():
            ranges.sort(key=lambda one: one[0])

    def __call__(self, uri: str, offset: int) -> bool:
        ranges = self._of.get(uri, [])
        at = bisect_right(ranges, offset, key=lambda one: one[0]) - 1
        if at < 0:
            return False
        mark = ranges[at][1]
        return mark.done or mark.epoch > 0 or offset < mark.offset


def _start_of(name: str) -> tuple[str, int]:
    """Return the object that a partition's name is of, and where in it the partition begins."""
    uri, mark, span = name.rpartition("#")
    start, dash, end = span.partition("-")
    ranged = mark and dash and start.isdigit() and (end.isdigit() or end == "-1")
    return (uri, int(start)) if ranged else (name, 0)


def _write(
    model: Model,
    shards: StoredShards,
    users: StoredUsers | None,
    numbered: Callable[[U64], U64] | None,
    root: Path,
    quarantine_size: int,
    now: float,
) -> tuple[str, int, int, int]:
    """Write the snapshot; return its path, how many rows, weights and embeddings it has."""
    cut = _cut_with_intercept(model, shards, root, quarantine_size, now)
    features = nonzeros = embeddings = number = 0
    try:
        for part in chain(shards.parts(), users.parts() if users is not None else ()):
            first = int(len(part.rows) > 0 and int(part.rows[0, 0]) == INTERCEPT_KEY)
            own = sliced(part, first, len(part.rows), model.job.model.tiers)
            if len(own.rows):
                if numbered is not None:
                    own = own._replace(rows=numbered(own.rows))
                cut.write(own._replace(number=number))
                number += 1
                features += len(own.rows)
                nonzeros += int(np.count_nonzero(model.solver.weights(own.rows[:, 1])))
                if model.has_embeddings:
                    embeddings += int(np.count_nonzero(dims_of(own.rows[:, 3])))
        told = cut.commit(features=features, gathered={"shards": shards.of})
    except StreamlearnError as error:
        cut.abort(error)
        raise
    return told["path"], features, nonzeros, embeddings


class _People:
    """Numbers users and items in the order of their keys: shards' rows only tell them apart."""

    def __init__(self) -> None:
        self._known = [0, 0]

    def numbered(self, rows: U64) -> U64:
        """Return rows (uint64[n, 4]) of an ascending list of keys with the next numbers."""
        rows = rows.copy()
        numbers = numbers_of(rows[:, 1])
        item = numbers & ITEM != 0
        for kind, above in ((0, np.uint32(0)), (1, ITEM)):
            mine = (numbers != 0) & (item == bool(kind))
            count = int(np.count_nonzero(mine))
            fresh = np.arange(1, count + 1, dtype=np.uint32) + np.uint32(self._known[kind])
            numbers[mine] = fresh | above
            self._known[kind] += count
        rows[:, 1] = (rows[:, 1] & _LOW) | (numbers.astype(np.uint64) << np.uint64(32))
        return rows


def _cut_with_intercept(
    model: Model, shards: StoredShards, root: Path, quarantine_size: int, now: float
) -> ModelCut:
    first = next(shards.parts(), None)
    if first is not None and int(first.rows[0, 0]) == INTERCEPT_KEY:
        model.table.intercept[:] = first.rows[0, 1:2].view(np.float32)
        if isinstance(model.job.model, MfConfig):
            model.table.intercept[1] = min(int(first.rows[0, 2] & _LOW), int(MEAN_OVER))
    cut = ModelCut(model, root, quarantine_size, now)
    cut.cut.close()
    return cut
