"""What nets are given from memory, as rows of a dense part and of features by field.

* Columns of an array, and numbers in frames and mappings, are the dense part; NaN and ``None`` are
  missing numbers. Arrays of more dimensions are images, bytes of them taken to [0, 1].
* Texts in frames and mappings are features of a field that is embedded, a list of them several.
* A sparse matrix is one embedded field, ``features``, whose features are its columns.

What a model has is said by the source that would have the same (:func:`source_of`), so a model is
read alike whoever learned it. Frames and mappings are written as JSON and parsed as the source's
own records would be: keys, numbers and names are those of the command line.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.messages import F32, I32, I64, U64
from streamlearn.online.formats import ALIASES, Deep, Described, open_format
from streamlearn.online.jsonl import JsonlFormat
from streamlearn.online.mappings import Fields, described
from streamlearn.online.matrices import (
    Columns,
    check_shape,
    column_names,
    is_number,
    read_matrix,
    stacked,
)
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, S_NNZ, S_ROWS, Minibatch
from streamlearn.online.net_values import (
    as_array,
    as_records,
    check_finite,
    flat,
    json_value,
    kind_of,
    kind_of_all,
    values_of,
)
from streamlearn.online.records import LABEL, as_json, buffer_of, plain
from streamlearn.online.schema import WILDCARD
from streamlearn.online.svmlight import FIELD

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Inputs", "Rows", "columns_of", "inputs_of", "shape_of", "source_of"]

# Features of one call whose names are asked for.
_KNOWN_MAX: Final = 1 << 20
# Records parsed at once.
_CHUNK: Final = 2048
_BYTE: Final = np.float32(255)
_NAMED_MAX: Final = 10
_BINARY: Final = Deep("logistic", 0)
_NO_KEYS: Final[U64] = np.zeros(0, np.uint64)
_NO_VALUES: Final[F32] = np.zeros(0, np.float32)
_NO_FIELDS: Final[I32] = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples in memory, of which minibatches are made.

    Attributes
    ----------
    count : int
    dense : array[count, ...] or None
        Numbers of any type, as they were handed in; finite or NaN.
    keys, values, fields : uint64[nnz], float32[nnz] or [0], int32[nnz]
        Features, as minibatches have them.
    indptr : int64[count + 1]
    described : list of Described
        Names of features, where they were asked for.
    """

    count: int
    dense: NDArray[Any] | None = None
    keys: U64 = field(default_factory=lambda: _NO_KEYS)
    values: F32 = field(default_factory=lambda: _NO_VALUES)
    fields: I32 = field(default_factory=lambda: _NO_FIELDS)
    indptr: I64 = field(default_factory=lambda: np.zeros(1, np.int64))
    described: list[Described] = field(default_factory=list)

    def nnz_max(self, rows: int) -> int:
        """Return how many features so many examples have at most."""
        longest = int(np.diff(self.indptr).max(initial=0))
        return min(len(self.keys), rows * longest)

    def fill(self, batch: Minibatch, at: I64, padding: int = 0) -> None:
        """Have a minibatch hold some examples, with label 0 and weight 1.

        Parameters
        ----------
        at : int64[n]
            Which, in this order.
        padding : int
            Examples of nothing behind them.
        """
        n = len(at)
        batch.clear()
        batch.indptr[1 : n + 1] = 0
        if len(self.keys):
            begin = self.indptr[at]
            lengths = self.indptr[at + 1] - begin
            ends = batch.indptr[1 : n + 1]
            np.cumsum(lengths, out=ends)
            nnz = int(ends[-1]) if n else 0
            places = np.repeat(begin - (ends - lengths), lengths) + np.arange(nnz)
            batch.keys[:nnz] = self.keys[places]
            batch.fields[:nnz] = self.fields[places]
            if batch.has_values:
                batch.values[:nnz] = self.values[places]
            batch.state[S_NNZ] = nnz
        if self.dense is not None:
            out = batch.dense[:n]
            out[:] = self.dense[at].reshape(out.shape)
            if self.dense.dtype == np.uint8:
                out /= _BYTE
        all_rows = n + padding
        batch.indptr[n + 1 : all_rows + 1] = batch.indptr[n]
        batch.dense[n:all_rows] = 0
        batch.labels[:all_rows], batch.weights[:all_rows] = 0, 1
        batch.state[S_ROWS] = all_rows


