"""What is said of a model and exported from it equals what its table and its log say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamlearn.inspection import sizes, strongest
from streamlearn.model import Model, load
from streamlearn.online.features import field_seed
from tests.click_log import written
from tests.reference.words import token_key
from tests.runs import run, settings

WORDS = [f"wörd {n}" for n in range(40)]


@pytest.fixture(scope="module", params=["exact", "hashed"])
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one field, stopped and resumed in the middle of its log."""
    directory = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 2, len(WORDS))
    rows = rng.integers(0, len(WORDS), 6_000)
    labels = rng.random(6_000) < 1 / (1 + np.exp(-weights[rows]))
    lines = [f"{label:d},{WORDS[row]}" for label, row in zip(labels, rows, strict=True)]
    table = settings(f"tables.index={request.param}", "tables.bits=16")
    flags = ["--format", "delimited", "--header", "--column", "y=label", *table]
    flags += ["--column", "color=categorical", "--out", directory / "out"]
    sources = []
    for number in (0, 1):
        part = lines[number * 3_000 : (number + 1) * 3_000]
        data = ("y,color\n" + "\n".join(part) + "\n").encode()
        sources.append(written(directory / f"{number}.csv", data))
        ended = run("train", *sources, *flags)
        assert ended.code == 0, ended.stderr
    return directory / "out"


def twin(model: Model) -> dict[str, float]:
    """Return the weight of each word, looked up by its key."""
    seed = int(field_seed("color"))
    keys = np.array([token_key(word.encode(), seed) for word in WORDS], np.uint64)
    return dict(zip(WORDS, model.weights_at(keys).tolist(), strict=True))


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


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".txt"])
def test_an_export_has_every_weight_by_name(out: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"weights{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    report = run("export", out, target, "--json").report
    model = load(out)
    expected = {f"color={word}": weight for word, weight in twin(model).items() if weight}
    found: dict[str, float] = {}
    if suffix == ".npz":
        with np.load(target) as arrays:
            assert arrays["intercept"] == np.float32(model.solver.intercept)
            keys, weights = arrays["keys"], arrays["weights"]
            names = arrays["names"].tolist()
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(target)
        keys = table["key"].to_numpy()
        weights = table["weight"].to_numpy()
        names = table["name"].to_pylist()
        assert float(table.schema.metadata[b"intercept"]) == model.solver.intercept
    else:
        first, *lines = target.read_text(encoding="utf-8").splitlines()
        key, weight, name = first.split(" ", 2)
        assert (key, name) == ("0", "(intercept)")
        assert float(weight) == pytest.approx(model.solver.intercept)
        rows = [line.split(" ", 2) for line in lines]
        keys = np.array([int(row[0]) for row in rows], np.uint64)
        weights = np.array([float(row[1]) for row in rows], np.float32)
        names = [row[2] for row in rows]
    found = dict(zip(names, weights.tolist(), strict=True))
    assert found == pytest.approx(expected)
    assert report["nonzeros"] == report["named"] == len(expected)
    if model.table.index == "exact":
        assert (np.diff(keys) > 0).all()
        np.testing.assert_array_equal(model.weights_at(keys), weights)


def test_what_cannot_be_exported_is_one_sentence(out: Path, tmp_path: Path) -> None:
    wrong = run("export", out, tmp_path / "weights.csv")
    assert wrong.code == 2
    assert ".npz, .parquet or .txt" in wrong.stderr
    nowhere = run("export", out, tmp_path / "none" / "weights.txt")
    assert nowhere.code == 1
    assert "error: cannot write" in nowhere.stderr
    missing = run("inspect", tmp_path / "none")
    assert missing.code == 2
    assert "error: there is no model in" in missing.stderr
