"""Dense gradients between workers: groups that form, take in, and lose members.

:class:`DenseGroup` stands between a net's gradients and its optimizer, alone or with others. Before
each step all members announce, in one small collective, how much their minibatches weigh:

    share_w = n weight_w / sum of weights,     (1/n) sum_w share_w g_w  =  sum_w weight_w g_w / sum

so the mean that is exchanged is that over all examples of the step, and a worker without a
minibatch takes part with nothing. The same message carries what standardizers have to know, in the
order of ranks at all of them, and whether somebody wants to leave or to come in: then nobody makes
that step, all leave the group together, and those who stay meet again.

Who meets is the first shard's business (:mod:`streamlearn.cluster.meeting`); members find one
another at the store of the first of them, and begin where its dense part is. What rounding has kept
back of a worker's gradients stays with it.

Sockets between workers are neither encrypted nor authenticated.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of
from torch import nn

from streamlearn.cluster.meeting import DissolvedError
from streamlearn.compute.agreement import all_gather, peers
from streamlearn.compute.exchange import Counts, Exchange
from streamlearn.compute.float_exchange import FloatExchange
from streamlearn.config import DeepConfig
from streamlearn.errors import ClusterError, PeerLostError
from streamlearn.net.address import join_address, split_address
from streamlearn.online.deep import DeepStep
from streamlearn.online.standardizing import Standardizer, Sums
from streamlearn.protocol import Met

__all__ = ["TIMEOUT_SECONDS", "DenseGroup", "SharedStandardizer"]

# A member that says nothing for so long is lost: more than a net takes to compile at its first
# step. (One whose process ends is known to be lost at once.)
TIMEOUT_SECONDS: Final = 120.0
# Those who are told the same group come to its store within moments.
_COME_SECONDS: Final = 10.0
# What all announce before what standardizers say: weight, whether it leaves, whether it reforms.
_WORDS: Final = 3
_BACKEND: Final = "streamlearn"
# Of the exchange's state, what is a worker's own.
_OWN: Final = ("exchange.residual.", "exchange.owned.")

# nccl: a wait for a lost peer ends in an error here, and not with the process.
_NCCL: Final = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
_STORES: Final[Any] = dist  # torch does not tell mypy that they are there

Named = Sequence[tuple[str, nn.Parameter]]


class SharedStandardizer(Standardizer):
    """A standardizer that, in a group, learns what minibatches of all members have.

    Attributes
    ----------
    told : list of Sums or None
        What the minibatches of the next step have, by rank; None: it learns from its own alone.
    """

    told: Sequence[Sums] | None = None

    def update(self, dense: Any) -> None:
        """See :meth:`Standardizer.update`."""
        told, self.told = self.told, None
        if told is None:
            super().update(dense)
            return
        for sums in told:  # in the order of ranks: the same at all workers, to the bit
            self.add(sums)


@dataclass(frozen=True, slots=True)
class _Place:
    """A group that stands, and this worker's place in it."""

    rank: int
    size: int
    store: Any
    words: dist.ProcessGroup
    exchange: Exchange | FloatExchange


