"""A net on every device of a lane: each learns rows of its own of a minibatch, together as one net.

The loss's mean is over all rows, so the gradient of the net is the sum of what its replicas found:
the first takes it, steps, and gives its parameters and buffers to the others before any of them
goes on. What belongs to leaves goes back from each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from streamlearn.config import DeepConfig
from streamlearn.online.dense_part import DensePart, NewExchange
from streamlearn.online.pooling import Pooling

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["Lane", "Owed", "Replicas"]

T = TypeVar("T")

Inputs = Mapping[str, "NDArray[Any]"]
Part = tuple[Inputs, Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]]


class Owed(Protocol):
    """What a lane owes for one submission."""

    def result(self) -> Sequence[Mapping[str, NDArray[Any]]]:
        """Wait for what each device's work returned; raise what one raised."""
        ...


class Lane(Protocol):
    """Where torch computes: ``compute.cuda.StreamLane``, or ``compute.devices.Lanes``."""

    @property
    def device(self) -> torch.device:
        """The first device."""
        ...

    @property
    def devices(self) -> Sequence[torch.device]:
        """All of them."""
        ...

    @property
    def busy_seconds(self) -> float:
        """Spent computing, of all devices together."""
        ...

    @property
    def bytes_in(self) -> int:
        """Bytes of inputs so far."""
        ...

    @property
    def bytes_out(self) -> int:
        """Bytes of results so far."""
        ...

    def submit_all(self, parts: Sequence[Part], join: Callable[[], None] | None = None) -> Owed:
        """Have each device do its work with its inputs, after all that was submitted before.

        Parameters
        ----------
        parts : sequence of (mapping of str to array, callable)
            By device.
        join : callable, optional
            Called on the first device once all have done their work, unless one failed; they go on
            after it.
        """
        ...

    def run(self, function: Callable[[], T]) -> T:
        """Call a function after all that was submitted before; wait, and return what it does."""
        ...

    def close(self) -> None:
        """Do what was submitted, and end."""
        ...


class Replicas:
    """The dense part on the devices of a lane.

    Parameters
    ----------
    model : DeepConfig
    net : torch.nn.Module
        Becomes that of the first device.
    outputs : int
        Its logits.
    pooling : Pooling or None
        How features reach it; None: there are none.
    lane : Lane
    exchange : callable, optional
        As for :class:`DensePart`; of the first.

    Attributes
    ----------
    parts : list of DensePart
        By device.
    """

    def __init__(
        self,
        model: DeepConfig,
        net: nn.Module,
        outputs: int,
        pooling: Pooling | None,
        lane: Lane,
        exchange: NewExchange | None = None,
    ) -> None:
        self._lane = lane
        self._pooling = pooling

        def parts() -> list[DensePart]:
            nets = [net, *(copy.deepcopy(net) for _ in lane.devices[1:])]
            return [
                DensePart(
                    model, one, outputs, pooling, device, None if number else exchange,
                    replica=number,
                )
                for number, (one, device) in enumerate(zip(nets, lane.devices, strict=True))
            ]  # fmt: skip

        self.parts = lane.run(parts)

    def learn(self, inputs: Inputs, rows: int, number: int, total: float) -> Callable[[], Any]:
        """Begin a step; return what waits for its results.

        Parameters
        ----------
        inputs : mapping of str to array
            As :meth:`DensePart.learn` is given them.
        rows, number, total
            As for :meth:`DensePart.learn`.

        Returns
        -------
        callable
            Returns the results of the minibatch, as :meth:`DensePart.learn` returns them.
        """
        first, *others = self.parts
        works: list[Part] = [
            (given, _learning(one, number, len(given["labels"]), total))
            for one, given in zip(self.parts, self._cut(inputs, rows), strict=True)
        ]
        owed = self._lane.submit_all(works, lambda: first.join(others))
        return lambda: self._merged(owed.result())

    def judge(self, inputs: Inputs, rows: int) -> Any:
        """Score a minibatch; return the results."""
        cut = self._cut(inputs, rows)
        edges = _edges(rows, len(cut))
        works: list[Part] = [
            (given, _judging(one, end - begin))
            for one, given, (begin, end) in zip(self.parts, cut, edges, strict=True)
        ]
        return self._merged(self._lane.submit_all(works).result())

    def state(self) -> dict[str, NDArray[Any]]:
        """See :meth:`DensePart.state`: all replicas are as the first."""
        return self._lane.run(self.parts[0].state)

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See :meth:`DensePart.restore`."""
        first, *others = self.parts

        def restore() -> None:
            first.restore(arrays)
            first.give(others)

        self._lane.run(restore)

    def _cut(self, inputs: Inputs, rows: int) -> list[Inputs]:
        """Return the inputs of each device: rows that follow one another, about as many each."""
        if len(self.parts) == 1:
            return [inputs]
        pooled: list[dict[str, NDArray[Any]]] = [{} for _ in self.parts]
        edges = _edges(rows, len(self.parts))
        if self._pooling is not None:
            pooled = [self._pooling.cut(inputs, *edge) for edge in edges]
        plain = [name for name in ("dense", "labels", "weights") if name in inputs]
        return [
            own | {name: inputs[name][begin:end] for name in plain}
            for own, (begin, end) in zip(pooled, edges, strict=True)
        ]

    def _merged(self, results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the results of a minibatch, of those of its parts."""
        if len(results) == 1:
            return results[0]
        out: dict[str, Any] = {"scores": np.concatenate([one["scores"] for one in results])}
        if "fine" in results[0]:
            out["fine"] = np.all([one["fine"] for one in results])
        return out | (self._pooling.merged(results) if self._pooling is not None else {})


def _learning(part: DensePart, number: int, rows: int, total: float) -> Any:
    return lambda given: part.learn(given, number, rows, total)


def _judging(part: DensePart, rows: int) -> Any:
    return lambda given: part.judge(given, rows)


def _edges(rows: int, parts: int) -> list[tuple[int, int]]:
    edges = [rows * i // parts for i in range(parts + 1)]
    return list(pairwise(edges))
