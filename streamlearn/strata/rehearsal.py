"""Compiling the kernels of further passes before the first record."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from streamlearn.config import MfConfig
from streamlearn.model import Model
from streamlearn.online.mf import MfSolver
from streamlearn.online.minibatch import Minibatch
from streamlearn.shards.table import ExactTable
from streamlearn.strata.passes import Passes
from streamlearn.strata.ratings import KeptRatings
from streamlearn.strata.sampling import SEED_BYTES

__all__ = ["rehearse_passes"]

_BYTES: Final = 1 << 24


def rehearse_passes(model: Model, batch: Minibatch) -> None:
    """Sweep ratings that a small model has learned, as further passes would.

    Parameters
    ----------
    model : Model
        Of kind ``mf``; of no use afterwards.
    batch : Minibatch
        What it has learned.
    """
    config, table, solver = model.job.model, model.table, model.solver
    assert isinstance(config, MfConfig)
    assert isinstance(solver, MfSolver)
    assert isinstance(table, ExactTable)
    with tempfile.TemporaryDirectory() as scratch:
        kept = KeptRatings(_BYTES, Path(scratch))
        learned, _ = solver.look_up(batch, solver.scratch(batch.rows_max, 0))
        known = learned.held == 0
        kept.add(learned)
        kept.held_out.add(learned.keys[:1], learned.ratings[:1], learned.weights[:1])
        if known.any():
            passes = Passes(
                config, table, kept, solver.intercept, lanes=1, bytes_max=_BYTES,
                directory=Path(scratch), seed=bytes(SEED_BYTES),
            )  # fmt: skip
            passes.sweep(0, 0, model.validation)
            passes.held_out(1)
            if config.epsilon:
                passes.fit_users(0)
            passes.close()
