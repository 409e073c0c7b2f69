"""What the settings of several kinds of model share."""

from __future__ import annotations

from typing import Final

from streamlearn.settings import about

__all__ = ["ALPHA", "BETA", "EPOCHS", "INTERCEPT", "L1", "L2", "Added"]

ALPHA: Final = about("Step scale (learning rate).", gt=0, short="-l", common=True, inherited=True)
BETA: Final = about("Step offset: larger slows the first steps.", ge=0, common=True, inherited=True)
L1: Final = about(
    "L1 penalty: larger makes more weights exactly zero.", ge=0, common=True, inherited=True
)
L2: Final = about(
    "L2 penalty: larger makes all weights smaller.", ge=0, common=True, inherited=True
)
INTERCEPT: Final = about("Learn a constant feature.", inherited=True)
EPOCHS: Final = about("Passes over the source.", ge=1, common=True, inherited=True)


class Added:
    """What a model whose rows are added to has in place of the settings of an update rule."""

    __slots__ = ()

    @property
    def beta(self) -> float:
        """Step offset: there is none."""
        return 1.0

    @property
    def l1(self) -> float:
        """L1 penalty: there is none."""
        return 0.0

    @property
    def l1_shrk(self) -> bool:
        """Whether rows are left out while their weight is zero: they are not."""
        return False
