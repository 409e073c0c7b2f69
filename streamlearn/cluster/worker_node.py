"""The daemon ``streamlearn worker``: one worker as a process.

Drain: claims -> what is under way -> leave -> state and report -> HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from streamlearn import columns, metrics
from streamlearn.cluster.daemon import Daemon, load_secrets, place_of, show_wire
from streamlearn.cluster.remote import Remote, Who
from streamlearn.cluster.roles import WorkerOptions
from streamlearn.cluster.shard_host import Place
from streamlearn.cluster.topics import new_stepper
from streamlearn.cluster.users import Keeping
from streamlearn.cluster.worker import Worker
from streamlearn.compute.leftovers import few_arenas, give_back
from streamlearn.compute.pool import Lane
from streamlearn.config import DeepConfig, JobConfig, job_signature
from streamlearn.dense_blob import read_dense, write_dense
from streamlearn.errors import ClusterError, DataError, RefusedError, RunError, StreamlearnError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, Progress
from streamlearn.metrics import Metrics
from streamlearn.net.client import Link
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.net.limits import Limits
from streamlearn.net.security import Secrets
from streamlearn.net.sources.objects import ObjectSource
from streamlearn.net.sources.uri import open_source
from streamlearn.online.formats import Format
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.losses import new_validation
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch, room_of
from streamlearn.online.names import Names
from streamlearn.online.progressive import Validation
from streamlearn.online.validation import BinaryValidation
from streamlearn.preparing import first_records, prepare_format
from streamlearn.quarantine import Quarantine
from streamlearn.report import report_json
from streamlearn.shards.directory import DirectoryLock
from streamlearn.shards.shard import prefixes_of
from streamlearn.shards.snapshot import SnapshotWriter, newest, next_sequence, prune

__all__ = ["STATE", "WorkerNode", "connector", "remotes_of"]

_log = logging.getLogger("streamlearn.cluster.worker")

STATE: Final = "state"
_PROGRESS_SECONDS: Final = 0.5
_RATE_SECONDS: Final = 5.0
_STATES_KEPT: Final = 2


def connector(
    address: str,
    index: int,
    of: int,
    job: JobConfig,
    peer: Peer,
    secrets: Secrets,
    place: Place,
    limits: Limits,
    counters: Counters,
) -> Callable[[], Any]:
    """Return what connects to a shard and checks that it is the one that is meant.

    What it returns raises ClusterError where another shard, or one of another job, is there.
    """

    async def connect() -> Link:
        link = await Link.open(
            address,
            cluster=job.cluster.name,
            peer=peer,
            secrets=secrets,
            network=place.network,
            limits=limits,
            nonce=place.nonce,
            counters=counters,
            compression=job.tables.compression,
        )
        said = link.welcome
        expected = (index, of, *prefixes_of(index, of), job_signature(job))
        found = (said.shard, said.of, said.low, said.high, said.job)
        if found != expected:
            await link.close()
            raise ClusterError(
                f"{address} is shard {said.shard} of {said.of} with prefixes {said.low} to "
                f"{said.high} of job {said.job}; tables.shards says shard {index} of {of} with "
                f"prefixes {expected[2]} to {expected[3]}, and this job is {expected[4]}",
                hint="list every shard once, in order, and start all with the same job file",
            )
        return link

    return connect


def remotes_of(
    worker: Worker,
    who: Who,
    job: JobConfig,
    secrets: Secrets,
    place: Place,
    limits: Limits,
    counters: Counters,
) -> list[Remote]:
    """Make a worker's remotes, one for each of ``tables.shards``."""
    addresses = job.tables.shards
    peer = Peer("worker", who.name)
    of = len(addresses)
    remotes = [
        Remote(
            index,
            who,
            connector(address, index, of, job, peer, secrets, place, limits, counters),
            worker.oldest,
            lambda: (place.number() & 0xFFFF) / 0x10000,
            worker.wake,
        )
        for index, address in enumerate(addresses)
    ]
    worker.attach(remotes, [prefixes_of(index, of)[0] for index in range(of)])
    return remotes


