"""The log: what is appended is read back, what fails is not in it, what is lost is told."""

import errno
import os
import random
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from streamlearn.errors import LogError
from streamlearn.shards.disk import RealDisk, RealFile, StrPath
from streamlearn.shards.log import Log
from streamlearn.shards.log_format import file_header, file_name
from tests.sim.disk import Faults, SimDisk

IDENTITY = "job 0123 shard 0 of 2"
WHERE = "/log"


@pytest.fixture
def disk():
    return SimDisk(random.Random(1))


def opened(disk, **settings):
    settings.setdefault("file_bytes", 1000)
    return Log.open(disk, WHERE, IDENTITY, **settings)


def filled(disk, count, *, file_bytes=1000):
    log = opened(disk, file_bytes=file_bytes)
    for lsn in range(1, count + 1):
        assert log.append([body(lsn)]) == lsn
    assert log.sync() == count
    return log


def body(lsn):
    return b"record %d " % lsn * (lsn % 5)


def contents(log, after=0):
    return {lsn: bytes(data) for lsn, data in log.read(after)}


def expected(first, last):
    return {lsn: body(lsn) for lsn in range(first, last + 1)}


def rewrite(disk, path, data):
    disk.remove(path)
    file = disk.create(path)
    file.write(data)
    file.sync()
    file.close()
    disk.sync_directory(str(PurePosixPath(path).parent))


def cut(disk, path, size):
    rewrite(disk, path, disk.read(path)[:size])


def files(disk):
    return [f"{WHERE}/{name}" for name in disk.names(WHERE) if name.endswith(".log")]


def test_new_log_begins_with_record_one(disk):
    log = opened(disk)
    assert (log.first_lsn, log.next_lsn, log.synced_lsn) == (1, 1, 0)
    assert contents(log) == {}
    assert log.skipped == []


def test_what_is_read_is_what_was_appended(disk):
    log = filled(disk, 100)
    assert contents(log) == expected(1, 100)
    assert contents(log, 57) == expected(58, 100)
    assert contents(log, 100) == {}
    assert [lsn for lsn, _ in log.read(10, 20)] == list(range(11, 21))
    log.close()
    again = opened(disk)
    assert contents(again) == expected(1, 100)
    assert (again.first_lsn, again.next_lsn, again.synced_lsn) == (1, 101, 100)
    assert again.skipped == []
    assert again.bytes == log.bytes == sum(disk.size(path) for path in files(disk))


def test_buffers_of_any_kind_are_gathered(disk):
    log = opened(disk)
    numbers = np.arange(5, dtype=np.uint64)
    log.append([b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b"", numbers])
    log.append([])
    assert contents(log) == {1: b"abc" + numbers.tobytes(), 2: b""}


def test_files_roll_at_their_size_and_hold_whole_records(disk):
    log = filled(disk, 100)
    assert len(files(disk)) > 3
    assert all(disk.size(path) <= 1000 for path in files(disk))
    log.append([bytes(5000)])
    log.append([b"x"])
    assert contents(log, 100) == {101: bytes(5000), 102: b"x"}


def test_appending_goes_on_after_opening(disk):
    filled(disk, 30).close()
    log = opened(disk)
    before = files(disk)
    for lsn in range(31, 61):
        assert log.append([body(lsn)]) == lsn
    log.close()
    assert contents(opened(disk)) == expected(1, 60)
    assert before == files(disk)[: len(before)]


def test_large_files_are_read_from_the_middle(tmp_path):
    disk = RealDisk()
    log = Log.open(disk, tmp_path, IDENTITY, file_bytes=8 << 20)
    for lsn in range(1, 301):
        log.append([lsn.to_bytes(8, "little"), bytes(60_000)])
    for after in (0, 1, 17, 150, 299):
        found = [(lsn, int.from_bytes(data[:8], "little")) for lsn, data in log.read(after)]
        assert found == [(lsn, lsn) for lsn in range(after + 1, 301)]
    log.close()
    log = Log.open(disk, tmp_path, IDENTITY)
    assert [lsn for lsn, _ in log.read(200)] == list(range(201, 301))
    log.close()


