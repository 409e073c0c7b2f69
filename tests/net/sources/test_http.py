"""One object behind a URL: ranges, streams, and servers that fail in every way."""

from __future__ import annotations

import asyncio
import gzip
import re

import pytest
from aiohttp import web

from streamlearn.config import SourceConfig
from streamlearn.errors import ObjectChangedError, SourceError, SourceMissingError
from streamlearn.messages import Position
from streamlearn.net.sources.blocks import BlockPool
from streamlearn.net.sources.http import HttpStore
from streamlearn.net.sources.objects import Mount
from streamlearn.net.sources.uri import open_source

DATA = b"".join(b"%d\n" % i for i in range(60_000))


class Server:
    """Serves ``data`` under any path; ``faults`` are used up, one by each GET of the body."""

    def __init__(self):
        self.data = DATA
        self.etag = '"one"'
        self.modified = "Thu, 01 Jan 2026 00:00:00 GMT"
        self.ranges = True
        self.conditions = True  # whether If-Match is understood
        self.head_status = 200
        self.sized = True
        self.faults = []
        self.seen = []
        self.url = ""
        self.hanging = asyncio.Event()

    def headers(self):
        headers = {}
        if self.etag:
            headers["ETag"] = self.etag
        if self.modified:
            headers["Last-Modified"] = self.modified
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        return headers

    async def handle(self, request):
        wanted = request.headers.get("Range", "")
        self.seen.append((request.method, wanted))
        headers = self.headers()
        if request.method == "HEAD":
            if self.head_status != 200:
                return web.Response(status=self.head_status)
            if self.sized:
                headers["Content-Length"] = str(len(self.data))
            return web.Response(headers=headers)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return web.Response(status=fault, text="<Error>said the server</Error>")
        if self.conditions:
            match = request.headers.get("If-Match")
            since = request.headers.get("If-Unmodified-Since")
            if (match and match != self.etag) or (since and since != self.modified):
                return web.Response(status=412)
        body, status = self.data, 200
        if self.ranges and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)):
            first, last = int(found[1]), min(int(found[2]), len(self.data) - 1)
            if first >= len(self.data):
                return web.Response(status=416)
            body, status = self.data[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(self.data)}"
        response = web.StreamResponse(status=status, headers=headers)
        if self.sized:
            response.content_length = len(body)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        kind, after = fault or ("", len(body))
        await response.write(body[:after])
        if kind == "hang":
            await self.hanging.wait()
        if kind:  # truncated: the connection ends in the middle of the body
            assert request.transport is not None
            await asyncio.sleep(0.01)
            request.transport.abort()
            return response
        await response.write_eof()
        return response


@pytest.fixture
async def server():
    served = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    served.url = f"http://127.0.0.1:{port}/log.csv"
    yield served
    served.hanging.set()
    await runner.cleanup()


class Waits:
    """A sleep that only remembers."""

    def __init__(self):
        self.seconds = []

    async def __call__(self, seconds):
        self.seconds.append(seconds)


@pytest.fixture
async def store(server):
    store = HttpStore(
        server.url, retries=3, jitter=lambda: 1.0, sleep=Waits(), read_seconds_max=0.3
    )
    yield store
    await store.aclose()


async def fetch(store, start, size, stored=None):
    if stored is None:
        (stored,) = await store.list()
    into = bytearray(size)
    return bytes(into[: await store.fetch(stored, start, memoryview(into))])


async def test_size_version_and_ranges_are_asked_for(server, store):
    (stored,) = await store.list()
    assert (stored.uri, stored.size, stored.version) == (server.url, len(DATA), '"one"')
    assert stored.modified_seconds == 1767225600.0
    assert store.ranged


@pytest.mark.parametrize("status", [403, 404, 405, 501])
async def test_a_server_without_head_is_asked_by_get(server, store, status):
    server.head_status = status
    (stored,) = await store.list()
    assert (stored.size, stored.version) == (len(DATA), '"one"')
    assert store.ranged
    server.ranges = False
    (stored,) = await store.list()
    assert not store.ranged
    assert stored.size == len(DATA)


async def test_an_empty_object_has_no_ranges_to_give(server, store):
    server.data = b""
    server.head_status = 405
    (stored,) = await store.list()
    assert stored.size == 0


