"""Feed the readers of the wire with what a coverage-guided fuzzer finds; run by hand.

    pip install atheris
    python tests/fuzz/atheris_wire.py -runs=2000000 [-only_target=NAME] [CORPUS...]

Each input's first byte chooses the target (``wire_targets.TARGETS``); ``-only_target`` takes one.
An error that no target documents, or an input that takes longer than 5 s, ends the run and is
written to a file. Other flags are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

import streamlearn.columns  # noqa: F401 - first: compiled kernels cannot be instrumented

with atheris.instrument_imports(include=["streamlearn.net", "streamlearn.protocol"]):
    from tests.fuzz.wire_targets import TARGETS, seeds

INPUT_BYTES_MAX = 1024
SECONDS_MAX = 5
NAMES = sorted(TARGETS)


def _flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return libFuzzer's flags, and the names of the targets that are meant."""
    mine = [one for one in arguments if one.startswith("-only_target=")]
    names = [one.partition("=")[2] for one in mine] or NAMES
    return [one for one in arguments if one not in mine], names


def main() -> None:
    """Write the seeds where the fuzzer finds them, and fuzz."""
    arguments, names = _flags(sys.argv)

    def one_input(data: bytes) -> None:
        if not data:
            return
        target, errors = TARGETS[names[data[0] % len(names)]]
        with suppress(*errors):
            target(data[1:])

    with tempfile.TemporaryDirectory() as corpus:
        for index, name in enumerate(names):
            for number, seed in enumerate(seeds()[name]):
                Path(corpus, f"{name}-{number}").write_bytes(bytes([index]) + seed)
        limits = [f"-max_len={INPUT_BYTES_MAX}", f"-timeout={SECONDS_MAX}"]
        atheris.Setup([arguments[0], *limits, *arguments[1:], corpus], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
