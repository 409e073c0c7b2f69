"""The ratings kernel on plausible logs: every alignment, few bytes to spare; keys of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import ratings as kernels
from streamlearn.config import SourceConfig
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.online.features import field_seed
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.ratings import RatingsFormat, RatingsParser
from tests.reference import ratings as reference
from tests.reference.words import token_key

TOKENS = [b"1", b"12345678", b"123456789", b"x" * 63, b"y" * 64, "é€".encode(), b"a:b", b"7" * 40]
RATINGS = [b"5", b"4.5", b"0", b"-1", b"3.25", b"1e-3", b"10"]
TIMES = [b"978300760", b"1700000000000", b"", b"12", b"2001-01-01T00:01", b"1700000000.5"]
WRONG = [b"\xff", b"", b"nan", b"4.", b"x"]


def log(seed: int, records: int, separator: bytes, quoted: float) -> bytes:
    """Make records of three or four fields; some are quoted, some bad."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(records):
        fields = [some[rng.integers(len(some))] for some in (TOKENS, TOKENS, RATINGS, TIMES)]
        if rng.random() < 0.15:
            fields[rng.integers(4)] = WRONG[rng.integers(len(WRONG))]
        fields = fields[: rng.choice([2, 3, 4, 4, 4])]
        if rng.random() < quoted:
            fields = [b'"%s"' % field for field in fields]
        lines.append(separator.join(fields) + (b"\r\n" if rng.random() < 0.2 else b"\n"))
    return b"".join(lines)


def read(parser: RatingsParser, data: bytes, before: int) -> Any:
    """Parse data that stands ``before`` bytes into a buffer with as little room as may be."""
    buffer = np.full(before + len(data) + BLOCK_TAILROOM_BYTES, ord(":"), np.uint8)
    end = before + len(data)
    buffer[before:end] = np.frombuffer(data, np.uint8)
    out = Minibatch(4096, FEATURES_PER_RECORD_MAX * 2, has_values=False)
    assert parser.parse(buffer, before, end, out) == end
    rows = [
        (
            int(out.lines[i]) - before,
            float(out.labels[i]),
            float(out.weights[i]),
            out.keys[2 * i : 2 * i + 2].tolist(),
        )
        for i in range(out.rows)
    ]
    bad = zip(out.bad_start, out.bad_reason, out.bad_field, strict=True)
    return rows, [(int(a) - before, int(b), int(c)) for a, b, c in list(bad)[: out.bad]]


@pytest.mark.parametrize("separator", ["::", "\t", ",", " "])
@pytest.mark.parametrize("quoted", [0.0, 0.3])
def test_plausible_logs_match_the_twin_at_every_alignment(separator: str, quoted: float) -> None:
    ratings = RatingsFormat(SourceConfig(format="ratings"))
    parser = ratings.parser(separator.join("123").encode())
    data = log(len(separator), 150, separator.encode(), quoted)
    places = {"user": 0, "item": 1, "rating": 2, "time": 3}
    expected = reference.parse(data, separator, places, 3, 4)
    assert len(expected[0]) > 50
    assert len({reason for _, reason, _ in expected[1]}) >= 3
    for before in range(65):
        assert read(parser, data, before) == expected


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_whole_numbers_have_the_keys_of_their_digits(kind: type) -> None:
    limits = np.iinfo(kind)
    rng = np.random.default_rng(1)
    values = [10**k + d for k in range(19) for d in (-1, 0, 1)]
    values += [-value for value in values] + rng.integers(0, 1 << 62, 50).tolist()
    values = [value for value in [*values, limits.min, limits.max] if value >= limits.min]
    seed = field_seed("user")
    keys = np.empty(len(values), np.uint64)
    kernels.integer_keys(np.array(values, kind), seed, keys)
    assert keys.tolist() == [token_key(str(value).encode(), int(seed)) for value in values]
