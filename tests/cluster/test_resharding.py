"""Resharding: what N shards have learned, M shards go on with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamlearn.cluster.resharding import remove_shards, reshard
from streamlearn.cluster.stored_shards import StoredShards, counts_of_shards, shard_directory
from streamlearn.config import DeepConfig, FmConfig, JobConfig, job_signature
from streamlearn.errors import ClusterError
from streamlearn.protocol import Mark
from streamlearn.shards.disk import RealDisk
from streamlearn.shards.recovery import recover
from streamlearn.shards.shard import ShardSpec
from tests.cluster_state import write_shard

JOB = JobConfig()
MARKS = [Mark("a", "1", 0, 3, 100, 10), Mark("b", "2", 0, 9, 50, 5, done=True, examples=5)]


def rows(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 1 << 63, (count, 4), dtype=np.uint64)
    made[:, 0] = np.unique(rng.integers(0, 1 << 64, 2 * count, dtype=np.uint64) | np.uint64(1))[
        np.sort(rng.choice(2 * count, count, replace=False))
    ]
    made[0, 0] = 1
    return made


def spread(out: Path, of: int, made: np.ndarray) -> None:
    for index in range(of):
        write_shard(out, JOB, index, of, made, MARKS, parts=index % 3 + 1)


@pytest.mark.parametrize(("of", "into"), [(1, 2), (2, 1), (2, 3), (5, 4), (3, 256)])
def test_other_shards_hold_the_same_rows_and_marks(tmp_path: Path, of: int, into: int) -> None:
    made = rows(700)
    spread(tmp_path, of, made)
    reshard(tmp_path, of, into, now=3.0)
    assert counts_of_shards(tmp_path) == sorted({of, into})
    with StoredShards(tmp_path, into) as shards:
        assert np.array_equal(np.concatenate([part.rows for part in shards.parts()]), made)
        assert shards.marks == MARKS
        assert shards.features == 700
        assert {image.lsn for image in shards.images} == {0}
        assert {image.minute for image in shards.images} == {5}
    remove_shards(tmp_path, of)
    assert counts_of_shards(tmp_path) == [into]


def test_a_new_shard_starts_as_any_other(tmp_path: Path) -> None:
    made = rows(300)
    spread(tmp_path, 2, made)
    reshard(tmp_path, 2, 3, now=3.0)
    spec = ShardSpec(1, 3, JOB, job_signature(JOB), 10_000)
    found = recover(RealDisk(), str(shard_directory(tmp_path, 1, 3)), spec)
    prefixes = made[:, 0] >> np.uint64(56)
    assert found.shard.table.features == int(((prefixes >= 85) & (prefixes < 170)).sum())
    assert list(found.shard.marks.values()) == MARKS
    assert found.shard.clocks.highest == 12
    assert not found.shard.clocks.members
    assert found.log is not None
    assert found.log.next_lsn == 1
    found.log.close()


@pytest.mark.parametrize(
    "model",
    [
        FmConfig(order=3, dim_by_count={"0": 5, "9": 16, "20": 40}),
        DeepConfig(dim=16, v_rule="rowwise"),
    ],
    ids=["fm", "net"],
)
@pytest.mark.parametrize(("of", "into"), [(1, 3), (3, 2), (2, 5)])
def test_embeddings_go_where_their_features_go(
    tmp_path: Path, of: int, into: int, model: FmConfig | DeepConfig
) -> None:
    job, tiers = JobConfig(model=model), model.tiers
    made = rows(500)
    dims = np.random.default_rng(1).choice([0, *tiers.dims], 500).astype(np.uint64)
    dims[0] = 0  # of the constant feature
    made[:, 3] = dims << np.uint64(48)
    size = sum(tiers.floats(dim) for dim in dims.tolist() if dim)
    vectors = np.arange(size, dtype=np.float32)
    for index in range(of):
        write_shard(tmp_path, job, index, of, made, MARKS, vectors=vectors, parts=index + 2)
    reshard(tmp_path, of, into, now=3.0)
    with StoredShards(tmp_path, into) as shards:
        parts = list(shards.parts())
        assert np.array_equal(np.concatenate([part.rows for part in parts]), made)
        assert np.array_equal(np.concatenate([part.vectors for part in parts]), vectors)
    # as many embeddings as memory is allowed for, or more: what was learned is not dropped
    specs = [ShardSpec(index, into, job, job_signature(job), 10_000, 64) for index in range(into)]
    found = []
    for index, spec in enumerate(specs):
        recovered = recover(RealDisk(), str(shard_directory(tmp_path, index, into)), spec)
        table = recovered.shard.table
        assert table.arena is not None
        prefixes = (made[:, 0] >> np.uint64(56)).astype(np.int64)
        own = made[(prefixes >= spec.prefixes[0]) & (prefixes < spec.prefixes[1])]
        held = table.rows_at(table.find(own[:, 0]))
        assert np.array_equal(held[:, :3], own[:, :3])
        found.append(table.arena.take(held))
        assert np.array_equal(held[:, 3], own[:, 3])
        assert recovered.log is not None
        recovered.log.close()
    assert np.array_equal(np.concatenate(found), vectors)


def test_what_an_earlier_attempt_left_is_written_anew(tmp_path: Path) -> None:
    made = rows(100)
    spread(tmp_path, 2, made)
    write_shard(tmp_path, JOB, 0, 1, made[:50], [])
    reshard(tmp_path, 2, 1, now=3.0)
    with StoredShards(tmp_path, 1) as shards:
        assert shards.features == 100


def test_shards_that_have_not_drained_are_left_as_they_are(tmp_path: Path) -> None:
    made = rows(100)
    write_shard(tmp_path, JOB, 0, 2, made, MARKS)
    write_shard(tmp_path, JOB, 1, 2, made, [msgspec.structs.replace(MARKS[0], sequence=2)])
    with pytest.raises(ClusterError, match="have not drained"):
        reshard(tmp_path, 2, 3, now=3.0)
    assert counts_of_shards(tmp_path) == [2]
