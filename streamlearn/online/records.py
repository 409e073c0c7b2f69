"""Python mappings as records of a source: read by the schema that a model was learned with.

A record is written as JSON and parsed as the source's own would be, since keys do not depend on the
format. So a time gives its hour, a number its bucket, and crosses are made, as in the source.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from streamlearn.errors import ConfigError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, U8
from streamlearn.online.formats import ALIASES, Described
from streamlearn.online.jsonl import JsonlFormat
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.schema import WILDCARD, read_label_rule

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig

__all__ = ["LABEL", "SchemaFields", "as_json", "buffer_of", "by_index", "plain"]

# What stands in for the label, whose rule or column says nothing of a mapping's features.
LABEL: Final = "(label)"


def by_index(config: SourceConfig) -> bool:
    """Say whether a source's features are numbered rather than fields by name."""
    return _format(config) == "svmlight"


class SchemaFields:
    """Turns mappings into features by a source's schema.

    Parameters
    ----------
    config : SourceConfig
    fields : sequence of str
        Fields that the model has met: the features where a header alone named them.

    Raises
    ------
    ConfigError
        The source's features have no names that a mapping could have.
    """

    def __init__(self, config: SourceConfig, fields: Sequence[str]) -> None:
        self._format = JsonlFormat(as_json(config, fields))
        self._parser = self._format.parser(None)
        self._out = Minibatch(1, 2 * FEATURES_PER_RECORD_MAX, has_values=self._format.has_values)
        self._records: list[bytes] = []

    def read(self, record: Mapping[Any, Any]) -> tuple[list[int], list[float]]:
        """Return keys and values of a record's features, by key.

        Raises
        ------
        ValueError
            The record is bad: says why.
        """
        line = msgspec.json.encode({**record, LABEL: 1}, enc_hook=plain)
        out = self._out
        out.clear()
        self._parser.parse(buffer_of(line), 0, len(line) + 1, out)
        if out.bad:
            reason, field, arg = out.bad_reason[0], out.bad_field[0], out.bad_arg[0]
            raise ValueError(self._format.complaint(int(reason), int(field), int(arg), line))
        keys = out.keys[: out.nnz]
        order = np.argsort(keys, kind="stable")
        values = out.values[: out.nnz][order].tolist() if out.has_values else [1.0] * out.nnz
        return keys[order].tolist(), values

    def describe(self, record: Mapping[Any, Any]) -> Described:
        """Return the names of the features of a good record; fields index :attr:`fields`."""
        line = msgspec.json.encode({**record, LABEL: 1}, enc_hook=plain)
        return self._parser.describe(
            buffer_of(line), np.zeros(1, np.int64), np.array([len(line)], np.int64)
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """What fields of names index."""
        return self._format.fields


def buffer_of(line: bytes) -> U8:
    """Return a record as a parser takes it, with a line's end and room behind."""
    return np.frombuffer(bytearray(line + b"\n" + bytes(BLOCK_TAILROOM_BYTES)), np.uint8)


def plain(value: Any) -> Any:
    """Return what JSON can say of values that msgspec does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, datetime.datetime):  # pandas' Timestamp
        return value.isoformat()
    if value != value:
        return None
    raise TypeError(f"a record holds {type(value).__name__} {value!r}, which is no JSON value")


def _format(config: SourceConfig) -> str:
    return ALIASES.get(config.format, config.format)


def as_json(config: SourceConfig, fields: Sequence[str]) -> SourceConfig:
    """Return the same source as JSON, its label aside."""
    columns = dict(config.columns)
    match _format(config):
        case "criteo":
            columns = {f"I{i}": "number" for i in range(1, 14)}
            columns |= {f"C{i}": "categorical" for i in range(1, 27)}
        case "delimited":
            wildcard = columns.pop(WILDCARD, "")
            if not set(columns.values()) - {"label", "weight", "ignore"}:
                wildcard = wildcard or "categorical"
            for field in fields if wildcard else ():
                # fields of times are NAME.hour and NAME.weekday
                name = field.removesuffix(".hour").removesuffix(".weekday")
                if not wildcard.startswith("time") and name not in columns:
                    name = field
                if "*" not in field:
                    columns.setdefault(name, wildcard)
        case "jsonl":
            pass
        case other:
            raise ConfigError(
                f"features of {other} are not fields by name",
                hint="score its records with streamlearn predict",
            )
    if config.label:
        columns[read_label_rule(config.label).column] = "ignore"
    elif "label" not in columns.values():
        columns["label"] = "ignore"
    columns = {
        name: "ignore" if kind in ("label", "weight") else kind for name, kind in columns.items()
    }
    return msgspec.structs.replace(
        config,
        format="jsonl",
        header=True,
        columns=columns | {LABEL: "label"},
        label="",
    )
