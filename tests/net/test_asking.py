"""Asking processes of their status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streamlearn.net import asking as module
from streamlearn.net.asking import Asking
from streamlearn.net.http import HttpServer


@pytest.fixture
async def asking() -> AsyncIterator[Asking]:
    one = Asking()
    yield one
    await one.aclose()


async def serve(status: dict[str, Any], *, ready: bool) -> HttpServer:
    server = HttpServer(
        "127.0.0.1:0",
        registry=CollectorRegistry(),
        status=lambda: status,
        ready=lambda: (ready, "because"),
    )
    await server.start()
    return server


async def test_a_process_says_whether_it_is_ready_and_how_it_is(asking: Asking) -> None:
    well = await serve({"totals": {"loss": float("nan")}}, ready=True)
    busy = await serve({}, ready=False)
    assert await asking.is_ready(well.address)
    assert not await asking.is_ready(busy.address)
    assert await asking.status(well.address) == {"totals": {"loss": None}}
    await asking.aclose()
    await well.stop()
    await busy.stop()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{x}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b'{"a":"' + b"x" * 1992 + b'"}',
    ],
)
async def test_no_answer_and_a_strange_one_are_none(
    asking: Asking, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STATUS_BYTES_MAX", 1000)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    assert await asking.status(f"{host}:{port}") is None
    server.close()
    await server.wait_closed()


async def test_a_port_where_nobody_listens_is_not_ready(asking: Asking) -> None:
    assert not await asking.is_ready("127.0.0.1:1")
    assert await asking.status("127.0.0.1:1") is None


async def test_a_process_that_does_not_answer_is_not_waited_for(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS_MAX", 0.05)
    done = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()
        await writer.wait_closed()

    silent = await asyncio.start_server(wait, "127.0.0.1", 0)
    host, port = silent.sockets[0].getsockname()
    assert await asking.status(f"{host}:{port}") is None
    done.set()
    silent.close()
    await silent.wait_closed()
    await asyncio.sleep(0.01)
