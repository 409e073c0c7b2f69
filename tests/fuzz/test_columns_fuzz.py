"""Whatever bytes and counts come, a column is decoded or refused by the one documented error."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.columns import (
    BYTE,
    FLOAT16,
    FLOAT32,
    SPARSE,
    decode_counts,
    decode_keys,
    decode_lengths,
    decode_values,
    encode_counts,
    encode_keys,
    encode_lengths,
    encode_values,
    signature,
)
from streamlearn.errors import ColumnError

TOP = (1 << 64) - 1
CODINGS = [kind | flag for kind in (FLOAT32, FLOAT16, BYTE) for flag in (0, SPARSE)]

# Of embeddings: one, so that a bitmap says all, and several.
LENGTHS = [(16,), (1, 2), (4, 8, 64, 512)]

counts = st.one_of(st.integers(0, 80), st.integers(-(1 << 70), 1 << 70))
codings = st.one_of(st.sampled_from(CODINGS), st.integers(-1, 64))
words = st.integers(0, TOP)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def check_keys(data, count, low, high):
    try:
        keys = decode_keys(data, count, low, high)
    except ColumnError:
        return False
    assert keys.size == count
    if count:
        assert low <= int(keys[0]) <= int(keys[-1]) <= high
        assert (keys % 2 == 1).all()
        assert (np.diff(keys.astype(object)) > 0).all()
    return True


def check_values(data, count, coding):
    try:
        values = decode_values(data, count, coding)
    except ColumnError:
        return False
    assert values.size == count
    assert np.isfinite(values).all()
    return True


def check_counts(data, count):
    try:
        got = decode_counts(data, count)
    except ColumnError:
        return False
    assert encode_counts(got).tobytes() == data
    return True


def check_lengths(data, count, lengths):
    if not data and count > 80:  # of no bytes the count is checked by who has other columns
        return False
    try:
        dims = decode_lengths(data, count, lengths)
    except ColumnError:
        return False
    assert dims.size == count
    assert np.isin(dims, (0, *lengths)).all()
    assert encode_lengths(dims, lengths).tobytes() == data
    return True


@given(st.binary(max_size=200), counts, words, words)
@settings(max_examples=500)
def test_any_bytes_are_keys_or_refused(data, count, low, high):
    check_keys(data, count, low, high)
    check_keys(b"\x07" + data, count, low, high)


@given(st.binary(max_size=200), counts, codings)
@settings(max_examples=500)
def test_any_bytes_are_values_or_refused(data, count, coding):
    check_values(data, count, coding)
    check_values(bytes(8) + data, count, coding)


@given(st.binary(max_size=100), counts)
@settings(max_examples=500)
def test_any_bytes_are_counts_or_refused(data, count):
    check_counts(data, count)
    check_counts(b"\3" + bytes(7) + data, count)


@given(st.binary(max_size=100), counts, st.sampled_from(LENGTHS))
@settings(max_examples=500)
def test_any_bytes_are_lengths_or_refused(data, count, lengths):
    check_lengths(data, count, lengths)
    check_lengths(b"\3" + bytes(7) + data, count, lengths)


@given(st.data(), st.sampled_from(LENGTHS))
def test_any_lengths_come_back(data, lengths):
    dims = data.draw(st.lists(st.sampled_from((0, *lengths)), max_size=300))
    encoded = encode_lengths(np.array(dims, np.int64), lengths)
    assert decode_lengths(encoded, len(dims), lengths).tolist() == dims
    assert encoded.size <= 8 * -(-len(dims) // 64) + len(dims)


@given(st.sets(words.map(lambda key: key | 1), max_size=200), st.integers(0, 70))
def test_any_keys_come_back(keys, spare):
    ordered = sorted(keys)
    low = max(0, (ordered[0] if ordered else 0) - spare)
    data = encode_keys(np.array(ordered, np.uint64), low)
    assert decode_keys(data, len(ordered), low, TOP).tolist() == ordered


@given(st.lists(floats, max_size=600), st.sampled_from(CODINGS), words)
def test_any_values_come_back_near_enough(values, coding, seed):
    given_values = np.array(values, np.float32)
    data = encode_values(given_values, coding, seed)
    got = decode_values(data, given_values.size, coding)
    if coding & ~SPARSE == FLOAT32:
        assert (got == given_values).all()
    else:
        assert (got * np.sign(given_values) >= 0).all()
    again = decode_values(encode_values(got, coding, seed), got.size, coding)
    if coding & ~SPARSE == FLOAT16:
        assert (again == got).all()


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=200))
def test_any_counts_come_back(numbers):
    data = encode_counts(np.array(numbers, np.uint32))
    assert decode_counts(data, len(numbers)).tolist() == numbers


@given(st.binary(max_size=300), st.integers(0, 299), st.integers(1, 255))
def test_a_changed_byte_changes_the_signature(data, at, change):
    if data:
        other = bytearray(data)
        other[at % len(data)] ^= change
        assert signature(other) != signature(data)


MUTATIONS = 20_000


def mutate(rng, data):
    """Return bytes with a bit flipped, a run overwritten, cut, extended or moved."""
    kind = rng.integers(6)
    at = int(rng.integers(data.size + 1))
    if kind == 0 and data.size:
        data[at % data.size] ^= 1 << rng.integers(8)
    elif kind == 1:
        run = data[at : at + int(rng.integers(1, 12))]
        run[:] = rng.integers(0, 256, run.size, np.uint8)
    elif kind == 2:
        data = data[:at]
    elif kind == 3:
        data = np.concatenate([data, rng.integers(0, 256, int(rng.integers(1, 20)), np.uint8)])
    elif kind == 4:
        data = np.roll(data, int(rng.integers(-9, 10)))
    else:
        data = np.delete(data, slice(at, at + int(rng.integers(1, 9))))
    return data


def test_mutated_columns_are_decoded_or_refused():
    rng = np.random.default_rng(11)
    decoded = refused = 0
    for _ in range(MUTATIONS // 20):
        count = int(rng.integers(0, 150))
        keys = np.unique(rng.integers(0, TOP >> int(rng.integers(56)), count, np.uint64) | 1)
        values = rng.standard_normal(count).astype(np.float32)
        values[rng.random(count) < 0.5] = 0
        coding = CODINGS[int(rng.integers(len(CODINGS)))]
        lengths = LENGTHS[int(rng.integers(len(LENGTHS)))]
        dims = rng.choice((0, *lengths), count)
        occurrences = np.minimum(rng.zipf(1.4, count), 1 << 31).astype(np.uint32)
        for data, check, size in (
            (encode_keys(keys, 0), lambda d, n: check_keys(d, n, 0, TOP), keys.size),
            (encode_values(values, coding), lambda d, n, c=coding: check_values(d, n, c), count),
            (encode_counts(occurrences), check_counts, count),
            (encode_lengths(dims, lengths), lambda d, n, c=lengths: check_lengths(d, n, c), count),
        ):
            for _ in range(7):
                wrong = mutate(rng, data.copy()).tobytes()
                lie = size + int(rng.integers(-2, 3)) * (rng.random() < 0.3)
                if check(wrong, int(lie)):
                    decoded += 1
                else:
                    refused += 1
    assert decoded + refused >= MUTATIONS
    assert decoded > MUTATIONS // 50
    assert refused > MUTATIONS // 4
