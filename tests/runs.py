"""The command line as users run it: in this process, or in one of its own to be killed."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from typer.testing import CliRunner

from streamlearn.cli import app

# Nothing here takes so long unless it hangs.
PATIENCE_SECONDS = 60
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """What ``--json`` printed."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STREAMLEARN_")}
    return kept | {"PYTHONPATH": str(_ROOT)}


def run(*arguments: object) -> Ended:
    """Run a verb to its end in this process."""
    root, ours = logging.getLogger(), logging.getLogger("streamlearn")
    before = root.handlers[:], root.level, ours.level
    try:
        words = [str(argument) for argument in arguments]
        result = CliRunner().invoke(app, words, prog_name="streamlearn")
    finally:
        root.handlers[:], root.level, ours.level = before
    return Ended(result.exit_code, result.stdout, result.stderr)


def spawn(*arguments: object, stdin: bytes | None = None) -> Ended:
    """Run a verb to its end in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "streamlearn", *map(str, arguments)],
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        env=_environment(),
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


class Running:
    """A verb that goes on while a test does things to it; killed when the test leaves it.

    Attributes
    ----------
    told : list of dict
        What it said on stderr so far, a JSON object a line.
    """

    def __init__(self, *arguments: object, stdin: int = subprocess.DEVNULL) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamlearn", *map(str, arguments), "--json-logs"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
        self.told: list[dict[str, Any]] = []
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def _next(self) -> dict[str, Any] | None:
        line = self._lines.get(timeout=PATIENCE_SECONDS)
        if line is None:
            return None
        said = json.loads(line) if line.startswith(b"{") else {"text": line.decode()}
        self.told.append(said)
        return said

    def wait_for(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Return the first thing said from now on that is so; None where it ends before."""
        while (said := self._next()) is not None:
            if what(said):
                return said
        return None

    def wait_until_compiled(self) -> dict[str, Any] | None:
        """Wait until the last kernels are compiled, just before the first record is learned."""
        return self.wait_for_text("names, 5 of 5")

    def wait_until_learning(self) -> dict[str, Any] | None:
        """Wait until some records are learned; None where it ends before."""
        return self.wait_for(lambda said: said.get("state") == "learning")

    def wait_for_text(self, part: str) -> dict[str, Any] | None:
        """Wait until it says something that has a part; None where it ends before."""
        return self.wait_for(lambda said: part in json.dumps(said))

    def kill(self) -> None:
        """End it as the machine's death would."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait for its end."""
        assert self.process.stdout is not None
        stdout = self.process.stdout.read()
        code = self.process.wait(PATIENCE_SECONDS)
        while self._next() is not None:
            pass
        return Ended(code, stdout.decode(), json.dumps(self.told))

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


def bad_records(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of ``bad_records.jsonl``."""
    lines = (directory / "bad_records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def settings(*pairs: str) -> Sequence[str]:
    """Return ``--set`` flags."""
    return [word for pair in pairs for word in ("--set", pair)]
