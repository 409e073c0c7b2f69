"""Images of a shard: one cut of rows, marks and clocks, to a snapshot's files or to a follower.

An image is taken part by part while pushes go on. There is one at a time; others wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import copy
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from streamlearn.errors import ColumnError, ProtocolError, SnapshotError
from streamlearn.messages import F32
from streamlearn.protocol import AnyMark, FollowTopics, decode, encode
from streamlearn.shards.cut import Cut, Nothing, Part
from streamlearn.shards.shard import Shard, ShardSpec
from streamlearn.shards.snapshot import SnapshotReader, SnapshotWriter
from streamlearn.shards.topics import Prior

__all__ = [
    "KIND",
    "ROWS",
    "TOPICS",
    "VECTORS",
    "ImageMeta",
    "Imaging",
    "Sink",
    "load_image",
    "read_meta",
    "read_part",
    "read_parts",
    "read_topics",
    "write_part",
    "write_topics",
]

KIND: Final = "shard"
# Files of a snapshot with the rows of a part, and with their embeddings, by its number.
ROWS: Final = "rows."
VECTORS: Final = "vectors."
# And with topics of tokens: a FollowTopics message.
TOPICS: Final = "topics."


class ImageMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an image holds beside rows.

    Attributes
    ----------
    signature : str
        Of the job.
    shard : tuple of int
        (index, of).
    lsn : int
        It is the state after this log record.
    minute : int
        By the last tick.
    marks : list of AnyMark
    clocks : dict
        As ``Clocks.state()`` gives them.
    features : int
        Rows.
    cursors : list of int
        Where the table's forgetting goes on.
    chosen : bool
        Of a topic model, whether it is settled which words have topics.
    prior : Prior or None
        Of the first shard of a topic model, where alpha is fitted.
    """

    signature: str
    shard: tuple[int, int]
    lsn: int
    minute: int
    marks: list[AnyMark]
    clocks: dict[str, list[int]]
    features: int
    cursors: list[int]
    chosen: bool = False
    prior: Prior | None = None

    @classmethod
    def of(cls, shard: Shard) -> ImageMeta:
        """Return what a shard is now."""
        spec = shard.spec
        return cls(
            signature=spec.signature,
            shard=(spec.index, spec.of),
            lsn=shard.lsn,
            minute=shard.minute,
            marks=[shard.marks[name] for name in sorted(shard.marks)],
            clocks=shard.clocks.state(),
            features=shard.table.features,
            cursors=shard.table.cursors.tolist(),
            chosen=shard.topics is not None and shard.topics.chosen,
            prior=None if shard.topics is None else copy(shard.topics.prior),
        )

    def restore(self, shard: Shard) -> None:
        """Make a shard, whose rows are there, what the image was."""
        shard.lsn = self.lsn
        shard.minute = self.minute
        shard.marks = {mark.partition: mark for mark in self.marks}
        shard.clocks.restore(self.clocks)
        shard.table.cursors[:] = self.cursors
        if shard.topics is not None:
            shard.topics.chosen = self.chosen
            if shard.topics.prior is not None and self.prior is not None:
                shard.topics.prior = copy(self.prior)
            shard.topics.recount()


class Sink(Protocol):
    """Where an image goes."""

    @property
    def ready(self) -> bool:
        """Whether it takes another part now."""
        ...

    @property
    def gone(self) -> bool:
        """Whether nobody wants it any more."""
        ...

    def begin(self, meta: ImageMeta) -> None:
        """Begin with the image of this moment."""
        ...

    def part(self, part: Part) -> None:
        """Take a part."""
        ...

    def topics(self, piece: FollowTopics) -> None:
        """Take topics of tokens."""
        ...

    def end(self) -> None:
        """Have all of it."""
        ...


