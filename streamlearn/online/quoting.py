"""How bytes of a record are quoted in a sentence about it."""

from __future__ import annotations

from typing import Final

__all__ = ["quoted"]

_SHOWN_BYTES_MAX: Final = 60


def quoted(text: bytes) -> str:
    """Quote what stood there, cut where it is long; what a terminal would act on is escaped."""
    cut = text[:_SHOWN_BYTES_MAX]
    try:
        shown = repr(cut.decode())
    except UnicodeDecodeError:
        shown = repr(cut)[1:]
    return shown if len(text) <= _SHOWN_BYTES_MAX else f"{shown[:-1]}…{shown[-1]}"
