"""An export holds what a model predicts with: every format the same, each feature by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from streamlearn.model import load
from streamlearn.online.ratings import rating_keys
from tests import rated
from tests.click_log import clicks, text, written
from tests.reference import criteo, fm
from tests.runs import run, settings
from tests.worded import learned, twin

BITS = 14
EMBEDDED = ("model.kind=fm", "model.v_lr=0.1", "model.v_init_scale=0.1")
KINDS = {
    "lr": (),
    "lr, hashed": ("tables.index=hashed",),
    "fm": (*EMBEDDED, "model.dim_by_count=10=4,200=12"),
    "fm, order 3": (*EMBEDDED, "model.order=3", "model.dim=5", "model.threshold=20"),
    "fm, all embeddings": (*EMBEDDED, "model.l1_shrk=false", "model.l1=5", "model.threshold=0"),
    "fm, hashed": (*EMBEDDED, "tables.index=hashed", "model.dim=8"),
}


@dataclass
class Export:
    """What stands in an exported file.

    Attributes
    ----------
    vectors : float32[order - 1, n, dim]
        Zero where an embedding has no such coordinate.
    """

    intercept: float
    keys: np.ndarray
    weights: np.ndarray
    names: list[str]
    dims: np.ndarray
    vectors: np.ndarray

    def probability(self, keys: np.ndarray) -> float:
        """Return the prediction for an example."""
        at = np.searchsorted(self.keys, keys)
        inside = at < len(self.keys)
        at[~inside] = 0
        found = at[inside & (self.keys[at] == keys)]
        V = self.vectors[:, found].astype(np.float64)
        score = fm.score(
            self.intercept, self.weights[found].astype(np.float64), V, np.ones(len(found)),
            self.dims[found],
        )  # fmt: skip
        return float(1 / (1 + np.exp(-score)))


def read(target: Path, parts: int = 1) -> Export:
    """Read an exported file as its users do; a text does not say how many ``parts`` there are."""
    if target.suffix == ".npz":
        with np.load(target) as arrays:
            n = len(arrays["keys"])
            dims, vectors = np.zeros(n, np.int64), np.zeros((0, n, 1), np.float32)
            if "embeddings" in arrays:
                assert arrays["dims"].dtype == np.uint16
                assert arrays["embeddings"].dtype == np.float32
                dims = arrays["dims"].astype(np.int64)
                parts = int(arrays["order"]) - 1
                vectors = arrays["embeddings"].reshape(n, parts, -1).transpose(1, 0, 2)
            return Export(
                float(arrays["intercept"]), arrays["keys"], arrays["weights"],
                arrays["names"].tolist(), dims, vectors,
            )  # fmt: skip
    if target.suffix == ".parquet":
        return _read_parquet(target)
    return _read_text(target, parts)


def _read_parquet(target: Path) -> Export:
    import pyarrow.parquet as pq

    table = pq.read_table(target)
    order = int(table.schema.metadata.get(b"order", b"1"))
    n = table.num_rows
    dims = table["dim"].to_numpy().astype(np.int64) if order > 1 else np.zeros(n, np.int64)
    vectors = np.zeros((order - 1, n, max(1, dims.max(initial=0))), np.float32)
    for part in range(order - 1):
        for row, values in enumerate(table[f"embedding_{part + 2}"].to_pylist()):
            assert (values is None) == (dims[row] == 0)
            vectors[part, row, : dims[row]] = values or []
    intercept = float(table.schema.metadata[b"intercept"])
    return Export(
        intercept, table["key"].to_numpy(), table["weight"].to_numpy(),
        table["name"].to_pylist(), dims, vectors,
    )  # fmt: skip


def _read_text(target: Path, parts: int) -> Export:
    first, *lines = target.read_text(encoding="utf-8").splitlines()
    key, intercept, *rest = first.split(" ")
    assert key == "0"
    assert rest[-1] == "(intercept)"
    keys, weights, names, embeddings = [], [], [], []
    for line in lines:
        key, weight, *words = line.split(" ")
        count = int(words.pop(0)) if len(rest) == 2 else 0
        keys.append(int(key))
        weights.append(float(weight))
        embeddings.append([float(word) for word in words[:count]])
        names.append(" ".join(words[count:]))
    dims = np.array([len(embedding) // parts for embedding in embeddings], np.int64)
    vectors = np.zeros((parts, len(keys), max(1, dims.max(initial=0))), np.float32)
    for row, dim in enumerate(dims.tolist()):
        if dim:
            vectors[:, row, :dim] = np.array(embeddings[row], np.float32).reshape(parts, dim)
    return Export(
        float(intercept), np.array(keys, np.uint64), np.array(weights, np.float32), names, dims,
        vectors,
    )  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    log = written(directory / "log.tsv", text(clicks(4_000, 1)))
    flags = settings(*KINDS[request.param], f"tables.bits={BITS}")
    ended = run("train", log, "--format", "criteo", "--out", directory / "out", *flags)
    assert ended.code == 0, ended.stderr
    return directory / "out"


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".txt"])
def test_predictions_can_be_made_of_an_export_alone(out: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / f"weights{suffix}"
    report = run("export", out, target, "--json").report
    held = clicks(200, 2)
    told = run("predict", out, written(tmp_path / "held.tsv", text(held)))
    expected = np.array(told.stdout.splitlines(), np.float64)
    model = load(out)
    export = read(target, model.geometry.tiers.parts if model.geometry else 1)
    shift = np.uint64(64 - BITS if model.job.tables.index == "hashed" else 0)
    found = [
        export.probability(np.array(keys, np.uint64) >> shift)
        for _, _, keys in criteo.parse(text(held))[0]
    ]
    np.testing.assert_allclose(found, expected, rtol=3e-5)
    assert report["nonzeros"] == np.count_nonzero(export.weights)
    assert report["named"] == sum(name != "" for name in export.names)
    assert report.get("embeddings", 0) == np.count_nonzero(export.dims)
    assert (export.keys[1:] > export.keys[:-1]).all()


def test_only_what_a_prediction_uses_is_exported(out: Path, tmp_path: Path) -> None:
    assert run("export", out, tmp_path / "all.npz").code == 0
    export, model = read(tmp_path / "all.npz"), load(out).job.model
    bare = export.weights == 0
    if model.kind == "fm" and not model.l1_shrk:
        assert bare.any()
        assert (export.dims[bare] > 0).all()
    else:
        assert not bare.any()
    beyond = np.arange(export.vectors.shape[2]) >= export.dims[:, None]
    assert (export.vectors[:, beyond] == 0).all()


@pytest.fixture(scope="module", params=["exact", "hashed"])
def worded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".txt"])
def test_every_weight_comes_by_name(worded: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / f"weights{suffix}"
    report = run("export", worded, target, "--json").report
    export, model = read(target), load(worded)
    expected = {f"color={word}": weight for word, weight in twin(model).items() if weight}
    assert dict(zip(export.names, export.weights.tolist(), strict=True)) == pytest.approx(expected)
    assert export.intercept == pytest.approx(model.solver.intercept)
    assert report["nonzeros"] == report["named"] == len(expected)
    if model.table.index == "exact":
        np.testing.assert_array_equal(model.weights_at(export.keys), export.weights)


def test_what_cannot_be_exported_is_one_sentence(worded: Path, tmp_path: Path) -> None:
    wrong = run("export", worded, tmp_path / "weights.csv")
    assert wrong.code == 2
    assert ".npz, .parquet or .txt" in wrong.stderr
    nowhere = run("export", worded, tmp_path / "none" / "weights.txt")
    assert nowhere.code == 1
    assert "error: cannot write" in nowhere.stderr


@pytest.fixture(scope="module")
def factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rated.learned(tmp_path_factory.mktemp("factors"))


@dataclass
class Factors:
    """What stands in an exported file of a factorization, by kind."""

    mean: float
    ids: dict[str, list[str]]
    keys: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    def prediction(self, user: str, item: str) -> float:
        u, i = self.ids["user"].index(user), self.ids["item"].index(item)
        inner = self.factors["user"][u].astype(np.float64) @ self.factors["item"][i]
        return float(self.mean + self.biases["user"][u] + self.biases["item"][i] + inner)


def read_factors(target: Path) -> Factors:
    """Read an exported file as its users do."""
    kinds = ("user", "item")
    if target.suffix == ".npz":
        with np.load(target) as arrays:
            assert arrays["user_biases"].dtype == arrays["item_factors"].dtype == np.float32
            return Factors(
                float(arrays["mean"]),
                {kind: arrays[f"{kind}_ids"].tolist() for kind in kinds},
                *(
                    {kind: arrays[f"{kind}_{name}"] for kind in kinds}
                    for name in ("keys", "biases", "factors", "counts")
                ),
            )
    import pyarrow.parquet as pq

    table = pq.read_table(target)
    parts = {kind: [r for r in table.to_pylist() if r["kind"] == kind] for kind in kinds}
    assert sum(map(len, parts.values())) == table.num_rows
    return Factors(
        float(table.schema.metadata[b"mean"]),
        {kind: [row["id"] for row in parts[kind]] for kind in kinds},
        *(
            {kind: np.array([row[name] for row in parts[kind]]) for kind in kinds}
            for name in ("key", "bias", "factors", "count")
        ),
    )


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_ratings_can_be_predicted_of_an_export_alone(
    factors: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / f"factors{suffix}"
    report = run("export", factors, target, "--json").report
    export = read_factors(target)
    rows = rated.ratings()
    users, items = [user for user, _, _ in rows], [item for _, item, _ in rows]
    assert export.ids == {"user": list(dict.fromkeys(users)), "item": list(dict.fromkeys(items))}
    assert export.counts["item"].tolist() == [items.count(item) for item in export.ids["item"]]
    keys = rating_keys(export.ids["user"], export.ids["user"])[0]
    np.testing.assert_array_equal(export.keys["user"], keys)
    told = run("predict", factors, factors.parent / "ratings.dat").stdout.splitlines()
    for (user, item, _), line in zip(rows[::50], told[::50], strict=True):
        assert export.prediction(user, item) == pytest.approx(float(line), rel=3e-5)
    assert report["users"] == len(export.ids["user"])
    assert report["items"] == len(export.ids["item"])
    assert report["dim"] == export.factors["user"].shape[1] == 5
    assert report["mean"] == pytest.approx(export.mean)


def test_factors_are_no_text(factors: Path, tmp_path: Path) -> None:
    wrong = run("export", factors, tmp_path / "factors.txt")
    assert wrong.code == 2
    assert "export of mf writes .npz or .parquet, but got factors.txt" in wrong.stderr
    nowhere = run("export", factors, tmp_path / "none" / "factors.npz")
    assert nowhere.code == 1
    assert "error: cannot write" in nowhere.stderr
