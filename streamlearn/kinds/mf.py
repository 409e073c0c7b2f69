"""Settings of matrix factorization."""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from streamlearn.embeddings import FACTORS_MAX, Tiers
from streamlearn.kinds.shared import ALPHA, EPOCHS, INTERCEPT, L2, Added
from streamlearn.settings import about

__all__ = ["MfConfig"]

# Items drawn for one record: more teach mostly what is not so.
NEGATIVES_MAX: Final = 64


class MfConfig(
    Added,
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="mf",
):
    """Biased matrix factorization of ratings, by stochastic gradient descent (SC-SGD)."""

    dim: Annotated[
        int,
        about(
            "Factors of a user, and of an item.",
            ge=1,
            le=FACTORS_MAX,
            common=True,
            inherited=True,
        ),
    ] = 32
    loss: Annotated[
        str,
        about(
            "squared: of ratings; logistic: of feedback that is 0 or 1.",
            choices=("squared", "logistic"),
            common=True,
            inherited=True,
        ),
    ] = "squared"
    negatives: Annotated[
        int,
        about(
            "logistic: items drawn by chance for each record whose rating is 1, taken for 0.",
            ge=0,
            le=NEGATIVES_MAX,
            common=True,
            inherited=True,
        ),
    ] = 0
    alpha: Annotated[float, ALPHA] = 0.05
    decay: Annotated[
        float,
        about(
            "The step of pass t is alpha / t ** decay; 0: constant.",
            ge=0,
            le=10,
            common=True,
            inherited=True,
        ),
    ] = 0.7
    l2: Annotated[float, L2] = 0.05
    init_scale: Annotated[
        float,
        about(
            "Standard deviation of new factors; 0: 0.12 / sqrt(dim).", ge=0, le=100, inherited=True
        ),
    ] = 0.0
    users: Annotated[
        str,
        about(
            "Where users stand, over shards: with these, as items do, or with the worker that "
            "reads them, where no user is in two objects of the source.",
            choices=("shards", "worker"),
            flag="--users-at",
            inherited=True,
        ),
    ] = "shards"
    intercept: Annotated[bool, INTERCEPT] = True
    epochs: Annotated[int, EPOCHS] = 1
    held_out: Annotated[
        float,
        about(
            "Share of the ratings that are scored after each pass, and never learned.",
            ge=0,
            lt=1,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    patience: Annotated[
        int,
        about(
            "Stop after so many passes in a row in which held-out ratings were predicted no "
            "better, and keep the best; 0: do not.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0
    # --- private
    epsilon: Annotated[
        float,
        about(
            "Differential privacy of all ratings of any one user: budget of the model that is "
            "published; 0: it is not private.",
            ge=0,
            common=True,
            inherited=True,
        ),
    ] = 0.0
    published: Annotated[
        str,
        about(
            "private: which rows epsilon is the budget of: all, or those of items; then each "
            "user's is learned from them and its own ratings, and is for its own eyes.",
            choices=("all", "items"),
            common=True,
            inherited=True,
        ),
    ] = "all"
    user_ratings_max: Annotated[
        float,
        about(
            "private: the ratings of a user weigh no more than so many.",
            gt=0,
            common=True,
            inherited=True,
        ),
    ] = 50.0
    error_max: Annotated[
        float,
        about(
            "private: a rating that is predicted worse than this teaches nothing.",
            gt=0,
            common=True,
            inherited=True,
        ),
    ] = 2.0
    prior_scale: Annotated[
        float,
        about(
            "private: standard deviation of biases and factors of whom nothing is known; in place "
            "of l2, but for users' own rows.",
            gt=0,
            common=True,
            inherited=True,
        ),
    ] = 0.2
    rating_min: Annotated[
        float, about("private: ratings below it count as it in the mean.", inherited=True)
    ] = 1.0
    rating_max: Annotated[
        float, about("private: ratings above it count as it in the mean.", inherited=True)
    ] = 5.0

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "mf"

    @property
    def rule(self) -> str:
        """The update rule of shards: what workers have learned is added."""
        return "mf"

    @property
    def tiers(self) -> Tiers:
        """Which factors a row has: all, from the first rating on."""
        return Tiers(2, (0,), (self.dim,), sums=False)

    @property
    def v_init_scale(self) -> float:
        """New factors are drawn from between minus and plus this."""
        deviation = self.init_scale or 0.12 / math.sqrt(self.dim)
        return deviation * math.sqrt(3.0)

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What factors are updated by over shards: nothing but what is sent."""
        return (0.0, 1.0, 0.0, self.v_init_scale)
