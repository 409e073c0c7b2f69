from __future__ import annotations

import asyncio
import socket

import pytest

from streamlearn.errors import ConfigError, ResourceError
from streamlearn.net.network import TcpNetwork
from tests.net.wire_parts import over_loops, run, until


class Ends(asyncio.BufferedProtocol):
    """Keeps its transport and what it receives."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.memory = bytearray(100)
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.memory[:nbytes]


@over_loops
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_both_ends_are_joined_and_notice_when_the_other_is_gone(loop: str, host: str) -> None:
    async def main() -> None:
        network, taken = TcpNetwork(), list[Ends]()

        def take() -> Ends:
            taken.append(Ends())
            return taken[-1]

        listener = await network.listen(f"{host}:0", take)
        near = await network.connect(listener.address, Ends)
        assert isinstance(near, Ends)
        assert near.transport is not None
        near.transport.write(b"hello")
        await until(lambda: bool(taken and taken[0].got == b"hello"))
        for end in (near, taken[0]):
            assert end.transport is not None
            wire = end.transport.get_extra_info("socket")
            assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        await listener.close()
        with pytest.raises(OSError, match=r"(?i)connect"):
            await network.connect(listener.address, Ends)
        near.transport.write(b"!")  # what was taken goes on
        await until(lambda: taken[0].got == b"hello!")
        near.transport.abort()
        taken[0].transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(0.01)

    run(loop, main())


@over_loops
def test_addresses_that_cannot_be_had_are_named(loop: str) -> None:
    async def main() -> None:
        network = TcpNetwork()
        listener = await network.listen("127.0.0.1:0", Ends)
        with pytest.raises(ResourceError, match="in use"):
            await network.listen(listener.address, Ends)
        with pytest.raises(ConfigError, match="not an address of this machine"):
            await network.listen("192.0.2.1:0", Ends)
        for address in ("here", "127.0.0.1:x"):
            with pytest.raises(ConfigError, match="expected HOST:PORT"):
                await network.listen(address, Ends)
            with pytest.raises(ConfigError, match="expected HOST:PORT"):
                await network.connect(address, Ends)
        await listener.close()

    run(loop, main())
