"""The handshake and the states of a connection, without a socket.

A connection is settled in four frames, before which nothing else is spoken:

    client                                server
    hello (version, cluster, role,
           name, nonce)            ──▶
                                   ◀──    challenge (role, nonce, proof)
    proof                          ──▶
                                   ◀──    welcome (shard, of, prefixes, incarnation, job)

Either proof is made with the token of the client's role over both hellos, so neither names, roles
nor nonces can be changed under way, and neither can be played back on another connection.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from streamlearn.errors import AccessError, ProtocolError
from streamlearn.net.frame import (
    ALIVE,
    ANSWER,
    CHALLENGE,
    ERROR,
    HELLO,
    PROOF,
    REASONS,
    REQUEST,
    VERSION,
    WELCOME,
    Buffer,
    FrameError,
)
from streamlearn.net.security import (
    CLIENT_LABEL,
    NONCE_BYTES,
    PROOF_BYTES,
    ROLES,
    SERVER_LABEL,
    SHARD,
    Secrets,
    proof,
    same,
)

__all__ = [
    "AWAIT_CHALLENGE",
    "AWAIT_HELLO",
    "AWAIT_PROOF",
    "AWAIT_WELCOME",
    "CLIENT_OPEN",
    "SERVER_OPEN",
    "TRANSITIONS",
    "ClientHandshake",
    "EndedError",
    "Peer",
    "ServerHandshake",
    "Welcome",
    "decode_error",
    "encode_error",
    "frame_sizes",
    "printable",
]

PEER_NAME_BYTES_MAX: Final = 64
JOB_BYTES_MAX: Final = 256
ERROR_BYTES_MAX: Final = 200

AWAIT_HELLO: Final = "await hello"
AWAIT_PROOF: Final = "await proof"
SERVER_OPEN: Final = "server open"
AWAIT_CHALLENGE: Final = "await challenge"
AWAIT_WELCOME: Final = "await welcome"
CLIENT_OPEN: Final = "client open"
ENDED: Final = "ended"

# state, kind received: state. What is not here ends the connection.
TRANSITIONS: Final[Mapping[str, Mapping[int, str]]] = {
    AWAIT_HELLO: {HELLO: AWAIT_PROOF, ERROR: ENDED},
    AWAIT_PROOF: {PROOF: SERVER_OPEN, ERROR: ENDED},
    SERVER_OPEN: {REQUEST: SERVER_OPEN, ALIVE: SERVER_OPEN, ERROR: ENDED},
    AWAIT_CHALLENGE: {CHALLENGE: AWAIT_WELCOME, ERROR: ENDED},
    AWAIT_WELCOME: {WELCOME: CLIENT_OPEN, ERROR: ENDED},
    CLIENT_OPEN: {ANSWER: CLIENT_OPEN, ALIVE: CLIENT_OPEN, ERROR: ENDED},
}

_HELLO: Final = struct.Struct("<BB32s")
_CHALLENGE: Final = struct.Struct("<B32s32s")
_WELCOME: Final = struct.Struct("<IIHHQ")
_SIZES: Final = {
    HELLO: _HELLO.size + PEER_NAME_BYTES_MAX,
    CHALLENGE: _CHALLENGE.size,
    PROOF: PROOF_BYTES,
    WELCOME: _WELCOME.size + JOB_BYTES_MAX,
    ALIVE: 0,
    ERROR: ERROR_BYTES_MAX,
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end.

    Attributes
    ----------
    role : str
        One of ``security.ROLES``.
    name : str
        At most 64 bytes of UTF-8, printable.
    """

    role: str
    name: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a server says of itself at the end of the handshake.

    Attributes
    ----------
    shard, of : int
        Which shard, of how many.
    low, high : int
        Its key prefixes, ``[low, high)``.
    incarnation : int
        New whenever it started.
    job : str
        Signature of the job, at most 256 bytes.
    """

    shard: int
    of: int
    low: int
    high: int
    incarnation: int
    job: str

    def encode(self) -> bytes:
        """Return the body of a welcome."""
        job = self.job.encode()
        assert len(job) <= JOB_BYTES_MAX, "a job's signature is at most 256 bytes"
        return _WELCOME.pack(self.shard, self.of, self.low, self.high, self.incarnation) + job

    @classmethod
    def decode(cls, body: Buffer) -> Welcome:
        """Read the body of a welcome.

        Raises
        ------
        FrameError
            It is none.
        """
        if len(body) < _WELCOME.size:
            raise FrameError(f"a welcome of {len(body)} bytes, at least {_WELCOME.size} expected")
        shard, of, low, high, incarnation = _WELCOME.unpack_from(body)
        if shard >= of or low >= high or high > 256:
            raise FrameError(f"a welcome from shard {shard} of {of} with prefixes [{low}, {high})")
        return cls(shard, of, low, high, incarnation, _text(body[_WELCOME.size :], "a job"))


class EndedError(ProtocolError):
    """The peer ended the connection and said why.

    Parameters
    ----------
    reason : str
        One of ``frame.REASONS``.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        reason: str = "internal",
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.reason = reason


