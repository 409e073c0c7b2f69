"""A model of one field of forty words, stopped and resumed in the middle of its log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamlearn.model import Model
from streamlearn.online.features import field_seed
from tests.click_log import written
from tests.reference.words import token_key
from tests.runs import run, settings

WORDS = [f"wörd {n}" for n in range(40)]


def learned(directory: Path, index: str) -> Path:
    """Return the output directory of the model, with a table of this kind."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 2, len(WORDS))
    rows = rng.integers(0, len(WORDS), 6_000)
    labels = rng.random(6_000) < 1 / (1 + np.exp(-weights[rows]))
    lines = [f"{label:d},{WORDS[row]}" for label, row in zip(labels, rows, strict=True)]
    table = settings(f"tables.index={index}", "tables.bits=16")
    flags = ["--format", "delimited", "--header", "--column", "y=label", *table]
    flags += ["--column", "color=categorical", "--out", directory / "out"]
    sources = []
    for number in (0, 1):
        part = lines[number * 3_000 : (number + 1) * 3_000]
        data = ("y,color\n" + "\n".join(part) + "\n").encode()
        sources.append(written(directory / f"{number}.csv", data))
        ended = run("train", *sources, *flags)
        assert ended.code == 0, ended.stderr
    return directory / "out"


def twin(model: Model) -> dict[str, float]:
    """Return the weight of each word, looked up by its key."""
    seed = int(field_seed("color"))
    keys = np.array([token_key(word.encode(), seed) for word in WORDS], np.uint64)
    return dict(zip(WORDS, model.weights_at(keys).tolist(), strict=True))
