"""A shard as a worker sees it: every push settles once, the same bytes sent however often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from streamlearn import columns
from streamlearn.cluster.remote import Remote, Ticket, Who
from streamlearn.errors import (
    AccessError,
    ClusterError,
    PeerLostError,
    ProtocolError,
    RefusedError,
    StreamlearnError,
)
from streamlearn.protocol import (
    Answer,
    Claim,
    Done,
    Fault,
    Join,
    Joined,
    KeyMiss,
    Leave,
    Message,
    Pull,
    Pulled,
    Push,
    Pushed,
    State,
    StateIs,
)
from tests.shard_parts import changed, job, keys_of, mark, pull, push, spec

SPEC = spec(job())
KEYS = keys_of(SPEC, 1, 2, 3)
WHO = Who("a", 1, SPEC.signature)
JOINED = Joined(0, 77, [])
STATE = StateIs(77, 0, 0, True, [], {}, {})
LENGTHS = memoryview(b"\7" + bytes(7))
PULLED = Pulled(3, 0, columns.encode_values(KEYS.astype("float32") * 0, 0).data)


def whole(clock: int) -> Push:
    """Return a push with keys and lengths, and gradients of embeddings."""
    return changed(push(SPEC, KEYS, clock=clock), lengths=LENGTHS, vectors=memoryview(b"v" * 9))


class Line:
    """A connection whose other end is the test.

    Attributes
    ----------
    sent : list of Message
        Requests, in order.
    automatic : dict
        By type of request, the answer that is given at once.
    """

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.sent: list[Message] = []
        self.closed = False
        self.automatic: dict[type, Answer] = {Join: JOINED, State: STATE}
        self._futures: list[asyncio.Future[Answer]] = []

    def post(self, message: Message) -> tuple[int, asyncio.Future[Answer]]:
        """Send a request."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.sent.append(message)
        self._futures.append(future)
        if self.lost.is_set():
            self._fail(future)
        elif type(message) in self.automatic:
            future.set_result(self.automatic[type(message)])
        return len(self.sent), future

    async def close(self) -> None:
        """End the connection."""
        self.closed = True
        self.lose()

    def lose(self) -> None:
        """End it from the other side."""
        self.lost.set()
        for future in self._futures:
            if not future.done():
                self._fail(future)

    def answer(self, request: int, answer: Answer) -> None:
        """Answer a request, by its id."""
        future = self._futures[request - 1]
        if isinstance(answer, Fault):
            future.set_exception(RefusedError(answer.message, code=answer.code, again=answer.again))
        else:
            future.set_result(answer)

    def of(self, kind: type) -> list[tuple[int, Message]]:
        """Return the requests of a type that were sent, by id."""
        return [(at, one) for at, one in enumerate(self.sent, 1) if isinstance(one, kind)]

    @staticmethod
    def _fail(future: asyncio.Future[Answer]) -> None:
        future.set_exception(PeerLostError("the link ended"))
        future.exception()


class Bench:
    """A remote and the connections that it opens, one after the other."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.refusals: list[Exception] = []
        self.clock = 0
        self.changes = 0
        self.prepare: Callable[[Line], None] = lambda line: None
        self.remote = Remote(0, WHO, self._connect, lambda: self.clock, lambda: 0.0, self._changed)

    async def _connect(self) -> Line:
        if self.refusals:
            raise self.refusals.pop(0)
        line = Line()
        self.prepare(line)
        self.lines.append(line)
        return line

    def _changed(self) -> None:
        self.changes += 1

    @property
    def line(self) -> Line:
        """The newest connection."""
        return self.lines[-1]

    def pull(self, clock: int) -> Ticket:
        """Ask for values."""
        return self.remote.pull(pull(SPEC, KEYS, clock))

    def push(self, clock: int, ticket: Ticket) -> asyncio.Future[None]:
        """Push for what was pulled."""
        return self.remote.push(whole(clock), ticket)

    async def pulled(self, clock: int) -> Ticket:
        """Pull, and have it answered."""
        ticket = self.pull(clock)
        self.line.answer(self.line.of(Pull)[-1][0], PULLED)
        await ticket.answer
        return ticket

    async def reconnected(self, lines: int) -> None:
        """Wait until so many connections were made, and the last is joined."""
        await until(lambda: len(self.lines) >= lines and self.remote.joined.is_set())


async def until(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.005)


async def turn() -> None:
    """Let everything that can happen now happen."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def bench(*, member: bool = True) -> AsyncIterator[Bench]:
    """Run a remote that has joined."""
    made = Bench()
    task = asyncio.create_task(made.remote.run())
    await made.reconnected(1)
    if member:
        await made.remote.join()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_push_names_its_pull_and_sends_no_keys():
    async with bench() as made:
        ticket = await made.pulled(0)
        done = made.push(0, ticket)
        ((request, sent),) = made.line.of(Push)
        assert isinstance(sent, Push)
        assert sent.pull == made.line.of(Pull)[0][0]
        assert (len(sent.keys), len(sent.lengths)) == (0, 0)
        assert sent.vectors == whole(0).vectors
        assert made.remote.open_pushes == 1
        made.line.answer(request, Pushed(1, duplicate=False))
        await done
        assert made.remote.open_pushes == 0
        assert made.remote.marks["p"] == mark(1)


