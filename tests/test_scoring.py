"""Scores without learning equal those of a slow twin over the weights of the table."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from streamlearn.model import load
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.progressive import Validation
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.ratings import rating_keys
from streamlearn.online.validation import BinaryValidation
from streamlearn.scoring import _printer
from tests import rated
from tests.click_log import BAD, clicks, text, written
from tests.reference import criteo, fm
from tests.runs import run, settings, spawn

EMBEDDED = ("model.kind=fm", "model.v_lr=0.1", "model.v_init_scale=0.1")
KINDS = {
    "exact": (),
    "hashed": ("tables.index=hashed",),
    "fm": (*EMBEDDED, "model.dim_by_count=10=4,200=12"),
    "fm, order 3, hashed": (*EMBEDDED, "tables.index=hashed", "model.order=3", "model.dim=8"),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    log = written(directory / "log.tsv", text(clicks(4_000, 1)))
    flags = settings(*KINDS[request.param], "tables.bits=14", "output.window=500")
    ended = run("train", log, "--format", "criteo", "--out", directory / "out", *flags)
    assert ended.code == 0, ended.stderr
    return directory / "out"


def twin(out: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities, one record and one key after the other."""
    model = load(out)
    labels, probabilities = [], []
    for _, label, keys in criteo.parse(data)[0]:
        weights = model.weights_at(np.array(keys, np.uint64)).astype(np.float64)
        parts, lengths = np.zeros((0, len(keys), 1)), np.zeros(len(keys), np.int64)
        if model.geometry is not None:
            tiers = model.geometry.tiers
            vectors = model.embeddings_at(np.array(keys, np.uint64)).astype(np.float64)
            parts = vectors.reshape(len(keys), tiers.parts, tiers.dim).transpose(1, 0, 2)
            lengths = np.where(weights != 0, tiers.dim, 0)  # zeros beyond the last coordinate
        score = fm.score(model.solver.intercept, weights, parts, np.ones(len(keys)), lengths)
        labels.append(label)
        probabilities.append(1 / (1 + np.exp(-score)))
    return np.array(labels, np.float64), np.array(probabilities)


def test_evaluate_says_what_the_scores_of_held_out_records_are_worth(
    model: Path, tmp_path: Path
) -> None:
    data = text(clicks(1_000, 2))
    log = written(tmp_path / "held.tsv.gz", data)
    before = sorted(path.name for path in (model / "model").iterdir())
    report = run("evaluate", model, log, "--json").report
    y, p = twin(model, data)
    assert report["examples"] == 1_000
    assert report["bytes"] == len(data)
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert report["logloss"] == pytest.approx(loss, rel=1e-5)
    assert report["calibration"] == pytest.approx(p.mean() / y.mean(), rel=1e-5)
    pairs = p[y == 1][:, None] - p[y == 0][None, :]
    auc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert report["auc"] == pytest.approx(auc, abs=report["auc_error"] + 1e-4)
    assert sorted(path.name for path in (model / "model").iterdir()) == before
    assert load(model).counts.examples == 4_000
    assert ("embeddings" in report) == (load(model).job.model.kind == "fm")
    assert "examples_dropped" not in report  # nobody is taught


def test_test_only_of_train_is_evaluate(model: Path, tmp_path: Path) -> None:
    log = written(tmp_path / "held.tsv", text(clicks(300, 3)))
    evaluated = run("evaluate", model, log, "--json").report
    tested = run("train", "-t", log, "--out", model, "--json").report
    for name in ("examples", "logloss", "auc", "calibration", "features", "nonzeros"):
        assert tested[name] == evaluated[name]


