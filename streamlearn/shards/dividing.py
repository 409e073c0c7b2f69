"""Dividing one table between lanes, so that each may change its part without the others' leave.

A lane owns whole segments: ranges of prefixes (a key's top 8 bits) that no segment lies across. It
then finds, inserts and updates its own keys; segments grow and split within its ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from streamlearn.shards import table as tables
from streamlearn.shards.table import PREFIXES, SEGMENTS_MAX, ExactTable

__all__ = ["divide", "segments_of"]

# Segments to each lane at least, so that lanes whose number is no power of two get about the same
# share of the keys.
_SEGMENTS_PER_LANE: Final = 4


def divide(table: ExactTable, lanes: int) -> list[int]:
    """Split a table's segments so that so many lanes can own it.

    Parameters
    ----------
    table : ExactTable
        Of all prefixes; nobody uses it meanwhile.
    lanes : int
        1 to 256.

    Returns
    -------
    list of int
        ``lanes + 1`` prefixes, ascending: lane ``i`` owns those from the ``i``-th up to the next.
    """
    bits = min(8, (lanes * _SEGMENTS_PER_LANE - 1).bit_length()) if lanes > 1 else 0
    for segment in range(SEGMENTS_MAX):
        while segment < table.segments and table._bits[segment] < bits:
            capacity = max(table._capacities[segment], 2 * tables.INITIAL_SLOTS)
            rows = table._take(segment)
            while not table._split(segment, rows, capacity):
                capacity = int(capacity * tables.GROWTH) + 1
            if table.after_change is not None:
                table.after_change(segment, (segment, table.segments - 1))
    table._share_limit()
    return [(1 << bits) * i // lanes * (PREFIXES >> bits) for i in range(lanes + 1)]


def segments_of(table: ExactTable, edges: Sequence[int]) -> list[list[int]]:
    """Return the segments of each lane, by key, as they are now."""
    owned: list[list[int]] = [[] for _ in edges[1:]]
    for segment in table.key_order():
        low, _ = table.span(segment)
        owned[int(np.searchsorted(edges, low, side="right")) - 1].append(segment)
    return owned
