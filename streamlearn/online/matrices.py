"""Matrices and frames that are in memory, cut into minibatches.

What may be handed in: dense arrays (and whatever NumPy makes one of), scipy's sparse matrices and
arrays, and frames (pandas, polars: whatever has ``columns`` and gives one by its name). Columns of
a frame are fields by their names, with the keys that a record's fields have; other columns are
numbers from 0, with the keys that svmlight's indices have.

Everything is checked before the first minibatch is cut, so a bad matrix teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np

from streamlearn.compute.kernels import matrices as kernels
from streamlearn.messages import F32, I64, U64
from streamlearn.online.features import field_seed
from streamlearn.online.mappings import Examples, Fields, raw_keys
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = [
    "Columns",
    "Matrix",
    "check_shape",
    "column_names",
    "is_number",
    "read_matrix",
    "stacked",
]

# Of a minibatch: its arrays fit the second cache.
_ROWS_MAX: Final = 2048
_NNZ_MAX: Final = 1 << 16
# Values checked at a time.
_CHECKED_MAX: Final = 1 << 18


class Columns:
    """What a model's columns are: their number, their names where they have any, their keys.

    Parameters
    ----------
    count : int
    names : tuple of str, optional
        Without them, columns are numbers from 0.
    """

    def __init__(self, count: int, names: tuple[str, ...] | None) -> None:
        self.count = count
        self.names = names
        self._keys: U64 | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the keys out of a pickle."""
        return Columns, (self.count, self.names)

    @property
    def keys(self) -> U64:
        """Key of each column's number, uint64[count]."""
        if self._keys is None:
            if self.names is not None:
                self._keys = raw_keys([field_seed(name) for name in self.names])
            else:
                self._keys = np.empty(self.count, np.uint64)
                kernels.column_keys(field_seed(""), self._keys)
        return self._keys

    @property
    def order(self) -> I64:
        """The order in which columns become features: that of named fields, by key."""
        if self.names is None:
            return np.arange(self.count)
        return np.argsort(self.keys, kind="stable")


class Matrix(Protocol):
    """Examples in memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """Examples and columns."""
        ...

    def pieces(self, columns: Columns) -> Iterator[tuple[int, Minibatch]]:
        """Cut it: yield (first row, minibatch), each valid until the next one."""
        ...


def column_names(x: Any) -> tuple[str, ...] | None:
    """Return the names of a frame's columns, None where ``x`` is no frame or they are no texts.

    Raises
    ------
    TypeError
        Some are texts and others are not.
    """
    names = getattr(x, "columns", None)
    if names is None or not hasattr(x, "__getitem__") or hasattr(x, "tocsr"):
        return None
    names = list(names)
    texts = [isinstance(name, str) for name in names]
    if not any(texts):
        return None
    if not all(texts):
        kinds = sorted({type(name).__name__ for name in names})
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your "
            f"input has {kinds} as feature name / column name types. If you want feature names to "
            "be stored and validated, you must convert them all to strings, by using "
            "X.columns = X.columns.astype(str) for example."
        )
    if len(set(names)) < len(names):
        raise ValueError("two columns of the frame have the same name")
    return tuple(names)


def read_matrix(x: Any, fields: Fields, *, missing: bool = False) -> Matrix:
    """Return what was handed in as a matrix, checked.

    Parameters
    ----------
    x : array, sparse matrix or frame
    fields : Fields
        Takes note of the fields and categories of a frame.
    missing : bool
        Whether NaN means a missing number rather than a mistake.

    Raises
    ------
    ValueError
        A wrong number of dimensions, no rows or columns, NaN or infinite values, values too large
        for float32, complex numbers, texts that are no numbers, or a row with more than 65,536
        features.
    TypeError
        Values that are no numbers.
    """
    if hasattr(x, "tocsr"):
        return _Csr(x, missing=missing)
    names = column_names(x)
    if names is not None:
        columns = [x[name] for name in names]
        if not all(is_number(column) for column in columns):
            return _Frame(names, columns, fields, missing=missing)
        fields.know(names)
        x = stacked(columns)
    return _Dense(_array(x), missing=missing)


def is_number(column: Any) -> bool:
    """Say whether a frame's column has a numeric type, booleans included."""
    kind = getattr(column.dtype, "kind", None)
    if kind is None:  # polars
        return bool(column.dtype.is_numeric() or str(column.dtype) == "Boolean")
    return kind in "biuf"


