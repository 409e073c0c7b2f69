"""When a worker of a net meets others, steps with them, and takes part with nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streamlearn.cluster.dense_member import DenseMember
from streamlearn.cluster.meeting import DissolvedError
from streamlearn.cluster.remote import Who
from streamlearn.errors import ClusterError, PeerLostError
from streamlearn.protocol import Done, Meet, Met, Stay

PATIENCE_SECONDS = 5.0


class Lane:
    """Runs what it is given at once."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    def post(self, work: Callable[[], None]) -> None:
        work()

    def close(self) -> None:
        """There is nothing to end."""


class Shard:
    """The first shard's remote: answers what the test says."""

    def __init__(self, sizes: list[int]) -> None:
        self.asked: list[Meet] = []
        self.stays: dict[int, asyncio.Future[Done]] = {}
        self._sizes = sizes

    async def insist(self, message: Meet | Stay) -> Met | Done:
        await asyncio.sleep(0)
        if isinstance(message, Meet):
            self.asked.append(message)
            return Met(len(self.asked), 0, self._sizes.pop(0), "h:1")
        self.stays[message.generation] = asyncio.get_running_loop().create_future()
        return await self.stays[message.generation]


class Group:
    def __init__(self) -> None:
        self.generation, self.size, self.wanted = 0, 1, False
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Net:
    steps = 0


class Stepper:
    """Raises what the test says in the place of steps, in order; counts those it makes."""

    def __init__(self) -> None:
        self.group, self.net = Group(), Net()
        self.fails: list[BaseException] = []
        self.form_fails: list[BaseException] = []
        self.formed: list[Met] = []
        self.idles = self.left = 0
        self.nobody = False

    def address(self) -> str:
        return "h:1"

    def form(self, met: Met) -> None:
        if self.form_fails:
            raise self.form_fails.pop(0)
        self.formed.append(met)
        self.group.generation, self.group.size = met.generation, met.size
        self.group.wanted = False

    def step(self, prepared: Any, pulled: Any, seed: int, epoch: int) -> tuple[Any, ...]:
        if self.fails:
            raise self.fails.pop(0)
        self.net.steps += 1
        return prepared, pulled, seed, epoch

    def idle(self) -> bool:
        if self.group.wanted:
            self.group.wanted = False
            raise DissolvedError
        self.idles += 1
        return self.nobody

    def leave(self) -> None:
        self.left += 1
        self.group.size = 1


class Play:
    """A member, and what it deals with."""

    def __init__(self, *sizes: int) -> None:
        self.shard, self.stepper = Shard(list(sizes)), Stepper()
        self.takes_part = True
        self.member = DenseMember(
            Who("w", 7, "job"), lambda: self.shard, Lane(), self.stepper, lambda: self.takes_part
        )  # type: ignore[arg-type]

    async def step(self, number: int = 1) -> Any:
        return await self.member.step("prepared", "pulled", number, 0)  # type: ignore[arg-type]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so():  # noqa: ASYNC110 - nobody sets an event
                await asyncio.sleep(0.001)

    @asynccontextmanager
    async def idling(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.member.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.member.close()


async def test_first_step_waits_for_a_group() -> None:
    play = Play(2)
    assert await play.step(3) == ("prepared", "pulled", 3, 0)
    assert play.shard.asked == [Meet("w", 7, 0, "h:1", 0)]
    assert [met.size for met in play.stepper.formed] == [2]
    await play.step(4)
    assert len(play.shard.asked) == 1
    await play.member.close()
    assert play.stepper.group.closed == 1


@pytest.mark.parametrize("error", [DissolvedError(), PeerLostError("worker 1 is gone")])
async def test_step_of_a_group_that_ended_is_made_in_the_next(error: Exception) -> None:
    play = Play(2, 1)
    await play.step()
    play.stepper.fails = [error]
    await play.step()
    assert play.stepper.net.steps == 2
    assert play.shard.asked[1] == Meet("w", 7, 1, "h:1", 1)
    assert play.member.lost == isinstance(error, PeerLostError)
    await play.member.close()


async def test_group_that_does_not_come_together_is_asked_for_again() -> None:
    play = Play(2, 2)
    play.stepper.form_fails = [PeerLostError("one did not come")]
    await play.step()
    assert len(play.shard.asked) == 2
    assert len(play.stepper.formed) == 1
    await play.member.close()


async def test_nets_that_differ_end_the_worker() -> None:
    play = Play(2)
    play.stepper.form_fails = [ClusterError("workers do not hold the same")]
    with pytest.raises(ClusterError, match="do not hold the same"):
        await play.step()
    await play.member.close()


async def test_who_has_nothing_takes_part_with_nothing() -> None:
    play = Play(2)
    async with play.idling():
        await asyncio.sleep(0.02)
        assert not play.shard.asked  # it has not taken part in a step yet
        await play.step()
        await play.until(lambda: play.stepper.idles >= 3)
        play.takes_part = False
        await asyncio.sleep(0.01)
        idles = play.stepper.idles
        await asyncio.sleep(0.05)
        assert play.stepper.idles == idles


async def test_one_worker_alone_makes_no_steps_without_examples() -> None:
    play = Play(1)
    async with play.idling():
        await play.step()
        await asyncio.sleep(0.05)
        assert play.stepper.idles == 0


async def test_who_is_called_meets_again_though_it_has_nothing_to_step() -> None:
    play = Play(1, 2)
    async with play.idling():
        await play.step()
        await play.until(lambda: 1 in play.shard.stays)
        play.shard.stays[1].set_result(Done())
        await play.until(lambda: len(play.stepper.formed) == 2)
        assert play.shard.asked[1].generation == 1


async def test_answer_for_a_group_that_is_no_more_calls_nobody() -> None:
    play = Play(2, 2)
    await play.step()
    await play.until(lambda: 1 in play.shard.stays)
    play.stepper.fails = [DissolvedError()]
    await play.step()
    await play.until(lambda: 2 in play.shard.stays)
    assert play.shard.stays[1].cancelled()
    assert not play.stepper.group.wanted
    await play.member.close()


async def test_step_that_is_given_up_leaves_the_meeting_to_the_next_one() -> None:
    play = Play(2)
    answered = asyncio.Event()
    insist = play.shard.insist

    async def later(message: Meet | Stay) -> Met | Done:
        if isinstance(message, Meet):
            await answered.wait()
        return await insist(message)

    play.shard.insist = later  # type: ignore[method-assign]
    given_up = asyncio.create_task(play.step())
    await asyncio.sleep(0.01)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    answered.set()
    await play.step(2)
    assert len(play.shard.asked) == 1
    await play.member.close()


async def test_who_leaves_is_in_no_group_and_meets_again_when_it_steps() -> None:
    play = Play(2, 2)
    await play.step()
    await play.member.leave()
    assert not play.member.formed
    assert play.stepper.left == 1
    await play.step()
    assert [meet.generation for meet in play.shard.asked] == [0, 1]
    await play.member.close()
