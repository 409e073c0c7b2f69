"""Ratings: records of a user, an item and a rating, perhaps with a time and a weight.

A record is a line, as delimited text has it; :mod:`streamlearn.online.layouts` says how its fields
stand. Users and items are tokens of any kind, whose keys are those of the categories ``user`` and
``item`` in any other format. The label is the rating, any finite number. Times are only checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamlearn.compute.kernels import ratings as kernels
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import I64, RECORD_BYTES_MAX, U8, U64
from streamlearn.online.delimited import one_character
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described
from streamlearn.online.layouts import BLANKS, KINDS, Layout, RatingsSchema, read_schema
from streamlearn.online.mappings import token_keys
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.quoting import quoted

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig

__all__ = ["RatingsFormat", "RatingsParser", "rating_keys"]

FIELDS: Final = ("user", "item")
# The lowest bits of ``bad_arg``: fields found (a record has at most one more than it has bytes), or
# which kind of field is wrong. The layout's word is above them.
_ARG_BITS: Final = 21


class RatingsFormat:
    """Records of user, item and rating.

    Parameters
    ----------
    config : SourceConfig
        ``header``, ``delimiter``, ``quote``, ``trim`` and ``columns`` matter.
    labelled : bool
        Whether records have a rating (and weight, where there is a column). If not, these may be
        absent and are not looked at; every label is 0, every weight 1.
    clicks : bool
        Whether a rating must be 0 or 1.

    Raises
    ------
    ConfigError
        A column, a character or a setting is wrong.
    """

    name = "ratings"
    fields: tuple[str, ...] = FIELDS
    has_values = False
    record_rows = 1
    has_fields = False
    dense: tuple[int, ...] = ()
    dense_names: tuple[str, ...] = ()

    def __init__(
        self, config: SourceConfig, *, labelled: bool = True, clicks: bool = False
    ) -> None:
        self._clicks = clicks
        delimiter = one_character("delimiter", config.delimiter)
        quote = one_character("quote", config.quote) if config.quote else ""
        if delimiter == quote:
            raise ConfigError(f"source.quote: {quote!r} is the delimiter already")
        separator = "" if delimiter == "," else delimiter
        self.schema = read_schema(config, separator, quote, labelled=labelled)
        self.has_header = config.header
        # nothing is left to be recognised where both are given
        self.first_line = config.header or not (separator and config.columns)

    def parser(self, header: bytes | None) -> RatingsParser:
        """Return a parser for an object with this first line; see ``Format``.

        Where it is None or blank, the first record parsed takes its place.
        """
        if self.has_header:
            assert header is not None, "a format with a header needs one"
            try:
                line = header.rstrip(b"\r\n").decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"the header {quoted(header)} is not valid UTF-8") from error
            return RatingsParser(self.schema, self.schema.bind(line), clicks=self._clicks)
        first = (header or b"").rstrip(b"\r\n")
        layout = _layout(self.schema, first) if first else None
        return RatingsParser(self.schema, layout, clicks=self._clicks)

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        if reason == 5:
            return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
        if reason == 6:
            return (
                f"a quote {self.schema.quote} does not end on its line or stands inside a field "
                f"without quotes in {quoted(record)}"
            )
        low = arg & ((1 << _ARG_BITS) - 1)
        layout = Layout.of_word(arg >> _ARG_BITS)
        if reason == 1:
            return f"expected {layout.expected}, found {low}"
        fields = self.schema.split(record.rstrip(b"\r\n").decode("latin-1"), layout.separator)
        assert fields is not None, "a quote is wrong"
        token = quoted(fields[field].encode("latin-1"))
        name = KINDS[low]
        match reason:
            case 2:
                if self._clicks:
                    return f"rating {token} is not 0 or 1, which the logistic loss is for"
                return f"rating {token} is not a finite number"
            case 4:
                return f"{name} {token} is not valid UTF-8"
            case 7:
                return f"{name} is empty"
            case 9:
                return f"time {token} is not a time (seconds since 1970 or 2026-11-23T18:05)"
            case 10:
                return f"weight {token} is not a number of at least 0"
            case _:
                raise AssertionError(reason)


class RatingsParser:
    """Parses blocks of one object.

    It has working space of its own, once for each method: one lane may parse while another
    describes, but no two may parse.

    Parameters
    ----------
    schema : RatingsSchema
    layout : Layout or None
        None: as the first record shows.
    clicks : bool
        Whether a rating must be 0 or 1.
    """

    def __init__(
        self, schema: RatingsSchema, layout: Layout | None, *, clicks: bool = False
    ) -> None:
        self._clicks = clicks
        self._schema = schema
        self._layout = layout
        self._spaces: tuple[_Space, _Space] | None = None

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
                *self._space(buffer, start, end)[0],
                out.keys,
                *out.row_arrays,
                out.nnz_max - FEATURES_PER_RECORD_MAX,
            )
        )

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Say which text made which key in good records; see ``Parser``."""
        n, size = len(starts), int((ends - starts).sum())
        keys, text_ends = np.zeros(2 * n, np.uint64), np.zeros(2 * n, np.int64)
        text = np.zeros(size, np.uint8)
        if n:
            _, space = self._space(buffer, int(starts[0]), int(ends[0]))
            size = int(
                kernels.describe_records(buffer, starts, ends, *space, keys, text_ends, text)
            )
        return Described(keys, np.tile(np.arange(2, dtype=np.int32), n), text_ends, text[:size])

    def _space(self, buffer: U8, start: int, end: int) -> tuple[_Space, _Space]:
        """Return settings and working space of both kernels, for the layout that is now known."""
        if self._spaces is None:
            layout = self._layout
            if layout is None:
                # enough for any record that is none too many bytes
                head = buffer[start : min(end, start + RECORD_BYTES_MAX)].tobytes()
                layout = _layout(self._schema, head.lstrip(b"\r\n").partition(b"\n")[0])
            settings = _settings(self._schema, layout, clicks=self._clicks)
            self._spaces = _working_space(settings), _working_space(settings)
        return self._spaces


