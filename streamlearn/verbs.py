"""What verbs share: reading the job, showing progress, printing the report, the exit code."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from streamlearn.command import Call, option
from streamlearn.config import load_job
from streamlearn.errors import ConfigError, StreamlearnError
from streamlearn.report import report_json, report_text

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from streamlearn.config import JobConfig, Resolved
    from streamlearn.progress import ProgressView

__all__ = [
    "finish",
    "need_sources",
    "print_err",
    "print_out",
    "progress_spacing",
    "resolve",
    "shown_progress",
    "wiring",
]


def progress_spacing() -> inspect.Parameter:
    """Return the option ``-P``."""
    return option(
        "progress",
        str | None,
        typer.Option(
            None,
            "--progress",
            "-P",
            metavar="N",
            help="Plain progress lines every N examples, or, where N has a point, at N times the "
            "examples of the line before. Default: 2.0, from a minute on every ten seconds.",
        ),
    )


def wiring() -> ModuleType:
    """Import the wiring, which brings NumPy, Numba and the rest."""
    import importlib

    return importlib.import_module("streamlearn.node")


def resolve(call: Call, directory: Path | None = None) -> Resolved:
    """Read the job; that of a model in ``directory`` goes on from what it was trained with."""
    flags = call.flags()
    base: JobConfig | None = None
    if directory is not None:
        base = wiring().stored_job(directory)
        flags["output.dir"] = str(directory)
    return load_job(call.job_path(), call["set"] or (), flags, os.environ, base=base)


def need_sources(resolved: Resolved) -> None:
    """Refuse a job that has nothing to read."""
    if not resolved.job.source.uri:
        raise ConfigError(
            "there is no source",
            hint="name files, directories, globs, http(s):// or s3:// URIs, or - (standard input)",
        )


@contextmanager
def shown_progress(call: Call, job: JobConfig) -> Iterator[Callable[[Any], None]]:
    """Show progress while a run goes on."""
    view = _progress_view(call, job)
    try:
        yield view or (lambda progress: None)
    finally:
        if view is not None:
            view.close()


def _progress_view(call: Call, job: JobConfig) -> ProgressView | None:
    import time

    from streamlearn.progress import (
        JsonLines,
        LiveBoard,
        PlainLines,
        ProgressView,
        Renderer,
        Spacing,
    )

    spacing = _spacing(call["progress"], job.output.progress_seconds, Spacing)
    renderer: Renderer
    if call["quiet"]:
        return None
    if call["json_logs"]:
        renderer = JsonLines(print_err)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and call["progress"] is None:
        from rich.console import Console

        renderer = LiveBoard(Console(stderr=True))
    else:
        renderer = PlainLines(print_err)
    return ProgressView(renderer, spacing, time.time)


def _spacing(text: str | None, seconds: float, spacing: type) -> Any:
    """Read ``-P`` as Vowpal Wabbit does: a whole number adds, one with a point multiplies."""
    if text is None:
        return spacing(seconds)
    with suppress(ValueError):
        if "." not in text and int(text) > 0:
            return spacing(seconds, every=int(text))
        if "." in text and 1 < float(text) < float("inf"):
            return spacing(seconds, factor=float(text), after_seconds=float("inf"))
    raise ConfigError(
        f"-P takes a whole number of examples or a factor above 1, but got {text!r}",
        hint="-P 100000 or -P 2.0",
    )


def finish(call: Call, report: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Print a report and exit as it says."""
    failed: dict[str, str] = report.get("failed") or {}
    said = {key: value for key, value in report.items() if key != "failed"}
    text = report_json(report) + "\n" if call["json"] else report_text(said)
    if not to_stderr:
        print_out(text)
    elif not call["quiet"]:
        print_err(text)
    for failure in failed.values():
        print_err(f"error: {failure}\n")
    if report.get("stopped") == "SIGINT":
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(StreamlearnError.exit_code)


def print_out(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text)


def print_err(text: str) -> None:
    """Print what is said about it, at once."""
    sys.stderr.write(text)
    sys.stderr.flush()
