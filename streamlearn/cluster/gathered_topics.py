"""The words of a topic model's shards as one model has them: numbered, counts summed up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels import topic_priors
from streamlearn.config import LdaConfig
from streamlearn.errors import ClusterError
from streamlearn.messages import I64, U64
from streamlearn.protocol import Mark
from streamlearn.shards.cut import Part
from streamlearn.shards.topics import FIT_FROM, Prior

__all__ = ["GatheredTopics"]

_LOW: Final = np.uint64(0xFFFFFFFF)
_HIGH: Final = np.uint64(32)
_DIM: Final = np.uint64(48)


class GatheredTopics:
    """What is summed up over the shards.

    Parameters
    ----------
    model : LdaConfig
    parts : iterable of Part
        Of all shards.
    marks : sequence of Mark
        What they have applied.

    Attributes
    ----------
    tokens : int
        Of the words that have topics, as they were counted.
    assigned : int
        Of those that have a topic.

    prior : Prior or None
        Alpha, as the first shard has it.

    Raises
    ------
    ClusterError
        Some have none, though all passes that would give them one are made.
    """

    def __init__(
        self, model: LdaConfig, parts: Iterable[Part], marks: Sequence[Mark], prior: Prior | None
    ) -> None:
        self._model = model
        self._numbered = 0
        self._words = self._rows = self.tokens = self._seen = 0
        self._totals: I64 = np.zeros(model.topics, np.int64)
        width = -(-model.topics // 16) * 16
        self._alpha = np.full(model.topics, model.alpha_0)
        if prior is not None:
            self._alpha[:] = prior.alpha
        tallied: I64 = np.zeros(topic_priors.BINS, np.int64)
        for part in parts:
            seen = (part.rows[:, 1] & _LOW).astype(np.int64)
            has = part.rows[:, 3] >> _DIM != 0
            counts = part.vectors.view(np.int32).reshape(-1, width)[:, : model.topics]
            places = np.arange(len(counts)) * width
            topic_priors.tally_words(part.vectors.view(np.int32), places, model.topics, tallied)
            self._totals += counts.sum(axis=0, dtype=np.int64)
            self._rows += len(part.rows)
            self._words += int(np.count_nonzero(has))
            self._seen += int(seen.sum())
            self.tokens += int(seen[has].sum())
        self.assigned = int(self._totals.sum())
        self._beta = model.topic_word_prior
        passes = max((mark.epoch for mark in marks), default=0)
        if model.epochs > 1 and model.optimize in ("beta", "both") and passes >= FIT_FROM:
            fitted = topic_priors.fit_beta(self._beta, tallied, self._totals, self._words)
            self._beta = float(fitted)
        self._documents = sum(mark.examples for mark in marks)
        if marks:
            self._documents //= max(1, max(mark.epoch for mark in marks) + 1)
        drawn = model.epochs > 1 and all(m.epoch > 1 or (m.epoch and m.done) for m in marks)
        if marks and drawn and self.assigned != self.tokens:
            raise ClusterError(
                f"the counts of the shards are of {self.assigned:,} tokens, but their words have "
                f"{self.tokens:,}",
                hint="this is a defect: please report it, with the shards' directories",
            )

    def numbered(self, rows: U64) -> U64:
        """Return rows (uint64[n, 4]) of an ascending list of keys with the next numbers."""
        rows = rows.copy()
        numbers = np.arange(1, len(rows) + 1, dtype=np.uint64) + np.uint64(self._numbered)
        self._numbered += len(rows)
        rows[:, 1] = (rows[:, 1] & _LOW) | (numbers << _HIGH)
        return rows

    def state(self) -> dict[str, Any]:
        """Return the state of an ``LdaSolver`` with these words."""
        return {
            "alpha": self._alpha,
            "beta": np.array([self._beta]),
            "totals": self._totals,
            "sums": np.array([self._rows, self._seen, self._documents, 0], np.int64),
            "drawn": np.array([0, self._words], np.int64),
        }
