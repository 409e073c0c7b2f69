"""Free ports of this machine."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from streamlearn.errors import ResourceError

__all__ = ["free_port", "is_free"]

# Where the system says nothing else: ports below those that it gives to outgoing connections, one
# of which might take the port of a process that is being started again.
_LOW: Final = 10_000
_HIGH_DEFAULT: Final = 32_768
_RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(host: str, port: int) -> bool:
    """Say whether something could listen at a port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(host: str, name: str, taken: Collection[int]) -> int:
    """Return a port that is free, for ``name`` the same one as long as it is.

    Parameters
    ----------
    host : str
        Where it will be listened at.
    name : str
        Different for each use: where the search begins.
    taken : collection of int
        Ports that are spoken for.

    Raises
    ------
    ResourceError
        There is none.
    """
    high = _HIGH_DEFAULT
    with suppress(OSError, ValueError, IndexError):
        high = int(_RANGE_FILE.read_text().split()[0])
    low = min(_LOW, high - 1)
    count = max(1, high - low)
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "little") % count
    for step in range(count):
        port = low + (start + step) % count
        if port not in taken and is_free(host, port):
            return port
    raise ResourceError(f"no port from {low} to {high} of {host} is free")
