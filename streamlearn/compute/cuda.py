"""The lane that nets compute in: one thread in order, and on a GPU three streams behind it.

Who submits gives arrays and gets a :class:`Ticket`; what it computes is a function of tensors on
the lane's device. On the CPU that is all: arrays become tensors as they stand. On a GPU the lane
keeps minibatch t+1 on its way in and t-1 on its way out while t computes::

    copying thread    pinned <- t+1 | post copy t+1 |
    stream "in"                     | t+1 ----------|
    computing thread  post t | post t+1 ...
    stream "compute"  t --------------| t+1 ----------------|
    stream "out"        t-1 --|         t ---|

Streams wait for one another by events; the host waits for a result only where it is asked for
(``Ticket.result``), and before it writes to a pinned buffer whose copy has not ended. Buffers are
doubled (``depth``): those of minibatch t are written again for t + depth, once the results of t
have left the device.

Nothing else in the project touches a device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.compute.pool import Lane
from streamlearn.errors import ConfigError, ResourceError

__all__ = ["DEPTH", "Joined", "StreamLane", "Ticket", "answer", "device_of"]

# Minibatches in a lane: one that computes, and one that comes in or goes out.
DEPTH: Final = 2
# Buffers grow by this much more than is asked for: the next minibatch may be a little larger.
_GROWTH: Final = 1.25

T = TypeVar("T")
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Tensors: TypeAlias = Mapping[str, Tensor]
Work: TypeAlias = Callable[[Tensors], Tensors]


def device_of(text: str) -> torch.device:
    """Return a device by its name.

    Parameters
    ----------
    text : str
        ``cpu``, ``cuda``, ``cuda:1``; ``auto``: the first GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        There is no such device here: says which torch sees.
    """
    if text == "auto":
        text = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(
            f"compute.device {text!r} is no device", hint="take auto, cpu, cuda or cuda:0"
        ) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigError(f"compute.device {text!r} is neither cpu nor cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        seen = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise ConfigError(
            f"compute.device {text!r} is not there: torch {torch.__version__} sees "
            + (seen or "no GPU"),
            hint="take a device that is there, or --device cpu",
        )
    return torch.device("cuda", index)


class Ticket:
    """What a lane owes for one submission."""

    def __init__(self) -> None:
        self._posted: Future[tuple[dict[str, Tensor], Callable[[], None]]] = Future()
        self._arrays: dict[str, NDArray[Any]] | None = None

    def result(self) -> dict[str, NDArray[Any]]:
        """Wait for what the work returned.

        Returns
        -------
        dict of str to array
            The caller's: nothing else writes to them.

        Raises
        ------
        ResourceError
            The device has no memory left for it.
        Exception
            What the work raised.
        """
        if self._arrays is None:
            tensors, wait = self._posted.result()
            wait()
            self._arrays = {name: one.numpy() for name, one in tensors.items()}
        return self._arrays

    @property
    def failed(self) -> bool:
        """Whether the work raised an error; asked once the lane's thread is through with it."""
        assert self._posted.done()
        return self._posted.exception() is not None

    def give(self, tensors: dict[str, Tensor], wait: Callable[[], None]) -> None:
        """Hand over tensors on the host, there once ``wait`` returns."""
        self._posted.set_result((tensors, wait))

    def fail(self, error: BaseException) -> None:
        """Hand over an error."""
        self._posted.set_exception(error)


class Joined:
    """What lanes owe for the parts of one submission, and for what joined them."""

    def __init__(self, tickets: Sequence[Ticket], joined: Future[None] | None = None) -> None:
        self._tickets = tickets
        self._joined = joined

    def result(self) -> list[dict[str, NDArray[Any]]]:
        """Wait for what each part's work returned; raise what one raised, or the join."""
        results = [one.result() for one in self._tickets]
        if self._joined is not None:
            self._joined.result()
        return results


