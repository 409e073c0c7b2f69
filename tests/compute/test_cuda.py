"""The lane that nets compute in: order, buffers, errors; streams by streams that run as they like.

:class:`Streams` here does what is posted to it some time later, in any order that its events allow:
whatever the lane reads or writes too early is then wrong.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.compute.cuda import StreamLane, Ticket, device_of  # noqa: E402
from streamlearn.errors import ConfigError, ResourceError  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Event:
    def __init__(self, streams: Streams) -> None:
        self.has_come = False
        self._streams = streams

    def synchronize(self) -> None:
        self._streams.until(self)


class Streams:
    """Streams that do what is posted to them at random times."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._lock = threading.RLock()
        self._queues: dict[str, deque[Callable[[], None] | Event]] = {
            name: deque() for name in ("in", "compute", "out")
        }
        self.rooms: list[tuple[bool, int]] = []
        self.copied = threading.Event()

    def room(self, count: int, dtype: Any, *, pinned: bool) -> Tensor:
        self.rooms.append((pinned, count))
        return torch.full((count,), 77, dtype=dtype)

    def copy(self, stream: str, to: Tensor, source: Tensor) -> None:
        self.post(stream, lambda: to.copy_(source))
        self.copied.set()

    def record(self, stream: str) -> Event:
        event = Event(self)

        def come() -> None:
            event.has_come = True

        self.post(stream, come)
        return event

    def wait(self, stream: str, event: Event) -> None:
        self.post(stream, event)

    def keep(self, stream: str, tensor: Tensor) -> None:
        """What is posted here holds its tensors."""

    def computing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def seconds(self, begun: Event, ended: Event) -> float:
        assert begun.has_come
        assert ended.has_come
        return 0.5

    def post(self, stream: str, task: Callable[[], Any] | Event) -> None:
        with self._lock:
            self._queues[stream].append(task)
            for _ in range(self._dice.choice([0, 0, 0, 1, 3])):
                self._do_one()

    def until(self, event: Event) -> None:
        with self._lock:
            while not event.has_come:
                assert self._do_one(), "streams wait for one another for ever"

    def _do_one(self) -> bool:
        """Do what stands first in one of the streams, unless that waits; say whether one did."""
        ready = [
            queue
            for queue in self._queues.values()
            if queue and (not isinstance(queue[0], Event) or queue[0].has_come)
        ]
        if ready:
            task = self._dice.choice(ready).popleft()
            if not isinstance(task, Event):
                task()
        return bool(ready)


