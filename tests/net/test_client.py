from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamlearn.errors import (
    AccessError,
    ClusterError,
    ConfigError,
    PeerLostError,
    ProtocolError,
    RefusedError,
)
from streamlearn.net.connection import Peer, encode_error
from streamlearn.net.counters import Counters
from streamlearn.net.frame import ALIVE, ANSWER, ERROR, HELLO, REQUEST, WELCOME
from streamlearn.net.limits import Limits
from streamlearn.net.security import Secrets, TlsFiles
from streamlearn.protocol import (
    Answer,
    Done,
    Fault,
    Follow,
    FollowRecord,
    Ping,
    Pull,
    Pulled,
    State,
    TakeSnapshot,
    encode,
)
from tests.net.certificates import Authority
from tests.net.wire_parts import (
    SECRETS,
    STATE_IS,
    TOKEN,
    WELCOME_IS,
    WORKER,
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


class Impostor:
    """Listens, answers each connection with given bytes, and keeps what it hears."""

    def __init__(self, says: bytes, *, ends: bool = False) -> None:
        self._says = says
        self._ends = ends
        self.heard = bytearray()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._says)
        try:
            if not self._ends:
                while data := await reader.read(1 << 16):
                    self.heard += data
        except ConnectionResetError:
            pass
        writer.close()

    async def stop(self) -> None:
        self._server.close()
        await asyncio.sleep(0.01)


@over_loops
def test_a_link_knows_whom_it_reached(loop: str) -> None:
    async def main() -> None:
        server, counters = make_server(), Counters()
        link = await open_link(await server.start("127.0.0.1:0"), counters=counters)
        assert link.welcome == WELCOME_IS
        assert (counters.links, counters.links_total) == (1, 1)
        assert await link.ask(State()) == STATE_IS
        assert counters.requests == {"State": 1}
        await link.close()
        assert link.lost.is_set()
        assert link.error is None
        assert counters.links == 0
        await server.stop()

    run(loop, main())


