"""Further passes as users meet them: epochs, held-out ratings, early stops, breaks."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.model import load
from streamlearn.strata.passes import Passes
from tests.runs import Ended, run


def written(path: Path, rows: int, seed: int = 0, users: int = 120, items: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(7).normal(size=(users + items, 3))
    pairs = rng.choice(users * items, rows, replace=False)
    u, i = np.divmod(pairs, items)
    r = 3.5 + np.einsum("nd,nd->n", truth[u], truth[users + i]) / 2 + rng.normal(0, 0.2, rows)
    lines = [
        f"u{a}::{b + 500}::{c:.0f}::97830{n}\n"
        for n, (a, b, c) in enumerate(zip(u, i, (2 * r).clip(1, 10), strict=True))
    ]
    path.write_text("".join(lines))
    return path


def train(*arguments: object) -> Ended:
    return run("train", "--model", "mf", "--dim", "8", "--lanes", "1", *arguments, "--json")


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("ratings") / "ratings.dat", 4000)


def stop_after(monkeypatch: pytest.MonkeyPatch, sweeps: int) -> None:
    """Have the run get SIGINT in the middle of so many sweeps."""
    sweep = Passes.sweep
    done = [0]

    def counted(self: Passes, *arguments: Any) -> tuple[int, int]:
        done[0] += arguments[1] > 0  # of pass 0 it is tried out before the first record
        if done[0] == sweeps:
            os.kill(os.getpid(), signal.SIGINT)
        return sweep(self, *arguments)

    monkeypatch.setattr(Passes, "sweep", counted)


def test_each_pass_is_reported_with_what_was_held_out(ratings: Path, tmp_path: Path) -> None:
    ended = train(ratings, "--epochs", 6, "--held-out", 0.1, "--out", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    report = ended.report
    passes = report["passes"]
    assert [one["pass"] for one in passes] == [1, 2, 3, 4, 5, 6]
    assert passes[1]["step"] == pytest.approx(passes[0]["step"] / 2**0.7)
    held = [one["held_out_rmse"] for one in passes]
    assert held[-1] < held[0]
    assert passes[-1]["rmse"] < passes[1]["rmse"]
    assert report["held_out_rmse"] == held[-1]
    assert report["held_out_mae"] == passes[-1]["held_out_mae"]
    assert report["rmse"] == passes[-1]["rmse"]
    taught = (report["examples"] - 4000) / 5  # the first pass counts those held out, too
    assert 3400 < taught < 3800
    assert report["duplicates"] == 0
    model = load(tmp_path / "out")
    assert model.epoch == 5
    assert model.swept == -1
    assert len(model.names) == report["features"]


def test_what_is_held_out_of_one_pass_is_scored_too(ratings: Path, tmp_path: Path) -> None:
    report = train(ratings, "--held-out", 0.2, "--out", tmp_path / "out").report
    assert len(report["passes"]) == 1
    assert report["held_out_rmse"] > report["rmse"] / 2


def test_one_pass_keeps_nothing(ratings: Path, tmp_path: Path) -> None:
    report = train(ratings, "--out", tmp_path / "out").report
    assert "passes" not in report
    assert report["examples"] == 4000


@pytest.mark.parametrize("sweeps", [1, 3])
def test_a_broken_run_goes_on_to_the_same_model(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: int
) -> None:
    arguments = (ratings, "--epochs", 5, "--held-out", 0.1, "--out")
    whole = train(*arguments, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(patched, sweeps)
        broken = train(*arguments, tmp_path / "broken")
    assert broken.code == 130
    assert broken.report["stopped"] == "SIGINT"
    assert load(tmp_path / "broken").epoch == sweeps
    again = train(*arguments, tmp_path / "broken")
    assert again.code == 0, again.stderr
    assert load(tmp_path / "broken").digest() == load(tmp_path / "whole").digest()
    assert again.report["held_out_rmse"] == whole.report["held_out_rmse"]
    assert again.report["examples"] == whole.report["examples"]
    finished = train(*arguments, tmp_path / "broken")
    assert finished.code == 0
    assert finished.report["passes"] == []


def test_a_snapshot_amid_the_passes_can_be_gone_on_from(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--epochs", 400, "--out", tmp_path / "out", "--set", "output.snapshots_kept=100")
    ended = train(ratings, *arguments, "--snapshot-seconds", 0.02)
    assert ended.code == 0, ended.stderr
    epochs = {load_at(path).epoch for path in sorted((tmp_path / "out" / "model").iterdir())}
    assert len(epochs) > 2
    assert max(epochs) == 399


def load_at(path: Path) -> Any:
    """Load one snapshot by itself."""
    alone = path.parent.parent.parent / f"alone-{path.name}"
    (alone / "model").mkdir(parents=True)
    (alone / "model" / path.name).symlink_to(path)
    return load(alone)


def test_passes_stop_early_and_the_best_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "few.dat", 700)
    ended = train(
        path, "--epochs", 300, "--held-out", 0.3, "--patience", 3, "--l2", 0, "--decay", 0,
        "--alpha", 0.05, "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    report = ended.report
    held = [one["held_out_rmse"] for one in report["passes"]]
    best = int(np.argmin(held[1:])) + 1
    assert len(held) == best + 1 + 3
    assert report["held_out_rmse"] == held[best]
    scored = run("evaluate", tmp_path / "out", path, "--json").report
    assert scored["examples"] == 700


def test_lanes_learn_as_well(ratings: Path, tmp_path: Path) -> None:
    found = []
    for lanes in (1, 2):
        arguments = ("--epochs", 8, "--held-out", 0.1, "--lanes", lanes)
        report = train(ratings, *arguments, "--out", tmp_path / f"{lanes}").report
        found.append(report["held_out_rmse"])
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_lanes_are_those_of_further_passes_and_no_matter_to_the_first(
    ratings: Path, tmp_path: Path
) -> None:
    digests = set()
    for lanes in (1, 2, 5):
        out = tmp_path / str(lanes)
        ended = run("train", "--model", "mf", "--lanes", lanes, ratings, "--out", out, "--json")
        assert ended.code == 0, ended.stderr
        digests.add(load(out).digest())
    assert len(digests) == 1


def test_ratings_may_be_kept_in_a_file(ratings: Path, tmp_path: Path) -> None:
    arguments = (ratings, "--epochs", 3, "--held-out", 0.1)
    memory = train(*arguments, "--out", tmp_path / "memory")
    file = train(
        *arguments, "--out", tmp_path / "file", "--set", "tables.ratings_bytes_max=4096"
    )  # fmt: skip
    assert file.code == 0, file.stderr
    assert file.report["held_out_rmse"] == memory.report["held_out_rmse"]
    assert not list((tmp_path / "file").glob("ratings*"))


def test_a_rating_that_comes_twice_is_counted(ratings: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.dat"
    path.write_text(ratings.read_text() + "u1::501::9::1\nu1::501::2::2\n")
    report = train(path, "--epochs", 2, "--out", tmp_path / "out").report
    assert report["duplicates"] in (1, 2)  # the pair may have been there before


def test_a_source_that_is_gone_is_said(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text(ratings.read_text())
    arguments = (path, "--epochs", 3, "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        assert train(*arguments).code == 130
    path.write_text("u1::501::3::1\n")
    ended = train(*arguments)
    assert ended.code == 1
    assert "has changed since it was learned" in ended.stderr
    assert "further passes" in ended.stderr


def test_passes_that_diverge_leave_the_snapshot_before(ratings: Path, tmp_path: Path) -> None:
    ended = train(ratings, "--epochs", 4, "--alpha", 3, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "factors grow without bound" in ended.stderr
    assert "take a smaller model.alpha" in ended.stderr
    assert not (tmp_path / "out" / "model").exists()