def later(streams: Streams) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Work that computes when the stream comes to it, as a GPU does: y = 2 x + 1."""

    def work(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = given["x"]
        out = torch.full(x.shape, 99, dtype=x.dtype)
        streams.post("compute", lambda: out.copy_(2 * x + 1))
        return {"y": out}

    return work


def doubled(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"y": given["x"] * 2}


def noting(seen: list[int], number: int) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    def work(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen.append(number)
        return {}

    return work


@pytest.fixture
def lane() -> Iterator[StreamLane]:
    one = StreamLane("cpu")
    yield one
    one.close()


# --- streams and buffers --------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_results_are_right_however_late_streams_run(seed: int, depth: int) -> None:
    streams, dice = Streams(seed), np.random.default_rng(seed)
    lane = StreamLane("cpu", depth=depth, streams=streams)
    tickets: deque[tuple[np.ndarray, Ticket]] = deque()
    for _ in range(40):
        x = dice.normal(size=(int(dice.integers(0, 9)), 3)).astype(np.float32)
        tickets.append((x.copy(), lane.submit({"x": x}, later(streams))))
        while len(tickets) > dice.integers(1, 6):
            expected, ticket = tickets.popleft()
            assert (ticket.result()["y"] == 2 * expected + 1).all()
    for expected, ticket in tickets:
        assert (ticket.result()["y"] == 2 * expected + 1).all()
    lane.close()


@pytest.mark.parametrize("seed", range(12))
def test_an_input_that_is_a_result_is_not_written_to_before_it_has_left(seed: int) -> None:
    streams = Streams(seed)
    lane = StreamLane("cpu", streams=streams)
    given = [np.full(4, i, np.float32) for i in range(12)]
    tickets = [lane.submit({"x": x}, lambda given: {"y": given["x"]}) for x in given]
    for x, ticket in zip(given, tickets, strict=True):
        assert ticket.result()["y"].tolist() == x.tolist()
    lane.close()


def test_the_next_is_copied_in_while_this_one_is_worked_on() -> None:
    streams = Streams(6)
    lane = StreamLane("cpu", streams=streams)

    def patient(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert streams.copied.wait(60), "the copy of the next waits for this work"
        return {}

    first = lane.submit({}, patient)
    second = lane.submit({"x": np.ones(3, np.float32)}, later(streams))
    assert first.result() == {}
    assert second.result()["y"].tolist() == [3, 3, 3]
    lane.close()


@pytest.mark.parametrize("seed", range(12))
def test_work_that_fails_half_way_keeps_its_inputs_to_its_end(seed: int) -> None:
    streams = Streams(seed)
    lane = StreamLane("cpu", depth=1, streams=streams)
    seen = torch.zeros(3)

    def half(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = given["x"]
        streams.post("compute", lambda: seen.copy_(x))
        raise ValueError("half way")

    failed = lane.submit({"x": np.full(3, 5, np.float32)}, half)
    lane.submit({"x": np.full(3, 6, np.float32)}, later(streams)).result()
    with pytest.raises(ValueError, match="half way"):
        failed.result()
    assert seen.tolist() == [5, 5, 5]
    lane.close()


def test_results_are_the_callers_own() -> None:
    streams = Streams(1)
    lane = StreamLane("cpu", streams=streams)
    held = [
        lane.submit({"x": np.full(3, i, np.float32)}, later(streams)).result()["y"]
        for i in range(6)
    ]
    assert [one.tolist() for one in held] == [[2 * i + 1] * 3 for i in range(6)]
    lane.close()


def test_buffers_are_used_again_and_grow() -> None:
    streams = Streams(2)
    lane = StreamLane("cpu", depth=2, streams=streams)

    def inputs_made() -> int:
        return sum(not pinned for pinned, _ in streams.rooms)

    for rows in (8, 8, 5, 1, 8, 7):
        lane.submit({"x": np.zeros(rows, np.float32)}, later(streams)).result()
    assert inputs_made() == 2
    lane.submit({"x": np.zeros(100, np.float32)}, later(streams)).result()
    assert inputs_made() == 3
    lane.submit({"x": np.zeros(8, np.int32)}, later(streams)).result()  # of another kind
    assert inputs_made() == 4
    lane.close()


def test_after_an_error_the_next_ones_have_buffers() -> None:
    streams = Streams(3)
    lane = StreamLane("cpu", depth=2, streams=streams)

    def fail(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError("no such work")

    failed = [lane.submit({"x": np.zeros(3, np.float32)}, fail) for _ in range(5)]
    unknown = [lane.submit({"x": np.array(["a"])}, later(streams)) for _ in range(5)]
    good = [lane.submit({"x": np.full(3, i, np.float32)}, later(streams)) for i in range(5)]
    for ticket in failed:
        with pytest.raises(ValueError, match="no such work"):
            ticket.result()
    for ticket in unknown:
        with pytest.raises(TypeError):
            ticket.result()
    assert [one.result()["y"][0] for one in good] == [2 * i + 1 for i in range(5)]
    lane.close()


def test_time_on_a_device_is_counted_once_a_result() -> None:
    streams = Streams(4)
    lane = StreamLane("cpu", streams=streams)
    ticket = lane.submit({"x": np.zeros(3, np.float32)}, later(streams))
    ticket.result()
    ticket.result()
    assert lane.busy_seconds == 0.5
    lane.close()


def test_run_comes_after_what_was_submitted_before_it() -> None:
    for streams in (None, Streams(5)):
        lane = StreamLane("cpu", depth=3, streams=streams)
        seen: list[int] = []
        for i in range(3):
            lane.submit({"x": np.zeros(2, np.float32)}, noting(seen, i))
        assert lane.run(seen.copy) == [0, 1, 2]
        lane.close()


# --- on the CPU -----------------------------------------------------------------------------------


def test_arrays_are_tensors_as_they_stand(lane: StreamLane) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    places: list[int] = []

    def work(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        places.append(given["x"].data_ptr())
        return {"same": given["x"]}

    same = lane.submit({"x": x}, work).result()["same"]
    assert places == [x.ctypes.data]
    assert np.shares_memory(same, x)


def test_what_may_not_be_written_is_copied(lane: StreamLane) -> None:
    x = np.arange(3, dtype=np.float32)
    x.flags.writeable = False
    assert lane.submit({"x": x}, doubled).result()["y"].tolist() == [0, 2, 4]


def test_work_is_done_in_order_by_one_thread_of_its_name(lane: StreamLane) -> None:
    seen: list[tuple[int, str]] = []

    def work(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen.append((int(given["x"]), threading.current_thread().name))
        return {}

    tickets = [lane.submit({"x": np.array(i)}, work) for i in range(20)]
    for ticket in tickets:
        ticket.result()
    assert seen == [(i, "lane-torch-cpu") for i in range(20)]


@pytest.mark.parametrize("depth", [1, 2])
def test_no_more_than_its_depth_is_in_a_lane(depth: int) -> None:
    lane = StreamLane("cpu", depth=depth)
    ended: list[int] = []

    def work(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ended.append(1)
        return {}

    for i in range(50):
        lane.submit({"x": np.zeros(1)}, work)
        assert i + 1 - len(ended) <= depth
    lane.close()


def test_errors_come_out_of_the_result_and_of_run(lane: StreamLane) -> None:
    def fail(given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        raise KeyError("x")

    ticket = lane.submit({}, fail)
    for _ in range(2):
        with pytest.raises(KeyError):
            ticket.result()
    with pytest.raises(KeyError):
        lane.run(fail)
    assert lane.submit({"x": np.ones(1)}, doubled).result()["y"] == 2


def test_a_device_without_memory_is_told_plainly(lane: StreamLane) -> None:
    def full(given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nmore")

    def too_large(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": torch.empty(1 << 58, dtype=torch.uint8)}

    with pytest.raises(ResourceError, match="device cpu has no memory left") as caught:
        lane.submit({}, full).result()
    assert caught.value.cause == "CUDA out of memory. Tried to allocate 1 GiB."
    assert "compute.minibatch" in str(caught.value.hint)
    with pytest.raises(ResourceError, match="no memory left"):
        lane.run(full)
    with pytest.raises(ResourceError, match="no memory left"):
        lane.submit({}, too_large).result()


def test_closing_does_what_was_submitted(lane: StreamLane) -> None:
    lane = StreamLane("cpu", depth=8)
    tickets = [lane.submit({"x": np.full(1, i)}, doubled) for i in range(8)]
    lane.close()
    lane.close()
    assert [int(one.result()["y"][0]) for one in tickets] == [2 * i for i in range(8)]
    with pytest.raises(AssertionError, match="closed"):
        lane.submit({}, doubled)
    with pytest.raises(AssertionError, match="closed"):
        lane.run(list)


def test_bytes_and_seconds_are_counted(lane: StreamLane) -> None:
    lane.submit({"x": np.zeros(10, np.float32)}, doubled).result()
    lane.submit({"x": np.zeros(5, np.float64)}, doubled).result()
    lane.run(list)
    assert (lane.bytes_in, lane.bytes_out) == (80, 80)
    assert lane.busy_seconds > 0


def test_threads_are_set_in_the_lane() -> None:
    before = torch.get_num_threads()
    lane = StreamLane("cpu", threads=1)
    try:
        assert lane.run(torch.get_num_threads) == 1
    finally:
        lane.close()
        torch.set_num_threads(before)


# --- devices --------------------------------------------------------------------------------------


def test_a_device_is_known_by_its_name() -> None:
    assert device_of("cpu") == torch.device("cpu")
    expected = torch.device("cuda:0") if torch.cuda.is_available() else torch.device("cpu")
    assert device_of("auto") == expected
    assert StreamLane("cpu").device == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda:99", r"'cuda:99' is not there: torch \S+ sees (no GPU|cuda:0)"),
        ("gpu", "'gpu' is no device"),
        ("meta", "'meta' is neither cpu nor cuda"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StreamLane(name)


@needs_cuda
def test_a_gpu_computes_what_the_cpu_does() -> None:
    dice = np.random.default_rng(1)
    given = [dice.normal(size=(i + 1, 4)).astype(np.float32) for i in range(20)]
    lane = StreamLane("cuda")
    tickets = [lane.submit({"x": x}, doubled) for x in given]
    for x, ticket in zip(given, tickets, strict=True):
        assert (ticket.result()["y"] == 2 * x).all()
    assert lane.busy_seconds > 0
    lane.close()


@needs_cuda
def test_a_gpu_without_memory_is_told_plainly() -> None:
    lane = StreamLane("cuda")
    with pytest.raises(ResourceError, match="device cuda:0 has no memory left"):
        lane.submit({}, lambda given: {"y": torch.empty(1 << 50, device="cuda")}).result()
    assert lane.submit({"x": np.ones(2)}, doubled).result()["y"].tolist() == [2, 2]
    lane.close()