class StreamLane:
    """Runs work on tensors in order, on one device.

    Parameters
    ----------
    device : str
        See :func:`device_of`.
    depth : int
        Submissions whose work has not ended at most, at least 1: ``submit`` waits for room. On a
        GPU also how many buffers of inputs there are.
    threads : int
        That torch computes one operation with, on the CPU; 0: as many as it likes.
    streams : Streams, optional
        Of the device; by default its own, and on the CPU none.

    Attributes
    ----------
    device : torch.device
    devices : tuple of torch.device
        That one.
    busy_seconds : float
        Spent in works: by the host's clock on the CPU; on a GPU by events, once the result of each
        has been asked for.
    bytes_in, bytes_out : int
        Of inputs and results so far.

    Raises
    ------
    ConfigError
        There is no such device.
    """

    def __init__(
        self,
        device: str,
        *,
        depth: int = DEPTH,
        threads: int = 0,
        streams: Streams | None = None,
    ) -> None:
        assert depth >= 1
        self.device = device_of(device)
        self.busy_seconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self._room = threading.BoundedSemaphore(depth)
        self._computing = Lane(f"torch-{self.device}", time.thread_time)
        self._copying: Lane | None = None
        self._way: _Plain | _Buffered = _Plain()
        if streams is None and self.device.type == "cuda":
            streams = _Streams(self.device)
        if streams is not None:
            self._copying = Lane(f"copies-{self.device}", time.thread_time)
            self._way = _Buffered(streams, depth)
        self._open = True
        self.devices = (self.device,)
        if threads:
            self._computing.post(lambda: torch.set_num_threads(threads))

    def submit(self, inputs: Arrays, work: Work) -> Ticket:
        """Have ``work`` done after all that was submitted before.

        Parameters
        ----------
        inputs : mapping of str to array
            Untouched by anybody until the result is taken.
        work : callable
            Given the inputs on the device, returns tensors on it; called in the lane's thread,
            under its compute stream. It keeps none of the inputs.

        Returns
        -------
        Ticket
        """
        assert self._open, "the lane is closed"
        ticket = Ticket()
        self._room.acquire()
        self.bytes_in += sum(array.nbytes for array in inputs.values())
        if self._copying is None:
            self._computing.post(lambda: self._compute(inputs, None, work, ticket))
        else:
            self._copying.post(lambda: self._copy(inputs, work, ticket))
        return ticket

    def submit_all(
        self, parts: Sequence[tuple[Arrays, Work]], join: Callable[[], None] | None = None
    ) -> Joined:
        """Have work done, and ``join`` called after it, as :meth:`Lanes.submit_all` of one lane."""
        ((inputs, work),) = parts

        def both(given: Tensors) -> Tensors:
            results = work(given)
            if join is not None:
                join()
            return results

        return Joined([self.submit(inputs, both)])

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` after all that was submitted before, as works are; wait, return it.

        What it has posted to the device by then need not have ended there: it reads tensors by
        copying them.
        """
        done: Future[T] = Future()
        self.post(lambda: answer(done, function, [self]))
        return done.result()

    def post(self, task: Callable[[], None]) -> None:
        """Have a task run in the lane's thread after what was submitted before; no error may."""
        assert self._open, "the lane is closed"
        if self._copying is None:
            self._computing.post(task)
        else:
            copying, computing = self._copying, self._computing
            copying.post(lambda: computing.post(task))

    def computing(self) -> AbstractContextManager[Any]:
        """Return what puts a thread's work on the lane's compute stream."""
        return self._way.computing()

    def close(self) -> None:
        """Do what was submitted, then end the threads; results may still be asked for."""
        if self._open:
            self._open = False
            if self._copying is not None:
                self._copying.close()
            self._computing.close()

    def _copy(self, inputs: Arrays, work: Work, ticket: Ticket) -> None:
        """Copy inputs in, in the copying thread, and have the other one go on."""
        try:
            with _memory(self.device):
                buffers = self._way.bring(inputs)
        except BaseException as error:  # noqa: BLE001 - raised by Ticket.result()
            self._room.release()
            ticket.fail(error)
        else:
            self._computing.post(lambda: self._compute(inputs, buffers, work, ticket))

    def _compute(self, inputs: Arrays, buffers: Any, work: Work, ticket: Ticket) -> None:
        """Do the work, in the computing thread."""
        try:
            with _memory(self.device):
                results, wait = self._way.compute(inputs, buffers, work, self._spent)
            self.bytes_out += sum(one.nbytes for one in results.values())
        except BaseException as error:  # noqa: BLE001 - raised by Ticket.result()
            ticket.fail(error)
        else:
            ticket.give(results, wait)
        finally:
            self._room.release()

    def _spent(self, seconds: float) -> None:
        self.busy_seconds += seconds


class _Plain:
    """The way of the CPU: arrays are tensors, and results arrays."""

    def computing(self) -> AbstractContextManager[Any]:
        """Return what works are called under."""
        return nullcontext()

    def bring(self, inputs: Arrays) -> None:
        """Nothing need be brought anywhere."""

    def compute(
        self, inputs: Arrays, buffers: None, work: Work, spent: Callable[[float], None]
    ) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Do the work; return its results and how to wait for them."""
        begun = time.perf_counter()
        tensors = {name: torch.from_numpy(_writable(array)) for name, array in inputs.items()}
        results = {name: one.detach() for name, one in work(tensors).items()}
        spent(time.perf_counter() - begun)
        return results, _nothing


class Streams(Protocol):
    """What :class:`_Buffered` wants of a device: streams ``in``, ``compute`` and ``out``."""

    def room(self, count: int, dtype: torch.dtype, *, pinned: bool) -> Tensor:
        """Return memory for so many numbers: pinned on the host, or on the device."""
        ...

    def copy(self, stream: str, to: Tensor, source: Tensor) -> None:
        """Post a copy to a stream."""
        ...

    def record(self, stream: str) -> Any:
        """Post an event to a stream and return it."""
        ...

    def wait(self, stream: str, event: Any) -> None:
        """Have a stream wait for an event."""
        ...

    def keep(self, stream: str, tensor: Tensor) -> None:
        """Keep a tensor's memory until a stream has done what is posted to it by now."""
        ...

    def computing(self) -> AbstractContextManager[Any]:
        """Return what puts a thread's work on the compute stream."""
        ...

    def seconds(self, begun: Any, ended: Any) -> float:
        """Return the time between two events that have come."""
        ...


class _Streams:
    """The three streams of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {name: _stream(device) for name in ("in", "compute", "out")}

    def room(self, count: int, dtype: torch.dtype, *, pinned: bool) -> Tensor:
        """See :meth:`Streams.room`."""
        if pinned:
            return torch.empty(count, dtype=dtype, pin_memory=True)
        return torch.empty(count, dtype=dtype, device=self._device)

    def copy(self, stream: str, to: Tensor, source: Tensor) -> None:
        """See :meth:`Streams.copy`."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._streams[stream]):
            to.copy_(source, non_blocking=True)

    def record(self, stream: str) -> torch.cuda.Event:
        """See :meth:`Streams.record`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._streams[stream])
        return event

    def wait(self, stream: str, event: torch.cuda.Event) -> None:
        """See :meth:`Streams.wait`."""
        self._streams[stream].wait_event(event)

    def keep(self, stream: str, tensor: Tensor) -> None:
        """See :meth:`Streams.keep`."""
        tensor.record_stream(self._streams[stream])

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See :meth:`Streams.computing`."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._streams["compute"]):
            yield

    def seconds(self, begun: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        """See :meth:`Streams.seconds`."""
        return float(begun.elapsed_time(ended)) / 1e3


class _Buffers:
    """Where one submission's inputs stand: pinned on the host, and on the device.

    Attributes
    ----------
    brought : event or None
        The copies from pinned memory have ended: the host may write there again.
    left : event or None
        The results of what was computed of these have left: the device may be written to again.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._rooms: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.brought: Any = None
        self.left: Any = None

    def take(self, name: str, array: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return room for an array of this name, pinned and on the device, in its shape."""
        dtype, count = torch.from_numpy(_writable(array)).dtype, array.size
        pinned, there = self._rooms.get((name, dtype), (None, None))
        if pinned is None or there is None or pinned.numel() < count:
            grown = int(count * _GROWTH) + 1
            pinned = self._streams.room(grown, dtype, pinned=True)
            there = self._streams.room(grown, dtype, pinned=False)
            self._rooms[name, dtype] = pinned, there
        return pinned[:count].view(array.shape), there[:count].view(array.shape)


class _Buffered:
    """The way of a GPU: inputs through buffers that are used again, results through new ones.

    Pinned memory for results is torch's to use again, once nobody holds the arrays.
    """

    def __init__(self, streams: Streams, depth: int) -> None:
        self._streams = streams
        self._free: SimpleQueue[_Buffers] = SimpleQueue()
        for _ in range(depth):
            self._free.put(_Buffers(streams))

    def computing(self) -> AbstractContextManager[Any]:
        """Return what works are called under."""
        return self._streams.computing()

    def bring(self, inputs: Arrays) -> _Buffers:
        """Post the copies of inputs to the device."""
        buffers, streams = self._free.get(), self._streams
        try:
            if buffers.brought is not None:
                buffers.brought.synchronize()
            if buffers.left is not None:
                streams.wait("in", buffers.left)
            buffers.tensors = {}
            for name, array in inputs.items():
                pinned, there = buffers.take(name, array)
                pinned.copy_(torch.from_numpy(_writable(array)))
                streams.copy("in", there, pinned)
                buffers.tensors[name] = there
            buffers.brought = streams.record("in")
        except BaseException:
            self._free.put(buffers)
            raise
        return buffers

    def compute(
        self, inputs: Arrays, buffers: _Buffers, work: Work, spent: Callable[[float], None]
    ) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Post the work and the copies of its results; return those and how to wait for them."""
        streams = self._streams
        try:
            streams.wait("compute", buffers.brought)
            begun = streams.record("compute")
            with streams.computing():
                made = {name: one.detach() for name, one in work(buffers.tensors).items()}
            ended = streams.record("compute")
            streams.wait("out", ended)
            results = {}
            for name, one in made.items():
                pinned = streams.room(one.numel(), one.dtype, pinned=True).view(one.shape)
                streams.copy("out", pinned, one)
                streams.keep("out", one)
                results[name] = pinned
        finally:  # after an error, too, since some of the work may be under way
            streams.wait("out", streams.record("compute"))
            left = buffers.left = streams.record("out")
            self._free.put(buffers)

        def wait() -> None:
            left.synchronize()
            spent(streams.seconds(begun, ended))

        return results, wait


def answer(done: Future[T], function: Callable[[], T], lanes: Sequence[StreamLane]) -> None:
    """Call a function under lanes' compute streams; hand what it does to who waits."""
    try:
        with ExitStack() as held, _memory(lanes[0].device):
            for lane in lanes:
                held.enter_context(lane.computing())
            done.set_result(function())
    except BaseException as error:  # noqa: BLE001 - raised to who waits
        done.set_exception(error)


@contextmanager
def _memory(device: torch.device) -> Iterator[None]:
    """Say plainly where a device has no memory left."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _no_memory(device, error) from error
    except RuntimeError as error:
        # of the CPU's allocator torch tells by no class of its own
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise _no_memory(device, error) from error


def _no_memory(device: torch.device, error: Exception) -> ResourceError:
    return ResourceError(
        f"device {device} has no memory left for the net and a minibatch",
        cause=str(error).partition("\n")[0],
        hint="make compute.minibatch smaller, or the net",
    )


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that torch takes as it is: torch warns of those that may not be written."""
    if array.flags.writeable and array.flags.c_contiguous:
        return array
    return np.array(array)


def _nothing() -> None:
    """Nothing is to be waited for."""


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
