"""What shards say that they have applied, beside the same log learned by one process.

Marks are the shards' own count. The rows say it a second time: each keeps how often its key was
seen, so a minibatch lost or applied twice shows in the counts of its keys, on the very shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from streamlearn.cluster.stored_shards import StoredShards
from streamlearn.model import load
from streamlearn.shards.shard import INTERCEPT_KEY

__all__ = ["counts_of_keys", "differences"]

_COUNT: Final = np.uint64(0xFFFFFFFF)  # the low half of a row's word 2


def differences(out: Path, of: int, alone: Path) -> list[str]:
    """Say in what drained shards differ from a model that one process learned of the same log.

    Parameters
    ----------
    out : Path
        Of the cluster.
    of : int
        How many shards there are.
    alone : Path
        Output directory of the one process.

    Returns
    -------
    list of str
        A sentence each; none where every record counts exactly once.

    Raises
    ------
    ClusterError
        The shards have not drained, or have applied something else than one another.
    """
    model = load(alone)
    keys, counts = _of_rows([part.rows for part in model.parts()])
    with StoredShards(out, of) as shards:
        marks = {mark.partition: mark for mark in shards.marks}
        found_keys, found_counts = _of_rows([part.rows for part in shards.parts()])
    found = []

    def compare(what: str, value: Any, expected: Any) -> None:
        if value != expected:
            found.append(f"{what}: {value}, expected {expected}")

    # the one process may have cut its objects into other ranges
    positions = [known.position for known in model.positions.values()]
    open_ = [name for name, mark in marks.items() if not mark.done]
    compare("partitions that are not at their end", open_, [])
    compare(
        "records", sum(m.records for m in marks.values()), sum(one.records for one in positions)
    )
    totals = model.validation.totals()
    for name in ("examples", "bad_records", "subsampled", "bytes"):
        compare(name, sum(getattr(m, name) for m in marks.values()), getattr(model.counts, name))
    compare("labels", sum(m.label for m in marks.values()), totals.label)
    compare("weights of examples", sum(m.weight for m in marks.values()), totals.weight)
    compare("keys", len(found_keys), len(keys))
    if np.array_equal(found_keys, keys):
        wrong = np.flatnonzero(found_counts != counts)
        if len(wrong):
            at = wrong[0]
            found.append(
                f"{len(wrong)} keys were not seen as often as they occur: {keys[at]:#x} "
                f"{found_counts[at]} times, expected {counts[at]}"
            )
    elif len(found_keys) == len(keys):
        found.append("the keys are others")
    return found


def counts_of_keys(out: Path, of: int) -> dict[int, int]:
    """Return how often drained shards have seen each key."""
    with StoredShards(out, of) as shards:
        keys, counts = _of_rows([part.rows for part in shards.parts()])
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _of_rows(parts: list[Any]) -> tuple[Any, Any]:
    """Return keys, ascending, and their counts, without the constant feature."""
    rows = np.concatenate(parts) if parts else np.zeros((0, 4), np.uint64)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    rows = rows[rows[:, 0] != np.uint64(INTERCEPT_KEY)]
    return rows[:, 0], rows[:, 2] & _COUNT
