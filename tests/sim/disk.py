"""A disk in memory that loses what was not brought to it, and fails when told to.

Stands in for :class:`streamlearn.shards.disk.Disk`. What a crash may take is what that module says
it may, in the widest reading: of everything written, cut, created, renamed or removed since the
last sync of its file or directory each part may be there afterwards or not, whole or torn, in any
order. A journal would keep some of it in order; whoever relies on that fails here.

One disk belongs to one machine: :meth:`SimDisk.crash` is its loss of power, :meth:`SimDisk.kill`
the death of the process alone, which takes open files and locks but nothing written.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeAlias

from streamlearn.shards.disk import Buffer, StrPath

__all__ = ["Faults", "SimDisk", "SimFile", "SimLock"]

SECTOR_BYTES = 512


@dataclass
class Faults:
    """Chances of each fault, per call; all 0 is a sound disk.

    Attributes
    ----------
    write_full, write_error : float
        A write fails with ENOSPC or EIO, nothing written.
    write_torn : float
        A write fails with EIO when a part of it is written.
    sync_error : float
        A sync fails: of what it should have brought to disk, a part was, and the rest never will
        be, though it can still be read until the power goes.
    name_error : float
        Creating, renaming or removing fails with EIO.
    read_error : float
        A read fails with EIO.
    read_flip : float
        One bit of what is read is wrong, this time.
    """

    write_full: float = 0.0
    write_error: float = 0.0
    write_torn: float = 0.0
    sync_error: float = 0.0
    name_error: float = 0.0
    read_error: float = 0.0
    read_flip: float = 0.0


@dataclass
class _Bytes:
    """A file: what is read of it, what is on disk, and what happened to it since."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut there

    def survivor(self, rng: random.Random, mode: str) -> _Bytes:
        image = bytearray(self.durable)
        for offset, data in self.pending:
            _apply(image, offset, data, rng, mode)
        return _Bytes(bytearray(image), bytes(image))


@dataclass
class _Names:
    """A directory: the same of its names. An entry that is None was removed."""

    live: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    pending: list[dict[str, _Node | None]] = field(default_factory=list)

    def change(self, **entries: _Node | None) -> None:
        self.change_all(entries)

    def change_all(self, entries: dict[str, _Node | None]) -> None:
        _rename(self.live, entries)
        self.pending.append(entries)

    def survivor(self, rng: random.Random, mode: str) -> _Names:
        names = dict(self.durable)
        for entries in self.pending:
            if _kept(rng, mode):
                _rename(names, entries)
        after = {name: names[name].survivor(rng, mode) for name in sorted(names)}
        return _Names(after, dict(after))


_Node: TypeAlias = _Bytes | _Names


