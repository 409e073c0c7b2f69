"""What topics say of documents that are not learned: mixtures, and how probable documents are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from streamlearn.compute.kernels.esca import SPREAD
from streamlearn.compute.kernels.left_to_right import read_documents
from streamlearn.compute.kernels.mixtures import complete, mix_all
from streamlearn.messages import F32, I64, U64
from streamlearn.online.lda import LdaScratch, LdaSolver
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.topic_blocks import room

__all__ = ["METHODS", "PARTICLES", "REDRAWN", "Judging", "TopicReader"]

METHODS: Final = ("completion", "left-to-right")
PARTICLES: Final = 20
# Earlier tokens that a particle draws anew before each token. All of them, as published, is a cost
# by the square of a document's length; a token's topic changes little with one more token, and
# which of them are drawn anew does not bias the estimate.
REDRAWN: Final = 64
# Documents are dealt out to lanes in pieces of so many tokens: they may take long.
_PIECE: Final = 4096


@dataclass(frozen=True, slots=True)
class Judging:
    """How documents are judged.

    Attributes
    ----------
    method : {"completion", "left-to-right"}
        Every other token is predicted from the rest; or all of them, each from those before.
    particles : int
        left-to-right: how many read each document.
    """

    method: str = METHODS[0]
    particles: int = PARTICLES


class TopicReader:
    """Reads documents by the topics of a solver, with several lanes; learns nothing.

    What it returns does not depend on how many lanes there are.

    Parameters
    ----------
    solver : LdaSolver
    lanes : int
    judging : Judging or None
        None: documents are not, all scores are 0 and of no token.

    Attributes
    ----------
    unknown_tokens, known_tokens : int
        Of all documents read so far: tokens that were left out, as their words have no topics, and
        the others.
    """

    def __init__(self, solver: LdaSolver, lanes: int, judging: Judging | None) -> None:
        self.solver = solver
        self.lanes = lanes
        self.judging = judging
        self.unknown_tokens = self.known_tokens = 0
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane-topics")

    def close(self) -> None:
        """End the lanes."""
        self._pool.shutdown()

    # ---------------------------------------------------------------- as of every scorer

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> LdaScratch:
        """Return buffers for a lane that scores."""
        return LdaScratch(rows_max, 1)

    def score(self, batch: Minibatch, scratch: LdaScratch) -> F32:
        """Return the logarithms of how probable documents are, float32[rows].

        The minibatch's weights are set to the tokens that each is of.
        """
        rows = batch.rows
        if self.judging is None:
            scratch.scores[:rows] = batch.weights[:rows] = 0
            return scratch.scores[:rows]
        scores, tokens = self.judge(batch.keys[: batch.nnz], batch.indptr[: rows + 1])
        scratch.scores[:rows], batch.weights[:rows] = scores, tokens
        return scratch.scores[:rows]

    # ---------------------------------------------------------------- documents by their words

    def judge(self, keys: U64, bounds: I64) -> tuple[F32, F32]:
        """Return how probable documents are.

        Parameters
        ----------
        keys, bounds : uint64[n], int64[documents + 1]

        Returns
        -------
        float32[documents], float32[documents]
            Logarithms of probabilities, and the tokens that each is of.
        """
        judging = self.judging or Judging()
        places, priors = self._places(keys), self.solver.priors
        scores: F32 = np.zeros(len(bounds) - 1, np.float32)
        tokens: F32 = np.zeros(len(bounds) - 1, np.float32)
        alpha, beta, inverse, _ = priors.arrays()
        fixed = (self.solver.counts, priors.topics, alpha, beta, inverse)
        particles = judging.particles

        def complete_some(first: int, end: int) -> None:
            scratch = room(3 * SPREAD, np.float32).reshape(3, SPREAD)
            complete(bounds, first, end, places, *fixed, scratch, scores, tokens)

        def read_some(first: int, end: int) -> None:
            longest = int(np.diff(bounds[first : end + 1]).max(initial=1))
            width = -(-priors.topics // 16) * 16
            read: Any = read_documents  # numba's stubs count the arguments of another function
            read(
                bounds, first, end, keys, places, *fixed, REDRAWN, np.empty(longest, np.int64),
                np.empty((particles, longest), np.uint16), np.zeros((particles, width), np.int32),
                room(particles * width, np.float32).reshape(particles, width),
                np.empty(particles), room(width, np.float32), scores, tokens,
            )  # fmt: skip

        self._each(bounds, complete_some if judging.method == METHODS[0] else read_some)
        return scores, tokens

    def mixtures(self, keys: U64, bounds: I64) -> tuple[F32, I64]:
        """Return the topics of documents; see ``LdaSolver.mixtures``.

        Parameters
        ----------
        keys, bounds : uint64[n], int64[documents + 1]

        Returns
        -------
        float32[documents, topics], int64[documents]
        """
        places, priors = self._places(keys), self.solver.priors
        alpha, beta, inverse, _ = priors.arrays()
        out: F32 = np.empty((len(bounds) - 1, priors.topics), np.float32)
        known: I64 = np.zeros(len(bounds) - 1, np.int64)

        def mix_some(first: int, end: int) -> None:
            mix_all(
                bounds, first, end, places, self.solver.counts, priors.topics, alpha, beta, inverse,
                room(3 * SPREAD, np.float32).reshape(3, SPREAD), out, known,
            )  # fmt: skip

        self._each(bounds, mix_some)
        return out, known

    def _places(self, keys: U64) -> I64:
        places = self.solver.places_at(self.solver.table.find(keys))
        unknown = int((places < 0).sum())
        self.unknown_tokens += unknown
        self.known_tokens += len(places) - unknown
        return places

    def _each(self, bounds: I64, work: Callable[[int, int], None]) -> None:
        """Have the lanes do all documents, in pieces."""
        count = len(bounds) - 1
        if self.lanes == 1 or count < 2:
            work(0, count)
            return
        pieces = min(count, max(self.lanes, int(bounds[-1] - bounds[0]) // _PIECE))
        marks = np.searchsorted(bounds, np.linspace(bounds[0], bounds[-1], pieces + 1))
        marks[0], marks[-1] = 0, count
        pairs = [(int(a), int(b)) for a, b in pairwise(marks) if a < b]
        for done in [self._pool.submit(work, *pair) for pair in pairs]:
            done.result()
