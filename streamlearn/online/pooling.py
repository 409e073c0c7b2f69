"""What a net is given of a minibatch's features, and what its gradients become by key.

On the CPU the features are pooled before the lane has them, by ``compute.kernels.pooling``, and the
leaves of the net are what was pooled. On a device the lane has the minibatch's distinct keys, each
once, and pools there: what crosses the bus, both ways, is a row a key and not one a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamlearn.compute.kernels import pooling as kernels
from streamlearn.messages import F32, I32, I64
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.nets import Needs
from streamlearn.online.steps import Gradients, Values

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DevicePooling", "HostPooling", "Pooling", "Room"]

_GROWTH: Final = 1.25
_NO_WIDE: Final[F32] = np.zeros((0, 0), np.float32)
_NO_EMBEDDINGS: Final[F32] = np.zeros((0, 0, 0), np.float32)
_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)

Arrays: TypeAlias = "dict[str, NDArray[Any]]"


class Room:
    """Arrays that one minibatch at a time has, and then the next."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Return an array of this shape; what stands in it is of no meaning."""
        size = math.prod(shape)
        array = self._arrays.get(name)
        if array is None or len(array) < size:
            array = self._arrays[name] = np.zeros(int(size * _GROWTH) + 1, dtype)
        return array[:size].reshape(shape)


