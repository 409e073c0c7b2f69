"""A model's tables: of which kind, how large they may become, and with which embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, cast

from streamlearn.config import FmConfig, JobConfig, LrConfig, ModelConfig
from streamlearn.shards.arena import Arena, split_slots
from streamlearn.shards.cut import Table
from streamlearn.shards.hashed import HashedTable
from streamlearn.shards.table import ExactTable

__all__ = [
    "embeddings_bytes_max",
    "features_max",
    "new_table",
    "ratings_bytes_max",
    "tokens_bytes_max",
]

_MEMORY_SHARE: Final = 0.8  # of this machine's memory, for all of a table
_FEATURE_BYTES: Final = 56  # at most, between two growths
_FEATURES_MAX: Final = 1_200_000_000
# Of that share, where there are embeddings and nobody said how many features there may be.
_FEATURES_SHARE: Final = 0.5
# Embeddings have this part of the share, however many features there may be.
_EMBEDDINGS_SHARE_MIN: Final = 0.125
_RATINGS_SHARE: Final = 0.25


def features_max(job: JobConfig) -> int:
    """Return how many features a job's table may hold, of all shards together."""
    if job.tables.features_max:
        return job.tables.features_max
    share = _FEATURES_SHARE if not isinstance(job.model, LrConfig) else 1.0
    return min(int(_memory_bytes() * _MEMORY_SHARE * share / _FEATURE_BYTES), _FEATURES_MAX)


def embeddings_bytes_max(job: JobConfig) -> int:
    """Return how many bytes a job's embeddings may take, of all shards together."""
    if job.tables.embeddings_bytes_max:
        return job.tables.embeddings_bytes_max
    memory = _memory_bytes() * _MEMORY_SHARE
    left = memory - features_max(job) * _FEATURE_BYTES
    return int(max(left, memory * _EMBEDDINGS_SHARE_MIN))


def ratings_bytes_max(job: JobConfig) -> int:
    """Return how many bytes the ratings that are kept for further passes may take."""
    return job.tables.ratings_bytes_max or int(_memory_bytes() * _RATINGS_SHARE)


def tokens_bytes_max(job: JobConfig) -> int:
    """Return how many bytes the tokens that are kept for further passes may take."""
    return job.tables.tokens_bytes_max or int(_memory_bytes() * _RATINGS_SHARE)


def new_table(job: JobConfig, rows: int = 0, clock: Callable[[], float] | None = None) -> Table:
    """Return a model's empty table, laid out for ``rows`` rows.

    Parameters
    ----------
    clock : callable, optional
        Seconds, for how long the table takes to grow.
    """
    if job.tables.index == "hashed":
        return _hashed(job.tables.bits, job.model)
    when_full = cast('Literal["error", "evict"]', job.tables.when_full)
    most, clock = features_max(job), clock or _no_clock
    if rows:
        slots = split_slots(job.model.tiers)
        table = ExactTable.sized(rows, most, when_full, clock, split_slots=slots)
    else:
        table = ExactTable(most, when_full, clock)
    if not isinstance(job.model, LrConfig):
        Arena.of(table, job.model, embeddings_bytes_max(job))
    return table


def _hashed(bits: int, model: ModelConfig) -> HashedTable:
    if isinstance(model, FmConfig):
        return HashedTable(bits, model.tiers, l1_shrk=model.l1_shrk)
    return HashedTable(bits)


def _no_clock() -> float:
    return 0.0


def _memory_bytes() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory
