"""Progress on stderr: Vowpal Wabbit's columns as plain lines, JSON lines, or a live board.

:class:`ProgressView` receives every :class:`~streamlearn.messages.Progress` of a run, derives what
two of them say together (loss since the last line, time left, lag) and decides when a line is due;
a renderer turns that into text. Nothing here reads a clock: the time comes with the progress, and
the time of day through ``now``.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:  # messages needs numpy, and the command line must answer without it
    from rich.console import Console
    from rich.live import Live

    from streamlearn.messages import Progress

__all__ = [
    "JsonLines",
    "LiveBoard",
    "PlainLines",
    "ProgressView",
    "Renderer",
    "Seen",
    "Spacing",
    "duration",
    "short_count",
]

# The rate behind the time left is taken over this long: shorter jumps with every slow object,
# longer hides that a run has become slower.
_RATE_SECONDS: Final = 30.0
# A time left from less than this would be a guess.
_RATE_SECONDS_MIN: Final = 2.0

_HEADER: Final = (
    "average  since            example        example  current  current  current"
    "  event                                    lag or\n"
    "{loss:8} last             counter         weight    label  predict features"
    "  time                records/s     MB/s      ETA {last:>7}\n"
)


@dataclass(frozen=True)
class _Shown:
    """How the figures of one measure are shown.

    Attributes
    ----------
    loss : str
        The loss as a column's name.
    column : tuple of str
        Name and figure of the last column.
    power : int
        The loss is the root of this power of a mean.
    """

    loss: str
    column: tuple[str, str]
    power: int


# By ``Progress.measure``.
_SHOWN: Final = {
    "logloss": _Shown("loss", ("AUC", "auc"), 1),
    "rmse": _Shown("rmse", ("MAE", "mae"), 2),
    "nll": _Shown("nll", ("perplex", "perplexity"), 1),
    "cross_entropy": _Shown("loss", ("correct", "accuracy"), 1),
}

_STATES_TOLD: Final = frozenset({"following", "draining", "failed"})


@dataclass(frozen=True, slots=True)
class Seen:
    """A progress with what is derived from those before it.

    Attributes
    ----------
    progress : Progress
    loss_since : float
        Loss since the last line; NaN where nothing was learned since.
    left_seconds : float
        Time left at the rate of the last half minute; NaN where the end or the rate is unknown.
    lag_seconds : float
        How far the last example's event time is behind the time of day; NaN unless following.
    """

    progress: Progress
    loss_since: float
    left_seconds: float
    lag_seconds: float


class Renderer(Protocol):
    """What shows progress."""

    live: bool  # whether it wants every progress and not only those that are due

    def show(self, seen: Seen) -> None:
        """Show where the run is."""
        ...

    def note(self, text: str) -> None:
        """Say what the run is doing when it learns nothing."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Spacing:
    """When a line is due: at twice the examples of the last one, from a minute on by time.

    Parameters
    ----------
    seconds : float
        Spacing from ``after_seconds`` on.
    factor : float
        Growth of the spacing before that, > 1.
    every : int
        If positive: every so many examples instead, all along.
    after_seconds : float
    """

    def __init__(
        self,
        seconds: float = 10.0,
        *,
        factor: float = 2.0,
        every: int = 0,
        after_seconds: float = 60.0,
    ) -> None:
        assert factor > 1
        self._seconds = seconds
        self._factor = factor
        self._every = every
        self._after_seconds = after_seconds
        self._first = -1  # examples at the first progress: those of earlier runs do not count
        self._next = 0.0
        self._shown_seconds = 0.0

    def due(self, examples: int, seconds: float) -> bool:
        """Say whether a line is due now; if so, the next one is counted from here."""
        if self._first < 0:
            self._first = examples
        done = examples - self._first
        if self._every:
            due = done >= self._next
            self._next = (done // self._every + 1) * self._every if due else self._next
        elif seconds < self._after_seconds:
            due = done >= self._next
            self._next = max(1.0, done * self._factor) if due else self._next
        else:
            due = seconds - self._shown_seconds >= self._seconds
        if due:
            self._shown_seconds = seconds
        return due


class ProgressView:
    """Shows the progress of a run; called with each Progress, closed at the end.

    Parameters
    ----------
    renderer : Renderer
    spacing : Spacing
    now : callable
        Time of day in seconds since the epoch.
    """

    def __init__(self, renderer: Renderer, spacing: Spacing, now: Callable[[], float]) -> None:
        self._renderer = renderer
        self._spacing = spacing
        self._now = now
        self._told = ("", "")
        self._loss_sum = 0.0
        self._weight = 0.0
        self._rates: deque[tuple[float, int]] = deque()
        self._last: Progress | None = None
        self._shown: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Take in where the run is and show it if it is due."""
        if self._last is None and progress.state == "compiling":
            self._count_from(progress)  # what a resumed model lost before is not this run's
        self._last = progress
        self._rates.append((progress.seconds, progress.bytes_done))
        while len(self._rates) > 2 and progress.seconds - self._rates[1][0] >= _RATE_SECONDS:
            self._rates.popleft()
        self._tell(progress)
        if self._renderer.live:
            self._renderer.show(self._seen(progress))
        elif progress.examples and self._spacing.due(progress.examples, progress.seconds):
            self._show(progress)

    def close(self) -> None:
        """Show the last progress, if it was not, and leave the terminal as it was."""
        last = self._last
        if last and last.examples and not self._renderer.live:
            shown = self._shown
            if shown is None or (shown.examples, shown.loss) != (last.examples, last.loss):
                self._show(last)
        self._renderer.close()

    def _tell(self, progress: Progress) -> None:
        """Note each step of a compilation, and each change to a state that a user must see."""
        if progress.state == "compiling":
            told = (progress.state, progress.detail)
        else:
            told = (progress.state, "")
        if told == self._told:
            return
        self._told = told
        if progress.state == "compiling":
            self._renderer.note(progress.detail or "compiling kernels")
        elif progress.state in _STATES_TOLD:
            self._renderer.note(
                f"{progress.state}: {progress.detail}" if progress.detail else progress.state
            )

    def _show(self, progress: Progress) -> None:
        self._renderer.show(self._seen(progress))
        self._shown = progress
        self._count_from(progress)

    def _count_from(self, progress: Progress) -> None:
        if math.isfinite(progress.loss):
            self._loss_sum, self._weight = _loss_sum(progress), progress.weight

    def _seen(self, progress: Progress) -> Seen:
        weight = progress.weight - self._weight
        since = math.nan
        # a line that knew no loss yet (just resumed) leaves nothing to count from
        counted = self._shown is None or self._weight > 0
        if weight > 0 and counted:
            mean = (_loss_sum(progress) - self._loss_sum) / weight
            # in this order a NaN passes
            since = max(mean, 0.0) ** (1 / _SHOWN[progress.measure].power)
        lag = math.nan
        if progress.state == "following":
            lag = max(0.0, self._now() - progress.event_seconds)
        return Seen(progress, since, self._left(progress), lag)

    def _left(self, progress: Progress) -> float:
        """Return the seconds left, as the last half minute went; NaN where nobody can know."""
        if progress.bytes_total < 0:
            return math.nan
        left = progress.bytes_total - progress.bytes_done
        if left <= 0:
            return 0.0
        seconds = progress.seconds - self._rates[0][0]
        done = progress.bytes_done - self._rates[0][1]
        if seconds < _RATE_SECONDS_MIN or done <= 0:
            return math.nan
        return left * seconds / done


class PlainLines:
    """Progress as lines of Vowpal Wabbit's columns, with what a stream adds behind them.

    Parameters
    ----------
    write : callable
        Takes the text, newlines included.
    """

    live = False

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._headed = False

    def show(self, seen: Seen) -> None:
        """Write a line, the first one under the columns' names."""
        progress = seen.progress
        shown = _SHOWN[progress.measure]
        name, figure = shown.column
        if not self._headed:
            self._headed = True
            self._write(_HEADER.format(loss=shown.loss, last=name))
        until = seen.lag_seconds if math.isfinite(seen.lag_seconds) else seen.left_seconds
        self._write(
            f"{_number(progress.loss, '8.6f'):8} {_number(seen.loss_since, '8.6f'):8} "
            f"{progress.examples:>15d} {_number(progress.weight, '.1f'):>14} "
            f"{_number(progress.last_label, '.4f'):>8} "
            f"{_number(progress.last_prediction, '.4f'):>8} {progress.last_features:>8d}  "
            f"{_moment(progress.event_seconds):19} {short_count(progress.examples_per_second):>9} "
            f"{_number(progress.bytes_per_second / 1e6, '.1f'):>8} {duration(until):>8} "
            f"{_number(progress.figures[figure], '.4f'):>7}\n"
        )

    def note(self, text: str) -> None:
        """Write the text as a line."""
        self._write(text + "\n")

    def close(self) -> None:
        """Do nothing: each line is whole."""


class JsonLines:
    """Progress as JSON lines, for machines: what Progress tells, by name, NaN as null.

    Parameters
    ----------
    write : callable
        Takes the text, newlines included.
    """

    live = False

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def show(self, seen: Seen) -> None:
        """Write one object."""
        told: dict[str, Any] = {"event": "progress"}
        told |= seen.progress.told()
        told |= {
            "loss_since": seen.loss_since,
            "left_seconds": seen.left_seconds,
            "lag_seconds": seen.lag_seconds,
        }
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in told.items()
        }
        self._write(json.dumps(finite) + "\n")

    def note(self, text: str) -> None:
        """Write what the run is doing as an object of its own."""
        self._write(json.dumps({"event": "state", "detail": text}) + "\n")

    def close(self) -> None:
        """Do nothing: each line is whole."""


