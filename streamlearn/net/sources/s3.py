"""Objects in S3: listed by prefix and glob, read by ranged GETs pinned to their ETag.

A read that breaks off goes on at the byte where it stopped; bytes that arrived are never asked for
again. Nothing here imports botocore before the first request, so the command line starts quickly.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeAlias

from streamlearn.config import SourceConfig
from streamlearn.errors import ObjectChangedError, SourceError, SourceMissingError
from streamlearn.net.sources.aws import AwsService
from streamlearn.net.sources.aws_errors import Failure, aws_exceptions, failure_of
from streamlearn.net.sources.ranged_get import RECEIVING, Target
from streamlearn.net.sources.s3_uri import S3Uri
from streamlearn.net.sources.source import NothingMatchedError, StoredObject

__all__ = ["PIECE_BYTES", "S3Store"]

# Inside the class `list` is the store's method.
_Objects: TypeAlias = list[StoredObject]

# One request: signing and headers cost 0.4 ms of CPU, a sixth of what 8 MiB cost on loopback, and a
# request is short enough to be worth little when it breaks.
PIECE_BYTES = 8 << 20

_GONE_STATUS = 404
_CHANGED_STATUS = 412
_BEYOND_END_STATUS = 416
_PARTIAL_STATUS = 206


class S3Store:
    """What one ``s3://`` URI asks for, as a :class:`~streamlearn.net.sources.source.Store`.

    Parameters
    ----------
    uri : str
        ``s3://bucket/key``, ``s3://bucket/prefix/`` or a glob; see :class:`S3Uri`.
    config : SourceConfig
        Endpoint, region, anonymity, requester pays, retries.
    service : AwsService, optional
        The connections to use; several stores may share them. By default the store has its own.
    """

    ranged = True

    def __init__(
        self, uri: str, config: SourceConfig, *, service: AwsService | None = None
    ) -> None:
        self.uri = S3Uri.parse(uri)
        self._config = config
        self._service = (service or AwsService("s3", config)).share()
        self._closed = False
        self._payer = {"RequestPayer": "requester"} if config.requester_pays else {}

    @property
    def retries(self) -> dict[str, int]:
        """Requests made again, by reason: slow_down server_error timeout connection truncated."""
        return self._service.retries

    async def list(self) -> _Objects:
        """List what the URI matches, by URI; empty objects and folder markers are left out.

        A literal key is asked for by its first byte, which needs s3:GetObject alone and, unlike
        HEAD, is answered in words; where there is none, it is taken as the name of a folder.

        Raises
        ------
        NothingMatchedError
            There is no such key, or nothing matches.
        SourceMissingError
            No such bucket, access denied, no credentials.
        SourceError
            The listing failed for another reason.
        """
        if self.uri.is_key:
            return await self._list_key()
        objects, seen = await self._list_prefix(self.uri.prefix)
        if not objects:
            raise self._nothing(seen)
        return objects

    async def fetch(self, stored: StoredObject, start: int, into: memoryview) -> int:
        """Fill ``into`` with the bytes from ``start`` on, in requests of at most 8 MiB.

        Parameters
        ----------
        stored : StoredObject
            As listed; its version is the ETag that the object must still have.
        start : int
            First byte.
        into : memoryview
            Writable bytes; filled as they arrive.

        Returns
        -------
        int
            Bytes filled: fewer than asked only where the object ends.

        Raises
        ------
        ObjectChangedError
            The object has another ETag or size, or is gone.
        SourceError
            ``config.retries`` attempts in a row brought nothing, or the answer was no.
        """
        key = stored.uri.removeprefix(self.uri.uri_of(""))
        wanted = len(into)
        if stored.size >= 0:
            wanted = max(0, min(wanted, stored.size - start))
        filled = fruitless = 0
        while filled < wanted:
            piece = into[filled : min(filled + PIECE_BYTES, wanted)]
            got, failure = await self._get(stored, key, start + filled, piece)
            filled += got
            if failure is not None:
                fruitless = 1 if got else fruitless + 1
                what = f"cannot read {stored.uri} at byte {start + filled}"
                await self._service.retry_or_raise(failure, fruitless, what)
            elif got < len(piece):
                break
            else:
                fruitless = 0
        return filled

    async def beside(self, uri: str) -> StoredObject | None:
        """Describe an object of the same bucket; None where there is none, or an empty one.

        Raises
        ------
        SourceMissingError, SourceError
            It may not be read, or the endpoint says so for another reason.
        """
        key = uri.removeprefix(self.uri.uri_of(""))
        fruitless = 0
        while True:
            try:
                return await self._probe(key)
            except aws_exceptions() as error:
                failure = failure_of(error)
                fruitless += 1
                if failure.status == _GONE_STATUS:
                    return None
                await self._service.retry_or_raise(failure, fruitless, f"cannot read {uri}")

    async def describe(self) -> dict[str, str]:
        """Say where endpoint, region and credentials came from, for ``source check``.

        Raises
        ------
        ConfigError, SourceMissingError
            The AWS configuration is wrong, or there are no credentials.
        """
        access = await self._service.access()
        return {
            "uri": str(self.uri),
            "bucket": self.uri.bucket,
            "endpoint": await self._service.url(),
            "endpoint from": access.endpoint_origin,
            "region": access.region,
            "region from": access.region_origin,
            "bucket region": self._service.bucket_region(self.uri.bucket) or "not told yet",
            "credentials from": access.credentials_origin,
            "access key id": access.key_id or "none",
            "requester pays": "yes" if self._config.requester_pays else "no",
        }

    async def aclose(self) -> None:
        """Close connections, but for those that other stores use."""
        if not self._closed:
            self._closed = True
            await self._service.aclose()

    async def _list_key(self) -> _Objects:
        what = f"cannot read {self.uri}"
        fruitless = 0
        while True:
            try:
                stored = await self._probe(self.uri.pattern)
                break
            except aws_exceptions() as error:
                failure = failure_of(error)
                fruitless += 1
                if failure.status == _GONE_STATUS and failure.code != "NoSuchBucket":
                    return await self._list_folder(failure, what)
                await self._service.retry_or_raise(failure, fruitless, what)
        if stored is None:
            raise NothingMatchedError(f"{self.uri} is empty")
        return [stored]

    async def _list_folder(self, no_such_key: Failure, what: str) -> _Objects:
        try:
            objects, _ = await self._list_prefix(f"{self.uri.pattern}/")
        except SourceMissingError:
            objects = []  # a reader who may not list is told of the key that is not there
        if not objects:
            error = await self._service.error(no_such_key, what)
            raise NothingMatchedError(error.message, cause=error.cause, hint=error.hint)
        return objects

    async def _list_prefix(self, prefix: str) -> tuple[_Objects, int]:
        """Return the objects that match below a prefix, and how many keys there are in all."""
        parameters = {"Bucket": self.uri.bucket, "Prefix": prefix, **self._payer}
        what = f"cannot list {self.uri}"
        objects: _Objects = []
        seen = 0
        while True:
            page = await self._service.call(what, "list_objects_v2", **parameters)
            for entry in page.get("Contents", ()):
                seen += 1
                key, size = entry["Key"], entry["Size"]
                if size > 0 and not key.endswith("/") and self.uri.matches(key):
                    modified = entry["LastModified"].timestamp()
                    version = _quoted(entry["ETag"])
                    objects.append(StoredObject(self.uri.uri_of(key), size, version, modified))
            if not page.get("IsTruncated"):
                break
            parameters["ContinuationToken"] = page["NextContinuationToken"]
        objects.sort(key=lambda stored: stored.uri)
        return objects, seen

    async def _probe(self, key: str) -> StoredObject | None:
        """Ask for an object's first byte; None where the object is empty."""
        client = await self._service.client()
        try:
            answer = await client.get_object(
                Bucket=self.uri.bucket, Key=key, Range="bytes=0-0", **self._payer
            )
        except aws_exceptions() as error:
            if failure_of(error).status == _BEYOND_END_STATUS:
                return None
            raise
        answer["Body"].raw_stream.close()
        self._service.heard(answer, self.uri.bucket)
        modified = answer.get("LastModified")
        return StoredObject(
            uri=self.uri.uri_of(key),
            size=_total_bytes(answer),
            version=_quoted(answer.get("ETag", "")),
            modified_seconds=modified.timestamp() if isinstance(modified, datetime) else 0.0,
        )

    async def _get(
        self, stored: StoredObject, key: str, start: int, into: memoryview
    ) -> tuple[int, Failure | None]:
        """Make one request; return the bytes that arrived and what broke it off, if anything."""
        client = await self._service.client()
        pinned = {"IfMatch": stored.version} if stored.version else {}
        target = Target(into)
        failure: Failure | None
        receiving = RECEIVING.set(target)
        try:
            answer = await client.get_object(
                Bucket=self.uri.bucket,
                Key=key,
                Range=f"bytes={start}-{start + len(into) - 1}",
                **pinned,
                **self._payer,
            )
        except aws_exceptions() as error:
            failure = failure_of(error)
        else:
            failure = None
        finally:
            RECEIVING.reset(receiving)
        if failure is not None:
            if failure.status == _BEYOND_END_STATUS and stored.size < 0:
                return 0, None
            if failure.status in (_CHANGED_STATUS, _GONE_STATUS, _BEYOND_END_STATUS):
                raise await self._changed(stored, key, failure)
            return 0, failure
        self._service.heard(answer, self.uri.bucket)
        if target.used:
            available = self._check_answer(stored, start, answer)
            return target.filled, target.failure or _ended(target.filled, into[:available])
        body = answer["Body"].raw_stream
        try:
            available = self._check_answer(stored, start, answer)
            return await _receive(body, into[:available])
        finally:
            # Gives an unfinished connection up; one whose body ended is back in the pool by now.
            body.close()

    def _check_answer(self, stored: StoredObject, start: int, answer: dict[str, Any]) -> int:
        """Check that the answer is this range of this object; return the bytes it can have."""
        version = _quoted(answer.get("ETag", ""))
        if stored.version and version and version != stored.version:
            raise _changed_error(stored, f"it has ETag {version} now")
        total = _total_bytes(answer)
        if stored.size >= 0 and total != stored.size:
            raise _changed_error(stored, f"it has {total} bytes now instead of {stored.size}")
        if start > 0 and answer["ResponseMetadata"]["HTTPStatusCode"] != _PARTIAL_STATUS:
            raise SourceError(
                f"cannot read {stored.uri} from byte {start} on",
                cause="the endpoint answered a ranged GET with the whole object",
                hint="check that the endpoint speaks S3",
            )
        return max(0, total - start)

    async def _changed(self, stored: StoredObject, key: str, failure: Failure) -> SourceError:
        if failure.status == _GONE_STATUS:
            return _changed_error(stored, f"it is gone ({failure.code}: {failure.words})")
        try:
            now = await self._probe(key)
        except aws_exceptions():
            return _changed_error(stored, "its ETag now cannot be read")
        return _changed_error(
            stored, f"it has ETag {now.version} now" if now else "it is empty now"
        )

    def _nothing(self, seen: int) -> NothingMatchedError:
        if not self.uri.is_glob:
            found = "only empty objects" if seen else "no objects"
            return NothingMatchedError(f"nothing to read in {self.uri}: there are {found}")
        hint = f"list what is there with: streamlearn source ls {self.uri.uri_of(self.uri.prefix)}"
        if seen and "**" not in self.uri.pattern:
            hint = "a * stops at /; write ** to go down into folders"
        return NothingMatchedError(
            f"nothing matches {self.uri}: none of {seen} keys below {self.uri.prefix!r} does",
            hint=hint,
        )


