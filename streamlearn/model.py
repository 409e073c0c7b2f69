"""A model as it is learned and kept: table, solver, validation, names, positions.

The learn lane owns a model. :mod:`streamlearn.model_cut` writes snapshots of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec
import numpy as np

from streamlearn.config import BINDING, DeepConfig, JobConfig, LdaConfig
from streamlearn.dense_blob import read_dense
from streamlearn.errors import (
    ConfigError,
    DataError,
    ObjectChangedError,
    SnapshotError,
    StreamlearnError,
)
from streamlearn.messages import F32, U64, Partition, Position
from streamlearn.online.formats import Format
from streamlearn.online.lda import LdaSolver
from streamlearn.online.losses import new_validation
from streamlearn.online.names import Names
from streamlearn.online.progressive import Validation
from streamlearn.online.solvers import DeviceSolver, Solver, new_solver
from streamlearn.shards.arena import Geometry
from streamlearn.shards.cut import Cut, Part, Table, WholeCut
from streamlearn.shards.image import read_parts
from streamlearn.shards.snapshot import SnapshotReader, newest
from streamlearn.shards.table import ExactTable
from streamlearn.tables import new_table

__all__ = ["TOPICS", "Counts", "Held", "Model", "TableCut", "load", "stored_job"]

_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)
# Names of arrays of a snapshot that only further passes need.
TOPICS: Final = "topics."


@dataclass(slots=True)
class Counts:
    """Sums over the life of a model."""

    examples: int = 0
    bad_records: int = 0
    subsampled: int = 0
    bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class TableCut(Protocol):
    """The image of a table at one moment."""

    intercept: F32

    def take(self) -> Part | None:
        """Take the next part, None where all are taken."""
        ...

    def close(self) -> None:
        """End the cut."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """What a part of a table holds.

    Attributes
    ----------
    keys : uint64[n]
        Ascending; of a hashed table the numbers of the rows that were touched.
    weights : float32[n]
    rows : uint64[n, 4] or uint64[n]
        Of an exact table; the columns of a hashed one.
    vectors : float32[m]
        The embeddings of those rows, as ``shards.cut.Part`` has them.
    """

    keys: U64
    weights: F32
    rows: U64
    vectors: F32


@dataclass(slots=True)
class Progressed:
    """How far a partition has been learned, and of which content."""

    version: str
    position: Position


@dataclass(slots=True)
class Model:
    """Everything that a run changes and a snapshot keeps.

    Attributes
    ----------
    job : JobConfig
        What it is learned with; stored in every snapshot.
    positions : dict
        By partition name.
    quarantine_size, replayed_size : int
        Bytes of ``bad_records.jsonl`` that belong to it, and how many of them were replayed.
    new_cut : callable
        Makes a cut of the table; whoever divides it between lanes puts another in its place.
    epoch : int
        Passes over the source that are complete.
    swept : int
        Of a further pass over kept ratings: buckets of users that are done; -1: all.
    resumed_from : str or None
        The snapshot that it was loaded from.
    dense, dense_names : tuple of int, tuple of str
        Of a net: shape of an example's dense part, and names of its numbers, where they have some.
    stored_topics : mapping or None
        Topics of tokens, by block, where a snapshot was loaded with them.
    words_digest : str
        Of the file that says what its words are, or which are left out, where there is one.
    sealed : bool
        Whether snapshots say who there is and what of them is learned, but nothing of how many
        ratings there were, nor how well they are predicted: of a private model.
    """

    job: JobConfig
    table: Table
    solver: Solver
    validation: Validation
    names: Names
    positions: dict[str, Progressed] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    epoch: int = 0
    swept: int = 0
    quarantine_size: int = 0
    replayed_size: int = 0
    resumed_from: str | None = None
    skipped: list[str] = field(default_factory=list)
    new_cut: Callable[[Table], TableCut] = Cut
    sealed: bool = False
    stored_topics: Mapping[str, Any] | None = None
    words_digest: str = ""
    dense: tuple[int, ...] = ()
    dense_names: tuple[str, ...] = ()

    @classmethod
    def new(
        cls,
        job: JobConfig,
        fields: tuple[str, ...],
        rows: int = 0,
        clock: Callable[[], float] | None = None,
        *,
        dense: tuple[int, ...] = (),
        dense_names: tuple[str, ...] = (),
    ) -> Model:
        """Return an empty model, its table laid out for ``rows`` rows.

        Parameters
        ----------
        fields : tuple of str
            Names of the fields of features.
        dense : tuple of int
            Shape of an example's dense part, for a net.
        dense_names : tuple of str
            Names of its numbers, where they have some.
        """
        table = new_table(job, rows, clock)
        solver: Solver
        if isinstance(job.model, DeepConfig):
            from streamlearn.deep_net import new_net  # which brings torch

            solver = new_net(job, job.model, table, len(fields), dense)
        else:
            solver = new_solver(job.model, table, shared=job.compute.learn_lanes > 1)
        if isinstance(solver, LdaSolver):
            solver.online = solver.online or job.source.follow
        return cls(
            job=job,
            table=table,
            solver=solver,
            validation=new_validation(job.model, job.output.window),
            names=Names(fields, max(1, job.output.names_max)),
            dense=dense,
            dense_names=dense_names,
            new_cut=WholeCut if isinstance(job.model, LdaConfig) else Cut,
        )

    @property
    def counting(self) -> bool:
        """Whether examples raise the counts of their features now: fm's do in the first pass."""
        return self.job.model.kind == "lr" or self.epoch == 0

    def check_inputs(self, format: Format) -> None:
        """Check that a net was made for what an object's records have.

        Raises
        ------
        DataError
            They have another dense part, or other fields.
        """
        if not isinstance(self.job.model, DeepConfig):
            return
        known, found = self.names.fields, format.fields
        if self.dense != format.dense or known != found:
            had = f"{len(known)} fields and a dense part of shape {self.dense}"
            has = f"{len(found)} and {format.dense}"
            new = [name for name in found if name not in known]
            raise DataError(
                f"the net was made for {had}, but the records have {has}"
                + (f"; new are {', '.join(new[:10])}" if new else ""),
                hint="name all columns in source.columns, or start over in another --out",
            )

    def close(self) -> None:
        """End what a net computes with."""
        if isinstance(self.job.model, DeepConfig):
            cast("DeviceSolver", self.solver).close()

    @property
    def has_embeddings(self) -> bool:
        """Whether its features may have embeddings."""
        return self.geometry is not None

    def seal(self) -> None:
        """Have snapshots say nothing but who there is, and the table."""
        self.names.sort()
        self.sealed = True

    def told(self) -> Model:
        """Return what a snapshot tells of, which shares the table: all, unless it is sealed."""
        if not self.sealed:
            return self
        return replace(
            self,
            validation=new_validation(self.job.model, self.job.output.window),
            positions={},
            counts=Counts(),
            quarantine_size=0,
            replayed_size=0,
        )

    def position(self, partition: Partition) -> Position:
        """Return where to go on in a partition."""
        known = self.positions.get(partition.name)
        return known.position if known else Position(offset=partition.start)

    def objects(self) -> dict[str, list[str]]:
        """Return the names of partitions that were learned, at least in part, by object."""
        objects: dict[str, list[str]] = {}
        for name in self.positions:
            objects.setdefault(_object_of(name), []).append(name)
        return objects

    def refused(
        self,
        partitions: Sequence[Partition],
        learned: Mapping[str, list[str]],
        *,
        listed: bool = True,
    ) -> dict[str, StreamlearnError]:
        """Return why partitions cannot be gone on with, by name: their object has changed.

        An object that changed after it was learned to its end is no error: nothing of it is read
        again.

        Parameters
        ----------
        learned : mapping
            What ``objects()`` returned when the run began.
        listed : bool
            Whether ``partitions`` has all of each object.
        """
        names = {partition.name for partition in partitions} if listed and learned else set()
        refused: dict[str, StreamlearnError] = {}
        for partition in partitions:
            pieces = learned.get(partition.uri, [])
            known = self.positions.get(partition.name)
            if not pieces or (known is not None and known.position.done):
                continue
            version = self.positions[pieces[0]].version
            if version != partition.version:
                refused[partition.name] = ObjectChangedError(
                    f"{partition.uri} has changed since a part of it was learned: it was "
                    f"{version}, it is {partition.version}",
                    hint="put the object back, or start over in another --out",
                )
            elif listed and not names.issuperset(pieces):
                refused[partition.name] = ConfigError(
                    f"{partition.uri} was learned in other ranges, {pieces[0]} the first, and is "
                    "not learned in part again",
                    hint="set source.range_bytes, source.block_bytes and source.compression back",
                )
        return refused

    @property
    def geometry(self) -> Geometry | None:
        """How its embeddings lie in memory; None where it has none."""
        table = self.table
        held = table.arena if isinstance(table, ExactTable) else table.vectors
        return held.geometry if held is not None else None

    def parts(self, *, embeddings: bool = True) -> Iterator[Held]:
        """Yield what the table holds, part by part in the order of keys; copies.

        Parameters
        ----------
        embeddings : bool
            False: leave ``vectors`` empty; then rows still say where their embeddings are.
        """
        table = self.table
        if isinstance(table, ExactTable):
            for segment in table.key_order():
                rows = table.rows(segment)
                rows = rows[np.argsort(rows[:, 0], kind="stable")]
                arena = table.arena if embeddings else None
                vectors = arena.take(rows) if arena is not None else _NO_VECTORS
                yield Held(rows[:, 0], self.solver.weights(rows[:, 1]), rows, vectors)
            return
        step = 1 << 18
        for first in range(0, len(table.words), step):
            words = table.words[first : first + step]
            touched = np.flatnonzero(words)
            if len(touched):
                columns = words[touched]
                keys = (touched + first).astype(np.uint64)
                vectors = table.vectors_at(touched + first) if embeddings else _NO_VECTORS
                yield Held(keys, self.solver.weights(columns), columns, vectors.reshape(-1))

    def weights_at(self, keys: U64) -> F32:
        """Return the weight of each feature key, 0 where the table does not hold it."""
        out = np.zeros(len(keys), np.float32)
        slots = self.table.find(keys)
        held = slots >= 0
        if isinstance(self.table, ExactTable):
            columns = self.table.rows_at(slots[held])[:, 1]
        else:
            columns = self.table.words[slots]
        out[held] = self.solver.weights(columns)
        return out

    def embeddings_at(self, keys: U64) -> F32:
        """Return the embedding of each feature key, float32[n, dim * (order - 1)], else zeros.

        Coordinates of order 2, then of order 3.
        """
        table = self.table
        if isinstance(table, ExactTable):
            assert table.arena is not None
            return table.arena.coordinates_at(table.find(keys))
        assert table.vectors is not None
        geometry = table.vectors.geometry
        return geometry.all_coordinates(table.vectors_at(table.find(keys)))

    def digest(self) -> str:
        """Return a digest of rows and intercept in the order of keys: equal for equal models."""
        digest = hashlib.blake2b(self.table.intercept.tobytes(), digest_size=16)
        for held in self.parts(embeddings=False):
            exact = held.rows.ndim == 2
            columns = held.rows[:, 1] if exact else held.rows
            # side by side, so that it does not matter where one part ends and another begins
            digest.update(np.stack([held.keys, columns], axis=1).tobytes())
        for held in self.parts() if self.has_embeddings else ():
            digest.update(held.rows[:, 3].tobytes() if held.rows.ndim == 2 else b"")
        for held in self.parts() if self.has_embeddings else ():
            digest.update(held.vectors.tobytes())
        return digest.hexdigest()


