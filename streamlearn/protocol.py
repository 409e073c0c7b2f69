"""What shards, workers and followers say to one another: one typed struct a message.

A message's bytes are the msgpack array of its struct, led by its tag; large columns (keys, values,
counts) are byte strings inside it, laid out by :mod:`streamlearn.columns`. The same bytes are the
body of a frame on the wire and of a record in a shard's log. Nothing here touches a socket or a
file, and decoding never runs code that a peer sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from streamlearn.errors import ProtocolError
from streamlearn.marks import (
    ENTRIES_MAX,
    MARKS,
    NAME_BYTES_MAX,
    AnyMark,
    ClassMark,
    Column,
    Count,
    Mark,
    Name,
    RatingMark,
    Told,
)

__all__ = [
    "GIVEN",
    "MARKS",
    "NAME_BYTES_MAX",
    "NOTHING_LEFT",
    "WAIT",
    "Answer",
    "AnyMark",
    "Choose",
    "Claim",
    "Claimed",
    "ClassMark",
    "Done",
    "Fault",
    "Finished",
    "Follow",
    "FollowCut",
    "FollowPart",
    "FollowRecord",
    "FollowTopics",
    "Join",
    "Joined",
    "KeyMiss",
    "Leave",
    "Listed",
    "Mark",
    "Meet",
    "Message",
    "Met",
    "Ping",
    "Pull",
    "PullFactors",
    "PullTopics",
    "Pulled",
    "PulledFactors",
    "PulledTopics",
    "Push",
    "PushFactors",
    "PushTopics",
    "Pushed",
    "RatingMark",
    "Register",
    "Reopen",
    "State",
    "StateIs",
    "Stay",
    "TakeSnapshot",
    "Tick",
    "decode",
    "encode",
]

_EMPTY: Final = memoryview(b"")


class Join(Told, frozen=True, tag=10):
    """A worker takes part: reads of others wait for its clock from now on.

    ``incarnation`` is new for each process; a later one takes the place of an earlier one of the
    same name. ``clock`` is the number of its next minibatch; -1 asks the shard to choose. Also a
    log record (there ``clock`` is never -1).
    """

    worker: Name
    incarnation: Count
    clock: int
    job: Name = ""


class Joined(Told, frozen=True, tag=11):
    """Answer to Join: the clock that counts, and what the shard has applied."""

    clock: Count
    incarnation: Count  # of the shard: new whenever it started
    marks: Annotated[list[AnyMark], Meta(max_length=ENTRIES_MAX)]


class Leave(Told, frozen=True, tag=12):
    """A worker takes part no more (answered by Done). Also a log record."""

    worker: Name
    incarnation: Count


class Done(Told, frozen=True, tag=13):
    """It is done."""


class Pull(Told, frozen=True, tag=20):
    """Ask for the values of sorted keys, once no member is more than ``tau`` minibatches behind.

    Attributes
    ----------
    table : int
    incarnation : int
        Of the worker; 0: a reader, which waits for nobody.
    clock : int
        Number of the minibatch that will be computed with these values.
    count : int
    keys : column
        See ``columns.encode_keys``.
    coding : int
        How values are wanted (``columns``).
    """

    table: Count
    incarnation: Count
    clock: Count
    count: Count
    keys: Column
    coding: Count


class Pulled(Told, frozen=True, tag=21):
    """Answer to Pull: a value for each key, 0 where the table has none, and embeddings.

    Attributes
    ----------
    count : int
    coding : int
    values : column
        Weights.
    lengths : column
        How many coordinates of each key's embedding come (``columns.encode_lengths``).
    vectors : column
        Those, back to back, of each key first what is for pairs, then what is for triples; in the
        coding of the weights, zeros not left out.
    """

    count: Count
    coding: Count
    values: Column
    lengths: Column = _EMPTY
    vectors: Column = _EMPTY


class Push(Told, frozen=True, tag=22):
    """Gradients of one minibatch for one shard; also a log record (then ``keys`` are in it).

    Attributes
    ----------
    table : int
    worker : str
    incarnation, clock : int
        Whose minibatch, and its number: applying it advances that worker's clock to ``clock + 1``.
    pull : int
        Request id, on this connection, of the pull whose keys these are; 0: ``keys`` has them.
    signature : int
        Of the whole key column (``columns.signature``).
    count : int
        Keys.
    keys : column
        Empty where ``pull`` names them.
    coding : int
    values : column
        Gradients, summed over the minibatch.
    counts : column
        Occurrences of each key (``columns.encode_counts``); empty: none to add.
    mark : Mark
        Where the partition stands once this is applied.
    lengths : column
        Of the embeddings that ``vectors`` has gradients of; empty where ``pull`` names them, too.
    vectors : column
        Gradients of embeddings, laid out as in :class:`Pulled`, in ``coding``, zeros not left out.
    """

    table: Count
    worker: Name
    incarnation: Count
    clock: Count
    pull: Count
    signature: Annotated[int, Meta(ge=0)]
    count: Count
    keys: Column
    coding: Count
    values: Column
    counts: Column
    mark: AnyMark
    lengths: Column = _EMPTY
    vectors: Column = _EMPTY


class PullFactors(Pull, frozen=True, tag=26):
    """A pull of matrix factorization, answered by PulledFactors.

    Attributes
    ----------
    copied : column
        Keys whose factors are not wanted, since the worker has copies of them
        (``columns.encode_lengths``, of lengths 0 and 1).
    """

    copied: Column = _EMPTY


class PulledFactors(Pulled, frozen=True, tag=27):
    """Answer to PullFactors; ``clock`` says how fresh it is.

    Attributes
    ----------
    clock : int
        Of the slowest worker: whatever minibatches before it changed is in the values.
    """

    clock: Count = 0


class PushFactors(Push, frozen=True, tag=28):
    """A push of matrix factorization: what is added to rows of which a share is kept.

    Its ``lengths`` may be others than those of its pull, and are empty only where they are not.

    Attributes
    ----------
    items : column
        Keys that are items (``columns.encode_lengths``, of lengths 0 and 1).
    shares : column
        Two bytes a key, of its bias and of its factors: 255 for all of it, 0 for nothing.
    """

    items: Column = _EMPTY
    shares: Column = _EMPTY


class PullTopics(Pull, frozen=True, tag=35):
    """A pull of a topic model, answered by PulledTopics; ``coding`` says nothing.

    Attributes
    ----------
    partition : str
    epoch, sequence : int
        The minibatch that it is for, as its mark will say.
    """

    partition: Name = ""
    epoch: Count = 0
    sequence: Count = 0


class PulledTopics(Pulled, frozen=True, tag=36):
    """Answer to PullTopics. ``values`` is empty; all is, where words are only counted.

    Attributes
    ----------
    lengths : column
        Words that have topics (``columns.encode_lengths``, the one length being their number).
    vectors : column
        The counts of those (rows of ``topic_columns``).
    words : int
        With topics, of the whole shard.
    totals : column
        Tokens of each topic, of the whole shard.
    topics : column
        The topics that the minibatch's tokens have now, of words with topics, in their order, of
        each word as its documents stand in the minibatch; empty: none has one.
    alpha : column
        Prior of each topic (float64), of the first shard where it is fitted; else empty.
    tallies : column
        Where the prior of words is fitted: how often each count stands in the shard's rows (int64,
        ``compute.kernels.topic_priors``).
    """

    words: Count = 0
    totals: Column = _EMPTY
    topics: Column = _EMPTY
    alpha: Column = _EMPTY
    tallies: Column = _EMPTY


class PushTopics(Push, frozen=True, tag=37):
    """A push of a topic model: words to be counted, or topics of tokens, or both.

    ``values`` and ``vectors`` are empty; ``counts`` are the tokens of each word in the minibatch.

    Attributes
    ----------
    documents : column
        In how many documents of the minibatch each word stands (``columns.encode_counts``); empty:
        nothing is to be counted.
    topics : column
        The topics of the tokens of the words that ``lengths`` name, laid out as in PulledTopics,
        each with one.
    fit : column
        To the first shard, where alpha is fitted: the sums of ``compute.kernels.topic_fits`` over
        the minibatch's documents (float64).
    """

    documents: Column = _EMPTY
    topics: Column = _EMPTY
    fit: Column = _EMPTY


class Choose(Told, frozen=True, tag=38):
    """All words are counted: those that may have topics get them. A log record only."""


class Pushed(Told, frozen=True, tag=23):
    """Answer to Push, once it is durable: applied now, or (``duplicate``) before."""

    sequence: Count
    duplicate: bool


class KeyMiss(Told, frozen=True, tag=24):
    """Answer to Push: the pull is forgotten; send the push again with its keys."""

    pull: Count


class Tick(Told, frozen=True, tag=25):
    """Time passes (minutes since the epoch). A log record only."""

    minute: Count


class Listed(Told, frozen=True, tag=29):
    """A partition as a worker listed it."""

    name: Name
    version: Name
    size: int


class Register(Told, frozen=True, tag=30):
    """Name partitions to hand out; known ones are left as they are (answered by Done).

    Attributes
    ----------
    complete : bool
        Whether the source has no more than what has been registered.
    """

    partitions: Annotated[list[Listed], Meta(max_length=ENTRIES_MAX)]
    complete: bool
    epochs: Count


class Claim(Told, frozen=True, tag=31):
    """A worker asks for a partition to learn; ``held`` are those that it is at."""

    worker: Name
    incarnation: Count
    held: Annotated[list[Name], Meta(max_length=ENTRIES_MAX)]
    wanted: bool


GIVEN: Final = 0
WAIT: Final = 1
NOTHING_LEFT: Final = 2


class Claimed(Told, frozen=True, tag=32):
    """Answer to Claim: ``state`` is GIVEN, WAIT (ask again) or NOTHING_LEFT."""

    state: Count
    partition: Name
    epoch: Count


class Finished(Told, frozen=True, tag=33):
    """A partition is applied to its end on every shard (answered by Done)."""

    worker: Name
    incarnation: Count
    partition: Name
    epoch: Count


class Reopen(Told, frozen=True, tag=34):
    """Partitions that a shard has not applied to their end after all (answered by Done)."""

    partitions: Annotated[list[Name], Meta(max_length=ENTRIES_MAX)]
    epoch: Count


class Follow(Told, frozen=True, tag=40):
    """Send the log's records behind ``after``, for ever; -1: send the whole state first."""

    after: int


