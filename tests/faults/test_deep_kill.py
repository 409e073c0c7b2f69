"""SIGKILL of shards and workers of a net: embeddings count each record once, the net goes on.

``KILLS=60 SEED=7 pytest tests/faults/test_deep_kill.py`` kills half as often, at other moments.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="comes with the extra `deep`")

from safetensors.numpy import load as tensors_of

import kill_run
import recount
from streamlearn.dense_blob import DENSE
from streamlearn.shards.snapshot import newest
from tests.click_log import clicks, spoiled, text, written
from tests.conftest import FULL
from tests.runs import bad_records, run, settings

# A worker that comes back imports torch anew, which takes most of the time: half as many kills.
KILLS = max(1, int(os.environ.get("KILLS", "10" if FULL else "4")) // 2)
SEED = int(os.environ.get("SEED", "1"))
RECORDS, FILES = 24_000, 4
# Undisturbed runs differ by 0.003 among themselves and from one process.
TOLERANCE = 0.01
MODEL = (
    *("--format", "criteo", "--model", "deep", "--net", "wide_deep", "--dim", "4"),
    *settings("model.settings={hidden = [16]}", "model.lr=0.003", "compute.lanes=1"),
)
CLUSTER = (
    *("--shards", "2", "--workers", "2", "--tau", "4"),
    *settings(
        "compute.minibatch=32", "source.range_bytes=400000", "output.snapshot_seconds=1",
        "cluster.lease_seconds=1",
    ),
)  # fmt: skip


@dataclass
class Learned:
    """A log, another of the same truth, and what one process has learned of it."""

    sources: list[Path]
    records: int
    held_out: Path
    alone: Path


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    directory = tmp_path_factory.mktemp("logs")
    sources, total = [], 0
    for number in range(FILES):
        records, _ = spoiled(clicks(RECORDS // FILES, number), 200, number)
        sources.append(written(directory / f"{number}.tsv", text(records)))
        total += len(records)
    held_out = written(directory / "held_out.tsv", text(clicks(5_000, 99)))
    alone = tmp_path_factory.mktemp("alone")
    more = settings("compute.minibatch=64")
    ended = run("train", *sources, *MODEL, *more, "--out", alone, "--quiet")
    assert ended.code == 0, ended.stderr
    return Learned(sources, total, held_out, alone)


def killed(learned: Learned, out: Path, kills: int, *pairs: str) -> kill_run.Killed:
    arguments = [*map(str, learned.sources), *MODEL, *CLUSTER, *settings(*pairs)]
    return kill_run.run_killed(arguments, out, learned.records, kills=kills, seed=SEED)


def loss_of(learned: Learned, out: Path) -> float:
    found = kill_run.evaluate(out, learned.held_out, "--format", "criteo")
    return float(found["loss"])


def kept(root: Path) -> dict[str, Any]:
    """Return the dense part in the newest snapshot there."""
    reader, skipped = newest(root)
    assert reader is not None, skipped
    with reader:
        return tensors_of(reader.read(DENSE).tobytes())


def check(learned: Learned, out: Path) -> None:
    """Check what counts exactly, whatever was killed, and that the model has the newest net."""
    assert recount.differences(out, 2, learned.alone) == []
    found, expected = (
        {(one["uri"], one["offset"]) for one in bad_records(path)} for path in (out, learned.alone)
    )
    assert found == expected
    states = [kept(out / "workers" / f"worker-{number}" / "state") for number in (0, 1)]
    furthest = max(states, key=lambda state: int(state["steps"][0]))
    model = kept(out / "model")
    for name, array in furthest.items():
        if not name.startswith("exchange."):
            np.testing.assert_array_equal(model[name], array)


def test_two_workers_learn_as_well_as_one_process(learned: Learned, tmp_path: Path) -> None:
    ran = killed(learned, tmp_path / "out", 0, "model.delay=1")
    assert ran.report["restarts"] == 0
    check(learned, tmp_path / "out")
    expected = loss_of(learned, learned.alone)
    assert loss_of(learned, tmp_path / "out") == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("durability", "delay"), [("log", 1), *([("snapshot", 0)] if FULL else [])]
)
def test_killed_shards_and_workers_leave_as_good_a_net(
    learned: Learned, tmp_path: Path, durability: str, delay: int
) -> None:
    out = tmp_path / "out"
    pairs = (f"tables.durability={durability}", f"model.delay={delay}")
    ran = killed(learned, out, KILLS, *pairs)
    seed = f"seed {SEED}: {ran.kills}"
    assert len(ran.kills) == KILLS, seed
    check(learned, out)
    expected = loss_of(learned, learned.alone)
    assert loss_of(learned, out) == pytest.approx(expected, abs=2 * TOLERANCE), seed
