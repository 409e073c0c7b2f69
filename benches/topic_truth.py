"""A corpus drawn by the model of LDA itself, whose topics are known.

    python benches/topic_truth.py 100000 --words 30000 --topics 100 --out .bench

Topics are drawn by a Dirichlet whose mean is a power law, so that what is frequent stands in most
of them:

    m_w ~ (w + OFFSET)^-EXPONENT,  phi_k ~ Dirichlet(TOPIC_WORD V m),  theta_d ~ Dirichlet(alpha),
    n_d ~ lognormal,  z ~ theta_d,  w ~ phi_z

A word is letters alone, as any tokeniser keeps it. Words that no document to be learned has are
left out of the truth, whose topics are made to sum to one again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

import topic_corpora
from topic_corpora import Corpus

__all__ = ["draw", "generated"]

EXPONENT = 1.05
OFFSET = 5.0
TOPIC_WORD = 0.01
# Of the logarithm of a document's length.
DEVIATION = 0.6


def generated(
    documents: int,
    words: int,
    topics: int,
    folder: Path,
    *,
    alpha: float = 0.1,
    length: float = 100.0,
    seed: int = topic_corpora.SEED,
) -> Corpus:
    """Make a corpus, or find the one that was made, in a folder; see `draw`.

    HELD_OUT further documents are set apart.
    """
    path = folder / f"drawn-{documents}-{words}-{topics}-{alpha:g}-{length:g}-{seed}.npz"
    if not path.exists():
        held_out = topic_corpora.HELD_OUT
        phi, drawn = draw(documents + held_out, words, topics, alpha, length, seed)
        learned, held = drawn[:documents], drawn[documents:]
        seen = np.unique(np.concatenate(learned))
        place = np.full(words, -1, np.int32)
        place[seen] = np.arange(len(seen))
        kept = phi[:, seen]
        topic_corpora.write(
            path,
            [_name(number) for number in seen.tolist()],
            *([n[n >= 0] for n in (place[one] for one in part)] for part in (learned, held)),
            phi=kept / kept.sum(1, keepdims=True),
            alpha=np.full(topics, alpha),
        )
    return topic_corpora.read(path)


def draw(
    documents: int, words: int, topics: int, alpha: float, length: float, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw topics, and documents of them.

    Parameters
    ----------
    documents, words, topics : int
    alpha : float
        Prior of a mixture.
    length : float
        Mean of the tokens of a document; it has two at least.
    seed : int

    Returns
    -------
    phi : float64[K, V]
    documents : list of int32[n_d]
    """
    rng = np.random.default_rng(seed)
    mean = (np.arange(words) + OFFSET) ** -EXPONENT
    mean /= mean.sum()
    phi = rng.standard_gamma(TOPIC_WORD * words * mean, (topics, words))
    phi /= phi.sum(1, keepdims=True)
    lens = rng.lognormal(np.log(length) - DEVIATION**2 / 2, DEVIATION, documents)
    lens = np.maximum(lens, 2).astype(np.int64)
    drawn = np.empty(lens.sum(), np.int32)
    _draw(np.cumsum(phi, 1), lens, alpha, rng, drawn)
    return phi, np.split(drawn, np.cumsum(lens)[:-1])


@njit(nogil=True, cache=True)
def _draw(ends: Any, lens: Any, alpha: float, rng: Any, drawn: Any) -> None:
    """Draw the words of documents, into ``drawn`` (int32[N]).

    ``ends`` (float64[K, V]) are cumulated topics. O(N log V + D K).
    """
    topics, words = ends.shape
    until = np.empty(topics)
    at = 0
    for n in lens:
        total = 0.0
        for k in range(topics):
            total += rng.standard_gamma(alpha)
            until[k] = total
        for _ in range(n):
            k = min(np.searchsorted(until, rng.random() * total), topics - 1)
            last = ends[k, words - 1]
            word = np.searchsorted(ends[k], rng.random() * last)
            drawn[at] = min(word, words - 1)
            at += 1


def _name(number: int) -> str:
    """Return the text of a word by its number."""
    letters = "w"
    for _ in range(5):
        number, letter = divmod(number, 26)
        letters += chr(ord("a") + letter)
    return letters


def main() -> None:
    """Make a corpus, say what is in it."""
    parser = argparse.ArgumentParser(description="Draw documents of topics that are known.")
    parser.add_argument("documents", type=int)
    parser.add_argument("--words", type=int, default=30_000)
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--length", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=topic_corpora.SEED)
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    made = generated(
        args.documents,
        args.words,
        args.topics,
        args.out,
        alpha=args.alpha,
        length=args.length,
        seed=args.seed,
    )
    print(f"{made.path}: {made.size}")


if __name__ == "__main__":
    main()
