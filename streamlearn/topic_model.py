"""A topic model, taken out of what was learned: its words, and what each topic is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from streamlearn.config import JobConfig, LdaConfig
from streamlearn.errors import ConfigError
from streamlearn.messages import F64, I32, I64, U32, U64
from streamlearn.model import Model
from streamlearn.online.lda import LdaSolver, numbers_of
from streamlearn.shards.table import ExactTable

__all__ = [
    "TopWords",
    "Topics",
    "check_words",
    "need_topics",
    "topics_listed",
    "topics_told",
    "word_listed",
    "words_of",
]

_COUNT: Final = np.uint64(0xFFFFFFFF)
# Words of a topic by which it is told how much they are its own.
EXCLUSIVE: Final = 10
# Counts that are looked at together: 16 MB.
_PIECE: Final = 1 << 21
_LATEST: Final = (1 << 32) - 1
# What of a source says which words a text has.
_WORDS: Final = ("markup", "digits", "word_length_min", "word_length_max", "stop_words")


@dataclass(frozen=True, slots=True)
class Topics:
    """The vocabulary and the priors of a topic model.

    Attributes
    ----------
    keys : uint64[words]
        Of the words that have topics, in the order in which they were met.
    documents, tokens : uint32[words]
        In how many documents each stands, and how often.
    alpha : float64[topics]
    beta : float
    totals : int64[topics]
        Tokens of each topic.
    """

    solver: LdaSolver
    keys: U64
    documents: U32
    tokens: U32
    alpha: F64
    beta: float
    totals: I64

    @classmethod
    def of(cls, model: Model) -> Topics:
        """Take them out of a model of kind ``lda``."""
        solver, table = model.solver, model.table
        assert isinstance(solver, LdaSolver)
        assert isinstance(table, ExactTable)
        keys, slots = solver.vocabulary()
        rows = table.rows_at(slots)
        order = np.argsort(numbers_of(rows[:, 1]), kind="stable")
        rows, priors = rows[order], solver.priors
        return cls(
            solver,
            keys[order],
            (rows[:, 2] & _COUNT).astype(np.uint32),
            (rows[:, 1] & _COUNT).astype(np.uint32),
            priors.alpha.copy(),
            priors.beta,
            priors.totals.copy(),
        )

    @property
    def norms(self) -> F64:
        """T + V beta, float64[topics]."""
        return self.totals.astype(np.float64) + max(len(self.keys), 1) * self.beta

    def pieces(self) -> Iterator[tuple[int, I32]]:
        """Yield the counts of words by topic, int32[n, topics], and the place of the first."""
        step = max(1, _PIECE // len(self.totals))
        for first in range(0, len(self.keys), step):
            yield first, self.solver.counts_at(self.keys[first : first + step])

    def counts(self) -> I32:
        """Return all counts, int32[words, topics]."""
        out: I32 = np.zeros((len(self.keys), len(self.totals)), np.int32)
        for first, piece in self.pieces():
            out[first : first + len(piece)] = piece
        return out


@dataclass(frozen=True, slots=True)
class TopWords:
    """The words that are most frequent in each topic, and how much they are its own.

    Attributes
    ----------
    places : int64[topics, n]
        In ``Topics.keys``, the most frequent first, of equals the one that was met first; -1: the
        topic has no more words.
    counts : int32[topics, n]
    exclusivity : float64[topics]
        Mean over the first ``EXCLUSIVE`` of phi in this topic by the sum of phi in all; NaN where
        it has no words.
    """

    places: I64
    counts: I32
    exclusivity: F64

    @classmethod
    def of(cls, topics: Topics, n: int) -> TopWords:
        """Find the ``n`` most frequent words of each topic."""
        width = len(topics.totals)
        best: I64 = np.zeros((width, n), np.int64)
        sums: F64 = np.zeros(len(topics.keys))
        norms, beta = topics.norms, topics.beta
        rest = float((beta / norms).sum())
        for first, piece in topics.pieces():
            sums[first : first + len(piece)] = piece @ (1.0 / norms) + rest
            # one number that says both how often and how early: all are different
            early = _LATEST - np.arange(first, first + len(piece), dtype=np.int64)
            both = np.concatenate([best, (piece.T.astype(np.int64) << 32) | early], axis=1)
            best = np.partition(both, both.shape[1] - n, axis=1)[:, -n:]
        best = -np.sort(-best, axis=1)
        counts = (best >> 32).astype(np.int32)
        places = np.where(counts > 0, _LATEST - (best & _LATEST), -1)
        phi = (counts + beta) / norms[:, None]
        there = places >= 0
        shares = np.where(there, phi / sums[places] if len(sums) else 0.0, 0.0)[:, :EXCLUSIVE]
        with np.errstate(invalid="ignore"):
            exclusivity = shares.sum(axis=1) / there[:, :EXCLUSIVE].sum(axis=1)
        return cls(places, counts, exclusivity)


def need_topics(model: Model, what: str) -> None:
    """Refuse a model of another kind.

    Raises
    ------
    ConfigError
        The model has no topics; ``what`` is what needs some.
    """
    kind = model.job.model.kind
    if kind != "lda":
        raise ConfigError(
            f"{what} needs topics, but the model is {kind}",
            hint="streamlearn train DOCUMENTS --model lda --out DIR",
        )


def check_words(stored: JobConfig, job: JobConfig, what: object) -> None:
    """Refuse documents whose words are other ones than a model's; how they stand there may differ.

    Parameters
    ----------
    stored, job : JobConfig
        What the model was learned with, and what documents are read with.
    what : object
        Where the model is.

    Raises
    ------
    ConfigError
        A setting of words is another one.
    """
    for name in _WORDS:
        was, now = getattr(stored.source, name), getattr(job.source, name)
        if was != now:
            raise ConfigError(
                f"source.{name} is {now}, but the model in {what} was learned with {was}",
                hint="leave it out: documents are then split into words as they were",
            )


def topics_told(model: Model) -> dict[str, Any]:
    """Say how large a topic model is, and what its priors are."""
    config, table, solver = model.job.model, model.table, model.solver
    assert isinstance(config, LdaConfig)
    assert isinstance(table, ExactTable)
    assert isinstance(solver, LdaSolver)
    assert table.arena is not None
    priors = solver.priors
    return {
        "topics": config.topics,
        "vocabulary": priors.words,
        "words": solver.numbers,
        "documents": solver.documents,
        "tokens": int(priors.totals.sum()),
        "alpha_sum": float(priors.alpha.sum()),
        "beta": priors.beta,
        "table_bytes": table.nbytes,
        "counts_bytes": table.arena.nbytes,
        "names": len(model.names),
    }


def topics_listed(model: Model, top: int) -> tuple[list[dict[str, Any]], TopWords, Topics]:
    """Return what each topic is made of, the largest first.

    Parameters
    ----------
    top : int
        Words of each.

    Returns
    -------
    list of dict
        ``topic`` (its number), ``share`` of the tokens, ``alpha``, ``exclusivity`` and ``words``.
    TopWords
    Topics
    """
    topics = Topics.of(model)
    found = TopWords.of(topics, top)
    names = dict(zip(used := np.unique(found.places[found.places >= 0]).tolist(),
                     words_of(model, topics.keys[used]), strict=True))  # fmt: skip
    shares = topics.totals / max(int(topics.totals.sum()), 1)
    listed = [
        {
            "topic": k,
            "share": float(shares[k]),
            "alpha": float(topics.alpha[k]),
            "exclusivity": None if np.isnan(found.exclusivity[k]) else float(found.exclusivity[k]),
            "words": [names[place] for place in found.places[k].tolist() if place >= 0],
        }
        for k in np.argsort(-topics.totals, kind="stable").tolist()
    ]
    return listed, found, topics


def word_listed(model: Model, word: str, key: int, top: int) -> dict[str, Any]:
    """Return the topics of a word.

    Parameters
    ----------
    word : str
    key : int
        Of the word.
    top : int
        Topics at most.

    Returns
    -------
    dict
        ``word``, ``tokens``, ``documents`` and ``topics``: of each its number, the ``share`` of the
        word's tokens that it has, and the word's ``probability`` in it.
    """
    solver, table = model.solver, model.table
    assert isinstance(solver, LdaSolver)
    assert isinstance(table, ExactTable)
    keys: U64 = np.array([key], np.uint64)
    slots = table.find(keys)
    told: dict[str, Any] = {"word": word, "tokens": 0, "documents": 0, "topics": []}
    if slots[0] < 0:
        return told
    row = table.rows_at(slots)[0]
    told |= {"tokens": int(row[1] & _COUNT), "documents": int(row[2] & _COUNT)}
    counts, phi = solver.counts_at(keys)[0], solver.phi_at(keys)[0]
    best = np.argsort(-counts, kind="stable")[:top]
    told["topics"] = [
        {
            "topic": k,
            "share": float(counts[k] / counts.sum()),
            "probability": float(phi[k]),
        }
        for k in best.tolist()
        if counts[k] > 0
    ]
    return told


def words_of(model: Model, keys: U64) -> list[str]:
    """Return words by their keys; ``#key`` where the word was not kept."""
    names = model.names.lookup(keys)
    return [
        f"#{key}" if name is None else name for name, key in zip(names, keys.tolist(), strict=True)
    ]
