"""Which words have topics: those that stand in enough documents, and not in too many."""

from __future__ import annotations

from typing import Final

import numpy as np

from streamlearn.config import LdaConfig
from streamlearn.messages import I64
from streamlearn.online.lda import LdaSolver

__all__ = ["chosen"]

_COUNT: Final = np.uint64(0xFFFFFFFF)
_NUMBER: Final = np.uint64(32)
_DIM: Final = np.uint64(48)


def chosen(model: LdaConfig, solver: LdaSolver, documents: int, *, again: bool = False) -> I64:
    """Return the slots of the words that have topics, by key.

    Parameters
    ----------
    documents : int
        Of which ``model.max_df`` is the share.
    again : bool
        Whether they were chosen before: those that have counts.
    """
    table = solver.table
    held = []
    for segment in table.key_order():
        rows = table.rows(segment)
        df = (rows[:, 2] & _COUNT).astype(np.int64)
        if again:
            wanted = rows[:, 3] >> _DIM != 0
        else:
            wanted = rows[:, 1] >> _NUMBER != 0
            wanted &= (df >= model.min_df) & (df <= model.max_df * documents)
        held.append(np.stack([rows[wanted, 0], df[wanted].astype(np.uint64)], axis=1))
    words = np.concatenate(held) if held else np.zeros((0, 2), np.uint64)
    words = words[np.argsort(words[:, 0])]
    if model.vocabulary_max and len(words) > model.vocabulary_max and not again:
        # the most frequent; of those that are alike, the smallest keys
        order = np.argsort(-words[:, 1].astype(np.int64), kind="stable")
        words = words[np.sort(order[: model.vocabulary_max])]
    slots: I64 = table.find(words[:, 0])
    return slots
