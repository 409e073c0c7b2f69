from __future__ import annotations

import math
import struct
from itertools import combinations

import numpy as np
import pytest

from streamlearn import columns
from streamlearn.columns import (
    BYTE,
    FLOAT16,
    FLOAT32,
    SPARSE,
    Residuals,
    decode_counts,
    decode_keys,
    decode_lengths,
    decode_values,
    encode_counts,
    encode_keys,
    encode_lengths,
    encode_values,
    signature,
    unsent,
)
from streamlearn.errors import ColumnError
from tests.reference import columns as twin

TOP = (1 << 64) - 1
TYPES = [FLOAT32, FLOAT16, BYTE]
CODINGS = [*TYPES, *(SPARSE | kind for kind in TYPES)]
COUNTS = [0, 1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 513, 1500]


def mixed_keys(count, seed=0, low=0, high=TOP):
    rng = np.random.default_rng(seed)
    keys = np.zeros(0, np.uint64)
    while keys.size < count:
        more = rng.integers(low, high, count, np.uint64, endpoint=True) | np.uint64(1)
        keys = np.unique(np.concatenate([keys, more]))
    return np.sort(rng.permutation(keys)[:count])


def heavy_tailed(count, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) * np.exp(2 * rng.standard_normal(count))
    return values.astype(np.float32)


def sparse(count, seed=0, share=0.9):
    values = heavy_tailed(count, seed)
    values[np.random.default_rng(seed + 1).random(count) < share] = 0
    return values


# --- the bytes themselves, for ever: they stand in logs -------------------------------------------

KEYS = [1, 0x0123456789ABCDEF, 0x8000000000000001, TOP]
KEYS_HEX = (
    "38"  # 56 bits a field
    "00000000000000 f7e6d5c4b3a291 00000000000000 ffffffffffffff"
    "0300000000000000 0400000000000000 0400000000000000"
)
VALUES = [0, 1, -2.5, 0, 3e-5, 1000.123, 0, -0.75]
VALUES_HEX = {
    FLOAT32: "00000000 0000803f 000020c0 00000000 82a8fb37 df077a44 00000000 000040bf",
    FLOAT16: "0000 003c 00c1 0000 f701 d063 0000 00ba",
    BYTE: "7b 00 28 b2 00 00 78 00 a4",
    SPARSE | FLOAT32: "b600000000000000 0000803f 000020c0 82a8fb37 df077a44 000040bf",
    SPARSE | FLOAT16: "b600000000000000 003c 00c1 f701 d063 00ba",
    SPARSE | BYTE: "b600000000000000 7b 28 b2 00 78 a4",
}
COUNTED = [1, 0, 2, 255, 256, 70000, 1]
COUNTED_HEX = "3e00000000000000 00 01 fe ff ff 00010000 70110100"


def test_keys_have_the_bytes_that_they_always_had():
    data = bytes.fromhex(KEYS_HEX)
    assert encode_keys(np.array(KEYS, np.uint64), 0).tobytes() == data
    assert decode_keys(data, 4, 0, TOP).tolist() == KEYS
    assert signature(data) == 0x203EA55B1D90BC4D


@pytest.mark.parametrize("coding", CODINGS)
def test_values_have_the_bytes_that_they_always_had(coding):
    values, data = np.array(VALUES, np.float32), bytes.fromhex(VALUES_HEX[coding])
    assert encode_values(values, coding, 42).tobytes() == data
    assert (
        decode_values(data, 8, coding).tolist()
        == {
            FLOAT32: values.tolist(),
            FLOAT16: values.astype(np.float16).tolist(),
            BYTE: [0, 1, -2.5, 0, 0, 1024, 0, -0.75],
        }[coding & ~SPARSE]
    )


def test_counts_have_the_bytes_that_they_always_had():
    data = bytes.fromhex(COUNTED_HEX)
    assert encode_counts(np.array(COUNTED, np.uint32)).tobytes() == data
    assert decode_counts(data, 7).tolist() == COUNTED


