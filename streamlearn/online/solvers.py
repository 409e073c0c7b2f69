"""The solvers: by kind of model, what scores and learns minibatches on a local table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from streamlearn.config import DeepConfig, FmConfig, LdaConfig, MfConfig, ModelConfig
from streamlearn.messages import F32, U32, U64
from streamlearn.online.fm import FmSolver
from streamlearn.online.lda import LdaSolver
from streamlearn.online.logistic import LogisticSolver
from streamlearn.online.mf import MfSolver
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.steps import Begun

__all__ = ["DeviceSolver", "LocalSolver", "Scorer", "SharedSolver", "Solver", "new_solver"]


class Scorer(Protocol):
    """Scores minibatches."""

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> Any:
        """Return buffers for a lane that learns or scores."""
        ...

    def score(self, batch: Minibatch, scratch: Any) -> F32:
        """Score each example without learning; return the scores."""
        ...


class Solver(Scorer, Protocol):
    """What a model of one table is scored with, and what its rows mean.

    Attributes
    ----------
    counting : bool
        Whether examples raise the counts of their features.
    """

    counting: bool

    def weights(self, columns: U64) -> F32:
        """Derive the weights of rows from their columns."""
        ...

    @property
    def intercept(self) -> float:
        """The intercept's weight; 0 where the model has none."""
        ...


class DeviceSolver(Solver, Protocol):
    """One whose minibatches are stepped by lanes and devices, as those of deep nets are.

    Attributes
    ----------
    step : Begun
    """

    step: Begun

    def state(self) -> dict[str, Any]:
        """Return what it has beside the table, as arrays by name; copies."""
        ...

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Take what :meth:`state` returned; raises SnapshotError where it does not fit."""
        ...

    def figures(self) -> dict[str, float]:
        """Return what it tells of its steps and devices, by name."""
        ...

    def close(self) -> None:
        """End its lanes."""
        ...


class LocalSolver(Solver, Protocol):
    """One that learns minibatches itself, on the table."""

    def learn(self, batch: Minibatch, scratch: Any, keeper: Any, tick: int) -> F32:
        """Score each example, then learn it; return the scores."""
        ...

    def learn_resolved(
        self, batch: Minibatch, slots: U32, scratch: Any, keeper: Any, tick: int
    ) -> F32:
        """Score and learn a minibatch whose rows are known; return the scores."""
        ...


class SharedSolver(LocalSolver, Protocol):
    """One that several lanes may learn with at the same time, on one table."""

    def learn_until_full(
        self, batch: Minibatch, scratch: Any, keeper: Any, tick: int, first: int
    ) -> int:
        """Learn from ``first`` on; return -1, or a segment that must be made room in first."""
        ...


def new_solver(model: ModelConfig, table: Any, *, shared: bool = False) -> LocalSolver:
    """Return the solver of a kind of model that learns on its table.

    Parameters
    ----------
    table : ExactTable or HashedTable
        With embeddings where the model has some.
    shared : bool
        Whether several lanes learn on it at the same time.
    """
    if isinstance(model, FmConfig):
        return FmSolver(model, table, shared=shared)
    if isinstance(model, MfConfig):
        return MfSolver(model, table)
    if isinstance(model, LdaConfig):
        return LdaSolver(model, table)
    assert not isinstance(model, DeepConfig), "nets are made by streamlearn.deep_net"
    return LogisticSolver(model, table, shared=shared)
