"""Every point at which a trace of appends, syncs, rolls, drops and snapshots can be cut short.

At each call that changes the disk several crashes are tried, each with its own choice of what of
the unsynced bytes and names is there afterwards, whole, torn or not at all; recovery itself is cut
short in the same way. What was acknowledged must be there, what is there must be what was written.
"""

import hashlib
import random
from functools import cache
from pathlib import Path

import pytest

from streamlearn.errors import LogError, SnapshotError
from streamlearn.protocol import encode
from streamlearn.shards.image import Imaging, snapshot_meta, write_part
from streamlearn.shards.log import Log
from streamlearn.shards.recovery import SNAPSHOTS as IMAGES
from streamlearn.shards.recovery import recover
from streamlearn.shards.shard import Shard as Table
from streamlearn.shards.snapshot import SnapshotWriter, newest, next_sequence, prune
from tests.shard_parts import job, spec
from tests.shards.test_image import Sheet
from tests.shards.test_shard import FM, embedded_records_of
from tests.sim.disk import Faults, SimDisk, SimFile

ROOT = "/shard"
SNAPSHOTS = Path(ROOT) / "snapshots"
IDENTITY = "job 0123 shard 0 of 2"
FILE_BYTES = 1500
STEPS = 300
CRASHES_A_CALL = 3


@cache
def payload(lsn, life=0):
    """Return what record ``lsn`` holds: of its own length, and told from any other life's."""
    return random.Random(lsn * 1000 + life).randbytes(lsn * 37 % 211)


class Shard:
    """What a shard does with its disk; remembers what it has promised.

    Attributes
    ----------
    wrote : dict of int to bytes
        Records of which an append was begun, and what was in them.
    promised : int
        lsn up to which records were said to be durable, by the log or a snapshot.
    """

    def __init__(self, disk, rng, wrote=None, promised=0):
        self.disk = disk
        self.rng = rng
        self.wrote = {} if wrote is None else wrote
        self.promised = promised
        self.kept_lsn = 0  # of the snapshot before the last, whose log is kept
        self.life = 0

    def recover(self):
        """Come up as a shard does; check all that was promised."""
        if self.disk.exists(SNAPSHOTS):  # a snapshot whose writer died has its name, not for good
            self.disk.sync_directory(SNAPSHOTS)
        reader, skipped = newest(SNAPSHOTS, self.disk)
        assert skipped == []
        after = 0
        if reader is not None:
            with reader:
                after = reader.meta["lsn"]
                assert bytes(reader.read("state")) == self.state(after)
        self.kept_lsn = after
        self.log = Log.open(self.disk, f"{ROOT}/log", IDENTITY, after=after, file_bytes=FILE_BYTES)
        last = after
        for lsn, body in self.log.read(after):
            assert lsn == last + 1
            assert bytes(body) == self.wrote[lsn]
            last = lsn
        assert self.log.next_lsn == last + 1
        assert self.promised <= last <= max(self.wrote, default=0)
        assert self.log.synced_lsn == last
        self.promised = last

    def state(self, lsn):
        """Return what all records up to one come to."""
        state = hashlib.blake2b(digest_size=16)
        for one in range(1, lsn + 1):
            state.update(self.wrote[one])
        return state.digest()

    def step(self):
        kind = self.rng.choices(("append", "sync", "roll", "snapshot"), weights=(60, 25, 3, 4))[0]
        getattr(self, kind)()

    def append(self):
        for _ in range(self.rng.randrange(1, 4)):
            lsn = self.log.next_lsn
            body = self.wrote[lsn] = payload(lsn, self.life)
            at = self.rng.randrange(len(body) + 1)
            assert self.log.append([body[:at], body[at:]]) == lsn

    def sync(self):
        self.promised = max(self.promised, self.log.sync())

    def roll(self):
        self.log.roll()

    def snapshot(self):
        lsn = self.log.next_lsn - 1
        with SnapshotWriter(
            SNAPSHOTS, next_sequence(SNAPSHOTS, self.disk), piece_bytes=256, disk=self.disk
        ) as writer:
            with writer.open("state") as blob:
                blob.write(self.state(lsn))
            writer.commit({"kind": "test", "lsn": lsn})
        self.promised = max(self.promised, lsn)
        prune(SNAPSHOTS, 2, trusted=writer.sequence, disk=self.disk)
        self.log.drop_before(self.kept_lsn)
        self.kept_lsn = lsn


def heir(shard, disk, seed):
    """Return a shard that finds ``disk`` and knows what ``shard`` wrote and promised."""
    return Shard(disk, random.Random(seed), dict(shard.wrote), shard.promised)


