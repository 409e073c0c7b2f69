"""The AWS contract: where endpoint, region and credentials come from, and who said so.

Credentials are found by botocore's own chain (environment, profile, SSO, web identity, container,
instance metadata). What is added here: ``AWS_REGION`` is read before ``AWS_DEFAULT_REGION``, every
value keeps its origin for ``source check``, and whatever goes wrong ends in one sentence. This is
the environment's contract with every AWS tool, so the environment is read here and by botocore,
not by the job's configuration.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, SourceMissingError

__all__ = ["CREDENTIALS_HINT", "AwsAccess", "mask_key_id", "resolve_access"]

# Every provider of the chain has its own time-out (instance metadata: one second, one attempt), but
# an external credential process has none.
CREDENTIALS_SECONDS_MAX = 60.0
# S3 names the right region in its redirects, so any region will do to begin with.
REGION_DEFAULT = "us-east-1"
CREDENTIALS_HINT = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
    "a public bucket can be read with --anonymous"
)

_CREDENTIAL_ORIGINS = {
    "env": "environment (AWS_ACCESS_KEY_ID)",
    "iam-role": "instance metadata",
    "container-role": "container role",
    "assume-role-with-web-identity": "web identity token",
    "shared-credentials-file": "shared credentials file",
    "config-file": "AWS config file",
    "custom-process": "credential process",
}


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """How one AWS service is reached.

    Attributes
    ----------
    service : str
        ``s3`` or ``sqs``.
    session : aiobotocore.session.AioSession
    endpoint_url, endpoint_origin : str
        Empty URL: Amazon's own endpoint of the region.
    region, region_origin : str
    credentials_origin : str
    key_id : str
        Masked; empty where requests are not signed.
    anonymous : bool
    """

    service: str
    session: Any
    endpoint_url: str
    endpoint_origin: str
    region: str
    region_origin: str
    credentials_origin: str
    key_id: str
    anonymous: bool


async def resolve_access(
    service: str, config: SourceConfig, environ: Mapping[str, str] | None = None
) -> AwsAccess:
    """Find endpoint, region and credentials for a service.

    Parameters
    ----------
    service : str
        ``s3`` or ``sqs``; the configured endpoint is that of S3 alone.
    config : SourceConfig
        ``endpoint_url``, ``region`` and ``anonymous`` come before everything else.
    environ : mapping, optional
        The process environment by default; botocore's own chain always reads that one.

    Raises
    ------
    ConfigError
        The AWS profile or configuration file is wrong.
    SourceMissingError
        No credentials, or they cannot be fetched.
    """
    from aiobotocore.session import AioSession
    from botocore.exceptions import BotoCoreError, ClientError

    environ = os.environ if environ is None else environ
    session = AioSession()
    try:
        endpoint_url, endpoint_origin = _endpoint(session, service, config, environ)
        region, region_origin = _region(session, config, environ)
    except BotoCoreError as error:
        raise ConfigError(
            "the AWS configuration cannot be used",
            cause=str(error),
            hint="check AWS_PROFILE, ~/.aws/config and ~/.aws/credentials",
        ) from error
    credentials_origin, key_id = "none (anonymous)", ""
    anonymous = config.anonymous and service == "s3"  # no queue takes unsigned requests
    if not anonymous:
        try:
            async with asyncio.timeout(CREDENTIALS_SECONDS_MAX):
                credentials_origin, key_id = await _credentials(session)
        except (BotoCoreError, ClientError, OSError, ValueError) as error:
            raise SourceMissingError(
                "the AWS credentials cannot be fetched",
                cause=str(error) or type(error).__name__,
                hint=CREDENTIALS_HINT,
            ) from error
    return AwsAccess(
        service=service,
        session=session,
        endpoint_url=endpoint_url,
        endpoint_origin=endpoint_origin,
        region=region,
        region_origin=region_origin,
        credentials_origin=credentials_origin,
        key_id=key_id,
        anonymous=anonymous,
    )


def mask_key_id(key_id: str) -> str:
    """Show enough of an access key id to recognise it: its first and last four characters."""
    return f"{key_id[:4]}…{key_id[-4:]}" if len(key_id) >= 12 else "…"


def _endpoint(
    session: Any, service: str, config: SourceConfig, environ: Mapping[str, str]
) -> tuple[str, str]:
    from botocore.configprovider import ConfiguredEndpointProvider

    if service == "s3" and config.endpoint_url:
        return config.endpoint_url, "endpoint_url"
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return "", "AWS"
    for name in (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL"):
        if environ.get(name):
            return environ[name], name
    configured = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name=service,
        environ={},
    ).provide()
    return (configured, _profile(session)) if configured else ("", "AWS")


def _region(session: Any, config: SourceConfig, environ: Mapping[str, str]) -> tuple[str, str]:
    if config.region:
        return config.region, "region"
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if environ.get(name):
            return environ[name], name
    configured = session.get_scoped_config().get("region")
    return (configured, _profile(session)) if configured else (REGION_DEFAULT, "default")


async def _credentials(session: Any) -> tuple[str, str]:
    credentials = await session.get_credentials()
    if credentials is None:
        raise SourceMissingError(
            "no AWS credentials were found",
            cause="neither environment, profile, container nor instance metadata has any",
            hint=CREDENTIALS_HINT,
        )
    frozen = await credentials.get_frozen_credentials()
    origin = _CREDENTIAL_ORIGINS.get(credentials.method, credentials.method)
    if credentials.method in ("shared-credentials-file", "config-file"):
        origin = f"{origin}, {_profile(session)}"
    return origin, mask_key_id(frozen.access_key)


def _profile(session: Any) -> str:
    return f"profile {session.profile or 'default'}"