async def _receive(body: Any, into: memoryview) -> tuple[int, Failure | None]:
    """Copy a body into memory as it arrives; a body that ends before memory does is a failure."""
    filled = 0
    try:
        async for chunk in body.content.iter_any():
            room = len(into) - filled
            taken = chunk if len(chunk) <= room else chunk[:room]
            into[filled : filled + len(taken)] = taken
            filled += len(taken)
            if len(chunk) > room:
                break
    except aws_exceptions() as error:
        return filled, failure_of(error)
    return filled, _ended(filled, into)


def _ended(filled: int, into: memoryview) -> Failure | None:
    """Say whether a body ended before the memory did."""
    if filled == len(into):
        return None
    words = f"the body ended after {filled} of {len(into)} bytes"
    return Failure(0, "Truncated", words, "truncated")


def _changed_error(stored: StoredObject, now: str) -> ObjectChangedError:
    return ObjectChangedError(
        f"{stored.uri} changed while it was read: it was listed with ETag {stored.version}, {now}",
        hint="read objects that are complete; run again to start from what is there now",
    )


def _total_bytes(answer: dict[str, Any]) -> int:
    """Return the size of the whole object from the answer to a GET, ranged or not."""
    _, separator, total = str(answer.get("ContentRange", "")).rpartition("/")
    return int(total) if separator and total.isdigit() else int(answer["ContentLength"])


def _quoted(etag: str) -> str:
    """Write an ETag as HTTP does; some servers leave the quotes out in listings."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag
