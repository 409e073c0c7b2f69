r"""How the fields of ratings stand in a record: what separates them, which of them is what.

What separates fields is ``source.delimiter`` where it is set (and no comma, the default); else the
object's first line shows it: the first of ``::``, tab, ``;``, ``,`` and blanks that makes a rating
of it, else the first that makes as many fields as are wanted, else the first that makes two. Blanks
(spaces and tabs) separate by runs, and those around a record count for nothing. Between single
characters fields may be quoted as in delimited text; with ``::`` and blanks quotes are ordinary
characters.

Which field is what says ``source.columns``; else a header, by the names that are usual; else the
order is user, item, rating, time. A first line of two fields without a header has no ratings, and
so do all lines of its object: each is feedback of rating 1.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from streamlearn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamlearn.config import SourceConfig

__all__ = ["BLANKS", "KINDS", "Layout", "RatingsSchema", "looks_like_ratings", "read_schema"]

KINDS: Final = ("user", "item", "rating", "time", "weight", "ignore")
# What stands for runs of spaces and tabs among the separators.
BLANKS: Final = " "
SEPARATORS: Final = ("::", "\t", ";", ",", BLANKS)

_ORDER: Final = ("user", "item", "rating", "time")
# What columns are called where nobody says which is what, without case, blanks and punctuation.
_USUAL: Final = {
    "user": "user userid uid customer customerid reviewer reviewerid",
    "item": "item itemid iid movie movieid product productid asin book bookid isbn artist artistid "
    "track trackid song songid business businessid",
    "rating": "rating ratings score stars bookrating",
    "time": "time timestamp ts date datetime",
    "weight": "weight",
}
_KIND_OF: Final = {name: kind for kind, names in _USUAL.items() for name in names.split()}

# What a rating looks like, as a rule.
_NUMBER: Final = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+) *")

# Of Layout.word: bits of the least number of fields (a header's, at most one more than the bytes of
# a record), and how the most follows from it.
_LEAST_BITS: Final = 21
_ANY, _SAME, _ALL = range(3)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the records of one object read.

    Attributes
    ----------
    separator : str
        ``::``, :data:`BLANKS`, or one character.
    least, most : int
        How many fields a record has; ``most`` is ``least``, 4, or 0 for any number.
    places : dict
        Kind -> place from 0, of the fields that are read: ``user``, ``item``, perhaps others.
    """

    separator: str
    least: int
    most: int
    places: Mapping[str, int]

    @property
    def word(self) -> int:
        """What a complaint needs to know of it, below 2**30: separator, least, most."""
        most = _ANY if self.most == 0 else _SAME if self.most == self.least else _ALL
        first = 0 if self.separator == "::" else ord(self.separator)
        return (first << 2 | most) << _LEAST_BITS | self.least

    @classmethod
    def of_word(cls, word: int) -> Layout:
        """Return the layout (without places) that a word stands for."""
        least = word & ((1 << _LEAST_BITS) - 1)
        first = word >> _LEAST_BITS + 2
        most = (0, least, len(_ORDER))[word >> _LEAST_BITS & 3]
        return cls(chr(first) if first else "::", least, most, {})

    @property
    def expected(self) -> str:
        """How many fields a record should have, in words."""
        between = {"\t": "tabs", BLANKS: "blanks"}.get(self.separator, f"{self.separator!r}")
        if self.most == 0:
            return f"at least {self.least} fields between {between}"
        several = "" if self.most == self.least else f"{self.least} to "
        return f"{several}{self.most} fields between {between}"