def test_record_larger_than_what_is_read_at_once(tmp_path):
    log = Log.open(RealDisk(), tmp_path, IDENTITY)
    data = np.random.default_rng(1).integers(0, 256, 20 << 20, np.uint8).tobytes()
    log.append([b"small"])
    log.append([data])
    log.append([b"after"])
    log.close()
    log = Log.open(RealDisk(), tmp_path, IDENTITY)
    assert contents(log) == {1: b"small", 2: data, 3: b"after"}
    log.close()


def test_dropping_removes_whole_files_that_a_snapshot_holds(disk):
    log = filled(disk, 100)
    before = len(files(disk))
    log.drop_before(50)
    assert len(files(disk)) < before
    assert 1 < log.first_lsn <= 51
    assert contents(log, 50) == expected(51, 100)
    with pytest.raises(LogError, match=f"begins with record {log.first_lsn}, 1 is asked for"):
        log.read(0)
    log.close()
    assert contents(opened(disk, after=50), 50) == expected(51, 100)


def test_last_file_is_never_dropped(disk):
    log = filled(disk, 20)
    log.drop_before(20)
    assert len(files(disk)) == 1
    log.append([body(21)])
    log.close()
    assert contents(opened(disk, after=20), 20) == expected(21, 21)


def test_rolling_makes_all_before_it_droppable(disk):
    log = filled(disk, 20)
    log.roll()
    log.roll()
    log.drop_before(20)
    assert files(disk) == [f"{WHERE}/{file_name(21)}"]
    assert (log.first_lsn, log.next_lsn) == (21, 21)


def test_files_not_synced_yet_can_be_dropped(disk):
    log = opened(disk)
    for lsn in range(1, 61):
        log.append([body(lsn)])
    log.drop_before(50)
    assert log.sync() == 60
    disk.crash()
    assert contents(opened(disk, after=50), 50) == expected(51, 60)


def test_log_behind_the_snapshot_begins_anew(disk):
    filled(disk, 20).close()
    log = opened(disk, after=30)
    assert (log.first_lsn, log.next_lsn) == (31, 31)
    assert "ends with record 20 and begins anew behind the snapshot, with 31" in log.skipped[0]
    assert log.append([b"x"]) == 31
    log.sync()
    disk.crash()
    assert contents(opened(disk, after=30), 30) == {31: b"x"}


def test_torn_tail_is_cut_and_told(disk):
    log = filled(disk, 5)
    log.append([bytes(100)])
    log.close()
    (path,) = files(disk)
    cut(disk, path, disk.size(path) - 7)
    log = opened(disk)
    assert contents(log) == expected(1, 5)
    (sentence,) = log.skipped
    assert f"{path} ends inside a record at byte " in sentence
    assert "125 bytes from there on cut away; nothing acknowledged is lost" in sentence
    assert log.append([b"six"]) == 6
    log.close()
    log = opened(disk)
    assert contents(log, 5) == {6: b"six"}
    assert log.skipped == []


def test_cut_is_on_disk_before_anything_is_appended(disk):
    log = filled(disk, 5)
    log.append([bytes(100)])
    log.close()
    (path,) = files(disk)
    cut(disk, path, disk.size(path) - 7)
    size = disk.size(path) - 125
    opened(disk)
    for seed in range(50):
        assert disk.after_crash(random.Random(seed)).size(path) == size


def test_what_a_killed_process_wrote_is_brought_to_disk_by_opening(disk):
    log = opened(disk)
    log.append([b"one"])
    disk.kill()
    assert opened(disk).synced_lsn == 1
    for seed in range(50):
        left = disk.after_crash(random.Random(seed))
        assert contents(opened(left)) == {1: b"one"}


@pytest.mark.parametrize("where", [70, 200, 500])
def test_damage_of_acknowledged_records_is_refused(disk, where):
    filled(disk, 60).close()
    path = files(disk)[1]
    data = bytearray(disk.read(path))
    data[where] ^= 4
    rewrite(disk, path, bytes(data))
    before = disk.contents()
    with pytest.raises(LogError, match="to 60 were acknowledged and are lost") as refused:
        opened(disk)
    assert path in refused.value.message
    assert "at byte" in refused.value.message
    assert "accept the loss" in refused.value.hint
    assert disk.contents() == before  # nothing is cut by a log that refuses


