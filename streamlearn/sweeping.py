"""Further passes of topic models: what the first pass kept is swept, not read again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamlearn.config import JobConfig, LdaConfig
from streamlearn.learner import Learner
from streamlearn.model import Model
from streamlearn.online.lda import LdaSolver
from streamlearn.online.losses import new_validation
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.topic_validation import TopicValidation
from streamlearn.read_again import ReadAgain, gone, keep_again
from streamlearn.tables import tokens_bytes_max
from streamlearn.topics.documents import KeptDocuments
from streamlearn.topics.schedule import Looks, fits
from streamlearn.topics.sweeps import Sweeps

__all__ = ["FurtherSweeps", "judge_anew"]

_log = logging.getLogger("streamlearn.training")


class FurtherSweeps:
    """Keeps the documents of the first pass, and draws their topics again and again.

    Parameters
    ----------
    job : JobConfig
        Of a model that is ``lda``, with its table in this process.
    learner : Learner
        Of the first pass, which is yet to begin.
    tell : callable
        Told of what is done, in words.

    Attributes
    ----------
    passes : list of dict
        Of each pass of this run: its number and figures.
    """

    def __init__(self, job: JobConfig, learner: Learner, tell: Callable[[str], None]) -> None:
        assert isinstance(job.model, LdaConfig)
        assert isinstance(learner.model.solver, LdaSolver)
        self._job, self._model = job, job.model
        self._learner, self._tell = learner, tell
        self._solver = learner.model.solver
        self._kept = KeptDocuments(tokens_bytes_max(job), Path(job.output.dir))
        self._resumed = learner.model.resumed_from is not None
        if not self._resumed:
            self._solver.recorder = self._kept.add
        self.passes: list[dict[str, Any]] = []
        self._sweeps: Sweeps | None = None
        self._looks = Looks(self._model.patience)
        self._held: dict[str, float] = {}
        self._started = time.monotonic()

    @classmethod
    def wanted(cls, job: JobConfig) -> bool:
        """Say whether a job has some."""
        model = job.model
        return isinstance(model, LdaConfig) and model.epochs > 1 and not job.source.follow

    async def run(self, read_again: ReadAgain) -> None:
        """Learn on from where the model is; see ``FurtherPasses.run``."""
        state, learner = self._learner.model, self._learner
        self._solver.recorder = None
        if state.epoch == 0 and not learner.stopped.is_set():
            self._note_first(time.monotonic() - self._started)
        finished = state.epoch + 1 >= self._model.epochs and state.swept < 0
        if finished or learner.stopped.is_set():
            return
        if self._resumed:
            self._tell("reading the documents again, to go on")
            await self._record(read_again)
        if not self._kept.tokens:
            return
        self._tell("arranging tokens")
        self._sweeps = sweeps = await learner.control.run(self._begin)
        self._solver.topics_of = sweeps.topics
        if state.epoch == 0:
            await learner.next_pass(keep_positions=True)
        while True:
            if state.swept >= 0:
                await self._pass(sweeps)
            if learner.stopped.is_set():
                return
            if state.epoch + 1 >= self._model.epochs or self._ended():
                return
            await learner.next_pass(keep_positions=True)

    def close(self) -> None:
        """Let go of the documents."""
        self._solver.topics_of = None
        self._kept.close()
        if self._sweeps is not None:
            self._sweeps.close()

    async def _record(self, read_again: ReadAgain) -> None:
        """Keep the documents that an earlier run read."""

        def keep(batch: Minibatch) -> int:
            read, missing = self._solver.look_up(batch)
            self._kept.add(read)
            return missing

        await keep_again(read_again, keep, "tokens are of words")
        if not self._kept.tokens and self._learner.model.counts.examples:
            raise gone("documents")

    def _begin(self) -> Sweeps:
        state, job = self._learner.model, self._job
        return Sweeps(
            self._model, self._solver, self._kept,
            lanes=job.compute.lanes or 1,
            bytes_max=tokens_bytes_max(job),
            directory=Path(job.output.dir),
            topics=state.stored_topics if state.epoch else None,
        )  # fmt: skip

    async def _pass(self, sweeps: Sweeps) -> None:
        """Make the pass that the model is in, from where it is."""
        state, learner = self._learner.model, self._learner
        number = state.epoch + 1
        self._tell(f"pass {number} of {self._model.epochs}")
        started = time.monotonic()
        if state.swept == 0:
            state.validation = new_validation(self._model, self._job.output.window)
        by_word = 0
        while 0 <= state.swept < sweeps.blocks:
            by_word += await learner.control.run(self._sweep, sweeps)
            if learner.stopped.is_set() and state.swept < sweeps.blocks:
                return
        await learner.control.run(self._complete, sweeps)
        await self._note(sweeps, time.monotonic() - started, by_word)

    def _sweep(self, sweeps: Sweeps) -> int:
        state, learner = self._learner.model, self._learner
        swept = sweeps.sweep(state.swept, state.epoch)
        documents = sweeps.size(state.swept)
        state.swept += 1
        assert isinstance(state.validation, TopicValidation)
        state.validation.add_sums(-swept.log_likelihood, swept.tokens, documents)
        state.counts.examples += documents
        learner.records += documents
        return swept.by_word

    def _complete(self, sweeps: Sweeps) -> None:
        """End a pass, as one step for whatever snapshot is made."""
        state = self._learner.model
        if state.swept < 0:
            return
        sweeps.check()
        number = state.epoch + 1
        if fits(number) and self._model.optimize != "none":
            sweeps.optimize()
        state.swept = -1

    def _note_first(self, seconds: float) -> None:
        state = self._learner.model
        self._told(
            {
                "pass": 1,
                "tokens": self._kept.tokens,
                "words": self._solver.numbers,
                "seconds": seconds,
                "tokens_per_second": self._kept.tokens / max(seconds, 1e-9),
            }
        )
        state.swept = -1

    async def _note(self, sweeps: Sweeps, seconds: float, by_word: int) -> None:
        """Remember a pass's figures, and judge by what is held out."""
        state = self._learner.model
        summary = state.validation.summary()
        told: dict[str, Any] = {
            "pass": state.epoch + 1,
            **type(state.validation).headlines(summary),
            "seconds": seconds,
            "tokens_per_second": sweeps.tokens / max(seconds, 1e-9),
            "drawn_by_word": by_word / sweeps.tokens,
        }
        if self._kept.held_out.count and Looks.due(state.epoch + 1, self._model.epochs):
            held = TopicValidation(self._job.output.window)
            scores, tokens = await self._learner.control.run(sweeps.held_out)
            held.update(scores, scores, tokens)
            figures = TopicValidation.headlines(held.summary())
            self._held = {f"held_out_{name}": value for name, value in figures.items()}
            told |= self._held
            self._looks.note(figures["log_likelihood_per_token"])
        self._told(told)

    def _told(self, told: dict[str, Any]) -> None:
        self.passes.append(told)
        _log.info("%s", _sentence(told))

    def _ended(self) -> bool:
        if self._looks.enough:
            _log.info("held-out documents are predicted no better for %d looks", self._looks.worse)
        return self._looks.enough

    def report(self) -> dict[str, Any]:
        """Return what the report has beside what all models have."""
        told: dict[str, Any] = {**self._held, "passes": self.passes}
        if self._sweeps is not None:
            last = self.passes[-1] if self.passes else {}
            told |= {
                "tokens": self._sweeps.tokens,
                "tokens_left_out": self._sweeps.left_out,
                "vocabulary": self._solver.priors.words,
                "tokens_per_second": last.get("tokens_per_second", 0.0),
            }
        return told


def judge_anew(model: Model) -> None:
    """Forget how well tokens were told from all others, once documents are judged as they come."""
    if isinstance(model.solver, LdaSolver) and model.solver.online and model.swept < 0:
        model.validation.restore(new_validation(model.job.model, model.job.output.window).state())
        model.swept = 0


def _sentence(told: dict[str, Any]) -> str:
    plain = ("pass", "seconds", "tokens_per_second", "drawn_by_word")
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:,.5g}" if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value:,}"
        for name, value in told.items() if name not in plain
    )  # fmt: skip
    rate = told["tokens_per_second"] / 1e6
    return f"pass {told['pass']}: {figures}, {told['seconds']:.1f} s ({rate:.2f} M tokens/s)"
