"""One training run: its parts, its timers, and the order in which they start and drain.

Drain: stop reading -> learn what is in flight -> last snapshot -> report -> HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from streamlearn.compute.leftovers import few_arenas
from streamlearn.config import DeepConfig, JobConfig, LdaConfig, MfConfig, start_seconds
from streamlearn.errors import (
    ConfigError,
    DataError,
    DivergedError,
    RunError,
    StreamlearnError,
)
from streamlearn.further import FurtherPasses
from streamlearn.inspection import sizes
from streamlearn.learner import Learner
from streamlearn.messages import F32, Partition, Position, Progress
from streamlearn.model import Model, Progressed, load
from streamlearn.model_cut import ModelCut
from streamlearn.net.http import HttpServer
from streamlearn.net.sources.objects import ObjectSource
from streamlearn.net.sources.uri import open_source
from streamlearn.online.formats import Format
from streamlearn.online.losses import new_validation
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.solvers import DeviceSolver
from streamlearn.preparing import compile_kernels, prepare_format, todo_all
from streamlearn.privacy import is_private, refuse_more
from streamlearn.quarantine import Quarantine
from streamlearn.read_again import check_unchanged
from streamlearn.report import report_json
from streamlearn.serving import Serving
from streamlearn.shards.directory import DirectoryLock
from streamlearn.shards.snapshot import listing
from streamlearn.signals import taken
from streamlearn.sweeping import FurtherSweeps, judge_anew
from streamlearn.telemetry import Telemetry

__all__ = [
    "Started",
    "TrainingRun",
    "failed",
    "run_report",
    "with_lanes",
]

_log = logging.getLogger("streamlearn.training")

_PROGRESS_SECONDS: Final = 0.5
# Between two parts of a table that are taken for a snapshot while no blocks come.
_PART_SECONDS: Final = 0.02


class TrainingRun:
    """Learns a job's source into its output directory, going on from the newest snapshot there.

    Parameters
    ----------
    job : JobConfig
    sink : callable
        Receives progress.
    """

    def __init__(self, job: JobConfig, sink: Callable[[Progress], None]) -> None:
        self.job = with_lanes(job)
        self.directory = Path(job.output.dir)
        self.telemetry = Telemetry(time.monotonic, sink, job.model)
        self.stopped_by: str | None = None
        self._ended_by: signal.Signals | None = None
        self._cut_started = 0.0
        self._snapshot_error: StreamlearnError | None = None
        self._records_kept = -1  # of this run, in its newest snapshot
        self._further: FurtherPasses | FurtherSweeps | None = None
        self._serving = Serving(lambda: self.telemetry.age_seconds)

    async def run(self) -> dict[str, Any]:
        """Run to the source's end, to a signal, or to a failure; return the report.

        Raises
        ------
        StreamlearnError
            What made it fail; a snapshot and ``report.json`` are left all the same, where there was
            a model.
        """
        few_arenas()
        source = open_source(self.job.source)
        server: HttpServer | None = None
        lock = DirectoryLock(self.directory)
        try:
            if self.job.http.listen:
                server = HttpServer(
                    self.job.http.listen,
                    registry=self.telemetry.metrics.registry,
                    status=self.telemetry.status,
                    ready=lambda: self.telemetry.ready,
                    asked=self._serving.paths(self.job),
                )
                _log.info("listening on http://%s", await server.start())
            return await self._run(source)
        except OSError as error:
            raise RunError(f"cannot use {self.directory}", cause=error.strerror) from error
        except asyncio.CancelledError:
            if self._ended_by is None:
                raise
            ended = RunError(
                f"a second signal, {self._ended_by.name}, ended the run without a last snapshot"
            )
            ended.exit_code = 130 if self._ended_by == signal.SIGINT else 1
            raise ended from None
        finally:
            await source.aclose()
            if server is not None:
                await server.stop()
            lock.release()

    async def _run(self, source: ObjectSource) -> dict[str, Any]:
        self.telemetry.tell("compiling", "listing the source")
        partitions = await source.partitions()
        format_, self.job = await prepare_format(self.job, source, partitions)
        stored = await asyncio.to_thread(self._stored)
        await compile_kernels(self.job, format_, source, partitions, self.telemetry)
        # A new table comes after compiling: the memory that either needs is not needed at once.
        model = stored
        if model is None:
            model = await asyncio.to_thread(
                Model.new, self.job, tuple(format_.fields), clock=time.monotonic,
                dense=format_.dense, dense_names=format_.dense_names,
            )  # fmt: skip
        _check_words(model, format_)
        quarantine = Quarantine(self.directory / "bad_records.jsonl", model.quarantine_size)
        learner = Learner(
            model,
            format_,
            source,
            quarantine=quarantine,
            cpu_clock=time.thread_time,
            tick=lambda: int(time.time()) // 60,
        )
        self.telemetry.attach(learner, source)
        self._serving.attach(model, learner.control.run)
        self.telemetry.follows = self.job.source.follow
        started = Started(model)
        failure: StreamlearnError | None = None
        try:
            with self._signals(learner):
                async with self._beside(learner, quarantine):
                    try:
                        await self._passes(learner, source, partitions)
                        learner.check_bad_share()
                    except* StreamlearnError as group:
                        failure = _first(group)
                started.stop()
                self.telemetry.tell("draining", "writing the last snapshot")
                if not isinstance(failure, DivergedError):
                    await self._last_snapshot(learner, quarantine)
                self.telemetry.summary = await learner.summary()
        except asyncio.CancelledError:
            learner.abandon()
            raise
        finally:
            self._serving.detach()
            learner.close()
            model.close()
            quarantine.close()
            if self._further is not None:
                self._further.close()
        failure = failure or failed(learner) or self._snapshot_error
        report = run_report(learner, started, self.telemetry)
        report["stopped"] = self.stopped_by
        if self._further is not None:
            report |= self._further.report()
        if learner.failed:
            report["failed"] = {name: str(error) for name, error in learner.failed.items()}
        await asyncio.to_thread(self._write_report, report_json(report) + "\n")
        self.telemetry.tell("failed" if failure else "done", failure.message if failure else "")
        if failure is not None:
            raise failure
        return report

    def _write_report(self, text: str) -> None:
        """Put the report in the place of the one before, whole."""
        path = self.directory / "report.json"
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            _log.error("cannot write %s: %s", path, error.strerror)
            with suppress(OSError):
                partial.unlink()

    def _stored(self) -> Model | None:
        """Load the newest snapshot, if there is one."""
        if not listing(self.directory / "model"):  # what a dead writer left half done is none
            return None
        model = load(self.directory, self.job, clock=time.monotonic, topics=True)
        refuse_more(model.job.model, self.directory)
        for sentence in model.skipped:
            _log.warning("passed over a damaged snapshot: %s", sentence)
        return model

    # ---------------------------------------------------------------- what is learned

    async def _passes(
        self, learner: Learner, source: ObjectSource, partitions: list[Partition]
    ) -> None:
        model = learner.model
        for partition in partitions:
            self.telemetry.add_partition(partition)
            known = model.positions.get(partition.name)
            if known is not None and known.position.done:
                learner.stored_bytes += max(0, self.telemetry.partitions[partition.name])
        self._begin_at(model, partitions)
        judge_anew(model)
        self.telemetry.tell("learning")
        if FurtherPasses.wanted(self.job):
            self._further = FurtherPasses(
                self.job, learner, lambda what: self.telemetry.tell("learning", what)
            )
            self._serving.scored = self._further.scored
        if FurtherSweeps.wanted(self.job):
            self._further = FurtherSweeps(
                self.job, learner, lambda what: self.telemetry.tell("learning", what)
            )
        if self._further is not None:
            await learner.run(self._todo(learner, source, partitions))
            await self._further.run(lambda told: self._read_again(learner, partitions, told))
            return
        while True:
            await learner.run(self._todo(learner, source, partitions))
            if learner.stopped.is_set() or model.epoch + 1 >= self.job.model.epochs:
                return
            await learner.next_pass()

    async def _read_again(
        self,
        learner: Learner,
        partitions: list[Partition],
        told: Callable[[F32, Minibatch], None],
    ) -> None:
        """Tell of every minibatch of the source once more; nothing is learned.

        Raises
        ------
        ObjectChangedError
            The source is not what was learned.
        """
        model = learner.model
        check_unchanged(model, partitions)
        counts, validation = model.counts, model.validation
        model.counts = replace(counts)
        model.validation = new_validation(self.job.model, self.job.output.window)
        source = open_source(self.job.source)
        format_, _ = await prepare_format(self.job, source, partitions)
        reader = Learner(
            model, format_, source, quarantine=None, cpu_clock=time.thread_time,
            tick=lambda: 0, teach=False, positions=False, on_scores=told,
        )  # fmt: skip
        reader.stopped = learner.stopped
        try:
            await reader.run(todo_all(partitions))
        finally:
            reader.close()
            await source.aclose()
            model.counts, model.validation = counts, validation

    def _begin_at(self, model: Model, partitions: list[Partition]) -> None:
        """Set the positions to where the job says that it begins."""
        start = self.job.source.start
        if start == "earliest":
            model.positions.clear()
        if start == "latest" and model.resumed_from is None:
            for partition in partitions:
                position = Position(max(partition.size, 0), done=True)
                model.positions[partition.name] = Progressed(partition.version, position)
        for partition in partitions:
            known = model.positions.get(partition.name)
            if known is not None and known.position.done and _is_pipe(partition):
                del model.positions[partition.name]  # what is piped in now is not what was

    async def _todo(
        self, learner: Learner, source: ObjectSource, partitions: list[Partition]
    ) -> AsyncIterator[tuple[Partition, Position]]:
        """Yield what is to be learned, where it begins; for ever where the source is followed."""
        start = self.job.source.start
        since = start_seconds(start) if start.startswith("@") else 0.0
        model = learner.model
        learned = model.objects()
        refused = model.refused(partitions, learned)
        learner.failed |= refused
        for partition in partitions:
            if partition.modified_seconds < since or partition.name in refused:
                continue
            if not (position := self._position(model, partition)).done:
                yield partition, position
        if not self.job.source.follow:
            return
        self.telemetry.tell("following")
        async for partition in source.follow():
            self.telemetry.add_partition(partition)
            if refused := model.refused([partition], learned, listed=False):
                learner.failed |= refused
            elif not (position := self._position(model, partition)).done:
                yield partition, position

    def _position(self, model: Model, partition: Partition) -> Position:
        known = model.positions.get(partition.name)
        if known is not None and known.position.done and known.version != partition.version:
            _log.warning(
                "%s has changed since it was learned, which is not read: it was %s, it is %s",
                partition.uri, known.version, partition.version,
            )  # fmt: skip
        return model.position(partition)

    # ---------------------------------------------------------------- beside it

    @contextmanager
    def _signals(self, learner: Learner) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM; a second one ends at once."""
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            self.stopped_by = number.name
            self.telemetry.tell("draining", f"stopping on {number.name}")
            learner.stop()

        def end(number: signal.Signals) -> None:
            self._ended_by = number
            task.cancel()

        with taken(stop, end):
            yield

    @asynccontextmanager
    async def _beside(self, learner: Learner, quarantine: Quarantine) -> AsyncIterator[None]:
        """Show progress and make snapshots while something else goes on."""
        tasks = [asyncio.create_task(self._show(learner), name="progress")]
        if not is_private(self.job.model):  # of which each snapshot would be a further sample
            beside = self._snapshots(learner, quarantine)
            tasks.append(asyncio.create_task(beside, name="snapshots"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

    async def _show(self, learner: Learner) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            self.telemetry.summary = await learner.summary()
            self.telemetry.show()

    async def _snapshots(self, learner: Learner, quarantine: Quarantine) -> None:
        while True:
            await asyncio.sleep(self.job.output.snapshot_seconds)
            if learner.records == self._records_kept:
                continue
            await self._snapshot(learner, quarantine)
            while await learner.advance_snapshot():  # noqa: ASYNC110 - a pace, not an event
                await asyncio.sleep(_PART_SECONDS)

    async def _snapshot(self, learner: Learner, quarantine: Quarantine) -> None:
        root = self.directory / "model"
        records = 0

        def begin() -> ModelCut:
            nonlocal records
            self._cut_started = time.monotonic()
            records = learner.records
            return ModelCut(learner.model, root, quarantine.sync(), time.time())

        def done(told: dict[str, object]) -> None:
            self._snapshot_done(told, records)

        try:
            await learner.snapshot(begin, done)
        except StreamlearnError as error:
            done({"error": error})

    def _snapshot_done(self, told: dict[str, object], records: int) -> None:
        error = told.get("error")
        if isinstance(error, StreamlearnError):
            self._snapshot_error = error
            self.telemetry.snapshot_failures += 1
            _log.error("no snapshot was written: %s", error)
            return
        self._snapshot_error = None
        self._records_kept = records
        self.telemetry.snapshots += 1
        self.telemetry.snapshot = {
            **told,
            "created_seconds": time.time(),
            "seconds": time.monotonic() - self._cut_started,
        }
        _log.info("snapshot %s", told["path"])

    async def _last_snapshot(self, learner: Learner, quarantine: Quarantine) -> None:
        if is_private(self.job.model) and not learner.model.sealed:
            _log.warning("ended before the last pass: of a private model nothing is kept")
        elif learner.model.resumed_from is None or learner.records:
            await self._snapshot(learner, quarantine)
        await learner.finish_snapshot()


class Started:
    """What a run began with, to say what it did itself."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self._examples, self._bytes = model.counts.examples, model.counts.bytes
        self.seconds = self.cpu_seconds = 0.0
        self.examples = self.bytes = 0

    def stop(self) -> None:
        """Note what was done since the start."""
        counts = self._model.counts
        self.seconds = time.monotonic() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu
        self.examples = counts.examples - self._examples
        self.bytes = counts.bytes - self._bytes


def run_report(learner: Learner, started: Started, telemetry: Telemetry) -> dict[str, Any]:
    """Make the report of a run: what was learned in all, and how fast this run was."""
    model = learner.model
    counts = model.counts
    seconds = max(started.seconds, 1e-9)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "model": model.job.model.kind,
        "examples": counts.examples,
        "bytes": counts.bytes,
        "seconds": started.seconds,
        "examples_per_second": started.examples / seconds,
        "megabytes_per_second": started.bytes / seconds / 1e6,
        "cpu_seconds": started.cpu_seconds,
        "compile_seconds": telemetry.compile_seconds,
        "process_cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "bad_records": counts.bad_records,
        **({"examples_dropped": learner.notices.dropped} if model.has_embeddings else {}),
        **_of_net(model),
        "subsampled": counts.subsampled,
        "resumed_from": model.resumed_from,
        **model.validation.report(telemetry.summary),
        **{name: value for name, value in sizes(model).items() if name != "sparsity"},
    }


def _of_net(model: Model) -> dict[str, int]:
    if not isinstance(model.job.model, DeepConfig):
        return {}
    told = cast("DeviceSolver", model.solver).figures()
    return {"steps": int(told["steps"]), "steps_skipped": int(told["skipped"])}


def with_lanes(job: JobConfig) -> JobConfig:
    """Decide the number of lanes where the job leaves it open."""
    if job.compute.lanes:
        return job
    cores, shards = len(os.sched_getaffinity(0)), job.compute.shard_lanes
    lanes = max(cores, shards + 1) if shards else min(cores, 2)
    if isinstance(job.model, MfConfig | LdaConfig):
        lanes = cores  # those of further passes; the first has a parse and a learn lane
    compute = msgspec.structs.replace(job.compute, lanes=lanes)
    return msgspec.structs.replace(job, compute=compute)


def _check_words(model: Model, format_: Format) -> None:
    """Refuse a file of words that is not what it was; note which it is."""
    digest = getattr(format_, "digest", "")
    if model.resumed_from is not None and digest != model.words_digest:
        raise ConfigError(
            "the file of source.vocabulary or source.stop_words has other words than when "
            f"{model.resumed_from} was learned",
            hint="put it back, or start over in another --out",
        )
    model.words_digest = digest


def _is_pipe(partition: Partition) -> bool:
    return partition.size < 0 and not partition.version and "://" not in partition.uri


def failed(learner: Learner) -> StreamlearnError | None:
    """Return an error for the objects that could not be learned to their ends."""
    if not learner.failed:
        return None
    name, error = next(iter(learner.failed.items()))
    if len(learner.failed) == 1:
        return error
    return DataError(
        f"{len(learner.failed)} objects could not be learned to their ends, {name} the first",
        cause=error.message,
        hint="report.json names them all",
    )


def _first(group: BaseExceptionGroup[StreamlearnError]) -> StreamlearnError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StreamlearnError)
    return error
