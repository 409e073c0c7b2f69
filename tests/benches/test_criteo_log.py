from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import criteo_log

RECORDS = 20_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    criteo_log.generate(path, RECORDS, seed=1)
    return path


def test_every_record_is_of_criteos_format(log: Path) -> None:
    record = re.compile(rb"[01](\t(-?\d{1,8})?){13}(\t([0-9a-f]{8})?){26}")
    lines = log.read_bytes().splitlines()
    assert len(lines) == RECORDS
    assert all(record.fullmatch(line) for line in lines)


def test_click_rate_bayes_loss_and_size_are_what_was_aimed_at(log: Path) -> None:
    known = json.loads((log.parent / "log.tsv.json").read_text())
    lines = log.read_bytes().splitlines()
    clicks = sum(line.startswith(b"1") for line in lines)
    assert known["clicks"] == clicks
    assert known["bytes"] == log.stat().st_size
    # three standard errors of a mean of so many records, and that of the calibration
    assert clicks / RECORDS == pytest.approx(criteo_log.CLICK_RATE, abs=0.012)
    assert known["bayes_logloss"] == pytest.approx(criteo_log.BAYES_LOGLOSS, abs=0.01)
    assert known["truth_logloss"] == pytest.approx(known["bayes_logloss"], abs=0.01)
    assert known["bytes"] / RECORDS == pytest.approx(242.3, abs=2)


def test_tokens_grow_as_in_the_real_log(log: Path) -> None:
    fields = [line.split(b"\t")[14:] for line in log.read_bytes().splitlines()[:8000]]
    seen = {(place, token) for tokens in fields for place, token in enumerate(tokens) if token}
    # the first 8,000 records of the real one have 34 to 35 thousand, integers apart
    assert 30_000 < len(seen) < 40_000


def test_longer_log_begins_with_the_shorter(log: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.tsv"
    criteo_log.generate(short, 100, seed=1)
    assert log.read_bytes().startswith(short.read_bytes())


def test_seed_draws_other_records_of_the_same_truth(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv"
    known = criteo_log.generate(other, 5000, seed=2)
    assert not log.read_bytes().startswith(other.read_bytes()[:200])
    assert known["bayes_logloss"] == pytest.approx(criteo_log.BAYES_LOGLOSS, abs=0.02)


def test_without_interactions_the_truth_is_linear(tmp_path: Path) -> None:
    tables = criteo_log._tables(1)
    bias, scale, cross = criteo_log._calibrate(tables, 1, 0.0)
    assert cross == 0.0
    assert scale > 0
    assert np.isfinite(bias)
    known = criteo_log.generate(tmp_path / "linear.tsv", 5000, seed=1, interactions=0.0)
    assert known["bayes_logloss"] == pytest.approx(criteo_log.BAYES_LOGLOSS, abs=0.02)
