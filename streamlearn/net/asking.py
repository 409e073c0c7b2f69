"""Asking processes of their status over HTTP: the other side of :mod:`streamlearn.net.http`."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import msgspec

__all__ = ["Asking"]

# A process that has not answered by then is busy or gone; it is asked again soon enough.
_ANSWER_SECONDS_MAX: Final = 2.0
_STATUS_BYTES_MAX: Final = 16 << 20


class Asking:
    """Asks ``/readyz`` and ``/status``; a process that does not answer is no error."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def is_ready(self, address: str) -> bool:
        """Say whether a process is ready."""
        return (await self._get(address, "/readyz"))[0] == 200

    async def status(self, address: str) -> dict[str, Any] | None:
        """Return what ``/status`` says; None where there is no answer."""
        code, body = await self._get(address, "/status")
        if code != 200:
            return None
        try:
            said = msgspec.json.decode(body)
        except msgspec.DecodeError:
            return None
        return said if isinstance(said, dict) else None

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _get(self, address: str, path: str) -> tuple[int, bytes]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS_MAX)
            # of this machine, or of machines that are near: never through a proxy
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        try:
            async with self._session.get(f"http://{address}{path}") as answer:
                body = bytearray()
                async for piece in answer.content.iter_any():
                    body += piece
                    if len(body) > _STATUS_BYTES_MAX:
                        return 0, b""
                return answer.status, bytes(body)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, b""
