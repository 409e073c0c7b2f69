"""A deep model's way into other runtimes: one graph from records' numbers to predictions.

What is exported takes a record's dense part as it stands in the record, NaN where a number is
missing, and of each field the row numbers of its features. Standardisation, embeddings and wide
weights are constants of the graph, so whoever runs it needs nothing of streamlearn but the list of
features beside it. Computed in float32, whatever the net was trained with.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamlearn.config import classes_of
from streamlearn.errors import ConfigError, RunError
from streamlearn.inspection import columns_of
from streamlearn.messages import F32, U64
from streamlearn.online.formats import Deep, Format, open_format
from streamlearn.online.nets import Needs, Sizes
from streamlearn.online.schema import WILDCARD
from streamlearn.online.standardizing import LIMIT
from streamlearn.predicted import one_line

if TYPE_CHECKING:
    from streamlearn.config import DeepConfig
    from streamlearn.model import Model
    from streamlearn.online.deep import DeepSolver

__all__ = ["NAMES", "Exportable", "Graph", "export_deep", "graph_of", "write_graph"]

# The file within a .pt2 that names what goes in and comes out.
NAMES: Final = "streamlearn.json"
# Bytes of embeddings and wide weights that are exported: memory has them three times meanwhile.
TABLE_BYTES_MAX: Final = 16 << 30
# Of those, bytes that stand in a file of ONNX itself, a protobuf, which ends at 2 GiB; where there
# are more, all arrays stand beside it.
ONNX_BYTES_MAX: Final = 1 << 30
# What a runtime may differ from torch by, of the largest logit: its sums have another order.
TOLERANCE: Final = 1e-4
# Rows that the graph is traced and checked with; 1 would be taken for a constant.
_TRACED: Final = 3
_CHECKED: Final = (1, 7)
# Features of a field that it is checked with.
_WIDTH: Final = 2
# Formats in which a field of a record has at most one feature.
_SINGLE: Final = ("criteo", "delimited")
# Rows of the list of features that are written at once.
_LINES: Final = 1 << 16

_log = logging.getLogger("streamlearn.export")


@dataclass(frozen=True, slots=True)
class Exportable:
    """All that a deep model predicts with.

    Attributes
    ----------
    net : torch.nn.Module
        Left as it is.
    sizes : Sizes
    needs : Needs
    loss : str
        ``logistic``, ``classes`` or ``squared``: what a logit says.
    pooling : str
        ``sum`` or ``mean``: what becomes of several features of one field.
    bags : bool
        Whether a field may have several features.
    valued : bool
        Whether features have values, which their embeddings and weights are multiplied by.
    mean, scale : float64 arrays or None
        Of the dense part, so that they broadcast to it; None: it is not standardised.
    weights : float32[n]
        Wide weights; empty where the net needs none.
    vectors : float32[n, dim]
        Embeddings, zeros where a feature has none; of no columns where the net needs none.
    """

    net: nn.Module
    sizes: Sizes
    needs: Needs
    loss: str
    pooling: str = "sum"
    bags: bool = False
    valued: bool = False
    mean: np.ndarray[Any, Any] | None = None
    scale: np.ndarray[Any, Any] | None = None
    weights: F32 | None = None
    vectors: F32 | None = None

    @property
    def features(self) -> int:
        """Features that there are rows for."""
        tables = (self.weights, self.vectors)
        return max((len(table) for table in tables if table is not None), default=0)

    @property
    def table_bytes(self) -> int:
        """Bytes of embeddings and wide weights."""
        return (self.features + 2) * 4 * (self.needs.dim + self.needs.wide)


class Graph(nn.Module):
    """From what records have to logits and predictions, in evaluation mode.

    Inputs are those of ``dense``, ``features`` and ``values`` that :attr:`inputs` names, in that
    order.

    ===========  ================================================================================
    input        what it is
    ===========  ================================================================================
    dense        float32[rows, *shape], as records have it; NaN where a number is missing
    features     int64[rows, fields], or [rows, fields, width] where a field may have several:
                 row numbers of features. 0: none; n + 1: one that the model does not know
    values       float32, shaped as ``features``, where features have values
    ===========  ================================================================================

    Outputs are ``logits``, float32[rows, outputs], and ``prediction``: float32[rows] (the
    probability of label 1, or the number), or float32[rows, classes] (of each class).
    """

    mean_high: Tensor
    mean_low: Tensor
    scale: Tensor
    weights: Tensor
    vectors: Tensor

    def __init__(self, it: Exportable) -> None:
        super().__init__()
        self.net = _plain(it.net)
        self.needs = it.needs
        self.loss = it.loss
        self.pools_mean = it.pooling == "mean"
        self.bags = it.bags
        self.takes = (bool(it.sizes.dense), bool(it.needs.dim or it.needs.wide))
        self.valued = it.valued and self.takes[1]
        self.standardizes = it.mean is not None and it.scale is not None
        if self.standardizes:
            # the sum of two floats is as good as a double, and every runtime has floats
            mean = torch.as_tensor(it.mean, dtype=torch.float64)
            high = mean.float()
            self.register_buffer("mean_high", high)
            self.register_buffer("mean_low", (mean - high.double()).float())
            self.register_buffer("scale", torch.as_tensor(it.scale).float())
        if it.needs.wide:
            self.register_buffer("weights", _table(cast("F32", it.weights)[:, None]))
        if it.needs.dim:
            self.register_buffer("vectors", _table(cast("F32", it.vectors)))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        dense, features = self.takes
        named = (("dense", dense), ("features", features), ("values", self.valued))
        return tuple(name for name, taken in named if taken)

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and predictions."""
        by_name = dict(zip(self.inputs, given, strict=True))
        dense = self._standardized(by_name["dense"]) if "dense" in by_name else None
        vectors = wide = None
        if "features" in by_name:
            vectors, wide = self._pulled(by_name["features"], by_name.get("values"))
        logits = self.net(dense, vectors, wide).float()
        return logits, self._prediction(logits)

    def _standardized(self, dense: Tensor) -> Tensor:
        there = dense.isfinite()
        if not self.standardizes:
            return torch.where(there, dense, 0.0)
        scaled = ((dense - self.mean_high) - self.mean_low) * self.scale
        # a number beyond what floats have may be there all the same
        return torch.where(there, scaled.clamp(-LIMIT, LIMIT), 0.0)

    def _pulled(
        self, features: Tensor, values: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what the net needs of features: of each field its embedding and wide weight."""
        if not self.bags:
            features = features[:, :, None]
            values = values[:, :, None] if values is not None else None
        vectors = wide = None
        if self.needs.dim:
            found = functional.embedding(features, self.vectors)
            vectors = (found if values is None else found * values[..., None]).sum(2)
            if self.pools_mean:
                vectors = vectors / (features != 0).sum(2).clamp(min=1)[..., None]
        if self.needs.wide:
            weights = functional.embedding(features, self.weights)[..., 0]
            wide = (weights if values is None else weights * values).sum(2)
        return vectors, wide

    def _prediction(self, logits: Tensor) -> Tensor:
        if self.loss == "classes":
            return logits.softmax(1)
        return logits[:, 0].sigmoid() if self.loss == "logistic" else logits[:, 0]


def export_deep(model: Model, target: Path) -> dict[str, Any]:
    """Write a deep model as a graph, or its dense part alone, in the format of the target's suffix.

    ``.pt2`` (torch.export), ``.onnx``, or ``.safetensors``: the dense part's arrays. Beside a graph
    of features stands their list, ``FILE.features.tsv``: row number, field, text, key.

    Raises
    ------
    ConfigError
        The tables are too large for the format, the net cannot be exported, or what writes it is
        missing.
    RunError
        What was written computes something else than the model.
    OSError
        A file cannot be written.
    """
    step = cast("DeepSolver", model.solver).step
    config = cast("DeepConfig", model.job.model)
    mean, scale = (None, None) if step.standardizer is None else step.standardizer.as_tensors()
    if target.suffix == ".safetensors":
        return _write_dense(target, step.net, mean, scale, config)
    keys, weights, vectors = _tables(model, step.needs)
    deep = Deep(config.loss, classes_of(model.job))
    format_ = open_format(model.job.source, labelled=False, deep=deep)
    it = Exportable(
        net=step.net,
        sizes=Sizes(model.dense, len(model.names.fields), step.needs.outputs),
        needs=step.needs,
        loss=config.loss,
        pooling=config.pooling,
        bags=format_.name not in _SINGLE,
        valued=format_.has_values,
        mean=None if mean is None else mean.numpy(),
        scale=None if scale is None else scale.numpy(),
        weights=weights,
        vectors=vectors,
    )
    names = {
        "dense": _dense_names(model, format_),
        "fields": list(model.names.fields) if it.needs.dim or it.needs.wide else [],
        "classes": list(model.job.source.classes),
    }
    told = write_graph(it, target, names) | {name: some for name, some in names.items() if some}
    if it.needs.dim or it.needs.wide:
        listed = target.with_name(f"{target.name}.features.tsv")
        _write_features(listed, model, keys)
        told["features_file"] = str(listed)
    return told


def _dense_names(model: Model, format_: Format) -> list[str]:
    """Return the names of dense columns: as learned, or as the settings have them."""
    columns = model.job.source.columns
    by_header = not columns or WILDCARD in columns  # which alone would know them
    return list(model.dense_names or (() if by_header else format_.dense_names))


def graph_of(it: Exportable) -> Graph:
    """Return a graph in evaluation mode, with parameters and buffers of its own, on the CPU."""
    return Graph(it).eval().requires_grad_(requires_grad=False)


def write_graph(
    it: Exportable, target: Path, names: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, Any]:
    """Write a graph as ``.pt2`` or ``.onnx``, and check what was written; return what is told.

    Parameters
    ----------
    names : mapping
        What stands in the file for who reads it, as JSON: metadata of ONNX, by name; in a ``.pt2``
        the extra file :data:`NAMES`.

    Raises
    ------
    ConfigError, RunError, OSError
        As :func:`export_deep` does.
    """
    _check_size(it.table_bytes)
    graph = graph_of(it)
    program = _traced(graph, it)
    checked = True
    told: dict[str, Any] = {"file": str(target)}
    if target.suffix == ".pt2":
        with _quiet():
            torch.export.save(program, target, extra_files={NAMES: json.dumps(dict(names))})
        reloaded = torch.export.load(target).module()
        _check(graph, it, lambda given: reloaded(*given), target)
    else:
        apart = it.table_bytes > ONNX_BYTES_MAX
        _write_onnx(graph, program, names, target, apart=apart)
        checked = _check_onnx(graph, it, target)
        if apart:
            told["data_file"] = f"{target}.data"
    return told | {
        "inputs": {name: list(one.shape[1:]) for name, one in _example(graph, it, 1).items()},
        "outputs": it.needs.outputs,
        "features": it.features,
        "table_bytes": it.table_bytes if it.features else 0,
        "checked": checked,
    }


def _plain(net: nn.Module) -> nn.Module:
    """Return a copy of a net in float32 on the CPU, without its compiled shell."""
    plain = copy.deepcopy(cast("nn.Module", getattr(net, "_orig_mod", net))).cpu().float()
    for module in plain.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            # views of one array would be written as parts of what is nowhere whole
            setattr(module, name, buffer.clone())
    return plain


def _table(rows: F32) -> Tensor:
    """Return a table with a row of zeros before and behind: of no feature, and of unknown ones."""
    table = torch.zeros(len(rows) + 2, rows.shape[1])
    table[1:-1] = torch.from_numpy(np.ascontiguousarray(rows))
    return table


def _tables(model: Model, needs: Needs) -> tuple[U64, F32, F32]:
    """Return keys, wide weights and embeddings of the features that a net uses something of."""
    geometry = model.geometry
    dim = needs.dim if geometry is not None else 0
    keys: list[U64] = []
    weights: list[F32] = []
    vectors: list[F32] = []
    held = 0
    for part in model.parts() if needs.dim or needs.wide else ():
        found = columns_of(model, part)
        kept = np.zeros(len(found.keys), np.bool_)
        if needs.wide:
            kept |= found.weights != 0
        if dim:
            kept |= found.dims > 0
        held += int(kept.sum())
        _check_size((held + 2) * 4 * (dim + needs.wide))
        keys.append(found.keys[kept])
        weights.append(found.weights[kept])
        if dim:
            assert geometry is not None
            vectors.append(geometry.coordinates(part.rows, part.vectors)[kept, :dim])
    return (
        np.concatenate([np.zeros(0, np.uint64), *keys]),
        np.concatenate([np.zeros(0, np.float32), *weights]),
        np.concatenate([np.zeros((0, dim), np.float32), *vectors]),
    )


def _check_size(size: int) -> None:
    if size > TABLE_BYTES_MAX:
        raise ConfigError(
            f"embeddings and wide weights take more than {TABLE_BYTES_MAX:,} bytes, the most that "
            "is written into a graph",
            hint="export .safetensors and .parquet, which have net and tables apart",
        )


def _example(graph: Graph, it: Exportable, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs by name: numbers about the means, some missing, and any features."""
    dice = np.random.default_rng(seed)
    shape = (rows, it.sizes.fields, _WIDTH) if it.bags else (rows, it.sizes.fields)
    dense = dice.normal(size=(rows, *it.sizes.dense))
    if it.mean is not None and it.scale is not None:
        dense = dense / np.where(it.scale == 0, 1.0, it.scale) + it.mean
    dense[dice.random(dense.shape) < 0.1] = np.nan
    made = {
        "dense": dense.astype(np.float32),
        "features": dice.integers(0, it.features + 2, shape),
        "values": dice.normal(size=shape).astype(np.float32),
    }
    return {name: torch.from_numpy(made[name]) for name in graph.inputs}


def _dynamic(graph: Graph) -> list[dict[int, str]]:
    """Return which dimensions of each input are any number, and what they are called."""
    bags = {0: "rows", 2: "width"} if graph.bags else {0: "rows"}
    return [{0: "rows"} if name == "dense" else bags for name in graph.inputs]


def _traced(graph: Graph, it: Exportable) -> Any:
    """Trace a graph for any number of rows."""
    dims = {name: torch.export.Dim(name, min=1) for name in ("rows", "width")}
    shapes = tuple({at: dims[name] for at, name in one.items()} for one in _dynamic(graph))
    given = tuple(_example(graph, it, _TRACED).values())
    try:
        with _quiet():
            return torch.export.export(graph, given, dynamic_shapes=(shapes,))
    except Exception as error:
        raise ConfigError(
            f"{type(graph.net).__name__} cannot be exported: torch.export does not follow its "
            "forward for any number of rows",
            cause=f"{type(error).__name__}: {error}",
            hint="it must be free of branches on numbers and of sizes taken from the first "
            "minibatch; --debug shows where",
        ) from error


def _write_onnx(
    graph: Graph, program: Any, names: Mapping[str, Sequence[str]], target: Path, *, apart: bool
) -> None:
    """Write ONNX; ``apart``: with its arrays beside it."""
    try:
        import onnxscript  # noqa: F401 (what torch writes ONNX with)
    except ImportError as error:
        raise ConfigError(
            "ONNX needs onnx and onnxscript, which are not installed",
            hint="pip install 'streamlearn[onnx]'",
        ) from error
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=list(graph.inputs),
                output_names=["logits", "prediction"],
                dynamic_shapes=(tuple(_dynamic(graph)),),
            )
    except Exception as error:
        raise ConfigError(
            f"{type(graph.net).__name__} cannot be written as ONNX",
            cause=f"{type(error).__name__}: {error}",
            hint="export .pt2, which takes all that torch does",
        ) from error
    assert exported is not None
    exported.model.metadata_props.update({name: json.dumps(some) for name, some in names.items()})
    exported.save(str(target), external_data=apart)


