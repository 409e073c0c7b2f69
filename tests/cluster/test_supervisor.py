"""``up`` with processes that are only played: what is started, started again, drained, and told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import generate_latest

from streamlearn.cluster import patience
from streamlearn.cluster.engine import Ended, Told
from streamlearn.cluster.roles import UpOptions
from streamlearn.cluster.supervisor import Supervisor
from streamlearn.config import (
    FmConfig,
    HttpConfig,
    JobConfig,
    MfConfig,
    SourceConfig,
    TablesConfig,
)
from streamlearn.errors import ClusterError, ConfigError, ResourceError, RunError
from streamlearn.messages import Progress
from streamlearn.model import load
from streamlearn.net.asking import Asking
from streamlearn.online.totals import RatingTotals
from streamlearn.protocol import Mark
from tests.cluster_state import write_shard

JOB = JobConfig(source=SourceConfig(uri=("a.csv",), format="criteo"))
MARK = Mark("a.csv", "1", 0, 3, 100, 10, done=True, examples=10, weight=10.0, loss=5.0, label=2.0)


class Played:
    """An engine and those who ask, of processes that do what a test says.

    A worker ends by itself, with code 0, once the test says so; everything else when it is stopped;
    a shard leaves its snapshot then.
    """

    def __init__(self, out: Path, shards: int) -> None:
        self.out = out
        self.of = shards
        self.calls: list[str] = []
        self.alive: set[str] = set()
        self.unready: set[str] = set()
        self.statuses: dict[str, Any] = {}
        self.warnings: list[Told] = []
        self.on_start: dict[str, Callable[[], None]] = {}
        self.on_stop: dict[str, Callable[[], None]] = {}
        self.refuses: set[str] = set()
        self.marks = {name: [MARK] for name in self.shards}
        self.peak_rss_bytes = 7
        self._ended: asyncio.Queue[Ended] = asyncio.Queue()

    @property
    def shards(self) -> list[str]:
        return [f"shard-{index}" for index in range(self.of)]

    def end(self, name: str, code: int, said: str = "") -> None:
        if name in self.alive:
            self.alive.remove(name)
            self._ended.put_nowait(Ended(name, code, said))

    # --- as an engine

    def place(self, name: str, before: Sequence[str], ports: int) -> list[str]:
        return [f"{name}:{port}" for port in range(1, ports + 1)]

    async def start(self, name: str, arguments: Sequence[str]) -> None:
        if name in self.refuses:
            raise ResourceError(f"{name} cannot be started")
        assert name not in self.alive
        self.calls.append(f"start {name}")
        self.alive.add(name)
        self.on_start.get(name, lambda: None)()

    async def watch(self) -> Ended:
        return await self._ended.get()

    def stop(self, name: str, *, at_once: bool = False) -> None:
        assert name in self.alive
        self.calls.append(f"stop {name}")
        if name in self.on_stop:
            self.on_stop.pop(name)()
            return
        if name in self.shards:
            index = int(name.removeprefix("shard-"))
            rows = np.array([[1, 0, 0, 0], [5, 1, 1, 0], [(1 << 63) + 1, 1, 1, 0]], np.uint64)
            write_shard(self.out, JOB, index, self.of, rows, self.marks[name], parts=1)
        self.end(name, 0)

    def told(self) -> list[Told]:
        found, self.warnings = self.warnings, []
        return found

    async def aclose(self) -> None:
        self.calls.append("close")

    # --- as those who ask

    async def is_ready(self, address: str) -> bool:
        name = address.partition(":")[0]
        return name in self.alive and name not in self.unready

    async def status(self, address: str) -> dict[str, Any] | None:
        return self.statuses.get(address.partition(":")[0])


class Asked(Asking):
    def __init__(self, played: Played) -> None:
        super().__init__()
        self.is_ready = played.is_ready  # type: ignore[method-assign]
        self.status = played.status  # type: ignore[method-assign]


class Run:
    """A run of ``up`` with played processes."""

    def __init__(
        self, out: Path, shards: int = 2, workers: int = 1, job: JobConfig = JOB, **more: Any
    ) -> None:
        out.mkdir(exist_ok=True)
        self.out = out
        self.played = Played(out, shards)
        self.seen: list[Progress] = []
        options = UpOptions(shards=shards, workers=workers, directory=out, **more)
        asked = Asked(self.played)
        self.supervisor = Supervisor(job, options, self.played, asked, self.seen.append)
        self.task: asyncio.Task[dict[str, Any]] | None = None

    @property
    def last(self) -> Progress:
        return self.seen[-1]

    async def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.supervisor.run())
        while not self.seen and not self.task.done():  # noqa: ASYNC110 - a pace, not an event
            await asyncio.sleep(0)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; raise what the run has failed with."""
        assert self.task is not None
        while not is_so():
            if self.task.done():
                self.task.result()
                pytest.fail(f"it ended before: {self.played.calls}")
            await asyncio.sleep(0.005)

    async def until_called(self, call: str, times: int = 1) -> None:
        await self.until(lambda: self.played.calls.count(call) >= times)

    async def report(self) -> dict[str, Any]:
        assert self.task is not None
        return await asyncio.wait_for(self.task, 60)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(patience, "PAUSE_SECONDS_MAX", 0.01)
    monkeypatch.setattr("streamlearn.cluster.supervisor._POLL_SECONDS", 0.01)
    monkeypatch.setattr("streamlearn.cluster.supervisor._READY_SECONDS", 0.005)


