"""Slow twins of embeddings: how they lie in memory, what they begin with, and one step of AdaGrad.

An embedding is two arrays float32[order - 1, dim]: its coordinates V and their sums of squared
gradients m; where AdaGrad goes by rows, m is float32[1, 1], the sum of their means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.reference.fm import v_init

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.embeddings import Tiers
    from streamlearn.shards.arena import Part
    from streamlearn.shards.table import ExactTable

    F32 = NDArray[np.float32]

LINE = (1 << 48) - 1
GRADIENT_MAX = np.float32(2.0**51)


class Embedding(NamedTuple):
    """V and m, float32[order - 1, dim]; or m float32[1, 1]."""

    V: F32
    m: F32


def laid_out(embedding: Embedding, tiers: Tiers) -> F32:
    """Return an embedding as it lies in memory, zero where nothing belongs."""
    parts, dim = embedding.V.shape
    if tiers.row_sum:
        row = np.zeros(-(-(dim + 1) // 16) * 16, np.float32)
        row[: dim + 1] = [*embedding.V[0], embedding.m.item()]
        return row
    out = np.zeros((-(-dim // tiers.lanes), parts, 2, tiers.lanes), np.float32)
    for part in range(parts):
        for f in range(dim):
            block, lane = divmod(f, tiers.lanes)
            out[block, part, 0, lane] = embedding.V[part, f]
            out[block, part, 1, lane] = embedding.m[part, f]
    return out.reshape(-1)


def taken_apart(memory: F32, dim: int, tiers: Tiers) -> Embedding:
    """Return the embedding that lies in memory; nothing else lies there."""
    if tiers.row_sum:
        out = Embedding(memory[None, :dim].copy(), memory[None, dim : dim + 1].copy())
    else:
        blocks = memory.reshape(-(-dim // tiers.lanes), tiers.parts, 2, tiers.lanes)
        V, m = np.zeros((2, tiers.parts, dim), np.float32)
        for part in range(tiers.parts):
            for f in range(dim):
                block, lane = divmod(f, tiers.lanes)
                V[part, f], m[part, f] = blocks[block, part, :, lane]
        out = Embedding(V, m)
    assert laid_out(out, tiers).tobytes() == memory.tobytes(), "something lies between coordinates"
    return out


def drawn(key: int, parts: int, begin: int, dim: int, scale: Any) -> F32:
    """Return the coordinates ``[begin, dim)`` that a key's embedding begins with."""
    numbers = [[v_init(key, part, f, 1.0) for f in range(begin, dim)] for part in range(parts)]
    return np.array(numbers, np.float32).reshape(parts, dim - begin) * np.float32(scale)


def grown(embedding: Embedding | None, key: int, dim: int, tiers: Tiers, scale: Any) -> Embedding:
    """Return what becomes of a key's embedding where it earns ``dim`` coordinates."""
    if embedding is None:
        sums = (1, 1) if tiers.row_sum else (tiers.parts, 0)
        embedding = Embedding(np.zeros((tiers.parts, 0), np.float32), np.zeros(sums, np.float32))
    new = drawn(key, tiers.parts, embedding.V.shape[1], dim, scale)
    V = np.concatenate([embedding.V, new], axis=1)
    if tiers.row_sum:
        return Embedding(V, embedding.m)
    return Embedding(V, np.concatenate([embedding.m, np.zeros_like(new)], axis=1))


def stepped(embedding: Embedding, gradient: F32, rates: Any, tiers: Tiers) -> Embedding:
    """Return an embedding after a step of the rule that the tiers are for."""
    return (by_row if tiers.row_sum else adagrad)(embedding, gradient, rates)


