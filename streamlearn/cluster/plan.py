"""What a cluster consists of: its processes, where each listens, and which shards count.

``OUT/cluster.json`` says for how many shards the state in ``OUT/shards`` is, of which job, and
where everything listened the last time; ``OUT/job.toml`` is the job as every process reads it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from streamlearn.cluster.gathering import WORKERS
from streamlearn.cluster.resharding import remove_shards, reshard
from streamlearn.cluster.roles import UpOptions
from streamlearn.cluster.stored_shards import counts_of_shards, shard_directory
from streamlearn.config import (
    DeepConfig,
    JobConfig,
    Resolved,
    job_differences,
    job_signature,
    load_job,
    settings,
)
from streamlearn.errors import ClusterError, ConfigError, RunError, StreamlearnError
from streamlearn.jobtext import job_toml
from streamlearn.shards.directory import fsync_directory
from streamlearn.shards.snapshot import listing

__all__ = ["Plan", "Process", "adopt", "laid_out", "processes"]

_FILE: Final = "cluster.json"
_JOB_FILE: Final = "job.toml"
FOLLOWERS: Final = "followers"


class Plan(msgspec.Struct):
    """What ``cluster.json`` holds.

    Attributes
    ----------
    shards : int
        For so many is the state that counts.
    signature : str
        Of the job.
    addresses : dict
        By process: where it listens, and where it answers over HTTP.
    """

    shards: int
    signature: str
    addresses: dict[str, list[str]] = {}

    @classmethod
    def read(cls, directory: Path) -> Plan | None:
        """Return the plan of an output directory; None where there is none.

        Raises
        ------
        ClusterError
            It cannot be read.
        """
        path = directory / _FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ClusterError(
                f"{path} cannot be read",
                cause=str(error),
                hint="remove it: where shards are of one number only, it is made anew",
            ) from error

    def write(self, directory: Path) -> None:
        """Put the plan in the place of the one before; it is on disk then."""
        _replace(directory / _FILE, msgspec.json.format(msgspec.json.encode(self)) + b"\n")


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the cluster.

    Attributes
    ----------
    name, role : str
        ``shard-0`` and ``shard``.
    arguments : tuple of str
        Of the command line.
    http : str
        Where it answers.
    """

    name: str
    role: str
    arguments: tuple[str, ...]
    http: str


def adopt(directory: Path, job: JobConfig, shards: int, now: float) -> tuple[Plan, str]:
    """Return the plan to go on with, the state made that of so many shards; and what was done.

    Raises
    ------
    ClusterError
        The state is another job's, or not of one moment of the stream and so not to be resharded.
    ConfigError
        The directory holds a model that one process has learned.
    """
    signature = job_signature(job)
    found, plan = counts_of_shards(directory), Plan.read(directory)
    if plan is None and len(found) > 1:
        raise ClusterError(
            f"{directory} has the state of {' and of '.join(map(str, found))} shards, and no "
            f"{_FILE} says which counts",
            hint="remove the directories in shards/ that do not",
        )
    if plan is None:
        plan = Plan(found[0] if found else shards, signature)
    if plan.signature != signature and found:
        raise ClusterError(
            f"{directory} is of a job with signature {plan.signature}, but this job's is "
            f"{signature}",
            cause=_differences(directory, job),
            hint="use another --out, or the settings that it was learned with",
        )
    _check_model(directory, bool(found))
    plan.signature = signature
    done = ""
    if plan.shards != shards:
        if plan.shards in found:
            reshard(directory, plan.shards, shards, now=now)
            shutil.rmtree(directory / FOLLOWERS, ignore_errors=True)  # copies of the old ones
            done = f"{plan.shards} shards became {shards}"
        plan.shards = shards
        plan.write(directory)  # from here on the new ones count
    for other in counts_of_shards(directory):
        if other != shards:
            remove_shards(directory, other)
    return plan, done


