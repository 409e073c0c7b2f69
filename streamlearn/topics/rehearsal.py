"""Compiling the kernels of sweeps before the first record."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from streamlearn.config import LdaConfig
from streamlearn.model import Model
from streamlearn.online.lda import LdaSolver
from streamlearn.online.minibatch import Minibatch
from streamlearn.shards.cut import Nothing
from streamlearn.topics.documents import KeptDocuments
from streamlearn.topics.sweeps import Sweeps

__all__ = ["rehearse_sweeps"]

_BYTES: Final = 1 << 24


def rehearse_sweeps(model: Model, batch: Minibatch) -> None:
    """Sweep documents that a small model has read, as further passes would.

    Parameters
    ----------
    model : Model
        Of kind ``lda``; of no use afterwards.
    batch : Minibatch
        What it has read.
    """
    config, solver = model.job.model, model.solver
    assert isinstance(config, LdaConfig)
    assert isinstance(solver, LdaSolver)
    config = msgspec.structs.replace(config, min_df=1, max_df=1.0, optimize="both")
    with tempfile.TemporaryDirectory() as scratch:
        kept = KeptDocuments(_BYTES, Path(scratch))
        read, _ = solver.look_up(batch)
        kept.add(read._replace(held=np.zeros_like(read.held)))
        kept.held_out.add(read.keys[:1], np.ones(1, np.int64))
        if not (read.numbers != 0xFFFFFFFF).any():
            return
        sweeps = Sweeps(config, solver, kept, lanes=1, bytes_max=_BYTES, directory=Path(scratch))
        sweeps.sweep(0, 0)
        sweeps.optimize()
        sweeps.held_out()
        sweeps.check()
        sweeps.topics()
        sweeps.close()
        solver.online = True
        solver.learn_resolved(
            batch, solver.table.find(batch.keys[: batch.nnz]).astype(np.uint32),
            solver.scratch(batch.rows_max, batch.nnz_max), Nothing(), 0,
        )  # fmt: skip
