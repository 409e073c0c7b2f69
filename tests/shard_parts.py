"""Parts of a cluster for tests: jobs, shards, messages, and a log in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from streamlearn import columns
from streamlearn.cluster.service import Service
from streamlearn.config import (
    MODELS,
    ClusterConfig,
    ComputeConfig,
    JobConfig,
    MfConfig,
    OutputConfig,
    SourceConfig,
    TablesConfig,
    job_signature,
    loss_of,
)
from streamlearn.errors import LogError
from streamlearn.messages import F32, I64, U8, U64
from streamlearn.protocol import (
    MARKS,
    Answer,
    Fault,
    Join,
    Joined,
    Mark,
    Message,
    Pull,
    Pulled,
    Push,
    PushFactors,
    decode,
)
from streamlearn.shards.shard import Shard, ShardSpec

MINIBATCH = 16


def job(
    *,
    model: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    lease_seconds: float = 5.0,
    snapshot_seconds: float = 1000.0,
    minibatch: int = MINIBATCH,
    **tables: Any,
) -> JobConfig:
    """Return a small job; ``tables`` by keyword, exact values unless said otherwise.

    Parameters
    ----------
    model : dict, optional
        Settings of the model, and its ``kind``: ``lr`` by default.
    """
    exact = {"pull_values": "float32", "push_values": "float32", "compression": "none"}
    settled = dict(model or {})
    kind = settled.pop("kind", "lr")
    if kind not in ("mf", "lda"):
        settled = {"l1": 0.0} | settled
    return JobConfig(
        source=SourceConfig(**({"format": "svmlight", "bad_records_max": 1.0} | (source or {}))),
        model=MODELS[kind](**settled),
        tables=TablesConfig(**(exact | tables)),
        cluster=ClusterConfig(name="test", lease_seconds=lease_seconds),
        compute=ComputeConfig(minibatch=minibatch),
        output=OutputConfig(snapshot_seconds=snapshot_seconds, snapshots_kept=2, names_max=16),
    )


def spec(of_job: JobConfig, index: int = 0, of: int = 1, features_max: int = 100_000) -> ShardSpec:
    """Return what a shard of a job is."""
    return ShardSpec(index, of, of_job, job_signature(of_job), features_max)


def keys_of(of: ShardSpec, *numbers: int) -> U64:
    """Return keys of a shard, ascending, the same for the same numbers."""
    span = of.high - of.low
    picked = {of.low + (number * 0x9E3779B97F4A7C15 % span) | 1 for number in numbers}
    return np.array(sorted(picked), np.uint64)


def mark(sequence: int, partition: str = "p", epoch: int = 0, **more: Any) -> Mark:
    """Return where a partition stands after so many minibatches of 100 bytes."""
    settled = {"offset": sequence * 100, "records": sequence * 10, "version": "v"} | more
    return Mark(partition=partition, epoch=epoch, sequence=sequence, **settled)


def pull(of: ShardSpec, keys: U64, clock: int = 0, incarnation: int = 1, coding: int = 0) -> Pull:
    """Return a pull of keys."""
    return Pull(0, incarnation, clock, len(keys), columns.encode_keys(keys, of.low).data, coding)


def push(
    of: ShardSpec,
    keys: U64,
    gradients: Sequence[float] | F32 | None = None,
    *,
    at: Mark | None = None,
    clock: int = 0,
    named: int = 0,
    worker: str = "a",
    incarnation: int = 1,
    counts: bool = True,
    dims: Sequence[int] | I64 = (),
    vectors: Sequence[float] | F32 = (),
    items: Sequence[int] | I64 = (),
    shares: Sequence[int] | U8 = (),
) -> Push:
    """Return a push, with its keys, or naming the pull that they are of.

    Parameters
    ----------
    dims, vectors : int64[n], float32[m], optional
        How many coordinates of each key's embedding come, and their gradients.
    items, shares : int64[n], uint8[2 * n], optional
        Of matrix factorization; by default all are users, and all is kept.
    """
    values = np.ones(len(keys), np.float32) if gradients is None else gradients
    column = columns.encode_keys(keys, of.low)
    told = columns.encode_counts(np.ones(len(keys), np.uint32)).data if counts else memoryview(b"")
    tiers = of.job.model.tiers
    lengths = columns.NOTHING
    if tiers is not None and (not named or len(dims)):
        lengths = columns.encode_lengths(np.array(dims, np.int64), tiers.dims)
    made = Push(
        table=0,
        worker=worker,
        incarnation=incarnation,
        clock=clock,
        pull=named,
        signature=columns.signature(column),
        count=len(keys),
        keys=memoryview(b"") if named else column.data,
        coding=columns.FLOAT32,
        values=memoryview(np.asarray(values, np.float32).tobytes()),
        counts=told,
        mark=_of_loss(at or mark(clock + 1), of),
        lengths=lengths.data,
        vectors=memoryview(np.asarray(vectors, np.float32).tobytes()),
    )
    if not isinstance(of.job.model, MfConfig):
        return made
    told = np.array(items if len(items) else [0] * len(keys), np.int64)
    return PushFactors(
        **msgspec.structs.asdict(made),
        items=columns.encode_lengths(told, (1,)).data,
        shares=memoryview(bytes(shares) or b"\xff" * (2 * len(keys))),
    )


def _of_loss(one: Mark, of: ShardSpec) -> Mark:
    kind = MARKS[loss_of(of.job.model)]
    return kind(**msgspec.structs.asdict(one)) if type(one) is Mark else one


def weights(answer: Answer) -> list[float]:
    """Return the values of a pull's answer."""
    assert isinstance(answer, Pulled), answer
    out: list[float] = columns.decode_values(answer.values, answer.count, answer.coding).tolist()
    return out