def _differences(directory: Path, job: JobConfig) -> str | None:
    """Say in which settings a job differs from the one before, as far as its file tells."""
    with suppress(StreamlearnError):
        return "; ".join(job_differences(job, load_job(directory / _JOB_FILE).job)) or None
    return None


def _check_model(directory: Path, has_shards: bool) -> None:
    """Refuse a directory whose model has learned what its shards have not."""
    models = [row for row in listing(directory / "model") if not row["problem"]]
    if not models:
        return
    if "gathered" not in models[-1]["meta"]:
        raise ConfigError(
            f"the model in {directory} was learned in one process, not by shards",
            hint="use another --out",
        )
    if not has_shards:
        raise ConfigError(
            f"the shards that the model in {directory} was gathered from are gone",
            hint="put shards/ back, or use another --out",
        )


def processes(
    options: UpOptions,
    plan: Plan,
    place: Callable[[str, list[str], int], list[str]],
    device: str = "",
) -> list[Process]:
    """Return all processes of a cluster, shards first; their addresses are noted in the plan.

    Parameters
    ----------
    place : callable
        ``Engine.place``.
    device : str
        As ``compute.device`` has it: several workers take turns at several devices.
    """
    out, of = options.directory, options.shards
    job_file = str(out / _JOB_FILE)
    addresses: dict[str, list[str]] = {}
    found: list[Process] = []

    def add(name: str, role: str, arguments: list[str], *, listens: bool = True) -> None:
        placed = place(name, plan.addresses.get(name, []), 2 if listens else 1)
        addresses[name] = placed
        listen = ["--listen", placed[0]] if listens else []
        words = [role, job_file, *arguments, *listen, "--http", placed[-1], "--json-logs"]
        found.append(Process(name, role, tuple(words), placed[-1]))

    for index in range(of):
        directory = str(shard_directory(out, index, of))
        which = ["--index", str(index), "--of", str(of), "--dir", directory]
        add(f"shard-{index}", "shard", which)
    for number in range(options.workers):
        name = f"worker-{number}"
        which = ["--name", name, "--dir", str(out / WORKERS / name)]
        if options.workers > 1 and "," in device:
            devices = device.split(",")
            which += ["--device", devices[number % len(devices)].strip()]
        add(name, "worker", which, listens=False)
    for index in range(of):
        for number in range(options.followers):
            directory = str(out / FOLLOWERS / f"{index:03d}-of-{of:03d}-{number}")
            which = ["--of-shard", addresses[f"shard-{index}"][0], "--dir", directory]
            add(f"follower-{index}-{number}", "follower", which)
    plan.addresses = addresses
    return found


def laid_out(job: JobConfig, options: UpOptions, plan: Plan) -> None:
    """Write the plan, and the job as every process of it reads it.

    Raises
    ------
    RunError
        The output directory cannot be written.
    """
    out = options.directory
    compute = job.compute
    if isinstance(job.model, DeepConfig) and not compute.lanes:  # threads of torch's are lanes
        lanes = max(1, (os.cpu_count() or 1) // options.workers)
        compute = msgspec.structs.replace(compute, lanes=lanes)
    listed = tuple(plan.addresses[f"shard-{index}"][0] for index in range(options.shards))
    told = msgspec.structs.replace(
        job,
        source=msgspec.structs.replace(job.source, uri=tuple(map(_absolute, job.source.uri))),
        compute=compute,
        tables=msgspec.structs.replace(job.tables, shards=listed),
        output=msgspec.structs.replace(job.output, dir=str(out)),
        http=msgspec.structs.replace(job.http, listen=""),
    )
    origins: Mapping[str, str] = {setting.path: "up" for setting in settings(job.model.kind)}
    plan.write(out)
    _replace(out / _JOB_FILE, job_toml(Resolved(told, origins)).encode())


def _absolute(uri: str) -> str:
    """Take a relative path from here, and not from where the job file is."""
    return uri if "://" in uri or uri.startswith("~") else str(Path.cwd() / uri)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}", cause=error.strerror) from error
