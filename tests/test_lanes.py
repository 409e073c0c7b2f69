"""In-process shards, from the log to the model: whatever the lanes, nothing is lost or torn."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn import lanes
from streamlearn.compute.kernels.steps import sigmoid
from streamlearn.config import ComputeConfig, JobConfig, MfConfig
from streamlearn.errors import TableFullError
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.model import Model, load
from streamlearn.online.criteo import CriteoParser
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.shards.forgetting import Forgetting
from streamlearn.shards.table import ExactTable
from tests.click_log import clicks, spoiled, text, written
from tests.reference.rules import RuleTwin
from tests.reference.steps import logistic
from tests.reference.tables import small_tables
from tests.runs import Ended, run, settings

BLOCK = 65_536  # the smallest that may be set
# Embeddings of three lengths, earned soon.
FM = (
    "model.kind=fm", "model.order=3", "model.dim_by_count={0 = 3, 2 = 8, 6 = 17}", "model.l1=0.05",
    "model.v_lr=0.02",
)  # fmt: skip
SMALL = (f"source.block_bytes={BLOCK}", f"source.range_bytes={2 * BLOCK}")


def train(log: Path | str, out: Path, *pairs: str, code: int = 0) -> Ended:
    ended = run("train", log, "--out", out, "--json", "--format", "criteo", *settings(*pairs))
    assert (ended.code == 0) == (code == 0), ended.stderr
    return ended


def of_lanes(workers: int, shards: int) -> tuple[str, str]:
    return f"compute.lanes={workers + shards}", f"compute.shard_lanes={shards}"


def parsed(lines: Sequence[bytes], rows: int) -> list[Minibatch]:
    """Return the minibatches of so many rows that a log is cut into."""
    data = text(lines)
    buffer = np.zeros(len(data) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    batches, at = [], 0
    while at < len(data):
        batch = Minibatch(rows, rows * 39 + FEATURES_PER_RECORD_MAX, has_values=False)
        at = CriteoParser().parse(buffer, at, len(data), batch)
        batches.append(batch)
    return batches


def rows_of(model: Model) -> np.ndarray:
    assert isinstance(model.table, ExactTable)
    table = model.table
    rows = np.concatenate([table.rows(segment) for segment in range(table.segments)])
    return rows[np.argsort(rows[:, 0])]


def counts_of(model: Model) -> int:
    """Return how often all features were counted."""
    return int((rows_of(model)[:, 2] & np.uint64(0xFFFFFFFF)).sum())


def features_until(lines: Sequence[bytes]) -> np.ndarray:
    """Return the number of features of the first n good records, by n."""
    return np.cumsum([0, *(sum(map(bool, line.split(b"\t")[1:])) for line in lines)])


@pytest.mark.parametrize(
    ("lanes_", "shards", "learn", "roles"),
    [
        (1, 0, 1, None),
        (2, 0, 1, None),
        (2, 0, 3, None),
        (2, 1, 1, (1, 1)),
        (3, 0, 1, (2, 1)),
        (4, 0, 1, (3, 1)),
        (6, 0, 1, (4, 2)),
        (8, 0, 1, (5, 3)),
        (8, 6, 1, (2, 6)),
        (256, 255, 1, (1, 255)),
    ],
)
def test_lanes_are_divided_between_workers_and_shards(
    lanes_: int, shards: int, learn: int, roles: tuple[int, int] | None
) -> None:
    compute = ComputeConfig(lanes=lanes_, shard_lanes=shards, learn_lanes=learn)
    assert lanes.split(JobConfig(compute=compute)) == roles
    assert lanes.split(JobConfig(model=MfConfig(), compute=compute)) is None


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rule", ["ftrl", "adagrad", "sgd"])
def test_one_worker_lane_is_sequential_minibatches_to_the_bit(
    tmp_path: Path, rule: str, intercept: bool, shards: int
) -> None:
    lines = clicks(330, seed=3)
    log = written(tmp_path / "log.tsv", text(lines))
    model = (f"model.rule={rule}", "model.l1=0.01", "model.l2=0.1", f"model.intercept={intercept}")
    report = train(
        log, tmp_path / "out", *of_lanes(1, shards), "compute.minibatch=64", *model
    ).report
    twin = RuleTwin(rule, l1=0.01, l2=0.1, dtype=np.float32)
    counts: Counter[int] = Counter()
    losses = []
    for batch in parsed(lines, 64):
        keys = batch.keys[: batch.nnz].tolist()
        weights = {key: twin.weight(key) for key in keys} | {1: twin.weight(1, bare=True)}
        scores, gradients = logistic(batch, weights, intercept=intercept, sigmoid=sigmoid)
        twin.push(gradients.keys(), gradients.values(), bare=1)
        counts.update(keys)
        labels = batch.labels[: batch.rows]
        losses.append(np.logaddexp(0, np.where(labels == 1, -1, 1) * np.array(scores)))
    learned = load(tmp_path / "out")
    rows = rows_of(learned)
    found = {
        int(key): (columns.tolist(), int(word & np.uint64(0xFFFFFFFF)))
        for key, columns, word in zip(
            rows[:, 0],
            np.ascontiguousarray(rows[:, 1]).view(np.float32).reshape(-1, 2),
            rows[:, 2],
            strict=True,
        )
    }
    constant = twin.rows.pop(1, [0.0, 0.0])
    assert found == {key: ([float(v) for v in twin.rows[key]], counts[key]) for key in counts}
    assert learned.table.intercept.tolist() == [float(v) for v in constant]
    assert report["logloss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)


@pytest.mark.parametrize("model", [(), FM, (*FM, "model.v_dropout=0.2")])
def test_the_number_of_shard_lanes_changes_nothing(tmp_path: Path, model: tuple[str, ...]) -> None:
    log = written(tmp_path / "log.tsv.gz", text(clicks(6_000, seed=1, tokens=900)))
    digests = {}
    with small_tables():  # they grow, and split, all the time
        for shards in (1, 2, 3, 5):
            out = tmp_path / str(shards)
            pairs = ("compute.minibatch=100", "output.snapshot_seconds=0.02", *SMALL[:1], *model)
            report = train(
                log, out, *of_lanes(1, shards), "tables.features_max=10000", *pairs
            ).report
            digests[shards] = load(out).digest(), report["features"], counts_of(load(out))
            assert load(out).has_embeddings == bool(model)
    assert len(set(digests.values())) == 1, digests


def test_embeddings_go_on_from_a_snapshot(tmp_path: Path) -> None:
    for n in range(2):
        written(tmp_path / f"log-{n}.tsv", text(clicks(2_000, n, tokens=500)))
    pairs = (*of_lanes(1, 2), "compute.minibatch=50", "model.v_dropout=0.2", *FM)
    train(f"{tmp_path}/log-*.tsv", tmp_path / "whole", *pairs)
    train(f"{tmp_path}/log-0.tsv", tmp_path / "parts", *pairs)
    half = load(tmp_path / "parts")
    train(f"{tmp_path}/log-*.tsv", tmp_path / "parts", *pairs)
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert parts.counts.examples == 4_000
    assert parts.digest() == whole.digest() != half.digest()


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(("shards", "model"), [(1, ()), (2, ()), (2, FM)])
def test_several_workers_count_every_record_once(
    tmp_path: Path, workers: int, shards: int, model: tuple[str, ...]
) -> None:
    logs = []
    for n in range(5):
        lines, _ = spoiled(clicks(2_000, n), every=300, seed=n)
        logs.append(written(tmp_path / (f"log-{n}.tsv" + (".gz" if n % 2 else "")), text(lines)))
    source = f"{tmp_path}/*.tsv*"
    pairs = ("compute.minibatch=50", "source.bad_records_max=1", *model)
    several = train(source, tmp_path / "several", *of_lanes(workers, shards), *pairs, *SMALL).report
    one = train(source, tmp_path / "one", "compute.lanes=1", *pairs).report
    for name in ("examples", "bad_records", "bytes", "features"):
        assert several[name] == one[name], name
    assert several["logloss"] == pytest.approx(one["logloss"], rel=0.1)
    models = load(tmp_path / "several"), load(tmp_path / "one")
    assert counts_of(models[0]) == counts_of(models[1])
    assert {name.partition("#")[0] for name in models[0].positions} == {str(log) for log in logs}
    assert all(known.position.done for known in models[0].positions.values())
    kept = [
        sorted((tmp_path / name / "bad_records.jsonl").read_text().splitlines())
        for name in ("several", "one")
    ]
    assert kept[0] == kept[1]
    # what is learned is used, and gone on with, like any other model
    judged = run("evaluate", tmp_path / "several", logs[0], "--json")
    assert judged.code == 0, judged.stderr
    again = train(source, tmp_path / "several", "compute.lanes=2", *pairs, *SMALL).report
    assert again["examples"] == one["examples"]


@pytest.mark.parametrize("kind", [(), FM])
def test_every_snapshot_under_load_is_of_one_moment(tmp_path: Path, kind: tuple[str, ...]) -> None:
    sums = {}
    for n in range(4):
        lines = clicks(3_000, n, tokens=500)
        sums[str(written(tmp_path / f"log-{n}.tsv.gz", text(lines)))] = features_until(lines)
    out = tmp_path / "out"
    with small_tables():
        train(
            f"{tmp_path}/*.tsv.gz", out, *of_lanes(3, 2), "compute.minibatch=4", *SMALL[:1],
            "output.snapshot_seconds=0.001", "output.snapshots_kept=1000",
            "tables.features_max=10000", *kind,
        )  # fmt: skip
    snapshots = sorted((out / "model").iterdir())
    assert len(snapshots) > 1
    partial = 0
    for snapshot in snapshots:
        other = tmp_path / f"at-{snapshot.name}"
        (other / "model").mkdir(parents=True)
        snapshot.rename(other / "model" / snapshot.name)
        model = load(other)
        records = {name: known.position.records for name, known in model.positions.items()}
        assert model.counts.examples == sum(records.values())
        assert counts_of(model) == sum(int(sums[name][n]) for name, n in records.items())
        partial += 0 < model.counts.examples < 12_000
    assert partial


def test_a_full_table_holds_whole_minibatches_and_goes_on_where_it_may_grow(
    tmp_path: Path,
) -> None:
    lines = clicks(2_000, seed=2, tokens=300)
    log = written(tmp_path / "log.tsv", text(lines))
    out = tmp_path / "out"
    pairs = (*of_lanes(1, 2), "compute.minibatch=30", *SMALL[:1])
    ended = train(log, out, *pairs, "tables.features_max=1000", code=1)
    assert "tables.features_max = 1,000" in ended.stderr
    model = load(out)
    learned = model.positions[str(log)].position.records
    assert 0 < learned < 2_000
    assert model.table.features <= 1_000
    assert counts_of(model) == features_until(lines)[learned]
    report = train(log, out, *pairs, "tables.features_max=100000").report
    assert report["examples"] == 2_000
    assert counts_of(load(out)) == features_until(lines)[-1]


@pytest.mark.parametrize("model", [(), FM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_table_that_forgets_stays_below_its_limit(
    tmp_path: Path, workers: int, model: tuple[str, ...]
) -> None:
    for n in range(3):
        written(tmp_path / f"log-{n}.tsv", text(clicks(2_000, n, tokens=500)))
    out = tmp_path / "out"
    pairs = ("tables.when_full=evict", "tables.features_max=1000", "compute.minibatch=20")
    report = train(f"{tmp_path}/*.tsv", out, *of_lanes(workers, 2), *pairs, *SMALL, *model).report
    assert report["examples"] == 6_000
    assert 800 < report["features"] <= 1_000
    assert load(out).table.features == report["features"]


def test_rows_are_forgotten_only_while_no_lane_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one worker forgets may be what another has pulled, and will insert again."""
    for n in range(3):
        written(tmp_path / f"log-{n}.tsv", text(clicks(2_000, n, tokens=500)))
    evict, seen = Forgetting.evict, Counter[str]()

    def watched(self: Forgetting, *arguments: Any) -> None:
        seen[threading.current_thread().name.partition("-")[0]] += 1
        evict(self, *arguments)

    monkeypatch.setattr(Forgetting, "evict", watched)
    pairs = ("tables.when_full=evict", "tables.features_max=1000", "compute.minibatch=20")
    report = train(f"{tmp_path}/*.tsv", tmp_path / "out", *of_lanes(3, 2), *pairs, *SMALL).report
    assert report["examples"] == 6_000
    assert seen["lane"] > 10
    assert "shard" not in seen


