"""Nets as users learn them: broken off and gone on with, delayed, diverging, scored."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402 - of the extra that torch is of

from streamlearn.model import load  # noqa: E402
from tests.click_log import clicks, text, written  # noqa: E402
from tests.runs import Ended, Running, run, settings  # noqa: E402

NET = [
    *("--format", "criteo", "--model", "deep", "--net", "deepfm", "--dim", "4"),
    *("--net-setting", "hidden=[16]", "--net-setting", "dropout=0.1", "--minibatch", "32"),
]
RECORDS = 20_000


def train(*arguments: object) -> Ended:
    return run("train", *arguments, "--json")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("log") / "log.tsv", text(clicks(RECORDS, 3)))


@pytest.fixture(scope="module")
def learned(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two passes without a break."""
    out = tmp_path_factory.mktemp("learned")
    ended = train(log, *NET, "--epochs", 2, "--out", out)
    assert ended.code == 0, ended.stderr
    assert ended.report["examples"] == 2 * RECORDS
    return out


def newest(out: Path) -> Path:
    return max(path for path in (out / "model").iterdir() if path.name.isdecimal())


def assert_same_model(one: Path, other: Path) -> None:
    """Say of two output directories that all that was learned is the same, to the byte."""
    here, there = (load_file(newest(out) / "dense.safetensors") for out in (one, other))
    assert here.keys() == there.keys()
    for name, array in here.items():
        assert array.tobytes() == there[name].tobytes(), name
    models = [load(out) for out in (one, other)]
    try:
        assert models[0].digest() == models[1].digest()
    finally:
        for model in models:
            model.close()


def test_a_net_learns_clicks_better_than_a_constant(learned: Path) -> None:
    report = json.loads((learned / "report.json").read_text())
    assert report["loss"] == report["logloss"] < 0.98 * report["baseline_logloss"]
    assert 0.5 < report["accuracy"] <= 1
    assert report["auc"] > 0.6
    assert report["steps"] >= 2 * RECORDS / 32
    assert report["steps_skipped"] == report["examples_dropped"] == 0


def broken_off(out: Path, *command: object) -> int:
    """Learn two passes, broken off again and again; return how often."""
    often = settings("output.snapshot_seconds=0.1")
    breaks = 0
    for _ in range(40):
        with Running("train", *command, "--json", "--out", out, *often) as running:
            if running.wait_until_learning():
                time.sleep(0.05)
                running.signal(signal.SIGTERM)
            ended = running.end()
        report = json.loads((out / "report.json").read_text())
        if report["examples"] == 2 * RECORDS:
            break  # and perhaps the signal met a process that was about to go
        assert ended.code == 0, ended.stderr
        breaks += 1
    return breaks


def test_a_run_that_is_broken_off_goes_on_to_the_same_model(
    log: Path, learned: Path, tmp_path: Path
) -> None:
    breaks = broken_off(tmp_path, log, *NET, "--epochs", 2)
    assert_same_model(learned, tmp_path)
    assert breaks > 0


