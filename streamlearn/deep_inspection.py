"""What is in a deep model: its net, layer by layer, and the features that it embeds furthest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from streamlearn.config import DeepConfig
    from streamlearn.messages import F32, U64
    from streamlearn.model import Model
    from streamlearn.online.deep import DeepSolver

__all__ = ["layers_of", "longest", "net_told"]


def net_told(model: Model) -> dict[str, Any]:
    """Say of a net its name, its inputs, how large it is, how many steps it took, and its layers.

    ``dense`` and ``fields`` are there where the net has such inputs.
    """
    step = cast("DeepSolver", model.solver).step
    layers = layers_of(step.net)
    told: dict[str, Any] = {"net": cast("DeepConfig", model.job.model).net}
    if model.dense:
        told["dense"] = " x ".join(map(str, model.dense))
    if step.needs.dim or step.needs.wide:
        told["fields"] = list(model.names.fields)
    return told | {
        "outputs": step.needs.outputs,
        "parameters": sum(layer["parameters"] for layer in layers),
        "steps": step.steps,
        "skipped_steps": step.skipped,
        "layers": layers,
    }


def layers_of(net: Any) -> list[dict[str, Any]]:
    """Return name, kind, shape and number of parameters of each module that has some of its own.

    Parameters
    ----------
    net : torch.nn.Module
        The shape is that of the module's first parameter: outputs before inputs.
    """
    layers: list[dict[str, Any]] = []
    counted: set[int] = set()  # what two modules share is the first one's
    for name, module in net.named_modules():
        own = [one for one in module.parameters(recurse=False) if id(one) not in counted]
        if own:
            counted.update(map(id, own))
            layers.append(
                {
                    "layer": name or "-",
                    "kind": type(module).__name__,
                    "shape": " x ".join(map(str, own[0].shape)),
                    "parameters": sum(one.numel() for one in own),
                }
            )
    return layers


def longest(model: Model, top: int) -> tuple[U64, F32]:
    """Return the keys of the ``top`` embeddings of largest L2 norm, and those norms, descending."""
    geometry = model.geometry
    assert geometry is not None
    keys: U64 = np.zeros(0, np.uint64)
    norms: F32 = np.zeros(0, np.float32)
    for part in model.parts():
        found = geometry.coordinates(part.rows, part.vectors)
        keys = np.concatenate([keys, part.keys])
        norms = np.concatenate([norms, np.linalg.norm(found, axis=1)])
        order = np.argsort(-norms, kind="stable")[:top]
        keys, norms = keys[order], norms[order]
    there = norms > 0
    return keys[there], norms[there]
