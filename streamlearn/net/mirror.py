"""Snapshots kept in S3 beside those on disk: sent up whole, fetched back where a disk is lost.

There is no rename in S3, so the manifest is the commit: it is sent when every other file of its
snapshot has arrived, and removed before any of them. So a snapshot whose manifest is there was
whole; whether it still is, only its reader can tell, whom the caller brings along (``check``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, SnapshotError
from streamlearn.net.sources.aws import AwsService
from streamlearn.net.sources.s3 import S3Store
from streamlearn.net.sources.s3_uri import S3Uri
from streamlearn.net.sources.source import StoredObject

__all__ = ["Mirror"]

MANIFEST: Final = "manifest.json"
# What is sent or received at once, and how many of them: at most 128 MiB in memory.
PART_BYTES: Final = 16 << 20
REQUESTS_MAX: Final = 8

_NAME_DIGITS = 12
_PARTIAL = ".partial"


class Mirror:
    """The snapshots below one ``s3://bucket/prefix``; bound to one event loop.

    Made by :meth:`open`.
    """

    def __init__(self, uri: S3Uri, service: AwsService, store: S3Store) -> None:
        self._uri = uri
        self._prefix = uri.pattern.rstrip("/") + "/"
        self._service = service.share()
        self._store = store
        self._requests = asyncio.Semaphore(REQUESTS_MAX)
        # Sending and pruning in turn: a snapshot is not pruned while another one is measured by it.
        self._one = asyncio.Lock()

    @classmethod
    def open(cls, uri: str, config: SourceConfig, *, service: AwsService | None = None) -> Mirror:
        """Name the place; no request is made yet.

        Parameters
        ----------
        uri : str
            ``s3://bucket/prefix``, this shard's alone.
        config : SourceConfig
            Endpoint, region, retries.
        service : AwsService, optional
            The connections to use, by default its own.

        Raises
        ------
        ConfigError
            Not an S3 URI, or one with wildcards or without a prefix.
        """
        parsed = S3Uri.parse(uri)
        if parsed.is_glob or not parsed.pattern.strip("/"):
            raise ConfigError(
                f"{uri!r} cannot hold snapshots", hint="write s3://BUCKET/PREFIX, without wildcards"
            )
        service = service or AwsService("s3", config)
        return cls(parsed, service, S3Store(uri, config, service=service))

    async def upload(self, snapshot: Path, *, keep: int) -> None:
        """Send a committed snapshot, then remove all but the newest ``keep``.

        Parameters
        ----------
        snapshot : Path
            Its directory, called by its number.
        keep : int
            At least 1.

        Raises
        ------
        SourceError
            S3 refuses, or retries were of no use. The snapshots there are as they were.
        SnapshotError
            The snapshot cannot be read here.
        """
        assert keep >= 1
        async with self._one:
            files = await asyncio.to_thread(_sizes, snapshot)
            there = await self._listed()
            if MANIFEST in there.get(snapshot.name, {}):  # a number that was used before
                await self._delete(f"{snapshot.name}/{MANIFEST}")
            await _together(
                self._send(snapshot, name, size)
                for name, size in sorted(files.items())
                if name != MANIFEST
            )
            await self._send(snapshot, MANIFEST, files[MANIFEST])
            there[snapshot.name] = dict.fromkeys(files, StoredObject("", 0, "", 0.0))
            await self._prune(there, keep)

    async def snapshots(self) -> list[int]:
        """Return the numbers of the snapshots whose manifest is there, oldest first.

        Raises
        ------
        SourceError
            As :meth:`upload`.
        """
        there = await self._listed()
        return sorted(int(name) for name, files in there.items() if MANIFEST in files)

    async def fetch_newest(
        self, root: Path, *, check: Callable[[Path], None] | None = None
    ) -> Path | None:
        """Fetch the newest whole snapshot into a directory of snapshots.

        Parameters
        ----------
        root : Path
            Made where missing.
        check : callable, optional
            Called in another thread with the directory of a snapshot that has been fetched; raises
            SnapshotError where it is damaged, and the one before it is tried.

        Returns
        -------
        Path or None
            The snapshot, durable; None where there is none.

        Raises
        ------
        SourceError
            S3 refuses, or retries were of no use.
        SnapshotError
            No snapshot that is there is whole (the newest's error), or one cannot be written here.
        """
        there = await self._listed()
        first: SnapshotError | None = None
        for name in sorted(there, reverse=True):
            if MANIFEST not in there[name]:
                continue
            partial = root / f"{name}{_PARTIAL}"
            try:
                await asyncio.to_thread(_make, partial)
                await _together(
                    self._fetch(stored, partial / file) for file, stored in there[name].items()
                )
                if check is not None:
                    await asyncio.to_thread(check, partial)
                await asyncio.to_thread(_commit, partial, root / name)
            except SnapshotError as error:
                first = first or error
            except OSError as error:
                raise SnapshotError(
                    f"snapshot {root / name} cannot be written", cause=error.strerror
                ) from error
            else:
                return root / name
            finally:
                await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        if first is not None:
            raise first
        return None

    async def aclose(self) -> None:
        """Close connections, but for those that others use."""
        await self._store.aclose()
        await self._service.aclose()

    async def _listed(self) -> dict[str, dict[str, StoredObject]]:
        """Return the files of each snapshot there is something of."""
        found: dict[str, dict[str, StoredObject]] = {}
        parameters = {"Bucket": self._uri.bucket, "Prefix": self._prefix}
        while True:
            what = f"cannot list snapshots in {self._uri}"
            page = await self._service.call(what, "list_objects_v2", **parameters)
            for entry in page.get("Contents", ()):
                snapshot, _, name = entry["Key"].removeprefix(self._prefix).partition("/")
                if _is_number(snapshot) and name and "/" not in name and name != "..":
                    version = '"' + entry["ETag"].strip('"') + '"'
                    found.setdefault(snapshot, {})[name] = StoredObject(
                        self._uri.uri_of(entry["Key"]), entry["Size"], version, 0.0
                    )
            if not page.get("IsTruncated"):
                return found
            parameters["ContinuationToken"] = page["NextContinuationToken"]

    async def _send(self, snapshot: Path, name: str, size: int) -> None:
        path = snapshot / name
        target = self._target(f"{snapshot.name}/{name}")
        if size <= PART_BYTES:
            async with self._requests:
                body = await _read(path, 0, size)
                await self._call("send", target, "put_object", Body=body)
            return
        answer = await self._call("send", target, "create_multipart_upload")
        upload = answer["UploadId"]
        tags: dict[int, str] = {}

        async def send_part(number: int, start: int) -> None:
            async with self._requests:
                body = await _read(path, start, min(PART_BYTES, size - start))
                part = {"UploadId": upload, "PartNumber": number, "Body": body}
                tags[number] = (await self._call("send", target, "upload_part", **part))["ETag"]

        try:
            await _together(
                send_part(number, start)
                for number, start in enumerate(range(0, size, PART_BYTES), 1)
            )
            parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
            await self._call(
                "send", target, "complete_multipart_upload",
                UploadId=upload, MultipartUpload={"Parts": parts},
            )  # fmt: skip
        except BaseException:
            # parts of an upload that is not completed are kept, and paid for, until it is aborted
            await asyncio.shield(
                self._call("abort", target, "abort_multipart_upload", UploadId=upload)
            )
            raise

    async def _fetch(self, stored: StoredObject, path: Path) -> None:
        async with self._requests:
            buffer = memoryview(bytearray(min(PART_BYTES, stored.size)))
            start = 0
            file = await asyncio.to_thread(path.open, "wb")
            try:
                while start < stored.size:
                    piece = buffer[: stored.size - start]
                    got = await self._store.fetch(stored, start, piece)
                    await asyncio.to_thread(file.write, piece[:got])
                    start += got
                await asyncio.to_thread(_sync_file, file)
            finally:
                await asyncio.to_thread(file.close)

    async def _prune(self, there: dict[str, dict[str, StoredObject]], keep: int) -> None:
        """Remove all that is older than the ``keep``-th newest snapshot with a manifest."""
        whole = sorted(name for name, files in there.items() if MANIFEST in files)
        if len(whole) < keep:
            return
        for name in sorted(name for name in there if name < whole[-keep]):
            files = there[name]
            if MANIFEST in files:
                await self._delete(f"{name}/{MANIFEST}")
            await _together(self._delete(f"{name}/{file}") for file in files if file != MANIFEST)

    async def _delete(self, key: str) -> None:
        async with self._requests:
            await self._call("remove", self._target(key), "delete_object")

    async def _call(
        self, verb: str, target: dict[str, str], operation: str, **parameters: Any
    ) -> dict[str, Any]:
        what = f"cannot {verb} {self._uri.uri_of(target['Key'])}"
        return await self._service.call(what, operation, **target, **parameters)

    def _target(self, key: str) -> dict[str, str]:
        return {"Bucket": self._uri.bucket, "Key": self._prefix + key}


async def _together(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first that fails ends the others and is what is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _read(path: Path, start: int, size: int) -> bytes:
    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    try:
        body = await asyncio.to_thread(read)
    except OSError as error:
        raise SnapshotError(f"cannot read {path}", cause=error.strerror) from error
    if len(body) != size:
        raise SnapshotError(f"{path} has become shorter than it was")
    return body


def _sizes(snapshot: Path) -> dict[str, int]:
    try:
        sizes = {path.name: path.stat().st_size for path in snapshot.iterdir()}
    except OSError as error:
        raise SnapshotError(f"cannot read {snapshot}", cause=error.strerror) from error
    if MANIFEST not in sizes or not _is_number(snapshot.name):
        raise SnapshotError(f"{snapshot} is not a whole snapshot")
    return sizes


def _is_number(name: str) -> bool:
    return len(name) == _NAME_DIGITS and name.isascii() and name.isdigit()


def _make(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _sync_file(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _commit(partial: Path, path: Path) -> None:
    """Give a fetched snapshot its name, all of it durable."""
    _sync_directory(partial)
    partial.rename(path)
    _sync_directory(path.parent)
    _sync_directory(path.parent.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
