"""Formats: what turns the bytes of a block into minibatches, and how features are named.

A format is a table entry: a name and a function from the source's settings to a :class:`Format`.
Its parse kernel goes over whole blocks straight to a CSR minibatch; no Python runs per record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, cast

from streamlearn.errors import ConfigError
from streamlearn.online.layouts import looks_like_ratings
from streamlearn.online.minibatch import Layout
from streamlearn.online.quoting import quoted

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig
    from streamlearn.messages import I32, I64, U8, U64
    from streamlearn.online.minibatch import Minibatch

__all__ = [
    "DEEP_ONLY",
    "FORMATS",
    "Deep",
    "Described",
    "Format",
    "Parser",
    "open_format",
    "refuse_other_losses",
]

# Name -> "module:class"; imported when asked for, since each brings kernels. The class takes a
# SourceConfig, and as ``deep`` what a deep model wants, where deep models learn the format.
FORMATS: Final[dict[str, str]] = {
    "bow": "streamlearn.online.bags:BowFormat",
    "criteo": "streamlearn.online.criteo:CriteoFormat",
    "delimited": "streamlearn.online.delimited:DelimitedFormat",
    "documents": "streamlearn.online.documents:DocumentsFormat",
    "idx": "streamlearn.online.idx:IdxFormat",
    "jsonl": "streamlearn.online.jsonl:JsonlFormat",
    "ldac": "streamlearn.online.bags:LdacFormat",
    "libffm": "streamlearn.online.libffm:LibffmFormat",
    "ratings": "streamlearn.online.ratings:RatingsFormat",
    "samples": "streamlearn.online.samples:SamplesFormat",
    "svmlight": "streamlearn.online.svmlight:SvmlightFormat",
}
# What else users call them. "tsv" is "delimited" whose delimiter is a tab (see DelimitedFormat).
ALIASES: Final = {
    "csv": "delimited",
    "tsv": "delimited",
    "json": "jsonl",
    "ndjson": "jsonl",
    "ffm": "libffm",
    "libsvm": "svmlight",
    "svm": "svmlight",
    "webdataset": "samples",
}


@dataclass(frozen=True, slots=True)
class Deep:
    """What a deep model wants of a format: fields, a dense part, and labels for its loss.

    Attributes
    ----------
    loss : str
        ``logistic``: labels are 0 or 1; ``classes``: one of several; ``squared``: any number.
    classes : int
        How many classes there are, 0 where the loss has none.
    """

    loss: str
    classes: int


@dataclass(frozen=True, slots=True)
class Described:
    """Features of a few records with the text they came from, for the name store.

    Attributes
    ----------
    keys : uint64[m]
    fields : int32[m]
        Index into ``Format.fields``; -1 where the text already says ``field=token``.
    ends : int64[m]
        ``text[ends[i - 1]:ends[i]]`` (from 0 for the first) is the token of feature ``i``, as a
        user would read it.
    text : uint8[k]
    """

    keys: U64
    fields: I32
    ends: I64
    text: U8


class Parser(Protocol):
    """Parses the records of one object (whose header, where it has one, is known)."""

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; return where it stopped.

        ``buffer[end - 1]`` is a newline: every record is complete. Stops early where ``out`` is
        full. Bad records are noted in ``out``, never raised. Never keeps a reference to ``buffer``.
        """
        ...

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Parse good records (newline excluded) once more; say which text made which key."""
        ...


class Format(Layout, Protocol):
    """How the records of a source are read.

    Attributes
    ----------
    name : str
    fields : tuple of str
        Names of the fields of features.
        A deep format has those of embedded features. Where only a header names them they are
        there once :meth:`parser` was called, as are ``dense`` and ``dense_names``.
    dense_names : tuple of str
        Names of the numbers of the dense part; () where they have none.
    has_header, first_line : bool
        Whether the first line of an object is no record; whether a parser needs to know it.
    """

    name: str
    fields: tuple[str, ...]
    dense_names: tuple[str, ...]
    has_header: bool
    first_line: bool

    def parser(self, header: bytes | None) -> Parser:
        """Return a parser for an object with this first line (None where it needs to know none).

        Raises
        ------
        DataError
            The header lacks a column that the schema names, or has one twice; for deep models, it
            has others than the one before.
        """
        ...

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual (``label 'x7' is not 0 or 1``)."""
        ...


