"""Validation of topics: how probable the tokens of documents are that were not learned yet."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from streamlearn.messages import F32, F64
from streamlearn.online.progressive import Validation
from streamlearn.online.totals import TopicTotals

__all__ = ["TopicValidation"]


class TopicValidation(Validation):
    """Validation of documents: a score is the logarithm of a document's probability.

    The weight of a document is how many tokens that is the probability of; its label says nothing.
    """

    measure: ClassVar = "nll"
    totals_type: ClassVar = TopicTotals
    headline: ClassVar = ("log_likelihood_per_token", "perplexity")
    reported: ClassVar = {
        "log_likelihood_per_token": "log_likelihood_per_token",
        "perplexity": "perplexity",
        "tokens": "tokens",
    }
    labelled: ClassVar = False
    shown: ClassVar = ("perplexity", "perplexity_window", "tokens")

    def __init__(self, window: int) -> None:
        super().__init__(window)

    @staticmethod
    def predictions(scores: F32) -> F64:
        """Return the scores themselves, float64[n]."""
        return scores.astype(np.float64)

    def _add(self, scores: F32, labels: F32, weights: F32, row: int) -> None:
        sums = (-scores.sum(dtype=np.float64), weights.sum(dtype=np.float64), len(scores))
        self._sums[row] += sums

    def add_sums(self, loss: float, tokens: int, documents: int) -> None:
        """Add documents of which only the sums are known, as one piece of the window."""
        other = TopicValidation(self.window)
        other._sums[1] = (loss, tokens, documents)
        self.merge_part(other)