class SimDisk:
    """Implements ``Disk``.

    Parameters
    ----------
    rng : random.Random
        Decides what a crash takes and when faults fire.
    capacity : int, optional
        Bytes that all files together may have; more is ENOSPC.

    Attributes
    ----------
    faults : Faults
    fired : Counter of str
        Faults that happened, by name; ``crash``, ``kill``, ``full`` and ``flip`` too.
    calls : int
        Calls that would change the disk.
    before_change : callable or None
        Called before each of them; may raise what stands for a death.
    """

    def __init__(self, rng: random.Random, capacity: int | None = None) -> None:
        self.rng = rng
        self.capacity = capacity
        self.faults = Faults()
        self.fired: Counter[str] = Counter()
        self.calls = 0
        self.before_change: Callable[[], None] | None = None
        self._root = _Names()
        self._life = 0
        self._used = 0
        self._locks: list[tuple[_Node, SimLock]] = []

    # what the machine does

    def crash(self) -> None:
        """Lose power: a part of what is not synced is gone; open files and locks are dead."""
        self.fired["crash"] += 1
        self._root = self._root.survivor(self.rng, _mode(self.rng))
        self._used = sum(len(file.live) for _, file in self._files())
        self._end_life()

    def kill(self) -> None:
        """End the process: open files and locks are dead, all that was written can be read."""
        self.fired["kill"] += 1
        self._end_life()

    def after_crash(self, rng: random.Random) -> SimDisk:
        """Return what a crash now might leave, as a disk of its own; this one goes on."""
        other = SimDisk(rng, self.capacity)
        other._root = self._root.survivor(rng, _mode(rng))
        other._used = sum(len(file.live) for _, file in other._files())
        return other

    def flip(self, path: StrPath | None = None) -> str:
        """Flip one bit of a file, any by default, as it lies on the disk; return where, or ''."""
        files = [
            (name, file)
            for name, file in self._files()
            if file.live and (path is None or PurePosixPath(name) == PurePosixPath(path))
        ]
        if not files:
            return ""
        name, file = self.rng.choice(files)
        at, bit = self.rng.randrange(len(file.live)), 1 << self.rng.randrange(8)
        file.live[at] ^= bit
        if at < len(file.durable):
            durable = bytearray(file.durable)
            durable[at] ^= bit
            file.durable = bytes(durable)
        self.fired["flip"] += 1
        return f"{name} at byte {at}"

    @property
    def used(self) -> int:
        """Bytes of all files together."""
        return self._used

    def contents(self) -> dict[str, bytes]:
        """Return every file that can be read now."""
        return {name: bytes(file.live) for name, file in self._files()}

    # what a process asks of it

    def names(self, directory: StrPath) -> list[str]:
        return sorted(self._directory(directory).live)

    def exists(self, path: StrPath) -> bool:
        try:
            self._node(path)
        except OSError:
            return False
        return True

    def make_directory(self, directory: StrPath) -> None:
        at = self._root
        parts = _parts(directory)
        for number, part in enumerate(parts, 1):
            if part not in at.live:
                self._changes("name")
                at.change_all({part: _Names()})
                self._sync_names(at)
            elif number == len(parts) or not self.exists("/".join(parts[: number + 1])):
                self._changes("sync")
                self._sync_names(at)
            below = at.live[part]
            if not isinstance(below, _Names):
                raise _error(errno.ENOTDIR, directory)
            at = below

    def remove_directory(self, directory: StrPath) -> None:
        self._changes("name")
        node = self._directory(directory)
        if node.live:
            raise _error(errno.ENOTEMPTY, directory)
        self._parent(directory).change_all({_parts(directory)[-1]: None})

    def sync_directory(self, directory: StrPath) -> None:
        self._changes("sync")
        self._sync_names(self._directory(directory))

    def create(self, path: StrPath) -> SimFile:
        self._changes("name")
        parent, name = self._parent(path), _parts(path)[-1]
        if name in parent.live:
            raise _error(errno.EEXIST, path)
        node = _Bytes()
        parent.change_all({name: node})
        return SimFile(self, node)

    def append(self, path: StrPath) -> SimFile:
        return SimFile(self, self._file(path))

    def read(self, path: StrPath, offset: int = 0, size: int = -1) -> bytes:
        live = self._file(path).live
        if self._fires("read_error"):
            raise _error(errno.EIO, path)
        end = len(live) if size < 0 else offset + size
        data = bytes(live[offset:end])
        if data and self._fires("read_flip"):
            wrong = bytearray(data)
            wrong[self.rng.randrange(len(wrong))] ^= 1 << self.rng.randrange(8)
            data = bytes(wrong)
        return data

    def read_into(self, path: StrPath, into: memoryview, offset: int = 0) -> int:
        into = into.cast("B")
        data = self.read(path, offset, len(into))
        into[: len(data)] = data
        return len(data)

    def size(self, path: StrPath) -> int:
        return len(self._file(path).live)

    def rename(self, path: StrPath, to: StrPath) -> None:
        self._changes("name")
        node, parent = self._node(path), self._parent(path)
        assert self._parent(to) is parent, "a rename stays in its directory here"
        old, new = _parts(path)[-1], _parts(to)[-1]
        replaced = parent.live.get(new)
        if isinstance(replaced, _Names) and replaced.live:
            raise _error(errno.ENOTEMPTY, to)
        if isinstance(replaced, _Bytes):
            self._used -= len(replaced.live)
        parent.change_all({old: None, new: node})

    def remove(self, path: StrPath) -> None:
        self._changes("name")
        file = self._file(path)
        self._used -= len(file.live)
        self._parent(path).change_all({_parts(path)[-1]: None})

    def lock(self, directory: StrPath, *, shared: bool = False) -> SimLock:
        return self._lock(self._directory(directory), directory, shared)

    def lock_file(self, path: StrPath, text: bytes) -> SimLock:
        if not self.exists(path):
            self.create(path).close()
        lock = self._lock(self._file(path), path, shared=False)
        file = self.append(path)
        file.truncate(0)
        file.write(text)
        file.close()
        return lock

    # the rest

    def _lock(self, node: _Node, path: StrPath, shared: bool) -> SimLock:
        if any(one is node and not (shared and lock.shared) for one, lock in self._locks):
            raise _error(errno.EAGAIN, path)
        lock = SimLock(self, shared)
        self._locks.append((node, lock))
        return lock

    def _end_life(self) -> None:
        self._life += 1
        self._locks.clear()

    def _changes(self, kind: str) -> None:
        """Count a call that changes the disk; it may be the last one, or fail."""
        self.calls += 1
        if self.before_change is not None:
            self.before_change()
        if kind == "name" and self._fires("name_error"):
            raise _error(errno.EIO, "")

    def _fires(self, fault: str) -> bool:
        chance = getattr(self.faults, fault)
        if chance and self.rng.random() < chance:
            self.fired[fault] += 1
            return True
        return False

    def _sync_names(self, node: _Names) -> None:
        if self._fires("sync_error"):
            for entries in node.pending:
                if self.rng.random() < 0.5:
                    _rename(node.durable, entries)
            node.pending.clear()
            raise _error(errno.EIO, "")
        node.pending.clear()
        node.durable = dict(node.live)

    def _files(self) -> list[tuple[str, _Bytes]]:
        found: list[tuple[str, _Bytes]] = []

        def walk(at: _Names, path: str) -> None:
            for name in sorted(at.live):
                node = at.live[name]
                if isinstance(node, _Names):
                    walk(node, f"{path}/{name}")
                else:
                    found.append((f"{path}/{name}", node))

        walk(self._root, "")
        return found

    def _node(self, path: StrPath) -> _Node:
        return self._walk(_parts(path), path)

    def _walk(self, parts: list[str], path: StrPath) -> _Node:
        at: _Node = self._root
        for part in parts:
            if not isinstance(at, _Names):
                raise _error(errno.ENOTDIR, path)
            if part not in at.live:
                raise _error(errno.ENOENT, path)
            at = at.live[part]
        return at

    def _directory(self, path: StrPath) -> _Names:
        return self._is_directory(self._node(path), path)

    def _parent(self, path: StrPath) -> _Names:
        return self._is_directory(self._walk(_parts(path)[:-1], path), path)

    def _is_directory(self, node: _Node, path: StrPath) -> _Names:
        if not isinstance(node, _Names):
            raise _error(errno.ENOTDIR, path)
        return node

    def _file(self, path: StrPath) -> _Bytes:
        node = self._node(path)
        if not isinstance(node, _Bytes):
            raise _error(errno.EISDIR, path)
        return node


