"""Bad records, kept aside with where they stood and why, to be learned once that is mended."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from streamlearn.errors import DataError, RunError
from streamlearn.messages import BadRecord

__all__ = ["Quarantine", "read_quarantine"]


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