@over_loops
@pytest.mark.parametrize("compression", ["none", "lz4", "zstd", "auto"])
@pytest.mark.parametrize("size", [0, 10_000, 300_000, 3_000_000])
def test_large_requests_and_answers_come_whole(loop: str, compression: str, size: int) -> None:
    async def main() -> None:
        requests, counters = Recorder(), Counters()
        server = make_server(requests, compression=compression, counters=counters)
        link = await open_link(
            await server.start("127.0.0.1:0"), compression=compression, counters=counters
        )
        keys = (bytes(range(256)) * 12_000)[:size]
        futures = [link.post(Pull(0, 1, clock, 1, memoryview(keys), 0))[1] for clock in range(5)]
        for index in range(5):
            session, request_id, message = await asked(requests, index + 1)
            assert isinstance(message, Pull)
            assert (message.clock, bytes(message.keys)) == (index, keys)
            session.send(request_id, Pulled(index, 0, message.keys))
        for index, answer in enumerate(await asyncio.gather(*futures)):
            assert isinstance(answer, Pulled)
            assert (answer.count, bytes(answer.values)) == (index, keys)
        if size and compression in {"lz4", "zstd"}:
            assert counters.bytes_out < counters.plain_bytes_out / 2
        assert counters.bytes_in == counters.bytes_out
        assert counters.plain_bytes_in == counters.plain_bytes_out
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_answers_come_in_any_order(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"))
        posted = [link.post(Pull(0, 1, n, 1, memoryview(b""), 0)) for n in range(10)]
        assert [request_id for request_id, _ in posted] == list(range(1, 11))
        assert link.unanswered == 10
        await until(lambda: len(requests.asked) == 10)
        for session, request_id, message in reversed(requests.asked):
            assert isinstance(message, Pull)
            session.send(request_id, Pulled(message.clock, 0, memoryview(b"")))
        for n, (_, answer) in enumerate(posted):
            assert await answer == Pulled(n, 0, memoryview(b""))
        assert link.unanswered == 0
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_refusal_is_an_error_with_its_code(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"), peer=Peer("admin", "a"))
        _, answer = link.post(TakeSnapshot())
        session, request_id, _ = await asked(requests, 1)
        session.send(request_id, Fault("storage", "no\nroom", again=True))
        with pytest.raises(RefusedError, match=r"no\?room") as caught:
            await answer
        assert (caught.value.code, caught.value.again) == ("storage", True)
        assert await link.ask(Ping()) == Done()
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_an_answer_that_nobody_waits_for_any_more_is_dropped(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"))
        _, answer = link.post(Pull(0, 1, 0, 1, memoryview(b""), 0))
        await until(lambda: bool(requests.asked))
        answer.cancel()
        session, request_id, _ = requests.asked[0]
        session.send(request_id, Done())
        assert await link.ask(Ping()) == Done()
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_subscription_has_many_answers_and_can_be_paused(loop: str) -> None:
    async def main() -> None:
        requests, got = Recorder(), list[Answer]()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"), peer=Peer("follower", "f"))
        link.subscribe(Follow(0), got.append)
        session, request_id, _ = await asked(requests, 1)
        for lsn in range(3):
            session.send(request_id, FollowRecord(lsn, memoryview(b"r")))
        await until(lambda: len(got) == 3)
        link.pause()
        session.send(request_id, FollowRecord(3, memoryview(b"r")))
        await asyncio.sleep(0.02)
        assert len(got) == 3
        link.resume()
        session.send(request_id, Fault("draining", "goodbye", again=True))
        await until(lambda: len(got) == 5)
        assert got[3:] == [
            FollowRecord(3, memoryview(b"r")),
            Fault("draining", "goodbye", again=True),
        ]
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_pausing_within_a_callback_holds_what_has_been_read_already(loop: str) -> None:
    async def main() -> None:
        requests, got = Recorder(), list[Answer]()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"), peer=Peer("follower", "f"))

        def take(answer: Answer) -> None:
            got.append(answer)
            link.pause()

        link.subscribe(Follow(0), take)
        session, request_id, _ = await asked(requests, 1)
        for lsn in range(5):
            session.send(request_id, FollowRecord(lsn, memoryview(b"r")))
        for count in range(1, 6):
            await until(lambda count=count: len(got) == count)
            await asyncio.sleep(0.005)
            assert len(got) == count
            link.resume()
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_requests_without_an_answer_fail_when_the_link_ends(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"))
        _, waited = link.post(Pull(0, 1, 0, 1, memoryview(b""), 0))
        link.post(Pull(0, 1, 0, 1, memoryview(b""), 0))  # nobody waits for this one
        await until(lambda: len(requests.asked) == 2)
        requests.opened_sessions[0].channel.abort()
        assert isinstance(await failure(waited), PeerLostError)  # type: ignore[arg-type]
        assert link.lost.is_set()
        _, late = link.post(Ping())
        assert isinstance(await failure(late), PeerLostError)  # type: ignore[arg-type]
        assert isinstance(await failure(link.ask(Ping())), PeerLostError)
        with pytest.raises(PeerLostError):
            link.subscribe(Follow(0), print)
        await link.writable()
        link.pause()
        link.resume()
        await link.close()
        await server.stop()
        gc.collect()

    run(loop, main())


@over_loops
def test_a_cluster_keeps_to_itself(loop: str) -> None:
    async def main() -> None:
        server = make_server(cluster="other")
        error = await failure(open_link(await server.start("127.0.0.1:0")))
        assert isinstance(error, ClusterError)
        await server.stop()

    run(loop, main())


@over_loops
@pytest.mark.parametrize(
    "secrets", [Secrets(), Secrets({"": b"x" * 32}), Secrets({"worker": TOKEN[::-1]})]
)
def test_a_wrong_or_missing_token_is_an_access_error(loop: str, secrets: Secrets) -> None:
    async def main() -> None:
        server, counters = make_server(), Counters()
        address = await server.start("127.0.0.1:0")
        error = await failure(open_link(address, secrets=secrets, counters=counters))
        assert isinstance(error, AccessError)
        assert counters.faults == {"access": 1}
        await server.stop()

    run(loop, main())


@over_loops
def test_a_server_that_cannot_prove_itself_is_told_nothing(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests, secrets=Secrets())
        error = await failure(open_link(await server.start("127.0.0.1:0")))
        assert isinstance(error, AccessError)
        assert "server does not have the token" in str(error)
        await server.stop()
        assert requests.opened_sessions == []

    run(loop, main())


@over_loops
@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100, ProtocolError),
        (frame(WELCOME, 0, WELCOME_IS.encode()), PeerLostError),
        (frame(HELLO, 0, b""), PeerLostError),
        (frame(ALIVE, 0, b""), PeerLostError),
        (frame(ERROR, 0, encode_error("access", "no")), AccessError),
        (frame(ERROR, 0, encode_error("cluster", "no")), ClusterError),
        (frame(ERROR, 0, encode_error("version", "no")), ProtocolError),
        (frame(ERROR, 0, encode_error("draining", "no")), PeerLostError),
        (frame(ERROR, 0, b""), ProtocolError),
        (b"SLRN" + bytes(300), PeerLostError),
        (b"", PeerLostError),
    ],
)
def test_what_is_no_server_of_ours_is_refused(loop: str, says: bytes, kind: type) -> None:
    async def main() -> None:
        impostor = Impostor(says, ends=not says)
        error = await failure(open_link(await impostor.start()))
        assert isinstance(error, kind)
        await impostor.stop()

    run(loop, main())


@over_loops
def test_a_server_that_says_nothing_is_left(loop: str) -> None:
    async def main() -> None:
        impostor = Impostor(b"")
        error = await failure(
            open_link(await impostor.start(), limits=Limits(handshake_seconds=0.05))
        )
        assert isinstance(error, PeerLostError)
        await impostor.stop()

    run(loop, main())


@over_loops
def test_nobody_there_is_a_lost_peer(loop: str) -> None:
    async def main() -> None:
        server = make_server()
        address = await server.start("127.0.0.1:0")
        await server.stop()
        error = await failure(open_link(address))
        assert isinstance(error, PeerLostError)
        assert error.cause
        with pytest.raises(ConfigError):
            await open_link("nowhere")

    run(loop, main())


@over_loops
def test_opening_can_be_cancelled(loop: str) -> None:
    async def main() -> None:
        impostor = Impostor(b"")
        task = asyncio.create_task(open_link(await impostor.start()))
        await until(lambda: bool(impostor.heard))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        await impostor.stop()
        del task
        gc.collect()

    run(loop, main())


@over_loops
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (frame(ANSWER, 99, bytes(encode(Done()))), "which is not open"),
        (frame(ANSWER, 1, bytes(encode(Ping()))), "is no answer"),
        (frame(ANSWER, 1, b"\xff"), "cannot be read"),
        (frame(REQUEST, 1, bytes(encode(Ping()))), "expected answer or alive"),
    ],
)
def test_an_answer_that_is_none_ends_the_link(loop: str, data: bytes, kind: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests)
        link = await open_link(await server.start("127.0.0.1:0"))
        _, answer = link.post(Pull(0, 1, 0, 1, memoryview(b""), 0))
        await until(lambda: bool(requests.asked))
        requests.opened_sessions[0].channel._transport.write(data)
        error = await failure(answer)  # type: ignore[arg-type]
        assert isinstance(error, PeerLostError)
        assert kind in str(error)
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_server_that_falls_silent_is_lost(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests, limits=Limits(silence_seconds=1000))
        counters = Counters()
        link = await open_link(
            await server.start("127.0.0.1:0"),
            limits=Limits(silence_seconds=0.1),
            counters=counters,
        )
        await link.lost.wait()
        assert "said nothing for 0.1 s" in str(link.error)
        assert counters.faults == {"silent": 1}
        await server.stop()

    run(loop, main())


