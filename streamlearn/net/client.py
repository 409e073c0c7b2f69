"""Links: one connection to a server each, requests pipelined; never opened again."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, get_args

from streamlearn.errors import (
    AccessError,
    PeerLostError,
    ProtocolError,
    RefusedError,
    StreamlearnError,
)
from streamlearn.net.connection import AWAIT_CHALLENGE, ClientHandshake, Peer, Welcome, printable
from streamlearn.net.counters import Counters
from streamlearn.net.frame import CHALLENGE, HELLO, PROOF, REQUEST, Buffer
from streamlearn.net.limits import Limits
from streamlearn.net.network import Network
from streamlearn.net.packing import NONE, Packer
from streamlearn.net.security import Secrets, certificate_roles, cluster_id
from streamlearn.net.transport import USER, Channel
from streamlearn.protocol import Answer, Fault, Message, decode, encode

__all__ = ["Link"]

_ANSWERS: Final = frozenset(get_args(Answer))


class Link:
    """A connection to a server, settled.

    Attributes
    ----------
    address : str
    welcome : Welcome
        What the server said of itself.
    lost : asyncio.Event
        Set once the link serves no more; it is never opened again.
    error : StreamlearnError or None
        Why; None: it was closed here.
    """

    welcome: Welcome

    def __init__(
        self,
        address: str,
        *,
        cluster: str,
        peer: Peer,
        secrets: Secrets,
        limits: Limits,
        nonce: Callable[[], bytes],
        counters: Counters,
        compression: str,
    ) -> None:
        self.address = address
        self.lost = asyncio.Event()
        self.error: StreamlearnError | None = None
        self._peer = peer
        self._secrets = secrets
        self._limits = limits
        self._nonce = nonce
        self._counters = counters
        self._packer = Packer(compression)
        self._cluster_id = cluster_id(cluster)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._handshake: ClientHandshake | None = None
        self._last_id = 0
        self._open: dict[int, asyncio.Future[Answer]] = {}
        self._subscribed: dict[int, Callable[[Answer], None]] = {}
        self._channel = Channel(
            self,
            cluster_id=self._cluster_id,
            state=AWAIT_CHALLENGE,
            limits=limits,
            counters=counters,
        )

    @classmethod
    async def open(
        cls,
        address: str,
        *,
        cluster: str,
        peer: Peer,
        secrets: Secrets,
        network: Network,
        limits: Limits,
        nonce: Callable[[], bytes],
        counters: Counters,
        compression: str = NONE,
    ) -> Link:
        """Connect and settle who is who.

        Parameters
        ----------
        address : str
            ``HOST:PORT``.
        cluster : str
            Name of the cluster.
        peer : Peer
            What this side is.
        secrets : Secrets
        network : Network
        limits : Limits
        nonce : callable
            Returns 32 random bytes, never the same again.
        counters : Counters
        compression : str
            Of requests: one of ``packing.COMPRESSIONS``.

        Raises
        ------
        AccessError
            One side does not have what the other asks for: a token, a certificate, a role.
        ClusterError
            The server belongs to another cluster.
        ProtocolError
            It speaks another protocol or another version of this one.
        PeerLostError
            It cannot be reached, is busy, stops, or did not answer in time.
        """
        link = cls(
            address,
            cluster=cluster,
            peer=peer,
            secrets=secrets,
            limits=limits,
            nonce=nonce,
            counters=counters,
            compression=compression,
        )
        try:
            async with asyncio.timeout(limits.handshake_seconds):
                await network.connect(address, lambda: link._channel)
                await link._ready
        except TimeoutError as error:
            link._channel.abort()
            raise PeerLostError(
                f"{address} did not answer within {limits.handshake_seconds:g} s"
            ) from error
        except ssl.SSLError as error:
            link._channel.abort()
            raise AccessError(f"TLS with {address} failed", cause=str(error)) from error
        except OSError as error:
            link._channel.abort()
            raise PeerLostError(
                f"{address} cannot be reached", cause=error.strerror or str(error)
            ) from error
        except BaseException:
            link._channel.abort()
            raise
        return link

    @property
    def unanswered(self) -> int:
        """Requests that wait for an answer, subscriptions not among them."""
        return len(self._open)

    def post(self, message: Message) -> tuple[int, asyncio.Future[Answer]]:
        """Send a request; return its id and the future of its answer.

        The future raises RefusedError where the server refuses, and PeerLostError where the link
        ends first: whether the request was done is then open.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._channel.ended:
            self._last_id += 1
            _fail(future, self._lost_error())
            return self._last_id, future
        request_id = self._send(message)
        self._open[request_id] = future
        return request_id, future

    async def ask(self, message: Message) -> Answer:
        """Send a request and return its answer, once there is room to send it.

        Raises
        ------
        RefusedError, PeerLostError
            As :meth:`post`.
        """
        await self._channel.flow.wait()
        _, future = self.post(message)
        return await future

    def subscribe(self, message: Message, callback: Callable[[Answer], None]) -> int:
        """Send a request with many answers, a Fault among them; return its id.

        ``callback`` is given each, on the loop; what it raises ends the link. ``lost`` tells the
        end. :meth:`pause` and :meth:`resume` bound what comes.
        """
        if self._channel.ended:
            raise self._lost_error()
        request_id = self._send(message)
        self._subscribed[request_id] = callback
        return request_id

    async def writable(self) -> None:
        """Wait while the server is behind with reading; return at the end of the link, too."""
        await self._channel.flow.wait()

    def pause(self) -> None:
        """Read no more answers until :meth:`resume`; the server is told nothing, it feels it."""
        if not self._channel.ended:
            self._channel.hold(USER)

    def resume(self) -> None:
        """Read answers again."""
        if not self._channel.ended:
            self._channel.release(USER)

    async def close(self) -> None:
        """Send what was posted and close; requests without an answer raise PeerLostError."""
        self._channel.close()
        await self._channel.closed.wait()
        await self.lost.wait()

    # Called by the channel.

    def connected(self) -> None:
        """Say hello."""
        certificate = self._channel.certificate
        tls = self._secrets.tls is not None
        self._handshake = ClientHandshake(
            self._cluster_id,
            self._peer,
            self._secrets,
            self._nonce(),
            certificate_roles(certificate) if tls else None,
        )
        self._channel.send(HELLO, 0, self._handshake.hello)

    def greeted(self, kind: int, body: Buffer) -> None:
        """Take a frame of the handshake."""
        handshake = self._handshake
        assert handshake is not None
        reply = handshake.received(kind, body)
        self._channel.enter(handshake.state)
        if reply is not None:
            assert kind == CHALLENGE
            self._channel.settle()
            self._channel.send(PROOF, 0, reply)
            return
        assert handshake.welcome is not None
        self.welcome = handshake.welcome
        self._handshake = None
        self._channel.start_ticking()
        self._counters.links += 1
        self._counters.links_total += 1
        if not self._ready.done():
            self._ready.set_result(None)

    def received(self, request_id: int, body: Buffer, cost: int) -> None:
        """Give an answer to whoever asked."""
        message = decode(body)
        if type(message) not in _ANSWERS:
            raise ProtocolError(f"a {type(message).__name__} is no answer")
        future = self._open.pop(request_id, None)
        if future is not None:
            if future.done():  # whoever asked has given up
                return
            if type(message) is Fault:
                future.set_exception(
                    RefusedError(
                        printable(message.message),
                        cause=f"{self.address} answered {printable(message.code)!r}",
                        code=message.code,
                        again=message.again,
                    )
                )
            else:
                future.set_result(message)  # type: ignore[arg-type]
            return
        callback = self._subscribed.get(request_id)
        if callback is None:
            raise ProtocolError(f"an answer to request {request_id}, which is not open")
        callback(message)  # type: ignore[arg-type]

    def wants_room(self, cost: int) -> None:
        """Never needed: a link takes what it asked for."""
        raise AssertionError

    def flowing(self, writable: bool) -> None:
        """Nothing to do: whoever asks waits for ``writable``."""

    def ended(self, error: StreamlearnError | None) -> None:
        """Fail what is open."""
        if hasattr(self, "welcome"):
            self._counters.links -= 1
        self.error = error
        open_requests, self._open = self._open, {}
        for future in open_requests.values():
            if not future.done():
                _fail(future, self._lost_error())
        self._subscribed.clear()
        if not self._ready.done():
            self._ready.set_exception(error or PeerLostError(f"{self.address} was left"))
            self._ready.exception()  # `open` may have given up
        self.lost.set()

    def gone(self) -> None:
        """Nothing left to do."""

    def _send(self, message: Message) -> int:
        body: Buffer = encode(message)
        size = len(body)
        if size > self._limits.frame_bytes_max:
            raise ValueError(f"a request of {size} bytes, at most {self._limits.frame_bytes_max}")
        kind = type(message)
        flags, body = self._packer.pack(kind, body)
        self._last_id += 1
        self._counters.requests[kind.__name__] += 1
        self._channel.send(REQUEST, self._last_id, body, size, flags)
        return self._last_id

    def _lost_error(self) -> PeerLostError:
        """Return a new error each time: one that is raised twice collects tracebacks."""
        error = self.error
        if error is None:
            return PeerLostError(f"the link to {self.address} is closed")
        return PeerLostError(
            f"the link to {self.address} ended",
            cause=f"{error.message}: {error.cause}" if error.cause else error.message,
        )


def _fail(future: asyncio.Future[Answer], error: StreamlearnError) -> None:
    future.set_exception(error)
    future.exception()  # whoever asked may have given up: nobody need hear of it then
