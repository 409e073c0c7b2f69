"""A TCP proxy that delays, throttles, cuts and corrupts, both ways, as a seed says."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

_BLOCK_BYTES = 1 << 16


class Proxy:
    """Hands bytes on between whoever connects to ``address`` and a target.

    Parameters
    ----------
    target : str
        HOST:PORT; need not listen yet.
    seed : int

    Attributes
    ----------
    delay_seconds : float
        Mean wait before each piece is handed on.
    bytes_per_second : float
        Of each direction of each connection; 0: as fast as it goes.
    damage : float
        Probability of each byte to be changed.
    connections, bytes, cuts, damaged : int
        What has happened.
    """

    def __init__(self, target: str, seed: int) -> None:
        self.delay_seconds = 0.0
        self.bytes_per_second = 0.0
        self.damage = 0.0
        self.connections = self.bytes = self.cuts = self.damaged = 0
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._seed = seed
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            cut, self._open = self._open, set()
            self.cuts += len(cut) // 2
        for one in cut:
            _end(one)

    def close(self) -> None:
        """Take no more, and end what there is."""
        _end(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self.connections += 1
                self._open |= {near, far}
            for way, (source, sink) in enumerate(((near, far), (far, near))):
                self._start(self._pump, source, sink, f"{self._seed} {self.connections} {way}")

    def _pump(self, source: socket.socket, sink: socket.socket, seed: str) -> None:
        draw = random.Random(seed)
        with suppress(OSError):
            while data := source.recv(_BLOCK_BYTES):
                wait = draw.uniform(0, 2 * self.delay_seconds)
                if self.bytes_per_second:
                    wait += len(data) / self.bytes_per_second
                if wait:
                    time.sleep(wait)
                if draw.random() < self.damage * len(data):
                    changed = bytearray(data)
                    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                    data = bytes(changed)
                    with self._lock:
                        self.damaged += 1
                sink.sendall(data)
                with self._lock:
                    self.bytes += len(data)
        with self._lock:
            self._open -= {source, sink}
        for one in (source, sink):
            _end(one)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
