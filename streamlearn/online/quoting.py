"""How bytes of a record are quoted in a sentence about it."""

from __future__ import annotations

from typing import Final

__all__ = ["quoted"]

_SHOWN_MAX: Final = 60  # characters, or bytes of what is no text


def quoted(text: bytes) -> str:
    """Quote what stood there, cut where it is long; what a terminal would act on is escaped."""
    try:
        whole: str | bytes = text.decode()
    except UnicodeDecodeError:
        whole = text
    shown = repr(whole[:_SHOWN_MAX]).removeprefix("b")
    return shown if len(whole) <= _SHOWN_MAX else f"{shown[:-1]}…{shown[-1]}"
