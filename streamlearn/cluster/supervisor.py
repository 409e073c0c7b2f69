"""``up``: runs shards, workers and followers, starts again what dies, and gathers the model.

Start: shards, and once they are ready, workers and followers. Drain: workers -> followers -> shards
(each takes a last snapshot) -> gather -> report -> HTTP. While anything drains, a shard that dies
is started again: the workers need it to drain, and gathering needs its last snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from streamlearn import __version__, metrics
from streamlearn.cluster.engine import Ended, Engine
from streamlearn.cluster.gathering import Gathered, gather
from streamlearn.cluster.overview import Overview
from streamlearn.cluster.patience import Patience
from streamlearn.cluster.plan import Process, adopt, laid_out, processes
from streamlearn.cluster.roles import UpOptions
from streamlearn.cluster.stored_shards import SHARDS, counts_of_shards
from streamlearn.cluster.times import Times
from streamlearn.config import JobConfig
from streamlearn.errors import ClusterError, ConfigError, RunError, StreamlearnError
from streamlearn.messages import Progress
from streamlearn.metrics import Metrics
from streamlearn.model import Counts
from streamlearn.net.asking import Asking
from streamlearn.net.http import HttpServer
from streamlearn.online.losses import validation_of
from streamlearn.report import report_json
from streamlearn.shards.directory import DirectoryLock
from streamlearn.signals import taken

__all__ = ["Supervisor"]

_log = logging.getLogger("streamlearn.up")

_POLL_SECONDS: Final = 0.5
# How often learning is begun again where shards without a log have lost what they had.
_ROUNDS_MAX: Final = 3
_READY_SECONDS: Final = 0.1  # while something is not ready yet
_LOG_LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR}


@dataclass(slots=True)
class _Running:
    """A process and what has become of it.

    Attributes
    ----------
    wanted : bool
        Whether it shall run: it is started again where it ends.
    alive, ready : bool
    asked : bool
        Whether it has been asked to end: a second time it would end without draining.
    done : bool
        Whether it has ended as it should, with code 0.
    lost : bool
        Whether it is given up.
    """

    process: Process
    patience: Patience = field(default_factory=Patience)
    wanted: bool = True
    alive: bool = False
    ready: bool = False
    asked: bool = False
    done: bool = False
    lost: bool = False
    started: float = 0.0
    restarts: int = 0


class Supervisor:
    """One run of ``up``.

    Parameters
    ----------
    job : JobConfig
    options : UpOptions
    engine : Engine
        Runs the processes.
    asking : Asking
        Asks them how they are.
    sink : callable
        Receives progress.
    """

    def __init__(
        self,
        job: JobConfig,
        options: UpOptions,
        engine: Engine,
        asking: Asking,
        sink: Callable[[Progress], None],
    ) -> None:
        self.job = job
        self.options = options
        self.stopped_by: str | None = None
        self._ended_by: signal.Signals | None = None
        self._engine = engine
        self._sink = sink
        self._times = Times()
        self._overview = Overview(job.model)
        self._metrics = Metrics(CollectorRegistry(), __version__)
        self._metrics.on_scrape(self._read)
        self._asking = asking
        self._state, self._detail = "compiling", ""
        self._running: dict[str, _Running] = {}
        self._changed = asyncio.Event()
        self._failure: StreamlearnError | None = None
        self._failed_role = ""
        self._ends = False  # whether the failure is one to end at
        self._broken: BaseException | None = None  # what a task beside has failed with
        self._resumed_from: str | None = None
        self._peak_rss_bytes = 0

    async def run(self) -> dict[str, Any]:
        """Run until everything is learned, to a signal, or to a failure; return the report.

        Raises
        ------
        StreamlearnError
            What made it fail. Where the shards are well, model and report are left all the same.
        """
        directory = self.options.directory
        lock = DirectoryLock(directory)
        server: HttpServer | None = None
        try:
            if self.job.http.listen:
                server = HttpServer(
                    self.job.http.listen,
                    registry=self._metrics.registry,
                    status=self._status,
                    ready=lambda: (self._state == "learning", self._detail or self._state),
                )
                _log.info("listening on http://%s", await server.start())
            return await self._run()
        except OSError as error:
            raise RunError(f"cannot use {directory}", cause=error.strerror) from error
        except asyncio.CancelledError:
            if self._ended_by is None:
                raise
            ended = RunError(
                f"a second signal, {self._ended_by.name}, ended the run without draining",
                hint="the same command again goes on",
            )
            ended.exit_code = 130 if self._ended_by == signal.SIGINT else 1
            raise ended from None
        finally:
            await self._engine.aclose()
            await self._asking.aclose()
            if server is not None:
                await server.stop()
            lock.release()

    async def _run(self) -> dict[str, Any]:
        out, of = self.options.directory, self.options.shards
        self._tell("compiling", "looking at what is there")
        plan, done = await asyncio.to_thread(adopt, out, self.job, of, time.time())
        if done:
            _log.info("%s", done)
        if counts_of_shards(out):
            self._resumed_from = str(out / SHARDS)
        device = self.job.compute.device
        for process in processes(self.options, plan, self._engine.place, device):
            self._running[process.name] = _Running(process)
        await asyncio.to_thread(laid_out, self.job, self.options, plan)
        with self._signals():
            async with self._beside():
                gathered = await self._rounds()
        report = self._report(gathered)
        await asyncio.to_thread(_write_report, out / "report.json", report_json(report) + "\n")
        failure = self._failure
        self._tell("failed" if failure else "done", failure.message if failure else "")
        if failure is not None:
            raise failure
        return report

    async def _rounds(self) -> Gathered | None:
        """Learn, drain and gather until nothing is left; return the model, if there is one."""
        for left in reversed(range(_ROUNDS_MAX)):
            await self._learn()
            await self._drain()
            gathered = await self._gathered(again=left > 0)
            if gathered is not None or self._failure is not None or self._failed_role == "shard":
                return gathered
            _log.warning("a shard came back with less than it had: learning goes on")
            for one in self._running.values():
                one.wanted, one.asked, one.done = True, False, False
        return None

    async def _gathered(self, *, again: bool) -> Gathered | None:
        """Make the model; None where there is none, or, ``again``, where more is to be learned.

        A shard that keeps no log and dies after the workers have ended has less than they had seen.
        """
        if self._failed_role == "shard":
            return None
        self._tell("draining", "gathering the model")
        again = again and self.job.tables.durability == "snapshot" and self.stopped_by is None
        again = again and self._failure is None
        try:
            gathered = await asyncio.to_thread(self._gather)
        except StreamlearnError as error:
            if not (again and isinstance(error, ClusterError)):
                self._failure = self._failure or error
            return None
        learned = gathered.model.counts.examples >= self._overview.last.examples
        return None if again and not (gathered.whole and learned) else gathered

    # ---------------------------------------------------------------- start and drain

    async def _learn(self) -> None:
        """Start everything; return when all workers are done, or it shall end before."""
        self._tell("compiling", "starting shards")
        shards = self._of("shard")
        for shard in shards:
            await self._start(shard)
        await self._until(lambda: all(shard.ready for shard in shards))
        if self._is_ending:
            return
        await self._ask_status(shards)
        self._tell("compiling", "starting workers")
        workers = self._of("worker")
        for one in (*workers, *self._of("follower")):
            await self._start(one)
        await self._until(lambda: any(one.ready or one.done or one.lost for one in workers))
        if not self._is_ending:
            self._times.begin(self._overview.last)
            self._tell("learning")
        await self._until(lambda: all(worker.done or worker.lost for worker in workers))

    async def _drain(self) -> None:
        why = f"stopping on {self.stopped_by}: " if self.stopped_by else ""
        for role in ("worker", "follower", "shard"):
            self._tell("draining", f"{why}waiting for {role}s to end")
            if role == "shard":  # what they say last counts everything
                await self._ask_status(one for one in self._of(role) if one.alive)
            await self._drain_all(self._of(role))
            if role == "worker":
                self._times.end()

    async def _drain_all(self, those: list[_Running]) -> None:
        """Ask processes to end until all have; shards until they have ended well."""
        for one in those:
            one.wanted = False
            # a shard that is not ready yet is asked once it is: before, the signal would kill it
            if one.alive and (one.ready or one.process.role != "shard"):
                self._stop(one)
        while not all(map(self._is_drained, those)):
            await self._change()

    def _is_drained(self, one: _Running) -> bool:
        if one.alive:
            return False
        is_shard = one.process.role == "shard" and one.started > 0
        return one.done or not is_shard or self._failed_role == "shard"

    @property
    def _is_ending(self) -> bool:
        return self.stopped_by is not None or self._ends

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, or it all shall end."""
        while not is_so() and not self._is_ending:
            await self._change()

    async def _change(self) -> None:
        """Wait until a process is not as it was; raise what a task beside has failed with."""
        await self._changed.wait()
        self._changed.clear()
        if self._broken is not None:
            raise self._broken

    async def _start(self, one: _Running) -> None:
        one.started = time.monotonic()
        one.alive, one.ready, one.asked, one.done = True, False, False, False
        await self._engine.start(one.process.name, one.process.arguments)

    def _stop(self, one: _Running) -> None:
        if not one.asked:
            one.asked = True
            self._engine.stop(one.process.name)

    def _of(self, role: str) -> list[_Running]:
        return [one for one in self._running.values() if one.process.role == role]

    # ---------------------------------------------------------------- beside it

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Drain on SIGINT and SIGTERM; a second one ends at once."""
        task = asyncio.current_task()
        assert task is not None

        def drain(number: signal.Signals) -> None:
            self.stopped_by = number.name
            self._changed.set()

        def end(number: signal.Signals) -> None:
            self._ended_by = number
            task.cancel()

        with taken(drain, end):
            yield

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        """Watch processes and ask them how they are while something else goes on."""
        tasks = [
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self._ask(), name="ask"),
        ]
        for task in tasks:
            task.add_done_callback(self._note_broken)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note_broken(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()
            self._changed.set()

    async def _watch(self) -> None:
        """Note every end, and start again what shall run."""
        async with asyncio.TaskGroup() as restarts:
            while True:
                ended = await self._engine.watch()
                one = self._running[ended.name]
                lived = time.monotonic() - one.started
                was_ready, one.alive, one.ready = one.ready, False, False
                self._relay()
                role = one.process.role
                if ended.code == 0 and (role == "worker" or not one.wanted):
                    one.done = True
                elif ended.code == ConfigError.exit_code:
                    self._fail(one, ended, ConfigError)
                elif one.wanted or role == "shard":
                    pause = one.patience.ended(ended.code, lived, was_ready=was_ready)
                    if pause is None:
                        self._fail(one, ended, RunError)
                    else:
                        name = f"restart-{ended.name}"
                        restarts.create_task(self._restart(one, ended, pause), name=name)
                self._changed.set()

    def _fail(self, one: _Running, ended: Ended, kind: type[StreamlearnError]) -> None:
        """Give a process up: without a shard it ends, and where the configuration is wrong.

        Without a worker the others go on, and do what they can of its work; without a follower
        nothing is lost.
        """
        one.wanted, one.lost = False, True
        role, name = one.process.role, one.process.name
        failure = kind(
            f"{name} cannot go on",
            cause=ended.said or _code(ended.code),
            hint=f"logs/{name}.log in {self.options.directory} says more",
        )
        ends = role != "follower" and (role == "shard" or kind is ConfigError)
        if not ends:  # else the run ends with it
            _log.error("%s", failure)
        if role == "shard":
            self._failed_role = role
        if role != "follower":
            self._failure = self._failure or failure
        self._ends = self._ends or ends

    async def _restart(self, one: _Running, ended: Ended, pause: float) -> None:
        name = one.process.name
        _log.warning("%s ended with %s; it is started again", name, _code(ended.code))
        await asyncio.sleep(pause)
        if self._failed_role == "shard" or not (one.wanted or one.process.role == "shard"):
            return
        one.restarts += 1
        self._metrics.add(metrics.RESTARTS, 1, one.process.role)
        try:
            await self._start(one)
        except StreamlearnError as error:
            one.alive = False
            self._failure = self._failure or error
            self._failed_role = self._failed_role or one.process.role
            self._ends = True
            self._changed.set()

    async def _ask(self) -> None:
        """Ask processes how they are, relay their warnings, show progress."""
        due = 0.0
        while True:
            alive = [one for one in self._running.values() if one.alive]
            await self._ask_ready([one for one in alive if not one.ready])
            if time.monotonic() >= due:
                due = time.monotonic() + _POLL_SECONDS
                await self._ask_status([one for one in alive if one.ready])
                self._peak_rss_bytes = self._engine.peak_rss_bytes
                self._relay()
                self._show()
            waiting = any(one.alive and not one.ready for one in self._running.values())
            await asyncio.sleep(_READY_SECONDS if waiting else _POLL_SECONDS)

    async def _ask_ready(self, those: list[_Running]) -> None:
        answers = await asyncio.gather(*(self._asking.is_ready(o.process.http) for o in those))
        for one, answer in zip(those, answers, strict=True):
            if answer and one.alive:
                one.ready = True
                if not one.wanted:
                    self._stop(one)
                self._changed.set()

    async def _ask_status(self, those: Iterable[_Running]) -> None:
        those = list(those)
        answers = await asyncio.gather(*(self._asking.status(o.process.http) for o in those))
        for one, said in zip(those, answers, strict=True):
            if said is not None and one.process.role == "shard":
                self._overview.hear_shard(one.process.name, said)
            elif said is not None and one.process.role == "worker":
                self._overview.hear_worker(one.process.name, said)

    def _relay(self) -> None:
        """Log what processes warn of, with their names before it."""
        for told in self._engine.told():
            _log.log(_LOG_LEVELS.get(told.level, logging.ERROR), "%s: %s", told.name, told.text)

    # ---------------------------------------------------------------- what it says

    def _tell(self, state: str, detail: str = "") -> None:
        self._state, self._detail = state, detail
        self._metrics.set_state(state)
        self._show()

    def _show(self) -> None:
        progress = self._overview.progress(self._state, self._detail, self._times.since_start)
        try:
            self._sink(progress)
        except OSError:  # nobody looks any more: that is no reason to stop
            self._sink = lambda _: None

    def _status(self) -> dict[str, Any]:
        last = self._overview.last
        return {
            "version": __version__,
            "state": self._state,
            "detail": self._detail,
            "progress": last.told(),
            "processes": {
                name: {
                    "role": one.process.role,
                    "http": one.process.http,
                    "alive": one.alive,
                    "ready": one.ready,
                    "done": one.done,
                    "restarts": one.restarts,
                }
                for name, one in self._running.items()
            },
        }

    def _read(self) -> None:
        """Set metrics, as a scrape asks."""
        last = self._overview.last
        self._metrics.set(metrics.EXAMPLES, last.examples)
        self._metrics.set(metrics.WEIGHT, last.weight)
        self._metrics.set(metrics.BYTES, last.bytes)
        self._metrics.set(metrics.STORED_BYTES, last.stored_bytes)
        self._metrics.set(metrics.FEATURES, last.features)
        if self.job.model.tiers is not None:
            self._metrics.set(metrics.EMBEDDINGS_BYTES, self._overview.embeddings_bytes)
            self._metrics.set(metrics.EMBEDDINGS_REFUSED, self._overview.embeddings_refused)
            self._metrics.set(metrics.DROPPED, self._overview.examples_dropped)
        self._metrics.set_figures(self._overview.summary)

    # ---------------------------------------------------------------- the end

    def _gather(self) -> Gathered:
        gathered = gather(
            self.options.directory,
            self.job,
            self.options.shards,
            now=time.time(),
            seconds=self._times.learning_seconds,
            cpu_seconds=self._times.children_seconds(),
        )
        for note in gathered.notes:
            _log.warning("passed over: %s", note)
        if not gathered.whole and self.stopped_by is None and self._failure is None:
            _log.warning("workers ended before everything was learned")
        return gathered

    def _report(self, gathered: Gathered | None) -> dict[str, Any]:
        """Say what was learned in all, and how fast this run was; keys as ``train`` has them."""
        last, times = self._overview.last, self._times
        summary = gathered.model.validation.summary() if gathered else self._overview.summary
        counts = _counts(gathered.model.counts if gathered else None, last)
        seconds = max(times.learning_seconds, 1e-9)
        return {
            "model": self.job.model.kind,
            **counts,
            "seconds": times.learning_seconds,
            "examples_per_second": (counts["examples"] - times.examples) / seconds,
            "megabytes_per_second": (counts["bytes"] - times.bytes) / seconds / 1e6,
            "cpu_seconds": times.children_seconds(),
            "compile_seconds": times.starting_seconds,
            "process_cpu_seconds": times.children_seconds() + time.process_time(),
            "peak_rss_bytes": self._peak_rss_bytes,
            "resumed_from": self._resumed_from,
            **validation_of(self.job.model).report(summary),
            "features": gathered.features if gathered else last.features,
            "nonzeros": gathered.nonzeros if gathered else None,
            "table_bytes": self._overview.table_bytes,
            **self._embedded(gathered),
            "names": len(gathered.model.names) if gathered else None,
            "shards": self.options.shards,
            "workers": self.options.workers,
            "followers": self.options.followers,
            "restarts": sum(one.restarts for one in self._running.values()),
            "stopped": self.stopped_by,
        }

    def _embedded(self, gathered: Gathered | None) -> dict[str, int | None]:
        """Return what is to be said of embeddings, if the model has some."""
        if self.job.model.tiers is None:
            return {}
        return {
            "embeddings": gathered.embeddings if gathered else None,
            "embeddings_bytes": self._overview.embeddings_bytes,
            "embeddings_refused": self._overview.embeddings_refused,
            "examples_dropped": self._overview.examples_dropped,
        }


def _counts(counts: Counts | None, last: Progress) -> dict[str, int]:
    """Return the sums of a report: those of the model, or what was heard last."""
    return {
        "examples": counts.examples if counts else last.examples,
        "bytes": counts.bytes if counts else last.bytes,
        "bad_records": counts.bad_records if counts else last.bad_records,
        "subsampled": counts.subsampled if counts else 0,
    }


def _code(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _write_report(path: Path, text: str) -> None:
    """Put the report in the place of the one before, whole."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        _log.error("cannot write %s: %s", path, error.strerror)
        with suppress(OSError):
            partial.unlink()
