"""Pooling: what a net sees of each example's features, by field, and its gradient by key.

Of row r and field f, over its features j (of key i = inverse[j]; value x_j, or 1 without values):

    wide[r, f]       = sum_j w_i x_j
    embeddings[r, f] = sum_j x_j V_i               / n_rf  where the mean is asked for

with n_rf the number of the field's features in the row. That is ``nn.EmbeddingBag``: a key that
has no embedding yet stands in the sum, and in n_rf, as one of zeros. (EmbeddingBag refuses to take
the mean of features with values; here it is that of x_j V_i.) Weights are summed in either case, as
a linear model's are. The gradients are the transposes:

    dw_i = sum_rf sum_j x_j dwide[r, f],    dV_i = sum_rf sum_j x_j dembeddings[r, f] [/ n_rf]

Embeddings come back to back, as a pull has them; sums are taken in the order of the features.
"""

from __future__ import annotations

from numba import float32, int64, njit, uint32

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.steps import GRADIENT_MAX, cut

__all__ = ["MOST", "bag", "gather", "place", "scatter", "spread", "take"]

# Features ahead whose embeddings are prefetched: those of a minibatch are a few megabytes.
AHEAD = 16
# What no gradient exceeds.
MOST = GRADIENT_MAX


@njit(nogil=True, cache=True)
def place(dims, places):
    """Write where each key's embedding begins among those that came back to back.

    Parameters
    ----------
    dims : int64[u]
        Coordinates of each; 0: none.
    places : int64[u]
        Written.

    Returns
    -------
    int64
        The sum of ``dims``.
    """
    at = int64(0)
    for i in range(dims.shape[0]):
        places[i] = at
        at += dims[i]
    return at


@njit(nogil=True, cache=True, error_model="numpy")
def gather(
    inverse, fields, values, indptr, rows, weights, vectors, places, dims, mean, counts, wide,
    embeddings,
):  # fmt: skip
    """Pool weights and embeddings of each row's features by field.

    Parameters
    ----------
    inverse, fields : int32[nnz], int32[nnz]
        Of each feature its key's index, and its field.
    values : float32[nnz] or [0]
        All ones where it is empty.
    indptr : int64[rows + 1]
    rows : int64
    weights : float32[u]
    vectors : float32[sum of dims]
        Embeddings back to back.
    places, dims : int64[u], int64[u]
        Of :func:`place`; at most the last dimension of ``embeddings``: what is beyond is zero.
    mean : int64
        Not 0: of embeddings the mean over the field's features, else the sum.
    counts : int64[fields]
        Scratch.
    wide : float32[>= rows, fields] or [0, 0]
        Written, where it is wanted.
    embeddings : float32[>= rows, fields, dim] or [0, 0, 0]
        Written, where it is wanted.

    Notes
    -----
    O(rows * fields * dim + nnz * dim). A NaN or infinity among what was pulled stays one.
    """
    plain = values.shape[0] == 0
    is_wide, is_deep = wide.shape[1] > 0, embeddings.shape[2] > 0
    end_of_all = indptr[rows]
    memory = int64(vectors.ctypes.data)
    for r in range(rows):
        first, end = indptr[r], indptr[r + 1]
        if is_wide:
            row_wide = wide[r]
            row_wide[:] = float32(0)
            for j in range(first, end):
                x = float32(1) if plain else values[j]
                row_wide[uint32(fields[j])] += weights[uint32(inverse[j])] * x
        if is_deep:
            row = embeddings[r]
            row[:] = float32(0)
            for j in range(first, end):
                ahead = uint32(inverse[min(j + AHEAD, end_of_all - 1)])
                prefetch(memory + (places[ahead] << 2))
                i = uint32(inverse[j])
                x = float32(1) if plain else values[j]
                dim, at = dims[i], places[i]
                to, source = row[uint32(fields[j])], vectors[at : at + dim]
                for c in range(dim):
                    to[c] += x * source[c]
            if mean != 0:
                counts[:] = 0
                for j in range(first, end):
                    counts[uint32(fields[j])] += 1
                for f in range(counts.shape[0]):
                    if counts[f] > 1:
                        share = float32(1) / float32(counts[f])
                        to = row[f]
                        for c in range(to.shape[0]):
                            to[c] *= share


