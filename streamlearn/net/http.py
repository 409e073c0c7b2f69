"""What can be asked of a node over HTTP: its metrics, whether it lives and is ready, its status.

The server decides nothing: what it says comes from the callables it is given, which must answer at
once, since they run on the event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from streamlearn.errors import ConfigError, ResourceError
from streamlearn.net.address import join_address, split_address

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["HttpServer", "parse_listen"]

# A scrape that is under way when the node stops gets this long.
SHUTDOWN_SECONDS: Final = 2.0
PATHS: Final = ("/metrics", "/healthz", "/readyz", "/status")


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` (an IPv6 host in brackets, an empty one for every interface).

    Raises
    ------
    ConfigError
        It is not that, or the port is not 0 to 65535 (0: any free one).
    """
    return split_address(listen, "http.listen", "9100")


class HttpServer:
    """Serves ``/metrics``, ``/healthz``, ``/readyz`` and ``/status``.

    Parameters
    ----------
    listen : str
        ``HOST:PORT``, see :func:`parse_listen`.
    registry : CollectorRegistry
        What ``/metrics`` shows.
    status : callable
        Returns what ``/status`` shows as JSON; NaN becomes null.
    ready : callable
        Returns whether the node is ready and why (not): ``(False, "compiling kernels 3/7")``.

    Raises
    ------
    ConfigError
        ``listen`` is not an address.
    """

    def __init__(
        self,
        listen: str,
        *,
        registry: CollectorRegistry,
        status: Callable[[], dict[str, Any]],
        ready: Callable[[], tuple[bool, str]],
    ) -> None:
        self._listen = listen
        self._host, self._port = parse_listen(listen)
        self._registry = registry
        self._status = status
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self) -> str:
        """Listen; return the address that it is bound to, as ``HOST:PORT`` (also ``address``).

        Raises
        ------
        ResourceError
            The port is taken, or this process may not have it.
        ConfigError
            The host is none of this machine's.
        """
        assert self._runner is None, "started already"
        app = web.Application(middlewares=[_explain])
        handlers = (self._metrics, self._healthz, self._readyz, self._show_status)
        app.add_routes(
            [web.get(path, handler) for path, handler in zip(PATHS, handlers, strict=True)]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host or None, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise _listen_error(self._listen, error) from error
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self.address = join_address(host, port)
        return self.address

    async def stop(self) -> None:
        """Stop listening, finish the answers under way, close every connection."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        # that it answers is the answer: the event loop runs
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready, reason = self._ready()
        return web.Response(text=reason + "\n", status=200 if ready else 503)

    async def _show_status(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode(self._status()), content_type="application/json"
        )


@web.middleware
async def _explain(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Say what there is where something else was asked for; let nothing be cached."""
    try:
        response = await handler(request)
    except web.HTTPNotFound:
        response = web.Response(
            status=404, text=f"no {request.path} here, only {', '.join(PATHS)}\n"
        )
    response.headers["Cache-Control"] = "no-store"
    return response


def _listen_error(listen: str, error: OSError) -> ConfigError | ResourceError:
    cause = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return ResourceError(
            f"cannot listen on {listen}: the port is in use",
            cause=cause,
            hint="choose another with --http HOST:PORT; port 0 takes any free one",
        )
    if error.errno == errno.EACCES:
        return ResourceError(
            f"cannot listen on {listen}: not allowed",
            cause=cause,
            hint="ports below 1024 are for privileged processes",
        )
    return ConfigError(f"cannot listen on {listen}: not an address of this machine", cause=cause)