def test_lengths_have_the_bytes_that_they_always_had():
    dims = np.array([0, 8, 16, 0, 0, 8, 64, 0, 0, 8])
    several, one = (
        bytes.fromhex("6602000000000000 00 01 00 02 00"),
        bytes.fromhex("6602000000000000"),
    )
    assert encode_lengths(dims, (8, 16, 64)).tobytes() == several
    assert decode_lengths(several, 10, (8, 16, 64)).tolist() == dims.tolist()
    assert encode_lengths(np.minimum(dims, 8), (8,)).tobytes() == one
    assert decode_lengths(one, 10, (8,)).tolist() == np.minimum(dims, 8).tolist()


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("low", "high"), [(0, TOP), (77 << 56, (78 << 56) - 1), (1, 9999)])
def test_keys_are_the_twins_bytes_and_come_back(count, low, high):
    keys = mixed_keys(count, count, low, high)
    data = encode_keys(keys, low)
    assert data.tobytes() == twin.keys_bytes(keys.tolist(), low)
    assert twin.bytes_keys(data.tobytes(), count, low) == keys.tolist()
    got = decode_keys(data, count, low, high)
    assert got.dtype == np.uint64
    assert got.tolist() == keys.tolist()


@pytest.mark.parametrize("low", [0, 1, 6, 7])
def test_every_small_set_of_keys_comes_back(low):
    universe = range(low | 1, low + 14, 2)
    for count in range(len(universe) + 1):
        for keys in combinations(universe, count):
            data = encode_keys(np.array(keys, np.uint64), low)
            assert decode_keys(data, count, low, low + 14).tolist() == list(keys)
            assert data.tobytes() == twin.keys_bytes(keys, low)


@pytest.mark.parametrize("keys", [[1], [TOP], [1, TOP], [1, 3, TOP - 2, TOP], [TOP - 2, TOP]])
def test_keys_at_the_ends_of_the_range_come_back(keys):
    data = encode_keys(np.array(keys, np.uint64), 0)
    assert data.tobytes() == twin.keys_bytes(keys, 0)
    assert decode_keys(data, len(keys), 0, TOP).tolist() == keys


def test_keys_close_together_and_one_far_away_come_back():
    keys = np.append(np.arange(1, 40001, 2, dtype=np.uint64), np.uint64(TOP))
    assert (decode_keys(encode_keys(keys, 0), keys.size, 0, TOP) == keys).all()


def test_keys_of_a_minibatch_cost_less_than_six_and_a_half_bytes():
    keys = mixed_keys(25_000)
    assert encode_keys(keys, 0).size < 6.3 * keys.size


@pytest.mark.parametrize(
    ("keys", "low"),
    [
        ([1, 1], 0),
        ([5, 3], 0),
        ([2], 0),
        ([1, 4], 0),
        ([1, 4, 7], 0),
        ([1], 2),
        ([1, 9], 5),
        ([5, 3, 9], 0),
    ],
)
def test_keys_that_are_not_sorted_odd_and_in_the_range_are_not_encoded(keys, low):
    with pytest.raises(ValueError, match="keys must be odd, strictly increasing and at least"):
        encode_keys(np.array(keys, np.uint64), low)


def test_no_keys_are_no_bytes_and_nothing_else():
    assert decode_keys(b"", 0, 0, TOP).size == 0
    with pytest.raises(ColumnError, match="no keys has 1 bytes"):
        decode_keys(b"\0", 0, 0, TOP)
    with pytest.raises(ColumnError, match="0 bytes cannot hold 1 keys"):
        decode_keys(b"", 1, 0, TOP)