@over_loops
def test_idle_links_stay_up(loop: str) -> None:
    async def main() -> None:
        limits = Limits(silence_seconds=0.1)
        server = make_server(limits=limits)
        link = await open_link(await server.start("127.0.0.1:0"), limits=limits)
        await asyncio.sleep(0.35)
        assert not link.lost.is_set()
        assert await link.ask(Ping()) == Done()
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_link_that_is_ahead_of_its_server_is_not_writable(loop: str) -> None:
    async def main() -> None:
        requests = Recorder()
        server = make_server(requests, limits=Limits(requests_max=2))
        link = await open_link(
            await server.start("127.0.0.1:0"), limits=Limits(write_bytes_high=100_000)
        )
        answers = []
        body = memoryview(bytes(100_000))

        async def fill() -> None:
            for clock in range(200):
                await link.writable()
                answers.append(link.post(Pull(0, 1, clock, 1, body, 0))[1])
                await asyncio.sleep(0)

        filling = asyncio.create_task(fill())
        await until(lambda: not link._channel.flow.is_set())
        await asyncio.sleep(0.05)
        assert len(answers) < 200
        assert link._channel.backlog < 1_000_000
        done = 0
        while done < 200:
            done += 1
            session, request_id, _ = await asked(requests, done)
            session.send(request_id, Done())
        await filling
        await asyncio.gather(*answers)
        await link.close()
        await server.stop()

    run(loop, main())


def test_a_request_too_large_for_a_frame_is_this_sides_mistake() -> None:
    async def main() -> None:
        server = make_server()
        link = await open_link(
            await server.start("127.0.0.1:0"), limits=Limits(frame_bytes_max=1000)
        )
        with pytest.raises(ValueError, match="at most 1000"):
            link.post(Pull(0, 1, 0, 1, memoryview(bytes(1000)), 0))
        assert await link.ask(Ping()) == Done()
        await link.close()
        await server.stop()

    run("asyncio", main())


