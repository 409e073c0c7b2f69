"""Idx files: arrays of numbers as MNIST has them, their labels in a second file beside them.

An idx file begins with two zeros, a byte for the type of its numbers, one for how many dimensions
it has, and the sizes of these (big endian, 32 bits); then come the numbers. The first dimension is
that of the items, which become a record each, with their labels: see :mod:`streamlearn.binary`.

Where the labels are says the name: those of ``train-images-idx3-ubyte.gz`` are in
``train-labels-idx1-ubyte.gz``. They are read whole, before the first item.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

from streamlearn.binary import IDX_TYPES, LABEL_BYTES, IdxHeader, shape_text
from streamlearn.compute.kernels import stuffing
from streamlearn.errors import DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.net.sources.blocks import Offload, settle
from streamlearn.net.sources.compression import CODECS, MAGIC_BYTES, Inflater, recognise
from streamlearn.net.sources.source import Store, StoredObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LABELS_BYTES_MAX",
    "IdxUnpacker",
    "Labels",
    "StoreWithNeighbours",
    "is_labels",
    "labels_uri",
    "read_labels",
]

# A file of labels, plain: they are held in memory while their items are read.
LABELS_BYTES_MAX: Final = 64 << 20

_STEP_BYTES: Final = 256 << 10
_TYPES: Final = {
    0x08: "ubyte", 0x09: "byte", 0x0B: "short", 0x0C: "int", 0x0D: "float", 0x0E: "double",
}  # fmt: skip
_DIMENSIONS_MAX: Final = 4
_ITEMS: Final = re.compile(r"images([-._])idx\d")
_LABELS: Final = re.compile(r"labels[-._]idx1")


@runtime_checkable
class StoreWithNeighbours(Protocol):
    """A store that can read an object by its URI, whether or not that was asked for."""

    async def beside(self, uri: str) -> StoredObject | None:
        """Describe an object of the same place; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of an object.

    Attributes
    ----------
    uri : str
        Where they are, or were looked for; empty: the object's name does not tell.
    data : bytes or None
        The plain file; None where there is none.
    """

    uri: str = ""
    data: bytes | None = None


def labels_uri(uri: str) -> str:
    """Return where the labels of an object are; empty where its name does not tell."""
    folder, slash, name = uri.rpartition("/")
    found = _ITEMS.search(name)
    if found is None:
        return ""
    return f"{folder}{slash}{name[: found.start()]}labels{found[1]}idx1{name[found.end() :]}"


def is_labels(uri: str) -> bool:
    """Say whether an object has the labels of another one, by its name."""
    return _LABELS.search(uri.rpartition("/")[2]) is not None


async def read_labels(store: Store, uri: str, compression: str, offload: Offload) -> Labels:
    """Return the labels of an object, from the store that it is in.

    Parameters
    ----------
    compression : str
        Name of a codec, or ``none``; empty: as their first bytes show.

    Raises
    ------
    DataError
        There are more than :data:`LABELS_BYTES_MAX` bytes, or they are damaged.
    SourceError
        As the store says.
    """
    beside = labels_uri(uri)
    if not beside or not isinstance(store, StoreWithNeighbours):
        return Labels(beside)
    stored = await store.beside(beside)
    if stored is None:
        return Labels(beside)
    data = await _whole(store, stored)
    codec = CODECS.get(compression or recognise(data[:MAGIC_BYTES]))
    if codec is not None:
        data = await settle(offload(_inflated, Inflater(codec, beside), data, beside))
    return Labels(beside, data)


async def _whole(store: Store, stored: StoredObject) -> bytes:
    """Read an object from its beginning to its end."""
    data = bytearray()
    step = memoryview(bytearray(_STEP_BYTES))
    while stored.size < 0 or len(data) < stored.size:
        want = _STEP_BYTES if stored.size < 0 else min(_STEP_BYTES, stored.size - len(data))
        count = await store.fetch(stored, len(data), step[:want])
        data += step[:count]
        if len(data) > LABELS_BYTES_MAX:
            raise _too_many(stored.uri)
        if count < want:
            break
    return bytes(data)


def _inflated(inflater: Inflater, data: bytes, uri: str) -> bytes:
    plain = bytearray()
    step = memoryview(bytearray(_STEP_BYTES))
    inflater.give(memoryview(data))
    over = False
    while True:
        count = inflater.fill(step)
        plain += step[:count]
        if len(plain) > LABELS_BYTES_MAX:
            raise _too_many(uri)
        if count < _STEP_BYTES:
            if over:
                break
            inflater.finish()
            over = True
    if inflater.damage is not None:
        raise inflater.damage
    return bytes(plain)


def _too_many(uri: str) -> DataError:
    return DataError(
        f"{uri} has more than the {LABELS_BYTES_MAX:,} plain bytes that labels may have, which are "
        "held in memory",
        hint="split the items and their labels into several files",
    )


class IdxUnpacker:
    """Makes records of an idx object: an :class:`~streamlearn.binary.IdxHeader`, then the items.

    Parameters
    ----------
    uri : str
        The object, for errors.
    labels : Labels
    """

    def __init__(self, uri: str, labels: Labels) -> None:
        self._uri = uri
        self._labels = labels
        self._rest = b""
        self._begun = False
        self._items = self._made = 0  # items there should be, and were so far
        self._size = 0  # bytes of one
        self._values: NDArray[Any] | None = None  # labels, where there are some

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes complete."""
        self._rest += data
        if not self._begun:
            head_bytes = _head_bytes(self._rest, self._uri)
            if len(self._rest) < head_bytes:
                return
            head, self._rest = self._rest[:head_bytes], self._rest[head_bytes:]
            self._begun = True
            yield self._begin(head) + b"\n"
        if self._made < self._items and len(self._rest) >= self._size:
            yield self._next()
        if self._made == self._items and self._rest:
            raise DataError(
                f"{self._uri} has bytes behind the {self._items:,} items that it says it has",
                hint="all of those have been read",
            )

    def finish(self) -> Iterator[bytes]:
        """Raise DataError where items are missing."""
        if not self._begun:
            raise DataError(f"{self._uri} ends after {len(self._rest)} bytes, within its header")
        if self._made < self._items:
            raise DataError(
                f"{self._uri} ends after {self._made:,} items, but says that it has "
                f"{self._items:,}",
                hint="those have been read; fetch it anew",
            )
        return iter(())

    def _begin(self, head: bytes) -> bytes:
        type_, shape = _read_head(head)
        self._items, shape = shape[0], shape[1:]
        if not shape:
            images = self._uri.replace("labels-idx1", "images-idx3")
            raise DataError(
                f"{self._uri} has numbers without a shape (idx1), as labels are, expected items "
                "of 1 to 3 dimensions",
                hint="name the file that they are the labels of"
                + (f": {images}" if images != self._uri else ""),
            )
        self._size = np.dtype(IDX_TYPES[type_]).itemsize * math.prod(shape)
        line_bytes = stuffing.stuffed_bytes_max(LABEL_BYTES + self._size)
        if self._size == 0 or line_bytes > RECORD_BYTES_MAX:
            raise DataError(
                f"{self._uri} has items of {shape_text(shape)} {type_}, which are {self._size:,} "
                f"bytes, expected 1 to about {RECORD_BYTES_MAX:,}"
            )
        labels = self._labels
        if labels.data is not None:
            self._values = _read_labels(labels.data, labels.uri)
            if len(self._values) != self._items:
                raise DataError(
                    f"{self._uri} has {self._items:,} items, but {labels.uri} has "
                    f"{len(self._values):,} labels",
                    hint="they belong to each other by their names: fetch both anew",
                )
        return IdxHeader(type_, shape, labels.data is not None, labels.uri).encode()

    def _next(self) -> bytes:
        """Return the records of all items that are complete."""
        count = min(len(self._rest) // self._size, self._items - self._made)
        room = count * (stuffing.stuffed_bytes_max(LABEL_BYTES + self._size) + 1)
        out = np.empty(room, np.uint8)
        labels = np.full(count, np.nan, "<f8")
        if self._values is not None:
            labels[:] = self._values[self._made : self._made + count]
        heads = labels.view(np.uint8).reshape(count, LABEL_BYTES)
        used = stuffing.stuff_items(np.frombuffer(self._rest, np.uint8), self._size, heads, out)
        self._rest = self._rest[count * self._size :]
        self._made += count
        return out[:used].tobytes()


def _head_bytes(data: bytes, uri: str) -> int:
    """Return how long a header is, from its beginning; raises DataError where it is none."""
    if len(data) < 4:
        return 4
    type_, dimensions = data[2], data[3]
    if data[:2] != b"\0\0" or type_ not in _TYPES or not 1 <= dimensions <= _DIMENSIONS_MAX:
        raise DataError(
            f"{uri} is no idx file: it begins with {data[:4].hex(' ')}, expected 00 00, a type "
            f"(08 for ubyte, up to 0e) and 01 to {_DIMENSIONS_MAX:02} dimensions"
        )
    return 4 + 4 * dimensions


def _read_head(head: bytes) -> tuple[str, tuple[int, ...]]:
    sizes = np.frombuffer(head[4:], ">u4")
    return _TYPES[head[2]], tuple(sizes.tolist())


def _read_labels(data: bytes, uri: str) -> NDArray[Any]:
    """Return the numbers of a file of labels."""
    head_bytes = _head_bytes(data, uri)
    if len(data) < head_bytes:
        raise DataError(f"{uri} ends after {len(data)} bytes, within its header")
    type_, shape = _read_head(data[:head_bytes])
    if len(shape) != 1:
        raise DataError(
            f"{uri} has items of {len(shape) - 1} dimensions, expected labels, which have none"
        )
    dtype = np.dtype(IDX_TYPES[type_])
    if len(data) - head_bytes != shape[0] * dtype.itemsize:
        raise DataError(
            f"{uri} has {(len(data) - head_bytes) // dtype.itemsize:,} labels, but says that it "
            f"has {shape[0]:,}",
            hint="fetch it anew",
        )
    return np.frombuffer(data, dtype, offset=head_bytes).astype(np.float64)