def key_column(width, fields, ones, words=None):
    """A key column as nobody would write it: fields' bits and set bits of the bitmap as given."""
    bits = ["0"] * (64 * (words or max(ones) // 64 + 1))
    for one in ones:
        bits[one] = "1"
    low = "".join(twin.field_bits(field, width) for field in fields)
    return bytes([width]) + twin.bit_bytes(low, 1) + twin.bit_bytes("".join(bits), 8)


@pytest.mark.parametrize(
    ("data", "count", "reason"),
    [
        (key_column(3, [1, 2], [0, 1]) + b"\0", 2, "not 2 fields of 3 bits and whole words"),
        (key_column(3, [1, 2], [0, 1])[:-1], 2, "not 2 fields of 3 bits and whole words"),
        (key_column(3, [1, 2], [0, 1])[:2], 2, "not 2 fields of 3 bits and whole words"),
        (key_column(3, [1, 2], [0, 1])[:1], 2, "not 2 fields of 3 bits and whole words"),
        (key_column(57, [1], [0]), 1, "fields have 57 bits"),
        (b"\xff" * 40, 4, "fields have 255 bits"),
        (key_column(3, [1, 2], [0, 1], 2), 2, "does not have 2 bits and end with the last"),
        (key_column(3, [1, 2], [0]), 2, "does not have 2 bits"),
        (key_column(3, [1, 2], [0, 1, 5]), 2, "does not have 2 bits"),
        (key_column(3, [1, 2], [], 1), 2, "does not have 2 bits"),
        (key_column(3, [2, 1], [0, 1]), 2, "not strictly increasing"),
        (key_column(3, [2, 2], [0, 1]), 2, "not strictly increasing"),
        (key_column(3, [0, 0, 0, 2, 1], [0, 2, 4, 6, 7]), 5, "not strictly increasing"),
        (key_column(3, [1, 2], [0, 9]), 2, "above 127"),
        (key_column(3, [1, 7], [0, 8]), 2, None),
        (key_column(3, [1, 7], [0, 200]), 2, "above 127"),
        (key_column(56, [1, 7], [0, 60]), 2, "above 127"),
        (key_column(0, [0, 0], [3, 65]), 2, "above 127"),
        (key_column(0, [0, 0], [3, 64]), 2, None),
        (key_column(6, [63, 0], [0, 2]), 2, "above 127"),
        (key_column(3, [1, 10], [0, 1]), 2, None),
    ],
)
def test_key_column_that_is_not_right_is_refused(data, count, reason):
    if reason is None:
        assert decode_keys(data, count, 0, 127).tolist() == twin.bytes_keys(data, count, 0)
        return
    with pytest.raises(ColumnError, match=reason):
        decode_keys(data, count, 0, 127)


def test_key_column_with_bits_behind_its_fields_is_refused():
    data = bytearray(key_column(3, [1, 2], [0, 1]))
    data[1] |= 0x40
    with pytest.raises(ColumnError, match="bits behind its last field"):
        decode_keys(data, 2, 0, TOP)


@pytest.mark.parametrize("count", [-1, 1, 3, 64, 65, 1 << 20, 1 << 62, (1 << 63) - 1, 1 << 70])
def test_count_of_keys_that_lies_is_refused(count):
    data = encode_keys(np.array([3, 5], np.uint64), 0)
    with pytest.raises(ColumnError):
        decode_keys(data, count, 0, TOP)


def test_keys_of_another_shard_are_refused():
    keys = mixed_keys(100, 0, 128 << 56, TOP)
    data = encode_keys(keys, 0)
    with pytest.raises(ColumnError, match="a key is above"):
        decode_keys(data, 100, 0, (128 << 56) - 1)
    with pytest.raises(ColumnError, match="a key is above"):
        decode_keys(data, 100, 0, int(keys[-1]) - 1)
    assert (decode_keys(data, 100, 0, int(keys[-1])) == keys).all()
    with pytest.raises(ColumnError, match="there are no keys from 4 to 4"):
        decode_keys(data, 100, 4, 4)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.asarray])
def test_columns_are_read_from_anything_that_has_bytes(kind):
    keys = mixed_keys(10)
    data = encode_keys(keys, 0)
    given = kind(data) if kind is np.asarray else kind(data.tobytes())
    assert (decode_keys(given, 10, 0, TOP) == keys).all()
    assert signature(given) == signature(data)


def test_columns_are_read_wherever_they_stand_in_a_message():
    keys, values = mixed_keys(100), sparse(100)
    for coding in CODINGS:
        for data, read in (
            (encode_keys(keys, 0), lambda column: decode_keys(column, 100, 0, TOP)),
            (encode_values(values, coding), lambda c, how=coding: decode_values(c, 100, how)),
        ):
            body = memoryview(b"xyz" + data.tobytes() + b"end")[3:-3]
            assert (read(body) == read(data)).all()


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", [heavy_tailed, sparse, lambda count: np.zeros(count, np.float32)])
@pytest.mark.parametrize("coding", CODINGS)
def test_values_come_back_as_their_coding_promises(coding, make, count):
    values = make(count)
    data = encode_values(values, coding, 7)
    got = decode_values(data, count, coding)
    assert got.dtype == np.float32
    kind = coding & ~SPARSE
    if kind == FLOAT32:
        assert got.tobytes() == values.tobytes()
    elif kind == FLOAT16:
        assert (got == values.astype(np.float16).astype(np.float32)).all()
    else:
        rest = np.flatnonzero(values) if coding & SPARSE else np.arange(count)
        for block in range(0, rest.size, 256):
            where = rest[block : block + 256]
            exponent = twin.base_exponent(values[where].tolist())
            for at in where:
                assert float(got[at]) in twin.neighbours(float(values[at]), exponent)


