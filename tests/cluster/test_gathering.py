"""Gathering: shards and workers become the model that one process would have learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamlearn.cluster.gathering import gather, totals_of
from streamlearn.cluster.resharding import remove_shards, reshard
from streamlearn.cluster.stored_shards import StoredShards, counts_of_shards, shard_directory
from streamlearn.compute.kernels.factors import ITEM
from streamlearn.config import DeepConfig, JobConfig, MfConfig, job_signature
from streamlearn.errors import ClusterError, ResourceError, SnapshotError
from streamlearn.messages import BadRecord
from streamlearn.model import Model, load
from streamlearn.online.mf import numbers_of
from streamlearn.online.totals import ClassTotals, RatingTotals, Totals
from streamlearn.protocol import ClassMark, Mark, Push, RatingMark
from streamlearn.quarantine import Quarantine
from streamlearn.shards.arena import dims_of
from streamlearn.shards.directory import DirectoryLock
from streamlearn.shards.image import load_image
from streamlearn.shards.shard import ShardSpec
from streamlearn.shards.snapshot import listing, newest
from tests.click_log import clicks, text, written
from tests.cluster_state import (
    all_rows,
    all_vectors,
    append_to_log,
    marks_of,
    write_shard,
    write_worker,
)
from tests.rated import learned as ratings_learned
from tests.runs import run, settings

EMPTY = memoryview(b"")
# Embeddings of three lengths, so that parts begin and end anywhere in them.
FM = ("model.kind=fm", "model.order=3", "model.dim_by_count={1 = 2, 3 = 11, 9 = 16}")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("log") / "log.tsv", text(clicks(3_000, 1)))


@pytest.fixture(scope="module", params=["lr", "fm"])
def learned(
    log: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    out = tmp_path_factory.mktemp("learned")
    pairs = FM if request.param == "fm" else ()
    ended = run("train", log, "--out", out, "--quiet", *settings(*pairs))
    assert ended.code == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def model(learned: Path) -> Model:
    return load(learned)


def spread(model: Model, out: Path, of: int) -> None:
    """Write a model as the shards of a cluster that has drained, and one worker."""
    rows, vectors = all_rows(model), all_vectors(model)
    for index in range(of):
        write_shard(out, model.job, index, of, rows, marks_of(model), vectors=vectors)
        append_to_log(out, model.job, index, of)
    write_worker(out, "a", model)


@pytest.mark.parametrize("of", [1, 2, 7])
def test_the_gathered_model_is_the_one_that_was_spread(
    model: Model, tmp_path: Path, of: int
) -> None:
    spread(model, tmp_path, of)
    gathered = gather(tmp_path, model.job, of, now=2.0, seconds=3.0, cpu_seconds=4.0)
    found = load(tmp_path)
    assert found.digest() == model.digest()
    assert found.positions == model.positions
    assert found.counts.examples == model.counts.examples
    assert (found.counts.seconds, found.counts.cpu_seconds) == (3.0, 4.0)
    assert found.validation.summary() == pytest.approx(model.validation.summary())
    assert len(found.names) == len(model.names)
    assert gathered.features == model.table.features  # type: ignore[union-attr]
    assert gathered.nonzeros == sum(
        int(np.count_nonzero(w)) for w in (part.weights for part in model.parts())
    )
    assert gathered.embeddings == sum(
        int(np.count_nonzero(dims_of(part.rows[:, 3]))) if model.has_embeddings else 0
        for part in model.parts()
    )
    assert (gathered.embeddings > 100) == model.has_embeddings
    assert gathered.whole
    (row,) = listing(tmp_path / "model")
    assert row["meta"]["gathered"] == {"shards": of}
    assert (tmp_path / "bad_records.jsonl").read_bytes() == b""


def test_what_is_done_with_a_model_works_on_a_gathered_one(
    model: Model, learned: Path, log: Path, tmp_path: Path
) -> None:
    spread(model, tmp_path, 2)
    gather(tmp_path, model.job, 2, now=2.0)
    for verb in (["evaluate", tmp_path, log], ["inspect", tmp_path], ["predict", tmp_path, log]):
        mine = run(*verb, "--json")
        theirs = run(verb[0], learned, *verb[2:], "--json")
        assert mine.code == 0, mine.stderr
        if verb[0] == "predict":
            assert mine.stdout == theirs.stdout
        else:
            assert mine.report["logloss"] == pytest.approx(theirs.report["logloss"])
    pairs = settings(*FM) if model.has_embeddings else []
    again = run("train", log, "--out", tmp_path, "--quiet", "--json", *pairs)
    assert again.report["examples"] == 3_000  # nothing is left to learn


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process has learned of ratings."""
    return ratings_learned(tmp_path_factory.mktemp("rated"), "--epochs", 1)


