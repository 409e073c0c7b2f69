"""Recommendations on the command line: which users are asked about, and how their items read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from streamlearn.errors import ConfigError

__all__ = ["asked_users", "recommended_json", "recommended_text"]

# What would be taken for the end of an id, or of a recommendation.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def asked_users(named: Sequence[str], file: str | None, stdin_taken: bool) -> list[str] | None:
    """Return the users that are asked about; None where nobody said.

    Parameters
    ----------
    named : sequence of str
    file : str or None
        Where more stand, one a line; ``-`` is standard input.
    stdin_taken : bool
        Whether records come from standard input.

    Raises
    ------
    ConfigError
        The file cannot be read, or what is named is empty.
    """
    if file is None:
        users = list(named)
    elif file == "-" and stdin_taken:
        raise ConfigError("standard input can be read once, but both users and ratings are there")
    else:
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"users in {file} cannot be read", cause=str(error)) from error
        lines = (line.removesuffix("\r") for line in text.split("\n"))
        users = [*named, *(line for line in lines if line)]
    if "" in users:
        raise ConfigError("a user is empty")
    return users if named or file is not None else None


def recommended_text(user: str, items: Sequence[str], predictions: Sequence[float]) -> None:
    """Print a user's items: a line each, user, item and score between tabs."""
    first = user.translate(_ESCAPES)
    sys.stdout.write(
        "".join(
            f"{first}\t{item.translate(_ESCAPES)}\t{value:.6g}\n"
            for item, value in zip(items, predictions, strict=True)
        )
    )


def recommended_json(user: str, items: Sequence[str], predictions: Sequence[float]) -> None:
    """Print a user's items: a line each, as JSON."""
    first = json.dumps(user, ensure_ascii=False)
    sys.stdout.write(
        "".join(
            f'{{"user": {first}, "item": {json.dumps(item, ensure_ascii=False)}, '
            f'"score": {value:.7g}}}\n'
            for item, value in zip(items, predictions, strict=True)
        )
    )
