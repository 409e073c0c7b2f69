"""The schema of delimited records: which column is the label, what the others give as features.

:func:`read_schema` reads ``source.columns``, ``source.label`` and ``source.cross`` before any data
is there and reports what is wrong with them; :meth:`Schema.bind` applies the schema to the columns
of one object.

Kinds of columns:

``label``
    0 or 1: one of ``0 1 0.0 1.0 -1 +1 -1.0 +1.0 true false yes no y n t f``, the words in small
    letters, in capitals or with a capital first. Whatever else makes a bad record.
``weight``
    The example's weight, a number >= 0.
``categorical``
    The token as it stands is a feature.
``number``, ``number:log``
    The logarithmic bucket of a number is a feature: four to an octave, sign kept.
``number:raw``
    A feature with the number as its value.
``time``, ``time:hour``, ``time:weekday``
    Hour (0 to 23) and weekday are two features, ``when.hour`` and ``when.weekday``.
``ignore``
    No feature, though a label's rule may use it.

A column called ``*`` gives the kind of all that a header names and the settings do not. Without any
columns that is ``categorical``.

A label's rule is ``COLUMN > NUMBER`` with ``>``, ``>=``, ``<``, ``<=``, ``==`` or ``!=``,
``COLUMN == "text"`` (or ``!=``), ``COLUMN in ["a", "b"]`` (or ``not in``), or the mere name of the
label's column. A number compares as a number (``1.0`` is ``1``), a text byte by byte. The rule's
column is no feature, since it would tell the label.

For deep models a ``number:raw`` is no feature but a number of the example's dense part, and a label
is what their loss asks for: a class by its text or number, or any number.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from streamlearn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streamlearn.config import SourceConfig
    from streamlearn.online.formats import Deep

__all__ = [
    "KINDS",
    "LABEL_TOKENS",
    "WEEKDAYS",
    "WILDCARD",
    "BoundSchema",
    "Feature",
    "LabelRule",
    "Part",
    "Schema",
    "label_of",
    "read_label_rule",
    "read_schema",
]

# What a weekday, 0 is Monday, is called in the name of a feature: three bytes each.
WEEKDAYS: Final = np.frombuffer(b"MonTueWedThuFriSatSun", np.uint8)

KINDS: Final = (
    "label",
    "weight",
    "categorical",
    "number",
    "number:log",
    "number:raw",
    "time",
    "time:hour",
    "time:weekday",
    "ignore",
)

# Names all columns of a header that have no kind of their own.
WILDCARD: Final = "*"

# Classes that a complaint names.
_SHOWN_MAX: Final = 20

Part = Literal["category", "number", "raw", "hour", "weekday"]

_PARTS: Final[dict[str, tuple[Part, ...]]] = {
    "categorical": ("category",),
    "number": ("number",),
    "number:log": ("number",),
    "number:raw": ("raw",),
    "time": ("hour", "weekday"),
    "time:hour": ("hour",),
    "time:weekday": ("weekday",),
}


def _label_tokens() -> dict[bytes, float]:
    tokens = {b"0": 0.0, b"1": 1.0, b"-1": 0.0, b"+1": 1.0}
    tokens |= {b"0.0": 0.0, b"1.0": 1.0, b"-1.0": 0.0, b"+1.0": 1.0}
    for no, yes in (("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t")):
        for form in (str.lower, str.capitalize, str.upper):
            tokens[form(no).encode()] = 0.0
            tokens[form(yes).encode()] = 1.0
    return tokens


# The tokens that a label may be where no rule says otherwise; the most frequent first.
LABEL_TOKENS: Final = _label_tokens()


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How a column makes the label.

    Attributes
    ----------
    column : str
    text : str
        The rule as the user wrote it; empty where the column's tokens are the label.
    comparison : str
        ``>``, ``>=``, ``<``, ``<=``, ``==``, ``!=`` with a number; ``class``: the label is a whole
        number from 0; ``value``: it is any number; or empty for tokens.
    threshold : float
        The number it compares with; that of classes.
    tokens : dict
        Token -> label, where tokens decide.
    otherwise : float
        The label of any other token; -1 where there is none (a bad record).
    """

    column: str
    text: str
    comparison: str
    threshold: float
    tokens: Mapping[bytes, float]
    otherwise: float

    @property
    def expected(self) -> str:
        """What a label must be, in words."""
        if self.comparison == "class":
            return f"a whole number from 0 to {int(self.threshold) - 1}"
        if self.comparison == "value":
            return "a finite number"
        if self.comparison:
            return f"a number (the rule is {self.text})"
        if self.otherwise >= 0:
            return f"present (the rule is {self.text})"
        if self.tokens is not LABEL_TOKENS:
            texts = [token.decode() for token in islice(self.tokens, _SHOWN_MAX)]
            more = ", …" if len(self.tokens) > len(texts) else ""
            return f"one of {', '.join(texts)}{more}"
        return "0 or 1, -1 or 1, true or false, yes or no"


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature that a column gives.

    Attributes
    ----------
    field : str
        The name of its field: the column's, with ``.hour`` or ``.weekday`` for times.
    column : str
    part : str
        ``category``, ``number``, ``raw``, ``hour`` or ``weekday``.
    """

    field: str
    column: str
    part: Part


@dataclass(frozen=True, slots=True)
class BoundSchema:
    """A schema applied to the columns of one object.

    Attributes
    ----------
    columns : dict
        Column name -> place, of all columns that matter.
    count : int
        How many columns a record has.
    exact : bool
        Whether it has exactly as many; else at least.
    label : LabelRule
    weight : str
        Name of the weight's column, or empty.
    features : tuple of Feature
        In the order of the columns.
    crosses : tuple of tuple of int
        Indices into ``features``, in the order of each cross.
    cross_fields : tuple of str
    labelled : bool
        Whether records have a label.
    """

    columns: Mapping[str, int]
    count: int
    exact: bool
    label: LabelRule
    weight: str
    features: tuple[Feature, ...]
    crosses: tuple[tuple[int, ...], ...]
    cross_fields: tuple[str, ...]
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class Schema:
    """What the settings say of the columns.

    Attributes
    ----------
    kinds : dict
        Column name (or number as text) -> kind.
    others : str
        The kind of the columns of a header that ``kinds`` does not name; empty: none.
    label : LabelRule
    crosses : tuple of tuple of str
        Names of fields.
    header : bool
        Whether columns are named by a header; else by number.
    dense : bool
        Whether raw numbers are of the dense part rather than features.
    """

    kinds: Mapping[str, str]
    others: str
    label: LabelRule
    crosses: tuple[tuple[str, ...], ...]
    header: bool
    dense: bool = False

    @property
    def has_values(self) -> bool:
        """Whether a feature may have another value than one."""
        return not self.dense and "number:raw" in {*self.kinds.values(), self.others}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the features' fields, but for those that only a header names."""
        fields = [one.field for one in _features(self.kinds) if not self.is_dense(one)]
        return (*fields, *("*".join(cross) for cross in self.crosses))

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Names of the numbers of the dense part, but for those that only a header names."""
        return tuple(one.field for one in _features(self.kinds) if self.is_dense(one))

    def is_dense(self, feature: Feature) -> bool:
        """Say whether what a column gives is of the dense part and no feature."""
        return self.dense and feature.part == "raw"

    def bind(self, names: Sequence[str] | None, *, labelled: bool = True) -> BoundSchema:
        """Apply the schema to an object's columns.

        Parameters
        ----------
        names : sequence of str, optional
            The names in the object's header; None where it has none.
        labelled : bool
            Whether label and weight are wanted; if not, their columns need not be there, nor
            those that are ignored.

        Raises
        ------
        DataError
            The header lacks a column that the schema names, or has one twice.
        ConfigError
            A cross names a field that there is not.
        """
        if names is None:
            places = {name: int(name) for name, _ in self._needed((), labelled=labelled)}
            count, exact = max(places.values(), default=-1) + 1, False
        else:
            places = dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
            count, exact = len(names), True
            times = Counter(names)
            for name, path in self._needed(names, labelled=labelled):
                if name not in places:
                    raise DataError(
                        f"the header has no column {name!r}, which {path} names",
                        hint=_near(name, names) or f"its columns are {', '.join(names[:40])}",
                    )
                if times[name] > 1:
                    raise DataError(f"the header has the column {name!r} twice")
        kinds: Mapping[str, str] = self.kinds
        if self.others:
            kinds = dict.fromkeys(places, self.others) | {self.label.column: "label"} | {**kinds}
        kinds = {name: kind for name, kind in kinds.items() if name in places}
        kinds = {name: kinds[name] for name in sorted(kinds, key=places.__getitem__)}
        features = tuple(_features(kinds))
        weight = next((name for name, kind in kinds.items() if kind == "weight"), "")
        return BoundSchema(
            columns=places,
            count=count,
            exact=exact,
            label=self.label,
            weight=weight if labelled else "",
            features=features,
            crosses=_resolve(self.crosses, features),
            cross_fields=tuple("*".join(cross) for cross in self.crosses),
            labelled=labelled,
        )

    def _needed(self, names: Sequence[str], *, labelled: bool) -> Iterable[tuple[str, str]]:
        """Name the columns that must be there, and the setting that says so."""
        for name, kind in self.kinds.items():
            # With labels what is ignored must be there, too: its name may be misspelt. Without them
            # it may be what only hindsight knows, as the label is.
            if labelled or (kind in _PARTS and name != self.label.column):
                yield name, f"source.columns.{name}"
        if labelled:
            yield self.label.column, "source.label"
        if self.others not in {"", "ignore"}:
            yield from ((name, "source.columns") for name in names)


def read_schema(config: SourceConfig, deep: Deep | None = None) -> Schema:
    """Return the schema that a source's settings describe, for deep models where they are wanted.

    Raises
    ------
    ConfigError
        A kind, a rule or a cross is wrong, or no column is the label.
    """
    for name, kind in config.columns.items():
        path = f"source.columns.{name}"
        if kind not in KINDS:
            raise ConfigError(
                f"{path}: expected one of {', '.join(KINDS)}, got {kind!r}", hint=_near(kind, KINDS)
            )
        if name == WILDCARD:
            if not config.header:
                raise ConfigError(
                    f"{path}: all other columns are those that a header names, but source.header "
                    "is false",
                    hint="set source.header = true where the first line names the columns",
                )
            if kind in {"label", "weight"}:
                raise ConfigError(f"{path}: all other columns cannot be the {kind}")
        elif not config.header and not re.fullmatch(r"0|[1-9]\d{0,5}", name):
            raise ConfigError(
                f"{path}: expected a column's number from 0, since source.header is false, "
                f"got {name!r}",
                hint="set source.header = true where the first line names the columns",
            )
    for kind in ("label", "weight"):
        several = [name for name, other in config.columns.items() if other == kind]
        if len(several) > 1:
            raise ConfigError(f"source.columns.{several[1]}: {several[0]!r} is the {kind} already")
    label = _read_label(config, deep)
    if not config.columns and not config.header:
        raise ConfigError(
            "source.columns: expected a column's number and kind for each column, got none",
            hint="or set source.header = true where the first line names the columns",
        )
    schema = Schema(
        kinds={name: kind for name, kind in config.columns.items() if name != WILDCARD},
        others=config.columns.get(WILDCARD, "" if config.columns else "categorical"),
        label=label,
        crosses=tuple(_read_cross(i, text) for i, text in enumerate(config.cross)),
        header=config.header,
        dense=deep is not None,
    )
    names = (*schema.fields, *schema.dense_names, "")
    field, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"source.cross: two fields have the name {field!r}")
    if not schema.others:
        _resolve(schema.crosses, tuple(_features(schema.kinds)))
    return schema


def label_of(column: str, config: SourceConfig, deep: Deep | None) -> LabelRule:
    """Return how the tokens of a column are labels.

    Raises
    ------
    ConfigError
        Two classes have the same text, or one has none.
    """
    if deep is None or deep.loss == "logistic":
        return LabelRule(column, "", "", 0.0, LABEL_TOKENS, -1.0)
    if deep.loss == "squared":
        return LabelRule(column, "", "value", 0.0, {}, -1.0)
    text, times = Counter((*config.classes, "")).most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"source.classes: {text!r} is there twice"
            if text
            else "source.classes: expected the texts of labels, got an empty one"
        )
    if not config.classes:
        return LabelRule(column, "", "class", float(deep.classes), {}, -1.0)
    tokens = {text.encode(): float(i) for i, text in enumerate(config.classes)}
    return LabelRule(column, "", "", 0.0, tokens, -1.0)


def _read_label(config: SourceConfig, deep: Deep | None) -> LabelRule:
    """Return the rule of the label, explicit or by a column's kind."""
    labelled = next((name for name, kind in config.columns.items() if kind == "label"), None)
    if not config.label:
        if labelled is None:
            raise ConfigError(
                "source.columns: expected one column of kind label, got none",
                hint="or give the label's column or rule as source.label (delay > 15)",
            )
        return label_of(labelled, config, deep)
    rule = read_label_rule(config.label)
    if not rule.text:
        rule = label_of(rule.column, config, deep)
    elif deep is not None and deep.loss != "logistic":
        raise ConfigError(
            f"source.label: expected the name of a column, since a rule makes labels of 0 and 1 "
            f"and model.loss is {deep.loss}, got {config.label!r}"
        )
    if labelled not in {None, rule.column}:
        raise ConfigError(
            f"source.label: the rule is about {rule.column!r}, but source.columns.{labelled} is "
            "the label"
        )
    kind = config.columns.get(rule.column, "label")
    if kind not in {"label", "ignore"}:
        raise ConfigError(
            f"source.columns.{rule.column}: expected label or ignore, since the label's rule "
            f"{config.label!r} uses it, got {kind!r}"
        )
    if not config.header and not rule.column.isdecimal():
        raise ConfigError(
            f"source.label: expected a column's number from 0, since source.header is false, "
            f"got {rule.column!r}",
            hint="set source.header = true where the first line names the columns",
        )
    return rule