async def test_open_pushes_are_sent_again_in_order_with_keys_and_the_same_bytes():
    async with bench() as made:
        tickets = [await made.pulled(clock) for clock in range(3)]
        first = [made.push(clock, tickets[clock]) for clock in range(3)]
        originals = [one for _, one in made.line.of(Push)]
        made.line.answer(made.line.of(Push)[0][0], Pushed(1, duplicate=False))
        await first[0]
        made.clock = 1
        made.line.lose()
        await made.reconnected(2)
        again = made.line.of(Push)
        assert [one.clock for _, one in again] == [1, 2]
        for (_, new), old in zip(again, originals[1:], strict=True):
            assert new.pull == 0
            assert new == changed(old, pull=0, keys=push(SPEC, KEYS).keys, lengths=LENGTHS)
        (join,) = (one for _, one in made.line.of(Join))
        assert join.clock == 1
        for request, one in again:
            made.line.answer(request, Pushed(one.mark.sequence, duplicate=True))
        await asyncio.gather(*first[1:])
        assert made.remote.resent == 2


async def test_pulls_are_sent_again_before_pushes():
    async with bench() as made:
        ticket = await made.pulled(0)
        done = made.push(0, ticket)
        waiting = [made.pull(clock) for clock in (1, 2)]
        made.line.lose()
        await made.reconnected(2)
        kinds = [type(one) for one in made.line.sent]
        assert kinds == [Join, Pull, Pull, Push]
        assert [one.clock for _, one in made.line.of(Pull)] == [1, 2]
        for request, _ in made.line.of(Pull):
            made.line.answer(request, PULLED)
        await asyncio.gather(*(one.answer for one in waiting))
        # a pull that was asked for again is named by its new number
        made.push(1, waiting[0])
        assert made.line.of(Push)[-1][1].pull == made.line.of(Pull)[0][0]
        assert not done.done()


async def test_what_is_asked_for_while_there_is_no_connection_is_sent_with_the_next():
    async with bench() as made:
        ticket = await made.pulled(0)
        made.line.lose()
        await until(lambda: not made.remote.joined.is_set())
        pulling = made.pull(1)
        pushing = made.push(0, ticket)
        await made.reconnected(2)
        assert [one.clock for _, one in made.line.of(Pull)] == [1]
        ((_, sent),) = made.line.of(Push)
        assert (sent.pull, len(sent.keys) > 0) == (0, True)
        assert not pulling.answer.done()
        assert not pushing.done()


async def test_key_miss_sends_everything_open_again_with_keys():
    async with bench() as made:
        tickets = [await made.pulled(clock) for clock in range(3)]
        done = [made.push(clock, tickets[clock]) for clock in range(3)]
        requests = [request for request, _ in made.line.of(Push)]
        made.line.answer(requests[0], KeyMiss(1))
        await turn()
        again = made.line.of(Push)[3:]
        assert [(one.clock, one.pull) for _, one in again] == [(0, 0), (1, 0), (2, 0)]
        # what the first attempts are answered does not matter any more
        made.line.answer(requests[1], Fault("gap", "", again=True))
        made.line.answer(requests[2], Fault("gap", "", again=True))
        await turn()
        assert len(made.line.of(Push)) == 6
        assert not made.remote.rewinds
        for request, one in again:
            made.line.answer(request, Pushed(one.mark.sequence, duplicate=False))
        await asyncio.gather(*done)


