"""S3 events through SQS: what messages say, and when they leave the queue."""

import asyncio
import json
import zlib

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import SourceMissingError
from streamlearn.net.sources.sqs import CreatedObject, S3EventQueue, read_message

boto3 = pytest.importorskip("boto3")

TIME = "2026-11-23T01:02:03.000Z"
SECONDS = 1795395723.0


def record(key="d/a", size=7, event="ObjectCreated:Put", bucket="logs", etag="e1"):
    return {
        "eventSource": "aws:s3",
        "eventName": event,
        "eventTime": TIME,
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": size, "eTag": etag}},
    }


def message(*records):
    return json.dumps({"Records": list(records)})


BRIDGE = {
    "detail-type": "Object Created",
    "source": "aws.s3",
    "time": "2026-11-23T01:02:03Z",
    "detail": {"bucket": {"name": "logs"}, "object": {"key": "d/a b", "size": 7, "etag": "e1"}},
}
ENVELOPE = {"Type": "Notification", "TopicArn": "arn", "Message": message(record("d/a+b"))}
TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "logs"}


@pytest.mark.parametrize(
    "body", [message(record("d/a+b")), json.dumps(BRIDGE), json.dumps(ENVELOPE)]
)
def test_three_kinds_of_message_tell_of_the_same_object(body):
    assert read_message(body) == [CreatedObject("logs", "d/a b", 7, "e1", SECONDS)]


@pytest.mark.parametrize(
    ("quoted", "key"),
    [
        ("d/a+b", "d/a b"),
        ("d/a%2Bb", "d/a+b"),
        ("gr%C3%B6%C3%9Fe", "größe"),
        ("a%2520b", "a%20b"),
        ("d%3D1/x", "d=1/x"),
    ],
)
def test_keys_are_unquoted(quoted, key):
    assert [created.key for created in read_message(message(record(quoted)))] == [key]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(TEST_EVENT),
        message(record(event="ObjectRemoved:Delete")),
        json.dumps({**BRIDGE, "detail-type": "Object Deleted"}),
        message(),
    ],
)
def test_other_events_tell_of_nothing(body):
    assert read_message(body) == []


@pytest.mark.parametrize("event", ["ObjectCreated:CompleteMultipartUpload", "s3:ObjectCreated:Put"])
def test_every_way_of_creation_counts(event):
    assert len(read_message(message(record(event=event)))) == 1


def test_size_and_etag_may_be_missing():
    body = {"Records": [record()]}
    del body["Records"][0]["s3"]["object"]["size"]
    del body["Records"][0]["s3"]["object"]["eTag"]
    assert read_message(json.dumps(body)) == [CreatedObject("logs", "d/a", -1, "", SECONDS)]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "hello",
        "[]",
        "7",
        "null",
        "{}",
        '{"Records": 5}',
        '{"Records": [5]}',
        '{"Records": [{"eventName": "ObjectCreated:Put"}]}',
        message(record(key=5)),
        message(record(size="big")),
        message(record(key="%FF")),
        json.dumps({**ENVELOPE, "Message": "{"}),
        json.dumps({**BRIDGE, "detail": {}}),
        "[" * 100_000,
    ],
)
def test_malformed_message_is_a_value_error(body):
    with pytest.raises(ValueError):  # noqa: PT011 - json's own words or ours
        read_message(body)


# ---------------------------------------------------------------- a real queue


@pytest.fixture
def sqs(aws_environ, moto_endpoint, monkeypatch, request):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto_endpoint)
    client = boto3.client("sqs", endpoint_url=moto_endpoint, region_name="us-east-1")
    name = f"queue-{zlib.crc32(request.node.name.encode())}"
    url = client.create_queue(QueueName=name)["QueueUrl"]
    yield Queue(client, name, url)
    client.close()


class Queue:
    def __init__(self, client, name, url):
        self.client, self.name, self.url = client, name, url

    def send(self, *bodies):
        for body in bodies:
            self.client.send_message(QueueUrl=self.url, MessageBody=body)

    def left(self):
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)
        return sum(int(found["Attributes"][name]) for name in names)


