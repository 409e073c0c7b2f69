"""Lanes run what is posted to them, in order, in one thread each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from streamlearn.compute.pool import Lane


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane("test", lambda: 1.5)
    yield made
    made.close()


async def test_work_is_done_in_the_order_in_which_it_was_posted(lane: Lane) -> None:
    done: list[int] = []
    for i in range(1000):
        lane.post(lambda i=i: done.append(i))
    await lane.run(done.append, 1000)
    assert done == list(range(1001))


async def test_all_work_is_done_in_the_lanes_own_thread(lane: Lane) -> None:
    names = {await lane.run(lambda: threading.current_thread().name) for _ in range(5)}
    assert names == {"lane-test"}
    assert lane.name == "test"


async def test_run_returns_what_the_function_does_and_passes_arguments(lane: Lane) -> None:
    assert await lane.run(divmod, 17, 5) == (3, 2)
    assert await lane.run(int, "ff", base=16) == 255


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
async def test_run_raises_what_the_function_does_and_the_lane_goes_on(
    lane: Lane, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    caught: BaseException | None = None
    try:
        await lane.run(fail)
    except BaseException as raised:  # noqa: BLE001 - whatever it is
        caught = raised
    assert caught is error
    assert await lane.run(lambda: 7) == 7


async def test_the_loop_goes_on_while_a_lane_works(lane: Lane) -> None:
    go = threading.Event()
    waiting = asyncio.create_task(lane.run(go.wait, 60))
    await asyncio.sleep(0)
    assert not waiting.done()
    go.set()  # by the loop, which is free
    assert await waiting is True


async def test_a_cancelled_wait_leaves_the_work_to_end_by_itself(lane: Lane) -> None:
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(60)
        done.set()

    waiting = asyncio.create_task(lane.run(work))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    await lane.run(lambda: None)
    assert done.is_set()


def test_a_lane_outlives_the_loop_that_no_longer_waits_for_it(lane: Lane) -> None:
    go = threading.Event()

    async def leave() -> None:
        waiting = asyncio.create_task(lane.run(go.wait, 60))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave())
    go.set()
    assert asyncio.run(lane.run(lambda: 7)) == 7


async def test_two_lanes_work_at_the_same_time() -> None:
    lanes = [Lane("a", lambda: 0.0), Lane("b", lambda: 0.0)]
    meeting = threading.Barrier(2)
    await asyncio.gather(*(lane.run(meeting.wait, 60) for lane in lanes))
    assert not meeting.broken
    for lane in lanes:
        lane.close()


def test_close_finishes_what_was_posted_and_ends_the_thread() -> None:
    lane = Lane("closing", lambda: 0.0)
    done: list[int] = []
    for i in range(100):
        lane.post(lambda i=i: done.append(i))
    lane.close()
    assert done == list(range(100))
    assert "lane-closing" not in {thread.name for thread in threading.enumerate()}


async def test_the_lane_tells_the_cpu_time_of_its_thread() -> None:
    seconds = iter([0.25, 1.0])
    lane = Lane("clock", lambda: next(seconds))
    assert lane.busy_seconds == 0
    await lane.run(lambda: None)
    await lane.run(lambda: None)
    lane.close()
    assert lane.busy_seconds == 1.0


async def test_a_lane_is_idle_once_all_that_was_posted_has_begun(lane: Lane) -> None:
    begun, go = threading.Event(), threading.Event()
    assert lane.idle

    def wait() -> None:
        begun.set()
        go.wait()

    lane.post(wait)
    begun.wait()
    assert lane.idle
    lane.post(lambda: None)
    assert not lane.idle
    go.set()
    await lane.run(lambda: None)
    assert lane.idle
