"""Scoring without learning: ``evaluate`` and ``predict``."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamlearn.config import JobConfig
from streamlearn.learner import Learner
from streamlearn.messages import F32, F64, Progress
from streamlearn.model import load
from streamlearn.net.sources.uri import open_source
from streamlearn.online.losses import new_validation
from streamlearn.online.mf import MfSolver
from streamlearn.online.minibatch import Minibatch
from streamlearn.telemetry import Telemetry
from streamlearn.training import (
    Started,
    compile_kernels,
    failed,
    prepare_format,
    run_report,
    todo_all,
    with_lanes,
)

__all__ = ["score"]

_log = logging.getLogger("streamlearn.scoring")


async def score(
    directory: Path,
    job: JobConfig,
    sink: Callable[[Progress], None],
    out: Callable[[Sequence[float]], None] | None,
) -> dict[str, Any]:
    """Score a source with the newest snapshot of an output directory.

    Parameters
    ----------
    out : callable or None
        Receives the prediction of each record in order (a probability, or a rating), NaN for a bad
        one.
    """
    compute = msgspec.structs.replace(job.compute, learn_lanes=1)
    job = with_lanes(msgspec.structs.replace(job, compute=compute))
    telemetry = Telemetry(time.monotonic, sink, job.model)
    source = open_source(job.source)
    try:
        partitions = await source.partitions()
        format_, job = await prepare_format(job, source, partitions, labelled=out is None)
        model = await asyncio.to_thread(load, directory, job)
        await compile_kernels(job, format_, source, partitions, telemetry)
        model.validation = new_validation(job.model, job.output.window)
        model.counts = type(model.counts)()
        learner = Learner(
            model,
            format_,
            source,
            quarantine=None,
            cpu_clock=time.thread_time,
            tick=lambda: 0,
            teach=False,
            on_scores=None if out is None else _printer(out, model.validation.predictions),
        )
        telemetry.attach(learner, source)
        for partition in partitions:
            telemetry.add_partition(partition)
        telemetry.tell("learning", "scoring")
        started = Started(model)
        showing = asyncio.create_task(_show(telemetry, learner))
        try:
            await learner.run(todo_all(partitions))
            started.stop()
            telemetry.summary = await learner.summary()
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            learner.close()
    finally:
        await source.aclose()
    report = run_report(learner, started, telemetry)
    report.pop("examples_dropped", None)  # none is to teach anything
    if isinstance(model.solver, MfSolver):
        report |= _unknown(model.solver, model.counts.examples)
    if out is not None:  # of records that need no labels, nothing is known about these
        for figure in model.validation.reported:
            report.pop(figure, None)
    telemetry.tell("done")
    if (error := failed(learner)) is not None:
        raise error
    return report


def _unknown(solver: MfSolver, examples: int) -> dict[str, int]:
    """Say of how many ratings the user or the item is unknown; return it for the report."""
    users, items = solver.unknown.tolist()
    if users or items:
        _log.warning(
            "of %s ratings, %s are of users and %s of items that the model does not know: they are "
            "predicted by the bias of the other, or by the mean",
            f"{examples:,}", f"{users:,}", f"{items:,}",
        )  # fmt: skip
    return {"unknown_users": users, "unknown_items": items}


async def _show(telemetry: Telemetry, learner: Learner) -> None:
    while True:
        await asyncio.sleep(0.5)
        telemetry.summary = await learner.summary()
        telemetry.show()


def _printer(
    out: Callable[[Sequence[float]], None], predictions: Callable[[F32], F64]
) -> Callable[[F32, Minibatch], None]:
    def on_scores(scores: F32, batch: Minibatch) -> None:
        predicted: list[float] = predictions(scores).tolist()
        out(list(_merged(predicted, batch)) if batch.bad else predicted)

    return on_scores


def _merged(predictions: list[float], batch: Minibatch) -> Iterator[float]:
    """Yield the predictions of good records and NaN for bad ones, in the order of the records."""
    bad = iter(batch.bad_start[: batch.bad].tolist())
    coming = next(bad, math.inf)
    for start, prediction in zip(batch.lines[: batch.rows].tolist(), predictions, strict=True):
        while coming < start:
            yield math.nan
            coming = next(bad, math.inf)
        yield prediction
    while coming < math.inf:
        yield math.nan
        coming = next(bad, math.inf)
