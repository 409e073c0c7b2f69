"""Formats: what turns the bytes of a block into minibatches, and how features are named.

A format is a table entry: a name and a function from the source's settings to a :class:`Format`. Its parse kernel goes
over whole blocks straight to a CSR minibatch; no Python runs per record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from streamlearn.messages import I32, I64, U8, U64
from streamlearn.online.minibatch import Minibatch

__all__ = ["Described", "Format", "Parser"]


@dataclass(frozen=True, slots=True)
class Described:
    """Features of a few records with the text they came from, for the name store.

    Attributes
    ----------
    keys : uint64[m]
    fields : int32[m]
        Index into ``Format.fields``; -1 where the text already says ``field=token``.
    ends : int64[m]
        ``text[ends[i - 1]:ends[i]]`` (from 0 for the first) is the token of feature ``i``, as a user would read it.
    text : uint8[k]
    """

    keys: U64
    fields: I32
    ends: I64
    text: U8


class Parser(Protocol):
    """Parses the records of one object (whose header, where it has one, is known)."""

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Append the records of ``buffer[start:end]`` to ``out``; return the index of the first byte not parsed.

        ``buffer[end - 1]`` is a newline: every record is complete. Stops early where ``out`` is full. Bad records are
        noted in ``out``, never raised. Never keeps a reference to ``buffer``.
        """
        ...

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Parse the given good records (newline excluded) once more and say which text made which key."""
        ...


class Format(Protocol):
    """How the records of a source are read."""

    name: str
    fields: tuple[str, ...]
    has_values: bool
    has_header: bool

    def parser(self, header: bytes | None) -> Parser:
        """Return a parser for an object whose first line is ``header`` (None where the format has no header).

        Raises
        ------
        DataError
            The header lacks a column that the schema names, or has one twice.
        """
        ...

    def complaint(self, reason: int, field: int, arg: int, record: bytes) -> str:
        """Return a sentence with expected and actual for a bad record (``label 'x7' is not 0 or 1``)."""
        ...
