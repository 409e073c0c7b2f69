from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from streamlearn.errors import ConfigError, PeerLostError, RefusedError, ResourceError
from streamlearn.net.connection import Peer, decode_error
from streamlearn.net.counters import Counters
from streamlearn.net.frame import ANSWER, ERROR, HELLO, PROOF, REQUEST
from streamlearn.net.limits import Limits
from streamlearn.net.security import MAY_ASK, ROLES, Secrets
from streamlearn.protocol import (
    Claim,
    Done,
    Fault,
    Finished,
    Follow,
    FollowRecord,
    Join,
    Leave,
    Mark,
    Meet,
    Message,
    Ping,
    Pull,
    Pulled,
    PullFactors,
    PullTopics,
    Push,
    PushFactors,
    PushTopics,
    Register,
    Reopen,
    State,
    Stay,
    TakeSnapshot,
    Tick,
    decode,
    encode,
)
from tests.net.wire_parts import (
    STATE_IS,
    WORKER,
    RawPeer,
    Recorder,
    asked,
    failure,
    frame,
    make_server,
    open_link,
    over_loops,
    run,
    until,
)

MARK = Mark("p", "v", 0, 1, 0, 0)
EMPTY = memoryview(b"")
ASKS: list[Message] = [
    Join("w0", 1, -1),
    Leave("w0", 1),
    Pull(0, 1, 0, 0, EMPTY, 0),
    PullFactors(0, 1, 0, 0, EMPTY, 0),
    Push(0, "w0", 1, 0, 0, 0, 0, EMPTY, 0, EMPTY, EMPTY, MARK),
    PushFactors(0, "w0", 1, 0, 0, 0, 0, EMPTY, 0, EMPTY, EMPTY, MARK),
    PullTopics(0, 1, 0, 0, EMPTY, 0),
    PushTopics(0, "w0", 1, 0, 0, 0, 0, EMPTY, 0, EMPTY, EMPTY, MARK),
    Register([], True, 1),
    Claim("w0", 1, [], True),
    Finished("w0", 1, "p", 0),
    Reopen(["p"], 0),
    Meet("w0", 1, 0, "h:1"),
    Stay("w0", 1, 1),
    Follow(0),
    State(),
    TakeSnapshot(),
    Ping(),
]


def request(request_id: int, message: Message) -> bytes:
    return frame(REQUEST, request_id, bytes(encode(message)))


def pull(size: int) -> Pull:
    return Pull(0, 1, 0, 1, memoryview(bytes(size)), 0)


@over_loops
@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_ask_its_own(loop: str, role: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, counters=counters)
        link = await open_link(await server.start("127.0.0.1:0"), peer=Peer(role, "me"))
        refused = 0
        for message in ASKS:
            _, answer = link.post(message)
            if type(message) not in MAY_ASK[role]:
                with pytest.raises(RefusedError, match=f"a {role} may not") as caught:
                    await answer
                assert (caught.value.code, caught.value.again) == ("forbidden", False)
                refused += 1
        await link.ask(Ping())
        assert counters.faults["forbidden"] == refused
        assert {type(one[2]) for one in requests.asked} == MAY_ASK[role] - {Ping}
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_sessions_are_opened_and_closed_once(loop: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, counters=counters)
        link = await open_link(await server.start("127.0.0.1:0"))
        assert await link.ask(State()) == STATE_IS
        (session,) = requests.opened_sessions
        assert (session.peer, counters.sessions, server.sessions) == (
            WORKER,
            1,
            {session.id: session},
        )
        await link.close()
        await until(lambda: bool(requests.closed_sessions))
        session.send(1, Done())  # its peer is gone: nothing happens
        session.close("again")
        await server.stop()
        assert requests.closed_sessions == [session]
        assert (counters.sessions, counters.sessions_total, +counters.faults) == (0, 1, {})

    run(loop, main())


@over_loops
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "malformed"),
        (b"\0" * 40, "malformed"),
        (frame(REQUEST, 1, b"early"), "order"),
        (frame(PROOF, 0, bytes(32)), "order"),
        (frame(HELLO, 0, bytes(98)), "malformed"),
        (frame(HELLO, 0, bytes(99)), "size"),
        (frame(HELLO, 0, bytes(98)) * 3, "malformed"),
    ],
)
def test_a_stranger_is_told_why_and_cut_off(loop: str, data: bytes, reason: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, counters=counters)
        raw = await RawPeer.connect(await server.start("127.0.0.1:0"))
        raw.writer.write(data)
        kind, body = await raw.hear()
        assert kind == ERROR
        assert decode_error(body).reason == reason
        await raw.close()
        await server.stop()
        assert counters.faults == {reason: 1}
        assert requests.opened_sessions == []

    run(loop, main())