@pytest.fixture
async def listen(sqs):
    opened = []

    def start(*uris, name=None):
        queue = S3EventQueue(
            name or sqs.url, uris or ["s3://logs/d/"], SourceConfig(), wait_seconds=0
        )
        opened.append(queue)
        return queue

    yield start
    for queue in opened:
        await queue.aclose()


async def take(queue, count):
    taken = []
    async with asyncio.timeout(20):
        async for entry in queue:
            taken.append(entry)
            if len(taken) == count:
                break
    return taken


async def test_message_leaves_the_queue_when_acknowledged(sqs, listen):
    sqs.send(message(record("d/a+b")))
    ((stored, ack),) = await take(listen(), 1)
    assert (stored.uri, stored.size, stored.version) == ("s3://logs/d/a b", 7, '"e1"')
    assert stored.modified_seconds == SECONDS
    assert sqs.left() == 1
    await ack()
    assert sqs.left() == 0


async def test_message_of_two_objects_waits_for_both(sqs, listen):
    sqs.send(message(record("d/a"), record("d/b")))
    queue = listen()
    (_, first), (_, second) = await take(queue, 2)
    await first()
    await first()
    assert sqs.left() == 1
    await second()
    assert sqs.left() == 0
    assert queue.counts["deleted"] == 1


async def test_what_is_not_asked_for_is_ignored_and_deleted(sqs, listen):
    sqs.send(
        json.dumps(TEST_EVENT),
        message(record("other/a")),
        message(record("d/a", bucket="elsewhere")),
        message(record("d/empty", size=0)),
        message(record("d/folder/", size=3)),
        message(record("d/wanted")),
    )
    queue = listen("s3://logs/d/*", "s3://logs/e/*")
    ((stored, ack),) = await take(queue, 1)
    assert stored.uri == "s3://logs/d/wanted"
    await ack()
    assert sqs.left() == 0
    assert queue.counts == {
        "received": 6,
        "malformed": 0,
        "ignored": 5,
        "deleted": 6,
        "objects": 1,
    }


async def test_malformed_message_is_counted_and_left(sqs, listen):
    sqs.send("hello", message(record("d/a")))
    queue = listen()
    ((_, ack),) = await take(queue, 1)
    await ack()
    assert queue.counts["malformed"] == 1
    assert sqs.left() == 1


@pytest.mark.parametrize("form", ["{name}", "arn:aws:sqs:us-east-1:123456789012:{name}"])
async def test_queue_may_be_named_or_given_by_arn(sqs, listen, form):
    sqs.send(message(record("d/a")))
    queue = listen(name=form.format(name=sqs.name))
    assert (await queue.url()) == sqs.url
    assert len(await take(queue, 1)) == 1


@pytest.mark.parametrize("form", ["no-such-queue", "{endpoint}/123456789012/no-such-queue"])
async def test_queue_that_is_not_there_is_one_sentence(sqs, listen, moto_endpoint, form):
    with pytest.raises(SourceMissingError, match="no such queue") as caught:
        await take(listen(name=form.format(endpoint=moto_endpoint)), 1)
    assert caught.value.exit_code == 2


async def test_url_of_the_queue_says_where_it_is(sqs, listen, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_SQS")
    sqs.send(message(record("d/a")))
    assert len(await take(listen(), 1)) == 1


async def test_bucket_that_sends_events_is_followed(sqs, listen, moto_endpoint):
    s3 = boto3.client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    s3.create_bucket(Bucket="speaking")
    arn = f"arn:aws:sqs:us-east-1:123456789012:{sqs.name}"
    rule = {"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}
    s3.put_bucket_notification_configuration(
        Bucket="speaking", NotificationConfiguration={"QueueConfigurations": [rule]}
    )
    s3.put_object(Bucket="speaking", Key="d/new log+1.txt", Body=b"content")
    listed = s3.list_objects_v2(Bucket="speaking")["Contents"]
    s3.close()
    ((stored, ack),) = await take(listen("s3://speaking/d/*"), 1)
    assert (stored.uri, stored.size) == ("s3://speaking/d/new log+1.txt", 7)
    assert stored.version == listed[0]["ETag"]
    await ack()
