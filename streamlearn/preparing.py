"""What must be known before the first record is learned: format, first records, kernels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import msgspec

from streamlearn.compute.leftovers import give_back
from streamlearn.config import DeepConfig, JobConfig, classes_of, loss_of
from streamlearn.errors import DataError, StreamlearnError
from streamlearn.messages import Partition, Position
from streamlearn.net.sources.objects import ObjectSource
from streamlearn.online.formats import Deep, Format, open_format
from streamlearn.telemetry import Telemetry
from streamlearn.warmup import warm_up, whole_records

__all__ = ["compile_kernels", "first_records", "format_of", "prepare_format", "todo_all"]

# Records to compile the kernels with are taken from this much of the first object.
_SAMPLE_BYTES: Final = 1 << 16


def format_of(job: JobConfig, sample: bytes | None, *, labelled: bool = True) -> Format:
    """Return the format of what a job's model learns; see ``open_format``."""
    model = job.model
    ratings = model.kind == "mf"
    return open_format(
        job.source, sample, labelled=labelled, ratings=ratings,
        clicks=ratings and labelled and loss_of(model) == "logistic",
        documents=model.kind == "lda",
        deep=Deep(model.loss, classes_of(job)) if isinstance(model, DeepConfig) else None,
    )  # fmt: skip


async def prepare_format(
    job: JobConfig, source: ObjectSource, partitions: list[Partition], *, labelled: bool = True
) -> tuple[Format, JobConfig]:
    """Open the format, by the first line where it is ``auto``; return the job that names it.

    Without ``labelled``, records need no label where the format can do without.
    """
    sample: bytes | None = None
    if partitions and job.source.format == "auto":
        first = next((one for one in partitions if one.size != 0), partitions[0])
        sample = await source.header(first) + b"\n"
    format_ = format_of(job, sample, labelled=labelled)
    named = msgspec.structs.replace(job.source, format=format_.name)
    return format_, msgspec.structs.replace(job, source=named)


async def compile_kernels(
    job: JobConfig,
    format_: Format,
    source: ObjectSource,
    partitions: list[Partition],
    telemetry: Telemetry,
) -> None:
    """Compile (or load) the kernels with records of the first object."""
    started = time.monotonic()
    telemetry.tell("compiling", "reading the first records")
    loop = asyncio.get_running_loop()

    def told(what: str) -> None:
        loop.call_soon_threadsafe(telemetry.tell, "compiling", what)

    deep = isinstance(job.model, DeepConfig)
    header, records = await first_records(format_, source, partitions, needed=deep)
    if records:
        with suppress(StreamlearnError):  # whoever learns from it will say so
            await asyncio.to_thread(warm_up, job, format_, header, records, told)
    give_back()
    telemetry.compile_seconds = time.monotonic() - started


async def first_records(
    format_: Format, source: ObjectSource, partitions: list[Partition], *, needed: bool = False
) -> tuple[bytes | None, bytes]:
    """Return the header (where there is one) and some whole records of the first object.

    Parameters
    ----------
    needed : bool
        Whether the model takes its inputs from what the format has seen then, as nets do: an object
        that cannot be read is raised as an error at once. Else whoever learns from it says so.
    """
    first = next((p for p in partitions if p.size > 0 and p.start == 0), None)
    if first is None:
        return None, b""
    try:
        header = await source.header(first) if format_.first_line else None
        format_.parser(header)  # what minibatches have, it may learn from this alone
    except StreamlearnError as error:
        if not needed:
            return None, b""
        if not isinstance(error, DataError) or first.uri in error.message:
            raise
        raise DataError(
            f"{first.uri}: {error.message}", cause=error.cause, hint=error.hint
        ) from error
    with suppress(StreamlearnError):  # whoever learns from it will say so
        sample = await _sample(source, first)
        if format_.has_header:
            sample = sample[sample.find(b"\n") + 1 :]
        return header, whole_records(sample)
    return None, b""


async def todo_all(partitions: list[Partition]) -> AsyncIterator[tuple[Partition, Position]]:
    """Yield every partition from its beginning."""
    for partition in partitions:
        yield partition, Position(offset=partition.start)


async def _sample(source: ObjectSource, partition: Partition) -> bytes:
    blocks = source.read(partition, Position())
    try:
        async for block in blocks:
            end = min(block.end, block.start + _SAMPLE_BYTES)
            sample = block.buffer[block.start : end].tobytes()
            if b"\n" not in sample:  # one long record
                sample = block.buffer[block.start : block.end].tobytes()
            block.release()
            return sample
    finally:
        await blocks.aclose()
    return b""
