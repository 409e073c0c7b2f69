"""What shards and workers leave behind, made from a model that one process learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamlearn.cluster.stored_shards import shard_directory
from streamlearn.config import JobConfig, job_signature, loss_of
from streamlearn.messages import F32, U64
from streamlearn.model import Model
from streamlearn.protocol import MARKS, Join, Mark, encode
from streamlearn.shards.arena import Part, sliced
from streamlearn.shards.disk import RealDisk
from streamlearn.shards.image import ImageMeta, snapshot_meta, write_part
from streamlearn.shards.log import Log
from streamlearn.shards.shard import INTERCEPT_KEY, prefixes_of
from streamlearn.shards.snapshot import SnapshotWriter, next_sequence


def marks_of(model: Model) -> list[Mark]:
    """Return marks that say what a model's positions and sums say; the sums in the first."""
    counts, totals = model.counts, model.validation.totals()
    marks = []
    for name, known in sorted(model.positions.items()):
        position = known.position
        mark = MARKS[loss_of(model.job.model)](
            name, known.version, model.epoch, 7, position.offset, position.records, position.done
        )
        if not marks:
            mark = msgspec.structs.replace(
                mark,
                bad_records=counts.bad_records,
                subsampled=counts.subsampled,
                bytes=counts.bytes,
                stored_bytes=counts.stored_bytes,
                **totals._asdict(),
            )
        marks.append(mark)
    return marks


def all_rows(model: Model) -> U64:
    """Return a model's rows in the order of keys, the intercept as the row of key 1."""
    rows = [part.rows for part in model.parts()]
    constant = np.zeros((1, 4), np.uint64)
    constant[0, 0] = INTERCEPT_KEY
    constant[0, 1] = model.table.intercept.view(np.uint64)[0]
    return np.concatenate([constant, *rows])


def all_vectors(model: Model) -> F32:
    """Return the embeddings of those rows, in their order."""
    return np.concatenate([part.vectors for part in model.parts()])


def write_shard(
    directory: Path,
    job: JobConfig,
    index: int,
    of: int,
    rows: U64,
    marks: Sequence[Mark],
    *,
    vectors: F32 | None = None,
    parts: int = 3,
    lsn: int = 10,
    **more: Any,
) -> Path:
    """Write a shard's snapshot, with the rows of ``rows`` that are its own, and an empty log.

    Parameters
    ----------
    vectors : float32[m], optional
        The embeddings of all ``rows``.
    """
    low, high = prefixes_of(index, of)
    prefix = (rows[:, 0] >> np.uint64(56)).astype(np.int64)
    places = np.flatnonzero((prefix >= low) & (prefix < high))
    own = rows[places]
    image = ImageMeta(
        signature=more.get("signature", job_signature(job)),
        shard=more.get("shard", (index, of)),
        lsn=lsn,
        minute=5,
        marks=list(marks),
        clocks={"": [0, 12]},
        features=len(own),
        cursors=[low, low],
    )
    path = shard_directory(directory, index, of)
    root = path / "snapshots"
    with SnapshotWriter(root, next_sequence(root)) as writer:
        # parts are numbered as segments are, not in the order of keys
        whole = Part(0, rows, np.zeros(0, np.float32) if vectors is None else vectors)
        for number, part in enumerate(reversed(np.array_split(places, parts))):
            first, end = (int(part[0]), int(part[-1]) + 1) if len(part) else (0, 0)
            piece = sliced(whole, first, end, job.model.tiers)
            piece = piece._replace(rows=rows[part])
            write_part(writer, piece, f"{number:03d}")
        return writer.commit(snapshot_meta(image, job, now=1.0))


def append_to_log(directory: Path, job: JobConfig, index: int, of: int, *records: Any) -> None:
    """Write a log of ``records``, from 1 on."""
    path = shard_directory(directory, index, of) / "log"
    log = Log.open(RealDisk(), str(path), f"{job_signature(job)} shard {index} of {of}")
    for record in records or [Join("a", 1, 0)]:
        log.append([encode(record)])
    log.sync()
    log.close()


def write_worker(directory: Path, name: str, model: Model, job: JobConfig | None = None) -> Path:
    """Write what a worker keeps: names and validation."""
    root = directory / "workers" / name / "state"
    arrays = {f"names.{k}": np.array(v) for k, v in model.names.state().items()}
    arrays |= {f"validation.{k}": v for k, v in model.validation.state().items()}
    with SnapshotWriter(root, next_sequence(root)) as writer:
        for name_, array in arrays.items():
            with writer.open(name_) as blob:
                blob.write(np.ascontiguousarray(array))
        meta = {
            "kind": "worker",
            "job": msgspec.to_builtins(job or model.job),
            "arrays": {k: [str(v.dtype), list(v.shape)] for k, v in arrays.items()},
        }
        return writer.commit(meta)