@over_loops
def test_certificates_of_one_authority_open_a_link(loop: str, tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")

    async def main() -> None:
        requests = Recorder()
        server = make_server(requests, secrets=ours.secrets("s0", "shard"))
        address = await server.start("127.0.0.1:0")
        link = await open_link(address, secrets=ours.secrets("w0", "worker"))
        keys = bytes(2_000_000)
        _, answer = link.post(Pull(0, 1, 0, 1, memoryview(keys), 0))
        session, request_id, message = await asked(requests, 1)
        assert isinstance(message, Pull)
        session.send(request_id, Pulled(1, 0, message.keys))
        assert await answer == Pulled(1, 0, memoryview(keys))
        assert session.peer == WORKER
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
def test_a_certificate_and_a_token_are_both_needed(loop: str, tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    shard, worker = ours.issue("s0", "shard"), ours.issue("w0", "worker")

    async def main() -> None:
        server = make_server(secrets=Secrets(SECRETS.tokens, shard))
        address = await server.start("127.0.0.1:0")
        link = await open_link(address, secrets=Secrets(SECRETS.tokens, worker))
        await link.close()
        assert isinstance(
            await failure(open_link(address, secrets=Secrets(tls=worker))), AccessError
        )
        await server.stop()

    run(loop, main())


async def _tls_failure(server_files: Secrets, client: Secrets, peer: Peer = WORKER) -> Exception:
    requests = Recorder()
    server = make_server(requests, secrets=server_files)
    address = await server.start("127.0.0.1:0")
    error = await failure(open_link(address, secrets=client, peer=peer))
    await server.stop()
    assert requests.opened_sessions == []
    return error


@over_loops
@pytest.mark.parametrize(
    "case", ["role", "foreign client", "foreign server", "host", "expired", "server role"]
)
def test_a_certificate_that_is_not_right_is_refused(loop: str, tmp_path: Path, case: str) -> None:
    ours, foreign = Authority(tmp_path, "ours"), Authority(tmp_path, "foreign")
    server, client = ours.issue("s0", "shard"), ours.issue("w0", "worker")
    peer = WORKER
    if case == "role":
        peer = Peer("admin", "a")
    elif case == "foreign client":
        files = foreign.issue("w0", "worker")
        client = TlsFiles(client.authority, files.certificate, files.key)
    elif case == "foreign server":
        files = foreign.issue("s0", "shard")
        server = TlsFiles(server.authority, files.certificate, files.key)
    elif case == "host":
        server = ours.issue("s1", "shard", host="192.0.2.1")
    elif case == "expired":
        client = ours.issue("w1", "worker", until=datetime(2021, 1, 1, tzinfo=UTC))
    else:
        server = ours.issue("w2", "worker")

    async def main() -> None:
        error = await _tls_failure(Secrets(tls=server), Secrets(tls=client), peer)
        if isinstance(error, PeerLostError):
            # the server has noticed after this side had finished, and says no more than that
            assert case in {"foreign client", "expired"}
            assert "refused this side's certificate" in str(error.hint)
        else:
            assert isinstance(error, AccessError)

    run(loop, main())


@over_loops
def test_the_host_of_a_certificate_can_be_left_unchecked(loop: str, tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    worker = ours.issue("w0", "worker")
    unchecked = TlsFiles(worker.authority, worker.certificate, worker.key, check_host=False)

    async def main() -> None:
        server = make_server(secrets=ours.secrets("s0", "shard", host="192.0.2.1"))
        link = await open_link(await server.start("127.0.0.1:0"), secrets=Secrets(tls=unchecked))
        await link.close()
        await server.stop()

    run(loop, main())


@over_loops
@pytest.mark.parametrize("tls_at", ["server", "client"])
def test_tls_at_one_side_only_opens_nothing(loop: str, tmp_path: Path, tls_at: str) -> None:
    ours = Authority(tmp_path, "ours")
    shard, worker = ours.secrets("s0", "shard"), ours.secrets("w0", "worker")

    async def main() -> None:
        server = make_server(
            secrets=shard if tls_at == "server" else SECRETS, limits=Limits(handshake_seconds=0.2)
        )
        error = await failure(
            open_link(
                await server.start("127.0.0.1:0"),
                secrets=worker if tls_at == "client" else SECRETS,
                limits=Limits(handshake_seconds=0.2),
            )
        )
        assert isinstance(error, AccessError | PeerLostError | ProtocolError)
        await server.stop()

    run(loop, main())
