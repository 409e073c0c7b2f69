"""Private models: what their budget is, what they refuse, and what a run leaves behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamlearn.config import JobConfig, MfConfig, check_job, load_job
from streamlearn.errors import ConfigError
from streamlearn.model import load
from streamlearn.privacy import Budget, is_private, refuse_more
from streamlearn.serving import Serving
from streamlearn.shards.snapshot import listing, newest
from tests.runs import run

PRIVATE = ("--model", "mf", "--epsilon", 50, "--dim", 3, "--epochs", 12)


def ratings_in(directory: Path, rows: int = 4000) -> Path:
    rng = np.random.default_rng(0)
    u, i = rng.integers(0, 200, rows), rng.integers(0, 60, rows)
    r = (3 + np.linspace(1, -1, 60)[i] + rng.normal(0, 0.7, rows)).round().clip(1, 5)
    path = directory / "ratings.dat"
    lines = zip(u.tolist(), i.tolist(), r.astype(int).tolist(), strict=True)
    path.write_text("".join(f"u{a}::i{b}::{c}\n" for a, b, c in lines))
    return path


def test_a_budget_is_divided_and_pays_for_one_sample() -> None:
    model = MfConfig(epsilon=10.0, user_ratings_max=40.0, error_max=1.5)
    budget = Budget.of(model)
    assert budget.epsilon_mean == pytest.approx(0.5)
    assert budget.epsilon_mean + budget.epsilon_sample == pytest.approx(10)
    assert budget.loss_max == pytest.approx(0.5 * 40 * 1.5**2)
    assert 2 * budget.loss_max / budget.temperature == pytest.approx(budget.epsilon_sample)
    assert budget.epsilon_rating == pytest.approx(0.5 + 9.5 / 40)
    assert Budget.of(replace_in(model, epsilon=4.0)).epsilon_mean == pytest.approx(0.2)
    assert Budget.of(replace_in(model, epsilon=400.0)).epsilon_mean == pytest.approx(0.5)
    assert Budget.of(replace_in(model, intercept=False)).epsilon_mean == 0


def replace_in(model: MfConfig, **changed: Any) -> MfConfig:
    return msgspec.structs.replace(model, **changed)


def test_what_one_user_says_changes_the_density_by_what_epsilon_allows() -> None:
    """Of a toy that can be summed up: one user, one item, two numbers on a grid."""
    model = MfConfig(epsilon=3.0, user_ratings_max=1.0, error_max=1.0, intercept=False)
    budget = Budget.of(model)
    grid = np.linspace(-4, 4, 161)
    score = grid[:, None] + grid[None, :]
    densities = []
    for rating in (-9.0, -2.0, 0.3, 2.0, 50.0):
        loss = np.minimum((rating - score) ** 2, model.error_max**2) / 2
        density = np.exp(-loss / budget.temperature - (grid**2)[:, None] - (grid**2)[None, :])
        densities.append(density / density.sum())
    most = max(float(np.log(a / b).max()) for a in densities for b in densities)
    assert 0.4 * budget.epsilon_sample < most <= budget.epsilon_sample


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model.loss": "logistic"}, '`model.loss` is "logistic"'),
        ({"model.epochs": 1}, "`model.epochs` is 1"),
        ({"model.patience": 2}, "`model.patience` is 2"),
        ({"model.rating_min": 5.0}, "`model.rating_min` is 5 and `rating_max` 5"),
        ({"tables.shards": "10.0.0.1:7700"}, "there are `tables.shards`"),
        ({"tables.when_full": "evict"}, '`tables.when_full` is "evict"'),
        ({"source.follow": True}, "`source.follow` is true"),
    ],
)
def test_what_stands_against_privacy_is_refused(changed: dict[str, Any], said: str) -> None:
    given = {"model.kind": "mf", "model.epsilon": 2.5, "model.epochs": 3}
    with pytest.raises(ConfigError) as caught:
        load_job(None, (), given | changed)
    message = caught.value.message
    assert message.startswith("with `model.epsilon` = 2.5 the model is private, but ")
    assert said in message
    assert caught.value.hint
    load_job(None, (), given)
    if changed != {"model.rating_min": 5.0}:
        load_job(None, (), given | {"model.epsilon": 0.0} | changed)


def test_a_job_made_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"the model is private, but `model\.epochs` is 1"):
        check_job(JobConfig(model=MfConfig(epsilon=1.0)))
    with pytest.raises(ConfigError, match="epsilon"):
        check_job(JobConfig(model=MfConfig(epsilon=-1.0)))


def test_a_private_model_is_known_as_one(tmp_path: Path) -> None:
    assert is_private(MfConfig(epsilon=0.1))
    assert not is_private(MfConfig())
    assert not is_private(JobConfig().model)
    refuse_more(MfConfig(), tmp_path)
    with pytest.raises(ConfigError, match=r"not paid for by its epsilon of 0\.1"):
        refuse_more(MfConfig(epsilon=0.1), tmp_path)


def test_nobody_is_answered_while_it_is_drawn() -> None:
    serving = Serving(lambda: 0.0)
    assert serving.paths(JobConfig(model=MfConfig()))
    assert not serving.paths(JobConfig(model=MfConfig(epsilon=1.0, epochs=2)))


@pytest.mark.parametrize(("lanes", "published"), [(1, "all"), (2, "items")])
def test_a_run_publishes_one_sample_that_says_nothing_else(
    lanes: int, published: str, tmp_path: Path
) -> None:
    source, out = ratings_in(tmp_path), tmp_path / "out"
    ended = run(
        "train", source, *PRIVATE, "--lanes", lanes, "--out", out, "--json", "--published",
        published, "--snapshot-seconds", 0.05, "--held-out", 0.1,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    report = ended.report
    privacy = report["privacy"]
    assert {"epsilon", "epsilon_mean", "epsilon_rating", "user_ratings_max"} < set(privacy)
    assert {"error_max", "users_clipped", "ratings_clipped_share", "temperature"} < set(privacy)
    assert privacy["published"] == published
    assert len(report["passes"]) == 12
    assert report["held_out_rmse"] < 1.3
    assert report["examples"] > 30_000

    assert len(listing(out / "model")) == 1
    model = load(out)
    assert model.counts.examples == 0
    assert not model.positions
    assert np.isnan(model.validation.summary()["rmse"])
    reader, _ = newest(out / "model")
    assert reader is not None
    with reader:
        told = {name: reader.meta[name] for name in ("counts", "positions", "summary")}
    assert not any(told.pop("counts").values())
    assert not told["positions"]
    assert "rmse" not in told["summary"]
    keys = model.names.keys
    assert (np.sort(keys) == keys).all()
    assert set(model.names.lookup(keys)) >= {"user=u1", "item=i1"}
    for part in model.parts():
        assert not part.rows[:, 2].any()


def test_a_private_model_is_neither_gone_on_with_nor_replayed(tmp_path: Path) -> None:
    source, out = ratings_in(tmp_path), tmp_path / "out"
    source.write_text(source.read_text() + "bad line\n")
    assert run("train", source, *PRIVATE, "--out", out).code == 0
    for again in (
        run("train", source, *PRIVATE, "--out", out),
        run("replay", out),
    ):
        assert again.code == 2
        assert "is private and done" in again.stderr
    predicted = run("predict", out, source)
    assert predicted.code == 0
    assert len(predicted.stdout.splitlines()) == 4001


def test_of_a_run_that_is_stopped_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = ratings_in(tmp_path), tmp_path / "out"
    from streamlearn.strata.passes import Passes

    sweep = Passes.sweep

    def stopping(self: Passes, number: int, epoch: int, validation: Any) -> tuple[int, int]:
        if epoch == 3:
            signal.raise_signal(signal.SIGTERM)
        return sweep(self, number, epoch, validation)

    monkeypatch.setattr(Passes, "sweep", stopping)
    ended = run("train", source, *PRIVATE, "--out", out)
    assert "of a private model nothing is kept" in ended.stderr
    assert not listing(out / "model")
    assert "privacy" not in json.loads((out / "report.json").read_text())
