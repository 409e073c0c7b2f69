"""Run a parser over some bytes, as often as it takes, and list what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamlearn.compute.kernels.records import subsample_negatives
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

if TYPE_CHECKING:
    from streamlearn.online.formats import Format, Parser

Bad = tuple[int, int, int, int]  # start, reason, field, arg


def drain(
    parser: Parser,
    data: bytes,
    *,
    rows_max: int = 64,
    nnz_max: int = FEATURES_PER_RECORD_MAX + 64 * 39,
    has_values: bool = False,
    before: int = 3,
) -> tuple[list[tuple], list[Bad]]:
    """Return rows (start, label, keys[, values]) and bad records, both with positions in ``data``.

    The bytes stand ``before`` bytes into a buffer whose other bytes are hostile.
    """
    buffer = np.full(before + len(data) + BLOCK_TAILROOM_BYTES, ord("7"), np.uint8)
    end = before + len(data)
    buffer[before:end] = np.frombuffer(data, np.uint8)
    buffer[end::7] = ord("\n")
    buffer[end::5] = ord("\t")
    out = Minibatch(rows_max, nnz_max, has_values=has_values)
    rows: list[tuple] = []
    bad: list[Bad] = []
    at = before
    while at < end:
        out.clear()
        out.weights[:] = 7  # what another format may have left there
        after = parser.parse(buffer, at, end, out)
        assert at < after <= end
        assert after == end or out.full
        assert out.records == out.rows + out.bad
        assert out.indptr[0] == 0
        assert out.indptr[out.rows] == out.nnz
        assert (out.weights[: out.rows] == 1).all()
        for i in range(out.rows):
            span = slice(out.indptr[i], out.indptr[i + 1])
            row = (int(out.lines[i]) - before, int(out.labels[i]), out.keys[span].tolist())
            rows.append((*row, out.values[span].tolist()) if has_values else row)
        bad.extend(
            (int(a) - before, int(b), int(c), int(d))
            for a, b, c, d in zip(
                *(x[: out.bad] for x in (out.bad_start, out.bad_reason, out.bad_field)),
                out.bad_arg[: out.bad],
                strict=True,
            )
        )
        at = after
    return rows, bad


def described(parser: Parser, data: bytes) -> list[tuple[int, int, bytes]]:
    """Return key, field and text of every feature of the good records of ``data``."""
    buffer = np.zeros(len(data) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    starts, ends = [], []
    at = 0
    for line in data.split(b"\n")[:-1]:
        starts.append(at)
        ends.append(at + len(line))
        at += len(line) + 1
    names = parser.describe(buffer, np.array(starts, np.int64), np.array(ends, np.int64))
    text = names.text.tobytes()
    edges = [0, *names.ends.tolist()]
    return [
        (key, field, text[edges[i] : edges[i + 1]])
        for i, (key, field) in enumerate(
            zip(names.keys.tolist(), names.fields.tolist(), strict=True)
        )
    ]


class Example(NamedTuple):
    """An example of a deep format."""

    start: int
    label: float
    weight: float
    features: list[tuple[int, float, str]]  # key, value (1 where there are none), field
    dense: list[float | None]  # None where missing


def drain_deep(
    format: Format,
    data: bytes,
    *,
    header: bytes | None = None,
    rows_max: int = 64,
    rate: float = 1.0,
    before: int = 3,
) -> tuple[list[Example], list[Bad]]:
    """Return the examples of a deep format, negatives subsampled, and bad records.

    As :func:`drain`; whatever the minibatch had before is spoilt.
    """
    parser = format.parser(header)
    buffer = np.full(before + len(data) + BLOCK_TAILROOM_BYTES, ord("7"), np.uint8)
    end = before + len(data)
    buffer[before:end] = np.frombuffer(data, np.uint8)
    buffer[end::7], buffer[end::5] = ord("\n"), ord("\t")
    out = Minibatch.of(format, rows_max, FEATURES_PER_RECORD_MAX + rows_max * 64)
    examples: list[Example] = []
    bad: list[Bad] = []
    at = before
    while at < end:
        out.clear()
        out.fields[:], out.dense[:], out.values[:] = -9, 77, 77
        after = parser.parse(buffer, at, end, out)
        assert at < after <= end
        assert after == end or out.full
        assert out.records == out.rows + out.bad
        if rate < 1:
            subsample_negatives(
                out.keys, out.values, out.fields, out.dense, out.indptr, out.labels, out.weights,
                out.lines, out.state, -before, rate,
            )  # fmt: skip
        assert out.indptr[0] == 0
        assert out.indptr[out.rows] == out.nnz
        for i in range(out.rows):
            span = range(out.indptr[i], out.indptr[i + 1])
            examples.append(
                Example(
                    int(out.lines[i]) - before,
                    float(out.labels[i]),
                    float(out.weights[i]),
                    [
                        (
                            int(out.keys[j]),
                            float(out.values[j]) if out.has_values else 1.0,
                            format.fields[out.fields[j]],
                        )
                        for j in span
                    ],
                    [None if np.isnan(x) else x for x in out.dense[i].tolist()],
                )
            )
        columns = (out.bad_start, out.bad_reason, out.bad_field, out.bad_arg)
        noted = zip(*(column[: out.bad].tolist() for column in columns), strict=True)
        bad += [(start - before, *rest) for start, *rest in noted]
        at = after
    return examples, bad