def test_accepted_loss_ends_the_log_before_the_damage(disk):
    filled(disk, 60).close()
    path = files(disk)[1]
    data = bytearray(disk.read(path))
    data[300] ^= 4
    rewrite(disk, path, bytes(data))
    log = opened(disk, accept_loss=True)
    last = log.next_lsn - 1
    assert 0 < last < 60
    assert contents(log) == expected(1, last)
    assert f"acknowledged records {last + 1} to 60 are lost" in log.skipped[0]
    assert log.append([b"anew"]) == last + 1
    log.sync()
    disk.crash()
    log = opened(disk)
    assert contents(log, last) == {last + 1: b"anew"}


def test_damage_that_a_snapshot_covers_is_no_loss(disk):
    filled(disk, 60).close()
    path = files(disk)[0]
    rewrite(disk, path, b"rubbish")
    log = opened(disk, after=40)
    assert contents(log, 40) == expected(41, 60)


def test_missing_file_in_the_middle_is_refused(disk):
    filled(disk, 60).close()
    disk.remove(files(disk)[1])
    with pytest.raises(LogError, match=r"begins with record \d+ where \d+ belongs; records \d+ to"):
        opened(disk)


def test_missing_beginning_is_refused(disk):
    log = filled(disk, 60)
    log.drop_before(40)
    log.close()
    with pytest.raises(LogError, match=r"records 1 to 60 were acknowledged and are lost"):
        opened(disk)
    with pytest.raises(LogError, match=r"records 6 to 60 were acknowledged and are lost"):
        opened(disk, after=5)


@pytest.mark.parametrize("missing", [1, 30, 60])
def test_missing_end_is_refused(disk, missing):
    filled(disk, 60, file_bytes=1 << 20).close()
    (path,) = files(disk)
    bytes_kept = len(file_header(IDENTITY, 1)) + sum(
        32 + len(body(n)) for n in range(1, 61 - missing)
    )
    cut(disk, path, bytes_kept)
    with pytest.raises(LogError, match=f"records {61 - missing} to 60 were acknowledged"):
        opened(disk, file_bytes=1 << 20)


def test_missing_log_is_refused(disk):
    filled(disk, 60).close()
    for path in files(disk):
        disk.remove(path)
    with pytest.raises(LogError, match="records 1 to 60 were acknowledged and are lost"):
        opened(disk)
    assert opened(disk, after=60).next_lsn == 61


def test_claims_in_records_stand_in_for_lost_notes(disk):
    log = filled(disk, 20, file_bytes=1 << 20)
    log.append([b"x" * 30])
    log.close()
    disk.remove(f"{WHERE}/durable")
    (path,) = files(disk)
    data = bytearray(disk.read(path))
    data[100] ^= 1
    rewrite(disk, path, bytes(data))
    with pytest.raises(LogError, match="to 20 were acknowledged and are lost"):
        opened(disk)


def test_unsynced_records_behind_a_hole_are_no_loss(disk):
    log = filled(disk, 3)
    for lsn in (4, 5, 6):
        log.append([body(lsn)])
    log.close()
    (path,) = files(disk)
    data = bytearray(disk.read(path))
    at = len(file_header(IDENTITY, 1)) + sum(32 + len(body(n)) for n in range(1, 4))
    data[at : at + 32 + len(body(4))] = bytes(32 + len(body(4)))
    rewrite(disk, path, bytes(data))
    log = opened(disk)
    assert contents(log) == expected(1, 3)
    assert "nothing acknowledged is lost" in log.skipped[0]


def test_damaged_notes_are_told_and_harmless(disk):
    filled(disk, 10).close()
    rewrite(disk, f"{WHERE}/durable", b"x" * 31)
    log = opened(disk)
    assert contents(log) == expected(1, 10)
    assert log.skipped == ["/log/durable has notes that are damaged or not whole"]


def test_notes_stay_short(disk):
    log = opened(disk)
    for _ in range(6000):
        log.append([])
        log.sync()
    assert disk.size(f"{WHERE}/durable") <= 1 << 16
    log.close()
    assert opened(disk).next_lsn == 6001


def test_log_of_another_shard_is_refused(disk):
    filled(disk, 5).close()
    with pytest.raises(LogError, match="is of 'job 0123 shard 0 of 2', expected 'job 9'"):
        Log.open(disk, WHERE, "job 9", accept_loss=True)


