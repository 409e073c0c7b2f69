"""What the kernels of columns promise by themselves; their formats are tested with ``columns``."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamlearn.compute.kernels import wire

GUARD = 0xA5


def guarded(size):
    """Return a zeroed uint8[size] and a check that nothing around it was written."""
    whole = np.full(size + 128, GUARD, np.uint8)
    whole[64 : 64 + size] = 0

    def intact():
        return (whole[:64] == GUARD).all() and (whole[64 + size :] == GUARD).all()

    return whole[64 : 64 + size], intact


@pytest.mark.parametrize("width", range(57))
def test_keys_of_every_width_are_written_within_their_bytes(width):
    rng = np.random.default_rng(width)
    for count in (1, 2, 7, 8, 65):
        steps = np.unique(rng.integers(0, count << width, count, np.uint64))
        keys = steps * np.uint64(2) + np.uint64(5)
        words = ((int(steps[-1]) >> width) + keys.size + 63) >> 6
        out, intact = guarded(1 + -(-keys.size * width // 8) + 8 * words)
        assert wire.pack_keys(keys, np.uint64(5), width, out)
        assert intact()
        got = np.empty(keys.size, np.uint64)
        last = np.uint64(steps[-1])
        assert wire.unpack_keys(out, keys.size, np.uint64(5), last, got) == 0
        assert (got == keys).all()
        if last:
            low = last - np.uint64(1)
            assert wire.unpack_keys(out, keys.size, np.uint64(5), low, got) == 2


def test_keys_that_are_not_right_leave_the_bytes_alone():
    for keys in ([5, 5], [7, 5], [5, 8], [3, 7], [4]):
        out, intact = guarded(64)
        assert not wire.pack_keys(np.array(keys, np.uint64), np.uint64(5), 4, out)
        assert intact()
        assert not out.any()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 300])
def test_bitmaps_and_bytes_are_written_within_their_bytes(size):
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size).astype(np.float32)
    values[rng.random(size) < 0.5] = 0
    bitmap, bitmap_intact = guarded(8 * -(-size // 64))
    packed = np.full(size + 2, np.nan, np.float32)
    kept = wire.drop_zeros(values, bitmap, packed)
    assert kept == np.count_nonzero(values) == wire.count_bits(bitmap, bitmap.size // 8)
    assert bitmap_intact()
    assert np.isnan(packed[size + 1])
    spread = np.full(size + 2, np.nan, np.float32)
    wire.expand_zeros(bitmap, packed, spread[:size])
    assert (spread[:size] == values).all()
    assert np.isnan(spread[size:]).all()
    out, intact = guarded(-(-size // 256) + size)
    assert wire.pack_bytes(values, values.view(np.uint32), np.uint64(1), out)
    assert intact()
    counts = rng.integers(0, 400, size).astype(np.uint32)
    small, small_intact = guarded(size + 1)
    large = np.full(size + 2, 7, np.uint32)
    smalls, larges = wire.pack_counts(counts, bitmap, small, large)
    assert small_intact()
    assert bitmap_intact()
    assert large[size + 1] == 7
    assert (smalls, larges) == (np.count_nonzero(counts != 1), np.count_nonzero(counts > 255))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(size):
    numbers = np.ones(size, np.float32)
    assert wire.finite(numbers.view(np.uint32))
    for bad in (math.nan, math.inf, -math.inf):
        for at in {0, size // 2, size - 1}:
            numbers[at] = bad
            assert not wire.finite(numbers.view(np.uint32))
            assert not wire.halve(numbers, np.empty(size, np.uint16))
            assert not wire.unhalve(
                numbers.astype(np.float16).view(np.uint16), np.empty(size, np.float32)
            )
            out = np.empty(-(-size // 256) + size, np.uint8)
            assert not wire.pack_bytes(numbers, numbers.view(np.uint32), np.uint64(0), out)
            numbers[at] = 1


def test_a_key_that_has_no_place_of_its_own_is_held_in_another_ones():
    # a place is taken modulo the entries: whatever keys come, nothing outside is touched
    held, residuals = np.zeros(4, np.uint64), np.zeros(4, np.float32)
    keys = np.array([3, 9, 1 << 63], np.uint64)
    rest, none = np.array([1, 2, 3], np.float32), np.zeros(3, np.float32)
    zero = np.uint64(0)
    assert wire.keep_residuals(held, residuals, zero, zero, keys, rest, none) == 0
    assert held.tolist() == [1 << 63, 9, 0, 3]
    got = none.copy()
    wire.add_residuals(held, residuals, zero, zero, keys, got)
    assert got.tolist() == [1, 2, 3]
    assert wire.keep_residuals(held, residuals, zero, zero, keys + np.uint64(4), rest, none) == 3
