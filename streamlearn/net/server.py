"""Listening: sessions of peers that have said who they are, and what each may ask.

The server decides nothing about messages. It bounds what its peers may cost: unanswered requests a
session, bodies over all sessions, answers that are not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

from streamlearn.errors import ConfigError, PeerLostError, ProtocolError, StreamlearnError
from streamlearn.net.address import is_loopback, split_address
from streamlearn.net.connection import (
    AWAIT_HELLO,
    Peer,
    ServerHandshake,
    Welcome,
)
from streamlearn.net.counters import Counters
from streamlearn.net.frame import ANSWER, CHALLENGE, HELLO, WELCOME, Buffer, FrameError
from streamlearn.net.inbox import Inbox
from streamlearn.net.limits import Limits
from streamlearn.net.network import Listener, Network
from streamlearn.net.packing import NONE, Packer
from streamlearn.net.security import MAY_ASK, REQUESTS, Secrets, certificate_roles, cluster_id
from streamlearn.net.transport import REQUESTS as TOO_MANY
from streamlearn.net.transport import WRITES, Channel
from streamlearn.protocol import Answer, Done, Fault, Message, Ping, decode, encode

__all__ = ["Requests", "Server", "Session"]

_DONE: Final = bytes(encode(Done()))


class Requests(Protocol):
    """Takes what peers ask; called on the loop, must not wait.

    An error that it raises is this process's own, except ``ProtocolError``: that one costs the peer
    its connection.
    """

    def opened(self, session: Session) -> None:
        """Take note of a peer."""
        ...

    def received(self, session: Session, request_id: int, message: Message) -> None:
        """Take a request; ``session.send`` answers it, now or later."""
        ...

    def closed(self, session: Session) -> None:
        """Take note that a peer is gone; what it asked needs no answer."""
        ...


class Session:
    """A peer that has said who it is.

    Attributes
    ----------
    id : int
        New for each session of a server.
    peer : Peer
    unanswered : int
        Requests that wait for an answer.
    """

    def __init__(self, server: Server, identity: int, packer: Packer) -> None:
        self.id = identity
        self.peer = Peer("", "")
        self._server = server
        self._packer = packer
        self._channel = Channel(
            self,
            cluster_id=server.cluster_id,
            state=AWAIT_HELLO,
            limits=server.limits,
            counters=server.counters,
            admit=self._admit,
        )
        self._handshake: ServerHandshake | None = None
        self._allowed: frozenset[type] = frozenset()
        self._costs: dict[int, int] = {}
        self._taken = 0  # bytes of the inbox that are this session's
        self._last_id = 0

    @property
    def channel(self) -> Channel:
        """The connection, as the network takes it."""
        return self._channel

    @property
    def unanswered(self) -> int:
        """Requests that wait for an answer."""
        return len(self._costs)

    @property
    def address(self) -> str:
        """Where the peer is, for messages to operators."""
        return self._channel.peer_address

    def send(self, request_id: int, message: Answer) -> None:
        """Answer a request; further answers to the same one may follow.

        Nothing happens once the session is closed. Where answers pile up, :meth:`writable` tells.
        In place of one larger than a frame may be goes a Fault.
        """
        channel = self._channel
        if channel.ended:
            return
        body: Buffer = encode(message)
        limit = self._server.limits.frame_bytes_max
        if len(body) > limit:
            self._server.counters.faults["size"] += 1
            text = f"the answer would be {len(body)} bytes, at most {limit} are allowed"
            body = encode(Fault("invalid", text, again=False))
        size = len(body)
        flags, body = self._packer.pack(type(message), body)
        channel.send(ANSWER, request_id, body, size, flags)
        self._answered(request_id)
        if not channel.flow.is_set() and channel.backlog > self._server.limits.outbox_bytes_max:
            channel.refuse(
                PeerLostError(
                    f"{self.peer.role} {self.peer.name!r} leaves {channel.backlog} bytes unread"
                ),
                "slow",
            )

    async def writable(self) -> None:
        """Wait while the peer is behind with reading what it was sent; return at the end, too."""
        await self._channel.flow.wait()

    def close(self, reason: str) -> None:
        """Tell the peer why and end the session; answers already sent still go out."""
        self._channel.refuse(PeerLostError(reason), "draining")

    # Called by the channel.

    def connected(self) -> None:
        """Take part in the handshake, if there is room."""
        server = self._server
        if not server.takes(self):
            raise FrameError(
                f"{server.limits.sessions_max} sessions are open, no more are taken", reason="busy"
            )
        certificate = self._channel.certificate
        tls = server.secrets.tls is not None
        self._handshake = ServerHandshake(
            server.cluster_id,
            server.secrets,
            server.nonce(),
            certificate_roles(certificate) if tls else None,
        )

    def greeted(self, kind: int, body: Buffer) -> None:
        """Take a frame of the handshake."""
        handshake = self._handshake
        assert handshake is not None
        reply = handshake.received(kind, body)
        self._channel.enter(handshake.state)
        if reply is not None:
            assert kind == HELLO
            self._channel.send(CHALLENGE, 0, reply)
            return
        assert handshake.peer is not None
        self.peer = handshake.peer
        self._handshake = None
        self._allowed = MAY_ASK[self.peer.role]
        self._channel.settle()
        self._channel.start_ticking()
        self._channel.send(WELCOME, 0, self._server.welcome().encode())
        self._server.opened(self)

    def received(self, request_id: int, body: Buffer, cost: int) -> None:
        """Take a request."""
        if request_id <= self._last_id:
            raise FrameError(
                f"request id {request_id} after {self._last_id}, expected a larger one",
                reason="order",
            )
        self._last_id = request_id
        message = decode(body)
        kind = type(message)
        if kind not in REQUESTS:
            raise ProtocolError(f"a {kind.__name__} is no request")
        server = self._server
        server.counters.requests[kind.__name__] += 1
        self._costs[request_id] = cost
        if len(self._costs) >= server.limits.requests_max:
            self._channel.hold(TOO_MANY)
        if kind is Ping:
            self._channel.send(ANSWER, request_id, _DONE)
            self._answered(request_id)
        elif kind in self._allowed:
            server.requests.received(self, request_id, message)
        else:
            server.counters.faults["forbidden"] += 1
            text = f"a {self.peer.role} may not ask {kind.__name__}"
            self.send(request_id, Fault("forbidden", text, again=False))

    def wants_room(self, cost: int) -> None:
        """Wait in line for room in the inbox."""
        self._server.inbox.wait(cost, self._admitted)

    def flowing(self, writable: bool) -> None:
        """Read no requests while the answers to earlier ones are not read."""
        if writable:
            self._channel.release(WRITES)
        else:
            self._channel.hold(WRITES)

    def ended(self, error: StreamlearnError | None) -> None:
        """Give back what the session held."""
        inbox = self._server.inbox
        inbox.leave(self._admitted)
        taken, self._taken = self._taken, 0
        inbox.give(taken)
        self._costs.clear()
        self._server.ended(self)

    def gone(self) -> None:
        """Make room for another."""
        self._server.gone(self)

    def _admit(self, cost: int) -> bool:
        if not self._server.inbox.take(cost):
            return False
        self._taken += cost
        return True

    def _admitted(self, cost: int) -> None:
        self._taken += cost
        self._channel.admitted()

    def _answered(self, request_id: int) -> None:
        cost = self._costs.pop(request_id, None)
        if cost is None:
            return
        if len(self._costs) == self._server.limits.requests_max - 1:
            self._channel.release(TOO_MANY)
        if cost:
            self._taken -= cost
            self._server.inbox.give(cost)


class Server:
    """Takes connections and gives what their peers ask to ``requests``.

    Parameters
    ----------
    cluster : str
        Name of the cluster; peers of another are refused.
    welcome : callable
        Returns what this server says of itself to a new peer.
    secrets : Secrets
    requests : Requests
    network : Network
    limits : Limits
    counters : Counters
    nonce : callable
        Returns 32 random bytes, never the same again.
    compression : str
        Of answers: one of ``packing.COMPRESSIONS``.

    Attributes
    ----------
    sessions : dict of int to Session
        Open ones, by id.
    inbox : Inbox
        Bytes of requests that are held.
    """

    def __init__(
        self,
        *,
        cluster: str,
        welcome: Callable[[], Welcome],
        secrets: Secrets,
        requests: Requests,
        network: Network,
        limits: Limits,
        counters: Counters,
        nonce: Callable[[], bytes],
        compression: str = NONE,
    ) -> None:
        self.cluster_id = cluster_id(cluster)
        self.welcome = welcome
        self.secrets = secrets
        self.requests = requests
        self.limits = limits
        self.counters = counters
        self.nonce = nonce
        self.inbox = Inbox(limits.inbox_bytes_max)
        self.sessions: dict[int, Session] = {}
        self._network = network
        self._packer = Packer(compression)
        self._listener: Listener | None = None
        self._ids = count(1)
        self._connections: dict[Session, None] = {}  # in the order in which they came
        self._stopping = False

    async def start(self, listen: str) -> str:
        """Listen at ``HOST:PORT``; return the address that it is bound to.

        Raises
        ------
        ConfigError
            It is not an address of this machine, or not loopback and there are no secrets.
        ResourceError
            The port is taken, or this process may not have it.
        """
        assert self._listener is None, "started already"
        host, _ = split_address(listen, "the address to listen on", "7700")
        if self.secrets.empty and not is_loopback(host):
            raise ConfigError(
                f"listening on {listen} would let everybody who reaches it read and change the "
                "model",
                hint="give a token file or TLS files, or listen on 127.0.0.1",
            )
        self._listener = await self._network.listen(listen, self._new_channel)
        return self._listener.address

    async def stop(self) -> None:
        """Take no more connections, tell every peer, close all."""
        self._stopping = True
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.close()
        for session in list(self._connections):
            session.close("the server stops")
        waits = [session.channel.closed.wait() for session in self._connections]
        await asyncio.gather(*waits)

    # Called by sessions.

    def takes(self, session: Session) -> bool:
        """Note a connection; False: there are as many as there may be."""
        self._connections[session] = None
        return len(self._connections) <= self.limits.sessions_max and not self._stopping

    def opened(self, session: Session) -> None:
        """Note a session."""
        self.sessions[session.id] = session
        self.counters.sessions += 1
        self.counters.sessions_total += 1
        self.requests.opened(session)

    def ended(self, session: Session) -> None:
        """Note the end of a session, or of a connection that never became one."""
        if self.sessions.pop(session.id, None) is not None:
            self.counters.sessions -= 1
            self.requests.closed(session)

    def gone(self, session: Session) -> None:
        """Note that a connection is closed."""
        self._connections.pop(session, None)

    def _new_channel(self) -> Channel:
        return Session(self, next(self._ids), self._packer).channel