@pytest.mark.parametrize("count", COUNTS)
def test_values_are_laid_out_as_the_twin_says(count):
    values = sparse(count)
    assert encode_values(values, FLOAT32).tobytes() == struct.pack(f"<{count}f", *values)
    halves = encode_values(values, FLOAT16).tobytes()
    assert halves == values.astype("<f2").tobytes()
    assert encode_values(values, SPARSE | FLOAT32).tobytes() == twin.sparse_bytes(values.tolist())
    data = encode_values(values, BYTE, 3)
    blocks = -(-count // 256)
    assert data.size == blocks + count
    assert data[:blocks].tolist() == [
        twin.base_exponent(values[at : at + 256].tolist()) for at in range(0, count, 256)
    ]
    assert decode_values(data, count, BYTE).tolist() == twin.bytes_floats(data.tobytes(), count)


def test_every_byte_of_a_block_means_what_the_twin_says():
    codes = bytes(range(256))
    for exponent in range(4, 241):
        got = decode_values(bytes([exponent]) + codes, 256, BYTE)
        assert np.isfinite(got).all()
        if exponent in (4, 5, 127, 130, 239, 240):
            assert got.tolist() == twin.bytes_floats(bytes([exponent]) + codes, 256)


def test_numbers_of_the_grid_are_kept_exactly():
    for exponent in (4, 100, 130, 240):
        sizes = np.array(twin.grid(exponent), np.float32)
        values = np.concatenate([sizes, -sizes])
        for seed in range(5):
            assert (decode_values(encode_values(values, BYTE, seed), 256, BYTE) == values).all()


@pytest.mark.parametrize(
    "value", [1e-45, 2.0**-149, 2.0**-126, 1e-38, 1e-30, 1.0, 1.875, 1.8750001, 1.9999999, 3e38]
)
def test_a_block_of_any_magnitude_keeps_its_largest_value_to_an_eighth(value):
    values = np.array([value, -value / 2, 0], np.float32)
    got = decode_values(encode_values(values, BYTE, 5), 3, BYTE)
    step = max(float(values[0]) / 8, 2.0**-126)
    assert abs(float(got[0]) - float(values[0])) <= step
    assert abs(float(got[1]) - float(values[1])) <= step
    assert got[2] == 0


def test_values_beyond_a_coding_become_its_largest():
    most = float(np.finfo(np.float32).max)
    huge = np.array([most, -most, 65504, 65519.9, 65520, 1e6], np.float32)
    halves = decode_values(encode_values(huge, FLOAT16), 6, FLOAT16)
    assert halves.tolist() == [65504, -65504, 65504, 65504, 65504, 65504]
    for seed in range(20):
        got = decode_values(encode_values(huge[:2], BYTE, seed), 2, BYTE)
        assert got.tolist() == [1.875 * 2.0**127, -1.875 * 2.0**127]


def test_every_float16_comes_back_and_ties_go_to_the_even_one():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    assert (decode_values(finite.tobytes(), finite.size, FLOAT16) == finite).all()
    values = finite.astype(np.float32)
    assert encode_values(values, FLOAT16).tobytes() == finite.tobytes()
    bits = values[np.abs(values) < 65504].view(np.uint32)
    for shift in (0xFFF, 0x1000, 0x1001, 0x1FFF):
        between = (bits + np.uint32(shift)).view(np.float32)
        assert encode_values(between, FLOAT16).tobytes() == between.astype("<f2").tobytes()


def test_bytes_are_right_in_the_mean():
    # A value x between neighbours a < b of the grid becomes b with chance p = (x - a) / (b - a): an
    # error of mean 0 and variance (x - a)(b - x) <= (b - a)**2 / 4. The mean over n seeds is then
    # within 6 (b - a) / (2 sqrt(n)) of x but once in 10**9, whatever p; chances come in steps of
    # 2**-20.
    seeds = 4000
    values = heavy_tailed(700, 3)
    mean = np.zeros(700)
    for seed in range(seeds):
        mean += decode_values(encode_values(values, BYTE, seed), 700, BYTE)
    mean /= seeds
    for block in range(0, 700, 256):
        part = values[block : block + 256].tolist()
        exponent = twin.base_exponent(part)
        for value, got in zip(part, mean[block : block + 256], strict=True):
            ends = twin.neighbours(value, exponent)
            gap = max(ends) - min(ends)
            assert abs(got - value) <= gap * (3 / math.sqrt(seeds) + 2.0**-20)


def test_roundings_are_independent_of_one_another():
    # 256 × 64 copies of a value half way between two of the grid: how many go up has a standard
    # deviation of sqrt(n) / 2, and so has how many differ from their neighbour, or from the block
    # before, or from the next seed's.
    count = 256 * 64
    values = np.full(count, 17 / 16, np.float32)
    values[::256] = 1.875
    up = decode_values(encode_values(values, BYTE, 1), count, BYTE) > 17 / 16
    other = decode_values(encode_values(values, BYTE, 2), count, BYTE) > 17 / 16
    free = np.arange(count) % 256 != 0
    bound = 3 * math.sqrt(count)
    n = free.sum()
    assert abs(up[free].sum() - n / 2) < bound
    assert abs((up != other)[free].sum() - n / 2) < bound
    for lag in (1, 2, 255, 256, 257, 512):
        assert abs((up != np.roll(up, lag))[free].sum() - n / 2) < bound
        assert abs((other != np.roll(up, lag))[free].sum() - n / 2) < bound
        assert abs((up != np.roll(other, lag))[free].sum() - n / 2) < bound


def test_a_retry_sends_the_same_bytes_and_another_seed_others():
    values = heavy_tailed(1000)
    first = encode_values(values, BYTE, 5).tobytes()
    assert encode_values(values.copy(), BYTE, 5).tobytes() == first
    assert encode_values(values, BYTE, 6).tobytes() != first
    for seed in (-1, 1 << 63, (1 << 64) + 5):
        encode_values(values, BYTE, seed)
    assert encode_values(values, BYTE, (1 << 64) + 5).tobytes() == first


@pytest.mark.parametrize("kind", TYPES)
def test_zeros_that_are_left_out_cost_an_eighth_of_a_byte(kind):
    zeros = np.zeros(6400, np.float32)
    assert encode_values(zeros, SPARSE | kind).size == 800
    assert (decode_values(bytes(800), 6400, SPARSE | kind) == 0).all()


def test_values_that_are_rows_or_read_only_are_taken():
    values = heavy_tailed(128)
    values.flags.writeable = False
    for coding in CODINGS:
        data = encode_values(values, coding, 1).tobytes()
        assert encode_values(values.reshape(16, 8), coding, 1).tobytes() == data
        assert encode_values(np.repeat(values, 2)[::2], coding, 1).tobytes() == data


def test_values_are_written_where_they_are_wanted():
    values = sparse(300)
    for coding in CODINGS:
        data = encode_values(values, coding, 1)
        out = np.full(300, np.nan, np.float32)
        assert decode_values(data, 300, coding, out) is out
        assert (out == decode_values(data, 300, coding)).all()
        for wrong in (
            np.empty(299, np.float32),
            np.empty(300, np.float64),
            np.empty((300, 1), np.float32),
            np.empty(600, np.float32)[::2],
        ):
            with pytest.raises(ValueError, match=r"out must be a contiguous float32\[300\]"):
                decode_values(data, 300, coding, wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 255, 256, 699])
