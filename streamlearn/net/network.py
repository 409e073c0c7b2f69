"""Where connections come from: TCP, or in tests a network in memory."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final, Protocol

from streamlearn.errors import ConfigError, ResourceError
from streamlearn.net.address import join_address, split_address
from streamlearn.net.security import Secrets

__all__ = ["Listener", "Network", "TcpNetwork"]

# A peer whose machine is gone says nothing and refuses nothing. Either end notices by itself, but
# not while it reads nothing; then the kernel must: probes after 15 s of silence, and bytes that
# nobody takes for five minutes (not less: a server that is full takes none, either).
_KEEPALIVE_IDLE_SECONDS: Final = 15
_KEEPALIVE_EVERY_SECONDS: Final = 5
_KEEPALIVE_PROBES: Final = 4
_UNACKNOWLEDGED_MILLISECONDS: Final = 300_000
_BACKLOG: Final = 512

Factory = Callable[[], asyncio.BufferedProtocol]


class Listener(Protocol):
    """Takes connections until it is closed; those it has taken go on."""

    address: str

    async def close(self) -> None:
        """Take no more."""
        ...


class Network(Protocol):
    """Makes and takes connections.

    Transports that it gives to a protocol need ``write``, ``writelines``, ``pause_reading``,
    ``resume_reading``, ``set_write_buffer_limits``, ``get_write_buffer_size``, ``get_extra_info``
    (``peername``, ``peercert``), ``is_closing``, ``close`` and ``abort``, and call the protocol's
    methods as asyncio does.
    """

    async def connect(self, address: str, factory: Factory) -> asyncio.BufferedProtocol:
        """Connect a new protocol to ``HOST:PORT``; raises OSError."""
        ...

    async def listen(self, address: str, factory: Factory) -> Listener:
        """Give each connection to ``HOST:PORT`` a new protocol; port 0: any free one."""
        ...


class _TcpListener:
    def __init__(self, server: asyncio.Server, address: str) -> None:
        self._server = server
        self.address = address

    async def close(self) -> None:
        """Take no more; sockets are closed on return."""
        # not wait_closed: from Python 3.12 on it waits for the connections, too
        self._server.close()
        await asyncio.sleep(0)


class TcpNetwork:
    """TCP, with mutual TLS where there are certificates.

    Parameters
    ----------
    secrets : Secrets, optional
        Whose TLS files are used.
    handshake_seconds : float
        For TLS's own handshake.
    """

    def __init__(self, secrets: Secrets | None = None, *, handshake_seconds: float = 10.0) -> None:
        secrets = secrets or Secrets()
        self._server_context = secrets.server_context()
        self._client_context = secrets.client_context()
        self._handshake_seconds = handshake_seconds

    async def connect(self, address: str, factory: Factory) -> asyncio.BufferedProtocol:
        """Connect a new protocol to ``HOST:PORT``.

        Raises
        ------
        OSError
            As the operating system or TLS says.
        ConfigError
            It is not an address.
        """
        host, port = split_address(address, "the address", "7700")
        loop = asyncio.get_running_loop()
        context = self._client_context
        transport, protocol = await loop.create_connection(
            factory,
            host or "localhost",
            port,
            ssl=context,
            server_hostname=None if context is None else host if context.check_hostname else "",
            ssl_handshake_timeout=self._handshake_seconds if context else None,
        )
        _keep_alive(transport.get_extra_info("socket"))
        return protocol

    async def listen(self, address: str, factory: Factory) -> Listener:
        """Give each connection to ``HOST:PORT`` a new protocol; port 0: any free one.

        Raises
        ------
        ResourceError
            The port is taken, or this process may not have it.
        ConfigError
            It is not an address, or not of this machine.
        """
        host, port = split_address(address, "the address to listen on", "7700")
        loop = asyncio.get_running_loop()
        context = self._server_context
        try:
            server = await loop.create_server(
                factory,
                host or None,
                port,
                ssl=context,
                backlog=_BACKLOG,
                ssl_handshake_timeout=self._handshake_seconds if context else None,
                start_serving=False,
            )
            for one in server.sockets:
                _keep_alive(one)  # what it accepts inherits that
            await server.start_serving()
        except OSError as error:
            raise _listen_error(address, error) from error
        bound = server.sockets[0].getsockname()
        return _TcpListener(server, join_address(bound[0], bound[1]))


def _keep_alive(wire: socket.socket) -> None:
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_SECONDS),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS),
    )
    for level, option, value in options:
        wire.setsockopt(level, option, value)


def _listen_error(address: str, error: OSError) -> ConfigError | ResourceError:
    cause = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return ResourceError(
            f"cannot listen on {address}: the port is in use",
            cause=cause,
            hint="port 0 takes any free one",
        )
    if error.errno == errno.EACCES:
        return ResourceError(
            f"cannot listen on {address}: not allowed",
            cause=cause,
            hint="ports below 1024 are for privileged processes",
        )
    return ConfigError(f"cannot listen on {address}: not an address of this machine", cause=cause)
