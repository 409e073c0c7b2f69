"""What a cluster consists of, and which of the state on disk counts."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamlearn.cluster.plan import Plan, adopt, laid_out, processes
from streamlearn.cluster.roles import UpOptions
from streamlearn.cluster.stored_shards import StoredShards, counts_of_shards
from streamlearn.config import (
    MODELS,
    ComputeConfig,
    JobConfig,
    LrConfig,
    OutputConfig,
    SourceConfig,
    load_job,
)
from streamlearn.errors import ClusterError, ConfigError, RunError
from streamlearn.protocol import Mark
from streamlearn.shards.snapshot import SnapshotWriter
from tests.cluster_state import write_shard

JOB = JobConfig(source=SourceConfig(uri=("a.csv", "s3://b/*", "~/c"), format="criteo"))
MARKS = [Mark("a", "1", 0, 3, 100, 10)]


def rows() -> np.ndarray:
    keys = np.arange(1, 1 << 60, 1 << 53, dtype=np.uint64) * np.uint64(16) | np.uint64(1)
    made = np.zeros((len(keys), 4), np.uint64)
    made[:, 0] = np.sort(keys)
    return made


def spread(out: Path, of: int, job: JobConfig = JOB) -> None:
    for index in range(of):
        write_shard(out, job, index, of, rows(), MARKS)


def place(name: str, before: list[str], ports: int) -> list[str]:
    return before or [f"h-{name}:{port}" for port in range(1, ports + 1)]


# --- which state counts


def test_a_new_directory_is_planned_as_asked(tmp_path: Path) -> None:
    plan, done = adopt(tmp_path, JOB, 3, now=1.0)
    assert (plan.shards, plan.addresses, done) == (3, {}, "")


def test_state_goes_on_as_it_is(tmp_path: Path) -> None:
    spread(tmp_path, 2)
    plan, done = adopt(tmp_path, JOB, 2, now=1.0)
    assert (plan.shards, done) == (2, "")
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan


@pytest.mark.parametrize("planned", [True, False])
def test_state_of_another_number_of_shards_is_made_that_of_this(
    tmp_path: Path, planned: bool
) -> None:
    spread(tmp_path, 2)
    (tmp_path / "followers" / "000-of-002-0").mkdir(parents=True)
    if planned:
        adopt(tmp_path, JOB, 2, now=1.0)[0].write(tmp_path)
    plan, done = adopt(tmp_path, JOB, 3, now=1.0)
    assert done == "2 shards became 3"
    assert plan.shards == 3
    assert counts_of_shards(tmp_path) == [3]
    assert not (tmp_path / "followers").exists()
    found = Plan.read(tmp_path)
    assert found is not None
    assert found.shards == 3
    with StoredShards(tmp_path, 3) as shards:
        assert np.array_equal(np.concatenate([part.rows for part in shards.parts()]), rows())
        assert shards.marks == MARKS


def test_what_a_crash_left_half_done_is_done_anew(tmp_path: Path) -> None:
    spread(tmp_path, 2)
    adopt(tmp_path, JOB, 2, now=1.0)[0].write(tmp_path)
    write_shard(tmp_path, JOB, 0, 3, rows()[:5], [])  # the plan still says 2
    adopt(tmp_path, JOB, 3, now=1.0)
    with StoredShards(tmp_path, 3) as shards:
        assert shards.features == len(rows())


def test_what_a_crash_left_of_the_old_shards_is_removed(tmp_path: Path) -> None:
    spread(tmp_path, 2)
    adopt(tmp_path, JOB, 3, now=1.0)
    write_shard(tmp_path, JOB, 1, 2, rows()[:5], [])  # the plan says 3
    adopt(tmp_path, JOB, 3, now=1.0)
    assert counts_of_shards(tmp_path) == [3]


def test_state_that_nothing_says_counts_is_refused(tmp_path: Path) -> None:
    spread(tmp_path, 2)
    spread(tmp_path, 3)
    with pytest.raises(ClusterError, match="has the state of 2 and of 3 shards"):
        adopt(tmp_path, JOB, 2, now=1.0)
    assert counts_of_shards(tmp_path) == [2, 3]


def test_state_of_another_job_is_refused(tmp_path: Path) -> None:
    spread(tmp_path, 2)
    adopt(tmp_path, JOB, 2, now=1.0)[0].write(tmp_path)
    other = msgspec.structs.replace(JOB, model=LrConfig(alpha=0.5))
    with pytest.raises(ClusterError, match="is of a job with signature") as caught:
        adopt(tmp_path, other, 2, now=1.0)
    assert caught.value.cause is None
    (tmp_path / "job.toml").write_text('[source]\nformat = "criteo"\n')
    with pytest.raises(ClusterError) as caught:
        adopt(tmp_path, other, 2, now=1.0)
    assert caught.value.cause == "model.alpha is 0.5, was 0.1"


def test_shards_that_have_not_drained_keep_their_number(tmp_path: Path) -> None:
    write_shard(tmp_path, JOB, 0, 2, rows(), MARKS)
    write_shard(tmp_path, JOB, 1, 2, rows(), [])
    with pytest.raises(ClusterError, match="have not drained"):
        adopt(tmp_path, JOB, 3, now=1.0)
    assert counts_of_shards(tmp_path) == [2]
    assert adopt(tmp_path, JOB, 2, now=1.0)[0].shards == 2


def test_a_model_of_one_process_is_not_overwritten(tmp_path: Path) -> None:
    with SnapshotWriter(tmp_path / "model", 1) as writer:
        writer.commit({"kind": "lr"})
    with pytest.raises(ConfigError, match="was learned in one process"):
        adopt(tmp_path, JOB, 2, now=1.0)
    with SnapshotWriter(tmp_path / "model", 2) as writer:
        writer.commit({"kind": "lr", "gathered": {"shards": 2}})
    with pytest.raises(ConfigError, match="gathered from are gone"):
        adopt(tmp_path, JOB, 2, now=1.0)
    spread(tmp_path, 2)
    adopt(tmp_path, JOB, 2, now=1.0)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": "x"}', "\x00"])
def test_a_damaged_plan_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(ClusterError, match=r"cluster\.json cannot be read"):
        adopt(tmp_path, JOB, 2, now=1.0)


# --- what runs


def test_shards_come_first_and_everything_has_its_place(tmp_path: Path) -> None:
    options = UpOptions(shards=2, workers=1, followers=1, directory=tmp_path)
    plan = Plan(2, "x")
    found = {process.name: process for process in processes(options, plan, place)}
    assert list(found) == ["shard-0", "shard-1", "worker-0", "follower-0-0", "follower-1-0"]
    job = str(tmp_path / "job.toml")
    assert found["shard-1"].arguments == (
        *("shard", job, "--index", "1", "--of", "2", "--dir", f"{tmp_path}/shards/001-of-002"),
        *("--listen", "h-shard-1:1", "--http", "h-shard-1:2", "--json-logs"),
    )
    assert found["worker-0"].arguments == (
        *("worker", job, "--name", "worker-0", "--dir", f"{tmp_path}/workers/worker-0"),
        *("--http", "h-worker-0:1", "--json-logs"),
    )
    assert found["follower-1-0"].arguments == (
        *("follower", job, "--of-shard", "h-shard-1:1"),
        *("--dir", f"{tmp_path}/followers/001-of-002-0", "--listen", "h-follower-1-0:1"),
        *("--http", "h-follower-1-0:2", "--json-logs"),
    )
    assert found["worker-0"].http == "h-worker-0:1"
    assert plan.addresses["follower-1-0"] == ["h-follower-1-0:1", "h-follower-1-0:2"]


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        ("cuda:0, cuda:1", 3, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:0,cuda:1", 1, [None]),
        ("auto", 2, [None, None]),
    ],
)
def test_workers_take_turns_at_devices(
    tmp_path: Path, device: str, workers: int, expected: list[str | None]
) -> None:
    options = UpOptions(shards=1, workers=workers, directory=tmp_path)
    told = []
    for process in processes(options, Plan(1, "x"), place, device):
        if process.role == "worker":
            words = process.arguments
            told.append(words[words.index("--device") + 1] if "--device" in words else None)
    assert told == expected


def test_workers_of_nets_share_the_cores(tmp_path: Path) -> None:
    options = UpOptions(shards=1, workers=1 << 12, directory=tmp_path)
    for lanes, model, expected in ((0, "deep", 1), (3, "deep", 3), (0, "lr", 0)):
        plan = Plan(1, "x")
        processes(options, plan, place)
        told = msgspec.structs.replace(
            JOB, model=MODELS[model](), compute=ComputeConfig(lanes=lanes)
        )
        laid_out(told, options, plan)
        assert load_job(tmp_path / "job.toml").job.compute.lanes == expected


def test_addresses_are_asked_for_again(tmp_path: Path) -> None:
    options = UpOptions(shards=1, workers=1, directory=tmp_path)
    plan = Plan(1, "x", {"shard-0": ["k:1", "k:2"], "gone": ["k:3"]})
    assert processes(options, plan, place)[0].http == "k:2"
    assert set(plan.addresses) == {"shard-0", "worker-0"}


def test_every_process_reads_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    job = msgspec.structs.replace(JOB, output=OutputConfig(dir="out", names_max=7))
    options = UpOptions(shards=2, workers=1, directory=Path("out"))
    plan = Plan(2, "x")
    processes(options, plan, place)
    laid_out(job, options, plan)
    found = load_job(out / "job.toml").job
    assert found.source.uri == (str(tmp_path / "a.csv"), "s3://b/*", "~/c")
    assert found.tables.shards == ("h-shard-0:1", "h-shard-1:1")
    assert found.output == job.output
    assert found.model == job.model
    assert json.loads((out / "cluster.json").read_text())["shards"] == 2
    assert not list(out.glob("*.partial"))


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    options = UpOptions(shards=1, workers=1, directory=tmp_path / "none")
    plan = Plan(1, "x")
    processes(options, plan, place)
    with pytest.raises(RunError, match="cannot write"):
        laid_out(JOB, options, plan)
