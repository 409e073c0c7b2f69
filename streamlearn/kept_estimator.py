"""What all estimators keep: settings as a job, what was learned with them, and X's columns.

Settings may change at any time (``set_params``); whoever needs the model asks for it by ``_ready``,
which goes on with them, or refuses those that would change what the table's numbers mean.
"""

from __future__ import annotations

import copy
import operator
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

import numpy as np

from streamlearn.config import JobConfig
from streamlearn.learned import SETTINGS, job_of, settings_of
from streamlearn.model import Model

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
except ImportError:
    from streamlearn.parameters import BaseEstimator, NotFittedError

__all__ = ["KeptEstimator", "NotFittedError", "threads_of"]

# Names that a message has room for.
_NAMES_MAX: Final = 10
# What ``fit`` forgets of X.
_COLUMNS: Final = ("n_features_in_", "feature_names_in_")
# All settings of an estimator at once, by the kind of its model: asked for at every record.
_VALUES: Final = {kind: operator.attrgetter(*names) for kind, names in SETTINGS.items()}


class Kept(Protocol):
    """What an estimator has learned."""

    model: Model

    def use(self, job: JobConfig) -> None:
        """Go on with other rates."""


L = TypeVar("L", bound=Kept)


class KeptEstimator(ABC, BaseEstimator, Generic[L]):  # type: ignore[misc]
    """An estimator that keeps a model of its kind.

    A subclass has the settings of its kind of model (:data:`streamlearn.learned.SETTINGS`) as
    keyword arguments of its constructor, which keeps each under its name and does nothing else. It
    says by ``__sklearn_is_fitted__`` whether it has learned something.
    """

    # What ``model.kind`` says of it in a job file.
    _kind: ClassVar[str]
    # Settings that may not change once something is learned: what the table's numbers mean.
    _binding: ClassVar[tuple[str, ...]]

    # Set where something is learned; a class has them so that asking is simple.
    _learned: L | None = None
    _given: tuple[Any, ...] = ()

    n_features_in_: int

    @abstractmethod
    def _new(self) -> L:
        """Return what has learned nothing, with the settings as they are now."""

    def _job(self) -> JobConfig:
        return job_of(self._kind, {name: getattr(self, name) for name in SETTINGS[self._kind]})

    def _values(self) -> tuple[Any, ...]:
        values: tuple[Any, ...] = _VALUES[self._kind](self)
        return values

    # --- what was learned

    def _ready(self) -> L:
        """Return what was learned, empty if nothing was, with the settings as they are now."""
        learned = self._learned
        if learned is None:
            return self._adopt(self._new())
        if self._values() == self._given:
            return learned
        job = self._job()
        was, now = settings_of(learned.model.job), settings_of(job)
        for name in self._binding:
            if was[name] != now[name]:
                raise ValueError(
                    f"{name} is {now[name]!r}, but the model has learned with {was[name]!r}; fit "
                    "begins anew"
                )
        learned.use(job)
        return self._adopt(learned)

    def _fitted(self) -> L:
        """Return the same.

        Raises
        ------
        NotFittedError
            Nothing was learned yet.
        """
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with "
                "appropriate arguments before using this estimator."
            )
        return self._ready()

    def _adopt(self, learned: L) -> L:
        self._learned = learned
        self._given = copy.deepcopy(self._values())  # a mapping in it may be changed in place
        return learned

    @classmethod
    def _opened(cls, learned: L, state: Mapping[str, Any], **more: Any) -> Self:
        """Return an estimator of what was saved; ``more`` are settings that no job has."""
        self = cls(**settings_of(learned.model.job), **more)
        self._adopt(learned)
        if state["n_features_in"] is not None:
            self._set_columns(int(state["n_features_in"]), state["feature_names_in"])
        return self

    def _forget(self, *own: str) -> None:
        """Forget what X looked like, and what else ``fit`` finds anew."""
        for name in (*_COLUMNS, *own):
            self.__dict__.pop(name, None)

    # --- columns of X

    def _set_columns(self, count: int, names: Sequence[str] | None) -> None:
        self.n_features_in_ = count
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)

    def _columns_state(self) -> dict[str, Any]:
        """Return what is known of X's columns, as JSON has it."""
        names = self.__dict__.get("feature_names_in_")
        return {
            "n_features_in": self.__dict__.get("n_features_in_"),
            "feature_names_in": None if names is None else names.tolist(),
        }

    def _check_frame(self, names: tuple[str, ...] | None) -> None:
        """Refuse a frame with other columns than the first X; warn where only one has names."""
        held = self.__dict__.get("feature_names_in_")
        known, own = None if held is None else tuple(held.tolist()), type(self).__name__
        if names is not None and known is None:
            warnings.warn(
                f"X has feature names, but {own} was fitted without feature names", stacklevel=5
            )
        elif names is None and known is not None:
            warnings.warn(
                f"X does not have valid feature names, but {own} was fitted with feature names",
                stacklevel=5,
            )
        elif names != known:
            raise ValueError(_other_names(names or (), known or ()))

    def _check_names(self, names: Sequence[Any] | None) -> None:
        """Refuse a frame with other columns than the first one's."""
        known = self.__dict__.get("feature_names_in_")
        if names is not None and known is not None and tuple(names) != tuple(known):
            raise ValueError(
                "The feature names should match those that were passed during fit: they are "
                f"{_few(names)}, they were {_few(known.tolist())}"
            )

    def _check_count(self, count: int) -> None:
        """Refuse a matrix with more or fewer columns than the first one."""
        if count != self.n_features_in_:
            raise ValueError(
                f"X has {count} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )


def threads_of(n_jobs: Any) -> int:
    """Return the threads that ``n_jobs`` says.

    Raises
    ------
    ValueError
        It says none.
    """
    if n_jobs is None:
        return 1
    if not isinstance(n_jobs, int | np.integer) or n_jobs == 0:
        raise ValueError(f"n_jobs is {n_jobs!r}, expected a whole number, or -1 for all")
    cores = len(os.sched_getaffinity(0))
    return int(n_jobs) if n_jobs > 0 else max(1, cores + 1 + int(n_jobs))


def _other_names(names: tuple[str, ...], known: tuple[str, ...]) -> str:
    """Say how columns differ from those of the first frame, in scikit-learn's words."""
    message = "The feature names should match those that were passed during fit.\n"
    unseen, missing = sorted(set(names) - set(known)), sorted(set(known) - set(names))
    for title, some in (
        ("Feature names unseen at fit time:\n", unseen),
        ("Feature names seen at fit time, yet now missing:\n", missing),
    ):
        if some:
            message += title + "".join(f"- {name}\n" for name in some[:5])
            message += "- ...\n" if len(some) > 5 else ""
    if not unseen and not missing:
        message += "Feature names must be in the same order as they were in fit.\n"
    return message


def _few(names: Sequence[Any]) -> str:
    """Return names for a message: the first ones."""
    more = ", ..." if len(names) > _NAMES_MAX else ""
    return f"[{', '.join(map(repr, names[:_NAMES_MAX]))}{more}]"
