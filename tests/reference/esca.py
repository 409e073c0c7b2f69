"""ESCA in float64, one token after the other: a slow twin of ``kernels.esca``."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamlearn.messages import I32, I64, U32
from streamlearn.online.topic_blocks import Block

__all__ = ["chances_of", "random_bits", "swept"]

_GROUP = 16
_ALL = (1 << 64) - 1


def random_bits(key: int, place: int) -> int:
    """Return the 64 random bits of a place (SplitMix64's finalizer)."""
    x = (key + place * 0x9E3779B97F4A7C15) & _ALL
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _ALL
    return x ^ (x >> 31)


def chances_of(
    old: int,
    of_document: Any,
    of_word: Any,
    totals: Any,
    alpha: Any,
    beta: float,
    words: int,
    counted: bool = True,
) -> tuple[Any, Any]:
    """Return what a token's topic goes by: the part of its document's topics, and of its word's.

    Parameters
    ----------
    old : int
        Its topic, which is taken out of the counts: those of its document, and, where ``counted``,
        of its word and in all.

    Returns
    -------
    float64[topics], float64[topics]
    """
    document, word, total = (np.array(c, np.float64) for c in (of_document, of_word, totals))
    document[old] -= 1
    if counted:
        word[old] -= 1
        total[old] -= 1
    phi = (word + beta) / (total + words * beta)
    return document * phi, alpha * phi


def swept(
    block: Block, counts: Any, totals: Any, alpha: Any, beta: float, key: int, words: int
) -> tuple[U32, I32, I64, float]:
    """Draw the topics of a block anew.

    Parameters
    ----------
    counts : int[words, topics]
    totals : int[topics]

    Returns
    -------
    tokens : uint32[n]
    counts : int32[words, topics]
    totals : int64[topics]
    float
        Sum of the logarithms of the probabilities of tokens given all others.
    """
    topics = len(alpha)
    tokens = block.tokens.copy()
    counts, totals = np.array(counts, np.int32), np.array(totals, np.int64)
    frozen = totals.copy()
    lists = [_list_of(block, d) for d in range(len(block.bounds) - 1)]
    logarithms = 0.0
    strides = -(-topics // _GROUP)
    for x, word in enumerate(block.present):
        row = counts[word].copy()
        for i in range(block.starts[x], block.starts[x + 1]):
            document, old = int(tokens[i] >> 16), int(tokens[i] & 0xFFFF)
            held = lists[document]
            of_document = np.zeros(topics)
            of_document[[topic for topic, _ in held]] = [count for _, count in held]
            doc_part, word_part = chances_of(old, of_document, row, frozen, alpha, beta, words)
            whole = doc_part.sum() + word_part.sum()
            size = sum(count for _, count in held)
            logarithms += np.log(whole / (size - 1 + alpha.sum()))
            bits = random_bits(key, i)
            u = (bits >> 40) * 2.0**-24 * whole
            if u < doc_part.sum():
                order = [topic for topic, _ in held]
                new = _pick(order, doc_part, u)
            else:
                u = (bits >> 8 & 0xFFFFFF) * 2.0**-24 * word_part.sum()
                order = [k for q in range(strides) for k in range(q, topics, strides)]
                new = _pick(order, word_part, u)
            counts[word, old] -= 1
            counts[word, new] += 1
            totals[old] -= 1
            totals[new] += 1
            tokens[i] = (document << 16) | new
    return tokens, counts, totals, logarithms


def _pick(order: list[int], weights: Any, u: float) -> int:
    for topic in order:
        if u < weights[topic]:
            return topic
        u -= weights[topic]
    return order[-1]


def _list_of(block: Block, document: int) -> list[tuple[int, int]]:
    """Return the topics of a document and their counts, in the order in which they come."""
    mine = block.tokens[block.tokens >> 16 == document] & 0xFFFF
    held: dict[int, int] = {}
    for topic in mine.tolist():
        held[topic] = held.get(topic, 0) + 1
    return list(held.items())
