"""How S3 is reached: endpoint, region, credentials, who pays, and what is said where it fails."""

import asyncio
import json
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import aiohttp
import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, SourceError, SourceMissingError
from streamlearn.net.sources.s3_credentials import mask_key_id, resolve_access
from tests.net.sources.s3_servers import BUCKET, KEY_ID, Bucket, Fault, read_all

boto3 = pytest.importorskip("boto3")


async def access(**settings):
    return await resolve_access("s3", SourceConfig(**settings))


# ---------------------------------------------------------------- where things come from


async def test_region_of_the_job_comes_first(aws_environ, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    found = await access(region="eu-west-3")
    assert (found.region, found.region_origin) == ("eu-west-3", "region")


async def test_aws_region_comes_before_aws_default_region(aws_environ, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    found = await access()
    assert (found.region, found.region_origin) == ("eu-west-2", "AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    found = await access()
    assert (found.region, found.region_origin) == ("eu-west-1", "AWS_REGION")


async def test_region_may_come_from_the_profile_or_be_the_default(aws_environ, monkeypatch):
    assert (await access()).region_origin == "default"
    (aws_environ / "aws_config").write_text("[profile work]\nregion = ap-south-1\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    found = await access()
    assert (found.region, found.region_origin) == ("ap-south-1", "profile work")


async def test_endpoint_is_taken_in_the_order_of_the_contract(aws_environ, monkeypatch):
    assert ((await access()).endpoint_url, (await access()).endpoint_origin) == ("", "AWS")
    (aws_environ / "aws_config").write_text("[default]\nendpoint_url = http://profile:1\n")
    found = await access()
    assert (found.endpoint_url, found.endpoint_origin) == ("http://profile:1", "profile default")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://any:1")
    assert (await access()).endpoint_origin == "AWS_ENDPOINT_URL"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:1")
    found = await access()
    assert (found.endpoint_url, found.endpoint_origin) == ("http://s3:1", "AWS_ENDPOINT_URL_S3")
    found = await access(endpoint_url="http://job:1")
    assert (found.endpoint_url, found.endpoint_origin) == ("http://job:1", "endpoint_url")


async def test_configured_endpoints_can_be_ignored_as_aws_has_it(aws_environ, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:1")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert (await access()).endpoint_origin == "AWS"


async def test_credentials_say_where_they_came_from_and_are_masked(aws_environ, monkeypatch):
    found = await access()
    assert found.credentials_origin == "environment (AWS_ACCESS_KEY_ID)"
    assert found.key_id == "AKID…0001"
    text = "[work]\naws_access_key_id = AKIDFROMFILE0002\naws_secret_access_key = s\n"
    (aws_environ / "aws_credentials").write_text(text)
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = await access()
    assert found.credentials_origin == "shared credentials file, profile work"
    assert found.key_id == "AKID…0002"


def test_short_key_ids_are_masked_whole():
    assert mask_key_id("test") == "…"


async def test_no_credentials_is_one_sentence_with_a_way_out(bare_environ, stores):
    with pytest.raises(SourceMissingError, match="no AWS credentials were found") as caught:
        await stores.open(f"s3://{BUCKET}/x", endpoint_url="http://127.0.0.1:1").list()
    assert caught.value.exit_code == 2
    assert "--anonymous" in caught.value.hint


async def test_half_of_a_key_pair_is_a_clear_error(bare_environ, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    with pytest.raises(SourceMissingError, match="cannot be fetched") as caught:
        await access()
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.cause


async def test_unknown_profile_is_a_clear_error(bare_environ, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="AWS configuration") as caught:
        await access()
    assert "nobody" in caught.value.cause
    assert "AWS_PROFILE" in caught.value.hint


async def test_endpoint_that_is_no_url_is_a_clear_error(aws_environ, stores):
    with pytest.raises(ConfigError, match="not a url"):
        await stores.open(f"s3://{BUCKET}/x", endpoint_url="not a url").list()


async def test_silent_instance_metadata_does_not_hang(bare_environ, monkeypatch):
    async def hear(reader, writer):
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(20):
            with pytest.raises(SourceMissingError, match="no AWS credentials"):
                await access()
    finally:
        silent.close()
        await asyncio.sleep(0.05)  # the handlers see the end of their connections


async def test_describe_says_where_everything_came_from(localbucket, stores, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", localbucket.endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    said = await stores.open(f"s3://{BUCKET}/d/*", requester_pays=True).describe()
    assert said["endpoint"] == localbucket.endpoint
    assert said["endpoint from"] == "AWS_ENDPOINT_URL_S3"
    assert (said["region"], said["region from"]) == ("eu-west-1", "AWS_REGION")
    assert said["credentials from"].startswith("environment")
    assert said["access key id"] == "AKID…0001"
    assert said["requester pays"] == "yes"
    assert "secret" not in json.dumps(said)


def test_importing_the_store_does_not_import_botocore():
    code = (
        "import sys, streamlearn.net.sources.s3, streamlearn.net.sources.sqs;"
        "print([m for m in ('botocore', 'aiobotocore', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what requests carry


async def test_anonymous_requests_need_no_credentials_and_are_not_signed(
    localbucket, fault_front, stores, monkeypatch
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    localbucket.put("d/a", b"content")
    store = stores.open(f"s3://{BUCKET}/d/", endpoint_url=fault_front.endpoint, anonymous=True)
    assert await read_all(store) == b"content"
    assert all("authorization" not in headers for _, _, headers in fault_front.requests)
    assert (await store.describe())["credentials from"] == "none (anonymous)"


@pytest.mark.parametrize("pattern", ["d/", "d/a"])
async def test_requester_pays_on_every_request(localbucket, fault_front, stores, pattern):
    localbucket.put("d/a", b"content")
    store = stores.open(
        f"s3://{BUCKET}/{pattern}", endpoint_url=fault_front.endpoint, requester_pays=True
    )
    assert await read_all(store) == b"content"
    payers = [headers.get("x-amz-request-payer") for _, _, headers in fault_front.requests]
    assert payers == ["requester"] * 2


async def test_bucket_in_another_region_is_followed_there(localbucket, fault_front, stores):
    localbucket.put("d/a", b"content")
    elsewhere = Fault("status", status=301, code="PermanentRedirect", region="eu-north-1")
    fault_front.faults.append(elsewhere)
    store = stores.open(f"s3://{BUCKET}/d/a", endpoint_url=fault_front.endpoint)
    assert await read_all(store) == b"content"
    signed = [headers["authorization"] for _, _, headers in fault_front.requests]
    assert ["eu-north-1" in text for text in signed] == [False, True, True]


async def test_signatures_are_right_for_odd_keys(aws_environ, stores, tmp_path):
    hadro = pytest.importorskip("hadro")
    folder = tmp_path / "signed" / BUCKET
    folder.mkdir(parents=True)
    for name in ("a b+c.txt", "größe%20&=.txt"):
        (folder / name).write_bytes(name.encode())
    with hadro.Server(
        data=str(folder.parent), access_key=KEY_ID, secret_key="secret", region="us-east-1"
    ) as server:
        store = stores.open(f"s3://{BUCKET}/", endpoint_url=server.endpoint)
        assert await read_all(store) == "a b+c.txtgröße%20&=.txt".encode()


async def test_wrong_secret_is_explained(aws_environ, stores, tmp_path):
    hadro = pytest.importorskip("hadro")
    (tmp_path / "signed" / BUCKET).mkdir(parents=True)
    with hadro.Server(
        data=str(tmp_path / "signed"), access_key=KEY_ID, secret_key="another"
    ) as server:
        store = stores.open(f"s3://{BUCKET}/", endpoint_url=server.endpoint)
        with pytest.raises(SourceMissingError, match="signature is refused") as caught:
            await store.list()
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint


@pytest.fixture
def tls_bucket(aws_environ, tmp_path):
    """A bucket over https, and the file with its certificate."""
    hadro = pytest.importorskip("hadro")
    pytest.importorskip("cryptography")
    certificate, key = make_certificate(tmp_path)
    folder = tmp_path / "tls" / BUCKET
    folder.mkdir(parents=True)
    with hadro.Server(
        data=str(folder.parent), tls_cert=str(certificate), tls_key=str(key)
    ) as server:
        yield Bucket(folder, server.endpoint), certificate


def make_certificate(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


async def test_https_is_read_with_the_bundle_that_aws_names(tls_bucket, stores, monkeypatch):
    bucket, certificate = tls_bucket
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    content = random.Random(3).randbytes(3_000_000)
    bucket.put("a.bin", content)
    assert bucket.endpoint.startswith("https://")
    store = stores.open(f"s3://{BUCKET}/a.bin", endpoint_url=bucket.endpoint)
    assert await read_all(store) == content
    assert sum(store.retries.values()) == 0


async def test_unknown_certificate_is_refused_at_once(tls_bucket, stores):
    bucket, _ = tls_bucket
    bucket.put("a.bin", b"content")
    with pytest.raises(SourceError, match="request failed") as caught:
        await stores.open(f"s3://{BUCKET}/a.bin", endpoint_url=bucket.endpoint).list()
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.cause
    assert stores.waits == []


# ---------------------------------------------------------------- a server with rules


@pytest.fixture
def moto_s3(aws_environ, moto_endpoint):
    client = boto3.client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    yield client
    client.close()


async def test_folder_markers_are_left_out(moto_s3, moto_endpoint, stores):
    moto_s3.create_bucket(Bucket="marked")
    for key, body in (("d/", b""), ("d/folder/", b"not empty"), ("d/a", b"x")):
        moto_s3.put_object(Bucket="marked", Key=key, Body=body)
    store = stores.open("s3://marked/d/**", endpoint_url=moto_endpoint)
    assert [stored.uri for stored in await store.list()] == ["s3://marked/d/a"]


async def test_keys_that_no_folder_can_hold_are_read(moto_s3, moto_endpoint, stores):
    moto_s3.create_bucket(Bucket="odd")
    keys = ["/leading", "a//b", "a/./b", "dots../x", "tab\there", "~", "a\\b"]
    for key in keys:
        moto_s3.put_object(Bucket="odd", Key=key, Body=f"<{key}>".encode())
    store = stores.open("s3://odd/", endpoint_url=moto_endpoint)
    assert [s.uri for s in await store.list()] == sorted(f"s3://odd/{key}" for key in keys)
    assert await read_all(store) == "".join(f"<{key}>" for key in sorted(keys)).encode()


async def test_literal_key_is_read_without_permission_to_list(
    moto_s3, moto_endpoint, stores, monkeypatch
):
    moto_s3.create_bucket(Bucket="rules")
    moto_s3.put_object(Bucket="rules", Key="a", Body=b"content")
    iam = boto3.client("iam", endpoint_url=moto_endpoint, region_name="us-east-1")
    iam.create_user(UserName="reader")
    statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::rules/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="reader", PolicyName="get", PolicyDocument=policy)
    pair = iam.create_access_key(UserName="reader")["AccessKey"]
    iam.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", pair["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", pair["SecretAccessKey"])
    async with aiohttp.ClientSession() as session:
        reset = f"{moto_endpoint}/moto-api/reset-auth"
        async with session.post(reset, data=b"0"):
            pass
        try:
            store = stores.open("s3://rules/a", endpoint_url=moto_endpoint)
            assert await read_all(store) == b"content"
            with pytest.raises(SourceMissingError, match="access is denied") as caught:
                await stores.open("s3://rules/*", endpoint_url=moto_endpoint).list()
            assert "s3:ListBucket" in caught.value.hint
        finally:
            async with session.post(reset, data=b"inf"):
                pass
