"""Groups of workers that step together, between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.cluster.dense_group import _check_gpus  # noqa: E402
from streamlearn.errors import ClusterError  # noqa: E402
from tests.cluster.dense_worker import (  # noqa: E402
    SETTINGS,
    STEPS,
    WORKERS,
    minibatch,
)
from tests.deep_steps import Examples, Tables, stepping  # noqa: E402

HERE = Path(__file__).parent
PATIENCE_SECONDS = 120.0
TASKS = ("exact", "late", "int8", "joined", "alone", "refused", "bad")


def processes(folder: Path, *tasks: str) -> list[int]:
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, HERE / "dense_worker.py", str(rank), folder, *tasks],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORKERS)
    ]  # fmt: skip
    try:
        told = [one.communicate(timeout=PATIENCE_SECONDS)[0] for one in started]
    finally:
        for one in started:
            one.kill()
            one.communicate()
    codes = [one.returncode for one in started]
    assert not any(code not in (0, -signal.SIGKILL) for code in codes), "\n".join(told)
    return codes


def read(folder: Path, task: str, workers: int = WORKERS) -> list[Any]:
    return [torch.load(folder / f"{task}-{rank}.pt", weights_only=False) for rank in range(workers)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("groups")
    assert processes(folder, *TASKS) == [0] * WORKERS
    return {task: read(folder, task) for task in TASKS}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def all_same(states: list[dict[str, Any]]) -> bool:
    return all(same(states[0], one) for one in states[1:])


@cache
def of_one(delay: int) -> dict[str, Any]:
    """Return the state of one worker that has all examples of each step."""
    tables = Tables()
    model = SETTINGS | {"optimizer": "sgd", "momentum": 0.0}
    with stepping(exchange_with=_Late if delay else None, **model) as step:
        for number in range(STEPS):
            parts = [one for r in range(WORKERS) if (one := minibatch(r, number)) is not None]
            both = Examples(
                [row for one in parts for row in one.rows],
                np.concatenate([one.batch.labels[: one.batch.rows] for one in parts]).tolist(),
                dense=np.concatenate([one.batch.dense[: one.batch.rows] for one in parts]),
                weights=np.concatenate(
                    [one.batch.weights[: one.batch.rows] for one in parts]
                ).tolist(),
            )
            values = tables.pull(both.keys)
            step.step(both.batch, both.localized, values, np.zeros(both.batch.rows, np.float32))
        return {k: v for k, v in step.state().items() if "exchange." not in k}


class _Late:
    """An exchange of one worker that hands out the gradient of the step before."""

    def __init__(self, named: Any) -> None:
        self._parameters = [one for _, one in named]
        self._before: list[Any] | None = None

    def step(self) -> bool:
        before, self._before = self._before, [one.grad.clone() for one in self._parameters]
        for one, gradient in zip(self._parameters, before or (), strict=False):
            one.grad = gradient
        return before is not None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        """There is nothing to load."""


@pytest.mark.parametrize(("task", "delay"), [("exact", 0), ("late", 1)])
def test_workers_step_as_one_that_has_all_examples(
    seen: dict[str, list[Any]], task: str, delay: int
) -> None:
    expected = of_one(delay)
    for told in seen[task]:
        assert told["some"] == [True] * STEPS
        for name, array in expected.items():
            np.testing.assert_allclose(told["state"][name], array, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("task", ["exact", "late", "int8"])
def test_workers_are_equal_to_the_bit(seen: dict[str, list[Any]], task: str) -> None:
    assert all_same([told["state"] for told in seen[task]])


def test_rounded_gradients_teach_nearly_the_same_for_a_quarter_of_the_bytes(
    seen: dict[str, list[Any]],
) -> None:
    for rounded, exact in zip(seen["int8"], seen["exact"], strict=True):
        for name, array in exact["state"].items():
            np.testing.assert_allclose(rounded["state"][name], array, atol=0.02)
        assert rounded["counts"].bytes_before == exact["counts"].bytes_before
        assert exact["counts"].bytes_after == exact["counts"].bytes_before
    # of 29 coordinates scales are a large part: for the share see tests/compute/test_exchange.py
    assert seen["int8"][0]["counts"].bytes_after < seen["int8"][0]["counts"].bytes_before


def test_who_joins_begins_where_the_first_is(seen: dict[str, list[Any]]) -> None:
    told = seen["joined"]
    assert same(told[0]["before"], told[1]["before"])
    assert [one["dissolved"] for one in told[:2]] == [1, 1]
    for one in told:
        assert same(one["after"], told[1]["before"])
    assert all_same([one["later"] for one in told])
    assert not same(told[1]["later"], told[1]["after"])


def test_what_rounding_kept_back_stays_with_its_worker(seen: dict[str, list[Any]]) -> None:
    told = seen["joined"]
    assert all("residual.0" in one["kept"] for one in told[:2])
    assert bool(told[0]["owes"].any())
    assert not torch.equal(told[0]["owes"], told[1]["owes"])
    assert not bool(told[2]["owes"].any())


def test_a_mean_on_its_way_when_the_group_ends_is_applied_in_the_next(
    seen: dict[str, list[Any]],
) -> None:
    assert all("mean.0" in one["kept"] for one in seen["joined"][:2])


def test_who_leaves_is_alone_and_the_others_go_on(seen: dict[str, list[Any]]) -> None:
    told = seen["joined"]
    assert told[0]["size"] == 1
    assert same(told[1]["last"], told[2]["last"])
    assert int(told[1]["last"]["steps"][0]) == int(told[1]["later"]["steps"][0]) + 1


def test_one_worker_alone_learns_as_without_a_group(seen: dict[str, list[Any]]) -> None:
    for told in seen["alone"]:
        assert same(told["state"], told["plain"])
        assert not told["alive"]


def test_other_nets_are_refused_with_both_views(seen: dict[str, list[Any]]) -> None:
    told = [one["told"] for one in seen["refused"]]
    assert told[0] == told[1] == told[2]
    shapes, delays, kinds = told[0]
    assert "float32[4, 9] 'deep.layers.0.weight'" in shapes
    assert "float32[5, 9] 'deep.layers.0.weight'" in shapes
    assert "delay 0, worker 1 has 1" in delays
    assert "net wide_deep, int8" in kinds
    assert "net wide_deep, float32" in kinds
    assert all(one.startswith("ClusterError: workers do not hold the same") for one in told[0])


def test_a_gradient_that_is_no_number_is_no_step_at_any(seen: dict[str, list[Any]]) -> None:
    for told in seen["bad"]:
        nets = [
            {k: v for k, v in told[when].items() if "net." in k}
            for when in told
            if when != "skipped"
        ]
        assert same(*nets)
        assert told["skipped"] == 1


@pytest.mark.parametrize("task", ["lost", "lost-late"])
def test_others_go_on_when_one_is_killed(task: str, tmp_path: Path) -> None:
    assert processes(tmp_path, task) == [0, 0, -signal.SIGKILL]
    told = read(tmp_path, task, WORKERS - 1)
    assert all("of 3 could not" in one["told"] for one in told)
    assert same(told[0]["formed"], told[1]["formed"])
    assert same(told[0]["state"], told[1]["state"])
    assert not same(told[0]["formed"], told[0]["state"])


def test_workers_compute_on_gpus_of_their_own_or_all_on_cpus() -> None:
    _check_gpus(["cpu", "cpu", "cpu"])
    _check_gpus(["GPU-1", "GPU-2"])
    with pytest.raises(ClusterError, match="workers 0 and 2 compute on the same GPU, GPU-1"):
        _check_gpus(["GPU-1", "GPU-2", "GPU-1"])
    with pytest.raises(ClusterError, match="worker 0 computes on GPU-1, worker 1 on cpu"):
        _check_gpus(["GPU-1", "cpu"])
