"""A minibatch: a block of examples in compressed sparse rows, in buffers that are used again.

Parse kernels append to it, solvers read it. Its arrays are allocated once; ``clear()`` only resets
the counters. The counters live in ``state`` (an int64 array) so that kernels can write them.
"""

from __future__ import annotations

import math
from typing import Final, Protocol, Self

import numpy as np

from streamlearn.messages import F32, I32, I64, RECORD_BYTES_MAX, U64

__all__ = [
    "DOCUMENT_ROWS_MAX",
    "FEATURES_PER_RECORD_MAX",
    "REASONS",
    "ROW_WORDS_MAX",
    "S_BAD",
    "S_NNZ",
    "S_RECORDS",
    "S_REPLACED",
    "S_ROWS",
    "S_SPLIT",
    "Layout",
    "Minibatch",
    "room_of",
]

# A record with more features than this is a bad record: it bounds the scratch that kernels keep for
# one example.
FEATURES_PER_RECORD_MAX: Final = 1 << 16

# Words of a row of a document: one less, so that a count of them is a number of 16 bits. A longer
# document has several rows. A record has at most a word for every two of its bytes.
ROW_WORDS_MAX: Final = FEATURES_PER_RECORD_MAX - 1
DOCUMENT_ROWS_MAX: Final = -(-(RECORD_BYTES_MAX // 2) // ROW_WORDS_MAX)

# Indices into ``Minibatch.state``. Kernels receive the array and use the same numbers as literals.
S_ROWS: Final = 0  # examples in the minibatch
S_NNZ: Final = 1  # features in the minibatch
S_BAD: Final = 2  # bad records noted in bad_*
S_RECORDS: Final = 3  # records consumed, good and bad (not blank lines, comments, headers)
# (4 counts examples that were subsampled away)
S_SPLIT: Final = 5  # rows beyond the first of their documents, which were too long for one
S_REPLACED: Final = 6  # documents with bytes that are no text, passed over

# Reason codes that parse kernels write into ``bad_reason``; the names are metric labels and stand
# in ``bad_records.jsonl``. Append only: the numbers are in compiled kernels.
REASONS: Final = (
    "none",  # 0
    "field_count",  # 1: too few or too many fields; bad_arg = the number found
    "label",  # 2: not a label this format or rule allows
    "number",  # 3: not a number, or not finite; bad_field = the column
    "utf8",  # 4: a token is not valid UTF-8
    "too_long",  # 5: longer than RECORD_BYTES_MAX
    "quote",  # 6: an unterminated or misplaced quote
    "syntax",  # 7: not an object / pair / line of this format
    "feature_count",  # 8: more than FEATURES_PER_RECORD_MAX features
    "time",  # 9: not a time; bad_field = the column
    "weight",  # 10: negative or not finite weight
    "word",  # 11: a word's number is beyond the vocabulary
    "image",  # 12: an image or array that cannot be read
    "shape",  # 13: not of the shape that examples have
    "sample",  # 14: lacks its input or its label, or has one twice
)


def room_of(rows: int, features: int, record_rows: int) -> tuple[int, int]:
    """Return rows and features that a minibatch of ``rows`` records needs room for.

    Parameters
    ----------
    features : int
        What it should hold before it is full.
    record_rows : int
        Rows that one record may make (``Format.record_rows``).
    """
    return rows + record_rows - 1, features + record_rows * FEATURES_PER_RECORD_MAX


class Layout(Protocol):
    """What a format has in its minibatches.

    Attributes
    ----------
    has_values : bool
        Whether features carry values.
    record_rows : int
        Rows that one record may make, at most.
    has_fields : bool
        Whether features say of which field they are.
    dense : tuple of int
        Shape of an example's dense part; () where it has none.
    """

    has_values: bool
    record_rows: int
    has_fields: bool
    dense: tuple[int, ...]


class Minibatch:
    """Examples in compressed sparse rows (CSR), with the places of their records in their block.

    Parameters
    ----------
    rows_max : int
        Examples it can hold.
    nnz_max : int
        Features it can hold, over all examples; at least :data:`FEATURES_PER_RECORD_MAX` for each
        row of a record.
    has_values : bool
        Whether features carry values; if not, every value is one and ``values`` is empty.
    record_rows : int
        Rows that one record may make: it is full where there is no room for these.
    has_fields : bool
        Whether features say of which field they are; if not, ``fields`` is empty.
    dense : tuple of int
        Shape of an example's dense part; () where there is none.

    Attributes
    ----------
    keys : uint64[nnz_max]
        Feature keys, never 0 (always odd); those of example ``i`` are ``keys[indptr[i]:indptr[i +
        1]]``.
    values : float32[nnz_max] or float32[0]
    fields : int32[nnz_max] or int32[0]
        Index into ``Format.fields`` of each feature.
    dense : float32[rows_max, d]
        The dense part of each example, flat; NaN where a number is missing. d is 0 where there is
        none.
    shape : tuple of int
        Of one example's dense part.
    indptr : int64[rows_max + 1]
    labels : float32[rows_max]
        0 or 1 for classification.
    weights : float32[rows_max]
        1 where the format has none.
    lines : int64[rows_max]
        Index in the block's buffer of the first byte of each example's record.
    bad_start, bad_reason, bad_field, bad_arg : int64, int32, int32, int64 [rows_max]
        Where each bad record starts in the block's buffer, why (index into :data:`REASONS`), which
        column (-1: none) and a number that goes with the reason (fields found).
    state : int64[8]
        Counters, see ``S_*``.
    """

    __slots__ = (
        "bad_arg",
        "bad_field",
        "bad_reason",
        "bad_start",
        "dense",
        "fields",
        "has_values",
        "indptr",
        "keys",
        "labels",
        "lines",
        "nnz_max",
        "record_rows",
        "rows_max",
        "shape",
        "state",
        "values",
        "weights",
    )

    def __init__(
        self,
        rows_max: int,
        nnz_max: int,
        *,
        has_values: bool,
        record_rows: int = 1,
        has_fields: bool = False,
        dense: tuple[int, ...] = (),
    ) -> None:
        assert rows_max >= record_rows > 0
        assert nnz_max >= record_rows * FEATURES_PER_RECORD_MAX
        self.record_rows = record_rows
        self.rows_max = rows_max
        self.nnz_max = nnz_max
        self.has_values = has_values
        self.keys: U64 = np.zeros(nnz_max, np.uint64)
        self.values: F32 = np.zeros(nnz_max if has_values else 0, np.float32)
        self.fields: I32 = np.zeros(nnz_max if has_fields else 0, np.int32)
        self.shape = dense
        self.dense: F32 = np.zeros((rows_max, math.prod(dense) if dense else 0), np.float32)
        self.indptr: I64 = np.zeros(rows_max + 1, np.int64)
        self.labels: F32 = np.zeros(rows_max, np.float32)
        self.weights: F32 = np.ones(rows_max, np.float32)
        self.lines: I64 = np.zeros(rows_max, np.int64)
        self.bad_start: I64 = np.zeros(rows_max, np.int64)
        self.bad_reason: I32 = np.zeros(rows_max, np.int32)
        self.bad_field: I32 = np.full(rows_max, -1, np.int32)
        self.bad_arg: I64 = np.zeros(rows_max, np.int64)
        self.state: I64 = np.zeros(8, np.int64)

    @classmethod
    def of(cls, layout: Layout, rows_max: int, nnz_max: int) -> Self:
        """Return an empty minibatch for what a format has."""
        return cls(
            rows_max, nnz_max, has_values=layout.has_values, record_rows=layout.record_rows,
            has_fields=layout.has_fields, dense=layout.dense,
        )  # fmt: skip

    def clear(self) -> None:
        """Forget the examples; the buffers stay."""
        self.state[:] = 0
        self.indptr[0] = 0

    @property
    def row_arrays(self) -> tuple[I64, F32, F32, I64, I64, I32, I32, I64, I64]:
        """What parse kernels write beside keys and values, in the order in which they take it."""
        return (
            *(self.indptr, self.labels, self.weights, self.lines),
            *(self.bad_start, self.bad_reason, self.bad_field, self.bad_arg, self.state),
        )

    @property
    def rows(self) -> int:
        """Number of examples."""
        return int(self.state[S_ROWS])

    @property
    def nnz(self) -> int:
        """Number of features over all examples."""
        return int(self.state[S_NNZ])

    @property
    def bad(self) -> int:
        """Number of bad records noted."""
        return int(self.state[S_BAD])

    @property
    def records(self) -> int:
        """Records consumed, good and bad."""
        return int(self.state[S_RECORDS])

    @property
    def full(self) -> bool:
        """Whether the next record might not fit (then parse kernels stop)."""
        return (
            self.rows + self.record_rows > self.rows_max
            or self.bad >= self.rows_max
            or self.nnz + self.record_rows * FEATURES_PER_RECORD_MAX > self.nnz_max
        )
