"""Users, items and ratings as users of Python hand them in, and their ids as they are given back.

An id is a string or a whole number, whose key is that of its text in a file of ratings; anything
else goes by what ``str`` makes of it. A number is known by its digits: 7 and "7" are one user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.messages import F32, U64
from streamlearn.online.formats import Described
from streamlearn.online.matrices import column_names
from streamlearn.online.names import TOKEN_BYTES_MAX
from streamlearn.online.ratings import rating_keys

__all__ = [
    "KINDS",
    "Column",
    "Ids",
    "Pairs",
    "named",
    "read_column",
    "read_pairs",
    "read_rating",
    "read_ratings",
]

KINDS: Final = ("user", "item")
_RATING_MAX: Final = float(np.finfo(np.float32).max)
# Beyond it, not every whole number is a float.
_FLOAT_WHOLE_MAX: Final = 2.0**53


class Column(NamedTuple):
    """Ids of users, or of items, by row.

    Attributes
    ----------
    ids : int array of n, or list of n
        As they were handed in, but for whole numbers that were floats.
    keys : uint64[n]
    """

    ids: Any
    keys: U64


class Pairs(NamedTuple):
    """Users and items by row.

    Attributes
    ----------
    names : tuple of str or None
        Of the columns, where they were a frame's.
    """

    users: Column
    items: Column
    names: tuple[str, ...] | None

    @property
    def keys(self) -> U64:
        """Keys of users and items, uint64[n, 2]."""
        return np.stack([self.users.keys, self.items.keys], axis=1)


def read_pairs(x: Any) -> Pairs:
    """Read what stands for X: two columns, user and item.

    Parameters
    ----------
    x : array [n, 2], sequence of n pairs or of n mappings with ``user`` and ``item``, or frame
        A frame's first column is the user.

    Raises
    ------
    ValueError
        It has another shape, or an id is missing.
    TypeError
        It is nothing of that kind.
    """
    names = column_names(x)
    if names is not None:
        if names == KINDS[::-1]:
            raise ValueError("the frame's columns are item and user, expected user and item")
        _check_width(len(names))
        return _pairs(x[names[0]], x[names[1]], names)
    if hasattr(x, "tocsr"):
        raise TypeError(
            "X is a sparse matrix, expected pairs of user and item: "
            "coo = X.tocoo(); fit(np.column_stack([coo.row, coo.col]), coo.data)"
        )
    if hasattr(x, "columns") or (hasattr(x, "__array__") and not isinstance(x, np.ndarray)):
        x = np.asarray(x)
    if isinstance(x, np.ndarray):
        if x.ndim != 2:
            raise ValueError(f"Expected 2D array, got {x.ndim}D array instead: pairs of user, item")
        _check_width(x.shape[1])
        return _pairs(x[:, 0], x[:, 1], None)
    if isinstance(x, str | bytes | Mapping) or not isinstance(x, Sequence):
        raise TypeError(f"X is {type(x).__name__}, expected pairs of user and item")
    rows = [_pair(row, place) for place, row in enumerate(x)]
    return _pairs([user for user, _ in rows], [item for _, item in rows], None)


def _check_width(columns: int) -> None:
    if columns != 2:
        raise ValueError(f"X has {columns} columns, expected two: user and item")


def _pair(row: Any, place: int) -> tuple[Any, Any]:
    if isinstance(row, Mapping):
        if not set(KINDS) <= set(row):
            raise ValueError(f"X[{place}] has {sorted(map(str, row))}, expected user and item")
        return row["user"], row["item"]
    if isinstance(row, str | bytes) or not hasattr(row, "__len__"):
        raise ValueError(f"Expected 2D array, got 1D array instead: X[{place}] is {row!r}")
    if len(row) != 2:
        raise ValueError(f"X[{place}] has {len(row)} values, expected two: user and item")
    return row[0], row[1]


def _pairs(users: Any, items: Any, names: tuple[str, ...] | None) -> Pairs:
    user_ids, item_ids = _plain("user", users), _plain("item", items)
    keys = rating_keys(_tokens(user_ids), _tokens(item_ids))
    return Pairs(Column(user_ids, keys[0]), Column(item_ids, keys[1]), names)


def read_column(kind: str, ids: Any) -> Column:
    """Read ids of users (``kind`` is ``user``) or of items alone; raises as :func:`read_pairs`."""
    plain = _plain(kind, ids)
    tokens = _tokens(plain)
    return Column(plain, rating_keys(tokens, tokens)[KINDS.index(kind)])


def _plain(kind: str, ids: Any) -> Any:
    """Return ids as an array of whole numbers, or as a list without anything missing."""
    if hasattr(ids, "isna"):
        missing = np.asarray(ids.isna(), bool)
        if missing.any():
            raise _missing(kind, int(np.argmax(missing)))
    if not isinstance(ids, list | tuple):
        ids = np.asarray(ids)
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind in "iu":
            return ids
        if ids.dtype.kind == "f":
            return _whole(kind, ids)
        if ids.dtype.kind == "c":
            raise TypeError(f"Complex data not supported: {kind}s are {ids.dtype}")
        ids = ids.tolist()
    for row, value in enumerate(ids):
        if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
            raise _missing(kind, row)
    return [_integer(value) for value in ids]


def _whole(kind: str, ids: np.ndarray[Any, Any]) -> Any:
    """Return whole numbers that are floats as such; what else there is, as a list."""
    if (bad := ~np.isfinite(ids)).any():
        row = int(np.argmax(bad))
        raise ValueError(f"Input X contains NaN or infinity: {kind} in row {row} is {ids[row]}")
    if (ids == np.rint(ids)).all() and np.abs(ids).max(initial=0) < _FLOAT_WHOLE_MAX:
        return ids.astype(np.int64)
    return [_integer(value) for value in ids.tolist()]


def _integer(value: Any) -> Any:
    """Return a whole number that is a float, or one of NumPy's, as one of Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) < _FLOAT_WHOLE_MAX:
        return int(value)
    return value