async def test_late_answer_to_an_earlier_attempt_settles_the_push():
    async with bench() as made:
        tickets = [await made.pulled(clock) for clock in range(2)]
        done = [made.push(clock, tickets[clock]) for clock in range(2)]
        requests = [request for request, _ in made.line.of(Push)]
        made.line.answer(requests[1], KeyMiss(2))
        await turn()
        made.line.answer(requests[0], Pushed(1, duplicate=False))
        await done[0]
        made.line.answer(made.line.of(Push)[2][0], Pushed(1, duplicate=True))
        made.line.answer(made.line.of(Push)[3][0], Pushed(2, duplicate=False))
        await done[1]
        assert made.remote.open_pushes == 0


async def test_gap_before_the_oldest_push_rewinds():
    async with bench() as made:
        tickets = [await made.pulled(clock) for clock in range(2)]
        done = [made.push(clock, tickets[clock]) for clock in range(2)]
        made.line.lose()
        await made.reconnected(2)
        changes = made.changes
        for request, _ in made.line.of(Push):
            made.line.answer(request, Fault("gap", "", again=True))
        await turn()
        assert made.remote.rewinds
        assert made.changes > changes
        made.remote.forget()
        assert (made.remote.rewinds, made.remote.open_pushes) == (False, 0)
        assert all(one.cancelled() for one in done)
        # and goes on
        await made.pulled(2)


async def test_gap_before_a_later_push_is_tried_again():
    async with bench() as made:
        tickets = [await made.pulled(clock) for clock in range(2)]
        for clock in range(2):
            made.push(clock, tickets[clock])
        made.line.answer(made.line.of(Push)[1][0], Fault("gap", "", again=True))
        await turn()
        assert not made.remote.rewinds
        await until(lambda: len(made.line.of(Push)) == 4)
        assert [one.clock for _, one in made.line.of(Push)[2:]] == [0, 1]


async def test_push_that_storage_refuses_is_sent_again_after_a_while():
    async with bench() as made:
        ticket = await made.pulled(0)
        later = await made.pulled(1)
        done = made.push(0, ticket)
        made.line.answer(made.line.of(Push)[0][0], Fault("storage", "full disk", again=True))
        await turn()
        second = made.push(1, later)  # not before the one that comes again
        assert len(made.line.of(Push)) == 1
        await until(lambda: len(made.line.of(Push)) == 3)
        assert [one.clock for _, one in made.line.of(Push)] == [0, 0, 1]
        for request, one in made.line.of(Push)[1:]:
            made.line.answer(request, Pushed(one.mark.sequence, duplicate=False))
        await asyncio.gather(done, second)


async def test_connection_that_ends_while_a_push_waits_to_be_sent_again():
    async with bench() as made:
        ticket = await made.pulled(0)
        done = made.push(0, ticket)
        made.line.answer(made.line.of(Push)[0][0], Fault("storage", "full disk", again=True))
        await turn()
        made.line.lose()
        await made.reconnected(2)
        await asyncio.sleep(0.15)
        assert len(made.line.of(Push)) == 1
        made.line.answer(made.line.of(Push)[0][0], Pushed(1, duplicate=False))
        await done


async def test_shard_that_forgot_this_worker_is_joined_anew():
    async with bench() as made:
        ticket = made.pull(4)
        made.clock = 4
        made.line.answer(made.line.of(Pull)[0][0], Fault("stale", "join", again=True))
        await made.reconnected(2)
        assert made.lines[0].closed
        assert [type(one) for one in made.line.sent] == [Join, Pull]
        made.line.answer(2, PULLED)
        await ticket.answer


@pytest.mark.parametrize("kind", [Pull, Push])
async def test_refusal_for_good_is_a_failure(kind):
    async with bench() as made:
        ticket = await made.pulled(0)
        made.push(0, ticket)
        made.pull(1)
        changes = made.changes
        made.line.answer(made.line.of(kind)[-1][0], Fault("full", "no room", again=False))
        await turn()
        assert isinstance(made.remote.failed, RefusedError)
        assert made.remote.failed.code == "full"
        assert made.changes > changes


@pytest.mark.parametrize("kind", [Pull, Push])
async def test_answer_of_another_kind_is_a_failure(kind):
    async with bench() as made:
        ticket = await made.pulled(0)
        made.push(0, ticket)
        made.pull(1)
        made.line.answer(made.line.of(kind)[-1][0], Done())
        await turn()
        assert isinstance(made.remote.failed, ProtocolError)


