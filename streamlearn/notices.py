"""What a run warns of: examples that taught nothing, full embeddings, documents that were split."""

from __future__ import annotations

import logging
from typing import Any, Final

from streamlearn.online.minibatch import ROW_WORDS_MAX, S_REPLACED, S_SPLIT, Minibatch

__all__ = ["Notices"]

_log = logging.getLogger("streamlearn.learner")

# Minibatches with examples that taught nothing are named in the log up to here; all are counted.
_TOLD_MAX: Final = 20


class Notices:
    """Counts, and says once or a few times, what a user should know.

    Attributes
    ----------
    dropped : int
        Examples whose score was not finite, of which nothing was learned.
    rows_split, replaced : int
        Rows of documents beyond the first of each; documents with bytes that are no text.
    """

    def __init__(self) -> None:
        self.dropped = self.rows_split = self.replaced = 0
        self._told = 0
        self._full = self._diverged = False

    def note_dropped(self, count: int, uri: str, first: int, end: int) -> None:
        """Note examples of the minibatch in bytes ``[first, end)`` of an object."""
        if not count:
            return
        self.dropped += count
        self._told += 1
        if self._told <= _TOLD_MAX:
            _log.warning(
                "%d examples of %s, bytes %d to %d, have a score that is not finite: nothing is "
                "learned of them%s",
                count, uri, first, end,
                "; further ones are counted only" if self._told == _TOLD_MAX else "",
            )  # fmt: skip

    def note_diverged(self, count: int) -> None:
        """Note ratings of a further pass."""
        if count and not self._diverged:
            _log.warning(
                "%d ratings have a score that is not finite: nothing is learned of them, and the "
                "factors of their users and items are of no use (a smaller model.alpha would do)",
                count,
            )
        self._diverged |= count > 0
        self.dropped += count

    def note_documents(self, batch: Minibatch, uri: str) -> None:
        """Note which documents of an object were split into rows, or have bytes that are no text.

        A document of words that are given as counts, or a long line, may be more than one row.
        """
        rows, replaced = int(batch.state[S_SPLIT]), int(batch.state[S_REPLACED])
        if rows and not self.rows_split:
            _log.warning(
                "a document of %s has more than %s words: it is learned as several; further ones "
                "are counted only",
                uri, f"{ROW_WORDS_MAX:,}",
            )  # fmt: skip
        if replaced and not self.replaced:
            _log.warning(
                "a document of %s has bytes that are no UTF-8, which end words as blanks do "
                "(source.undecodable; is it latin-1? source.encoding says so); further ones are "
                "counted only",
                uri,
            )
        self.rows_split += rows
        self.replaced += replaced

    def look_at(self, arena: Any) -> None:
        """Say once that a table's embeddings have reached their limit."""
        if self._full or arena is None or not arena.refused:
            return
        self._full = True
        _log.warning(
            "embeddings have reached their limit, %s bytes (tables.embeddings_bytes_max): "
            "features that would earn one, or a longer one, from now on get none",
            f"{arena.bytes_max:,}",
        )
