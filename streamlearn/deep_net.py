"""From a job to its net: the module, the device that it computes on, and what steps it."""

from __future__ import annotations

import math
from typing import Any, Final

from streamlearn.compute.cuda import StreamLane
from streamlearn.compute.devices import Lanes, open_lane
from streamlearn.config import DeepConfig, JobConfig, classes_of
from streamlearn.errors import ConfigError
from streamlearn.online.deep import DeepSolver, DeepStep
from streamlearn.online.dense_part import NewExchange
from streamlearn.online.nets import Sizes

__all__ = ["DENSE_BYTES_MAX", "new_deep_step", "new_net"]

# The dense part of a minibatch: some ten of them are under way.
DENSE_BYTES_MAX: Final = 256 << 20


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
    return DeepSolver(model, table, new_deep_step(job, model, fields, dense)[0])


def new_deep_step(
    job: JobConfig,
    model: DeepConfig,
    fields: int,
    dense: tuple[int, ...],
    exchange: NewExchange | None = None,
) -> tuple[DeepStep, StreamLane | Lanes]:
    """Return what steps a net, and the lane that it computes in; as :func:`new_net` raises.

    Parameters
    ----------
    exchange : callable, optional
        What stands between the workers' gradients, see :class:`DeepStep`.
    """
    _check(job, fields, dense)
    sizes = Sizes(dense, fields, classes_of(job) or 1)
    lane = open_lane(job.compute.device, threads=job.compute.lanes)
    try:
        return DeepStep(model, sizes, lane, exchange=exchange), lane
    except BaseException:
        lane.close()
        raise


def _check(job: JobConfig, fields: int, dense: tuple[int, ...]) -> None:
    """Refuse what no net can be made for, or no minibatch held of."""
    if not fields and not dense:
        raise ConfigError(
            "nothing says what the net is given: the source has no record yet",
            hint="name fields and columns in the job, or begin once there are records",
        )
    rows, size = job.compute.minibatch, 4 * math.prod(dense)
    if dense and rows * size > DENSE_BYTES_MAX:
        raise ConfigError(
            f"the dense part of a minibatch would take {rows * size / 1e6:,.0f} MB, more than "
            f"{DENSE_BYTES_MAX / 1e6:,.0f}: {rows} examples of shape {dense}",
            hint=f"--minibatch {max(1, DENSE_BYTES_MAX // size)} or less",
        )
