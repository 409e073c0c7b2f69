"""What followers are sent: the state once, then the log's records as they become durable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec

from streamlearn.errors import LogError
from streamlearn.protocol import Answer, Fault, FollowCut, FollowPart, FollowRecord, FollowTopics
from streamlearn.shards.arena import Part, sliced
from streamlearn.shards.image import ImageMeta, Imaging
from streamlearn.shards.shard import Shard

__all__ = ["Feeds"]

# Records kept in memory for followers: seconds of learning. One that falls further behind reads the
# log, or, where there is none, begins again.
RECENT_BYTES_MAX: Final = 64 << 20
# What may wait to be sent to one follower.
BACKLOG_BYTES_MAX: Final = 8 << 20
# Rows of a table that go in one message: 8 MB of them, or of the embeddings that they may have.
_PART_ROWS: Final = 1 << 18
# Sent to one follower between two batches of requests.
_TURN_BYTES: Final = 4 << 20


class Records(Protocol):
    """The log, to be read from."""

    def read(self, after: int, until: int | None = None) -> Iterator[tuple[int, memoryview]]:
        """Yield the records behind ``after``, up to ``until``; raises LogError."""
        ...


class _Feed:
    """One follower: what it has been sent. An image's sink until it has the state."""

    def __init__(self, feeds: Feeds, session: int, request: int, after: int) -> None:
        self.session = session
        self.request = request
        self.after = after  # last record sent; -1: it has no state yet
        self.gone = False
        self._feeds = feeds
        self._meta: ImageMeta | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes another part now."""
        return self._feeds.backlog(self.session) < BACKLOG_BYTES_MAX

    def begin(self, meta: ImageMeta) -> None:
        """Begin with the image of this moment."""
        self._meta = meta

    def part(self, part: Part) -> None:
        """Take a part, and send it in pieces that a message holds."""
        tiers = self._feeds.tiers
        most = _PART_ROWS if tiers is None else max(1, _PART_ROWS * 8 // tiers.floats(tiers.dim))
        for first in range(0, len(part.rows), most):
            piece = sliced(part, first, min(first + most, len(part.rows)), tiers)
            rows, vectors = piece.rows.reshape(-1).view("u1"), piece.vectors.view("u1")
            self._feeds.say(self, FollowPart(rows.data, vectors.data))

    def topics(self, piece: FollowTopics) -> None:
        """Take topics of tokens, and send them."""
        self._feeds.say(self, piece)

    def end(self) -> None:
        """Have all of the image: records behind it follow once they are durable."""
        assert self._meta is not None
        self._feeds.finish(self, self._meta)


class Feeds:
    """The followers of a shard.

    Parameters
    ----------
    shard : Shard
    log : Records or None
        Where older records are read; None: only recent ones can be had.

    Attributes
    ----------
    imaging : Imaging
        Takes the shard's images, a snapshot's too.
    backlog : callable
        Bytes that wait to be sent in a session; set by whoever sends.
    """

    def __init__(self, shard: Shard, log: Records | None) -> None:
        self.imaging = Imaging(shard)
        self.tiers = shard.spec.job.model.tiers
        self.backlog: Callable[[int], int] = lambda _session: 0
        self._log = log
        self._feeds: list[_Feed] = []
        self._recent: deque[tuple[int, bytes | bytearray]] = deque()
        self._recent_bytes = 0
        self._last = shard.lsn
        self._out: list[tuple[int, int, Answer]] = []
        self._cuts: list[tuple[_Feed, ImageMeta]] = []

    def __len__(self) -> int:
        return len(self._feeds)

    def add(self, session: int, request: int, after: int) -> None:
        """Feed a follower that has the state after record ``after`` (-1: none)."""
        feed = _Feed(self, session, request, after)
        self._feeds.append(feed)
        if after < 0 or after > self._last or not self._reaches(after):
            feed.after = -1
            self.imaging.want(feed)

    def drop(self, session: int) -> None:
        """Forget the followers of a session."""
        for feed in self._feeds:
            feed.gone = feed.gone or feed.session == session
        self._feeds = [feed for feed in self._feeds if not feed.gone]

    def note(self, lsn: int, body: bytes | bytearray | None) -> None:
        """Keep a record that was applied; ``body`` is None only where nobody follows."""
        self._last = lsn
        if not self._feeds:
            self._recent.clear()
            self._recent_bytes = 0
            return
        assert body is not None
        self._recent.append((lsn, body))
        self._recent_bytes += len(body)
        while self._recent_bytes > RECENT_BYTES_MAX:
            self._recent_bytes -= len(self._recent.popleft()[1])

    def say(self, feed: Any, message: Answer) -> None:
        """Send a follower a message."""
        self._out.append((feed.session, feed.request, message))

    def finish(self, feed: Any, meta: ImageMeta) -> None:
        """Send a follower the rest of its image, once that is durable."""
        self._cuts.append((feed, meta))

    def due(self, durable: int) -> list[tuple[int, int, Answer]]:
        """Return (session, request, message) of what may be sent now."""
        for feed, meta in self._cuts:
            if meta.lsn <= durable and not feed.gone:
                feed.after = meta.lsn
                self.say(feed, FollowCut(meta.lsn, memoryview(msgspec.msgpack.encode(meta))))
        self._cuts = [(feed, meta) for feed, meta in self._cuts if meta.lsn > durable]
        for feed in list(self._feeds):
            if 0 <= feed.after < durable and feed.ready:
                self._send(feed, durable)
        out, self._out = self._out, []
        return out

    def _send(self, feed: _Feed, durable: int) -> None:
        sent = 0
        with suppress(LogError):  # dropped or damaged: it is told so below
            for lsn, body in self._behind(feed, durable):
                if lsn > durable or sent > _TURN_BYTES:
                    return
                self.say(feed, FollowRecord(lsn, memoryview(body)))
                feed.after = lsn
                sent += len(body)
        if feed.after < durable and not sent:
            self.say(feed, Fault("stale", "the records behind yours are gone", again=True))
            self.drop(feed.session)

    def _behind(self, feed: _Feed, durable: int) -> Iterator[tuple[int, Any]]:
        """Yield the records behind a follower's last, from memory or from the log."""
        if self._recent and self._recent[0][0] <= feed.after + 1:
            skip = feed.after + 1 - self._recent[0][0]
            for at in range(skip, len(self._recent)):
                yield self._recent[at]
        elif self._log is not None:
            yield from self._log.read(feed.after, durable)

    def _reaches(self, after: int) -> bool:
        """Say whether all records behind ``after`` can be had."""
        if after == self._last:
            return True
        if self._recent and self._recent[0][0] <= after + 1:
            return True
        if self._log is None:
            return False
        try:
            first = next(self._log.read(after), None)
        except LogError:  # it has been dropped since
            return False
        return first is not None