# Formats whose label is a column like any other, so that it may be absent where none is wanted.
_LABEL_OPTIONAL: Final = {"delimited", "ratings", "idx", "samples"}
# What models of topics learn, and no other.
_DOCUMENTS: Final = ("documents", "ldac", "bow")
# What deep models learn besides others, and what they alone learn.
_DEEP_TOO: Final = ("criteo", "delimited", "jsonl", "libffm", "svmlight")
DEEP_ONLY: Final = ("idx", "samples")


def open_format(
    config: SourceConfig,
    sample: bytes | None = None,
    *,
    labelled: bool = True,
    ratings: bool | None = None,
    clicks: bool = False,
    documents: bool | None = None,
    deep: Deep | None = None,
) -> Format:
    """Return the format that a source's settings ask for.

    Parameters
    ----------
    config : SourceConfig
        ``format`` is a name of :data:`FORMATS`, an alias, or ``auto``.
    sample : bytes, optional
        The first lines of the source, which decide where the format is ``auto``.
    labelled : bool
        Whether labels are wanted; if not, delimited records and ratings need none (to predict).
    ratings : bool, optional
        Whether ratings are what the model learns: if so, ``auto`` takes all for ratings that may be
        some, and no other format will do; if not, they will not do. None: whatever it is.
    clicks : bool
        Whether a rating must be 0 or 1.
    documents : bool, optional
        Whether documents are what the model learns: if so, ``auto`` takes all lines for documents
        but those of ``ldac``, and no other format will do; if not, they will not do. None:
        whatever it is.
    deep : Deep, optional
        What a deep model wants; None: no deep model learns.

    Raises
    ------
    ConfigError
        There is no such format, ``auto`` cannot tell, the model does not learn what the format
        has, or the format's own settings are wrong.
    """
    asked = config.format.lower()
    name = ALIASES.get(asked, asked)
    if name == "auto":
        if documents is True:
            name = _recognise_documents(config, sample)
        else:
            name = _recognise(config, sample, ratings=ratings is True)
    if name not in FORMATS:
        near = get_close_matches(asked, ["auto", *FORMATS, *ALIASES], n=1, cutoff=0.5)
        names = ", ".join(["auto", *FORMATS])
        raise ConfigError(
            f"source.format: expected one of {names}, got {config.format!r}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )
    if ratings is True and name != "ratings":
        raise ConfigError(
            f"source.format: expected ratings, which the model learns, got {name!r}",
            hint="say which columns are what: --format ratings with source.columns",
        )
    if ratings is False and name == "ratings":
        raise ConfigError(
            "source.format: expected records with labels, which the model learns, got 'ratings'",
            hint="--model mf learns ratings",
        )
    if documents is True and name not in _DOCUMENTS:
        raise ConfigError(
            f"source.format: expected documents, ldac or bow, which the model learns, got {name!r}",
            hint="say which column is text: --format documents --column NAME=text",
        )
    if documents is not True and name in _DOCUMENTS and (documents is False or ratings is not None):
        what = "ratings" if ratings else "records with labels"
        raise ConfigError(
            f"source.format: expected {what}, which the model learns, got {name!r}",
            hint="--model lda learns documents",
        )
    if deep is None and name in DEEP_ONLY:
        raise ConfigError(
            f"source.format: expected text, which the model learns, got {name!r}",
            hint="--model deep learns images and samples",
        )
    if deep is not None:
        _check_deep(config, name, deep)
    module, _, attribute = FORMATS[name].partition(":")
    kind = getattr(import_module(module), attribute)
    options: dict[str, object] = {}
    if not labelled and name in _LABEL_OPTIONAL:
        options["labelled"] = False
    if clicks and name == "ratings":
        options["clicks"] = True
    if deep is not None:
        options["deep"] = deep
    return cast("Format", kind(config, **options))


def _check_deep(config: SourceConfig, name: str, deep: Deep) -> None:
    """Refuse what a deep model cannot learn.

    Raises
    ------
    ConfigError
    """
    formats = [one for one in (*_DEEP_TOO, *DEEP_ONLY) if one in FORMATS]
    if name not in formats:
        raise ConfigError(
            f"source.format: expected one of {', '.join(formats)}, which deep models learn, "
            f"got {name!r}",
            hint="--model mf learns ratings"
            if name == "ratings"
            else "--model lda learns documents",
        )
    if deep.loss != "logistic" and config.negative_rate < 1:
        raise ConfigError(
            f"source.negative_rate: expected 1, since with model.loss {deep.loss} no label is "
            f"negative, got {config.negative_rate:g}"
        )
    if deep.loss == "classes" and len(config.classes) not in {0, deep.classes}:
        raise ConfigError(
            f"source.classes: expected {deep.classes} texts, one a class, got {len(config.classes)}"
        )


def refuse_other_losses(name: str, deep: Deep) -> None:
    """Refuse deep models whose loss is not of labels 0 and 1, which is all that a format has.

    Raises
    ------
    ConfigError
    """
    if deep.loss != "logistic":
        raise ConfigError(
            f"model.loss: expected logistic, since the labels of {name} are 0 and 1, "
            f"got {deep.loss!r}",
            hint="delimited, jsonl and svmlight have labels of any kind",
        )


_RATED: Final = {"user", "item", "rating"}  # kinds of columns that other formats do not have
_PAIR = re.compile(rb"^[+-]?[\d.]\S*( +\d+:\S+)+\s*$")
_TRIPLE = re.compile(rb"^[+-]?[\d.]\S*( +[^\s:]+:[^\s:]+:\S+)+\s*$")


# How objects begin, or what stands in them, that are no text.
_BINARY: Final = {
    **dict.fromkeys((bytes([0, 0, one]) for one in (8, 9, 11, 12, 13, 14)), "idx"),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"\x93NUMPY"), "samples"),
}
_LDAC = re.compile(rb"\s*(\d+)((?:\s+\d+:\d+)*)\s*$")