class SimFile:
    """Implements ``File``; made by :class:`SimDisk`."""

    def __init__(self, disk: SimDisk, node: _Bytes) -> None:
        self._disk = disk
        self._node = node
        self._life = disk._life
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._node.live)

    def write(self, *buffers: Buffer) -> None:
        self._alive()
        disk = self._disk
        data = b"".join(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
        disk._changes("write")
        room = len(data) if disk.capacity is None else max(0, disk.capacity - disk._used)
        if disk._fires("write_full"):
            raise _error(errno.ENOSPC, "")
        if disk._fires("write_error"):
            raise _error(errno.EIO, "")
        if data and disk._fires("write_torn"):
            self._put(data[: disk.rng.randrange(len(data))])
            raise _error(errno.EIO, "")
        self._put(data[:room])
        if room < len(data):
            disk.fired["full"] += 1
            raise _error(errno.ENOSPC, "")

    def sync(self) -> None:
        self._alive()
        disk, node = self._disk, self._node
        disk._changes("sync")
        if disk._fires("sync_error"):
            node.durable = bytes(node.survivor(disk.rng, "any").durable)
            node.pending.clear()
            raise _error(errno.EIO, "")
        if node.pending:
            image = bytearray(node.durable)
            for offset, data in node.pending:
                _apply(image, offset, data, disk.rng, "all")
            node.durable = bytes(image)
            node.pending.clear()

    def truncate(self, size: int) -> None:
        self._alive()
        self._disk._changes("truncate")
        if size == len(self._node.live):
            return
        assert size < len(self._node.live)
        self._disk._used -= len(self._node.live) - size
        del self._node.live[size:]
        self._node.pending.append((size, None))

    def close(self) -> None:
        self._closed = True

    def _put(self, data: bytes) -> None:
        self._node.pending.append((len(self._node.live), data))
        self._node.live += data
        self._disk._used += len(data)

    def _alive(self) -> None:
        if self._closed or self._life != self._disk._life:
            raise _error(errno.EBADF, "")


class SimLock:
    """Implements ``Lock``; made by :class:`SimDisk`."""

    def __init__(self, disk: SimDisk, shared: bool) -> None:
        self.shared = shared
        self._disk = disk

    def release(self) -> None:
        self._disk._locks = [pair for pair in self._disk._locks if pair[1] is not self]


def _parts(path: StrPath) -> list[str]:
    return [part for part in os.fspath(path).split("/") if part]


def _error(number: int, path: StrPath) -> OSError:
    return OSError(number, os.strerror(number), os.fspath(path))


def _rename(names: dict[str, _Node], entries: dict[str, _Node | None]) -> None:
    for name, node in entries.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _mode(rng: random.Random) -> str:
    """Choose how a crash goes: all of what was pending is there, none, or any part."""
    return rng.choice(("all", "none", "any", "any", "any", "most", "few"))


def _kept(rng: random.Random, mode: str) -> bool:
    return rng.random() < {"all": 1.1, "none": -1.0, "any": 0.5, "most": 0.9, "few": 0.1}[mode]


def _apply(
    image: bytearray, offset: int, data: bytes | None, rng: random.Random, mode: str
) -> None:
    """Let one write or cut reach the disk, or not, or in part."""
    if not _kept(rng, mode):
        return
    if data is None:
        del image[offset:]
        return
    torn = mode not in ("all", "none") and rng.random() < 0.4
    part = _tear(data, rng) if torn else data
    if len(image) < offset:
        image += bytes(offset - len(image))
    image[offset : offset + len(part)] = part


def _tear(data: bytes, rng: random.Random) -> bytes:
    """Return what a write that was under way may leave: a part, with holes, or stale bytes."""
    kind = rng.randrange(4)
    cut = rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:cut]
    if kind == 1:  # the size was there before the bytes
        return data[:cut] + bytes(len(data) - cut)
    if kind == 2:  # sectors of their own, in any order
        sectors = [data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)]
        return b"".join(one if rng.random() < 0.5 else bytes(len(one)) for one in sectors)
    return data[:cut] + rng.randbytes(len(data) - cut)
