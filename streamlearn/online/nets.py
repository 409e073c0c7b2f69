"""The dense part of deep models: nets by name, and the contract that a user's own keeps.

A *factory* is called as ``factory(sizes, **settings)`` and returns a ``torch.nn.Module`` with two
methods, which is the whole contract:

``needs() -> Needs``
    What it wants pulled for each example, and how many logits it returns.

``forward(dense, embeddings, wide) -> logits``
    ==========  ==========================================================  ====================
    argument    what it is                                                  None where
    ==========  ==========================================================  ====================
    dense       float[rows, d], or images float[rows, channels, height,     the stream has none
                width]
    embeddings  float[rows, fields, dim], pulled from the parameter tables  ``needs().dim`` is 0
                as a leaf that requires its gradient
    wide        float[rows, fields], one weight a feature, pulled likewise  ``needs().wide`` is
                                                                            False
    logits      float[rows, outputs]                                        never
    ==========  ==========================================================  ====================

Embedding tables are none of the net's: they live in the parameter tables, and the gradients of the
two leaves are pushed there. Fields are bags or single features; absent ones are zeros.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamlearn.errors import ConfigError, DataError

__all__ = [
    "LOSSES",
    "NETS",
    "Needs",
    "Sizes",
    "check_labels",
    "inputs_of",
    "load_net",
    "losses_of",
]

_IMAGE_MIN: Final = 8  # three halvings leave one pixel
_PROBE_ROWS: Final = 2  # tells a net that drops the dimension of rows from one that keeps it


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a stream offers a net.

    Parameters
    ----------
    dense : tuple of int
        Shape of one example's dense part: (d,), (channels, height, width), or () for none.
    fields : int
        Embedded fields of an example; 0 for none.
    outputs : int
        Logits: 1 for binary labels and regression, else one a class.
    """

    dense: tuple[int, ...]
    fields: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a net wants pulled, and what it returns.

    Parameters
    ----------
    dim : int
        Length of an embedding; 0: no embeddings.
    wide : bool
        Whether it wants one weight a feature beside them.
    outputs : int
        Logits of an example.
    """

    dim: int
    wide: bool
    outputs: int


class _Mlp(nn.Module):
    """Layers of ReLU over the dense part and all embeddings, one after the other.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the layers.
    dim : int
        Length of an embedding.
    dropout : float
        Share of each hidden layer that is dropped in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        hidden: tuple[int, ...] = (256, 128),
        dim: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._needs = Needs(dim if sizes.fields else 0, wide=False, outputs=sizes.outputs)
        width = math.prod(sizes.dense) * bool(sizes.dense) + sizes.fields * self._needs.dim
        self.layers = _layers((width, *hidden, sizes.outputs), dropout)

    def needs(self) -> Needs:
        return self._needs

    def forward(self, dense: Tensor | None, embeddings: Tensor | None, wide: None) -> Tensor:
        return cast("Tensor", self.layers(_beside(dense, embeddings)))


class _WideDeep(nn.Module):
    """A linear model of all features beside a net of their embeddings.

    Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016, eq. 3:

        logit = sum_i w_i + linear(dense) + mlp([dense, embeddings])

    the bias being the net's.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        hidden: tuple[int, ...] = (256, 128),
        dim: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _want("wide_deep", sizes, fields=True, outputs=1)
        self.deep = _Mlp(sizes, hidden=hidden, dim=dim, dropout=dropout)
        flat = math.prod(sizes.dense) if sizes.dense else 0
        self.linear = nn.Linear(flat, 1, bias=False) if flat else None

    def needs(self) -> Needs:
        return Needs(self.deep.needs().dim, wide=True, outputs=1)

    def forward(self, dense: Tensor | None, embeddings: Tensor, wide: Tensor) -> Tensor:
        logits = wide.sum(1, keepdim=True) + self.deep(dense, embeddings, None)
        if self.linear is not None and dense is not None:
            logits = logits + self.linear(dense.flatten(1))
        return cast("Tensor", logits)


class _DeepFm(_WideDeep):
    """A factorization machine and a net over the same embeddings.

    Guo et al., "DeepFM", IJCAI 2017, eq. 2 and 4: wide and deep as above, and

        sum_{i<j} <v_i, v_j> = 1/2 sum_d ((sum_i v_id)^2 - sum_i v_id^2)

    in O(fields dim) (Rendle, ICDM 2010, lemma 3.1).
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        hidden: tuple[int, ...] = (256, 128),
        dim: int = 16,
        dropout: float = 0.0,
    ) -> None:
        _want("deepfm", sizes, fields=True, outputs=1)
        super().__init__(sizes, hidden=hidden, dim=dim, dropout=dropout)

    def forward(self, dense: Tensor | None, embeddings: Tensor, wide: Tensor) -> Tensor:
        pairs = embeddings.sum(1).square() - embeddings.square().sum(1)
        return super().forward(dense, embeddings, wide) + pairs.sum(1, keepdim=True) / 2


