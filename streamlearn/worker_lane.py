"""What one learning lane has for itself: buffers, figures, and who names its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamlearn.messages import F32, U8, U64
from streamlearn.model import Model
from streamlearn.online.losses import new_validation
from streamlearn.online.names import Sampler
from streamlearn.stream import Work

__all__ = ["WorkerLane"]


class WorkerLane:
    """One learning lane's own things.

    Parameters
    ----------
    model : Model
    scratch : object
        What its scorer asked for.
    first : bool
        Whether it is the first, whose figures are the model's and which names features.
    """

    def __init__(self, model: Model, scratch: Any, *, first: bool) -> None:
        kind = model.job.model.kind
        self.scratch = scratch
        every = kind in ("mf", "lda", "deep")
        self.sampler = Sampler(model.counts.examples, every=every) if first else None
        own = model.validation if first else None
        self.validation = own or new_validation(model.job.model, model.job.output.window)
        self._names = model.names
        self._weighted = kind != "deep"  # a net's features may have no weights, and are kept

    def hand_over(self, model: Model) -> None:
        """Add what was judged here to the model's, and begin anew."""
        model.validation.merge(self.validation)
        self.validation = new_validation(model.job.model, model.job.output.window)

    def name(self, work: Work, fresh: U8, weights_at: Callable[[U64], F32]) -> None:
        """Name features of a minibatch's fresh rows; where names are too many, drop some.

        Parameters
        ----------
        fresh : uint8[>= rows]
        weights_at : callable
            Takes keys, returns their weights: those of zero need no name.
        """
        batch, rows, names = work.batch, work.batch.rows, self._names
        if self.sampler is None or not rows:
            return
        picked = self.sampler.pick(fresh, rows)
        names.note(work.stream.parser, work.block.buffer, batch.lines[:rows], picked)
        if names.prune_due and self._weighted:
            names.prune(lambda keys: weights_at(keys) != 0)