async def test_time_of_modification_pins_where_there_is_no_etag(server, store):
    server.etag = ""
    (stored,) = await store.list()
    assert stored.version == server.modified
    server.modified = "Fri, 02 Jan 2026 00:00:00 GMT"
    with pytest.raises(ObjectChangedError, match="changed while it was read: status 412"):
        await fetch(store, 5, 10, stored)


async def test_without_anything_that_pins_it_is_read_all_the_same(server, store):
    server.etag = server.modified = ""
    (stored,) = await store.list()
    assert (stored.version, stored.modified_seconds) == ("", 0.0)
    assert await fetch(store, 5, 10, stored) == DATA[5:15]


@pytest.mark.parametrize("ranges", [True, False])
async def test_any_part_can_be_fetched(server, store, ranges):
    server.ranges = ranges
    (stored,) = await store.list()
    for start, size in ((0, 10), (10, 100_000), (5, 5), (200_000, 7), (len(DATA) - 3, 10)):
        assert await fetch(store, start, size, stored) == DATA[start : start + size]
    assert await fetch(store, len(DATA), 10, stored) == b""


async def test_parts_of_a_stream_in_order_are_one_request(server, store):
    server.ranges = False
    (stored,) = await store.list()
    got = b""
    while piece := await fetch(store, len(got), 50_000, stored):
        got += piece
    assert got == DATA
    assert [method for method, _ in server.seen] == ["HEAD", "GET"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "faults",
    [
        [503],
        [500, 429, 504],
        [("truncate", 0)],
        [("truncate", 1000)],
        [("truncate", 1000), 503, ("truncate", 70_000), ("hang", 100)],
        [("hang", 5)],
        # more than the retries allow in a row, but each brings something
        [("truncate", 20_000)] * 6,
    ],
)
async def test_what_fails_is_tried_again_where_it_stopped(server, store, ranges, faults):
    server.ranges = ranges
    (stored,) = await store.list()
    if not ranges and len(faults) == 6:
        faults = [("truncate", 20_000 * i) for i in range(1, 7)]
    server.faults = list(faults)
    assert await fetch(store, 3, 200_000, stored) == DATA[3:200_003]
    assert not server.faults
    assert len(store._sleep.seconds) == len(faults) == sum(store.retries.values())
    assert store.retries["slow_down"] == sum(fault in {429, 503} for fault in faults)
    assert store.retries["server_error"] == sum(fault in {500, 504} for fault in faults)
    assert store.retries["timeout"] == sum(
        "hang" in fault for fault in faults if isinstance(fault, tuple)
    )


async def test_a_retry_goes_on_at_the_byte_where_it_stopped(server, store):
    (stored,) = await store.list()
    server.faults = [("truncate", 1000)]
    await fetch(store, 100, 5000, stored)
    assert [wanted for _, wanted in server.seen[1:]] == ["bytes=100-5099", "bytes=1100-5099"]


async def test_waits_grow_up_to_a_bound_and_end_in_an_error(server):
    waits = Waits()
    store = HttpStore(server.url, retries=10, jitter=lambda: 0.5, sleep=waits)
    (stored,) = await store.list()
    server.faults = [503] * 20
    with pytest.raises(SourceError) as caught:
        await fetch(store, 7, 10, stored)
    assert waits.seconds[:4] == [0.05, 0.1, 0.2, 0.4]
    assert waits.seconds[-1] == 10.0
    assert len(waits.seconds) == 10
    assert f"{server.url} answered 503 Service Unavailable at byte 7, 11 times" in str(caught.value)
    assert caught.value.hint
    await store.aclose()


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_body_that_always_ends_early_is_an_error_with_its_place(server, store, ranges):
    server.ranges = ranges
    (stored,) = await store.list()
    server.faults = [("truncate", 0)] * 9
    with pytest.raises(SourceError, match="stopped at byte 0, 4 times in a row\ncause: "):
        await fetch(store, 0, 10, stored)


async def test_a_server_that_is_not_there_is_an_error(unused_tcp_port):
    store = HttpStore(f"http://127.0.0.1:{unused_tcp_port}/a", retries=1, sleep=Waits())
    with pytest.raises(SourceError, match=r"cannot reach http://127.0.0.1:.*/a, 2 times in a row"):
        await store.list()
    await store.aclose()


