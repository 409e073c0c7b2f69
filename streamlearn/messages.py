"""The vocabulary that crosses parts: frozen values that every package may name.

Nothing here decides anything, touches a socket or owns memory, but for :class:`Block`, whose buffer
belongs to whoever holds the block until ``release()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NewType, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK_HEADROOM_BYTES",
    "BLOCK_TAILROOM_BYTES",
    "F32",
    "F64",
    "I32",
    "I64",
    "RECORD_BYTES_MAX",
    "U8",
    "U32",
    "U64",
    "BadRecord",
    "Block",
    "Judged",
    "Partition",
    "Position",
    "Progress",
    "SegmentId",
]

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]

SegmentId = NewType("SegmentId", int)

# The longest record (line) taken; a longer one is a bad record. One MiB holds a JSON event of any
# sane logger, and it is also the room kept in front of a block's data for the unfinished record of
# the block before.
RECORD_BYTES_MAX = 1 << 20
BLOCK_HEADROOM_BYTES = RECORD_BYTES_MAX
# Parse kernels load 64 bytes at a time and may look this far past the end of the data.
BLOCK_TAILROOM_BYTES = 128


@dataclass(frozen=True, slots=True)
class Partition:
    """A replayable piece of a source: one object, or a byte range of a large plain one.

    A record belongs to the range in which its first byte lies.

    Attributes
    ----------
    uri : str
        Where the object is, as a user would write it (``s3://bucket/key``, an absolute path,
        ``-``).
    start, end : int
        Byte range ``[start, end)`` of the *plain* (decompressed) bytes; ``end`` is -1 for "to the
        end", which is the only value for compressed objects.
    version : str
        What pins the content: an ETag, or ``size-mtime`` of a file. Empty where nothing can pin it
        (stdin).
    size : int
        Bytes of the object as stored (compressed), -1 where unknown.
    modified_seconds : float
        When the object was last modified, since the epoch; 0 where unknown.
    """

    uri: str
    start: int = 0
    end: int = -1
    version: str = ""
    size: int = -1
    modified_seconds: float = 0.0

    @property
    def name(self) -> str:
        """Stable name of the partition: the URI, with the range where there is one."""
        whole = self.start == 0 and self.end < 0
        return self.uri if whole else f"{self.uri}#{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class Position:
    """Where to resume in a partition: after this many plain bytes and records.

    Attributes
    ----------
    offset : int
        Plain (decompressed) byte offset in the *object* (not in the range) of the first record not
        yet learned.
    records : int
        Records of this partition before ``offset``, good or bad, headers not counted.
    done : bool
        Whether the partition has been learned to its end.
    """

    offset: int = 0
    records: int = 0
    done: bool = False


@dataclass(slots=True)
class Block:
    """A run of plain bytes of one partition, in a buffer with room before and after.

    ``buffer[start:end]`` are the bytes; ``buffer[:start]`` is at least :data:`BLOCK_HEADROOM_BYTES`
    long, so that the unfinished record of the block before can be put in front without a copy of
    the block, and at least :data:`BLOCK_TAILROOM_BYTES` may be read (and one newline written) after
    ``end``.

    Attributes
    ----------
    buffer : uint8[n]
    start, end : int
        The data within ``buffer``.
    offset : int
        Plain byte offset in the object of ``buffer[start]``.
    last : bool
        Whether the partition ends with this block (it may be empty).
    stored_bytes : int
        Bytes read from storage for this block (compressed size), for progress and metrics.
    release : callable
        Gives the buffer back to its pool; call once, when nothing looks at the buffer any more.
    """

    buffer: U8
    start: int
    end: int
    offset: int
    last: bool
    stored_bytes: int
    release: Callable[[], None] = field(repr=False)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that was skipped, as it is kept in ``bad_records.jsonl``.

    Attributes
    ----------
    uri : str
        The object.
    offset : int
        Plain byte offset of the record's first byte in the object.
    reason : str
        Short machine-readable reason, of a bounded set (a metric label): ``field_count``,
        ``label``, ``number``, ``utf8``, ``too_long``, ``quote``, ``syntax``, ``feature_count``,
        ``image`` and others (``online.minibatch.REASONS``).
    detail : str
        Human sentence with expected and actual (``label 'x7' is not 0 or 1``).
    record : bytes
        The record as it came, without its newline; cut at :data:`RECORD_BYTES_MAX`.
    """

    uri: str
    offset: int
    reason: str
    detail: str
    record: bytes


class Judged(TypedDict):
    """What progressive validation gives to :class:`Progress`."""

    measure: str
    loss: float
    loss_window: float
    baseline_loss: float
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is, as the progress view, ``/status`` and the metrics show it.

    Made at most a few times a second.

    Attributes
    ----------
    state : str
        ``compiling``, ``learning``, ``following``, ``draining``, ``done``, ``failed``.
    detail : str
        What it is doing in words (``compiling kernels 3/7``, ``reading s3://…``); may be empty.
    seconds : float
        Wall time since the start of this process's run.
    examples, bad_records, bytes, stored_bytes : int
        Cumulative over the run (also before a resume); ``bytes`` are plain bytes learned from.
    bytes_done, bytes_total : int
        Stored bytes of this run's partitions done and in all, for the ETA; total is -1 where the
        end is unknown.
    examples_per_second, bytes_per_second : float
        Over the last few seconds.
    weight : float
        Sum of example weights.
    measure : str
        What ``loss`` is: ``logloss``, or ``rmse`` where the model learns ratings.
    loss, loss_window, baseline_loss : float
        Progressive validation, cumulative unless ``_window``; NaN where nothing is known yet.
    figures : mapping of str to float
        What else the model is judged by: ``auc``, ``auc_window``, ``calibration`` and
        ``normalized_entropy``; of ratings ``mae`` and ``mae_window``. NaN as above.
    last_label, last_prediction : float
        Of the last example; NaN if none.
    last_features : int
    features : int
        Rows in the table.
    event_seconds : float
        Event time of the last example since the epoch, where the format has one; else NaN.
    """

    state: str
    detail: str
    seconds: float
    examples: int
    bad_records: int
    bytes: int
    stored_bytes: int
    bytes_done: int
    bytes_total: int
    examples_per_second: float
    bytes_per_second: float
    weight: float
    measure: str
    loss: float
    loss_window: float
    baseline_loss: float
    figures: Mapping[str, float]
    last_label: float
    last_prediction: float
    last_features: int
    features: int
    event_seconds: float

    def told(self) -> dict[str, Any]:
        """Return all of it by name, the figures beside the rest and the loss by its own name, too.

        As it is written in JSON lines, and served.
        """
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "figures"}
        own = {self.measure: self.loss, f"{self.measure}_window": self.loss_window}
        return told | own | dict(self.figures)
