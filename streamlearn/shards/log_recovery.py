"""What a log directory holds after a crash: which records count, and what must be cut away.

Records count up to the first that is missing or damaged. What stands behind it was either never
acknowledged, or is lost; the two are told apart by the highest lsn that anything left says had
reached the disk (:mod:`streamlearn.shards.log_format`, and the notes in ``durable``, which a crash
of the process leaves exact and a loss of power perhaps behind).
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

from streamlearn.errors import LogError
from streamlearn.shards.disk import Disk
from streamlearn.shards.log_format import (
    IDENTITY_BYTES_MAX,
    FileReader,
    claimed,
    file_header,
    first_lsn_of,
    header_problem,
    seed_of,
)
from streamlearn.shards.log_notes import Notes

__all__ = ["INDEX_BYTES", "Found", "LogFile", "recover"]

# A reader that begins in the middle of a file walks over at most so many bytes to get there.
INDEX_BYTES: Final = 1 << 20

# A file that is written anew, until it is whole; and how much of it at once.
_COPY: Final = "copy"
_COPY_BYTES: Final = 4 << 20

# Bytes that are enough to judge any header: 24 fixed, the identity, a checksum.
_HEADER_BYTES_MAX = 32 + IDENTITY_BYTES_MAX


@dataclass
class LogFile:
    """One file of a log.

    Attributes
    ----------
    path : str
    first_lsn : int
        Of its first record.
    next_lsn : int
        Behind its last one.
    size : int
        Bytes, all of them of whole records.
    seed : int
        See :func:`~streamlearn.shards.log_format.seed_of`.
    index : list of (int, int)
        Some of its records, by lsn and offset: one a mebibyte or so, the first always.
    """

    path: str
    first_lsn: int
    next_lsn: int
    size: int
    seed: int
    index: list[tuple[int, int]]

    def note(self, lsn: int, offset: int) -> None:
        """Remember where a record stands, if the one remembered last is far enough away."""
        if offset - self.index[-1][1] >= INDEX_BYTES:
            self.index.append((lsn, offset))


@dataclass
class Found:
    """What counts of a log.

    Attributes
    ----------
    next_lsn : int
        Of the record to be appended next.
    files : list of LogFile
        In order; may be empty.
    goes_on : bool
        Whether the last of them was read to its end, so that records may be appended to it.
    skipped : list of str
        A sentence for each thing that was damaged or cut away.
    """

    next_lsn: int
    files: list[LogFile] = field(default_factory=list)
    goes_on: bool = False
    skipped: list[str] = field(default_factory=list)


def recover(
    disk: Disk, directory: str, identity: str, notes: Notes, *, after: int, accept_loss: bool
) -> Found:
    """Find what counts, cut away what does not, and bring both to disk.

    When this returns, every record that counts is durable, and nothing that was cut away can come
    back. Files whose records all stand in the snapshot are not read.

    Parameters
    ----------
    disk, directory, identity, notes
        Of the log.
    after : int
        lsn of the snapshot that recovery begins with, 0 where it begins with nothing.
    accept_loss : bool
        Whether to go on where acknowledged records are lost.

    Raises
    ------
    LogError
        Acknowledged records behind ``after`` are lost, the log is another's, or the system refuses.
    """
    try:
        paths = [
            str(PurePath(directory) / name) for name in disk.names(directory) if first_lsn_of(name)
        ]
        survey = _Survey(disk, identity, paths, after)
        found = survey.found
        highest = max(survey.claimed, notes.read(found.skipped))
        lost = highest >= found.next_lsn and highest > after
        if lost and not survey.problem:
            survey.problem = f"log {directory} ends with record {found.next_lsn - 1}"
        if lost and not accept_loss:
            raise LogError(
                f"{survey.problem}; records {max(found.next_lsn, after + 1)} to {highest} "
                "were acknowledged and are lost",
                hint="restore the log from a copy, or accept the loss by name",
            )
        _mend(disk, directory, survey, highest, lost=lost)
        if found.next_lsn <= after:
            if found.files:
                found.skipped.append(
                    f"log {directory} ends with record {found.next_lsn - 1} and begins anew behind "
                    f"the snapshot, with {after + 1}"
                )
            _remove(disk, directory, [file.path for file in found.files])
            found.files.clear()
            found.goes_on = False
            found.next_lsn = after + 1
        if lost:
            notes.reset()
    except OSError as error:
        raise LogError(
            f"cannot recover log {directory}", cause=error.strerror or str(error)
        ) from error
    return found


class _Survey:
    """What is there, up to the first thing that is not as it must be; changes nothing.

    Attributes
    ----------
    found : Found
        The last of its files may hold less than stands on disk.
    read : list of LogFile
        Those of the files found whose records were looked at.
    doomed : list of str
        Files behind the problem, in order.
    problem : str
        A clause that says where and what; empty where there is none.
    claimed : int
        The highest lsn that anything in the files says had reached the disk.
    """

    def __init__(self, disk: Disk, identity: str, paths: list[str], after: int) -> None:
        self._disk = disk
        self._identity = identity
        self.found = Found(after + 1)
        self.read: list[LogFile] = []
        self.doomed: list[str] = []
        self.problem = ""
        self.claimed = 0
        firsts = [first_lsn_of(PurePath(path).name) for path in paths]
        covered = sum(1 for first in firsts[1:] if first <= after + 1)
        for index, path in enumerate(paths):
            if index < covered:
                self._take(path, firsts[index], firsts[index + 1])
            elif not self.problem:
                self._walk(path, firsts[index])
            if self.problem:
                self._search(path)

    def _walk(self, path: str, first: int) -> None:
        """Take a file in as far as its records are whole and follow the ones before."""
        expected = self.found.next_lsn
        if first > expected or (self.found.files and first != expected):
            self.problem = f"log {path} begins with record {first} where {expected} belongs"
            self.doomed.append(path)
            return
        self.found.next_lsn = first
        header = file_header(self._identity, first)
        head = self._disk.read(path, 0, _HEADER_BYTES_MAX)
        if problem := header_problem(head, header, path):
            self.problem = f"log {path} {problem}"
            self.doomed.append(path)
            return
        file = self._take(path, first, first)
        reader = FileReader(
            self._disk, path, file.size, seed=file.seed, offset=len(header), lsn=first
        )
        offset = reader.offset
        for lsn, _ in reader:
            file.note(lsn, offset)
            offset = reader.offset
        self.claimed = max(self.claimed, reader.durable)
        if reader.problem:
            self.problem = f"log {path} {reader.problem} at byte {reader.offset}"
        file.size = reader.offset
        self.found.goes_on = True
        self.read.append(file)
        self.found.next_lsn = file.next_lsn = reader.lsn

    def _take(self, path: str, first: int, behind: int) -> LogFile:
        header = file_header(self._identity, first)
        seed, size = seed_of(header), self._disk.size(path)
        file = LogFile(path, first, behind, size, seed, [(first, len(header))])
        self.found.files.append(file)
        self.found.next_lsn = behind
        return file

    def _search(self, path: str) -> None:
        """Look for claims in a file, or the rest of one, behind the problem."""
        if self.found.files and self.found.files[-1].path == path:
            offset = self.found.files[-1].size
        else:
            offset = 0
            if path not in self.doomed:
                self.doomed.append(path)
        seed = seed_of(file_header(self._identity, first_lsn_of(PurePath(path).name)))
        size = self._disk.size(path)
        lsn = self.found.next_lsn
        highest = claimed(self._disk, path, size, seed=seed, offset=offset, lsn=lsn)
        self.claimed = max(self.claimed, highest)


def _mend(disk: Disk, directory: str, survey: _Survey, highest: int, *, lost: bool) -> None:
    """Cut away what does not count, the last first, and bring what does to disk.

    Records that nobody says had reached the disk (those behind ``highest``) may be what a failed
    sync left: they can be read, and syncing again succeeds without writing them. So their file is
    written anew.
    """
    found = survey.found
    dropped = _remove(disk, directory, survey.doomed)
    for file in survey.read:
        dropped += disk.size(file.path) - file.size
        if file.next_lsn - 1 > highest:
            _write_anew(disk, directory, file)
        else:
            _cut(disk, file)
    if found.files:
        disk.sync_directory(directory)
    if survey.problem:
        fate = (
            f"acknowledged records {found.next_lsn} to {highest} are lost"
            if lost
            else "nothing acknowledged is lost"
        )
        found.skipped.append(f"{survey.problem}: {dropped} bytes from there on cut away; {fate}")


def _write_anew(disk: Disk, directory: str, file: LogFile) -> None:
    """Put a copy of what counts of a file in its place, which stands until the copy is on disk.

    Where there is no room for one the log cannot be opened: it would take nothing more anyway, and
    what would be appended later would stand behind records that may not be there.
    """
    path = str(PurePath(directory) / _COPY)
    if disk.exists(path):
        disk.remove(path)
    try:
        copy = disk.create(path)
        try:
            while copy.size < file.size:
                size = min(file.size - copy.size, _COPY_BYTES)
                copy.write(disk.read(file.path, copy.size, size))
            copy.sync()
        finally:
            copy.close()
        if not _is_whole(disk, path, file):
            raise OSError(errno.EIO, f"the copy of {file.path} is not what was read before")
    except OSError:
        with suppress(OSError):
            disk.remove(path)
        raise
    disk.rename(path, file.path)


def _is_whole(disk: Disk, path: str, file: LogFile) -> bool:
    """Say whether a copy holds the records of a file, each sound."""
    begin = file.index[0][1]
    if seed_of(disk.read(path, 0, begin)) != file.seed:
        return False
    reader = FileReader(disk, path, file.size, seed=file.seed, offset=begin, lsn=file.first_lsn)
    for _ in reader:
        pass
    return not reader.problem and reader.lsn == file.next_lsn


def _cut(disk: Disk, file: LogFile) -> None:
    """Cut a file to what counts of it, and bring that to disk."""
    handle = disk.append(file.path)
    try:
        if handle.size != file.size:
            handle.truncate(file.size)
        handle.sync()
    finally:
        handle.close()


def _remove(disk: Disk, directory: str, paths: list[str]) -> int:
    """Remove files, the last first and each for good, so that no hole can open; return bytes."""
    dropped = 0
    for path in reversed(paths):
        dropped += disk.size(path)
        disk.remove(path)
        disk.sync_directory(directory)
    return dropped
