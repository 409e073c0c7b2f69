"""The wire alone: requests and bodies over loopback, handshake, codec and futures included.

    python benches/bench_wire.py [--rounds R]

Question: what does a request cost at each end, and what does a byte of a large body?

Method: a server in a process of its own, one link, uvloop. A request is a Pull with a key column of
the given size, its answer a Pulled of 24 bytes (or of the same size, "both ways"). At depth 32 (8
for large bodies) the oldest answer is awaited before the next request is sent. Medians of rounds.

Units: requests a second of CPU (user and system) at either end; GB of column a second of CPU, where
both ways counts a body once, though it is moved twice. Neither end looks at the columns.

Budget: 200,000 requests of 64 bytes a second of CPU at either end; bodies of 64 KiB to 1 MiB at
3 GB a second of CPU one way.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import statistics
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from streamlearn.net.client import Link
from streamlearn.net.connection import Peer, Welcome
from streamlearn.net.counters import Counters
from streamlearn.net.limits import Limits
from streamlearn.net.network import TcpNetwork
from streamlearn.net.security import Secrets
from streamlearn.net.server import Server, Session
from streamlearn.protocol import Message, Pull, Pulled, State, StateIs

ONE_WAY, BOTH_WAYS = 0, 1
# column bytes, depth, table (which answer is wanted), requests a round
CASES = (
    (24, 1, ONE_WAY, 3_000),
    (24, 32, ONE_WAY, 40_000),
    (64 << 10, 8, ONE_WAY, 10_000),
    (256 << 10, 8, ONE_WAY, 3_000),
    (1 << 20, 8, ONE_WAY, 800),
    (64 << 10, 8, BOTH_WAYS, 5_000),
    (1 << 20, 8, BOTH_WAYS, 400),
)


class Echo:
    """Answers at once."""

    def opened(self, session: Session) -> None:
        """Nothing to do."""

    def received(self, session: Session, request_id: int, message: Message) -> None:
        """Answer a pull with a column, State with this process's CPU time."""
        if isinstance(message, Pull):
            values = message.keys if message.table == BOTH_WAYS else message.keys[:24]
            session.send(request_id, Pulled(message.count, message.coding, values))
        else:
            cpu = {"cpu_seconds": time.process_time()}
            session.send(request_id, StateIs(0, 0, 0, True, [], {}, cpu))

    def closed(self, session: Session) -> None:
        """Nothing to do."""


def common() -> dict[str, Any]:
    """Return what both ends need."""
    return {
        "cluster": "bench",
        "secrets": Secrets(),
        "network": TcpNetwork(),
        "limits": Limits(),
        "counters": Counters(),
        "nonce": lambda: os.urandom(32),
    }


def serve(pipe: Connection) -> None:
    """Run the server until it is ended."""

    async def main() -> None:
        server = Server(
            welcome=lambda: Welcome(0, 1, 0, 256, 1, "bench"), requests=Echo(), **common()
        )
        pipe.send(await server.start("127.0.0.1:0"))
        await asyncio.Event().wait()

    uvloop.run(main())


async def server_seconds(link: Link) -> float:
    """Return the CPU time that the server has used."""
    answer = await link.ask(State())
    assert isinstance(answer, StateIs)
    return answer.figures["cpu_seconds"]


async def measure(link: Link, size: int, depth: int, way: int, count: int) -> tuple[float, ...]:
    """Return CPU seconds of client and server, and seconds."""
    message = Pull(way, 0, 0, 1, memoryview(os.urandom(size)), 0)
    under_way: deque[asyncio.Future[Any]] = deque()
    server, client, wall = await server_seconds(link), time.process_time(), time.perf_counter()
    for _ in range(count):
        if len(under_way) == depth:
            await under_way.popleft()
        under_way.append(link.post(message)[1])
    while under_way:
        await under_way.popleft()
    client, wall = time.process_time() - client, time.perf_counter() - wall
    return client, await server_seconds(link) - server, wall


async def bench(address: str, rounds: int) -> None:
    """Measure all cases and print them."""
    link = await Link.open(address, peer=Peer("reader", "bench"), **common())
    found: dict[int, list[tuple[float, ...]]] = {index: [] for index in range(len(CASES))}
    for _, (index, case) in itertools.product(range(rounds), enumerate(CASES)):
        found[index].append(await measure(link, *case))
    await link.close()
    print("column bytes  depth  way   requests / CPU s client   server   wall s   GB / CPU s")
    for index, (size, depth, way, count) in enumerate(CASES):
        client, server, wall = map(statistics.median, zip(*found[index], strict=True))
        print(
            f"{size:>12,}  {depth:>5}  {'both' if way else 'one':<4}  "
            f"{count / client:>23,.0f} {count / server:>8,.0f} {count / wall:>8,.0f}   "
            f"{size * count / client / 1e9:.2f} / {size * count / server / 1e9:.2f}"
        )


def main() -> None:
    """Start the server, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        uvloop.run(bench(ours.recv(), rounds))
    finally:
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
