"""Learning quarantined records once the schema is mended.

``bad_records.jsonl`` only ever grows: records that are still bad are kept again, at its end, and
the snapshot says up to where the file has been replayed. So a replay that dies before its snapshot
has changed nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamlearn.config import JobConfig
from streamlearn.errors import ConfigError, StreamlearnError
from streamlearn.learner import Learner
from streamlearn.messages import (
    BLOCK_HEADROOM_BYTES,
    BLOCK_TAILROOM_BYTES,
    BadRecord,
    Block,
    Partition,
    Position,
    Progress,
)
from streamlearn.model import load
from streamlearn.model_cut import ModelCut
from streamlearn.net.sources.uri import open_source
from streamlearn.preparing import format_of
from streamlearn.privacy import refuse_more
from streamlearn.quarantine import Quarantine, read_quarantine
from streamlearn.shards.directory import DirectoryLock
from streamlearn.telemetry import Telemetry
from streamlearn.training import Started, run_report, with_lanes

__all__ = ["ReplaySource", "replay"]


class ReplaySource:
    """Quarantined records as a source: a block each, at the offset where it stood.

    Parameters
    ----------
    records : list of BadRecord
    header : coroutine function
        Returns the first line of an object, for formats that have one.
    """

    def __init__(self, records: list[BadRecord], header: Callable[[Partition], Any]) -> None:
        self._records = records
        self._header = header

    async def header(self, partition: Partition) -> bytes:
        """Return the first line of the records' object."""
        line: bytes = await self._header(partition)
        return line

    async def read_many(
        self, todo: AsyncIterator[tuple[Partition, Position]]
    ) -> AsyncGenerator[tuple[Partition, Block | StreamlearnError], None]:
        """Yield the records of each partition's object."""
        async for partition, _ in todo:
            records = [record for record in self._records if record.uri == partition.uri]
            for number, record in enumerate(records, 1):
                yield partition, _block(record, last=number == len(records))


def _block(record: BadRecord, *, last: bool) -> Block:
    line = record.record + b"\n"
    buffer = np.zeros(BLOCK_HEADROOM_BYTES + len(line) + BLOCK_TAILROOM_BYTES, np.uint8)
    start, end = BLOCK_HEADROOM_BYTES, BLOCK_HEADROOM_BYTES + len(line)
    buffer[start:end] = np.frombuffer(line, np.uint8)
    return Block(buffer, start, end, record.offset, last, len(line), lambda: None)


async def replay(
    directory: Path, job: JobConfig, sink: Callable[[Progress], None]
) -> dict[str, Any]:
    """Learn the quarantined records of an output directory with the schema of ``job``.

    Returns
    -------
    dict
        The report, with ``replayed`` (records tried) and ``still_bad``. A record that was too long
        is not tried.

    Raises
    ------
    ConfigError
        There is no model, or nothing to replay.
    """
    job = with_lanes(job)
    telemetry = Telemetry(time.monotonic, sink, job.model)
    path = directory / "bad_records.jsonl"
    lock = DirectoryLock(directory)
    try:
        model = await asyncio.to_thread(load, directory, job, time.monotonic, mended=True)
        refuse_more(model.job.model, directory)
        kept = list(read_quarantine(path, model.replayed_size, model.quarantine_size))
        # of a record that is too long only the beginning was kept
        records = [record for record in kept if record.reason != "too_long"]
        if not records:
            raise ConfigError(f"{path} holds no records that could be replayed")
        uris = tuple(dict.fromkeys(record.uri for record in records))
        job = msgspec.structs.replace(job, source=msgspec.structs.replace(job.source, uri=uris))
        source = open_source(job.source)
        format_ = format_of(job, records[0].record + b"\n")
        if format_.first_line:  # what minibatches have, it may have to say
            format_.parser(await source.header(Partition(uris[0])))
        quarantine = Quarantine(path, model.quarantine_size)
        learner = Learner(
            model,
            format_,
            ReplaySource(records, source.header),
            quarantine=quarantine,
            cpu_clock=time.thread_time,
            tick=lambda: int(time.time()) // 60,
            positions=False,
        )
        telemetry.attach(learner, None)
        telemetry.tell("learning", f"replaying {len(records):,} records")
        started = Started(model)
        model.counts.bad_records -= len(records)
        model.replayed_size = model.quarantine_size
        for record in kept:
            if record.reason == "too_long":
                quarantine.add(record)
        try:
            await learner.run(_todo(records))
            started.stop()
            if learner.failed:
                raise next(iter(learner.failed.values()))
            told: dict[str, object] = {}
            await learner.snapshot(
                lambda: ModelCut(model, directory / "model", quarantine.sync(), time.time()),
                told.update,
            )
            await learner.finish_snapshot()
            if isinstance(error := told.get("error"), StreamlearnError):
                raise error
            telemetry.summary = await learner.summary()
        finally:
            learner.close()
            quarantine.close()
            await source.aclose()
    finally:
        lock.release()
    telemetry.tell("done")
    return run_report(learner, started, telemetry) | {
        "replayed": len(records),
        "still_bad": learner.bad,
    }


async def _todo(records: list[BadRecord]) -> AsyncIterator[tuple[Partition, Position]]:
    for uri in dict.fromkeys(record.uri for record in records):
        first = next(record for record in records if record.uri == uri)
        yield Partition(uri), Position(first.offset)
