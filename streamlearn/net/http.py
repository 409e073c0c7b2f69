"""What can be asked of a node over HTTP: its metrics, whether it lives and is ready, its status.

And, where it is given them, paths that are asked questions: one in the query of a GET, or a list of
them as the JSON of a POST. The server decides nothing: what it says comes from the callables it is
given; those for the former must answer at once, since they run on the event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from streamlearn.errors import ConfigError, ResourceError
from streamlearn.net.address import join_address, split_address

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Answers", "Ask", "AskedError", "HttpServer", "parse_listen"]

# A scrape that is under way when the node stops gets this long.
SHUTDOWN_SECONDS: Final = 2.0
PATHS: Final = ("/metrics", "/healthz", "/readyz", "/status")
# Questions of one POST, whose body aiohttp bounds to a megabyte.
QUESTIONS_MAX: Final = 10_000


class Answers(NamedTuple):
    """Answers to questions, in their order.

    Attributes
    ----------
    each : list of dict
        One a question.
    about : dict
        What is said beside them.
    """

    each: list[dict[str, Any]]
    about: dict[str, Any]


# Answers questions, each a mapping of names to what JSON has (or to texts, of a query).
Ask = Callable[[Sequence[Mapping[str, Any]]], Awaitable[Answers]]


class AskedError(Exception):
    """A question cannot be answered.

    Parameters
    ----------
    status : int
        Of the response: 400 where the question is wrong, 503 where nobody can answer yet.
    message : str
        What is wrong, expected and actual.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` (an IPv6 host in brackets, an empty one for every interface).

    Raises
    ------
    ConfigError
        It is not that, or the port is not 0 to 65535 (0: any free one).
    """
    return split_address(listen, "http.listen", "9100")


class HttpServer:
    """Serves ``/metrics``, ``/healthz``, ``/readyz`` and ``/status``, and paths with questions.

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
    asked : mapping of str to callable, optional
        By path, who answers questions there, see ``Ask``.

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
        asked: Mapping[str, Ask] | None = None,
    ) -> None:
        self._listen = listen
        self._host, self._port = parse_listen(listen)
        self._registry = registry
        self._status = status
        self._ready = ready
        self._asked = dict(asked or {})
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
        app = web.Application(middlewares=[self._explain])
        handlers = (self._metrics, self._healthz, self._readyz, self._show_status)
        app.add_routes(
            [web.get(path, handler) for path, handler in zip(PATHS, handlers, strict=True)]
        )
        for path in self._asked:
            app.add_routes([web.get(path, self._ask_one), web.post(path, self._ask_many)])
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
        return _json(200, self._status())

    async def _ask_one(self, request: web.Request) -> web.Response:
        """Answer the question in a query; a name that comes twice has a list."""
        query = request.query
        question: dict[str, Any] = {}
        for name in query:
            values = query.getall(name)
            question[name] = values if len(values) > 1 else values[0]
        try:
            answers = await self._asked[request.path]([question])
        except AskedError as error:
            return _refused(error.status, error.message)
        return _json(200, answers.each[0] | answers.about)

    async def _ask_many(self, request: web.Request) -> web.Response:
        """Answer the list of questions in a body."""
        try:
            questions = msgspec.json.decode(await request.read())
        except web.HTTPRequestEntityTooLarge as error:
            return _refused(413, f"the questions are too long: {error.text}")
        except msgspec.DecodeError as error:
            return _refused(400, f"the body is not JSON: {error}")
        if not isinstance(questions, list) or not all(isinstance(one, dict) for one in questions):
            return _refused(400, 'expected a list of objects, such as [{"user": "u7"}]')
        if len(questions) > QUESTIONS_MAX:
            return _refused(400, f"{len(questions):,} questions, at most {QUESTIONS_MAX:,} at once")
        try:
            answers = await self._asked[request.path](questions)
        except AskedError as error:
            return _refused(error.status, error.message)
        return _json(200, {"answers": answers.each} | answers.about)

    @web.middleware
    async def _explain(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Say what there is where something else was asked for; let nothing be cached."""
        try:
            response = await handler(request)
        except web.HTTPNotFound:
            there = ", ".join((*PATHS, *self._asked))
            response = web.Response(status=404, text=f"no {request.path} here, only {there}\n")
        response.headers["Cache-Control"] = "no-store"
        return response


def _json(status: int, value: Any) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


def _refused(status: int, message: str) -> web.Response:
    return _json(status, {"error": message})


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