class LiveBoard:
    """Progress as a board that stays in place, on a terminal.

    Parameters
    ----------
    console : rich.console.Console
        The terminal; log lines written meanwhile go above the board.
    """

    live = True

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def show(self, seen: Seen) -> None:
        """Draw the board anew."""
        from rich.live import Live
        from rich.text import Text

        board = Text("\n".join(self.lines(seen)), no_wrap=True, overflow="ellipsis")
        if self._live is None:
            self._live = Live(
                board,
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,  # results are not for this terminal alone
            )
            self._live.start()
        self._live.update(board, refresh=True)

    def lines(self, seen: Seen) -> list[str]:
        """Return the board as lines of text."""
        progress = seen.progress
        if not progress.examples:
            return [_sentence(seen)]
        bad = f"   {progress.bad_records:,} bad" if progress.bad_records else ""
        last = f"label {_number(progress.last_label, 'g')}"
        last += f", predicted {_number(progress.last_prediction, '.4f')}"
        last += f", {progress.last_features} features"
        if math.isfinite(progress.event_seconds):
            last += f", {_moment(progress.event_seconds)} UTC"
        return [
            _sentence(seen),
            *_bar(seen),
            f"  examples    {progress.examples:,}{bad}   "
            f"{short_count(progress.features)} features   "
            f"{_number(progress.bytes_per_second / 1e6, '.1f')} MB/s",
            *_LINES[progress.measure](progress),
            f"  last        {last}",
        ]

    def note(self, text: str) -> None:
        """Do nothing: the board's first line says it."""

    def close(self) -> None:
        """Take the board away; what is printed next stands in its place."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _clicks(progress: Progress) -> list[str]:
    """Return the board's lines about predictions of clicks."""
    figures = progress.figures
    return [
        f"  logloss     {_losses(progress)}",
        f"  AUC         {_number(figures['auc'], '.4f')}   "
        f"window {_number(figures['auc_window'], '.4f')}",
        f"  calibration {_number(figures['calibration'], '.3f')}    "
        f"normalized entropy {_number(figures['normalized_entropy'], '.4f')}",
    ]


