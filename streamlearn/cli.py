"""The command line: parse, call, print; no decisions.

Progress, logs and errors go to stderr, results to stdout. Exit codes: 0 done or drained, 1 the run
failed, 2 usage or configuration, 130 Ctrl-C. The flags that set something are made from the structs
of :mod:`streamlearn.config`. Nothing heavy is imported before a verb needs it: ``--help`` answers
at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from streamlearn import __version__
from streamlearn.command import Call, option, sources, verb
from streamlearn.config import load_job
from streamlearn.errors import ConfigError, ResourceError, StreamlearnError
from streamlearn.report import report_json, report_text, table_text

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from streamlearn.config import JobConfig, Resolved
    from streamlearn.progress import ProgressView

__all__ = ["app"]

_ALL: Final = ("source", "model", "tables", "cluster", "compute", "output", "http")
_READING: Final = ("source", "compute")

app = typer.Typer(
    name="streamlearn",
    help="Raw logs in, sparse models out: learn from files, HTTP, S3 and standard input as they "
    "stream by.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
source_app = typer.Typer(help="Look at sources without learning.", no_args_is_help=True)
snapshot_app = typer.Typer(help="Look at the snapshots of a model.", no_args_is_help=True)
config_app = typer.Typer(
    help="Show what a job is set to, and what can be set.", no_args_is_help=True
)
app.add_typer(source_app, name="source")
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(config_app, name="config")


def _directory() -> inspect.Parameter:
    return option(
        "directory", Path, typer.Argument(..., metavar="DIR", help="Output directory of train.")
    )


def _top() -> inspect.Parameter:
    return option("top", int, typer.Option(20, "--top", "-n", min=0, help="Weights shown."))


def _predictions(default: str) -> inspect.Parameter:
    return option(
        "predictions",
        str | None,
        typer.Option(None, "--predictions", "-p", metavar="FILE", help=default),
    )


def _progress_spacing() -> inspect.Parameter:
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


def _test_only() -> inspect.Parameter:
    return option(
        "test_only",
        bool,
        typer.Option(
            False, "--test-only", "-t", help="Learn nothing: evaluate the model in --out."
        ),
    )


@verb(
    app,
    _ALL,
    [sources("; or a job file, JOB.toml"), _progress_spacing(), _test_only()],
    examples=(
        "streamlearn train day_*.gz --format criteo --out model",
        "streamlearn train 's3://logs/2026/11/*.gz' --format delimited --header \\",
        "    --column late=label --column when=time --cross 'origin*destination' --out model",
        "streamlearn train job.toml --set model.alpha=0.3",
        "zcat log.gz | streamlearn train - --format svmlight -b 24 --out model",
    ),
)
def train(call: Call) -> None:
    """Learn from sources, each example scored before it teaches.

    Leaves in --out: model/ (to resume, evaluate, export), bad_records.jsonl and report.json. Ctrl-C
    ends with a snapshot; the same command again resumes exactly there.
    """
    resolved = _resolved(call)
    _need_sources(resolved)
    out = resolved.job.output.dir
    if not out:
        raise ConfigError("there is no output directory", hint="--out DIR")
    if call["test_only"]:
        resolved = _resolved(call, Path(out))
    job = resolved.job
    node = _node()
    with _view(call, job) as view:
        report = node.evaluate(Path(out), job, view) if call["test_only"] else node.train(job, view)
    _finish(call, report)


@verb(
    app,
    _READING,
    [
        _directory(),
        sources(),
        _progress_spacing(),
        _predictions("Also write one prediction a line (reads the sources a second time)."),
    ],
    examples=(
        "streamlearn evaluate model day_23.gz",
        "streamlearn evaluate model day_23.gz --json | jq .logloss",
    ),
)
def evaluate(call: Call) -> None:
    """Score sources with a model, without learning."""
    node = _node()
    directory: Path = call["directory"]
    resolved = _resolved(call, directory)
    _need_sources(resolved)
    job = resolved.job
    if call["predictions"] and "-" in job.source.uri:
        raise ConfigError(
            "evaluate -p reads the sources twice, and standard input can be read once",
            hint="streamlearn predict DIR - -p FILE",
        )
    with _view(call, job) as view:
        report = node.evaluate(directory, job, view)
    if call["predictions"]:
        with _lines(call["predictions"]) as out:
            node.predict(directory, job, out)
    _finish(call, report, to_stderr=call["predictions"] == "-")


@verb(
    app,
    _READING,
    [_directory(), sources(), _predictions("Write to this file. Default: standard output.")],
    examples=(
        "streamlearn predict model today.csv > predictions.txt",
        "streamlearn predict model 's3://logs/today/*' -p predictions.txt --json",
    ),
)
def predict(call: Call) -> None:
    """Write one probability a record, in the records' order."""
    node = _node()
    directory: Path = call["directory"]
    resolved = _resolved(call, directory)
    _need_sources(resolved)
    job = resolved.job
    target = call["predictions"] or "-"
    with _lines(target) as out:
        report = node.predict(directory, job, out)
    # predictions are the result: where they take stdout, what is said about them does not
    _finish(call, report, to_stderr=target == "-")


