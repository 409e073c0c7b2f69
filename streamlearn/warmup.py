"""Compiling before the first record: every kernel is called once, on records of the source.

What is learned here is learned by a small model that is thrown away. With a warm kernel cache this
loads the kernels from disk; without, it compiles them, which takes tens of seconds and is shown as
progress.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import msgspec
import numpy as np

from streamlearn.compute.kernels.records import last_newline, subsample_negatives
from streamlearn.config import DeepConfig, JobConfig
from streamlearn.lanes import split
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.model import Model
from streamlearn.online.formats import Format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch, room_of
from streamlearn.online.solvers import LocalSolver
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.resolver import Resolver
from streamlearn.shards.table import ExactTable
from streamlearn.strata.rehearsal import rehearse_passes
from streamlearn.topics.rehearsal import rehearse_sweeps
from streamlearn.window import rehearse

__all__ = ["warm_up", "whole_records"]

_ROWS: Final = 64


def warm_up(
    job: JobConfig,
    format: Format,
    header: bytes | None,
    records: bytes,
    told: Callable[[str], None],
) -> None:
    """Call each kernel of a run once.

    Parameters
    ----------
    header : bytes or None
        First line of the object that ``records`` are from, for formats that have one.
    records : bytes
        Some whole records.
    told : callable
        Receives what is being compiled (``parse, 1 of 5``).
    """
    small = msgspec.structs.replace(
        job,
        tables=msgspec.structs.replace(job.tables, bits=8, features_max=1 << 16),
        output=msgspec.structs.replace(job.output, names_max=1024),
    )
    rows, nnz = room_of(_ROWS, FEATURES_PER_RECORD_MAX, format.record_rows)
    parser = format.parser(header)  # before all else: a header may say what minibatches have
    batch = Minibatch.of(format, rows, nnz)
    buffer = np.zeros(len(records) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[: len(records)] = np.frombuffer(records, np.uint8)
    model = Model.new(small, tuple(format.fields), dense=format.dense)
    scratch = model.solver.scratch(rows, batch.nnz_max)

    def parse() -> None:
        end = last_newline(buffer, 0, len(records)) + 1
        batch.clear()
        parser.parse(buffer, 0, end, batch)
        subsample_negatives(
            batch.keys, batch.values, batch.fields, batch.dense, batch.indptr, batch.labels,
            batch.weights, batch.lines, batch.state, 0, 0.999,
        )  # fmt: skip

    def learn() -> None:
        table, solver = model.table, model.solver
        if isinstance(job.model, DeepConfig):
            rehearse(model, batch)
            return
        solver = cast("LocalSolver", solver)
        if split(job) is not None and isinstance(table, ExactTable):
            rehearse(model, batch)
        elif job.compute.lanes != 1 and isinstance(table, ExactTable):
            slots = np.zeros(batch.nnz_max, np.uint32)
            if Resolver(table, lambda _: False).resolve(batch.keys, batch.nnz, slots):
                solver.learn_resolved(batch, slots, scratch, Nothing(), 0)
        solver.learn(batch, scratch, Nothing(), 0)

    def keep() -> None:
        cut = Cut(model.table)
        if not isinstance(job.model, DeepConfig):
            cast("LocalSolver", model.solver).learn(batch, scratch, cut, 0)
        while cut.take() is not None:
            pass
        cut.close()
        if isinstance(model.table, ExactTable):
            model.table.grow(0)

    def score() -> None:
        rows = batch.rows
        model.solver.score(batch, scratch)
        model.validation.update(scratch.scores[:rows], batch.labels[:rows], batch.weights[:rows])
        model.validation.summary()

    def name() -> None:
        picked = np.arange(min(batch.rows, 4), dtype=np.int64)
        model.names.note(parser, buffer, batch.lines[: batch.rows], picked)
        model.names.flush()
        model.names.prune(lambda keys: np.ones(len(keys), np.bool_))
        model.names.restore(model.names.state())
        model.weights_at(batch.keys[:1])
        for _ in model.parts():
            pass

    steps = [
        ("parse", parse), ("learn", learn), ("snapshot", keep), ("score", score), ("names", name)
    ]  # fmt: skip
    if job.model.kind == "mf":
        steps.append(("passes", lambda: rehearse_passes(model, batch)))
    if job.model.kind == "lda":
        steps.append(("sweeps", lambda: rehearse_sweeps(model, batch)))
    for number, (what, step) in enumerate(steps, 1):
        told(f"compiling kernels: {what}, {number} of {len(steps)}")
        step()
    model.close()


def whole_records(sample: bytes, rows: int = _ROWS) -> bytes:
    """Return at most ``rows`` of a sample's first whole lines."""
    ends = [i for i, byte in enumerate(sample) if byte == 10][:rows]
    return sample[: ends[-1] + 1] if ends else b""
