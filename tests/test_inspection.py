"""What is said of a model equals what its table and its log say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from streamlearn.inspection import sizes, strongest
from streamlearn.model import load
from streamlearn.online.ratings import rating_keys
from tests import rated
from tests.click_log import clicks, text, written
from tests.runs import run, settings
from tests.worded import WORDS, learned, twin


@pytest.fixture(scope="module", params=["exact", "hashed"])
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp(request.param), request.param)


def test_the_strongest_weights_come_by_name_and_size(out: Path) -> None:
    report = run("inspect", out, "--top", "15", "--json").report
    model = load(out)
    expected = sorted(twin(model).items(), key=lambda item: -abs(item[1]))[:15]
    found = [(row["feature"], row["weight"]) for row in report["weights"]]
    assert found == [(f"color={word}", pytest.approx(weight)) for word, weight in expected]
    weights = np.concatenate([part.weights for part in model.parts()])
    assert report["features"] == len(weights)
    assert report["nonzeros"] == np.count_nonzero(weights)
    assert report["sparsity"] == pytest.approx(1 - report["nonzeros"] / report["features"])
    assert report["examples"] == 6_000
    assert report["intercept"] == model.solver.intercept
    assert report["snapshot"] == str(max((out / "model").iterdir()))
    if model.table.index == "exact":
        assert sum(row["count"] for row in strongest(model, 100)) <= 6_000
        assert all(row["count"] > 0 for row in report["weights"])
    assert strongest(model, 0) == []
    assert sizes(model)["names"] == len(WORDS)


EMBEDDED = ("model.kind=fm", "model.dim_by_count=10=4,160=12", "model.order=3")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factorization machine of a click log."""
    directory = tmp_path_factory.mktemp("embedded")
    log = written(directory / "log.tsv", text(clicks(3_000, 1)))
    sets = settings(*EMBEDDED)
    ended = run("train", log, "--format", "criteo", "--out", directory / "out", *sets, "--json")
    assert ended.code == 0, ended.stderr
    told = run("inspect", directory / "out", "--json").report
    for name in ("embeddings", "embeddings_bytes", "embeddings_refused"):
        assert ended.report[name] == told[name]
    return directory / "out"


def test_embeddings_are_told_by_length_with_their_memory(embedded: Path) -> None:
    report = run("inspect", embedded, "--json").report
    model = load(embedded)
    dims = np.concatenate([part.rows[:, 3] >> np.uint64(48) for part in model.parts()])
    # a block of 8 coordinates has values and sums of both orders
    block = 8 * 2 * 2 * 4
    assert report["dimensions"] == [
        {"dim": 0, "above_count": None, "features": int((dims == 0).sum()), "bytes": 0},
        {
            "dim": 4,
            "above_count": 10,
            "features": (n := int((dims == 4).sum())),
            "bytes": n * block,
        },
        {
            "dim": 12,
            "above_count": 160,
            "features": (m := int((dims == 12).sum())),
            "bytes": m * 2 * block,
        },
    ]
    assert min(n, m) > 0
    assert report["embeddings"] == n + m
    assert report["embeddings_bytes"] == (n + 2 * m) * block == model.table.arena.nbytes
    assert report["embeddings_refused"] == 0
    for row in report["weights"]:
        longest = 12 if row["count"] > 160 else 4 if row["count"] > 10 else 0
        assert row["dim"] <= longest  # it may have been zero when its count rose
    shown = run("inspect", embedded).stdout
    assert re.search(rf"^embeddings +{n + m:,}$", shown, re.MULTILINE)
    assert "\ndimensions\n  dim  above count  features" in shown


def test_of_a_hashed_table_every_row_has_the_longest_embedding(tmp_path: Path) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(500, 1)))
    sets = settings("model.kind=fm", "model.dim=8", "tables.index=hashed", "tables.bits=12")
    assert run("train", log, "--format", "criteo", "--out", tmp_path / "out", *sets).code == 0
    report = run("inspect", tmp_path / "out", "--json").report
    size = (1 << 12) * 8 * 2 * 4
    assert report["dimensions"] == [{"dim": 8, "features": report["features"], "bytes": size}]
    assert report["embeddings"] == report["features"]
    assert report["embeddings_bytes"] == size
    assert "embeddings_refused" not in report
    assert all(row["dim"] == 8 and "count" not in row for row in report["weights"])


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    missing = run("inspect", tmp_path / "none")
    assert missing.code == 2
    assert "error: there is no model in" in missing.stderr


def test_of_a_factorization_items_come_by_bias_and_count(tmp_path: Path) -> None:
    out = rated.learned(tmp_path)
    report = run("inspect", out, "--top", 4, "--json").report
    rows, model = rated.ratings(), load(out)
    items = [item for _, item, _ in rows]
    assert report["users"] == len({user for user, _, _ in rows})
    assert report["items"] == len(set(items))
    assert (report["dim"], report["loss"]) == (5, "squared")
    assert report["mean"] == model.solver.intercept
    assert report["factors_bytes"] == (report["users"] + report["items"]) * 64
    assert report["table_bytes"] == model.table.nbytes
    keys = rating_keys(sorted(set(items)), sorted(set(items)))[1]
    biases = dict(zip(sorted(set(items)), model.weights_at(keys).tolist(), strict=True))
    for name, sign in (("highest_bias", -1), ("lowest_bias", 1)):
        expected = sorted(biases.items(), key=lambda one, sign=sign: sign * one[1])[:4]
        assert [(row["item"], row["bias"]) for row in report[name]] == expected
    most = [row["count"] for row in report["most_rated"]]
    assert most == sorted((items.count(item) for item in set(items)), reverse=True)[:4]
    assert all(row["count"] == items.count(row["item"]) for row in report["most_rated"])
    shown = run("inspect", out, "--top", 1).stdout
    assert "\nhighest bias\n  item" in shown
    assert "weights" not in report
