"""SIGKILL of shards and workers, again and again during one pass: every record counts once.

``KILLS=50 SEED=7 pytest tests/faults/test_cluster_kill.py`` kills so often, at other moments; the
full suite kills 50 times.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import kill_run
import recount
from tests.click_log import clicks, spoiled, text, written
from tests.conftest import FULL
from tests.runs import bad_records, run, settings

KILLS = int(os.environ.get("KILLS", "50" if FULL else "10"))
# Of a factorization machine, whose shards have more to lose and no more ways to lose it.
FM_KILLS = int(os.environ.get("KILLS", "20" if FULL else "3"))
FM = settings(
    "model.kind=fm", "model.order=3", "model.dim_by_count={2 = 4, 30 = 12}", "model.v_lr=0.02",
)  # fmt: skip
SEED = int(os.environ.get("SEED", "1"))
RECORDS = 120_000
# Of two undisturbed runs, which differ in the order in which minibatches come; and more for those
# that come again.
LOSS_TOLERANCE = 0.01
CLUSTER = (
    *("--shards", "2", "--workers", "2", "--lanes", "1", "--tau", "4"),
    *settings(
        "source.range_bytes=1048576",
        "output.snapshot_seconds=1",
        "cluster.lease_seconds=1",
    ),
)


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
    times = RECORDS // 30_000
    sources, total = [], 0
    for number, name in enumerate(("a.tsv", "b.tsv.gz", "c.tsv.zst")):
        records, _ = spoiled(clicks(10_000, number), 200, number)
        sources.append(written(directory / name, text(records) * times))
        total += len(records) * times
    held_out = written(directory / "held_out.tsv", text(clicks(10_000, 99)))
    alone = tmp_path_factory.mktemp("alone")
    ended = run("train", *sources, "--format", "criteo", "--out", alone, "--quiet")
    assert ended.code == 0, ended.stderr
    return Learned(sources, total, held_out, alone)


def job(learned: Learned, durability: str, model: Sequence[str] = ()) -> list[str]:
    sources = map(str, learned.sources)
    # The more kills, the smaller minibatches: a pass that lasts until the last of them.
    minibatch = max(2, 160 // max(FM_KILLS if model else KILLS, 1))
    pairs = settings(f"tables.durability={durability}", f"compute.minibatch={minibatch}")
    return [*sources, "--format", "criteo", *CLUSTER, *pairs, *model]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What says which model is learned."""
    return tuple(FM) if request.param == "fm" else ()


@pytest.fixture(scope="module")
def undisturbed(
    learned: Learned, model: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> float:
    """The loss of an undisturbed run on what it has not seen."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    kill_run.run_killed(job(learned, "log", model), out, learned.records, kills=0, seed=0)
    assert recount.differences(out, 2, learned.alone) == []
    return float(kill_run.evaluate(out, learned.held_out, "--format", "criteo")["logloss"])


@pytest.mark.parametrize(
    ("model", "durability"), [("lr", "log"), ("lr", "snapshot"), ("fm", "log")], indirect=["model"]
)
def test_a_killed_cluster_goes_on_by_itself_and_counts_every_record_once(
    learned: Learned, undisturbed: float, model: tuple[str, ...], tmp_path: Path, durability: str
) -> None:
    out, kills = tmp_path / "out", FM_KILLS if model else KILLS
    ran = kill_run.run_killed(
        job(learned, durability, model), out, learned.records, kills=kills, seed=SEED
    )
    seed = f"seed {SEED}: {ran.kills}"
    assert len(ran.kills) == kills, seed
    assert ran.report["restarts"] == kills, seed
    assert (ran.report.get("embeddings", 0) > 100) == bool(model), seed
    assert recount.differences(out, 2, learned.alone) == [], seed
    kept = Counter((entry["uri"], entry["offset"]) for entry in bad_records(out))
    assert set(kept) == {(entry["uri"], entry["offset"]) for entry in bad_records(learned.alone)}
    assert set(kept.values()) == {1}
    loss = kill_run.evaluate(out, learned.held_out, "--format", "criteo")["logloss"]
    assert loss == pytest.approx(undisturbed, abs=LOSS_TOLERANCE), seed