@pytest.mark.parametrize(
    "more", [("compute.lanes=1",), ("compute.lanes=4", "compute.shard_lanes=2")]
)
def test_lanes_change_nothing(
    log: Path, learned: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    ended = train(log, *NET, "--epochs", 2, "--out", tmp_path, *settings(*more))
    assert ended.code == 0, ended.stderr
    assert_same_model(learned, tmp_path)


def test_one_step_of_delay_learns_about_as_well(log: Path, learned: Path, tmp_path: Path) -> None:
    ended = train(log, *NET, "--epochs", 2, "--delay", 1, "--out", tmp_path)
    assert ended.code == 0, ended.stderr
    alone = json.loads((learned / "report.json").read_text())
    assert ended.report["loss"] == pytest.approx(alone["loss"], rel=0.02)


def test_one_sum_a_row_learns_about_as_well_in_less_memory(
    log: Path, learned: Path, tmp_path: Path
) -> None:
    command = [log, *NET, "--epochs", 2, "--dim", 32, "--v-rule", "rowwise"]
    ended = train(*command, "--out", tmp_path / "whole")
    assert ended.code == 0, ended.stderr
    plain = json.loads((learned / "report.json").read_text())
    assert ended.report["loss"] == pytest.approx(plain["loss"], rel=0.05)
    assert ended.report["loss"] < 0.98 * ended.report["baseline_logloss"]
    assert ended.report["embeddings_bytes"] == 3 * 64 * ended.report["features"]  # not 4 * 64
    # sums are in snapshots
    assert broken_off(tmp_path / "broken", *command) > 0
    assert_same_model(tmp_path / "whole", tmp_path / "broken")
    # and cannot become those of the other rule
    ended = train(*command[:-1], "adagrad", "--out", tmp_path / "whole")
    assert ended.code != 0
    assert "'v_rule': 'rowwise'" in ended.stderr


def test_what_is_predicted_is_what_was_evaluated(log: Path, learned: Path) -> None:
    evaluated = run("evaluate", learned, log, "--json")
    assert evaluated.code == 0, evaluated.stderr
    predicted = run("predict", learned, log)
    assert predicted.code == 0, predicted.stderr
    said = np.array([float(line) for line in predicted.stdout.split()])
    labels = np.array([int(line[0]) for line in log.read_text().splitlines()])
    losses = -np.log(np.where(labels == 1, said, 1 - said))
    assert losses.mean() == pytest.approx(evaluated.report["logloss"], rel=1e-4)
    assert evaluated.report["accuracy"] == pytest.approx(((said > 0.5) == labels).mean(), abs=2e-3)


def numbers(path: Path, rows: int, *, label: float | None = None) -> Path:
    dice = np.random.default_rng(5)
    x = dice.normal(size=(rows, 3))
    y = x @ [1.0, -2.0, 0.5] if label is None else np.full(rows, label)
    lines = ["y,a,b,c", *(f"{y[i]},{x[i, 0]},{x[i, 1]},{x[i, 2]}" for i in range(rows))]
    path.write_text("\n".join(lines) + "\n")
    return path


DENSE = [
    *("--format", "delimited", "--header", "--column", "y=label", "--column", "*=number:raw"),
    *("--model", "deep", "--net", "mlp", "--net-setting", "hidden=[8]", "--loss", "squared"),
    *("--minibatch", "64"),
]


def test_numbers_are_learned_and_judged_by_their_errors(tmp_path: Path) -> None:
    log = numbers(tmp_path / "log.csv", 4_000)
    ended = train(log, *DENSE, "--epochs", 3, "--lr", 0.01, "--out", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    evaluated = run("evaluate", tmp_path / "out", log, "--json")
    assert evaluated.report["rmse"] < 0.3  # of labels that deviate by 2.3


def test_columns_that_a_header_alone_names_are_known_to_what_is_exported(tmp_path: Path) -> None:
    log = numbers(tmp_path / "log.csv", 500)
    assert train(log, *DENSE, "--out", tmp_path / "out").code == 0
    told = run("export", tmp_path / "out", tmp_path / "net.pt2", "--json")
    assert told.code == 0, told.stderr
    assert told.report["dense"] == ["a", "b", "c"]


def test_losses_that_are_no_numbers_stop_the_job_and_leave_the_snapshot_before(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    good = numbers(tmp_path / "good.csv", 2_000)
    assert train(good, *DENSE, "--out", out).code == 0
    before = newest(out)
    bad = numbers(tmp_path / "bad.csv", 2_000, label=1e30)
    ended = train(good, bad, *DENSE, "--out", out)
    assert ended.code == 1
    assert "steps were skipped" in ended.stderr
    assert newest(out) == before


def test_a_log_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = numbers(tmp_path / "good.csv", 500)
    assert train(good, *DENSE, "--out", out).code == 0
    other = tmp_path / "other.csv"
    other.write_text("y,a,b,c,d\n1,2,3,4,5\n")
    ended = train(other, *DENSE, "--out", out)
    assert ended.code == 1
    assert "the net was made for" in ended.stderr
    assert "(3,)" in ended.stderr
    assert "(4,)" in ended.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--index", "hashed"), "exact keys"),
        (("--net", "dlmr"), "did you mean dlrm?"),
        (("--loss", "classes"), "--classes 10"),
        (("--device", "cuda:7"), "cuda:7"),
        (("--net-setting", "depth=3"), "depth"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(
    log: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    ended = train(log, *NET, *more, "--out", tmp_path)
    assert ended.code == 2, ended.stderr
    assert said in ended.stderr
    assert not (tmp_path / "model").exists()
