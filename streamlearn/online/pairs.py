"""What svmlight and libffm share: lines of a label and sparse features with values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from streamlearn.compute.kernels import pairs as kernels
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX
from streamlearn.online.quoting import quoted

if TYPE_CHECKING:
    from streamlearn.messages import I64, U8
    from streamlearn.online.minibatch import Minibatch

__all__ = ["PairsParser", "complain"]


class PairsParser:
    """Parses blocks of sparse lines; holds nothing that changes, so lanes may share it.

    Parameters
    ----------
    fields : bool
        Whether features are ``field:index:value`` rather than ``index:value``.
    """

    def __init__(self, *, fields: bool) -> None:
        self._fields = fields
        self._seed = field_seed("")

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        assert start == end or buffer[end - 1] == 10
        assert out.has_values
        sink = (out.keys, out.values, *out.row_arrays)
        return int(kernels.parse(buffer, start, end, self._fields, self._seed, sink))

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


def complain(reason: int, field: int, arg: int, record: bytes, form: str) -> str:
    """Say what is wrong with a record.

    Parameters
    ----------
    reason, field, arg : int
        As the kernel noted them: which feature, from 0; where its token begins in the record.
    record : bytes
    form : str
        How a feature should look (``index:value``).
    """
    if reason == 5:
        return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
    if reason == 8:
        return f"record has more than {FEATURES_PER_RECORD_MAX} features"
    token = re.split(rb"[ \t\r\n]", record[arg:], maxsplit=1)[0]
    if reason == 2:
        return f"label {quoted(token)} is not -1, 0 or 1"
    which = f"feature {field + 1}, {quoted(token)},"
    if reason == 3:
        if token.startswith(b"qid:"):
            return f"{quoted(token)} is not a query's number"
        value = token.split(b":", form.count(":"))[-1]
        return f"{which} has the value {quoted(value)}, which is not a finite number"
    if reason == 4:
        return f"{which} is not valid UTF-8"
    return f"{which} is not {form}"
