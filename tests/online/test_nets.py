"""Nets against NumPy in float64, their gradients against differences, and broken contracts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
from torch import nn  # noqa: E402

from streamlearn.errors import ConfigError, DataError  # noqa: E402
from streamlearn.online.nets import (  # noqa: E402
    NETS,
    Needs,
    Sizes,
    check_labels,
    inputs_of,
    load_net,
    losses_of,
)

ROWS = 5
SMALL: dict[str, tuple[Sizes, dict[str, Any]]] = {
    "mlp": (Sizes((3,), 4, 3), {"hidden": (6, 5), "dim": 2}),
    "wide_deep": (Sizes((3,), 4, 1), {"hidden": (6, 5), "dim": 2}),
    "deepfm": (Sizes((3,), 4, 1), {"hidden": (6, 5), "dim": 2}),
    "dlrm": (Sizes((3,), 4, 2), {"bottom": (6,), "top": (5,), "dim": 2}),
    "convnet": (Sizes((1, 8, 9), 0, 3), {"width": 2, "hidden": 5, "dropout": 0.0}),
}


def small(name: str, dtype: Any = torch.float64) -> tuple[nn.Module, Needs, tuple[Any, ...]]:
    sizes, settings = SMALL[name]
    net, needs = load_net(name, sizes, seed=4, **settings)
    torch.manual_seed(1)
    return net.to(dtype), needs, inputs_of(sizes, needs, ROWS, dtype)


def arrays(*tensors: Any) -> list[Any]:
    return [None if one is None else one.detach().numpy() for one in tensors]


def through(layers: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """A net of linear layers with ReLU between, by hand."""
    linear = [one for one in layers if isinstance(one, nn.Linear)]
    for i, one in enumerate(linear):
        weight, bias = arrays(one.weight, one.bias)
        x = x @ weight.T + bias
        if i < len(linear) - 1:
            x = np.maximum(x, 0)
    return x


def test_a_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_of_this_place.py").write_text(
        "from torch import nn\n"
        "from streamlearn.online.nets import Needs\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, sizes): super().__init__(sizes.dense[0], 1)\n"
        "    def needs(self): return Needs(0, False, 1)\n"
        "    def forward(self, dense, embeddings, wide): return super().forward(dense)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = sys.path[:]
    net, _ = load_net("net_of_this_place:Net", Sizes((3,), 0, 1), seed=0)
    assert net.in_features == 3
    assert sys.path == before


def test_mlp_equals_numpy() -> None:
    net, _, inputs = small("mlp")
    dense, embeddings, _ = arrays(*inputs)
    expected = through(net.layers, np.hstack([dense, embeddings.reshape(ROWS, -1)]))
    assert np.allclose(net(*inputs).detach(), expected, rtol=1e-12)


def by_hand_wide_deep(net: Any, dense: Any, embeddings: Any, wide: Any) -> np.ndarray:
    deep = through(net.deep.layers, np.hstack([dense, embeddings.reshape(ROWS, -1)]))
    return deep + wide.sum(1, keepdims=True) + dense @ net.linear.weight.detach().numpy().T


def test_wide_deep_equals_numpy() -> None:
    net, needs, inputs = small("wide_deep")
    assert needs == Needs(2, wide=True, outputs=1)
    expected = by_hand_wide_deep(net, *arrays(*inputs))
    assert np.allclose(net(*inputs).detach(), expected, rtol=1e-12)


def test_deepfm_equals_explicit_pairs() -> None:
    net, _, inputs = small("deepfm")
    dense, embeddings, wide = arrays(*inputs)
    expected = by_hand_wide_deep(net, dense, embeddings, wide)
    for row in range(ROWS):
        for i in range(4):
            for j in range(i + 1, 4):
                expected[row] += embeddings[row, i] @ embeddings[row, j]
    assert np.allclose(net(*inputs).detach(), expected, rtol=1e-12)


def test_dlrm_equals_explicit_dots() -> None:
    net, _, inputs = small("dlrm")
    dense, embeddings, _ = arrays(*inputs)
    bottom = np.maximum(through(net.bottom[0], dense), 0)
    joined = []
    for row in range(ROWS):
        vectors = [bottom[row], *embeddings[row]]
        dots = [vectors[i] @ vectors[j] for i in range(5) for j in range(i + 1, 5)]
        joined.append([*bottom[row], *dots])
    assert np.allclose(net(*inputs).detach(), through(net.top, np.array(joined)), rtol=1e-12)


def convolve(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    weight, bias = arrays(layer.weight, layer.bias)
    rows, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((rows, len(weight), height, width))
    for i in range(height):
        for j in range(width):
            patch = padded[:, :, i : i + 3, j : j + 3]
            out[:, :, i, j] = np.einsum("rchw,ochw->ro", patch, weight) + bias
    return np.maximum(out, 0)


def pool(x: np.ndarray) -> np.ndarray:
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    parts = [x[:, :, i:height:2, j:width:2] for i in range(2) for j in range(2)]
    return np.max(parts, axis=0)


def test_convnet_equals_numpy() -> None:
    net, needs, inputs = small("convnet")
    assert needs == Needs(0, wide=False, outputs=3)
    layers = [one for one in net.convolutions if isinstance(one, nn.Conv2d)]
    x = inputs[0].numpy()
    for i, layer in enumerate(layers):
        x = convolve(x, layer)
        if i in (0, 1, 4):
            x = pool(x)
    expected = through(net.layers, x.reshape(ROWS, -1))
    assert np.allclose(net(*inputs).detach(), expected, rtol=1e-11)


LOSS_OF = {"mlp": "classes", "wide_deep": "logistic", "deepfm": "squared"}


@pytest.mark.parametrize("name", NETS)
def test_gradients_equal_differences(name: str) -> None:
    net, _, inputs = small(name)
    loss = LOSS_OF.get(name, "classes")
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    leaves = [one for one in inputs if one is not None and one.requires_grad]
    tensors = [*leaves, *net.parameters()]

    def value() -> Any:
        return losses_of(loss, net(*inputs), labels).sum()

    gradients = torch.autograd.grad(value(), tensors)
    dice = np.random.default_rng(3)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        flat = tensor.detach().view(-1)
        for at in dice.choice(len(flat), min(6, len(flat)), replace=False):
            kept, step = float(flat[at]), 1e-6
            with torch.no_grad():
                flat[at] = kept + step
                above = value()
                flat[at] = kept - step
                below = value()
                flat[at] = kept
            slope = float(above - below) / (2 * step)
            assert float(gradient.reshape(-1)[at]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", NETS)
def test_bfloat16_autocast_runs_and_comes_close(name: str) -> None:
    net, needs, inputs = small(name, torch.float32)
    exact = net(*inputs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(*inputs)
    loss = losses_of("squared", logits, torch.zeros(ROWS)).mean()
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.allclose(logits.float().detach(), exact, rtol=0.05, atol=0.1)
    for leaf, wanted in zip(inputs[1:], (needs.dim > 0, needs.wide), strict=True):
        assert (leaf is not None) == wanted
        if wanted:
            assert torch.isfinite(leaf.grad).all()
    assert all(one.grad.dtype == torch.float32 for one in net.parameters())


@pytest.mark.parametrize("name", ["wide_deep", "deepfm", "dlrm", "mlp"])
def test_nets_do_without_a_dense_part(name: str) -> None:
    sizes = Sizes((), 3, 1)
    net, needs = load_net(name, sizes, seed=1)
    assert net(*inputs_of(sizes, needs, 2)).shape == (2, 1)


def test_mlp_does_without_fields_and_takes_images() -> None:
    _, needs = load_net("mlp", Sizes((1, 4, 4), 0, 10), seed=1)
    assert needs == Needs(0, wide=False, outputs=10)


def test_same_seed_makes_the_same_weights_and_leaves_the_dice_alone() -> None:
    sizes = Sizes((3,), 0, 1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, _ = load_net("mlp", sizes, seed=5)
    assert torch.equal(torch.rand(3), expected)
    other, _ = load_net("mlp", sizes, seed=5)
    third, _ = load_net("mlp", sizes, seed=6)
    assert torch.equal(one.layers[0].weight, other.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, third.layers[0].weight)
    assert one.training


def test_losses_equal_numpy() -> None:
    torch.manual_seed(2)
    logits = torch.randn(6, 3, dtype=torch.float64)
    z = logits.numpy()
    binary, classes = np.array([0, 1, 1, 0, 0, 1]), np.array([0, 2, 1, 1, 0, 2])
    p = 1 / (1 + np.exp(-z[:, 0]))
    expected = -np.log(np.where(binary == 1, p, 1 - p))
    assert np.allclose(losses_of("logistic", logits, torch.tensor(binary)), expected)
    shares = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(6), classes])
    assert np.allclose(losses_of("classes", logits, torch.tensor(classes)), expected)
    expected = (z[:, 0] - classes) ** 2
    assert np.allclose(losses_of("squared", logits, torch.tensor(classes)), expected)


@pytest.mark.parametrize(
    ("loss", "label", "told"),
    [
        ("logistic", 2.0, "label 2 in row 1 is not 0 or 1"),
        ("classes", 3.0, "label 3 in row 1 is not a class from 0 to 2"),
        ("classes", -1.0, "label -1 in row 1 is not a class from 0 to 2"),
        ("classes", 0.5, "label 0.5 in row 1 is not a class from 0 to 2"),
        ("classes", float("nan"), "label nan in row 1 is not a class from 0 to 2"),
        ("squared", float("inf"), "label inf in row 1 is not a finite number"),
    ],
)
def test_label_out_of_range_is_named(loss: str, label: float, told: str) -> None:
    check_labels(loss, torch.tensor([0.0, 1.0]), 3)
    with pytest.raises(DataError) as caught:
        check_labels(loss, torch.tensor([0.0, label, label]), 3)
    assert caught.value.message == told


class Own(nn.Module):
    """A user's net; each test breaks one thing of it."""

    def __init__(
        self,
        sizes: Sizes,
        needs: Any = None,
        answer: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(sizes.fields * 2, 1)
        self._needs = needs or Needs(2, wide=False, outputs=1)
        self._answer = answer

    def needs(self) -> Any:
        return self._needs

    def forward(self, dense: Any, embeddings: Any, wide: Any) -> Any:
        logits = self.layer(embeddings.flatten(1))
        return self._answer(logits) if self._answer else logits


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("their_nets")
    module.Own = Own  # type: ignore[attr-defined]
    module.width = 3  # type: ignore[attr-defined]
    module.number = lambda sizes: 7  # type: ignore[attr-defined]
    module.plain = lambda sizes: nn.Linear(1, 1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_nets", module)
    return module


SIZES = Sizes((), 3, 1)


@pytest.mark.usefixtures("own")
def test_a_users_net_is_loaded_by_name() -> None:
    net, needs = load_net("their_nets:Own", SIZES, seed=1)
    assert isinstance(net, Own)
    assert needs == Needs(2, wide=False, outputs=1)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("depfm", {}, r"no net 'depfm'.*\nhint: did you mean deepfm\?"),
        ("nowhere.at_all:net", {}, r"'nowhere.at_all' cannot be imported\ncause: ModuleNotFound"),
        ("their_nets:Other", {}, r"'their_nets' has no 'Other'"),
        ("their_nets:width", {}, r"has a int, not a function, 'width'"),
        ("their_nets:number", {}, r"returned int, not a torch\.nn\.Module"),
        ("their_nets:plain", {}, r"Linear has no method needs\(\)"),
        ("their_nets:Own", {"depth": 3}, r"could not be made[\s\S]*unexpected keyword.*'depth'"),
        ("their_nets:Own", {"needs": (2, False)}, r"needs\(\) returned tuple, not"),
        ("their_nets:Own", {"needs": Needs(2, False, 4)}, r"returns 4 logits; the labels want 1"),
        (
            "their_nets:Own",
            {"needs": Needs(5, False, 1)},
            r"forward\(dense None, embeddings \[2, 3, 5\], wide None\) failed\ncause: RuntimeError",
        ),
        (
            "their_nets:Own",
            {"answer": lambda logits: logits[:, 0]},
            r"returned float32\[2\], not a float tensor \[2, 1\]",
        ),
        ("their_nets:Own", {"answer": lambda logits: None}, "returned NoneType, not a float"),
        ("their_nets:Own", {"answer": lambda logits: logits > 0}, r"returned bool\[2, 1\]"),
        ("their_nets:Own", {"answer": torch.Tensor.detach}, "no gradient comes back"),
        ("their_nets:Own", {"needs": Needs(2, True, 1)}, "asks for wide, and no gradient"),
        ("mlp", {"hidden": (0,)}, r"at least 1 wide, not \[48, 0, 1\]"),
        ("convnet", {}, r"convnet wants images.*dense part is \(\)"),
    ],
)
def test_a_broken_contract_is_told(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_net(name, SIZES, seed=1, **settings)
    assert re.search(told, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("name", ["wide_deep", "deepfm"])
def test_nets_of_one_logit_refuse_classes_and_streams_without_fields(name: str) -> None:
    with pytest.raises(ConfigError, match="the labels want 7"):
        load_net(name, Sizes((3,), 2, 7), seed=1)
    with pytest.raises(ConfigError, match="the stream has none"):
        load_net(name, Sizes((3,), 0, 1), seed=1)
