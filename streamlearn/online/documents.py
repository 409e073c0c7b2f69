r"""Documents: what topics are learned from, a text each; their words are the features, in order.

* Without ``source.columns`` a record is a line, and all of it is text. Blank lines are no records.
* With them the columns of kind ``text`` are: of delimited text, with a header or by number, or of
  JSON, one object a line, which the first line shows. Several texts of a record are one document.
* What separates fields is ``source.delimiter`` where that is no comma (the default); else a tab if
  the first line has enough of them, else a comma. Between tabs quotes are ordinary characters, as
  texts are full of them; else fields may be quoted as in :mod:`streamlearn.online.delimited`.
* What a word is, and which are left out, says :mod:`streamlearn.online.tokens`. A document of no
  words is one all the same.
* A document of more than ``ROW_WORDS_MAX`` words has several rows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import documents as kernels
from streamlearn.compute.kernels import json_text
from streamlearn.compute.kernels.jsonl import path_hash
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.delimited import one_character, split_line
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import (
    DOCUMENT_ROWS_MAX,
    FEATURES_PER_RECORD_MAX,
    ROW_WORDS_MAX,
    Minibatch,
)
from streamlearn.online.quoting import quoted
from streamlearn.online.tokens import Tokeniser, digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streamlearn.config import SourceConfig
    from streamlearn.messages import I64, U8

__all__ = ["DocumentsFormat", "DocumentsParser"]

KINDS: Final = ("text", "ignore")
# Of ``bad_arg``, where it is a number of fields: how many there should be, and whether exactly.
_FOUND_BITS: Final = 21
_EXACT: Final = 1 << 2 * _FOUND_BITS


class DocumentsFormat:
    """Records that are texts, or have some.

    Parameters
    ----------
    config : SourceConfig
        ``columns``, ``header``, ``delimiter``, ``quote`` and ``trim`` matter, and those of words.

    Raises
    ------
    ConfigError
        A column or a setting is wrong.
    """

    name = "documents"
    fields: tuple[str, ...] = ()
    has_values = False
    record_rows = DOCUMENT_ROWS_MAX
    has_fields = False
    dense: tuple[int, ...] = ()
    dense_names: tuple[str, ...] = ()

    def __init__(self, config: SourceConfig) -> None:
        self.words = Tokeniser(config)
        self.delimiter = one_character("delimiter", config.delimiter)
        self.quote = one_character("quote", config.quote) if config.quote else ""
        if self.delimiter == self.quote:
            raise ConfigError(f"source.quote: {self.quote!r} is the delimiter already")
        self.trim = config.trim
        self.columns = _text_columns(config)
        self.has_header = config.header
        self.first_line = bool(self.columns)

    @property
    def digest(self) -> str:
        """What is left out: a digest of the stop words, empty where there are none."""
        stops = self.words.stops
        return digest_of(stops[stops != 0])

    def parser(self, header: bytes | None) -> DocumentsParser:
        """Return a parser for an object with this first line; see ``Format``."""
        if not self.columns:
            return DocumentsParser(self, _settings(kernels.LINES), (), ())
        assert header is not None, "what the columns are shows the first line"
        line = header.rstrip(b"\r\n")
        if not self.has_header and line.lstrip().startswith(b"{"):
            if self.words.latin_1:
                raise DataError("the first line is JSON, which is UTF-8, not latin-1")
            return DocumentsParser(self, _settings(kernels.JSON), (), self.columns)
        return self._delimited(line)

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        match reason:
            case 1 if arg < 0:
                return f"the object has no field {' or '.join(map(repr, self.columns))}"
            case 1:
                found, wanted = (arg >> shift & ((1 << _FOUND_BITS) - 1) for shift in (0, 21))
                least = "" if arg & _EXACT else "at least "
                return f"expected {least}{wanted} fields, found {found}"
            case 4 if arg < 0:
                return "the text is not valid UTF-8"
            case 4:
                return f"byte {arg} ({record[arg]:#04x}) is not valid UTF-8"
            case 5:
                return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
            case 6:
                return (
                    f"a quote {self.quote} does not end on its line or stands inside a field "
                    f"without quotes in {quoted(record)}"
                )
            case 7:
                at, code = arg >> 4, arg & 15
                there = quoted(record[at:]) if record[at:] else "the record's end"
                return f"expected {json_text.CODES[code]} at byte {at}, found {there}"
            case _:
                raise AssertionError(reason)

    def _delimited(self, line: bytes) -> DocumentsParser:
        text = line.decode("latin-1" if self.words.latin_1 else "utf-8", "replace")
        text = text.removeprefix("\ufeff")
        numbers = [int(name) for name in self.columns if name.isdecimal()]
        if not self.has_header and len(numbers) < len(self.columns):
            name = next(name for name in self.columns if not name.isdecimal())
            raise DataError(
                f"source.columns names {name!r}, but the first line is no object of JSON: "
                f"{quoted(line)}",
                hint="set source.header = true where it names the columns, or give numbers from 0",
            )
        delimiter = self.delimiter
        if delimiter == ",":
            enough = 1 if self.has_header else max(numbers)
            delimiter = "\t" if text.count("\t") >= enough else ","
        quote = self.quote if delimiter != "\t" else ""
        places = numbers
        if self.has_header:
            names = split_line(text, delimiter, quote, trim=self.trim)
            names = [name.strip(" ") for name in names] if self.trim else names
            places = [_place(name, names) for name in self.columns]
            least = most = len(names)
        else:
            least, most = max(places) + 1, 0
        settings = _settings(kernels.FIELDS)
        settings[: kernels.S_RECORD_MAX] = (
            ord(delimiter), ord(quote or "\n"), self.trim, max(places) + 1, least, most,
        )  # fmt: skip
        return DocumentsParser(self, settings, places, ())


class DocumentsParser:
    """Parses blocks of one object.

    It has working space of its own, once for each method: one lane may parse while another
    describes, but no two may parse.

    Parameters
    ----------
    source : DocumentsFormat
    settings : int64[N_SETTINGS]
    columns : sequence of int
        Places of the fields that are text.
    paths : sequence of str
        Those of objects of JSON.
    """

    def __init__(
        self, source: DocumentsFormat, settings: I64, columns: Sequence[int], paths: Sequence[str]
    ) -> None:
        hashes = [_path_hash(path) for path in paths]
        self._fixed = (
            settings,
            np.array(columns, np.int64),
            np.array(hashes, np.uint64),
            *source.words.tables,
        )
        self._scratch = source.words.scratch()
        self._longest = len(self._scratch)
        copies = RECORD_BYTES_MAX + BLOCK_TAILROOM_BYTES if columns or paths else 1
        room = (int(settings[kernels.S_COLUMNS]) + 1, copies, max(2, 2 * len(columns)))
        self._space, self._told_space = _space(*room), _space(*room)

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        if start >= end:
            return start
        assert buffer[end - 1] == ord("\n"), "the last record is not complete"
        assert out.record_rows >= DOCUMENT_ROWS_MAX, "there may be no room for one record"
        return int(
            kernels.parse_records(
                buffer,
                start,
                end,
                *self._fixed,
                self._scratch,
                *self._space,
                out.keys,
                *out.row_arrays,
                out.rows_max - out.record_rows,
                out.nnz_max - out.record_rows * FEATURES_PER_RECORD_MAX,
            )
        )

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Spell the words of good records; see ``Parser``."""
        size = int((ends - starts).sum())
        words = size // 2 + len(starts) + 1
        keys, word_ends = np.empty(words, np.uint64), np.empty(words, np.int64)
        text = np.empty(2 * size + self._longest, np.uint8)
        count, used = kernels.describe_records(
            buffer, starts, ends, *self._fixed, *self._told_space, keys, word_ends, text
        )
        return Described(keys[:count], np.full(count, -1, np.int32), word_ends[:count], text[:used])


