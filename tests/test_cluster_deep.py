"""A net over shards: what is counted, resumed and refused. (Groups of workers: tests/cluster.)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.cluster.gathering import gather  # noqa: E402
from streamlearn.errors import SnapshotError  # noqa: E402
from streamlearn.protocol import ClassMark  # noqa: E402
from streamlearn.shards.arena import dims_of  # noqa: E402
from tests.click_log import clicks, spoiled  # noqa: E402
from tests.cluster_parts import Cluster, Logs, check_counted  # noqa: E402
from tests.cluster_state import write_shard  # noqa: E402
from tests.shard_parts import job  # noqa: E402

MODEL: dict[str, Any] = {
    "kind": "deep", "net": "wide_deep", "settings": {"hidden": (8,)}, "dim": 3, "lr": 0.01,
    "v_lr": 0.3, "v_init_scale": 0.1,
}  # fmt: skip


def click_logs(directory: Path, files: int = 3, count: int = 150) -> Any:
    """Write logs of clicks, some records bad; return them as ``cluster_parts.Logs`` does."""
    directory.mkdir(parents=True, exist_ok=True)
    logs = SimpleNamespace(good={}, bad={}, sizes={}, paths=())
    for number in range(files):
        records, bad = spoiled(clicks(count + 31 * number, number, tokens=20), 40, number)
        path = directory / f"{number}.tsv"
        path.write_bytes(b"".join(record + b"\n" for record in records))
        logs.paths += (str(path),)
        logs.good[path.name], logs.bad[path.name] = len(records) - bad, bad
        logs.sizes[path.name] = path.stat().st_size
    logs.source = {"uri": logs.paths, "format": "criteo"}
    return logs


def cluster_of(directory: Path, logs: Any, model: dict[str, Any] | None = None, **more: Any):
    settled = {"minibatch": 16, "tau": 2} | more
    return Cluster(directory, model=MODEL | (model or {}), source=logs.source, **settled)


def check_embeddings(cluster: Cluster) -> None:
    """Check that every feature has an embedding, of finite numbers."""
    for index in range(2):
        table = cluster.shard(index).table
        assert table.arena is not None
        for segment in table.key_order():
            rows = table.rows(segment)
            assert (dims_of(rows[:, 3]) == MODEL["dim"]).all()
            numbers = table.arena.coordinates_at(table.find(rows[:, 0]))
            assert all(np.isfinite(one).all() for one in numbers)


@pytest.mark.parametrize("epochs", [1, 2])
async def test_every_record_is_counted_once_a_pass(tmp_path: Path, epochs: int) -> None:
    logs = click_logs(tmp_path / "log")
    async with cluster_of(tmp_path, logs, {"epochs": epochs}) as cluster:
        running = cluster.start_worker("a")
        await cluster.finish()
        check_counted(cluster, logs, epochs)
        check_embeddings(cluster)
        net = running.worker.net
        steps = sum(mark.sequence for mark in cluster.marks(0).values())
        assert net.net.steps >= steps * epochs - len(logs.paths) * epochs  # some have no example
        figures = running.worker.validation.summary()
        assert figures["loss"] < 0.65


@pytest.mark.parametrize("rule", ["adagrad", "rowwise"])
async def test_one_worker_in_step_learns_the_same_over_any_number_of_shards(
    tmp_path: Path, rule: str
) -> None:
    logs = click_logs(tmp_path / "log", 1)
    states = []
    for shards in (1, 2):
        in_step = {"tau": 0, "window": 1, "shards": shards}
        made = cluster_of(tmp_path / str(shards), logs, {"v_rule": rule}, **in_step)
        async with made as cluster:
            running = cluster.start_worker("a")
            await cluster.finish()
            states.append(running.worker.net.state())
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name])


@pytest.mark.parametrize("index", [0, 1])
async def test_killed_shard_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, index: int
) -> None:
    logs = click_logs(tmp_path / "log")
    async with cluster_of(tmp_path, logs, lease_seconds=0.5, minibatch=8) as cluster:
        cluster.start_worker("a")
        for _ in range(2):
            await cluster.progress(8)
            await cluster.kill_shard(index)
            await cluster.start_shard(index)
        await cluster.finish()
        check_counted(cluster, logs)
        check_embeddings(cluster)


async def test_another_worker_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    logs = click_logs(tmp_path / "log")
    async with cluster_of(tmp_path, logs, lease_seconds=0.2, minibatch=8) as cluster:
        first = cluster.start_worker("a")
        await cluster.progress(8)
        await first.end()
        cluster.workers.remove(first)
        second = cluster.start_worker("b")
        await cluster.finish()
        check_counted(cluster, logs)
        assert second.worker.stepper.group.generation == 2


async def test_kept_dense_part_is_where_another_process_goes_on(tmp_path: Path) -> None:
    logs = click_logs(tmp_path / "log")
    async with cluster_of(tmp_path, logs) as cluster:
        first = cluster.start_worker("a")
        await cluster.progress(8)
        first.worker.stop()
        await cluster.finish()
        kept = first.worker.net.state()
        assert kept["steps"][0] > 0
        second = cluster.start_worker("a")
        second.worker.net.restore(kept)
        await cluster.finish()
        check_counted(cluster, logs)
        assert second.worker.net.net.steps > kept["steps"][0]


async def test_classes_are_marked_with_how_many_were_right(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "log", 2, 200)
    model = {"net": "mlp", "loss": "classes", "classes": 2}
    async with cluster_of(tmp_path, logs, model) as cluster:
        running = cluster.start_worker("a")
        await cluster.finish()
        check_counted(cluster, logs)
        marks = cluster.marks(0).values()
        assert all(type(mark) is ClassMark for mark in marks)
        examples = sum(mark.examples for mark in marks)
        correct = sum(mark.correct for mark in marks)
        assert 0.5 * examples < correct < examples
        assert running.worker.validation.totals().correct == pytest.approx(correct)


def test_shards_and_the_command_line_need_no_torch() -> None:
    program = (
        "import sys\n"
        "import streamlearn.cli, streamlearn.cluster.shard_node, streamlearn.cluster.worker_node\n"
        "from tests.shard_parts import Desk, job, spec\n"
        "Desk(spec(job(model={'kind': 'deep'})))\n"
        "print([name for name in sys.modules if name in ('torch', 'safetensors')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_model_is_not_gathered_without_a_dense_part(tmp_path: Path) -> None:
    logs = click_logs(tmp_path / "log", 1)
    of_job = job(model=MODEL, source=logs.source)
    rows = np.zeros((0, 4), np.uint64)
    write_shard(tmp_path / "out", of_job, 0, 1, rows, [])
    with pytest.raises(SnapshotError, match="no worker has kept the dense part"):
        gather(tmp_path / "out", of_job, 1, now=1.0)