class MemoryLog:
    """A log in memory.

    Attributes
    ----------
    records : list of bytes
    full : bool
        Whether it takes nothing now.
    """

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.full = False
        self.first = 1

    def append(self, buffers: Any) -> int:
        """Append a record."""
        if self.full:
            raise LogError("cannot append", cause="No space left on device")
        self.records.append(b"".join(buffers))
        return self.first + len(self.records) - 1

    def read(self, after: int, until: int | None = None) -> Iterator[tuple[int, memoryview]]:
        """Yield the records behind ``after``."""
        if after + 1 < self.first:
            raise LogError("dropped")
        for lsn, record in enumerate(self.records, self.first):
            if after < lsn <= (until or lsn):
                yield lsn, memoryview(record)

    def drop_before(self, lsn: int) -> None:
        """Forget records up to ``lsn``."""
        del self.records[: lsn + 1 - self.first]
        self.first = lsn + 1

    @property
    def messages(self) -> list[Message]:
        """The records, decoded."""
        return [decode(record) for record in self.records]


class Desk:
    """A service, and what it answered: requests of sessions by number, each with the next id.

    Attributes
    ----------
    answers : dict of (int, int) to Answer
        By session and request; those that are held back until the log is durable, too.
    lsns : dict of (int, int) to int
        Which log record must be durable first.
    now : float
        Seconds.
    """

    def __init__(self, of: ShardSpec, *, log: MemoryLog | None = None, **more: Any) -> None:
        self.spec = of
        self.log = log
        self.now = 100.0
        self.minute = 7
        shard = more.pop("shard", None) or Shard(of)
        self.service = Service(shard, log, incarnation=77, now=self.now, **more)
        self.answers: dict[tuple[int, int], Answer] = {}
        self.lsns: dict[tuple[int, int], int] = {}
        self._ids: dict[int, int] = {}

    @property
    def shard(self) -> Shard:
        """The state."""
        return self.service.shard

    def open(self, *sessions: int) -> None:
        """Open connections."""
        for session in sessions:
            self.service.opened(session)

    def ask(self, session: int, message: Message) -> int:
        """Ask; return the request's id."""
        request = self._ids[session] = self._ids.get(session, 0) + 1
        self.service.request(session, request, message, self.now)
        self.collect()
        return request

    def asked(self, session: int, message: Message) -> Answer:
        """Ask, and return the answer, which must be there."""
        return self.answers[session, self.ask(session, message)]

    def collect(self) -> None:
        """Take the answers that were made."""
        for out in self.service.take_out():
            key = out.session, out.request
            assert key not in self.answers, f"{key} was answered twice"
            self.answers[key] = out.message
            self.lsns[key] = out.lsn

    def advance(self, seconds: float = 0.0, minute: int = 0) -> None:
        """Let time pass."""
        self.now += seconds
        self.service.advance(self.now, minute)
        self.collect()

    def close(self, session: int) -> None:
        """End a connection."""
        self.service.closed(session, self.now)
        self.collect()

    def join(self, session: int, worker: str, incarnation: int, clock: int = -1) -> Joined:
        """Have a worker take part."""
        if session not in self._ids:
            self.open(session)
        answer = self.asked(session, Join(worker, incarnation, clock, self.spec.signature))
        assert isinstance(answer, Joined), answer
        return answer

    def fault(self, session: int, message: Message) -> Fault:
        """Ask, and return the fault that must be the answer."""
        answer = self.asked(session, message)
        assert isinstance(answer, Fault), answer
        return answer


def replayed(of: ShardSpec, log: MemoryLog) -> Shard:
    """Return the state that a log gives."""
    shard = Shard(of)
    for lsn, body in log.read(0):
        record: Any = decode(body)
        shard.apply(lsn, record)
    return shard


def changed(message: Any, **fields: Any) -> Any:
    """Return a message with other fields."""
    return msgspec.structs.replace(message, **fields)
