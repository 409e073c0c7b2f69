"""The dense part of a deep model: a net and its optimizer, as they stand in their lane.

All here is called in the lane, in order, with tensors on its device. A part of a minibatch for
which there is memory is computed at a time: the gradient of a mean over all rows is the sum of what
its parts give to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from streamlearn.config import DeepConfig
from streamlearn.errors import ConfigError, ResourceError
from streamlearn.online.dense_state import (
    array_of,
    net_state,
    optimizer_state,
    part,
    restore_net,
    restore_optimizer,
)
from streamlearn.online.nets import losses_of
from streamlearn.online.pooling import Pooling

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DensePart", "Exchange", "NewExchange"]

_log = logging.getLogger("streamlearn.deep")

T = TypeVar("T")

_ALL_ROWS: Final = 1 << 62
# Odd, and far from one another: seeds of steps, and of replicas, are not those of others.
_SEEDS: Final = 0x9E3779B97F4A7C15
_REPLICAS: Final = 0xD1B54A32D192ED03
# All of a process throw the same: a step has them for itself.
_CPU_DICE: Final = threading.Lock()
# What each optimizer keeps of a parameter.
_KEPT: Final[Mapping[str, tuple[str, ...]]] = {
    "adam": ("step", "exp_avg", "exp_avg_sq"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "adagrad": ("step", "sum"),
}


class Exchange(Protocol):
    """What stands between workers' gradients and their optimizers: ``compute.exchange``."""

    def step(self) -> bool:
        """Put the mean of all workers' gradients in place; say whether there is one to apply."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what it must keep, tensors on the CPU."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state_dict`` returned."""
        ...


NewExchange = Callable[[Sequence[tuple[str, nn.Parameter]]], Exchange]


