"""Dense gradients between workers in float32: the plain mean, through the interface of the other.

See :class:`streamlearn.compute.exchange.Exchange`, which sends a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
import torch.distributed as dist

from streamlearn.compute.agreement import difference, gather_views, peers
from streamlearn.compute.exchange import Counts, copy_gradient
from streamlearn.compute.rounding import float_bytes
from streamlearn.errors import ClusterError, ConfigError, SnapshotError

__all__ = ["FloatExchange"]

_COUNTERS: Final = ("step", "skipped", "before", "after", "pending")


class FloatExchange:
    """The mean of all workers' gradients, in float32.

    Parameters
    ----------
    parameters : iterable of (str, torch.nn.Parameter)
    delay : {0, 1}
    version : str
    group : ProcessGroup, optional
        All as of ``Exchange``, and so is what is raised.

    Notes
    -----
    Memory: 2 floats a coordinate.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        delay: int = 0,
        version: str = "",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        named = [(name, one) for name, one in parameters if one.requires_grad]
        if not sum(one.numel() for _, one in named):
            raise ConfigError("there is nothing to exchange: no parameter requires a gradient")
        self._group = dist.new_group() if group is None else group
        self._worker = dist.get_rank(self._group)
        self._workers = dist.get_world_size(self._group)
        self._delay = delay
        self._parameters = [one for _, one in named]
        self._described: dict[str, Any] = {
            "exchange": "float32",
            "version": version,
            "delay": delay,
            "parameters": [[name, list(one.shape), str(one.dtype)[6:]] for name, one in named],
        }
        device = named[0][1].device
        size = sum(one.numel() for one in self._parameters)
        self._sent = torch.zeros(size, device=device)
        self._mean = torch.zeros(size, device=device)
        self._bytes = float_bytes(size, self._workers)
        self._counts = Counts()
        self._pending = False
        self._flight: Any = None
        self._agreed = False
        self._agree()

    @property
    def counts(self) -> Counts:
        """What has been exchanged so far."""
        return self._counts

    @torch.no_grad()
    def step(self) -> bool:
        """Put the workers' mean gradient in place of this worker's own; see ``Exchange.step``."""
        self._agree()
        if self._delay:
            self._settle()
        self._load()
        with peers(self._failed):
            self._flight = dist.all_reduce(self._sent, group=self._group, async_op=True)
        if not self._delay:
            self._settle()
        return self._hand_out()

    def drain(self) -> bool:
        """Wait for what is on its way and hand it out; see ``Exchange.drain``."""
        self._settle()
        return self._hand_out()

    def close(self) -> None:
        """Wait for nothing: what is on its way is lost."""
        self._flight = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a worker must keep to go on exactly here, as tensors on the CPU."""
        self._settle()
        counts = self._counts
        numbers = (counts.steps, counts.skipped, counts.bytes_before, counts.bytes_after)
        state = {"counters": torch.tensor((*numbers, int(self._pending)), dtype=torch.int64)}
        if self._pending:
            state["mean.0"] = self._mean.cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises
        ------
        SnapshotError
            The state is of another net, or of another exchange.
        """
        counters = state.get("counters")
        if counters is None or counters.shape != (len(_COUNTERS),):
            raise SnapshotError("the exchange's state is of another kind: model.exchange differs")
        numbers = dict(zip(_COUNTERS, counters.tolist(), strict=True))
        self._settle()
        if numbers["pending"]:
            if "mean.0" not in state or state["mean.0"].numel() != self._mean.numel():
                raise SnapshotError("the exchange's state is of another net")
            self._mean.copy_(state["mean.0"])
        self._pending = bool(numbers["pending"])
        self._counts = Counts(*(numbers[name] for name in ("step", "skipped", "before", "after")))
        self._agreed = False

    @property
    def _failed(self) -> str:
        return (
            f"worker {self._worker} of {self._workers} could not exchange step {self._counts.steps}"
        )

    def _load(self) -> None:
        at = 0
        for one in self._parameters:
            to = self._sent[at : at + one.numel()]
            at += one.numel()
            copy_gradient(one, 0, to)

    def _hand_out(self) -> bool:
        applies, self._pending = self._pending, False
        at = 0
        for one in self._parameters:
            part = self._mean[at : at + one.numel()].view_as(one)
            at += one.numel()
            one.grad = part.to(one.dtype, copy=True) if applies else None
        return applies

    @torch.no_grad()
    def _settle(self) -> None:
        """Wait for the step on its way, if any."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        with peers(self._failed):
            flight.wait()
        total = self._sent
        self._pending = bool(torch.isfinite(total).all())
        if self._pending:
            torch.div(total, self._workers, out=self._mean)
        counts = self._counts
        self._counts = replace(
            counts,
            steps=counts.steps + 1,
            skipped=counts.skipped + (not self._pending),
            bytes_before=counts.bytes_before + self._bytes,
            bytes_after=counts.bytes_after + self._bytes,
        )

    def _agree(self) -> None:
        """Check that all workers describe the same, and stand at the same step."""
        if self._agreed:
            return
        own = self._described | {"step": self._counts.steps, "pending": self._pending}
        with peers(f"worker {self._worker} of {self._workers} could not compare nets"):
            views = gather_views(own, self._workers, self._sent.device, self._group)
        for worker, view in enumerate(views):
            if view != views[0]:
                one, other = difference(views[0], view)
                raise ClusterError(
                    "workers do not hold the same: "
                    f"worker 0 has {one}, worker {worker} has {other}",
                    hint="start all workers from the same job, release and snapshot",
                )
        self._agreed = True
