r"""JSON, one object a line, flattened to fields; kinds, rules and crosses as for delimited text.

* A *field* is a path: the keys that lead to a value, with dots between (``{"user": {"id": 7}}`` has
  the field ``user.id``; a key that holds a dot is no different from two keys). An array adds
  nothing: each of its values is a value of its field, and makes a feature of its own.
* A value's *token* is its text: a string without quotes and with its escapes decoded, a number as
  it is written, ``true``, ``false``. So keys are those that the same token in the same column of
  delimited text would have. ``null`` and ``""`` are missing: no feature.
* Which fields are features: those of ``source.columns``, by their kinds, and those of
  ``source.fields``; where neither names any, all of them. Fields without a kind go by their type: a
  string, ``true`` or ``false`` is a category, a number its logarithmic bucket.
* The label is the field ``label``, unless a column is of that kind or ``source.label`` says
  otherwise. A record without one is bad (``label``).
* A key that occurs twice is like an array: both values make features. Of several labels, weights or
  parts of a cross the last counts.
* All of a record must be JSON (RFC 8259), also what is not used; objects and arrays go 64 deep.
  Half a surrogate pair (``"\ud83d"``) is no text and makes a bad record (``utf8``).
* For deep models the settings name the fields, and those of kind ``number:raw`` are the dense part
  of each example: NaN where missing, and of several values the last.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from streamlearn.compute.kernels import delimited, json_names, json_text
from streamlearn.compute.kernels import jsonl as kernels
from streamlearn.errors import ConfigError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.buckets import BUCKET_TEXT_BYTES_MAX, bucket_texts
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.schema import (
    WEEKDAYS,
    WILDCARD,
    BoundSchema,
    Part,
    Schema,
    read_schema,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamlearn.config import SourceConfig
    from streamlearn.messages import I32, I64, U8, U64
    from streamlearn.online.formats import Deep

__all__ = ["PATHS_MAX", "JsonlFormat", "JsonlParser"]

# Paths whose seeds a parser remembers where all fields are wanted. A logger has some hundreds; data
# with more (keys that are identifiers) pays a third of a microsecond for each value of the others.
PATHS_MAX: Final = 4096
# Records named at a time: bounds the room that their names need.
_DESCRIBED_MAX: Final = 64
_FEATURE_NAME_BYTES: Final = 2 * json_names.NAME_BYTES_MAX + 3
_SHOWN_MAX: Final = 60

_KINDS: Final[dict[tuple[Part, ...], int]] = {
    ("category",): delimited.CATEGORY,
    ("number",): delimited.NUMBER,
    ("raw",): delimited.RAW,
    ("hour", "weekday"): delimited.TIME,
    ("hour",): delimited.HOUR,
    ("weekday",): delimited.WEEKDAY,
}
_DENSE_KINDS: Final = _KINDS | {("raw",): delimited.DENSE}
_VALUE: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[^,\]}\s]*')
_NOT_FEATURES: Final = {"label", "weight", "ignore"}


class JsonlFormat:
    """Records that are JSON objects.

    Parameters
    ----------
    config : SourceConfig
        ``columns``, ``fields``, ``label`` and ``cross`` matter; see the module.
    deep : Deep, optional
        What a deep model wants.

    Attributes
    ----------
    fields : tuple of str
        Those that the settings name; features of other fields bring their names along.
    dynamic : bool
        Whether fields that the settings do not name are features, too.

    Raises
    ------
    ConfigError
        The schema is wrong, or names no fields for a deep model.
    """

    name = "jsonl"
    has_header = False
    first_line = False
    record_rows = 1

    def __init__(self, config: SourceConfig, *, deep: Deep | None = None) -> None:
        self.schema, self.by_type = _read_schema(config, deep)
        schema = self.schema
        named = set(schema.kinds.values()) - _NOT_FEATURES
        self.dynamic = not config.fields and not set(config.columns.values()) - _NOT_FEATURES
        assert self.dynamic or named
        if deep is not None and self.dynamic:
            raise ConfigError(
                "source.columns: expected the fields and their kinds, which a deep model must know "
                "beforehand, got none",
                hint="--column NAME=categorical, number or number:raw, or --field NAME by its type",
            )
        self.has_fields = deep is not None
        self.has_values = schema.has_values
        self.ignored = tuple(name for name, kind in schema.kinds.items() if kind == "ignore")
        self.bound: BoundSchema = schema.bind(
            [*dict.fromkeys([*schema.kinds, schema.label.column])]
        )
        features = self.bound.features
        embedded = (one.field for one in features if not schema.is_dense(one))
        self.fields = (*embedded, *self.bound.cross_fields)
        self.dense_names = tuple(one.field for one in features if schema.is_dense(one))
        self.dense = (len(self.dense_names),) if self.dense_names else ()

    def parser(self, header: bytes | None) -> JsonlParser:
        """Return a parser; see ``Format``. It has working space of its own: one for each lane."""
        return JsonlParser(self)

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record; ``arg`` is 16 times the byte, plus what was expected."""
        at, code = arg >> 4, arg & 15
        token = _shown(_VALUE.match(record, max(at, 0))[0])  # type: ignore[index]
        label, weight = self.bound.label, self.bound.weight
        match reason:
            case 2 if at < 0:
                return f"there is no label: expected a field {label.column!r}"
            case 2:
                return f"{label.column} {token} is not {label.expected}"
            case 3 if field < 0:
                return f"number {token} at byte {at} is not finite"
            case 3:
                return f"{self._columns[field]} {token} is not a finite number"
            case 4 if code == 0:
                return _not_utf8(record)
            case 4 | 7:
                found = _shown(record[at : at + _SHOWN_MAX]) if record[at:] else "the record's end"
                return f"expected {json_text.CODES[code]} at byte {at}, found {found}"
            case 5:
                return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
            case 8:
                return f"record has more than the {arg} features allowed"
            case 9:
                expected = "a time (2026-11-23T18:05, seconds or YYMMDDHH)"
                return f"{self._columns[field]} {token} is not {expected}"
            case 10 if at < 0:
                return f"there is no weight: expected a field {weight!r}"
            case 10:
                return f"weight {token} is not a number of at least 0"
            case _:
                raise AssertionError(reason)

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys(feature.column for feature in self.bound.features))


