"""A model through its snapshots, and where it may go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.config import FmConfig, JobConfig, LrConfig, OutputConfig, TablesConfig
from streamlearn.errors import ConfigError, ObjectChangedError, SnapshotError
from streamlearn.messages import Partition, Position
from streamlearn.model import Model, Progressed, load, stored_job
from streamlearn.model_cut import ModelCut
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.shards.cut import Nothing
from streamlearn.shards.snapshot import listing
from streamlearn.tables import embeddings_bytes_max, features_max

TABLES = {
    "exact": TablesConfig(features_max=100_000),
    "hashed": TablesConfig(index="hashed", bits=12),
}


# Embeddings of two lengths that features earn, and lengthen, while the tests learn.
TIERED = FmConfig(alpha=0.3, l1=0.1, v_lr=0.1, order=3, dim_by_count={"1": 3, "4": 9})
MODELS = {
    "exact": LrConfig(alpha=0.3, l1=0.1),
    "hashed": LrConfig(alpha=0.3, l1=0.1),
    "fm exact": TIERED,
    "fm hashed": FmConfig(alpha=0.3, l1=0.1, v_lr=0.1, dim=5),
}


def job(index: str, **output: Any) -> JobConfig:
    kept = OutputConfig(snapshots_kept=2, window=100, names_max=1_000, **output)
    tables = TABLES[index.removeprefix("fm ")]
    return JobConfig(model=MODELS[index], tables=tables, output=kept)


def learn(model: Model, seed: int, keeper: Any = None, rows: int = 200) -> None:
    """Teach random examples of five features each."""
    rng = np.random.default_rng(seed)
    batch = Minibatch(rows, FEATURES_PER_RECORD_MAX * 2, has_values=False)
    ranks = rng.integers(1, 400, rows * 5).astype(np.uint64)
    batch.keys[: rows * 5] = (ranks * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    batch.indptr[: rows + 1] = np.arange(rows + 1) * 5
    batch.labels[:rows] = rng.random(rows) < 0.3
    batch.state[0], batch.state[1], batch.state[3] = rows, rows * 5, rows
    scratch = model.solver.scratch(rows, batch.nnz_max)
    scores = model.solver.learn(batch, scratch, keeper or Nothing(), 7)
    model.validation.update(scores, batch.labels[:rows], batch.weights[:rows])
    model.counts.examples += rows


def cut(model: Model, out: Path, now: float = 1.0) -> ModelCut:
    return ModelCut(model, out / "model", 0, now)


def write(taken: ModelCut) -> dict[str, Any]:
    while (part := taken.take()) is not None:
        taken.write(part)
    return taken.commit()


@pytest.mark.parametrize("index", MODELS)
def test_a_model_comes_back_as_it_was(tmp_path: Path, index: str) -> None:
    model = Model.new(job(index), ("a", "b"))
    learn(model, 1)
    model.epoch = 3
    model.replayed_size = 5
    model.positions = {
        "s3://b/k#1": Progressed("etag", Position(17, 3)),
        "f#0-65536": Progressed("", Position(65_540, 9, done=True)),
    }
    told = write(cut(model, tmp_path))
    found = load(tmp_path)
    assert found.digest() == model.digest()
    assert found.resumed_from == told["path"]
    assert found.positions == model.positions
    assert found.counts == model.counts
    assert (found.epoch, found.replayed_size) == (3, 5)
    assert found.names.fields == ("a", "b")
    assert found.solver.intercept == model.solver.intercept != 0
    assert found.validation.summary() == pytest.approx(model.validation.summary(), nan_ok=True)
    assert stored_job(tmp_path) == model.job
    learn(model, 2)
    learn(found, 2)
    assert found.digest() == model.digest()


@pytest.mark.parametrize("index", MODELS)
def test_a_cut_is_of_its_moment_whatever_is_learned_while_it_is_written(
    tmp_path: Path, index: str
) -> None:
    model = Model.new(job(index), ())
    learn(model, 1)
    digest, examples = model.digest(), model.counts.examples
    loss = model.validation.summary()["loss"]
    taken = cut(model, tmp_path)
    seed = 2
    while (part := taken.take()) is not None:
        taken.write(part)
        if seed < 12:
            learn(model, seed, taken.cut)
            seed += 1
    taken.commit()
    assert model.digest() != digest
    found = load(tmp_path)
    assert found.digest() == digest
    assert found.counts.examples == examples
    assert found.validation.summary()["loss"] == loss
    assert seed > 2
    for again in range(2, seed):
        learn(found, again)
    assert found.digest() == model.digest()


def test_an_aborted_snapshot_leaves_the_one_before(tmp_path: Path) -> None:
    model = Model.new(job("exact"), ())
    learn(model, 1)
    write(cut(model, tmp_path))
    digest = model.digest()
    learn(model, 2)
    taken = cut(model, tmp_path)
    part = taken.take()
    assert part is not None
    taken.write(part)
    taken.abort(SnapshotError("the disk is full"))
    assert load(tmp_path).digest() == digest
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["000000000001"]


def test_what_keys_and_numbers_mean_is_bound(tmp_path: Path) -> None:
    write(cut(Model.new(job("exact"), ()), tmp_path))
    for other in (
        JobConfig(model=LrConfig(alpha=0.4, l1=0.1), tables=TABLES["exact"]),
        job("hashed"),
    ):
        with pytest.raises(ConfigError, match="was learned with"):
            load(tmp_path, other)
    assert load(tmp_path, job("exact", snapshot_seconds=1.0)).job.output.snapshot_seconds == 1.0
    with pytest.raises(ConfigError, match="there is no model"):
        load(tmp_path / "none")


def part(uri: str, version: str, start: int = 0, end: int = -1) -> Partition:
    return Partition(uri, start, end, version)


def test_objects_are_gone_on_with_only_as_they_were_learned() -> None:
    model = Model.new(job("exact"), ())
    model.positions = {
        "done": Progressed("1", Position(9, 1, done=True)),
        "half": Progressed("1", Position(9, 1)),
        "ranged#0-100": Progressed("1", Position(120, 1, done=True)),
        "odd#name": Progressed("1", Position(9, 1)),
    }
    learned = model.objects()
    assert learned["ranged"] == ["ranged#0-100"]
    assert learned["odd#name"] == ["odd#name"]

    def refused(*partitions: Partition, listed: bool = True) -> dict[str, type[Exception]]:
        found = model.refused(partitions, learned, listed=listed)
        return {name: type(error) for name, error in found.items()}

    ranged = [part("ranged", "1", at, at + 100) for at in (0, 100)]
    assert refused(part("new", "1"), part("done", "1"), part("half", "1"), *ranged) == {}
    assert refused(part("done", "2"), part("half", "2"), part("odd#name", "2")) == {
        "half": ObjectChangedError,
        "odd#name": ObjectChangedError,
    }
    # a range that was not begun belongs to the object of which others were
    assert refused(part("ranged", "2", 0, 100), part("ranged", "2", 100, 300)) == {
        "ranged#100-300": ObjectChangedError
    }
    # the same object in other ranges
    assert refused(part("ranged", "1")) == {"ranged": ConfigError}
    assert refused(part("ranged", "1", 100, 200), listed=False) == {}
    assert model.position(part("half", "1")) == Position(9, 1)
    assert model.position(part("new", "1", 100, 200)) == Position(100)


def test_the_limits_of_features_and_embeddings_fit_the_memory_together() -> None:
    lr, fm = JobConfig(), JobConfig(model=FmConfig())
    assert 1_000_000 < features_max(lr) <= 1_200_000_000
    assert features_max(fm) < features_max(lr)
    assert embeddings_bytes_max(fm) > 1 << 26
    given = JobConfig(model=FmConfig(), tables=TablesConfig(features_max=7, embeddings_bytes_max=9))
    assert (features_max(given), embeddings_bytes_max(given)) == (7, 9)


def test_a_snapshot_with_the_validation_of_another_loss_is_refused(tmp_path: Path) -> None:
    model = Model.new(job("exact"), ())
    model.validation = RatingValidation(100)
    labels = np.arange(5, dtype=np.float32)
    model.validation.update(labels + 1, labels, np.ones(5, np.float32))
    write(cut(model, tmp_path))
    (row,) = listing(tmp_path / "model")
    assert (row["meta"]["summary"]["rmse"], row["meta"]["summary"]["mae_window"]) == (1, 1)
    with pytest.raises(SnapshotError, match="validation by logloss has no array 'histograms'"):
        load(tmp_path)
