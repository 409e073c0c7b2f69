"""Loading a table: rows from a snapshot, laid out many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamlearn.compute.kernels import table as kernels
from streamlearn.messages import U64

if TYPE_CHECKING:
    from streamlearn.shards.table import ExactTable

__all__ = ["load_rows"]


def load_rows(table: ExactTable, rows: U64) -> None:
    """Insert rows with distinct keys that a table does not hold; of embeddings it knows nothing.

    Parameters
    ----------
    rows : uint64[n, 4]
        Where the table has an arena, words 3 are left out.

    Raises
    ------
    TableFullError
        The keys crowd a segment that cannot grow any more.
    """
    if table.arena is not None:
        rows = rows.copy()
        rows[:, 3] = 0
    prefixes = (rows[:, 0] >> np.uint64(56)).astype(np.int64)
    order = np.argsort(prefixes, kind="stable")
    bounds = np.searchsorted(prefixes[order], np.arange(257))
    for low in range(256):
        part = np.ascontiguousarray(rows[order[bounds[low] : bounds[low + 1]]])
        while len(part):
            segment = int(table.segment_of[low])
            room = int(table._loads_max[segment] - table.loads[segment])
            if room <= 0:
                table.grow(segment)
                continue
            piece, part = part[:room], part[room:]
            _, end = table.region(segment)
            scale, offset = table.places[low]
            taken = int(kernels.lay_out(table.words, piece, len(piece), 0, 256, scale, offset, end))
            if taken < 0:  # a probe ran into the fence: some are in, others come after a growth
                out = table.find(piece[:, 0]) < 0
                taken = len(piece) - int(out.sum())
                part = np.concatenate([piece[out], part])
            table.loads[segment] += taken
            table.inserted_count[0] += taken
            if taken < len(piece):
                table.grow(segment)
    table._share_limit()