_RULE = re.compile(
    r"""\s*(?:"(?P<quoted>[^"]+)"|(?P<column>[^\s<>=!"]+))
    (?:\s*(?P<operator>==|!=|>=|<=|=|>|<|\bnot\s+in\b|\bin\b)\s*(?P<operand>\S.*?))?\s*""",
    re.VERBOSE,
)


def read_label_rule(text: str) -> LabelRule:
    """Return the rule that a text says (``delay > 15``, ``class != "normal."``, ``clicked``).

    Raises
    ------
    ConfigError
        It is no such rule.
    """
    match = _RULE.fullmatch(text)
    if match is None or match["operator"] == "=":
        raise ConfigError(
            f'source.label: expected a rule like delay > 15 or class != "normal.", got {text!r}',
            hint="write == where two things are compared" if match else None,
        )
    column = match["quoted"] or match["column"]
    if match["operator"] is None:
        return LabelRule(column, "", "", 0.0, LABEL_TOKENS, -1.0)
    operator = " ".join(match["operator"].split())
    operand = match["operand"]
    if operator in {"in", "not in"}:
        tokens = _read_list(operand)
    elif re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", operand):
        threshold = float(operand)
        if not math.isfinite(threshold):
            raise ConfigError(f"source.label: {operand} is too large a number in {text!r}")
        return LabelRule(column, text.strip(), operator, threshold, {}, -1.0)
    elif operator in {"==", "!="}:
        tokens = [_read_text(operand)]
    else:
        raise ConfigError(
            f"source.label: expected a number after {operator}, got {operand!r}",
            hint="texts are compared with == , != , in and not in",
        )
    inside = 1.0 if operator in {"==", "in"} else 0.0
    return LabelRule(
        column, text.strip(), "", 0.0, {t.encode(): inside for t in tokens}, 1.0 - inside
    )


