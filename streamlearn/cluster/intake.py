"""What a server hands to a lane: connections and requests, in the order in which they came."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

from streamlearn.net.server import Session
from streamlearn.protocol import Message

__all__ = ["Event", "Intake"]

# ("opened", session), ("request", session, request, message), ("closed", session), or the host's
# own.
Event: TypeAlias = tuple[Any, ...]


class Intake:
    """Events that wait for the next turn of a lane; a server's ``Requests``.

    Attributes
    ----------
    sessions : dict of int to Session
        Open ones, by id.
    events : list of tuple
        Bounded by what the server takes: ``requests_max`` of each session, ``inbox_bytes_max``.
    wake : asyncio.Event
        Set where there is something to do.
    """

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}
        self.events: list[Event] = []
        self.wake = asyncio.Event()

    def opened(self, session: Session) -> None:
        """Note a new connection."""
        self.sessions[session.id] = session
        self.post(("opened", session.id))

    def received(self, session: Session, request_id: int, message: Message) -> None:
        """Take a request."""
        self.post(("request", session.id, request_id, message))

    def closed(self, session: Session) -> None:
        """Note the end of a connection."""
        self.sessions.pop(session.id, None)
        self.post(("closed", session.id))

    def post(self, event: Event) -> None:
        """Have an event dealt with in the next turn."""
        self.events.append(event)
        self.wake.set()

    def take(self) -> list[Event]:
        """Return the events since the last call."""
        events, self.events = self.events, []
        return events
