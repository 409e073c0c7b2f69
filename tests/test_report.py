"""Reports for people and for machines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from streamlearn.report import report_json, report_text, table_text

REPORT = {
    "auc": 0.78125,
    "model": "lr",
    "examples": 2_500_000,
    "bytes": 607_500_000,
    "seconds": 1.4567,
    "examples_per_second": 1_716_207.2,
    "megabytes_per_second": 417.04,
    "cpu_seconds": 1.6,
    "peak_rss_bytes": 300 << 20,
    "bad_records": {"label": 3, "field_count": 1},
    "resumed_from": None,
    "logloss": 0.4532123,
    "calibration": math.nan,
    "features": 41_234,
    "something_new": 0.125,
    "weights": [
        {"name": "origin=JFK", "weight": 1.25, "count": 100_000},
        {"name": "hour=23", "weight": -0.5, "count": 7},
    ],
}


def test_the_report_is_aligned_and_in_order() -> None:
    assert report_text(REPORT).splitlines() == [
        "model          lr",
        "examples       2,500,000",
        "bytes          607.5 MB",
        "seconds        1.46",
        "examples/s     1,716,207",
        "MB/s           417.0",
        "CPU seconds    1.60",
        "peak memory    314.6 MB",
        "bad records    label 3, field count 1",
        "logloss        0.453212",
        "AUC            0.78125",
        "features       41,234",
        "something new  0.125",
        "",
        "weights",
        "  name        weight    count",
        "  origin=JFK    1.25  100,000",
        "  hour=23       -0.5        7",
    ]


def test_json_has_the_same_keys_and_null_for_nan() -> None:
    told = json.loads(report_json(REPORT))
    assert list(told) == list(REPORT)
    assert told["calibration"] is None
    assert told["weights"] == REPORT["weights"]
    assert told["logloss"] == REPORT["logloss"]


def test_json_takes_what_programs_put_into_reports() -> None:
    report = {
        "count": np.int64(3),
        "share": np.float32(0.5),
        "bad": np.float64("inf"),
        "array": np.array([1.0, np.nan]),
        "path": Path("a/b"),
        "bytes": b"x\xff",
        1: (True, None),
    }
    assert json.loads(report_json(report)) == {
        "count": 3,
        "share": 0.5,
        "bad": None,
        "array": [1.0, None],
        "path": str(Path("a/b")),
        "bytes": "x\ufffd",
        "1": [True, None],
    }


def test_moments_read_as_moments() -> None:
    rows = [{"sequence": 3, "bytes": 5_000_000, "created_seconds": 1_793_491_200.5, "path": "a/b"}]
    assert table_text(rows).splitlines() == [
        "  sequence   bytes              created  path",
        "         3  5.0 MB  2026-11-01 00:00:00  a/b",
    ]


def test_an_empty_report_is_empty() -> None:
    assert report_text({}) == ""
    assert report_text({"weights": []}) == ""


def test_a_table_has_a_dash_where_a_row_lacks_a_column() -> None:
    assert table_text([{"path": "model/1", "examples": 10}, {"path": "model/22"}]).splitlines() == [
        "  path      examples",
        "  model/1         10",
        "  model/22         -",
    ]


def test_ratings_read_as_ratings() -> None:
    report = {"model": "mf", "examples": 90_570, "baseline_rmse": 1.12, "mae": 0.75, "rmse": 0.95}
    assert report_text(report).splitlines() == [
        "model          mf",
        "examples       90,570",
        "RMSE           0.95000",
        "MAE            0.75000",
        "best constant  1.12000",
    ]
