"""Slow, obvious twin of the Criteo parser: bytes.split and Python integers."""

from __future__ import annotations

import re

import numpy as np

from streamlearn.online.criteo import FIELDS
from streamlearn.online.features import field_seed
from tests.reference.words import log_bucket, mix, token_key

RECORD_BYTES_MAX = 1 << 20
_INTEGER = re.compile(rb"-?[0-9]{1,18}")
_SEEDS = [int(field_seed(name)) for name in FIELDS]

Row = tuple[int, int, list[int]]  # start, label, keys
Bad = tuple[int, int, int, int]  # start, reason, field, arg


def parse(data: bytes) -> tuple[list[Row], list[Bad]]:
    """Return the examples and the bad records of some complete lines."""
    rows: list[Row] = []
    bad: list[Bad] = []
    start = 0
    for line in data.split(b"\n")[:-1]:
        record = line[:-1] if line.endswith(b"\r") else line
        if record:
            made = _record(record)
            if isinstance(made[1], list):
                rows.append((start, made[0], made[1]))
            else:
                bad.append((start, *made))
        start += len(line) + 1
    return rows, bad


def _record(record: bytes) -> tuple[int, list[int]] | tuple[int, int, int]:
    if len(record) > RECORD_BYTES_MAX:
        return 5, -1, len(record)
    columns = record.split(b"\t")
    if len(columns) != 40:
        return 1, -1, len(columns)
    if columns[0] not in {b"0", b"1"}:
        return 2, 0, 0
    keys = []
    for i, token in enumerate(columns[1:]):
        if not token:
            continue
        if i < 13:
            if not _INTEGER.fullmatch(token):
                return 3, i + 1, 0
            keys.append(mix(log_bucket(np.int64(int(token))), _SEEDS[i]))
        else:
            try:
                token.decode()
            except UnicodeDecodeError:
                return 4, i + 1, 0
            keys.append(token_key(token, _SEEDS[i]))
    return int(columns[0]), keys
