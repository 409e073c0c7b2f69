"""Streams that can be read once."""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from contextlib import suppress

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import SourceError, SourceMissingError
from streamlearn.messages import Position
from streamlearn.net.sources.objects import Mount
from streamlearn.net.sources.pipe import PipeStore
from streamlearn.net.sources.uri import open_source

BEGIN = Position()
DATA = b"".join(b"%d\n" % i for i in range(600_000))


def write(fd: int, data: bytes) -> threading.Thread:
    def run() -> None:
        with suppress(BrokenPipeError), os.fdopen(fd, "wb", buffering=0) as file:
            for at in range(0, len(data), 100_000):
                file.write(data[at : at + 100_000])

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.fixture
def pipe():
    """A function that starts to write data into a pipe and returns a store that reads it."""
    open_fds, threads = [], []

    def start(data):
        reader, writer = os.pipe()
        open_fds.append(reader)
        threads.append(write(writer, data))
        return PipeStore("-", fd=reader)

    yield start
    for fd in open_fds:
        os.close(fd)
    for thread in threads:
        thread.join()


async def fetch(store, start, size):
    (stored,) = await store.list()
    into = bytearray(size)
    return bytes(into[: await store.fetch(stored, start, memoryview(into))])


async def read(source, position=BEGIN):
    (partition,) = await source.partitions()
    plain = bytearray()
    async for block in source.read(partition, position):
        plain += block.buffer[block.start : block.end].tobytes()
        block.release()
    await source.aclose()
    return bytes(plain)


async def test_a_pipe_is_one_object_of_unknown_size(pipe):
    store = pipe(b"")
    (stored,) = await store.list()
    assert (stored.uri, stored.size, stored.version) == ("-", -1, "")
    assert not store.ranged
    assert await fetch(store, 0, 10) == b""


async def test_a_pipe_is_read_in_order_until_it_ends(pipe):
    store = pipe(DATA)
    got, size = b"", 1_000_000
    while len(piece := await fetch(store, len(got), size)) == size:
        got += piece
    assert got + piece == DATA


async def test_the_beginning_can_be_looked_at_and_read_again(pipe):
    store = pipe(DATA)
    assert await fetch(store, 0, 100) == DATA[:100]
    assert await fetch(store, 0, 65536) == DATA[:65536]
    assert await fetch(store, 10, 200_000) == DATA[10:200_010]
    assert await fetch(store, 0, len(DATA) + 1) == DATA


async def test_a_pipe_does_not_go_back_further(pipe):
    store = pipe(DATA)
    assert await fetch(store, 0, 3 << 20) == DATA[: 3 << 20]
    for start in (2 << 20, 0):
        with pytest.raises(SourceError, match="is at byte 3145728 and cannot go back"):
            await fetch(store, start, 2 << 20)


async def test_what_lies_before_a_resume_is_dropped(pipe):
    assert await fetch(pipe(DATA), 3_000_000, 100) == DATA[3_000_000:3_000_100]
    assert await fetch(pipe(DATA), len(DATA) + 5, 100) == b""


@pytest.mark.parametrize("stored", [DATA, gzip.compress(DATA, 1)])
async def test_standard_input_is_a_source(pipe, stored):
    source = open_source(SourceConfig(uri=("-",)))
    source._mounts = (Mount(pipe(stored), "-", 2),)
    (partition,) = await source.partitions()
    assert await source.header(partition) == b"0"
    assert await read(source) == DATA


async def test_standard_input_resumes_where_the_same_bytes_come_again(pipe):
    source = open_source(SourceConfig(uri=("-",)))
    source._mounts = (Mount(pipe(DATA), "-", 2),)
    assert await read(source, Position(2_000_000, 1)) == DATA[2_000_000:]


async def test_a_named_pipe_waits_for_its_writer(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    source = open_source(SourceConfig(uri=(str(path),)))
    task = asyncio.create_task(read(source))
    await asyncio.sleep(0.02)
    assert not task.done()
    thread = write(await asyncio.to_thread(os.open, path, os.O_WRONLY), DATA)
    assert await task == DATA
    thread.join()


async def test_standard_input_from_a_file_is_read_in_a_lane(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    assert await fetch(PipeStore("-", fd=fd), 0, len(DATA) + 1) == DATA
    os.close(fd)


async def test_a_wait_for_a_silent_pipe_can_be_cancelled(pipe):
    reader, writer = os.pipe()
    store = PipeStore("-", fd=reader)
    task = asyncio.create_task(fetch(store, 0, 10))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.write(writer, b"late\n")
    os.close(writer)
    assert await fetch(store, 0, 10) == b"late\n"
    os.close(reader)


async def test_a_pipe_that_cannot_be_opened_or_read_says_so(tmp_path, monkeypatch):
    with pytest.raises(SourceMissingError, match="cannot open"):
        await PipeStore(str(tmp_path / "none")).list()
    fd = os.open(tmp_path, os.O_RDONLY)
    store = PipeStore("-", fd=fd)
    store._waitable = False
    with pytest.raises(SourceError, match=r"cannot read - at byte 0\ncause: Is a directory"):
        await fetch(store, 0, 1)
    os.close(fd)