async def test_shards_are_ready_before_workers_start_and_drain_after_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", shards=2, workers=2, followers=1)
    run.played.unready.add("shard-1")
    await run.start()
    await run.until(lambda: {"shard-0", "shard-1"} <= run.played.alive)
    await asyncio.sleep(0.05)
    assert "start worker-0" not in run.played.calls
    run.played.unready.clear()
    await run.until_called("start follower-1-0")
    await run.until(lambda: any(p.state == "learning" for p in run.seen))
    run.played.end("worker-1", 0)
    await asyncio.sleep(0.05)
    assert "stop shard-0" not in run.played.calls
    run.played.end("worker-0", 0)
    report = await run.report()
    assert run.played.calls == [
        *("start shard-0", "start shard-1", "start worker-0", "start worker-1"),
        *("start follower-0-0", "start follower-1-0"),
        *("stop follower-0-0", "stop follower-1-0", "stop shard-0", "stop shard-1", "close"),
    ]
    assert report["examples"] == 10
    assert report["logloss"] == 0.5
    assert report["features"] == 2
    assert (report["shards"], report["workers"], report["restarts"]) == (2, 2, 0)
    assert report["peak_rss_bytes"] == 7
    assert report["stopped"] is None
    assert report["resumed_from"] is None
    assert json.loads((tmp_path / "out" / "report.json").read_text())["examples"] == 10
    assert load(tmp_path / "out").counts.examples == 10
    assert [p.state for p in run.seen][-1] == "done"


async def test_what_dies_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "out")
    await run.start()
    await run.until_called("start worker-0")
    with caplog.at_level(logging.WARNING):
        run.played.end("shard-1", -signal.SIGKILL)
        await run.until_called("start shard-1", 2)
        run.played.end("worker-0", 1, "the source\ncause: x")
        await run.until_called("start worker-0", 2)
        run.played.end("shard-0", 0)  # somebody else drained it
        await run.until_called("start shard-0", 2)
    run.played.end("worker-0", 0)
    assert (await run.report())["restarts"] == 3
    assert "shard-1 ended with SIGKILL; it is started again" in caplog.text
    assert "worker-0 ended with exit code 1; it is started again" in caplog.text


async def test_a_process_that_cannot_stay_is_given_up_and_what_was_learned_is_kept(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path / "out")
    run.played.on_start["worker-0"] = lambda: run.played.end("worker-0", 1, "bad\ncause: very")
    await run.start()
    with pytest.raises(RunError, match="worker-0 cannot go on") as caught:
        await run.report()
    assert caught.value.cause == "bad\ncause: very"
    assert "logs/worker-0.log" in (caught.value.hint or "")
    assert run.played.calls.count("start worker-0") == patience.FAILURES_MAX
    assert json.loads((tmp_path / "out" / "report.json").read_text())["examples"] == 10
    assert load(tmp_path / "out").counts.examples == 10


async def test_a_worker_that_is_given_up_leaves_its_work_to_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", workers=2)
    run.played.on_start["worker-0"] = lambda: run.played.end("worker-0", 1, "bad")
    await run.start()
    await run.until_called("start worker-0", patience.FAILURES_MAX)
    await asyncio.sleep(0.05)
    assert "stop worker-1" not in run.played.calls
    run.played.end("worker-1", 0)
    with pytest.raises(RunError, match="worker-0 cannot go on"):
        await run.report()
    assert load(tmp_path / "out").counts.examples == 10


