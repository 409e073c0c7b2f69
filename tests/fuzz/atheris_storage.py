"""Fuzz the readers of logs or snapshots, by coverage or by chance, for as many inputs as wanted.

Usage, from anywhere::

    python tests/fuzz/atheris_storage.py log|snapshot [-runs=2000000] [-max_len=200] …
    python tests/fuzz/atheris_storage.py log|snapshot --plain RUNS [SEED]

The first needs atheris and takes libFuzzer's options; an input that fails is kept in the working
directory. The second needs nothing and is four times as fast an input; a failing input is printed.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))


def plain(target: Callable[[bytes], None], runs: int, seed: int) -> None:
    """Give random inputs to a target."""
    rng = random.Random(seed)
    for number in range(1, runs + 1):
        data = rng.randbytes(rng.randrange(80))
        try:
            target(data)
        except BaseException:
            print(f"input {number} of seed {seed} fails: {data!r}")  # noqa: T201 what it is for
            raise
        if number % 100_000 == 0:
            print(f"{number} inputs", flush=True)  # noqa: T201 what it is for


def main() -> None:
    """Run as the module's docstring says."""
    name = sys.argv.pop(1)
    if sys.argv[1:2] == ["--plain"]:
        target = getattr(importlib.import_module("tests.fuzz.storage"), f"one_{name}")
        plain(target, int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
        return
    import atheris

    with atheris.instrument_imports(include=["streamlearn.shards"]):
        target = getattr(importlib.import_module("tests.fuzz.storage"), f"one_{name}")
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
