"""New S3 objects as an SQS queue tells of them: long polls, and messages kept until acknowledged.

S3's own messages, the same inside an SNS envelope, and EventBridge's are read. The messages are
read by a function without I/O; the queue is a thin shell around it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from streamlearn.config import SourceConfig
from streamlearn.net.sources.aws import AwsService
from streamlearn.net.sources.s3_uri import S3Uri
from streamlearn.net.sources.source import StoredObject

__all__ = ["CreatedObject", "S3EventQueue", "read_message"]

# SQS's own limits: ten messages a receive, twenty seconds a long poll.
MESSAGES_MAX = 10
WAIT_SECONDS = 20
# A message that is not acknowledged within this time comes again: longer than any one object takes.
VISIBILITY_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class CreatedObject:
    """An object as a message tells of it.

    Attributes
    ----------
    bucket, key : str
        The key as S3 has it, not as the message quotes it.
    size : int
        Bytes; -1 where the message does not say.
    etag : str
        Without quotes; may be empty.
    seconds : float
        Event time since the epoch; 0 where unknown.
    """

    bucket: str
    key: str
    size: int
    etag: str
    seconds: float


class S3EventQueue:
    """Objects as they appear, with an acknowledgement each: ``async for stored, ack in queue``.

    A message leaves the queue once every object that it tells of has been acknowledged, or at once
    where none is asked for. A malformed message is counted and left, so that the queue's redrive
    policy sets it aside.

    Parameters
    ----------
    queue : str
        URL, ARN or name of the queue.
    uris : sequence of str
        What is asked for: a new object must match one of these ``s3://`` URIs.
    config : SourceConfig
        Region and retries.
    service : AwsService, optional
        The connection to use, a ``sqs`` one; by default the queue has its own.
    wait_seconds : int, optional
        Length of a long poll, 0 to 20.

    Attributes
    ----------
    counts : dict of str to int
        Messages ``received``, ``malformed``, ``ignored`` (nothing in them is asked for: test
        messages, deletions, other prefixes), ``deleted``; and ``objects`` yielded.
    """

    def __init__(
        self,
        queue: str,
        uris: Sequence[str],
        config: SourceConfig,
        *,
        service: AwsService | None = None,
        wait_seconds: int = WAIT_SECONDS,
    ) -> None:
        endpoint_url, region = _place(queue)
        self.counts = dict.fromkeys(("received", "malformed", "ignored", "deleted", "objects"), 0)
        self._queue = queue
        self._uris = [S3Uri.parse(uri) for uri in uris]
        self._service = (
            service
            or AwsService("sqs", config, endpoint_url=endpoint_url, region=region, origin="queue")
        ).share()
        self._closed = False
        self._wait_seconds = wait_seconds
        self._url = ""

    async def __aiter__(
        self,
    ) -> AsyncIterator[tuple[StoredObject, Callable[[], Awaitable[None]]]]:
        """Yield objects that are asked for, for ever.

        Raises
        ------
        SourceMissingError
            No such queue, access denied, no credentials.
        SourceError
            The queue failed for another reason.
        """
        url = await self.url()
        while True:
            for message in await self._receive(url):
                wanted = self._wanted(message["Body"])
                if wanted is None:
                    continue
                receipt = _Receipt(self, url, message["ReceiptHandle"], len(wanted))
                if not wanted:
                    self.counts["ignored"] += 1
                    await receipt.delete()
                for stored in wanted:
                    self.counts["objects"] += 1
                    yield stored, receipt.acknowledger()

    async def url(self) -> str:
        """Return the queue's URL, looked up by name where it was given so."""
        if not self._url:
            self._url = await self._look_up()
        return self._url

    async def aclose(self) -> None:
        """Close the connection; what has not been acknowledged comes again later."""
        if not self._closed:
            self._closed = True
            await self._service.aclose()

    async def _look_up(self) -> str:
        if "://" in self._queue:
            return self._queue
        parameters = {"QueueName": self._queue.rpartition(":")[2]}
        if self._queue.startswith("arn:"):
            parameters["QueueOwnerAWSAccountId"] = self._queue.split(":")[4]
        what = f"cannot find the queue {self._queue}"
        answer = await self._service.call(what, "get_queue_url", **parameters)
        return str(answer["QueueUrl"])

    async def _receive(self, url: str) -> Sequence[dict[str, Any]]:
        answer = await self._service.call(
            f"cannot receive from the queue {self._queue}",
            "receive_message",
            QueueUrl=url,
            MaxNumberOfMessages=MESSAGES_MAX,
            WaitTimeSeconds=self._wait_seconds,
            VisibilityTimeout=VISIBILITY_SECONDS,
        )
        messages: Sequence[dict[str, Any]] = answer.get("Messages", ())
        self.counts["received"] += len(messages)
        return messages

    def _wanted(self, body: str) -> list[StoredObject] | None:
        """Return the objects of a message that are asked for; None where it cannot be read."""
        try:
            created = read_message(body)
        except ValueError:
            self.counts["malformed"] += 1
            return None
        return [
            StoredObject(
                uri=f"s3://{one.bucket}/{one.key}",
                size=one.size,
                version=f'"{one.etag}"' if one.etag else "",
                modified_seconds=one.seconds,
            )
            for one in created
            if one.size != 0 and not one.key.endswith("/") and self._asked_for(one)
        ]

    def _asked_for(self, created: CreatedObject) -> bool:
        return any(uri.bucket == created.bucket and uri.matches(created.key) for uri in self._uris)

    async def _delete(self, url: str, handle: str) -> None:
        await self._service.call(
            f"cannot delete a message from the queue {self._queue}",
            "delete_message",
            QueueUrl=url,
            ReceiptHandle=handle,
        )
        self.counts["deleted"] += 1


