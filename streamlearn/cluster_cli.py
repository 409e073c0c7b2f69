"""The verbs of a cluster: shard, worker, follower, gather, and up, which runs them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from streamlearn.cluster.roles import FollowerOptions, ShardOptions, UpOptions, WorkerOptions
from streamlearn.command import Call, option, sources, verb
from streamlearn.config import SHARDS_MAX, check_for_shards
from streamlearn.errors import ConfigError
from streamlearn.privacy import is_private
from streamlearn.verbs import (
    finish,
    need_sources,
    progress_spacing,
    resolve,
    shown_progress,
    wiring,
)

if TYPE_CHECKING:
    import inspect

    from streamlearn.config import JobConfig

__all__ = ["cluster_app"]

_ALL: Final = ("source", "model", "tables", "cluster", "compute", "output", "http")
# A directory is called so.
_WORKER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
# Each is a process with an interpreter of its own: more of them on one machine is a slip of the
# finger.
_PROCESSES_MAX: Final = 256

cluster_app = typer.Typer()


def _job() -> inspect.Parameter:
    return sources("; or a job file, JOB.toml", needed=False)


def _number(name: str, flag: str, about: str, default: Any, least: int) -> inspect.Parameter:
    return option(name, int | None, typer.Option(default, flag, min=least, help=about))


def _text(name: str, flag: str, metavar: str, about: str) -> inspect.Parameter:
    return option(name, str | None, typer.Option(None, flag, metavar=metavar, help=about))


@verb(
    cluster_app,
    _ALL,
    [
        _job(),
        _number("index", "--index", "Which shard this is, from 0.", None, 0),
        _number("of", "--of", "How many there are. Default: as tables.shards lists.", None, 1),
        _text(
            "listen",
            "--listen",
            "HOST:PORT",
            "Where workers and followers connect. Default: its place in tables.shards.",
        ),
        _text("dir", "--dir", "DIR", "Its log and snapshots. Default: shards/000-of-002 in --out."),
        option(
            "accept_loss",
            bool,
            typer.Option(
                False,
                "--accept-loss",
                help="Start even where the log says that acknowledged pushes are lost.",
            ),
        ),
    ],
    examples=(
        "streamlearn shard job.toml --index 0 --of 2 --listen 10.0.0.1:7700 --dir /data/shard",
    ),
)
def shard(call: Call) -> None:
    """Hold a range of a model's parameters, for workers to pull and push.

    SIGTERM drains: pushes under way are applied, a last snapshot is written. The same command again
    goes on there; after a crash, from the newest snapshot and the log.
    """
    job = resolve(call).job
    listed = job.tables.shards
    index, of = call["index"], call["of"] or len(listed)
    if index is None:
        raise ConfigError("which shard is it?", hint="--index 0 --of 2")
    if not of or (listed and of != len(listed)):
        raise ConfigError(
            f"--of is {of}, but tables.shards lists {len(listed)}"
            if of
            else "how many shards are there?",
            hint="--index 0 --of 2",
        )
    if not index < of <= SHARDS_MAX:
        raise ConfigError(
            f"there is no shard {index} of {of}",
            hint=f"--index counts from 0, and there are {SHARDS_MAX} shards at most",
        )
    _need_divisible(job)
    listen = call["listen"] or (listed[index] if listed else "")
    if not listen:
        raise ConfigError("where does the shard listen?", hint="--listen HOST:PORT")
    options = ShardOptions(
        index=index,
        of=of,
        listen=listen,
        directory=_place(call, job, f"shards/{index:03d}-of-{of:03d}"),
        accept_loss=call["accept_loss"],
        http=job.http.listen,
    )
    finish(call, wiring().shard(job, options))


@verb(
    cluster_app,
    _ALL,
    [
        _job(),
        _text(
            "name",
            "--name",
            "NAME",
            "Of this worker, no other's, the same after a restart. Default: the host's name.",
        ),
        _text("dir", "--dir", "DIR", "Its names and bad records. Default: workers/NAME in --out."),
        progress_spacing(),
    ],
    examples=("streamlearn worker job.toml --name a --shards 10.0.0.1:7700,10.0.0.2:7700",),
)
def worker(call: Call) -> None:
    """Learn from sources over shards, beside other workers.

    Ends when everything is learned and applied. Ctrl-C or SIGTERM ends it once what is under way is
    applied; others take over, and the same command again takes part again.
    """
    resolved = resolve(call)
    need_sources(resolved)
    job = resolved.job
    if not job.tables.shards:
        raise ConfigError("there are no shards", hint="--shards HOST:PORT,HOST:PORT")
    name = call["name"] or _host_name()
    if not _WORKER_NAME.fullmatch(name):
        raise ConfigError(
            f"a worker cannot be called {name!r}",
            hint="--name takes up to 64 letters, digits, points, dashes and underscores",
        )
    options = WorkerOptions(
        name=name, directory=_place(call, job, f"workers/{name}"), http=job.http.listen
    )
    with shown_progress(call, job) as view:
        report = wiring().worker(job, options, view)
    finish(call, report)


@verb(
    cluster_app,
    _ALL,
    [
        _job(),
        _text("shard", "--of-shard", "HOST:PORT", "The shard that it follows."),
        _text("listen", "--listen", "HOST:PORT", "Where readers connect."),
        _text("dir", "--dir", "DIR", "Where it keeps snapshots, to start from. Default: nowhere."),
    ],
    examples=(
        "streamlearn follower job.toml --of-shard 10.0.0.1:7700 --listen 10.0.0.3:7701 \\",
        "    --dir /data/follower",
    ),
)
def follower(call: Call) -> None:
    """Follow a shard's log: a copy of it that can be read, and not written."""
    job = resolve(call).job
    for name, flag in (("shard", "--of-shard"), ("listen", "--listen")):
        if not call[name]:
            raise ConfigError(f"a follower needs {flag}", hint=f"{flag} HOST:PORT")
    _need_divisible(job)
    options = FollowerOptions(
        shard=call["shard"],
        listen=call["listen"],
        directory=Path(call["dir"]) if call["dir"] else None,
        http=job.http.listen,
    )
    finish(call, wiring().follower(job, options))


