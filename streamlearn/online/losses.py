"""By what a model is judged: its loss says how its scores are validated and what they predict."""

from __future__ import annotations

from typing import Final, TypeAlias

from streamlearn.config import ModelConfig, loss_of
from streamlearn.online.class_validation import ClassValidation, LogitValidation, NumberValidation
from streamlearn.online.progressive import Validation
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.topic_validation import TopicValidation
from streamlearn.online.validation import BinaryValidation

__all__ = ["new_validation", "validation_of"]

_Validations: TypeAlias = (
    type[BinaryValidation] | type[RatingValidation] | type[TopicValidation] | type[ClassValidation]
)

_BY_LOSS: Final[dict[str, _Validations]] = {
    "logistic": BinaryValidation,
    "squared": RatingValidation,
    "likelihood": TopicValidation,
}
_OF_DEEP: Final[dict[str, _Validations]] = {
    "logistic": LogitValidation,
    "squared": NumberValidation,
    "classes": ClassValidation,
}


def validation_of(model: ModelConfig) -> _Validations:
    """Return the kind of validation that a model's loss asks for."""
    return (_OF_DEEP if model.kind == "deep" else _BY_LOSS)[loss_of(model)]


def new_validation(model: ModelConfig, window: int) -> Validation:
    """Return an empty validation of a model's scores.

    Parameters
    ----------
    window : int
        Examples in the window, at least 1.
    """
    return validation_of(model)(window)
