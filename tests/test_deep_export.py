"""A net's graph computes in other runtimes what the net does with records as they are."""

from __future__ import annotations

import copy
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
from torch import nn  # noqa: E402

from streamlearn import deep_export  # noqa: E402
from streamlearn.config import DeepConfig  # noqa: E402
from streamlearn.deep_export import Exportable, graph_of, write_graph  # noqa: E402
from streamlearn.errors import ConfigError, RunError  # noqa: E402
from streamlearn.online.nets import Needs, Sizes, load_net  # noqa: E402
from streamlearn.online.standardizing import LIMIT  # noqa: E402
from tests.deep_parts import CLASSES, KINDS, Learned, learned  # noqa: E402
from tests.runs import run  # noqa: E402

FEATURES = 9
ROWS = 6
NETS: dict[str, tuple[Sizes, dict[str, Any], str]] = {
    "mlp": (Sizes((3,), 4, 3), {"hidden": (6, 5), "dim": 2, "dropout": 0.5}, "classes"),
    "wide_deep": (Sizes((3,), 4, 1), {"hidden": (6, 5), "dim": 2}, "logistic"),
    "deepfm": (Sizes((3,), 4, 1), {"hidden": (6, 5), "dim": 2}, "logistic"),
    "dlrm": (Sizes((3,), 4, 2), {"bottom": (6,), "top": (5,), "dim": 2}, "classes"),
    "convnet": (Sizes((1, 8, 9), 0, 3), {"width": 2, "hidden": 5}, "classes"),
    "mine": (Sizes((), 4, 1), {}, "squared"),
}


class Mine(nn.Module):
    """A net of a user's: attention over the fields, and statistics of batches."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.look = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, sizes.outputs)
        self.norm.running_mean += 0.25

    def needs(self) -> Needs:
        return Needs(4, wide=True, outputs=self.sizes.outputs)

    def forward(self, dense: None, embeddings: Any, wide: Any) -> Any:
        seen, _ = self.look(embeddings, embeddings, embeddings)
        logits = self.out(self.norm(seen.mean(1)))
        return logits + wide.sum(1, keepdim=True).tanh()


@pytest.fixture(autouse=True)
def _mine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_nets", type("my_nets", (), {"mine": Mine}))


def exportable(name: str, **more: Any) -> Exportable:
    """Return a net with tables and numbers of some magnitude, as if it had been learned."""
    sizes, settings, loss = NETS[name]
    net, needs = load_net("my_nets:mine" if name == "mine" else name, sizes, seed=4, **settings)
    dice = np.random.default_rng(5)
    channels = (sizes.dense[0], *(1 for _ in sizes.dense[1:])) if sizes.dense else (0,)
    it = Exportable(
        net, sizes, needs, loss,
        mean=dice.normal(3, 100, channels) if sizes.dense else None,
        scale=dice.uniform(0.1, 2, channels) if sizes.dense else None,
        weights=dice.normal(size=FEATURES).astype(np.float32),
        vectors=dice.normal(size=(FEATURES, needs.dim)).astype(np.float32),
    )  # fmt: skip
    return replace(it, **more)


def records(it: Exportable, rows: int = ROWS, width: int = 3) -> dict[str, np.ndarray]:
    """Return inputs by name, with missing numbers, absent fields and unknown features."""
    dice = np.random.default_rng(rows)
    made: dict[str, np.ndarray] = {}
    if it.sizes.dense:
        dense = dice.normal(size=(rows, *it.sizes.dense))
        if it.mean is not None and it.scale is not None:
            dense = dense / it.scale + it.mean
        dense[dice.random(dense.shape) < 0.2] = np.nan
        dense[0].reshape(-1)[0] = 1e30
        made["dense"] = dense.astype(np.float32)
    if it.needs.dim or it.needs.wide:
        shape = (rows, it.sizes.fields, width) if it.bags else (rows, it.sizes.fields)
        made["features"] = dice.integers(0, FEATURES + 2, shape)
        if it.valued:
            made["values"] = dice.normal(size=shape).astype(np.float32)
    return made


def twin(it: Exportable, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute logits and predictions in float64, a record and a field after the other."""
    dense = vectors = wide = None
    if "dense" in given:
        dense = given["dense"].astype(np.float64)
        if it.mean is not None and it.scale is not None:
            dense = np.clip((dense - it.mean) * it.scale, -LIMIT, LIMIT)
        dense = np.where(np.isnan(given["dense"]), 0, dense)
    if "features" in given:
        features = given["features"]
        shape = features.shape
        features = features.reshape(*shape[:2], -1)
        values = given.get("values", np.ones(shape)).reshape(features.shape)
        vectors = np.zeros((*shape[:2], it.needs.dim))
        wide = np.zeros(shape[:2])
        assert it.weights is not None
        assert it.vectors is not None
        for r, f in np.ndindex(*shape[:2]):
            there = [(i, x) for i, x in zip(features[r, f], values[r, f], strict=True) if i]
            for i, x in there:
                if i <= FEATURES:
                    vectors[r, f] += x * it.vectors[i - 1]
                    wide[r, f] += x * it.weights[i - 1]
            if it.pooling == "mean" and there:
                vectors[r, f] /= len(there)
    net = copy.deepcopy(it.net).double().eval()
    with torch.no_grad():
        logits = net(
            None if dense is None else torch.from_numpy(dense),
            torch.from_numpy(vectors) if it.needs.dim and vectors is not None else None,
            torch.from_numpy(wide) if it.needs.wide and wide is not None else None,
        ).numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    predictions = {
        "classes": powers / powers.sum(1, keepdims=True),
        "logistic": 1 / (1 + np.exp(-logits[:, 0])),
        "squared": logits[:, 0],
    }
    return logits, predictions[it.loss]


