"""Gradients between real gloo processes, against DDP and against a twin in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
import torch.distributed as dist  # noqa: E402

from streamlearn.compute.exchange import Exchange  # noqa: E402
from streamlearn.compute.rounding import blocks_of, sent_bytes  # noqa: E402
from streamlearn.errors import ConfigError, SnapshotError  # noqa: E402

HERE = Path(__file__).parent
BLOCK, WORKERS = 64, 2
TASKS = (
    *("delay0", "delay1", "resumed0", "resumed1", "bad0", "bad1", "float32", "refused"),
    *("stepped", "aligned", "once", "lost"),
)
# The net of `exchange_worker`: 12 x 24, 24, 24, 1, cut into buckets of 300.
BUCKETS = (300, 37)


def processes(workers: int, folder: Path, *tasks: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent.parent),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    started = [
        subprocess.Popen(
            [
                *(sys.executable, HERE / "exchange_worker.py", str(rank), str(workers)),
                *(folder / "store", folder, *tasks),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    told = [one.communicate(timeout=240)[0] for one in started]
    assert [one.returncode for one in started] == [0] * workers, "\n".join(told)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What both workers wrote, by task; only the first comes back from `lost`."""
    folder = tmp_path_factory.mktemp("exchange")
    processes(WORKERS, folder, *TASKS)
    return {
        task: [
            torch.load(folder / f"{task}-{rank}.pt")
            for rank in range(WORKERS if task != "lost" else 1)
        ]
        for task in TASKS
    }


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A group of one, in this process."""
    dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("task", ["delay0", "delay1", "bad0", "bad1"])
def test_both_workers_reach_the_same_weights(seen: Any, task: str) -> None:
    one, other = seen[task]
    assert torch.equal(one["weights"], other["weights"])
    assert torch.isfinite(one["weights"]).all()


@pytest.mark.parametrize("task", ["delay0", "delay1"])
def test_loss_is_close_to_float32s(seen: Any, task: str) -> None:
    assert seen[task][0]["loss"] == pytest.approx(seen["float32"][0]["loss"], rel=0.01)


def test_without_delay_weights_are_close_to_float32s(seen: Any) -> None:
    theirs = seen["float32"][0]["weights"]
    assert torch.allclose(seen["delay0"][0]["weights"], theirs, atol=0.02)


def test_delay_hands_out_one_step_late_and_the_last_on_draining(seen: Any) -> None:
    one = seen["delay1"][0]
    assert one["applied"] == [False] + [True] * (len(one["applied"]) - 1)
    assert len(one["taken"]) == len(one["given"])
    mean = (seen["delay1"][0]["given"] + seen["delay1"][1]["given"]) / 2
    gaps = [(one["taken"][k:] - mean[: len(mean) - k]).abs().mean() for k in (0, 1)]
    assert gaps[0] < 0.05 * gaps[1]  # the k-th mean handed out is that of the k-th gradients


@pytest.mark.parametrize("task", ["delay0", "delay1"])
def test_means_and_residuals_add_up_to_the_gradients(seen: Any, task: str) -> None:
    given = sum(one["given"].double().sum(0) for one in seen[task]) / WORKERS
    taken = seen[task][0]["taken"].double().sum(0)
    owed = []
    for i, size in enumerate(BUCKETS):
        mean = sum(one["state"][f"residual.{i}"].double() for one in seen[task]) / WORKERS
        chunks = torch.cat([one["state"][f"owned.{i}"].double() for one in seen[task]])
        owed.append(mean + chunks[:size])
    left = torch.cat(owed)
    assert left.abs().max() > 0
    # float32 adds about a hundred numbers of up to 5 in carrying residuals along
    assert torch.allclose(taken + left, given, rtol=0, atol=2e-5)


@pytest.mark.parametrize("delay", [0, 1])
def test_resumed_run_equals_the_uninterrupted_one(seen: Any, delay: int) -> None:
    whole, resumed = seen[f"delay{delay}"][0], seen[f"resumed{delay}"][0]
    assert torch.equal(whole["weights"], resumed["weights"])
    assert whole["counts"] == resumed["counts"]
    for name, tensor in whole["state"].items():
        assert torch.equal(tensor, resumed["state"][name]), name


@pytest.mark.parametrize(("delay", "step"), [(0, 20), (1, 21)])
def test_nan_at_one_worker_is_skipped_by_all(seen: Any, delay: int, step: int) -> None:
    for one in seen[f"bad{delay}"]:
        skipped = [i for i, applied in enumerate(one["applied"]) if not applied]
        assert skipped == ([0] if delay else []) + [step]
        assert one["counts"][1] == 1
        assert torch.isfinite(one["state"]["residual.0"]).all()


def test_bytes_are_counted(seen: Any) -> None:
    steps, skipped, before, after = seen["delay0"][0]["counts"]
    sums = [sum(pair) for pair in zip(*(sent_bytes(b, 2, BLOCK) for b in BUCKETS), strict=True)]
    assert skipped == 0
    assert [before, after] == [steps * one for one in sums]
    assert after < 0.28 * before  # blocks of 64 or fewer, in a net of 337 coordinates


def test_differing_workers_are_refused_with_both_views(seen: Any) -> None:
    assert seen["refused"][0] == seen["refused"][1]
    told = [
        text.removeprefix("ClusterError: workers do not hold the same: ")
        for text in seen["refused"][0]["told"]
    ]
    assert told == [
        "worker 0 has float32[24, 12] '0.weight' as parameter 0, "
        "worker 1 has float32[25, 12] '0.weight' as parameter 0",
        "worker 0 has float32[24, 12] '0.weight' as parameter 0, "
        "worker 1 has float32[1] '2.bias' as parameter 0",
        "worker 0 has version '1.0', worker 1 has '1.1'",
        "worker 0 has float32[1] '2.bias' as parameter 3, worker 1 has only 3 parameters",
        "worker 0 has delay 0, worker 1 has 1",
    ]


def test_worker_that_loaded_another_step_is_refused(seen: Any) -> None:
    expected = "ClusterError: workers do not hold the same: worker 0 has step 1, worker 1 has 0"
    assert [one["told"] for one in seen["stepped"]] == [expected] * 2


def test_aligned_workers_have_the_firsts_weights(seen: Any) -> None:
    one, other = seen["aligned"]
    assert torch.equal(one["weights"], other["weights"])


def test_lost_worker_is_an_error_that_says_what_to_do(seen: Any) -> None:
    told = seen["lost"][0]["told"]
    assert told.startswith("PeerLostError: worker 0 of 2 could not exchange step 1\ncause: ")
    assert "from the last snapshot" in told


@cache
def neighbour(name: str) -> Any:
    """Load a file beside this one: the tests are no package."""
    spec = spec_from_file_location(f"tests_compute_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def twin_round(x: np.ndarray, key: tuple[int, ...], first: int) -> np.ndarray:
    """Round [blocks, block] in float64: up with the probability of what is left."""
    largest = np.abs(x).max(1, keepdims=True)
    scale = largest / (127 - 2**-13)
    u = neighbour("test_rounding").twin_noise(first + x.size, key)[first:].reshape(x.shape)
    ratio = x / scale
    return scale * (np.floor(ratio) + (u < ratio - np.floor(ratio)))


def test_two_steps_equal_a_float64_twin(seen: Any) -> None:
    gradient = neighbour("exchange_worker").gradient

    blocks, block = blocks_of(1000, WORKERS, BLOCK)
    chunk = blocks * block
    residual = np.zeros((WORKERS, WORKERS, blocks, block))
    owned = np.zeros((WORKERS, blocks, block))
    for step in range(2):
        rounded = np.empty_like(residual)
        for worker in range(WORKERS):
            padded = np.zeros(WORKERS * chunk)
            padded[:1000] = gradient(worker, step).double().numpy()
            carried = padded.reshape(WORKERS, blocks, block) + residual[worker]
            for owner in range(WORKERS):
                key = (11, step, 0, worker, 0)
                rounded[worker, owner] = twin_round(carried[owner], key, owner * chunk)
            residual[worker] = carried - rounded[worker]
        answers = []
        for owner in range(WORKERS):
            total = rounded[:, owner].mean(0) + owned[owner]
            answers.append(twin_round(total, (11, step, 0, owner, 1), 0))
            owned[owner] = total - answers[-1]
        mean = np.concatenate(answers).reshape(-1)[:1000]
        for one in seen["once"]:
            got = one["taken"][step].double().numpy()
            assert np.allclose(got, mean, rtol=1e-5, atol=1e-5 * np.abs(mean).max() / 127)
    for worker, one in enumerate(seen["once"]):
        assert np.allclose(one["state"]["owned.0"], owned[worker].ravel(), atol=1e-4)
        kept = residual[worker].reshape(-1)[:1000]
        assert np.allclose(one["state"]["residual.0"], kept, atol=1e-4)


def net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 3)


@pytest.mark.usefixtures("alone")
def test_state_of_two_workers_is_owed_in_full_by_one(seen: Any) -> None:
    one = torch.nn.Parameter(torch.zeros(1000))
    owed = torch.zeros(1000)
    means = []
    for worker, there in enumerate(seen["once"]):
        exchange = Exchange([("w", one)], seed=11, block=BLOCK)
        exchange.load_state_dict(there["state"])
        one.grad = torch.zeros(1000)
        assert exchange.step()
        means.append(one.grad.clone())
        owed += there["state"]["residual.0"] / WORKERS
        at = worker * there["state"]["owned.0"].numel()
        chunk = there["state"]["owned.0"][: 1000 - at]
        owed[at : at + len(chunk)] += chunk
    # each went on alone, at the weight that both had: together they deliver what both owed
    assert torch.allclose(sum(means), owed, atol=1e-4)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("delay", [0, 1])
def test_lone_worker_gets_its_own_gradient_exactly(delay: int) -> None:
    model = net()
    exchange = Exchange(model.named_parameters(), seed=1, delay=delay)
    model(torch.ones(2, 5)).sum().backward()
    own = model.weight.grad.clone()
    applies = exchange.step()
    assert applies is (delay == 0)
    if delay:
        assert model.weight.grad is None
        assert exchange.drain()
    assert torch.equal(model.weight.grad, own)
    assert exchange.counts.bytes_after == exchange.counts.bytes_before == 0
    exchange.close()


@pytest.mark.usefixtures("alone")
def test_settings_out_of_range_are_refused() -> None:
    named = list(net().named_parameters())
    for wrong in ({"delay": 2}, {"block": 0}, {"bucket": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Exchange(named, seed=1, **wrong)
    with pytest.raises(ConfigError, match="nothing to exchange"):
        Exchange([], seed=1)


@pytest.mark.usefixtures("alone")
def test_sparse_gradient_is_refused() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    exchange = Exchange(table.named_parameters(), seed=1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        exchange.step()


@pytest.mark.usefixtures("alone")
def test_state_of_another_net_is_refused() -> None:
    exchange = Exchange(net().named_parameters(), seed=1)
    state = Exchange(torch.nn.Linear(5, 4).named_parameters(), seed=1).state_dict()
    with pytest.raises(SnapshotError, match=r"\[24\] coordinates, here \[18\]"):
        exchange.load_state_dict(state)
    with pytest.raises(SnapshotError, match="no counters"):
        exchange.load_state_dict({})
    whole = exchange.state_dict()
    del whole["owned.0"]
    with pytest.raises(SnapshotError, match=r"lacks owned\.0"):
        exchange.load_state_dict(whole)