def by_row(embedding: Embedding, gradient: F32, rates: Any) -> Embedding:
    """Return what :func:`adagrad` does, with one sum for the row.

    Squares are summed in 16 lanes, then halves of those are added up.
    """
    rate, beta, l2 = (np.float32(number) for number in rates[:3])
    V = embedding.V.copy()
    dim = min(V.shape[1], gradient.shape[1])
    if dim == 0:
        return embedding
    slopes = np.clip(gradient[0, :dim], -GRADIENT_MAX, GRADIENT_MAX) + l2 * V[0, :dim]
    lanes = np.zeros(16, np.float32)
    for f, slope in enumerate(slopes):
        lanes[f % 16] += slope * slope
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    m = embedding.m + lanes / np.float32(dim)
    V[0, :dim] -= rate * slopes / (beta + np.sqrt(m[0, 0]))
    return Embedding(V, m)


def adagrad(embedding: Embedding, gradient: F32, rates: Any) -> Embedding:
    """Return an embedding after a step with the gradient of as many coordinates as both have."""
    rate, beta, l2 = (np.float32(number) for number in rates[:3])
    V, m = (array.copy() for array in embedding)
    dim = min(V.shape[1], gradient.shape[1])
    for at in np.ndindex(V.shape[0], dim):
        slope = min(max(gradient[at], -GRADIENT_MAX), GRADIENT_MAX) + l2 * V[at]
        m[at] += slope * slope
        V[at] -= rate * slope / (beta + np.sqrt(m[at]))
    return Embedding(V, m)


def earned(tiers: Tiers, count: int) -> int:
    """Return how many coordinates a count earns."""
    return max((d for c, d in zip(tiers.counts, tiers.dims, strict=True) if count > c), default=0)


def embeddings_of(table: ExactTable) -> dict[int, Embedding]:
    """Return the embeddings that a table's rows have, by key."""
    arena, tiers = table.arena, table.arena.geometry.tiers
    out = {}
    for segment in range(table.segments):
        for key, _, _, word in table.rows(segment).tolist():
            if dim := word >> 48:
                first = (word & LINE) * 16
                out[key] = taken_apart(arena.values[first : first + tiers.floats(dim)], dim, tiers)
            else:
                assert word == 0
    return out


def embeddings_in(part: Part, tiers: Tiers) -> dict[int, Embedding]:
    """Return the embeddings of a part of an exact table, by key."""
    out, at = {}, 0
    for key, _, _, word in part.rows.tolist():
        assert word & LINE == 0, "a row outside a table names a place"
        if dim := word >> 48:
            size = tiers.floats(dim)
            out[key] = taken_apart(part.vectors[at : at + size], dim, tiers)
            at += size
    assert at == len(part.vectors)
    return out


def as_bytes(embeddings: dict[int, Embedding]) -> dict[int, bytes]:
    """Return embeddings as what can be compared."""
    return {key: one.V.tobytes() + one.m.tobytes() for key, one in embeddings.items()}


def check_arena(table: ExactTable) -> None:
    """Assert what holds between two calls: each embedding on lines of its own, the rest clear."""
    arena, tiers = table.arena, table.arena.geometry.tiers
    assert arena.values.ctypes.data % 64 == 0
    for segment in range(table.segments):
        first, end = arena.lines(segment, int(arena.used[segment]))
        _, beyond = arena.lines(segment, int(arena.geometry.layout[4]))
        assert first < end <= beyond
        taken: list[int] = []
        for word in table.rows(segment)[:, 3].tolist():
            if dim := word >> 48:
                assert dim in tiers.dims
                taken += range(word & LINE, (word & LINE) + tiers.lines(dim))
        assert len(set(taken)) == len(taken) == arena.live[segment]
        assert all(first < line < end for line in taken), "an embedding is outside its segment"
        assert not arena.values[first * 16 : first * 16 + 16].any(), "the first line was given"
        assert not arena.values[end * 16 : beyond * 16].any(), "something lies behind what is used"
    assert (arena.used[table.segments :] == 1).all()
    assert not arena.live[table.segments :].any()
    assert arena.nbytes == arena.live.sum() * 64
