"""Passes end once held-out ratings are predicted no better, and the best rows stay."""

from __future__ import annotations

from typing import Any, cast

from streamlearn.strata.patience import Patience
from streamlearn.strata.rows import FactorRows


class Rows:
    """What is copied and restored."""

    def __init__(self) -> None:
        self.now = 0

    def copy(self) -> Any:
        return self.now

    def restore(self, copy: Any) -> None:
        self.now = copy


def run(passes: int, losses: list[float | None]) -> tuple[int, int, int]:
    """Return the pass that ended it, the best one, and the rows that stay."""
    rows, patience = Rows(), Patience(passes)
    for epoch, loss in enumerate(losses):
        rows.now = epoch
        if patience.ended(epoch, loss, cast("FactorRows", rows)):
            break
    patience.restore(cast("FactorRows", rows))
    return epoch, patience.epoch, rows.now


def test_so_many_passes_in_a_row_may_be_no_better() -> None:
    losses = [3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.7, 1.0]
    assert run(1, losses) == (2, 1, 1)
    assert run(2, losses) == (5, 3, 5)  # as good as the best: the later rows stay
    assert run(3, losses) == (6, 3, 3)
    assert run(4, losses) == (7, 7, 7)


def test_without_patience_or_ratings_held_out_all_passes_are_made() -> None:
    assert run(0, [1.0, 2.0, 3.0]) == (2, -1, 2)
    assert run(1, [None, None, None]) == (2, -1, 2)
    assert run(1, [float("nan"), float("nan")])[0] == 1
