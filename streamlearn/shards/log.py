"""A shard's log: what was applied, in order, so that a crash takes nothing that was acknowledged.

Records are numbered from 1 without a gap; a number is an *lsn*, and 0 means "before everything".
Appending hands a record to the system; :meth:`Log.sync` brings all appended so far to disk, and one
sync covers any number of appends, which is how many pushes share the wait. Files roll at a named
size, so that what a snapshot holds already can be dropped file by file.

One lane appends; another may sync at the same time. The bytes stand in
:mod:`streamlearn.shards.log_format`, what a crash may leave of them in
:mod:`streamlearn.shards.log_recovery`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import Final

from isal import isal_zlib

from streamlearn.errors import LogError
from streamlearn.shards.disk import Buffer, Disk, File, StrPath
from streamlearn.shards.log_format import (
    IDENTITY_BYTES_MAX,
    LSN_MAX,
    RECORD_BYTES,
    RECORD_BYTES_MAX,
    FileReader,
    file_header,
    file_name,
    record_header,
    seed_of,
)
from streamlearn.shards.log_notes import Notes
from streamlearn.shards.log_recovery import LogFile, recover

__all__ = ["FILE_BYTES", "Log"]

# Small enough that dropping keeps pace with snapshots, large enough that a file's creation and the
# sync of its directory are lost among the syncs of its records.
FILE_BYTES: Final = 64 << 20


class Log:
    """Made by :meth:`open`.

    Attributes
    ----------
    next_lsn : int
        Of the record to be appended next.
    synced_lsn : int
        All records up to this one are durable.
    skipped : list of str
        What opening found damaged or cut away, a sentence each.
    """

    def __init__(
        self,
        disk: Disk,
        directory: str,
        identity: str,
        notes: Notes,
        *,
        files: list[LogFile],
        next_lsn: int,
        goes_on: bool,
        skipped: list[str],
        file_bytes: int,
    ) -> None:
        self.next_lsn = next_lsn
        self.synced_lsn = next_lsn - 1
        self.skipped = skipped
        self._disk = disk
        self._directory = directory
        self._identity = identity
        self._notes = notes
        self._file_bytes = file_bytes
        self._files = files
        # What the appending and the syncing lane share: the files that are not synced to their end,
        # and whether names are new. Held for moments only, never over a call to the disk.
        self._shared = threading.Lock()
        self._one_sync = threading.Lock()
        self._rolled: list[tuple[int, File]] = []
        self._names_new = False
        self._failed = ""
        self._stale = ""  # a file that a failed roll has left
        self._file: File
        if goes_on:
            self._file = disk.append(files[-1].path)
        else:
            entry, self._file = self._new_file()
            self._names_new = True
            files.append(entry)

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: StrPath,
        identity: str,
        *,
        after: int = 0,
        accept_loss: bool = False,
        file_bytes: int = FILE_BYTES,
    ) -> Log:
        """Open a log, or begin one; every record that is in it afterwards is durable.

        A tail that nobody was promised is cut away, and the cut is on disk before this returns.

        Parameters
        ----------
        disk : Disk
        directory : path
            Made where missing; nothing else may be kept in it.
        identity : str
            Whose log this is (job and shard); at most 4096 bytes. Another's is refused.
        after : int
            lsn of the snapshot that recovery begins with, 0 where it begins with nothing: records
            up to it may be missing or damaged. A log that ends before it begins anew behind it.
        accept_loss : bool
            Whether to go on where acknowledged records are lost: the log then ends before them.
        file_bytes : int
            Size from which on files roll.

        Raises
        ------
        LogError
            Acknowledged records behind ``after`` are missing or damaged (says which, file and
            byte), the log is another's or of another format version, or the system refuses.
        """
        assert len(identity.encode()) <= IDENTITY_BYTES_MAX
        assert 0 <= after < LSN_MAX
        path = str(directory)
        notes = Notes(disk, path, identity)
        try:
            disk.make_directory(path)
            found = recover(disk, path, identity, notes, after=after, accept_loss=accept_loss)
            notes.write(found.next_lsn - 1)
            return cls(
                disk,
                path,
                identity,
                notes,
                files=found.files,
                next_lsn=found.next_lsn,
                goes_on=found.goes_on,
                skipped=found.skipped,
                file_bytes=file_bytes,
            )
        except OSError as error:
            raise LogError(f"cannot open log {path}", cause=_words(error)) from error

    @property
    def first_lsn(self) -> int:
        """Of the first record kept; ``next_lsn`` where none is."""
        return self._files[0].first_lsn

    @property
    def bytes(self) -> int:
        """What the log's files take, all together."""
        return sum(file.size for file in self._files)

    def append(self, buffers: Sequence[Buffer]) -> int:
        """Append one record; it is in the system's hands, but not durable yet.

        Parameters
        ----------
        buffers : sequence of bytes-like, C-contiguous
            The payload's parts, in order; together at most ``RECORD_BYTES_MAX``. Not joined, not
            kept, and not to be changed before this returns.

        Returns
        -------
        int
            The record's lsn.

        Raises
        ------
        LogError
            The disk is full or fails. The record is not in the log, the ones before it are, and
            the next one may be appended once there is room; unless the log has failed for good.
        """
        self._check()
        size = crc = 0
        for buffer in buffers:
            size += memoryview(buffer).nbytes
            crc = isal_zlib.crc32(buffer, crc)
        assert size <= RECORD_BYTES_MAX
        lsn = self.next_lsn
        current = self._files[-1]
        try:
            if self._stale:
                self._clear_stale()
            if current.size + RECORD_BYTES + size > self._file_bytes and current.first_lsn < lsn:
                self._roll()
                current = self._files[-1]
            start = current.size
            header = record_header(current.seed, lsn, self.synced_lsn, size, crc)
            self._file.write(header, *buffers)
        except OSError as error:
            self._take_back()
            raise LogError(
                f"cannot append record {lsn} to log {self._directory}",
                cause=_words(error),
                hint="free some space; nothing acknowledged is lost",
            ) from error
        current.note(lsn, start)
        current.size = start + RECORD_BYTES + size
        current.next_lsn = lsn + 1
        self.next_lsn = lsn + 1
        return lsn

    def sync(self) -> int:
        """Bring every record to disk whose append returned before this was called.

        Safe beside :meth:`append` and :meth:`read` in another thread.

        Returns
        -------
        int
            The lsn up to which all records are durable, that one with them; also ``synced_lsn``.

        Raises
        ------
        LogError
            The disk fails. What reached it is unknown, and asking again would not tell: the log
            refuses everything from then on, and the process must recover anew.
        """
        with self._one_sync:
            self._check()
            with self._shared:
                last = self.next_lsn - 1
                current = self._file
                rolled, self._rolled = self._rolled, []
                names_new, self._names_new = self._names_new, False
            if last == self.synced_lsn and not names_new:
                return last
            try:
                for _, file in rolled:
                    file.sync()
                current.sync()
                if names_new:
                    self._disk.sync_directory(self._directory)
            except OSError as error:
                self._fail("a sync failed")
                raise LogError(
                    f"cannot bring log {self._directory} to disk", cause=_words(error)
                ) from error
            finally:
                for _, file in rolled:
                    file.close()
            self.synced_lsn = last
            self._notes.write(last)
            return last

    def read(self, after: int, until: int | None = None) -> Iterator[tuple[int, memoryview]]:
        """Yield lsn and payload of the records behind ``after``, each checked.

        Parameters
        ----------
        after : int
            At least ``first_lsn - 1``.
        until : int, optional
            The last one wanted; by default the last that there is now, durable or not.

        Raises
        ------
        LogError
            Records are no longer there, or damaged since; those yielded before were sound.
        """
        last = self.next_lsn - 1 if until is None else min(until, self.next_lsn - 1)
        if after + 1 < self.first_lsn:
            raise LogError(
                f"log {self._directory} begins with record {self.first_lsn}, "
                f"{after + 1} is asked for"
            )
        return self._read(after, last)

    def roll(self) -> None:
        """Begin a new file, so that all before it can be dropped; nothing where it is empty.

        Raises
        ------
        LogError
            As :meth:`append`.
        """
        self._check()
        if self._files[-1].first_lsn == self.next_lsn:
            return
        try:
            self._roll()
        except OSError as error:
            raise LogError(
                f"cannot begin a new file of log {self._directory}", cause=_words(error)
            ) from error

    def drop_before(self, lsn: int) -> None:
        """Remove the files whose records all are at most ``lsn``, but never the last file.

        To be called once a snapshot at ``lsn`` is durable; by the appending lane.

        Raises
        ------
        LogError
            The system refuses; what could not be removed is tried again the next time.
        """
        while len(self._files) > 1 and self._files[0].next_lsn <= lsn + 1:
            file = self._files[0]
            try:
                # One at a time, the oldest first and each for good: a crash leaves no hole.
                if self._disk.exists(file.path):
                    self._disk.remove(file.path)
                self._disk.sync_directory(self._directory)
            except OSError as error:
                raise LogError(f"cannot remove log {file.path}", cause=_words(error)) from error
            with self._shared:
                unneeded = [one for first, one in self._rolled if first == file.first_lsn]
                self._rolled = [pair for pair in self._rolled if pair[0] != file.first_lsn]
            for one in unneeded:
                one.close()
            del self._files[0]

    def close(self) -> None:
        """Let go of all files, nothing synced; again does nothing, everything else fails."""
        self._fail("it is closed")
        with self._one_sync:
            for _, file in self._rolled:
                file.close()
            self._rolled = []
            self._file.close()
            self._notes.close()

    def _read(self, after: int, last: int) -> Iterator[tuple[int, memoryview]]:
        for file in [file for file in self._files if file.next_lsn > after + 1]:
            known = max(0, bisect_left(file.index, (after + 2, 0)) - 1)
            lsn, offset = file.index[known]
            end = file.next_lsn
            reader = FileReader(
                self._disk, file.path, file.size, seed=file.seed, offset=offset, lsn=lsn
            )
            for lsn, payload in reader:
                if lsn > last:
                    return
                if lsn > after:
                    yield lsn, payload
            if reader.problem or reader.lsn < end:
                raise LogError(
                    f"log {file.path} {reader.problem or 'ends too soon'} at byte {reader.offset}, "
                    f"where record {reader.lsn} was"
                )

    def _roll(self) -> None:
        """Go on in a new file; on an OSError nothing has changed."""
        entry, file = self._new_file()
        with self._shared:  # a sync sees both files or neither, so it skips no record
            self._rolled.append((self._files[-1].first_lsn, self._file))
            self._file = file
            self._names_new = True
        self._files.append(entry)

    def _new_file(self) -> tuple[LogFile, File]:
        first = self.next_lsn
        path = str(PurePath(self._directory) / file_name(first))
        header = file_header(self._identity, first)
        if self._disk.exists(path):  # left by an attempt that failed half-way
            self._disk.remove(path)
        file = self._disk.create(path)
        try:
            file.write(header)
        except OSError:
            file.close()
            self._stale = path
            with suppress(OSError):
                self._clear_stale()
            raise
        entry = LogFile(path, first, first, len(header), seed_of(header), [(first, len(header))])
        return entry, file

    def _clear_stale(self) -> None:
        """Remove for good what a failed roll has left: its records would stand in another file."""
        if self._disk.exists(self._stale):
            self._disk.remove(self._stale)
        self._disk.sync_directory(self._directory)
        self._stale = ""

    def _take_back(self) -> None:
        """Cut off what a failed append may have left."""
        try:
            self._file.truncate(self._files[-1].size)
        except OSError:
            self._fail("what a failed append left cannot be cut off")

    def _fail(self, why: str) -> None:
        self._failed = self._failed or why

    def _check(self) -> None:
        if self._failed:
            raise LogError(f"log {self._directory} takes nothing more: {self._failed}")


def _words(error: OSError) -> str:
    return error.strerror or str(error)