@dataclass(frozen=True, slots=True)
class RatingsSchema:
    """What the settings say of the fields.

    Attributes
    ----------
    kinds : dict
        Column name (or number as text) -> kind; empty: as a header or the usual order says.
    header : bool
        Whether the first line of an object names its columns.
    separator : str
        Empty: as the first line shows.
    quote : str
        Empty: quotes mean nothing.
    trim : bool
    labelled : bool
        Whether ratings (and weights) are wanted; if not, they need not be there.
    """

    kinds: Mapping[str, str]
    header: bool
    separator: str
    quote: str
    trim: bool
    labelled: bool

    def bind(self, line: str) -> Layout:
        """Return the layout of an object with this first line, its header where it has one.

        Raises
        ------
        DataError
            The header lacks a column that the settings name, has one twice, or does not show which
            is the user, the item or the rating.
        """
        separator = self.separator or self._recognise(line)
        fields = self.split(line, separator) or [line]
        if self.header:
            places = self._named(fields) if self.kinds else self._usual(fields)
            return Layout(separator, len(fields), len(fields), places)
        if self.kinds:
            places = {kind: int(name) for name, kind in self.kinds.items() if kind != "ignore"}
            places = self._wanted(places)
            return Layout(separator, max(places.values()) + 1, 0, places)
        places = {kind: place for place, kind in enumerate(_ORDER)}
        if not self.labelled:
            return Layout(separator, 2, len(_ORDER), self._wanted(places))
        if len(fields) == 2:
            return Layout(separator, 2, 2, {"user": 0, "item": 1})
        return Layout(separator, 3, len(_ORDER), places)

    def split(self, line: str, separator: str) -> list[str] | None:
        """Return the fields of a record, None where a quote is wrong."""
        if separator == BLANKS:
            return re.findall(r"[^ \t]+", line)
        fields: list[str] | None = line.split(separator)
        if separator != "::" and self.quote and self.quote in line:
            fields = _unquote(line, separator, self.quote, " *" if self.trim else "")
        return [field.strip(" ") for field in fields] if self.trim and fields else fields

    def _recognise(self, line: str) -> str:
        found = {separator: self.split(line, separator) or [line] for separator in SEPARATORS}
        wanted, rating = 3, -1 if self.header else 2
        if self.kinds and not self.header:
            wanted = 1 + max(int(name) for name in self.kinds)
            rating = next((int(name) for name, kind in self.kinds.items() if kind == "rating"), -1)
        for separator, fields in found.items():
            if len(fields) >= wanted and (rating < 0 or _NUMBER.fullmatch(fields[rating])):
                return separator
        for enough in (wanted, 2):
            for separator, fields in found.items():
                if len(fields) >= enough:
                    return separator
        return ","

    def _wanted(self, places: dict[str, int]) -> dict[str, int]:
        """Leave out what is not wanted where no ratings are."""
        if self.labelled:
            return places
        return {kind: at for kind, at in places.items() if kind not in {"rating", "weight"}}

    def _named(self, names: list[str]) -> dict[str, int]:
        """Return the places of the columns that the settings name."""
        places = {}
        for name, kind in self.kinds.items():
            if not self.labelled and kind not in {"user", "item", "time"}:
                continue
            if name not in names:
                raise DataError(
                    f"the header has no column {name!r}, which source.columns.{name} names",
                    hint=_near(name, names) or f"its columns are {_list(names)}",
                )
            if names.count(name) > 1:
                raise DataError(f"the header has the column {name!r} twice")
            if kind != "ignore":
                places[kind] = names.index(name)
        return places

    def _usual(self, names: list[str]) -> dict[str, int]:
        """Return the places of the columns that have the usual names."""
        found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name in names:
            found[_KIND_OF.get(re.sub(r"[\W_]", "", name.lower()), "ignore")].append(name)
        needed = ["user", "item"]
        # two columns alone are feedback without ratings; among others one of them is the rating
        if self.labelled and found["ignore"]:
            needed.append("rating")
        for kind in ("user", "item", "rating", "weight"):
            if len(found[kind]) > 1 or (kind in needed and not found[kind]):
                problem = (
                    f"{' and '.join(map(repr, found[kind]))} may both be the {kind}"
                    if found[kind]
                    else f"none of them is known as the {kind}"
                )
                raise DataError(
                    f"the header has the columns {_list(names)}: {problem}",
                    hint="say which column is what: "
                    '[source.columns] NAME = "user", NAME = "item", NAME = "rating" '
                    "(--column NAME=user), others are ignored",
                )
        del found["ignore"]
        return self._wanted({kind: names.index(some[0]) for kind, some in found.items() if some})


