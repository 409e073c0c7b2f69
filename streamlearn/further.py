"""Further passes of matrix factorization: what the first pass kept is swept, not read again."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.config import JobConfig, MfConfig
from streamlearn.learner import Learner
from streamlearn.messages import F32, U64
from streamlearn.model import Model
from streamlearn.online.losses import new_validation
from streamlearn.online.mf import MfSolver, scored
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.progressive import Validation
from streamlearn.read_again import ReadAgain, gone, keep_again
from streamlearn.shards.table import ExactTable
from streamlearn.strata.passes import Passes
from streamlearn.strata.patience import Patience
from streamlearn.strata.ratings import KeptRatings
from streamlearn.strata.rows import RowsCut
from streamlearn.strata.sampling import SEED_BYTES, seal
from streamlearn.tables import ratings_bytes_max

__all__ = ["FurtherPasses"]

_log = logging.getLogger("streamlearn.training")


class FurtherPasses:
    """Keeps the ratings of the first pass, and learns them again.

    Parameters
    ----------
    job : JobConfig
        Of a model that is ``mf``, with its table in this process.
    learner : Learner
        Of the first pass, which is yet to begin.
    tell : callable
        Told of what is done, in words.

    Attributes
    ----------
    passes : list of dict
        Of each pass of this run: its number, step, figures, and those of held-out ratings.
    duplicates : int
        Ratings that were left out, since the same user rated the same item later.
    """

    def __init__(self, job: JobConfig, learner: Learner, tell: Callable[[str], None]) -> None:
        assert isinstance(job.model, MfConfig)
        assert isinstance(learner.model.solver, MfSolver)
        self._job, self._model = job, job.model
        self._learner, self._tell = learner, tell
        self._solver = learner.model.solver
        self._kept = KeptRatings(ratings_bytes_max(job), Path(job.output.dir))
        self._resumed = learner.model.resumed_from is not None
        if not self._resumed:
            self._solver.recorder = self._kept.add
        self.passes: list[dict[str, Any]] = []
        self.duplicates = 0
        self._held_loss: float | None = None
        self._cut = learner.model.new_cut
        self._sweeps: Passes | None = None
        self._patience = Patience(self._model.patience)
        self._privacy: dict[str, Any] | None = None
        self._fits_users = self._model.epsilon > 0 and self._model.published == "items"
        self._started = time.monotonic()

    @classmethod
    def wanted(cls, job: JobConfig) -> bool:
        """Say whether a job has some, or ratings held out."""
        model = job.model
        if not isinstance(model, MfConfig) or job.source.follow:
            return False
        return model.epochs > 1 or model.held_out > 0

    @property
    def _state(self) -> Model:
        return self._learner.model

    async def run(self, read_again: ReadAgain) -> None:
        """Learn on from where the model is: in the first pass, or in a later one.

        Parameters
        ----------
        read_again : callable
            Reads the whole source once more without learning: given what is told of each minibatch.

        Raises
        ------
        DataError
            The source no longer has what was learned of it.
        ResourceError
            The ratings do not fit their limit, or their file cannot be written.
        """
        state, learner = self._state, self._learner
        self._solver.recorder = None
        if state.epoch == 0 and not learner.stopped.is_set():
            await self._note(0, state.validation, time.monotonic() - self._started)
        finished = state.epoch + 1 >= self._model.epochs and (state.epoch == 0 or state.swept < 0)
        if finished or learner.stopped.is_set():
            return
        if self._resumed:
            self._tell("reading the ratings again, to go on")
            await self._record(read_again)
        if not self._kept.count:
            return
        self._tell("arranging ratings")
        sweeps = await learner.control.run(self._begin)
        self.duplicates = sweeps.duplicates
        try:
            await self._sweep_all(sweeps)
        except asyncio.CancelledError:
            sweeps.close(give_back=False)
            raise
        except BaseException:
            await learner.control.run(self._end, sweeps)
            raise
        await learner.control.run(self._end, sweeps)

    def close(self) -> None:
        """Let go of the ratings."""
        self._kept.close()

    async def _record(self, read_again: ReadAgain) -> None:
        """Keep the ratings that an earlier run learned."""
        scratch = self._solver.scratch(self._job.compute.minibatch, 0)

        def keep(batch: Minibatch) -> int:
            learned, missing = self._solver.look_up(batch, scratch)
            if missing:
                known = (learned.held != 0) | (learned.pairs != 0xFFFFFFFF).all(axis=1)
                learned = type(learned)(*(column[known] for column in learned))
            self._kept.add(learned)
            return missing

        await keep_again(read_again, keep, "ratings are of users or items")
        if not self._kept.count and self._state.counts.examples:
            raise gone("ratings")

    def _begin(self) -> Passes:
        """Arrange what was kept; from here on rows stand outside the table, and are cut there."""
        table, job = self._state.table, self._job
        assert isinstance(table, ExactTable)
        sweeps = Passes(
            self._model,
            table,
            self._kept,
            self._solver.intercept,
            lanes=job.compute.lanes or 1,
            bytes_max=ratings_bytes_max(job),
            directory=Path(job.output.dir),
            cache=job.compute.cache_bytes,
            seed=secrets.token_bytes(SEED_BYTES) if self._model.epsilon else b"",
        )
        self._cut = self._state.new_cut
        self._state.new_cut = lambda _: RowsCut(table, sweeps.rows)
        self._sweeps = sweeps
        return sweeps

    def _end(self, sweeps: Passes) -> None:
        """Put the rows back into the table; a private model that is complete may be published."""
        self._sweeps = None
        sweeps.close()
        state = self._state
        state.new_cut = self._cut
        complete = state.swept < 0 and state.epoch + 1 >= self._model.epochs
        if sweeps.sampling is not None and complete:
            assert isinstance(state.table, ExactTable)
            self._privacy = sweeps.sampling.report()
            seal(state.table)
            state.seal()

    async def _sweep_all(self, sweeps: Passes) -> None:
        state, learner = self._state, self._learner
        if state.epoch == 0:
            await learner.next_pass(keep_positions=True)
        while True:
            number = state.epoch + 1
            self._tell(f"pass {number} of {self._model.epochs}")
            started = time.monotonic()
            if state.swept == 0:
                state.validation = new_validation(self._model, self._job.output.window)
            while 0 <= state.swept < sweeps.buckets:
                await learner.control.run(self._sweep, sweeps)
                if learner.stopped.is_set():
                    return
            last = state.epoch + 1 >= self._model.epochs
            for bucket in range(sweeps.buckets if last and self._fits_users else 0):
                await learner.control.run(sweeps.fit_users, bucket)
            state.swept = -1  # the pass is complete
            await self._note(state.epoch, state.validation, time.monotonic() - started, sweeps)
            ended = self._patience.ended(state.epoch, self._held_loss, sweeps.rows)
            if last or ended:
                break
            await learner.next_pass(keep_positions=True)
        if self._patience.restore(sweeps.rows):
            _log.info("kept the rows of pass %d, the best", self._patience.epoch + 1)

    def _sweep(self, sweeps: Passes) -> None:
        state, learner = self._state, self._learner
        count, dropped = sweeps.sweep(state.swept, state.epoch, state.validation)
        state.swept += 1
        state.counts.examples += count
        learner.records += count
        learner.notices.note_diverged(dropped)

    async def _note(
        self, epoch: int, validation: Validation, seconds: float, sweeps: Passes | None = None
    ) -> None:
        """Remember a pass's figures, and score what is held out."""
        summary = validation.summary()
        examples = summary["examples"]
        told: dict[str, Any] = {
            "pass": epoch + 1,
            "step": self._model.alpha / (epoch + 1) ** self._model.decay,
            **type(validation).headlines(summary),
            "seconds": seconds,
            "examples_per_second": examples / max(seconds, 1e-9),
        }
        window = self._job.output.window
        if sweeps is not None:
            held = await self._learner.control.run(sweeps.held_out, window)
        else:
            held = await self._learner.control.run(self._held_out, window)
        if held is not None:
            figures = type(held).headlines(held.summary())
            told |= {f"held_out_{name}": value for name, value in figures.items()}
            self._held_loss = held.summary()["loss"]
        self.passes.append(told)
        _log.info("%s", _sentence(told))

    def _held_out(self, window: int) -> Validation | None:
        """Score what is held out with the table's rows."""
        keys, ratings, weights = self._kept.held_out.all()
        if not len(ratings):
            return None
        validation = new_validation(self._model, window)
        validation.update(scored(self._solver, keys), ratings, weights)
        return validation

    def scored(self, keys: U64) -> F32:
        """Return the scores of pairs of users and items (uint64[n, 2]), wherever their rows stand.

        In the control lane.
        """
        return scored(self._solver, keys) if self._sweeps is None else self._sweeps.scored(keys)

    def report(self) -> dict[str, Any]:
        """Return what the report has beside what all models have."""
        last = self.passes[-1] if self.passes else {}
        best = self._patience.epoch + 1
        last = next((one for one in self.passes if best and one["pass"] == best), last)
        held = {name: value for name, value in last.items() if name.startswith("held_out_")}
        private = {"privacy": self._privacy} if self._privacy is not None else {}
        return {"duplicates": self.duplicates, **held, **private, "passes": self.passes}


def _sentence(told: dict[str, Any]) -> str:
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:.5g}"
        for name, value in told.items()
        if name not in ("pass", "seconds", "examples_per_second") and np.isfinite(value)
    )
    rate = told["examples_per_second"]
    return f"pass {told['pass']}: {figures}, {told['seconds']:.1f} s ({rate / 1e6:.2f} M/s)"
