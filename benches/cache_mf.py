"""Cache misses of a pass of matrix factorization: tiles against ratings by user, and by chance.

    python benches/cache_mf.py [--dims 16,256,2048] [--users N] [--cache BYTES]

Question: of the references to memory that a pass makes, how many miss the first cache, and how many
a larger one, where ratings are arranged in tiles, by user, or not at all?

Method: ``valgrind --tool=cachegrind`` counts them, for a machine of 32 KB of first cache and one
more of ``--cache`` bytes, whatever this one has. Each order is swept once in a process of its own,
and what the same process counts without the sweep is taken off. Ratings are drawn like those of the
Netflix prize: 17,770 items by a power law, some 200 to a user. Kernels are compiled for a CPU that
valgrind knows (Haswell), before it starts.

Needs valgrind. Takes some two minutes a line.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

ITEMS: Final = 17_770
PER_USER: Final = 209
ORDERS: Final = ("tiles", "user", "chance")
FIRST_CACHE: Final = "32768,8,64"
# What tiles are laid out for: half of it has a block of users.
SECOND_CACHE: Final = 512 << 10
_COUNT: Final = re.compile(r"(D +refs|D1 +misses|LLd +misses):\s+([\d,]+)")


def ratings(users: int, seed: int = 0) -> tuple[Any, Any]:
    """Return distinct pairs of users and items, int64[n] each; items are numbered by popularity."""
    rng = np.random.default_rng(seed)
    weight = np.exp(-np.arange(ITEMS) / 6000) / (np.arange(ITEMS) + 60.0) ** 1.05
    ends = np.cumsum(weight / weight.sum())
    counts = np.exp(rng.normal(np.log(96), 1.25, users)).clip(1, 8000).astype(np.int64)
    u = np.repeat(np.arange(users), counts * 8 // 5)
    i = np.searchsorted(ends, rng.random(len(u)))
    pairs = np.unique(u * ITEMS + i)
    return np.divmod(pairs, ITEMS)


def order_of(kind: str, u: Any, i: Any, dim: int) -> Any:
    """Return the order in which ratings are swept."""
    from streamlearn.strata.passes import Tiling

    if kind == "chance":
        return np.random.default_rng(1).permutation(len(u))
    if kind == "user":
        return np.lexsort((i, u))
    row_bytes = 64 * -(-dim // 16)
    tiling = Tiling.fitting(SECOND_CACHE, row_bytes, int(u.max()) + 1, ITEMS, 1)
    return np.lexsort((u, i, u // tiling.block, i // tiling.tier))


def sweep(kind: str, dim: int, users: int, share: float) -> int:
    """Sweep a share of the ratings once, in this process; return how many."""
    from streamlearn.compute.kernels import strata as kernels
    from streamlearn.config import MfConfig
    from streamlearn.online.mf import rates_of

    u, i = ratings(users)
    order = order_of(kind, u, i, dim)
    low = np.uint64(kernels.CODE_BITS)
    words = (i[order].astype(np.uint64) << np.uint64(32)) | (u[order].astype(np.uint64) << low)
    lines = -(-dim // 16)
    rng = np.random.default_rng(2)

    def rows(count: int) -> Any:
        room = np.zeros((count + 1) * 16 * lines, np.float32)
        skip = -room.ctypes.data % 64 // 4
        room[:] = rng.uniform(-0.1, 0.1, len(room))
        return room[skip : skip + count * 16 * lines]

    p, q = rows(users), rows(ITEMS)
    rates = rates_of(MfConfig(dim=dim), 1)
    n = int(len(words) * share)
    kernels.sweep(
        words, 0, n, p.ctypes.data, q.ctypes.data, lines, np.zeros(users, np.float32),
        np.zeros(ITEMS, np.float32), np.array([[3.5, 1.0]], np.float32), np.float32(3.5), rates,
        np.zeros(3),
    )  # fmt: skip
    return n


def counted(kind: str, dim: int, users: int, cache: int, share: float) -> tuple[int, ...]:
    """Return references, misses of the first cache and of the larger one, and ratings."""
    command = [sys.executable, __file__, "--sweep", kind, "--dims", str(dim)]
    command += ["--users", str(users), "--share", str(share)]
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+lzcnt",
        "NUMBA_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        plain = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        told = subprocess.run(
            [
                "valgrind", "--tool=cachegrind", "--cache-sim=yes", f"--D1={FIRST_CACHE}",
                f"--I1={FIRST_CACHE}", f"--LL={cache},16,64",
                f"--cachegrind-out-file={Path(scratch) / 'out'}", *command,
            ],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    counts = [int(count.replace(",", "")) for _, count in _COUNT.findall(told.stderr)]
    assert len(counts) == 3, told.stderr
    return *counts, int(plain.stdout)


def main() -> None:
    """Count every order at every dim, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="16,256,2048")
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--cache", type=int, default=16 << 20)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--sweep", choices=ORDERS)
    options = parser.parse_args()
    dims = [int(dim) for dim in options.dims.split(",")]
    if options.sweep:
        print(sweep(options.sweep, dims[0], options.users, options.share))
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed")
    print(f"first cache 32 KB, larger one {options.cache >> 10:,} KB")
    print(
        f"{'dim':>5} {'order':>7} {'ratings':>10} {'refs a rating':>14} {'first':>8} {'larger':>8}"
    )
    for dim in dims:
        for kind in ORDERS:
            none = counted(kind, dim, options.users, options.cache, 0.0)
            whole = counted(kind, dim, options.users, options.cache, 1.0)
            refs, first, larger = (a - b for a, b in zip(whole[:3], none[:3], strict=True))
            print(
                f"{dim:5d} {kind:>7} {whole[3]:10,} {refs / whole[3]:14.1f} "
                f"{first / refs:8.2%} {larger / refs:8.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
