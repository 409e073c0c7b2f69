"""An event loop on virtual time that runs the real asyncio: tasks, timeouts, events, groups.

Nothing waits: when nobody is ready, time goes on to the next timer. Everything that runs belongs to
an *owner*, a simulated process, found by the context that asyncio hands on with every callback; an
owner can be killed (nothing of it ever runs again) or frozen (what is due for it runs once it is
thawed). The order of events is a function of the program alone: tasks and futures hash by number,
not by address, so that even sets of them are gone through in the same order in every process.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import sys
import threading
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

__all__ = ["OWNER", "DeadlockError", "Killed", "LivelockError", "Owner", "SimLoop"]

T = TypeVar("T")

STEPS_MAX: Final = 2_000_000
# A coroutine that goes on waiting while it is closed is closed again, at most so often.
CLOSES_MAX: Final = 100


class DeadlockError(AssertionError):
    """Somebody waits, and nothing is scheduled that could ever wake it."""


class LivelockError(AssertionError):
    """The run takes more steps or more virtual time than it may."""


class Killed(BaseException):
    """The simulated process that runs has just died: nothing behind this point happens."""


class Owner:
    """A simulated process: what it runs can be killed or frozen.

    Parameters
    ----------
    name : str
    killed : callable, optional
        Called once when it is killed.

    Attributes
    ----------
    alive : bool
    tasks : dict
        Tasks that it has started, by number.
    """

    def __init__(self, name: str, killed: Callable[[], None] | None = None) -> None:
        self.name = name
        self.alive = True
        self.tasks: dict[int, asyncio.Task[Any]] = {}
        self.frozen: deque[asyncio.Handle] | None = None
        self._killed = killed

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def kill(self) -> None:
        """Let nothing of it run any more: no callback, no ``finally``."""
        if self.alive:
            self.alive = False
            self.frozen = None
            if self._killed is not None:
                self._killed()

    def context(self) -> contextvars.Context:
        """Return a context in which what runs is its own."""
        context = contextvars.copy_context()
        context.run(OWNER.set, self)
        return context


OWNER: Final[contextvars.ContextVar[Owner | None]] = contextvars.ContextVar("owner", default=None)


class _Task(asyncio.Task[T]):
    """A task with a number for a hash: sets of tasks have one order."""

    number: int

    def __new__(cls, coroutine: Any, *, loop: SimLoop, **_: Any) -> _Task[T]:
        self = super().__new__(cls)
        self.number = next(loop.numbers)
        return self

    def __hash__(self) -> int:
        return self.number


class _Future(asyncio.Future[T]):
    """A future with a number for a hash."""

    def __init__(self, *, loop: SimLoop) -> None:
        self.number = next(loop.numbers)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


_NOTHING_REAL = "a simulation has neither sockets nor threads"


class SimLoop(asyncio.AbstractEventLoop):
    """A deterministic event loop without any real input or output.

    Attributes
    ----------
    steps : int
        Callbacks run.
    problems : list of str
        What nobody caught: errors in callbacks and in tasks that nobody awaited, of owners alive.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.steps = 0
        self.problems: list[str] = []
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._thread = threading.get_ident()
        self._running = False
        self._stopping = False
        self._failure: BaseException | None = None
        self._closed = False
        self._tasks: dict[int, asyncio.Task[Any]] = {}  # without an owner
        self._owners: dict[Owner, None] = {}  # the dead ones, too: their tasks end with the loop
        self._generators: dict[int, contextvars.Context] = {}

    # --- time and callbacks

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there are no sockets."""
        raise RuntimeError(_NOTHING_REAL)

    def run_in_executor(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: there are no threads."""
        raise RuntimeError(_NOTHING_REAL)

    def time(self) -> float:
        """Return virtual seconds since the loop was made; they never run backwards."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let time pass with nothing run meanwhile: all that fell due runs at once, late."""
        assert seconds >= 0
        self._now += seconds

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run a callback behind those that are ready."""
        assert not self._closed, "the loop is closed"
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """As ``call_soon``; real threads are refused, as nobody could repeat what they do."""
        assert threading.get_ident() == self._thread, "a real thread in a simulation"
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback once so many virtual seconds have passed."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a virtual time; those of one time in the order of their asking."""
        assert not self._closed, "the loop is closed"
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self.numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is dropped when its time comes

    # --- running

    def fail(self, error: BaseException) -> None:
        """Let the run end with an error behind the callback that runs."""
        self._failure = self._failure or error

    def run_forever(self) -> None:
        """Run until stopped."""
        self._run(lambda: False)

    def run_until_complete(self, future: Any, *, seconds_max: float = 1e7) -> Any:
        """Run until a coroutine or future is done; return or raise what it does.

        Raises
        ------
        DeadlockError
            It is not done, and nothing is scheduled.
        LivelockError
            More than ``STEPS_MAX`` callbacks, or ``seconds_max`` virtual seconds, were not enough.
        """
        task = asyncio.ensure_future(future, loop=self)
        self._run(task.done, self._now + seconds_max)
        return task.result()

    def _run(self, is_done: Callable[[], bool], end: float = float("inf")) -> None:
        assert not self._running
        assert not self._closed
        self._running, self._stopping = True, False
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generator_begins, finalizer=self._generator_ends)
        before = events._get_running_loop()
        events._set_running_loop(self)
        ready, timers = self._ready, self._timers
        try:
            while not self._stopping and not is_done():
                if not ready:
                    while timers and timers[0][2]._cancelled:
                        heapq.heappop(timers)
                    if not timers:
                        at = f"nothing is scheduled at {self._now:.6f} s"
                        raise DeadlockError(at + self._who_waits())
                    self._now = max(self._now, timers[0][0])
                    if self._now > end:
                        self._give_up(f"{end:.0f} virtual seconds")
                while timers and timers[0][0] <= self._now:
                    ready.append(heapq.heappop(timers)[2])
                self._step(ready.popleft())
                if self._failure is not None:
                    raise self._failure
                if self.steps > STEPS_MAX:
                    self._give_up(f"{STEPS_MAX:,} steps")
        finally:
            events._set_running_loop(before)
            sys.set_asyncgen_hooks(*hooks)
            self._running = False

    def _step(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        owner = handle._context.get(OWNER)
        if owner is not None:
            if not owner.alive:
                return
            if owner.frozen is not None:
                owner.frozen.append(handle)
                return
        self.steps += 1
        handle._run()

    def _give_up(self, what: str) -> NoReturn:
        raise LivelockError(f"{what} were not enough{self._who_waits()}")

    def _who_waits(self) -> str:
        groups = [self._tasks, *(owner.tasks for owner in self._owners if owner.alive)]
        return "".join(
            f"\n  {task.get_name()}: {_stack(task)}" for group in groups for task in group.values()
        )

    def freeze(self, owner: Owner) -> None:
        """Let nothing of an owner run until it is thawed, as SIGSTOP does."""
        if owner.alive and owner.frozen is None:
            owner.frozen = deque()

    def thaw(self, owner: Owner) -> None:
        """Let a frozen owner go on with what fell due meanwhile, in order."""
        if owner.frozen is not None:
            self._ready.extend(owner.frozen)
            owner.frozen = None

    @contextmanager
    def as_owner(self, owner: Owner | None) -> Generator[None, None, None]:
        """Let what is started inside belong to an owner."""
        token = OWNER.set(owner)
        try:
            yield
        finally:
            OWNER.reset(token)

    # --- tasks and futures

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return _Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a coroutine; it belongs to the owner in whose context it starts."""
        assert not self._closed, "the loop is closed"
        task: _Task[T] = _Task(coro, loop=self, context=context)
        task.set_name(name or f"task-{task.number}")
        owner = OWNER.get() if context is None else context.get(OWNER)
        tasks = self._tasks if owner is None else owner.tasks
        tasks[task.number] = task
        task.add_done_callback(lambda _: tasks.pop(task.number, None), context=_NOBODYS)
        if owner is not None:
            self._owners[owner] = None
        return task

    # --- ends

    def stop(self) -> None:
        """End ``run_forever`` behind the callback that runs."""
        self._stopping = True

    def is_running(self) -> bool:
        """Say whether it runs."""
        return self._running

    def is_closed(self) -> bool:
        """Say whether it is closed."""
        return self._closed

    def close(self) -> None:
        """Drop all that is left, of dead owners too; what it does then has no effect."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        groups = [self._tasks, *(owner.tasks for owner in self._owners)]
        for task in [task for group in groups for task in group.values()]:
            _bury(task)
        for group in groups:
            group.clear()
        self._generators.clear()

    def get_debug(self) -> bool:
        """Say that asyncio's debug mode is off."""
        return False

    def set_debug(self, enabled: bool) -> None:
        """Refuse asyncio's debug mode: it looks at the real clock."""
        assert not enabled

    def _generator_begins(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[id(generator)] = contextvars.copy_context()

    def _generator_ends(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close a generator that was dropped half-way, as its owner."""
        context = self._generators.pop(id(generator), None)
        if context is not None and not self._closed:
            self.call_soon(self._close_generator, generator, context=context)

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self.create_task(generator.aclose(), name="aclose")  # type: ignore[arg-type]

    # --- what nobody caught

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what nobody caught; the run that it happened in has failed."""
        if self._closed:
            return
        owner = OWNER.get()
        error = context.get("exception")
        if isinstance(error, Killed) or (owner is not None and not owner.alive):
            return
        if error is not None and not isinstance(error, Exception):
            self.fail(error)
        text = f"{context.get('message')}: {error!r}"
        self.problems.append(text)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """As ``call_exception_handler``."""
        self.call_exception_handler(context)


_NOBODYS: Final = contextvars.Context()


def _stack(task: asyncio.Task[Any]) -> str:
    """Say where a task waits, innermost last."""
    places = []
    coroutine: Any = task.get_coro()
    while coroutine is not None and len(places) < 20:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return " > ".join(places)


def _bury(task: asyncio.Task[Any]) -> None:
    """End a task that will never run again, whatever its ``finally`` clauses wish to wait for."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Any = task.get_coro()
    for _ in range(CLOSES_MAX):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001 - it is dead, and may say what it likes
            continue
        return
