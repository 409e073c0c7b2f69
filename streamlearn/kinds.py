"""The kinds of model: each one's settings, which `[model]` may hold where that kind is learned."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from streamlearn.settings import about

__all__ = ["MODELS", "LrConfig", "ModelConfig"]


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
    alpha: Annotated[
        float, about("Step scale (learning rate).", gt=0, short="-l", common=True, inherited=True)
    ] = 0.1
    beta: Annotated[
        float,
        about("Step offset: larger slows the first steps.", ge=0, common=True, inherited=True),
    ] = 1.0
    l1: Annotated[
        float,
        about(
            "L1 penalty: larger makes more weights exactly zero.", ge=0, common=True, inherited=True
        ),
    ] = 1.0
    l2: Annotated[
        float,
        about("L2 penalty: larger makes all weights smaller.", ge=0, common=True, inherited=True),
    ] = 0.0
    intercept: Annotated[bool, about("Learn a constant feature.", inherited=True)] = True
    epochs: Annotated[int, about("Passes over the source.", ge=1, common=True, inherited=True)] = 1

    @property
    def kind(self) -> str:
        """Name of the model: what ``model.kind`` says in a job file."""
        return "lr"


# A model's settings are a struct of its own, told apart by ``kind``: a further model is a further
# struct here and a further member of the union.
ModelConfig: TypeAlias = LrConfig
MODELS: Final[dict[str, type[ModelConfig]]] = {"lr": LrConfig}
