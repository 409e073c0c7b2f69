"""The disk in memory: a crash takes only what it may, and all that it may."""

import random

import pytest

from tests.sim.disk import Faults, SimDisk


def put(disk, path, data, *, sync=True):
    file = disk.create(path)
    file.write(data)
    if sync:
        file.sync()
    file.close()


def crashes(disk, count=200):
    return [disk.after_crash(random.Random(seed)).contents() for seed in range(count)]


@pytest.fixture
def disk():
    made = SimDisk(random.Random(7))
    made.make_directory("/d")
    return made


def test_what_is_synced_stays(disk):
    put(disk, "/d/f", b"content")
    disk.sync_directory("/d")
    assert all(left == {"/d/f": b"content"} for left in crashes(disk))


def test_name_that_is_not_synced_may_be_lost(disk):
    put(disk, "/d/f", b"content")
    assert {tuple(left) for left in crashes(disk)} == {(), ("/d/f",)}


def test_bytes_that_are_not_synced_may_be_lost_torn_or_there(disk):
    put(disk, "/d/f", b"synced")
    disk.sync_directory("/d")
    file = disk.append("/d/f")
    file.write(b"written")
    left = {left["/d/f"] for left in crashes(disk)}
    assert {b"synced", b"syncedwritten"} < left
    assert all(data.startswith(b"synced") for data in left)
    assert len(left) > 5


def test_later_write_may_outlive_an_earlier_one(disk):
    put(disk, "/d/f", b"")
    disk.sync_directory("/d")
    file = disk.append("/d/f")
    file.write(b"one")
    file.write(b"two")
    assert b"\0\0\0two" in {left["/d/f"] for left in crashes(disk)}


def test_cut_that_is_not_synced_may_come_undone(disk):
    put(disk, "/d/f", b"abcdef")
    disk.sync_directory("/d")
    file = disk.append("/d/f")
    file.truncate(2)
    assert {left["/d/f"] for left in crashes(disk)} == {b"ab", b"abcdef"}
    file.sync()
    assert {left["/d/f"] for left in crashes(disk)} == {b"ab"}


def test_rename_is_one_step(disk):
    put(disk, "/d/old", b"x")
    disk.sync_directory("/d")
    disk.rename("/d/old", "/d/new")
    assert {tuple(left) for left in crashes(disk)} == {("/d/old",), ("/d/new",)}


def test_removal_that_is_not_synced_may_come_undone(disk):
    put(disk, "/d/f", b"x")
    disk.sync_directory("/d")
    disk.remove("/d/f")
    assert {tuple(left) for left in crashes(disk)} == {(), ("/d/f",)}
    disk.sync_directory("/d")
    assert {tuple(left) for left in crashes(disk)} == {()}


def test_kill_takes_locks_and_open_files_but_nothing_written(disk):
    put(disk, "/d/f", b"x", sync=False)
    disk.lock("/d")
    file = disk.append("/d/f")
    disk.kill()
    with pytest.raises(OSError, match="Bad file"):
        file.write(b"y")
    assert disk.contents() == {"/d/f": b"x"}
    disk.lock("/d")


def test_crash_is_what_after_crash_says_it_may_be(disk):
    put(disk, "/d/f", b"x")
    possible = crashes(disk)
    disk.crash()
    assert disk.contents() in possible


def test_failed_sync_brings_no_later_sync_to_pass(disk):
    put(disk, "/d/f", b"")
    disk.sync_directory("/d")
    file = disk.append("/d/f")
    for number in range(20):
        file.write(b"%02d" % number)
    disk.faults = Faults(sync_error=1.0)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    disk.faults = Faults()
    file.sync()
    assert disk.fired["sync_error"] == 1
    assert len(disk.read("/d/f")) == 40
    left = crashes(disk)[0]["/d/f"]
    assert left != disk.read("/d/f")
    assert all(one["/d/f"] == left for one in crashes(disk))


def test_capacity_ends_a_write_in_the_middle(disk):
    disk.capacity = 10
    file = disk.create("/d/f")
    with pytest.raises(OSError, match="No space"):
        file.write(b"0123456789abc")
    assert disk.read("/d/f") == b"0123456789"
    disk.remove("/d/f")
    put(disk, "/d/g", b"0123456789")


@pytest.mark.parametrize(
    ("fault", "words"),
    [("write_full", "No space"), ("write_error", "Input/output"), ("write_torn", "Input/output")],
)
def test_writes_fail_when_told_to(disk, fault, words):
    file = disk.create("/d/f")
    disk.faults = Faults(**{fault: 1.0})
    with pytest.raises(OSError, match=words):
        file.write(b"0123456789")
    assert disk.fired[fault] == 1
    assert len(disk.read("/d/f")) < 10


def test_reads_fail_or_lie_when_told_to(disk):
    put(disk, "/d/f", b"0123456789")
    disk.faults = Faults(read_flip=1.0)
    assert disk.read("/d/f") != b"0123456789"
    disk.faults = Faults(read_error=1.0)
    with pytest.raises(OSError, match="Input/output"):
        disk.read("/d/f")
    disk.faults = Faults()
    assert disk.read("/d/f") == b"0123456789"


def test_flip_stays(disk):
    put(disk, "/d/f", b"0123456789")
    disk.sync_directory("/d")
    assert disk.flip().startswith("/d/f at byte ")
    damaged = disk.read("/d/f")
    assert damaged != b"0123456789"
    assert all(left["/d/f"] == damaged for left in crashes(disk, 10))


def test_same_seed_same_crash():
    def one(seed):
        disk = SimDisk(random.Random(seed))
        disk.make_directory("/d")
        for name in range(20):
            put(disk, f"/d/{name}", bytes(50), sync=name % 2 == 0)
        disk.crash()
        return disk.contents()

    assert one(5) == one(5)
    assert any(one(seed) != one(5) for seed in range(10))