def test_values_that_are_not_finite_are_neither_encoded_nor_decoded(bad, at):
    values = heavy_tailed(700)
    values[at] = bad
    for coding in CODINGS:
        with pytest.raises(ValueError, match="a value is NaN or infinite"):
            encode_values(values, coding)
    every = twin.bit_bytes("1" * 700, 8)
    for dtype, coding in (("<f4", FLOAT32), ("<f2", FLOAT16)):
        data = values.astype(dtype).tobytes()
        for head, how in ((b"", coding), (every, SPARSE | coding)):
            with pytest.raises(ColumnError, match="a value is NaN or infinite"):
                decode_values(head + data, 700, how)


@pytest.mark.parametrize("exponent", [0, 1, 3, 241, 255])
def test_base_exponent_out_of_range_is_refused(exponent):
    data = bytearray(encode_values(heavy_tailed(600), BYTE))
    data[2] = exponent
    with pytest.raises(ColumnError, match="base exponent is not from 4 to 240"):
        decode_values(data, 600, BYTE)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("count", [0, 1, 64, 100, 256, 257])
def test_value_column_of_another_length_is_refused(coding, count):
    data = encode_values(heavy_tailed(count), coding).tobytes()
    assert decode_values(data, count, coding).size == count
    for wrong in (data + b"\0", data + bytes(8), *(data[:at] for at in range(len(data)))):
        with pytest.raises(ColumnError):
            decode_values(wrong, count, coding)
    # a bitmap knows its count to within a word: what it has no bit for is zero
    lies = [-1, count + 64, 1 << 20, (1 << 63) - 1]
    for lie in lies if coding & SPARSE else [*lies, count - 1, count + 1]:
        with pytest.raises(ColumnError):
            decode_values(data, lie, coding)


