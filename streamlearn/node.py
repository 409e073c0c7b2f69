"""The node: what the command line and Python call; each function is one run of an event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from streamlearn.binary import Sample
from streamlearn.cluster.roles import FollowerOptions, ShardOptions, UpOptions, WorkerOptions
from streamlearn.config import JobConfig
from streamlearn.errors import StreamlearnError
from streamlearn.exports import export
from streamlearn.inspection import inspect
from streamlearn.messages import Position, Progress
from streamlearn.model import stored_job
from streamlearn.net.sources.uri import open_source
from streamlearn.online.formats import DEEP_ONLY, Deep, open_format
from streamlearn.recommending import Recommended
from streamlearn.recommending import recommend as _recommend
from streamlearn.replay import replay as _replay
from streamlearn.scoring import read_records, score
from streamlearn.shards.directory import DirectoryLock
from streamlearn.shards.snapshot import listing
from streamlearn.topic_asked import AskedTopics
from streamlearn.topic_inference import Judging
from streamlearn.topic_inspection import TopicInspection
from streamlearn.topic_mixtures import MixturesOut
from streamlearn.training import TrainingRun

__all__ = [
    "evaluate",
    "export",
    "follower",
    "gather",
    "inspect",
    "inspect_topics",
    "predict",
    "predict_topics",
    "recommend",
    "replay",
    "shard",
    "snapshots",
    "source_check",
    "source_head",
    "source_list",
    "stored_job",
    "train",
    "up",
    "worker",
]

ProgressSink = Callable[[Progress], None]


def train(job: JobConfig, progress: ProgressSink) -> dict[str, Any]:
    """Learn from the job's source, going on from the newest snapshot; return the report."""
    return uvloop.run(TrainingRun(job, progress).run())


def evaluate(
    directory: Path, job: JobConfig, progress: ProgressSink, judging: Judging | None = None
) -> dict[str, Any]:
    """Score a source with a model without learning; return the report."""
    return uvloop.run(score(directory, job, progress, None, judging=judging))


def predict(
    directory: Path,
    job: JobConfig,
    out: Callable[[Sequence[Any]], None],
    *,
    probabilities: bool = False,
) -> dict[str, Any]:
    """Hand the prediction of each record to ``out``, in order; NaN for a bad record.

    Of classes the number of one, or the probabilities of all.
    """
    scored = score(directory, job, lambda _: None, out, probabilities=probabilities)
    return uvloop.run(scored)


def predict_topics(directory: Path, job: JobConfig, out: MixturesOut) -> dict[str, Any]:
    """Hand the topics of each document to ``out``, in order; None for a bad record."""
    return uvloop.run(score(directory, job, lambda _: None, None, mixtures=out))


def inspect_topics(directory: Path, job: JobConfig, asked: AskedTopics) -> dict[str, Any]:
    """Say what topics, or those of words, are made of, and how coherent in a job's documents."""
    inspection = TopicInspection(directory, job, asked)
    if job.source.uri:
        uvloop.run(read_records(inspection.job, inspection.model, inspection.count))
    return inspection.report()


def recommend(
    directory: Path, job: JobConfig, users: Sequence[str] | None, n: int, out: Recommended
) -> dict[str, Any]:
    """Tell of the best items of users (None: of all), without those that the sources have."""
    return uvloop.run(_recommend(directory, job, users, n, out))


def replay(directory: Path, job: JobConfig, progress: ProgressSink) -> dict[str, Any]:
    """Learn the records of ``bad_records.jsonl`` with a mended schema; return the report."""
    return uvloop.run(_replay(directory, job, progress))


def shard(job: JobConfig, options: ShardOptions) -> dict[str, Any]:
    """Serve a shard until it is told to stop; return what it says of itself then."""
    from streamlearn.cluster.shard_node import ShardNode

    return uvloop.run(ShardNode(job, options).run())


def worker(job: JobConfig, options: WorkerOptions, progress: ProgressSink) -> dict[str, Any]:
    """Learn the job's source over its shards; return the report."""
    from streamlearn.cluster.worker_node import WorkerNode

    return uvloop.run(WorkerNode(job, options, progress).run())


def follower(job: JobConfig, options: FollowerOptions) -> dict[str, Any]:
    """Serve a copy of a shard until it is told to stop; return what it says of itself then."""
    from streamlearn.cluster.follower_node import FollowerNode

    return uvloop.run(FollowerNode(job, options).run())


