"""Documents made of known topics: words of a topic are told apart by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["TOPICS", "WORDS", "documents", "written"]

TOPICS, WORDS = 5, 20  # words of each topic


def documents(
    count: int, seed: int = 0, topics: int = TOPICS, length: int = 40, alpha: float = 0.1
) -> list[list[str]]:
    """Return documents as lists of words ``ta``, ``tb`` ... of topic ``t`` (letters only)."""
    rng = np.random.default_rng(seed)
    names = [f"{_letters(t)}x{_letters(w)}" for t in range(topics) for w in range(WORDS)]
    chances = 1 / np.arange(1, WORDS + 1)
    chances /= chances.sum()
    out = []
    for _ in range(count):
        mixture = rng.dirichlet(np.full(topics, alpha))
        drawn = rng.choice(topics, int(rng.integers(length // 2, 2 * length)), p=mixture)
        out.append([names[t * WORDS + int(rng.choice(WORDS, p=chances))] for t in drawn])
    return out


def _letters(number: int) -> str:
    return chr(97 + number // 26 % 26) + chr(97 + number % 26)


def written(path: Path, count: int, seed: int = 0, **more: float) -> Path:
    """Write documents, one a line."""
    path.write_text("".join(" ".join(d) + "\n" for d in documents(count, seed, **more)))  # type: ignore[arg-type]
    return path
