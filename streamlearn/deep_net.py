"""From a job to its net: the module, the device that it computes on, and what steps it."""

from __future__ import annotations

from typing import Any

from streamlearn.compute.devices import open_lane
from streamlearn.config import DeepConfig, JobConfig, classes_of
from streamlearn.online.deep import DeepSolver, DeepStep
from streamlearn.online.nets import Sizes

__all__ = ["new_net"]


def new_net(
    job: JobConfig, model: DeepConfig, table: Any, fields: int, dense: tuple[int, ...]
) -> DeepSolver:
    """Return the solver of a net over a table.

    Parameters
    ----------
    table : ExactTable
        With embeddings of the model's tiers.
    fields : int
        Embedded fields of an example.
    dense : tuple of int
        Shape of an example's dense part; () where it has none.

    Raises
    ------
    ConfigError
        There is no such net or device, or they do not go together with what the stream has.
    """
    sizes = Sizes(dense, fields, classes_of(job) or 1)
    lane = open_lane(job.compute.device, threads=job.compute.lanes)
    return DeepSolver(model, table, DeepStep(model, sizes, lane))