def try_crashes(shard, seed, *, deep):
    """Recover from several crashes of this moment, and from crashes of some recoveries."""
    for number in range(CRASHES_A_CALL):
        own = seed * CRASHES_A_CALL + number
        disk = shard.disk.after_crash(random.Random(own))
        second = heir(shard, disk, own)
        if deep and number == 0:

            def again(second=second, disk=disk, own=own):
                third = heir(second, disk.after_crash(random.Random(own + 1)), own)
                third.recover()

            disk.before_change = again
        second.recover()
        disk.before_change = None
        second.life = 1
        # it goes on: nothing of the life before may come back behind what is written now
        for _ in range(3):
            second.append()
        third = heir(second, disk.after_crash(random.Random(own + 2)), own)
        third.recover()
        second.sync()
        heir(second, disk.after_crash(random.Random(own + 3)), own).recover()


def run(seed, *, deep):
    """Try crashes at each call of one trace; return how many calls there were."""
    disk = SimDisk(random.Random(seed))
    shard = Shard(disk, random.Random(seed))

    def crash():
        try_crashes(shard, seed * 100_000 + disk.calls, deep=deep and disk.calls % 7 == 0)

    disk.before_change = crash
    shard.recover()
    for _ in range(STEPS):
        shard.step()
    assert len(disk.names(f"{ROOT}/log")) > 2
    return disk.calls


@pytest.mark.parametrize("seed", [1, 2])
def test_no_crash_point_loses_what_was_promised(seed):
    assert run(seed, deep=True) > STEPS


def one_life(shard, rng):
    """Let a shard come up and work for a while under faults; any of them may be its end."""
    disk = shard.disk
    try:
        shard.recover()
        for _ in range(rng.randrange(30)):
            try:
                shard.step()
            except (LogError, SnapshotError):
                if rng.random() < 0.3:
                    return
    except (LogError, SnapshotError, OSError):
        assert disk.fired.total() > 0


@pytest.mark.parametrize("seed", range(20))
def test_faults_deaths_and_losses_of_power_lose_nothing_that_was_promised(seed):
    rng = random.Random(seed)
    disk = SimDisk(rng)
    shard = Shard(disk, rng)
    chances = [rng.choice((0.0, 0.002, 0.02)) for _ in range(5)]
    for life in range(40):
        disk.faults = Faults(*chances)
        disk.capacity = disk.used + 2000 if rng.random() < 0.2 else None
        shard = Shard(disk, rng, shard.wrote, shard.promised)
        shard.life = life
        one_life(shard, rng)
        disk.crash() if rng.random() < 0.5 else disk.kill()
    disk.faults, disk.capacity = Faults(), None
    Shard(disk, rng, shard.wrote, shard.promised).recover()
    assert shard.promised > 40


def nothing(*_args):
    return None


def acknowledged_early(log):
    log.synced_lsn = log.next_lsn - 1
    return log.synced_lsn


@pytest.mark.parametrize(
    ("place", "name", "bug"),
    [
        (SimDisk, "sync_directory", nothing),
        (SimFile, "sync", nothing),
        (Log, "sync", acknowledged_early),
    ],
    ids=["names are not synced", "bytes are not synced", "acknowledged before the sync"],
)
def test_forgotten_syncs_are_caught(monkeypatch, place, name, bug):
    monkeypatch.setattr(place, name, bug)
    with pytest.raises((AssertionError, LogError)):
        run(3, deep=False)


def imaged(shard, disk):
    """Write a snapshot of a shard as it is."""
    imaging, sheet = Imaging(shard), Sheet()
    imaging.want(sheet)
    while imaging.step():
        pass
    root = Path(ROOT) / IMAGES
    with SnapshotWriter(root, next_sequence(root, disk), piece_bytes=256, disk=disk) as writer:
        for part in sheet.parts:
            write_part(writer, part, f"{part.number:03d}")
        writer.commit(snapshot_meta(sheet.meta, shard.spec.job, 1.0))


def test_no_crash_point_loses_an_embedding():
    """A shard's own records and images: what comes up is the shard as it was at that record."""
    of = spec(job(model=FM, log_file_bytes=4000), 1, 3)
    records = embedded_records_of(of, 9, 30)
    twin, digests = Table(of), []
    for lsn, record in enumerate([None, *records]):
        if record is not None:
            twin.apply(lsn, record)
        digests.append(twin.digest())
    assert twin.table.arena.nbytes > 0
    disk = SimDisk(random.Random(1))
    promised = written = 0

    def crash():
        found = recover(disk.after_crash(random.Random(disk.calls)), ROOT, of)
        assert promised <= found.shard.lsn <= written
        assert found.shard.digest() == digests[found.shard.lsn]

    found = recover(disk, ROOT, of)
    disk.before_change = crash
    shard, log = found.shard, found.log
    for lsn, record in enumerate(records, 1):
        written = lsn
        assert log.append([encode(record)]) == lsn
        shard.apply(lsn, record)
        if lsn % 3 == 0:
            promised = log.sync()
        if lsn % 11 == 0:
            imaged(shard, disk)
            promised = lsn
    assert promised > 22