def test_users_and_items_are_numbered_by_key(rated: Path, tmp_path: Path) -> None:
    """As shards have them, rows only say which of both they are."""
    model = load(rated)
    rows, vectors = all_rows(model), all_vectors(model)
    items = numbers_of(rows[:, 1]) & ITEM != 0
    kinds = np.where(items, ITEM | np.uint32(1), np.uint32(1)).astype(np.uint64)
    rows[:, 1] = (rows[:, 1] & np.uint64(0xFFFFFFFF)) | (kinds << np.uint64(32))
    rows[0, 1] = model.table.intercept[:1].view(np.uint32)[0]
    rows[0, 2] = 3000
    for index in range(2):
        write_shard(tmp_path, model.job, index, 2, rows, marks_of(model), vectors=vectors)
        append_to_log(tmp_path, model.job, index, 2)
    write_worker(tmp_path, "a", model)
    gathered = gather(tmp_path, model.job, 2, now=2.0)
    found = load(tmp_path)
    assert gathered.features == gathered.embeddings == len(rows) - 1
    assert found.table.intercept.tolist() == model.table.intercept.tolist()
    keys = rows[1:, 0]
    assert (found.weights_at(keys) == model.weights_at(keys)).all()
    assert (found.embeddings_at(keys) == model.embeddings_at(keys)).all()
    now = np.concatenate([part.rows for part in found.parts()])
    numbers = numbers_of(now[:, 1])
    assert ((numbers & ITEM != 0) == items[1:]).all()
    for kind in (numbers & ITEM != 0, numbers & ITEM == 0):
        own = numbers[kind] & ~ITEM
        assert own.tolist() == list(range(1, len(own) + 1))
    best = [run("recommend", out, "--user", "u7", "-n", 5) for out in (rated, tmp_path)]
    assert best[0].code == 0, best[0].stderr
    assert best[0].stdout == best[1].stdout


def test_mean_of_many_ratings_is_as_one_process_remembers_it(rated: Path, tmp_path: Path) -> None:
    model = load(rated)
    rows = all_rows(model)
    rows[0, 2] = (7 << 32) + (1 << 31)  # seen in minute 7
    write_shard(tmp_path, model.job, 0, 1, rows, marks_of(model), vectors=all_vectors(model))
    append_to_log(tmp_path, model.job, 0, 1)
    write_worker(tmp_path, "a", model)
    gather(tmp_path, model.job, 1, now=2.0)
    assert load(tmp_path).table.intercept[1] == 1 << 20


def test_names_and_predictions_of_workers_are_pooled(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 2)
    write_worker(tmp_path, "b", model)
    gather(tmp_path, model.job, 2, now=2.0)
    found = load(tmp_path)
    assert len(found.names) == len(model.names)
    keys = model.names.keys[:50]
    assert found.names.lookup(keys) == model.names.lookup(keys)
    summary = found.validation.summary()
    # twice the histogram, but the sums are the shards'
    assert summary["examples"] == model.counts.examples
    assert summary["logloss"] == pytest.approx(model.validation.summary()["logloss"])
    assert summary["auc"] == pytest.approx(model.validation.summary()["auc"])


def test_sums_of_marks_are_those_of_the_models_loss() -> None:
    sums = {"examples": 2, "weight": 3.0, "loss": 4.0, "label": 5.0, "prediction": 6.0}
    marks = [Mark(name, "1", 0, 1, 9, 2, **sums) for name in "ab"]
    assert totals_of(JobConfig(), marks) == Totals(8.0, 10.0, 12.0, 6.0, 4)
    more = {"absolute_error": 7.0, "label_square": 8.0}
    rated = [RatingMark(name, "1", 0, 1, 9, 2, **sums, **more) for name in "abc"]
    expected = RatingTotals(12.0, 21.0, 15.0, 24.0, 18.0, 9.0, 6)
    assert totals_of(JobConfig(model=MfConfig()), rated) == expected
    named = [ClassMark(name, "1", 0, 1, 9, 2, **sums, correct=1.5) for name in "ab"]
    classes = JobConfig(model=DeepConfig(loss="classes", classes=3))
    assert totals_of(classes, named) == ClassTotals(8.0, 3.0, 6.0, 4)
    assert totals_of(JobConfig(model=MfConfig()), []) == RatingTotals(0, 0, 0, 0, 0, 0, 0)


