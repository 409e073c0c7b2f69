r"""Delimited text (CSV, TSV) with a schema; see :mod:`streamlearn.online.schema` for the kinds.

What a record is:

* A line, ended by ``\n`` or ``\r\n``. Blank lines are no records.
* Its fields stand between delimiters. A field may be quoted (RFC 4180: quote doubled inside), with
  the delimiter in it but no newline: a record whose quote does not end on its line, or has a quote
  where none may be, is a bad record (``quote``). With ``quote = ""`` quotes mean nothing.
* Spaces belong to tokens; with ``trim`` those around a token do not (nor those around its quotes).
* With a header a record has as many fields as the header; without, at least as many as the schema
  names.
* An empty token is a missing one: no feature, but for a label or weight a bad record.

For deep models columns of raw numbers are the dense part of each example, NaN where one is missing,
and all objects have the same columns.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import delimited as kernels
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.buckets import BUCKET_TEXT_BYTES_MAX, bucket_texts
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, S_NNZ, S_ROWS, Minibatch
from streamlearn.online.quoting import quoted
from streamlearn.online.schema import WEEKDAYS, BoundSchema, Part, read_schema

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig
    from streamlearn.messages import I64, U8, U64
    from streamlearn.online.formats import Deep

__all__ = ["DelimitedFormat", "DelimitedParser", "one_character", "split_line"]

_KINDS: Final[dict[tuple[Part, ...], int]] = {
    ("category",): kernels.CATEGORY,
    ("number",): kernels.NUMBER,
    ("raw",): kernels.RAW,
    ("hour", "weekday"): kernels.TIME,
    ("hour",): kernels.HOUR,
    ("weekday",): kernels.WEEKDAY,
}
_DENSE_KINDS: Final = _KINDS | {("raw",): kernels.DENSE}


class DelimitedFormat:
    """Records of delimited fields.

    Parameters
    ----------
    config : SourceConfig
        ``header``, ``delimiter``, ``quote``, ``trim``, ``columns``, ``label`` and ``cross`` matter;
        where ``format`` is ``tsv`` the delimiter is a tab unless another is given.
    labelled : bool
        Whether records have a label (and weight, where the schema says so). If not, their columns
        may be absent and are not looked at; every label is 0, every weight 1.
    deep : Deep, optional
        What a deep model wants. Where columns are named by the header alone, fields and the dense
        part are those of the first that :meth:`parser` is given, in the order of their names.

    Raises
    ------
    ConfigError
        The schema or a character is wrong.
    """

    name = "delimited"
    record_rows = 1

    def __init__(
        self, config: SourceConfig, *, labelled: bool = True, deep: Deep | None = None
    ) -> None:
        delimiter = config.delimiter
        if config.format == "tsv" and delimiter == ",":
            delimiter = "\t"
        self.delimiter = one_character("delimiter", delimiter)
        self.quote = one_character("quote", config.quote) if config.quote else ""
        if self.delimiter == self.quote:
            raise ConfigError(f"source.quote: {self.quote!r} is the delimiter already")
        self.trim = config.trim
        self.labelled = labelled
        self.schema = read_schema(config, deep)
        self.has_fields = deep is not None
        self.has_values = self.schema.has_values
        self.has_header = self.first_line = config.header
        # Fields keep their numbers: a header met later may only add to them.
        self._fields = {field: i for i, field in enumerate(self.schema.fields)}
        self._dense = {name: i for i, name in enumerate(self.schema.dense_names)}
        self._settled = not self.has_fields or not self.schema.others
        self._columns: dict[str, int] = {}
        self._count = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields; grows with headers where the schema names no columns."""
        assert self._settled, "a header says what fields there are"
        return tuple(self._fields)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Names of the numbers of the dense part."""
        assert self._settled, "a header says what is dense"
        return tuple(self._dense)

    @property
    def dense(self) -> tuple[int, ...]:
        """Shape of the dense part."""
        return (len(self.dense_names),) if self.dense_names else ()

    def parser(self, header: bytes | None) -> DelimitedParser:
        """Return a parser for an object with this header; see ``Format``."""
        bound = self.schema.bind(
            self._names(header) if self.has_header else None, labelled=self.labelled
        )
        self._count = bound.count
        self._meet(bound)
        for column in bound.columns:
            self._columns.setdefault(column, len(self._columns))
        return DelimitedParser(self, bound, self._fields, self._columns, self._dense)

    def _meet(self, bound: BoundSchema) -> None:
        """Give numbers to what a header has; what a deep model has is what the first one has.

        Raises
        ------
        DataError
            They are others.
        """
        if not self.has_fields:
            for feature in bound.features:
                self._fields.setdefault(feature.field, len(self._fields))
            return
        if not self._settled:
            # by name: objects with their columns in another order give the same model
            for feature in sorted(bound.features, key=lambda feature: feature.field):
                numbers = self._dense if self.schema.is_dense(feature) else self._fields
                numbers.setdefault(feature.field, len(numbers))
            self._settled = True
            return
        found = {feature.field for feature in bound.features}
        known = ({*self._fields} - {*bound.cross_fields}) | {*self._dense}
        for which, columns in (("another column", found - known), ("no column", known - found)):
            if columns:
                raise DataError(
                    f"the header has {which} {min(columns)!r}, unlike the first that was read: "
                    "a deep model learns the same columns throughout",
                    hint="name the columns to use in source.columns",
                )

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record; ``arg`` numbers the column, ``field`` is its place."""
        match reason:
            case 1:
                least = "" if self.has_header else "at least "
                return f"expected {least}{self._count} fields, found {arg}"
            case 5:
                return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
            case 6:
                return (
                    f"a quote {self.quote} does not end on its line or stands inside a field "
                    f"without quotes in {quoted(record)}"
                )
        column = list(self._columns)[arg]
        token = quoted(self._token(record, field))
        match reason:
            case 2:
                label = self.schema.label
                name = "label" if column == label.column and not label.text else column
                return f"{name} {token} is not {label.expected}"
            case 3:
                return f"{column} {token} is not a finite number"
            case 4:
                return f"{column} {token} is not valid UTF-8"
            case 9:
                return f"{column} {token} is not a time (2026-11-23T18:05, seconds or YYMMDDHH)"
            case 10:
                return f"weight {token} is not a number of at least 0"
            case _:
                raise AssertionError(reason)

    def _names(self, header: bytes | None) -> list[str]:
        assert header is not None, "a format with a header needs one"
        try:
            line = header.rstrip(b"\r\n").decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"the header {quoted(header)} is not valid UTF-8") from error
        names = self._split(line)
        return [name.strip(" ") for name in names] if self.trim else names

    def _token(self, record: bytes, field: int) -> bytes:
        fields = self._split(record.rstrip(b"\r\n").decode("latin-1"))
        token = fields[field] if 0 <= field < len(fields) else ""
        return (token.strip(" ") if self.trim else token).encode("latin-1")

    def _split(self, line: str) -> list[str]:
        return split_line(line, self.delimiter, self.quote, trim=self.trim)