class Imaging:
    """Takes the images that are wanted of a shard, one after the other."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._wanted: deque[Sink] = deque()
        self._sink: Sink | None = None
        self._cut: Cut | None = None
        self._topics: Iterator[FollowTopics] = iter(())

    @property
    def busy(self) -> bool:
        """Whether an image is being taken or waited for."""
        return self._sink is not None or bool(self._wanted)

    def want(self, sink: Sink) -> None:
        """Take an image for ``sink``, once those wanted before are taken."""
        self._wanted.append(sink)

    def step(self) -> bool:
        """Take one part at most; return whether anything was done."""
        if self._sink is not None and self._sink.gone:
            self._close()
        if self._sink is None:
            while self._wanted and self._wanted[0].gone:
                self._wanted.popleft()
            if not self._wanted:
                return False
            self._sink = self._wanted.popleft()
            self._cut = Cut(self._shard.table)
            self._shard.keeper = self._cut
            if self._shard.topics is not None:
                self._topics = self._shard.topics.pieces()
            self._sink.begin(ImageMeta.of(self._shard))
        if not self._sink.ready:
            return False
        assert self._cut is not None
        part = self._cut.take()
        if part is not None:
            self._sink.part(part)
            return True
        piece = next(self._topics, None)
        if piece is not None:
            self._sink.topics(piece)
            return True
        sink = self._sink
        self._close()
        sink.end()
        return True

    def _close(self) -> None:
        if self._cut is not None:
            self._cut.close()
        self._cut = self._sink = None
        self._topics = iter(())
        self._shard.keeper = Nothing()


def read_meta(reader: SnapshotReader) -> ImageMeta:
    """Return what a snapshot says of the shard in it.

    Raises
    ------
    SnapshotError
        It is of no shard, or of another version.
    """
    reader.require(kind=KIND, keys=("image",))
    try:
        return msgspec.convert(reader.meta["image"], ImageMeta)
    except msgspec.ValidationError as error:
        raise SnapshotError(
            f"snapshot {reader.path} was written by another version", cause=str(error)
        ) from error


def read_part(reader: SnapshotReader, number: str) -> Part:
    """Return the part of an exact table that a snapshot holds under a number.

    Raises
    ------
    SnapshotError
        It is damaged.
    """
    vectors: F32 = np.zeros(0, np.float32)
    if f"{VECTORS}{number}" in reader.sizes:
        vectors = reader.read(f"{VECTORS}{number}").view(np.float32)
    rows = reader.read(f"{ROWS}{number}").view(np.uint64)
    return Part(int(number), rows.reshape(-1, 4), vectors)


def read_parts(reader: SnapshotReader) -> Iterator[Part]:
    """Yield the parts of a table that a snapshot holds, by their numbers; raises SnapshotError."""
    for name in sorted(name for name in reader.sizes if name.startswith(ROWS)):
        yield read_part(reader, name.removeprefix(ROWS))


def read_topics(reader: SnapshotReader) -> Iterator[FollowTopics]:
    """Yield the topics of tokens that a snapshot holds, by partition; raises SnapshotError."""
    for name in sorted(name for name in reader.sizes if name.startswith(TOPICS)):
        try:
            piece = decode(reader.read(name).data)
        except ProtocolError as error:
            raise SnapshotError(f"snapshot {reader.path} is damaged", cause=str(error)) from error
        if not isinstance(piece, FollowTopics):
            raise SnapshotError(f"snapshot {reader.path} is damaged", cause=f"{name} has no topics")
        yield piece


def load_image(reader: SnapshotReader, spec: ShardSpec) -> Shard:
    """Load the shard that a snapshot holds.

    Raises
    ------
    SnapshotError
        It is damaged, or of another shard or job than ``spec``.
    """
    meta = read_meta(reader)
    expected = (spec.signature, (spec.index, spec.of))
    if (meta.signature, meta.shard) != expected:
        raise SnapshotError(
            f"snapshot {reader.path} is of job {meta.signature}, shard {meta.shard[0]} of "
            f"{meta.shard[1]}; expected job {spec.signature}, shard {spec.index} of {spec.of}",
            hint="use another --dir, or the job that it was made with",
        )
    shard = Shard(spec, Shard.new_table(spec, rows=meta.features))
    for part in read_parts(reader):
        try:
            shard.table.insert_rows(part.rows, part.vectors)
        except ValueError as error:
            raise SnapshotError(f"snapshot {reader.path} is damaged", cause=str(error)) from error
    for piece in read_topics(reader):
        try:
            assert shard.topics is not None, "of another model"
            shard.topics.put(piece)
        except ColumnError as error:
            raise SnapshotError(f"snapshot {reader.path} is damaged", cause=str(error)) from error
    meta.restore(shard)
    return shard


def snapshot_meta(meta: ImageMeta, job: Any, now: float) -> dict[str, Any]:
    """Return the meta of a snapshot of an image."""
    return {
        "kind": KIND,
        "job": msgspec.to_builtins(job),
        "created_seconds": now,
        "image": msgspec.to_builtins(meta),
    }


def write_part(writer: SnapshotWriter, part: Part, number: str) -> None:
    """Write a part into the files of a snapshot."""
    for prefix, array in ((ROWS, part.rows), (VECTORS, part.vectors)):
        if prefix == ROWS or len(array):
            with writer.open(f"{prefix}{number}") as blob:
                blob.write(np.ascontiguousarray(array))


def write_topics(writer: SnapshotWriter, piece: FollowTopics, number: int) -> None:
    """Write topics of tokens into a file of a snapshot."""
    with writer.open(f"{TOPICS}{number:06d}") as blob:
        blob.write(np.frombuffer(encode(piece), np.uint8))