class JsonlParser:
    """Parses blocks of JSON lines; has working space of its own, so only one lane may use it.

    Parameters
    ----------
    source : JsonlFormat
    """

    def __init__(self, source: JsonlFormat) -> None:
        bound = source.bound
        columns: dict[str, list[int]] = {}  # the features of each, which are one op
        for i, feature in enumerate(bound.features):
            columns.setdefault(feature.column, []).append(i)
        made = _DENSE_KINDS if source.schema.dense else _KINDS
        kinds = [
            kernels.AUTO
            if column in source.by_type
            else made[tuple(bound.features[i].part for i in indices)]
            for column, indices in columns.items()
        ]
        ops = {column: op for op, column in enumerate(columns)} | dict.fromkeys(source.ignored, -1)
        for column, kind in ((bound.label.column, kernels.LABEL), (bound.weight, kernels.WEIGHT)):
            if column:
                ops[column] = len(kinds)
                kinds.append(kind)
        seeds = np.zeros((len(kinds), 2), np.uint64)
        ids = np.full((len(kinds), 2), -1, np.int32)
        slots = np.zeros(len(bound.features), np.int64)
        numbers = [0, 0]  # of features and of the dense part, in the order of the format's names
        for column, indices in columns.items():
            for i in indices:
                part = int(bound.features[i].part == "weekday")
                seeds[ops[column], part] = field_seed(bound.features[i].field)
                dense = source.schema.is_dense(bound.features[i])
                ids[ops[column], part] = numbers[dense]
                numbers[dense] += 1
                slots[i] = 2 * ops[column] + part
        # a weekday alone is the only feature of its op
        alone = np.array(kinds, np.int8) == delimited.WEEKDAY
        seeds[alone, 0] = seeds[alone, 1]

        label = bound.label
        mode = delimited.COMPARE[label.comparison] if label.comparison else 0
        self._settings: I64 = np.zeros(kernels.N_SETTINGS, np.int64)
        self._settings[:] = (
            source.dynamic,
            mode,
            bool(bound.weight),
            RECORD_BYTES_MAX,
            FEATURES_PER_RECORD_MAX,
            False,
        )
        paths_max = PATHS_MAX if source.dynamic else 0
        table, table_ops = _table(ops, paths_max)
        crosses = bound.crosses
        self._schema = (
            np.array(kinds, np.int8),
            seeds,
            ids,
            table,
            table_ops,
            np.zeros(table.size, np.uint64),
            np.cumsum([len(cross) for cross in crosses], dtype=np.int64),
            np.array([slots[i] for cross in crosses for i in cross], np.int64),
            np.array([field_seed(field) for field in bound.cross_fields], np.uint64),
            np.arange(numbers[0], len(source.fields), dtype=np.int32),
            float(label.threshold if mode else label.otherwise),
            np.frombuffer(bytearray(b"".join(label.tokens)), np.uint8),
            np.cumsum([len(token) for token in label.tokens], dtype=np.int64),
            np.array(list(label.tokens.values()), np.int64),
        )
        # one lane parses while another names what it parsed: each has room and counters of its own,
        # and only the one that parses adds to the table of paths
        slots_room = 2 * len(kinds) if crosses else 0
        self._room = (*_space(slots_room), np.array([0, paths_max, 0], np.int64))
        self._told_counters: I64 = np.array([paths_max, paths_max, 0], np.int64)
        self._told_room = (*_space(slots_room), self._told_counters)
        self._parts = sum(len(cross) for cross in crosses)
        self._has_values, self._dense = source.has_values, source.dense
        self._names = (np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint8))

        self._told: _Told | None = None

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        if start >= end:
            return start
        assert buffer[end - 1] == ord("\n"), "the last record is not complete"
        return self._run(buffer, start, end, self._settings, self._room, self._names, out)

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Parse good records once more and say which text made which key; see ``Parser``.

        A category's text is its token, a bucket's the range, an hour's its number, a weekday's
        three letters; that of a number with a value is empty; a cross's has ``*`` between its
        parts'. Tokens and paths are cut at 256 bytes.
        """
        if self._told is None:
            room = 2 * FEATURES_PER_RECORD_MAX * _FEATURE_NAME_BYTES
            room += (
                _DESCRIBED_MAX * self._parts * (json_names.NAME_BYTES_MAX + BUCKET_TEXT_BYTES_MAX)
            )
            self._told = _Told(room, has_values=self._has_values, dense=self._dense)
        told = self._told
        settings = self._settings.copy()
        settings[kernels.S_TELL] = True
        records = [bytes(buffer[start:end]) for start, end in zip(starts, ends, strict=True)]
        lines = np.frombuffer(b"\n".join([*records, bytes(BLOCK_TAILROOM_BYTES)]), np.uint8)
        found: list[tuple[U64, I32, I64, U8]] = []
        at, end = 0, lines.size - BLOCK_TAILROOM_BYTES
        size = 0
        while at < end:
            told.minibatch.clear()
            self._told_counters[kernels.C_TEXT] = 0
            names = (told.fields, told.text_ends, told.text)
            at = self._run(lines, at, end, settings, self._told_room, names, told.minibatch)
            features, bytes_ = told.minibatch.nnz, int(self._told_counters[kernels.C_TEXT])
            found.append(
                (
                    told.minibatch.keys[:features].copy(),
                    told.fields[:features].copy(),
                    told.text_ends[:features] + size,
                    told.text[:bytes_].copy(),
                )
            )
            size += bytes_
        if not found:
            empty = np.zeros(0, np.int64)
            return Described(
                empty.astype(np.uint64), empty.astype(np.int32), empty, empty.astype(np.uint8)
            )
        keys, fields, text_ends, texts = (np.concatenate(part) for part in zip(*found, strict=True))
        return Described(keys, fields, text_ends, texts)

    def _run(
        self,
        buffer: U8,
        start: int,
        end: int,
        settings: I64,
        room: tuple[U8, U8, I64, I64, U64, U64, I64],
        names: tuple[I32, I64, U8],
        out: Minibatch,
    ) -> int:
        return int(
            kernels.parse_records(
                buffer,
                start,
                end,
                settings,
                *self._schema,
                *room,
                *bucket_texts(whole=False),
                WEEKDAYS,
                *names,
                *(out.keys, out.values, out.fields, out.dense),
                *out.row_arrays,
                out.nnz_max - FEATURES_PER_RECORD_MAX,
            )
        )


class _Told:
    """Room for the features of some records and their names; what is not used stays unmapped."""

    def __init__(self, text_bytes: int, *, has_values: bool, dense: tuple[int, ...]) -> None:
        features = 2 * FEATURES_PER_RECORD_MAX
        self.minibatch = Minibatch(_DESCRIBED_MAX, features, has_values=has_values, dense=dense)
        self.fields: I32 = np.empty(features, np.int32)
        self.text_ends: I64 = np.empty(features, np.int64)
        self.text: U8 = np.empty(text_bytes, np.uint8)


def _read_schema(config: SourceConfig, deep: Deep | None) -> tuple[Schema, frozenset[str]]:
    """Return the schema of the fields that the settings name, and which of them go by their type.

    Those are ``categorical`` in the schema.
    """
    columns = dict(config.columns)
    if WILDCARD in columns:
        raise ConfigError(
            "source.columns.*: all other columns are those that a header names, and JSON has none",
            hint="name further fields in source.fields; without any field or kind all are used",
        )
    label = config.label
    if not label and "label" not in columns.values():
        label = "label"
    schema = read_schema(
        msgspec.structs.replace(config, header=True, columns=columns, label=label, cross=()), deep
    )
    beside = {schema.label.column, *columns}
    wanted = list(config.fields)
    if not wanted and not set(columns.values()) - _NOT_FEATURES:
        # all fields are wanted, but only those of a cross must be known beforehand
        wanted = [part.strip() for cross in config.cross for part in cross.split("*")]
    by_type = frozenset(name for name in wanted if name and name not in beside)
    columns |= {name: "categorical" for name in wanted if name in by_type}
    columns = columns or {schema.label.column: "label"}
    replaced = msgspec.structs.replace(config, header=True, columns=columns, label=label)
    return read_schema(replaced, deep), by_type


def _table(ops: Mapping[str, int], more: int) -> tuple[U64, I32]:
    """Return an open-addressing table of paths, at most half full with ``more`` of them to come."""
    size = 64
    while size < 2 * (len(ops) + more):
        size *= 2
    table: U64 = np.zeros(size, np.uint64)
    table_ops: I32 = np.zeros(size, np.int32)
    for name, op in ops.items():
        path = np.frombuffer(name.encode() + bytes(8), np.uint8)
        key = kernels.path_hash(path.ctypes.data, len(path) - 8)
        place = (int(key) >> 32) & (size - 1)
        while table[place]:
            place = (place + 1) & (size - 1)
        table[place] = key
        table_ops[place] = op
    return table, table_ops


def _not_utf8(record: bytes) -> str:
    try:
        record.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} ({record[error.start]:#04x}) is not valid UTF-8"
    raise AssertionError("the record is valid UTF-8")


def _shown(token: bytes) -> str:
    """Quote what stood there, cut where it is long."""
    cut = "…" if len(token) > _SHOWN_MAX else ""
    return "'" + token[:_SHOWN_MAX].decode(errors="backslashreplace") + cut + "'"


def _space(slots: int) -> tuple[U8, U8, I64, I64, U64, U64]:
    """Return what a kernel works in: path, token, levels with their operations and seeds, slots."""
    return (
        np.zeros(RECORD_BYTES_MAX + BLOCK_TAILROOM_BYTES, np.uint8),
        np.zeros(RECORD_BYTES_MAX + BLOCK_TAILROOM_BYTES, np.uint8),
        np.zeros(json_text.DEPTH_MAX, np.int64),
        np.zeros(json_text.DEPTH_MAX, np.int64),
        np.zeros(json_text.DEPTH_MAX, np.uint64),
        np.zeros(slots, np.uint64),
    )
