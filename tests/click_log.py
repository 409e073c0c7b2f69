"""Small Criteo-format logs with a known truth, good and bad records, in every compression."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import zstandard

# One of each kind that a reader of this format must refuse: reason, record.
_GOOD = b"1" + b"\t3" * 13 + b"\t68fd1e64" * 26
BAD: tuple[tuple[str, bytes], ...] = (
    ("field_count", b"1\t2\t3"),
    ("field_count", _GOOD + b"\t68fd1e64"),
    ("label", b"7" + _GOOD[1:]),
    ("label", b"nan" + _GOOD[1:]),
    ("number", _GOOD.replace(b"\t3", b"\t3x", 1)),
    ("number", _GOOD.replace(b"\t3", b"\tinf", 1)),
    ("utf8", _GOOD.replace(b"68fd1e64", b"\xff\xfe", 1)),
)


def clicks(count: int, seed: int, *, tokens: int = 50, rate: float = 0.3) -> list[bytes]:
    """Return records without newlines: power-law tokens, blanks, labels that depend on them."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum((1 / rng.random((count, 26)) ** 0.7).astype(np.int64), tokens) - 1
    integers = rng.integers(-2, 200, (count, 13))
    blank = rng.random((count, 39)) < 0.1
    truth = np.random.default_rng(7).normal(0, 0.5, (26, tokens))
    logit = np.log(rate / (1 - rate)) + (truth[np.arange(26), ranks] * ~blank[:, 13:]).sum(1)
    labels = rng.random(count) < 1 / (1 + np.exp(-logit))
    lines = []
    for row in range(count):
        fields = [
            b"" if empty else b"%d" % number
            for number, empty in zip(integers[row].tolist(), blank[row], strict=False)
        ]
        fields += [
            b"" if empty else b"%08x" % (rank * 2654435761 + field & 0xFFFFFFFF)
            for field, (rank, empty) in enumerate(
                zip(ranks[row].tolist(), blank[row, 13:], strict=True)
            )
        ]
        lines.append(b"\t".join([b"%d" % labels[row], *fields]))
    return lines


def spoiled(records: Sequence[bytes], every: int, seed: int) -> tuple[list[bytes], int]:
    """Put bad records of all kinds between good ones; return the records and how many are bad."""
    rng = np.random.default_rng(seed)
    out: list[bytes] = []
    bad = 0
    for record in records:
        out.append(record)
        if rng.integers(every) == 0:
            out.append(BAD[bad % len(BAD)][1])
            bad += 1
    return out, bad


def text(records: Iterable[bytes]) -> bytes:
    """Join records to lines."""
    return b"".join(record + b"\n" for record in records)


def gzipped(data: bytes, members: int = 1) -> bytes:
    """Compress to several gzip members, cut anywhere."""
    cuts = np.linspace(0, len(data), members + 1).astype(int)
    return b"".join(gzip.compress(data[a:b], 1, mtime=0) for a, b in itertools.pairwise(cuts))


def written(path: Path, data: bytes) -> Path:
    """Write a log, compressed as its suffix says."""
    if path.suffix == ".gz":
        data = gzipped(data, 3)
    elif path.suffix == ".zst":
        data = zstandard.compress(data, 1)
    path.write_bytes(data)
    return path