@over_loops
def test_a_wrong_proof_costs_the_connection(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        raw = await RawPeer.connect(await server.start("127.0.0.1:0"))
        raw.writer.write(frame(HELLO, 0, bytes([4, 1]) + bytes(32) + b"a"))
        await raw.hear()
        raw.writer.write(frame(PROOF, 0, bytes(32)) + request(1, TakeSnapshot()))
        kind, body = await raw.hear()
        assert (kind, decode_error(body).reason) == (ERROR, "access")
        await raw.close()
        await server.stop()
        assert requests.opened_sessions == requests.asked == []

    run(loop, main())


@over_loops
def test_a_request_behind_the_proof_is_answered(loop: str) -> None:
    async def main() -> None:
        server = make_server(secrets=Secrets())
        raw = await RawPeer.settled(await server.start("127.0.0.1:0"), secrets=Secrets())
        for byte in request(1, Ping()):  # byte by byte
            raw.writer.write(bytes([byte]))
            await raw.writer.drain()
            await asyncio.sleep(0)
        kind, body = await raw.hear()
        assert (kind, decode(body)) == (ANSWER, Done())
        await raw.close()
        await server.stop()

    run(loop, main())


@over_loops
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (request(1, Ping())[:-1] + b"\xff", "checksum"),
        (frame(REQUEST, 1, b""), "message"),
        (frame(REQUEST, 1, b"\xc1"), "message"),
        (frame(REQUEST, 1, bytes(encode(Ping())) + b"\0"), "message"),
        (request(1, Done()), "message"),
        (request(1, Tick(5)), "message"),
        (request(2, Ping()) + request(2, Ping()), "order"),
        (request(2, Ping()) + request(1, Ping()), "order"),
        (frame(ANSWER, 1, bytes(encode(Done()))), "order"),
        (frame(REQUEST, 1, bytes(65_537)), "size"),
        (frame(REQUEST, 1, b"bomb", 65_537, flags=1), "size"),
        (frame(REQUEST, 1, b"bomb", 65_000, flags=1), "compression"),
        (frame(REQUEST, 1, b"bomb", 65_000, flags=2), "compression"),
        (frame(REQUEST, 1, b"bomb", 65_000, flags=9), "compression"),
    ],
)
def test_an_error_costs_one_connection_and_touches_nothing_else(
    loop: str, data: bytes, reason: str
) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(
            requests, counters=counters, limits=Limits(frame_bytes_max=65_536, linger_seconds=0.02)
        )
        address = await server.start("127.0.0.1:0")
        other = await open_link(address)
        raw = await RawPeer.settled(address)
        raw.writer.write(data)
        while (heard := await raw.hear())[0] == ANSWER:
            pass
        assert (heard[0], decode_error(heard[1]).reason) == (ERROR, reason)
        raw.writer.write(b"more" * 1000)  # thrown away
        assert await raw.ends() == b""
        await raw.close()
        assert await other.ask(State()) == STATE_IS
        assert [one for one in requests.asked if one[0].id != 1] == []
        assert counters.faults == {reason: 1}
        await until(lambda: len(server.sessions) == 1)
        assert server.inbox.bytes == 0
        await other.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_connection_that_breaks_within_a_frame_is_counted(loop: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, counters=counters)
        raw = await RawPeer.settled(await server.start("127.0.0.1:0"))
        raw.writer.write(request(1, pull(100_000))[:50_000])
        await raw.writer.drain()
        await until(lambda: server.inbox.bytes > 0)
        await raw.close()
        await until(lambda: bool(requests.closed_sessions))
        assert (counters.faults, server.inbox.bytes) == ({"lost": 1}, 0)
        await server.stop()

    run(loop, main())


@over_loops
def test_a_peer_that_never_says_hello_is_cut_off(loop: str) -> None:
    async def main() -> None:
        counters = Counters()
        server = make_server(limits=Limits(handshake_seconds=0.05), counters=counters)
        raw = await RawPeer.connect(await server.start("127.0.0.1:0"))
        kind, body = await raw.hear()
        assert (kind, decode_error(body).reason) == (ERROR, "silent")
        await raw.close()
        await server.stop()
        assert counters.faults == {"silent": 1}

    run(loop, main())


