"""Idx files (MNIST and those like it): each item is the dense part of an example.

The source makes a record of each item with its label (:mod:`streamlearn.net.sources.idx`), and a
first record that says what items are. An item of two dimensions is an image of one channel; other
shapes stay as they are. Unsigned bytes are taken to [0, 1], other numbers as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamlearn.binary import IDX_TYPES, LABEL_BYTES, IdxHeader, shape_text, unstuff
from streamlearn.compute.kernels.stuffing import unstuff_records
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.dense_labels import DenseLabels
from streamlearn.online.dense_rows import add_rows, nothing_described
from streamlearn.online.minibatch import REASONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.config import SourceConfig
    from streamlearn.messages import F64, I64, U8
    from streamlearn.online.formats import Deep, Described
    from streamlearn.online.minibatch import Minibatch

__all__ = ["IdxFormat", "IdxParser"]

_LABEL: Final = REASONS.index("label")
_NUMBER: Final = REASONS.index("number")
_TOO_LONG: Final = REASONS.index("too_long")
_SYNTAX: Final = REASONS.index("syntax")

# Records parsed at once: so many that NumPy's calls cost little, so few that they stay cached.
_CHUNK_BYTES: Final = 256 << 10
_CHUNK_ROWS_MAX: Final = 1024


class IdxFormat:
    """Items of idx files.

    Parameters
    ----------
    config : SourceConfig
        ``classes`` matters, as the number of classes.
    deep : Deep
        What labels are for.
    labelled : bool
        Whether items need labels. If not, every label is 0.

    Attributes
    ----------
    dense : tuple of int
        Shape of an example; () until the first object is known.

    Raises
    ------
    ConfigError
        A setting is of no use for arrays.
    """

    name = "idx"
    fields: tuple[str, ...] = ()
    dense_names: tuple[str, ...] = ()
    has_values = False
    has_fields = False
    has_header = True
    first_line = True
    record_rows = 1

    def __init__(self, config: SourceConfig, *, deep: Deep, labelled: bool = True) -> None:
        for setting in ("columns", "label", "cross", "fields"):
            if value := getattr(config, setting):
                raise ConfigError(
                    f"source.{setting}: expected nothing, since items of idx files are arrays with "
                    f"a label each, got {value!r}"
                )
        self.labels = DenseLabels(deep, config.classes)
        self.labelled = labelled
        self.dense: tuple[int, ...] = ()

    def parser(self, header: bytes | None) -> IdxParser:
        """Return a parser for an object with this first record; see ``Format``."""
        assert header is not None, "what items are says the first record"
        found = IdxHeader.decode(header)
        shape = (1, *found.shape) if len(found.shape) == 2 else found.shape
        if self.dense and shape != self.dense:
            raise DataError(
                f"its items are {shape_text(shape)} numbers, but those of the first object are "
                f"{shape_text(self.dense)}",
                hint="learn them apart, or make them alike",
            )
        if self.labelled and not found.labelled:
            if not found.labels:
                raise DataError(
                    "there are no labels: its name has no images-idx3, which would be labels-idx1 "
                    "in that of their file",
                    hint="call the files train-images-idx3-ubyte and train-labels-idx1-ubyte",
                )
            raise DataError(
                f"there are no labels: there is no {found.labels}", hint="put them beside it"
            )
        self.dense = shape
        return IdxParser(self, found)

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Say what is wrong with a record, expected and actual."""
        if reason == _LABEL:
            label = np.frombuffer(unstuff(record), "<f8", 1)[0]
            return f"label {label:g} is not {self.labels.expected}"
        if reason == _NUMBER:
            return f"number {arg} of the item is infinite"
        if reason == _TOO_LONG:
            return f"record of {arg} bytes is longer than the {RECORD_BYTES_MAX} allowed"
        assert reason == _SYNTAX, reason
        return f"the record is damaged: it makes {arg} bytes, expected those of one item"


class IdxParser:
    """Parses blocks of one object.

    It has working space of its own: no two may parse.

    Parameters
    ----------
    source : IdxFormat
    header : IdxHeader
    """

    def __init__(self, source: IdxFormat, header: IdxHeader) -> None:
        self._source = source
        self._dtype = np.dtype(IDX_TYPES[header.type])
        self._unsigned = header.type == "ubyte"
        self._shape = source.dense
        self._size = LABEL_BYTES + self._dtype.itemsize * int(np.prod(header.shape))
        rows = min(max(_CHUNK_BYTES // self._size, 1), _CHUNK_ROWS_MAX)
        self._data: U8 = np.empty((rows, self._size), np.uint8)
        self._starts: I64 = np.empty(rows, np.int64)
        self._sizes: I64 = np.empty(rows, np.int64)

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; see ``Parser``.

        Raises
        ------
        DataError
            ``out`` was made before the shape was known.
        """
        if start >= end:
            return start
        assert buffer[end - 1] == ord("\n"), "the last record is not complete"
        if out.shape != self._shape:
            raise DataError(
                f"items are {shape_text(self._shape)} numbers, which was not known when learning "
                "began",
                hint="is the first object one that cannot be read?",
            )
        at = start
        while at < end and not out.full:
            room = min(out.rows_max - out.rows, out.rows_max - out.bad, len(self._starts))
            count, at = unstuff_records(
                buffer, at, end, self._data[:room], self._starts[:room], self._sizes[:room]
            )
            self._append(int(count), out)
        return int(at)

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Describe nothing: there are no features; see ``Parser``."""
        return nothing_described()

    def _append(self, count: int, out: Minibatch) -> None:
        data, sizes = self._data[:count], self._sizes[:count]
        reasons = np.where(sizes == self._size, 0, _SYNTAX).astype(np.int32)
        arguments = np.maximum(sizes, 0)
        labels: F64 = np.zeros(count)
        if self._source.labelled:
            labels = data[:, :LABEL_BYTES].view("<f8")[:, 0].astype(np.float64)
            reasons[(reasons == 0) & ~self._source.labels.fit(labels)] = _LABEL
        items: NDArray[Any] = data[:, LABEL_BYTES:].view(self._dtype)
        if self._dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                items = items.astype(np.float32)
            infinite = np.isinf(items)
            wrong = (reasons == 0) & infinite.any(axis=1)
            reasons[wrong] = _NUMBER
            arguments[wrong] = infinite[wrong].argmax(axis=1)
        good = add_rows(out, self._starts[:count], labels, reasons, arguments)
        into = out.dense[out.rows - len(good) : out.rows]
        items = items if len(good) == count else items[good]
        if self._unsigned:
            np.divide(items, np.float32(255), out=into, dtype=np.float32)
        else:
            into[:] = items