async def test_a_listing_is_tried_again(server, store):
    server.head_status = 405
    server.faults = [503, ("truncate", 0)]
    assert (await store.list())[0].size == len(DATA)
    server.head_status = 503
    with pytest.raises(SourceError, match="answered 503 Service Unavailable, 4 times"):
        await store.list()


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (401, SourceMissingError, "wants credentials"),
        (403, SourceMissingError, "may not be read"),
        (404, SourceMissingError, "no such object"),
        (410, SourceMissingError, "removed"),
        (400, SourceError, None),
        (204, SourceError, None),
    ],
)
async def test_a_refusal_is_one_sentence_with_url_status_and_hint(
    server, store, status, kind, hint
):
    server.head_status = 404
    server.faults = [status]
    with pytest.raises(kind, match=f"^{re.escape(server.url)} answered {status} ") as caught:
        await store.list()
    assert (caught.value.exit_code == 2) == (kind is SourceMissingError)
    if hint:
        assert hint in str(caught.value.hint)
        assert caught.value.cause == "<Error>said the server</Error>"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("etags", [('"one"', '"two"'), ('W/"one"', 'W/"two"')])
async def test_an_object_that_changes_is_noticed(server, store, ranges, conditions, etags):
    server.etag, changed = etags
    server.ranges, server.conditions = ranges, conditions
    (stored,) = await store.list()
    assert await fetch(store, 0, 10, stored) == DATA[:10]
    server.etag = changed
    if not ranges:
        store._drop_stream()
    with pytest.raises(ObjectChangedError, match="changed while it was read"):
        await fetch(store, 10, 10, stored)


async def test_an_object_that_got_another_size_is_noticed(server, store):
    server.etag = server.modified = ""
    (stored,) = await store.list()
    server.data += b"more\n"
    with pytest.raises(ObjectChangedError, match=r"\d+ bytes, expected \d+"):
        await fetch(store, 10, 10, stored)
    server.data = b"x"
    with pytest.raises(ObjectChangedError, match="status 416"):
        await fetch(store, 10, 10, stored)


async def test_a_server_that_forgets_about_ranges_is_read_all_the_same(server, store):
    (stored,) = await store.list()
    server.ranges = False
    assert await fetch(store, 1000, 10, stored) == DATA[1000:1010]


async def test_a_stream_that_nothing_pins_is_not_patched_together(server, store):
    server.ranges, server.etag, server.modified = False, "", ""
    (stored,) = await store.list()
    server.faults = [("truncate", 1000)]
    with pytest.raises(SourceError, match="stopped at byte 1000, and the server offers neither"):
        await fetch(store, 0, 5000, stored)


async def test_what_is_no_url_is_one_sentence():
    store = HttpStore("http://")
    with pytest.raises(SourceMissingError, match="http:// is not a URL"):
        await store.list()
    await store.aclose()


async def test_redirects_in_circles_are_one_sentence():
    app = web.Application()

    async def again(request):
        raise web.HTTPFound(request.url)

    app.router.add_route("*", "/", again)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    store = HttpStore(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    with pytest.raises(SourceError, match="redirects in circles"):
        await store.list()
    await store.aclose()
    await runner.cleanup()


# ---------------------------------------------------------------- as a source


def source_over(store, url):
    config = SourceConfig(
        uri=(url,),
        block_bytes=16_384,
        range_bytes=100_000,
        read_ahead_bytes=16 * BlockPool.bytes_of(16_384),
    )
    source = open_source(config)
    source._mounts = (Mount(store, url, 8),)
    return source


async def read(source):
    plain = b""
    partitions = await source.partitions()
    async for _, item in source.read_many([(p, Position()) for p in partitions]):
        if isinstance(item, Exception):
            raise item
        plain += item.buffer[item.start : item.end].tobytes()
        item.release()
    return partitions, plain


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
async def test_a_url_is_a_source(server, store, ranges, sized, compressed):
    server.ranges, server.sized = ranges, sized
    server.data = gzip.compress(DATA) if compressed else DATA
    source = source_over(store, server.url)
    server.faults = [] if sized else [("truncate", 20_000)]
    partitions, plain = await read(source)
    assert plain == DATA
    assert len(partitions) == (4 if ranges and sized and not compressed else 1)
    assert await source.header(partitions[0]) == b"0"
    await source.aclose()


async def test_reading_on_without_listing_finds_out_about_ranges(server, store):
    (stored,) = await store.list()
    other = HttpStore(server.url)
    assert await fetch(other, 100, 10, stored) == DATA[100:110]
    assert other.ranged
    await other.aclose()