class WorkerNode:
    """One worker as a process.

    Parameters
    ----------
    job : JobConfig
        With ``tables.shards``.
    options : WorkerOptions
    sink : callable, optional
        Receives progress.
    """

    def __init__(
        self,
        job: JobConfig,
        options: WorkerOptions,
        sink: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.job = job
        self.options = options
        self.directory = Path(options.directory)
        self.worker: Worker | None = None
        self.compile_seconds = 0.0
        self.saved = 0
        self._sink = sink
        self._counters = Counters()
        self._daemon: Daemon | None = None
        self._lanes: list[Lane] = []
        self._remotes: list[Remote] = []
        self._started = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque()

    async def run(self) -> dict[str, Any]:
        """Learn until nothing is left or a signal comes; return the report.

        Raises
        ------
        StreamlearnError
            The shards refuse it for good, the source cannot be listed, too many records are bad.
        """
        if not self.job.tables.shards:
            raise ClusterError(
                "a worker needs shards", hint="--shards HOST:PORT,… or tables.shards"
            )
        few_arenas()
        secrets = load_secrets(self.job.cluster)
        daemon = self._daemon = Daemon(self.options.http, self.status, self._read)
        daemon.tell("compiling", "listing the source")
        lock = DirectoryLock(self.directory)
        source = open_source(self.job.source)
        # a net's step waits for the other workers: parsing goes on meanwhile
        one = self.job.compute.lanes == 1 and not isinstance(self.job.model, DeepConfig)
        parse = Lane("parse", time.thread_time)
        step = parse if one else Lane("step", time.thread_time)
        self._lanes = [parse] if one else [parse, step]
        try:
            async with daemon.running(_log):
                return await self._run(secrets, daemon, source, parse, step)
        except OSError as error:
            raise RunError(f"cannot use {self.directory}", cause=error.strerror) from error
        finally:
            await source.aclose()
            for lane in self._lanes:
                lane.close()
            lock.release()

    async def _run(
        self, secrets: Secrets, daemon: Daemon, source: ObjectSource, parse: Lane, step: Lane
    ) -> dict[str, Any]:
        signature = job_signature(self.job)
        partitions = await source.partitions()
        format_, read_as = await prepare_format(self.job, source, partitions)
        daemon.tell("compiling", "kernels")
        started = time.monotonic()
        deep = isinstance(self.job.model, DeepConfig)
        header, records = await first_records(format_, source, partitions, needed=deep)
        if records:
            await asyncio.to_thread(warm_up_worker, read_as, format_, header, records)
        give_back()
        self.compile_seconds = time.monotonic() - started
        names = Names(tuple(format_.fields), max(1, self.job.output.names_max))
        validation = new_validation(self.job.model, self.job.output.window)
        dense = await asyncio.to_thread(self._restore, names, validation)
        path = self.directory / "bad_records.jsonl"
        quarantine = Quarantine(path, path.stat().st_size if path.exists() else 0)
        place = place_of(secrets)
        who = Who(self.options.name, place.number(), signature)
        worker = self.worker = Worker(
            read_as, who, source, format_, parse, step, names, validation, quarantine,
            Keeping(self.directory, time.time),
        )  # fmt: skip
        if dense:
            await step.run(worker.net.restore, dense)
        self._remotes = remotes_of(worker, who, self.job, secrets, place, Limits(), self._counters)
        daemon.tell("learning", "joining the shards")
        cpu = time.process_time()
        beside = [
            asyncio.create_task(self._show(), name="progress"),
            asyncio.create_task(self._save_often(worker, parse, step), name="state"),
            asyncio.create_task(self._stop_on_signal(worker, daemon), name="signals"),
        ]
        failure: StreamlearnError | None = None
        try:
            await worker.run()
        except RefusedError as error:
            failure = error
        except StreamlearnError as error:
            failure = error
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        daemon.tell("draining")
        await self._save(worker, parse, step)
        quarantine.close()
        if worker.dense is not None:
            await step.run(worker.net.close)
        self._tell("done")
        report = self._report(worker, time.process_time() - cpu)
        await asyncio.to_thread(self._write, report)
        if failure is None and worker.failed:
            failure = _failed(worker)
        if failure is not None:
            daemon.tell("failed", failure.message)
            raise failure
        daemon.tell("done")
        return report

    async def _stop_on_signal(self, worker: Worker, daemon: Daemon) -> None:
        await daemon.stopping.wait()
        daemon.tell("draining")
        worker.stop()

    # ---------------------------------------------------------------- what it keeps

    def _restore(self, names: Names, validation: Validation) -> dict[str, Any]:
        """Go on with the names and the validation that an earlier process kept.

        Returns
        -------
        dict of str to array
            The dense part of a net; empty: none was kept.
        """
        root = self.directory / STATE
        if not root.is_dir():
            return {}
        reader, skipped = newest(root)
        for sentence in skipped:
            _log.warning("passed over a damaged state: %s", sentence)
        if reader is None:
            return {}
        with reader:
            reader.require(kind="worker", keys=("arrays", "fields"))
            arrays = {
                name: reader.read(name).view(np.dtype(dtype)).reshape(shape)
                for name, (dtype, shape) in reader.meta["arrays"].items()
            }
            names.use_fields(reader.meta["fields"])
            for prefix, part in (("names.", names), ("validation.", validation)):
                part.restore(
                    {
                        name.removeprefix(prefix): array
                        for name, array in arrays.items()
                        if name.startswith(prefix)
                    }
                )
            return read_dense(reader) if "dense" in reader.meta else {}

    async def _save_often(self, worker: Worker, parse: Lane, step: Lane) -> None:
        while True:
            await asyncio.sleep(self.job.output.snapshot_seconds)
            try:
                await self._save(worker, parse, step)
            except StreamlearnError as error:
                _log.error("names and validation were not kept: %s", error)

    async def _save(self, worker: Worker, parse: Lane, step: Lane) -> None:
        """Keep names, validation and users, to be gathered with the shards' rows."""
        await worker.keep_users()

        def named() -> tuple[dict[str, Any], list[str]]:
            worker.names.flush()
            state = {k: np.array(v) for k, v in worker.names.state().items()}
            return state, list(worker.names.fields)

        names, fields = await parse.run(named)
        validation = await step.run(worker.validation.state)
        arrays = {f"names.{k}": v for k, v in names.items()}
        arrays |= {f"validation.{k}": v for k, v in validation.items()}
        meta = {
            "kind": "worker",
            "job": msgspec.to_builtins(worker.job),  # the format is known there
            "created_seconds": time.time(),
            "fields": fields,
        }
        dense: dict[str, Any] = {}
        if worker.dense is not None:
            dense = await step.run(worker.net.state)
            steps, net = int(dense["steps"][0]), worker.net
            meta["dense"] = {"shape": net.shape, "names": net.names, "steps": steps}
        await asyncio.to_thread(_write_arrays, self.directory / STATE, meta, arrays, dense)
        self.saved += 1

    def _write(self, report: dict[str, Any]) -> None:
        path = self.directory / "report.json"
        partial = path.with_suffix(".partial")
        partial.write_text(report_json(report) + "\n")
        partial.replace(path)

    # ---------------------------------------------------------------- what it says

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            self._tell("learning")

    def _tell(self, state: str) -> None:
        worker = self.worker
        if worker is not None:
            now = time.monotonic()
            self._recent.append((now, worker.examples, worker.bytes))
            while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_SECONDS:
                self._recent.popleft()
        with suppress(OSError):  # nobody looks any more: that is no reason to stop
            self._sink(self._progress(state))

    def _progress(self, state: str) -> Progress:
        worker = self.worker
        assert worker is not None
        (before, examples, size), (now, examples_now, size_now) = self._recent[0], self._recent[-1]
        seconds = max(now - before, 1e-9)
        figures = worker.validation.summary()
        label, score, features = worker.stepper.last
        return Progress(
            state=state,
            detail=worker.partition,
            seconds=now - self._started,
            examples=worker.examples,
            bad_records=worker.bad,
            bytes=worker.bytes,
            stored_bytes=worker.stored_bytes,
            bytes_done=worker.stored_bytes,
            bytes_total=-1,
            examples_per_second=(examples_now - examples) / seconds,
            bytes_per_second=(size_now - size) / seconds,
            weight=figures["weight"],
            **worker.validation.judged(figures),
            last_label=label,
            last_prediction=worker.validation.prediction(score),
            last_features=features,
            features=0,
            event_seconds=math.nan,
        )

    def status(self) -> dict[str, Any]:
        """Return what ``/status`` shows."""
        worker = self.worker
        told: dict[str, Any] = {"role": "worker", "name": self.options.name}
        if worker is None:
            return told | {"detail": self._daemon.detail if self._daemon else ""}
        return told | {
            "detail": worker.state,
            "partition": worker.partition,
            "clock": worker.clock,
            "in_flight": worker.in_flight,
            "examples": worker.examples,
            "records": worker.records,
            "bad_records": worker.bad,
            "examples_dropped": worker.notices.dropped,
            "bytes": worker.bytes,
            "stored_bytes": worker.stored_bytes,
            "source_bytes": worker.source_bytes,
            "rewinds": worker.rewinds,
            "resent": sum(remote.resent for remote in self._remotes),
            "shards": [remote.joined.is_set() for remote in self._remotes],
            "validation": worker.validation.summary(),
            **_histogram(worker.validation),
            "last": list(worker.stepper.last),
            **({"dense": worker.dense.figures()} if worker.dense is not None else {}),
            "wire": {"in": self._counters.bytes_in, "out": self._counters.bytes_out},
            "failed": {name: str(error) for name, error in worker.failed.items()},
        }

    def _read(self, m: Metrics) -> None:
        m.set(metrics.COMPILE_SECONDS, self.compile_seconds)
        worker = self.worker
        if worker is None:
            return
        show_wire(m, self._counters)
        m.set_validation(worker.validation.totals(), worker.validation.summary())
        m.set(metrics.DROPPED, worker.notices.dropped)
        m.set(metrics.DOCUMENTS_SPLIT, worker.notices.rows_split)
        m.set(metrics.DOCUMENTS_UNDECODABLE, worker.notices.replaced)
        m.set(metrics.RECORDS, worker.records)
        m.set(metrics.BYTES, worker.bytes)
        m.set(metrics.STORED_BYTES, worker.stored_bytes)
        for reason, count in worker.reasons.items():
            m.set(metrics.REJECTED, count, reason)
        if worker.dense is not None:
            m.set_dense(worker.dense.figures())
        m.set(metrics.CLOCK, worker.clock)
        m.set(metrics.IN_FLIGHT, worker.in_flight)
        m.set(metrics.NAMES, len(worker.names))
        m.set(metrics.NAMES_BYTES, worker.names.bytes)
        for lane in self._lanes:
            m.set(metrics.LANE_BUSY_SECONDS, lane.busy_seconds, lane.name)

    def _report(self, worker: Worker, cpu_seconds: float) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        figures = worker.validation.summary()
        return {
            "model": self.job.model.kind,
            "worker": self.options.name,
            "examples": worker.examples,
            "bad_records": worker.bad,
            **({"examples_dropped": worker.notices.dropped} if self.job.model.tiers else {}),
            "bytes": worker.bytes,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "compile_seconds": self.compile_seconds,
            "examples_per_second": worker.examples / seconds,
            "megabytes_per_second": worker.bytes / seconds / 1e6,
            "wire_bytes_in": self._counters.bytes_in,
            "wire_bytes_out": self._counters.bytes_out,
            "rewinds": worker.rewinds,
            **({"dense": worker.dense.figures()} if worker.dense is not None else {}),
            "resent": sum(remote.resent for remote in self._remotes),
            "stopped": self._daemon.stopped_by if self._daemon else None,
            **worker.validation.headlines(figures),
            "failed": {name: str(error) for name, error in worker.failed.items()},
        }


def _histogram(validation: Validation) -> dict[str, list[float]]:
    """Return what whoever pools the AUC of several workers needs, if there is one."""
    if not isinstance(validation, BinaryValidation):
        return {}
    return {"histogram": validation.histogram().tolist()}


def warm_up_worker(job: JobConfig, format: Format, header: bytes | None, records: bytes) -> None:
    """Compile what a worker runs, on some of its records."""
    columns.warm_up()
    rows, nnz = room_of(64, FEATURES_PER_RECORD_MAX, format.record_rows)
    batch = Minibatch.of(format, rows, nnz)
    buffer = np.zeros(len(records) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[: len(records)] = np.frombuffer(records, np.uint8)
    parser = format.parser(header)
    batch.clear()
    parser.parse(buffer, 0, records.rfind(b"\n") + 1, batch)
    names = Names(tuple(format.fields), 1024)
    names.note(parser, buffer, batch.lines[: batch.rows], np.arange(min(batch.rows, 4)))
    names.flush()
    localized = Localized(batch.nnz_max)
    intercept = bool(job.model.intercept)
    Localizer(batch.nnz_max).localize(batch, localized, intercept=intercept)
    stepper = new_stepper(job, rows, new_validation(job.model, 64), format)
    stepper.try_out(batch, localized)
    stepper.close()


def _write_arrays(
    root: Path, meta: dict[str, Any], arrays: dict[str, Any], dense: dict[str, Any]
) -> None:
    with SnapshotWriter(root, next_sequence(root)) as writer:
        shapes: dict[str, Any] = {}
        for name, array in arrays.items():
            plain = np.ascontiguousarray(array)
            shapes[name] = [str(plain.dtype), list(plain.shape)]
            with writer.open(name) as blob:
                blob.write(plain)
        if dense:
            write_dense(writer, dense)
        writer.commit(meta | {"arrays": shapes})
    with suppress(OSError):
        prune(root, _STATES_KEPT, trusted=writer.sequence)


def _failed(worker: Worker) -> StreamlearnError:
    name, error = next(iter(worker.failed.items()))
    if len(worker.failed) == 1:
        return error
    return DataError(
        f"{len(worker.failed)} objects could not be learned to their ends, {name} the first",
        cause=error.message,
        hint="report.json names them all",
    )
