"""What an estimator of topics has learned: a topic model, and how it is kept."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np

from streamlearn.config import JobConfig, LdaConfig, SourceConfig
from streamlearn.errors import DataError
from streamlearn.learned import job_with, open_model, pack, read_beside, save_model, unpack
from streamlearn.messages import F32, I64, U64
from streamlearn.model import Model
from streamlearn.online.corpora import Corpus, Piece
from streamlearn.online.lda import LdaScratch, LdaSolver
from streamlearn.online.losses import new_validation
from streamlearn.online.mappings import Examples
from streamlearn.online.minibatch import ROW_WORDS_MAX
from streamlearn.online.solvers import new_solver
from streamlearn.online.tokens import Tokeniser
from streamlearn.online.topic_validation import TopicValidation
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable
from streamlearn.tables import tokens_bytes_max
from streamlearn.topic_inference import Judging, TopicReader
from streamlearn.topics.documents import KeptDocuments
from streamlearn.topics.schedule import Looks, fits
from streamlearn.topics.sweeps import Sweeps

__all__ = ["LearnedTopics"]

_NOTHING: Final = Nothing()


class LearnedTopics:
    """A topic model in memory, learned by one thread and the lanes of its sweeps.

    Parameters
    ----------
    model : Model
        Of kind ``lda``.

    Attributes
    ----------
    tokeniser : Tokeniser
        Splits texts into words.
    passes : list of dict
        Of the last fit: number and figures of each pass.
    """

    def __init__(self, model: Model) -> None:
        assert isinstance(model.table, ExactTable)
        assert isinstance(model.solver, LdaSolver)
        self.model = model
        self.table = model.table
        self.solver = model.solver
        self.tokeniser = Tokeniser(model.job.source)
        self.passes: list[dict[str, Any]] = []
        self._scratch = LdaScratch(0, 0)

    @property
    def config(self) -> LdaConfig:
        """The settings of the model."""
        model = self.model.job.model
        assert isinstance(model, LdaConfig)
        return model

    def use(self, job: JobConfig) -> None:
        """Go on with other settings of what documents teach."""
        self.model.job = job_with(self.model.job, job)
        state = self.solver.state()
        solver = new_solver(self.config, self.table)
        assert isinstance(solver, LdaSolver)
        solver.restore(state)
        self.model.solver = self.solver = solver

    # --- learning

    def learn(self, corpus: Corpus) -> None:
        """Learn documents in one pass, each judged before.

        Raises
        ------
        TableFullError
            There is no room for a new word.
        """
        self.solver.online = True
        self._read(corpus)

    def fit(self, corpus: Corpus, lanes: int) -> None:
        """Learn documents in all passes; in one, as :meth:`learn` does.

        Parameters
        ----------
        lanes : int
            Of the passes after the first.

        Raises
        ------
        ValueError
            No word is left that may have topics.
        TableFullError, ResourceError
            There is no room for all words, or for their counts.
        """
        self.passes.clear()
        config, started = self.config, time.monotonic()
        self.solver.online = config.epochs == 1
        if self.solver.online:
            self._read(corpus)
            self._note(started, {})
            return
        with tempfile.TemporaryDirectory(prefix="streamlearn.") as directory:
            kept = KeptDocuments(tokens_bytes_max(self.model.job), Path(directory))
            try:
                self.solver.recorder = kept.add
                self._read(corpus)
                self.solver.recorder = None
                self._note(started, {"tokens": kept.tokens, "words": self.solver.numbers})
                self._sweep_all(kept, lanes, Path(directory))
            except DataError as error:
                raise ValueError(str(error)) from error
            finally:
                self.solver.recorder = None
                kept.close()

    def _read(self, corpus: Corpus) -> None:
        for piece in corpus.pieces():
            slots = self.table.find(piece.keys)
            new = np.unique(piece.keys[slots < 0])
            self._learn(piece)
            if len(new):
                self.model.names.insert(piece.spell(new))

    def _learn(self, piece: Piece) -> None:
        model, bounds = self.model, _split(piece.bounds)
        rows, tokens = len(bounds) - 1, len(piece.keys)
        batch = Examples(rows, tokens)
        batch.keys, batch.indptr = piece.keys, bounds
        batch.hold(rows, tokens)
        if rows > len(self._scratch.scores) or tokens > len(self._scratch.numbers):
            self._scratch = self.solver.scratch(rows, tokens)
        scores = self.solver.learn(batch, self._scratch, _NOTHING, 0)
        model.validation.update(scores, batch.labels[:rows], batch.weights[:rows])
        model.counts.examples += rows

    # --- further passes

    def _sweep_all(self, kept: KeptDocuments, lanes: int, directory: Path) -> None:
        model, config = self.model, self.config
        sweeps = Sweeps(
            config, self.solver, kept, lanes=lanes, bytes_max=tokens_bytes_max(model.job),
            directory=directory,
        )  # fmt: skip
        looks = Looks(config.patience)
        try:
            for epoch in range(1, config.epochs):
                started = time.monotonic()
                model.validation = self._pass(sweeps, epoch)
                model.epoch, model.swept = epoch, -1
                held: dict[str, Any] = {}
                if kept.held_out.count and Looks.due(epoch + 1, config.epochs):
                    held = self._held_out(sweeps)
                    looks.note(held["held_out_log_likelihood_per_token"])
                self._note(started, held)
                if looks.enough:
                    break
        finally:
            sweeps.close()

    def _pass(self, sweeps: Sweeps, epoch: int) -> TopicValidation:
        validation = new_validation(self.config, self.model.job.output.window)
        assert isinstance(validation, TopicValidation)
        for block in range(sweeps.blocks):
            swept = sweeps.sweep(block, epoch)
            validation.add_sums(-swept.log_likelihood, swept.tokens, sweeps.size(block))
            self.model.counts.examples += sweeps.size(block)
        sweeps.check()
        if fits(epoch + 1) and self.config.optimize != "none":
            sweeps.optimize()
        return validation

    def _held_out(self, sweeps: Sweeps) -> dict[str, float]:
        held = TopicValidation(self.model.job.output.window)
        scores, tokens = sweeps.held_out()
        held.update(scores, scores, tokens)
        figures = TopicValidation.headlines(held.summary())
        return {f"held_out_{name}": value for name, value in figures.items()}

    def _note(self, started: float, more: dict[str, Any]) -> None:
        """Remember a pass's figures."""
        validation, seconds = self.model.validation, time.monotonic() - started
        figures = validation.headlines(validation.summary())
        told = {"pass": len(self.passes) + 1, **figures, **more, "seconds": seconds}
        self.passes.append(told)

    # --- what topics say of documents

    def mixtures(self, corpus: Corpus, lanes: int) -> F32:
        """Return the topics of documents, float32[documents, topics]."""
        out: F32 = np.empty((len(corpus), self.config.topics), np.float32)
        reader, first = TopicReader(self.solver, lanes, None), 0
        try:
            for piece in corpus.pieces():
                count = len(piece.bounds) - 1
                out[first : first + count], _ = reader.mixtures(piece.keys, piece.bounds)
                first += count
        finally:
            reader.close()
        return out

    def log_likelihood(self, corpus: Corpus, lanes: int, judging: Judging) -> float:
        """Return the mean log-likelihood of a token; NaN where none is known."""
        reader = TopicReader(self.solver, lanes, judging)
        total = met = 0.0
        try:
            for piece in corpus.pieces():
                scores, tokens = reader.judge(piece.keys, _split(piece.bounds))
                total += float(scores.sum(dtype=np.float64))
                met += float(tokens.sum(dtype=np.float64))
        finally:
            reader.close()
        return total / met if met else float("nan")

    # --- keeping it

    def save(self, path: Path, state: dict[str, Any], now: float) -> None:
        """Write a snapshot into ``path/model``, and ``state`` beside it.

        Parameters
        ----------
        state : dict
            What users of Python know of the model, as JSON has it; of a matrix without words
            ``columns`` says how many there are.
        now : float
            Seconds since the epoch.
        """
        if state["n_features_in"] is not None and state["words"] is None:
            source = SourceConfig(format="ldac")
            self.model.job = msgspec.structs.replace(self.model.job, source=source)
        save_model(self.model, path, state | {"kinds": {}}, now)

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """Open the newest snapshot of ``path/model``; return it with what stood beside it."""
        self = cls(open_model(path, "lda"))
        state = read_beside(path, "kinds")
        return self, state or {"n_features_in": None, "feature_names_in": None, "words": None}

    def __getstate__(self) -> dict[str, Any]:
        """Return all that is not made again: equal for equal models."""
        return pack(self.model) | {"solver": self.solver.state(), "told": self.passes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the table anew."""
        self.__init__(unpack(state))  # type: ignore[misc]
        self.solver.restore(state["solver"])
        self.passes = state["told"]


def _split(bounds: I64) -> I64:
    """Return bounds of documents, where those that are too long for a row have several."""
    lengths = np.diff(bounds)
    if lengths.max(initial=0) <= ROW_WORDS_MAX:
        return bounds
    rows: list[U64 | I64] = [
        np.arange(first, last, ROW_WORDS_MAX) if last > first else np.array([first])
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    return np.append(np.concatenate(rows), bounds[-1]).astype(np.int64)