class _Receipt:
    """A message that waits for so many acknowledgements."""

    def __init__(self, queue: S3EventQueue, url: str, handle: str, objects: int) -> None:
        self._queue = queue
        self._url = url
        self._handle = handle
        self._waiting = set(range(objects))
        self._next = 0

    def acknowledger(self) -> Callable[[], Awaitable[None]]:
        """Return the acknowledgement of the message's next object; calling it again is harmless."""
        index = self._next
        self._next += 1

        async def acknowledge() -> None:
            if index in self._waiting:
                self._waiting.discard(index)
                if not self._waiting:
                    await self.delete()

        return acknowledge

    async def delete(self) -> None:
        await self._queue._delete(self._url, self._handle)


def read_message(body: str) -> list[CreatedObject]:
    """Read the body of one message.

    Parameters
    ----------
    body : str
        An S3 event message, the same in an SNS envelope, or an EventBridge event.

    Returns
    -------
    list of CreatedObject
        In the message's order; empty for test messages and for events other than creation.

    Raises
    ------
    ValueError
        It is none of these, or a part of it is missing or of another type.
    """
    try:
        message = json.loads(body)
        if message.get("Type") == "Notification" and "Message" in message:
            message = json.loads(message["Message"])
        if "detail-type" in message:
            return _read_event_bridge(message)
        if message.get("Event") == "s3:TestEvent":
            return []
        return [
            _read_record(record)
            for record in message["Records"]
            if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:")
        ]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a message about S3 objects: {error!r}") from error


def _read_record(record: dict[str, Any]) -> CreatedObject:
    stored = record["s3"]["object"]
    return CreatedObject(
        bucket=_text(record["s3"]["bucket"]["name"]),
        key=unquote_plus(_text(stored["key"]), errors="strict"),
        size=int(stored.get("size", -1)),
        etag=_text(stored.get("eTag", "")).strip('"'),
        seconds=_seconds(record.get("eventTime")),
    )


def _read_event_bridge(message: dict[str, Any]) -> list[CreatedObject]:
    if message["detail-type"] != "Object Created":
        return []
    stored = message["detail"]["object"]
    created = CreatedObject(
        bucket=_text(message["detail"]["bucket"]["name"]),
        key=_text(stored["key"]),  # not quoted here
        size=int(stored.get("size", -1)),
        etag=_text(stored.get("etag", "")).strip('"'),
        seconds=_seconds(message.get("time")),
    )
    return [created]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _seconds(value: str | None) -> float:
    return datetime.fromisoformat(value).timestamp() if value else 0.0


def _place(queue: str) -> tuple[str, str]:
    """Return the endpoint URL and the region that the name of a queue implies, where it does."""
    if queue.startswith("arn:"):
        return "", queue.split(":")[3]
    parts = urlsplit(queue)
    host = parts.hostname or ""
    if not host:
        return "", ""
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        labels = host.split(".")
        return "", labels[0] if labels[1] == "queue" else labels[1]
    return f"{parts.scheme}://{parts.netloc}", ""
