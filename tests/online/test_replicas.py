"""A net on several devices is one net."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.compute.cuda import StreamLane  # noqa: E402
from streamlearn.compute.devices import Lanes  # noqa: E402
from streamlearn.online import deep  # noqa: E402
from streamlearn.online.pooling import DevicePooling  # noqa: E402
from tests.deep_steps import Examples, Prompt, Tables, by_key, examples, learn, stepping  # noqa: E402


def several(count: int = 3) -> Lanes:
    return Lanes([StreamLane("cpu") for _ in range(count)])


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("values", [False, True])
def test_parts_of_a_minibatch_teach_as_the_whole(
    values: bool, pooling: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_device:
        monkeypatch.setattr(deep, "HostPooling", DevicePooling)
    with stepping(pooling=pooling) as one, stepping(lane=several(), pooling=pooling) as many:
        tables, others = Tables(), Tables()
        tables.unknown = others.unknown = {7}
        for number, rows in enumerate((6, 7, 2, 1, 8)):  # some devices have none
            given = examples(number, rows=rows, values=values)
            pulled = tables.pull(given.keys)
            expected, gradients = learn(one, tables, given)
            scores, theirs = learn(many, others, given)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(theirs.weights, gradients.weights, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(
                np.stack(by_key(pulled, theirs)), np.stack(by_key(pulled, gradients)),
                rtol=1e-3, atol=1e-6,
            )  # fmt: skip
        for name, array in one.state().items():
            np.testing.assert_allclose(many.state()[name], array, rtol=1e-3, atol=2e-4)
        pulled = tables.pull(given.keys)
        np.testing.assert_allclose(
            many.score(given.batch, given.localized, pulled),
            one.score(given.batch, given.localized, pulled), rtol=1e-3, atol=1e-4,
        )  # fmt: skip


def test_replicas_stay_equal_and_resume() -> None:
    model: dict[str, Any] = {"settings": {"hidden": (8, 4), "dropout": 0.5}}
    with stepping(lane=several(), **model) as step, stepping(lane=several(), **model) as resumed:
        tables, again = Tables(), Tables()
        for number in range(3):
            learn(step, tables, examples(number))
        resumed.restore(step.state())
        again.weights = dict(tables.weights)
        again.vectors = {key: one.copy() for key, one in tables.vectors.items()}
        for number in range(3, 5):
            scores, _ = learn(step, tables, examples(number))
            theirs, _ = learn(resumed, again, examples(number))
            assert scores.tobytes() == theirs.tobytes()
        first, *others = (
            {name: one.tolist() for name, one in part.net.state_dict().items()}
            for part in (*step._dense.parts, *resumed._dense.parts)
        )
        assert all(one == first for one in others)


def test_a_part_that_is_no_number_skips_the_step_of_all() -> None:
    given = Examples([[(0, 3, 1.0)], [(0, 5, 1.0)], []], [1, 0, 1], dense=np.ones((3, 3)))
    with stepping(lane=several()) as step:
        before = step.state()
        tables = Tables()
        tables.know([3, 5])
        tables.weights[5] = np.float32(np.nan)
        scores = np.zeros(3, np.float32)
        pulled = tables.pull(given.keys)
        gradients = step.step(given.batch, given.localized, pulled, scores)
        assert gradients.dropped == 3
        assert not gradients.vectors.any()
        assert np.isfinite(scores).all()
        for name, array in step.state().items():
            if name.startswith("net."):
                assert array.tobytes() == before[name].tobytes()


def test_the_exchange_with_other_workers_has_the_sum_of_all_devices() -> None:
    seen: list[Any] = []

    class Exchange:
        def __init__(self, named: Any) -> None:
            self.named = named

        def step(self) -> bool:
            seen.append([one.grad.clone() for _, one in self.named])
            return True

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            """Nothing is owed."""

    for lane in (None, several()):
        with stepping(lane=lane, exchange_with=Exchange) as step:
            learn(step, Tables(), examples(1))
    assert len(seen) == 2
    for mine, theirs in zip(*seen, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_goes_through_a_devices_buffers(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a GPU's way but the GPU: buffers, keys pooled there, skips that the host sees late."""
    monkeypatch.setattr(deep, "HostPooling", DevicePooling)
    lanes = [StreamLane("cpu", streams=Prompt()) for _ in range(count)]
    lane = lanes[0] if count == 1 else Lanes(lanes)
    with stepping() as plain, stepping(lane=lane) as step:
        for part in step._dense.parts:
            part._asks_device = True
        tables, others = Tables(), Tables()
        for number, rows in enumerate((6, 9, 0, 4, 1, 6)):
            given = examples(number, rows=rows)
            if number == 3:
                kept = tables.weights, others.weights
                nan = np.float32(np.nan)
                tables.know(given.keys)
                others.know(given.keys)
                tables.weights = dict.fromkeys(tables.weights, nan)
                others.weights = dict.fromkeys(others.weights, nan)
            expected, gradients = learn(plain, tables, given)
            scores, theirs = learn(step, others, given)
            if number == 3:
                tables.weights, others.weights = kept
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(theirs.vectors, gradients.vectors, rtol=1e-3, atol=1e-6)
        assert step.skipped == plain.skipped == 1
        state = step.state()
        for name, array in plain.state().items():
            np.testing.assert_allclose(state[name], array, rtol=1e-3, atol=2e-4)
        lane.run(list)
        assert lane.bytes_in > 0
        assert lane.bytes_out > 0
