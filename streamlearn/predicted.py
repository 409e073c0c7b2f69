"""Predictions on the command line: how they read, a line a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamlearn.config import loss_of
from streamlearn.errors import ConfigError

if TYPE_CHECKING:
    from streamlearn.config import JobConfig

__all__ = ["one_line", "prediction_lines"]

_NAN: Final = "nan\n"


def prediction_lines(
    write: Callable[[str], None], job: JobConfig, *, probabilities: bool
) -> Callable[[Sequence[Any]], None]:
    """Return a function that writes predictions, one a line.

    A number; of classes the class's text, or its number where it has none, or, if asked, the
    probability of each class between tabs. A bad record is ``nan``.

    Parameters
    ----------
    write : callable
        Takes text.
    job : JobConfig
        Of the model; its source names the classes.
    probabilities : bool
        Whether probabilities are asked for.

    Raises
    ------
    ConfigError
        They are, and the model predicts no classes.
    """
    loss = loss_of(job.model)
    if loss == "classes":
        return _shares(write) if probabilities else _classes(write, job.source.classes)
    if probabilities and loss != "logistic":  # what that predicts is a probability
        raise ConfigError("--probabilities is for classes, and the model predicts numbers")
    return _numbers(write)


def _numbers(write: Callable[[str], None]) -> Callable[[Sequence[float]], None]:
    def out(values: Sequence[float]) -> None:
        # one format for the whole minibatch: three times as fast as one a value
        write(("%.6g\n" * len(values)) % tuple(values))

    return out


def _classes(
    write: Callable[[str], None], texts: Sequence[str]
) -> Callable[[Sequence[float]], None]:
    def line_of(number: float) -> str:
        if number != number:
            return _NAN
        return lines[int(number)] if number < len(lines) else f"{int(number)}\n"

    lines = [f"{one_line(text)}\n" for text in texts]
    return lambda values: write("".join(map(line_of, values)))


def _shares(write: Callable[[str], None]) -> Callable[[Sequence[Any]], None]:
    def out(values: Sequence[Any]) -> None:
        write("".join([_share_line(one) for one in values]))

    return out


def _share_line(shares: Any) -> str:
    """Return the line of a record; of one that is bad, a number that is none."""
    if isinstance(shares, float) or shares[0] != shares[0]:
        return _NAN
    return "\t".join(["%.6g"] * len(shares)) % tuple(shares) + "\n"


def one_line(text: str) -> str:
    """Return a text without line ends: those, and backslashes, are escaped."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