class Inputs(Protocol):
    """Reads what is handed to a net.

    Attributes
    ----------
    has_values : bool
        Whether features have values.
    warns : bool
        Whether a field that the net does not have is warned of.
    """

    has_values: bool
    warns: bool

    def read(self, x: Any, *, noting: bool = False) -> Rows:
        """Read examples.

        Parameters
        ----------
        x : array, sparse matrix, frame or sequence of mappings
        noting : bool
            Whether names of features are wanted.

        Raises
        ------
        ValueError, TypeError
            They are none that the net could be given: says what is expected.
        """
        ...


def source_of(x: Any, columns: Mapping[str, str] | None = None) -> SourceConfig:
    """Return the source whose records would have what ``x`` has.

    Parameters
    ----------
    x : array, sparse matrix, frame or sequence of mappings
    columns : mapping of str to str, optional
        Kinds of fields, as ``source.columns`` has them; by default as the values show.

    Raises
    ------
    ValueError, TypeError
        It is none of these, or has nothing.
    """
    if hasattr(x, "tocsr"):
        return SourceConfig(format="svmlight")
    kinds: dict[str, str] = {}
    if columns is not None:
        kinds = {str(name): str(kind) for name, kind in columns.items()}
        if several := [name for name, kind in kinds.items() if kind in ("label", "weight")]:
            raise ValueError(
                f"columns[{several[0]!r}] is {kinds[several[0]]!r}, but y and sample_weight are "
                "handed in by themselves"
            )
    elif (names := column_names(x)) is not None:
        check_shape((len(x), len(names)))
        for name in names:
            if is_number(x[name]):
                kinds[name] = "number:raw"
            elif (kind := kind_of_all(name, values_of(x[name]))) is not None:
                kinds[name] = kind
    elif (records := as_records(x)) is not None:
        for record in records:
            for name, value in flat(record):
                if name not in kinds and (kind := kind_of(name, value)) is not None:
                    kinds[name] = kind
    else:
        array = as_array(x)
        if array.ndim != 2:
            return SourceConfig(format="idx" if array.ndim == 3 else "samples")
        kinds = {str(j): "number:raw" for j in range(array.shape[1])}
    if not kinds:
        raise ValueError("no field of X has a value, and a net needs one")
    if columns is None:  # in an order of their own, whatever that of a first record is
        kinds = {name: kinds[name] for name in sorted(kinds, key=_place_of)}
    label = "label"
    while label in kinds:
        label += "_"
    return SourceConfig(format="jsonl", columns={**kinds, label: "label"})


