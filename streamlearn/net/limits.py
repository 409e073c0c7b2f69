"""What a connection may cost: every bound of the wire, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds of connections; the same at both ends is not needed, but a frame must pass both.

    Attributes
    ----------
    frame_bytes_max : int
        Of a message's body, as stored and as decompressed; memory is taken only within it. A
        segment of 20 million keys over 2 shards is 5 MB; a minibatch's keys are less.
    requests_max : int
        Unanswered requests of one session; past it nothing more is read from that peer.
    inbox_bytes_max : int
        Bodies of all sessions of a server that are being read or wait for an answer.
    outbox_bytes_max : int
        Answers that a peer has not read; past it (a follower that stands still while records are
        sent on) the session is closed. Requests stop being read long before.
    write_bytes_high : int
        From here on a connection is not ``writable``, until a quarter of it is left.
    sessions_max : int
        Connections of one server, those in the handshake included.
    handshake_seconds : float
        From connecting to the end of the handshake.
    silence_seconds : float
        A peer that has said nothing for that long is lost. Each side says something four times
        as often, however busy it is; a stopped process and a cut cable look the same from here.
    linger_seconds : float
        How long a connection that ends may take to send what it has to say.
    """

    frame_bytes_max: int = 32 << 20
    requests_max: int = 64
    inbox_bytes_max: int = 256 << 20
    outbox_bytes_max: int = 256 << 20
    write_bytes_high: int = 1 << 20
    sessions_max: int = 1024
    handshake_seconds: float = 10.0
    silence_seconds: float = 20.0
    linger_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Check what the bounds must be to one another."""
        # a compressed body takes memory twice while it is opened
        assert self.inbox_bytes_max >= 2 * self.frame_bytes_max, "no frame would ever be admitted"
        assert self.outbox_bytes_max >= self.write_bytes_high
        assert self.requests_max >= 1
