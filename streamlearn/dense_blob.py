"""The file of a snapshot that has the dense part of a net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlearn.errors import SnapshotError

if TYPE_CHECKING:
    from streamlearn.shards.snapshot import SnapshotReader, SnapshotWriter

__all__ = ["DENSE", "read_dense", "write_dense"]

DENSE: Final = "dense.safetensors"


def write_dense(writer: SnapshotWriter, arrays: Mapping[str, Any]) -> None:
    """Write the dense part (``DeepStep.state``) into a snapshot."""
    from safetensors.numpy import save  # of the extra that brings torch

    with writer.open(DENSE) as blob:
        blob.write(save(dict(arrays)))


def read_dense(reader: SnapshotReader) -> dict[str, Any]:
    """Return the dense part of a snapshot.

    Raises
    ------
    SnapshotError
        It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, Any] = load(reader.read(DENSE).tobytes())
    except SafetensorError as error:
        raise SnapshotError(f"{reader.path / DENSE} is damaged", cause=str(error)) from error
    return arrays
