"""Small nets, learned from logs of their own by the command line; torch is wanted for all."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.runs import run, settings

KINDS = ("clicks", "bags", "numbers", "images")
CLASSES = ("plain", "striped", "dot\tted")


@dataclass(frozen=True)
class Learned:
    """What was learned, and of what.

    Attributes
    ----------
    out : Path
        Output directory.
    log : Path
        Its records.
    rows : list of dict
        Those, as they were made.
    """

    out: Path
    log: Path
    rows: list[dict[str, Any]]


def learned(directory: Path, kind: str, rows: int = 3_000) -> Learned:
    """Learn a small net of this kind of records."""
    dice = np.random.default_rng(7)
    made, log, flags = globals()[f"_{kind}"](directory, dice, rows)
    flags = [*flags, "--model", "deep", "--out", directory / "out"]
    more = settings("model.lr=0.01", "model.epochs=1", "compute.minibatch=256", "model.dim=4")
    ended = run("train", log, *flags, *more)
    assert ended.code == 0, ended.stderr
    return Learned(directory / "out", log, made)


def _clicks(directory: Path, dice: np.random.Generator, n: int) -> tuple[Any, ...]:
    """Two categories and two numbers, one of them about a billion and missing now and then."""
    rows = []
    for _ in range(n):
        color, shape = f"c{dice.integers(20)}", f"s{dice.integers(7)}"
        size, when = round(float(dice.normal(5, 3)), 3), int(1e9 + dice.normal(0, 1000))
        yes = dice.random() < 1 / (1 + np.exp(-(int(color[1:]) % 3 - 1 + (size - 5) / 2)))
        missing = dice.random() < 0.1
        rows.append(
            {"y": int(yes), "color": color, "shape": shape, "size": size}
            | {"when": None if missing else when}
        )
    log = directory / "log.csv"
    lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
    log.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    columns = ("y=label", "color=categorical", "shape=categorical", "size=number:raw")
    flags = ["--format", "delimited", "--header", "--net", "deepfm"]
    flags += [word for one in (*columns, "when=number:raw") for word in ("--column", one)]
    return rows, log, [*flags, *settings("model.settings={hidden=[8]}")]


def _bags(directory: Path, dice: np.random.Generator, n: int) -> tuple[Any, ...]:
    """Several words and one place, of three classes."""
    rows = []
    for _ in range(n):
        words = [f"w{i}" for i in dice.integers(0, 30, dice.integers(0, 5))]
        score = sum(int(word[1:]) % 3 for word in words)
        label = int(dice.integers(3)) if dice.random() < 0.2 else score % 3
        rows.append({"label": CLASSES[label], "words": words, "place": f"p{dice.integers(4)}"})
    log = directory / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--format", "jsonl", "--net", "mlp", "--loss", "classes"]
    flags += ["--column", "words=categorical", "--column", "place=categorical"]
    pooled = settings("model.settings={hidden=[8]}", "model.pooling=mean")
    return rows, log, [*flags, *(w for text in CLASSES for w in ("--class", text)), *pooled]


def _numbers(directory: Path, dice: np.random.Generator, n: int) -> tuple[Any, ...]:
    """A number of three others."""
    rows = []
    for _ in range(n):
        a, b, c = (round(float(x), 4) for x in dice.normal(size=3))
        rows.append({"y": round(a * b + c, 4), "a": a, "b": b, "c": c})
    log = directory / "log.csv"
    lines = [",".join(map(str, row.values())) for row in rows]
    log.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    flags = ["--format", "delimited", "--header", "--net", "mlp", "--loss", "squared"]
    columns = ("y=label", "a=number:raw", "b=number:raw", "c=number:raw")
    return rows, log, [*flags, *(word for one in columns for word in ("--column", one))]


def _images(directory: Path, dice: np.random.Generator, n: int) -> tuple[Any, ...]:
    """Bars that stand or lie, 8 x 8."""
    labels = dice.integers(0, 2, n).astype(np.uint8)
    images = dice.integers(0, 60, (n, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        at = dice.integers(8)
        (image if label else image.T)[at] += 180
    log = directory / "train-images-idx3-ubyte"
    log.write_bytes(struct.pack(">4B3i", 0, 0, 8, 3, n, 8, 8) + images.tobytes())
    beside = directory / "train-labels-idx1-ubyte"
    beside.write_bytes(struct.pack(">4Bi", 0, 0, 8, 1, n) + labels.tobytes())
    rows = [
        {"label": int(label), "image": image} for label, image in zip(labels, images, strict=True)
    ]
    flags = ["--format", "idx", "--net", "convnet", "--loss", "classes", "--classes", "2"]
    return rows, log, [*flags, *settings("model.settings={width=2,hidden=8,dropout=0.0}")]
