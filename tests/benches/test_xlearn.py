from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import criteo_log
import xlearn

MASK = (1 << 64) - 1


def _key(word: int, seed: int) -> int:
    """Mix a word with a seed, as the parsers do."""
    mixed = (word ^ seed) * 0x9E3779B97F4A7C15 & MASK
    return (mixed ^ mixed >> 32) * 0xBF58476D1CE4E5B9 & MASK | 1


def _converted(line: str, bits: int) -> str:
    """Return a record in xLearn's format, the slow and obvious way."""
    label, *fields = line.split("\t")
    said = [label]
    for place, text in enumerate(fields):
        seed = (place + 1) * 0x9E3779B97F4A7C15 & MASK
        if text and place < 13:
            word = int(np.float32(int(text)).view(np.uint32)) >> 21
            said.append(f"{_key(word, seed) >> 64 - bits:08}:1")
        elif text:
            word = int.from_bytes(text.encode(), "little")
            said.append(f"{_key(word, seed) >> 64 - bits:08}:1")
    return " ".join(said)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    criteo_log.generate(path, 500, seed=5)
    return path


@pytest.mark.parametrize("bits", [1, 10, 24, 26])
def test_converter_equals_its_slow_twin(log: Path, tmp_path: Path, bits: int) -> None:
    target = tmp_path / "log.svmlight"
    xlearn.convert(log, target, bits)
    expected = [_converted(line, bits) for line in log.read_text().splitlines()]
    assert target.read_text().splitlines() == expected


def test_records_across_blocks_are_converted_once(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    xlearn.convert(log, whole)
    monkeypatch.setattr(xlearn, "BLOCK_BYTES", 1000)
    xlearn.convert(log, pieces)
    assert pieces.read_bytes() == whole.read_bytes()


def test_bits_beyond_eight_digits_are_refused(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bits is 27; expected 1 to 26"):
        xlearn.convert(log, tmp_path / "log.svmlight", 27)


def test_programs_stand_in_one_folder(tmp_path: Path) -> None:
    train, predict = tmp_path / "xlearn_train", tmp_path / "xlearn_predict"
    train.touch()
    with pytest.raises(FileNotFoundError, match="xlearn_predict: no such program"):
        xlearn.programs(tmp_path)
    predict.touch()
    assert xlearn.programs(tmp_path) == (train, predict)
    assert xlearn.programs(train) == (train, predict)


def _program(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)


def test_what_the_program_says_is_read(tmp_path: Path) -> None:
    _program(
        tmp_path / "xlearn_train",
        r"""printf 'Time cost for reading problem: 1.50 (sec)\n'
        printf 'Time cost for model initial: 0.25 (sec)\n'
        printf '\033[32m[ \033[0m 100%%\033[32m      ]\033[0m     1      0.482320      3.14\n'""",
    )
    (tmp_path / "xlearn_predict").touch()
    result = xlearn.run(tmp_path, tmp_path / "text", rate=0.2)
    said = [result[key] for key in ("logloss", "read_seconds", "start_seconds", "learn_seconds")]
    assert said == [0.48232, 1.5, 0.25, 3.14]


def test_a_failure_with_exit_status_0_is_told(tmp_path: Path) -> None:
    for name in ("xlearn_train", "xlearn_predict"):
        _program(tmp_path / name, "echo Arguments error")
    with pytest.raises(RuntimeError, match=r"said no loss.*Arguments error"):
        xlearn.run(tmp_path, tmp_path / "text", rate=0.2)
    with pytest.raises(RuntimeError, match=r"scored 0 of 2 records.*Arguments error"):
        xlearn.score(tmp_path, tmp_path / "model", tmp_path / "text", np.array([True, False]))


def test_scores_are_logits(tmp_path: Path) -> None:
    (tmp_path / "xlearn_train").touch()
    # the -o of: TEXT MODEL -o OUT
    _program(tmp_path / "xlearn_predict", r"printf '0\n0\n2\n-1\n' > $4")
    labels = np.array([True, False, True, False])
    loss, auc = xlearn.score(tmp_path, tmp_path / "model", tmp_path / "text", labels)
    expected = (2 * np.log(2) + np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 4
    assert loss == pytest.approx(expected)
    assert auc == 0.875
