"""Records that are Python mappings, field to value, as features.

* A string is a category: its key is that of the same token in a column of delimited text or a field
  of JSON. An empty string, ``None`` and NaN are missing: no feature.
* A number is a raw value, as ``number:raw`` has it, and 0 is no feature; so is a boolean, which
  counts as 0 or 1.
* A list, tuple or set makes a feature of each of its values, as an array of JSON does; a mapping
  within makes fields with dots.
* A field that is a whole number is that column of a matrix, and that index of svmlight.

Features come in the order of their keys, so the order of fields changes not a bit of a score.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels import matrices as kernels
from streamlearn.messages import F32, I64, U64
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = ["FIELDS_MAX", "Examples", "Fields", "described", "raw_keys", "token_keys"]

# Fields whose kinds are remembered for a snapshot's schema; records with more have identifiers for
# fields.
FIELDS_MAX: Final = 1 << 16
# Tokens whose keys are remembered, some 150 bytes each; hashing one anew takes some microseconds.
_TOKENS_MAX: Final = 1 << 17
_VALUE_MAX: Final = float(np.finfo(np.float32).max)


class Examples(Minibatch):
    """A minibatch with room for just what it is made for.

    Parameters
    ----------
    rows, nnz : int
        What it has room for.

    Notes
    -----
    Has what solvers read (keys, values, indptr, labels, weights, counts), not where records stand.
    """

    def __init__(self, rows: int, nnz: int) -> None:
        self.rows_max, self.nnz_max, self.has_values = rows, nnz, True
        self.keys: U64 = np.empty(nnz, np.uint64)
        self.values: F32 = np.empty(nnz, np.float32)
        self.indptr: I64 = np.zeros(rows + 1, np.int64)
        self.labels: F32 = np.zeros(rows, np.float32)
        self.weights: F32 = np.ones(rows, np.float32)
        self.state: I64 = np.zeros(8, np.int64)

    def hold(self, rows: int, nnz: int) -> None:
        """Say how much of it is in use."""
        self.state[0], self.state[1] = rows, nnz

    def put(self, keys: Sequence[int], values: Sequence[float]) -> None:
        """Hold one example."""
        n = len(keys)
        struct.pack_into(f"{n}Q", self.keys.data, 0, *keys)
        struct.pack_into(f"{n}f", self.values.data, 0, *values)
        self.indptr[1] = n
        self.hold(1, n)


class _Field:
    """What is known of one field: its keys, as far as they were needed.

    ``column`` is -1 for a field with a name; ``raw`` is 0 until the field has held a number.
    """

    __slots__ = ("column", "name", "raw", "seed", "tokens")

    def __init__(self, name: str, column: int) -> None:
        self.name = name
        self.column = column
        self.seed = field_seed(name)
        self.raw = 0
        self.tokens: dict[str, int] = {}


class Fields:
    """Turns mappings into features, and remembers names until they are asked for.

    Parameters
    ----------
    noting : bool
        Whether names and kinds are taken note of; not where records are only scored.

    Attributes
    ----------
    kinds : dict of str to str
        The kind each named field had when it was first seen: ``categorical`` or ``number:raw``.
    """

    def __init__(self, *, noting: bool = True) -> None:
        self.kinds: dict[str, str] = {}
        self._noting = noting
        self._fields: dict[str | int, _Field] = {}
        self._tokens = 0
        self._new: list[tuple[int, str]] = []

    def read(self, record: Mapping[Any, Any]) -> tuple[list[int], list[float]]:
        """Return keys and values of a record's features, by key.

        Raises
        ------
        ValueError
            A number is infinite or too large for float32, or there are too many features.
        TypeError
            A field or a value is of a type that means nothing here.
        """
        found: dict[int, float] = {}
        fields = self._fields
        for name, value in record.items():
            known = fields.get(name)
            kind = type(value)
            if known is not None and kind is float and known.raw:
                if -_VALUE_MAX <= value <= _VALUE_MAX:
                    if value:
                        found[known.raw] = value
                    continue
            elif known is not None and kind is str:
                key = known.tokens.get(value)
                if key is not None:
                    found[key] = 1.0
                    continue
            self._read(name, value, found)
        if len(found) > FEATURES_PER_RECORD_MAX:
            raise ValueError(
                f"a record has {len(found):,} features, at most {FEATURES_PER_RECORD_MAX:,} allowed"
            )
        keys = sorted(found)
        return keys, [found[key] for key in keys]

    def feature(self, name: Any, value: Any) -> tuple[int, float] | None:
        """Return key and value of the feature that one plain value makes, None if it is missing."""
        if value is None:
            return None
        if isinstance(value, str):
            return (self._token(self._field(name), value), 1.0) if value else None
        if isinstance(value, bool | int | float | np.number | np.bool_):
            number = float(value)
            if math.isnan(number):
                return None
            if abs(number) > _VALUE_MAX:
                raise ValueError(f"field {name!r} is {value!r}, expected a finite float32")
            raw = self._raw(self._field(name))
            return (raw, number) if number else None
        if value != value:  # pandas' NaT, and other ways of being missing
            return None
        raise TypeError(
            f"field {name!r} holds {type(value).__name__} {value!r}, expected a string, a number "
            "or None"
        )

    def meet(self, name: str, tokens: Sequence[Any]) -> None:
        """Hash the strings among the values of a field at once, rather than one by one."""
        field = self._field(name)
        new = [t for t in tokens if isinstance(t, str) and t and t not in field.tokens]
        if 0 < len(new) <= _TOKENS_MAX:
            self._keep(field, new, token_keys(new, field.seed).tolist())

    def know(self, names: Sequence[str]) -> None:
        """Take note of fields that hold numbers."""
        for name in names:
            self._raw(self._field(name))

    @property
    def unnamed(self) -> int:
        """How many keys have come since ``names`` was called."""
        return len(self._new)

    def names(self) -> Described | None:
        """Return the names of keys that have come since the last call, None if there are none."""
        new, self._new = self._new, []
        return described([key for key, _ in new], [name for _, name in new]) if new else None

    def _read(self, name: Any, value: Any, found: dict[int, float]) -> None:
        if isinstance(value, Mapping):
            for inner, one in value.items():
                self._read(f"{name}.{inner}", one, found)
        elif isinstance(value, list | tuple | set | frozenset):
            for one in value:
                self._read(name, one, found)
        elif (feature := self.feature(name, value)) is not None:
            found[feature[0]] = feature[1]

    def _field(self, name: Any) -> _Field:
        field = self._fields.get(name)
        if field is not None:
            return field
        if isinstance(name, bool) or not isinstance(name, str | int | np.integer):
            raise TypeError(
                f"field {name!r} is {type(name).__name__}, expected a string or a whole number"
            )
        column = -1 if isinstance(name, str) else int(name)
        if not isinstance(name, str) and not 0 <= column < 1 << 63:
            raise ValueError(f"column {name} is not a number from 0")
        field = _Field(str(name), column)
        if len(self._fields) < FIELDS_MAX:
            self._fields[column if column >= 0 else str(name)] = field
        return field

    def _raw(self, field: _Field) -> int:
        """Return the key of a field's numbers."""
        if not field.raw:
            if field.column < 0:
                field.raw = int(raw_keys([field.seed])[0])
                self._note(field, "number:raw", field.raw, f"{field.name}=")
            else:
                field.raw = _column_key(field.column)
                self._note(field, "number:raw", field.raw, field.name)
        return field.raw

    def _token(self, field: _Field, token: str) -> int:
        key = field.tokens.get(token)
        if key is None:
            key = int(token_keys([token], field.seed)[0])
            self._keep(field, [token], [key])
        return key

    def _keep(self, field: _Field, tokens: Sequence[str], keys: Sequence[int]) -> None:
        """Remember new tokens of a field, all others forgotten where there is no more room."""
        if self._tokens + len(tokens) > _TOKENS_MAX:
            for known in list(self._fields.values()):
                known.tokens.clear()
            self._tokens = 0
        self._tokens += len(tokens)
        for token, key in zip(tokens, keys, strict=True):
            field.tokens[token] = key
            self._note(field, "categorical", key, f"{field.name}={token}")

    def _note(self, field: _Field, kind: str, key: int, name: str) -> None:
        if not self._noting:
            return
        self._new.append((key, name))
        if field.column < 0 and len(self.kinds) < FIELDS_MAX:
            self.kinds.setdefault(field.name, kind)