def _check_onnx(graph: Graph, it: Exportable, target: Path) -> bool:
    """Compare what was written with torch; say whether it could be."""
    try:
        import onnxruntime
    except ImportError:
        _log.warning(
            "%s is not checked: onnxruntime is not installed (pip install 'streamlearn[onnx]')",
            target,
        )
        return False
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        named = dict(zip(graph.inputs, (one.numpy() for one in given), strict=True))
        return [torch.from_numpy(out) for out in session.run(None, named)]

    _check(graph, it, run, target)
    return True


def _check(graph: Graph, it: Exportable, run: Any, target: Path) -> None:
    """Raise RunError where what was written computes something else than the graph."""
    for rows in _CHECKED:
        given = tuple(_example(graph, it, rows, seed=rows).values())
        with torch.no_grad():
            expected = graph(*given)
        for name, one, other in zip(("logits", "prediction"), expected, run(given), strict=True):
            apart = float((one - other).abs().max())
            largest = max(1.0, float(one.abs().max()))
            if one.shape != other.shape or not apart <= TOLERANCE * largest:
                raise RunError(
                    f"{target} computes something else than the model: of {rows} random rows the "
                    f"{name} are {apart:.3g} apart, where the largest is {largest:.3g}",
                    hint="another format may do: .pt2 or .onnx",
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says about its own code while it exports."""
    # that the operators of torchvision, which no net of ours uses, are not there
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    was, registry.disabled = registry.disabled, True
    try:
        with warnings.catch_warnings():
            # torch copies a class of its own that it has deprecated
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
            # that all inputs have as many rows is as it should be
            warnings.filterwarnings("ignore", r".*The axis name: (rows|width) will not be used")
            yield
    finally:
        registry.disabled = was


def _write_dense(
    target: Path, net: nn.Module, mean: Tensor | None, scale: Tensor | None, config: DeepConfig
) -> dict[str, Any]:
    """Write parameters and buffers of a net, and what its inputs are standardised by."""
    from safetensors.torch import save

    arrays = {name: one.contiguous() for name, one in _plain(net).state_dict().items()}
    if mean is not None and scale is not None:
        arrays |= {"standardize.mean": mean, "standardize.scale": scale}
    # what two names share is written twice
    arrays = {name: one.clone() for name, one in arrays.items()}
    said = {
        "net": config.net,
        "settings": json.dumps(config.settings),
        "loss": config.loss,
        "dim": str(config.dim),
        "pooling": config.pooling,
    }
    target.write_bytes(save(arrays, metadata=said))
    return {
        "file": str(target),
        "arrays": len(arrays),
        "numbers": sum(math.prod(one.shape) for one in arrays.values()),
    }


def _write_features(target: Path, model: Model, keys: U64) -> None:
    """Write the list of features: row number, field, text, key in hexadecimal."""
    fields = sorted(model.names.fields, key=len, reverse=True)
    with target.open("w", encoding="utf-8") as file:
        file.write("row\tfield\ttext\tkey\n")
        for first in range(0, len(keys), _LINES):
            some = keys[first : first + _LINES]
            file.writelines(
                f"{row}\t{_in_line(name or '', fields)}\t{key:016x}\n"
                for row, (key, name) in enumerate(
                    zip(some.tolist(), model.names.lookup(some), strict=True), first + 1
                )
            )
        file.write(f"{len(keys) + 1}\t\t(any other)\t\n")


def _in_line(name: str, fields: Sequence[str]) -> str:
    """Return field and text of a name, between a tab; what would end either is escaped."""
    field = next((one for one in fields if name.startswith(f"{one}=")), "")
    text = name[len(field) + 1 :] if field else name
    return "\t".join(one_line(part).replace("\t", "\\t") for part in (field, text))
