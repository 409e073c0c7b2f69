"""A partition's records, cut from its blocks into minibatches.

A record that runs over the end of a block is carried into the headroom of the next one; a header is
passed over, and so is a record that is longer than the limit, which becomes a minibatch of nothing
but that one bad record: it is then noted together with its position, as all others are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from streamlearn.compute.kernels.records import find_newline, last_newline, subsample_negatives
from streamlearn.messages import RECORD_BYTES_MAX, U32, BadRecord, Block, Partition
from streamlearn.online.formats import Format, Parser
from streamlearn.online.minibatch import REASONS, S_BAD, S_RECORDS, Minibatch

__all__ = ["Piece", "Stream", "Work", "bad_records", "note_too_long"]

# What is kept of a record that is longer than the limit.
_TOO_LONG_KEPT: Final = 4096
_TOO_LONG: Final = REASONS.index("too_long")


@dataclass(slots=True)
class Work:
    """A minibatch on its way from parsing to learning.

    Attributes
    ----------
    base : int
        Plain offset in the object of index 0 of the block's buffer.
    end : int
        Index in the buffer after the last record parsed.
    too_long : bytes or None
        Beginning of the one record, where that was longer than the limit.
    slots : uint32[nnz] or None
        Rows of the keys in the table, where they were found ahead.
    """

    batch: Minibatch
    stream: Stream
    block: Block
    base: int
    end: int
    too_long: bytes | None = None
    slots: U32 | None = None

    def bad_records(self, format: Format) -> Iterator[BadRecord]:
        """Yield the minibatch's bad records, with where they stand and why."""
        uri = self.stream.partition.uri
        return bad_records(self.batch, 0, self.block, uri, format, self.too_long)


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole records of a block: ``buffer[start:end]``.

    Where ``too_long`` is not None it is the beginning of one record over the limit, that began at
    ``start`` (it may be before the buffer) and ends before ``end``.
    """

    start: int
    end: int
    too_long: bytes | None = None


@dataclass(slots=True)
class Stream:
    """A partition as its records are parsed.

    Attributes
    ----------
    header_due : bool
        Whether a header comes first.
    records : int
        Records of the partition before what is learned next.
    counted : int
        Plain offset up to which bytes are counted.
    """

    partition: Partition
    parser: Parser
    header_due: bool
    records: int
    counted: int
    _carry: bytes = b""
    _too_long_at: int = -1  # plain offset of a record over the limit, while it goes on
    _too_long_head: bytes = b""

    def minibatches(
        self, block: Block, stock: Callable[[], Minibatch], rate: float
    ) -> Iterator[Work]:
        """Parse a block's whole records, in order.

        Parameters
        ----------
        stock : callable
            Gives a minibatch to fill; waits for one.
        rate : float
            Share of negatives kept.
        """
        base = block.offset - block.start
        for piece in self.pieces(block):
            if piece.too_long is not None:
                batch = stock()
                batch.clear()
                note_too_long(batch, piece)
                yield Work(batch, self, block, base, piece.end, piece.too_long)
                continue
            at = piece.start
            while at < piece.end:
                batch = stock()
                batch.clear()
                at = self.parser.parse(block.buffer, at, piece.end, batch)
                if rate < 1.0:
                    subsample_negatives(
                        batch.keys, batch.values, batch.fields, batch.dense, batch.indptr,
                        batch.labels, batch.weights, batch.lines, batch.state, base, rate,
                    )  # fmt: skip
                yield Work(batch, self, block, base, at)

    def pieces(self, block: Block) -> Iterator[Piece]:
        """Yield what of a block is to be parsed: whole records, and the end of one over the limit.

        The record that runs over the block's end is kept for the next one.
        """
        buffer, start = block.buffer, block.start
        base = block.offset - block.start
        if self.header_due and start < block.end:
            newline = find_newline(buffer, start, block.end)
            self.header_due = newline >= block.end
            start = min(newline + 1, block.end)
        if self._too_long_at >= 0:
            newline = find_newline(buffer, start, block.end)
            start = min(newline + 1, block.end)
            if newline < block.end:
                first, self._too_long_at = self._too_long_at - base, -1
                yield Piece(first, newline + 1, self._too_long_head)
        if self._carry:
            start -= len(self._carry)
            buffer[start : start + len(self._carry)] = np.frombuffer(self._carry, np.uint8)
            self._carry = b""
        end = last_newline(buffer, start, block.end) + 1
        if end <= 0:
            end = start
        if start < end:
            yield Piece(start, end)
        left = block.end - end
        if left > RECORD_BYTES_MAX:
            self._too_long_at = base + end
            self._too_long_head = buffer[end : end + _TOO_LONG_KEPT].tobytes()
        elif left > 0:
            self._carry = buffer[end : block.end].tobytes()


def note_too_long(batch: Minibatch, piece: Piece) -> None:
    """Append a record over the limit to a minibatch's bad ones."""
    at = batch.bad
    batch.bad_start[at] = piece.start
    batch.bad_reason[at] = _TOO_LONG
    batch.bad_field[at] = -1
    batch.bad_arg[at] = piece.end - 1 - piece.start
    batch.state[S_BAD] += 1
    batch.state[S_RECORDS] += 1


def bad_records(
    batch: Minibatch,
    first: int,
    block: Block,
    uri: str,
    format: Format,
    too_long: bytes | None = None,
) -> Iterator[BadRecord]:
    """Yield a minibatch's bad records from the ``first`` on, all of them in one block."""
    buffer, base = block.buffer, block.offset - block.start
    for i in range(first, batch.bad):
        start = int(batch.bad_start[i])
        reason = int(batch.bad_reason[i])
        record = too_long
        if record is None:
            end = find_newline(buffer, start, block.end)
            record = buffer[start:end].tobytes()
        detail = format.complaint(reason, int(batch.bad_field[i]), int(batch.bad_arg[i]), record)
        if reason == _TOO_LONG:
            record = record[:_TOO_LONG_KEPT]
        yield BadRecord(uri, base + start, REASONS[reason], detail, record)
