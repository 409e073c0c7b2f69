"""The best items of many users, exactly: inner products in tiles, and what is above a limit kept.

The score of user u and item i is <p_u, q_i> + b_i. Items stand in *panels* of ``LANES``, number by
number of their factors (``panels[p, f]`` has factor f of items ``LANES * p`` on), so that a tile of
``GROUP`` users and a panel is held in registers: one load and ``GROUP`` multiply-adds a factor. A
tile's scores are compared with each user's limit at once; hardly any is above, and what is goes
into the user's buffer. Where that is full, the n best of it stay, and the least of them is the
limit from then on.

A kept item is one word: its score as an integer of the same order (upper half), and 2**32 - 1 less
its number, so that of equal scores the item with the lower number ranks first. Each score is summed
factor by factor, whatever block of users it is computed in: equal items have equal scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, njit, types, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from streamlearn.compute.kernels.bits import ctz, float_bits

__all__ = ["GROUP", "LANES", "best", "pack_panels", "rank_all"]

LANES = 16
GROUP = 4
# Bytes of panels that are gone through for all users of a block before the next: half a first
# cache.
_CHUNK_BYTES = 16384

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
# Products may be contracted into sums; the order of the sums is kept.
_FLAGS = ("contract",)
_SIGN = np.uint32(0x80000000)
_LOW = np.uint64(0xFFFFFFFF)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    none = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(none, value, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, LANES), [_I32(0)] * LANES)
    return builder.shuffle_vector(one, none, mask)


@intrinsic
def _tile(
    _context: Any, users: Any, panel: Any, biases: Any, limits: Any, dim: Any, scores: Any
) -> Any:
    """Score ``GROUP`` users with a panel; say which scores are above their user's limit.

    Parameters
    ----------
    users, panel, biases, limits, scores : int64
        Addresses: float32[GROUP, dim], float32[dim, LANES], float32[LANES], float32[GROUP],
        float32[GROUP, LANES] (written). Panel, biases and scores on a multiple of 64.
    dim : int64

    Returns
    -------
    int64
        Bit ``LANES * user + item``; NaN is above nothing.
    """

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        users, panel, biases, limits, dim, scores = args

        def vectors(address: ir.Value) -> ir.Value:
            return builder.inttoptr(address, _VECTOR.as_pointer())

        def floats(address: ir.Value) -> ir.Value:
            return builder.inttoptr(address, _F32.as_pointer())

        bias = builder.load(vectors(biases), align=64)
        sums = [cgutils.alloca_once_value(builder, bias) for _ in range(GROUP)]
        row_bytes = builder.shl(dim, _I64(2))
        rows = [floats(builder.add(users, builder.mul(row_bytes, _I64(j)))) for j in range(GROUP)]
        with cgutils.for_range(builder, dim) as loop:
            q = builder.load(builder.gep(vectors(panel), [loop.index]), align=64)
            for row, held in zip(rows, sums, strict=True):
                p = _spread(builder, builder.load(builder.gep(row, [loop.index]), align=4))
                product = builder.fmul(p, q, flags=_FLAGS)
                builder.store(builder.fadd(product, builder.load(held), flags=_FLAGS), held)
        above = _I64(0)
        for j, held in enumerate(sums):
            score = builder.load(held)
            builder.store(score, builder.gep(vectors(scores), [_I64(j)]), align=64)
            limit = builder.load(builder.gep(floats(limits), [_I64(j)]), align=4)
            bits = builder.bitcast(builder.fcmp_ordered(">", score, _spread(builder, limit)), _I16)
            above = builder.or_(above, builder.shl(builder.zext(bits, _I64), _I64(LANES * j)))
        return above

    return types.int64(*[types.int64] * 6), generate


@njit(nogil=True, cache=True, inline="always")
def _word(score, item):
    """Return a score and its item as one word, of their order; -0 ranks as 0."""
    bits = uint32(float_bits(score + float32(0)))
    bits = ~bits if bits & _SIGN else bits | _SIGN
    return (uint64(bits) << uint64(32)) | (_LOW - uint64(item))


@njit(nogil=True, cache=True)
def _keep_best(words, count, n):
    """Move the ``n`` greatest of ``words[:count]``, all different, to the front; return the least.

    Quickselect; O(count) on average.
    """
    low, high = int64(0), count - 1
    while low < high:
        middle = words[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while words[i] > middle:
                i += 1
            while words[j] < middle:
                j -= 1
            if i <= j:
                words[i], words[j] = words[j], words[i]
                i += 1
                j -= 1
        if n - 1 <= j:
            high = j
        elif n - 1 >= i:
            low = i
        else:
            break
    return words[n - 1]


@njit(nogil=True, cache=True)
def pack_panels(factors, panels):
    """Lay items out in panels.

    Parameters
    ----------
    factors : float32[items, dim]
    panels : float32[ceil(items / LANES), dim, LANES]
        Written, but for what is beyond the last item.
    """
    for i in range(factors.shape[0]):
        panel, lane = i // LANES, i % LANES
        for f in range(factors.shape[1]):
            panels[panel, f, lane] = factors[i, f]


@njit(nogil=True, cache=True)
def best(users, count, panels, biases, n, seen_starts, seen, limits, words, fills, at, scores):
    """Find the n best items of each user, but for those that they have seen.

    Parameters
    ----------
    users : float32[rows, dim]
        Factors; ``rows`` is a multiple of ``GROUP``, those from ``count`` on are of nobody.
    count : int64
    panels, biases : float32[panels, dim, LANES], float32[panels * LANES]
        Of the items, on a multiple of 64 bytes; the biases of lanes beyond the last item -inf.
    n : int64
        At least 1.
    seen_starts, seen : int64[count + 1], int32[...]
        ``seen[seen_starts[u]:seen_starts[u + 1]]`` are items of user u, ascending.
    limits : float32[rows]
        Working space.
    words : uint64[count, room]
        room > n: ``words[u, :fills[u]]`` become the best, in no order; :func:`rank_all` says what
        they are.
    fills : int64[count]
        Written: n, or fewer where a user has no more.
    at : int64[count]
        Working space.
    scores : float32[GROUP * LANES]
        Working space, on a multiple of 64 bytes.

    Notes
    -----
    Items whose score is NaN or -inf are nobody's best. O(users * items * dim), and O(n) an item
    that is above a user's limit when it comes: of items in a random order, n log(items / n).
    """
    dim, room = users.shape[1], words.shape[1]
    row_bytes = dim * 4
    user_base, panel_base = int64(users.ctypes.data), int64(panels.ctypes.data)
    bias_base, limit_base = int64(biases.ctypes.data), int64(limits.ctypes.data)
    score_base = int64(scores.ctypes.data)
    for u in range(users.shape[0]):
        limits[u] = float32(-np.inf) if u < count else float32(np.inf)
    for u in range(count):
        fills[u], at[u] = 0, seen_starts[u]
    chunk = max(int64(1), int64(_CHUNK_BYTES) // (row_bytes * LANES))
    for first in range(0, panels.shape[0], chunk):
        last = min(first + chunk, panels.shape[0])
        for group in range(0, count, GROUP):
            for panel in range(first, last):
                above = _tile(
                    user_base + group * row_bytes, panel_base + panel * row_bytes * LANES,
                    bias_base + panel * LANES * 4, limit_base + group * 4, dim, score_base,
                )  # fmt: skip
                while above != 0:
                    bit = int64(ctz(uint64(above)))
                    above &= above - 1
                    u, item = group + bit // LANES, panel * LANES + bit % LANES
                    score = scores[bit]
                    if not score > limits[u]:  # it was raised meanwhile
                        continue
                    while at[u] < seen_starts[u + 1] and seen[at[u]] < item:
                        at[u] += 1
                    if at[u] < seen_starts[u + 1] and seen[at[u]] == item:
                        continue
                    words[u, fills[u]] = _word(score, item)
                    fills[u] += 1
                    if fills[u] == room:
                        least = _keep_best(words[u], room, n)
                        fills[u] = n
                        limits[u] = _score_of(least)
    for u in range(count):
        if fills[u] > n:
            _keep_best(words[u], fills[u], n)
            fills[u] = n


@njit(nogil=True, cache=True, inline="always")
def _score_of(word):
    """Return the score in a word."""
    bits = uint32(word >> uint64(32))
    bits = bits & ~_SIGN if bits & _SIGN else ~bits
    return _float_of(bits)


@intrinsic
def _float_of(_context: Any, bits: Any) -> Any:
    """Return 32 bits as the float that they are."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.uint32), generate


@njit(nogil=True, cache=True)
def rank_all(words, fills, items, scores):
    """Write the items and scores of words that are in order.

    Parameters
    ----------
    words : uint64[users, room]
        Of each user the first ``fills`` count, descending.
    fills : int64[users]
    items, scores : int64[users, n], float32[users, n]
        Written: -1 and NaN beyond ``fills``.
    """
    for u in range(items.shape[0]):
        for k in range(items.shape[1]):
            there = k < fills[u]
            items[u, k] = int64(_LOW - (words[u, k] & _LOW)) if there else int64(-1)
            scores[u, k] = _score_of(words[u, k]) if there else float32(np.nan)