def _object_of(name: str) -> str:
    """Return the URI of the object that a partition's name is of."""
    uri, mark, span = name.rpartition("#")
    start, dash, end = span.partition("-")
    ranged = mark and dash and start.isdigit() and (end.isdigit() or end == "-1")
    return uri if ranged else name


def stored_job(directory: Path) -> JobConfig:
    """Return what the model in an output directory was learned with.

    Raises
    ------
    ConfigError
        There is no model.
    SnapshotError
        No snapshot is whole.
    """
    with _newest(directory)[0] as reader:
        return _job(reader)


def load(
    directory: Path,
    job: JobConfig | None = None,
    clock: Callable[[], float] | None = None,
    *,
    mended: bool = False,
    topics: bool = False,
) -> Model:
    """Load the newest whole snapshot of an output directory.

    Parameters
    ----------
    job : JobConfig, optional
        What it will go on with; by default what it was learned with.
    clock : callable, optional
        Seconds, for how long the table takes to grow.
    mended : bool
        Whether ``job`` may read records otherwise than before.
    topics : bool
        Whether the topics of tokens are wanted, for further passes.

    Raises
    ------
    ConfigError
        There is no model, or ``job`` says of its keys and numbers something else than it was
        learned with.
    SnapshotError
        No snapshot is whole, or it is of another format version or model.
    """
    reader, skipped = _newest(directory)
    with reader:
        stored = _job(reader)
        reader.require(
            kind=stored.model.kind,
            keys=(
                "counts",
                "positions",
                "arrays",
                "fields",
                "epoch",
                "quarantine_size",
                "replayed_size",
            ),
            blobs=("intercept",),
        )
        if job is not None:
            _check_binding(stored, job, directory, mended=mended)
        meta = reader.meta
        model = Model.new(
            job or stored, tuple(meta["fields"]), rows=int(meta["features"]), clock=clock,
            dense=tuple(meta.get("dense", ())),
            dense_names=tuple(meta.get("dense_names", ())),
        )  # fmt: skip
        arrays = {
            name: reader.read(name).view(np.dtype(dtype)).reshape(shape)
            for name, (dtype, shape) in meta["arrays"].items()
            if topics or not name.startswith(TOPICS)
        }
        model.validation.restore(_part(arrays, "validation."))
        model.names.restore(_part(arrays, "names."))
        model.table.intercept[:] = arrays["intercept"]
        _load_rows(model.table, reader)
        if isinstance(model.solver, LdaSolver):
            model.solver.restore(_part(arrays, "solver."))
            model.stored_topics = _part(arrays, TOPICS)
        if isinstance(model.job.model, DeepConfig):
            cast("DeviceSolver", model.solver).restore(read_dense(reader))
        model.counts = Counts(**meta["counts"])
        model.epoch = int(meta["epoch"])
        model.swept = int(meta.get("swept", 0))
        model.words_digest = str(meta.get("words_digest", ""))
        model.quarantine_size = int(meta["quarantine_size"])
        model.replayed_size = int(meta["replayed_size"])
        model.positions = {
            name: Progressed(version, Position(offset, records, done))
            for name, (version, offset, records, done) in meta["positions"].items()
        }
        model.resumed_from = str(reader.path)
        model.skipped = skipped
    return model