def test_other_format_version_is_told_from_damage(disk, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("streamlearn.shards.log_format.FORMAT_VERSION", 2)
        filled(disk, 5).close()
    with pytest.raises(LogError, match="has format version 2, expected 1"):
        opened(disk, accept_loss=True)


def test_file_under_another_name_is_refused(disk):
    log = opened(disk)
    log.close()
    rewrite(disk, f"{WHERE}/{file_name(1)}", file_header(IDENTITY, 7))
    with pytest.raises(LogError, match="says that it begins with record 7, expected 1"):
        opened(disk)


def test_unreadable_file_is_not_taken_for_a_damaged_one(disk):
    filled(disk, 20).close()
    before = disk.contents()
    disk.faults = Faults(read_error=1.0)
    with pytest.raises(LogError) as refused:
        opened(disk, accept_loss=True)
    assert refused.value.cause == os.strerror(errno.EIO)
    assert disk.contents() == before


def test_damage_after_opening_is_told_by_reading(disk):
    log = filled(disk, 20, file_bytes=1 << 20)
    (path,) = files(disk)
    disk.flip(path)
    with pytest.raises(LogError, match=r"at byte \d+, where record \d+ was"):
        contents(log)


@pytest.mark.parametrize("fault", ["write_full", "write_error", "write_torn"])
def test_failed_append_leaves_the_log_as_it_was(disk, fault):
    log = filled(disk, 10)
    for lsn in range(11, 41):
        disk.faults = Faults(**{fault: 1.0})
        with pytest.raises(LogError, match=f"cannot append record {lsn} to log"):
            log.append([b"half", bytes(90)])
        assert log.next_lsn == lsn
        disk.faults = Faults()
        assert log.append([body(lsn)]) == lsn
    assert contents(log) == expected(1, 40)
    log.sync()
    disk.crash()
    assert contents(opened(disk)) == expected(1, 40)


def test_full_disk_takes_records_again_when_there_is_room(disk):
    log = filled(disk, 5)
    disk.capacity = disk.size(files(disk)[0]) + disk.size(f"{WHERE}/durable") + 50
    with pytest.raises(LogError) as refused:
        log.append([bytes(100)])
    assert refused.value.cause == os.strerror(errno.ENOSPC)
    assert log.append([b"fits"]) == 6
    disk.capacity = None
    assert log.append([bytes(100)]) == 7
    assert log.sync() == 7
    assert contents(log, 5) == {6: b"fits", 7: bytes(100)}


def test_failed_roll_changes_nothing(disk):
    log = filled(disk, 10)
    disk.faults = Faults(name_error=1.0)
    with pytest.raises(LogError, match="cannot begin a new file"):
        log.roll()
    with pytest.raises(LogError, match="cannot append record 11"):
        log.append([bytes(1000)])
    disk.faults = Faults()
    log.append([bytes(1000)])
    assert contents(log, 10) == {11: bytes(1000)}


def test_failed_sync_ends_the_log(disk):
    log = filled(disk, 10)
    log.append([body(11)])
    disk.faults = Faults(sync_error=1.0)
    with pytest.raises(LogError, match="cannot bring log /log to disk"):
        log.sync()
    disk.faults = Faults()
    for act in (log.sync, lambda: log.append([b"x"]), log.roll):
        with pytest.raises(LogError, match="takes nothing more: a sync failed"):
            act()
    assert log.synced_lsn == 10
    disk.crash()
    assert opened(disk).next_lsn >= 11


@pytest.mark.parametrize("seed", range(20))
def test_what_a_failed_sync_left_to_be_read_is_written_anew(seed):
    disk = SimDisk(random.Random(seed))
    log = filled(disk, 10)
    log.append([body(11)])
    disk.faults = Faults(sync_error=1.0)
    with pytest.raises(LogError):
        log.sync()
    disk.faults = Faults()
    disk.kill()
    again = opened(disk)
    for lsn in range(again.next_lsn, 14):
        again.append([body(lsn)])
    again.sync()
    disk.crash()
    assert contents(opened(disk)) == expected(1, 13)


def test_closed_log_takes_nothing(disk):
    log = filled(disk, 10)
    log.close()
    log.close()
    with pytest.raises(LogError, match="it is closed"):
        log.append([b"x"])


def test_sync_without_anything_new_costs_nothing(disk):
    log = filled(disk, 10)
    calls = disk.calls
    assert log.sync() == 10
    assert disk.calls == calls


def test_syncing_beside_appending_skips_no_record(tmp_path):
    """One thread appends and rolls, another syncs; what a sync says is on disk, is in the files."""
    log = Log.open(RealDisk(), tmp_path, IDENTITY, file_bytes=4000)
    promised = []
    done = threading.Event()

    def sync():
        while not done.is_set():
            promised.append(log.sync())

    syncing = threading.Thread(target=sync)
    syncing.start()
    for lsn in range(1, 2001):
        log.append([body(lsn)])
    done.set()
    syncing.join()
    assert log.sync() == 2000
    assert promised == sorted(promised)
    log.close()
    log = Log.open(RealDisk(), tmp_path, IDENTITY)
    assert contents(log) == expected(1, 2000)
    log.close()


def test_open_files_are_let_go_of(tmp_path):
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(5):
        log = Log.open(RealDisk(), tmp_path, IDENTITY, file_bytes=1000)
        for lsn in range(200):
            log.append([body(lsn)])
        log.sync()
        log.append([b"x"])
        log.roll()
        log.close()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("seed", range(20))
def test_failed_sync_a_restart_and_a_loss_of_power_lose_nothing_promised(seed):
    disk = SimDisk(random.Random(seed))
    log = filled(disk, 10)
    for lsn in range(11, 31):
        log.append([body(lsn)])
    disk.faults = Faults(sync_error=1.0)
    with pytest.raises(LogError):
        log.sync()
    disk.faults = Faults()
    disk.kill()
    promised = opened(disk).synced_lsn
    assert promised == 30
    disk.crash()
    assert contents(opened(disk)) == expected(1, 30)


def test_recovery_waits_for_room_rather_than_trust_what_may_not_be_on_disk(disk):
    log = filled(disk, 5)
    log.append([bytes(100)])
    log.append([bytes(100)])
    log.close()
    (path,) = files(disk)
    cut(disk, path, disk.size(path) - 7)
    disk.capacity = disk.size(path) + disk.size(f"{WHERE}/durable")
    with pytest.raises(LogError, match="cannot recover log"):
        opened(disk)
    assert disk.names(WHERE) == [PurePosixPath(path).name, "durable"]
    disk.capacity = None
    assert contents(opened(disk), 5) == {6: bytes(100)}
    disk.crash()
    assert contents(opened(disk), 5) == {6: bytes(100)}


@pytest.mark.parametrize("seed", range(30))
def test_what_is_read_wrongly_is_not_written_anew(seed):
    disk = SimDisk(random.Random(seed))
    log = filled(disk, 5)
    for lsn in range(6, 11):
        log.append([body(lsn)])
    log.close()
    disk.faults = Faults(read_flip=0.3)
    with suppress(LogError):
        opened(disk).close()
    disk.faults = Faults()
    assert contents(opened(disk)).items() >= expected(1, 5).items()


class Stubborn(RealDisk):
    """A disk on which new files cannot be written, nor removed, while it is told so."""

    stubborn = False

    def create(self, path: StrPath) -> RealFile:
        file = super().create(path)
        if self.stubborn:
            file.close()  # writing to it fails from now on
        return file

    def remove(self, path: StrPath) -> None:
        if self.stubborn:
            raise OSError(errno.EIO, "stubborn")
        super().remove(path)


def test_what_a_failed_roll_leaves_is_gone_before_its_record_stands_elsewhere(tmp_path):
    disk = Stubborn()
    log = Log.open(disk, tmp_path / "log", "me", file_bytes=400)
    log.append([b"a" * 100])
    disk.stubborn = True
    with pytest.raises(LogError):
        log.append([b"b" * 300])  # does not fit, and no new file can be begun
    with pytest.raises(LogError):
        log.append([b"c"])  # would fit, but the new file that failed still stands there
    disk.stubborn = False
    assert log.append([b"c"]) == 2
    assert log.append([b"d" * 300]) == 3
    log.sync()
    log.close()
    again = Log.open(disk, tmp_path / "log", "me", file_bytes=400)
    assert [bytes(body)[:1] for _, body in again.read(0)] == [b"a", b"c", b"d"]