def stacked(columns: Sequence[Any]) -> Any:
    """Return columns of numbers side by side, float64[n, d]; NaN where one is missing."""
    out = np.empty((len(columns[0]), len(columns)), np.float64)
    for j, column in enumerate(columns):
        try:
            out[:, j] = column.to_numpy()
        except (TypeError, ValueError):  # pandas' nullable numbers, some of them missing
            out[:, j] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return out


def _array(x: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(x)
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{array}\n")
    if array.ndim != 2:
        if array.ndim < 2:
            raise ValueError(
                f"Expected 2D array, got {array.ndim}D array instead.\nReshape your data either "
                "using array.reshape(-1, 1) if your data has a single feature or "
                "array.reshape(1, -1) if it contains a single sample."
            )
        raise ValueError(f"Found array with dim {array.ndim}, while dim <= 2 is required.")
    if array.dtype.kind not in "biuf":
        array = array.astype(np.float64)
    return array


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse what has no rows, or no columns."""
    rows, *columns = shape
    if not rows:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required."
        )
    if not all(columns):
        raise ValueError(
            f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required."
        )


def _float32(values: np.ndarray[Any, Any], *, missing: bool) -> F32:
    """Return a copy as contiguous float32, a missing number as 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.array(values, np.float32, order="C")
    if missing:
        out[np.isnan(out)] = 0
    return out


def _check_values(values: np.ndarray[Any, Any], step: int, *, missing: bool) -> None:
    """Refuse NaN and what float32 cannot hold, ``step`` rows of an array at a time."""
    if values.dtype.kind != "f":
        return
    for first in range(0, len(values), step):
        part = _float32(values[first : first + step], missing=missing)
        if np.isfinite(part).all():
            continue
        if np.isnan(part).any():
            raise ValueError("Input X contains NaN.\nNaN is no value here: 0 is an absent feature.")
        raise ValueError("Input X contains infinity or a value too large for dtype('float32').")


class _Dense:
    def __init__(self, array: np.ndarray[Any, Any], *, missing: bool) -> None:
        self._array = array
        self._missing = missing
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        check_shape(self.shape)
        width = self.shape[1]
        self._step = max(1, min(_ROWS_MAX, _NNZ_MAX // width))
        _check_values(array, max(1, _CHECKED_MAX // width), missing=missing)
        if width > FEATURES_PER_RECORD_MAX:
            for row in array:
                _check_features(int(np.count_nonzero(row)))

    def pieces(self, columns: Columns) -> Iterator[tuple[int, Minibatch]]:
        order = columns.order
        keys = np.ascontiguousarray(columns.keys[order])
        room = min(self._step * self.shape[1], max(_NNZ_MAX, FEATURES_PER_RECORD_MAX))
        batch = Examples(min(self._step, self.shape[0]), room + 1)
        for first in range(0, self.shape[0], self._step):
            cells = _float32(self._array[first : first + self._step], missing=self._missing)
            nnz = kernels.take_dense(cells, order, keys, batch.keys, batch.values, batch.indptr)
            batch.hold(len(cells), int(nnz))
            yield first, batch


class _Csr:
    def __init__(self, x: Any, *, missing: bool) -> None:
        if x.dtype.kind == "c":
            raise ValueError(f"Complex data not supported\n{x}\n")
        if len(x.shape) != 2:
            raise ValueError(f"Expected 2D array, got {len(x.shape)}D sparse array instead.")
        x = x.tocsr()
        if not x.has_canonical_format:
            x = x.copy()
            x.sum_duplicates()
        self._missing = missing
        self._data = x.data if x.data.dtype.kind in "biuf" else x.data.astype(np.float64)
        self._indices, self._indptr = x.indices, np.asarray(x.indptr, np.int64)
        self.shape: tuple[int, int] = (x.shape[0], x.shape[1])
        check_shape(self.shape)
        _check_values(self._data, _CHECKED_MAX, missing=missing)
        _check_features(int(np.diff(self._indptr).max(initial=0)))

    def pieces(self, columns: Columns) -> Iterator[tuple[int, Minibatch]]:
        keys = columns.keys if columns.names is not None else np.empty(0, np.uint64)
        seed = field_seed("")
        rows, ends = self.shape[0], self._indptr
        batch = Examples(min(rows, _ROWS_MAX), min(int(ends[-1]), _NNZ_MAX) + 1)
        first = 0
        while first < rows:
            fits = int(np.searchsorted(ends, ends[first] + _NNZ_MAX, side="right")) - 1
            end = min(fits, first + _ROWS_MAX, rows)
            part = slice(int(ends[first]), int(ends[end]))
            nnz = kernels.take_csr(
                _float32(self._data[part], missing=self._missing),
                np.array(self._indices[part], np.int64),
                ends[first : end + 1] - ends[first],
                keys,
                seed,
                batch.keys,
                batch.values,
                batch.indptr,
            )
            batch.hold(end - first, int(nnz))
            yield first, batch
            first = end


def _check_features(features: int) -> None:
    if features > FEATURES_PER_RECORD_MAX:
        raise ValueError(
            f"a row has {features:,} features that are not 0, at most "
            f"{FEATURES_PER_RECORD_MAX:,} allowed"
        )


class _Frame:
    """A frame with categories: columns as codes into the features of their different values."""

    def __init__(
        self, names: Sequence[str], columns: Sequence[Any], fields: Fields, *, missing: bool
    ) -> None:
        self.shape: tuple[int, int] = (len(columns[0]), len(names))
        check_shape(self.shape)
        _check_features(len(names))
        fields.know([n for n, column in zip(names, columns, strict=True) if is_number(column)])
        self._columns: list[Callable[[slice], tuple[U64, F32]]] = []
        for name, column in zip(names, columns, strict=True):
            if is_number(column):
                self._columns.append(_numbers(name, column, missing=missing))
            else:
                self._columns.append(_categories(name, column, fields))
        self._step = max(1, min(_ROWS_MAX, _NNZ_MAX // len(names)))

    def pieces(self, columns: Columns) -> Iterator[tuple[int, Minibatch]]:
        rows, width = self.shape
        batch = Examples(min(self._step, rows), self._step * width + 1)
        for first in range(0, rows, self._step):
            part = slice(first, min(first + self._step, rows))
            shape = (part.stop - part.start, width)
            keys, cells = np.empty(shape, np.uint64), np.empty(shape, np.float32)
            for j, column in enumerate(self._columns):
                keys[:, j], cells[:, j] = column(part)
            nnz = kernels.take_cells(keys, cells, batch.keys, batch.values, batch.indptr)
            batch.hold(shape[0], int(nnz))
            yield first, batch


def _numbers(name: str, column: Any, *, missing: bool) -> Callable[[slice], tuple[U64, F32]]:
    values = stacked([column])[:, 0]
    _check_values(values, _CHECKED_MAX, missing=missing)
    key = raw_keys([field_seed(name)])

    def cut(part: slice) -> tuple[U64, F32]:
        return key, _float32(values[part], missing=missing)

    return cut


def _categories(name: str, column: Any, fields: Fields) -> Callable[[slice], tuple[U64, F32]]:
    if hasattr(column, "factorize"):
        codes, uniques = column.factorize()
        different = list(uniques)
    else:
        places: dict[Any, int] = {}
        codes = np.array([places.setdefault(one, len(places)) for one in column], np.int64)
        different = list(places)
    fields.meet(name, different)
    # one more, for code -1: pandas' way of saying that there is nothing
    features = [fields.feature(name, value) or (1, 0.0) for value in different] + [(1, 0.0)]
    keys = np.array([key for key, _ in features], np.uint64)
    values = np.array([value for _, value in features], np.float32)

    def cut(part: slice) -> tuple[U64, F32]:
        return keys[codes[part]], values[codes[part]]

    return cut
