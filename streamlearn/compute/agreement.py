"""What workers of a group say of themselves, and in what they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist

from streamlearn.errors import ClusterError, PeerLostError

__all__ = ["all_gather", "difference", "gather_views", "peers"]

# torch 2.13 deprecates the name that releases before it know.
all_gather: Final[Callable[..., Any]] = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)

_DESCRIPTION_BYTES_MAX: Final = 1 << 24  # 16 MiB name some 200,000 parameters


def gather_views(
    own: dict[str, Any], workers: int, device: torch.device, group: dist.ProcessGroup
) -> list[dict[str, Any]]:
    """Return every worker's view, as JSON travels: never a pickle."""
    text = json.dumps(own).encode()
    lengths = torch.zeros(workers, dtype=torch.int64, device=device)
    all_gather(lengths, torch.tensor([len(text)], dtype=torch.int64, device=device), group=group)
    longest = int(lengths.max())
    if longest > _DESCRIPTION_BYTES_MAX:
        raise ClusterError(
            f"a net's description has {longest} bytes; at most {_DESCRIPTION_BYTES_MAX} travel"
        )
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8).to(device)
    texts = torch.empty((workers, longest), dtype=torch.uint8, device=device)
    all_gather(texts.view(-1), padded, group=group)
    return [json.loads(bytes(row.tolist())) for row in texts.cpu()]


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str]:
    """Name the first thing in which two views differ, as each has it."""
    names = one.keys() | other.keys()
    for name in sorted(names, key=lambda name: (name == "parameters", name != "version", name)):
        ours, theirs = one.get(name), other.get(name)
        if ours == theirs:
            continue
        if name != "parameters":
            return f"{name} {ours!r}", f"{theirs!r}"
        longer = max(len(ours or ()), len(theirs or ()))
        for i in range(longer):
            pair = _parameter(ours or [], i), _parameter(theirs or [], i)
            if pair[0] != pair[1]:
                return pair
    return "another view", "another view"


@contextmanager
def peers(failed: str) -> Iterator[None]:
    """Say what failed where a collective does: torch tells a lost peer by a bare RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLostError(
            failed,
            cause=str(error).partition("\n")[0] or type(error).__name__,
            hint="form the group again without the worker that is gone, from the last snapshot",
        ) from error


def _parameter(parameters: list[Any], i: int) -> str:
    if i >= len(parameters):
        return f"only {len(parameters)} parameters"
    name, shape, kind = parameters[i]
    return f"{kind}{shape} {name!r} as parameter {i}"
