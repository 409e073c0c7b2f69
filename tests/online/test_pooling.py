"""The two ways from features to nets and back are one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.online import deep  # noqa: E402
from streamlearn.online.minibatch import Minibatch  # noqa: E402
from streamlearn.online.nets import Sizes  # noqa: E402
from streamlearn.online.pooling import DevicePooling, HostPooling, Room  # noqa: E402
from tests.deep_steps import COLUMNS, DIM, Examples, Tables, examples, learn, stepping  # noqa: E402


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what has the steps that are made pool as on a device."""
    return lambda: monkeypatch.setattr(deep, "HostPooling", DevicePooling)


CASES = {
    "some": lambda values: [examples(number, values=values) for number in range(4)],
    "no features": lambda values: [
        Examples([[], []], [0, 1], dense=np.ones((2, COLUMNS)), values=values)
    ],
    "one": lambda values: [
        Examples([[(1, 3, -2.0)]], [0], dense=np.ones((1, COLUMNS)), values=values)
    ],
    "nothing": lambda values: [Examples([], [], dense=np.ones((0, COLUMNS)), values=values)],
}


@pytest.mark.parametrize("rows_at_once", [1 << 62, 2])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_a_device_pools_as_the_host_does(
    name: str, pooling: str, values: bool, rows_at_once: int, on_device: Any
) -> None:
    with stepping(pooling=pooling) as host:
        on_device()
        with stepping(pooling=pooling) as device:
            assert isinstance(device._pooling, DevicePooling)
            for one in (*host._dense.parts, *device._dense.parts):
                one.rows_at_once = rows_at_once
            tables, others = Tables(), Tables()
            tables.unknown = others.unknown = {5, 9}
            for one in CASES[name](values):
                mine, gradients = learn(host, tables, one)
                theirs, on_it = learn(device, others, one)
                np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(on_it.weights, gradients.weights, rtol=1e-3, atol=1e-6)
                np.testing.assert_allclose(on_it.vectors, gradients.vectors, rtol=1e-3, atol=1e-6)
                pulled = tables.pull(one.keys)
                np.testing.assert_allclose(
                    device.score(one.batch, one.localized, pulled),
                    host.score(one.batch, one.localized, pulled), rtol=1e-3, atol=1e-4,
                )  # fmt: skip


@pytest.mark.parametrize("kind", [HostPooling, DevicePooling])
def test_embeddings_of_several_shards_are_one(kind: Any, on_device: Any) -> None:
    if kind is DevicePooling:
        on_device()
    one = examples(3)
    with stepping() as step, stepping() as other:
        tables = Tables()
        tables.unknown = {7}
        scores, others = np.zeros((2, 6), np.float32)
        mine = step.step(one.batch, one.localized, tables.pull(one.keys), scores)
        theirs = other.step(one.batch, one.localized, tables.pull(one.keys, runs=3), others)
        assert scores.tobytes() == others.tobytes()
        assert mine.vectors.tobytes() == theirs.vectors.tobytes()


def test_features_of_one_field_need_not_say_so() -> None:
    one = examples(2)
    batch = one.batch
    plain = Minibatch(batch.rows_max, batch.nnz_max, has_values=True, dense=batch.shape)
    for name in ("keys", "values", "indptr", "labels", "weights", "dense"):
        getattr(plain, name)[:] = getattr(batch, name)
    plain.state[:] = batch.state
    batch.fields[:] = 0
    sizes = Sizes((COLUMNS,), 1, 1)
    with stepping(sizes) as step, stepping(sizes) as other:
        values, scores = Tables().pull(one.keys), np.zeros((2, 6), np.float32)
        mine = step.step(batch, one.localized, values, scores[0])
        theirs = other.step(plain, one.localized, values, scores[1])
        assert scores[0].tobytes() == scores[1].tobytes()
        assert mine.vectors.tobytes() == theirs.vectors.tobytes()
    with stepping() as step, pytest.raises(AssertionError, match="do not say which"):
        step.step(plain, one.localized, values, scores[0])


def test_what_was_pulled_for_another_is_refused() -> None:
    one, other = examples(2), examples(3, rows=2)
    with stepping() as step:
        scores = np.zeros(6, np.float32)
        with pytest.raises(AssertionError, match="weights"):
            step.step(one.batch, one.localized, Tables().pull(other.keys), scores)
        values = Tables().pull(one.keys)
        values.dims[0] += 1
        with pytest.raises(AssertionError, match="coordinates"):
            step.step(one.batch, one.localized, values, scores)


def test_rooms_arrays_are_used_again() -> None:
    room = Room()
    first = room.take("x", (4, DIM))
    assert room.take("x", (3, DIM)).ctypes.data == first.ctypes.data
    assert room.take("x", (40, DIM)).shape == (40, DIM)
    assert room.take("i", (3,), np.int32).dtype == np.int32
    assert room.take("none", (0, 4)).shape == (0, 4)
