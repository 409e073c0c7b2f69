"""S3 that throttles, resets, truncates, stalls and changes underfoot."""

import random

import pytest

from streamlearn.errors import ObjectChangedError, SourceError, SourceMissingError
from tests.net.sources.s3_servers import BUCKET, Fault, read_all

CONTENT = random.Random(1).randbytes(50_000)


@pytest.fixture
async def faulty(localbucket, fault_front, stores):
    """A store behind the front, its object listed, and a function that fetches all of it."""
    localbucket.put("a.bin", CONTENT)

    async def prepare(*faults, **settings):
        uri = f"s3://{BUCKET}/a.bin"
        store = stores.open(uri, endpoint_url=fault_front.endpoint, **settings)
        (stored,) = await store.list()
        fault_front.requests.clear()
        fault_front.faults.extend(faults)

        async def fetch(start=0):
            buffer = bytearray(len(CONTENT) - start)
            got = await store.fetch(stored, start, memoryview(buffer))
            return bytes(buffer[:got])

        return store, fetch

    return prepare


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("reset", "connection"),
        ("truncate", "truncated"),
        ("short", "truncated"),
        ("stall", "timeout"),
    ],
)
async def test_broken_body_goes_on_at_the_byte_where_it_stopped(faulty, fault_front, kind, reason):
    store, fetch = await faulty(Fault(kind, bytes=20_000), read_seconds=0.3)
    assert await fetch() == CONTENT
    first, second = fault_front.ranges()
    assert (first, second) == ("bytes=0-49999", "bytes=20000-49999")
    assert {k: n for k, n in store.retries.items() if n} == {reason: 1}


@pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
async def test_connection_that_breaks_before_the_body_is_asked_again(faulty, fault_front, kind):
    _, fetch = await faulty(Fault(kind), Fault(kind), read_seconds=0.2)
    assert await fetch(100) == CONTENT[100:]
    assert fault_front.ranges() == ["bytes=100-49999"] * 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("status"), "slow_down"),
        (Fault("status", status=429, code="TooManyRequests"), "slow_down"),
        (Fault("status", status=500, code="InternalError"), "server_error"),
        (Fault("status", status=502, code="BadGateway"), "server_error"),
        (Fault("status", status=400, code="RequestTimeout"), "timeout"),
    ],
)
async def test_throttling_and_server_errors_are_retried(faulty, stores, fault, reason):
    store, fetch = await faulty(fault, fault)
    assert await fetch() == CONTENT
    assert store.retries[reason] == 2
    assert stores.waits == [0.1, 0.2]


async def test_waits_double_up_to_a_cap(faulty, stores):
    _, fetch = await faulty(*[Fault("status")] * 10, retries=10)
    assert await fetch() == CONTENT
    assert stores.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0])


async def test_attempts_without_progress_are_bounded(faulty, fault_front):
    _, fetch = await faulty(*[Fault("status")] * 4, retries=3)
    with pytest.raises(SourceError) as caught:
        await fetch()
    assert len(fault_front.requests) == 4
    assert not isinstance(caught.value, SourceMissingError)
    assert "at byte 0" in caught.value.message
    assert "503 SlowDown" in caught.value.message
    assert caught.value.cause == "Please reduce your request rate."


async def test_progress_starts_the_count_of_attempts_anew(faulty, fault_front):
    _, fetch = await faulty(*[Fault("truncate", bytes=4_000)] * 12, retries=1)
    assert await fetch() == CONTENT
    assert len(fault_front.requests) == 13


async def test_no_retries_means_none(faulty, fault_front):
    _, fetch = await faulty(Fault("truncate", bytes=10), retries=0)
    with pytest.raises(SourceError, match="at byte 10"):
        await fetch()
    assert len(fault_front.requests) == 1


async def test_every_request_is_pinned_to_the_etag(faulty, fault_front):
    _, fetch = await faulty(Fault("reset", bytes=10))
    await fetch()
    assert len({headers["if-match"] for _, _, headers in fault_front.requests}) == 1


async def test_other_etag_in_the_answer_is_an_object_that_changed(faulty):
    _, fetch = await faulty(Fault("etag"))
    with pytest.raises(ObjectChangedError, match='ETag "another" now'):
        await fetch()


