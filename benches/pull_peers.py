"""Servers and clients that pull rows over loopback: this project, pyzmq, grpc.aio and Redis.

``compare`` runs each server as ``python benches/pull_peers.py serve NAME`` and each client as
``... pull NAME ADDRESS PULLS``, and adds up the CPU time of both.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, WIDTH, KEYS = 1_000_000, 16, 10_000
ROW_BYTES = WIDTH * 4
UNDER_WAY = 4
LISTS = 16  # lists of keys that a client goes round
WARM_PULLS = 20
# How many pulls each does a round: some two seconds.
PULLS = {"streamlearn": 3000, "pyzmq": 3000, "grpc.aio": 1200, "redis": 60}
NEEDS = {"pyzmq": "zmq", "grpc.aio": "grpc", "redis": "redis"}
BUDGETS = {"pyzmq": 1, "grpc.aio": 3, "redis": 20}


def keys_of_all() -> Any:
    """Return the keys of all rows, ascending."""
    keys = np.random.default_rng(1).integers(0, 1 << 64, ROWS + 1000, np.uint64) | np.uint64(1)
    return np.unique(keys)[:ROWS]


def rows_of_all() -> Any:
    """Return the rows, float32[ROWS, WIDTH]."""
    return np.random.default_rng(2).random((ROWS, WIDTH), np.float32)


def asked_rows() -> list[Any]:
    """Return ascending row numbers of each pull."""
    rng = np.random.default_rng(3)
    return [np.sort(rng.choice(ROWS, KEYS, replace=False)) for _ in range(LISTS)]


# --- this project


async def serve_streamlearn(tell: Callable[[str], None]) -> None:
    """Serve arena rows of a table of exact keys."""
    from streamlearn import columns
    from streamlearn.net.connection import Welcome
    from streamlearn.net.counters import Counters
    from streamlearn.net.limits import Limits
    from streamlearn.net.network import TcpNetwork
    from streamlearn.net.security import Secrets
    from streamlearn.net.server import Server, Session
    from streamlearn.protocol import Message, Pull, Pulled
    from streamlearn.shards.arena import Arena
    from streamlearn.shards.table import ExactTable

    table = ExactTable.sized(ROWS, 2 * ROWS)
    arena = Arena(table, WIDTH)
    rows = np.zeros((ROWS, 4), np.uint64)
    rows[:, 0] = keys_of_all()
    rows[:, 3] = np.arange(1, ROWS + 1)
    arena.load(rows, rows_of_all())
    out = np.empty((KEYS, WIDTH), np.float32)

    class Pulls:
        def opened(self, session: Session) -> None:
            pass

        def closed(self, session: Session) -> None:
            pass

        def received(self, session: Session, request_id: int, message: Message) -> None:
            assert isinstance(message, Pull)
            keys = columns.decode_keys(message.keys, message.count, 0, (1 << 64) - 1)
            found = arena.pull(table.find(keys), out[: len(keys)])
            values = columns.encode_values(found.reshape(-1), message.coding)
            session.send(request_id, Pulled(message.count, message.coding, values.data))

    server = Server(
        cluster="bench",
        welcome=lambda: Welcome(0, 1, 0, 256, 1, "bench"),
        secrets=Secrets(),
        requests=Pulls(),
        network=TcpNetwork(),
        limits=Limits(),
        counters=Counters(),
        nonce=lambda: os.urandom(32),
    )
    tell(await server.start("127.0.0.1:0"))
    await asyncio.Event().wait()


async def pull_streamlearn(address: str, count: int, begin: Callable[[], None]) -> None:
    """Pull rows and check their values."""
    from streamlearn import columns
    from streamlearn.net.client import Link
    from streamlearn.net.connection import Peer
    from streamlearn.net.counters import Counters
    from streamlearn.net.limits import Limits
    from streamlearn.net.network import TcpNetwork
    from streamlearn.net.security import Secrets
    from streamlearn.protocol import Pull, Pulled

    link = await Link.open(
        address,
        cluster="bench",
        peer=Peer("reader", "bench"),
        secrets=Secrets(),
        network=TcpNetwork(),
        limits=Limits(),
        nonce=lambda: os.urandom(32),
        counters=Counters(),
    )
    every, rows, asked = keys_of_all(), rows_of_all(), asked_rows()
    lists = [every[index] for index in asked]
    out = np.empty(KEYS * WIDTH, np.float32)

    async def one(number: int, check: bool = False) -> None:
        column = columns.encode_keys(lists[number % LISTS], 0)
        answer = await link.ask(Pull(0, 0, 0, KEYS, column.data, columns.FLOAT32))
        assert isinstance(answer, Pulled)
        values = columns.decode_values(answer.values, KEYS * WIDTH, columns.FLOAT32, out)
        if check:
            assert (values.reshape(KEYS, WIDTH) == rows[asked[number % LISTS]]).all()

    await one(1, check=True)
    await drive(one, count, begin)
    await link.close()


# --- pyzmq


async def serve_pyzmq(tell: Callable[[str], None]) -> None:
    """Answer row numbers with ``np.take``."""
    import zmq

    rows = rows_of_all()
    server = zmq.Context().socket(zmq.ROUTER)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    tell(f"127.0.0.1:{port}")
    while True:
        name, body = server.recv_multipart(copy=False)
        out = np.take(rows, np.frombuffer(body.buffer, np.int64), axis=0)
        server.send_multipart([name, out], copy=False)


async def pull_pyzmq(address: str, count: int, begin: Callable[[], None]) -> None:
    """Pull rows by number."""
    import zmq

    client = zmq.Context().socket(zmq.DEALER)
    client.connect(f"tcp://{address}")
    rows, asked = rows_of_all(), asked_rows()
    client.send(asked[1], copy=False)
    answer = np.frombuffer(client.recv(copy=False).buffer, np.float32).reshape(KEYS, WIDTH)
    assert (answer == rows[asked[1]]).all()
    for number in range(-WARM_PULLS, count + UNDER_WAY):
        if number == 0:
            begin()
        if number < count:
            client.send(asked[number % LISTS], copy=False)
        if number >= UNDER_WAY - WARM_PULLS:
            body = client.recv(copy=False)
            assert len(np.frombuffer(body.buffer, np.float32)) == KEYS * WIDTH


# --- grpc.aio


async def serve_grpc(tell: Callable[[str], None]) -> None:
    """Answer row numbers with ``np.take``; bytes in, bytes out."""
    import grpc

    rows = rows_of_all()

    async def pull(body: bytes, _context: Any) -> bytes:
        return np.take(rows, np.frombuffer(body, np.int64), axis=0).tobytes()

    handler = grpc.method_handlers_generic_handler(
        "bench", {"Pull": grpc.unary_unary_rpc_method_handler(pull)}
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tell(f"127.0.0.1:{port}")
    await server.wait_for_termination()


async def pull_grpc(address: str, count: int, begin: Callable[[], None]) -> None:
    """Pull rows by number."""
    import grpc

    rows, asked = rows_of_all(), asked_rows()
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary("/bench/Pull")

        async def one(number: int) -> None:
            values = np.frombuffer(await ask(asked[number % LISTS].tobytes()), np.float32)
            assert len(values) == KEYS * WIDTH

        answer = np.frombuffer(await ask(asked[1].tobytes()), np.float32).reshape(KEYS, WIDTH)
        assert (answer == rows[asked[1]]).all()
        await drive(one, count, begin)


# --- Redis


async def pull_redis(address: str, count: int, begin: Callable[[], None]) -> None:
    """Load the rows, then MGET them by keys of 8 bytes."""
    import redis

    host, port = address.split(":")
    client = redis.Redis(host, int(port))
    every, rows, asked = keys_of_all(), rows_of_all(), asked_rows()
    for start in range(0, ROWS, KEYS):
        part = slice(start, start + KEYS)
        names = every[part].tobytes()
        values = rows[part].tobytes()
        client.mset(
            {
                names[8 * i : 8 * i + 8]: values[ROW_BYTES * i : ROW_BYTES * (i + 1)]
                for i in range(KEYS)
            }
        )
    lists = [every[index].tobytes() for index in asked]

    def one(number: int) -> Any:
        body = lists[number % LISTS]
        found = client.mget([body[i : i + 8] for i in range(0, 8 * KEYS, 8)])
        return np.frombuffer(b"".join(found), np.float32).reshape(KEYS, WIDTH)

    assert (one(1) == rows[asked[1]]).all()
    begin()
    for number in range(count):
        one(number)


async def drive(
    one: Callable[[int], Awaitable[None]], count: int, begin: Callable[[], None]
) -> None:
    """Keep ``UNDER_WAY`` pulls under way until ``count`` are done."""
    for number in range(WARM_PULLS):
        await one(number)
    begin()
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(UNDER_WAY):
            group.create_task(lane())


# --- comparing


def compare(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all that is installed; return pulls a second of CPU, and of wall, by contender."""
    names = []
    for name in PULLS:
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            say(f"{name} is left out: {NEEDS[name]} is not installed (pip install '.[bench]')")
        elif name == "redis" and shutil.which("redis-server") is None:
            say("redis is left out: redis-server is not installed")
        else:
            names.append(name)
    speeds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            speeds[name].append(_round(name))
    figures: dict[str, Any] = {}
    for name, found in speeds.items():
        cpu, client, wall = (statistics.median(column) for column in zip(*found, strict=True))
        figures[name] = {
            "pulls_per_cpu_second": cpu,
            "client_share": client,
            "pulls_per_second": wall,
        }
    ours = figures["streamlearn"]["pulls_per_cpu_second"]
    for name, figure in figures.items():
        cpu, client, wall = figure.values()
        ratio = "" if name == "streamlearn" else f"  ours {ours / cpu:5.2f} x"
        budget = f" (budget {BUDGETS[name]})" if name in BUDGETS else ""
        say(
            f"{name:14}{cpu:>8.0f} pulls/s of CPU ({client:.0%} of it the client's), "
            f"{wall:>7.0f} of wall{ratio}{budget}"
        )
    return figures


