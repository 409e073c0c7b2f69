"""Marks: how far a partition has been applied, and what was seen of it; and what all messages are.

Workers push marks, shards keep them and say them (:mod:`streamlearn.protocol`).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

__all__ = [
    "COLUMN_BYTES_MAX",
    "ENTRIES_MAX",
    "MARKS",
    "NAME_BYTES_MAX",
    "AnyMark",
    "ClassMark",
    "Column",
    "Count",
    "Mark",
    "Name",
    "RatingMark",
    "Told",
]

NAME_BYTES_MAX: Final = 4096
COLUMN_BYTES_MAX: Final = 1 << 28
ENTRIES_MAX: Final = 1 << 20

Name: TypeAlias = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Column: TypeAlias = Annotated[memoryview, Meta(max_length=COLUMN_BYTES_MAX)]


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A message: positional fields behind its tag."""


class Mark(Told, frozen=True, tag=1):
    """How far a partition has been applied, and what was seen of it up to there.

    Attributes
    ----------
    partition, version : str
        ``Partition.name`` and ``Partition.version``.
    epoch : int
        Pass over the source, from 0.
    sequence : int
        Minibatches of this pass applied, from 1 for the first.
    offset, records : int
        As in ``Position``: where the next minibatch begins.
    done : bool
        Whether the partition is applied to its end.
    examples, bad_records, subsampled, bytes, stored_bytes : int
        Sums over the partition, all passes.
    weight, loss, label, prediction : float
        Sums of example weights, weighted losses, labels and predictions, all passes.
    """

    partition: Name
    version: Name
    epoch: Count
    sequence: Count
    offset: Count
    records: Count
    done: bool = False
    examples: Count = 0
    bad_records: Count = 0
    subsampled: Count = 0
    bytes: Count = 0
    stored_bytes: Count = 0
    weight: float = 0.0
    loss: float = 0.0
    label: float = 0.0
    prediction: float = 0.0


class RatingMark(Mark, frozen=True, tag=2):
    """A mark of a model with squared loss: ``loss`` and ``absolute_error`` are of ratings.

    Attributes
    ----------
    absolute_error, label_square : float
        Further sums: of weighted absolute errors and squares of labels, all passes.
    """

    absolute_error: float = 0.0
    label_square: float = 0.0


class ClassMark(Mark, frozen=True, tag=3):
    """A mark of a model of classes: ``loss`` is in nats.

    Attributes
    ----------
    correct : float
        A further sum: of the weights of examples whose class was predicted, all passes.
    """

    correct: float = 0.0


AnyMark: TypeAlias = Mark | RatingMark | ClassMark
# By ``config.loss_of``: the marks that workers push.
MARKS: Final[dict[str, type[AnyMark]]] = {
    "logistic": Mark,
    "squared": RatingMark,
    "likelihood": Mark,
    "classes": ClassMark,
}