def test_a_cluster_without_workers_state_still_gives_a_model(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 2)
    shutil.rmtree(tmp_path / "workers")
    gather(tmp_path, model.job, 2, now=2.0)
    found = load(tmp_path)
    assert found.digest() == model.digest()
    assert len(found.names) == 0
    assert np.isnan(found.validation.summary()["auc"])


def test_a_damaged_worker_state_is_passed_over_and_told(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 1)
    path = write_worker(tmp_path, "a", model)
    (path / "names.text").write_bytes(b"x")
    assert any("names.text" in note for note in gather(tmp_path, model.job, 1, now=2.0).notes)
    assert len(load(tmp_path).names) == len(model.names)


def test_the_format_that_a_worker_found_is_the_models(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 1)
    source = msgspec.structs.replace(model.job.source, format="auto")
    gather(tmp_path, msgspec.structs.replace(model.job, source=source), 1, now=2.0)
    assert load(tmp_path).job.source.format == "criteo"


def test_only_the_pass_that_is_being_made_has_positions(model: Model, tmp_path: Path) -> None:
    marks = [
        Mark("a", "1", 1, 5, 100, 10, done=False, examples=30),
        Mark("b", "1", 0, 9, 200, 20, done=True, examples=20),
    ]
    write_shard(tmp_path, model.job, 0, 1, all_rows(model), marks, vectors=all_vectors(model))
    gathered = gather(tmp_path, model.job, 1, now=2.0)
    found = load(tmp_path)
    assert not gathered.whole
    assert found.epoch == 1
    assert list(found.positions) == ["a"]
    assert found.counts.examples == 50


