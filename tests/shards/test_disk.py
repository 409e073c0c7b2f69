"""What every disk does: the real one, and the one in memory that stands in for it."""

import errno
import os
import random

import pytest

from streamlearn.shards.disk import RealDisk
from tests.sim.disk import SimDisk


@pytest.fixture(params=["real", "sim"])
def disk(request):
    return RealDisk() if request.param == "real" else SimDisk(random.Random(1))


@pytest.fixture
def root(disk, tmp_path):
    path = str(tmp_path / "a" / "b")
    disk.make_directory(path)
    return path


def put(disk, path, data):
    file = disk.create(path)
    file.write(data)
    file.close()


def test_buffers_are_written_one_behind_the_other(disk, root):
    file = disk.create(f"{root}/f")
    file.write(b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b"", b"g")
    file.write(b"h")
    assert file.size == 8
    file.close()
    file.close()
    assert disk.read(f"{root}/f") == b"abcdefgh"
    assert disk.size(f"{root}/f") == 8


def test_more_buffers_than_one_call_takes_are_all_written(disk, root):
    file = disk.create(f"{root}/f")
    file.write(*[bytes([n % 256]) for n in range(5000)])
    file.close()
    assert disk.read(f"{root}/f") == bytes(n % 256 for n in range(5000))


def test_appending_goes_on_at_the_end(disk, root):
    put(disk, f"{root}/f", b"one")
    file = disk.append(f"{root}/f")
    assert file.size == 3
    file.write(b"two")
    file.sync()
    file.close()
    assert disk.read(f"{root}/f") == b"onetwo"


def test_writing_goes_on_where_a_file_was_cut(disk, root):
    file = disk.create(f"{root}/f")
    file.write(b"abcdef")
    file.truncate(2)
    assert file.size == 2
    file.write(b"X")
    file.close()
    assert disk.read(f"{root}/f") == b"abX"


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, -1, b"abcdef"), (2, 3, b"cde"), (4, 9, b"ef"), (6, 1, b""), (9, 4, b""), (9, -1, b"")],
)
def test_read_gives_what_there_is_of_a_range(disk, root, offset, size, expected):
    put(disk, f"{root}/f", b"abcdef")
    assert bytes(disk.read(f"{root}/f", offset, size)) == expected


def test_read_into_fills_memory(disk, root):
    put(disk, f"{root}/f", b"abcdef")
    memory = bytearray(4)
    assert disk.read_into(f"{root}/f", memoryview(memory), 1) == 4
    assert memory == b"bcde"
    assert disk.read_into(f"{root}/f", memoryview(memory), 5) == 1
    assert memory == b"fcde"


def test_names_are_sorted(disk, root):
    for name in ("b", "a", "c"):
        put(disk, f"{root}/{name}", b"")
    disk.make_directory(f"{root}/ab")
    assert disk.names(root) == ["a", "ab", "b", "c"]


def test_rename_replaces_a_file(disk, root):
    put(disk, f"{root}/old", b"old")
    put(disk, f"{root}/new", b"new")
    disk.rename(f"{root}/new", f"{root}/old")
    assert disk.names(root) == ["old"]
    assert disk.read(f"{root}/old") == b"new"


def test_directory_is_renamed_with_what_is_in_it(disk, root):
    disk.make_directory(f"{root}/a")
    put(disk, f"{root}/a/f", b"x")
    disk.rename(f"{root}/a", f"{root}/b")
    disk.sync_directory(root)
    assert disk.read(f"{root}/b/f") == b"x"
    assert not disk.exists(f"{root}/a")


def test_directories_are_made_with_those_above_and_again(disk, tmp_path):
    for _ in range(2):
        disk.make_directory(tmp_path / "x" / "y" / "z")
    assert disk.exists(tmp_path / "x" / "y" / "z")


@pytest.mark.parametrize(
    ("act", "number"),
    [
        (lambda disk, root: disk.create(f"{root}/f"), errno.EEXIST),
        (lambda disk, root: disk.append(f"{root}/none"), errno.ENOENT),
        (lambda disk, root: disk.read(f"{root}/none"), errno.ENOENT),
        (lambda disk, root: disk.size(f"{root}/none"), errno.ENOENT),
        (lambda disk, root: disk.remove(f"{root}/none"), errno.ENOENT),
        (lambda disk, root: disk.names(f"{root}/none"), errno.ENOENT),
        (lambda disk, root: disk.names(f"{root}/f"), errno.ENOTDIR),
        (lambda disk, root: disk.lock(f"{root}/none"), errno.ENOENT),
        (lambda disk, root: disk.make_directory(f"{root}/f/d"), errno.ENOTDIR),
        (lambda disk, root: disk.remove_directory(root), errno.ENOTEMPTY),
    ],
)
def test_errors_are_the_systems(disk, root, act, number):
    put(disk, f"{root}/f", b"x")
    with pytest.raises(OSError, match=os.strerror(number)):
        act(disk, root)


def test_locks_keep_others_out_until_released(disk, root):
    alone = disk.lock(root)
    with pytest.raises(BlockingIOError):
        disk.lock(root, shared=True)
    alone.release()
    alone.release()
    beside = [disk.lock(root, shared=True) for _ in range(2)]
    with pytest.raises(BlockingIOError):
        disk.lock(root)
    for lock in beside:
        lock.release()
    disk.lock(root).release()


def test_locked_file_says_who_holds_it(disk, root):
    lock = disk.lock_file(f"{root}/.lock", b"a longer name")
    lock.release()
    lock = disk.lock_file(f"{root}/.lock", b"me")
    with pytest.raises(BlockingIOError):
        disk.lock_file(f"{root}/.lock", b"you")
    assert disk.read(f"{root}/.lock") == b"me"
    lock.release()


def test_short_writes_lose_nothing(tmp_path, monkeypatch):
    writev, write = os.writev, os.write
    monkeypatch.setattr(os, "writev", lambda fd, buffers: writev(fd, [memoryview(buffers[0])[:3]]))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
    file = RealDisk().create(tmp_path / "f")
    file.write(b"abcdefg", b"", b"hi", b"jklm")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"abcdefghijklm"


def test_size_counts_what_a_failed_write_left(tmp_path, monkeypatch):
    writev, calls = os.writev, []

    def failing(fd, buffers):
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writev(fd, [memoryview(buffers[0])[:3]])

    monkeypatch.setattr(os, "writev", failing)
    file = RealDisk().create(tmp_path / "f")
    with pytest.raises(OSError, match="No space"):
        file.write(b"abcdefg", b"hi")
    assert file.size == 3
    file.close()
