"""The kernels of residuals beside a dictionary of places."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.compute.kernels.residuals import add, keep

DIM = 4


class Twin:
    """By place: key, length, and what is held."""

    def __init__(self, bits: int, parts: int) -> None:
        self.shift = 64 - bits
        self.parts = parts
        self.places: dict[int, tuple[int, int, list[np.float32]]] = {}

    def add(self, keys: list[int], dims: list[int], gradients: np.ndarray) -> None:
        at = 0
        for key, dim in zip(keys, dims, strict=True):
            held = self.places.get(key >> self.shift, (0, 0, []))
            for c in range(dim * self.parts):
                if held[:2] == (key, dim):
                    gradients[at] += held[2][c]
                at += 1

    def keep(self, keys: list[int], dims: list[int], rest: np.ndarray) -> None:
        at = 0
        for key, dim in zip(keys, dims, strict=True):
            end = at + dim * self.parts
            if dim:
                self.places[key >> self.shift] = (key, dim, list(rest[at:end]))
            at = end


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("bits", [1, 4, 12])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_what_is_held_is_the_twins(count: int, bits: int, parts: int) -> None:
    rng = np.random.default_rng(count)
    twin = Twin(bits, parts)
    held, lengths = np.zeros(1 << bits, np.uint64), np.zeros(1 << bits, np.int64)
    residuals = np.zeros((1 << bits, DIM * parts), np.float32)
    shift = np.uint64(64 - bits)
    vocabulary = rng.integers(0, 1 << 63, 80, np.uint64) << np.uint64(1) | np.uint64(1)
    for _ in range(12):
        keys = np.sort(rng.choice(vocabulary, count, replace=False))
        dims = rng.choice([0, 2, DIM], count).astype(np.int64)
        wanted = rng.normal(size=int(dims.sum()) * parts).astype(np.float32)
        decoded = rng.normal(size=wanted.size).astype(np.float32)
        ours, theirs = wanted.copy(), wanted.copy()
        add(held, lengths, residuals, shift, keys, dims, parts, ours)
        twin.add(keys.tolist(), dims.tolist(), theirs)
        np.testing.assert_array_equal(ours, theirs)
        keep(held, lengths, residuals, shift, keys, dims, parts, ours, decoded)
        twin.keep(keys.tolist(), dims.tolist(), ours - decoded)
        assert {i: int(key) for i, key in enumerate(held.tolist()) if key} == {
            place: key for place, (key, _, _) in twin.places.items()
        }
