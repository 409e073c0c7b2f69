from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import criteo_log
import vw


def _converted(line: str) -> str:
    """Return a record in VW's format, the slow and obvious way."""
    label, *fields = line.split("\t")
    said = ["1" if label == "1" else "-1", "|a"]
    names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abcdefghijklmnopqrstuvwxyz"
    for place, text in enumerate(fields):
        if text and place < 13:
            bits = int(np.float32(int(text)).view(np.uint32)) >> 21
            said.append(f"{names[place]}{bits}")
        elif text:
            said.append(names[place] + text)
    return " ".join(said)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    criteo_log.generate(path, 500, seed=5)
    return path


def test_converter_equals_its_slow_twin(log: Path, tmp_path: Path) -> None:
    target = tmp_path / "log.vw"
    vw.convert(log, target)
    expected = [_converted(line) for line in log.read_text().splitlines()]
    assert target.read_text().splitlines() == expected


def test_records_across_blocks_are_converted_once(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / "whole.vw", tmp_path / "pieces.vw"
    vw.convert(log, whole)
    monkeypatch.setattr(vw, "BLOCK_BYTES", 1000)
    vw.convert(log, pieces)
    assert pieces.read_bytes() == whole.read_bytes()


def test_labels_are_the_first_characters(log: Path) -> None:
    expected = [line.startswith("1") for line in log.read_text().splitlines()]
    assert vw.labels_of(log).tolist() == expected


@pytest.mark.full
def test_learns_from_what_was_converted(log: Path, tmp_path: Path) -> None:
    pytest.importorskip("vowpalwabbit", reason="comes with the extra `bench`")
    target = tmp_path / "log.vw"
    vw.convert(log, target)
    result = vw.run(target, ["--ftrl", "-b", "18"], labels=vw.labels_of(log))
    assert result["examples"] == 500
    assert 0 < result["logloss"] < 1
    assert 0 <= result["auc"] <= 1
