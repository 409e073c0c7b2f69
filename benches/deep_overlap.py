"""How much of slow pulls a net hides behind its compute: one run in a process of its own.

    python benches/deep_overlap.py LOG --delay D --slow SECONDS [--device cpu|cuda]

Trains a net on a Criteo log as ``streamlearn train`` does, with each pull from the table made to
take SECONDS longer (a sleep, which takes no core away, as waiting for shards or a slow bus would).
Prints one line of JSON: seconds and compute seconds a step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from streamlearn import deep_net
from streamlearn.config import load_job
from streamlearn.lanes import Parcel, Portion
from streamlearn.training import TrainingRun

__all__ = ["measure"]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train once; return seconds a step."""
    lanes: list[Any] = []
    pull = Portion.pull

    def slow_pull(self: Portion, parcel: Parcel) -> None:
        time.sleep(given.slow)
        pull(self, parcel)

    open_lane = deep_net.open_lane

    def watched(*args: Any, **kwargs: Any) -> Any:
        lanes.append(open_lane(*args, **kwargs))
        return lanes[-1]

    if given.slow:
        Portion.pull = slow_pull  # type: ignore[method-assign]
    deep_net.open_lane = watched
    with tempfile.TemporaryDirectory() as scratch:
        job = load_job(
            None,
            [
                *("model.kind=deep", f"model.net={given.net}", f"model.delay={given.delay}"),
                f"model.settings={given.settings}",
                # a minibatch ends with its block: few that are not full
                *(f"source.uri={given.log}", "source.format=criteo", "source.block_bytes=32MiB"),
                "source.read_ahead_bytes=256MiB",
                *(f"compute.minibatch={given.batch}", f"compute.device={given.device}"),
                *("compute.lanes=2", "output.snapshot_seconds=1e9", f"output.dir={scratch}/out"),
            ],
        ).job
        report = asyncio.run(TrainingRun(job, lambda _: None).run())
    steps = report["steps"]
    return {
        "steps": steps,
        "seconds_a_step": report["seconds"] / steps,
        "compute_seconds_a_step": lanes[-1].busy_seconds / steps,
        "examples_per_second": report["examples_per_second"],
        "loss": report.get("logloss", report.get("loss")),
    }


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description="Train a net with slow pulls.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--net", default="dlrm")
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--delay", type=int, default=1)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
