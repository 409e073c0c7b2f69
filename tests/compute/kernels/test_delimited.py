"""The delimited kernel on plausible logs: every alignment, many widths, few bytes to spare."""

import numpy as np
import pytest

from streamlearn.config import SourceConfig
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.online.delimited import DelimitedFormat
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from tests.reference import delimited as reference

TOKENS = [b"", b"a", b"LAS", b"12345678", b"123456789", b"x" * 63, b"x" * 64, "é€".encode()]
QUOTED = [b'""', b'"a"', b'"a,b"', b'"a ""b"""', b'"' + b"y," * 40 + b'"']
TIMES = [b"2001-01-01T00:01", b"2016-02-29 23:59:59", b"11/7/2017 9:30", b"14102100", b""]


def log(seed: int, records: int, columns: int, quoted: float) -> bytes:
    """Make records: a label, categories, numbers, times, in turn; some quoted, some bad."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(records):
        fields = [b"%d" % rng.integers(0, 2)]
        for column in range(1, columns):
            if column % 3 == 1:
                some = QUOTED if rng.random() < quoted else TOKENS
                fields.append(some[rng.integers(len(some))])
            elif column % 3 == 2:
                fields.append(b"%g" % (rng.normal() * 10.0 ** rng.integers(-8, 9)))
            else:
                fields.append(TIMES[rng.integers(len(TIMES))])
        if rng.random() < 0.1:
            fields[rng.integers(columns)] = [b"\xff", b"x", b'"', b",", b"2"][rng.integers(5)]
        lines.append(b",".join(fields) + (b"\r\n" if rng.random() < 0.2 else b"\n"))
    return b"".join(lines)


def read(parser, data: bytes, before: int):
    """Parse data that stands ``before`` bytes into a buffer with as little room as may be."""
    buffer = np.full(before + len(data) + BLOCK_TAILROOM_BYTES, 0xFF, np.uint8)
    end = before + len(data)
    buffer[before:end] = np.frombuffer(data, np.uint8)
    out = Minibatch(4096, FEATURES_PER_RECORD_MAX * 4, has_values=False)
    assert parser.parse(buffer, before, end, out) == end
    rows = [
        (
            int(out.lines[i]) - before,
            int(out.labels[i]),
            out.keys[out.indptr[i] : out.indptr[i + 1]].tolist(),
        )
        for i in range(out.rows)
    ]
    bad = zip(out.bad_start, out.bad_reason, out.bad_field, strict=True)
    return rows, [(int(a) - before, int(b), int(c)) for a, b, c in list(bad)[: out.bad]]


@pytest.mark.parametrize("columns", [1, 2, 7, 40])
@pytest.mark.parametrize("quoted", [0.0, 0.3])
def test_plausible_logs_match_the_twin_at_every_alignment(columns, quoted):
    kinds = {"0": "label"}
    for column in range(1, columns):
        kinds[str(column)] = ("time", "categorical", "number")[column % 3]
    crosses = (("1", "4"), ("3.weekday", "2", "1")) if columns > 4 else ()
    log_format = DelimitedFormat(
        SourceConfig(header=True, columns=kinds, cross=tuple("*".join(cross) for cross in crosses))
    )
    parser = log_format.parser(",".join(kinds).encode())
    data = log(columns, 120, columns, quoted)
    rows, bad = reference.parse(
        data, kinds, places={name: int(name) for name in kinds}, count=columns, crosses=crosses
    )
    expected = [(start, label, [f[0] for f in features]) for start, label, _, features in rows]
    assert expected
    assert bad or columns == 2
    for before in range(65):
        assert read(parser, data, before) == (expected, bad)