class Pooling(Protocol):
    """How features reach a net, and its gradients return."""

    def bring(
        self, batch: Minibatch, localized: Localized, values: Values, room: Room
    ) -> dict[str, NDArray[Any]]:
        """Return what the lane is given; arrays of ``room``, or of what is given here."""
        ...

    def leaves(self, tensors: Mapping[str, Tensor], first: int, end: int) -> list[Tensor]:
        """Return the leaves for rows ``[first, end)``, which require their gradients."""
        ...

    def pooled(
        self, tensors: Mapping[str, Tensor], leaves: Sequence[Tensor], first: int, end: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return embeddings and wide of rows ``[first, end)``, as nets take them."""
        ...

    def joined(self, parts: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return the gradients of a minibatch's leaves, of those of its parts in order."""
        ...

    def gradients(
        self,
        results: Mapping[str, NDArray[Any]],
        batch: Minibatch,
        localized: Localized,
        values: Values,
        room: Room,
    ) -> Gradients:
        """Return gradients by key of what :meth:`joined` returned."""
        ...

    def cut(
        self, brought: Mapping[str, NDArray[Any]], first: int, end: int
    ) -> dict[str, NDArray[Any]]:
        """Return what :meth:`bring` returned, for rows ``[first, end)`` alone."""
        ...

    def merged(self, results: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Return what :meth:`joined` returned for all rows, of what it did for parts of them."""
        ...


class _Fields:
    """What both ways of pooling know.

    Parameters
    ----------
    needs : Needs
        Of the net.
    fields : int
    mean : bool
        Whether the embeddings of a field's features are averaged, not summed.
    """

    def __init__(self, needs: Needs, fields: int, *, mean: bool) -> None:
        self._dim = needs.dim
        self._names = [
            name for name, is_there in (("embeddings", needs.dim), ("wide", needs.wide)) if is_there
        ]
        self._fields = fields
        self._mean = int(mean)

    def _features(self, batch: Minibatch, localized: Localized, room: Room) -> tuple[Any, ...]:
        """Return a minibatch's features as kernels take them."""
        nnz = localized.nnz
        fields: I32 = batch.fields[:nnz]
        if len(fields) < nnz:
            assert self._fields == 1, f"features of {self._fields} fields do not say which"
            fields = room.take("fields", (nnz,), np.int32)
            fields[:] = 0
        values = batch.values[:nnz] if batch.has_values else _NO_VECTORS
        return localized.inverse, fields, values, batch.indptr, batch.rows

    def _pulled(self, localized: Localized, values: Values, room: Room) -> tuple[F32, I64, I64]:
        """Return embeddings back to back, where each begins, and how long each is."""
        unique = localized.unique
        places = room.take("places", (unique,), np.int64)
        if not self._dim:
            places[:] = 0
            return _NO_VECTORS, places, values.dims
        assert len(values.dims) == unique, f"{len(values.dims)} lengths, {unique} keys"
        size = int(kernels.place(values.dims, places))
        runs = values.vectors
        packed = runs[0] if len(runs) == 1 else room.take("vectors", (size,))
        if len(runs) > 1:
            np.concatenate(runs, out=packed)
        assert len(packed) == size, f"{len(packed)} coordinates, expected {size}"
        return packed, places, values.dims

    def _room_for(self, localized: Localized, values: Values) -> tuple[F32, F32]:
        """Return zeros for gradients by key."""
        weights = localized.gradients
        weights[:] = 0
        return weights, np.zeros(int(values.dims.sum()), np.float32)


class HostPooling(_Fields):
    """Features are pooled on the host; the leaves are rows of fields."""

    def bring(self, batch: Minibatch, localized: Localized, values: Values, room: Room) -> Arrays:
        """See :meth:`Pooling.bring`."""
        packed, places, dims = self._pulled(localized, values, room)
        shape = (batch.rows, self._fields)
        out = {
            name: room.take(name, (*shape, self._dim) if name == "embeddings" else shape)
            for name in self._names
        }
        gather: Any = kernels.gather  # numba's stubs count the arguments of another function
        gather(
            *self._features(batch, localized, room), values.weights, packed, places, dims,
            self._mean, room.take("counts", (self._fields,), np.int64),
            out.get("wide", _NO_WIDE), out.get("embeddings", _NO_EMBEDDINGS),
        )  # fmt: skip
        return out

    def leaves(self, tensors: Mapping[str, Tensor], first: int, end: int) -> list[Tensor]:
        """See :meth:`Pooling.leaves`."""
        return [tensors[name][first:end].detach().requires_grad_() for name in self._names]

    def pooled(
        self, tensors: Mapping[str, Tensor], leaves: Sequence[Tensor], first: int, end: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """See :meth:`Pooling.pooled`."""
        named = dict(zip(self._names, leaves, strict=True))
        return named.get("embeddings"), named.get("wide")

    def joined(self, parts: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """See :meth:`Pooling.joined`."""
        return {
            name: some[0] if len(some) == 1 else torch.cat(some)
            for name, some in zip(self._names, zip(*parts, strict=True), strict=False)
        }

    def gradients(
        self,
        results: Mapping[str, NDArray[Any]],
        batch: Minibatch,
        localized: Localized,
        values: Values,
        room: Room,
    ) -> Gradients:
        """See :meth:`Pooling.gradients`."""
        weights, vectors = self._room_for(localized, values)
        if results:
            scatter: Any = kernels.scatter  # numba's stubs count the arguments of another
            scatter(
                *self._features(batch, localized, room), results.get("wide", _NO_WIDE),
                results.get("embeddings", _NO_EMBEDDINGS),
                room.take("places", (localized.unique,), np.int64), values.dims, self._mean,
                room.take("counts", (self._fields,), np.int64), weights, vectors,
            )  # fmt: skip
        return Gradients(weights, vectors)

    def cut(self, brought: Mapping[str, NDArray[Any]], first: int, end: int) -> Arrays:
        """See :meth:`Pooling.cut`."""
        return {name: brought[name][first:end] for name in self._names}

    def merged(self, results: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
        """See :meth:`Pooling.merged`."""
        return _by_name(self._names, results, np.concatenate)


class DevicePooling(_Fields):
    """Features are pooled on the device; the leaves are rows of distinct keys.

    By ``embedding_bag``, whose backward sums in a fixed order, as ``index_add`` on a GPU does not.
    """

    def bring(self, batch: Minibatch, localized: Localized, values: Values, room: Room) -> Arrays:
        """See :meth:`Pooling.bring`."""
        packed, places, dims = self._pulled(localized, values, room)
        unique, nnz, bags = localized.unique, localized.nnz, batch.rows * self._fields
        out: Arrays = {
            "members": room.take("members", (nnz,), np.int32),
            "offsets": room.take("offsets", (bags + 1,), np.int32),
        }
        xs = room.take("xs", (nnz if batch.has_values else 0,))
        bag: Any = kernels.bag  # numba's stubs count the arguments of another function
        bag(
            *self._features(batch, localized, room), self._fields, out["members"], xs,
            out["offsets"],
        )  # fmt: skip
        if batch.has_values:
            out["xs"] = xs
        rows = max(unique, 1)  # torch has no bags of nothing
        if "embeddings" in self._names:
            out["embeddings"] = room.take("rows", (rows, self._dim))
            kernels.spread(packed, places, dims, out["embeddings"][:unique])
        if "wide" in self._names:
            out["wide"] = room.take("weights", (rows, 1))
            out["wide"][:unique, 0] = values.weights
        return out

    def leaves(self, tensors: Mapping[str, Tensor], first: int, end: int) -> list[Tensor]:
        """See :meth:`Pooling.leaves`."""
        return [tensors[name].detach().requires_grad_() for name in self._names]

    def pooled(
        self, tensors: Mapping[str, Tensor], leaves: Sequence[Tensor], first: int, end: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """See :meth:`Pooling.pooled`."""
        fields = self._fields
        members, offsets, xs = tensors["members"], tensors["offsets"], tensors.get("xs")
        if (end - first) * fields + 1 < len(offsets):
            offsets = offsets[first * fields : end * fields + 1]
            # the host waits for the device here: only where there is memory for some rows at a time
            begin, stop = offsets[[0, -1]].tolist()
            members, offsets = members[begin:stop], offsets - begin
            xs = xs[begin:stop] if xs is not None else None
        out: dict[str, Tensor] = {}
        for name, leaf in zip(self._names, leaves, strict=True):
            bags = functional.embedding_bag(
                members, leaf, offsets, mode="sum", per_sample_weights=xs, include_last_offset=True
            )
            if name == "embeddings" and self._mean:
                bags = bags / offsets.diff().clamp(min=1)[:, None]
            out[name] = bags.view(end - first, fields, *leaf.shape[1:])
        wide = out.get("wide")
        return out.get("embeddings"), wide[..., 0] if wide is not None else None

    def joined(self, parts: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """See :meth:`Pooling.joined`."""
        return {
            name: some[0] if len(some) == 1 else torch.stack(some).sum(0)
            for name, some in zip(self._names, zip(*parts, strict=True), strict=False)
        }

    def gradients(
        self,
        results: Mapping[str, NDArray[Any]],
        batch: Minibatch,
        localized: Localized,
        values: Values,
        room: Room,
    ) -> Gradients:
        """See :meth:`Pooling.gradients`."""
        weights, vectors = self._room_for(localized, values)
        unique = localized.unique
        if "wide" in results:
            np.clip(results["wide"][:unique, 0], -kernels.MOST, kernels.MOST, out=weights)
        if "embeddings" in results:
            places = room.take("places", (unique,), np.int64)
            kernels.take(results["embeddings"][:unique], places, values.dims, vectors)
        return Gradients(weights, vectors)

    def cut(self, brought: Mapping[str, NDArray[Any]], first: int, end: int) -> Arrays:
        """See :meth:`Pooling.cut`: embeddings go to every device, wanted there or not."""
        offsets = brought["offsets"][first * self._fields : end * self._fields + 1]
        begin, stop = int(offsets[0]), int(offsets[-1])
        out = {name: brought[name] for name in self._names} | {"offsets": offsets - begin}
        return out | {
            name: brought[name][begin:stop] for name in ("members", "xs") if name in brought
        }

    def merged(self, results: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
        """See :meth:`Pooling.merged`."""
        return _by_name(self._names, results, lambda some: np.sum(some, axis=0))


def _by_name(
    names: Sequence[str],
    results: Sequence[Mapping[str, NDArray[Any]]],
    merge: Callable[[Sequence[NDArray[Any]]], NDArray[Any]],
) -> Arrays:
    """Merge those results that there are: parts without rows have none."""
    some = {name: [one[name] for one in results if name in one] for name in names}
    return {name: merge(arrays) for name, arrays in some.items() if arrays}
