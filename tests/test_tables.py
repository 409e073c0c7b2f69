"""A model's tables: what share of the memory is whose, and which table a job gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from streamlearn import tables
from streamlearn.config import FmConfig, JobConfig, LrConfig, TablesConfig
from streamlearn.shards.hashed import HashedTable
from streamlearn.shards.table import ExactTable
from streamlearn.tables import embeddings_bytes_max, features_max, new_table
from tests.reference.tables import small_tables

MEMORY = 56 << 30


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tables, "_memory_bytes", lambda: MEMORY)
    with small_tables():
        yield


def job(model: LrConfig | FmConfig, **settings: Any) -> JobConfig:
    return JobConfig(model=model, tables=TablesConfig(**settings))


def test_embeddings_have_a_share_of_the_memory_of_their_own() -> None:
    alone, beside = job(LrConfig()), job(FmConfig())
    assert features_max(alone) == int(MEMORY * 0.8 / 56)
    assert features_max(beside) == pytest.approx(features_max(alone) / 2, abs=1)
    held = features_max(beside) * 56 + embeddings_bytes_max(beside)
    assert held == pytest.approx(MEMORY * 0.8, abs=56)


def test_what_is_set_is_what_there_may_be() -> None:
    told = job(FmConfig(), features_max=1_000_000, embeddings_bytes_max=123_456_789)
    assert features_max(told) == 1_000_000
    assert embeddings_bytes_max(told) == 123_456_789
    few = job(FmConfig(), features_max=1_000_000)
    assert embeddings_bytes_max(few) == int(MEMORY * 0.8 - 56_000_000)
    # embeddings have an eighth, however many features there may be
    many = job(FmConfig(), features_max=1_200_000_000)
    assert embeddings_bytes_max(many) == int(MEMORY * 0.8 / 8)


def test_a_table_has_the_embeddings_of_its_model() -> None:
    exact = new_table(job(FmConfig(dim=20, order=3, v_init_scale=0.5), features_max=1000))
    assert isinstance(exact, ExactTable)
    assert exact.arena is not None
    assert exact.arena.geometry.tiers == FmConfig(dim=20, order=3).tiers
    assert exact.arena.scale == 0.5
    assert exact.arena.room.tolist() == [
        embeddings_bytes_max(job(FmConfig(), features_max=1000)) // 64,
        0,
    ]
    hashed = new_table(job(FmConfig(dim=20, l1_shrk=False), index="hashed", bits=10))
    assert isinstance(hashed, HashedTable)
    assert hashed.vectors is not None
    assert hashed.vectors.geometry.tiers.dim == 20
    assert [hashed.vectors.geometry.layout[5], exact.arena.geometry.layout[5]] == [0, 1]


def test_a_model_without_embeddings_has_none() -> None:
    exact = new_table(job(LrConfig(), features_max=1000, when_full="evict"), rows=500)
    assert isinstance(exact, ExactTable)
    assert (exact.arena, exact.features_max, exact.when_full) == (None, 1000, "evict")
    hashed = new_table(job(LrConfig(), index="hashed", bits=10))
    assert isinstance(hashed, HashedTable)
    assert (hashed.vectors, hashed.bits) == (None, 10)


def test_a_table_says_how_long_its_growth_took() -> None:
    now = iter(range(100))
    table = new_table(job(LrConfig(), features_max=1000), clock=lambda: float(next(now)))
    assert isinstance(table, ExactTable)
    table._widen(0)
    assert table.growth_seconds == 1
