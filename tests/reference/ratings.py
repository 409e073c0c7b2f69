"""Slow, obvious twin of the ratings parser: split, regular expressions, the other twins."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streamlearn.online.features import field_seed
from tests.reference import delimited
from tests.reference.pairs import valid
from tests.reference.words import number, token_key

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD_BYTES_MAX = 1 << 20
KINDS = ("user", "item", "rating", "time", "weight")

Row = tuple[int, float, float, list[int]]  # start, label, weight, keys
Bad = tuple[int, int, int]  # start, reason, place


def fields_of(line: str, separator: str, quote: str, *, trim: bool) -> list[str] | None:
    """Return the fields of a line, None where a quote is wrong; a blank separates by runs."""
    if separator == " ":
        return [field for field in re.split(r"[ \t]", line) if field]
    if separator == "::":
        return [f.strip(" ") if trim else f for f in line.split("::")]
    return delimited.split(line, separator, quote, trim=trim)


def time_valid(token: str) -> bool:
    """Say whether a token is a time."""
    seconds = re.fullmatch(r"[0-9]{1,18}(\.[0-9]*)?", token)
    return seconds is not None or delimited.time(token) is not None


def parse(
    data: bytes,
    separator: str,
    places: Mapping[str, int],
    least: int,
    most: int | None,
    *,
    quote: str = '"',
    trim: bool = False,
    otherwise: float = 1.0,
) -> tuple[list[Row], list[Bad]]:
    """Return the examples and the bad records of some complete lines."""
    rows: list[Row] = []
    bad: list[Bad] = []
    start = 0
    for raw in data.split(b"\n")[:-1]:
        here, start = start, start + len(raw) + 1
        line = raw.removesuffix(b"\r").decode("latin-1")
        fields = fields_of(line, separator, quote, trim=trim)
        if not line or (separator == " " and not fields):
            continue
        if len(line) > RECORD_BYTES_MAX:
            bad.append((here, 5, -1))
        elif fields is None:
            bad.append((here, 6, -1))
        elif len(fields) < least or (most is not None and len(fields) > most):
            bad.append((here, 1, -1))
        else:
            made = _row([field.encode("latin-1") for field in fields], places, otherwise)
            if len(made) == 2:
                bad.append((here, *made))
            else:
                rows.append((here, *made))
    return rows, bad


def _row(fields, places, otherwise):
    keys = []
    for kind in ("user", "item"):
        token = fields[places[kind]]
        if not token:
            return 7, places[kind]
        if not valid(token):
            return 4, places[kind]
        keys.append(token_key(token, int(field_seed(kind))))
    label, weight = otherwise, 1.0
    if "rating" in places:
        label = number(fields[places["rating"]])
        if label is None:
            return 2, places["rating"]
    if "weight" in places:
        weight = number(fields[places["weight"]])
        if weight is None or weight < 0:
            return 10, places["weight"]
    if "time" in places and places["time"] < len(fields):
        token = fields[places["time"]].decode("latin-1")
        if token and not time_valid(token):
            return 9, places["time"]
    return label, weight, keys