def _round(name: str) -> tuple[float, float, float]:
    """Return pulls a CPU second, the client's share of that, pulls a second of wall."""
    me = [sys.executable, __file__]
    if name == "redis":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"]
        command += ["--bind", "127.0.0.1", "--daemonize", "no"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        address = f"127.0.0.1:{port}"
        _wait_for(port)
    else:
        server = subprocess.Popen([*me, "serve", name], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = server.stdout.readline().strip()
    try:
        client = subprocess.run(
            [*me, "pull", name, address, str(PULLS[name]), str(server.pid)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        server.kill()
        server.wait()
    wall, mine, theirs = (float(word) for word in client.stdout.split())
    return PULLS[name] / (mine + theirs), mine / (mine + theirs), PULLS[name] / wall


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port}")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _main() -> None:
    import uvloop

    role, name, *rest = sys.argv[1:]
    short = {"grpc.aio": "grpc"}.get(name, name)
    run = globals()[f"{role}_{short}"]
    # grpc has a loop of its own making in C, the others take the one that the nodes run on
    loop = asyncio.run if short == "grpc" else uvloop.run
    if role == "serve":
        loop(run(lambda address: print(address, flush=True)))
        return
    address, count, server = rest[0], int(rest[1]), int(rest[2])
    started: list[float] = []

    def begin() -> None:
        started[:] = time.perf_counter(), time.process_time(), cpu_seconds(server)

    loop(run(address, count, begin))
    wall = time.perf_counter() - started[0]
    print(wall, time.process_time() - started[1], cpu_seconds(server) - started[2])


if __name__ == "__main__":
    _main()
