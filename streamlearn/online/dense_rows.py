"""Rows of minibatches whose examples have no features, but a dense part alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamlearn.online.formats import Described
from streamlearn.online.minibatch import S_BAD, S_NNZ, S_RECORDS, S_ROWS

if TYPE_CHECKING:
    from streamlearn.messages import F64, I32, I64
    from streamlearn.online.minibatch import Minibatch

__all__ = ["add_rows", "nothing_described"]


def add_rows(out: Minibatch, starts: I64, labels: F64, reasons: I32, arguments: I64) -> I64:
    """Append records to a minibatch, all but the dense parts of the good ones.

    Parameters
    ----------
    starts : int64[n]
        Where each begins in the block's buffer.
    labels : float64[n]
    reasons, arguments : int32[n], int64[n]
        What is wrong with each, 0 where nothing is.

    Returns
    -------
    int64[g]
        Places of the good ones: their dense parts are the last ``g`` rows.
    """
    good, bad = np.flatnonzero(reasons == 0), np.flatnonzero(reasons)
    first, last = out.rows, out.rows + len(good)
    out.labels[first:last] = labels[good]
    out.weights[first:last] = 1
    out.lines[first:last] = starts[good]
    out.indptr[first + 1 : last + 1] = out.state[S_NNZ]
    to = slice(out.bad, out.bad + len(bad))
    out.bad_start[to] = starts[bad]
    out.bad_reason[to] = reasons[bad]
    out.bad_field[to] = -1
    out.bad_arg[to] = arguments[bad]
    out.state[S_ROWS] = last
    out.state[S_BAD] += len(bad)
    out.state[S_RECORDS] += len(starts)
    return good


def nothing_described() -> Described:
    """Return the description of records without features."""
    return Described(
        np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint8)
    )