def test_a_lane_that_cannot_apply_a_push_leaves_the_snapshot_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = clicks(2_000, seed=4)
    log = written(tmp_path / "log.tsv", text(lines))
    out = tmp_path / "out"
    pairs = (*of_lanes(1, 2), "compute.minibatch=10", "output.snapshot_seconds=0.01", *SMALL[:1])
    push, seen = lanes.Portion.push, Counter[int]()

    def crowded(self: lanes.Portion, parcel: lanes.Parcel) -> None:
        seen[self.prefixes[0]] += 1
        if self.prefixes[0] and seen[self.prefixes[0]] == 120:
            raise TableFullError("a segment of the table is full")
        push(self, parcel)

    monkeypatch.setattr(lanes.Portion, "push", crowded)
    ended = train(log, out, *pairs, code=1)
    assert "could not take a minibatch" in ended.stderr
    monkeypatch.undo()
    if (out / "model").exists() and any((out / "model").iterdir()):
        model = load(out)
        assert counts_of(model) == features_until(lines)[model.counts.examples]
        assert model.counts.examples < 1_200
    assert train(log, out, *pairs).report["examples"] == 2_000
    assert counts_of(load(out)) == features_until(lines)[-1]


@pytest.mark.parametrize("workers", [1, 3])
def test_too_many_bad_records_stop_all_lanes(tmp_path: Path, workers: int) -> None:
    for n in range(3):
        lines, _ = spoiled(clicks(3_000, n), every=3, seed=n)
        written(tmp_path / f"log-{n}.tsv", text(lines))
    out = tmp_path / "out"
    pairs = (*of_lanes(workers, 2), "compute.minibatch=50", *SMALL)
    ended = train(f"{tmp_path}/*.tsv", out, *pairs, code=1)
    assert "are bad" in ended.stderr
    model = load(out)
    records = sum(known.position.records for known in model.positions.values())
    assert records == model.counts.examples + model.counts.bad_records
    kept = (out / "bad_records.jsonl").read_text().count("\n")
    assert kept == model.counts.bad_records


def test_passes_over_the_source_follow_one_another(tmp_path: Path) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(500, 1)))
    pairs = (*of_lanes(2, 1), "compute.minibatch=50", "model.epochs=3")
    assert train(log, tmp_path / "out", *pairs).report["examples"] == 1_500
    assert load(tmp_path / "out").epoch == 2


def test_features_that_matter_have_names(tmp_path: Path) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(8_000, 1, tokens=200)))
    train(log, tmp_path / "out", *of_lanes(1, 2), "compute.minibatch=200", "model.l1=3")
    ended = run("inspect", tmp_path / "out", "--top", "20", "--json")
    assert ended.code == 0, ended.stderr
    top = ended.report["top"] if "top" in ended.report else ended.report["weights"]
    assert len(top) == 20
    names: list[Any] = [one.get("feature") or one.get("name") for one in top]
    assert all("=" in str(name) for name in names), names
