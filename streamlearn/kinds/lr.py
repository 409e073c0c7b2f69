"""Settings of sparse logistic regression."""

from __future__ import annotations

from typing import Annotated

import msgspec

from streamlearn.embeddings import Tiers
from streamlearn.kinds.shared import ALPHA, BETA, EPOCHS, INTERCEPT, L1, L2
from streamlearn.settings import about

__all__ = ["LrConfig"]


class LrConfig(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="lr",
):
    """Sparse logistic regression, per example."""

    rule: Annotated[
        str, about("Update rule.", choices=("ftrl", "adagrad", "sgd"), common=True, inherited=True)
    ] = "ftrl"
    alpha: Annotated[float, ALPHA] = 0.1
    beta: Annotated[float, BETA] = 1.0
    l1: Annotated[float, L1] = 1.0
    l2: Annotated[float, L2] = 0.0
    intercept: Annotated[bool, INTERCEPT] = True
    epochs: Annotated[int, EPOCHS] = 1

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "lr"

    @property
    def tiers(self) -> Tiers | None:
        """Which embeddings there are: none."""
        return None

    @property
    def v_rates(self) -> tuple[float, ...]:
        """What embeddings would be updated by."""
        return (0.0, 1.0, 0.0, 0.0)