def assert_same(found: Any, expected: tuple[np.ndarray, np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(np.asarray(one), other, rtol=1e-4, atol=1e-5)


def tensors(given: dict[str, np.ndarray]) -> list[Any]:
    return [torch.from_numpy(one) for one in given.values()]


def onnx_run(target: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="comes with the extra `onnx`")
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(given)
    assert [one.name for one in session.get_outputs()] == ["logits", "prediction"]
    assert {one.shape[0] for one in session.get_inputs()} == {"rows"}
    return list(session.run(None, given))


POOLED = {
    "one feature a field": {},
    "bags": {"bags": True},
    "bags, mean": {"bags": True, "pooling": "mean"},
    "bags with values": {"bags": True, "valued": True},
    "mean, values": {"bags": True, "pooling": "mean", "valued": True},
    "not standardised": {"mean": None, "scale": None},
}


@pytest.mark.parametrize("pooled", POOLED)
@pytest.mark.parametrize("name", NETS)
def test_the_graph_computes_what_the_net_does_with_records(name: str, pooled: str) -> None:
    it = exportable(name, **POOLED[pooled])
    if pooled == "not standardised" and it.sizes.dense:
        given = records(it)
        given["dense"][0] = 0  # what is large in records would be large in the net
    for rows in (1, ROWS):
        given = records(it, rows)
        if it.mean is None and "dense" in given:
            given["dense"][given["dense"] > 1e20] = np.nan
        with torch.no_grad():
            assert_same(graph_of(it)(*tensors(given)), twin(it, given))


@pytest.mark.parametrize("name", NETS)
def test_torchs_own_file_computes_the_same(name: str, tmp_path: Path) -> None:
    it = exportable(name)
    told = write_graph(it, tmp_path / "net.pt2")
    assert told["checked"] is True
    program = torch.export.load(tmp_path / "net.pt2").module()
    for rows in (1, ROWS):
        given = records(it, rows)
        assert list(told["inputs"]) == list(given)
        assert_same(program(*tensors(given)), twin(it, given))


@pytest.mark.parametrize("name", NETS)
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="comes with the extra `onnx`")
    it = exportable(name)
    told = write_graph(it, tmp_path / "net.onnx")
    assert told["checked"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]
    for rows in (1, ROWS):
        given = records(it, rows)
        assert_same(onnx_run(tmp_path / "net.onnx", given), twin(it, given))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("pooled", ["bags, mean", "bags with values"])
def test_bags_may_have_any_width(pooled: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="comes with the extra `onnx`")
    it = exportable("wide_deep", **POOLED[pooled])
    target = tmp_path / f"net{suffix}"
    write_graph(it, target)
    for width in (1, 5):
        given = records(it, width=width)
        if suffix == ".onnx":
            found = onnx_run(target, given)
        else:
            found = torch.export.load(target).module()(*tensors(given))
        assert_same(found, twin(it, given))


def test_a_mean_of_a_billion_leaves_the_small_differences_that_there_are() -> None:
    it = exportable("wide_deep", mean=np.full(3, 1e9 + 7), scale=np.full(3, 1 / 64))
    given = records(it)
    assert len(np.unique(given["dense"])) > 4
    with torch.no_grad():
        assert_same(graph_of(it)(*tensors(given)), twin(it, given))


def test_a_column_that_never_varied_says_nothing() -> None:
    it = exportable("mlp", scale=np.array([0, 1, 1.0]))
    given = records(replace(it, scale=np.ones(3)))
    given["dense"][:, 0] = [0, 1, -1e30, 3e38, np.inf, np.nan]
    with torch.no_grad():
        logits, _ = graph_of(it)(*tensors(given))
        given["dense"][:, 0] = np.nan
        np.testing.assert_array_equal(logits, graph_of(it)(*tensors(given))[0])


def test_a_net_in_bf16_is_exported_in_float32_and_left_as_it_is(tmp_path: Path) -> None:
    it = exportable("mlp")
    narrow = replace(it, net=it.net.bfloat16())
    write_graph(narrow, tmp_path / "net.pt2")
    assert {one.dtype for one in narrow.net.parameters()} == {torch.bfloat16}
    assert narrow.net.training
    given = records(narrow)
    found = torch.export.load(tmp_path / "net.pt2").module()(*tensors(given))
    assert {one.dtype for one in found} == {torch.float32}
    assert_same(found, twin(narrow, given))


class Branches(nn.Module):
    """A net that no tracer follows."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.out = nn.Linear(3, sizes.outputs)

    def needs(self) -> Needs:
        return Needs(0, wide=False, outputs=1)

    def forward(self, dense: Any, embeddings: None, wide: None) -> Any:
        return self.out(dense) if float(dense.sum()) > 0 else -self.out(dense)


def test_a_net_that_cannot_be_followed_is_refused_with_the_reason(tmp_path: Path) -> None:
    sizes = Sizes((3,), 0, 1)
    it = Exportable(Branches(sizes), sizes, Needs(0, wide=False, outputs=1), "squared")
    with pytest.raises(ConfigError, match="Branches cannot be exported"):
        write_graph(it, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_what_computes_something_else_is_found_out(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="comes with the extra `onnx`")
    it = exportable("wide_deep")
    other = exportable("wide_deep", weights=np.ones(FEATURES, np.float32))
    trace = deep_export._traced
    monkeypatch.setattr(deep_export, "_traced", lambda graph, it: trace(graph_of(other), it))
    with pytest.raises(RunError, match="something else than the model"):
        write_graph(it, tmp_path / f"net{suffix}")


def test_without_onnx_runtime_onnx_is_written_unchecked_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript", reason="comes with the extra `onnx`")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level(logging.WARNING, "streamlearn"):
        told = write_graph(exportable("mlp"), tmp_path / "net.onnx")
    assert told["checked"] is False
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'net.onnx'} is not checked: onnxruntime is not installed "
        "(pip install 'streamlearn[onnx]')"
    ]


def test_without_onnxscript_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"not installed\nhint: pip install 'streamlearn\[onnx\]"):
        write_graph(exportable("mlp"), tmp_path / "net.onnx")


def test_large_tables_stand_beside_the_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="comes with the extra `onnx`")
    dice = np.random.default_rng(3)
    many = dice.normal(size=(FEATURES, 200)).astype(np.float32)  # small ones stay inside
    sizes = Sizes((), 2, 1)
    net, needs = load_net("wide_deep", sizes, seed=1, hidden=(3,), dim=200)
    it = Exportable(net, sizes, needs, "logistic", weights=many[:, 0].copy(), vectors=many)
    monkeypatch.setattr(deep_export, "ONNX_BYTES_MAX", it.table_bytes)
    target = tmp_path / "net.onnx"
    assert "data_file" not in write_graph(it, target)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    monkeypatch.setattr(deep_export, "ONNX_BYTES_MAX", it.table_bytes - 1)
    told = write_graph(it, target)
    assert told["data_file"] == str(tmp_path / "net.onnx.data")
    assert (tmp_path / "net.onnx.data").stat().st_size >= many.nbytes
    given = records(it)
    assert_same(onnx_run(target, given), twin(it, given))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_tables_beyond_what_a_format_holds_are_refused_before_anything_is_done(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = exportable("wide_deep")
    monkeypatch.setattr(deep_export, "TABLE_BYTES_MAX", it.table_bytes - 1)
    with pytest.raises(ConfigError, match=f"take more than {it.table_bytes - 1} bytes"):
        write_graph(it, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())
    assert it.table_bytes == (FEATURES + 2) * 4 * 3


def test_the_dense_part_alone_has_the_nets_arrays_and_its_settings(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="comes with the extra `deep`")
    it = exportable("mlp")
    tied = it.net
    tied.layers[0].again = tied.layers[0].weight  # two names of one array
    config = DeepConfig(net="mlp", settings={"hidden": [6, 5]}, loss="classes", classes=3, dim=2)
    mean, scale = torch.from_numpy(it.mean), torch.from_numpy(it.scale)
    target = tmp_path / "net.safetensors"
    told = deep_export._write_dense(target, tied, mean, scale, config)
    with safetensors.safe_open(target, "np") as file:
        said = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert json.loads(said.pop("settings")) == {"hidden": [6, 5]}
    assert said == {"net": "mlp", "loss": "classes", "dim": "2", "pooling": "sum"}
    np.testing.assert_array_equal(arrays.pop("standardize.mean"), it.mean)
    np.testing.assert_array_equal(arrays.pop("standardize.scale"), it.scale)
    expected = tied.state_dict()
    assert set(arrays) == set(expected)
    for name, one in arrays.items():
        np.testing.assert_array_equal(one, expected[name].numpy())
    assert told["arrays"] == len(expected) + 2


def table_of(listed: Path) -> dict[tuple[str, str], int]:
    """Read the list of features as its users do: row numbers by field and text."""
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert lines[0] == ["row", "field", "text", "key"]
    assert [int(line[0]) for line in lines[1:]] == list(range(1, len(lines)))
    assert lines[-1][1:] == ["", "(any other)", ""]
    return {(field, text): int(row) for row, field, text, _ in lines[1:]}


def inputs_of_rows(kind: str, rows: list[dict[str, Any]], listed: Path) -> dict[str, np.ndarray]:
    """Return the graph's inputs of records, by nothing but those and the list of features."""
    if kind == "images":
        return {"dense": np.stack([row["image"] for row in rows])[:, None].astype("f4") / 255}
    if kind == "numbers":
        return {"dense": np.array([[row[name] for name in "abc"] for row in rows], np.float32)}
    numbers = table_of(listed)
    unknown = numbers["", "(any other)"]
    if kind == "clicks":
        dense = [[row[name] for name in ("size", "when")] for row in rows]
        features = [
            [numbers.get((field, row[field]), unknown) for field in ("color", "shape")]
            for row in rows
        ]
        made = {"dense": np.array(dense, np.float64).astype(np.float32)}
        return made | {"features": np.array(features, np.int64)}
    bags = np.zeros((len(rows), 2, 6), np.int64)
    for bag, row in zip(bags, rows, strict=True):
        for at, field in enumerate(("words", "place")):
            found = row[field] if field == "words" else [row[field]]
            bag[at, : len(found)] = [numbers.get((field, text), unknown) for text in found]
    return {"features": bags}


@pytest.fixture(scope="module", params=KINDS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param, learned(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_what_is_exported_predicts_what_the_command_line_does(
    net: tuple[str, Learned], suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="comes with the extra `onnx`")
    kind, it = net
    rows = it.rows[:400]
    target = tmp_path / f"net{suffix}"
    ended = run("export", it.out, target, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.report["checked"] is True
    listed = tmp_path / f"net{suffix}.features.tsv"
    assert listed.exists() == (kind in ("clicks", "bags"))
    names = {
        "clicks": {"dense": ["size", "when"], "fields": ["color", "shape"]},
        "bags": {"fields": ["words", "place"], "classes": list(CLASSES)},
        "numbers": {"dense": ["a", "b", "c"]},
        "images": {},
    }[kind]
    assert {key: ended.report.get(key) for key in names} == names
    given = inputs_of_rows(kind, rows, listed)
    if suffix == ".onnx":
        found = onnx_run(target, given)[1]
        session = pytest.importorskip("onnxruntime").InferenceSession(str(target))
        said = session.get_modelmeta().custom_metadata_map
        assert {key: json.loads(some) for key, some in said.items() if json.loads(some)} == names
    else:
        extra = {deep_export.NAMES: ""}
        torch.export.load(target, extra_files=extra)
        assert {k: v for k, v in json.loads(extra[deep_export.NAMES]).items() if v} == names
        found = torch.export.load(target).module()(*tensors(given))[1].numpy()
    asked = ("--probabilities",) if kind in ("bags", "images") else ()
    told = run("predict", it.out, it.log, *asked)
    assert told.code == 0, told.stderr
    lines = [line.split("\t") for line in told.stdout.splitlines()[: len(rows)]]
    expected = np.array(lines, np.float64).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    assert expected.std() > 0.01


@pytest.mark.parametrize("net", ["bags"], indirect=True)
def test_what_is_exported_takes_features_that_the_model_does_not_know(
    net: tuple[str, Learned], tmp_path: Path
) -> None:
    kind, it = net  # in its means they count as features of zeros
    rows = [
        {"label": "plain", "words": ["w1", "new", "newer"], "place": "p1"},
        {"label": "plain", "words": ["w1"], "place": "nowhere"},
        {"label": "plain", "words": [], "place": "p1"},
    ]
    log = tmp_path / "new.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = run("predict", it.out, log, "--probabilities")
    expected = np.array([line.split("\t") for line in told.stdout.splitlines()], np.float64)
    run("export", it.out, tmp_path / "net.pt2")
    given = inputs_of_rows(kind, rows, tmp_path / "net.pt2.features.tsv")
    found = torch.export.load(tmp_path / "net.pt2").module()(*tensors(given))[1].numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_predictions_of_classes_are_their_texts(net: tuple[str, Learned]) -> None:
    kind, it = net
    told = run("predict", it.out, it.log)
    assert told.code == 0, told.stderr
    lines = told.stdout.splitlines()
    assert len(lines) == len(it.rows)
    if kind in ("clicks", "numbers"):
        assert np.isfinite(np.array(lines, np.float64)).all()
        return
    shares = run("predict", it.out, it.log, "--probabilities").stdout.splitlines()
    best = np.array([line.split("\t") for line in shares], np.float64).argmax(1)
    names = CLASSES if kind == "bags" else ("0", "1")
    assert lines == [names[at] for at in best]
    right = sum(line == str(row["label"]) for line, row in zip(lines, it.rows, strict=True))
    report = run("evaluate", it.out, it.log, "--json").report
    assert report["accuracy"] == pytest.approx(right / len(lines))
    assert report["loss"] < report["baseline_loss"]


def test_the_tables_of_a_net_are_exported_as_those_of_other_models(
    net: tuple[str, Learned], tmp_path: Path
) -> None:
    kind, it = net
    ended = run("export", it.out, tmp_path / "net.npz")
    assert ended.code == 0, ended.stderr
    with np.load(tmp_path / "net.npz") as arrays:
        expected = {"clicks": (27, 4), "bags": (34, 4)}.get(kind, (0, 4))
        assert arrays["embeddings"].shape == expected


def test_only_nets_are_exported_as_graphs(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("y,c\n" + "1,a\n0,b\n" * 20)
    flags = ("--format", "delimited", "--header", "--column", "y=label")
    trained = run("train", log, *flags, "--column", "c=categorical", "--out", tmp_path / "out")
    assert trained.code == 0, trained.stderr
    for suffix in (".pt2", ".onnx", ".safetensors"):
        ended = run("export", tmp_path / "out", tmp_path / f"net{suffix}")
        assert ended.code == 2
        assert f"{suffix} is for nets (deep), but the model is lr" in ended.stderr


def test_what_would_end_a_line_or_a_column_of_the_list_is_escaped() -> None:
    fields = ["a=b", "a"]
    assert deep_export._in_line("a=b=x", fields) == "a=b\tx"
    assert deep_export._in_line("a=x\ty\nz\\", fields) == "a\tx\\ty\\nz\\\\"
    assert deep_export._in_line("", fields) == "\t"
    assert deep_export._in_line("other=x", fields) == "\tother=x"
