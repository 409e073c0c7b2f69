"""What an estimator has learned: a model with its fields and buffers, and how it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, cast

import msgspec
import numpy as np

from streamlearn.config import (
    ComputeConfig,
    DeepConfig,
    JobConfig,
    OutputConfig,
    SourceConfig,
    TablesConfig,
    check_job,
)
from streamlearn.errors import ConfigError, SnapshotError
from streamlearn.kinds import MODELS
from streamlearn.messages import F32, F64, U64
from streamlearn.model import Counts, Model
from streamlearn.model import load as load_model
from streamlearn.model_cut import ModelCut
from streamlearn.online.mappings import Examples, Fields, described
from streamlearn.online.matrices import Columns, Matrix, column_names
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.records import SchemaFields, by_index
from streamlearn.online.solvers import LocalSolver, new_solver
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable

__all__ = [
    "SETTINGS",
    "Learned",
    "job_of",
    "job_with",
    "open_model",
    "opened_by",
    "pack",
    "read_beside",
    "save_model",
    "settings_of",
    "unpack",
]

# Names wait until there are so many: inserting some costs as much as inserting one.
_UNNAMED_MAX: Final = 1024
_ROWS_MAX: Final = 2048
_NOTHING: Final = Nothing()
_NO_ROWS: Final[U64] = np.empty((0, 4), np.uint64)
_NO_VECTORS: Final[F32] = np.empty(0, np.float32)
# A mapping of numbers in Python, or None; of texts, for TOML's sake, and perhaps empty in a job.
_TIERS: Final = "dim_by_count"
# The same of any names.
_SETTINGS: Final = "settings"
# Beside ``model/``: what a snapshot of the command line's has no place for.
_ESTIMATOR: Final = "estimator.json"

_OF_TABLES: Final = ("index", "bits", "features_max", "when_full")
# Those of a table that an estimator has, by the kind of its model.
_TABLES: Final = {
    "lr": _OF_TABLES,
    "fm": (*_OF_TABLES, "embeddings_bytes_max"),
    "mf": ("features_max", "embeddings_bytes_max", "ratings_bytes_max", "when_full"),
    "lda": ("features_max", "embeddings_bytes_max", "tokens_bytes_max", "when_full"),
    "deep": ("features_max", "embeddings_bytes_max", "when_full"),
}
# Those of how it is computed.
_COMPUTES: Final = {"deep": ("minibatch", "device")}
# Those of a source.
_SOURCES: Final = {
    "lda": ("stop_words", "digits", "markup", "word_length_min", "word_length_max"),
}
# Those of a model.
_MODELS: Final = {kind: struct.__struct_fields__ for kind, struct in MODELS.items()} | {
    "mf": (
        *("dim", "loss", "negatives", "alpha", "decay", "l2", "init_scale", "intercept", "epochs"),
        *("held_out", "patience"),
    ),
    # of what labels are, y says; and there are no other workers
    "deep": tuple(
        name
        for name in MODELS["deep"].__struct_fields__
        if name not in ("loss", "classes", "exchange")
    ),
}
# The settings of an estimator, by the names that the command line has for them.
SETTINGS: Final = {
    kind: (
        *(*_MODELS[kind], *_SOURCES.get(kind, ()), *_COMPUTES.get(kind, ())),
        *(*_TABLES[kind], "names_max"),
    )
    for kind in _TABLES
}
# Who opens a model, by its kind.
_OPENED_BY: Final = {
    "lr": "LogisticRegression",
    "fm": "FactorizationMachine",
    "mf": "MatrixFactorization",
    "lda": "LDA",
    "deep": "DeepClassifier",
}


def _room(model: Model, batch: Minibatch | Examples) -> Any:
    """Return buffers to score a minibatch with; those of a lane that learns may be in use."""
    lengths = np.diff(batch.indptr[: batch.rows + 1])
    return model.solver.scratch(batch.rows, batch.nnz, int(lengths.max(initial=0)))


class Learned:
    """A model in memory, learned by one thread; scoring alone may be done by several.

    Parameters
    ----------
    model : Model
    by_schema : bool
        Whether mappings are read by the schema of the model's source.

    Attributes
    ----------
    fields : Fields
        Those of records and frames that were learned.
    asked : Fields
        Those of what is only scored; nobody asks for their names.
    schema : SchemaFields or None
    """

    def __init__(self, model: Model, *, by_schema: bool = False) -> None:
        self.model = model
        self.fields = Fields()
        self.schema = SchemaFields(model.job.source, model.names.fields) if by_schema else None
        self.asked = Fields(noting=False)
        self._scratch = model.solver.scratch(_ROWS_MAX, FEATURES_PER_RECORD_MAX + 1)
        self._one = Examples(1, 64)

    def use(self, job: JobConfig) -> None:
        """Go on with other rates."""
        self.model.job = job_with(self.model.job, job)
        self.model.solver = new_solver(job.model, self.model.table)

    def learn(self, matrix: Matrix, columns: Columns, labels: F32, weights: F32) -> None:
        """Learn a matrix, example after example; labels 0 or 1 and weights are float32[n]."""
        idle = not weights.all()
        for first, batch in matrix.pieces(columns):
            part = slice(first, first + batch.rows)
            batch.labels[: batch.rows] = labels[part]
            batch.weights[: batch.rows] = weights[part]
            if idle:
                _drop_idle(batch)
            self._learn(batch)
        if self.fields.unnamed > _UNNAMED_MAX:
            self._name_new()

    def learn_one(self, record: Mapping[Any, Any], label: float, weight: float) -> None:
        """Learn one record."""
        model = self.model
        keys, values = (self.schema or self.fields).read(record)
        if weight == 0:
            return
        batch = self._one
        if len(keys) > batch.nnz_max:
            batch = self._one = Examples(1, 2 * len(keys))
        batch.put(keys, values)
        batch.labels[0] = label
        batch.weights[0] = weight
        self._learn(batch)
        if self.schema is not None:
            if self._scratch.fresh[0]:  # a weight has left zero: worth a name
                model.names.use_fields(self.schema.fields)
                model.names.insert(self.schema.describe(record))
        elif self.fields.unnamed > _UNNAMED_MAX:
            self._name_new()

    def learn_records(self, frame: Any, labels: F32, weights: F32) -> None:
        """Learn the rows of a frame by the schema of the model's source."""
        for i, record in enumerate(_records(frame)):
            self.learn_one(record, float(labels[i]), float(weights[i]))

    def score(self, matrix: Matrix, columns: Columns) -> F64:
        """Return the scores (logits) of a matrix, float64[n]."""
        out = np.empty(matrix.shape[0], np.float64)
        for first, batch in matrix.pieces(columns):
            out[first : first + batch.rows] = self.model.solver.score(
                batch, _room(self.model, batch)
            )
        return out

    def score_one(self, record: Mapping[Any, Any]) -> float:
        """Return the score (logit) of one record."""
        keys, values = (self.schema or self.asked).read(record)
        batch = Examples(1, len(keys))
        batch.put(keys, values)
        return float(self.model.solver.score(batch, _room(self.model, batch))[0])

    def score_records(self, frame: Any) -> F64:
        """Return the scores of a frame's rows, read by the schema of the model's source.

        Raises
        ------
        ValueError
            It is no frame with names.
        """
        if column_names(frame) is None:
            raise ValueError(
                "the model was learned from records with fields: hand in a frame with their names, "
                "or one mapping after the other to predict_one"
            )
        return np.array([self.score_one(record) for record in _records(frame)])

    def name(self, columns: Columns | None) -> None:
        """Give the model the names that it does not have yet."""
        names = self.model.names
        if columns is not None and columns.names is None:
            texts = [str(j) for j in range(min(columns.count, names.names_max))]
            names.insert(described(columns.keys[: len(texts)], texts))
        self._name_new()

    def _name_new(self) -> None:
        new = self.fields.names()
        if new is not None:
            self.model.names.insert(new)

    def _learn(self, batch: Minibatch) -> None:
        model, rows = self.model, batch.rows
        solver = cast("LocalSolver", model.solver)
        scores = solver.learn(batch, self._scratch, _NOTHING, 0)
        model.validation.update(scores, batch.labels[:rows], batch.weights[:rows])
        model.counts.examples += rows

    def save(self, path: Path, state: dict[str, Any], now: float) -> None:
        """Write a snapshot into ``path/model``, and ``state`` beside it.

        Parameters
        ----------
        state : dict
            What users of Python know of the model, as JSON has it.
        now : float
            Seconds since the epoch.
        """
        model = self.model
        if self.schema is None:
            model.job = msgspec.structs.replace(model.job, source=_source(self.fields.kinds))
        beside = None if self.schema is not None else state | {"kinds": self.fields.kinds}
        save_model(model, path, beside, now)

    @classmethod
    def load(cls, path: Path, kind: str) -> tuple[Self, dict[str, Any]]:
        """Open the newest snapshot of ``path/model``; return it with what stood beside it.

        Parameters
        ----------
        kind : str
            What the model should be.
        """
        model = open_model(path, kind)
        state = read_beside(path, "kinds")
        if state is None:
            named = not by_index(model.job.source)
            state = {"classes": [0, 1], "n_features_in": None, "feature_names_in": None}
            return cls(model, by_schema=named), state
        learned = cls(model)
        learned.fields.kinds = dict(state["kinds"])
        return learned, state

    def __getstate__(self) -> dict[str, Any]:
        """Return the rows by key, and whatever else is not made again: equal for equal models."""
        self._name_new()
        return pack(self.model) | {
            "kinds": dict(self.fields.kinds),
            "by_schema": self.schema is not None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the table anew."""
        self.__init__(unpack(state), by_schema=state["by_schema"])  # type: ignore[misc]
        self.fields.kinds = dict(state["kinds"])


def save_model(model: Model, path: Path, beside: dict[str, Any] | None, now: float) -> None:
    """Write a snapshot into ``path/model``, and beside it what only Python has a place for.

    Parameters
    ----------
    beside : dict or None
        As JSON has it; None: nothing.
    now : float
        Seconds since the epoch.

    Raises
    ------
    SnapshotError
        It cannot be written.
    """
    root = path / "model"
    try:
        root.mkdir(parents=True, exist_ok=True)
        cut = ModelCut(model, root, 0, now)
        try:
            while (part := cut.take()) is not None:
                cut.write(part)
            cut.commit()
        finally:
            cut.cut.close()
        if beside is not None:
            partial = path / f".{_ESTIMATOR}"
            partial.write_text(json.dumps(beside), encoding="utf-8")
            partial.replace(path / _ESTIMATOR)
    except OSError as error:
        raise SnapshotError(f"cannot write {path}", cause=error.strerror) from error


def open_model(path: Path, kind: str) -> Model:
    """Open the newest snapshot of ``path/model``.

    Raises
    ------
    ConfigError
        There is no model, or one of another kind, which another class opens.
    SnapshotError
        No snapshot is whole, or it is of another format version.
    """
    model = load_model(path)
    held = model.job.model.kind
    if held != kind:
        model.close()
        raise ConfigError(
            f"the model in {path} is of kind {held}, but {_OPENED_BY[kind]} opens {kind}",
            hint=f"streamlearn.{opened_by(model.job)}.load({str(path)!r})",
        )
    return model


def opened_by(job: JobConfig) -> str:
    """Return the name of the class that opens the model of a job."""
    if isinstance(job.model, DeepConfig) and job.model.loss == "squared":
        return "DeepRegressor"
    return _OPENED_BY[job.model.kind]


def read_beside(path: Path, *needed: str) -> dict[str, Any] | None:
    """Return what stands beside a model that Python has saved, None where there is nothing.

    Raises
    ------
    SnapshotError
        It cannot be read, or lacks what is needed.
    """
    beside = path / _ESTIMATOR
    try:
        state: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        for name in needed:
            dict(state[name])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{beside} cannot be read", cause=str(error)) from error
    return state


def _records(frame: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a frame as mappings."""
    names = list(frame.columns)
    for row in zip(*(frame[name] for name in names), strict=True):
        yield dict(zip(names, row, strict=True))


def job_of(kind: str, settings: Mapping[str, Any]) -> JobConfig:
    """Return an estimator's settings as a job, checked.

    Parameters
    ----------
    kind : str
        Of the model.
    settings : mapping
        All of ``SETTINGS[kind]``, as users of Python give them.

    Raises
    ------
    ValueError
        A setting is not allowed.
    """
    values = {name: _plain(value) for name, value in settings.items()}
    for name in (_TIERS, _SETTINGS):
        if values.get(name, ...) is None:
            values[name] = {}
    model = MODELS[kind]
    source = SourceConfig()
    if kind in _SOURCES:
        chosen = {name: values[name] for name in _SOURCES[kind]}
        source = SourceConfig(format="documents", **chosen)
    job = JobConfig(
        source=source,
        model=model(**{name: values[name] for name in _MODELS[kind]}),
        tables=TablesConfig(**{name: values[name] for name in _TABLES[kind]}),
        compute=ComputeConfig(**{name: values[name] for name in _COMPUTES.get(kind, ())}),
        output=OutputConfig(names_max=values["names_max"]),
    )
    try:
        check_job(job)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    # what was meant may stand there as something else: a whole number as a text, say
    return msgspec.convert(msgspec.to_builtins(job), JobConfig)


def job_with(job: JobConfig, other: JobConfig) -> JobConfig:
    """Return a job with what another one's estimator says of its model, all else as it was."""
    mine = {name: getattr(other.model, name) for name in _MODELS[job.model.kind]}
    computed = {name: getattr(other.compute, name) for name in _COMPUTES.get(job.model.kind, ())}
    return msgspec.structs.replace(
        job,
        model=msgspec.structs.replace(job.model, **mine),
        compute=msgspec.structs.replace(job.compute, **computed),
    )


def settings_of(job: JobConfig) -> dict[str, Any]:
    """Return a job's settings as those of an estimator."""
    values = {name: getattr(job.model, name) for name in _MODELS[job.model.kind]}
    values |= {name: getattr(job.tables, name) for name in _TABLES[job.model.kind]}
    values |= {name: getattr(job.source, name) for name in _SOURCES.get(job.model.kind, ())}
    values |= {name: getattr(job.compute, name) for name in _COMPUTES.get(job.model.kind, ())}
    if _SETTINGS in values:
        values[_SETTINGS] = dict(values[_SETTINGS]) or None
    if _TIERS in values:
        values[_TIERS] = {int(count): dim for count, dim in values[_TIERS].items()} or None
    return values | {"names_max": job.output.names_max}


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's, and a mapping with texts for keys, as a job has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _source(kinds: Mapping[str, str]) -> SourceConfig:
    """Return what a source of the same features would be."""
    if kinds:
        return SourceConfig(format="jsonl", columns={**kinds, "label": "label"})
    return SourceConfig(format="svmlight")


def _drop_idle(batch: Minibatch) -> None:
    """Take the examples of weight 0 out of a minibatch: they teach nothing."""
    rows, nnz = batch.rows, batch.nnz
    keep = batch.weights[:rows] > 0
    lengths = np.diff(batch.indptr[: rows + 1])
    kept = np.repeat(keep, lengths)
    n, m = int(keep.sum()), int(kept.sum())
    batch.keys[:m], batch.values[:m] = batch.keys[:nnz][kept], batch.values[:nnz][kept]
    batch.labels[:n], batch.weights[:n] = batch.labels[:rows][keep], batch.weights[:rows][keep]
    batch.indptr[1 : n + 1] = np.cumsum(lengths[keep])
    batch.state[0], batch.state[1] = n, m


def pack(model: Model) -> dict[str, Any]:
    """Return a model as arrays and plain values, equal for equal models."""
    table = model.table
    rows: Any
    if isinstance(table, ExactTable):
        parts = list(model.parts())
        rows = np.concatenate([part.rows for part in parts]) if parts else _NO_ROWS
        vectors = np.concatenate([part.vectors for part in parts]) if parts else _NO_VECTORS
    else:
        at = np.flatnonzero(table.words)
        rows, vectors = (at, table.words[at]), table.vectors_at(at)
    return {
        "job": msgspec.to_builtins(model.job),
        "rows": rows,
        "vectors": vectors,
        "intercept": table.intercept.copy(),
        "names": {name: array.copy() for name, array in model.names.state().items()},
        "validation": {
            name: (len(array), at := np.flatnonzero(array), array[at])
            for name, array in model.validation.state().items()
        },
        "counts": {name: getattr(model.counts, name) for name in Counts.__slots__},
        "passes": (model.epoch, model.swept),
    }


def unpack(
    packed: dict[str, Any], fields: tuple[str, ...] = (), dense: tuple[int, ...] = ()
) -> Model:
    """Return the model that :func:`pack` made arrays of.

    Parameters
    ----------
    fields, dense : tuple
        Of a net, whose state is none of those arrays: as ``Model.new`` takes them.
    """
    job = msgspec.convert(packed["job"], JobConfig)
    rows = packed["rows"]
    exact = isinstance(rows, np.ndarray)
    model = Model.new(job, fields, rows=len(rows) if exact else 0, dense=dense)
    if isinstance(model.table, ExactTable):
        held: U64 = rows
        model.table.insert_rows(held, packed["vectors"])
    else:
        model.table.words[rows[0]] = rows[1]
        model.table.put_vectors(rows[0], packed["vectors"])
    model.table.intercept[:] = packed["intercept"]
    model.names.restore(packed["names"])
    state = {}
    for name, (size, at, values) in packed["validation"].items():
        state[name] = np.zeros(size, values.dtype)
        state[name][at] = values
    model.validation.restore(state)
    model.counts = Counts(**packed["counts"])
    model.epoch, model.swept = packed["passes"]
    return model