class FollowPart(Told, frozen=True, tag=41):
    """A part of the state: rows of one segment (uint64[n, 4]), and their embeddings (float32)."""

    rows: Column
    vectors: Column = _EMPTY


class FollowCut(Told, frozen=True, tag=42):
    """The rest of the state: it is that after the log record ``lsn``; records follow."""

    lsn: int
    meta: Column


class FollowRecord(Told, frozen=True, tag=43):
    """Log record ``lsn`` as it stands in the log; it is durable."""

    lsn: Count
    body: Column


class FollowTopics(Told, frozen=True, tag=44):
    """A part of the state: topics of tokens of some minibatches of a partition.

    Attributes
    ----------
    first : int
        Sequence of the first of them.
    prefixes : column
        Of each minibatch, how many tokens have keys of each of the shard's prefixes (uint32).
    topics : column
        Topics (uint16), minibatch after minibatch, each laid out as in PulledTopics.
    """

    partition: Name
    first: Count
    prefixes: Column
    topics: Column


class Meet(Told, frozen=True, tag=45):
    """A worker asks the first shard for a group that exchanges dense gradients, answered by Met.

    The answer comes once all workers that the shard knows to be in a group, or to ask for one, ask.

    Attributes
    ----------
    step : int
        Steps of the worker's dense part: who has most of them is the first of the group, and has
        the others begin where it is.
    address : str
        HOST:PORT of its store, where the others would find one another.
    generation : int
        Of the last group that it was in; 0: none.
    """

    worker: Name
    incarnation: Count
    step: Count
    address: Name
    generation: Count = 0


