"""Keys, buckets and digits against plain integers."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import njit, uint64

from streamlearn.compute.kernels import bits
from tests.reference import words

SEEDS = st.integers(0, (1 << 63) - 1).map(lambda i: 2 * i + 1)


@njit
def mix(word, seed):
    return bits.mix(word, seed)


@njit
def token_key(address, length, seed):
    return bits.token_key(address, length, seed)


@njit
def log_bucket(value):
    return bits.log_bucket(value)


@njit
def digits_value(word):
    return bits.digits_value(uint64(word))


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, (1 << 64) - 1), SEEDS)
def test_mix_is_the_twins_and_odd(word, seed):
    key = int(mix(np.uint64(word), np.uint64(seed)))
    assert key == words.mix(word, seed)
    assert key % 2 == 1


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=40), st.binary(min_size=16, max_size=16), SEEDS)
def test_a_tokens_key_depends_on_the_token_alone(token, after, seed):
    buffer = np.frombuffer(token + after, np.uint8)
    key = int(token_key(buffer.ctypes.data, len(token), np.uint64(seed)))
    assert key == words.token_key(token, seed)


@settings(deadline=None)  # the first call compiles
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
@example(-0.0)
@example(2.0**-128)
@example(-(2.0**-129))
@example(1e-45)
def test_buckets_are_the_formula(value):
    assert int(log_bucket(np.float32(value))) == words.log_bucket(value)


@pytest.mark.parametrize("sign", [1, -1])
def test_small_integers_have_their_own_buckets_and_the_order_is_kept(sign):
    codes = [int(log_bucket(np.float32(sign * i))) for i in range(1, 1000)]
    assert len(set(codes[:8])) == 8
    assert codes == sorted(codes)
    assert max(codes) < 2048


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 99_999_999))
def test_eight_digits_are_a_number(value):
    word = int.from_bytes(bytes(int(c) for c in f"{value:08d}"), "little")
    assert int(digits_value(np.uint64(word))) == value