def up(job: JobConfig, options: UpOptions, progress: ProgressSink) -> dict[str, Any]:
    """Run shards, workers and followers, and watch over them; return the report."""
    from streamlearn.cluster.engines.local import LocalEngine
    from streamlearn.cluster.supervisor import Supervisor
    from streamlearn.net.asking import Asking

    engine = LocalEngine(options.directory)
    return uvloop.run(Supervisor(job, options, engine, Asking(), progress).run())


def gather(directory: Path) -> dict[str, Any]:
    """Make a model of the shards and workers in an output directory; say what it is."""
    from streamlearn.cluster import gathering
    from streamlearn.cluster.stored_shards import only_shards

    lock = DirectoryLock(directory)
    try:
        of = only_shards(directory)
        gathered = gathering.gather(directory, None, of, now=time.time())
    finally:
        lock.release()
    validation = gathered.model.validation
    return {
        "model": gathered.model.job.model.kind,
        "snapshot": gathered.path,
        "shards": of,
        "examples": gathered.model.counts.examples,
        "bad_records": gathered.model.counts.bad_records,
        "features": gathered.features,
        "nonzeros": gathered.nonzeros,
        **({"embeddings": gathered.embeddings} if gathered.model.has_embeddings else {}),
        "whole": gathered.whole,
        **validation.headlines(validation.summary()),
        "notes": gathered.notes,
    }


def snapshots(directory: Path) -> list[dict[str, Any]]:
    """List the snapshots of an output directory, oldest first."""
    rows = []
    listed = listing(directory / "model")
    summaries = [row["meta"].get("summary", {}) for row in listed]
    known = {figure for summary in summaries for figure in summary}
    others = ("rmse", "perplexity", "cross_entropy")
    measure = next((one for one in others if one in known), "logloss")
    for row, summary in zip(listed, summaries, strict=True):
        meta = row["meta"]
        rows.append(
            {
                "sequence": row["sequence"],
                "bytes": row["bytes"],
                "examples": meta.get("counts", {}).get("examples"),
                measure: summary.get(measure),
                "created_seconds": meta.get("created_seconds"),
                "problem": row["problem"],
                "path": row["path"],
            }
        )
    return rows


async def source_list(job: JobConfig) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a source."""
    source = open_source(job.source)
    try:
        async for stored in source.objects():
            yield {
                "uri": stored.uri,
                "size": stored.size,
                "version": stored.version,
                "modified_seconds": stored.modified_seconds,
            }
    finally:
        await source.aclose()


async def source_head(job: JobConfig, n: int) -> list[bytes]:
    """Return the first ``n`` records of a source, decompressed, headers included."""
    source = open_source(job.source)
    lines: list[bytes] = []
    try:
        for partition in await source.partitions():
            rest = b""
            async for block in source.read(partition, Position(offset=partition.start)):
                try:
                    rest += block.buffer[block.start : block.end].tobytes()
                finally:
                    block.release()
                *whole, rest = rest.split(b"\n")
                lines += whole
                if len(lines) >= n:
                    return lines[:n]
    finally:
        await source.aclose()
    return lines


async def source_check(job: JobConfig) -> dict[str, Any]:
    """Say whether a source can be read, with what credentials, and in what format it is."""
    source = open_source(job.source)
    told: dict[str, Any] = {"uri": list(job.source.uri)}
    try:
        told |= await source.describe()
        partitions = await source.partitions()
        told["partitions"] = len(partitions)
        told["stored_bytes"] = sum({p.uri: max(p.size, 0) for p in partitions}.values())
        if partitions:
            line = await source.header(partitions[0])
            told["first_line"] = line[:200].decode(errors="replace")
            ratings = True if job.model.kind == "mf" else None  # of others whatever it is
            documents = True if job.model.kind == "lda" else None
            arrays = job.source.format in DEEP_ONLY  # whose labels nobody asks for here
            deep = Deep("squared", 0) if arrays or job.model.kind == "deep" else None
            told["format"] = open_format(
                job.source, line, ratings=ratings, documents=documents, deep=deep
            ).name
            if line and told["format"] == "samples":  # as it travels it says little
                sample = Sample.decode(line)
                names = ", ".join(extension for extension, _ in sample.members)
                told["first_line"] = f"{sample.key[:200]}: {names[:200]}"
        told["ok"] = True
    except StreamlearnError as error:
        told |= {"ok": False, "error": error.message, "cause": error.cause, "hint": error.hint}
    finally:
        await source.aclose()
    return told
