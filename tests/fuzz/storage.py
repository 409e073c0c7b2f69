"""Readers of logs and snapshots under bytes of any kind: what a fuzzer calls, an input at a time.

An input is a program of small edits on sound files, or the files themselves. Some edits mend the
checksums behind them, since else none would get past the first.
"""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

from isal import isal_zlib

from streamlearn.errors import LogError, SnapshotError
from streamlearn.shards import manifest as manifests
from streamlearn.shards.log import Log
from streamlearn.shards.log_format import (
    file_header,
    file_name,
    record_header,
    seed_of,
)
from streamlearn.shards.snapshot import SnapshotReader, SnapshotWriter
from tests.sim.disk import SimDisk

__all__ = ["one_log", "one_snapshot"]

IDENTITY = "job 0 shard 0 of 1"
# No fault is switched on, so it decides nothing.
_CHANCE = random.Random(1)
LOG = "/log"
SNAPSHOT = Path("/snapshots/000000000007")


class Input:
    """Takes numbers and bytes off an input; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece + bytes(count - len(piece))

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """Return a small number mostly, any of 64 bits sometimes."""
        first = self.byte()
        if first < 240:
            return first
        return int.from_bytes(self.take(1 + first % 8), "little")

    def rest(self) -> bytes:
        return self.take(max(0, len(self._data) - self._at))


def _put(disk: SimDisk, path: str, data: bytes) -> None:
    file = disk.create(path)
    file.write(data)
    file.sync()
    file.close()


@cache
def _sound_log() -> dict[str, bytes]:
    disk = SimDisk(_CHANCE)
    log = Log.open(disk, LOG, IDENTITY, file_bytes=250)
    for lsn in range(1, 9):
        log.append([b"payload %d " % lsn * lsn])
        log.sync()
    log.close()
    return {name: disk.read(f"{LOG}/{name}") for name in disk.names(LOG)}


def _edited(source: Input, data: bytes) -> bytes:
    """Return bytes after one edit that mends nothing."""
    at = source.number() % (len(data) + 1)
    kind = source.byte() % 5
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + source.take(1 + source.byte() % 16) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at + 1 + source.byte() :]
    if kind == 3:
        return data[:at] + data[source.number() % (len(data) + 1) :]
    return data + source.take(source.byte())


def _record(source: Input, seed: int) -> bytes:
    """Return a record of any fields, its checksums right, its payload perhaps not all there."""
    payload = source.take(source.byte() % 64)
    lsn, durable, size = source.number(), source.number(), source.number() % (1 << 32)
    size = len(payload) if source.byte() % 4 else size
    crc = isal_zlib.crc32(payload)
    return record_header(seed, lsn % (1 << 64), durable % (1 << 64), size, crc) + payload


def one_log(data: bytes) -> None:
    """Open and read a log that is made of an input; LogError is all that may come of it."""
    source = Input(data)
    files = dict(_sound_log())
    after = source.number() >> 2 if source.byte() % 2 else 0
    accept_loss = source.byte() % 4 == 0
    while source:
        kind = source.byte() % 6
        name = sorted(files)[source.byte() % len(files)] if files else file_name(1)
        if kind == 0:
            files.pop(name, None)
        elif kind == 1:
            first = source.number()
            files[file_name(first % 10**20)] = source.rest()
        elif kind == 2:
            first = source.number() % (1 << 64)
            header = file_header(IDENTITY, first)
            files[file_name(first)] = header + _record(source, seed_of(header))
        elif kind == 3:
            header = files.get(name, b"")[: len(file_header(IDENTITY, 1))]
            files[name] = files.get(name, b"") + _record(source, seed_of(header))
        elif kind == 4:
            lsn = struct.pack("<Q", source.number() % (1 << 64))
            seed = isal_zlib.crc32(IDENTITY.encode())
            note = lsn + struct.pack("<I", isal_zlib.crc32(lsn, seed))
            files["durable"] = files.get("durable", b"") + note
        else:
            files[name] = _edited(source, files.get(name, b""))
    disk = SimDisk(_CHANCE)
    disk.make_directory(LOG)
    for name, content in files.items():
        _put(disk, f"{LOG}/{name}", content)
    with suppress(LogError):
        log = Log.open(disk, LOG, IDENTITY, after=after, accept_loss=accept_loss)
        last = max(after, log.first_lsn - 1)
        for lsn, payload in log.read(last):
            assert lsn == last + 1
            assert len(payload) < sum(len(content) for content in files.values())
            last = lsn
        assert last == log.next_lsn - 1 == log.synced_lsn
        assert log.append([b"goes on"]) == last + 1
        log.sync()
        log.close()
        again = Log.open(disk, LOG, IDENTITY, after=after)
        assert again.next_lsn == last + 2
        again.close()


@cache
def _sound_snapshot() -> dict[str, bytes]:
    disk = SimDisk(_CHANCE)
    with SnapshotWriter(SNAPSHOT.parent, 7, piece_bytes=64, disk=disk) as writer:
        for name, size in (("rows.000", 200), ("rows.001", 64), ("empty", 0)):
            with writer.open(name) as blob:
                blob.write(bytes(range(size)))
        writer.commit({"kind": "shard", "lsn": 3})
    return {name: disk.read(SNAPSHOT / name) for name in disk.names(SNAPSHOT)}


def _enveloped(body: bytes) -> bytes:
    """Return a manifest whose digest is right, whatever stands in it."""
    return b'{"blake2b":"%s","manifest":%s}\n' % (manifests._digest(body), body)


def one_snapshot(data: bytes) -> None:
    """Open and read a snapshot that is made of an input; SnapshotError is all that may come."""
    source = Input(data)
    files = dict(_sound_snapshot())
    while source:
        kind = source.byte() % 4
        name = sorted(files)[source.byte() % len(files)] if files else "rows.000"
        if kind == 0:
            files.pop(name, None)
        elif kind == 1:
            files["manifest.json"] = _enveloped(source.rest())
        elif kind == 2:
            body = files.get("manifest.json", b"")[57:-2]
            files["manifest.json"] = _enveloped(_edited(source, body))
        else:
            files[name] = _edited(source, files.get(name, b""))
    disk = SimDisk(_CHANCE)
    disk.make_directory(SNAPSHOT)
    for name, content in files.items():
        _put(disk, str(SNAPSHOT / name), content)
    with suppress(SnapshotError), SnapshotReader.open(SNAPSHOT, disk) as reader:
        reader.require(kind="shard", keys=("lsn",), blobs=("rows.000",))
        for name in reader.sizes:
            assert bytes(reader.read(name)) == files[name]
