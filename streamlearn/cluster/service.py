"""What a shard answers: requests in, answers out, in one lane and without waiting.

Decides who may read yet, which pushes are new, what is remembered of pulls, who takes part, and
what followers are sent. Everything that changes the shard is appended to the log first; an answer
names the log record that must be durable before it may leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from msgspec.structs import replace

from streamlearn import columns
from streamlearn.cluster.feeding import Feeds
from streamlearn.cluster.meeting import Meeting, Said
from streamlearn.cluster.reading import embedded, read
from streamlearn.config import DeepConfig, loss_of
from streamlearn.errors import ColumnError, LogError, RefusedError
from streamlearn.protocol import (
    MARKS,
    Answer,
    Choose,
    Claim,
    Done,
    Fault,
    Finished,
    Follow,
    Join,
    Joined,
    KeyMiss,
    Leave,
    Meet,
    Message,
    Pull,
    PullFactors,
    PullTopics,
    Push,
    Pushed,
    PushFactors,
    PushTopics,
    Register,
    Reopen,
    State,
    StateIs,
    Stay,
    TakeSnapshot,
    Tick,
    encode,
)
from streamlearn.shards.registry import Registry
from streamlearn.shards.shard import Gradients, Located, Record, Shard

__all__ = ["PULLS_KEPT_MAX", "Appender", "Out", "Service"]

# Pulls of one connection whose rows are remembered for their pushes: more than any window of
# minibatches. A pull is 24 bytes a key.
PULLS_KEPT_MAX: Final = 64
# A young model bears one more minibatch under way for so many records of its log: gradients of
# weights that are still far from where they will be overshoot where several come at once.
# (Progressive logloss of two workers on a million clicks, three minibatches under way each: 0.4827
# with 64, 0.4925 with 16, 0.5786 without; one at a time: 0.4808. On four million, two shards, three
# runs each: 0.4716 to 0.4747 with 128, 0.4708 to 0.4714 with 256; one at a time: 0.4705.)
_RECORDS_PER_MINIBATCH: Final = 256


class Appender(Protocol):
    """The log, as the service needs it."""

    def append(self, buffers: Any) -> int:
        """Append a record; return its number."""
        ...

    def read(self, after: int, until: int | None = None) -> Iterator[tuple[int, memoryview]]:
        """Yield the records behind ``after``."""
        ...


@dataclass(frozen=True, slots=True)
class Out:
    """An answer on its way.

    Attributes
    ----------
    session, request : int
        Whom it is for, and which request it answers.
    message : Answer
    lsn : int
        Log record that must be durable first; 0: none.
    """

    session: int
    request: int
    message: Answer
    lsn: int = 0


@dataclass(slots=True)
class _Held:
    """A pull that its push may name."""

    pull: Pull
    located: Located
    signature: int
    lengths: memoryview


@dataclass(slots=True)
class _Session:
    """A connection: who it is, and its pulls in order."""

    worker: tuple[str, int] | None = None
    held: dict[int, _Held] = field(default_factory=dict)


class Service:
    """Answers requests on one shard.

    Parameters
    ----------
    shard : Shard
    log : Appender or None
        None: records are numbered, not kept (``durability = "snapshot"``, and followers).
    incarnation : int
        New whenever the shard starts.
    now : float
        Seconds of a monotonic clock.
    read_only : bool
        Whether this is a follower's copy: only readers are answered.

    Attributes
    ----------
    durable_lsn : int
        Records up to here may be answered and followed; set by whoever syncs the log.
    counts : dict
        Pulls answered, their keys and waits, pushes applied, their keys, duplicates, misses and
        bytes of log records, since the start.
    """

    def __init__(
        self,
        shard: Shard,
        log: Appender | None,
        *,
        incarnation: int,
        now: float,
        read_only: bool = False,
    ) -> None:
        self.shard = shard
        self.log = log
        self.incarnation = incarnation
        self.read_only = read_only
        self.draining = False
        self.registry = Registry()
        self.meeting = Meeting()
        self.feeds = Feeds(shard, log)
        self.durable_lsn = shard.lsn
        self.counts: dict[str, float] = dict.fromkeys(
            (
                *("pulls", "keys", "pull_wait_seconds", "pushes", "pushed_keys", "duplicates"),
                *("misses", "log_bytes"),
            ),
            0,
        )
        self.snapshots_wanted: list[tuple[int, int]] = []  # (session, request) of administrators
        self._tables = shard.spec.job.tables
        self._lease_seconds = shard.spec.job.cluster.lease_seconds
        self._sessions: dict[int, _Session] = {}
        self._parked: deque[tuple[int, int, Pull, float]] = deque()
        self._under_way: dict[int, set[int]] = {}  # clocks read, not pushed, by incarnation
        self._out: list[Out] = []
        # Who takes part by the log, and has not been heard of since: until when it is waited for.
        self._absent = {
            (name, member.incarnation): now + self._lease_seconds
            for name, member in shard.clocks.members.items()
        }
        self._returning = set(self._absent)  # those that may hold partitions that nobody knows of
        self._answers: dict[type[Message], Callable[[int, int, Any, float], None]] = {
            Pull: self._pull,
            PullFactors: self._pull,
            PullTopics: self._pull,
            Push: self._push,
            PushFactors: self._push,
            PushTopics: self._push,
            Join: self._join,
            Leave: self._leave,
            Meet: self._meet,
            Stay: self._meet,
            Register: self._register,
            Claim: self._claim,
            Finished: self._finished,
            Reopen: self._reopen,
            State: self._state,
            Follow: self._follow,
            TakeSnapshot: self._take_snapshot,
        }

    # ---------------------------------------------------------------- what happens

    def opened(self, session: int) -> None:
        """Note a new connection."""
        self._sessions[session] = _Session()

    def closed(self, session: int, now: float) -> None:
        """Forget a connection; its worker is waited for a while."""
        gone = self._sessions.pop(session, None)
        self._parked = deque(one for one in self._parked if one[0] != session)
        self.feeds.drop(session)
        self._tell(self.meeting.closed(session, now))
        if gone is not None and gone.worker is not None:
            self._absent[gone.worker] = now + self._lease_seconds
            self._under_way.pop(gone.worker[1], None)
            self._unpark(now)

    def request(self, session: int, request: int, message: Message, now: float) -> None:
        """Answer a request, now or later."""
        if session not in self._sessions:
            return
        answer = self._answers.get(type(message))
        try:
            if answer is None:
                name = type(message).__name__
                raise RefusedError(f"{name} is no request to a shard", code="unknown")
            if self.read_only and not isinstance(message, Pull | State):
                raise RefusedError(
                    "this is a follower: it answers reads only", code="forbidden", again=False
                )
            answer(session, request, message, now)
        except RefusedError as error:
            text = error.message if error.hint is None else f"{error.message}; {error.hint}"
            self.say(session, request, Fault(error.code, text[:1000], error.again))
        except ColumnError as error:
            self.say(session, request, Fault("invalid", str(error)[:1000], again=False))
        except LogError as error:
            self.say(session, request, Fault("storage", str(error)[:1000], again=True))

    def advance(self, now: float, minute: int) -> None:
        """Let time pass: workers that stay away leave; a new minute is a record of the log."""
        if self.read_only:
            return
        self._tell(self.meeting.advance(now))
        late = [worker for worker, until in self._absent.items() if until <= now]
        for name, incarnation in late:
            try:
                self._leaves(name, incarnation)
            except LogError:
                return  # the disk is full: later
            del self._absent[name, incarnation]
        if minute > self.shard.minute:
            try:
                self._record(Tick(minute))
            except LogError:
                return
        if late:
            self._unpark(now)

    def take_out(self) -> list[Out]:
        """Return the answers made since the last call, and what followers are due."""
        out, self._out = self._out, []
        for session, request, message in self.feeds.due(self.durable_lsn):
            out.append(Out(session, request, message))
        return out

    def replace(self, shard: Shard) -> None:
        """Go on with another state (a follower's, that had to begin again)."""
        self.shard = shard
        self.feeds = Feeds(shard, self.log)  # the old ones hold on to the old state
        self.durable_lsn = shard.lsn

    @property
    def parked(self) -> int:
        """Pulls that wait for slower workers."""
        return len(self._parked)

    def figures(self) -> dict[str, float]:
        """Return what whoever watches wants to know."""
        shard = self.shard
        slowest = shard.clocks.slowest
        return {
            **self.counts,
            "features": shard.table.features,
            "table_bytes": shard.table.nbytes,
            **embedded(shard),
            "parked": self.parked,
            "workers": len(shard.clocks.members),
            "staleness": shard.clocks.highest - slowest if slowest is not None else 0,
            "partitions": len(self.registry),
            "partitions_finished": self.registry.finished,
            "marks_done": sum(mark.done for mark in shard.marks.values()),
            "evicted": shard.table.evicted,
            "forgotten": shard.forgotten,
            "followers": len(self.feeds),
        }

    # ---------------------------------------------------------------- reading

    def _pull(self, session: int, request: int, pull: Pull, now: float) -> None:
        clocks = self.shard.clocks
        if pull.incarnation:
            if not clocks.is_member(pull.incarnation):
                raise RefusedError("the worker takes no part: join", code="stale", again=True)
            if not self._may_read(session, pull):
                self._parked.append((session, request, pull, now))
                return
        self._read(session, request, pull)

    def _may_read(self, session: int, pull: Pull) -> bool:
        """Say whether a worker's pull is answered now.

        It is where no member lags too far behind, and no more minibatches are under way than a
        young model can bear: gradients of weights that are still far from where they will be
        overshoot when several of them arrive at once.
        """
        shard = self.shard
        if not shard.clocks.may_read(pull.clock, self._tables.tau):
            return False
        # None overtakes an earlier one that waits: it would count as under way, and could be pushed
        # only after the one that waits for it.
        if any(one[0] == session for one in self._parked):
            return False
        if (
            shard.topics is not None
        ):  # what is drawn from old counts is no gradient: all is bearable
            return True
        own = self._under_way.get(pull.incarnation, set())
        if pull.clock in own:  # asked again, elsewhere
            return True
        # Workers are held back by one another on the first shard alone: on two, they could wait for
        # one another. On all others each is by itself: what it reads there before the first shard
        # lets it go on would be old by then.
        # Workers of a net step together, so what they read is of one age: it is one minibatch.
        together = shard.spec.index > 0 or isinstance(shard.spec.job.model, DeepConfig)
        held_by = (own,) if together else self._under_way.values()
        bearable = 1 + shard.lsn // _RECORDS_PER_MINIBATCH
        under_way = [clock for clocks in held_by for clock in clocks]
        # The oldest always goes on: those under way may wait for it, on another shard.
        return len(under_way) < bearable or pull.clock < min(under_way)

    def _read(self, session: int, request: int, pull: Pull) -> None:
        spec = self.shard.spec
        if pull.table != 0:
            raise RefusedError(f"there is no table {pull.table}", code="unknown")
        keys = columns.decode_keys(pull.keys, pull.count, spec.low, spec.high)
        self._choose(pull)
        located = self.shard.locate(keys)
        try:
            pulled = read(self.shard, pull, located)
        except ValueError as error:
            raise RefusedError(str(error), code="invalid") from error
        if pull.incarnation:
            held = self._sessions[session].held
            signature = columns.signature(pull.keys)
            held[request] = _Held(pull, located, signature, pulled.lengths)
            if len(held) > PULLS_KEPT_MAX:
                del held[next(iter(held))]
            self._under_way.setdefault(pull.incarnation, set()).add(pull.clock)
        self.counts["pulls"] += 1
        self.counts["keys"] += pull.count
        self.say(session, request, pulled)

    def _choose(self, pull: Pull) -> None:
        """Settle which words have topics: that is asked for first behind the first pass."""
        topics = self.shard.topics
        asked = isinstance(pull, PullTopics) and pull.epoch > 0
        if asked and topics is not None and not topics.chosen and not self.read_only:
            topics.check_room(self.shard.documents)
            self._record(Choose())

    def _unpark(self, now: float) -> None:
        """Answer the pulls that waited long enough."""
        if not self._parked:
            return
        waiting = self._parked
        self._parked = deque()
        for session, request, pull, since in waiting:
            if self._may_read(session, pull):
                self.counts["pull_wait_seconds"] += max(0.0, now - since)
                self.request(session, request, pull, now)
            else:
                self._parked.append((session, request, pull, since))

    # ---------------------------------------------------------------- writing

    def _push(self, session: int, request: int, push: Push, now: float) -> None:
        shard = self.shard
        if push.table != 0:
            raise RefusedError(f"there is no table {push.table}", code="unknown")
        if type(push.mark) is not MARKS[loss_of(shard.spec.job.model)]:
            raise RefusedError("the mark is of a model with another loss", code="invalid")
        verdict = shard.verdict(push.mark)
        self._under_way.get(push.incarnation, set()).discard(push.clock)
        if verdict == "duplicate":
            if not self._is_known(push):
                self._record(Join(push.worker, push.incarnation, push.clock + 1))
            self._sessions[session].held.pop(push.pull, None)
            self.counts["duplicates"] += 1
            # what it repeats may not be durable yet
            self.say(session, request, Pushed(push.mark.sequence, duplicate=True), shard.lsn)
            self._unpark(now)
            return
        if verdict == "gap":
            known = shard.marks.get(push.mark.partition)
            raise RefusedError(
                f"minibatch {push.mark.sequence} of pass {push.mark.epoch} of "
                f"{push.mark.partition} does not follow "
                f"{f'{known.sequence} of pass {known.epoch}' if known else 'the beginning'}",
                code="gap",
                again=True,
            )
        named = self._named(session, push)
        if named is None:
            self.counts["misses"] += 1
            self.say(session, request, KeyMiss(push.pull))
            return
        located, whole = named
        gradients = shard.decode_gradients(whole)
        if not len(located.keys) == len(gradients.values):
            raise ColumnError(f"{len(located.keys)} keys, but {len(gradients.values)} gradients")
        located = shard.relocate(located)
        if gradients.topics is None or gradients.topics.documents is not None:
            shard.check_fits(located)
        self._record(whole, located, gradients)
        self._sessions[session].held.pop(push.pull, None)
        self.counts["pushes"] += 1
        self.counts["pushed_keys"] += push.count
        self.say(session, request, Pushed(push.mark.sequence, duplicate=False), shard.lsn)
        self._unpark(now)

    def _is_known(self, push: Push) -> bool:
        """Say whether a member's clock is past a push that has been applied before.

        It is not where another worker applied that minibatch first.
        """
        member = self.shard.clocks.members.get(push.worker)
        if member is None or member.incarnation != push.incarnation:
            return True
        return member.clock > push.clock

    def _named(self, session: int, push: Push) -> tuple[Located, Push] | None:
        """Return a push's rows and the push with its keys; None where its pull is forgotten."""
        if push.pull == 0:
            return self.shard.locate(self.shard.decode_keys(push)), push
        held = self._sessions[session].held.get(push.pull)
        if held is None or (held.signature, held.pull.count) != (push.signature, push.count):
            return None
        own = isinstance(push, PushFactors) and len(push.lengths)
        lengths = push.lengths if own else held.lengths
        return held.located, replace(push, pull=0, keys=held.pull.keys, lengths=lengths)

    def _record(
        self,
        record: Record,
        located: Located | None = None,
        gradients: Gradients | None = None,
    ) -> None:
        """Append a record to the log, and apply it."""
        body: bytearray | None = None
        lsn = self.shard.lsn + 1
        if self.log is not None or self.feeds:
            body = encode(record)
        if self.log is not None:
            assert body is not None
            appended = self.log.append([body])
            assert appended == lsn, (appended, lsn)
            self.counts["log_bytes"] += len(body)
        self.feeds.note(lsn, body)
        self.shard.apply(lsn, record, located, gradients)
        if self.log is None:
            self.durable_lsn = lsn

    # ---------------------------------------------------------------- taking part

    def _join(self, session: int, request: int, join: Join, now: float) -> None:
        shard = self.shard
        if not (join.worker and join.incarnation):
            raise RefusedError("a worker needs a name and an incarnation", code="invalid")
        if join.job != shard.spec.signature:
            raise RefusedError(
                f"this shard is of job {shard.spec.signature}, but the worker's is {join.job}",
                code="invalid",
                hint="start both with the same job file",
            )
        clock = shard.clocks.proposed(join.worker, join.incarnation, join.clock)
        member = shard.clocks.members.get(join.worker)
        if member is None or (member.incarnation, member.clock) != (join.incarnation, clock):
            self._record(Join(join.worker, join.incarnation, clock))
        for other in self._sessions.values():
            if other.worker is not None and other.worker[0] == join.worker:
                other.worker = None
        self._sessions[session].worker = (join.worker, join.incarnation)
        # nothing of it is under way now, nor of a process that it takes the place of
        self._under_way.pop(join.incarnation, None)
        self._under_way = {
            one: pulls for one, pulls in self._under_way.items() if shard.clocks.is_member(one)
        }
        self._refuse_parked(join.incarnation)
        self._absent = {who: t for who, t in self._absent.items() if who[0] != join.worker}
        marks = [shard.marks[name] for name in sorted(shard.marks)]
        self.say(session, request, Joined(clock, self.incarnation, marks), shard.lsn)
        self._unpark(now)

    def _refuse_parked(self, incarnation: int) -> None:
        """Refuse the pulls that a worker waits for: it joins anew, and asks for what it needs.

        Answered later, they would be under way for ever.
        """
        parked, self._parked = self._parked, deque()
        for one in parked:
            session, request, pull, _ = one
            if pull.incarnation == incarnation:
                fault = Fault("stale", "the worker has joined again", again=True)
                self.say(session, request, fault)
            else:
                self._parked.append(one)

    def _leave(self, session: int, request: int, leave: Leave, now: float) -> None:
        self._leaves(leave.worker, leave.incarnation)
        self._tell(self.meeting.leave(leave.worker, leave.incarnation, now))
        self._sessions[session].worker = None
        self._absent.pop((leave.worker, leave.incarnation), None)
        self.say(session, request, Done(), self.shard.lsn)
        self._unpark(now)

    def _leaves(self, worker: str, incarnation: int) -> None:
        self.registry.release(worker, incarnation)
        self._under_way.pop(incarnation, None)
        member = self.shard.clocks.members.get(worker)
        if member is not None and member.incarnation == incarnation:
            self._record(Leave(worker, incarnation))

    def _meet(self, session: int, request: int, message: Meet | Stay, now: float) -> None:
        if self.shard.spec.index:
            raise RefusedError("workers meet at the first shard", code="invalid")
        if isinstance(message, Meet):
            self._tell(self.meeting.meet(session, request, message, now))
        else:
            self._tell(self.meeting.stay(session, request, message))

    def _tell(self, said: list[Said]) -> None:
        for one in said:
            self.say(one.session, one.request, one.message)

    # ---------------------------------------------------------------- handing out partitions

    def _register(self, session: int, request: int, register: Register, now: float) -> None:
        self.registry.register(
            register.partitions, register.complete, register.epochs, self.shard.marks
        )
        self.say(session, request, Done())

    def _claim(self, session: int, request: int, claim: Claim, now: float) -> None:
        # Whoever held a partition before this shard started says so before others are given it.
        self._returning &= self._absent.keys()
        wanted = claim.wanted and not self._returning
        claimed = self.registry.claim(
            claim.worker, claim.incarnation, claim.held, wanted, self.shard.marks
        )
        self.say(session, request, claimed)

    def _finished(self, session: int, request: int, finished: Finished, now: float) -> None:
        self.registry.finish(finished.worker, finished.partition, finished.epoch)
        self.say(session, request, Done())

    def _reopen(self, session: int, request: int, reopen: Reopen, now: float) -> None:
        self.registry.reopen(reopen.partitions, reopen.epoch)
        self.say(session, request, Done())

    # ---------------------------------------------------------------- watching

    def _state(self, session: int, request: int, state: State, now: float) -> None:
        shard = self.shard
        names = [state.partition] if state.partition else sorted(shard.marks) if state.marks else []
        marks = [shard.marks[name] for name in names if name in shard.marks]
        self.say(
            session,
            request,
            StateIs(
                self.incarnation,
                shard.lsn,
                self.durable_lsn,
                not self.draining,
                marks,
                {name: member.clock for name, member in sorted(shard.clocks.members.items())},
                self.figures(),
            ),
        )

    def _follow(self, session: int, request: int, follow: Follow, now: float) -> None:
        self.feeds.add(session, request, follow.after)

    def _take_snapshot(self, session: int, request: int, take: TakeSnapshot, now: float) -> None:
        self.snapshots_wanted.append((session, request))

    def say(self, session: int, request: int, message: Answer, lsn: int = 0) -> None:
        """Answer a request, once log record ``lsn`` is durable."""
        self._out.append(Out(session, request, message, lsn))
