"""What each role of a cluster is told beside the job: options of shard, worker, follower and up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FollowerOptions", "ShardOptions", "UpOptions", "WorkerOptions"]


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """One shard.

    Attributes
    ----------
    index, of : int
        Which of how many shards: it owns the prefixes ``[256 * index // of, 256 * (index + 1) //
        of)`` of the keys.
    listen : str
        HOST:PORT that workers and followers connect to; port 0: any.
    directory : Path
        Its log and snapshots.
    accept_loss : bool
        Whether it may start where its log says that acknowledged pushes are lost.
    http : str
        HOST:PORT of /metrics, /healthz, /readyz and /status; empty: none.
    """

    index: int
    of: int
    listen: str
    directory: Path
    accept_loss: bool = False
    http: str = ""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """One worker; the shards are those of ``tables.shards``.

    Attributes
    ----------
    name : str
        Unique in the cluster; the same again after a restart.
    directory : Path
        Its names, validation and bad records.
    http : str
        As in :class:`ShardOptions`.
    """

    name: str
    directory: Path
    http: str = ""


@dataclass(frozen=True, slots=True)
class FollowerOptions:
    """One follower: a copy of a shard that can be read.

    Attributes
    ----------
    shard : str
        HOST:PORT of the shard that it follows.
    listen : str
        HOST:PORT that readers connect to; port 0: any.
    directory : Path or None
        Where it keeps snapshots, to start from one; None: it starts from the shard each time.
    http : str
        As in :class:`ShardOptions`.
    """

    shard: str
    listen: str
    directory: Path | None = None
    http: str = ""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """A whole cluster.

    Attributes
    ----------
    shards, workers : int
        At least 1.
    followers : int
        Of each shard.
    engine : str
        What starts, watches and stops the processes: ``local``.
    directory : Path
        OUT: shards, workers, model, logs, report.
    """

    shards: int
    workers: int
    directory: Path
    followers: int = 0
    engine: str = "local"
