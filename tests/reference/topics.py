"""Slow twins of what topics say of documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from math import exp, lgamma, log
from typing import Any

import numpy as np


def probability(words: Sequence[int], alpha: np.ndarray[Any, Any], phi: Any) -> float:
    """Return how probable a document is: the sum over all topics that its tokens may have."""
    k = len(alpha)
    total = 0.0
    for topics in product(range(k), repeat=len(words)):
        counts = np.bincount(topics, minlength=k)
        prior = lgamma(alpha.sum()) - lgamma(alpha.sum() + len(words))
        prior += sum(lgamma(a + n) - lgamma(a) for a, n in zip(alpha, counts, strict=True))
        total += exp(prior) * float(
            np.prod([phi[w, z] for w, z in zip(words, topics, strict=True)])
        )
    return total


def coherence(documents: Sequence[Sequence[str]], words: Sequence[str]) -> tuple[float, float]:
    """Return NPMI and UMass of a topic's words, the most frequent first."""
    sets = [set(document) for document in documents]
    n = len(sets)
    npmi, umass = [], []
    for first, second in combinations(words, 2):
        a, b = (sum(word in one for one in sets) for word in (first, second))
        both = sum(first in one and second in one for one in sets)
        if a:
            umass.append(log((both + 1) / a))
        if not a or not b:
            continue
        if both in (0, n):
            npmi.append(-1.0 if not both else 1.0)
        else:
            npmi.append(log(both * n / (a * b)) / -log(both / n))
    return (
        sum(npmi) / len(npmi) if npmi else float("nan"),
        sum(umass) / len(umass) if umass else float("nan"),
    )
