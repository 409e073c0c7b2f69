"""One AWS service as the sources use it: a client made when first needed, and our retries.

botocore signs, follows a bucket to its region and reads errors; its own retries are off, because
they know nothing of the byte where a body stopped, and bodies of objects go past it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, SourceError
from streamlearn.net.sources.aws_errors import (
    RETRY_REASONS,
    Failure,
    aws_exceptions,
    describe_failure,
    failure_of,
)
from streamlearn.net.sources.ranged_get import RECEIVING, RangedGets
from streamlearn.net.sources.s3_credentials import AwsAccess, resolve_access

__all__ = ["AwsService"]

# Full jitter: a wait is uniform between nothing and a bound that doubles from the base to the cap.
# The cap is well above the seconds that S3 needs to split a hot prefix.
BACKOFF_BASE_SECONDS = 0.1
BACKOFF_CAP_SECONDS = 20.0
CONNECT_SECONDS_MAX = 10.0
# Between two reads of a body, and to the first byte of an answer.
READ_SECONDS_MAX = 30.0
# botocore's ten would starve the read-ahead: 256 MiB are 32 pieces in flight, and more by setting.
CONNECTIONS_MAX = 64
# An endpoint that never answered is sooner misspelt than resting: say so within a second or two.
RETRIES_UNREACHED_MAX = 3


class AwsService:
    """A client of one service, shared by whoever reads from it; bound to one event loop.

    Who uses it says so by :meth:`share`, and the last one to close it closes the connections.

    Parameters
    ----------
    service : str
        ``s3`` or ``sqs``.
    config : SourceConfig
        Endpoint, region, anonymity, and ``retries``: consecutive attempts without progress.
    endpoint_url : str, optional
        Where requests go unless the AWS contract names another place.
    region : str, optional
        Where requests go unless the job names another region.
    origin : str, optional
        Who says so, of these two.
    sleep : callable, optional
        ``sleep(seconds)``, awaited between attempts.
    uniform : callable, optional
        ``uniform(low, high)``: the jitter.
    read_seconds : float, optional
        Longest silence of the other side.

    Attributes
    ----------
    retries : dict of str to int
        Requests made again, by reason.
    """

    def __init__(
        self,
        service: str,
        config: SourceConfig,
        *,
        endpoint_url: str = "",
        region: str = "",
        origin: str = "",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        read_seconds: float = READ_SECONDS_MAX,
    ) -> None:
        self.retries = dict.fromkeys(RETRY_REASONS, 0)
        self._service = service
        self._config = config
        self._endpoint_url = endpoint_url
        self._region = region
        self._origin = origin
        self._sleep = sleep
        self._uniform = uniform
        self._read_seconds = read_seconds
        self._opening = asyncio.Lock()
        self._resources = AsyncExitStack()
        self._access: AwsAccess | None = None
        self._client: Any = None
        self._bucket_regions: dict[str, str] = {}
        self._reached = False
        self._users = 0

    def share(self) -> Self:
        """Count one more user, who is to call :meth:`aclose` once."""
        self._users += 1
        return self

    async def access(self) -> AwsAccess:
        """Return endpoint, region and credentials with their origins.

        Raises
        ------
        ConfigError, SourceMissingError
            As :func:`resolve_access`.
        """
        async with self._opening:
            if self._access is None:
                # Importing botocore takes some tenths of a second: not on the event loop.
                await asyncio.to_thread(_import_client)
                access = await resolve_access(self._service, self._config)
                if self._region and not self._config.region:
                    access = replace(access, region=self._region, region_origin=self._origin)
                if self._endpoint_url and not access.endpoint_url:
                    access = replace(
                        access, endpoint_url=self._endpoint_url, endpoint_origin=self._origin
                    )
                self._access = access
            return self._access

    async def client(self) -> Any:
        """Return the service's client, made at the first call."""
        if self._client is None:
            access = await self.access()
            async with self._opening:
                if self._client is None:
                    self._client = await self._open(access)
        return self._client

    async def url(self) -> str:
        """Return the endpoint that requests go to."""
        return str((await self.client()).meta.endpoint_url)

    async def call(self, what: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """Make a request, again where that can help.

        Parameters
        ----------
        what : str
            The beginning of an error message: ``cannot list s3://bucket/prefix``.
        operation : str
            A method of the client; its answer must have no streaming body.

        Raises
        ------
        SourceError
            The answer was no, or ``config.retries`` attempts in a row failed.
        """
        client = await self.client()
        fruitless = 0
        while True:
            try:
                answer = await getattr(client, operation)(**parameters)
            except aws_exceptions() as error:
                fruitless += 1
                await self.retry_or_raise(failure_of(error), fruitless, what)
            else:
                self.heard(answer, parameters.get("Bucket", ""))
                return dict(answer)

    def heard(self, answer: dict[str, Any], bucket: str) -> None:
        """Note that the service answered, and what it says of the bucket's region."""
        self._reached = True
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if region := headers.get("x-amz-bucket-region"):
            self._bucket_regions[bucket] = region

    def bucket_region(self, bucket: str) -> str:
        """Return the bucket's region as the service told it; empty while unknown."""
        return self._bucket_regions.get(bucket, "")

    async def retry_or_raise(self, failure: Failure, fruitless: int, what: str) -> None:
        """Wait before the next attempt, or raise where there is to be none.

        Parameters
        ----------
        failure : Failure
        fruitless : int
            Attempts in a row that made no progress, this one included; or 1 after some progress.
        what : str
            As for :meth:`call`.
        """
        self._reached = self._reached or failure.status > 0
        allowed = self._config.retries
        if not self._reached:
            allowed = min(allowed, RETRIES_UNREACHED_MAX)
        if not failure.retry or fruitless > allowed:
            raise await self.error(failure, what)
        self.retries[failure.retry] += 1
        bound = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(fruitless - 1, 30))
        await self._sleep(self._uniform(0.0, bound))

    async def error(self, failure: Failure, what: str) -> SourceError:
        """Put a failure into the words of the user."""
        access = await self.access()
        return describe_failure(failure, what, access, await self.url())

    async def aclose(self) -> None:
        """Give up one share; the last one closes all connections."""
        self._users -= 1
        if self._users <= 0:
            self._client = None
            await self._resources.aclose()

    async def _open(self, access: AwsAccess) -> Any:
        from aiobotocore.config import AioConfig
        from botocore import UNSIGNED
        from botocore.exceptions import BotoCoreError

        settings = AioConfig(
            connect_timeout=CONNECT_SECONDS_MAX,
            read_timeout=self._read_seconds,
            max_pool_connections=CONNECTIONS_MAX,
            retries={"total_max_attempts": 1, "mode": "standard"},
            # Whole-object checksums say nothing of a range, and cost a pass over the bytes.
            response_checksum_validation="when_required",
            request_checksum_calculation="when_required",
            **({"signature_version": UNSIGNED} if access.anonymous else {}),
        )
        try:
            client = await self._resources.enter_async_context(
                access.session.create_client(
                    self._service,
                    region_name=access.region,
                    endpoint_url=access.endpoint_url or None,
                    config=settings,
                )
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(
                f"there can be no connection to {access.endpoint_url or self._service} "
                f"in region {access.region}",
                cause=str(error),
                hint="check the endpoint (http://HOST:PORT or https://HOST) and the region",
            ) from error
        if self._service == "s3":
            self._receive_bodies(access, client)
        return client

    def _receive_bodies(self, access: AwsAccess, client: Any) -> None:
        """Have the GETs around which RECEIVING is set made by us, as botocore signed them."""
        from aiobotocore.awsrequest import AioAWSResponse
        from botocore.httpsession import get_cert_path
        from botocore.utils import get_environ_proxies

        bundle = access.session.get_config_variable("ca_bundle") or get_cert_path(True)
        gets = RangedGets(
            ssl.create_default_context(cafile=bundle),
            connections_max=CONNECTIONS_MAX,
            connect_seconds=CONNECT_SECONDS_MAX,
            read_seconds=self._read_seconds,
        )
        self._resources.callback(gets.close)

        async def send(request: Any, **_: Any) -> Any:
            target = RECEIVING.get()
            if target is None or get_environ_proxies(request.url):
                return None  # botocore goes on by itself
            headers = {name: _text(value) for name, value in request.headers.items()}
            answer = await gets.get(request.url, headers, target)
            if answer is None:
                return None
            return AioAWSResponse(
                request.url, answer.status, answer.headers, _SmallBody(answer.body)
            )

        client.meta.events.register("before-send.s3.GetObject", send)


class _SmallBody:
    """What botocore reads an error from."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _import_client() -> None:
    import aiobotocore.session  # noqa: F401 - for its side effect of being imported
