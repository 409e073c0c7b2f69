"""Dense gradients between workers, at one byte a coordinate and up to one step late.

Workers sit in a ``torch.distributed`` group (gloo on CPU, nccl on GPU). ``Exchange.step`` stands
between ``backward`` and the optimizer: it takes the gradients of this worker's minibatch and leaves
the mean over all workers' in their place. It does what a communication hook of
``DistributedDataParallel`` would do, without being one: DDP lays its buckets anew after its first
step, by the order in which gradients came up, and with them whatever residuals stood there; ours
depend on the net alone, so that a residual written today fits the run that resumes tomorrow.

The scheme has two hops, as a ring's all-reduce has (Tang et al., "DoubleSqueeze", ICML 2019, §3,
with their compressor made an unbiased quantiser). A bucket of N coordinates is cut into one chunk a
worker; with g_w the gradient, e_w what this worker's rounding has kept back, Q the rounding:

    scatter:  c_w = Q(g_w + e_w),         e_w <- g_w + e_w - c_w;        chunk j goes to worker j
    gather:   a_j = Q(mean_w c_w + o_j),  o_j <- mean_w c_w + o_j - a_j;  a_j goes to all

so that over the steps  sum a + o + mean_w e_w = sum mean_w g_w:  nothing is lost, it only comes
later. The sum over workers is taken in float32 in the order of ranks by the one worker that owns
the chunk, and all of them decode the same bytes: weights stay equal to the bit.

Each hop sends (n-1)/n of the bucket from every worker, as each half of a ring's all-reduce does. So
whatever the number of workers, a step costs (1 + 4/block)/4 of float32's bytes: 25.4 % at the
default block. (Gathering all codes at all workers would save the second rounding, but costs n/8 of
float32's: as much as two hops at 2 workers, 4 times that at 8.) What grows with n is the number of
messages, 2(n-1) a bucket, and what one owner sums, which stays N coordinates.

A gradient that is no number on any worker travels as a scale that is none; so all of them see it
in the same step, without a further message, skip that step and keep the residuals from before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.distributed as dist

from streamlearn.compute.agreement import all_gather, difference, gather_views, peers
from streamlearn.compute.rounding import (
    BLOCK,
    SCALE_BYTES,
    blocks_of,
    decode,
    float_bytes,
    scales_in,
    scales_of,
    write,
)
from streamlearn.errors import ClusterError, ConfigError, SnapshotError

__all__ = ["BUCKET", "Counts", "Exchange", "copy_gradient"]

# Coordinates of a bucket at most: 256 KiB on the wire, so that buckets of one step are rounded,
# sent and summed in turn, and messages stay far above latency.
BUCKET: Final = 1 << 18

_FORMAT: Final = 1
_COUNTERS: Final = ("format", "workers", "worker", "step", "skipped", "before", "after", "pending")

# Stages of the noise: a worker's own rounding, and that of the chunk which it owns.
_SCATTER: Final = 0
_GATHER: Final = 1


@dataclass(frozen=True, slots=True)
class Counts:
    """What one worker has exchanged.

    Parameters
    ----------
    steps : int
        Steps begun, those skipped among them.
    skipped : int
        Steps that all workers skipped because a gradient was NaN or infinite.
    bytes_before : int
        What this worker would have sent in float32: a ring's all-reduce.
    bytes_after : int
        What it has sent, scales included.
    """

    steps: int = 0
    skipped: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


class Exchange:
    """The mean of all workers' gradients, at one byte a coordinate.

    Made, stepped and loaded by all workers of the group alike: each of these is collective.

    Parameters
    ----------
    parameters : iterable of (str, torch.nn.Parameter)
        As ``module.named_parameters()``: all on one device, the same at every worker. Those that
        require no gradient are left out.
    seed : int
        Of the rounding, the same at every worker. With the same seed, gradients and step, a worker
        sends the same bytes.
    delay : {0, 1}
        0: ``step`` waits for this step's mean. 1: it hands out the mean of the step before, and
        this step's is on its way while the next one computes.
    block : int
        Coordinates under one scale, at least 1.
    bucket : int
        Coordinates sent in one message at most, at least 1; larger parameters are cut.
    version : str
        What else must be the same at all workers: the release, the net's name.
    group : ProcessGroup, optional
        Its workers; nothing else may use it meanwhile. By default a new one of all workers.

    Raises
    ------
    ConfigError
        A setting is out of range, there is nothing to exchange, or it lies on several devices.
    ClusterError
        Workers hold different nets, settings or versions; it names both sides' view.
    PeerLostError
        A worker went away, or fell silent for longer than the group's timeout. The group is of no
        more use: form another, load the last snapshot.

    Notes
    -----
    Memory: 3 floats (what is carried, residual, mean) and 3 bytes a coordinate.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        seed: int,
        delay: int = 0,
        block: int = BLOCK,
        bucket: int = BUCKET,
        version: str = "",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        named = [(name, one) for name, one in parameters if one.requires_grad]
        _check(named, delay, block, bucket)
        self._group = dist.new_group() if group is None else group
        self._worker = dist.get_rank(self._group)
        self._workers = dist.get_world_size(self._group)
        self._seed = seed
        self._delay = delay
        self._device = named[0][1].device
        self._parameters = [one for _, one in named]
        self._described: dict[str, Any] = {
            "format": _FORMAT,
            "version": version,
            "seed": seed,
            "delay": delay,
            "block": block,
            "bucket": bucket,
            "parameters": [[name, list(one.shape), str(one.dtype)[6:]] for name, one in named],
        }
        self._buckets = [
            _Bucket(some, self._workers, block) for some in _cut(self._parameters, bucket)
        ]
        longest = max(bucket.carried.numel() for bucket in self._buckets)
        self._places = torch.arange(longest, dtype=torch.int32, device=self._device)
        self._counts = Counts()
        self._pending = False  # whether `mean` of the buckets holds what no optimizer has seen
        self._agreed = False
        self._lane = ThreadPoolExecutor(1, "streamlearn-exchange") if delay else None
        self._stream = _stream(self._device) if self._device.type == "cuda" else None
        self._flight: Future[bool] | None = None
        self._agree()

    @property
    def counts(self) -> Counts:
        """What has been exchanged so far, the step on its way included once it has come in."""
        return self._counts

    def align(self) -> None:
        """Give every worker the weights of the group's first: gradients keep equal what is equal.

        Collective. Needed once, where workers have not made or loaded the same weights.
        """
        first = dist.get_global_rank(self._group, 0)
        for one in self._parameters:
            with peers(f"worker {self._worker} of {self._workers} could not align weights"):
                dist.broadcast(one.data, first, group=self._group)

    def step(self) -> bool:
        """Put the workers' mean gradient in place of this worker's own.

        Returns
        -------
        bool
            Whether there is a gradient to apply. Without one (the first step at ``delay = 1``, a
            step skipped for a gradient that is no number) every ``grad`` is None, so that an
            optimizer that is asked nevertheless does nothing. The same at all workers.

        Raises
        ------
        ConfigError
            A gradient is sparse.
        ClusterError
            After ``load_state_dict``: workers have not loaded the same step.
        PeerLostError
            As for the class.
        """
        self._agree()
        if self._delay:
            self._settle()
        for bucket in self._buckets:
            bucket.load()
        if not self._delay:
            self._pending = self._exchange(self._counts.steps)
            return self._hand_out()
        applies = self._hand_out()
        self._launch()
        return applies

    def drain(self) -> bool:
        """Wait for what is on its way and hand it out: the last step of a stream at ``delay = 1``.

        Returns
        -------
        bool
            Whether there is a gradient to apply, as ``step`` says it.
        """
        self._settle()
        return self._hand_out()

    def close(self) -> None:
        """Let go of the lane; what is still on its way is waited for, and lost."""
        if self._lane is not None:
            self._lane.shutdown()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a worker must keep to go on exactly here, as tensors on the CPU.

        Residuals of its own gradient and of the chunk it owns, the counters and, at ``delay = 1``,
        the mean that no optimizer has applied yet. Each worker keeps its own. Not collective, but
        it waits for the step on its way.
        """
        self._settle()
        counts = self._counts
        numbers = (
            *(_FORMAT, self._workers, self._worker, counts.steps, counts.skipped),
            *(counts.bytes_before, counts.bytes_after, int(self._pending)),
        )
        state = {"counters": torch.tensor(numbers, dtype=torch.int64)}
        for i, bucket in enumerate(self._buckets):
            state[f"residual.{i}"] = bucket.flat(bucket.residual).cpu().clone()
            state[f"owned.{i}"] = bucket.owned.flatten().cpu().clone()
            if self._pending:
                state[f"mean.{i}"] = bucket.flat(bucket.mean).cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on where ``state_dict`` was taken; the next ``step`` checks that all workers did.

        With as many workers as then and the same place among them, what follows is the same to the
        bit. With another number, what this worker still owes is kept in full: the residual of the
        chunk that it owned joins its own, and both are weighed so that the mean over the new number
        of workers owes the same. What a worker owed that is gone is gone with it.

        Raises
        ------
        SnapshotError
            The state is of another format or another net.
        """
        numbers = self._numbers(state)
        self._settle()
        workers, worker = numbers["workers"], numbers["worker"]
        same = (workers, worker) == (self._workers, self._worker)
        for i, bucket in enumerate(self._buckets):
            residual, owned = state[f"residual.{i}"].clone(), state[f"owned.{i}"]
            if not same:
                begin = worker * owned.numel()
                chunk = residual[begin : begin + owned.numel()]
                chunk += workers * owned[: chunk.numel()]  # a mean's residual, a worker's weight
                residual *= self._workers / workers
            bucket.flat(bucket.residual).copy_(residual)
            bucket.owned.copy_(owned.view_as(bucket.owned)) if same else bucket.owned.zero_()
            if numbers["pending"]:
                bucket.flat(bucket.mean).copy_(state[f"mean.{i}"])
        self._pending = bool(numbers["pending"])
        self._counts = Counts(*(numbers[name] for name in ("step", "skipped", "before", "after")))
        self._agreed = False

    def _numbers(self, state: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Return a state's counters by name, having checked that it fits this net."""
        counters = state.get("counters")
        if counters is None or counters.shape != (len(_COUNTERS),):
            raise SnapshotError("the exchange's state has no counters: it is of another kind")
        numbers = dict(zip(_COUNTERS, counters.tolist(), strict=True))
        if numbers["format"] != _FORMAT:
            raise SnapshotError(
                f"the exchange's state is of format {numbers['format']}, not {_FORMAT}"
            )
        there: list[int] = []
        while f"residual.{len(there)}" in state:
            there.append(state[f"residual.{len(there)}"].numel())
        here = [bucket.coordinates for bucket in self._buckets]
        if there != here:
            raise SnapshotError(
                f"the exchange's state is of another net: buckets of {there} coordinates, "
                f"here {here}",
                hint="resume with the net and the settings that wrote it",
            )
        missing = [
            f"{kind}.{i}"
            for kind in ("owned", "mean")[: 1 + bool(numbers["pending"])]
            for i in range(len(here))
            if f"{kind}.{i}" not in state
        ]
        if missing:
            raise SnapshotError(f"the exchange's state lacks {', '.join(missing)}")
        return numbers

    def _hand_out(self) -> bool:
        """Move the mean that is pending, if any, to the parameters' gradients."""
        applies, self._pending = self._pending, False
        if applies:
            for bucket in self._buckets:
                bucket.unload()
        else:
            for one in self._parameters:
                one.grad = None
        return applies

    def _launch(self) -> None:
        assert self._lane is not None
        ready = None
        if self._stream is not None:
            ready = torch.cuda.current_stream(self._device).record_event()
        self._flight = self._lane.submit(self._fly, self._counts.steps, ready)

    def _fly(self, step: int, ready: torch.cuda.Event | None) -> bool:
        """Exchange on the lane, on a stream of its own where there are streams."""
        if self._stream is None or ready is None:
            return self._exchange(step)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            return self._exchange(step)

    def _settle(self) -> None:
        """Wait for the step on its way, if any."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._pending = flight.result()
            if self._stream is not None:
                torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @torch.no_grad()
    def _exchange(self, step: int) -> bool:
        """Exchange what the buckets carry; return whether their means are to be applied."""
        buckets = self._buckets
        alone = self._workers == 1
        with peers(f"worker {self._worker} of {self._workers} could not exchange step {step}"):
            applies = self._add_up() if alone else self._two_hops(step)
        counts = self._counts
        self._counts = replace(
            counts,
            steps=counts.steps + 1,
            skipped=counts.skipped + (not applies),
            bytes_before=counts.bytes_before + sum(one.bytes_before for one in buckets),
            bytes_after=counts.bytes_after + sum(one.bytes_after for one in buckets),
        )
        return applies

    def _add_up(self) -> bool:
        """Hand a lone worker its own gradient, and what it still owed."""
        for bucket in self._buckets:
            bucket.carried += bucket.residual
        if not _finite(bucket.carried for bucket in self._buckets):
            return False
        for bucket in self._buckets:
            bucket.mean.copy_(bucket.carried)
            bucket.residual.zero_()
        return True

    def _two_hops(self, step: int) -> bool:
        buckets, group = self._buckets, self._group
        for bucket in buckets:
            bucket.carried += bucket.residual
        scales = [scales_of(bucket.carried) for bucket in buckets]
        fine = _finite(scales)
        works = []
        for i, bucket in enumerate(buckets):
            key = (self._seed, step, i, self._worker, _SCATTER)
            write(bucket.sent, bucket.carried, scales[i], self._places, key, fine=fine)
            works.append(
                dist.all_to_all_single(bucket.received, bucket.sent, group=group, async_op=True)
            )
        for i, bucket in enumerate(buckets):
            works[i].wait()
            key = (self._seed, step, i, self._worker, _GATHER)
            bucket.answer_with(self._places, key)
            works[i] = all_gather(
                bucket.gathered.view(-1), bucket.answer, group=group, async_op=True
            )
        for work in works:
            work.wait()
        if not _finite(bucket.answered() for bucket in buckets):
            return False
        for bucket in buckets:
            bucket.commit()
        return True

    def _agree(self) -> None:
        """Check that all workers describe the same, and stand at the same step."""
        if self._agreed:
            return
        own = self._described | {"step": self._counts.steps, "pending": self._pending}
        with peers(f"worker {self._worker} of {self._workers} could not compare nets"):
            views = gather_views(own, self._workers, self._device, self._group)
        for worker, view in enumerate(views):
            if view != views[0]:
                one, other = difference(views[0], view)
                raise ClusterError(
                    "workers do not hold the same: "
                    f"worker 0 has {one}, worker {worker} has {other}",
                    hint="start all workers from the same job, release and snapshot",
                )
        self._agreed = True


class _Bucket:
    """Pieces of parameters that travel together, and the buffers in which they do.

    Buffers of coordinates are shaped [workers, blocks, block]: the chunk of each worker in whole
    blocks, the bucket's coordinates first, zeros behind them. Blocks are evened out, so that fewer
    than `workers * blocks` coordinates are padding. A row on the wire is a chunk: its scales, then
    its codes.
    """

    def __init__(self, pieces: list[_Piece], workers: int, block: int) -> None:
        self.pieces = pieces
        self.coordinates = sum(one.size for one in pieces)
        device = pieces[0].parameter.device
        blocks, block = blocks_of(self.coordinates, workers, block)
        shape, row = (workers, blocks, block), blocks * (SCALE_BYTES + block)
        self.carried = torch.zeros(shape, device=device)
        self.residual = torch.zeros(shape, device=device)
        self.mean = torch.zeros(shape, device=device)
        self.owned = torch.zeros(shape[1:], device=device)
        self.sent, self.received, self.gathered = (
            torch.empty((workers, row), dtype=torch.int8, device=device) for _ in range(3)
        )
        self.answer = torch.empty(row, dtype=torch.int8, device=device)
        self.bytes_after = 2 * (workers - 1) * row
        self.bytes_before = float_bytes(self.coordinates, workers)
        self._owes = self.owned  # what the owner keeps back if this step is applied

    def flat(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return a buffer's coordinates, without padding, as a view."""
        return buffer.view(-1)[: self.coordinates]

    @torch.no_grad()
    def load(self) -> None:
        """Copy the parameters' gradients into `carried`; none counts as zero."""
        flat, at = self.flat(self.carried), 0
        self.carried.view(-1)[self.coordinates :] = 0  # a skipped step may have left anything
        for piece in self.pieces:
            to = flat[at : at + piece.size]
            at += piece.size
            copy_gradient(piece.parameter, piece.first, to)

    @torch.no_grad()
    def unload(self) -> None:
        """Copy `mean` to the parameters' gradients."""
        flat, at = self.flat(self.mean), 0
        for piece in self.pieces:
            one = piece.parameter
            part = flat[at : at + piece.size]
            at += piece.size
            if one.grad is None or not one.grad.is_contiguous():
                one.grad = torch.empty_like(one, memory_format=torch.contiguous_format)
            one.grad.view(-1)[piece.first : piece.first + piece.size].copy_(part)

    def answer_with(self, places: torch.Tensor, key: tuple[int, ...]) -> None:
        """Sum what all workers sent for this one's chunk, and write the mean as its answer."""
        blocks, block = self.owned.shape
        total = torch.zeros_like(self.owned)
        for row in self.received:  # in the order of ranks: the same sum each time
            total += decode(row, blocks, block)
        total /= len(self.received)
        total += self.owned
        scales = scales_of(total)
        write(self.answer, total, scales, places, key, fine=_finite([scales]))
        self._owes = total

    def answered(self) -> torch.Tensor:
        """Return all scales that came back."""
        return scales_in(self.gathered, self.owned.shape[0])

    def commit(self) -> None:
        """Take what came back as the mean, and what was kept back as residuals."""
        blocks, block = self.owned.shape
        self.residual, self.carried = self.carried, self.residual
        self.owned = self._owes
        for to, row in zip(self.mean, self.gathered, strict=True):
            to.copy_(decode(row, blocks, block))


def copy_gradient(parameter: torch.nn.Parameter, first: int, to: torch.Tensor) -> None:
    """Copy a parameter's gradient, flat and from ``first`` on, to ``to``; none is zeros.

    Raises
    ------
    ConfigError
        It is sparse.
    """
    gradient = parameter.grad
    if gradient is None:
        to.zero_()
    elif gradient.layout != torch.strided:
        raise ConfigError(
            f"a gradient of shape {list(gradient.shape)} is sparse; only dense ones travel",
            hint="keep embeddings in the parameter tables",
        )
    else:
        to.copy_(gradient.flatten()[first : first + to.numel()])


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Say whether all numbers are; the one place where the host waits for the device."""
    return bool(torch.stack([torch.isfinite(one).all() for one in tensors]).all())


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Coordinates ``[first, first + size)`` of a parameter, flat."""

    parameter: torch.nn.Parameter
    first: int
    size: int


def _cut(parameters: list[torch.nn.Parameter], bucket: int) -> list[list[_Piece]]:
    """Cut parameters into buckets, in their order, each full but the last."""
    buckets: list[list[_Piece]] = []
    room = 0
    for one in parameters:
        first = 0
        while first < one.numel():
            if not room:
                buckets.append([])
                room = bucket
            size = min(room, one.numel() - first)
            buckets[-1].append(_Piece(one, first, size))
            first += size
            room -= size
    return buckets


def _check(
    named: list[tuple[str, torch.nn.Parameter]], delay: int, block: int, bucket: int
) -> None:
    if delay not in (0, 1):
        raise ConfigError(f"delay is 0 or 1, not {delay}")
    for name, value in (("block", block), ("bucket", bucket)):
        if value < 1:
            raise ConfigError(f"{name} is at least 1, not {value}")
    if not sum(one.numel() for _, one in named):
        raise ConfigError("there is nothing to exchange: no parameter requires a gradient")
    devices = sorted({str(one.device) for _, one in named})
    if len(devices) > 1:
        raise ConfigError(f"parameters must lie on one device, not on {' and '.join(devices)}")
