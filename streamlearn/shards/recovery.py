"""A shard as it was when its process ended: the newest whole snapshot, then the log behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from streamlearn.errors import LogError, ProtocolError
from streamlearn.protocol import Choose, Join, Leave, Push, Tick, decode
from streamlearn.shards.disk import Disk
from streamlearn.shards.image import load_image
from streamlearn.shards.log import Log
from streamlearn.shards.shard import Shard, ShardSpec
from streamlearn.shards.snapshot import SnapshotReader, newest

__all__ = ["LOG", "SNAPSHOTS", "Recovered", "recover"]

LOG: Final = "log"
SNAPSHOTS: Final = "snapshots"


@dataclass(slots=True)
class Recovered:
    """What recovery found.

    Attributes
    ----------
    shard : Shard
    log : Log or None
        Open to go on; None where the job keeps none.
    notes : list of str
        What was passed over or cut away, a sentence each.
    snapshot_lsn : int
        Of the snapshot that it began with; 0: none.
    replayed : int
        Records applied from the log.
    """

    shard: Shard
    log: Log | None
    notes: list[str] = field(default_factory=list)
    snapshot_lsn: int = 0
    replayed: int = 0


def recover(disk: Disk, directory: str, spec: ShardSpec, *, accept_loss: bool = False) -> Recovered:
    """Load a shard's newest whole snapshot and apply the log behind it.

    Parameters
    ----------
    disk : Disk
    directory : str
        The shard's; made where missing.
    spec : ShardSpec
    accept_loss : bool
        Whether to go on where acknowledged pushes are lost.

    Raises
    ------
    LogError
        Acknowledged pushes would be lost, or the disk fails.
    SnapshotError
        The snapshot is another shard's or job's.
    """
    try:
        disk.make_directory(directory)
    except OSError as error:
        raise LogError(f"cannot make {directory}", cause=error.strerror) from error
    root = Path(directory) / SNAPSHOTS
    reader, notes = _newest(root, disk)
    shard = _loaded(reader, spec) if reader is not None else Shard(spec)
    found = Recovered(shard, None, notes, shard.lsn)
    keeps_log = spec.job.tables.durability == "log"
    path = f"{directory}/{LOG}"
    if keeps_log or disk.exists(path):
        try:
            log = Log.open(
                disk,
                path,
                spec.identity,
                after=shard.lsn,
                accept_loss=accept_loss,
                file_bytes=spec.job.tables.log_file_bytes,
            )
        except LogError as error:
            raise _with_notes(error, notes) from error
        found.notes += log.skipped
        _replay(found, log)
        if keeps_log:
            found.log = log
        else:
            log.close()
    return found


def _newest(root: Path, disk: Disk) -> tuple[SnapshotReader | None, list[str]]:
    if not disk.exists(root):
        return None, []
    try:
        # A writer that died in its last call left a whole snapshot whose name a loss of power may
        # still take, when what is acknowledged from now on relies on it.
        disk.sync_directory(root)
    except OSError as error:
        raise LogError(f"cannot bring snapshots {root} to disk", cause=error.strerror) from error
    return newest(root, disk)


def _loaded(reader: SnapshotReader, spec: ShardSpec) -> Shard:
    with reader:
        return load_image(reader, spec)


def _replay(found: Recovered, log: Log) -> None:
    """Apply the records behind the snapshot."""
    shard = found.shard
    for lsn, body in log.read(shard.lsn):
        try:
            record = decode(body)
            assert isinstance(record, Push | Join | Leave | Tick | Choose), record
            shard.apply(lsn, record)
        except (ProtocolError, AssertionError) as error:
            raise LogError(
                f"record {lsn} of the log cannot be applied", cause=str(error)
            ) from error
        found.replayed += 1


def _with_notes(error: LogError, notes: list[str]) -> LogError:
    """Say what was wrong with snapshots, too, since a whole one might have done without the log."""
    cause = "; ".join([error.cause or "", *notes]).strip("; ")
    return LogError(error.message, cause=cause or None, hint=error.hint)