async def test_object_that_changes_between_two_attempts_is_noticed(faulty, localbucket):
    store, fetch = await faulty(Fault("truncate", bytes=20_000))

    async def replace(seconds):
        localbucket.put("a.bin", CONTENT[::-1])

    store._service._sleep = replace
    with pytest.raises(ObjectChangedError) as caught:
        await fetch()
    assert caught.value.message.count("ETag") == 2


async def test_precondition_failed_is_an_object_that_changed(faulty):
    _, fetch = await faulty(Fault("status", status=412, code="PreconditionFailed"))
    with pytest.raises(ObjectChangedError, match="changed while it was read"):
        await fetch()


async def test_refusal_is_not_retried_and_says_what_is_needed(faulty, fault_front):
    denied = Fault("status", status=403, code="AccessDenied", message="Access Denied")
    _, fetch = await faulty(denied)
    with pytest.raises(SourceMissingError, match="access is denied") as caught:
        await fetch()
    assert len(fault_front.requests) == 1
    assert "s3:GetObject" in caught.value.hint
    assert "--requester-pays" in caught.value.hint
    assert caught.value.cause == "Access Denied"


@pytest.mark.parametrize(
    ("code", "status", "sentence", "hint"),
    [
        ("ExpiredToken", 400, "session token has expired", "renew"),
        ("InvalidAccessKeyId", 403, "access key is unknown", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, "signature is refused", "AWS_SECRET_ACCESS_KEY"),
        ("RequestTimeTooSkewed", 403, "clock is wrong", "set the clock"),
        ("InvalidObjectState", 403, "archived", "restore"),
        ("PermanentRedirect", 301, "another region", "set --region eu-north-1"),
    ],
)
async def test_refusals_are_explained(
    localbucket, fault_front, stores, code, status, sentence, hint
):
    fault_front.always = Fault(
        "status", status=status, code=code, message="own words", region="eu-north-1"
    )
    store = stores.open(f"s3://{BUCKET}/d/", endpoint_url=fault_front.endpoint)
    with pytest.raises(SourceMissingError, match=sentence) as caught:
        await store.list()
    assert hint in caught.value.hint
    assert caught.value.cause == "own words"


async def test_redirect_without_a_region_is_a_clear_error(localbucket, fault_front, stores):
    fault_front.always = Fault("status", status=301, code="PermanentRedirect")
    store = stores.open(f"s3://{BUCKET}/d/", endpoint_url=fault_front.endpoint)
    with pytest.raises(SourceMissingError, match="another region"):
        await store.list()


async def test_server_that_ignores_ranges_is_read_from_the_start_only(faulty):
    _, fetch = await faulty(*[Fault("whole")] * 4)
    assert await fetch() == CONTENT
    with pytest.raises(SourceError, match="from byte 100 on") as caught:
        await fetch(100)
    assert "ranged GET" in caught.value.cause


async def test_listing_is_retried_too(localbucket, fault_front, stores):
    localbucket.put("d/a.bin", b"x")
    fault_front.always = Fault("status")
    store = stores.open(f"s3://{BUCKET}/d/", endpoint_url=fault_front.endpoint, retries=2)
    with pytest.raises(SourceError, match=r"503 SlowDown"):
        await store.list()
    assert store.retries["slow_down"] == 2
    fault_front.always = None
    assert len(await store.list()) == 1


async def test_endpoint_that_never_answered_is_given_up_soon(localbucket, stores, unused_tcp_port):
    store = stores.open(f"s3://{BUCKET}/d/", endpoint_url=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(SourceError, match="cannot be reached") as caught:
        await store.list()
    assert len(stores.waits) == 3
    assert str(unused_tcp_port) in caught.value.message


async def test_cancelled_fetch_leaves_the_store_usable(faulty):
    import asyncio

    _, fetch = await faulty(Fault("stall", bytes=10))
    task = asyncio.create_task(fetch())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fetch() == CONTENT


async def test_everything_arrives_through_a_server_that_often_says_slow_down(hadro_bucket, stores):
    parts = {f"d/part-{i}": random.Random(i).randbytes(30_000) for i in range(6)}
    for key, content in parts.items():
        hadro_bucket.put(key, content)
    store = stores.open(f"s3://{BUCKET}/d/", endpoint_url=hadro_bucket.endpoint, retries=20)
    assert await read_all(store, 10_000) == b"".join(parts.values())
    assert store.retries["slow_down"] > 0
