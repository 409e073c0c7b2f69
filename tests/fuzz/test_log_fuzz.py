"""Random damage to a log: whatever it is, what is read back is a prefix of what was written."""

import random
from collections import Counter

import pytest

from streamlearn.errors import LogError
from streamlearn.shards.log import Log
from tests.fuzz.mutations import KINDS
from tests.sim.disk import SimDisk

MUTATIONS = 6500
IDENTITY = "job 0123 shard 0 of 2"
RECORDS = 60
SYNCED = 50


def body(lsn):
    return random.Random(lsn).randbytes(lsn * 37 % 211)


def put(disk, name, data):
    file = disk.create(f"/log/{name}")
    file.write(data)
    file.sync()
    file.close()
    disk.sync_directory("/log")


def disk_with(files):
    disk = SimDisk(random.Random(1))
    disk.make_directory("/log")
    for name in sorted(files):
        put(disk, name, files[name])
    return disk


@pytest.fixture(scope="module")
def files():
    """Return the files of a log of 60 records, of which 50 were acknowledged."""
    disk = SimDisk(random.Random(1))
    log = Log.open(disk, "/log", IDENTITY, file_bytes=1500)
    for lsn in range(1, RECORDS + 1):
        log.append([body(lsn)])
        if lsn % 10 == 0 and lsn <= SYNCED:
            log.sync()
    log.close()
    return {name: disk.read(f"/log/{name}") for name in disk.names("/log")}


def judge(files, *, accept_loss=False):
    """Open a log; return what became of it. Fails where what is read back was not written."""
    disk = disk_with(files)
    try:
        log = Log.open(disk, "/log", IDENTITY, accept_loss=accept_loss)
    except LogError:
        return "refused"
    found = {lsn: bytes(data) for lsn, data in log.read(0)}
    assert found == {lsn: body(lsn) for lsn in range(1, len(found) + 1)}
    log.close()
    reopened = Log.open(disk, "/log", IDENTITY)  # mended, and says nothing more
    assert reopened.next_lsn == len(found) + 1
    if len(found) < SYNCED and not accept_loss:
        return "lost"
    if len(found) == RECORDS:
        return "whole, told" if log.skipped else "whole"
    return "cut, told" if log.skipped else "cut"


def mutated(rng, files):
    name = rng.choice(sorted(files))
    mutate = rng.choice(KINDS)
    changes = mutate(rng, files, name)
    after = {**files, **changes}
    return mutate.__name__, {one: data for one, data in after.items() if data is not None}


def test_log_that_is_not_damaged_is_whole(files):
    assert len(files) > 5
    assert judge(files) == "whole"


def test_no_damage_is_accepted_in_silence(files):
    rng = random.Random(31)
    outcomes = Counter()
    kinds = Counter()
    while sum(outcomes.values()) < MUTATIONS:
        kind, damaged = mutated(rng, files)
        if damaged == files:
            continue
        outcome = judge(damaged)
        outcomes[outcome] += 1
        kinds[kind] += 1
        if outcome in ("whole", "cut"):
            # The only damage that nothing tells: an end is missing that nobody was promised, which
            # is what a crash leaves, too; or notes were changed for others that are as true.
            logs = {name: data for name, data in damaged.items() if name != "durable"}
            assert all(data == files[name][: len(data)] for name, data in logs.items()), kind
    assert outcomes["lost"] == 0
    assert min(outcomes["refused"], outcomes["cut, told"]) > 50
    assert len(kinds) == len(KINDS)
    print(f"{sum(outcomes.values())} mutations: {dict(outcomes)}")  # noqa: T201 shown by -s


def test_accepted_loss_still_gives_only_what_was_written(files):
    rng = random.Random(32)
    for _ in range(1500):
        kind, damaged = mutated(rng, files)
        outcome = judge(damaged, accept_loss=True)
        # what bears another's name and is sound is no damage
        assert outcome != "refused" or kind == "files_swapped", kind