def _ratings(progress: Progress) -> list[str]:
    """Return the board's lines about predictions of ratings."""
    figures = progress.figures
    return [
        f"  RMSE        {_losses(progress)}",
        f"  MAE         {_number(figures['mae'], '.5f')}   "
        f"window {_number(figures['mae_window'], '.5f')}",
    ]


def _topics(progress: Progress) -> list[str]:
    """Return the board's lines about topics of documents."""
    figures = progress.figures
    return [
        f"  nll         {_number(progress.loss, '.5f')}   "
        f"window {_number(progress.loss_window, '.5f')}",
        f"  perplexity  {_number(figures['perplexity'], '.1f')}   "
        f"window {_number(figures['perplexity_window'], '.1f')}   "
        f"{short_count(figures['tokens'])} tokens",
    ]


def _classes(progress: Progress) -> list[str]:
    """Return the board's lines about predictions of classes."""
    figures = progress.figures
    return [
        f"  loss        {_losses(progress)}",
        f"  accuracy    {_number(figures['accuracy'], '.4f')}   "
        f"window {_number(figures['accuracy_window'], '.4f')}",
    ]


_LINES: Final = {
    "logloss": _clicks,
    "rmse": _ratings,
    "nll": _topics,
    "cross_entropy": _classes,
}


def _losses(progress: Progress) -> str:
    """Say the loss, that of the window, and that of the best constant."""
    return (
        f"{_number(progress.loss, '.5f')}   window {_number(progress.loss_window, '.5f')}   "
        f"best constant {_number(progress.baseline_loss, '.5f')}"
    )


def _loss_sum(progress: Progress) -> float:
    """Return the sum whose mean, or its root, the loss is."""
    return float(progress.loss ** _SHOWN[progress.measure].power * progress.weight)


def duration(seconds: float) -> str:
    """Return a time span as people write it: ``8s``, ``1:05``, ``2:03:20``, ``3d04h``; NaN is -."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{hours // 24}d{hours % 24:02d}h"


def short_count(count: float) -> str:
    """Return a count in three digits or so: ``950``, ``41.2k``, ``1.72M``; - for NaN."""
    if not math.isfinite(count):
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # rounded up to the next unit as soon as it would need a fourth digit
        if abs(count) >= size * 0.9995:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{count:.0f}"


def _sentence(seen: Seen) -> str:
    """Say state and reason in one sentence."""
    progress = seen.progress
    parts = [progress.state]
    if math.isfinite(seen.lag_seconds):
        parts.append(f"{duration(seen.lag_seconds)} behind")
    if progress.examples:
        parts.append(f"{short_count(progress.examples_per_second)} records/s")
    if progress.detail:
        parts.append(progress.detail)
    return "; ".join(parts)


def _bar(seen: Seen) -> list[str]:
    progress = seen.progress
    if progress.bytes_total <= 0:
        return []
    share = min(1.0, progress.bytes_done / progress.bytes_total)
    full = int(share * 40)
    left = f"   ETA {duration(seen.left_seconds)}" if math.isfinite(seen.left_seconds) else ""
    return [f"  {'█' * full}{'░' * (40 - full)} {share:4.0%}{left}"]


def _number(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else "-"


def _moment(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a column that is no time after all
        return "-"