@verb(
    app,
    ("source", "compute", "output", "http"),
    [_directory(), _progress_spacing()],
    examples=("streamlearn replay model --column delay=ignore",),
)
def replay(call: Call) -> None:
    """Learn the records kept in bad_records.jsonl, once the schema is mended."""
    node = _node()
    directory: Path = call["directory"]
    job = _resolved(call, directory).job
    with _view(call, job) as view:
        report = node.replay(directory, job, view)
    _finish(call, report)


@verb(
    app,
    (),
    [_directory(), _top()],
    examples=("streamlearn inspect model --top 50",),
)
def inspect_(call: Call) -> None:
    """Show what is in a model: counts, sparsity, the largest weights by name."""
    _finish(call, _node().inspect(call["directory"], call["top"]))


@verb(
    app,
    (),
    [
        _directory(),
        option("target", Path, typer.Argument(..., metavar="FILE", help=".npz, .parquet or .txt")),
    ],
    examples=("streamlearn export model weights.parquet",),
)
def export(call: Call) -> None:
    """Write a model's weights in an open format, chosen by the suffix."""
    target: Path = call["target"]
    if target.suffix not in (".npz", ".parquet", ".txt"):
        raise ConfigError(f"export writes .npz, .parquet or .txt, but got {target.name}")
    _finish(call, _node().export(call["directory"], target))


@verb(
    source_app,
    ("source",),
    [sources()],
    examples=("streamlearn source check 's3://logs/2026/11/*.gz'",),
)
def check(call: Call) -> None:
    """Say whether sources can be listed and read, and with which settings and credentials."""
    import asyncio

    resolved = _resolved(call)
    _need_sources(resolved)
    job = resolved.job
    told = asyncio.run(_node().source_check(job))
    _print(report_json(told) + "\n" if call["json"] else report_text(told))
    if told.get("ok") is False:
        raise typer.Exit(1)


@verb(
    source_app,
    ("source",),
    [sources(), option("lines", int, typer.Option(10, "--lines", "-n", min=1, help="Records."))],
    examples=("streamlearn source head 's3://logs/2026/11/*.gz' -n 3",),
)
def head(call: Call) -> None:
    """Print the first records, decompressed, as they are."""
    import asyncio

    resolved = _resolved(call)
    _need_sources(resolved)
    job = resolved.job
    records: list[bytes] = asyncio.run(_node().source_head(job, call["lines"]))
    sys.stdout.flush()
    for record in records:
        sys.stdout.buffer.write(record.rstrip(b"\n") + b"\n")
    sys.stdout.buffer.flush()


@verb(
    source_app,
    ("source",),
    [sources()],
    examples=("streamlearn source ls 's3://logs/2026/11/' --json",),
)
def ls(call: Call) -> None:
    """List the objects of sources: size, time of change, URI."""
    import asyncio

    resolved = _resolved(call)
    _need_sources(resolved)
    job = resolved.job
    node = _node()

    async def listing() -> None:
        async for stored in node.source_list(job):
            _print(_listed(stored, as_json=call["json"]))

    asyncio.run(listing())


@verb(
    snapshot_app,
    (),
    [_directory()],
    examples=("streamlearn snapshot ls model",),
)
def ls_(call: Call) -> None:
    """List the snapshots of a model, newest last."""
    found = _node().snapshots(call["directory"])
    _print(report_json(found) + "\n" if call["json"] else table_text(found) if found else "")


@verb(
    config_app,
    _ALL,
    [sources("; or a job file, JOB.toml")],
    examples=(
        "streamlearn config show job.toml --alpha 0.3",
        "STREAMLEARN_MODEL_ALPHA=0.3 streamlearn config show",
    ),
)
def show(call: Call) -> None:
    """Print every setting as a job file, with where its value comes from."""
    from streamlearn.jobtext import job_json, job_toml

    resolved = _resolved(call)
    _print(report_json(job_json(resolved)) + "\n" if call["json"] else job_toml(resolved))


