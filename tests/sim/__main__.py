"""Run seeds: ``python -m tests.sim [--seeds N] [--first N] [--processes N] [SEED ...]``.

With ``--model`` all learn that kind of model, whatever else they decide. With seeds named, each is
run with its trace printed. Otherwise seeds are run over several processes until so many of them
count, and what failed is printed with how to run it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from typing import Final

from tests.sim.faults import FAULTS
from tests.sim.world import Result, simulate, simulate_quietly

__all__ = ["main"]

# A process is made anew after so many seeds: what earlier ones left in memory goes with it.
SEEDS_PER_PROCESS: Final = 500
SHOWN_MAX: Final = 20


def _results(first: int, processes: int, model: str) -> Iterator[Result]:
    run = partial(simulate_quietly, model=model)

    def seeds() -> Iterator[int]:
        seed = first
        while True:
            yield seed
            seed += 1

    if processes == 1:
        yield from map(run, seeds())
    # pools take all that they are given at once: so give them a little at a time
    context, begin = get_context("spawn"), first
    with context.Pool(processes, maxtasksperchild=SEEDS_PER_PROCESS) as pool:
        while True:
            yield from pool.imap_unordered(run, range(begin, begin + 50 * processes))
            begin += 50 * processes


def _run_many(wanted: int, first: int, processes: int, model: str) -> int:
    began = time.monotonic()
    failed: list[Result] = []
    counted = ran = acknowledged = 0
    virtual = 0.0
    fired: Counter[str] = Counter()
    for result in _results(first, processes, model):
        ran += 1
        counted += result.counts
        acknowledged += result.acknowledged
        virtual += result.virtual_seconds
        fired.update(set(result.faults) - set(result.idle))
        if result.error:
            failed.append(result)
            _say(f"seed {result.seed} failed: {result.error}")
            again = f"--model {model} " if model else ""
            _say(f"  again: python -m tests.sim {again}{result.seed}")
        if ran % 500 == 0:
            _say(f"{ran} seeds, {counted} count, {len(failed)} failed")
        if counted >= wanted or len(failed) >= SHOWN_MAX:
            break
    seconds = time.monotonic() - began
    _say(
        f"{ran} seeds in {seconds:.0f} s, {counted} count (all of their faults took effect and all "
        f"of their records were learned), {len(failed)} failed; {acknowledged:,} pushes "
        f"acknowledged in {virtual / 3600:.1f} virtual hours"
    )
    for name in sorted(FAULTS):
        _say(f"  {name:16} took effect in {fired[name]} seeds")
    return 1 if failed else 0


def _replay(seed: int, model: str) -> int:
    result = simulate(seed, _say, model)
    _say(f"seed {seed}: {result.error or 'fine'}; trace {result.digest}")
    _say(f"faults {', '.join(result.faults)}; without effect: {', '.join(result.idle) or 'none'}")
    return 1 if result.error else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", nargs="*", type=int, help="run again, with the trace")
    parser.add_argument("--seeds", type=int, default=1000, help="how many must count")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--model", default="", choices=("lr", "fm", "mf"), help="whatever seeds say"
    )
    given = parser.parse_args(arguments)
    if given.seed:
        return max(_replay(seed, given.model) for seed in given.seed)
    return _run_many(given.seeds, given.first, given.processes, given.model)


if __name__ == "__main__":
    sys.exit(main())