class DenseGroup:
    """A worker's part in the groups that it is in, one after the other.

    Belongs to the lane that steps; what it does while a group stands is collective.

    Parameters
    ----------
    model : DeepConfig
    host : callable
        Returns the address of the interface that the other workers reach, once one is needed.
    version : str
        What must be the same at all workers.

    Attributes
    ----------
    generation, size : int
        Of the group; 0 and 1 at first.
    wanted : bool
        Whether another group is wanted: set from any thread, seen before the next step.
    """

    def __init__(self, model: DeepConfig, host: Callable[[], str], version: str) -> None:
        self.generation = 0
        self.size = 1
        self.wanted = False
        self._model = model
        self._host_of = host
        self._host = ""
        self._port = 0
        self._version = f"{version}, {model.exchange}"
        self._named: Named = ()
        self._store: Any = None
        self._place: _Place | None = None
        self._run: Callable[[Callable[[], Any]], Any] = lambda function: function()
        self._share: float | None = None  # of this worker in the step that was announced
        self._kept: dict[str, torch.Tensor] = {}  # of the exchange before
        self._counts = Counts()

    # ---------------------------------------------------------------- as the net's step sees it

    def between(self, named: Named) -> DenseGroup:
        """Take the parameters whose gradients are exchanged: what ``DeepStep`` is made with."""
        self._named = named
        return self

    def step(self) -> bool:
        """Put the mean of all workers' gradients in place; say whether there is one to apply."""
        if self._place is None:
            return self._alone()
        if self._share is None:  # nobody had an example
            return False
        for _, one in self._named:
            if one.grad is not None and self._share != 1.0:
                one.grad.mul_(self._share)
        return self._place.exchange.step()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what an exchange must keep; empty: nothing."""
        if self._place is not None:
            self._keep()
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take what ``state_dict`` returned, for the next group."""
        self._kept = dict(state)

    @property
    def counts(self) -> Counts:
        """What was exchanged."""
        place = self._place  # asked from another thread, too
        return self._counts if place is None else place.exchange.counts

    # ---------------------------------------------------------------- as the worker sees it

    def address(self) -> str:
        """Return where this worker's store listens, for the case that it is the first."""
        if self._store is None:
            host = self._own_host()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, 0), family=family)
            port = listener.getsockname()[1]
            self._store = _STORES.TCPStore(
                self._host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=TIMEOUT_SECONDS),
                master_listen_fd=listener.detach(),
            )
            self._port = port
        return join_address(self._host, self._port)

    def form(self, met: Met, step: DeepStep, run: Callable[[Callable[[], Any]], Any]) -> None:
        """Take the place in a group that the shard has said; begin where its first member is.

        Parameters
        ----------
        met : Met
        step : DeepStep
        run : callable
            Runs a function in the net's lane.

        Raises
        ------
        PeerLostError
            Another member did not come, or went away meanwhile.
        ClusterError
            Workers hold different nets or releases; it names both sides' view.
        """
        assert self._place is None, "a group stands"
        self.wanted = False
        self._run = run
        if met.size > 1:
            first = step.state() if met.rank == 0 else {}
            try:
                with peers(f"worker {met.rank} of {met.size} found not all of its group"):
                    store = self._found(met)
                    self._init(met, store)
                    words = dist.new_group()
                run(lambda: self._exchange(met, store, words))
                self._begin(step, words, met.rank, first, run)
            except BaseException:
                self._destroy()
                raise
        self.generation, self.size = met.generation, met.size

    def announce(
        self,
        weight: float,
        standardizer: Standardizer | None = None,
        sums: Sums | None = None,
        *,
        leaves: bool = False,
    ) -> bool:
        """Tell and hear what the next step is made of; return whether anybody has examples.

        Parameters
        ----------
        weight : float
            Sum of the weights of this worker's examples; 0: it has none.
        standardizer : Standardizer, optional
            Of the net: a :class:`SharedStandardizer`, where there is more than one worker.
        sums : Sums, optional
            What the minibatch has; None: nothing.
        leaves : bool
            Whether this worker goes: it is then alone, and no error is raised.

        Raises
        ------
        DissolvedError
            All have left the group: meet again.
        PeerLostError
            A worker went away, or fell silent.
        """
        self._share = None
        if self._place is None:
            if self.wanted and not leaves:
                self.wanted = False
                raise DissolvedError
            return weight > 0
        size = self._place.size
        columns = 0 if standardizer is None else len(standardizer.sums().count)
        own = np.zeros(_WORDS + 3 * columns)
        own[:_WORDS] = weight, leaves, self.wanted
        if sums is not None:
            own[_WORDS:] = np.concatenate([sums.count, sums.mean, sums.squares])
        heard = torch.empty((size, len(own)), dtype=torch.float64)
        with peers(f"worker {self._place.rank} of {size} could not announce a step"):
            all_gather(heard.view(-1), torch.from_numpy(own), group=self._place.words)
        said = heard.numpy()
        if said[:, 1:_WORDS].any():
            self._dissolve()
            if leaves:
                return False
            raise DissolvedError
        total = float(said[:, 0].sum())
        if total > 0:
            self._share = size * weight / total
            if isinstance(standardizer, SharedStandardizer):
                parts = said[:, _WORDS:].reshape(size, 3, columns)
                standardizer.told = [Sums(*part.copy()) for part in parts]
        return total > 0

    def lost(self) -> None:
        """Let go of a group that is of no more use."""
        self._let_go()
        self._destroy()

    def close(self) -> None:
        """Let go of everything."""
        if self._place is not None:
            self.lost()
        self._store = None

    # ---------------------------------------------------------------- forming

    def _own_host(self) -> str:
        self._host = self._host or self._host_of()
        return self._host

    def _found(self, met: Met) -> Any:
        """Return the group's store, once all members have come to it."""
        first = self._store
        if met.rank or first is None:
            host, port = split_address(met.address, "the first worker's store", "7800")
            first = _STORES.TCPStore(
                host, port, is_master=False, timeout=timedelta(seconds=_COME_SECONDS)
            )
        store = _STORES.PrefixStore(str(met.generation), first)
        here = [f"here-{rank}" for rank in range(met.size)]
        store.set(here[met.rank], _gpu(self._device()))
        store.wait(here, timedelta(seconds=_COME_SECONDS))
        _check_gpus([store.get(one).decode() for one in here])
        return store

    def _device(self) -> torch.device:
        return self._named[0][1].device if self._named else torch.device("cpu")

    def _init(self, met: Met, store: Any) -> None:
        """Make the group torch's."""
        if _BACKEND not in dist.Backend.backend_list:
            host = self._own_host()
            dist.Backend.register_backend(
                _BACKEND, lambda *given: _gloo(host, *given), devices=["cpu"]
            )
        for name, value in _NCCL.items():
            os.environ.setdefault(name, value)
        backend = _BACKEND if self._device().type == "cpu" else f"cpu:{_BACKEND},cuda:nccl"
        dist.init_process_group(
            backend,
            store=store,
            rank=met.rank,
            world_size=met.size,
            timeout=timedelta(seconds=TIMEOUT_SECONDS),
        )

    def _exchange(self, met: Met, store: Any, words: dist.ProcessGroup) -> None:
        """Make the exchange; in the net's lane."""
        model = self._model
        exchange: Exchange | FloatExchange
        if model.exchange == "int8":
            exchange = Exchange(
                self._named, seed=model.seed, delay=model.delay, version=self._version
            )
        else:
            exchange = FloatExchange(self._named, delay=model.delay, version=self._version)
        self._place = _Place(met.rank, met.size, store, words, exchange)

    def _begin(
        self,
        step: DeepStep,
        words: dist.ProcessGroup,
        rank: int,
        first: Mapping[str, Any],
        run: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """Begin where the first member is, but for what is each worker's own."""
        told = {k: v for k, v in first.items() if not k.startswith(_OWN)}
        with peers(f"worker {rank} could not take over the dense part"):
            arrays = tensors_of(_broadcast(bytes_of(told) if rank == 0 else b"", words))
        base = {
            k.removeprefix("exchange."): v for k, v in arrays.items() if k.startswith("exchange.")
        }
        if rank:
            step.restore({k: v for k, v in arrays.items() if not k.startswith("exchange.")})
        place = self._place
        assert place is not None
        exchange = place.exchange

        def load() -> None:
            fresh = exchange.state_dict()
            exchange.load_state_dict(_merged(fresh, self._kept, base, self._counts))

        run(load)

    # ---------------------------------------------------------------- letting go

    def _dissolve(self) -> None:
        """Leave together with all others."""
        place = self._place
        assert place is not None
        self._let_go()
        with suppress(RuntimeError):  # nobody goes before all are through
            done = torch.zeros(place.size)
            all_gather(done, torch.zeros(1), group=place.words)
        self._destroy()

    def _let_go(self) -> None:
        """Keep what the exchange owes, and end it."""
        if self._place is not None:
            self._run(self._keep)
            self._counts = self._place.exchange.counts
            self._place.exchange.close()

    def _keep(self) -> None:
        """Keep what the exchange owes; in the net's lane."""
        assert self._place is not None
        exchange = self._place.exchange
        try:
            self._kept = exchange.state_dict()
        except PeerLostError:  # the step on its way is lost; what was before it is not
            self._kept = exchange.state_dict()

    def _destroy(self) -> None:
        self._place, self._share = None, None
        self.wanted = False
        self.size = 1
        if dist.is_initialized():
            dist.destroy_process_group()

    def _alone(self) -> bool:
        """Say whether a lone worker's gradient is one to apply; add what a group left behind."""
        grads = [one.grad for _, one in self._named if one.grad is not None and one.numel()]
        # the net's step makes all of a gradient NaN where any of it is
        if grads and bool(grads[0].flatten()[0].isnan()):
            return False
        means = [
            self._kept[f"mean.{i}"] for i in range(len(self._kept)) if f"mean.{i}" in self._kept
        ]
        if means:
            self._add(torch.cat(means))
        return True

    def _add(self, mean: torch.Tensor) -> None:
        """Add a mean that no optimizer has seen to the gradients."""
        counters = self._kept["counters"].clone()
        counters[-1] = 0
        self._kept = {k: v for k, v in self._kept.items() if not k.startswith("mean.")}
        self._kept["counters"] = counters
        at = 0
        for _, one in self._named:
            part = mean[at : at + one.numel()].view_as(one).to(one)
            at += one.numel()
            one.grad = part if one.grad is None else one.grad + part


def _gpu(device: torch.device) -> str:
    """Return what tells a GPU from all others; of the CPU, which many may share, nothing."""
    if device.type == "cpu":
        return "cpu"
    return str(torch.cuda.get_device_properties(device).uuid)


def _check_gpus(devices: Sequence[str]) -> None:
    """Check that all workers compute on GPUs of their own, or all on CPUs.

    Raises
    ------
    ClusterError
    """
    for worker, device in enumerate(devices):
        for other, one in enumerate(devices[:worker]):
            if (device == "cpu") != (one == "cpu"):
                raise ClusterError(
                    f"worker {other} computes on {one}, worker {worker} on {device}",
                    hint="have all compute on GPUs, or all on CPUs (compute.device)",
                )
            if device == one != "cpu":
                raise ClusterError(
                    f"workers {other} and {worker} compute on the same GPU, {device}",
                    hint="give each a GPU of its own: compute.device lists several for `up`",
                )


def _gloo(host: str, store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Return a gloo group whose sockets are of one interface."""
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    options._devices = [gloo.create_device(hostname=host)]
    return gloo(store, rank, size, options)


def _broadcast(data: bytes, group: dist.ProcessGroup) -> bytes:
    """Return what the first member has."""
    size = torch.tensor([len(data)], dtype=torch.int64)
    dist.broadcast(size, 0, group=group)
    sent = torch.empty(int(size), dtype=torch.uint8)
    if data:
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(sent, 0, group=group)
    return bytes(sent.numpy())


def _merged(
    fresh: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    base: Mapping[str, Any],
    counts: Counts,
) -> dict[str, torch.Tensor]:
    """Return an exchange's state: residuals of this worker, all else as the first member has it.

    Parameters
    ----------
    fresh : mapping
        Of the new exchange, nothing in it.
    own : mapping
        Of this worker's last one; empty: none.
    base : mapping
        Of the first member's last one, but for residuals; empty: none.
    counts : Counts
        What this worker has sent so far.
    """
    merged = dict(fresh)
    counters = fresh["counters"].clone()
    kept = [name for name in fresh if name.startswith("residual.")]
    fits = "counters" in own and own["counters"].shape == counters.shape
    if fits and all(name in own and own[name].shape == fresh[name].shape for name in kept):
        names = [name for name in own if name.startswith(("residual.", "owned."))]
        merged |= {name: own[name] for name in names}
        if len(counters) > 5:  # of the exchange that rounds: in which place of how many it was
            counters[1:3] = own["counters"][1:3]
    if "counters" in base and base["counters"].shape == tuple(counters.shape):
        there = torch.from_numpy(np.array(base["counters"]))
        counters[-5:-3] = there[-5:-3]  # step and skipped
        counters[-1] = there[-1]  # whether a mean is pending
        means = {k: torch.from_numpy(np.array(v)) for k, v in base.items() if "mean." in k}
        merged |= means
    counters[-3], counters[-2] = counts.bytes_before, counts.bytes_after
    return merged | {"counters": counters}
