"""The format of Criteo's click logs: 40 columns between tabs, without a header.

A label (0 or 1), 13 integers (``I1`` to ``I13``, possibly negative) and 26 categories (``C1`` to
``C26``, eight hexadecimal digits as a rule). A blank field is a missing one and makes no feature;
an integer is a feature by its logarithmic bucket.

For deep models the integers are the dense part, as ``log(1 + max(x, 0))`` with NaN for a blank, and
only the categories are features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import criteo as kernels
from streamlearn.online.buckets import BUCKET_TEXT_BYTES_MAX, bucket_texts
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Described, refuse_other_losses
from streamlearn.online.quoting import quoted

if TYPE_CHECKING:
    from streamlearn.config import SourceConfig
    from streamlearn.messages import I64, U8
    from streamlearn.online.formats import Deep
    from streamlearn.online.minibatch import Minibatch

__all__ = ["FIELDS", "CriteoFormat", "CriteoParser"]

INTEGERS: Final = 13
CATEGORIES: Final = 26
FIELDS: Final = (
    *(f"I{i}" for i in range(1, INTEGERS + 1)),
    *(f"C{i}" for i in range(1, CATEGORIES + 1)),
)


class CriteoFormat:
    """Criteo's click log.

    Parameters
    ----------
    config : SourceConfig
        None of its settings matters here.
    deep : Deep, optional
        What a deep model wants.

    Raises
    ------
    ConfigError
        The model's labels are others than 0 and 1.
    """

    name = "criteo"
    has_values = False
    record_rows = 1
    has_header = False
    first_line = False

    def __init__(self, config: SourceConfig, *, deep: Deep | None = None) -> None:
        if deep is not None:
            refuse_other_losses(self.name, deep)
        self.has_fields = deep is not None
        skipped = INTEGERS if self.has_fields else 0
        self.fields = FIELDS[skipped:]
        self.dense_names = FIELDS[:skipped]
        self.dense: tuple[int, ...] = (INTEGERS,) if self.has_fields else ()
        self._parser = CriteoParser(skipped)

    def parser(self, header: bytes | None) -> CriteoParser:
        """Return the parser, which is the same for every object."""
        return self._parser

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record; ``field`` is its column, the label's being 0."""
        if reason == 1:
            return f"expected 40 fields, found {arg}"
        if reason == 5:
            return f"record of {arg} bytes is longer than the {1 << 20} allowed"
        columns = record.rstrip(b"\r\n").split(b"\t")
        shown = quoted(columns[field] if 0 <= field < len(columns) else record)
        if reason == 2:
            return f"label {shown} is not 0 or 1"
        name = FIELDS[field - 1]
        if reason == 3:
            return f"{name} {shown} is not an integer of at most 18 digits"
        return f"{name} {shown} is not valid UTF-8"


class CriteoParser:
    """Parses blocks of a Criteo log; holds nothing but the fields' seeds, so lanes may share it.

    Parameters
    ----------
    skipped : int
        So many fields from the left are of the dense part: none, or the integers.
    """

    def __init__(self, skipped: int = 0) -> None:
        self._skipped = skipped
        # one more than there are fields: kernels read them eight at a time
        self._seeds = np.array([*(field_seed(name) for name in FIELDS), 0], np.uint64)

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``."""
        assert start == end or buffer[end - 1] == 10
        first = out.rows
        sink = (out.keys, *out.row_arrays)
        stop = int(kernels.parse(buffer, start, end, self._seeds, sink))
        if self._skipped:
            kernels.take_numbers(
                buffer, first, out.keys, out.fields, out.dense, out.indptr, out.lines, out.state
            )
        return stop

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Name the features of good records; see ``Parser``."""
        records = len(starts)
        keys = np.empty(records * len(FIELDS), np.uint64)
        fields = np.empty(records * len(FIELDS), np.int32)
        text_ends = np.empty(records * len(FIELDS), np.int64)
        room = int((ends - starts).sum()) + records * INTEGERS * BUCKET_TEXT_BYTES_MAX
        text = np.empty(room, np.uint8)
        features, size = kernels.describe(
            buffer,
            starts,
            ends,
            self._seeds,
            self._skipped,
            *bucket_texts(whole=True),
            keys,
            fields,
            text_ends,
            text,
        )
        return Described(keys[:features], fields[:features], text_ends[:features], text[:size])
