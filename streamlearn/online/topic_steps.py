"""What a worker of a topic model does with a minibatch of documents: it judges them, or draws.

Counts of words come from the shards as bytes, of as many words as the minibatch has; they are laid
out for some words at a time (``ROWS_BYTES``). A sweep goes by word, and all else that it draws from
is frozen, so that makes no difference.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.compute.kernels import esca, mixtures, topic_fits
from streamlearn.compute.kernels.topic_lists import LANES
from streamlearn.compute.kernels.topic_pushes import NO_TOPIC, regroup
from streamlearn.config import LdaConfig
from streamlearn.messages import F32, F64, I32, I64, U32
from streamlearn.online.topic_blocks import Block, Priors, Sweeper, Swept, arranged, room
from streamlearn.topic_columns import U16, WordRows

__all__ = ["ROWS_BYTES", "Documents", "Drawn", "LdaStep"]

# Counts that are laid out at a time: half of a second cache. Of documents that are judged, more:
# their words are wherever they are.
ROWS_BYTES: Final = 1 << 19
_JUDGED_BYTES: Final = 1 << 26
_LINE_INTS: Final = 16
# Sweeps over a minibatch whose tokens get their first topics, where further passes follow.
_FIRST_SWEEPS: Final = 2


class Documents(NamedTuple):
    """Documents of a minibatch, as far as their words have topics.

    Attributes
    ----------
    words : uint32[n]
        Of the tokens, document by document: their numbers, in the order of keys, each of
        ``vocabulary`` there.
    lengths : int32[documents]
    vocabulary : int
    """

    words: U32
    lengths: I32
    vocabulary: int


class Drawn(NamedTuple):
    """Topics that were drawn.

    Attributes
    ----------
    topics : uint16[n]
        Of the tokens, word by word, of each word in the order of the documents.
    swept : Swept
        Of the last sweep.
    fit : float64[topics + 1]
        Sums by which alpha is fitted (``kernels.topic_fits``), of the topics before it.
    """

    topics: U16
    swept: Swept
    fit: F64


class LdaStep:
    """Draws the topics of minibatches; the scratch memory of one worker.

    Parameters
    ----------
    model : LdaConfig
    """

    def __init__(self, model: LdaConfig) -> None:
        self._model = model
        self._sweeper = Sweeper(1)
        self._stride = -(-model.topics // _LINE_INTS) * _LINE_INTS
        self._chunk = max(1, ROWS_BYTES // (4 * self._stride))
        self._rows: I32 = room(self._chunk * self._stride, np.int32)
        width = esca.SPREAD + _LINE_INTS
        self._scratch: F32 = room(4 * width, np.float32).reshape(4, width)
        self._mixing: F32 = room(3 * esca.SPREAD, np.float32).reshape(3, esca.SPREAD)
        self._first_sweeps = model.draws if model.epochs == 1 else _FIRST_SWEEPS

    def draw(
        self, documents: Documents, rows: WordRows, priors: Priors, old: U16, key: int
    ) -> Drawn:
        """Draw the topics of all tokens anew; of those that have none, the first ones.

        Parameters
        ----------
        rows : WordRows
            Counts of the documents' words, the topics that tokens have now in them.
        priors : Priors
            ``totals`` is changed.
        old : uint16[n]
            Topics that the tokens have, laid out as ``Drawn.topics``; ``NO_TOPIC``: none yet.
        key : int
            What chance depends on.
        """
        words, lengths, vocabulary = documents
        block = arranged(words, lengths, vocabulary, 0)
        block.divide(1)
        fresh = old == NO_TOPIC
        upper = block.tokens & np.uint32(0xFFFF0000)
        block.tokens[:] = upper | np.where(fresh, 0, old).astype(np.uint32)
        sweeps = 1
        if fresh.any():
            sweeps = self._first_sweeps
            self._begin(block, rows, priors, key)
            block.tokens[~fresh] = upper[~fresh] | old[~fresh].astype(np.uint32)
            first = block.tokens[fresh] & np.uint32(0xFFFF)
            priors.totals += np.bincount(first, minlength=priors.topics)
        swept = Swept(0.0, 0, 0)
        fit: F64 = np.zeros(priors.topics + 1, np.float64)
        for sweep in range(sweeps):
            fit[:] = 0
            swept = self._sweep(block, rows, priors, old, key + sweep + 1, fit)
        topics: U16 = (block.tokens & np.uint32(0xFFFF)).astype(np.uint16)
        return Drawn(topics, swept, fit)

    def _begin(self, block: Block, rows: WordRows, priors: Priors, key: int) -> None:
        alpha, beta, inverse, _ = priors.arrays()
        for first, end in self._pieces(block):
            places = self._lay_out(rows, first, end)
            begin: Any = esca.begin  # numba's stubs count the arguments of another function
            begin(
                first, end, block.present, block.starts, block.tokens, self._rows, places,
                priors.topics, alpha, beta, inverse, np.uint64(key), self._scratch,
            )  # fmt: skip
        self._scratch[0, priors.topics :] = 0

    def _sweep(
        self, block: Block, rows: WordRows, priors: Priors, old: U16, key: int, fit: F64
    ) -> Swept:
        lists, heads = self._sweeper.list(block)
        topic_fits.step_alpha(lists, heads, block.lengths, priors.alpha, fit)
        alpha, beta, inverse, over = priors.arrays()
        moved: I32 = np.zeros(priors.topics, np.int32)
        sums = np.zeros(2 * LANES)
        for first, end in self._pieces(block):
            places = self._lay_out(rows, first, end)
            a, b = int(block.starts[first]), int(block.starts[end])
            regroup(
                block.tokens[a:b], old[a:b], block.starts[first : end + 1], self._rows, self._stride
            )
            draw: Any = esca.sweep  # numba's stubs count the arguments of another function
            draw(
                first, end, block.present, block.starts, block.tokens, heads, lists, self._rows,
                places, priors.topics, alpha, beta, inverse, over, 1, np.uint64(key), moved,
                self._scratch, sums,
            )  # fmt: skip
        priors.totals += moved
        held = block.lengths[block.lengths > 0].astype(np.float64)
        norm = float((held * np.log(held - 1 + priors.alpha.sum())).sum())
        return Swept(float(sums[0]) - norm, len(block.tokens), int(sums[1]))

    def _pieces(self, block: Block) -> list[tuple[int, int]]:
        count = len(block.present)
        return [(at, min(at + self._chunk, count)) for at in range(0, count, self._chunk)]

    def _lay_out(self, rows: WordRows, first: int, end: int) -> I64:
        """Lay out the counts of some words; return where those of each begin."""
        rows.fill(np.arange(first, end), self._stride, self._rows)
        places: I64 = np.zeros(len(rows), np.int64)
        places[first:end] = np.arange(end - first) * self._stride
        return places

    def judge(self, batch: Any, words: I64, rows: WordRows, priors: Priors, scores: F32) -> None:
        """Predict every other token of documents from the rest; see ``kernels.mixtures``.

        Parameters
        ----------
        batch : Minibatch
            Its weights are set to the tokens that were predicted.
        words : int64[nnz]
            Number of each token's word, as in :class:`Documents`; -1: it has no topics.
        scores : float32[>= rows]
            Written: the logarithms of how probable they were.
        """
        alpha, beta, inverse, _ = priors.arrays()
        most = max(1, _JUDGED_BYTES // (4 * self._stride))
        bounds, first = batch.indptr[: batch.rows + 1], 0
        while first < batch.rows:
            end = int(np.searchsorted(bounds, bounds[first] + most, side="right")) - 1
            end = min(max(end, first + 1), batch.rows)
            a, b = int(bounds[first]), int(bounds[end])
            held, places = np.unique(words[a:b], return_inverse=True)
            held, places = held.astype(np.int64), places.astype(np.int64)
            if len(held) and held[0] < 0:
                held, places = held[1:], places - 1
            counts: I32 = np.empty(max(1, len(held)) * self._stride, np.int32)
            rows.fill(held, self._stride, counts)
            places[places > 0] *= self._stride
            mixtures.complete(
                bounds[first : end + 1] - a, 0, end - first, places, counts, priors.topics, alpha,
                beta, inverse, self._mixing, scores[first:end], batch.weights[first:end],
            )  # fmt: skip
            first = end
