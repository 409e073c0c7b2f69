"""Ways to damage a directory of files: each takes them by name and returns those that it changes.

A file that is None is to be removed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["KINDS", "PIECE_BYTES", "Changes", "Files", "bit"]

Files: TypeAlias = dict[str, bytes]
Changes: TypeAlias = dict[str, bytes | None]

PIECE_BYTES = 512


def bit(rng: random.Random, files: Files, name: str) -> Changes:
    data = bytearray(files[name])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return {name: bytes(data)}


def burst(rng: random.Random, files: Files, name: str) -> Changes:
    data = bytearray(files[name])
    at = rng.randrange(len(data))
    data[at : at + 64] = rng.randbytes(len(data[at : at + 64]))
    return {name: bytes(data)}


def zeros(rng: random.Random, files: Files, name: str) -> Changes:
    at = rng.randrange(len(files[name])) // PIECE_BYTES * PIECE_BYTES
    piece = files[name][at : at + PIECE_BYTES]
    return {name: files[name][:at] + bytes(len(piece)) + files[name][at + PIECE_BYTES :]}


def cut(rng: random.Random, files: Files, name: str) -> Changes:
    return {name: files[name][: rng.randrange(len(files[name]))]}


def extended(rng: random.Random, files: Files, name: str) -> Changes:
    return {name: files[name] + rng.randbytes(rng.randrange(1, 600))}


def own_bytes_appended(rng: random.Random, files: Files, name: str) -> Changes:
    at = rng.randrange(len(files[name]))
    return {name: files[name] + files[name][at:]}


def pieces_swapped(rng: random.Random, files: Files, name: str) -> Changes:
    data = files[name]
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    one, two = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    pieces[one], pieces[two] = pieces[two], pieces[one]
    return {name: b"".join(pieces)}


def files_swapped(rng: random.Random, files: Files, name: str) -> Changes:
    other = rng.choice(sorted(files))
    return {name: files[other], other: files[name]}


def bytes_inserted(rng: random.Random, files: Files, name: str) -> Changes:
    at = rng.randrange(len(files[name]) + 1)
    return {name: files[name][:at] + rng.randbytes(rng.randrange(1, 40)) + files[name][at:]}


def bytes_removed(rng: random.Random, files: Files, name: str) -> Changes:
    at = rng.randrange(len(files[name]))
    return {name: files[name][:at] + files[name][at + rng.randrange(1, 40) :]}


def removed(_rng: random.Random, _files: Files, name: str) -> Changes:
    return {name: None}


KINDS: tuple[Callable[[random.Random, Files, str], Changes], ...] = (
    bit,
    burst,
    zeros,
    cut,
    extended,
    own_bytes_appended,
    pieces_swapped,
    files_swapped,
    bytes_inserted,
    bytes_removed,
    removed,
)
