"""Slow, obvious twin of the JSON parser: Python's json, walked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.features import field_seed
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX
from tests.reference.delimited import cross_key, time
from tests.reference.words import log_bucket, mix, number, token_key

DEPTH_MAX = 64
Row = tuple[int, int, float, list[tuple[int, float]]]  # start, label, weight, (key, value)s
Bad = tuple[int, int]  # start, reason


class Number(str):
    """A number as it is written."""

    __slots__ = ()


class Pairs(list):  # type: ignore[type-arg]
    """The keys and values of an object, also of keys that occur twice."""


def default_label(token: bytes) -> int | None:
    words = token.decode()
    if words in ("1", "+1", "1.0", "+1.0"):
        return 1
    if words in ("0", "-1", "0.0", "-1.0"):
        return 0
    if words in (words.lower(), words.upper(), words.capitalize()):
        return {"true": 1, "yes": 1, "y": 1, "t": 1, "false": 0, "no": 0, "n": 0, "f": 0}.get(
            words.lower()
        )
    return None


def parse(
    data: bytes,
    kinds: dict[str, str],
    *,
    others: str = "by_type",
    label: Callable[[bytes], int | None] = default_label,
    crosses: tuple[tuple[str, ...], ...] = (),
) -> tuple[list[Row], list[Bad]]:
    """Return the examples and the bad records of some complete lines.

    Parameters
    ----------
    kinds : dict
        Field to kind, as in ``source.columns``, or ``by_type``.
    others : str
        The kind of all other fields: ``by_type`` or ``ignore``.
    """
    rows: list[Row] = []
    bad: list[Bad] = []
    start = 0
    for line in data.split(b"\n")[:-1]:
        if line.strip(b" \t\r"):
            made = _record(line, kinds, others, label, crosses)
            if isinstance(made, int):
                bad.append((start, made))
            else:
                rows.append((start, *made))
        start += len(line) + 1
    return rows, bad


def _record(line, kinds, others, label, crosses):  # type: ignore[no-untyped-def]
    if len(line) > RECORD_BYTES_MAX:
        return 5
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return 4
    try:
        record = json.loads(
            text,
            object_pairs_hook=Pairs,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        return 7
    if not isinstance(record, Pairs) or depth(record) > DEPTH_MAX:
        return 7
    made, weight, features, cells, reason = None, None, [], {}, 0
    try:
        found = [
            (path, is_number, token.encode()) for path, is_number, token in _walk(record, None)
        ]
        _keys(record).encode()
    except UnicodeEncodeError:
        return 4
    for path, is_number, token in found:
        kind = kinds.get(path, others)
        if kind == "by_type":
            kind = "number" if is_number else "categorical"
        if kind == "label":
            made = label(token)
        elif kind == "weight":
            weight = number(token)
        elif kind != "ignore":
            parts = _features(path, kind, token)
            if isinstance(parts, int):
                reason = reason or parts
            else:
                features += parts
                cells |= {field: key for field, key, _ in parts}
    for cross in crosses:
        if all(field in cells for field in cross):
            field = "*".join(cross)
            key = cells[cross[0]]
            for other in cross[1:]:
                key = cross_key(key, cells[other], int(field_seed(field)))
            features.append((field, key, 1.0))
    if len(features) > FEATURES_PER_RECORD_MAX:
        return 8
    if made is None:
        return 2
    if "weight" not in kinds.values():
        weight = 1.0
    elif weight is None or weight < 0:
        return 10
    if reason:
        return reason
    return made, weight, [(key, value) for _, key, value in features]


def _features(path: str, kind: str, token: bytes) -> list[tuple[str, int, float]] | int:
    seed = int(field_seed(path))
    if kind == "categorical":
        return [(path, token_key(token, seed), 1.0)]
    if kind.startswith("number"):
        value = number(token)
        if value is None:
            return 3
        if kind == "number:raw":
            return [(path, mix(0, seed), value)]
        return [(path, mix(log_bucket(value), seed), 1.0)]
    when = time(token.decode())
    if when is None:
        return 9
    return [
        (field, mix(value, int(field_seed(field))), 1.0)
        for part, value in zip(("hour", "weekday"), when, strict=True)
        for field in [f"{path}.{part}"]
        if value is not None and kind in {"time", f"time:{part}"}
    ]


def _walk(value: object, path: str | None) -> Iterator[tuple[str, bool, str]]:
    """Yield path, whether it is a number, and token of every value that is not missing."""
    match value:
        case Pairs():
            for key, inner in value:
                yield from _walk(inner, key if path is None else f"{path}.{key}")
        case list():
            for inner in value:
                yield from _walk(inner, path)
        case True | False:
            yield str(path), False, str(value).lower()
        case str() if value:
            yield str(path), isinstance(value, Number), str(value)


def _keys(value: object) -> str:
    """Return all keys and texts, also those that come to nothing."""
    if isinstance(value, Pairs):
        return "".join(key + _keys(inner) for key, inner in value)
    if isinstance(value, list):
        return "".join(map(_keys, value))
    return value if isinstance(value, str) else ""


def depth(value: object) -> int:
    """Return how many objects and arrays stand within one another."""
    inner = [pair[1] for pair in value] if isinstance(value, Pairs) else value
    if not isinstance(inner, list):
        return 0
    return 1 + max(map(depth, inner), default=0)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
