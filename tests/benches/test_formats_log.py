from __future__ import annotations

import json
from pathlib import Path

import pytest

import criteo_log
import formats_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    criteo_log.generate(path, 300, seed=3)
    return path


def _records(log: Path) -> list[list[str]]:
    return [line.split("\t") for line in log.read_text().splitlines()]


def test_jsonl_says_what_the_log_says(log: Path, tmp_path: Path) -> None:
    target = tmp_path / "log.jsonl"
    formats_log.write(log, target, formats_log.JSONL)
    for (label, *fields), line in zip(_records(log), target.read_text().splitlines(), strict=True):
        names = [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
        expected = {name: text for name, text in zip(names, fields, strict=True) if text}
        said = json.loads(line)
        assert said.pop("label") == int(label)
        assert {name: str(value) for name, value in said.items()} == expected


@pytest.mark.parametrize("kind", [formats_log.SVMLIGHT, formats_log.LIBFFM])
def test_pairs_keep_label_integers_and_number_of_fields(
    log: Path, tmp_path: Path, kind: int
) -> None:
    target = tmp_path / "log.pairs"
    formats_log.write(log, target, kind)
    for (label, *fields), line in zip(_records(log), target.read_text().splitlines(), strict=True):
        said, *pairs = line.split(" ")
        assert said == label
        assert len(pairs) == sum(map(bool, fields))
        split = [pair.split(":") for pair in pairs]
        integers = [text for text in fields[:13] if text]
        assert [pair[-1] for pair in split[: len(integers)]] == integers
        assert all(len(pair) == (3 if kind == formats_log.LIBFFM else 2) for pair in split)


def test_same_token_gets_the_same_index(log: Path, tmp_path: Path) -> None:
    target = tmp_path / "log.svmlight"
    formats_log.write(log, target, formats_log.SVMLIGHT)
    indexes: dict[tuple[int, str], str] = {}
    for (_, *fields), line in zip(_records(log), target.read_text().splitlines(), strict=True):
        present = [(place, text) for place, text in enumerate(fields) if text]
        for key, pair in zip(present, line.split(" ")[1:], strict=True):
            if key[0] >= 13:
                assert indexes.setdefault(key, pair) == pair