async def test_a_shard_that_cannot_stay_ends_it_without_a_model(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.on_start["shard-1"] = lambda: run.played.end("shard-1", 1)
    await run.start()
    with pytest.raises(RunError, match="shard-1 cannot go on") as caught:
        await run.report()
    assert caught.value.cause == "exit code 1"
    assert "stop shard-0" in run.played.calls
    assert not (tmp_path / "out" / "model").exists()
    assert (tmp_path / "out" / "report.json").exists()


async def test_a_wrong_configuration_is_not_tried_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.on_start["worker-0"] = lambda: run.played.end("worker-0", 2, "no such thing")
    await run.start()
    with pytest.raises(ConfigError, match="worker-0 cannot go on") as caught:
        await run.report()
    assert caught.value.cause == "no such thing"
    assert run.played.calls.count("start worker-0") == 1


async def test_without_a_follower_it_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", followers=1)
    run.played.on_start["follower-0-0"] = lambda: run.played.end("follower-0-0", 2, "no")
    await run.start()
    await run.until_called("start follower-1-0")
    run.played.end("worker-0", 0)
    assert (await run.report())["examples"] == 10


async def test_a_process_that_the_system_does_not_start_ends_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    await run.start()
    await run.until_called("start worker-0")
    run.played.refuses.add("worker-0")
    run.played.end("worker-0", -9)
    with pytest.raises(ResourceError, match="worker-0 cannot be started"):
        await run.report()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_drains_and_leaves_the_model(tmp_path: Path, number: signal.Signals) -> None:
    run = Run(tmp_path / "out", workers=2)
    await run.start()
    await run.until_called("start worker-1")
    os.kill(os.getpid(), number)
    report = await run.report()
    assert report["stopped"] == number.name
    stops = [call for call in run.played.calls if call.startswith("stop")]
    assert stops == ["stop worker-0", "stop worker-1", "stop shard-0", "stop shard-1"]
    assert load(tmp_path / "out").counts.examples == 10


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.on_stop["worker-0"] = lambda: None  # it takes its time
    await run.start()
    await run.until_called("start worker-0")
    os.kill(os.getpid(), signal.SIGINT)
    await run.until_called("stop worker-0")
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(RunError, match="a second signal, SIGINT") as caught:
        await run.report()
    assert caught.value.exit_code == 130
    assert "stop shard-0" not in run.played.calls
    assert run.played.calls[-1] == "close"


async def test_a_shard_that_dies_while_it_drains_is_started_to_drain(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.on_stop["shard-1"] = lambda: run.played.end("shard-1", -9)
    await run.start()
    await run.until_called("start worker-0")
    run.played.end("worker-0", 0)
    assert (await run.report())["restarts"] == 1
    assert run.played.calls.count("stop shard-1") == 2
    assert load(tmp_path / "out").counts.examples == 10


async def test_a_shard_that_dies_while_workers_drain_is_there_for_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.on_stop["worker-0"] = lambda: run.played.end("shard-0", -9)
    await run.start()
    await run.until_called("start worker-0")
    os.kill(os.getpid(), signal.SIGTERM)
    await run.until_called("start shard-0", 2)
    run.played.end("worker-0", 0)
    await run.report()
    assert run.played.calls.count("stop shard-0") == 1


async def test_a_shard_that_is_not_ready_is_not_asked_to_drain_yet(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.unready.add("shard-0")
    await run.start()
    await run.until_called("start shard-1")
    os.kill(os.getpid(), signal.SIGTERM)
    await run.until_called("stop shard-1")
    await asyncio.sleep(0.05)
    assert "stop shard-0" not in run.played.calls
    run.played.unready.clear()
    await run.report()
    assert run.played.calls.count("stop shard-0") == 1


async def test_shards_that_stand_apart_are_told_and_no_model_is_made(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    run.played.marks["shard-1"] = []
    await run.start()
    await run.until_called("start worker-0")
    run.played.end("worker-0", 0)
    with pytest.raises(ClusterError, match="have not drained"):
        await run.report()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["nonzeros"] is None


async def test_without_a_log_learning_goes_on_where_a_shard_came_back_with_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = TablesConfig(durability="snapshot")
    run = Run(tmp_path / "out", job=msgspec.structs.replace(JOB, tables=tables))
    run.played.marks["shard-1"] = []  # its last snapshot is of before
    await run.start()
    await run.until_called("start worker-0")
    run.played.end("worker-0", 0)
    await run.until_called("start worker-0", 2)
    run.played.marks["shard-1"] = [MARK]
    run.played.end("worker-0", 0)
    await run.report()
    assert "came back with less" in caplog.text
    assert load(tmp_path / "out").counts.examples == 10


async def test_what_processes_say_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "out")
    for name in run.played.shards:
        run.played.statuses[name] = {
            "totals": {"examples": 4, "weight": 4.0, "loss": 1.0},
            "figures": {"features": 3, "table_bytes": 8},
        }
    await run.start()
    await run.until(lambda: run.last.examples == 4)
    assert (run.last.loss, run.last.features) == (0.25, 6)
    await run.until_called("start worker-0")
    await run.until(lambda: run.last.state == "learning")
    with caplog.at_level(logging.WARNING):
        run.played.warnings.append(Told("shard-1", "warning", "a torn tail"))
        await run.until(lambda: "shard-1: a torn tail" in caplog.text)
    run.played.end("worker-0", 0)
    report = await run.report()
    assert report["table_bytes"] == 16


async def test_the_report_of_a_factorization_machine_tells_of_embeddings(tmp_path: Path) -> None:
    job = msgspec.structs.replace(JOB, model=FmConfig())
    run = Run(tmp_path / "out", job=job)
    figures = {"embeddings_bytes": 640, "embeddings_refused": 3}
    run.played.statuses |= {name: {"figures": figures} for name in run.played.shards}
    run.played.statuses["worker-0"] = {"examples_dropped": 2}
    await run.start()
    await run.until_called("start worker-0")
    await run.until(lambda: run.supervisor._overview.examples_dropped == 2)
    run.played.end("worker-0", 0)
    report = await run.report()
    assert (report["embeddings"], report["embeddings_bytes"]) == (0, 1_280)
    assert (report["embeddings_refused"], report["examples_dropped"]) == (6, 2)


def test_what_is_told_of_ratings_goes_by_their_loss(tmp_path: Path) -> None:
    ratings = JobConfig(source=SourceConfig(uri=("u.data",)), model=MfConfig())
    supervisor = Run(tmp_path / "out", shards=1, job=ratings).supervisor
    totals = RatingTotals(3.24, 3.0, 14.0, 54.0, 13.0, 4.0, 4)
    supervisor._overview.hear_shard("shard-0", {"totals": totals._asdict()})
    supervisor._overview.hear_worker("worker-0", {"validation": {"rmse_window": 0.5}})
    supervisor._tell("learning")
    report = supervisor._report(None)
    assert (report["rmse"], report["mae"]) == (pytest.approx(0.9), 0.75)
    assert report["baseline_rmse"] == pytest.approx(1.118034)  # of (54 - 14 * 14 / 4) / 4
    assert not report.keys() & {"logloss", "baseline_logloss", "auc", "auc_error", "calibration"}
    assert "auc" not in supervisor._status()["progress"]
    assert supervisor._status()["progress"]["rmse_window"] == 0.5
    told = generate_latest(supervisor._metrics.registry).decode()
    assert 'streamlearn_progressive_rmse{span="run"} 0.9' in told
    assert 'streamlearn_progressive_mae{span="run"} 0.75' in told
    assert "progressive_auc{" not in told


async def test_workers_that_end_before_the_source_does_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "out", shards=1)
    run.played.marks["shard-0"] = [Mark("a.csv", "1", 0, 3, 100, 10, examples=10)]
    await run.start()
    await run.until_called("start worker-0")
    with caplog.at_level(logging.WARNING):
        run.played.end("worker-0", 0)
        await run.report()
    assert "workers ended before everything was learned" in caplog.text


async def test_it_tells_over_http_how_everything_is(tmp_path: Path) -> None:
    job = msgspec.structs.replace(JOB, http=HttpConfig(listen="127.0.0.1:0"))
    run = Run(tmp_path / "out", job=job)
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("streamlearn.up")
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        await run.start()
        await run.until_called("start worker-0")
        run.played.end("shard-0", -9)
        await run.until_called("start shard-0", 2)
        await run.until(lambda: run.last.state == "learning")
        address = next(line for line in logged if "listening" in line).rpartition("/")[2]
        real = Asking()
        try:
            assert await real.is_ready(address)
            said = await real.status(address)
            _, body = await real._get(address, "/metrics")
        finally:
            await real.aclose()
        assert said is not None
        assert said["processes"]["shard-0"]["restarts"] == 1
        assert said["processes"]["worker-0"]["ready"] is True
        assert b'streamlearn_restarts_total{role="shard"} 1.0' in body
        run.played.end("worker-0", 0)
        await run.report()
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


async def test_two_runs_in_one_directory_are_one_too_many(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "out"), Run(tmp_path / "out")
    await first.start()
    await first.until_called("start worker-0")
    await second.start()
    with pytest.raises(ResourceError, match="is being written by process"):
        await second.report()
    first.played.end("worker-0", 0)
    await first.report()


async def test_the_same_again_goes_on(tmp_path: Path) -> None:
    for number in range(2):
        run = Run(tmp_path / "out")
        await run.start()
        await run.until_called("start worker-0")
        run.played.end("worker-0", 0)
        report = await run.report()
        assert report["resumed_from"] == (str(tmp_path / "out" / "shards") if number else None)