def frame_sizes(state: str, frame_bytes_max: int) -> dict[int, int]:
    """Return the kinds of frame that may come in a state, each with its body's limit in bytes."""
    return {kind: _SIZES.get(kind, frame_bytes_max) for kind in TRANSITIONS[state]}


def encode_error(reason: str, text: str) -> bytes:
    """Return the body of an error frame; a long text is cut."""
    room = ERROR_BYTES_MAX - 1
    cut = text.encode()[:room].decode(errors="ignore")
    return bytes([REASONS.index(reason)]) + cut.encode()


def decode_error(body: Buffer) -> EndedError:
    """Return what the peer says in an error frame, made fit to print.

    Raises
    ------
    FrameError
        It says nothing that could be understood.
    """
    if not len(body) or not 0 < body[0] < len(REASONS):
        raise FrameError("an error frame gives no known reason")
    text = printable(bytes(body[1:]).decode(errors="replace"))
    return EndedError("the peer ended the connection", cause=text, reason=REASONS[body[0]])


def printable(text: str) -> str:
    """Return a peer's text with all that could move a cursor or break a line made ``?``."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


class ClientHandshake:
    """The side that connects.

    Parameters
    ----------
    cluster_id : int
    peer : Peer
        What this side is.
    secrets : Secrets
    nonce : bytes
        32 bytes, new for this connection.
    server_roles : frozenset of str, optional
        Roles that the server's certificate names; None without TLS.

    Attributes
    ----------
    state : str
        See ``TRANSITIONS``.
    welcome : Welcome or None
        What the server said, once settled.
    """

    def __init__(
        self,
        cluster_id: int,
        peer: Peer,
        secrets: Secrets,
        nonce: bytes,
        server_roles: frozenset[str] | None = None,
    ) -> None:
        self.state = AWAIT_CHALLENGE
        self.welcome: Welcome | None = None
        self._token = secrets.token(peer.role)
        if self._token is None:
            raise AccessError(f"there is no token for role {peer.role!r}")
        if server_roles is not None and SHARD not in server_roles:
            raise AccessError(
                f"the server's certificate is for {_listed(server_roles)}, expected {SHARD}",
                hint="its organizational unit (OU) names what it may be",
            )
        self.hello = _encode_hello(peer, nonce)
        self._binding = _binding(cluster_id)

    def received(self, kind: int, body: Buffer) -> bytes | None:
        """Take a frame of the handshake; return the body of the proof where one is due.

        Raises
        ------
        AccessError
            The server does not have the token.
        FrameError
            A body is not what it must be.
        """
        state = TRANSITIONS[self.state][kind]
        if kind == WELCOME:
            self.welcome = Welcome.decode(body)
            self.state = state
            return None
        challenge = bytes(body)
        if len(challenge) != _CHALLENGE.size:
            raise FrameError(f"a challenge of {len(challenge)} bytes, expected {_CHALLENGE.size}")
        role, _, theirs = _CHALLENGE.unpack(challenge)
        if role != ROLES.index(SHARD):
            raise FrameError(f"a challenge from role {role}, expected {ROLES.index(SHARD)} (shard)")
        assert self._token is not None
        parts = (self._binding, self.hello, challenge[:-PROOF_BYTES])
        if not same(theirs, proof(self._token, SERVER_LABEL, *parts)):
            raise AccessError("the server does not have the token of this side")
        self.state = state
        return proof(self._token, CLIENT_LABEL, *parts)


class ServerHandshake:
    """The side that listens.

    Parameters
    ----------
    cluster_id : int
    secrets : Secrets
    nonce : bytes
        32 bytes, new for this connection.
    client_roles : frozenset of str, optional
        Roles that the client's certificate names; None without TLS.

    Attributes
    ----------
    state : str
        See ``TRANSITIONS``.
    peer : Peer or None
        Who it is, once settled.
    """

    def __init__(
        self,
        cluster_id: int,
        secrets: Secrets,
        nonce: bytes,
        client_roles: frozenset[str] | None = None,
    ) -> None:
        assert len(nonce) == NONCE_BYTES
        self.state = AWAIT_HELLO
        self.peer: Peer | None = None
        self._claimed: Peer | None = None
        self._secrets = secrets
        self._nonce = nonce
        self._client_roles = client_roles
        self._expected = b""
        self._binding = _binding(cluster_id)

    def received(self, kind: int, body: Buffer) -> bytes | None:
        """Take a frame of the handshake; return the body of the challenge where one is due.

        After the proof the state is ``SERVER_OPEN`` and a welcome is due.

        Raises
        ------
        AccessError
            The peer may not be what it says.
        FrameError
            A body is not what it must be.
        """
        state = TRANSITIONS[self.state][kind]
        reply = None
        if kind == HELLO:
            reply = self._challenge(bytes(body))
        else:
            self._check(bytes(body))
        self.state = state
        return reply

    def _challenge(self, hello: bytes) -> bytes:
        peer = _decode_hello(hello)
        if self._client_roles is not None and peer.role not in self._client_roles:
            raise AccessError(
                f"the certificate of this {peer.role} is for {_listed(self._client_roles)}",
                hint="its organizational unit (OU) names what it may be",
            )
        token = self._secrets.token(peer.role)
        if token is None:
            raise AccessError(f"role {peer.role!r} has no token here")
        challenge = bytes([ROLES.index(SHARD)]) + self._nonce
        parts = (self._binding, hello, challenge)
        self._expected = proof(token, CLIENT_LABEL, *parts)
        self._claimed = peer
        return challenge + proof(token, SERVER_LABEL, *parts)

    def _check(self, theirs: bytes) -> None:
        if not same(theirs, self._expected):
            assert self._claimed is not None
            raise AccessError(f"this {self._claimed.role} does not have the token of its role")
        self.peer = self._claimed


def _binding(cluster_id: int) -> bytes:
    return bytes([VERSION]) + cluster_id.to_bytes(8, "little")


def _encode_hello(peer: Peer, nonce: bytes) -> bytes:
    assert len(nonce) == NONCE_BYTES
    name = peer.name.encode()
    assert 0 < len(name) <= PEER_NAME_BYTES_MAX, f"a name of {len(name)} bytes, 1 to 64 expected"
    return _HELLO.pack(ROLES.index(peer.role), len(name), nonce) + name


def _decode_hello(body: bytes) -> Peer:
    if len(body) <= _HELLO.size:
        raise FrameError(f"a hello of {len(body)} bytes, more than {_HELLO.size} expected")
    role, size, _ = _HELLO.unpack_from(body)
    if len(body) != _HELLO.size + size:
        raise FrameError(f"a hello of {len(body)} bytes with a name of {size}")
    if role >= len(ROLES):
        raise FrameError(f"a hello from role {role}, expected less than {len(ROLES)}")
    return Peer(ROLES[role], _text(body[_HELLO.size :], "a peer's name"))


def _text(body: Buffer, what: str) -> str:
    try:
        text = bytes(body).decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"{what} is not UTF-8", cause=str(error)) from error
    if not text.isprintable():
        raise FrameError(f"{what} is {text!r}, expected printable text")
    return text


def _listed(roles: frozenset[str]) -> str:
    return ", ".join(sorted(roles)) or "no role"