# Settings, seeds of users and items, bounds of fields, unquoted text.
_Space = tuple[I64, np.uint64, np.uint64, I64, U8]


def _working_space(settings: I64) -> _Space:
    return (
        settings,
        field_seed("user"),
        field_seed("item"),
        np.zeros(settings[kernels.S_COLUMNS] + 1, np.int64),
        np.zeros(RECORD_BYTES_MAX + 64, np.uint8),
    )


def _layout(schema: RatingsSchema, line: bytes) -> Layout:
    return schema.bind(line.removesuffix(b"\r").decode("latin-1"))


def _settings(schema: RatingsSchema, layout: Layout, *, clicks: bool) -> I64:
    """Return what the kernels need to know of a layout."""
    quotes = schema.quote if len(layout.separator) == 1 and layout.separator != BLANKS else ""
    settings = np.zeros(kernels.N_SETTINGS, np.int64)
    settings[:] = (
        ord(layout.separator[0]),
        ord(quotes or "\n"),
        schema.trim,
        max(layout.places.values()) + 1,
        len(layout.separator),
        layout.separator == BLANKS,
        layout.least,
        layout.most,
        layout.word,
        schema.labelled,
        RECORD_BYTES_MAX,
        clicks,
        *(layout.places.get(kind, -1) for kind in KINDS[:-1]),
    )
    return settings


def rating_keys(users: Sequence[Any] | Any, items: Sequence[Any] | Any) -> tuple[U64, U64]:
    """Return the keys of users and items, as the parser makes them of the same texts.

    Parameters
    ----------
    users, items : sequence or array of n
        Strings and whole numbers; a number has the key of its decimal digits.

    Returns
    -------
    user_keys, item_keys : uint64[n]

    Raises
    ------
    ValueError
        There are not as many users as items, or one is empty.
    TypeError
        One is neither a string nor a whole number.
    """
    if len(users) != len(items):
        raise ValueError(f"there are {len(users)} users, but {len(items)} items")
    return _keys("users", users, field_seed("user")), _keys("items", items, field_seed("item"))


def _keys(what: str, values: Any, seed: np.uint64) -> U64:
    if not isinstance(values, list | tuple):
        values = np.asarray(values)
        if values.ndim != 1:
            raise ValueError(f"{what} have {values.ndim} dimensions, expected 1")
        if values.dtype.kind not in "iu":
            values = values.tolist()
    kinds = set(map(type, values))
    if kinds == {str} and all(values):
        return token_keys(values, seed)
    if kinds == {int} and max(map(abs, values)) < 1 << 63:
        values = np.array(values, np.int64)
    if isinstance(values, np.ndarray):
        keys = np.empty(len(values), np.uint64)
        wide = np.uint64 if values.dtype.kind == "u" else np.int64
        kernels.integer_keys(values.astype(wide), seed, keys)
        return keys
    return token_keys([_token(what, i, value) for i, value in enumerate(values)], seed)


def _token(what: str, place: int, value: Any) -> str:
    """Return the text of a user or an item."""
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{what}[{place}] is empty")
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise TypeError(
        f"{what}[{place}] is {type(value).__name__} {value!r}, expected a string or a whole number"
    )
