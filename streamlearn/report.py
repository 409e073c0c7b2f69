"""Results on stdout: the report of a run and what is in a model, for people and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["report_json", "report_text", "table_text"]

# In this order, with these words; keys that are not here follow as they are.
_LABELS: Final[Mapping[str, str]] = {
    "model": "model",
    "stopped": "stopped by",
    "examples": "examples",
    "bytes": "bytes",
    "seconds": "seconds",
    "examples_per_second": "examples/s",
    "megabytes_per_second": "MB/s",
    "cpu_seconds": "CPU seconds",
    "peak_rss_bytes": "peak memory",
    "bad_records": "bad records",
    "examples_dropped": "examples dropped",
    "steps": "steps",
    "steps_skipped": "steps skipped",
    "resumed_from": "resumed from",
    "loss": "loss",
    "accuracy": "accuracy",
    "baseline_loss": "best constant",
    "logloss": "logloss",
    "baseline_logloss": "best constant",
    "auc": "AUC",
    "calibration": "calibration",
    "normalized_entropy": "normalized entropy",
    "rmse": "RMSE",
    "mae": "MAE",
    "baseline_rmse": "best constant",
    "log_likelihood_per_token": "log-likelihood per token",
    "held_out_log_likelihood_per_token": "held-out log-likelihood per token",
    "perplexity": "perplexity",
    "tokens": "tokens",
    "unknown_tokens": "unknown tokens",
    "topics": "topics",
    "vocabulary": "words with topics",
    "words": "words",
    "npmi": "NPMI",
    "umass": "UMass",
    "users": "users",
    "items": "items",
    "features": "features",
    "nonzeros": "nonzero weights",
    "table_bytes": "table memory",
    "embeddings": "embeddings",
    "embeddings_bytes": "embeddings' memory",
    "embeddings_refused": "embeddings refused",
    "counts_bytes": "counts' memory",
    "factors_bytes": "factors' memory",
    "factors_refused": "factors refused",
    "unknown_users": "of unknown users",
    "unknown_items": "of unknown items",
    "created_seconds": "created",
    "modified_seconds": "modified",
}
# Measures of a model are compared at the fourth digit; of a machine, at the third.
_DECIMALS: Final[Mapping[str, str]] = {
    "loss": ".6f",
    "accuracy": ".5f",
    "baseline_loss": ".6f",
    "logloss": ".6f",
    "baseline_logloss": ".6f",
    "auc": ".5f",
    "calibration": ".4f",
    "normalized_entropy": ".5f",
    "rmse": ".5f",
    "mae": ".5f",
    "baseline_rmse": ".5f",
    "examples_per_second": ",.0f",
    "megabytes_per_second": ",.1f",
}
_MOMENTS: Final = ("created_seconds", "modified_seconds")
_BYTES: Final = ("bytes", "_bytes")


def report_json(report: Any, *, indent: int | None = 2) -> str:
    """Return a report as JSON: NaN and infinities are null, NumPy's scalars and arrays plain."""
    return json.dumps(_plain(report), indent=indent, ensure_ascii=False, allow_nan=False)


def report_text(report: Mapping[str, Any]) -> str:
    """Return a report for people: a line a figure, aligned; lists of records as tables below.

    Parameters
    ----------
    report : mapping
        Keys as in ``report.json``. A value that is a list of mappings (``weights``) is a table
        under the key's name.
    """
    plain = _plain(report)
    order = [key for key in _LABELS if key in plain] + [key for key in plain if key not in _LABELS]
    rows: list[tuple[str, str]] = []
    tables: list[str] = []
    for key in order:
        value = plain[key]
        if _is_table(value):
            if value:
                tables.append(f"\n{_label(key)}\n{table_text(value)}")
        elif value is not None and value != "":
            rows.append((_label(key), _value(key, value)))
    width = max((len(label) for label, _ in rows), default=0)
    lines = "".join(f"{label:<{width}}  {value}\n" for label, value in rows)
    return lines + "".join(tables)


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return records as a table with aligned columns: numbers to the right, text to the left."""
    plain: list[dict[str, Any]] = [_plain(row) for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row))
    lines: list[list[str]] = [[_label(name) for name in names]]
    lines += [[_value(name, row.get(name)) for name in names] for row in plain]
    right = [all(isinstance(row.get(name), int | float | None) for row in plain) for name in names]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    text = ""
    for line in lines:
        cells = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ]
        text += ("  " + "  ".join(cells)).rstrip() + "\n"
    return text


def _label(key: str) -> str:
    return _LABELS.get(key, key.replace("_", " "))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _value(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        inner = ", ".join(f"{_label(name)} {_value(name, item)}" for name, item in value.items())
        return inner or "-"
    if isinstance(value, list):
        return ", ".join(_value(key, item) for item in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key in _MOMENTS:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, int | float) and key.endswith(_BYTES):
        return _size(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        decimals = ",.2f" if key.endswith("seconds") else ".6g"
        return format(value, _DECIMALS.get(key, decimals))
    return str(value)


def _size(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def _plain(value: Any) -> Any:
    """Return a value of JSON's types."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, without importing NumPy
        return _plain(value.tolist())
    return str(value)
