"""From the URIs of a job to one source."""

from __future__ import annotations

import asyncio
import difflib
import os
import re
import stat
from pathlib import Path

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.net.sources.aws import AwsService
from streamlearn.net.sources.blocks import BlockPool, Offload
from streamlearn.net.sources.compression import CODECS
from streamlearn.net.sources.file import FileStore
from streamlearn.net.sources.http import HttpStore
from streamlearn.net.sources.objects import Arrivals, Mount, ObjectSource
from streamlearn.net.sources.pipe import PipeStore
from streamlearn.net.sources.reading import READING_BUFFERS_MIN

__all__ = ["SCHEMES", "open_source"]

SCHEMES = ("s3", "http", "https", "file")

# Pieces fetched ahead. A disk needs the next one or two; a network as many as hide its latency: 16
# of 8 MiB are 1.3 GB/s at 100 ms. The pool's bound comes first.
_DISK_AHEAD = 2
_NETWORK_AHEAD = 16
_BLOCK_BYTES_MIN = 4096
# A GET costs some 0.3 ms of CPU however little it brings; of a disk, blocks that stay in the cache
# between reading and parsing are best.
_NETWORK_BLOCK_BYTES = 8 << 20
_DISK_BLOCK_BYTES = 2 << 20

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_source(config: SourceConfig, *, offload: Offload = asyncio.to_thread) -> ObjectSource:
    """Open what ``source.uri`` names, as one source in the order given.

    Parameters
    ----------
    config : SourceConfig
        URIs are paths, directories, globs, ``-`` for standard input, ``http(s)://``, ``s3://`` or
        ``file://`` URLs. Nothing is listed or connected to yet.
    offload : callable
        ``await offload(function, *args)`` runs blocking and computing work in a lane.

    Raises
    ------
    ConfigError
        A setting is out of its range, or a scheme is not known.
    """
    if not config.uri:
        raise ConfigError("source.uri names no source", hint="give a file, s3://bucket/prefix or -")
    compressions = ("auto", "none", *CODECS)
    if config.compression not in compressions:
        raise ConfigError(
            f"source.compression is {config.compression!r}, expected {_one_of(compressions)}",
            hint=_nearest(config.compression, compressions),
        )
    block_bytes = config.block_bytes or _block_bytes(config.uri)
    if block_bytes < _BLOCK_BYTES_MIN:
        raise ConfigError(
            f"source.block_bytes is {block_bytes}, expected at least {_BLOCK_BYTES_MIN}"
        )
    if config.range_bytes <= 0:
        raise ConfigError(f"source.range_bytes is {config.range_bytes}, expected at least 1")
    least = READING_BUFFERS_MIN * BlockPool.bytes_of(block_bytes)
    if config.read_ahead_bytes < least:
        raise ConfigError(
            f"source.read_ahead_bytes is {config.read_ahead_bytes}, expected at least {least} "
            f"with blocks of {block_bytes} bytes",
            hint="or make source.block_bytes smaller",
        )
    # Unused it costs nothing, and the stores of a job with many prefixes share one client.
    s3 = AwsService("s3", config)
    return ObjectSource(
        [_mount(uri, config, offload, s3) for uri in config.uri],
        pool=BlockPool(block_bytes, config.read_ahead_bytes),
        range_bytes=config.range_bytes,
        compression=config.compression,
        unpacking=_unpacking(config),
        follow=config.follow,
        follow_seconds=config.follow_seconds,
        arrivals=_arrivals(config),
        offload=offload,
    )


def _block_bytes(uris: tuple[str, ...]) -> int:
    on_network = any(uri.startswith(("s3://", "http://", "https://")) for uri in uris)
    return _NETWORK_BLOCK_BYTES if on_network else _DISK_BLOCK_BYTES


def _unpacking(config: SourceConfig) -> str:
    """Return how bytes become records: documents may be files, those of docword are many lines."""
    unpacked = {"bow": "docword", "idx": "idx", "samples": "samples", "webdataset": "samples"}
    if config.format in unpacked:
        return unpacked[config.format]
    return config.documents if config.format in {"auto", "documents"} else "none"


def _arrivals(config: SourceConfig) -> Arrivals | None:
    if not config.queue:
        return None
    uris = [uri for uri in config.uri if uri.startswith("s3://")]
    if len(uris) < len(config.uri):
        raise ConfigError("source.queue tells of S3 objects, expected source.uri to be s3:// only")
    from streamlearn.net.sources.sqs import S3EventQueue

    return S3EventQueue(config.queue, uris, config)


def _mount(uri: str, config: SourceConfig, offload: Offload, s3: AwsService) -> Mount:
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else ""
    if uri == "-" or (not scheme and _is_stream(uri)):
        return Mount(PipeStore(uri, offload=offload), uri, _DISK_AHEAD)
    if scheme in {"", "file"}:
        return Mount(FileStore(uri, offload=offload), "/", _DISK_AHEAD)
    if scheme in {"http", "https"}:
        return Mount(HttpStore(uri, retries=config.retries), uri, _NETWORK_AHEAD)
    if scheme == "s3":
        from streamlearn.net.sources.s3 import S3Store

        store = S3Store(uri, config, service=s3)
        return Mount(store, f"s3://{store.uri.bucket}/", _NETWORK_AHEAD)
    raise ConfigError(
        f"source.uri {uri!r} has the scheme {scheme!r}, expected a path, - or "
        f"{_one_of([f'{known}://' for known in SCHEMES])}",
        hint=_nearest(scheme, SCHEMES),
    )


def _is_stream(path: str) -> bool:
    """Whether a path is a named pipe, terminal or socket: something that can be read once."""
    try:
        mode = os.stat(Path(path).expanduser()).st_mode  # noqa: PTH116 -- follows /dev/fd/63 too
    except (OSError, ValueError):
        return False  # whoever lists it says why
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _one_of(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f"did you mean {close[0]}?" if close else None
