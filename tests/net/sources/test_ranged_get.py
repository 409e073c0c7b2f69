"""The small client of ranged GETs, against servers that say exactly what a test tells them."""

import asyncio
import ssl

import pytest

from streamlearn.net.sources.ranged_get import Answer, RangedGets, Target

BODY = bytes(range(256)) * 40
PARTIAL = (
    b'HTTP/1.1 206 Partial Content\r\nETag: "e"\r\ncontent-length: %d\r\n\r\n' % len(BODY)
) + BODY


class Script:
    """A server: an entry of ``answers`` a request, written in pieces; b"" closes."""

    def __init__(self):
        self.answers = []
        self.requests = []
        self.connections = 0
        self._writers = []

    async def serve(self, reader, writer):
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                for piece in self.answers.pop(0):
                    if not piece:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/b/a%20b?x=1"

    async def stop(self):
        self.server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0.01)


@pytest.fixture
async def script():
    made = Script()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def gets():
    made = RangedGets(
        ssl.create_default_context(), connections_max=4, connect_seconds=5, read_seconds=0.3
    )
    yield made
    made.close()
    await asyncio.sleep(0)


def target(size=10_240):
    return Target(memoryview(bytearray(size)))


async def test_body_goes_into_the_target(script, gets):
    script.answers = [[PARTIAL]]
    wanted = target()
    answer = await gets.get(script.url, {"Range": "bytes=0-9"}, wanted)
    assert answer == Answer(206, {"etag": '"e"', "content-length": str(len(BODY))}, b"")
    assert (bytes(wanted.into), wanted.filled, wanted.failure) == (BODY, len(BODY), None)
    request = script.requests[0].decode()
    assert request.startswith("GET /b/a%20b?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nRange: bytes=0-9\r\n" in request


@pytest.mark.parametrize("step", [1, 7, 89, 90, 91, 5000])
async def test_answer_may_come_in_pieces_of_any_size(script, gets, step):
    text = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 500\r\nX: y\r\n\r\n"
    ) + BODY[:500]
    script.answers = [[text[i : i + step] for i in range(0, len(text), step)]]
    wanted = target(500)
    await gets.get(script.url, {}, wanted)
    assert bytes(wanted.into) == BODY[:500]


async def test_body_shorter_than_the_target_leaves_the_rest_alone(script, gets):
    script.answers = [[b"HTTP/1.1 206 P\r\nContent-Length: 3\r\n\r\nabc"]]
    wanted = target(5)
    await gets.get(script.url, {}, wanted)
    assert (bytes(wanted.into), wanted.filled) == (b"abc\0\0", 3)


async def test_connection_is_used_again(script, gets):
    script.answers = [[PARTIAL]] * 3
    for _ in range(3):
        await gets.get(script.url, {}, target())
    assert (script.connections, len(script.requests)) == (1, 3)


async def test_connection_that_is_to_close_is_not_used_again(script, gets):
    script.answers = [[PARTIAL.replace(b"ETag", b"Connection: close\r\nETag")]] * 2
    for _ in range(2):
        await gets.get(script.url, {}, target())
    assert script.connections == 2


async def test_connection_closed_at_rest_is_replaced(script, gets):
    script.answers = [[PARTIAL, b""], [PARTIAL]]
    await gets.get(script.url, {}, target())
    await gets.get(script.url, {}, target())
    assert script.connections == 2


async def test_connection_closed_on_the_next_request_is_replaced(script, gets):
    script.answers = [[PARTIAL], [b""], [PARTIAL]]
    await gets.get(script.url, {}, target())
    wanted = target()
    await gets.get(script.url, {}, wanted)
    assert wanted.filled == len(BODY)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\n\r\n<Error>words",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"7\r\n<Error>\r\n5;x=y\r\nwords\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
async def test_error_is_kept_whole(script, gets, answer, step):
    script.answers = [[answer[i : i + step] for i in range(0, len(answer), step)], [PARTIAL]]
    wanted = target()
    found = await gets.get(script.url, {}, wanted)
    assert (found.status, found.body, wanted.used) == (403, b"<Error>words", False)
    await gets.get(script.url, {}, wanted)
    assert bytes(wanted.into) == BODY


async def test_error_may_end_with_the_connection(script, gets):
    script.answers = [[b"HTTP/1.0 500 Oops\r\n\r\nsome", b"thing", b""]]
    found = await gets.get(script.url, {}, target())
    assert (found.status, found.body) == (500, b"something")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n\r\n" + BODY,
        b"HTTP/1.1 206 P\r\nContent-Length: 99999\r\n\r\n" + BODY,
        b"HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 500 P\r\nContent-Length: 99999\r\n\r\n" + BODY,
    ],
)
async def test_other_answers_are_left_to_another_client(script, gets, answer):
    script.answers = [[answer]]
    wanted = target()
    assert await gets.get(script.url, {}, wanted) is None
    assert (wanted.used, bytes(wanted.into)) == (False, bytes(len(BODY)))


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 206 P\r\nContent-Length: 3\r\n\r\nabcdef",
        b"HTTP/1.1 403 P\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n0\r\n\r\n",
        b"HTTP/1.1 206 P\r\n" + b"X: y\r\n" * 20_000,
    ],
)
async def test_nonsense_is_a_connection_error(script, gets, answer):
    script.answers = [[answer]]
    with pytest.raises(ConnectionError):
        await gets.get(script.url, {}, target())


async def test_broken_body_says_how_far_it_came(script, gets):
    script.answers = [[PARTIAL[:1000], b""]]
    wanted = target()
    await gets.get(script.url, {}, wanted)
    came = 1000 - (len(PARTIAL) - len(BODY))
    assert (wanted.filled, wanted.failure.retry) == (came, "truncated")
    assert bytes(wanted.into[:came]) == BODY[:came]


async def test_silence_in_a_body_is_a_time_out_that_keeps_what_came(script, gets):
    script.answers = [[PARTIAL[:1000]]]
    wanted = target()
    await gets.get(script.url, {}, wanted)
    assert (wanted.failure.retry, wanted.filled > 0) == ("timeout", True)


async def test_silence_before_an_answer_is_a_time_out(script, gets):
    script.answers = [[]]
    with pytest.raises(TimeoutError):
        await gets.get(script.url, {}, target())


async def test_cancelled_request_writes_no_more(script, gets):
    script.answers = [[PARTIAL[:1000], *[b"late"] * 100]]
    wanted = target()
    task = asyncio.create_task(gets.get(script.url, {}, wanted))
    while not wanted.filled:  # noqa: ASYNC110 - bytes arrive without an event
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = bytes(wanted.into)
    await asyncio.sleep(0.05)
    assert bytes(wanted.into) == before


async def test_header_that_would_end_the_line_is_not_sent(script, gets):
    assert await gets.get(script.url, {"If-Match": '"e"\r\nX: y'}, target()) is None
    assert script.requests == []


async def test_requests_at_a_time_are_bounded(script, gets):
    script.answers = [[PARTIAL]] * 12
    wanted = [target() for _ in range(12)]
    await asyncio.gather(*(gets.get(script.url, {}, one) for one in wanted))
    assert script.connections <= 4
    assert all(bytes(one.into) == BODY for one in wanted)
