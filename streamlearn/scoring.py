"""Scoring without learning: ``evaluate`` and ``predict``; and reading for who wants records."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamlearn.config import JobConfig, loss_of
from streamlearn.learner import Learner
from streamlearn.messages import F32, F64, Progress
from streamlearn.model import Model, load, stored_job
from streamlearn.net.sources.uri import open_source
from streamlearn.online import class_validation
from streamlearn.online.lda import LdaSolver
from streamlearn.online.losses import new_validation, validation_of
from streamlearn.online.mf import MfSolver
from streamlearn.online.minibatch import Minibatch
from streamlearn.preparing import compile_kernels, prepare_format, todo_all
from streamlearn.telemetry import Telemetry
from streamlearn.topic_inference import Judging, TopicReader
from streamlearn.topic_mixtures import MixturesOut, mixtures_of
from streamlearn.topic_model import check_words
from streamlearn.training import Started, failed, run_report, with_lanes

__all__ = ["read_records", "score"]

_log = logging.getLogger("streamlearn.scoring")


async def score(
    directory: Path,
    job: JobConfig,
    sink: Callable[[Progress], None],
    out: Callable[[Sequence[Any]], None] | None,
    *,
    probabilities: bool = False,
    judging: Judging | None = None,
    mixtures: MixturesOut | None = None,
) -> dict[str, Any]:
    """Score a source with the newest snapshot of an output directory.

    Parameters
    ----------
    out : callable or None
        Receives the prediction of each record in order (a probability, a number, or that of a
        class), NaN for a bad one.
    probabilities : bool
        Of classes: ``out`` receives the probabilities of all of them, a list a record.
    judging : Judging, optional
        Of a topic model: how documents are judged.
    mixtures : callable, optional
        Of a topic model, in the place of ``out``: receives the topics of each document in order,
        None for a bad one; documents are not judged then.
    """
    compute = msgspec.structs.replace(job.compute, learn_lanes=1)
    job = with_lanes(msgspec.structs.replace(job, compute=compute))
    telemetry = Telemetry(time.monotonic, sink, job.model)
    source = open_source(job.source)
    reader: TopicReader | None = None
    try:
        partitions = await source.partitions()
        format_, job = await prepare_format(job, source, partitions, labelled=out is None)
        model = await asyncio.to_thread(_load, directory, job)
        await compile_kernels(job, format_, source, partitions, telemetry)
        model.validation = new_validation(job.model, job.output.window)
        model.counts = type(model.counts)()
        if isinstance(model.solver, LdaSolver):
            reader = TopicReader(
                model.solver, job.compute.lanes or 1, None if mixtures else judging or Judging()
            )
        learner = Learner(
            model,
            format_,
            source,
            quarantine=None,
            cpu_clock=time.thread_time,
            tick=lambda: 0,
            teach=False,
            scorer=reader,
            on_scores=_told(_predictions(job, probabilities), out, reader, mixtures),
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
            model.close()
    finally:
        await source.aclose()
        if reader is not None:
            reader.close()
    report = run_report(learner, started, telemetry)
    for name in ("examples_dropped", "steps", "steps_skipped"):  # none is to teach anything
        report.pop(name, None)
    if isinstance(model.solver, MfSolver):
        report |= _unknown(model.solver, model.counts.examples)
    if reader is not None:
        report |= _left_out(reader)
    # of records that need no labels, nothing is known about these
    if out is not None or mixtures is not None:
        for figure in model.validation.reported:
            report.pop(figure, None)
    telemetry.tell("done")
    if (error := failed(learner)) is not None:
        raise error
    return report


def _load(directory: Path, job: JobConfig) -> Model:
    """Load a model; documents may stand there otherwise than those that it was learned from."""
    if job.model.kind != "lda":
        return load(directory, job)
    check_words(stored_job(directory), job, directory)
    return load(directory, job, mended=True)


async def read_records(
    job: JobConfig, model: Model, told: Callable[[F32, Minibatch], None]
) -> None:
    """Tell of every minibatch of a source; nothing is learned."""
    source = open_source(job.source)
    try:
        partitions = await source.partitions()
        format_, _ = await prepare_format(job, source, partitions, labelled=False)
        learner = Learner(
            model, format_, source, quarantine=None, cpu_clock=time.thread_time, tick=lambda: 0,
            teach=False, positions=False, on_scores=told,
        )  # fmt: skip
        try:
            await learner.run(todo_all(partitions))
            learner.check_bad_share()
        finally:
            learner.close()
    finally:
        await source.aclose()
    if (error := failed(learner)) is not None:
        raise error


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


def _left_out(reader: TopicReader) -> dict[str, int]:
    """Say how many tokens were left out, as their words have no topics; return it."""
    unknown, known = reader.unknown_tokens, reader.known_tokens
    if unknown > known:
        _log.warning(
            "of %s tokens, %s are of words that the model has no topics for: they are left out",
            f"{unknown + known:,}", f"{unknown:,}",
        )  # fmt: skip
    return {"known_tokens": known, "unknown_tokens": unknown}


async def _show(telemetry: Telemetry, learner: Learner) -> None:
    while True:
        await asyncio.sleep(0.5)
        telemetry.summary = await learner.summary()
        telemetry.show()


def _predictions(job: JobConfig, probabilities: bool) -> Callable[[F32], F64]:
    """Return what takes scores to predictions."""
    if probabilities and loss_of(job.model) == "classes":
        return class_validation.probabilities
    return validation_of(job.model).predictions


def _told(
    predictions: Callable[[F32], F64],
    out: Callable[[Sequence[Any]], None] | None,
    reader: TopicReader | None,
    mixtures: MixturesOut | None,
) -> Callable[[F32, Minibatch], None] | None:
    """Return what is to be told of each minibatch; None: nothing."""
    if reader is not None and mixtures is not None:
        return lambda _, batch: mixtures(
            list(_merged(*mixtures_of(reader, batch, mixtures.top), batch, None))
        )
    return None if out is None else _printer(out, predictions)


def _printer(
    out: Callable[[Sequence[Any]], None], predictions: Callable[[F32], F64]
) -> Callable[[F32, Minibatch], None]:
    def on_scores(scores: F32, batch: Minibatch) -> None:
        predicted: list[Any] = predictions(scores).tolist()
        starts = batch.lines[: batch.rows].tolist()
        out(list(_merged(predicted, starts, batch, math.nan)) if batch.bad else predicted)

    return on_scores


def _merged(
    predicted: Iterable[Any], starts: list[int], batch: Minibatch, missing: Any
) -> Iterator[Any]:
    """Yield what is predicted of good records, and ``missing`` for bad ones, in their order."""
    bad = iter(batch.bad_start[: batch.bad].tolist())
    coming = next(bad, math.inf)
    for start, prediction in zip(starts, predicted, strict=True):
        while coming < start:
            yield missing
            coming = next(bad, math.inf)
        yield prediction
    while coming < math.inf:
        yield missing
        coming = next(bad, math.inf)
