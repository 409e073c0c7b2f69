"""What is in a net: its layers, and the features that weigh most, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
from torch import nn  # noqa: E402

from streamlearn import inspection  # noqa: E402
from streamlearn.deep_inspection import layers_of, longest  # noqa: E402
from streamlearn.inspection import looked_at  # noqa: E402
from tests.deep_parts import Learned, learned  # noqa: E402
from tests.runs import run  # noqa: E402


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    return learned(tmp_path_factory.mktemp("clicks"), "clicks")


def test_layers_are_modules_with_parameters_of_their_own() -> None:
    net: Any = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 2, bias=False)))
    net.register_parameter("shift", nn.Parameter(torch.zeros(2)))
    net.again = net[0]  # known by two names, and counted once
    assert layers_of(net) == [
        {"layer": "-", "kind": "Sequential", "shape": "2", "parameters": 2},
        {"layer": "0", "kind": "Linear", "shape": "5 x 3", "parameters": 20},
        {"layer": "2.0", "kind": "Linear", "shape": "2 x 5", "parameters": 10},
    ]


def test_the_longest_embeddings_are_those_of_largest_norm(clicks: Learned) -> None:
    with looked_at(clicks.out) as model:
        keys = np.concatenate([part.keys for part in model.parts(embeddings=False)])
        norms = np.linalg.norm(model.embeddings_at(keys), axis=1)
        order = np.argsort(-norms)
        for top in (0, 1, 5, 100):
            found, lengths = longest(model, top)
            assert found.tolist() == keys[order][:top].tolist()
            np.testing.assert_allclose(lengths, norms[order][:top], rtol=1e-6)


def test_a_net_learned_on_a_gpu_is_looked_at_without_one(
    clicks: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = inspection.stored_job(clicks.out)
    there = msgspec.structs.replace(job.compute, device="cuda:7")
    monkeypatch.setattr(
        inspection, "stored_job", lambda _: msgspec.structs.replace(job, compute=there)
    )
    with looked_at(clicks.out) as model:
        assert model.job.compute.device == "cpu"


def test_a_net_says_its_inputs_layers_and_features(clicks: Learned) -> None:
    ended = run("inspect", clicks.out, "--top", 3, "--json")
    assert ended.code == 0, ended.stderr
    report = ended.report
    assert (report["model"], report["net"]) == ("deep", "deepfm")
    assert (report["dense"], report["outputs"]) == ("2", 1)
    assert report["fields"] == ["color", "shape"]
    widths = [layer["shape"] for layer in report["layers"]]
    assert widths == ["8 x 10", "1 x 8", "1 x 2"]
    assert report["parameters"] == 8 * 10 + 8 + 8 + 1 + 2
    assert report["steps"] == 12
    assert report["skipped_steps"] == 0
    assert report["features"] == 27
    assert {"loss", "accuracy", "auc"} <= report.keys()
    assert "intercept" not in report
    names = {f"color=c{i}" for i in range(20)} | {f"shape=s{i}" for i in range(7)}
    for table in ("weights", "largest_embeddings"):
        assert len(report[table]) == 3
        assert {row["feature"] for row in report[table]} <= names
    text = run("inspect", clicks.out).stdout
    assert "layers\n" in text
    assert "largest embeddings\n" in text


def test_a_net_without_weights_says_nothing_of_them(tmp_path: Path) -> None:
    report = run("inspect", learned(tmp_path, "bags", 600).out, "--json").report
    assert len(report["largest_embeddings"]) == 20
    assert not {"weights", "nonzeros", "sparsity", "dense"} & report.keys()
    assert report["outputs"] == 3


@pytest.mark.parametrize("kind", ["images", "numbers"])
def test_a_net_without_features_can_be_looked_into(kind: str, tmp_path: Path) -> None:
    report = run("inspect", learned(tmp_path, kind, 600).out, "--json").report
    assert report["dense"] == ("1 x 8 x 8" if kind == "images" else "3")
    assert report["features"] == 0
    assert not {"weights", "largest_embeddings", "dimensions", "fields"} & report.keys()
    assert report["parameters"] == sum(layer["parameters"] for layer in report["layers"]) > 0
