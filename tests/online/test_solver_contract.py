"""What every solver keeps to, whatever its update rule and table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from streamlearn.config import FmConfig, JobConfig, LrConfig, OutputConfig, TablesConfig
from streamlearn.model import Model, load
from streamlearn.model_cut import ModelCut
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable
from tests.reference.tables import minibatch, small_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EMBEDDED: dict[str, Any] = {"v_lr": 0.05, "v_l2": 0.001, "v_init_scale": 0.1}
# A further solver is a further line here: its settings, and how far scores may move when the
# features of an example come in another order (roundings of float32 sums).
SOLVERS = {
    "lr-ftrl": (LrConfig(rule="ftrl", alpha=0.2, l1=0.1, l2=0.01), 1e-4),
    "lr-adagrad": (LrConfig(rule="adagrad", alpha=0.1, l1=0.001, l2=0.01), 1e-4),
    "lr-sgd": (LrConfig(rule="sgd", alpha=0.05, l1=0.001, l2=0.001), 1e-4),
    "lr-bare": (LrConfig(intercept=False), 1e-4),
    "fm": (FmConfig(alpha=0.2, l1=0.1, threshold=2, **EMBEDDED), 1e-3),
    "fm-third": (FmConfig(alpha=0.2, l1=0.1, threshold=0, order=3, dim=20, **EMBEDDED), 1e-3),
    "fm-tiers": (
        FmConfig(alpha=0.2, l1=0.0, dim_by_count={"1": 3, "5": 16, "20": 17}, **EMBEDDED),
        1e-3,
    ),
    "fm-treated": (
        FmConfig(
            alpha=0.2, l1=0.1, l1_shrk=False, v_clip=0.05, v_dropout=0.3, v_normalize=True,
            threshold=1, order=3, dim=4, v_lr=0.01, v_l2=0.001, v_init_scale=0.01,
        ),
        1e-2,
    ),
}  # fmt: skip


@pytest.fixture(params=["exact", "hashed"])
def index(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SOLVERS)
def job(request: pytest.FixtureRequest, index: str, tmp_path: Path) -> Iterator[JobConfig]:
    model, _ = SOLVERS[request.param]
    if index == "hashed" and getattr(model, "dim_by_count", None):
        pytest.skip("hashed tables keep no counts to go by")
    with small_tables():
        yield JobConfig(
            model=model,
            tables=TablesConfig(index=index, bits=14, features_max=50_000),
            output=OutputConfig(dir=str(tmp_path), window=100),
        )


class Run:
    """A model that is taught minibatches."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.scratch = model.solver.scratch(1024, FEATURES_PER_RECORD_MAX + 50_000)

    @classmethod
    def new(cls, job: JobConfig) -> Run:
        return cls(Model.new(job, ("field",)))

    def learn(self, batch: Minibatch, keeper: object = None) -> list[float]:
        scores = self.model.solver.learn(batch, self.scratch, keeper or Nothing(), 1)
        self.model.validation.update(
            scores, batch.labels[: batch.rows], batch.weights[: batch.rows]
        )
        self.model.counts.examples += batch.rows
        return scores.tolist()

    def score(self, examples: list[list[int]]) -> np.ndarray:
        return self.model.solver.score(minibatch(examples), self.scratch).copy()


def stream(seed: int, minibatches: int = 8, rows: int = 50) -> list[Minibatch]:
    """Return minibatches whose labels follow from their features."""
    rng = np.random.default_rng(seed)
    vocabulary = (rng.integers(0, 1 << 63, 3000, np.uint64) << np.uint64(1)) | np.uint64(1)
    truth = rng.normal(size=3000)
    out = []
    for _ in range(minibatches):
        picked = [
            np.unique((rng.pareto(0.6, 12) * 10).astype(np.int64) % 3000) for _ in range(rows)
        ]
        labels = [float(truth[p].sum() + 0.5 > rng.logistic()) for p in picked]
        out.append(minibatch([vocabulary[p] for p in picked], labels))
    return out


def examples_of(batch: Minibatch) -> list[list[int]]:
    return [batch.keys[batch.indptr[i] : batch.indptr[i + 1]].tolist() for i in range(batch.rows)]


def test_the_order_of_features_does_not_matter(
    job: JobConfig, request: pytest.FixtureRequest
) -> None:
    forward, shuffled = Run.new(job), Run.new(job)
    rng = np.random.default_rng(1)
    tolerance = SOLVERS[request.node.callspec.params["job"]][1]
    for batch in stream(1):
        examples = [rng.permutation(np.array(e, np.uint64)) for e in examples_of(batch)]
        other = minibatch(examples, batch.labels[: batch.rows].tolist())
        np.testing.assert_allclose(forward.learn(batch), shuffled.learn(other), atol=tolerance)


def test_it_learns_better_than_a_constant(job: JobConfig) -> None:
    run = Run.new(job)
    for batch in stream(2, minibatches=40):
        run.learn(batch)
    summary = run.model.validation.summary()
    assert summary["window_logloss" if "window_logloss" in summary else "logloss"] < 0.69
    assert summary["auc"] > 0.6


