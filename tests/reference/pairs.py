"""Slow, obvious twin of the svmlight and libffm parsers: split and regular expressions."""

from __future__ import annotations

import re

from streamlearn.online.features import field_seed
from tests.reference.words import mix, number, token_key

RECORD_BYTES_MAX = 1 << 20
FEATURES_MAX = 1 << 16
_SEED = int(field_seed(""))

Row = tuple[int, int, list[int], list[float]]  # start, label, keys, values
Bad = tuple[int, int, int, int]  # start, reason, field, arg


def name_key(text: bytes, seed: int) -> int:
    """Return the key of a number or a name."""
    if re.fullmatch(rb"[0-9]{1,18}", text):
        return mix(int(text), seed)
    return token_key(text, seed)


def parse(data: bytes, *, fields: bool) -> tuple[list[Row], list[Bad]]:
    """Return the examples and the bad records of some complete lines."""
    rows: list[Row] = []
    bad: list[Bad] = []
    start = 0
    for line in data.split(b"\n")[:-1]:
        tokens = [(m.start(), m.group()) for m in re.finditer(rb"[^ \t\r]+", line)]
        if tokens and not tokens[0][1].startswith(b"#"):
            made = _record(tokens, fields=fields)
            if len(line) > RECORD_BYTES_MAX:
                bad.append((start, 5, -1, len(line)))
            elif isinstance(made[1], list):
                rows.append((start, *made))
            else:
                bad.append((start, *made))
        start += len(line) + 1
    return rows, bad


def _record(tokens, *, fields):
    at, token = tokens[0]
    label = number(token)
    if label not in {-1, 0, 1}:
        return 2, -1, at
    keys, values = [], []
    for at, token in tokens[1:]:
        if token.startswith(b"#"):
            break
        if token.startswith(b"qid:") and not keys:
            if not re.fullmatch(rb"qid:[0-9]{1,15}", token):
                return 3, 0, at
            continue
        if len(keys) == FEATURES_MAX:
            return 8, len(keys), at
        made = _feature(token, fields=fields)
        if isinstance(made, int):
            return made, len(keys), at
        keys.append(made[0])
        values.append(made[1])
    return int(label == 1), keys, values


def _feature(token, *, fields):
    seed = _SEED
    if fields:
        field, colon, token = token.partition(b":")
        if not valid(field):
            return 4
        if not field or not colon:
            return 7
        seed = name_key(field, seed)
    index, colon, value = token.partition(b":")
    if not valid(index):
        return 4
    if not index:
        return 7
    x = number(value) if colon else 1.0
    return 3 if x is None else (name_key(index, seed), x)


def valid(text: bytes) -> bool:
    """Say whether some bytes are UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