@pytest.mark.parametrize(
    "error", [AccessError("no"), ClusterError("another job")], ids=["access", "cluster"]
)
async def test_shard_that_is_another_is_a_failure(error: StreamlearnError):
    made = Bench()
    made.refusals.append(error)
    await asyncio.wait_for(made.remote.run(), 10)
    assert made.remote.failed is error
    assert made.changes == 1


async def test_shard_that_is_not_there_yet_is_tried_again():
    made = Bench()
    made.refusals += [PeerLostError("gone"), ConnectionRefusedError(), OSError("no route")]
    task = asyncio.create_task(made.remote.run())
    await made.reconnected(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert made.remote.failed is None
    assert made.lines[0].closed


async def test_before_it_takes_part_it_asks_for_marks_alone():
    async with bench(member=False) as made:
        assert [type(one) for one in made.line.sent] == [State]
        made.prepare = lambda line: line.automatic.update({State: changed(STATE, marks=[mark(7)])})
        made.line.lose()
        await made.reconnected(2)
        assert made.remote.marks == {"p": mark(7)}
        assert made.remote.connections == 2


async def test_join_tells_the_clock_that_the_shard_has_noted():
    async with bench(member=False) as made:
        made.clock = 5
        made.line.automatic[Join] = Joined(9, 77, [mark(3)])
        assert await made.remote.join_surely() == 9
        assert made.remote.noted == 9
        assert made.line.of(Join)[0][1] == Join("a", 1, 5, SPEC.signature)
        made.prepare = lambda line: line.automatic.update({Join: Joined(12, 78, [])})
        made.line.lose()
        await made.reconnected(2)
        assert made.remote.noted == 12


async def test_join_that_is_refused_for_good_is_a_failure():
    async with bench() as made:
        made.prepare = lambda line: line.automatic.pop(Join)
        made.line.lose()
        await until(lambda: len(made.lines) == 2 and len(made.line.sent) == 1)
        made.line.answer(1, Fault("invalid", "another job", again=False))
        await until(lambda: made.remote.failed is not None)
        assert made.line.closed


async def test_join_that_is_refused_for_now_is_tried_again():
    async with bench() as made:
        made.prepare = lambda line: line.automatic.pop(Join)
        made.line.lose()
        await until(lambda: len(made.lines) == 2 and len(made.line.sent) == 1)
        made.prepare = lambda line: None
        made.line.answer(1, Fault("storage", "full disk", again=True))
        await made.reconnected(3)
        assert made.remote.failed is None


async def test_connection_that_ends_while_joining_is_another_attempt():
    async with bench() as made:
        made.prepare = lambda line: line.automatic.pop(Join)
        made.line.lose()
        await until(lambda: len(made.lines) == 2 and len(made.line.sent) == 1)
        made.prepare = lambda line: None
        made.line.lose()
        await made.reconnected(3)


async def test_insisting_outlives_connections_and_refusals_for_now():
    async with bench() as made:
        asking = asyncio.create_task(made.remote.insist(Claim("a", 1, [], wanted=True)))
        await until(lambda: len(made.line.of(Claim)) == 1)
        made.line.lose()
        await made.reconnected(2)
        await until(lambda: len(made.line.of(Claim)) == 1)
        made.line.answer(made.line.of(Claim)[0][0], Fault("storage", "", again=True))
        await until(lambda: len(made.line.of(Claim)) == 2)
        made.line.answer(made.line.of(Claim)[1][0], Done())
        assert await asking == Done()


async def test_insisting_ends_where_it_is_refused_for_good():
    async with bench() as made:
        asking = asyncio.create_task(made.remote.insist(Leave("a", 1)))
        await until(lambda: len(made.line.of(Leave)) == 1)
        made.line.answer(made.line.of(Leave)[0][0], Fault("forbidden", "", again=False))
        with pytest.raises(RefusedError):
            await asking


async def test_asking_without_a_connection_fails_at_once():
    made = Bench()
    with pytest.raises(PeerLostError):
        await made.remote.ask(State())


async def test_forgotten_pulls_may_still_be_answered():
    async with bench() as made:
        ticket = made.pull(0)
        made.remote.forget()
        assert ticket.answer.cancelled()
        made.line.answer(made.line.of(Pull)[0][0], PULLED)
        await turn()
        other = made.pull(1)
        made.remote.forget()
        made.line.answer(made.line.of(Pull)[1][0], Fault("full", "", again=False))
        await turn()
        assert other.answer.cancelled()
        assert made.remote.failed is None


async def test_end_closes_the_connection():
    async with bench() as made:
        line = made.line
    assert line.closed