def _read_text(operand: str) -> str:
    if operand[0] not in "\"'":
        return operand
    try:
        value = ast.literal_eval(operand)
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, str):
        raise ConfigError(f"source.label: expected a quoted text, got {operand}")
    return value


def _read_list(operand: str) -> list[str]:
    try:
        values = ast.literal_eval(operand)
    except (SyntaxError, ValueError):
        values = None
    if (
        not isinstance(values, list | tuple)
        or not values
        or not all(isinstance(value, str | int | float) for value in values)
    ):
        raise ConfigError(f'source.label: expected a list like ["a", "b"], got {operand}')
    return [str(value) for value in values]


def _read_cross(index: int, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split("*"))
    if len(parts) < 2 or not all(parts):
        raise ConfigError(
            f"source.cross[{index}]: expected fields with * between them "
            f"(origin*destination), got {text!r}"
        )
    if len(set(parts)) < len(parts):
        raise ConfigError(f"source.cross[{index}]: {text!r} names a field twice")
    return parts


def _features(kinds: Mapping[str, str]) -> Iterable[Feature]:
    for name, kind in kinds.items():
        for part in _PARTS.get(kind, ()):
            yield Feature(f"{name}.{part}" if part in {"hour", "weekday"} else name, name, part)


def _resolve(
    crosses: Sequence[Sequence[str]], features: Sequence[Feature]
) -> tuple[tuple[int, ...], ...]:
    """Turn names of fields into indices of features."""
    index = {feature.field: i for i, feature in enumerate(features)}
    for i, cross in enumerate(crosses):
        for field in cross:
            path = f"source.cross[{i}]"
            if field not in index:
                derived = [name for name in index if name.startswith(f"{field}.")]
                raise ConfigError(
                    f"{path}: expected fields, got {field!r}, which is none",
                    hint=f"did you mean {derived[0]!r}?" if derived else _near(field, index),
                )
            if features[index[field]].part == "raw":
                raise ConfigError(
                    f"{path}: {field!r} is number:raw, which cannot be crossed",
                    hint=f'make it number: source.columns.{field} = "number"',
                )
    return tuple(tuple(index[field] for field in cross) for cross in crosses)


def _near(name: str, names: Iterable[str]) -> str | None:
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None
