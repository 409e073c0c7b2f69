"""What svmlight and libffm share: lines of a label and sparse features with values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import pairs as kernels
from streamlearn.errors import ConfigError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX
from streamlearn.online.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamlearn.messages import I32, I64, U8, U64
    from streamlearn.online.minibatch import Minibatch
    from streamlearn.online.schema import LabelRule

__all__ = ["PairsParser", "complain"]

# What the kernel makes of labels, by how a rule compares them.
_MAKES: Final = {"class": kernels.CLASS, "value": kernels.VALUE}


class PairsParser:
    """Parses blocks of sparse lines; holds nothing that changes, so lanes may share it.

    Parameters
    ----------
    fields : bool
        Whether features are ``field:index:value`` rather than ``index:value``.
    label : LabelRule, optional
        What labels are; None: -1, 0 or 1.
    names : sequence of str
        libffm's fields, where the minibatch has them: no other may occur.

    Raises
    ------
    ConfigError
        A name is no field, or two are the same.
    """

    def __init__(
        self, *, fields: bool, label: LabelRule | None = None, names: Sequence[str] = ()
    ) -> None:
        self._fields = fields
        self._seed = field_seed("")
        tokens = label.tokens if label is not None else {}
        make = kernels.BINARY
        if label is not None:
            make = _MAKES.get(label.comparison, kernels.TOKEN)
        self._label_of = (
            make,
            label.threshold if label is not None else 0.0,
            np.frombuffer(bytearray(b"".join(tokens)), np.uint8),
            np.cumsum([len(token) for token in tokens], dtype=np.int64),
            np.array(list(tokens.values()), np.int64),
        )
        self._table = _table(names, self._seed)

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        assert start == end or buffer[end - 1] == 10
        assert out.has_values
        sink = (out.keys, out.values, out.fields, *out.row_arrays)
        return int(
            kernels.parse(
                buffer, start, end, self._fields, self._seed, self._label_of, self._table, sink
            )
        )

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Name the features of good records; see ``Parser``."""
        size = int((ends - starts).sum())
        keys = np.empty(size // 2 + 1, np.uint64)
        text_ends = np.empty(size // 2 + 1, np.int64)
        text = np.empty(size, np.uint8)
        features, used = kernels.describe(
            buffer, starts, self._fields, self._seed, keys, text_ends, text
        )
        nameless = np.full(features, -1, np.int32)
        return Described(keys[:features], nameless, text_ends[:features], text[:used])


def complain(
    reason: int,
    field: int,
    arg: int,
    record: bytes,
    form: str,
    *,
    label: LabelRule | None = None,
    fields: str = "",
) -> str:
    """Say what is wrong with a record.

    Parameters
    ----------
    reason, field, arg : int
        As the kernel noted them: which feature, from 0; where its token begins in the record.
    record : bytes
    form : str
        How a feature should look (``index:value``).
    label : LabelRule, optional
        What labels are; None: -1, 0 or 1.
    fields : str
        What fields there are, in words; empty: any.
    """
    if reason == 5:
        return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
    if reason == 8:
        return f"record has more than {FEATURES_PER_RECORD_MAX} features"
    token = re.split(rb"[ \t\r\n]", record[arg:], maxsplit=1)[0]
    if reason == 2:
        expected = label.expected if label is not None else "-1, 0 or 1"
        return f"label {quoted(token)} is not {expected}"
    which = f"feature {field + 1}, {quoted(token)},"
    if reason == 3:
        if token.startswith(b"qid:"):
            return f"{quoted(token)} is not a query's number"
        value = token.split(b":", form.count(":"))[-1]
        return f"{which} has the value {quoted(value)}, which is not a finite number"
    if reason == 4:
        return f"{which} is not valid UTF-8"
    if fields and re.match(rb"[^:]+:", token):
        return f"{which} is of no field of source.fields ({fields})"
    return f"{which} is not {form}"


def _table(names: Sequence[str], seed: np.uint64) -> tuple[U64, I32]:
    """Return an open-addressing table of fields by their keys, at most half full."""
    size = 1 << (2 * len(names)).bit_length()
    keys: U64 = np.zeros(size, np.uint64)
    numbers: I32 = np.zeros(size, np.int32)
    for i, name in enumerate(names):
        text = np.frombuffer(name.encode() + b" " * BLOCK_TAILROOM_BYTES, np.uint8)
        key = np.uint64(kernels.named_key(text, seed))
        place = int(key >> np.uint64(32)) & (size - 1)
        while keys[place]:
            if keys[place] == key:
                raise ConfigError(f"source.fields: {names[numbers[place]]!r} and {name!r} are one")
            place = (place + 1) & (size - 1)
        keys[place] = key
        numbers[place] = i
    return keys, numbers
