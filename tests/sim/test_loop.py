from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.loop import DeadlockError, LivelockError, Owner, SimLoop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loop():
    loop = SimLoop()
    yield loop
    loop.close()


def test_waiting_takes_virtual_time_only(loop):
    async def main():
        await asyncio.sleep(3600)
        return loop.time()

    assert loop.run_until_complete(main()) == 3600


def test_timers_of_one_time_run_in_the_order_of_their_asking(loop):
    ran = []

    async def main():
        for name in "abc":
            loop.call_at(1.0, ran.append, name)
        loop.call_at(0.5, ran.append, "first")
        await asyncio.sleep(2)

    loop.run_until_complete(main())
    assert ran == ["first", "a", "b", "c"]


def test_the_real_asyncio_runs(loop):
    async def child(seconds, out):
        await asyncio.sleep(seconds)
        out.append(seconds)

    async def main():
        out = []
        async with asyncio.TaskGroup() as group:
            for seconds in (3, 1, 2):
                group.create_task(child(seconds, out))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        lock = asyncio.Semaphore(1)
        async with lock:
            loop.call_soon_threadsafe(out.append, "soon")
            await asyncio.sleep(0)
        return out, loop.time()

    assert loop.run_until_complete(main()) == ([1, 2, 3, "soon"], 8)


def test_a_group_cancels_its_tasks_in_one_order(loop):
    ended = []

    async def child(name):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def fails():
        await asyncio.sleep(1)
        raise ValueError

    async def main():
        async with asyncio.TaskGroup() as group:
            for name in range(20):
                group.create_task(child(name))
            group.create_task(fails())

    with pytest.raises(ExceptionGroup):
        loop.run_until_complete(main())
    assert ended == list(range(20))


def test_nothing_scheduled_is_a_deadlock(loop):
    async def waits():
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="waits"):
        loop.run_until_complete(waits())


def test_a_run_that_does_not_end_is_given_up(loop):
    async def forever():
        await asyncio.sleep(1)
        await forever()

    with pytest.raises(LivelockError, match="100 virtual seconds"):
        loop.run_until_complete(forever(), seconds_max=100)


def test_a_jump_lets_timers_run_late_and_in_order(loop):
    ran = []

    async def main():
        loop.call_later(2, lambda: ran.append(("b", loop.time())))
        loop.call_later(1, lambda: ran.append(("a", loop.time())))
        loop.jump(10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert ran == [("a", 10), ("b", 10)]


def test_nothing_of_a_killed_owner_runs(loop):
    ran = []
    owner = Owner("p")

    async def child():
        try:
            ran.append("begins")
            await asyncio.sleep(1)
            ran.append("never")
        finally:
            if not loop.is_closed():
                ran.append("never")

    async def main():
        with loop.as_owner(owner):
            loop.create_task(child())
            loop.call_later(1, ran.append, "never")
        await asyncio.sleep(0.5)
        owner.kill()
        await asyncio.sleep(10)

    loop.run_until_complete(main())
    assert ran == ["begins"]
    assert not loop.problems


def test_a_frozen_owner_goes_on_where_it_was(loop):
    ran = []
    owner = Owner("p")

    async def child():
        for _ in range(3):
            await asyncio.sleep(1)
            ran.append(loop.time())

    async def main():
        with loop.as_owner(owner):
            task = loop.create_task(child())
        await asyncio.sleep(1.5)
        loop.freeze(owner)
        await asyncio.sleep(5)
        loop.thaw(owner)
        await task

    loop.run_until_complete(main())
    assert ran == [1, 6.5, 7.5]


def test_what_nobody_catches_is_noted(loop):
    async def main():
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert len(loop.problems) == 1
    assert "ZeroDivisionError" in loop.problems[0]


def test_a_run_can_be_failed_from_anywhere(loop):
    async def main():
        loop.call_later(1, loop.fail, KeyError("why"))
        await asyncio.sleep(5)

    with pytest.raises(KeyError, match="why"):
        loop.run_until_complete(main())
    assert loop.time() == 1


def test_real_input_and_output_are_refused(loop):
    async def main():
        with pytest.raises(RuntimeError, match="neither sockets nor threads"):
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", 1)
        with pytest.raises(RuntimeError, match="neither sockets nor threads"):
            loop.run_in_executor(None, print)

    loop.run_until_complete(main())


_ORDER = """
import asyncio
from tests.sim.loop import SimLoop
async def child(name, out):
    try:
        await asyncio.sleep(hash(str(name)) % 1)
        await asyncio.Event().wait()
    finally:
        out.append(name)
async def main():
    out = []
    tasks = [asyncio.ensure_future(child(n, out)) for n in range(50)]
    await asyncio.wait(set(tasks), timeout=1)
    for task in set(tasks):
        task.cancel()
    await asyncio.wait(set(tasks))
    print(out)
loop = SimLoop()
loop.run_until_complete(main())
"""


def test_order_is_the_same_under_another_hash_seed():
    said = [
        subprocess.run(
            [sys.executable, "-c", _ORDER],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] != b""