def _column_key(column: int) -> int:
    data = np.empty(1, np.uint64)
    values = np.empty(1, np.float32)
    kernels.take_csr(
        np.ones(1, np.float32),
        np.array([column], np.int64),
        np.array([0, 1], np.int64),
        np.empty(0, np.uint64),
        field_seed(""),
        data,
        values,
        np.empty(2, np.int64),
    )
    return int(data[0])


def raw_keys(seeds: Sequence[np.uint64]) -> U64:
    """Return the key of a number with a value in each field, uint64[k]."""
    keys = np.empty(len(seeds), np.uint64)
    kernels.raw_keys(np.array(seeds, np.uint64), keys)
    return keys


def token_keys(tokens: Sequence[str], seed: np.uint64) -> U64:
    """Return the keys of tokens of one field, uint64[k]."""
    joined = "".join(tokens)
    # ASCII is as long in bytes as in characters: no token need be encoded by itself
    texts: Sequence[str | bytes] = tokens
    if not joined.isascii():
        texts = [token.encode(errors="surrogatepass") for token in tokens]
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    text = np.frombuffer(bytearray(joined.encode(errors="surrogatepass") + bytes(8)), np.uint8)
    keys = np.empty(len(texts), np.uint64)
    kernels.token_keys(text, np.cumsum(sizes), seed, keys)
    return keys


def described(keys: Sequence[int] | U64, names: Sequence[str]) -> Described:
    """Return names (``field=token``) of keys for the name store."""
    texts = [name.encode(errors="surrogatepass") for name in names]
    return Described(
        np.array(keys, np.uint64),
        np.full(len(texts), -1, np.int32),
        np.cumsum([len(text) for text in texts], dtype=np.int64),
        np.frombuffer(bytearray(b"".join(texts)), np.uint8),
    )