def _text_columns(config: SourceConfig) -> tuple[str, ...]:
    """Return the names of the columns that are text; none where all of a line is.

    Raises
    ------
    ConfigError
        A kind is wrong, none is text, or a setting is of no use for documents.
    """
    for setting in ("label", "cross", "fields"):
        if value := getattr(config, setting):
            raise ConfigError(
                f"source.{setting}: expected nothing, since documents have words alone, "
                f"got {value!r}"
            )
    for name, kind in config.columns.items():
        if kind not in KINDS:
            raise ConfigError(
                f"source.columns.{name}: expected one of {', '.join(KINDS)}, got {kind!r}"
            )
        if config.documents == "files":
            raise ConfigError(
                'source.columns: expected none where source.documents is "files", which have no '
                f"columns, got {name!r}"
            )
    columns = tuple(name for name, kind in config.columns.items() if kind == "text")
    if not columns and (config.columns or config.header):
        raise ConfigError(
            "source.columns: expected one column of kind text, got none",
            hint='say which it is: source.columns = {NAME = "text"} (--column NAME=text)',
        )
    if not config.header:
        for name in columns:
            if re.fullmatch(r"\d+", name) and not re.fullmatch(r"0|[1-9]\d{0,5}", name):
                raise ConfigError(
                    f"source.columns.{name}: expected a column's number from 0, got {name!r}"
                )
    return columns


def _place(name: str, names: Sequence[str]) -> int:
    if names.count(name) != 1:
        problem = f"the column {name!r} twice" if name in names else f"no column {name!r}"
        raise DataError(
            f"the header has {problem}, which source.columns names",
            hint=f"its columns are {', '.join(names[:40])}",
        )
    return names.index(name)


def _settings(layout: int) -> I64:
    settings = np.zeros(kernels.N_SETTINGS, np.int64)
    settings[kernels.S_RECORD_MAX :] = RECORD_BYTES_MAX, ROW_WORDS_MAX, layout
    return settings


def _path_hash(path: str) -> int:
    data = np.frombuffer(path.encode() + bytes(8), np.uint8)
    return int(path_hash(data.ctypes.data, len(data) - 8))


def _space(bounds: int, copies: int, texts: int) -> tuple[NDArray[np.bool_], I64, U8, I64, U8, I64]:
    """Return what a kernel works in: barren, bounds, path, levels, spare, texts."""
    return (
        np.zeros(1, np.bool_),
        np.zeros(bounds, np.int64),
        np.zeros(copies, np.uint8),
        np.zeros(json_text.DEPTH_MAX, np.int64),
        np.zeros(copies, np.uint8),
        np.zeros(texts, np.int64),
    )