def read_schema(
    config: SourceConfig, separator: str, quote: str, *, labelled: bool
) -> RatingsSchema:
    """Return the schema that a source's settings describe.

    Parameters
    ----------
    config : SourceConfig
    separator, quote : str
        Checked; the separator is empty where the first line shows it.
    labelled : bool
        Whether ratings are wanted.

    Raises
    ------
    ConfigError
        A kind is wrong, there twice, or missing, or a setting is of no use for ratings.
    """
    for setting in ("label", "cross", "fields"):
        if getattr(config, setting):
            raise ConfigError(
                f"source.{setting}: expected nothing, since ratings have users, items and ratings "
                f"alone, got {getattr(config, setting)!r}"
            )
    for name, kind in config.columns.items():
        path = f"source.columns.{name}"
        if kind not in KINDS:
            raise ConfigError(
                f"{path}: expected one of {', '.join(KINDS)}, got {kind!r}", hint=_near(kind, KINDS)
            )
        if not config.header and not re.fullmatch(r"0|[1-9]\d{0,5}", name):
            raise ConfigError(
                f"{path}: expected a column's number from 0, since source.header is false, "
                f"got {name!r}",
                hint="set source.header = true where the first line names the columns",
            )
    times = Counter(config.columns.values())
    for kind in KINDS[:-1]:
        if times[kind] > 1:
            first, second = [name for name, one in config.columns.items() if one == kind][:2]
            raise ConfigError(f"source.columns.{second}: {first!r} is the {kind} already")
    for kind in ("user", "item"):
        if config.columns and not times[kind]:
            raise ConfigError(f"source.columns: expected one column of kind {kind}, got none")
    return RatingsSchema(
        dict(config.columns), config.header, separator, quote, config.trim, labelled
    )


def looks_like_ratings(line: str, config: SourceConfig, *, wanted: bool) -> bool:
    """Say whether a first line that is no header looks like a rating.

    Parameters
    ----------
    line : str
    config : SourceConfig
        ``delimiter`` and ``quote`` matter.
    wanted : bool
        Whether ratings are what is looked for: then any that can be read will do. Else only
        ``user::item::rating`` and ``user<TAB>item<TAB>rating`` in numbers, which little else is.
    """
    separator = "" if config.delimiter == "," else config.delimiter
    schema = RatingsSchema({}, False, separator, config.quote, config.trim, True)
    layout = schema.bind(line)
    fields = schema.split(line, layout.separator) or []
    if not layout.least <= len(fields) <= layout.most:
        return False
    numbers = [_NUMBER.fullmatch(field) is not None for field in fields]
    if wanted:
        return all(numbers[2:3])
    if layout.separator == "\t":
        return len(fields) > 2 and all(numbers)
    return layout.separator == "::" and len(fields) > 2 and numbers[2] and all(fields[:2])


def _unquote(line: str, separator: str, quote: str, blanks: str) -> list[str] | None:
    """Split a line with quoted fields; None where a quote is not as it should be."""
    q, s = re.escape(quote), re.escape(separator)
    field = re.compile(rf"(?:{blanks}{q}((?:[^{q}]|{q}{q})*){q}{blanks}|([^{q}{s}]*))({s}|\Z)")
    fields = []
    at = 0
    while True:
        match = field.match(line, at)
        if match is None:
            return None
        whole = match[1]
        fields.append(match[2] if whole is None else whole.replace(2 * quote, quote))
        if not match[3]:
            return fields
        at = match.end()


def _near(name: str, names: Sequence[str]) -> str | None:
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:40])
    return f"{shown}, …" if len(names) > 40 else shown
