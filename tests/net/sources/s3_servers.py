"""S3 servers for tests: real ones on free loopback ports, and a front that spoils their answers.

Their fixtures are known to every test of this folder by its conftest.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from streamlearn.config import SourceConfig
from streamlearn.net.sources.aws import AwsService
from streamlearn.net.sources.s3 import S3Store

BUCKET = "logs"
KEY_ID = "AKIDLOOPBACKTEST0001"

_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
)


@pytest.fixture
def bare_environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment in which AWS knows nothing; returns the folder of its two files."""
    for name in _AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws_config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws_credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def aws_environ(bare_environ: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with credentials that every server here takes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return bare_environ


@dataclass
class Bucket:
    """A bucket that is a folder, behind an endpoint."""

    folder: Path
    endpoint: str

    def put(self, key: str, content: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def localbucket(aws_environ: Path, tmp_path: Path) -> Iterator[Bucket]:
    """A plain S3 server over a folder."""
    module = pytest.importorskip("localbucket")
    root = tmp_path / "localbucket"
    (root / BUCKET).mkdir(parents=True)
    handler = type("Handler", (module.S3Handler,), {"data_root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Bucket(root / BUCKET, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hadro_bucket(aws_environ: Path, tmp_path: Path) -> Iterator[Bucket]:
    """An S3 server that answers two requests in five with 503 SlowDown."""
    module = pytest.importorskip("hadro")
    root = tmp_path / "hadro"
    (root / BUCKET).mkdir(parents=True)
    with module.Server(data=str(root), error_rate=0.4, fault_seed=7) as server:
        yield Bucket(root / BUCKET, server.endpoint)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The widest S3, and SQS; one server for all tests, which use buckets of their own names."""
    module = pytest.importorskip("moto.server")
    if sys.flags.dev_mode or os.environ.get("PYTHONASYNCIODEBUG"):
        pytest.skip("moto sends two Server headers, which aiohttp refuses in its debug mode")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True)
class Fault:
    """What happens to one GET of an object.

    Attributes
    ----------
    kind : str
        ``pass``; ``status`` (an S3 error is the whole answer); after ``bytes`` of the body
        ``reset`` (RST), ``truncate`` (FIN) or ``stall`` (silence); ``short`` (a well-formed
        answer that is shorter than was asked); ``whole`` (the Range is ignored); ``etag``
        (another ETag).
    """

    kind: str = "pass"
    bytes: int = 0
    status: int = 503
    code: str = "SlowDown"
    message: str = "Please reduce your request rate."
    region: str = ""


@dataclass
class FaultFront:
    """A proxy before a bucket: ``faults`` are taken one a GET, and further GETs pass.

    Attributes
    ----------
    requests : list of (str, str, dict of str to str)
        Method, path with query, headers (names in lower case) of every request that came.
    always : Fault or None
        What happens to every GET instead.
    """

    upstream: str
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""

    def ranges(self) -> list[str]:
        return [headers["range"] for _, _, headers in self.requests if "range" in headers]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers))
        fault = self.always or Fault()
        if "range" in headers and self.faults:
            fault = self.faults.popleft()
        if fault.kind == "status":
            return _error_answer(fault)
        passed = {k: v for k, v in headers.items() if k not in ("host", "accept-encoding")}
        if fault.kind == "whole":
            passed.pop("range", None)
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                URL(self.upstream + request.raw_path, encoded=True),
                headers=passed,
                data=await request.read(),
            ) as reply,
        ):
            body = await reply.read()
            kept = ("etag", "content-range", "content-type", "last-modified")
            answer = {k: v for k, v in reply.headers.items() if k.lower() in kept}
            status = reply.status
        if fault.kind == "etag":
            answer["ETag"] = '"another"'
        if fault.kind == "short":
            body = body[: fault.bytes]
        answer["Content-Length"] = str(len(body))
        response = web.StreamResponse(status=status, headers=answer)
        await response.prepare(request)
        if fault.kind not in ("reset", "truncate", "stall"):
            await response.write(body)
            return response
        await response.write(body[: fault.bytes])
        transport = request.transport
        assert transport is not None
        if fault.kind == "stall":
            await asyncio.sleep(3600)  # until the client gives up: the handler is cancelled then
        if fault.kind == "reset":
            await asyncio.sleep(0.02)  # a reset may overtake bytes that are still on their way
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            transport.abort()
        else:
            transport.close()
        return response


def _error_answer(fault: Fault) -> web.Response:
    text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
    headers = {"x-amz-bucket-region": fault.region} if fault.region else {}
    return web.Response(
        status=fault.status, text=text, content_type="application/xml", headers=headers
    )


@pytest.fixture
async def fault_front(localbucket: Bucket) -> AsyncIterator[FaultFront]:
    """A fault-injecting front before ``localbucket``."""
    front = FaultFront(localbucket.endpoint)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", front.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    front.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield front
    await runner.cleanup()


@dataclass
class Stores:
    """Opens stores whose waits are recorded, not waited, and closes them."""

    config: SourceConfig
    waits: list[float] = field(default_factory=list)
    opened: list[S3Store] = field(default_factory=list)

    def open(self, uri: str, *, read_seconds: float = 5.0, **settings: object) -> S3Store:
        def high(low: float, bound: float) -> float:
            return bound

        config = replace_config(self.config, **settings)
        service = AwsService(
            "s3", config, sleep=self._sleep, uniform=high, read_seconds=read_seconds
        )
        store = S3Store(uri, config, service=service)
        self.opened.append(store)
        return store

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def aclose(self) -> None:
        for store in self.opened:
            await store.aclose()


def replace_config(config: SourceConfig, **settings: object) -> SourceConfig:
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    return SourceConfig(**{**values, **settings})


@pytest.fixture
async def stores() -> AsyncIterator[Stores]:
    made = Stores(SourceConfig())
    yield made
    await made.aclose()


async def read_all(store: S3Store, piece_bytes: int = 1 << 20) -> bytes:
    """Read whatever the store lists, object after object."""
    parts = []
    for stored in await store.list():
        offset = 0
        buffer = bytearray(piece_bytes)
        while got := await store.fetch(stored, offset, memoryview(buffer)):
            parts.append(bytes(buffer[:got]))
            offset += got
    return b"".join(parts)
