"""What went wrong between us and AWS: whether to try again, and how to say it.

Every failure, whichever layer raises it (botocore, aiohttp, the socket), becomes one
:class:`Failure`; the two tables below decide the rest.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

from streamlearn.errors import SourceError, SourceMissingError
from streamlearn.net.sources.s3_credentials import CREDENTIALS_HINT, AwsAccess

__all__ = ["RETRY_REASONS", "Failure", "aws_exceptions", "describe_failure", "failure_of"]

# Why a request is made again; a bounded set, for it becomes a metric label.
RETRY_REASONS = ("slow_down", "server_error", "timeout", "connection", "truncated")

_RETRIED_CODES = {
    "SlowDown": "slow_down",
    "ServiceUnavailable": "slow_down",
    "Throttling": "slow_down",
    "ThrottlingException": "slow_down",
    "ThrottledException": "slow_down",
    "RequestThrottled": "slow_down",
    "RequestThrottledException": "slow_down",
    "RequestLimitExceeded": "slow_down",
    "TooManyRequests": "slow_down",
    "TooManyRequestsException": "slow_down",
    "BandwidthLimitExceeded": "slow_down",
    "InternalError": "server_error",
    "InternalFailure": "server_error",
    "RequestTimeout": "timeout",
    "RequestTimeoutException": "timeout",
}
_RETRIED_STATUSES = {
    408: "timeout",
    429: "slow_down",
    500: "server_error",
    502: "server_error",
    503: "slow_down",
    504: "server_error",
}

# Code or status -> what it means, and the next step. First the code is looked up, then the status.
_KEYS_HINT = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE"
_REGION_HINT = "set the bucket's region with --region or AWS_REGION"
_MISSING: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("there is no such bucket", "check the bucket's name and the endpoint"),
    "NoSuchKey": ("there is no such key", "list what is there with: streamlearn source ls"),
    "InvalidBucketName": ("that is not a valid bucket name", "write s3://BUCKET/PREFIX"),
    "AccessDenied": ("access is denied", ""),
    "AllAccessDisabled": ("access is denied", ""),
    "AccountProblem": ("access is denied", "the account has to be mended with AWS"),
    "InvalidAccessKeyId": ("the access key is unknown there", _KEYS_HINT),
    "SignatureDoesNotMatch": ("the signature is refused", _KEYS_HINT),
    "InvalidToken": ("the session token is refused", _KEYS_HINT),
    "ExpiredToken": ("the session token has expired", "renew the credentials"),
    "TokenRefreshRequired": ("the session token has expired", "renew the credentials"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock of this machine"),
    "InvalidObjectState": ("the object is archived", "restore it from its storage class first"),
    "QueueDoesNotExist": ("there is no such queue", "check the queue's name, account and region"),
    "AWS.SimpleQueueService.NonExistentQueue": (
        "there is no such queue",
        "check the queue's name, account and region",
    ),
    "301": ("the bucket is in another region", _REGION_HINT),
    "400": ("the request is refused", "check region, endpoint and credentials"),
    "401": ("access is denied", ""),
    "403": ("access is denied", ""),
    "404": ("there is no such bucket or key", "check the URI and the endpoint"),
    "405": ("the endpoint does not offer this", "check that the endpoint speaks S3"),
}
_REGION_CODES = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that failed.

    Attributes
    ----------
    status : int
        HTTP status; 0 where there was no answer.
    code : str
        S3's own error code; else the name of the exception.
    words : str
        The other side's own words.
    retry : str
        One of :data:`RETRY_REASONS`; empty where trying again is of no use.
    region : str
        The bucket's region where the answer names it.
    missing : bool
        Whether it was never sent, for want of something that the user has to give.
    """

    status: int
    code: str
    words: str
    retry: str
    region: str = ""
    missing: bool = False


