"""Addresses as users write them: ``HOST:PORT``."""

from __future__ import annotations

import ipaddress

from streamlearn.errors import ConfigError

__all__ = ["is_loopback", "join_address", "split_address"]


def split_address(address: str, setting: str, example: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` (an IPv6 host in brackets, an empty one for every interface).

    Parameters
    ----------
    address : str
    setting, example : str
        What errors call it, and the port number that they show.

    Raises
    ------
    ConfigError
        It is not that, or the port is not 0 to 65535 (0: any free one).
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if (
        not colon
        or (":" in host) != bracketed
        or not (port.isascii() and port.isdecimal())
        or int(port) > 65535
    ):
        raise ConfigError(
            f"{setting} is {address!r}, expected HOST:PORT with a port from 0 to 65535",
            hint=f"for example 127.0.0.1:{example}, or [::1]:{example}, "
            f"or :{example} for every interface",
        )
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine alone; names other than ``localhost`` are not trusted."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
