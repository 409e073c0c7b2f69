"""One worker of the tests of the exchange: ``exchange_worker.py RANK WORKERS STORE OUT TASK...``.

Each task writes what it saw to ``OUT/TASK-RANK.pt``: tensors and plain values.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from streamlearn.compute.exchange import Exchange
from streamlearn.errors import StreamlearnError

STEPS = 150
BLOCK = 64


def net(width: int = 24) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 1))


def rows(rank: int, step: int, count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A regression's minibatch, each worker's own."""
    dice = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(count, 12, generator=dice)
    noise = torch.randn(count, generator=dice)
    y = x[:, 0] - 0.5 * x[:, 1] * x[:, 2] + 0.1 * noise
    return x, y


def backward(model: nn.Module, rank: int, step: int) -> None:
    model.zero_grad()
    x, y = rows(rank, step)
    ((model(x)[:, 0] - y) ** 2).mean().backward()


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in tensors])


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        x, y = rows(99, 10**6, 4000)
        return float(((model(x)[:, 0] - y) ** 2).mean())


def learn(rank: int, *, delay: int, stop: int = 0, bad: int = -1) -> dict[str, Any]:
    """Learn; at step `stop` go on with another exchange that has loaded the first one's state."""
    model = net()
    exchange = Exchange(model.named_parameters(), seed=3, delay=delay, block=BLOCK, bucket=300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    taken, applied, given = [], [], []
    for step in range(STEPS):
        backward(model, rank, step)
        if step == bad and rank == 1:
            next(model.parameters()).grad[0, 0] = torch.nan
        given.append(flat(one.grad for one in model.parameters()))
        if stop and step == stop:
            state = exchange.state_dict()
            exchange.close()
            exchange = Exchange(
                model.named_parameters(), seed=3, delay=delay, block=BLOCK, bucket=300
            )
            exchange.load_state_dict(state)
        applied.append(exchange.step())
        if applied[-1]:
            taken.append(flat(one.grad for one in model.parameters()))
        optimizer.step()
    if exchange.drain():
        taken.append(flat(one.grad for one in model.parameters()))
        optimizer.step()
    state = exchange.state_dict()
    exchange.close()
    counts = exchange.counts
    return {
        "weights": flat(model.parameters()),
        "loss": loss_of(model),
        "applied": applied,
        "given": torch.stack(given),
        "taken": torch.stack(taken),
        "state": state,
        "counts": [counts.steps, counts.skipped, counts.bytes_before, counts.bytes_after],
    }


def float32(rank: int) -> dict[str, Any]:
    """The same run by DistributedDataParallel."""
    model = net()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        backward(parallel, rank, step)
        optimizer.step()
    return {"weights": flat(model.parameters()), "loss": loss_of(model)}


def refused(rank: int) -> dict[str, Any]:
    """Try what workers must not differ in; tell what each was told."""
    told = []
    for case in ("shape", "order", "version", "longer", "delay"):
        model: nn.Module = net(24 + rank if case == "shape" else 24)
        named = list(model.named_parameters())
        if case == "order" and rank:
            named.reverse()
        if case == "longer" and rank:
            named.pop()
        version = f"1.{rank if case == 'version' else 0}"
        try:
            Exchange(named, seed=1, delay=rank if case == "delay" else 0, version=version)
        except StreamlearnError as error:
            told.append(f"{type(error).__name__}: {error.message}")
        else:
            told.append("taken")
    return {"told": told}


def stepped(rank: int) -> dict[str, Any]:
    """Load a state at one worker only."""
    model = net()
    exchange = Exchange(model.named_parameters(), seed=3)
    before = exchange.state_dict()
    backward(model, rank, 0)
    exchange.step()
    exchange.load_state_dict(before if rank else exchange.state_dict())
    backward(model, rank, 1)
    try:
        exchange.step()
    except StreamlearnError as error:
        return {"told": f"{type(error).__name__}: {error.message}"}
    return {"told": "taken"}


def aligned(rank: int) -> dict[str, Any]:
    model = net()
    with torch.no_grad():
        for one in model.parameters():
            one += rank
    Exchange(model.named_parameters(), seed=1).align()
    return {"weights": flat(model.parameters())}


def once(rank: int) -> dict[str, Any]:
    """Two steps on gradients that stand here: what the hand-written twin repeats."""
    one = nn.Parameter(torch.zeros(1000))
    exchange = Exchange([("w", one)], seed=11, block=BLOCK)
    taken = []
    for step in range(2):
        one.grad = gradient(rank, step)
        assert exchange.step()
        taken.append(one.grad.clone())
    return {"taken": taken, "state": exchange.state_dict()}


def gradient(rank: int, step: int) -> torch.Tensor:
    dice = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(1000, generator=dice) * torch.logspace(-3, 2, 1000)


def lost(rank: int) -> dict[str, Any]:
    """Worker 1 goes away without a word; the last task, for the group is of no more use."""
    model = net()
    exchange = Exchange(model.named_parameters(), seed=3, delay=1)
    backward(model, rank, 0)
    exchange.step()
    if rank:
        sys.stdout.flush()
        raise SystemExit(0)
    try:
        for step in range(1, 10):
            backward(model, rank, step)
            exchange.step()
    except StreamlearnError as error:
        return {"told": f"{type(error).__name__}: {error}"}
    return {"told": "went on"}


TASKS = {
    "delay0": lambda rank: learn(rank, delay=0),
    "delay1": lambda rank: learn(rank, delay=1),
    "resumed0": lambda rank: learn(rank, delay=0, stop=70),
    "resumed1": lambda rank: learn(rank, delay=1, stop=70),
    "bad0": lambda rank: learn(rank, delay=0, bad=20),
    "bad1": lambda rank: learn(rank, delay=1, bad=20),
    "float32": float32,
    "refused": refused,
    "stepped": stepped,
    "aligned": aligned,
    "once": once,
    "lost": lost,
}


def main(rank: int, workers: int, store: str, out: str, tasks: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(store).as_uri(),
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=60),
    )
    for task in tasks:
        torch.save(TASKS[task](rank), Path(out) / f"{task}-{rank}.pt")
    if "lost" not in tasks:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
