"""A net and its optimizer as arrays by name, and back: what a snapshot keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from streamlearn.errors import SnapshotError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "array_of",
    "net_state",
    "optimizer_state",
    "part",
    "restore_net",
    "restore_optimizer",
]

# Of how many names that only one side has an error tells.
_NAMED_MAX: Final = 5


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a copy of a tensor; of bfloat16, which NumPy lacks, in float32."""
    there = tensor.detach().cpu()
    return np.array((there.float() if there.dtype == torch.bfloat16 else there).numpy())


def part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names begin so, by the rest of their names."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def net_state(net: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of a net's parameters and buffers, by name."""
    return {name: array_of(one) for name, one in net.state_dict().items()}


def restore_net(net: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Take what :func:`net_state` returned.

    Raises
    ------
    SnapshotError
        It is of another net: names what only one side has, or the first shape that differs.
    """
    held = net.state_dict()
    _check("net", _shapes(arrays), {name: tuple(one.shape) for name, one in held.items()})
    with torch.no_grad():
        for name, one in held.items():
            one.copy_(torch.from_numpy(np.array(arrays[name])))


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Return copies of what an optimizer keeps of each parameter, by ``name.key``.

    Parameters
    ----------
    names : sequence of str
        Of its parameters, in its order.
    """
    held = optimizer.state_dict()["state"]
    return {
        f"{names[i]}.{key}": array_of(value)
        for i, of_one in held.items()
        for key, value in of_one.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    keys: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Take what :func:`optimizer_state` returned.

    Parameters
    ----------
    keys : sequence of str
        What this optimizer keeps of a parameter, once it has stepped with it.

    Raises
    ------
    SnapshotError
        It is of other parameters, or of another optimizer.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    here: dict[str, tuple[int, ...]] = {}
    stepped: dict[int, dict[str, Tensor]] = {}
    for i, (name, one) in enumerate(zip(names, parameters, strict=True)):
        if not any(f"{name}.{key}" in arrays for key in keys):
            continue  # never stepped with, so nothing is kept of it
        for key in keys:
            here[f"{name}.{key}"] = () if key == "step" else tuple(one.shape)
        stepped[i] = {
            key: torch.from_numpy(np.array(arrays[f"{name}.{key}"]))
            for key in keys
            if f"{name}.{key}" in arrays
        }
    _check("optimizer", _shapes(arrays), here)
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": stepped, "param_groups": state["param_groups"]})


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _check(
    what: str, there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a snapshot's names and shapes are those here."""
    hint = "resume with the net and the settings that wrote the snapshot"
    only_there = [name for name in there if name not in here]
    only_here = [name for name in here if name not in there]
    if only_there or only_here:
        raise SnapshotError(
            f"the snapshot is of another {what}: {_some(only_there)} only there, "
            f"{_some(only_here)} only here",
            hint=hint,
        )
    for name, shape in here.items():
        if there[name] != shape:
            raise SnapshotError(
                f"the snapshot is of another {what}: {name} is of shape {list(there[name])} "
                f"there, {list(shape)} here",
                hint=hint,
            )


def _some(names: Sequence[str]) -> str:
    if not names:
        return "nothing is"
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more} {'is' if len(names) == 1 else 'are'}"