def aws_exceptions() -> tuple[type[Exception], ...]:
    """Return what a request can raise; what is not among these is a mistake of ours."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    # aiobotocore reads the bodies of error answers outside its own translation of exceptions.
    # It also follows a redirect that names no region by asking for the region, for ever.
    return (ClientError, BotoCoreError, aiohttp.ClientError, TimeoutError, OSError, RecursionError)


def failure_of(error: Exception) -> Failure:
    """Read an exception of :func:`aws_exceptions`."""
    import aiohttp
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return _answered(error.response)
    if isinstance(error, RecursionError):
        return Failure(301, "Redirect", "the endpoint redirects without saying where to", "")
    words = str(error) or type(error).__name__
    code = type(error).__name__
    retry = ""
    if isinstance(
        error, exceptions.ConnectTimeoutError | exceptions.ReadTimeoutError | TimeoutError
    ):
        retry = "timeout"
    elif isinstance(error, aiohttp.ClientPayloadError):
        # One exception for both: the peer closed early, or the connection broke.
        retry = "connection" if "ConnectionResetError" in words else "truncated"
    elif isinstance(
        error, exceptions.SSLError | aiohttp.ClientSSLError | ssl.SSLCertVerificationError
    ):
        retry = ""
    elif isinstance(
        error,
        exceptions.HTTPClientError | exceptions.ConnectionError | aiohttp.ClientError | OSError,
    ):
        retry = "connection"
    return Failure(0, code, words, retry, missing=isinstance(error, _missing_exceptions()))


def describe_failure(failure: Failure, what: str, access: AwsAccess, url: str) -> SourceError:
    """Say what failed in one sentence, with S3's own words and the next step.

    Parameters
    ----------
    failure : Failure
    what : str
        What was being done, as in ``cannot list s3://bucket/prefix``.
    access : AwsAccess
    url : str
        Where the request went.
    """
    meaning, hint = _meaning(failure, access)
    answer = f"HTTP {failure.status} {failure.code}" if failure.status else failure.code
    message = f"{what}: {meaning} ({answer} from {url}, region {access.region})"
    missing = failure.missing or (failure.status in range(300, 500) and not failure.retry)
    kind = SourceMissingError if missing else SourceError
    return kind(message, cause=failure.words or None, hint=hint or None)


def _meaning(failure: Failure, access: AwsAccess) -> tuple[str, str]:
    if failure.code in _REGION_CODES or failure.status == 301:
        region = failure.region
        hint = f"the bucket is in {region}: set --region {region}" if region else _REGION_HINT
        return "the bucket is in another region", hint
    if failure.retry == "slow_down":
        return "it kept asking for fewer requests", "try again later, or with more --retries"
    if failure.retry == "truncated":
        return "its answers kept ending early", "check proxies and the network on the way"
    if failure.retry == "timeout":
        return "it kept timing out", "check the endpoint and the network"
    if failure.retry == "connection":
        return "it cannot be reached", "check the endpoint and the network"
    if failure.retry:
        return "it kept failing", "try again later"
    if failure.missing:
        return "no usable AWS credentials", CREDENTIALS_HINT
    if not failure.status:
        return "the request failed", "check the endpoint"
    meaning, hint = _MISSING.get(failure.code) or _MISSING.get(
        str(failure.status), ("the request is refused", "")
    )
    return meaning, hint or _access_hint(access)


def _access_hint(access: AwsAccess) -> str:
    if access.anonymous:
        return "without --anonymous your AWS credentials are used"
    if access.service == "sqs":
        return (
            f"the credentials from {access.credentials_origin} need sqs:GetQueueUrl, "
            "sqs:ReceiveMessage and sqs:DeleteMessage"
        )
    return (
        f"the credentials from {access.credentials_origin} need s3:ListBucket and s3:GetObject; "
        "a bucket whose readers pay needs --requester-pays"
    )


def _answered(response: dict[str, Any]) -> Failure:
    error = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    code = str(error.get("Code", "")) or str(status)
    headers = metadata.get("HTTPHeaders", {})
    return Failure(
        status=status,
        code=code,
        words=str(error.get("Message", "")) or code,
        retry=_RETRIED_CODES.get(code) or _RETRIED_STATUSES.get(status, ""),
        region=error.get("Region") or headers.get("x-amz-bucket-region") or "",
    )


def _missing_exceptions() -> tuple[type[Exception], ...]:
    from botocore import exceptions

    return (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
        exceptions.SSOError,
        exceptions.NoAuthTokenError,
    )
