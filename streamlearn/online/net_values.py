"""Values that users hand to nets, one by one and as arrays: what they are, and as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamlearn.online.matrices import check_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "as_array",
    "as_records",
    "check_finite",
    "flat",
    "json_value",
    "kind_of",
    "kind_of_all",
    "values_of",
]

# Values that are checked at once.
_CHECKED_MAX: Final = 1 << 18
_FLOAT_MAX: Final = float(np.finfo(np.float32).max)


def as_records(x: Any) -> Sequence[Mapping[Any, Any]] | None:
    """Return mappings, where ``x`` is a sequence of them; None: it is something else."""
    if hasattr(x, "tocsr"):  # of which one kind is a mapping, too
        return None
    if isinstance(x, Mapping):
        return [x]
    listed = isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.dtype == object)
    if listed and len(x) and all(isinstance(one, Mapping) for one in x):
        return list(x)
    return None


def flat(record: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a mapping, those of a mapping within with dots."""
    for name, value in record.items():
        if isinstance(name, bool) or not isinstance(name, str | int | np.integer):
            raise TypeError(
                f"field {name!r} is {type(name).__name__}, expected a string or a whole number"
            )
        if isinstance(value, Mapping):
            for inner, one in flat(value):
                yield f"{name}.{inner}", one
        else:
            yield str(name), value


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ == "NAType":
        return True
    return not isinstance(value, list | tuple | set | frozenset | np.ndarray) and value != value


def kind_of(name: str, value: Any) -> str | None:
    """Return the kind of a field that has a value, None where that is missing."""
    if isinstance(value, list | tuple | set | frozenset):
        return "categorical"
    if _is_missing(value) or (isinstance(value, str) and not value):
        return None
    if isinstance(value, str):
        return "categorical"
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return "number:raw"
    raise TypeError(
        f"field {name!r} holds {type(value).__name__} {value!r}, expected a string, a number, a "
        "list of them or None; what else there is (time), say by columns"
    )


def kind_of_all(name: str, values: Iterable[Any]) -> str | None:
    """Return the kind of a field by the first value that is there."""
    kinds = (kind_of(name, value) for value in values)
    return next((kind for kind in kinds if kind is not None), None)


def json_value(name: str, value: Any, *, dense: bool) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(name, one, dense=dense) for one in value]
    if _is_missing(value):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not abs(value) <= _FLOAT_MAX:
        raise ValueError(f"field {name!r} is {value!r}, expected a finite float32")
    return int(value) if dense and isinstance(value, bool) else value


def values_of(column: Any) -> list[Any]:
    """Return the values of a frame's column as Python's."""
    values: list[Any] = column.tolist() if hasattr(column, "tolist") else column.to_list()
    return values


def as_array(x: Any) -> NDArray[Any]:
    """Return what was handed in as an array of numbers.

    Raises
    ------
    ValueError, TypeError
        It is none, or has no rows or no numbers.
    """
    array = np.asarray(x)
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{array}\n")
    if array.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead.\nReshape your data either using "
            "array.reshape(-1, 1) if your data has a single feature or array.reshape(1, -1) if it "
            "contains a single sample."
        )
    check_shape(array.shape)
    return array if array.dtype.kind in "biuf" else array.astype(np.float64)


def check_finite(array: NDArray[Any]) -> None:
    """Refuse what float32 cannot hold; NaN is a missing number."""
    if array.dtype.kind != "f":
        return
    step = max(1, _CHECKED_MAX // max(1, math.prod(array.shape[1:])))
    for first in range(0, len(array), step):
        with np.errstate(over="ignore"):
            part = np.asarray(array[first : first + step], np.float32)
        if np.isinf(part).any():
            raise ValueError("Input X contains infinity or a value too large for dtype('float32').")
