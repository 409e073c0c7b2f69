from __future__ import annotations

import asyncio

import pytest

from tests.sim.lane import SimLane
from tests.sim.loop import Owner, SimLoop


@pytest.fixture
def loop():
    loop = SimLoop()
    yield loop
    loop.close()


def test_work_runs_in_order_whatever_its_delay(loop):
    delays = iter([3.0, 0.0, 1.0])
    ran = []

    async def main():
        lane = SimLane("l", loop, lambda: next(delays))
        for name in "ab":
            lane.post(lambda name=name: ran.append((name, loop.time())))
        return await lane.run(lambda: (ran.append(("c", loop.time())), 7)[1])

    assert loop.run_until_complete(main()) == 7
    assert ran == [("a", 3.0), ("b", 3.0), ("c", 4.0)]


def test_the_loop_goes_on_while_a_lane_works(loop):
    ran = []

    async def main():
        lane = SimLane("l", loop, lambda: 1.0)
        task = asyncio.ensure_future(lane.run(ran.append, "lane"))
        await asyncio.sleep(0.5)
        ran.append("loop")
        await task

    loop.run_until_complete(main())
    assert ran == ["loop", "lane"]


def test_an_error_goes_to_whoever_awaits_and_the_lane_goes_on(loop):
    async def main():
        lane = SimLane("l", loop, lambda: 0.0)
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 / 0)
        return await lane.run(lambda: 5)

    assert loop.run_until_complete(main()) == 5


def test_closing_finishes_what_was_posted(loop):
    ran = []

    async def main():
        lane = SimLane("l", loop, lambda: 5.0)
        lane.post(lambda: ran.append(1))
        lane.post(lambda: ran.append(2))
        lane.close()
        assert ran == [1, 2]
        with pytest.raises(AssertionError, match="closed"):
            lane.post(lambda: None)
        await asyncio.sleep(20)

    loop.run_until_complete(main())
    assert ran == [1, 2]


def test_a_lane_dies_with_its_owner(loop):
    ran = []
    owner = Owner("p")

    async def main():
        with loop.as_owner(owner):
            lane = SimLane("l", loop, lambda: 1.0)
        lane.post(lambda: ran.append(1))
        owner.kill()
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert not ran