def _recognise_documents(config: SourceConfig, sample: bytes | None) -> str:
    """Name the format of documents that a sample's first line shows."""
    line = next((one for one in (sample or b"").split(b"\n") if one.strip()), b"").rstrip(b"\r")
    if config.columns or config.header:
        return "documents"
    counts = _LDAC.match(line)
    if counts and counts[2] and len(counts[2].split()) == int(counts[1]):
        return "ldac"
    looks_like = ""
    if counts and not counts[2]:
        looks_like, hint = "as in UCI's docword", "--format bow"
    elif line.lstrip().startswith(b"{") and line.rstrip().endswith(b"}"):
        looks_like, hint = "which looks like JSON", "--column NAME=text, the field that is text,"
    if looks_like:
        raise ConfigError(
            f"source.format: auto cannot tell the format: the first line is {quoted(line)}, "
            f"{looks_like}",
            hint=f"{hint} if it is that; --format documents if all of each line is text",
        )
    return "documents"


def _recognise(config: SourceConfig, sample: bytes | None, *, ratings: bool) -> str:
    """Name the format of a sample's first line that is neither blank nor a comment."""
    lines = [line for line in (sample or b"").split(b"\n") if line.strip()]
    line = next((line for line in lines if not line.lstrip().startswith(b"#")), b"").rstrip(b"\r")
    if config.header or config.columns:
        if line.lstrip().startswith(b"{") and not config.header:
            return "jsonl"  # which takes columns as well; a header line is never an object
        rated = ratings or not _RATED.isdisjoint(config.columns.values())
        return "ratings" if rated else "delimited"
    if line.count(b"\t") == 39 and line[:2] in {b"0\t", b"1\t"}:
        return "criteo"
    if line.lstrip().startswith(b"{"):
        return "jsonl"
    if _TRIPLE.match(line):
        return "libffm"
    if _PAIR.match(line):
        return "svmlight"
    if looks_like_ratings(line.decode("latin-1"), config, wanted=ratings):
        return "ratings"
    shown = line[:60].decode(errors="replace")
    saw = f"the first line is {shown!r}" if line else "there is no line"
    arrays = next((name for start, name in _BINARY.items() if line.startswith(start)), "")
    if arrays:
        saw = f"the first bytes are {line[:4].hex(' ')}, which is no text"
    raise ConfigError(
        f"source.format: auto cannot tell the format: {saw}",
        hint=f"--format {arrays}, which --model deep learns"
        if arrays
        else "set source.header = true where that names the columns, or name the format: ratings"
        if ratings
        else "name it: --format delimited with source.header or source.columns, or another of "
        + ", ".join(FORMATS),
    )