@pytest.mark.parametrize("coding", [-1, 3, 4, 15, 19, 32, 48, 1 << 63])
def test_coding_that_there_is_not_is_refused(coding):
    with pytest.raises(ColumnError, match=f"there is no coding {coding} of values"):
        decode_values(b"", 0, coding)
    with pytest.raises(ValueError, match=f"there is no coding {coding} of values"):
        encode_values(np.zeros(1, np.float32), coding)


@pytest.mark.parametrize("kind", TYPES)
def test_bitmap_with_bits_behind_its_values_is_refused(kind):
    data = bytearray(encode_values(np.ones(3, np.float32), SPARSE | kind))
    data[0] = 0b1011
    with pytest.raises(ColumnError, match="bitmap has bits behind its 3 entries"):
        decode_values(data, 3, SPARSE | kind)
    assert decode_values(data, 4, SPARSE | kind).tolist() == [1, 1, 0, 1]


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
def test_counts_are_the_twins_bytes_and_come_back(count):
    rng = np.random.default_rng(count)
    counts = np.minimum(rng.zipf(1.3, count), (1 << 32) - 1).astype(np.uint32)
    counts[rng.random(count) < 0.1] = 0
    data = encode_counts(counts)
    assert data.tobytes() == twin.counts_bytes(counts.tolist())
    got = decode_counts(data, count)
    assert got.dtype == np.uint32
    assert got.tolist() == counts.tolist()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 254, 255, 256, 257, 65536, (1 << 32) - 1])
def test_count_at_an_edge_comes_back(number):
    counts = np.array([number, 1, number], np.uint32)
    assert decode_counts(encode_counts(counts), 3).tolist() == counts.tolist()


def test_count_column_that_is_not_right_is_refused():
    data = encode_counts(np.array([1, 300, 7], np.uint32)).tobytes()
    for wrong in (data + b"\0", *(data[:at] for at in range(len(data)))):
        with pytest.raises(ColumnError):
            decode_counts(wrong, 3)
    for lie in (-1, 2, 65, 1 << 62):
        with pytest.raises(ColumnError):
            decode_counts(data, lie)
    with pytest.raises(ColumnError, match="a large count is below 256"):
        decode_counts(data[:10] + struct.pack("<I", 255), 3)
    with pytest.raises(ColumnError, match="0 small counts and 0 large ones"):
        decode_counts(bytes(8) + data[8:], 3)
    assert decode_counts(b"", 0).size == 0


