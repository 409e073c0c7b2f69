"""The figures of a whole cluster, from what each of its processes says of itself.

Sums come from the shards, whose marks count each example once; the histogram that the AUC needs,
the last example and the size of the source from the workers. Shards apply the same minibatches
within moments of one another, so the one that is least far speaks for all.

Of a shard's ``/status``, ``totals`` (sums over its marks) and ``figures`` (``features``,
``table_bytes``, ``embeddings_bytes``, ``embeddings_refused``) are read; of a worker's ``histogram``
(of predictions of clicks), ``validation`` (its figures), ``last`` (label, score and features of the
last example), ``source_bytes`` and ``examples_dropped``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from streamlearn.config import ModelConfig
from streamlearn.messages import F64, Progress
from streamlearn.online.class_validation import ClassValidation
from streamlearn.online.losses import validation_of
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.validation import BINS, accuracy_of, auc_of

__all__ = ["Overview"]

# Rates are over about this long.
_RATE_SECONDS: Final = 5.0
_COUNTS: Final = ("bad_records", "subsampled", "bytes", "stored_bytes")

Said = Mapping[str, Any]


class Overview:
    """What is known of all processes, and the progress that it makes up.

    Parameters
    ----------
    model : ModelConfig
        What is learned.

    Attributes
    ----------
    last : Progress
    summary : dict
        Figures of progressive validation, by the names that a validation's summary has.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._epochs = model.epochs
        self._validation = validation_of(model)
        self._sums = self._validation.totals_type._fields
        self.summary: dict[str, float] = {}
        self._shards: dict[str, Said] = {}
        self._workers: dict[str, Said] = {}
        self._recent: deque[tuple[float, int, int]] = deque()
        self.last = self.progress("compiling", "", 0.0)

    def hear_shard(self, name: str, said: Said) -> None:
        """Take in what a shard says; of one that is silent, the last counts."""
        self._shards[name] = said

    def hear_worker(self, name: str, said: Said) -> None:
        """Take in what a worker says."""
        self._workers[name] = said

    def progress(self, state: str, detail: str, seconds: float) -> Progress:
        """Return where the cluster is.

        Parameters
        ----------
        state, detail : str
            As in Progress.
        seconds : float
            Since the start; the clock behind rates.
        """
        sums = self._least()
        totals = self._validation.totals_of(np.array([sums[name] for name in self._sums]))
        examples, plain = totals.examples, int(sums["bytes"])
        self._recent.append((seconds, examples, plain))
        while len(self._recent) > 2 and seconds - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        before, examples_before, plain_before = self._recent[0]
        span = seconds - before
        self.summary = totals.figures() | self._told_by_workers()
        label, score, width = self._last_example()
        # each worker lists the whole source
        workers = self._workers.values()
        size = max((_number(said, "source_bytes", -1) for said in workers), default=-1)
        self.last = Progress(
            state=state,
            detail=detail,
            seconds=seconds,
            examples=examples,
            bad_records=int(sums["bad_records"]),
            bytes=plain,
            stored_bytes=int(sums["stored_bytes"]),
            bytes_done=int(sums["stored_bytes"]),
            bytes_total=int(size) * self._epochs if size >= 0 else -1,
            examples_per_second=(examples - examples_before) / span if span > 0 else 0.0,
            bytes_per_second=(plain - plain_before) / span if span > 0 else 0.0,
            weight=totals.weight,
            **self._validation.judged(self.summary),
            last_label=label,
            last_prediction=self._validation.prediction(score),
            last_features=int(width),
            features=self._figure("features"),
            event_seconds=math.nan,
        )
        return self.last

    @property
    def table_bytes(self) -> int:
        """Memory of all tables."""
        return self._figure("table_bytes")

    @property
    def embeddings_bytes(self) -> int:
        """Memory of all embeddings."""
        return self._figure("embeddings_bytes")

    @property
    def embeddings_refused(self) -> int:
        """How often a feature was refused an embedding."""
        return self._figure("embeddings_refused")

    @property
    def examples_dropped(self) -> int:
        """Examples of which workers learned nothing; an ended worker's count as it said last."""
        return int(sum(_number(said, "examples_dropped", 0) for said in self._workers.values()))

    def _figure(self, name: str) -> int:
        """Return the sum over shards of one of their figures."""
        return int(sum(_number(_part(said, "figures"), name, 0) for said in self._shards.values()))

    def _last_example(self) -> tuple[float, float, float]:
        """Return label, score and features of a last example, of the worker that has most."""
        said = max(self._workers.values(), key=lambda one: _number(one, "examples", 0), default={})
        last = said.get("last")
        if not isinstance(last, list) or len(last) != 3:
            return math.nan, math.nan, 0
        label, score, width = (math.nan if value is None else float(value) for value in last)
        return label, score, width

    def _least(self) -> Mapping[str, float]:
        told = [
            {name: _number(_part(said, "totals"), name, 0.0) for name in (*_COUNTS, *self._sums)}
            for said in self._shards.values()
        ]
        nothing = dict.fromkeys((*_COUNTS, *self._sums), 0.0)
        return min(told, key=lambda sums: sums["examples"], default=nothing)

    def _told_by_workers(self) -> dict[str, float]:
        """Return the figures that the shards' sums do not tell."""
        views = [_part(said, "validation") for said in self._workers.values()]
        if issubclass(self._validation, RatingValidation):
            rmse, mae = _pooled(views, "rmse_window", power=2), _pooled(views, "mae_window")
            return {"loss_window": rmse, "rmse_window": rmse, "mae_window": mae}
        if issubclass(self._validation, ClassValidation):
            names = ("loss_window", "accuracy_window", "baseline_loss")
            return {name: _pooled(views, name) for name in names}
        histogram = np.zeros(2 * BINS)
        for said in self._workers.values():
            histogram += _histogram(said.get("histogram"))
        told = {
            "loss_window": _pooled(views, "loss_window"),
            "auc": auc_of(histogram)[0],
            "accuracy": accuracy_of(histogram),
        }
        if len(views) == 1:
            told["auc_window"] = _number(views[0], "auc_window")
        return told


def _histogram(told: Any) -> F64:
    """Return weights by bin and class; nothing where none are told."""
    if not isinstance(told, list) or len(told) != 2 * BINS:
        return np.zeros(2 * BINS)
    return np.array(told, np.float64)


def _part(said: Said, name: str) -> Said:
    part = said.get(name)
    return part if isinstance(part, dict) else {}


def _number(said: Said, name: str, default: float = math.nan) -> float:
    value = said.get(name)
    return float(value) if isinstance(value, int | float) else default  # JSON has null for NaN


def _pooled(views: Sequence[Said], name: str, power: int = 1) -> float:
    """Return the mean of a figure over workers, by this power; their windows are of one length."""
    values = [value**power for view in views if not math.isnan(value := _number(view, name))]
    return (sum(values) / len(values)) ** (1 / power) if values else math.nan