def _load_rows(table: Table, reader: SnapshotReader) -> None:
    at = 0
    for part in read_parts(reader):
        try:
            if isinstance(table, ExactTable):
                table.insert_rows(part.rows, part.vectors)
            else:
                table.load(at, part.rows.reshape(-1), part.vectors)
                at += part.rows.size
        except ValueError as error:
            raise SnapshotError(f"snapshot {reader.path} is damaged", cause=str(error)) from error


def _part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _newest(directory: Path) -> tuple[SnapshotReader, list[str]]:
    root = directory / "model"
    if not root.is_dir():
        raise ConfigError(
            f"there is no model in {directory}", hint=f"streamlearn train … --out {directory}"
        )
    reader, skipped = newest(root)
    if reader is None:
        raise SnapshotError(
            f"no snapshot in {root} is whole",
            cause="; ".join(skipped) or "there is none",
        )
    return reader, skipped


def _job(reader: SnapshotReader) -> JobConfig:
    reader.require(kind=reader.kind, keys=("job",))
    try:
        return msgspec.convert(reader.meta["job"], JobConfig)
    except msgspec.ValidationError as error:
        raise SnapshotError(
            f"snapshot {reader.path} was written by another version", cause=str(error)
        ) from error


def _check_binding(stored: JobConfig, job: JobConfig, directory: Path, *, mended: bool) -> None:
    """Refuse a job by which a model's keys and numbers would mean something else."""
    for path in BINDING:
        section, _, name = path.partition(".")
        if mended and section == "source":
            continue
        was, now = (_at(one, section, name) for one in (stored, job))
        if was != now:
            raise ConfigError(
                f"{path} is {msgspec.to_builtins(now)}, but the model in {directory} was learned "
                f"with {msgspec.to_builtins(was)}",
                hint="use another --out, or the settings that it was learned with",
            )


def _at(job: JobConfig, section: str, name: str) -> Any:
    value = getattr(job, section)
    return getattr(value, name) if name else value
