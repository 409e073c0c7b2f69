"""Bucket names say what falls into the bucket."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.online.buckets import BUCKET_TEXT_BYTES_MAX, BUCKETS, bucket_range, bucket_texts
from tests.reference.words import log_bucket


def texts(*, whole: bool) -> list[str]:
    text, ends = bucket_texts(whole=whole)
    assert ends.shape == (BUCKETS,)
    starts = [0, *ends[:-1]]
    return [text[a:b].tobytes().decode() for a, b in zip(starts, ends, strict=True)]


WHOLE = texts(whole=True)
ANY = texts(whole=False)


def test_buckets_of_whole_numbers_have_whole_ends():
    shown = [WHOLE[log_bucket(i)] for i in (0, 1, 7, 8, 9, 13, -1, -13, 2**40)]
    assert shown == [
        "0",
        "1",
        "7",
        "[8, 10)",
        "[8, 10)",
        "[12, 14)",
        "-1",
        "(-14, -12]",
        ("[1099511627776, 1374389534720)"),
    ]


def test_buckets_of_any_numbers_have_any_ends():
    assert [ANY[log_bucket(x)] for x in (0, 1.1, -0.3, 5, 1e30)] == [
        "0",
        "[1, 1.25)",
        "(-0.3125, -0.25]",
        "[5, 6)",
        "[9.50738e+29, 1.10919e+30)",
    ]


@given(st.integers(-(2**53), 2**53))
def test_the_named_range_holds_the_number(value):
    rounded = int(np.float32(value))  # what is put into the bucket
    name = WHOLE[log_bucket(value)]
    if match := re.fullmatch(r"\[(\d+), (\d+)\)", name):
        assert int(match[1]) <= rounded < int(match[2])
    elif match := re.fullmatch(r"\((-\d+), (-\d+)\]", name):
        assert int(match[1]) < rounded <= int(match[2])
    else:
        assert name == str(rounded)


def test_every_bucket_that_a_finite_number_has_is_named_within_the_bound():
    for names in (WHOLE, ANY):
        assert all(0 < len(name) <= BUCKET_TEXT_BYTES_MAX for name in names)
        assert "nan" not in " ".join(names)


@pytest.mark.parametrize("code", [1, 508, 1532, 1019])
def test_ranges_begin_where_the_bucket_does(code):
    near, far = bucket_range(code)
    assert log_bucket(near) == code
    assert not np.isfinite(far) or log_bucket(far) == code + 1
