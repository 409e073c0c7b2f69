"""How long learning stands while the exact table grows, and how much memory a feature takes.

Question: does a growth pause learning above 30 ms at 100 million features, and does a feature take
more than 56 bytes at any size from a million on?

Method: examples of 40 features that nobody has seen before, learned one minibatch after the other;
the time of every growth is noted, and the bytes a feature of the table after every minibatch.

    python benches/bench_growth.py --features 100000000

Budget: 30 ms, 56 bytes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numba import njit, uint64

from streamlearn.kinds import LrConfig
from streamlearn.online.logistic import LogisticSolver, Scratch
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable

ROWS, WIDTH = 1024, 40


@njit
def new_keys(keys, start):  # type: ignore[no-untyped-def]
    """Fill ``keys`` with mixed odd keys number ``start`` and on (Stafford's mix 13)."""
    for i in range(keys.shape[0]):
        h = uint64(start + i + 1) * uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> uint64(27))) * uint64(0x94D049BB133111EB)
        keys[i] = (h ^ (h >> uint64(31))) | uint64(1)


def main() -> None:
    """Fill a table and say what its growth cost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--features", type=int, default=100_000_000)
    features = parser.parse_args().features
    pauses: list[tuple[int, float]] = []
    table = ExactTable(features * 2, clock=time.perf_counter)
    solver = LogisticSolver(LrConfig(), table)
    batch = Minibatch(ROWS, ROWS * WIDTH + FEATURES_PER_RECORD_MAX, has_values=False)
    scratch = Scratch(ROWS, batch.nnz_max)
    batch.indptr[:] = np.arange(ROWS + 1) * WIDTH
    batch.state[0], batch.state[1] = ROWS, ROWS * WIDTH
    grown, worst = 0.0, 0.0
    started = time.process_time()
    for start in range(0, features, ROWS * WIDTH):
        new_keys(batch.keys[: ROWS * WIDTH], start)
        batch.labels[:] = start // (ROWS * WIDTH) % 2
        table.growth_seconds_max = 0.0
        solver.learn(batch, scratch, Nothing(), 0)
        if table.growth_seconds > grown:
            grown = table.growth_seconds
            pauses.append((table.features, table.growth_seconds_max))
        if table.features >= 1_000_000:
            worst = max(worst, table.nbytes / table.features)
    seconds = time.process_time() - started
    for least, most in ((0, 1), (1, 10), (10, 50), (50, 1000)):
        some = [pause * 1e3 for count, pause in pauses if least <= count / 1e6 < most]
        if some:
            print(
                f"{least:>3} to {most:>4} M features: {len(some):>5} pauses, "
                f"median {np.median(some):.1f} ms, longest {max(some):.1f} ms"
            )
    print(f"{table.features:,} features, {seconds / table.features * 1e9:.0f} ns each, all in")
    print(f"growth {grown / table.features * 1e9:.0f} ns a feature; at most {worst:.1f} bytes each")


if __name__ == "__main__":
    main()