@over_loops
def test_a_half_open_peer_is_let_go(loop: str) -> None:
    """It neither reads nor closes: the error frame has no reader, the socket goes all the same."""

    async def main() -> None:
        server = make_server(limits=Limits(handshake_seconds=0.05, linger_seconds=0.05))
        address = await server.start("127.0.0.1:0")
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))):
            await until(lambda: bool(server._connections))
            await until(lambda: not server._connections)
        await server.stop()

    run(loop, main())


@over_loops
def test_a_settled_peer_that_falls_silent_is_cut_off(loop: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, limits=Limits(silence_seconds=0.1), counters=counters)
        raw = await RawPeer.settled(await server.start("127.0.0.1:0"))
        while (heard := await raw.hear())[0] != ERROR:
            pass
        assert decode_error(heard[1]).reason == "silent"
        await raw.close()
        await until(lambda: bool(requests.closed_sessions))
        assert counters.faults == {"silent": 1}
        await server.stop()

    run(loop, main())


@over_loops
def test_reading_pauses_while_too_many_requests_are_unanswered(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests, limits=Limits(requests_max=4))
        link = await open_link(await server.start("127.0.0.1:0"))
        answers = [link.post(pull(n))[1] for n in range(50)]
        await until(lambda: len(requests.asked) == 4)
        await asyncio.sleep(0.05)
        assert len(requests.asked) == requests.opened_sessions[0].unanswered == 4
        done = 0
        while done < 50:
            done += 1
            session, request_id, _ = await asked(requests, done)
            session.send(request_id, Pulled(done, 0, EMPTY))
            assert session.unanswered <= 4
        assert [answer.count for answer in await asyncio.gather(*answers)] == list(range(1, 51))  # type: ignore[union-attr]
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_unanswered_bodies_of_all_sessions_are_bounded(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        limits = Limits(frame_bytes_max=50_000, inbox_bytes_max=100_000)
        server = make_server(requests, limits=limits)
        address = await server.start("127.0.0.1:0")
        links = [await open_link(address, limits=limits) for _ in range(6)]
        answers = [link.post(pull(40_000))[1] for link in links for _ in range(5)]
        answered = 0
        while answered < len(answers):
            answered += 1
            session, request_id, _ = await asked(requests, answered)
            await asyncio.sleep(0.002)
            assert server.inbox.bytes <= 100_000
            assert len(requests.asked) - answered <= 1
            session.send(request_id, Done())
        await asyncio.gather(*answers)
        assert server.inbox.bytes == 0
        for link in links:
            await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_room_of_a_session_that_ends_is_given_to_those_who_wait(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        # what it holds is not read from: that it is gone is seen when something is said to it
        limits = Limits(frame_bytes_max=50_000, inbox_bytes_max=100_000, silence_seconds=0.2)
        server = make_server(requests, limits=limits)
        address = await server.start("127.0.0.1:0")
        first = await open_link(address, limits=limits)
        second = await open_link(address, limits=limits)
        lost = [first.post(pull(45_000))[1] for _ in range(3)]
        await until(lambda: len(requests.asked) == 2)
        _, answer = second.post(pull(45_000))
        await asyncio.sleep(0.02)
        assert len(requests.asked) == 2
        await first.close()
        await until(lambda: len(requests.asked) == 3)
        session, request_id, _ = requests.asked[2]
        session.send(request_id, Done())
        assert await answer == Done()
        assert {type(await failure(one)) for one in lost} == {PeerLostError}  # type: ignore[arg-type]
        await second.close()
        await server.stop()
        assert server.inbox.bytes == 0

    run(loop, main())


@over_loops
def test_a_busy_server_still_says_that_it_is_there(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        limits = Limits(silence_seconds=0.1, requests_max=1)
        server = make_server(requests, limits=limits)
        link = await open_link(await server.start("127.0.0.1:0"), limits=limits)
        answers = [link.post(pull(1))[1] for _ in range(2)]
        await until(lambda: bool(requests.asked))
        await asyncio.sleep(0.3)
        assert not link.lost.is_set()
        for index in range(2):
            session, request_id, _ = await asked(requests, index + 1)
            session.send(request_id, Done())
        assert await asyncio.gather(*answers) == [Done(), Done()]
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_requests_of_a_peer_that_reads_no_answers_are_not_read(loop: str) -> None:
    async def main() -> None:
        class Generous(Recorder):
            def received(self, session: Any, request_id: int, message: Message) -> None:
                super().received(session, request_id, message)
                session.send(request_id, Pulled(1, 0, memoryview(bytes(100_000))))

        requests = Generous()
        limits = Limits(write_bytes_high=100_000)
        server = make_server(requests, limits=limits)
        raw = await RawPeer.settled(await server.start("127.0.0.1:0"))
        raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
        raw.writer.write(b"".join(request(n + 1, pull(1)) for n in range(1000)))
        session = requests.opened_sessions[0]
        await until(lambda: not session.channel.flow.is_set())
        asked = len(requests.asked)
        await asyncio.sleep(0.05)
        assert len(requests.asked) - asked <= 1
        assert session.channel.backlog <= 64 * 110_000
        waiting = asyncio.create_task(session.writable())
        await asyncio.sleep(0)
        assert not waiting.done()
        raw.reader._transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(1000):
            assert (await raw.hear())[0] == ANSWER
        await waiting
        await raw.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_follower_that_reads_nothing_is_cut_off(loop: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        limits = Limits(
            write_bytes_high=10_000,
            outbox_bytes_max=1_000_000,
            linger_seconds=0.05,
        )
        server = make_server(requests, limits=limits, counters=counters)
        raw = await RawPeer.settled(await server.start("127.0.0.1:0"), Peer("follower", "f"))
        raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
        raw.writer.write(request(1, Follow(0)))
        session, request_id, _ = await asked(requests, 1)
        for lsn in range(10_000):
            session.send(request_id, FollowRecord(lsn, memoryview(bytes(10_000))))
            if session.channel.ended:
                break
            if lsn % 10 == 0:
                await asyncio.sleep(0)
        assert lsn < 9999
        await until(lambda: bool(requests.closed_sessions))
        assert counters.faults == {"slow": 1}
        await raw.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_an_answer_too_large_for_a_frame_is_refused_instead(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests, limits=Limits(frame_bytes_max=1000))
        link = await open_link(await server.start("127.0.0.1:0"))
        _, answer = link.post(pull(10))
        session, request_id, _ = await asked(requests, 1)
        session.send(request_id, Pulled(1, 0, memoryview(bytes(1000))))
        with pytest.raises(RefusedError, match="at most 1000 are allowed"):
            await answer
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_no_more_connections_than_allowed_are_taken(loop: str) -> None:
    async def main() -> None:
        server = make_server(limits=Limits(sessions_max=2))
        address = await server.start("127.0.0.1:0")
        links = [await open_link(address) for _ in range(2)]
        assert isinstance(await failure(open_link(address)), PeerLostError)
        await links.pop().close()
        await until(lambda: len(server._connections) == 1)
        links.append(await open_link(address))
        for link in links:
            await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_failure_of_this_process_is_reported_and_ends_the_session(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        address = await server.start("127.0.0.1:0")
        link, other = await open_link(address), await open_link(address)
        requests.fails = KeyError("ours")
        heard: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: heard.append(context["exception"])
        )
        with pytest.raises(PeerLostError):
            await link.ask(State())
        assert [type(error) for error in heard] == [KeyError]
        requests.fails = None
        assert await other.ask(State()) == STATE_IS
        await other.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_stopping_tells_every_peer(loop: str) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, counters=counters)
        address = await server.start("127.0.0.1:0")
        link = await open_link(address)
        _, answer = link.post(pull(1))
        await until(lambda: bool(requests.asked))
        await server.stop()
        error = await failure(answer)  # type: ignore[arg-type]
        assert isinstance(error, PeerLostError)
        assert "the server stops" in str(error)
        assert link.lost.is_set()
        assert len(requests.closed_sessions) == 1
        assert +counters.faults == {}
        assert isinstance(await failure(open_link(address)), PeerLostError)

    run(loop, main())


@over_loops
def test_nobody_without_secrets_listens_to_the_world(loop: str) -> None:
    async def main() -> None:
        for listen in (":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0"):
            with pytest.raises(ConfigError, match="would let everybody"):
                await make_server(secrets=Secrets()).start(listen)
        server = make_server()
        assert (await server.start(":0")).rpartition(":")[2] != "0"
        await server.stop()

    run(loop, main())


@over_loops
def test_a_port_that_is_taken_is_named(loop: str) -> None:
    async def main() -> None:
        server = make_server()
        address = await server.start("127.0.0.1:0")
        with pytest.raises(ResourceError, match=f"{address}: the port is in use"):
            await make_server().start(address)
        with pytest.raises(ConfigError, match="not an address of this machine"):
            await make_server().start("192.0.2.1:0")
        await server.stop()

    run(loop, main())


def test_limits_must_let_a_frame_in() -> None:
    with pytest.raises(AssertionError):
        replace(Limits(), inbox_bytes_max=1000)


def test_a_fault_is_an_answer() -> None:
    assert decode(encode(Fault("busy", "later", again=True))) == Fault("busy", "later", again=True)