@pytest.mark.parametrize("lanes", [1, 2])
def test_predict_writes_a_line_a_record_in_order_over_all_objects(
    model: Path, tmp_path: Path, lanes: int
) -> None:
    first, second, third = clicks(900, 4), clicks(500, 5), clicks(300, 6)
    bad = [record for _, record in BAD]
    first[100:100] = bad[:3]
    second[0:0] = bad[3:4]
    third += bad[4:]
    logs = [
        written(tmp_path / name, text(records))
        for name, records in (("c.tsv", first), ("a.tsv.zst", second), ("b.tsv.gz", third))
    ]
    pieces = settings(
        "source.block_bytes=65536", "source.range_bytes=65536", f"compute.lanes={lanes}",
        "compute.minibatch=64",
    )  # fmt: skip
    out = tmp_path / "p.txt"
    ended = run("predict", model, *logs, "-p", out, "--json", *pieces)
    assert ended.code == 0, ended.stderr
    assert (ended.report["examples"], ended.report["bad_records"]) == (1_700, 7)
    everything = [*first, *second, *third]
    good = np.array([record not in bad for record in everything])
    expected = np.full(len(everything), np.nan)
    expected[good] = twin(model, text(everything))[1]
    found = np.array(out.read_text().splitlines(), np.float64)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_predict_needs_no_labels_of_delimited_records(tmp_path: Path) -> None:
    rows = [(i % 3 == 0, "abc"[i % 3], i % 7) for i in range(600)]
    log = tmp_path / "log.csv"
    log.write_text("y,c,n\n" + "".join(f"{int(y)},{c},{n}\n" for y, c, n in rows))
    bare = tmp_path / "bare.csv"
    bare.write_text("n,c\n" + "".join(f"{n},{c}\n" for _, c, n in rows[:50]))
    columns = (
        "--header",
        "--column",
        "y=label",
        "--column",
        "c=categorical",
        "--column",
        "n=number",
    )
    out = tmp_path / "out"
    assert run("train", log, "--format", "delimited", *columns, "--out", out).code == 0
    head = tmp_path / "head.csv"
    head.write_text("".join(log.read_text().splitlines(keepends=True)[:51]))
    asked = run("predict", out, bare)
    assert asked.code == 0, asked.stderr
    assert len(asked.stdout.splitlines()) == 50
    assert asked.stdout == run("predict", out, head).stdout
    assert "logloss " not in asked.stderr


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (BinaryValidation, [1 / (1 + math.e**0.5), 0.5, 1 / (1 + math.e**-3)]),
        (RatingValidation, [-0.5, 0.0, 3.0]),
    ],
)
def test_a_prediction_is_what_the_models_loss_makes_of_a_score(
    kind: type[Validation], expected: list[float]
) -> None:
    told: list[float] = []
    batch = Minibatch(4, FEATURES_PER_RECORD_MAX, has_values=False)
    printed = _printer(told.extend, kind.predictions)
    scores = np.array([-0.5, 0, 3], np.float32)
    batch.state[0] = 3
    printed(scores, batch)
    assert told == pytest.approx(expected)
    told.clear()
    batch.lines[:3] = [0, 20, 30]
    batch.bad_start[:2], batch.state[2] = [10, 40], 2
    printed(scores, batch)
    assert told == pytest.approx([expected[0], math.nan, *expected[1:], math.nan], nan_ok=True)


def test_predict_reads_a_pipe_and_writes_to_stdout(model: Path) -> None:
    records = clicks(50, 7)
    ended = spawn("predict", model, "-", "--quiet", stdin=text(records))
    assert ended.code == 0, ended.stderr
    found = np.array(ended.stdout.splitlines(), np.float64)
    np.testing.assert_allclose(found, twin(model, text(records))[1], rtol=2e-5)


def test_what_cannot_be_scored_is_one_sentence(model: Path, tmp_path: Path) -> None:
    log = written(tmp_path / "log.tsv.gz", text(clicks(2_000, 8)))
    os.truncate(log, log.stat().st_size // 2)
    for verb in ("evaluate", "predict"):
        ended = run(verb, model, log)
        assert ended.code == 1
        assert f"error: {log}" in ended.stderr
        assert "Traceback" not in ended.stderr
        missing = run(verb, tmp_path / "none", log)
        assert missing.code == 2
        assert "error: there is no model in" in missing.stderr


def test_who_is_unknown_is_predicted_by_biases_alone_and_counted(tmp_path: Path) -> None:
    out = rated.learned(tmp_path)
    pairs = [("u1", "i03"), ("u1", "?"), ("?", "i03"), ("?", "?"), ("u2", "?"), ("u1", "i03")]
    two, three = tmp_path / "two.dat", tmp_path / "three.dat"
    two.write_text("".join(f"{user}::{item}\n" for user, item in pairs))
    three.write_text("".join(f"{user}::{item}::4\n" for user, item in pairs))
    said = "of 6 ratings, 2 are of users and 3 of items that the model does not know"
    asked = run("predict", out, two)
    assert asked.code == 0, asked.stderr
    assert said in asked.stderr
    told = [float(line) for line in asked.stdout.splitlines()]
    model = load(out)
    (user, *_), (item, *_) = rating_keys(["u1"], ["i03"])
    bias_user, bias_item = model.weights_at(np.array([user, item])).tolist()
    p, q = model.embeddings_at(np.array([user, item])).astype(np.float64)
    mean = model.solver.intercept
    full = mean + bias_user + bias_item + p @ q
    expected = [full, mean + bias_user, mean + bias_item, mean]
    assert told[:4] == pytest.approx(expected, rel=1e-5)
    assert told[5] == told[0]
    report = run("evaluate", out, three, "--json")
    assert said in report.stderr
    assert report.report["unknown_users"] == 2
    assert report.report["unknown_items"] == 3
    expected_rmse = math.sqrt(sum((value - 4) ** 2 for value in told) / 6)
    assert report.report["rmse"] == pytest.approx(expected_rmse, rel=1e-4)
    known = run("evaluate", out, tmp_path / "ratings.dat", "--json")
    assert known.report["unknown_users"] == known.report["unknown_items"] == 0
    assert "does not know" not in known.stderr