def shape_of(source: SourceConfig, x: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the embedded fields and the shape of the dense part that a source and ``x`` have."""
    if source.format == "svmlight":
        return (FIELD,), ()
    if source.format == "jsonl":
        try:
            format_ = JsonlFormat(source, deep=_BINARY)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return format_.fields, format_.dense
    shape = as_array(x).shape[1:]
    return (), (1, *shape) if len(shape) == 2 else shape


def columns_of(x: Any) -> tuple[int, tuple[str, ...] | None] | None:
    """Return how many columns a matrix or frame has, and their names; None: ``x`` is neither."""
    if hasattr(x, "tocsr"):
        return (x.shape[1], None) if len(x.shape) == 2 else None
    names = column_names(x)
    if names is not None:
        return len(names), names
    if as_records(x) is not None:
        return None
    array = np.asarray(x)
    return (array.shape[1], None) if array.ndim == 2 else None


def inputs_of(source: SourceConfig, fields: Sequence[str], dense: tuple[int, ...]) -> Inputs:
    """Return what reads examples for a net.

    Parameters
    ----------
    source : SourceConfig
        What the net was learned from, or :func:`source_of` says.
    fields, dense
        As the net has them.

    Raises
    ------
    ConfigError
        Its records have no names that a frame or a mapping could have.
    """
    name = ALIASES.get(source.format, source.format)
    if name == "svmlight":
        return SparseInputs()
    if name in ("idx", "samples"):
        return ArrayInputs(dense)
    return NamedInputs(source, fields, dense)


class SparseInputs:
    """Rows of sparse matrices, as lines of svmlight have them; or mappings of column to number."""

    has_values = True
    warns = False

    def read(self, x: Any, *, noting: bool = False) -> Rows:
        """See :meth:`Inputs.read`."""
        records = as_records(x)
        if records is not None:
            fields = Fields(noting=False)
            read = [fields.read(record) for record in records]
            lengths = [len(keys) for keys, _ in read]
            keys = np.array([key for keys, _ in read for key in keys], np.uint64)
            values = np.array([value for _, values in read for value in values], np.float32)
            return Rows(
                len(read), None, keys, values, np.zeros(len(keys), np.int32), _ends(lengths)
            )
        matrix = read_matrix(x, Fields(noting=False))
        parts: list[tuple[U64, F32]] = []
        lengths = []
        for _, batch in matrix.pieces(Columns(matrix.shape[1], None)):
            parts.append((batch.keys[: batch.nnz].copy(), batch.values[: batch.nnz].copy()))
            lengths += np.diff(batch.indptr[: batch.rows + 1]).tolist()
        keys = np.concatenate([one for one, _ in parts])
        values = np.concatenate([one for _, one in parts])
        named = [_column_names(x, keys)] if noting else []
        return Rows(
            matrix.shape[0], None, keys, values, np.zeros(len(keys), np.int32), _ends(lengths),
            named,
        )  # fmt: skip


class ArrayInputs:
    """Arrays of one shape, images for one.

    Parameters
    ----------
    shape : tuple of int
        Of one example.
    """

    has_values = False
    warns = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def read(self, x: Any, *, noting: bool = False) -> Rows:
        """See :meth:`Inputs.read`."""
        array = as_array(x)
        given = array.shape[1:]
        if given != self._shape and (1, *given) != self._shape:
            raise ValueError(
                f"X has examples of shape {given}, but the net was made for {self._shape}"
            )
        check_finite(array)
        return Rows(len(array), array)


class NamedInputs:
    """Fields by name: frames and mappings; and arrays, where there is nothing but numbers.

    Parameters
    ----------
    source : SourceConfig
    fields : sequence of str
        Embedded fields, in the net's order.
    dense : tuple of int
        How many numbers the dense part has.
    """

    has_values = False

    def __init__(self, source: SourceConfig, fields: Sequence[str], dense: tuple[int, ...]) -> None:
        if source.columns.get(WILDCARD) == "number:raw":
            raise ConfigError(
                "names of numbers that a header alone has named are not kept, and frames and "
                "mappings go by names",
                hint="name them in source.columns and learn it again, or use streamlearn predict",
            )
        config = msgspec.structs.replace(as_json(source, fields), classes=())
        self._logarithms = ALIASES.get(source.format, source.format) == "criteo"
        columns = dict(config.columns)
        if self._logarithms:  # of integers, which nets have in their dense part
            columns |= {name: "number:raw" for name in columns if name.startswith("I")}
            config = msgspec.structs.replace(config, columns=columns)
        self._format = JsonlFormat(config, deep=_BINARY)
        plain_source = msgspec.structs.replace(source, classes=())
        names = open_format(plain_source, labelled=False, deep=_BINARY).dense_names
        if len(names) != sum(dense) or set(fields) != set(self._format.fields):
            raise ConfigError(
                f"the net has {len(fields)} fields and a dense part of {sum(dense)} numbers, but "
                f"its source names {len(self._format.fields)} and {len(names)}",
                hint="name all columns in source.columns, and learn it again",
            )
        self._names = names
        self._dense = {name: j for j, name in enumerate(names)}
        place = {name: i for i, name in enumerate(fields)}
        self._places: I32 = np.array([place[name] for name in self._format.fields], np.int32)
        held = {name: j for j, name in enumerate(self._format.dense_names)}
        self._order: I64 = np.array([held[name] for name in names], np.int64)
        self.warns = True
        not_read = ("label", "weight", "ignore")
        self._read = {name for name, kind in columns.items() if kind not in not_read}
        self._passed = {name for name, kind in columns.items() if kind in not_read}
        self._embeds = bool(fields)
        self._lock = threading.Lock()
        self._parser: Any = None
        self._out = Minibatch(1, FEATURES_PER_RECORD_MAX, has_values=False)

    def read(self, x: Any, *, noting: bool = False) -> Rows:
        """See :meth:`Inputs.read`; of what is not there, NaN or no feature."""
        names = column_names(x)
        if names is not None:
            check_shape((len(x), len(names)))
            return self._read_frame(x, names, noting=noting)
        records = as_records(x)
        if records is not None:
            return self._read_records(records, noting=noting)
        if self._embeds:
            raise ValueError(
                f"X is {type(x).__name__}, but the net was made for fields with names: hand in a "
                "frame or mappings"
            )
        array = as_array(x)
        if array.ndim != 2:
            raise ValueError(f"Expected 2D array, got {array.ndim}D array instead.")
        _check_columns(array.shape[1], len(self._names))
        return self._numbers(array)

    def _numbers(self, array: NDArray[Any]) -> Rows:
        if array.dtype == np.uint8:  # numbers of columns, not bytes of an image
            array = array.astype(np.float32)
        check_finite(array)
        return Rows(len(array), _logarithms(array) if self._logarithms else array)

    def _read_frame(self, x: Any, names: Sequence[str], *, noting: bool) -> Rows:
        there = [name for name in names if name in self._read]
        self._pass_over(name for name in names if name not in self._read)
        dense = [name for name in self._names if name in there and is_number(x[name])]
        numbers = np.full((len(x), len(self._names)), np.nan)
        if dense:
            numbers[:, [self._dense[name] for name in dense]] = stacked([x[name] for name in dense])
        others = [name for name in there if name not in set(dense)]
        if not others and not self._embeds:
            return self._numbers(numbers)
        columns = [values_of(x[name]) for name in others]
        rows = zip(*columns, strict=True) if columns else ((),) * len(x)
        read = self._read_records(
            (dict(zip(others, row, strict=True)) for row in rows), noting=noting
        )
        if not dense:
            return read
        from_text = read.dense
        assert from_text is not None
        made = self._numbers(numbers).dense
        assert made is not None
        whole = np.where(np.isnan(made), from_text, made)
        return Rows(
            read.count, whole, read.keys, read.values, read.fields, read.indptr, read.described
        )

    def _read_records(self, records: Iterable[Mapping[Any, Any]], *, noting: bool) -> Rows:
        lines = [self._line(record) for record in records]
        if not lines:
            check_shape((0, 1))
        parts: list[tuple[U64, I32, F32, I64]] = []
        named: list[Described] = []
        known: set[int] = set()
        with self._lock:
            self._make_room(len(lines))
            for first in range(0, len(lines), _CHUNK):
                chunk = lines[first : first + _CHUNK]
                starts = _ends([len(line) + 1 for line in chunk])
                buffer = buffer_of(b"\n".join(chunk))
                at, end = 0, int(starts[-1])
                while at < end:
                    out = self._out
                    out.clear()
                    at = self._parser.parse(buffer, at, end, out)
                    if out.bad:
                        row = int(np.searchsorted(starts, out.bad_start[0], side="right")) - 1
                        raise ValueError(f"row {first + row} of X: {self._complaint(chunk[row])}")
                    parts.append(_copied(out))
                    if noting and len(known) < _KNOWN_MAX:
                        keys, places = np.unique(parts[-1][0], return_index=True)
                        new = [key not in known for key in keys.tolist()]
                        known.update(keys.tolist())
                        named += self._describe(buffer, starts, places[new])
        keys = np.concatenate([one for one, *_ in parts])
        fields = self._places[np.concatenate([one for _, one, *_ in parts])]
        dense = None
        if self._names:
            dense = np.concatenate([one for *_, one, _ in parts])[:, self._order]
            dense = _logarithms(dense) if self._logarithms else dense
        indptr = _ends(np.concatenate([one for *_, one in parts]))
        return Rows(len(lines), dense, keys, _NO_VALUES, fields, indptr, named)

    def _make_room(self, rows: int) -> None:
        if self._parser is None:
            self._parser = self._format.parser(None)
        wanted = min(rows, _CHUNK)
        if self._out.rows_max < wanted or not self._out.fields.size:
            room = 2 * FEATURES_PER_RECORD_MAX
            self._out = Minibatch(
                wanted, room, has_values=False, has_fields=True, dense=self._format.dense
            )

    def _describe(self, buffer: Any, starts: I64, places: I64) -> list[Described]:
        """Name the features at some places of what was parsed last."""
        if not len(places):
            return []
        out = self._out
        rows = np.unique(np.searchsorted(out.indptr[: out.rows + 1], places, side="right") - 1)
        begin = out.lines[rows]
        ends = starts[np.searchsorted(starts, begin, side="right")] - 1
        return [self._parser.describe(buffer, begin, ends)]

    def _complaint(self, line: bytes) -> str:
        out = self._out
        reason, column, arg = out.bad_reason[0], out.bad_field[0], out.bad_arg[0]
        return self._format.complaint(int(reason), int(column), int(arg), line)

    def _line(self, record: Mapping[Any, Any]) -> bytes:
        """Return a record as JSON."""
        out: dict[str, Any] = {LABEL: 1}
        for name, value in flat(record):
            if name in self._read:
                out[name] = json_value(name, value, dense=name in self._dense)
            else:
                self._pass_over([name])
        return msgspec.json.encode(out, enc_hook=plain)

    def _pass_over(self, names: Iterable[str]) -> None:
        """Take note of fields that the net does not have; warn of each once."""
        new = [name for name in names if name not in self._passed]
        if new and self.warns:
            self._passed.update(new)
            warnings.warn(
                f"fields {new[:_NAMED_MAX]} are left out: the net was made without them, as the "
                "first data did not have them",
                stacklevel=_level_of_caller(),
            )


def _level_of_caller() -> int:
    """Return the level, as warnings count it, of who calls this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals["__name__"].startswith("streamlearn."):
        level, frame = level + 1, frame.f_back
    return level - 1


def _place_of(name: str) -> tuple[int, str]:
    """Return what fields are ordered by: numbers as such, before names."""
    whole = name.isdecimal() and name.isascii()
    return (int(name), "") if whole else (1 << 63, name)


def _column_names(x: Any, keys: U64) -> Described:
    """Return the names of a matrix's columns that occur: their numbers."""
    csr = x.tocsr() if hasattr(x, "tocsr") else None
    columns = np.unique(csr.indices) if csr is not None else np.arange(np.asarray(x).shape[1])
    count = int(columns[-1]) + 1 if len(columns) else 0
    all_keys = Columns(count, None).keys[columns]
    held = np.isin(all_keys, keys)
    return described(all_keys[held], [str(j) for j in columns[held].tolist()])


def _copied(out: Minibatch) -> tuple[U64, I32, F32, I64]:
    """Return keys, fields, the dense part, and how many features each row has; copies."""
    return (
        out.keys[: out.nnz].copy(),
        out.fields[: out.nnz].copy(),
        out.dense[: out.rows].copy(),
        np.diff(out.indptr[: out.rows + 1]),
    )


def _ends(lengths: Sequence[int] | I64) -> I64:
    """Return where things of these lengths begin, and the last one ends."""
    out: I64 = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def _logarithms(array: NDArray[Any]) -> NDArray[Any]:
    """Return ``log(1 + max(x, 0))``: integers of Criteo's logs as nets have them."""
    made: NDArray[Any] = np.log1p(np.maximum(array, 0))
    return made


def _check_columns(count: int, expected: int) -> None:
    if count != expected:
        raise ValueError(f"X has {count} features, but the net is expecting {expected} features")