def test_shards_that_ran_by_themselves_are_gathered_by_a_verb(model: Model, tmp_path: Path) -> None:
    assert "has the state of no shards" in run("gather", tmp_path).stderr
    spread(model, tmp_path, 2)
    ended = run("gather", tmp_path, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.report["examples"] == model.counts.examples
    assert ended.report["shards"] == 2
    assert load(tmp_path).digest() == model.digest()
    spread(model, tmp_path, 3)
    assert "has the state of 2 and of 3 shards" in run("gather", tmp_path).stderr


# --- bad records


def test_bad_records_are_merged_once_each_and_only_where_applied(
    model: Model, tmp_path: Path
) -> None:
    marks = [
        Mark("x#0-100", "1", 0, 1, 100, 3, done=True),
        Mark("x#100-200", "1", 0, 1, 150, 3, done=False),
        Mark("y", "1", 0, 1, 10, 3, done=False),
    ]
    write_shard(tmp_path, model.job, 0, 1, all_rows(model), marks, vectors=all_vectors(model))
    kept = {
        "a": [("x", 5), ("x", 99), ("x", 120), ("x", 150)],
        "b": [("x", 99), ("y", 9), ("y", 10), ("z", 0), ("x", 250)],
    }
    for name, places in kept.items():
        directory = tmp_path / "workers" / name
        directory.mkdir(parents=True)
        quarantine = Quarantine(directory / "bad_records.jsonl", 0)
        for uri, offset in places:
            quarantine.add(BadRecord(uri, offset, "label", f"by {name}", b"x"))
        quarantine.sync()
        quarantine.close()
    with (tmp_path / "workers" / "b" / "bad_records.jsonl").open("ab") as file:
        file.write(b'{"uri": "y", "off')  # what a crash left
    gather(tmp_path, model.job, 1, now=2.0)
    lines = (tmp_path / "bad_records.jsonl").read_text().splitlines()
    found = [(one["uri"], one["offset"]) for one in map(json.loads, lines)]
    assert found == [("x", 5), ("x", 99), ("x", 120), ("y", 9)]
    assert load(tmp_path).quarantine_size == (tmp_path / "bad_records.jsonl").stat().st_size


# --- what is refused


def refusal(out: Path, model: Model, of: int = 2) -> ClusterError:
    with pytest.raises(ClusterError) as caught:
        gather(out, model.job, of, now=2.0)
    assert not (out / "model").exists()
    return caught.value


def test_shards_at_different_marks_are_refused_by_name(model: Model, tmp_path: Path) -> None:
    marks = marks_of(model)
    write_shard(tmp_path, model.job, 0, 2, all_rows(model), marks)
    write_shard(
        tmp_path, model.job, 1, 2, all_rows(model), [msgspec.structs.replace(marks[0], sequence=6)]
    )
    error = refusal(tmp_path, model)
    assert "have not drained" in error.message
    assert "shard 1: it has applied 6 minibatches of pass 0" in (error.cause or "")
    assert "let them drain" in (error.hint or "")


def test_pushes_behind_the_snapshot_are_refused(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 2)
    mark = Mark("x", "1", 0, 1, 0, 0)
    pushes = [Push(0, "a", 1, n, 0, 0, 0, EMPTY, 0, EMPTY, EMPTY, mark) for n in range(12)]
    append_to_log(tmp_path, model.job, 1, 2, *pushes)  # the snapshot has the first ten records
    assert "shard 1: its log has 3 pushes behind its snapshot" in (
        refusal(tmp_path, model).cause or ""
    )


def test_a_shard_that_is_missing_or_has_no_snapshot_is_named(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 2)
    shutil.rmtree(shard_directory(tmp_path, 1, 2) / "snapshots")
    assert "shard 1: it has no snapshot" in (refusal(tmp_path, model).cause or "")
    shutil.rmtree(shard_directory(tmp_path, 1, 2))
    assert "shard 1 of 2 is missing" in refusal(tmp_path, model).message


def test_a_shard_of_another_job_or_place_is_refused(model: Model, tmp_path: Path) -> None:
    rows, marks = all_rows(model), marks_of(model)
    write_shard(tmp_path, model.job, 0, 2, rows, marks)
    write_shard(tmp_path, model.job, 1, 2, rows, marks, signature="other")
    assert "is of job other, shard 1 of 2" in refusal(tmp_path, model).message
    write_shard(tmp_path, model.job, 1, 2, rows, marks, shard=(0, 2))
    assert "shard 0 of 2; expected job" in refusal(tmp_path, model).message


def test_a_running_shard_is_left_alone(model: Model, tmp_path: Path) -> None:
    spread(model, tmp_path, 2)
    with (
        DirectoryLock(shard_directory(tmp_path, 1, 2)),
        pytest.raises(ResourceError, match="is being written by process"),
    ):
        gather(tmp_path, model.job, 2, now=2.0)
    DirectoryLock(shard_directory(tmp_path, 0, 2)).release()  # nothing stays locked


def test_rows_out_of_order_are_refused_and_nothing_is_left(model: Model, tmp_path: Path) -> None:
    write_shard(tmp_path, model.job, 0, 1, all_rows(model)[::-1].copy(), marks_of(model))
    with pytest.raises(SnapshotError, match="do not ascend"):
        gather(tmp_path, model.job, 1, now=2.0)
    assert not listing(tmp_path / "model")


def test_shards_are_found_by_their_directories(model: Model, tmp_path: Path) -> None:
    assert counts_of_shards(tmp_path) == []
    spread(model, tmp_path, 2)
    shard_directory(tmp_path, 0, 3).mkdir()  # empty: nothing is there
    assert counts_of_shards(tmp_path) == [2]
    with StoredShards(tmp_path, 2) as shards:
        assert shards.job == model.job
        assert shards.features == len(all_rows(model))
        parts = list(shards.parts())
        assert np.array_equal(np.concatenate([part.rows for part in parts]), all_rows(model))
        assert np.array_equal(np.concatenate([part.vectors for part in parts]), all_vectors(model))


@pytest.mark.parametrize(("of", "into"), [(2, 3), (3, 1), (1, 5)])
def test_resharded_and_then_gathered_it_is_the_same_model(
    model: Model, tmp_path: Path, of: int, into: int
) -> None:
    spread(model, tmp_path, of)
    reshard(tmp_path, of, into, now=3.0)
    remove_shards(tmp_path, of)
    gather(tmp_path, model.job, into, now=4.0)
    assert load(tmp_path).digest() == model.digest()


@pytest.mark.parametrize("learned", ["fm"], indirect=True)
@pytest.mark.parametrize("change", ["less", "more", "none"])
def test_other_embeddings_than_rows_say_are_refused(
    model: Model, tmp_path: Path, change: str
) -> None:
    vectors = {"less": all_vectors(model)[:-16], "more": np.zeros(64, np.float32), "none": None}
    rows, marks = all_rows(model), marks_of(model)
    write_shard(tmp_path, model.job, 0, 1, rows, marks, vectors=vectors[change], parts=1)
    one = ShardSpec(0, 1, model.job, job_signature(model.job), 1_000_000)
    reader, _ = newest(shard_directory(tmp_path, 0, 1) / "snapshots")
    assert reader is not None
    with reader, pytest.raises(SnapshotError, match="is damaged"):
        load_image(reader, one)
