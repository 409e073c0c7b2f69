"""Minibatches whose ends depend on a partition's records alone, not on how its bytes come.

Where a minibatch is applied once and known by its number, whoever cuts the partition again must cut
it the same: after a crash, from a stored position, in blocks of another size. So a minibatch is
full when it holds so many records, or features, and goes on across blocks until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from streamlearn.compute.kernels.records import subsample_negatives
from streamlearn.messages import U8, BadRecord, Block
from streamlearn.online.formats import Format
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.names import Names, Sampler
from streamlearn.stream import Stream, bad_records, note_too_long

__all__ = ["Batcher", "Cut"]


@dataclass(slots=True)
class Cut:
    """A minibatch as it was cut.

    Attributes
    ----------
    batch : Minibatch
        Its ``lines`` are plain offsets in the object.
    offset, records : int
        Where the next one begins.
    bad : list of BadRecord
    done : bool
        Whether the partition ends with it.
    """

    batch: Minibatch
    offset: int
    records: int
    bad: list[BadRecord] = field(default_factory=list)
    done: bool = False


class Batcher:
    """Cuts one partition into minibatches.

    Parameters
    ----------
    stream : Stream
        ``records`` is set: those before the first block.
    format : Format
    stock : callable
        Gives an empty minibatch; waits for one.
    rate : float
        Share of negatives kept.
    offset : int
        Where the first block begins.
    names : Names, optional
        Learns the names of features from some of the records.
    sampler : Sampler, optional
        Which records those are.
    """

    def __init__(
        self,
        stream: Stream,
        format: Format,
        stock: Callable[[], Minibatch],
        rate: float,
        offset: int,
        names: Names | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.stream = stream
        self._format = format
        self._stock = stock
        self._rate = rate
        self._offset = offset
        self._names, self._sampler = names, sampler
        self._cut: Cut | None = None
        self._fresh: U8 = np.ones(0, np.uint8)

    def feed(self, block: Block) -> Iterator[Cut]:
        """Parse a block; yield the minibatches that are full, and the last where it ends with it.

        Nothing of the block is looked at once the next minibatch is asked for.
        """
        buffer, base = block.buffer, block.offset - block.start
        for piece in self.stream.pieces(block):
            at = piece.start if piece.too_long is None else piece.end
            if piece.too_long is not None:
                cut = self._open()
                first = cut.batch.bad
                note_too_long(cut.batch, piece)
                self._note(cut, block, cut.batch.rows, first, piece.end, piece.too_long)
                if cut.batch.full:
                    yield self._close()
            while at < piece.end:
                cut = self._open()
                rows, bad = cut.batch.rows, cut.batch.bad
                at = self.stream.parser.parse(buffer, at, piece.end, cut.batch)
                self._note(cut, block, rows, bad, at, None)
                if cut.batch.full:
                    yield self._close()
        if block.last:
            self._offset = max(self._offset, base + block.end)
            cut = self._open()
            cut.offset, cut.done = self._offset, True
            yield self._close()

    def _open(self) -> Cut:
        if self._cut is None:
            batch = self._stock()
            batch.clear()
            self._cut = Cut(batch, self._offset, self.stream.records)
        return self._cut

    def _note(
        self, cut: Cut, block: Block, rows: int, bad: int, end: int, too_long: bytes | None
    ) -> None:
        """Note what a piece of a block added, while the block is there."""
        batch, base = cut.batch, block.offset - block.start
        lines = batch.lines[rows : batch.rows]
        if self._names is not None and self._sampler is not None and len(lines):
            fresh = self._fresh_of(batch, rows, self._names, every=self._sampler.every)
            picked = self._sampler.pick(fresh, len(lines))
            self._names.note(self.stream.parser, block.buffer, lines, picked)
        lines += base
        if batch.bad > bad:
            uri = self.stream.partition.uri
            cut.bad.extend(bad_records(batch, bad, block, uri, self._format, too_long))
        cut.offset = self._offset = base + end
        cut.records = self.stream.records + batch.records

    def _fresh_of(self, batch: Minibatch, first: int, names: Names, *, every: bool) -> U8:
        """Return which rows from ``first`` on may have names that are not known, uint8[>= rows]."""
        rows = batch.rows - first
        if len(self._fresh) < rows:
            self._fresh = np.ones(batch.rows_max, np.uint8)
        if not every:
            return self._fresh
        begin, end = int(batch.indptr[first]), int(batch.indptr[batch.rows])
        unnamed = names.unnamed(batch.keys[begin:end]) + begin
        fresh: U8 = np.zeros(rows, np.uint8)
        fresh[np.searchsorted(batch.indptr[first : batch.rows + 1], unnamed, side="right") - 1] = 1
        return fresh

    def _close(self) -> Cut:
        cut, self._cut = self._cut, None
        assert cut is not None
        batch = cut.batch
        self.stream.records = cut.records
        if self._rate < 1.0:
            subsample_negatives(
                batch.keys, batch.values, batch.fields, batch.dense, batch.indptr, batch.labels,
                batch.weights, batch.lines, batch.state, 0, self._rate,
            )  # fmt: skip
        return cut

    def drop(self) -> Minibatch | None:
        """Forget the minibatch that is being filled; return it, to be used again."""
        cut, self._cut = self._cut, None
        return cut.batch if cut is not None else None
