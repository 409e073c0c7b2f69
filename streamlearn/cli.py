"""The command line: parse, call, print; no decisions.

Progress, logs and errors go to stderr, results to stdout. Exit codes: 0 done or drained, 1 the run
failed, 2 usage or configuration, 130 Ctrl-C. The flags that set something are made from the structs
of :mod:`streamlearn.config`. Nothing heavy is imported before a verb needs it: ``--help`` answers
at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from streamlearn import __version__
from streamlearn.cluster_cli import cluster_app
from streamlearn.command import Call, option, sources, verb
from streamlearn.errors import ConfigError, ResourceError
from streamlearn.mixed import MixtureLines
from streamlearn.predicted import prediction_lines
from streamlearn.recommended import asked_users, recommended_json, recommended_text
from streamlearn.report import report_json, report_text, table_text
from streamlearn.topic_asked import asked_topics, judging_of
from streamlearn.verbs import (
    finish,
    need_sources,
    print_out,
    progress_spacing,
    resolve,
    shown_progress,
    wiring,
)

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterator

    from streamlearn.config import JobConfig

__all__ = ["app"]

_ALL: Final = ("source", "model", "tables", "cluster", "compute", "output", "http")
_READING: Final = ("source", "compute")
_EXPORTED: Final = (".npz", ".parquet", ".txt", ".pt2", ".onnx", ".safetensors")

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
app.add_typer(cluster_app)  # without a name: its verbs stand beside these
app.add_typer(source_app, name="source")
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(config_app, name="config")


def _directory() -> inspect.Parameter:
    return option(
        "directory", Path, typer.Argument(..., metavar="DIR", help="Output directory of train.")
    )


def _top(default: int | None, about: str) -> inspect.Parameter:
    return option("top", int | None, typer.Option(default, "--top", "-n", min=0, help=about))


def _predictions(default: str) -> inspect.Parameter:
    return option(
        "predictions",
        str | None,
        typer.Option(None, "--predictions", "-p", metavar="FILE", help=default),
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
    [sources("; or a job file, JOB.toml"), progress_spacing(), _test_only()],
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
    resolved = resolve(call)
    need_sources(resolved)
    out = resolved.job.output.dir
    if not out:
        raise ConfigError("there is no output directory", hint="--out DIR")
    if call["test_only"]:
        resolved = resolve(call, Path(out))
    job = resolved.job
    if job.tables.shards and not call["test_only"]:
        raise ConfigError(
            "train learns in this process, but the job names shards",
            hint="streamlearn worker JOB.toml --name NAME learns over them, streamlearn up "
            "JOB.toml starts shards and workers here; --set 'tables.shards=[]' goes without",
        )
    node = wiring()
    with shown_progress(call, job) as view:
        report = node.evaluate(Path(out), job, view) if call["test_only"] else node.train(job, view)
    finish(call, report)


@verb(
    app,
    _READING,
    [
        _directory(),
        sources(),
        progress_spacing(),
        _predictions("Also write one prediction a line (reads the sources a second time)."),
        option(
            "method",
            str | None,
            typer.Option(
                None,
                "--method",
                help="Of topics (lda): completion (every other token of a document is predicted "
                "from the rest, the default), or left-to-right (all of them, each from those "
                "before, by particles).",
            ),
        ),
        option(
            "particles",
            int | None,
            typer.Option(
                None,
                "--particles",
                min=1,
                max=10_000,
                help="left-to-right: how many particles read each document. Default: 20.",
            ),
        ),
    ],
    examples=(
        "streamlearn evaluate model day_23.gz",
        "streamlearn evaluate model day_23.gz --json | jq .logloss",
        "streamlearn evaluate topics news.txt --method left-to-right",
    ),
)
def evaluate(call: Call) -> None:
    """Score sources with a model, without learning."""
    node = wiring()
    directory: Path = call["directory"]
    resolved = resolve(call, directory)
    need_sources(resolved)
    job = resolved.job
    if call["predictions"] and "-" in job.source.uri:
        raise ConfigError(
            "evaluate -p reads the sources twice, and standard input can be read once",
            hint="streamlearn predict DIR - -p FILE",
        )
    judging = judging_of(job, call["method"], call["particles"])
    with shown_progress(call, job) as view:
        report = node.evaluate(directory, job, view, **judging)
    if call["predictions"]:
        _predict(call, job, call["predictions"])
    finish(call, report, to_stderr=call["predictions"] == "-")


@verb(
    app,
    _READING,
    [
        _directory(),
        sources(),
        _predictions("Write to this file. Default: standard output."),
        _top(
            None,
            "Of topics (lda): those of largest share of each document; 0: all, in the order of "
            "their numbers. Default: 10.",
        ),
        option(
            "probabilities",
            bool,
            typer.Option(
                False,
                "--probabilities",
                help="Of classes: the probability of each, between tabs, in their order.",
            ),
        ),
    ],
    examples=(
        "streamlearn predict model today.csv > predictions.txt",
        "streamlearn predict model 's3://logs/today/*' -p predictions.txt --json",
        "streamlearn predict topics news.txt --top 3",
        "streamlearn predict digits test.jsonl --probabilities",
    ),
)
def predict(call: Call) -> None:
    """Write one prediction a record, in the records' order.

    Of classes: the one that is the most probable. Of topics (lda): those of each document, with
    their shares.
    """
    directory: Path = call["directory"]
    resolved = resolve(call, directory)
    need_sources(resolved)
    job = resolved.job
    target = call["predictions"] or "-"
    report = _predict(call, job, target)
    # predictions are the result: where they take stdout, what is said about them does not
    finish(call, report, to_stderr=target == "-")


@verb(
    app,
    _READING,
    [
        _directory(),
        sources(": what users have rated, which is left out", needed=False),
        option(
            "user",
            list[str] | None,
            typer.Option(None, "--user", "-u", metavar="ID", help="Of this user. Repeatable."),
        ),
        option(
            "users",
            str | None,
            typer.Option(
                None, "--users", metavar="FILE", help="Of these users, one a line; - for stdin."
            ),
        ),
        option("top", int, typer.Option(10, "--top", "-n", min=1, help="Items for each user.")),
    ],
    examples=(
        "streamlearn recommend model ratings.dat --user 17 --user 23 -n 5",
        "streamlearn recommend model ratings.dat > all.tsv",
        "cut -f1 today.tsv | streamlearn recommend model --users - --json",
    ),
)
def recommend(call: Call) -> None:
    """Write the best items of users, by a factorization (mf): user, item and score, a line each.

    Of all users that the model knows, or of those named. What the sources say that each of them has
    rated is left out. A user that the model does not know is given the items of highest bias.
    """
    directory: Path = call["directory"]
    job = resolve(call, directory).job
    users = asked_users(call["user"] or [], call["users"], "-" in job.source.uri)
    out = recommended_json if call["json"] else recommended_text
    report = wiring().recommend(directory, job, users, call["top"], out)
    finish(call, report, to_stderr=True)


@verb(
    app,
    ("source", "compute", "output", "http"),
    [_directory(), progress_spacing()],
    examples=("streamlearn replay model --column delay=ignore",),
)
def replay(call: Call) -> None:
    """Learn the records kept in bad_records.jsonl, once the schema is mended."""
    node = wiring()
    directory: Path = call["directory"]
    job = resolve(call, directory).job
    with shown_progress(call, job) as view:
        report = node.replay(directory, job, view)
    finish(call, report)


@verb(
    app,
    _READING,
    [
        _directory(),
        sources(": documents by which the coherence of topics is told", needed=False),
        _top(None, "Weights shown. Default: 20. Of topics: words of each, or topics; 10."),
        option(
            "topics",
            bool,
            typer.Option(False, "--topics", help="Of lda: what each topic is made of."),
        ),
        option(
            "words",
            list[str] | None,
            typer.Option(
                None, "--words", "-w", metavar="WORD", help="Of lda: a word's topics. Repeatable."
            ),
        ),
        option(
            "html",
            Path | None,
            typer.Option(None, "--html", metavar="FILE", help="Write the topics as a page."),
        ),
    ],
    examples=(
        "streamlearn inspect model --top 50",
        "streamlearn inspect topics --topics",
        "streamlearn inspect topics news.txt --topics --html topics.html",
        "streamlearn inspect topics --words game --words team",
    ),
)
def inspect_(call: Call) -> None:
    """Show what is in a model: counts, sparsity, the largest weights by name.

    Of a topic model (lda) its sizes and priors; --topics shows its topics, --words those of words.
    """
    directory: Path = call["directory"]
    job = resolve(call, directory).job
    wanted = asked_topics(call, job)
    if wanted is None:
        finish(call, wiring().inspect(directory, 20 if call["top"] is None else call["top"]))
    else:
        finish(call, wiring().inspect_topics(directory, job, wanted))


@verb(
    app,
    (),
    [
        _directory(),
        option(
            "target",
            Path,
            typer.Argument(
                ...,
                metavar="FILE",
                help=".npz, .parquet or .txt; of nets (deep) also .pt2, .onnx or .safetensors.",
            ),
        ),
    ],
    examples=(
        "streamlearn export model weights.parquet",
        "streamlearn export net net.onnx",
    ),
)
def export(call: Call) -> None:
    """Write a model's weights in an open format, chosen by the suffix.

    Of nets (deep) the whole model, from records' numbers to predictions: .pt2 (torch.export) or
    .onnx, checked against the model; or the dense part alone: .safetensors.
    """
    target: Path = call["target"]
    if target.suffix not in _EXPORTED:
        raise ConfigError(
            "export writes .npz, .parquet or .txt, of nets also .pt2, .onnx or .safetensors, but "
            f"got {target.name}"
        )
    finish(call, wiring().export(call["directory"], target))


@verb(
    source_app,
    ("source",),
    [sources()],
    examples=("streamlearn source check 's3://logs/2026/11/*.gz'",),
)
def check(call: Call) -> None:
    """Say whether sources can be listed and read, and with which settings and credentials."""
    import asyncio

    resolved = resolve(call)
    need_sources(resolved)
    job = resolved.job
    told = asyncio.run(wiring().source_check(job))
    print_out(report_json(told) + "\n" if call["json"] else report_text(told))
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

    resolved = resolve(call)
    need_sources(resolved)
    job = resolved.job
    records: list[bytes] = asyncio.run(wiring().source_head(job, call["lines"]))
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

    resolved = resolve(call)
    need_sources(resolved)
    job = resolved.job
    node = wiring()

    async def listing() -> None:
        async for stored in node.source_list(job):
            print_out(_listed(stored, as_json=call["json"]))

    asyncio.run(listing())


@verb(
    snapshot_app,
    (),
    [_directory()],
    examples=("streamlearn snapshot ls model",),
)
def ls_(call: Call) -> None:
    """List the snapshots of a model, newest last."""
    found = wiring().snapshots(call["directory"])
    print_out(report_json(found) + "\n" if call["json"] else table_text(found) if found else "")


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

    resolved = resolve(call)
    print_out(report_json(job_json(resolved)) + "\n" if call["json"] else job_toml(resolved))


@verb(
    config_app,
    (),
    [option("markdown", bool, typer.Option(False, "--markdown", help="The tables of the docs."))],
    examples=("streamlearn config schema > job.schema.json",),
)
def schema(call: Call) -> None:
    """Print the JSON Schema of a job file."""
    from streamlearn import jobtext

    print_out(
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

    job = resolve(call).job

    def reach(job: JobConfig) -> dict[str, Any]:
        import asyncio

        told: dict[str, Any] = asyncio.run(wiring().source_check(job))
        return told

    findings = checks.examine(checks.Machine(environ=os.environ), job, reach)
    if call["json"]:
        print_out(report_json([finding.as_dict() for finding in findings]) + "\n")
    else:
        print_out(checks.findings_text(findings))
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
    print_out(report_json(told) + "\n" if call["json"] else f"streamlearn {__version__}\n")


def _predict(call: Call, job: JobConfig, target: str) -> dict[str, Any]:
    """Write the predictions of records, a line each; return the report."""
    node, directory = wiring(), call["directory"]
    topics = job.model.kind == "lda"
    if call["top"] is not None and not topics:
        raise ConfigError(f"--top is for topics (lda), but the model is {job.model.kind}")
    report: dict[str, Any]
    probabilities = bool(call["probabilities"])
    if probabilities and topics:
        raise ConfigError("--probabilities is for classes; --top 0 writes the shares of all topics")
    with _opened(target) as write:
        if topics:
            top = 10 if call["top"] is None else call["top"]
            lines = MixtureLines(write, top, as_json=call["json"])
            report = node.predict_topics(directory, job, lines)
        else:
            lines_out = prediction_lines(write, job, probabilities=probabilities)
            report = node.predict(directory, job, lines_out, probabilities=probabilities)
    return report


@contextmanager
def _opened(target: str) -> Iterator[Callable[[str], None]]:
    """Open where predictions go; give a function that writes text there."""
    try:
        # no with statement: standard output stays open
        path = Path(target)
        file = sys.stdout if target == "-" else path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written", cause=error.strerror) from error

    def write(text: str) -> None:
        with _written(target):
            file.write(text)

    try:
        yield write
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


def _listed(stored: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return report_json(stored, indent=None) + "\n"
    from datetime import UTC, datetime

    modified = stored.get("modified_seconds") or 0
    moment = datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%d %H:%M:%S")
    size = stored.get("size", -1)
    return f"{size if size >= 0 else '-':>15}  {moment if modified else '-':>19}  {stored['uri']}\n"