class Met(Told, frozen=True, tag=46):
    """Answer to Meet: the group, and the worker's place in it.

    Attributes
    ----------
    generation : int
        Number of the group: higher than that of any before.
    rank, size : int
        Which of how many workers; with 1 there is nobody to exchange with.
    address : str
        Of the first worker's store.
    """

    generation: Count
    rank: Count
    size: Count
    address: Name


class Stay(Told, frozen=True, tag=47):
    """A worker is in a group; answered by Done as soon as there shall be another one."""

    worker: Name
    incarnation: Count
    generation: Count


class State(Told, frozen=True, tag=50):
    """Ask where a shard is; with ``partition``, of the marks only that one."""

    marks: bool = True
    partition: Name = ""


class StateIs(Told, frozen=True, tag=51):
    """Answer to State; ``clocks`` by worker, ``figures`` for whoever watches."""

    incarnation: Count
    lsn: int
    durable_lsn: int
    ready: bool
    marks: Annotated[list[AnyMark], Meta(max_length=ENTRIES_MAX)]
    clocks: Annotated[dict[str, int], Meta(max_length=ENTRIES_MAX)]
    figures: Annotated[dict[str, float], Meta(max_length=4096)]


class TakeSnapshot(Told, frozen=True, tag=52):
    """Take a snapshot now (an administrator's); answered by Done once it is committed."""


class Ping(Told, frozen=True, tag=60):
    """Are you there? Answered by Done."""


class Fault(Told, frozen=True, tag=61):
    """A request is refused.

    Attributes
    ----------
    code : str
        Of a bounded set: ``busy draining forbidden gap full invalid unknown storage stale``.
    message : str
        One sentence: what, expected and actual.
    again : bool
        Whether the same request may succeed later.
    """

    code: Annotated[str, Meta(max_length=32)]
    message: Name
    again: bool


Message: TypeAlias = (
    Join | Joined | Leave | Done | Pull | Pulled | Push | Pushed | KeyMiss | Tick | PullFactors
    | PulledFactors | PushFactors | Register | Claim | Claimed | Finished | Reopen | Follow
    | FollowPart | FollowCut | FollowRecord | State | StateIs | TakeSnapshot | Ping | Fault
    | PullTopics | PulledTopics | PushTopics | Choose | FollowTopics | Meet | Met | Stay
)  # fmt: skip
Answer: TypeAlias = (
    Joined | Done | Pulled | PulledFactors | PulledTopics | Pushed | KeyMiss | Claimed | StateIs
    | Fault | FollowPart | FollowCut | FollowRecord | FollowTopics | Met
)  # fmt: skip

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytearray:
    """Return a message's bytes."""
    out = bytearray()
    _ENCODER.encode_into(message, out)
    return out


def decode(body: bytes | bytearray | memoryview) -> Message:
    """Return the message that bytes are; its columns are views of ``body``.

    Raises
    ------
    ProtocolError
        It is none, or a field is not what it must be; says which.
    """
    try:
        message: Message = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("a message cannot be read", cause=str(error)) from error
    return message
