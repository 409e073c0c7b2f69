"""The HTTP endpoint, asked over real connections."""

import asyncio
import io
import json
import math
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from streamlearn.errors import ConfigError, ResourceError
from streamlearn.metrics import EXAMPLES, Metrics
from streamlearn.net import http
from streamlearn.net.http import Answers, AskedError, HttpServer, parse_listen


class Node:
    """What the server asks, as a test sets it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, "1.0")
        self.ready = (False, "compiling kernels 3/7")
        self.status: Callable[[], dict[str, Any]] = lambda: {"state": "compiling"}
        self.questions: list[Mapping[str, Any]] = []

    async def echo(self, questions: Sequence[Mapping[str, Any]]) -> Answers:
        self.questions += questions
        for question in questions:
            if "wrong" in question:
                raise AskedError(418, f"wrong is {question['wrong']!r}")
        return Answers([{"asked": dict(question)} for question in questions], {"model": 7})

    def server(self, listen: str = "127.0.0.1:0") -> HttpServer:
        return HttpServer(
            listen,
            registry=self.registry,
            status=lambda: self.status(),
            ready=lambda: self.ready,
            asked={"/echo": self.echo},
        )


@pytest_asyncio.fixture(loop_scope="function")
async def served() -> AsyncIterator[tuple[Node, aiohttp.ClientSession]]:
    node = Node()
    server = node.server()
    address = await server.start()
    async with aiohttp.ClientSession(f"http://{address}") as session:
        yield node, session
    await server.stop()


Served = tuple[Node, aiohttp.ClientSession]


async def test_metrics_are_those_of_the_registry_now(served: Served) -> None:
    node, session = served
    for examples in (5, 8):
        node.metrics.set(EXAMPLES, examples)
        async with session.get("/metrics") as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            families = {f.name: f for f in text_string_to_metric_families(await response.text())}
        assert families["streamlearn_examples"].samples[0].value == examples


async def test_metrics_are_openmetrics_for_who_asks_for_it(served: Served) -> None:
    _, session = served
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with session.get("/metrics", headers=accept) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await response.text()).endswith("# EOF\n")


@pytest.mark.full
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_has_nothing_to_say_against_the_metrics(served: Served) -> None:
    node, session = served
    node.metrics.set_state("learning")
    async with session.get("/metrics") as response:
        text = await response.read()
    own = b"".join(line + b"\n" for line in text.splitlines() if b"process_" not in line)
    check = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=-1, stdout=-1, stderr=-1
    )
    out, err = await check.communicate(own)
    assert (check.returncode, out + err) == (0, b"")


async def test_node_lives_while_it_is_not_ready(served: Served) -> None:
    node, session = served
    for ready, status in (
        ((False, "compiling kernels 3/7"), 503),
        ((True, "learning"), 200),
        ((False, "draining"), 503),
    ):
        node.ready = ready
        async with session.get("/readyz") as response:
            assert (response.status, await response.text()) == (status, ready[1] + "\n")
        async with session.get("/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")


async def test_status_is_json_without_nan(served: Served) -> None:
    node, session = served
    node.status = lambda: {"progress": {"loss": math.nan, "examples": 3}, "positions": []}
    async with session.get("/status") as response:
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        text = await response.text()
    assert json.loads(text) == {"progress": {"loss": None, "examples": 3}, "positions": []}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/status", 405)]
)
async def test_anything_else_is_refused(
    served: Served, method: str, path: str, status: int
) -> None:
    _, session = served
    async with session.request(method, path) as response:
        assert response.status == status
        if status == 404:
            assert "only /metrics, /healthz, /readyz, /status" in await response.text()


async def test_head_is_answered_without_a_body(served: Served) -> None:
    _, session = served
    async with session.head("/healthz") as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_server_can_be_restarted_on_its_port_with_connections_open() -> None:
    node = Node()
    server = node.server()
    address = await server.start()
    async with aiohttp.ClientSession(f"http://{address}") as session:
        async with session.get("/healthz") as response:
            assert response.status == 200
        await server.stop()
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("/healthz")
        again = node.server(address)
        assert await again.start() == address
        async with session.get("/healthz") as response:
            assert response.status == 200
        await again.stop()


async def test_stop_is_harmless_twice_and_before_start() -> None:
    server = Node().server()
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


async def test_half_a_request_does_not_hold_up_the_stop() -> None:
    server = Node().server()
    host, port = parse_listen(await server.start())
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
    await writer.drain()
    async with asyncio.timeout(10):
        await server.stop()
    writer.close()


async def test_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ResourceError, match="the port is in use") as failure:
            await Node().server(listen).start()
        assert listen in failure.value.message
        assert failure.value.hint


async def test_host_of_another_machine_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="not an address of this machine"):
        await Node().server("192.0.2.1:0").start()


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("localhost:0", ("localhost", 0)),
        (":80", ("", 80)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_listen_is_host_and_port(listen: str, expected: tuple[str, int]) -> None:
    assert parse_listen(listen) == expected


@pytest.mark.parametrize(
    "listen",
    ["", "9100", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80", "[h]:٣", "[::1]"],
)
def test_what_is_not_host_and_port_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_listen(listen)


async def test_a_question_stands_in_a_query(served: Served) -> None:
    _, session = served
    async with session.get("/echo?user=%C3%A4%2F1&n=3&out=a&out=b") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        asked = {"user": "ä/1", "n": "3", "out": ["a", "b"]}
        assert await response.json() == {"asked": asked, "model": 7}


async def test_questions_stand_in_a_body(served: Served) -> None:
    _, session = served
    questions = [{"user": 1, "out": ["a"]}, {}]
    async with session.post("/echo", json=questions) as response:
        assert response.status == 200
        expected = {"answers": [{"asked": question} for question in questions], "model": 7}
        assert await response.json() == expected
    async with session.post("/echo", json=[]) as response:
        assert await response.json() == {"answers": [], "model": 7}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b'{"user": 1}', 400, "expected a list of objects"),
        (b"[1]", 400, "expected a list of objects"),
        (b"[{},{},{}]", 400, "3 questions, at most 2 at once"),
        (b'[{"wrong": "x"}]', 418, "wrong is 'x'"),
        (b"[" + b" " * (1 << 20) + b"]", 413, "the questions are too long"),
    ],
)
async def test_what_cannot_be_answered_is_said_as_json(
    served: Served, monkeypatch: pytest.MonkeyPatch, body: bytes, status: int, said: str
) -> None:
    _, session = served
    monkeypatch.setattr(http, "QUESTIONS_MAX", 2)
    async with session.post("/echo", data=io.BytesIO(body)) as response:
        assert response.status == status
        assert response.headers["Cache-Control"] == "no-store"
        assert said in (await response.json())["error"]


async def test_a_wrong_question_in_a_query_is_said_as_json(served: Served) -> None:
    _, session = served
    async with session.get("/echo?wrong=x") as response:
        assert (response.status, await response.json()) == (418, {"error": "wrong is 'x'"})
    async with session.get("/ech") as response:
        assert response.status == 404
        assert (await response.text()).endswith("/status, /echo\n")
