"""A trace of a net on a GPU: when its streams copy and compute, and how busy compute is.

    python benches/deep_trace.py LOG [--batch N] [--out TRACE.json]

Trains DLRM on a Criteo log as ``streamlearn train`` does, under torch's profiler, with a step of
delay. Prints one line of JSON: the share of the time between the first and the last kernel in which
a kernel runs, the share of copies' time in which one runs meanwhile, and records a second. The
trace opens in Perfetto or ``chrome://tracing``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench_ctr import BENCH
from deep_overlap import measure

__all__ = ["Spans", "busy", "union"]

Spans = list[tuple[float, float]]
# Kernels before: compiling, first allocations.
_SKIPPED = 0.2


def union(spans: Spans) -> Spans:
    """Return what spans cover, as spans that do not touch, in order."""
    out: Spans = []
    for first, end in sorted(spans):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((first, end))
    return out


def busy(spans: Spans, within: Spans) -> float:
    """Return how much of ``within`` (a union) is covered by ``spans`` (another)."""
    covered, at = 0.0, 0
    for first, end in within:
        while at < len(spans) and spans[at][1] <= first:
            at += 1
        look = at
        while look < len(spans) and spans[look][0] < end:
            covered += min(end, spans[look][1]) - max(first, spans[look][0])
            look += 1
    return covered / max(sum(end - first for first, end in within), 1e-12)


def trace(given: argparse.Namespace) -> dict[str, Any]:
    """Train under the profiler; return what its trace says."""
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU: run this where there is one")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as told:
        report = measure(given)
    told.export_chrome_trace(str(given.out))
    events = json.loads(given.out.read_text())["traceEvents"]
    spans = [
        (event["cat"], float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy")
    ]
    spans.sort(key=lambda one: one[1])
    spans = spans[int(len(spans) * _SKIPPED) :]
    kernels = union([(first, end) for what, first, end in spans if what == "kernel"])
    copies = union([(first, end) for what, first, end in spans if what == "gpu_memcpy"])
    whole = [(kernels[0][0], kernels[-1][1])]
    return {
        "device": torch.cuda.get_device_name(),
        "compute busy": busy(kernels, whole),
        "copies hidden": busy(kernels, copies),
        "records/s": report["examples_per_second"],
        "loss": report["loss"],
    }


def main() -> None:
    """Trace what the command line says."""
    parser = argparse.ArgumentParser(description="Trace a net on a GPU.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--out", type=Path, default=BENCH / "deep_trace.json")
    parser.add_argument("--net", default="dlrm")
    parser.add_argument("--settings", default="{bottom=[512,256],top=[1024,1024,512]}")
    parser.add_argument("--batch", type=int, default=16384)
    parser.set_defaults(delay=1, slow=0.0, device="cuda")
    print(json.dumps(trace(parser.parse_args())))


if __name__ == "__main__":
    main()