class DensePart:
    """A net, its optimizer, and what exchanges its gradients.

    Parameters
    ----------
    model : DeepConfig
    net : torch.nn.Module
        Moved to the device.
    outputs : int
        Its logits.
    pooling : Pooling or None
        How features reach it; None: there are none.
    device : torch.device
    exchange : callable, optional
        Given the named parameters, on the device, returns the exchange between workers.
    replica : int
        Which it is of those of one net: the first, 0, steps for all.

    Attributes
    ----------
    rows_at_once : int
        That there was memory for.
    """

    def __init__(
        self,
        model: DeepConfig,
        net: nn.Module,
        outputs: int,
        pooling: Pooling | None,
        device: torch.device,
        exchange: NewExchange | None = None,
        *,
        replica: int = 0,
    ) -> None:
        self.rows_at_once = _ALL_ROWS
        self.net = net.to(device)
        self._model = model
        self._outputs = outputs
        self._pooling = pooling
        self._device = device
        self._replica = replica
        self._found: tuple[list[Tensor | None], Tensor, bool] | None = None
        self._compiled: Callable[..., Any] | None = None
        named = [(name, one) for name, one in net.named_parameters() if one.requires_grad]
        self._names = [name for name, _ in named]
        self._parameters = [one for _, one in named]
        steps = bool(named) and not replica
        self._optimizer = _optimizer(model, self._parameters) if steps else None
        self._exchange = exchange(named) if exchange is not None else None
        self._asks_device = device.type == "cuda" and model.optimizer != "adagrad"
        self._stepped = False

    def learn(
        self, given: Mapping[str, Tensor], number: int, rows: int, total: float
    ) -> dict[str, Tensor]:
        """Find the gradients of a minibatch's rows; :meth:`join` steps with them.

        Parameters
        ----------
        given : mapping of str to tensor
            What ``Pooling.bring`` made; ``dense``, standardised, where there is a dense part;
            ``labels`` and ``weights``.
        number : int
            Of the step: what chance there is depends on it and the seed.
        rows : int
        total : float
            Sum of the weights of all rows of the minibatch. Of examples without weight nothing is
            learned.

        Returns
        -------
        dict of str to tensor
            ``scores`` float32[rows, outputs], from before the step; ``fine``, whether loss and
            gradients are numbers (if not, there will be no step); what ``Pooling.joined`` makes of
            the leaves' gradients.

        Raises
        ------
        ResourceError
            There is no memory for one row.
        """
        share = 1 / total if total > 0 else 0.0
        sums: list[Tensor | None] = [None] * len(self._parameters)
        of_leaves: list[list[Tensor]] = []
        losses: list[Tensor] = []

        def work(first: int, end: int) -> Tensor:
            leaves = self._leaves(given, first, end)
            logits = self._forward(given, leaves, first, end)
            each = losses_of(self._model.loss, logits, given["labels"][first:end])
            loss = (each * given["weights"][first:end]).sum() * share
            found = _apart(_gradients(loss, [*self._parameters, *leaves]))
            # from here on: nothing is added of a part that there was no memory for
            for i, one in enumerate(found[: len(sums)]):
                held = sums[i]
                sums[i] = one if held is None else held if one is None else held + one
            # load_net has seen that all leaves are reached
            of_leaves.append([one for one in found[len(sums) :] if one is not None])
            losses.append(loss.detach())
            return logits.detach().float()

        with self._chance(number), self._compiling():
            scores = self._cat(self._in_parts(rows, work))
        reached = [one for one in sums if one is not None]
        reached += [one for some in of_leaves for one in some]
        fine = _all_finite([*losses, *reached], self._device)
        self._found = sums, fine, share > 0
        return {"scores": scores, "fine": fine} | self._joined(of_leaves)

    def join(self, others: Sequence[DensePart] = ()) -> None:
        """Step with what this and other replicas found; they are then as this one."""
        sums, fine, teaches = self._take()
        for one in others:
            theirs, theirs_fine, _ = one._take()
            fine = fine & theirs_fine.to(self._device)
            for i, gradient in enumerate(theirs):
                if gradient is not None:
                    held, there = sums[i], gradient.to(self._device)
                    sums[i] = there if held is None else held + there
        self._apply(sums, fine, teaches=teaches)
        self.give(others)

    def give(self, others: Sequence[DensePart]) -> None:
        """Give other replicas the parameters and buffers of this one."""
        with torch.no_grad():
            for one in others:
                there = one.net.state_dict()
                for name, held in self.net.state_dict().items():
                    there[name].copy_(held)

    def _take(self) -> tuple[list[Tensor | None], Tensor, bool]:
        found, self._found = self._found, None
        assert found is not None, "nothing was learned"
        return found

    def judge(self, given: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """Score without learning."""

        def work(first: int, end: int) -> Tensor:
            leaves = self._leaves(given, first, end)
            return self._forward(given, leaves, first, end).float()

        self.net.eval()
        try:
            with torch.no_grad(), self._compiling():
                return {"scores": self._cat(self._in_parts(rows, work))}
        finally:
            self.net.train()

    def _cat(self, logits: Sequence[Tensor]) -> Tensor:
        if not logits:
            return torch.zeros((0, self._outputs), device=self._device)
        return logits[0] if len(logits) == 1 else torch.cat(list(logits))

    def _leaves(self, given: Mapping[str, Tensor], first: int, end: int) -> list[Tensor]:
        return self._pooling.leaves(given, first, end) if self._pooling is not None else []

    def _joined(self, of_leaves: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        return self._pooling.joined(of_leaves) if of_leaves and self._pooling is not None else {}

    def _forward(
        self, given: Mapping[str, Tensor], leaves: Sequence[Tensor], first: int, end: int
    ) -> Tensor:
        """Return the logits of rows ``[first, end)``."""
        device = self._device
        embeddings, wide = (
            self._pooling.pooled(given, leaves, first, end)
            if self._pooling is not None
            else (None, None)
        )
        dense = given["dense"][first:end] if "dense" in given else None
        if self._compiled is None:
            net: Callable[..., Any] = self.net
            self._compiled = torch.compile(net, dynamic=True) if self._model.compile else net
        narrow = self._model.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            logits: Tensor = self._compiled(dense, embeddings, wide)
        return logits

    def _in_parts(self, rows: int, work: Callable[[int, int], T]) -> list[T]:
        """Do work with all rows, or with as many at a time as there is memory for, in order."""
        done: list[T] = []
        first = 0
        while first < rows:
            end = min(rows, first + self.rows_at_once)
            try:
                done.append(work(first, end))
            except torch.OutOfMemoryError as error:
                if end - first == 1:
                    raise ResourceError(
                        f"device {self._device} has no memory for one example of the net",
                        cause=str(error).partition("\n")[0],
                        hint="make the net smaller, or compute.minibatch",
                    ) from error
                if self.rows_at_once == _ALL_ROWS:
                    _log.warning(
                        "device %s has no memory for a minibatch of %s examples: it is computed "
                        "in halves, or less; a smaller compute.minibatch costs less time",
                        self._device,
                        f"{rows:,}",
                    )
                self.rows_at_once = (end - first + 1) // 2
            else:
                first = end
        return done

    def _apply(self, gradients: list[Tensor | None], fine: Tensor, *, teaches: bool) -> None:
        """Step with the net's gradients, or with all workers'."""
        for one, gradient in zip(self._parameters, gradients, strict=True):
            one.grad = _laid_out(gradient, one) if gradient is not None and teaches else None
        optimizer = self._optimizer
        if self._exchange is not None:
            if not bool(fine):  # so that all workers skip this step, as this one must
                for one in self._parameters:
                    one.grad = torch.full_like(one, torch.nan)
            if self._exchange.step() and optimizer is not None:
                optimizer.step()
        elif optimizer is not None and self._asks_device and self._stepped:
            # torch's fused kernels leave all as it is where this is 1: the host need not wait
            optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif optimizer is not None and bool(fine):
            optimizer.step()
            self._stepped = True  # a first step that was skipped would leave momentum undefined
        for one in self._parameters:
            one.grad = None

    @contextmanager
    def _chance(self, number: int) -> Iterator[None]:
        """Set the device's dice for a step, and put them back."""
        seed = (self._model.seed * _SEEDS + self._replica * _REPLICAS + number) % (1 << 63)
        device = self._device
        if device.type == "cuda":
            # of this device alone: those of others are in use
            with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
                yield
        else:
            with _CPU_DICE, torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Say what failed where it is that a net cannot be compiled."""
        try:
            yield
        except Exception as error:
            of = type(error).__module__
            if not (self._model.compile and of.startswith(("torch._dynamo", "torch._inductor"))):
                raise
            raise ConfigError(
                f"net {self._model.net!r} could not be compiled",
                cause=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
                hint="a C++ compiler is needed (g++); or leave model.compile off",
            ) from error

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of ``net.*``, ``optimizer.*`` and ``exchange.*``."""
        arrays = {f"net.{k}": v for k, v in net_state(self.net).items()}
        if self._optimizer is not None:
            kept = optimizer_state(self._optimizer, self._names)
            arrays |= {f"optimizer.{k}": v for k, v in kept.items()}
        if self._exchange is not None:
            owed = self._exchange.state_dict()
            arrays |= {f"exchange.{k}": array_of(v) for k, v in owed.items()}
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what :meth:`state` returned; raises SnapshotError where it does not fit.

        What an exchange owed is gone where there is none now, and one that is new owes nothing.
        """
        self._stepped = False
        restore_net(self.net, part(arrays, "net."))
        if self._optimizer is not None:
            keys = _KEPT[self._model.optimizer]
            restore_optimizer(self._optimizer, self._names, keys, part(arrays, "optimizer."))
        owed = part(arrays, "exchange.")
        if self._exchange is not None and owed:
            self._exchange.load_state_dict(
                {name: torch.from_numpy(np.array(one)) for name, one in owed.items()}
            )


def _optimizer(model: DeepConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of the dense part, in one kernel a step where torch has that."""
    shared: dict[str, Any] = {"lr": model.lr, "weight_decay": model.weight_decay}
    if model.optimizer == "adam":
        return torch.optim.Adam(parameters, fused=True, **shared)
    if model.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **shared)
    if model.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=model.momentum, fused=True, **shared)
    return torch.optim.Adagrad(parameters, **shared)


def _gradients(loss: Tensor, over: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of a loss; None where it does not depend on one."""
    if not over:
        return []
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, over, allow_unused=True)
    return list(found)


def _apart(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Return gradients none of which is another's memory: who scales one must not scale two."""
    seen: set[int] = set()
    for i, one in enumerate(gradients):
        if one is not None and one.numel():
            place = one.untyped_storage().data_ptr()
            gradients[i] = one.clone() if place in seen else one
            seen.add(place)
    return gradients


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient that lies in memory as its parameter does: fused kernels count on it."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _all_finite(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Say, on the device, whether all numbers are: a sum is one where they are (or overflow)."""
    if not tensors:
        return torch.ones((), dtype=torch.bool, device=device)
    return torch.stack([one.sum() for one in tensors]).isfinite().all()
