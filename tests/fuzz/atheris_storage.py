"""Fuzz the readers of logs or snapshots by coverage, for as many inputs as wanted.

Usage: ``python tests/fuzz/atheris_storage.py log|snapshot [-runs=2000000] [-max_len=300] …``, from
the root of the repository; needs atheris. An input that fails is kept in the working directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
with atheris.instrument_imports(include=["streamlearn.shards"]):
    from tests.fuzz.storage import one_log, one_snapshot

TARGETS = {"log": one_log, "snapshot": one_snapshot}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