def _missing(kind: str, row: int) -> ValueError:
    return ValueError(f"Input X contains NaN or None: the {kind} in row {row} is missing")


def _tokens(ids: Any) -> Any:
    """Return ids as ``rating_keys`` takes them."""
    if isinstance(ids, np.ndarray) or all(type(one) is str for one in ids):
        return ids
    return [one if type(one) is int else _text(one) for one in ids]


def _text(one: Any) -> str:
    if isinstance(one, bytes):
        return one.decode(errors="surrogateescape")
    return str(one)


def read_ratings(y: Any, rows: int, *, binary: bool) -> F32:
    """Read what stands for y: a rating a row, float32[n].

    Parameters
    ----------
    binary : bool
        Whether each is 0 or 1.

    Raises
    ------
    ValueError
        There are more or fewer, one is no finite number, or none of those allowed.
    """
    if y is None:
        raise ValueError("MatrixFactorization requires y to be passed, but the target y is None")
    try:
        ratings = np.asarray(y, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y has values that are no numbers: {error}") from None
    if ratings.ndim == 2 and ratings.shape[1] == 1:
        ratings = ratings.ravel()
    if ratings.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {ratings.shape} instead.")
    if len(ratings) != rows:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: {[rows, len(ratings)]}"
        )
    if (bad := ~(np.abs(ratings) <= _RATING_MAX)).any():
        row = int(np.argmax(bad))
        raise ValueError(f"Input y contains NaN or infinity: y[{row}] is {ratings[row]}")
    if binary and (bad := (ratings != 0) & (ratings != 1)).any():
        row = int(np.argmax(bad))
        raise ValueError(f'y[{row}] is {ratings[row]}, but loss="logistic" learns 0 and 1')
    return ratings.astype(np.float32)


def read_rating(y: Any, *, binary: bool) -> float:
    """Read one rating; raises as :func:`read_ratings`."""
    if type(y) is not float and type(y) is not int:
        return float(read_ratings([y], 1, binary=binary)[0])
    if not abs(y) <= _RATING_MAX:
        raise ValueError(f"Input y contains NaN or infinity: y is {y}")
    if binary and y not in (0, 1):
        raise ValueError(f'y is {y}, but loss="logistic" learns 0 and 1')
    return y


def named(pairs: Pairs, rows: Sequence[int]) -> Described:
    """Return the names of users and items in some rows, whose fields index :data:`KINDS`."""
    users, items = (_texts(column, rows) for column in (pairs.users, pairs.items))
    texts = [
        text.encode(errors="surrogatepass")
        for both in zip(users, items, strict=True)
        for text in both
    ]
    at = np.asarray(rows, np.int64)
    return Described(
        np.stack([pairs.users.keys[at], pairs.items.keys[at]], axis=1).reshape(-1),
        np.tile(np.arange(2, dtype=np.int32), len(at)),
        np.cumsum([len(text) for text in texts], dtype=np.int64),
        np.frombuffer(bytearray(b"".join(texts)), np.uint8),
    )


def _texts(column: Column, rows: Sequence[int]) -> list[str]:
    ids = column.ids
    some = ids[rows].tolist() if isinstance(ids, np.ndarray) else [ids[row] for row in rows]
    return [one if type(one) is str else _text(one) for one in some]


class Ids:
    """What ids of users, or of items, were like, so that they are given back as they came.

    Attributes
    ----------
    kinds : set of str
        ``number``, ``text``, ``other``: of ids that were learned.
    """

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self._others: dict[int, Any] = {}

    def meet(self, column: Column, rows: Sequence[int] | None = None) -> None:
        """Take note of ids, of all rows or of some."""
        ids = column.ids
        if isinstance(ids, np.ndarray):
            self.kinds.add("number")
            return
        for row in range(len(ids)) if rows is None else rows:
            one = ids[row]
            if type(one) is int:
                self.kinds.add("number")
            elif type(one) is str and len(one) * 4 <= TOKEN_BYTES_MAX:
                self.kinds.add("text")
            else:  # the name store could not give it back
                self.kinds.add("text" if type(one) is str else "other")
                self._others[int(column.keys[row])] = one

    def give_back(self, keys: U64, texts: Sequence[str]) -> list[Any]:
        """Return ids by their keys and what the name store has of them."""
        found: list[Any] = list(texts)
        if self.kinds == {"number"}:
            return [int(text) for text in texts]
        if self._others:
            others = self._others
            found = [others.get(key, text) for key, text in zip(keys.tolist(), texts, strict=True)]
        return found

    def array(self, ids: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Return ids as an array of whole numbers, of texts, or of whatever they are."""
        kinds = set(map(type, ids))
        if kinds == {int} and all(abs(one) < 1 << 63 for one in ids):
            return np.array(ids, np.int64)
        if kinds == {str}:
            return np.array(ids, np.str_)
        found = np.empty(len(ids), object)
        found[:] = ids
        return found
