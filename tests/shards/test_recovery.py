"""Recovery: the newest whole snapshot and the log behind it, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamlearn.errors import LogError, SnapshotError
from streamlearn.protocol import Done, encode
from streamlearn.shards.disk import REAL_DISK
from streamlearn.shards.image import Imaging
from streamlearn.shards.log import Log
from streamlearn.shards.recovery import LOG, SNAPSHOTS, Recovered, recover
from streamlearn.shards.shard import Shard, ShardSpec
from tests.shard_parts import job, spec
from tests.shards.test_image import Sheet, until, written
from tests.shards.test_shard import FM, embedded_records_of, records_of

SPEC = spec(job(), 1, 3)
RECORDS = records_of(8, 60)
FM_SPEC = spec(job(model=FM), 1, 3)
FM_RECORDS = embedded_records_of(FM_SPEC, 8, 75)[:60]


def records_for(of: ShardSpec) -> list:
    """Return records that a shard of this model may have in its log."""
    return FM_RECORDS if of is FM_SPEC else RECORDS


@pytest.fixture(params=[SPEC, FM_SPEC], ids=["lr", "fm"])
def of(request) -> ShardSpec:
    return request.param


def expected(lsn: int, of: ShardSpec = SPEC) -> str:
    """Return the digest of the state after a record."""
    made = Shard(of)
    until(made, records_for(of), lsn)
    return made.digest()


def opened(path: Path, of: ShardSpec = SPEC, **more) -> Recovered:
    """Recover, and close the log again."""
    found = recover(REAL_DISK, str(path), of, **more)
    if found.log is not None:
        found.log.close()
    return found


def go_on(path: Path, lsn: int, of: ShardSpec = SPEC, *, snapshot: bool = False) -> None:
    """Recover, apply and log records up to one, and take a snapshot there."""
    found = recover(REAL_DISK, str(path), of)
    assert found.log is not None
    while found.shard.lsn < lsn:
        record = records_for(of)[found.shard.lsn]
        appended = found.log.append([encode(record)])
        found.shard.apply(appended, record)
    found.log.sync()
    found.log.close()
    if snapshot:
        imaging, sheet = Imaging(found.shard), Sheet()
        imaging.want(sheet)
        while imaging.step():
            pass
        written(path / SNAPSHOTS, sheet, of)


def test_empty_directory_is_a_shard_that_begins(tmp_path):
    found = opened(tmp_path / "new")
    assert (found.shard.lsn, found.snapshot_lsn, found.replayed, found.notes) == (0, 0, 0, [])
    assert found.log.next_lsn == 1


def test_log_alone(tmp_path, of):
    go_on(tmp_path, 30, of)
    found = opened(tmp_path, of)
    assert found.shard.digest() == expected(30, of)
    assert (found.replayed, found.snapshot_lsn) == (30, 0)


def test_snapshot_and_the_log_behind_it(tmp_path, of):
    go_on(tmp_path, 20, of, snapshot=True)
    go_on(tmp_path, 45, of)
    found = opened(tmp_path, of)
    assert found.shard.digest() == expected(45, of)
    assert (found.snapshot_lsn, found.replayed) == (20, 25)
    go_on(tmp_path, 60, of)
    assert opened(tmp_path, of).shard.digest() == expected(60, of)
    assert of is SPEC or found.shard.table.arena.nbytes > 0


def test_snapshot_alone(tmp_path, of):
    go_on(tmp_path, 20, of, snapshot=True)
    for file in (tmp_path / LOG).iterdir():
        file.unlink()
    found = opened(tmp_path, of)
    assert found.shard.digest() == expected(20, of)
    assert found.log.next_lsn == 21


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def rows_file(root: Path, prefix: str = "rows") -> Path:
    """Return the largest file of the newest snapshot."""
    newest = max(path for path in root.iterdir() if path.is_dir())
    return max(newest.glob(f"{prefix}.*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(("of", "file"), [(SPEC, "rows"), (FM_SPEC, "rows"), (FM_SPEC, "vectors")])
def test_damaged_snapshot_is_passed_over(tmp_path, of, file):
    go_on(tmp_path, 20, of, snapshot=True)
    go_on(tmp_path, 40, of, snapshot=True)
    go_on(tmp_path, 50, of)
    damage(rows_file(tmp_path / SNAPSHOTS, file))
    found = opened(tmp_path, of)
    assert found.shard.digest() == expected(50, of)
    assert found.snapshot_lsn == 20
    assert len(found.notes) == 1


def test_damaged_snapshot_whose_log_is_gone_is_refused(tmp_path):
    small = spec(job(log_file_bytes=1000), 1, 3)
    go_on(tmp_path, 40, small, snapshot=True)
    log = Log.open(REAL_DISK, tmp_path / LOG, small.identity, after=40, file_bytes=1000)
    log.drop_before(40)
    assert log.first_lsn > 1
    log.close()
    assert opened(tmp_path, small).shard.digest() == expected(40, small)
    damage(rows_file(tmp_path / SNAPSHOTS))
    with pytest.raises(LogError) as caught:
        opened(tmp_path, small)
    assert "rows." in str(caught.value)  # says of the snapshot, too
    assert caught.value.hint


def test_records_cut_from_the_end_are_noted(tmp_path):
    go_on(tmp_path, 30)
    last = max((tmp_path / LOG).glob("*"), key=lambda path: path.stat().st_size)
    with last.open("ab") as file:
        file.write(b"\x17" * 100)
    found = opened(tmp_path)
    assert found.shard.digest() == expected(30)
    assert len(found.notes) == 1
    assert opened(tmp_path).notes == []


def test_lost_records_are_refused_unless_told_so(tmp_path):
    go_on(tmp_path, 30)
    log = max((tmp_path / LOG).glob("*"), key=lambda path: path.stat().st_size)
    damage(log)
    with pytest.raises(LogError):
        opened(tmp_path)
    found = opened(tmp_path, accept_loss=True)
    assert 0 < found.shard.lsn < 30
    assert found.shard.digest() == expected(found.shard.lsn)
    assert found.notes
    # the loss is accepted once; then it is the state
    assert opened(tmp_path).shard.lsn == found.shard.lsn


@pytest.mark.parametrize("other", [spec(job(), 0, 3), spec(job(model={"alpha": 0.3}), 1, 3)])
def test_files_of_another_shard_are_refused(tmp_path, other):
    go_on(tmp_path, 5)
    with pytest.raises(LogError):
        opened(tmp_path, other)
    go_on(tmp_path, 6, snapshot=True)
    with pytest.raises(SnapshotError):
        opened(tmp_path, other)


def test_record_that_no_shard_wrote_is_refused(tmp_path):
    go_on(tmp_path, 5)
    log = Log.open(REAL_DISK, tmp_path / LOG, SPEC.identity)
    log.append([encode(Done())])
    log.close()
    with pytest.raises(LogError, match="record 6 of the log cannot be applied"):
        opened(tmp_path)


def test_without_a_log_the_snapshot_is_the_state(tmp_path):
    plain = spec(job(durability="snapshot"), 1, 3)
    found = opened(tmp_path, plain)
    assert found.log is None
    until(found.shard, RECORDS, 25)
    imaging, sheet = Imaging(found.shard), Sheet()
    imaging.want(sheet)
    while imaging.step():
        pass
    written(tmp_path / SNAPSHOTS, sheet, plain)
    again = opened(tmp_path, plain)
    assert (again.shard.lsn, again.log) == (25, None)
    assert again.shard.digest() == expected(25, plain)
    assert not (tmp_path / LOG).exists()


def signature_free(durability: str) -> ShardSpec:
    """Return a spec whose identity does not depend on how durable it is."""
    of_job = job(durability=durability)
    return ShardSpec(1, 3, of_job, "same", 100_000)


def test_job_may_keep_a_log_no_more_and_again(tmp_path):
    logged, plain = signature_free("log"), signature_free("snapshot")
    go_on(tmp_path, 10, logged)
    found = opened(tmp_path, plain)
    assert (found.shard.lsn, found.log) == (10, None)
    until(found.shard, RECORDS, 30)
    imaging, sheet = Imaging(found.shard), Sheet()
    imaging.want(sheet)
    while imaging.step():
        pass
    written(tmp_path / SNAPSHOTS, sheet, plain)
    assert opened(tmp_path, plain).shard.digest() == expected(30, plain)
    go_on(tmp_path, 45, logged)
    assert opened(tmp_path, logged).shard.digest() == expected(45, logged)


def test_state_does_not_depend_on_where_snapshots_were(tmp_path, of):
    rng = np.random.default_rng(2)
    for number in range(3):
        path = tmp_path / str(number)
        for lsn in sorted({*rng.integers(1, 60, 4).tolist(), 60}):
            go_on(path, lsn, of, snapshot=bool(rng.integers(2)))
        assert opened(path, of).shard.digest() == expected(60, of)
