"""Fixtures for the tests of the sources."""

from tests.net.sources.s3_servers import (  # noqa: F401 - fixtures are found by their names
    aws_environ,
    bare_environ,
    fault_front,
    hadro_bucket,
    localbucket,
    moto_endpoint,
    stores,
)