@njit(nogil=True, cache=True, error_model="numpy")
def scatter(
    inverse, fields, values, indptr, rows, d_wide, d_embeddings, places, dims, mean, counts,
    d_weights, d_vectors,
):  # fmt: skip
    """Sum the gradients of what :func:`gather` pooled by key.

    Parameters
    ----------
    inverse, fields, values, indptr, rows, places, dims, mean, counts
        As for :func:`gather`.
    d_wide, d_embeddings : float32[>= rows, fields] or [0, 0], float32[>= rows, fields, dim] or
        [0, 0, 0]
        Empty: none, and what belongs to it is zeros.
    d_weights : float32[u]
        Written.
    d_vectors : float32[sum of dims]
        Written. Both are cut at 2**51, so that their squares are numbers.
    """
    plain = values.shape[0] == 0
    is_wide, is_deep = d_wide.shape[1] > 0, d_embeddings.shape[2] > 0
    d_weights[:] = float32(0)
    d_vectors[:] = float32(0)
    end_of_all = indptr[rows]
    memory = int64(d_vectors.ctypes.data)
    for r in range(rows):
        first, end = indptr[r], indptr[r + 1]
        if is_wide:
            row_wide = d_wide[r]
            for j in range(first, end):
                x = float32(1) if plain else values[j]
                d_weights[uint32(inverse[j])] += row_wide[uint32(fields[j])] * x
        if is_deep:
            row = d_embeddings[r]
            if mean != 0:
                counts[:] = 0
                for j in range(first, end):
                    counts[uint32(fields[j])] += 1
            for j in range(first, end):
                ahead = uint32(inverse[min(j + AHEAD, end_of_all - 1)])
                prefetch(memory + (places[ahead] << 2))
                i, f = uint32(inverse[j]), uint32(fields[j])
                x = float32(1) if plain else values[j]
                if mean != 0:
                    x /= float32(counts[f])
                dim, at = dims[i], places[i]
                to, source = d_vectors[at : at + dim], row[f]
                for c in range(dim):
                    to[c] += x * source[c]
    for i in range(d_weights.shape[0]):
        d_weights[i] = cut(d_weights[i])
    for i in range(d_vectors.shape[0]):
        d_vectors[i] = cut(d_vectors[i])


@njit(nogil=True, cache=True)
def bag(inverse, fields, values, indptr, rows, n_fields, members, xs, offsets):
    """Order each row's features by field: bags as ``torch.nn.functional.embedding_bag`` takes them.

    Parameters
    ----------
    inverse, fields, values, indptr, rows
        As for :func:`gather`.
    n_fields : int64
    members : int32[nnz]
        Written: ``inverse`` in that order; of one field in the order that they have.
    xs : float32[nnz] or [0]
        Written: ``values`` in that order.
    offsets : int32[rows * n_fields + 1]
        Written: where the bag of row r and field f begins, at ``r * n_fields + f``; nnz last.
    """
    plain = values.shape[0] == 0
    for r in range(rows):
        first, end = indptr[r], indptr[r + 1]
        base = r * n_fields
        for f in range(n_fields):
            offsets[base + f] = 0
        for j in range(first, end):
            offsets[base + fields[j]] += 1
        at = first
        for f in range(n_fields):
            count = offsets[base + f]
            offsets[base + f] = at
            at += count
        # each bag's begin moves to its end meanwhile, and back
        for j in range(first, end):
            to = offsets[base + fields[j]]
            members[to] = inverse[j]
            if not plain:
                xs[to] = values[j]
            offsets[base + fields[j]] = to + 1
        for f in range(n_fields - 1, 0, -1):
            offsets[base + f] = offsets[base + f - 1]
        if n_fields > 0:
            offsets[base] = first
    offsets[rows * n_fields] = indptr[rows]


@njit(nogil=True, cache=True)
def spread(vectors, places, dims, out):
    """Lay embeddings out a row each, zeros beyond their coordinates.

    ``out`` is float32[u, dim], ``vectors`` as for :func:`gather`.
    """
    for i in range(dims.shape[0]):
        row, dim = out[i], dims[i]
        source = vectors[places[i] : places[i] + dim]
        for c in range(dim):
            row[c] = source[c]
        for c in range(dim, row.shape[0]):
            row[c] = float32(0)


@njit(nogil=True, cache=True)
def take(rows, places, dims, out):
    """Take back to back what :func:`spread` laid out (float32[u, dim]), cut at 2**51."""
    for i in range(dims.shape[0]):
        row, to = rows[i], out[places[i] : places[i] + dims[i]]
        for c in range(dims[i]):
            to[c] = cut(row[c])