class DelimitedParser:
    """Parses blocks of one object.

    It has working space of its own, once for each method: one lane may parse while another
    describes, but no two may parse.

    Parameters
    ----------
    source : DelimitedFormat
    bound : BoundSchema
        The schema, applied to the object's header.
    fields, columns, dense : dict
        The format's numbers of fields, columns and numbers of the dense part.

    Raises
    ------
    DataError
        There are more features in a record than may be.
    """

    def __init__(
        self,
        source: DelimitedFormat,
        bound: BoundSchema,
        fields: dict[str, int],
        columns: dict[str, int],
        dense: dict[str, int],
    ) -> None:
        ops: list[tuple[str, tuple[Part, ...]]] = []
        slots: list[int] = []  # by feature: 2 op, or 2 op + 1 for weekdays
        for feature in bound.features:
            if ops and ops[-1][0] == feature.column:
                ops[-1] = (feature.column, (*ops[-1][1], feature.part))
            else:
                ops.append((feature.column, (feature.part,)))
            slots.append(2 * (len(ops) - 1) + (feature.part == "weekday"))
        features_max = len(bound.features) + len(bound.crosses)
        # the kernel writes a key before it knows that there is one: so a place is kept free
        if features_max >= FEATURES_PER_RECORD_MAX:
            raise DataError(
                f"a record has {features_max} features, not less than {FEATURES_PER_RECORD_MAX}",
                hint="name the columns to use in source.columns",
            )
        label, weight = bound.label, bound.weight
        mode = kernels.COMPARE[label.comparison] if label.comparison else 0
        settings = np.zeros(kernels.N_SETTINGS, np.int64)
        settings[:] = (
            ord(source.delimiter),
            ord(source.quote or "\n"),
            source.trim,
            bound.count,
            bound.exact,
            source.has_values,
            bound.columns[label.column] if bound.labelled else -1,
            columns[label.column] if bound.labelled else -1,
            mode,
            bound.columns[weight] if weight else -1,
            columns[weight] if weight else -1,
            RECORD_BYTES_MAX,
        )
        seeds = np.zeros((len(ops), 2), np.uint64)
        slot_fields = np.full(2 * len(ops), -1, np.int32)
        for feature, slot in zip(bound.features, slots, strict=True):
            seeds[slot >> 1, slot & 1] = field_seed(feature.field)
            numbers = dense if source.schema.is_dense(feature) else fields
            slot_fields[slot] = numbers[feature.field]
        kinds = _DENSE_KINDS if source.schema.dense else _KINDS
        cross_fields = np.array([fields[f] for f in bound.cross_fields], np.int32)
        self._ops = len(ops)
        self._dense = len(dense)
        self._parts = sum(len(cross) for cross in bound.crosses)
        self._features = features_max
        self._settings = settings
        self._common = (
            settings,
            np.array([kinds[parts] for _, parts in ops], np.int8),
            np.array([bound.columns[column] for column, _ in ops], np.int32),
        )
        self._crosses = (
            np.cumsum([len(cross) for cross in bound.crosses], dtype=np.int64),
            np.array([slots[i] for cross in bound.crosses for i in cross], np.int64),
        )
        tokens = label.tokens
        fixed = (
            *self._common,
            np.array([columns[column] for column, _ in ops], np.int32),
            seeds,
            *self._crosses,
            np.array([field_seed(field) for field in bound.cross_fields], np.uint64),
            float(label.threshold if mode else label.otherwise),
            np.frombuffer(bytearray(b"".join(tokens)), np.uint8),
            np.cumsum([len(token) for token in tokens], dtype=np.int64),
            np.array(list(tokens.values()), np.int64),
            slot_fields,
            cross_fields,
        )
        self._space = _space(len(ops), bound.count)
        self._parse_arguments = (*fixed, *_space(len(ops), bound.count))
        self._describe_arguments = (*fixed, *self._space)
        self._numbers_of_fields = (slot_fields, cross_fields)

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        if start >= end:
            return start
        assert buffer[end - 1] == ord("\n"), "the last record is not complete"
        return int(
            kernels.parse_records(
                buffer,
                start,
                end,
                *self._parse_arguments,
                *(out.keys, out.values, out.fields, out.dense),
                *out.row_arrays,
                out.nnz_max - FEATURES_PER_RECORD_MAX,
            )
        )

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Parse good records once more and say which text made which key; see ``Parser``."""
        records = [buffer[a:b].tobytes() + b"\n" for a, b in zip(starts, ends, strict=True)]
        sizes = np.array([len(record) for record in records], np.int64)
        size = int(sizes.sum())
        # a copy, so that each record ends with a newline whatever follows it in the buffer
        copied = np.zeros(size + BLOCK_TAILROOM_BYTES, np.uint8)
        copied[:size] = np.frombuffer(b"".join(records), np.uint8)
        n, m = len(records), self._features * len(records) + 1
        keys, state = np.zeros(m, np.uint64), np.zeros(8, np.int64)
        values = np.zeros(m if self._settings[kernels.S_VALUES] else 0, np.float32)
        rows, lines, bad = np.zeros(n + 1, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int32)
        kernels.parse_records(
            copied,
            0,
            size,
            *self._describe_arguments,
            *(keys, values, np.zeros(0, np.int32), np.zeros((n, self._dense), np.float32)),
            rows,
            np.zeros(n, np.float32),
            np.zeros(n, np.float32),
            lines,
            np.zeros(n, np.int64),
            bad,
            bad,
            np.zeros(n, np.int64),
            state,
            m,
        )
        lines = lines[: state[S_ROWS]]
        stops = np.cumsum(sizes)[np.searchsorted(np.cumsum(sizes), lines, side="right")] - 1
        # Each token is in the text once, and once more for each cross that it is part of.
        longest = BUCKET_TEXT_BYTES_MAX + 1
        room = size + longest * self._ops * n + self._parts * (size + longest * n)
        fields, text_ends = np.zeros(m, np.int32), np.zeros(m, np.int64)
        text = np.zeros(room, np.uint8)
        count = kernels.describe_records(
            copied,
            lines,
            stops,
            *self._common,
            *self._crosses,
            *self._space[1:],
            *bucket_texts(whole=False),
            WEEKDAYS,
            *self._numbers_of_fields,
            fields,
            text_ends,
            text,
        )
        assert count == state[S_NNZ], "a feature has no text"
        used = int(text_ends[count - 1]) if count else 0
        return Described(keys[:count], fields[:count], text_ends[:count], text[:used])


def split_line(line: str, delimiter: str, quote: str, *, trim: bool) -> list[str]:
    """Return the fields of a line, as the kernels split it; ``quote`` may be empty."""
    if not quote or quote not in line:
        return line.split(delimiter)
    reader = csv.reader([line], delimiter=delimiter, quotechar=quote, skipinitialspace=trim)
    return next(reader, [])


def one_character(setting: str, text: str) -> str:
    """Return the one ASCII character, no newline, that a setting is to be.

    Raises
    ------
    ConfigError
        It is another text.
    """
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or ord(text) > 127 or text in "\r\n":
        raise ConfigError(
            f"source.{setting}: expected one ASCII character other than a newline, got {text!r}"
        )
    return text


def _space(ops: int, columns: int) -> tuple[U64, I64, U8]:
    """Return what the kernels work in: slots, bounds of fields, unquoted text."""
    return (
        np.zeros(2 * ops, np.uint64),
        np.zeros(columns + 1, np.int64),
        np.zeros(RECORD_BYTES_MAX + 64, np.uint8),
    )
