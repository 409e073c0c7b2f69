from __future__ import annotations

import pytest

from streamlearn.errors import ConfigError
from streamlearn.net.address import is_loopback, join_address, split_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        (":0", "", 0),
        ("a:7", "a", 7),
    ],
)
def test_an_address_is_split_and_joined(address: str, host: str, port: int) -> None:
    assert split_address(address, "x", "1") == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize(
    "address", ["", "host", "::1:5", "[host]:5", "host:-1", "host:65536", "h:²"]
)
def test_what_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigError, match=r"the thing is .*expected HOST:PORT"):
        split_address(address, "the thing", "7700")


def test_only_this_machine_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost")))
    assert not any(
        map(is_loopback, ("", "0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.x"))
    )
