"""Workers of a net behind slow links: this project's exchange, and DistributedDataParallel.

    python benches/deep_links.py TRAIN TEST [--mbit M] [--steps N] ...

Two workers, each in a network namespace of its own, are tied by a pair of interfaces that let
``--mbit`` Mbit/s through in either direction (a token bucket of the kernel's; wants root and
``ip``, ``tc``). Both contenders teach the same net on the same minibatches from the same weights:
rows of covtype, every other one each worker's. ``ddp`` is ``DistributedDataParallel`` over gloo
with its defaults; ``ours`` is ``compute.exchange`` with one byte a coordinate, ``delayed`` the same
with a step of delay.

One line of JSON for each: steps a second over the later half, bytes that the interface sent, loss
and accuracy on the test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deep_plain import covtype
from streamlearn.compute.exchange import BUCKET, Exchange
from streamlearn.online.nets import Sizes, load_net, losses_of

__all__ = ["BUCKET", "CONTENDERS", "compare"]

CONTENDERS = ("ddp", "ours", "delayed")
_NAMES = ("deep-a", "deep-b")
_LINKS = ("deep-va", "deep-vb")
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_PORT = 29511


def compare(train: Path, test: Path, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run both contenders between the namespaces; return what each said, by name."""
    found = {}
    with ExitStack() as held:
        _tie(held, given.mbit)
        for who in given.contenders:
            started = [
                subprocess.Popen(
                    [
                        *("ip", "netns", "exec", name, sys.executable, __file__),
                        *("--rank", str(rank), "--who", who, "--steps", str(given.steps)),
                        *("--batch", str(given.batch), "--hidden", str(given.hidden)),
                        *("--bucket", str(given.bucket)),
                        *(str(train), str(test)),
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"GLOO_SOCKET_IFNAME": link, "OMP_NUM_THREADS": "1"},
                )
                for rank, (name, link) in enumerate(zip(_NAMES, _LINKS, strict=True))
            ]
            said = [process.communicate()[0] for process in started]
            if any(process.returncode for process in started):
                raise SystemExit(f"a worker of {who} failed")
            found[who] = json.loads(said[0].splitlines()[-1])
    return found


def _tie(held: ExitStack, mbit: float) -> None:
    """Make two namespaces with a slow link between them, until `held` is closed."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    for name in _NAMES:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        ip("netns", "add", name)
        held.callback(ip, "netns", "delete", name)
    ip("link", "add", _LINKS[0], "type", "veth", "peer", "name", _LINKS[1])
    for name, link, address in zip(_NAMES, _LINKS, _ADDRESSES, strict=True):
        ip("link", "set", link, "netns", name)
        ip("-n", name, "address", "add", f"{address}/24", "dev", link)
        ip("-n", name, "link", "set", link, "up")
        ip("-n", name, "link", "set", "lo", "up")
        shape = ("tbf", "rate", f"{mbit}mbit", "burst", "128kb", "latency", "400ms")
        subprocess.run(
            ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", link, "root", *shape],
            check=True,
        )


def work(given: argparse.Namespace) -> dict[str, Any]:
    """Teach as one of the workers."""
    dense, _, labels = covtype(given.train)
    unseen, _, truth = covtype(given.test)
    mean, deviation = dense.mean(0), dense.std(0).clamp(min=1e-6)
    dense, unseen = (dense - mean) / deviation, (unseen - mean) / deviation
    dense, labels = dense[given.rank :: 2], labels[given.rank :: 2]
    net, _ = load_net("mlp", Sizes((54,), 0, 7), seed=0, hidden=(given.hidden, given.hidden))
    store = dist.TCPStore(_ADDRESSES[0], _PORT, 2, given.rank == 0, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=given.rank, world_size=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    taught: nn.Module = net
    exchange: Exchange | None = None
    if given.who == "ddp":
        taught = DistributedDataParallel(net)
    else:
        delay = int(given.who == "delayed")
        exchange = Exchange(net.named_parameters(), seed=0, delay=delay, bucket=given.bucket)
    before, middle, sent = _sent(given.rank), 0.0, 0
    for step in range(given.steps):
        if step == given.steps // 2:
            dist.barrier()
            middle, sent = time.perf_counter(), _sent(given.rank)
        first = step * given.batch % (len(labels) - given.batch)
        x, y = dense[first : first + given.batch], labels[first : first + given.batch]
        optimizer.zero_grad()
        losses_of("classes", taught(x, None, None), y).mean().backward()
        if exchange is None or exchange.step():
            optimizer.step()
    seconds = time.perf_counter() - middle
    if exchange is not None and exchange.drain():
        optimizer.step()
    after = _sent(given.rank)
    net.eval()
    with torch.no_grad():
        logits = net(unseen, None, None)
    found = {
        "steps_per_second": (given.steps - given.steps // 2) / seconds,
        "bytes_a_step": (after - sent) / (given.steps - given.steps // 2),
        "bytes": after - before,
        "parameters": sum(one.numel() for one in net.parameters()),
        "loss": float(losses_of("classes", logits, truth).mean()),
        "accuracy": float((logits.argmax(1) == truth).float().mean()),
    }
    dist.barrier()
    dist.destroy_process_group()
    return found


def _sent(rank: int) -> int:
    """Return how many bytes this worker's interface has sent."""
    return int(Path(f"/sys/class/net/{_LINKS[rank]}/statistics/tx_bytes").read_text())


def main() -> None:
    """Compare, or be one of the workers."""
    parser = argparse.ArgumentParser(description="Teach a net over a slow link.")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--mbit", type=float, default=200.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--bucket", type=int, default=BUCKET)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--who", choices=CONTENDERS)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    given = parser.parse_args()
    if given.rank is not None:
        print(json.dumps(work(given)))
        return
    for who, said in compare(given.train, given.test, given).items():
        print(json.dumps({"who": who} | said))


if __name__ == "__main__":
    main()
