"""Slow twin of the factorization machine: float64, one example at a time, rows in a dictionary.

    score = b + <w, x> + sum_f [S^2 - Q] / 2                   of the first part of V
                      [ + sum_f [S^3 - 3 S Q + 2 C] / 6 ]      of the second part, where order = 3

with S, Q, C = sum a, sum a^2, sum a^3 of a = V_f x over the occurrences of an example whose
embedding has a coordinate f (Rendle, "Factorization Machines with libFM", 2012). When an embedding
exists, and what is done to its gradient, is DiFacto's (Li et al., WSDM 2016).

A key that stands twice in an example is two terms: each with its own a in the sums, so the two
interact as two features with the same embedding would. The key's gradient is the sum of its terms',
applied once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlearn.config import FmConfig
from streamlearn.online.minibatch import Minibatch

SCORE_MAX = 35
WORD = (1 << 64) - 1

Array = NDArray[np.float64]
Kept = Mapping[int, NDArray[Any]]


def has(lengths: NDArray[np.int64], dim: int) -> NDArray[np.bool_]:
    """Return which of ``dim`` coordinates exist in embeddings of these lengths: bool[n, dim]."""
    return np.arange(dim) < np.asarray(lengths)[:, None]


def score(
    bias: float, w: Array, V: Array, x: Array, lengths: NDArray[np.int64], xp: Any = np
) -> Any:
    """Return the score of an example of n occurrences.

    Parameters
    ----------
    bias : float
    w, x : float64[n]
        Weight and value of each occurrence.
    V : float64[order - 1, n, dim]
        Embeddings; what stands beyond an embedding's length does not count.
    lengths : int64[n]
        Coordinates of each embedding, 0 where there is none.
    xp : module
        Whose functions to use: NumPy, or what differentiates it.
    """
    total = bias + xp.sum(w * x)
    for part in range(V.shape[0]):
        a = xp.where(has(lengths, V.shape[2]), V[part], 0.0) * x[:, None]
        S, Q, C = (xp.sum(a**k, axis=0) for k in (1, 2, 3))
        if part == 0:
            total = total + xp.sum(S**2 - Q) / 2
        else:
            total = total + xp.sum(S**3 - 3 * S * Q + 2 * C) / 6
    return total


def slopes(V: Array, x: Array, lengths: NDArray[np.int64]) -> Array:
    """Return the derivative of the score by each occurrence's embedding: like V, 0 beyond lengths.

        by V_f:  x (S - a)                     (pairs)
                 x ((S^2 - Q) / 2 - a S + a^2)  (triples)

    The derivative by an occurrence's weight is x, by the intercept 1.
    """
    exists = has(lengths, V.shape[2])
    out = np.zeros(V.shape)
    for part in range(V.shape[0]):
        a = np.where(exists, V[part], 0.0) * x[:, None]
        S, Q = np.sum(a, axis=0), np.sum(a**2, axis=0)
        by_a = S - a if part == 0 else (S**2 - Q) / 2 - a * S + a**2
        out[part] = np.where(exists, x[:, None] * by_a, 0.0)
    return out


def sigmoid(value: float) -> float:
    """Return the probability of a score, cut to where float64 tells it from 0 and 1."""
    return float(1 / (1 + np.exp(-min(max(value, -SCORE_MAX), SCORE_MAX))))


def gradients(
    bias: float,
    w: Array,
    V: Array,
    x: Array,
    lengths: NDArray[np.int64],
    label: float,
    share: float = 1.0,
) -> tuple[float, Array, Array]:
    """Return the logloss' gradient by intercept, weights and embeddings of each occurrence.

    Parameters as :func:`score`'s; ``label`` is 0 or 1, ``share`` the example's weight. The score is
    finite.
    """
    g = (sigmoid(float(score(bias, w, V, x, lengths))) - label) * share
    return g, g * x, g * slopes(V, x, lengths)


def v_init(key: int, part: int, f: int, scale: float) -> float:
    """Return the first value of a coordinate; part 0 is for pairs, 1 for triples.

    20 bits of MurmurHash3's finaliser over a counter, from a state that SplitMix64's makes of the
    key.
    """
    state = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & WORD
    state = ((state ^ state >> 27) * 0x94D049BB133111EB & WORD) >> 32
    half = 0xFFFFFFFF
    x = (state + (part * 1024 + f + 1) * 0x9E3779B9) & half
    x = (x ^ x >> 16) * 0x85EBCA6B & half
    x = (x ^ x >> 13) * 0xC2B2AE35 & half
    return scale * (((x ^ x >> 16) >> 12) * 2.0**-19 - 1)


@dataclass
class Row:
    """What is known of a key: V and m (sums of squared gradients) are float64[order - 1, dim]."""

    z: float
    n: float
    count: int
    V: Array
    m: Array

    @property
    def dim(self) -> int:
        """Coordinates of the embedding, 0: there is none."""
        return self.V.shape[1]


@dataclass(frozen=True)
class Example:
    """An example of a minibatch."""

    keys: list[int]
    x: Array
    label: float
    weight: float


def examples(batch: Minibatch) -> Iterator[Example]:
    """Yield the examples of a minibatch."""
    for i in range(batch.rows):
        span = slice(int(batch.indptr[i]), int(batch.indptr[i + 1]))
        keys = batch.keys[span].tolist()
        x = np.asarray(batch.values[span] if batch.has_values else np.ones(len(keys)), np.float64)
        yield Example(keys, x, float(batch.labels[i]), float(batch.weights[i]))


class Machine:
    """Factorization machine: weights by FTRL-proximal, embeddings by AdaGrad, grown by count.

    Parameters
    ----------
    config : FmConfig
        ``v_dropout`` is not drawn here: masks are handed in.

    Attributes
    ----------
    rows : dict of int to Row
        Of every key that stood in a minibatch.
    bias : Row
        The intercept: a coordinate of value 1 without penalties or embedding, which stands in every
        example.
    dropped : int
        Examples whose score was not finite.
    """

    def __init__(self, config: FmConfig) -> None:
        self.config = config
        self.tiers = config.tiers
        self.rows: dict[int, Row] = {}
        self.bias = self._new()
        self.dropped = 0

    def weight(self, key: int) -> float:
        """Return the weight of a key, 0 where it was never seen."""
        return self._weight(self.rows.get(key, self._new()), self.config.l1, self.config.l2)

    def intercept_weight(self) -> float:
        return self._weight(self.bias, 0.0, 0.0)

    def used(self, key: int) -> int:
        """Return how many coordinates of a key's embedding take part in scores, 0: none."""
        row = self.rows.get(key)
        if row is None or (self.config.l1_shrk and self.weight(key) == 0):
            return 0
        return row.dim

    def score(self, batch: Minibatch) -> Array:
        """Return each example's score, which may be infinite or NaN."""
        return self._scores(list(examples(batch)))

    def learn(self, batch: Minibatch, *, counts: bool = True, kept: Kept | None = None) -> Array:
        """Score a minibatch, then learn it as one step; return the scores before.

        Of keys that stand only in examples which were dropped nothing moves but the count, which
        may earn them an embedding.

        Parameters
        ----------
        batch : Minibatch
        counts : bool
            Whether occurrences are counted: in the first pass only.
        kept : mapping of int to [order - 1, dim], optional
            By key, which numbers of its embedding's gradient dropout leaves (1; 0: not), for each
            that the embedding has; of a key that is not there, all. Needed where ``v_dropout`` > 0.
        """
        return self._step(list(examples(batch)), counts, kept)

    def learn_each(
        self, batch: Minibatch, *, counts: bool = True, kept: Sequence[Kept] | None = None
    ) -> Array:
        """Learn every example as a minibatch of its own, in order; return each one's score before.

        ``kept`` holds a mask for each example.
        """
        masks = [None] * batch.rows if kept is None else kept
        out = [
            self._step([example], counts, mask)
            for example, mask in zip(examples(batch), masks, strict=True)
        ]
        return np.concatenate([np.empty(0), *out])

    def _step(self, batch: list[Example], counts: bool, kept: Kept | None) -> Array:
        assert kept is not None or self.config.v_dropout == 0, "dropout without a mask"
        scores = self._scores(batch)
        seen = Counter(key for example in batch for key in example.keys)
        by_bias = 0.0
        by_w: dict[int, float] = {}
        by_V: dict[int, Array] = {}
        for example, before in zip(batch, scores, strict=True):
            if not np.isfinite(before):
                self.dropped += 1
                continue
            dense = self._dense(example.keys, example.x)
            g, g_w, g_V = gradients(*dense, example.label, example.weight)
            by_bias += g
            for i, key in enumerate(example.keys):
                by_w[key] = by_w.get(key, 0.0) + float(g_w[i])
                if self.used(key):
                    by_V[key] = by_V.get(key, 0.0) + g_V[:, i, : self.used(key)]

        by_V = self._treated(by_V, kept or {})
        for key, times in seen.items():
            row = self.rows.setdefault(key, self._new())
            row.count += times if counts else 0
            if key in by_w:
                self._ftrl(row, by_w[key], self.weight(key))
            if key in by_V:
                self._adagrad(row, by_V[key])
            self._admit(key, row.count // (times if counts else 1), row)
        if self.config.intercept:
            self.bias.count += len(batch) if counts else 0
            self._ftrl(self.bias, by_bias, self.intercept_weight())
        return scores

    def _scores(self, batch: list[Example]) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array([score(*self._dense(e.keys, e.x)) for e in batch], np.float64)

    def _new(self) -> Row:
        shape = (self.tiers.parts, 0)
        return Row(0.0, 0.0, 0, np.zeros(shape), np.zeros(shape))

    def _weight(self, row: Row, l1: float, l2: float) -> float:
        if abs(row.z) <= l1:
            return 0.0
        scale = (self.config.beta + np.sqrt(row.n)) / self.config.alpha + l2
        return float(-(row.z - np.sign(row.z) * l1) / scale)

    def _dense(
        self, keys: list[int], x: Array
    ) -> tuple[float, Array, Array, Array, NDArray[np.int64]]:
        bias = self.intercept_weight() if self.config.intercept else 0.0
        w = np.array([self.weight(key) for key in keys], np.float64)
        lengths = np.array([self.used(key) for key in keys], np.int64)
        V = np.zeros((self.tiers.parts, len(keys), self.tiers.dim))
        for i, key in enumerate(keys):
            if lengths[i]:
                V[:, i, : lengths[i]] = self.rows[key].V
        return bias, w, V, x, lengths

    def _treated(self, by_V: dict[int, Array], kept: Kept) -> dict[int, Array]:
        """Clip, then drop out, then divide by the norm over all embeddings of the minibatch."""
        clip = self.config.v_clip or np.inf
        out = {key: np.clip(g, -clip, clip) * kept.get(key, 1) for key, g in by_V.items()}
        norm = np.sqrt(sum(float(np.sum(g**2)) for g in out.values()))
        if self.config.v_normalize and norm > 0:
            out = {key: g / norm for key, g in out.items()}
        return out

    def _ftrl(self, row: Row, g: float, w: float) -> None:
        more = row.n + g**2
        row.z += g - (np.sqrt(more) - np.sqrt(row.n)) / self.config.alpha * w
        row.n = more

    def _adagrad(self, row: Row, g: Array) -> None:
        g = g + self.config.v_l2 * row.V
        row.m = row.m + g**2
        row.V = row.V - self.config.v_lr * g / (self.config.v_lr_beta + np.sqrt(row.m))

    def _admit(self, key: int, count: int, row: Row) -> None:
        """Grow the embedding to the longest whose threshold ``count`` exceeds.

        It is that of the key, in minibatches like this one: divided by how often the key stood in
        it.
        """
        earned = [
            dim
            for least, dim in zip(self.tiers.counts, self.tiers.dims, strict=True)
            if count > least
        ]
        if not earned or earned[-1] <= row.dim or self.weight(key) == 0:
            return
        scale = self.config.v_init_scale
        new = [
            [v_init(key, part, f, scale) for f in range(row.dim, earned[-1])]
            for part in range(self.tiers.parts)
        ]
        row.V = np.concatenate([row.V, new], axis=1)
        row.m = np.concatenate([row.m, np.zeros(np.shape(new))], axis=1)
