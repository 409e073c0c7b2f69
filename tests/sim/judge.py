"""What must be true of every run, whatever happened in it.

The judge sees what any outsider can see: frames as they are sent, records as they are applied, what
recovery finds and snapshots hold. It keeps a history of its own, the records of each shard in
order, and folds it again with a shard that no fault can reach.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels.factors import ITEM
from streamlearn.config import FmConfig, JobConfig, MfConfig
from streamlearn.net.frame import ANSWER, HEADER_BYTES, MAGIC, REQUEST
from streamlearn.protocol import (
    Join,
    Joined,
    Leave,
    Mark,
    Pull,
    Pulled,
    Push,
    Pushed,
    PushFactors,
    decode,
    encode,
)
from streamlearn.shards.shard import INTERCEPT_KEY, Shard, ShardSpec
from tests.sim.network import Pipe
from tests.sim.source import Records

__all__ = ["Judge", "ViolationError", "frame_bytes"]

_SIZE: Final = struct.Struct("<I")
_REQUEST_ID: Final = struct.Struct("<Q")
_WORD: Final = struct.Struct("<Q")
_FLOATS: Final = struct.Struct("<2f")


class ViolationError(BaseException):
    """Something that must never happen has happened; it ends the run.

    Derived from BaseException, so that no process of the run takes it for an error of its own.
    """


def frame_bytes(head: bytes) -> int | None:
    """Say how long the frame is that begins so; see ``network.Fabric``."""
    if not MAGIC.startswith(head[:4]):
        return -1
    return HEADER_BYTES + _SIZE.unpack_from(head, 24)[0] if len(head) >= HEADER_BYTES else None


def _at(mark: Mark) -> tuple[int, int]:
    return mark.epoch, mark.sequence


@dataclass
class _History:
    """What one shard has applied, and what it has promised.

    Attributes
    ----------
    bodies : list of bytes
        Records; the first is lsn 1.
    at : dict
        Of each partition, the last minibatch applied: (epoch, sequence).
    lsns : dict
        By (partition, epoch, sequence).
    clocks : dict
        Worker: (incarnation, clock, clock with which it became a member).
    promised : int
        lsn of the last record that was acknowledged.
    recovering : bool
        Whether what is applied now comes from its log.
    images : list
        The records that each snapshot holds: without a log a shard may come back from one whose
        successors it could not read, and later from one of those after all.
    """

    spec: ShardSpec
    bodies: list[bytes] = field(default_factory=list)
    at: dict[str, tuple[int, int]] = field(default_factory=dict)
    lsns: dict[tuple[str, int, int], int] = field(default_factory=dict)
    clocks: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    promised: int = 0
    recovering: bool = True
    model: Shard | None = None
    images: list[list[bytes]] = field(default_factory=list)

    def note(self, body: bytes, record: Any, ends: Any) -> None:
        """Add the next record."""
        self.bodies.append(body)
        lsn = len(self.bodies)
        if isinstance(record, Push):
            self._note_push(lsn, record, ends)
        elif isinstance(record, Join):
            incarnation, _, since = self.clocks.get(record.worker, (-1, 0, 0))
            since = since if incarnation == record.incarnation else record.clock
            self.clocks[record.worker] = (record.incarnation, record.clock, since)
        elif isinstance(record, Leave) and self._is_member(record):
            del self.clocks[record.worker]

    def _is_member(self, leave: Leave) -> bool:
        return self.clocks.get(leave.worker, (-1, 0, 0))[0] == leave.incarnation

    def _note_push(self, lsn: int, push: Push, ends: Any) -> None:
        mark = push.mark
        epoch, sequence = self.at.get(mark.partition, (0, 0))
        whole = ends[mark.partition]
        follows = (epoch, sequence + 1) if sequence < len(whole) else (epoch + 1, 1)
        if _at(mark) != follows:
            raise ViolationError(
                f"shard {self.spec.index}: minibatch {_at(mark)} of {mark.partition} was applied "
                f"behind {(epoch, sequence)}"
            )
        ends_at = (mark.offset, mark.records, mark.done)
        if whole[mark.sequence - 1 : mark.sequence] != [ends_at]:
            raise ViolationError(
                f"minibatch {_at(mark)} of {mark.partition} ends at {ends_at}, "
                f"expected {whole[mark.sequence - 1 :][:1]}"
            )
        self.at[mark.partition] = _at(mark)
        self.lsns[(mark.partition, *_at(mark))] = lsn
        incarnation, clock, since = self.clocks.get(push.worker, (-1, 0, 0))
        if incarnation == push.incarnation:
            self.clocks[push.worker] = (incarnation, max(clock, push.clock + 1), since)

    def become(self, bodies: list[bytes], ends: Any) -> None:
        """Forget what is behind some records: it was lost, and nobody was promised it."""
        if bodies == self.bodies:
            return
        self.bodies, self.at, self.lsns, self.clocks, self.model = [], {}, {}, {}, None
        for body in bodies:
            self.note(body, decode(body), ends)

    def folded(self, bodies: list[bytes]) -> Shard:
        """Return a shard that has applied some records."""
        shard = Shard(self.spec)
        for lsn, body in enumerate(bodies, 1):
            record: Any = decode(body)
            shard.apply(lsn, record)
        return shard

    def fold(self, lsn: int) -> Shard:
        """Return a shard that has applied the records up to one."""
        if self.model is None or self.model.lsn > lsn:
            self.model = Shard(self.spec)
        for number in range(self.model.lsn + 1, lsn + 1):
            record: Any = decode(self.bodies[number - 1])
            self.model.apply(number, record)
        return self.model


class Judge:
    """Sees a run, and says what was wrong with it.

    Parameters
    ----------
    records : Records
    job : JobConfig
    specs : list of ShardSpec
    forgets : bool
        Whether shards forget features, so that their counts do not add up.

    Attributes
    ----------
    acknowledged : int
        Pushes that workers were told are kept.
    checked : Counter
        How often each kind of check was made.
    done : int
        Minibatches that every shard has applied.
    """

    def __init__(
        self, records: Records, job: JobConfig, specs: list[ShardSpec], *, forgets: bool = False
    ) -> None:
        self.records = records
        self.job = job
        self.acknowledged = 0
        self.checked: Counter[str] = Counter()
        self._forgets = forgets
        self._keeps_log = job.tables.durability == "log"
        self._histories = [_History(spec) for spec in specs]
        self._asked: dict[tuple[int, int], Any] = {}  # (connection, request id): request
        self._sent: dict[tuple[int, str, int, int], tuple[bytes, Push]] = {}
        self._followers: dict[Any, tuple[int, int]] = {}  # owner: (shard, lsn)

    # ------------------------------------------------------------ what is seen on the wire

    def frame(self, pipe: Pipe, frame: bytes) -> None:
        """See a frame as it is sent."""
        kind = frame[5]
        if kind not in {REQUEST, ANSWER} or frame[6]:
            return
        request_id = _REQUEST_ID.unpack_from(frame, 16)[0]
        message = decode(frame[HEADER_BYTES:])
        host = pipe.route[pipe.by_client]
        if not host.startswith("shard"):
            return
        shard = int(host[5:])
        if pipe.by_client:
            self._request(shard, pipe.number, request_id, message)
        else:
            self._answer(shard, pipe.number, request_id, message)

    def _request(self, shard: int, connection: int, request_id: int, message: Any) -> None:
        if isinstance(message, Pull):
            self._asked[connection, request_id] = message
        elif isinstance(message, Push):
            self._asked[connection, request_id] = message
            key = (shard, message.worker, message.incarnation, message.clock)
            told = b"".join((message.values, message.vectors, message.counts))
            if isinstance(message, PushFactors):
                told += b"".join((message.items, message.shares))
            told += encode(message.mark)
            before = self._sent.setdefault(key, (told, message))[0]
            if before != told:
                raise ViolationError(f"push {key} was sent again with other bytes")
            self.checked["same bytes"] += 1

    def _answer(self, shard: int, connection: int, request_id: int, message: Any) -> None:
        asked = self._asked.get((connection, request_id))
        if isinstance(message, Pushed) and isinstance(asked, Push):
            self.acknowledged += 1
            self._promise(shard, asked.mark)
        elif isinstance(message, Joined):
            for mark in message.marks:
                self._promise(shard, mark)
        elif isinstance(message, Pulled) and isinstance(asked, Pull) and asked.incarnation:
            self._check_fresh(shard, asked)

    def _promise(self, shard: int, mark: Mark) -> None:
        """A worker is told that a minibatch is kept."""
        history = self._histories[shard]
        lsn = history.lsns.get((mark.partition, *_at(mark)))
        if lsn is None:
            raise ViolationError(
                f"shard {shard} acknowledged {_at(mark)} of {mark.partition}, "
                f"but is at {history.at.get(mark.partition)}"
            )
        history.promised = max(history.promised, lsn)
        self.checked["kept"] += 1

    def _check_fresh(self, shard: int, pull: Pull) -> None:
        """A read for minibatch c holds all that members did before c - tau."""
        tau = self.job.tables.tau
        if tau < 0:
            return
        history = self._histories[shard]
        reach = pull.clock - tau
        for worker, (incarnation, clock, since) in history.clocks.items():
            if clock < reach:
                raise ViolationError(
                    f"shard {shard} answered a pull for minibatch {pull.clock} (tau = {tau}), but "
                    f"{worker} is at {clock}"
                )
            # one whose lease had ended begins anew where the others are: what it was at comes late
            for back in range(reach - 1, max(since, reach - 1 - 2 * (tau + 8)) - 1, -1):
                sent = self._sent.get((shard, worker, incarnation, back))
                if sent is None or not self._keeps_log:
                    continue  # without a log what was lost comes again under other numbers
                mark = sent[1].mark
                if history.at.get(mark.partition, (0, 0)) < _at(mark):
                    raise ViolationError(
                        f"shard {shard} answered a pull for minibatch {pull.clock} (tau = {tau}) "
                        f"without minibatch {back} of {worker}"
                    )
        self.checked["fresh"] += 1

    # ------------------------------------------------------------ what shards and followers apply

    def starting(self, shard: int) -> None:
        """A shard's process begins."""
        self._histories[shard].recovering = True

    def applied(self, shard: int, lsn: int, record: Any) -> None:
        """A shard applied a record."""
        history = self._histories[shard]
        body = bytes(encode(record))
        if history.recovering and lsn <= len(history.bodies):
            if history.bodies[lsn - 1] != body:
                raise ViolationError(f"record {lsn} of shard {shard}'s log is not what it was")
            self.checked["replayed"] += 1
            return
        if lsn != len(history.bodies) + 1:
            raise ViolationError(f"shard {shard} applied {lsn} behind {len(history.bodies)}")
        history.note(body, record, self.records.ends)

    def recovered(self, shard: int, state: Shard) -> None:
        """A shard has recovered: it has all it promised, and is what its history says."""
        history = self._histories[shard]
        if self._keeps_log and state.lsn < history.promised:
            raise ViolationError(
                f"shard {shard} came back at record {state.lsn}, but has acknowledged "
                f"{history.promised}"
            )
        for follower, (of, lsn) in self._followers.items():
            if self._keeps_log and of == shard and lsn > state.lsn:
                raise ViolationError(
                    f"{follower.name} was sent record {lsn}, which shard {shard} has lost"
                )
        bodies = history.bodies[: state.lsn]
        if not self._keeps_log:
            wanted = state.digest()
            for image in history.images:
                if len(image) == state.lsn and history.folded(image).digest() == wanted:
                    bodies = image
        if len(bodies) < state.lsn:
            raise ViolationError(f"shard {shard} came back with records that it never applied")
        history.become(bodies, self.records.ends)
        history.promised = min(history.promised, state.lsn)
        self._same("recovery", history, state)
        history.recovering = False

    def follows(self, follower: Any, shard: int, lsn: int, record: Any = None) -> None:
        """A follower has the state of a record, or has applied one."""
        history = self._histories[shard]
        known = history.bodies[lsn - 1] if 0 < lsn <= len(history.bodies) else None
        if record is not None and self._keeps_log and known != bytes(encode(record)):
            raise ViolationError(f"{follower.name} applied record {lsn}, which is none of the log")
        self._followers[follower] = (shard, lsn)
        self.checked["followed"] += 1

    def forget(self, owner: Any) -> None:
        """A process is gone."""
        self._followers.pop(owner, None)

    def snapshot(self, shard: int, state: Shard) -> None:
        """A snapshot was committed that holds a state: one cut, of what is durable."""
        history = self._histories[shard]
        if state.lsn > len(history.bodies):
            raise ViolationError(f"a snapshot of shard {shard} is of record {state.lsn}")
        self._same("snapshot", history, state)

    def imaging(self, shard: int, lsn: int) -> None:
        """A snapshot is begun, which may be there one day whatever happens now."""
        if not self._keeps_log:
            history = self._histories[shard]
            history.images.append(history.bodies[:lsn])

    def _same(self, what: str, history: _History, state: Shard) -> None:
        model = history.fold(state.lsn)
        self.checked[what] += 1
        if model.digest() != state.digest():
            raise ViolationError(
                f"{what} of shard {history.spec.index} at record {state.lsn} is not the fold of "
                f"its log{_difference(model, state)}"
            )

    # ------------------------------------------------------------ at the end

    @property
    def progress(self) -> float:
        """Share of minibatches that the slowest shard has applied."""
        whole = self.records.minibatches * max(1, self.job.model.epochs)
        return min(len(history.lsns) for history in self._histories) / whole

    def finish(self, shards: list[Shard], followers: list[tuple[int, Shard]]) -> None:
        """Look at what is left once the job is done."""
        epochs = max(1, self.job.model.epochs)
        for shard, history in zip(shards, self._histories, strict=True):
            if shard.lsn != len(history.bodies):
                raise ViolationError(f"shard {shard.spec.index} is at {shard.lsn}")
            self._same("end", history, shard)
            done = {name: (epochs - 1, len(ends)) for name, ends in self.records.ends.items()}
            if history.at != done:
                raise ViolationError(f"at the end shard {shard.spec.index} is at {history.at}")
            self._add_up(shard, epochs)
            self._check_embeddings(shard)
            self._check_factors(shard)
        for index, state in followers:
            if state.lsn != shards[index].lsn:
                raise ViolationError(f"a follower of shard {index} ends at {state.lsn}")
            self._same("follower", self._histories[index], state)
        if not self._forgets:
            self._check_counts(shards)

    def _add_up(self, shard: Shard, epochs: int) -> None:
        marks = shard.marks.values()
        found = (sum(m.examples for m in marks), sum(m.bad_records for m in marks))
        expected = (self.records.good * epochs, self.records.bad * epochs)
        if found != expected:
            raise ViolationError(
                f"shard {shard.spec.index} counts {found} good and bad records of {expected}"
            )
        self.checked["added up"] += 1

    def _check_embeddings(self, shard: Shard) -> None:
        """Every feature has an embedding that its count has earned, as far as there was room."""
        model, arena = self.job.model, shard.table.arena
        if not isinstance(model, FmConfig):
            return
        assert arena is not None
        tiers, lines, bytes_max = model.tiers, 0, shard.spec.embeddings_bytes_max
        short, minibatch = bytes_max < 1 << 30, self.job.compute.minibatch
        tallies = sorted(zip(tiers.counts, tiers.dims, strict=True))
        for segment in shard.table.key_order():
            for key, columns, seen, where in shard.table.rows(segment).tolist():
                count, dim = seen & 0xFFFFFFFF, where >> 48
                z = _FLOATS.unpack(_WORD.pack(columns))[0]
                earned = max((d for c, d in tallies if count > c), default=0)
                # of a minibatch in which a feature stood several times its count goes for less
                owed = max((d for c, d in tallies if count // minibatch > c), default=0)
                if key == INTERCEPT_KEY:
                    earned = owed = 0
                if short or abs(z) <= model.l1:
                    owed = 0  # a weight of zero earns nothing, and keeps what it had
                if not (owed <= dim <= earned and dim in {0, *tiers.dims}):
                    raise ViolationError(
                        f"feature {key} of shard {shard.spec.index} was seen {count} times and has "
                        f"{dim} numbers, expected {owed} to {earned}"
                    )
                lines += tiers.lines(dim)
                self.checked["embeddings"] += dim > 0
        if 64 * lines != arena.nbytes or arena.nbytes > bytes_max:
            raise ViolationError(
                f"shard {shard.spec.index} says that its embeddings have {arena.nbytes} bytes, but "
                f"they have {64 * lines} of at most {bytes_max}"
            )
        self.checked["embeddings refused"] += arena.refused > 0

    def _check_factors(self, shard: Shard) -> None:
        """Every user and item says which of both it is, and has factors where there was room."""
        model, arena = self.job.model, shard.table.arena
        if not isinstance(model, MfConfig):
            return
        assert arena is not None
        short = shard.spec.embeddings_bytes_max < 1 << 30
        lines = 0
        for segment in shard.table.key_order():
            for key, columns, _, where in shard.table.rows(segment).tolist():
                kind, dim = columns >> 32, where >> 48
                usual = (0, 0) if key == INTERCEPT_KEY else (1, model.dim)
                if (kind & ~int(ITEM), dim) != usual and not (short and dim == 0):
                    raise ViolationError(
                        f"row {key} of shard {shard.spec.index} is number {kind} and has {dim} "
                        f"factors, expected {usual}"
                    )
                lines += model.tiers.lines(dim) if dim else 0
                self.checked["items"] += kind > int(ITEM)
        if 64 * lines != arena.nbytes:
            raise ViolationError(
                f"shard {shard.spec.index} says that its factors have {arena.nbytes} bytes, but "
                f"they have {64 * lines}"
            )
        if not np.isfinite(arena.values[: 16 * int(arena.used[0])]).all():
            raise ViolationError(f"a factor of shard {shard.spec.index} is not finite")

    def _check_counts(self, shards: list[Shard]) -> None:
        """Every occurrence of every feature was counted once (in the first pass)."""
        found: dict[int, int] = {}
        for shard in shards:
            for segment in shard.table.key_order():
                rows = shard.table.rows(segment)
                counts = rows[:, 2] & np.uint64(0xFFFFFFFF)
                found.update(zip(rows[:, 0].tolist(), counts.tolist(), strict=True))
        found.pop(INTERCEPT_KEY, None)
        if found != dict(self.records.counts):
            wrong = {
                key: (found.get(key), self.records.counts.get(key))
                for key in {*found, *self.records.counts}
                if found.get(key) != self.records.counts.get(key)
            }
            some = sorted(wrong.items())[:3]
            raise ViolationError(f"counts of {len(wrong)} keys are wrong: {some}")
        self.checked["counts"] += 1


def _difference(model: Shard, state: Shard) -> str:
    parts = []
    if model.marks != state.marks:
        parts.append(f"marks {state.marks} instead of {model.marks}")
    if model.clocks.state() != state.clocks.state():
        parts.append(f"clocks {state.clocks.state()} instead of {model.clocks.state()}")
    if model.minute != state.minute:
        parts.append(f"minute {state.minute} instead of {model.minute}")
    if model.table.features != state.table.features:
        parts.append(f"{state.table.features} rows instead of {model.table.features}")
    return ": " + "; ".join(parts or ["rows differ"])