# --- signature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*range(70), 127, 128, 129, 1000])
def test_signature_is_the_twins(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert signature(data) == twin.signature(data)


def test_signature_knows_every_bit_and_its_place():
    data = bytearray(encode_keys(mixed_keys(9), 0))
    bits = 8 * len(data)
    seen = {signature(data)}
    for one in range(bits):
        data[one >> 3] ^= 1 << (one & 7)
        seen.add(signature(data))
        for other in range(one):
            data[other >> 3] ^= 1 << (other & 7)
            seen.add(signature(data))
            data[other >> 3] ^= 1 << (other & 7)
        data[one >> 3] ^= 1 << (one & 7)
    assert len(seen) == 1 + bits + bits * (bits - 1) // 2
    assert all(0 <= one < 1 << 64 for one in seen)
    words = [bytes([i]) * 8 for i in range(16)]
    swapped = set()
    for one, two in combinations(range(16), 2):
        order = words.copy()
        order[one], order[two] = order[two], order[one]
        swapped.add(signature(b"".join(order)))
    assert len(swapped) == 120
    assert len({signature(bytes(size)) for size in range(300)}) == 300


# --- lengths --------------------------------------------------------------------------------------

SEVERAL = [(16,), (3, 8, 17), tuple(range(1, 9)), tuple(range(2, 258))]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("lengths", SEVERAL)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_lengths_come_back(count, lengths, share):
    rng = np.random.default_rng(count)
    dims = np.where(rng.random(count) < share, rng.choice(lengths, count), 0)
    data = encode_lengths(dims, lengths)
    assert (decode_lengths(data, count, lengths) == dims).all()
    there = np.count_nonzero(dims)
    words = -(-count // 64) * 8
    assert data.nbytes == (words + there * (len(lengths) > 1) if there else 0)


def test_lengths_of_nothing_are_no_bytes():
    assert encode_lengths(np.zeros(0, np.int64), (8,)).size == 0
    assert encode_lengths(np.zeros(500, np.int64), (8, 16)).size == 0
    assert decode_lengths(b"", 500, (8, 16)).tolist() == [0] * 500
    assert decode_lengths(b"", 0, (8, 16)).tolist() == []


@pytest.mark.parametrize("dims", [[7], [0, 9], [8, 15], [17], [-1], [1 << 40]])
def test_lengths_that_there_are_not_are_not_encoded(dims):
    for lengths in ((8,), (8, 16)):
        with pytest.raises(ValueError, match="an embedding's length is none of"):
            encode_lengths(np.array(dims), lengths)


@pytest.mark.parametrize(
    ("data", "count", "lengths"),
    [
        ("0300000000000000", 3, (8, 16)),  # no lengths
        ("0300000000000000 00", 3, (8, 16)),
        ("0300000000000000 000000", 3, (8, 16)),
        ("0300000000000000 0002", 3, (8, 16)),  # number 2 of 2
        ("0300000000000000 00ff", 3, (8, 16)),
        ("0000000000000000", 3, (8, 16)),  # none, at length
        ("0000000000000000", 3, (8,)),
        ("0300000000000000 00", 3, (8,)),
        ("03000000000000", 3, (8,)),
        ("03", 3, (8,)),
        ("0300000000000000", 1, (8,)),  # bits behind the last
        ("0800000000000000 00", 3, (8, 16)),
        ("0300000000000000", 65, (8,)),
        ("0100000000000000", 0, (8,)),
    ],
)
def test_length_column_that_is_not_right_is_refused(data, count, lengths):
    with pytest.raises(ColumnError):
        decode_lengths(bytes.fromhex(data), count, lengths)


# --- residuals ------------------------------------------------------------------------------------


def test_what_was_sent_and_what_is_held_are_what_was_wanted():
    # Each step adds in float32 what is held (below a quarter of the largest sum, seen once more
    # rounded): an error of at most 2**-24 of the sum at each of the steps.
    rng = np.random.default_rng(0)
    every = mixed_keys(400)
    residuals = Residuals(20)
    wanted = np.zeros(400)
    sent = np.zeros(400)
    largest = 0.0
    steps = 50
    for step in range(steps):
        here = np.flatnonzero(rng.random(400) < 0.5)
        gradients = (heavy_tailed(400, step)[here]).copy()
        wanted[here] += gradients
        residuals.add(every[here], gradients)
        decoded = decode_values(encode_values(gradients, BYTE, step), here.size, BYTE)
        residuals.keep(every[here], gradients, decoded)
        sent[here] += decoded
        largest = max(largest, float(np.abs(gradients).max()))
    held = np.zeros(400, np.float32)
    residuals.add(every, held)
    assert residuals.lost == 0
    assert np.abs(held).max() > 0
    np.testing.assert_allclose(sent + held, wanted, rtol=0, atol=2 * steps * largest * 2.0**-24)


def test_a_dropped_gradient_comes_with_the_next_one():
    keys = mixed_keys(3)
    residuals = Residuals(16)
    weights = np.zeros(3, np.float32)
    gradients = np.array([0.4, -0.4, 2], np.float32)
    for expected in ([0, 0, 2], [0, 0, 2], [1.2, -1.2, 2]):
        wanted = gradients.copy()
        residuals.add(keys, wanted)
        sent = wanted.copy()
        unsent(weights, sent, 1.0, 0.1)
        residuals.keep(keys, wanted, sent)
        np.testing.assert_allclose(sent, expected, rtol=1e-6)


def test_two_keys_of_one_place_never_share_what_is_held():
    residuals = Residuals(1)
    first = np.array([5], np.uint64)
    second = np.array([7], np.uint64)
    one, nothing = np.ones(1, np.float32), np.zeros(1, np.float32)
    residuals.keep(first, one, nothing)
    for key, expected in ((second, 0), (first, 1)):
        gradient = nothing.copy()
        residuals.add(key, gradient)
        assert gradient[0] == expected
    residuals.keep(second, one, one)
    assert residuals.lost == 0
    residuals.keep(second, one, nothing)
    assert residuals.lost == 1
    gradient = nothing.copy()
    residuals.add(first, gradient)
    assert gradient[0] == 0


def test_what_is_held_is_replaced_and_not_added_up():
    residuals = Residuals(4)
    key = np.array([9], np.uint64)
    for rest in (3, 2, 0):
        residuals.keep(key, np.array([rest], np.float32), np.zeros(1, np.float32))
        gradient = np.zeros(1, np.float32)
        residuals.add(key, gradient)
        assert gradient[0] == rest


@pytest.mark.parametrize(
    ("low", "high"), [(0, TOP), (85 << 56, (171 << 56) - 1), (0, 101), (TOP - 1, TOP)]
)
def test_residuals_of_a_range_of_keys_have_a_place_for_each(low, high):
    keys = mixed_keys(min(200, (high - low + 1) // 2), 1, low, high)
    residuals = Residuals(20, low, high)
    rest = np.arange(1, keys.size + 1, dtype=np.float32)
    residuals.keep(keys, rest, np.zeros_like(rest))
    held = np.zeros_like(rest)
    residuals.add(keys, held)
    assert residuals.lost == 0
    assert (held == rest).all()


def test_residuals_take_only_what_they_are_for():
    for bits in (0, 33):
        with pytest.raises(ValueError, match="residuals take 1 to 32 bits"):
            Residuals(bits)
    with pytest.raises(ValueError, match="there are no keys from 5 to 4"):
        Residuals(4, 5, 4)
    residuals = Residuals(4, 10, 20)
    keys, values = np.array([11, 13], np.uint64), np.zeros(2, np.float32)
    for wrong in ([9, 13], [11, 21], [13, 11]):
        with pytest.raises(ValueError, match="not sorted, or not from 10 to 20"):
            residuals.add(np.array(wrong, np.uint64), values)
    for bad in (values[:1], values.astype(np.float64)):
        with pytest.raises(ValueError, match="are not the keys and values of one push"):
            residuals.add(keys, bad)
        with pytest.raises(ValueError, match="are not the keys and values of one push"):
            residuals.keep(keys, values, bad)
    residuals.add(keys[:0], values[:0])


# --- the filter for L1 ----------------------------------------------------------------------------


def test_only_small_gradients_of_zero_weights_are_dropped():
    weights = np.array([0, 0, 0, 0, 0.5, -0.5, -0.0], np.float32)
    gradients = np.array([0.89, -0.89, 0.9, -2, 0.1, 0.1, 0.1], np.float32)
    before = gradients.copy()
    mask = unsent(weights, gradients, 1.0, 0.1)
    assert mask.tolist() == [True, True, False, False, False, False, True]
    assert (gradients == np.where(mask, 0, before)).all()


def test_the_intercept_is_never_dropped():
    weights, gradients = np.zeros(2, np.float32), np.full(2, 0.1, np.float32)
    assert unsent(weights, gradients, 1.0, 0.1, has_intercept=True).tolist() == [False, True]
    assert gradients.tolist() == [np.float32(0.1), 0]


@pytest.mark.parametrize(("l1", "delta"), [(0, 0), (0.5, 0.5), (0.1, 1.0)])
def test_nothing_is_dropped_without_a_margin(l1, delta):
    gradients = np.full(3, 1e-9, np.float32)
    assert not unsent(np.zeros(3, np.float32), gradients, l1, delta).any()
    assert (gradients == np.float32(1e-9)).all()


def test_filter_wants_a_weight_for_each_gradient():
    with pytest.raises(ValueError, match="are not the weights and gradients of one push"):
        unsent(np.zeros(2, np.float32), np.zeros(3, np.float32), 1.0, 0.0)
    with pytest.raises(ValueError, match="are not the weights and gradients of one push"):
        unsent(np.zeros(2, np.float64), np.zeros(2, np.float32), 1.0, 0.0)  # type: ignore[arg-type]


def test_after_warming_up_nothing_is_compiled_any_more():
    from streamlearn.compute.kernels import wire

    columns.warm_up()
    kernels = [getattr(wire, name) for name in wire.__all__]
    compiled = [len(kernel.signatures) for kernel in kernels]
    assert min(compiled) == 1
    keys, values = mixed_keys(70), sparse(70)
    for coding in CODINGS:
        decode_values(encode_values(values, coding, 9).tobytes(), 70, coding)
    decode_keys(bytearray(encode_keys(keys, 0)), 70, 0, TOP)
    signature(b"")
    decode_counts(encode_counts(np.arange(300, dtype=np.uint32)).tobytes(), 300)
    assert [len(kernel.signatures) for kernel in kernels] == compiled