@verb(
    config_app,
    (),
    [option("markdown", bool, typer.Option(False, "--markdown", help="The tables of the docs."))],
    examples=("streamlearn config schema > job.schema.json",),
)
def schema(call: Call) -> None:
    """Print the JSON Schema of a job file."""
    from streamlearn import jobtext

    _print(
        jobtext.settings_markdown() if call["markdown"] else report_json(jobtext.schema()) + "\n"
    )


@verb(
    app,
    ("source", "output"),
    [sources("; reached as well", needed=False)],
    examples=(
        "streamlearn doctor",
        "streamlearn doctor 's3://logs/2026/11/*.gz' --out /data/model",
    ),
)
def doctor(call: Call) -> None:
    """Check this machine: kernels, memory, files, processor, dependencies, and sources if named."""
    from streamlearn import doctor as checks

    job = _resolved(call).job

    def reach(job: JobConfig) -> dict[str, Any]:
        import asyncio

        told: dict[str, Any] = asyncio.run(_node().source_check(job))
        return told

    findings = checks.examine(checks.Machine(environ=os.environ), job, reach)
    if call["json"]:
        _print(report_json([finding.as_dict() for finding in findings]) + "\n")
    else:
        _print(checks.findings_text(findings))
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


@verb(
    app,
    (),
    [],
    examples=("streamlearn version --json",),
)
def version(call: Call) -> None:
    """Print the version."""
    import platform

    told = {
        "streamlearn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    _print(report_json(told) + "\n" if call["json"] else f"streamlearn {__version__}\n")


def _node() -> ModuleType:
    """Import the wiring, which brings NumPy, Numba and the rest."""
    import importlib

    return importlib.import_module("streamlearn.node")


def _resolved(call: Call, directory: Path | None = None) -> Resolved:
    """Read the job; that of a model in ``directory`` goes on from what it was trained with."""
    flags = call.flags()
    base: JobConfig | None = None
    if directory is not None:
        base = _node().stored_job(directory)
        flags["output.dir"] = str(directory)
    return load_job(call.job_path(), call["set"] or (), flags, os.environ, base=base)


def _need_sources(resolved: Resolved) -> None:
    if not resolved.job.source.uri:
        raise ConfigError(
            "there is no source",
            hint="name files, directories, globs, http(s):// or s3:// URIs, or - (standard input)",
        )


@contextmanager
def _view(call: Call, job: JobConfig) -> Iterator[Callable[[Any], None]]:
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
        renderer = JsonLines(_to_stderr)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and call["progress"] is None:
        from rich.console import Console

        renderer = LiveBoard(Console(stderr=True))
    else:
        renderer = PlainLines(_to_stderr)
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


@contextmanager
def _lines(target: str) -> Iterator[Callable[[Sequence[float]], None]]:
    """Open where predictions go; give a function that writes them, one a line."""
    try:
        # no with statement: standard output stays open
        path = Path(target)
        file = sys.stdout if target == "-" else path.open("w", encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written", cause=error.strerror) from error

    def out(values: Sequence[float]) -> None:
        # one format for the whole minibatch: three times as fast as one a value
        plain = values.tolist() if hasattr(values, "tolist") else values
        with _written(target):
            file.write(("%.6g\n" * len(plain)) % tuple(plain))

    try:
        yield out
    finally:
        with _written(target):
            file.flush() if target == "-" else file.close()


@contextmanager
def _written(target: str) -> Iterator[None]:
    """Say where a write failed; a reader that went away is no failure of ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "standard output" if target == "-" else target
        raise ResourceError(f"{where} cannot be written", cause=error.strerror) from error


def _finish(call: Call, report: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Print a report and exit as it says."""
    failed: dict[str, str] = report.get("failed") or {}
    said = {key: value for key, value in report.items() if key != "failed"}
    text = report_json(report) + "\n" if call["json"] else report_text(said)
    if not to_stderr:
        _print(text)
    elif not call["quiet"]:
        _to_stderr(text)
    for failure in failed.values():
        _to_stderr(f"error: {failure}\n")
    if report.get("stopped") == "SIGINT":
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(StreamlearnError.exit_code)


def _listed(stored: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return report_json(stored, indent=None) + "\n"
    from datetime import UTC, datetime

    modified = stored.get("modified_seconds") or 0
    moment = datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%d %H:%M:%S")
    size = stored.get("size", -1)
    return f"{size if size >= 0 else '-':>15}  {moment if modified else '-':>19}  {stored['uri']}\n"


def _print(text: str) -> None:
    sys.stdout.write(text)


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