@verb(
    cluster_app,
    _ALL,
    [
        _job(),
        _number("shards", "--shards", "Shards.", 1, 1),
        _number("workers", "--workers", "Workers.", 1, 1),
        _number("followers", "--followers", "Followers of each shard.", 0, 0),
        option(
            "engine",
            str,
            typer.Option("local", "--engine", metavar="ENGINE", help="What runs them: local."),
        ),
        progress_spacing(),
    ],
    examples=(
        "streamlearn up job.toml --shards 2 --workers 2",
        "streamlearn up 's3://logs/2026/11/*.gz' --format criteo --out model --shards 4 "
        "--workers 4",
    ),
)
def up(call: Call) -> None:
    """Learn with shards and workers as processes of this machine, and watch over them.

    What dies is started again and goes on. Leaves in --out what train leaves, and the shards'
    state: the same command goes on there, also with another number of shards. Ctrl-C drains.
    """
    resolved = resolve(call)
    need_sources(resolved)
    job = resolved.job
    if not job.output.dir:
        raise ConfigError("there is no output directory", hint="--out DIR")
    if "-" in job.source.uri:
        raise ConfigError("standard input can be read by one process only", hint="name files")
    if job.tables.shards:
        raise ConfigError(
            "up starts the shards itself, but the job names some",
            hint="--set 'tables.shards=[]', or start shards and workers one by one",
        )
    _need_divisible(job)
    shards, workers, followers = call["shards"], call["workers"], call["followers"]
    processes = shards * (1 + followers) + workers
    if shards > SHARDS_MAX or processes > _PROCESSES_MAX:
        raise ConfigError(
            f"{processes} processes, {shards} of them shards, are too many for one machine",
            hint=f"{_PROCESSES_MAX} at most; shards and workers can run on several",
        )
    if call["engine"] != "local":
        raise ConfigError(f"--engine must be local, but is {call['engine']!r}")
    options = UpOptions(
        shards=shards,
        workers=workers,
        followers=followers,
        engine=call["engine"],
        directory=Path(job.output.dir),
    )
    with shown_progress(call, job) as view:
        report = wiring().up(job, options, view)
    finish(call, report)


@verb(
    cluster_app,
    (),
    [
        option(
            "directory",
            Path,
            typer.Argument(..., metavar="DIR", help="Has shards/ and workers/, as up leaves them."),
        )
    ],
    examples=("streamlearn gather model",),
)
def gather(call: Call) -> None:
    """Make one model of shards that have drained, for evaluate, predict, inspect, export.

    What up does at its end, for shards and workers that ran by themselves.
    """
    finish(call, wiring().gather(call["directory"]))


def _need_divisible(job: JobConfig) -> None:
    if job.tables.index != "exact":
        raise ConfigError(
            f"shards hold tables with `tables.index` exact, but it is {job.tables.index}",
            hint="a hashed table has no keys by which shards could divide it",
        )
    if is_private(job.model):
        raise ConfigError(
            "a private model (`model.epsilon`) is drawn by one process, not over shards",
            hint="streamlearn train, or leave out model.epsilon",
        )
    check_for_shards(job)


def _place(call: Call, job: JobConfig, name: str) -> Path:
    """Return the directory that ``--dir`` names, or one in the job's output directory."""
    if call["dir"]:
        return Path(call["dir"])
    if not job.output.dir:
        raise ConfigError("there is no directory for it", hint="--dir DIR, or --out DIR")
    return Path(job.output.dir) / name


def _host_name() -> str:
    import socket

    return socket.gethostname()