def test_features_never_seen_weigh_nothing_and_are_welcome_later(job: JobConfig) -> None:
    run = Run.new(job)
    run.learn(stream(3)[0])
    unseen = [[(i << 50) | 0x7777 << 1 | 1 for i in range(1, 20)]]
    nothing = run.score([[]])
    np.testing.assert_array_equal(run.score(unseen), nothing)
    if isinstance(run.model.table, ExactTable):
        assert (run.model.table.find(np.array(unseen[0], np.uint64)) == -1).all()
    for _ in range(20):
        run.learn(minibatch(unseen, [1.0]))
    assert run.score(unseen)[0] > run.score([[]])[0]


def test_features_that_vanish_keep_their_weight(job: JobConfig) -> None:
    run = Run.new(job)
    gone = [(i << 57) | 0x1F << 50 | 1 for i in range(8)]
    for _ in range(40):
        run.learn(minibatch([gone], [1.0]))
    keys = np.array(gone, np.uint64)
    before = run.model.weights_at(keys)
    assert (before > 0).all()
    held = set(run.model.table.find(keys).tolist()) if job.tables.index == "hashed" else set()
    for batch in stream(4, minibatches=4):
        kept = [[key for key in example if key >> 50 not in held] for example in examples_of(batch)]
        run.learn(minibatch(kept, batch.labels[: batch.rows].tolist()))
    np.testing.assert_array_equal(run.model.weights_at(keys), before)


def test_the_same_stream_makes_the_same_bytes(job: JobConfig) -> None:
    runs = [Run.new(job), Run.new(job)]
    for batch in stream(5):
        scores = [run.learn(batch) for run in runs]
        assert scores[0] == scores[1]
    assert runs[0].model.digest() == runs[1].model.digest()
    other = Run.new(job)
    for batch in stream(6):
        other.learn(batch)
    assert other.model.digest() != runs[0].model.digest()


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(
    job: JobConfig, tmp_path: Path, meanwhile: bool
) -> None:
    """The snapshot is of its first moment, whether or not learning goes on while it is written."""
    whole, stopped = Run.new(job), Run.new(job)
    batches = stream(7, minibatches=12)
    for batch in batches[:6]:
        whole.learn(batch)
        stopped.learn(batch)
    cut = ModelCut(stopped.model, tmp_path / "model", quarantine_size=0, now=0.0)
    later = iter(batches[6:] if meanwhile else [])
    while (part := cut.take()) is not None:
        cut.write(part)
        if (batch := next(later, None)) is not None:
            stopped.learn(batch, cut.cut)
    cut.commit()
    resumed = Run(load(tmp_path, job))
    assert resumed.model.digest() == whole.model.digest()
    assert resumed.model.counts == whole.model.counts
    for batch in batches[6:]:
        assert resumed.learn(batch) == whole.learn(batch)
    assert resumed.model.digest() == whole.model.digest()
    assert resumed.model.validation.summary() == whole.model.validation.summary()
    np.testing.assert_array_equal(resumed.model.table.intercept, whole.model.table.intercept)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_is_learned_without_harm(job: JobConfig, label: float) -> None:
    run = Run.new(job)
    batches = stream(8, minibatches=20)
    for batch in batches:
        batch.labels[:] = label
        assert np.isfinite(run.learn(batch)).all()
    scores = run.score(examples_of(batches[0]))
    assert np.isfinite(scores).all()
    assert ((scores > 0) == bool(label)).mean() > 0.9
    assert np.isfinite(run.model.solver.intercept)


def test_weight_0_teaches_nothing_but_that_a_feature_was_seen(job: JobConfig) -> None:
    run = Run.new(job)
    batch = stream(9)[0]
    run.learn(batch)
    before = run.score(examples_of(batch))
    weights = run.model.weights_at(batch.keys[: batch.nnz])
    batch.weights[:] = 0
    batch.labels[:] = 1 - batch.labels
    run.learn(batch)
    if job.model.kind == "fm":  # a count may earn an embedding, and its penalty shrinks it
        np.testing.assert_array_equal(run.model.weights_at(batch.keys[: batch.nnz]), weights)
    elif job.model.rule == "ftrl" or job.model.l2 == 0 == job.model.l1:
        np.testing.assert_array_equal(run.score(examples_of(batch)), before)
    else:  # penalties apply where a feature is seen, and only shrink
        assert (np.abs(run.score(examples_of(batch)) - before) < 0.2).all()


def test_weight_counts_as_so_much_gradient(job: JobConfig) -> None:
    light, heavy = Run.new(job), Run.new(job)
    example = [[(1 << 60) | 1, (2 << 60) | 1]]
    for _ in range(20):
        light.learn(minibatch(example, [1.0], [1.0]))
        heavy.learn(minibatch(example, [1.0], [3.0]))
    assert heavy.score(example)[0] > light.score(example)[0] > 0


def test_jobs_of_this_contract_are_valid(job: JobConfig) -> None:
    assert msgspec.convert(msgspec.to_builtins(job), JobConfig) == job
