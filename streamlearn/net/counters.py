"""Plain integers that the wire counts; metrics read them at scrape time."""

from __future__ import annotations

from collections import Counter

__all__ = ["Counters"]


class Counters:
    """What went over connections since the process began; both sides of one process may share it.

    Attributes
    ----------
    requests : Counter of str
        By kind of message: received by a server, sent by a link.
    bytes_in, bytes_out : int
        On the wire, headers included (TLS is not).
    plain_bytes_in, plain_bytes_out : int
        The same before compression.
    faults : Counter of str
        Connections ended by an error, by reason (``frame.REASONS``); requests refused by the
        server itself (``forbidden``).
    sessions, sessions_total : int
        Open now, handshake settled; ever settled.
    links, links_total : int
        The same of links.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.plain_bytes_in = 0
        self.plain_bytes_out = 0
        self.sessions = 0
        self.sessions_total = 0
        self.links = 0
        self.links_total = 0
