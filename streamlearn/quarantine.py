"""Bad records, kept aside with where they stood and why, to be learned once that is mended."""

from __future__ import annotations

import base64
import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamlearn.errors import DataError, RunError
from streamlearn.messages import BadRecord

__all__ = ["Quarantine", "TooManyBadError", "check_share", "merge_quarantines", "read_quarantine"]


class TooManyBadError(DataError):
    """More records are bad than the job allows: it stops, and not a partition alone."""


def check_share(bad: int, records: int, most: float) -> None:
    """Raise TooManyBadError where more than a share ``most`` of the records are bad."""
    if bad > most * max(records, 1):
        raise TooManyBadError(
            f"{bad:,} of {records:,} records are bad ({bad / max(records, 1):.1%}), more than "
            f"source.bad_records_max = {most:.1%}",
            hint="see bad_records.jsonl; mend the schema and run `streamlearn replay`",
        )


class Quarantine:
    """``bad_records.jsonl``: one JSON object a bad record, appended.

    Every method raises RunError where the file cannot be written.

    Parameters
    ----------
    path : Path
    size : int
        Bytes of the file that belong to what is resumed from; anything after is cut off, since its
        records will come again.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with self._written():
            self._file = path.open("ab")
        try:
            found = self._file.tell()
            if found < size:
                raise DataError(
                    f"{path} has {found} bytes, but the snapshot knows of {size}",
                    hint="put the file back, or start over in another --out",
                )
            with self._written():
                self._file.truncate(size)
                self._file.seek(size)
        except BaseException:
            self._file.close()
            raise

    def add(self, bad: BadRecord) -> None:
        """Append a record."""
        entry: dict[str, Any] = {
            "uri": bad.uri,
            "offset": bad.offset,
            "reason": bad.reason,
            "detail": bad.detail,
        }
        try:
            entry["record"] = bad.record.decode()
        except UnicodeDecodeError:
            entry["record_base64"] = base64.b64encode(bad.record).decode()
        with self._written():
            self._file.write(msgspec.json.encode(entry) + b"\n")

    def flush(self) -> None:
        """Hand everything to the system: it outlives this process, but not the machine."""
        with self._written():
            self._file.flush()

    def sync(self) -> int:
        """Bring everything to disk; return the size of the file in bytes."""
        with self._written():
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file; what was not brought to disk belongs to no snapshot."""
        with suppress(OSError):
            self._file.close()

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"cannot write {self._path}", cause=error.strerror) from error


def read_quarantine(path: Path, start: int = 0, end: int | None = None) -> Iterator[BadRecord]:
    """Yield the records that stand in bytes ``[start, end)`` of a ``bad_records.jsonl``.

    Raises
    ------
    DataError
        A line is not what :class:`Quarantine` writes.
    """
    with path.open("rb") as file:
        file.seek(start)
        while end is None or file.tell() < end:
            at, line = file.tell(), file.readline()
            if not line:
                return
            try:
                entry = msgspec.json.decode(line)
                record = (
                    base64.b64decode(entry["record_base64"])
                    if "record_base64" in entry
                    else entry["record"].encode()
                )
                yield BadRecord(
                    entry["uri"], entry["offset"], entry["reason"], entry["detail"], record
                )
            except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path} has no quarantined record at byte {at}", cause=str(error)
                ) from error


class _Place(msgspec.Struct):
    """Where a quarantined record stood; the rest of its line is passed over."""

    uri: str
    offset: int


def merge_quarantines(
    paths: Sequence[Path], target: Path, belongs: Callable[[str, int], bool]
) -> int:
    """Put the records of several files into one, each place in an object once.

    Parameters
    ----------
    paths : sequence of Path
        Files as :class:`Quarantine` writes them; a last line that was cut short is none.
    target : Path
        Takes their place as a whole; none of ``paths``.
    belongs : callable
        Says of (uri, offset) whether the record is wanted.

    Returns
    -------
    int
        Bytes of ``target``, which is on disk then.

    Raises
    ------
    DataError
        A line is not what :class:`Quarantine` writes.
    RunError
        A file cannot be read or written.

    Notes
    -----
    Takes some 40 bytes a record, not the records: places are told apart by digests of 64 bits, and
    among ten million the chance that one is left out for another's sake is 3 in a million.
    """
    digests = array("Q")
    for uri, offset, _ in _lines(paths):
        digests.append(_digest(uri, offset) if belongs(uri, offset) else 0)
    places = np.frombuffer(digests, np.uint64) if digests else np.zeros(0, np.uint64)
    first = np.zeros(len(places), np.bool_)
    first[np.unique(places, return_index=True)[1]] = True
    first &= places != 0
    partial = target.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            for (_, _, line), wanted in zip(_lines(paths), first, strict=True):
                if wanted:
                    file.write(line)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        partial.replace(target)
    except OSError as error:
        raise RunError(f"cannot write {target}", cause=error.strerror) from error
    return size


def _digest(uri: str, offset: int) -> int:
    named = f"{offset} {uri}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")


def _lines(paths: Sequence[Path]) -> Iterator[tuple[str, int, bytes]]:
    """Yield (uri, offset, line) of each whole line."""
    decoder = msgspec.json.Decoder(_Place)
    for path in paths:
        try:
            with path.open("rb") as file:
                at = 0
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    place = decoder.decode(line)
                    yield place.uri, place.offset, line
                    at += len(line)
        except msgspec.DecodeError as error:
            raise DataError(
                f"{path} has no quarantined record at byte {at}", cause=str(error)
            ) from error
        except OSError as error:
            raise RunError(f"cannot read {path}", cause=error.strerror) from error