class _Dlrm(nn.Module):
    """Dots of all pairs of embeddings, and of each with the dense part's own.

    Naumov et al., "Deep Learning Recommendation Model", 2019, §2: a bottom net makes one vector of
    the dense part; it and the dots of all pairs of vectors, i < j, go through the top net.

    Parameters
    ----------
    bottom, top : sequence of int
        Widths of the hidden layers of either net; the bottom's last is `dim` by itself.
    dim : int
        Length of an embedding.
    """

    rows_of: Tensor
    columns_of: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        bottom: tuple[int, ...] = (128, 64),
        top: tuple[int, ...] = (256, 128),
        dim: int = 16,
    ) -> None:
        super().__init__()
        _want("dlrm", sizes, fields=True)
        self._needs = Needs(dim, wide=False, outputs=sizes.outputs)
        flat = math.prod(sizes.dense) if sizes.dense else 0
        self.bottom = nn.Sequential(_layers((flat, *bottom, dim)), nn.ReLU()) if flat else None
        vectors = sizes.fields + bool(flat)
        pairs = torch.triu_indices(vectors, vectors, 1)
        self.register_buffer("rows_of", pairs[0], persistent=False)
        self.register_buffer("columns_of", pairs[1], persistent=False)
        self.top = _layers((pairs.shape[1] + (dim if flat else 0), *top, sizes.outputs))

    def needs(self) -> Needs:
        return self._needs

    def forward(self, dense: Tensor | None, embeddings: Tensor, wide: None) -> Tensor:
        own: list[Tensor] = []
        if self.bottom is not None and dense is not None:
            own = [self.bottom(dense.flatten(1))]
            # under autocast the bottom's vector is narrower than the tables' floats
            embeddings = torch.cat([own[0].to(embeddings.dtype)[:, None], embeddings], 1)
        dots = torch.bmm(embeddings, embeddings.transpose(1, 2))
        return cast(
            "Tensor", self.top(torch.cat([*own, dots[:, self.rows_of, self.columns_of]], 1))
        )


