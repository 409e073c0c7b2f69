"""Matrices and frames that are in memory already, to compressed sparse rows of keys and values.

The key of column ``j`` is ``mix(j, seed)`` as svmlight has it, or one given for each column. Zeros
are absent features.
"""

from __future__ import annotations

from numba import float32, int64, njit, uint64

from streamlearn.compute.kernels.bits import mix, token_key

__all__ = ["column_keys", "raw_keys", "take_cells", "take_csr", "take_dense", "token_keys"]


@njit(nogil=True, cache=True)
def take_csr(data, indices, indptr, columns, seed, keys, values, out_indptr):
    """Write rows of a CSR matrix as a minibatch.

    Parameters
    ----------
    data, indices : float32[nnz], int64[nnz]
        Values and columns, no column twice in a row.
    indptr : int64[rows + 1]
        From 0.
    columns : uint64[d] or uint64[0]
        Key of each column; empty: ``mix(column, seed)``.
    seed : uint64
    keys, values, out_indptr : uint64[>= nnz], float32[>= nnz], int64[rows + 1]
        Written.

    Returns
    -------
    int64
        Features written: those that are not 0.
    """
    at = int64(0)
    out_indptr[0] = 0
    named = columns.shape[0] > 0
    for r in range(indptr.shape[0] - 1):
        for j in range(indptr[r], indptr[r + 1]):
            column = uint64(indices[j])
            keys[at] = columns[column] if named else mix(column, seed)
            values[at] = data[j]
            at += int64(data[j] != float32(0))
        out_indptr[r + 1] = at
    return at


@njit(nogil=True, cache=True)
def take_dense(cells, order, columns, keys, values, out_indptr):
    """Write rows of a dense matrix as a minibatch.

    Parameters
    ----------
    cells : float32[rows, d]
    order : int64[d]
        In which order columns become features.
    columns : uint64[d]
        Key of each column, in that order.
    keys, values, out_indptr : uint64[>= nnz + 1], float32[>= nnz + 1], int64[rows + 1]
        Written; ``nnz`` counts what is not 0.

    Returns
    -------
    int64
        Features written.
    """
    at = int64(0)
    out_indptr[0] = 0
    for r in range(cells.shape[0]):
        for j in range(order.shape[0]):
            value = cells[r, order[j]]
            keys[at] = columns[j]
            values[at] = value
            at += int64(value != float32(0))
        out_indptr[r + 1] = at
    return at


@njit(nogil=True, cache=True)
def take_cells(cell_keys, cells, keys, values, out_indptr):
    """Write rows of cells that have a key each as a minibatch, features in the order of their keys.

    Parameters
    ----------
    cell_keys, cells : uint64[rows, d], float32[rows, d]
        No key twice in a row, but for cells that are 0.
    keys, values, out_indptr
        As in :func:`take_dense`.

    Returns
    -------
    int64
        Features written.

    Notes
    -----
    Sorts each row by insertion: O(d^2), for frames of tens of columns.
    """
    at = int64(0)
    out_indptr[0] = 0
    for r in range(cells.shape[0]):
        first = at
        for j in range(cells.shape[1]):
            value = cells[r, j]
            if value == float32(0):
                continue
            key = cell_keys[r, j]
            i = at
            while i > first and keys[i - 1] > key:
                keys[i] = keys[i - 1]
                values[i] = values[i - 1]
                i -= 1
            keys[i] = key
            values[i] = value
            at += 1
        out_indptr[r + 1] = at
    return at


@njit(nogil=True, cache=True)
def token_keys(text, ends, seed, keys):
    """Compute the keys of tokens of one field.

    Parameters
    ----------
    text : uint8[n]
        The tokens one after the other, and 8 bytes more.
    ends : int64[k]
        Where each token ends.
    seed : uint64
    keys : uint64[k]
        Written.
    """
    base = int64(text.ctypes.data)
    start = int64(0)
    for i in range(ends.shape[0]):
        keys[i] = token_key(base + start, ends[i] - start, seed)
        start = ends[i]


@njit(nogil=True, cache=True)
def column_keys(seed, keys):
    """Write the keys of columns 0, 1, ... under a seed, uint64[d]."""
    for j in range(keys.shape[0]):
        keys[j] = mix(uint64(j), seed)


@njit(nogil=True, cache=True)
def raw_keys(seeds, keys):
    """Write the key of a number with a value for each field's seed, uint64[d]."""
    for j in range(keys.shape[0]):
        keys[j] = mix(uint64(0), seeds[j])
