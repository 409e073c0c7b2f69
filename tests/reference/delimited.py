"""Slow, obvious twin of the delimited format: the csv module, regular expressions, datetime."""

from __future__ import annotations

import csv
import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from streamlearn.online.features import field_seed
from tests.reference.words import log_bucket, mix, number, token_key

if TYPE_CHECKING:
    from collections.abc import Callable

_M2 = 0xBF58476D1CE4E5B9
_WORD = (1 << 64) - 1

LABELS = {"0": 0, "1": 1, "-1": 0, "+1": 1, "0.0": 0, "1.0": 1, "-1.0": 0, "+1.0": 1}
for _no, _yes in [("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t")]:
    for _form in (str.lower, str.capitalize, str.upper):
        LABELS |= {_form(_no): 0, _form(_yes): 1}


def split(line: str, delimiter: str, quote: str, *, trim: bool) -> list[str] | None:
    """Return the fields of a line, None where a quote is wrong."""
    if not quote or quote not in line:
        fields = line.split(delimiter)
    else:
        q, d, space = re.escape(quote), re.escape(delimiter), " *" if trim else ""
        field = f"{space}(?:{q}(?:[^{q}]|{q}{q})*{q}{space}|[^{q}{d}]*)"
        if not re.fullmatch(f"(?:{field})(?:{d}(?:{field}))*", line, re.DOTALL):
            return None
        if trim:  # the csv module keeps what stands between a closing quote and the delimiter
            line = re.sub(f"({q}(?:[^{q}]|{q}{q})*{q}) *", r"\1", line)
        (fields,) = csv.reader(
            [line], delimiter=delimiter, quotechar=quote, skipinitialspace=trim, strict=True
        )
    return [field.strip(" ") for field in fields] if trim else fields


def cross_key(first: int, second: int, seed: int) -> int:
    """Return the key of a cross."""
    return mix((first + second * _M2) & _WORD, seed)


# HH:MM with optional seconds and zone
_CLOCK = r"(\d\d):(\d\d)(?::(\d\d)(?:[.,]\d+)?)?(?:Z|[+-](\d\d)(?::?(\d\d))?)?"


def time(token: str) -> tuple[int | None, int] | None:
    """Return hour (None where there is none) and weekday of a time, None where it is none."""
    try:
        if re.fullmatch(r"\d{8}", token, re.ASCII):
            when = datetime.strptime("20" + token, "%Y%m%d%H").replace(tzinfo=UTC)
            return when.hour, when.weekday()
        if re.fullmatch(r"\d{9,10}(\.\d*)?|\d{12,13}", token, re.ASCII):
            whole = int(token.split(".")[0])
            seconds = whole // 1000 if "." not in token and len(token) >= 12 else whole
            when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
            return when.hour, when.weekday()
        if match := re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})(?: (\d.*))?", token, re.ASCII):
            month, day, year = (int(x) for x in match.groups()[:3])
            clock = match[4]
            if clock and re.match(r"\d:", clock):
                clock = "0" + clock
        elif match := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d.*))?", token, re.ASCII):
            year, month, day = (int(x) for x in match.groups()[:3])
            clock = match[4]
        else:
            return None
        weekday = date(year, month, day).weekday()
    except (ValueError, OverflowError):
        return None
    if clock is None:
        return None, weekday
    match = re.fullmatch(_CLOCK, clock, re.ASCII)
    if not match:
        return None
    hour, minute, second, zone_hour, zone_minute = (int(x or 0) for x in match.groups())
    if hour > 23 or minute > 59 or second > 60 or zone_hour > 23 or zone_minute > 59:
        return None
    return hour, weekday


def parse(
    data: bytes,
    kinds: dict[str, str],
    *,
    places: dict[str, int],
    count: int,
    exact: bool = True,
    delimiter: str = ",",
    quote: str = '"',
    trim: bool = False,
    label: Callable[[str], int | None] = LABELS.get,
    crosses: tuple[tuple[str, ...], ...] = (),
) -> tuple[list[tuple], list[tuple]]:
    """Parse complete lines.

    Returns
    -------
    rows : list of (start, label, weight, [(key, value, field, text), ...])
    bad : list of (start, reason, place of the column)
    """
    rows, bad = [], []
    start = 0
    for raw in data.split(b"\n")[:-1]:
        here, start = start, start + len(raw) + 1
        line = raw.removesuffix(b"\r")
        if not line:
            continue
        fields = split(line.decode("latin-1"), delimiter, quote, trim=trim)
        if fields is None:
            bad.append((here, 6, -1))
        elif len(fields) < count or (exact and len(fields) > count):
            bad.append((here, 1, -1))
        else:
            row = _row(fields, kinds, places, label, crosses)
            if isinstance(row[0], str):
                bad.append((here, row[1], row[2]))
            else:
                rows.append((here, *row))
    return rows, bad


def _row(fields, kinds, places, label, crosses):  # type: ignore[no-untyped-def]
    order = sorted(kinds, key=lambda name: places[name])
    made = 0
    weight = 1.0
    for name in (name for name in order if kinds[name] == "label"):
        made = label(fields[places[name]])
        if made is None:
            return "bad", 2, places[name]
    for name in (name for name in order if kinds[name] == "weight"):
        weight = number(fields[places[name]].encode("latin-1"))
        if weight is None or weight < 0:
            return "bad", 10, places[name]
    features = {}
    for name in order:
        kind, place = kinds[name], places[name]
        token = fields[place].encode("latin-1")
        if not token:
            continue
        if kind == "categorical":
            try:
                token.decode()
            except UnicodeDecodeError:
                return "bad", 4, place
            features[name] = (token_key(token, int(field_seed(name))), 1.0, name, token)
        elif kind.startswith("number"):
            value = number(token)
            if value is None:
                return "bad", 3, place
            word = 0 if kind == "number:raw" else log_bucket(value)
            value = value if kind == "number:raw" else 1.0
            features[name] = (mix(word, int(field_seed(name))), value, name, None)
        elif kind.startswith("time"):
            when = time(fields[place])
            if when is None:
                return "bad", 9, place
            for part, value in zip(("hour", "weekday"), when, strict=True):
                if value is not None and kind in {"time", f"time:{part}"}:
                    field = f"{name}.{part}"
                    days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
                    text = (str(value) if part == "hour" else days[value]).encode()
                    features[field] = (mix(value, int(field_seed(field))), 1.0, field, text)
    for cross in crosses:
        if all(field in features for field in cross):
            field = "*".join(cross)
            key = features[cross[0]][0]
            for other in cross[1:]:
                key = cross_key(key, features[other][0], int(field_seed(field)))
            features[field] = (key, 1.0, field, None)
    return made, weight, list(features.values())