class _Convnet(nn.Module):
    """Five convolutions and three layers, shaped as AlexNet, for small images.

    Krizhevsky et al., NIPS 2012, §3.5, with kernels of 3 and pools of 2 in place of 11 and 5 with
    strides: images of 8 to some 64 pixels a side.

    Parameters
    ----------
    width : int
        Channels of the first convolution; the others have 3, 6, 4 and 4 times as many.
    hidden : int
        Width of the two hidden layers.
    dropout : float
        Share of the inputs of either that is dropped in training.
    """

    def __init__(
        self, sizes: Sizes, *, width: int = 32, hidden: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if len(sizes.dense) != 3 or min(sizes.dense[1:]) < _IMAGE_MIN:
            raise ConfigError(
                "convnet wants images (channels, height, width) of at least "
                f"{_IMAGE_MIN} x {_IMAGE_MIN}; the stream's dense part is {sizes.dense}"
            )
        self._needs = Needs(0, wide=False, outputs=sizes.outputs)
        channels, down, across = sizes.dense
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 3 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(3 * width, 6 * width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(6 * width, 4 * width, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        flat = 4 * width * (down // 8) * (across // 8)
        self.layers = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(flat, hidden), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, sizes.outputs),
        )

    def needs(self) -> Needs:
        return self._needs

    def forward(self, dense: Tensor, embeddings: None, wide: None) -> Tensor:
        return cast("Tensor", self.layers(self.convolutions(dense).flatten(1)))


NETS: Final[Mapping[str, Callable[..., nn.Module]]] = {
    "convnet": _Convnet,
    "deepfm": _DeepFm,
    "dlrm": _Dlrm,
    "mlp": _Mlp,
    "wide_deep": _WideDeep,
}


def load_net(
    name: str, sizes: Sizes, *, seed: int, dim: int | None = None, **settings: Any
) -> tuple[nn.Module, Needs]:
    """Make a net by name, and check that it keeps the contract.

    Parameters
    ----------
    name : str
        One of ``NETS``, or ``package.module:factory``.
    sizes : Sizes
    seed : int
        Of the first weights: the same at every worker. The process's own dice stay as they were.
    dim : int, optional
        Length of an embedding in the tables: for factories that take ``dim``.
    **settings
        The factory's own.

    Returns
    -------
    torch.nn.Module
        In training mode, on the CPU.
    Needs

    Raises
    ------
    ConfigError
        There is no such net, it does not take the settings, or it breaks the contract: says which
        part, with expected and actual.
    """
    factory = _factory(name)
    if dim is not None and _takes(factory, "dim"):
        settings["dim"] = dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            net = factory(sizes, **settings)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"net {name!r} could not be made for {sizes} with settings {settings}",
                cause=f"{type(error).__name__}: {error}",
            ) from error
        needs = _needs(name, net, sizes)
        _probe(name, net, sizes, needs)
    return net.train(), needs


def inputs_of(
    sizes: Sizes, needs: Needs, rows: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return normal random inputs as the contract shapes them: to probe, warm up or export a net.

    Returns
    -------
    dense, embeddings, wide : Tensor or None
        The latter two are leaves that require their gradients.
    """
    dense = torch.randn((rows, *sizes.dense), dtype=dtype) if sizes.dense else None
    shape = (rows, sizes.fields, needs.dim)
    embeddings = torch.randn(shape, dtype=dtype, requires_grad=True) if needs.dim else None
    wide = torch.randn(shape[:2], dtype=dtype, requires_grad=True) if needs.wide else None
    return dense, embeddings, wide


def _logistic(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        logits[:, 0], labels.to(logits.dtype), reduction="none"
    )


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels.long(), reduction="none")


def _squared(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits[:, 0] - labels.to(logits.dtype)).square()


LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "logistic": _logistic,
    "classes": _classes,
    "squared": _squared,
}


def losses_of(loss: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's loss, not yet weighted or averaged.

    Parameters
    ----------
    loss : {"logistic", "classes", "squared"}
        -log sigmoid of the label's side for labels 0 and 1; -log softmax at the label's class;
        (logit - label)^2.
    logits : float[rows, outputs]
        As the net returns them; taken to float32 where they are narrower (autocast).
    labels : [rows]
        From ``check_labels``.

    Returns
    -------
    float32[rows], or float64 of float64 logits
    """
    return LOSSES[loss](logits if logits.dtype == torch.float64 else logits.float(), labels)


def check_labels(loss: str, labels: Tensor, outputs: int) -> None:
    """Check a minibatch's labels, on the CPU, before they reach a device.

    Raises
    ------
    DataError
        A label is not one of the loss's; names the first, its row, and what is allowed. A device
        would tell a class out of range by an assertion that names nothing.
    """
    if loss == "logistic":
        right, allowed = (labels == 0) | (labels == 1), "0 or 1"
    elif loss == "classes":
        right = (labels >= 0) & (labels < outputs) & (labels == labels.floor())
        allowed = f"a class from 0 to {outputs - 1}"
    else:
        right, allowed = torch.isfinite(labels), "a finite number"
    if not bool(right.all()):
        row = int((~right).nonzero()[0, 0])
        raise DataError(f"label {labels[row].item():g} in row {row} is not {allowed}")


def _layers(widths: tuple[int, ...], dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers with ReLU (and dropout) between them, none behind the last."""
    if min(widths) < 1:
        raise ConfigError(
            f"a net's layers are at least 1 wide, not {list(widths)} (inputs first, outputs last)"
        )
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        if i:
            layers += [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
        layers.append(nn.Linear(widths[i], widths[i + 1]))
    return nn.Sequential(*layers)


def _beside(dense: Tensor | None, embeddings: Tensor | None) -> Tensor:
    return torch.cat([one.flatten(1) for one in (dense, embeddings) if one is not None], 1)


def _want(name: str, sizes: Sizes, *, fields: bool, outputs: int | None = None) -> None:
    if fields and not sizes.fields:
        raise ConfigError(
            f"{name} embeds fields, and the stream has none", hint="take mlp or convnet"
        )
    if outputs is not None and sizes.outputs != outputs:
        raise ConfigError(
            f"{name} adds one weight a feature to one logit; the labels want {sizes.outputs}",
            hint="take mlp or dlrm for classes",
        )


@contextmanager
def _here() -> Iterator[None]:
    """Find modules in the working directory, too, as a script there would."""
    sys.path.append("")
    try:
        yield
    finally:
        sys.path.remove("")


def _factory(name: str) -> Callable[..., Any]:
    """Find a factory by name."""
    module, colon, attribute = name.partition(":")
    if not colon:
        if name in NETS:
            return NETS[name]
        near = get_close_matches(name, NETS, 1)
        raise ConfigError(
            f"there is no net {name!r}; there are {', '.join(NETS)}, or package.module:factory",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    try:
        with _here():
            found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:
        raise ConfigError(
            f"net {name!r}: module {module!r} cannot be imported",
            cause=f"{type(error).__name__}: {error}",
        ) from error
    if not callable(found):
        what = "has no" if found is None else f"has a {type(found).__name__}, not a function,"
        raise ConfigError(f"net {name!r}: module {module!r} {what} {attribute!r}")
    return cast("Callable[..., Any]", found)


def _takes(factory: Callable[..., Any], setting: str) -> bool:
    """Say whether a factory takes a setting by name."""
    try:
        return setting in inspect.signature(factory).parameters
    except ValueError:  # of what is written in C nothing is known
        return False


def _needs(name: str, net: Any, sizes: Sizes) -> Needs:
    """Ask a net what it needs, and check the answer."""
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"net {name!r}: its factory returned {type(net).__name__}, not a torch.nn.Module"
        )
    asked = getattr(net, "needs", None)
    if not callable(asked):
        raise ConfigError(
            f"net {name!r}: {type(net).__name__} has no method needs()",
            hint="return streamlearn.online.nets.Needs(dim, wide, outputs) from it",
        )
    needs = asked()
    if not isinstance(needs, Needs):
        raise ConfigError(
            f"net {name!r}: needs() returned {type(needs).__name__}, "
            "not streamlearn.online.nets.Needs"
        )
    if needs.outputs != sizes.outputs:
        raise ConfigError(
            f"net {name!r} returns {needs.outputs} logits; the labels want {sizes.outputs}"
        )
    if needs.dim < 0 or ((needs.dim or needs.wide) and not sizes.fields):
        raise ConfigError(f"net {name!r} wants {needs}, and the stream has {sizes.fields} fields")
    return needs


def _probe(name: str, net: nn.Module, sizes: Sizes, needs: Needs) -> None:
    """Send random rows through a net and back, and check the shapes and gradients that come."""
    inputs = inputs_of(sizes, needs, _PROBE_ROWS)
    given = ", ".join(
        f"{what} {list(one.shape)}" if one is not None else f"{what} None"
        for what, one in zip(("dense", "embeddings", "wide"), inputs, strict=True)
    )
    net.eval()  # statistics of batches stay as they are
    try:
        logits = net(*inputs)
    except Exception as error:
        raise ConfigError(
            f"net {name!r}: forward({given}) failed", cause=f"{type(error).__name__}: {error}"
        ) from error
    expected = f"a float tensor [{_PROBE_ROWS}, {needs.outputs}]"
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"net {name!r}: forward({given}) returned {type(logits).__name__}, not {expected}"
        )
    if logits.shape != (_PROBE_ROWS, needs.outputs) or not logits.is_floating_point():
        raise ConfigError(
            f"net {name!r}: forward({given}) returned {str(logits.dtype)[6:]}"
            f"{list(logits.shape)}, not {expected}"
        )
    leaves = {"embeddings": inputs[1], "wide": inputs[2]}
    named = {what: one for what, one in leaves.items() if one is not None}
    if not named:
        return
    reached = (
        torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True)
        if logits.requires_grad
        else [None] * len(named)
    )
    for what, gradient in zip(named, reached, strict=True):
        if gradient is None:
            raise ConfigError(
                f"net {name!r} asks for {what}, and no gradient comes back to them",
                hint="use them in forward, without detach, or do not ask for them in needs()",
            )
