from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import criteo_log
import torch_fm

MASK = (1 << 64) - 1
MIXER = 0x9E3779B97F4A7C15


def _indexes(line: str, bits: int) -> list[int]:
    """Return a record's index in each field, the slow and obvious way."""
    said = []
    for place, text in enumerate(line.split("\t")[1:]):
        if not text:
            said.append(0)
            continue
        word = int(text, 16)
        if place < 13:
            word = int(np.float32(int(text)).view(np.uint32)) >> 21
        hashed = (word ^ (place + 1) * MIXER & MASK) * MIXER & MASK
        hashed = (hashed ^ hashed >> 32) * MIXER & MASK
        said.append(1 + (hashed >> 64 - bits))
    return said


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    criteo_log.generate(path, 500, seed=5)
    return path


def test_minibatches_equal_their_slow_twin(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_fm, "MINIBATCH", 64)
    pairs = list(torch_fm.minibatches(log, 12))
    assert [len(labels) for labels, _ in pairs] == [64] * 7 + [52]
    lines = log.read_text().splitlines()
    assert np.concatenate([x for _, x in pairs]).tolist() == [_indexes(line, 12) for line in lines]
    labels = np.concatenate([labels for labels, _ in pairs])
    assert labels.tolist() == [float(line.startswith("1")) for line in lines]


def test_only_the_first_records_are_read(log: Path) -> None:
    ((labels, indexes),) = torch_fm.minibatches(log, 12, records=100)
    assert labels.shape == (100,)
    assert indexes.shape == (100, 39)


def test_missing_torch_is_one_clear_sentence(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_fm, "installed", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install torch=="):
        torch_fm.learn(log)


@pytest.mark.full
def test_learns_from_what_was_parsed(log: Path) -> None:
    pytest.importorskip("torch", reason="comes with the extra `deep`")
    result = torch_fm.learn(log, records=400, dim=4, bits=12)
    assert result["examples"] == 400
    assert 0 < result["logloss"] < 1
    assert result["cpu_seconds"] >= result["learn_cpu_seconds"] > 0
