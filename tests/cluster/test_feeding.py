"""What followers are sent: the state once, then every durable record in order and once."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from streamlearn.cluster import feeding
from streamlearn.protocol import (
    Answer,
    Fault,
    FollowCut,
    FollowPart,
    FollowRecord,
    FollowTopics,
    decode,
    encode,
)
from streamlearn.shards.image import ImageMeta
from streamlearn.shards.shard import Shard
from tests.shard_parts import Desk, MemoryLog, job, keys_of, mark, push, spec

SPEC = spec(job(), 1, 2)
PLAIN = spec(job(durability="snapshot"), 1, 2)


class Copy:
    """A follower: what a session of a desk is sent makes its state.

    Parameters
    ----------
    desk : Feeding
    session : int
    """

    def __init__(self, desk: Feeding, session: int) -> None:
        self.desk = desk
        self.session = session
        self.shard: Shard | None = None
        self.images = 0
        self.faults: list[Fault] = []
        self._fresh: Shard | None = None

    def follow(self) -> None:
        """Ask for what it has not."""
        after = -1 if self.shard is None else self.shard.lsn
        self.desk.service.feeds.add(self.session, 1, after)

    def take(self, answer: Answer) -> None:
        """Apply what was sent."""
        if isinstance(answer, FollowPart):
            self._fresh = self._fresh or Shard(self.desk.spec)
            rows = np.frombuffer(answer.rows, np.uint64).reshape(-1, 4)
            self._fresh.table.insert_rows(rows, np.frombuffer(answer.vectors, np.float32))
        elif isinstance(answer, FollowTopics):
            assert self._fresh is not None
            assert self._fresh.topics is not None
            self._fresh.topics.put(answer)
        elif isinstance(answer, FollowCut):
            self.shard, self._fresh = self._fresh or Shard(self.desk.spec), None
            msgspec.msgpack.decode(answer.meta, type=ImageMeta).restore(self.shard)
            self.images += 1
        elif isinstance(answer, FollowRecord):
            assert self.shard is not None
            self.shard.apply(answer.lsn, decode(answer.body))
        else:
            assert isinstance(answer, Fault)
            self.faults.append(answer)


class Feeding(Desk):
    """A desk with followers."""

    def __init__(self, of, **more) -> None:
        self.copies: dict[int, Copy] = {}
        super().__init__(of, **more)
        self.open(1)
        self.clock = 0

    def copy(self, session: int) -> Copy:
        """Return a follower on a new connection."""
        self.open(session)
        self.copies[session] = Copy(self, session)
        return self.copies[session]

    def collect(self) -> None:
        """Give followers what they are sent."""
        for out in self.service.take_out():
            if out.session in self.copies:
                self.copies[out.session].take(out.message)

    def push(self, count: int = 1) -> None:
        """Apply pushes, durable at once where no log is kept."""
        for _ in range(count):
            keys = keys_of(self.spec, *range(self.clock, self.clock + 5))
            self.ask(1, push(self.spec, keys, clock=self.clock, at=mark(self.clock + 1)))
            self.clock += 1

    def settle(self, *, durable: bool = True) -> None:
        """Send what there is to send."""
        if durable:
            self.service.durable_lsn = self.shard.lsn
        while self.service.feeds.imaging.step():
            self.collect()
        for _ in range(20):
            self.collect()


def test_follower_is_sent_the_state_and_then_records():
    made = Feeding(SPEC, log=MemoryLog())
    made.push(5)
    copy = made.copy(2)
    copy.follow()
    made.settle()
    assert copy.shard.digest() == made.shard.digest()
    made.push(5)
    made.settle()
    assert copy.shard.digest() == made.shard.digest()
    assert (copy.images, copy.faults) == (1, [])


def test_pushes_go_on_while_the_state_is_sent():
    made = Feeding(SPEC, log=MemoryLog())
    made.push(5)
    copy = made.copy(2)
    copy.follow()
    made.service.feeds.imaging.step()
    made.push(5)
    made.settle()
    made.push(1)
    made.settle()
    assert copy.shard.digest() == made.shard.digest()


def test_nothing_is_sent_before_it_is_durable():
    made = Feeding(SPEC, log=MemoryLog())
    made.push(3)
    copy = made.copy(2)
    copy.follow()
    made.settle(durable=False)
    assert copy.shard is None
    made.settle()
    made.push(3)
    made.settle(durable=False)
    assert copy.shard.lsn == 3
    made.service.durable_lsn = 5
    made.settle(durable=False)
    assert copy.shard.lsn == 5
    made.settle()
    assert copy.shard.lsn == 6


def test_follower_goes_on_from_the_log():
    made = Feeding(SPEC, log=MemoryLog())
    first = made.copy(2)
    first.follow()
    made.push(3)
    made.settle()
    made.close(2)
    made.push(7)
    second = made.copy(3)
    second.shard = first.shard
    second.follow()
    made.settle()
    assert second.shard.digest() == made.shard.digest()
    assert (second.images, second.faults) == (0, [])


def test_follower_whose_records_were_dropped_is_sent_the_state():
    made = Feeding(SPEC, log=MemoryLog())
    first = made.copy(2)
    first.follow()
    made.push(3)
    made.settle()
    made.close(2)
    made.push(7)
    made.log.drop_before(8)
    second = made.copy(3)
    second.shard = first.shard
    second.follow()
    made.settle()
    assert second.shard.digest() == made.shard.digest()
    assert second.images == 1


def test_follower_that_knows_more_than_the_shard_is_sent_the_state():
    made = Feeding(SPEC, log=MemoryLog())
    made.push(3)
    copy = made.copy(2)
    copy.shard = Shard(SPEC)
    copy.shard.lsn = 99
    copy.follow()
    made.settle()
    assert (copy.images, copy.shard.digest()) == (1, made.shard.digest())


@pytest.mark.parametrize("of", [SPEC, PLAIN], ids=["log", "no log"])
def test_followers_come_and_go_and_miss_nothing(of):
    log = MemoryLog() if of is SPEC else None
    made = Feeding(of, log=log)
    made.push(4)
    first = made.copy(2)
    first.follow()
    made.settle()
    made.close(2)
    made.push(5)  # nobody follows
    second = made.copy(3)
    second.follow()
    made.settle()
    made.push(2)
    made.settle()
    assert (second.shard.digest(), second.faults) == (made.shard.digest(), [])
    # the first comes back: what it lacks is known from the log alone
    third = made.copy(4)
    third.shard = first.shard
    third.follow()
    made.settle()
    made.push(3)
    made.settle()
    for copy in (second, third):
        assert copy.faults == []
        assert copy.shard.digest() == made.shard.digest()
    assert third.images == (0 if log else 1)


def test_several_followers_are_sent_the_same():
    made = Feeding(PLAIN)
    made.push(2)
    copies = [made.copy(session) for session in (2, 3, 4)]
    for copy in copies:
        copy.follow()
        made.push(1)
        made.settle()
    assert {copy.shard.digest() for copy in copies} == {made.shard.digest()}


def test_follower_that_falls_behind_what_is_kept_is_told_so(monkeypatch):
    monkeypatch.setattr(feeding, "RECENT_BYTES_MAX", 1000)
    made = Feeding(PLAIN)
    copy = made.copy(2)
    copy.follow()
    made.settle()
    made.service.feeds.backlog = lambda session: feeding.BACKLOG_BYTES_MAX
    made.push(40)
    made.settle()
    assert copy.shard.lsn == 0
    made.service.feeds.backlog = lambda session: 0
    made.settle()
    assert [fault.code for fault in copy.faults] == ["stale"]
    assert copy.faults[0].again
    assert len(made.service.feeds) == 0
    again = made.copy(3)
    again.follow()
    made.settle()
    assert again.shard.digest() == made.shard.digest()


def test_follower_that_falls_behind_memory_reads_the_log(monkeypatch):
    monkeypatch.setattr(feeding, "RECENT_BYTES_MAX", 1000)
    made = Feeding(SPEC, log=MemoryLog())
    copy = made.copy(2)
    copy.follow()
    made.settle()
    made.service.feeds.backlog = lambda session: feeding.BACKLOG_BYTES_MAX
    made.push(40)
    made.settle()
    made.service.feeds.backlog = lambda session: 0
    made.settle()
    assert (copy.shard.digest(), copy.faults) == (made.shard.digest(), [])


def test_slow_follower_is_sent_a_little_at_a_time(monkeypatch):
    monkeypatch.setattr(feeding, "_TURN_BYTES", 500)
    made = Feeding(SPEC, log=MemoryLog())
    copy = made.copy(2)
    copy.follow()
    made.settle()
    made.push(10)
    made.service.durable_lsn = made.shard.lsn
    made.collect()
    assert 0 < copy.shard.lsn < 10
    made.settle()
    assert copy.shard.digest() == made.shard.digest()


def test_state_of_a_follower_that_is_gone_is_not_taken():
    made = Feeding(SPEC, log=MemoryLog())
    made.push(3)
    made.copy(2).follow()
    made.service.feeds.imaging.step()
    made.close(2)
    while made.service.feeds.imaging.step():
        pass
    assert not made.service.feeds.imaging.busy
    made.settle()
    assert made.copies[2].shard is None


def test_records_are_as_they_stand_in_the_log():
    made = Feeding(SPEC, log=MemoryLog())
    sent: list[FollowRecord] = []
    copy = made.copy(2)
    copy.follow()
    made.settle()
    copy.take = sent.append
    made.push(2)
    made.settle()
    assert [bytes(one.body) for one in sent] == made.log.records
    assert bytes(encode(decode(sent[0].body))) == made.log.records[0]
