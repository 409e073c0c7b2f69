"""What a private model may say of a user, and what it costs: the budget, and what it forbids.

Private are the ratings of any one user, all of them: for two sets of ratings with the same users
and items, which differ in one user's, whatever may be published of the one is published of the
other with a probability that differs by a factor of exp(epsilon) at most. That users and items are
among those known is not hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from streamlearn.errors import ConfigError
from streamlearn.kinds import MfConfig, ModelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamlearn.config import JobConfig

__all__ = ["Budget", "check_private", "is_private", "refuse_more"]

# Of epsilon, for the mean: at epsilon = 1, the noise in that of a thousand users' stars is 0.08 on
# average. More than so much is of no use: then it is 0.008.
_MEAN_SHARE: Final = 0.05
_MEAN_MAX: Final = 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """How an epsilon is spent.

    Attributes
    ----------
    epsilon_mean, epsilon_sample : float
        Of the mean, and of one sample of all rows; together the model's.
    loss_max : float
        What all ratings of one user lose at most.
    temperature : float
        What losses are divided by in the density that rows are drawn from.
    epsilon_rating : float
        What the model costs a single rating, or any that weighs 1 at most: much less, where not all
        that a user rated is to be hidden.
    """

    epsilon_mean: float
    epsilon_sample: float
    loss_max: float
    temperature: float
    epsilon_rating: float

    @classmethod
    def of(cls, model: MfConfig) -> Budget:
        """Return that of a private model.

        Notes
        -----
        A user's loss is B = user_ratings_max error_max^2 / 2 at most, and 0 at least. So another
        user in one's place changes the sum of all losses by B at most, the density before it is
        made to integrate to 1 by a factor of exp(B / T) at most, and that integral by as much:
        epsilon = 2 B / T (McSherry and Talwar, "Mechanism Design via Differential Privacy", FOCS
        2007). The papers have 4 B, as they let a loss be between -B and B.
        """
        mean = min(_MEAN_SHARE * model.epsilon, _MEAN_MAX) if model.intercept else 0.0
        sample = model.epsilon - mean
        loss_max = model.user_ratings_max * model.error_max**2 / 2
        rating = mean + sample / max(1.0, model.user_ratings_max)
        return cls(mean, sample, loss_max, 2 * loss_max / sample, rating)


def is_private(model: ModelConfig) -> bool:
    """Say whether a model is to be private."""
    return isinstance(model, MfConfig) and model.epsilon > 0


def check_private(job: JobConfig) -> None:
    """Refuse what would let a private model say more than its budget.

    Raises
    ------
    ConfigError
        A setting stands against it.
    """
    model = job.model
    if not is_private(model):
        return
    assert isinstance(model, MfConfig)
    for what, why, hint in _against(job, model):
        raise ConfigError(
            f"with `model.epsilon` = {model.epsilon:g} the model is private, but {what}: {why}",
            hint=hint,
        )


def _against(job: JobConfig, model: MfConfig) -> Iterator[tuple[str, str, str]]:
    """Yield what stands against a private model, why, and what to do."""
    tables = job.tables
    if model.loss != "squared":
        what = f'`model.loss` is "{model.loss}"'
        yield what, "what is bounded is the squared error of ratings", "leave it out"
    if model.epochs < 2:
        why = "the first pass learns nothing, it finds out who there is"
        yield f"`model.epochs` is {model.epochs}", why, "take --epochs 20, or more"
    if model.patience:
        why = "which pass predicts best tells of the ratings that it is chosen by"
        yield f"`model.patience` is {model.patience}", why, "leave it out"
    if model.rating_min >= model.rating_max:
        what = f"`model.rating_min` is {model.rating_min:g} and `rating_max` {model.rating_max:g}"
        why = "the mean is somewhere between them"
        yield what, why, "say what ratings lie between"
    if tables.shards:
        yield "there are `tables.shards`", "one process must draw all rows", "leave them out"
    if tables.when_full != "error":
        hint = "leave it out, and raise tables.features_max where there are more users and items"
        what = f'`tables.when_full` is "{tables.when_full}"'
        yield what, "who is forgotten depends on who rated", hint
    if job.source.follow:
        why = "later ratings would go into later models, each of which costs as much again"
        yield "`source.follow` is true", why, "leave it out"


def refuse_more(model: ModelConfig, directory: Path) -> None:
    """Refuse to learn more into a private model.

    Raises
    ------
    ConfigError
        It is one.
    """
    if isinstance(model, MfConfig) and is_private(model):
        raise ConfigError(
            f"the model in {directory} is private and done: what it would learn from now on was "
            f"not paid for by its epsilon of {model.epsilon:g}",
            hint="learn all ratings anew in another --out; the epsilons of models of the same "
            "users add up",
        )
