import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from streamlearn.errors import SnapshotError
from streamlearn.shards.snapshot import (
    SnapshotReader,
    SnapshotWriter,
    listing,
    newest,
    next_sequence,
    prune,
)

# What changes a disk, by the names that pathlib calls too.
CALLS = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir", "close")


class Killed(BaseException):
    """Stands for SIGKILL: nothing that comes after it in the process has any effect."""


def write(root, sequence, *, piece_bytes=64, kind="lr", fill=0):
    rng = np.random.default_rng(sequence + fill)
    with SnapshotWriter(root, sequence, piece_bytes=piece_bytes) as writer:
        with writer.open("keys") as blob:
            for _ in range(3):
                blob.write(rng.integers(0, 1 << 60, 15, np.uint64))
        with writer.open("empty"):
            pass
        with writer.open("weights") as blob:
            blob.write(rng.random(16, np.float32))
        return writer.commit({"kind": kind, "positions": {"a": [1, 2]}, "examples": sequence})


def contents(reader):
    return reader.meta, {name: bytes(reader.read(name)) for name in reader.sizes}


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "model"


@contextmanager
def system(monkeypatch, act):
    """Let ``act(call, index, real, *args)`` stand for each call that changes the disk."""
    index = -1

    def wrap(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal index
            index += 1
            return act(name, index, real, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name))
        yield


def test_what_is_read_is_what_was_written(root):
    keys = np.arange(1000, dtype=np.uint64)
    pairs = np.zeros(10, [("key", np.uint64), ("weight", np.float32)])
    with SnapshotWriter(root, 3, piece_bytes=100) as writer:
        first, second = writer.open("keys"), writer.open("pairs")
        first.write(keys[:7])
        second.write(pairs)
        first.write(memoryview(keys[7:]))
        first.write(b"")
        first.write(b"tail")
        path = writer.commit({"kind": "lr", "l1": 0.5, "names": ["ä", None]})
    assert path == root / "000000000003"
    with SnapshotReader.open(path) as reader:
        assert reader.meta == {"kind": "lr", "l1": 0.5, "names": ["ä", None]}
        assert (reader.sequence, reader.kind) == (3, "lr")
        assert reader.sizes == {"keys": 8004, "pairs": 120}
        assert bytes(reader.read("keys")) == keys.tobytes() + b"tail"
        assert b"".join(map(bytes, reader.stream("keys"))) == keys.tobytes() + b"tail"
        into = np.ones(10, pairs.dtype)
        reader.read("pairs", into)
        assert (into == pairs).all()


def test_array_with_gaps_is_not_taken(root):
    with SnapshotWriter(root, 1) as writer, pytest.raises(ValueError, match="contiguous"):
        writer.open("keys").write(np.arange(10)[::2])


def test_read_into_another_size_is_refused(root):
    with SnapshotReader.open(write(root, 1)) as reader:
        with pytest.raises(SnapshotError, match="'weights' has 64 bytes, expected 60"):
            reader.read("weights", np.empty(15, np.float32))
        with pytest.raises(SnapshotError, match="lacks the file 'bias', it has empty, keys, wei"):
            reader.read("bias")


def test_short_writes_lose_nothing(root, monkeypatch):
    def act(name, _index, real, *args, **kwargs):
        if name == "write":
            return real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
        return real(*args, **kwargs)

    with system(monkeypatch, act):
        path = write(root, 1)
    with SnapshotReader.open(path) as torn, SnapshotReader.open(write(root / "b", 1)) as whole:
        assert contents(torn) == contents(whole)


def test_leaving_without_commit_leaves_nothing(root):
    with SnapshotWriter(root, 1) as writer:
        writer.open("keys").write(b"123")
        assert [path.name for path in root.iterdir()] == ["000000000001.partial"]
        assert newest(root) == (None, [])
    assert list(root.iterdir()) == []


def test_sequence_is_never_written_twice(root):
    write(root, 1)
    with pytest.raises(SnapshotError, match="it is already there"):
        SnapshotWriter(root, 1)
    with SnapshotWriter(root, 2), pytest.raises(SnapshotError) as refused:
        SnapshotWriter(root, 2)
    assert refused.value.cause == os.strerror(errno.EAGAIN)


def test_next_sequence_is_above_everything_there(root):
    assert next_sequence(root) == 1
    write(root, 4)
    (root / "000000000009.partial").mkdir()
    (root / "notes").mkdir()
    assert next_sequence(root) == 10


def test_writer_takes_the_place_of_a_dead_one(root):
    stale = root / "000000000001.partial"
    stale.mkdir(parents=True)
    (stale / "keys").write_bytes(b"half")
    with SnapshotReader.open(write(root, 1)) as reader:
        assert set(reader.sizes) == {"keys", "empty", "weights"}


# --- what is refused


def test_requirements_name_expected_and_found(root):
    with SnapshotReader.open(write(root, 1)) as reader:
        reader.require(kind="lr", keys=("positions",), blobs=("keys",), examples=1)
        for wanted, complaint in (
            ({"kind": "fm"}, "is of model 'lr', expected 'fm'"),
            ({"keys": ("l1",)}, "lacks the key 'l1', it has examples, kind, positions"),
            ({"index": "exact"}, "lacks the key 'index'"),
            ({"examples": 2}, "has examples = 1, expected 2"),
            ({"blobs": ("bias",)}, "lacks the file 'bias'"),
        ):
            with pytest.raises(SnapshotError, match=complaint):
                reader.require(**({"kind": "lr"} | wanted))


def test_damage_is_named_by_file_and_bytes(root):
    path = write(root, 1)
    flip(path / "keys", 200)
    with (
        SnapshotReader.open(path) as reader,
        pytest.raises(SnapshotError, match="damaged: bytes 192-256 of 'keys' have checksum"),
    ):
        reader.read("keys")


def test_file_that_shrinks_after_opening_is_refused(root):
    with SnapshotReader.open(write(root, 1)) as reader:
        (reader.path / "keys").write_bytes(b"123")
        with pytest.raises(SnapshotError, match="'keys' has 3 bytes, expected 360"):
            reader.read("keys")
        (reader.path / "keys").unlink()
        with pytest.raises(SnapshotError, match="cannot open 'keys'"):
            reader.verify()


def test_newest_says_what_it_skipped(root):
    for sequence in range(1, 6):
        write(root, sequence)
    flip(root / "000000000005" / "weights", 3)
    (root / "000000000004" / "manifest.json").unlink()
    flip(root / "000000000003" / "manifest.json", 70)
    reader, skipped = newest(root)
    assert reader is not None
    with reader:
        assert reader.sequence == 2
    assert len(skipped) == 3
    assert "000000000005 is damaged: bytes 0-64 of 'weights'" in skipped[0]
    assert "'manifest.json' cannot be read (No such file or directory)" in skipped[1]
    assert "'manifest.json' has digest" in skipped[2]


def test_no_snapshots_is_none(root):
    assert newest(root) == (None, [])
    assert listing(root) == []
    assert prune(root, 1) == []
    with pytest.raises(SnapshotError, match="cannot open snapshot"):
        SnapshotReader.open(root / "000000000001")


def test_listing_reads_manifests_only(root, monkeypatch):
    write(root, 1)
    write(root, 2, kind="fm")
    (root / "000000000003").mkdir()
    monkeypatch.setattr(os, "preadv", None)
    first, second, third = listing(root)
    assert (first["sequence"], first["kind"], first["bytes"], first["problem"]) == (
        1,
        "lr",
        424,
        "",
    )
    assert first["blobs"] == {"keys": 360, "empty": 0, "weights": 64}
    assert second["kind"] == "fm"
    assert second["meta"]["examples"] == 2
    assert "is not a whole snapshot" in third["problem"]


# --- pruning


def left(root):
    return sorted(int(path.name) for path in root.iterdir() if path.is_dir())


def test_prune_keeps_the_newest_whole_ones(root):
    for sequence in range(1, 7):
        write(root, sequence)
    (root / "000000000005" / "weights").unlink()
    removed = prune(root, 2)
    assert left(root) == [4, 5, 6]
    assert [int(path.name) for path in removed] == [3, 2, 1]
    (root / "000000000004" / "weights").unlink()
    write(root, 7)
    prune(root, 2, trusted=7)
    assert left(root) == [6, 7]


def test_prune_removes_nothing_before_one_is_known_to_load(root):
    for sequence in range(1, 5):
        write(root, sequence)
    for sequence in (2, 3, 4):
        flip(root / f"{sequence:012d}" / "keys", 9)
    assert prune(root, 1) == []
    reader, _ = newest(root)
    assert reader is not None
    with reader:
        assert reader.sequence == 1


def test_prune_sweeps_dead_writers_and_spares_living_ones(root):
    write(root, 1)
    (root / "000000000002.partial").mkdir()
    with SnapshotWriter(root, 3) as living:
        with living.open("keys") as blob:
            blob.write(b"1")
        prune(root, 1)
        assert sorted(path.name for path in root.iterdir()) == [
            "000000000001",
            "000000000003.partial",
        ]
        living.commit({"kind": "lr"})
    assert left(root) == [1, 3]


def test_prune_spares_what_is_being_read(root):
    write(root, 1)
    write(root, 2)
    with SnapshotReader.open(root / "000000000001") as reader:
        assert prune(root, 1) == []
        reader.verify()
    assert prune(root, 1) == [root / "000000000001"]


def test_prune_spares_what_another_release_wrote(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("streamlearn.shards.snapshot_writer.FORMAT_VERSION", 2)
        write(root, 1)
    write(root, 2)
    assert prune(root, 1) == []
    assert left(root) == [1, 2]


# --- faults


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failing_disk_at_any_call_leaves_the_previous_snapshot(root, monkeypatch, number):
    write(root, 1)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for at in range(1000):
        failed = []

        def act(name, index, real, *args, failed=failed, at=at, **kwargs):
            if index >= at and name in ("write", "fsync", "mkdir", "rename") and not failed:
                failed.append(name)
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        path, refusal = None, None
        with system(monkeypatch, act):
            try:
                path = write(root, 2)
            except SnapshotError as error:
                refusal = error
        if not failed:
            break
        assert path is None
        assert refusal is not None
        assert f"cannot write snapshot {root}/000000000002" in refusal.message
        assert refusal.cause == os.strerror(number)
        assert not list(root.glob("*.partial"))
        assert before.items() <= {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}.items()
        reader, skipped = newest(root)
        assert reader is not None
        assert skipped == []
        with reader:
            if reader.sequence == 2:  # only the name's own way to disk failed: whole all the same
                reader.verify()
                for file in reader.path.iterdir():
                    file.unlink()
                reader.path.rmdir()
            else:
                assert reader.sequence == 1
    assert at > 15
    assert path == root / "000000000002"


def test_full_disk_is_told_in_the_systems_words(root):
    write(root, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SnapshotWriter(root, 2) as writer:
        blob = writer.open("keys")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(SnapshotError, match="000000000002: keys") as refused:
                blob.write(np.zeros(3 << 20, np.uint8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.cause == os.strerror(errno.EFBIG)
    assert left(root) == [1]


class Mortal:
    """Does what it is asked until the ``at``-th call; knows what had reached the disk by then."""

    def __init__(self, at):
        self.at = at
        self.paths = {}
        self.unsynced = set()
        self.renamed = []

    def __call__(self, name, index, real, *args, **kwargs):
        if index >= self.at:
            raise Killed
        result = real(*args, **kwargs)
        if name == "open":
            self.paths[result] = os.fspath(args[0])
            if args[1] & os.O_CREAT:
                self.unsynced.add(self.paths[result])
        elif name == "close":
            del self.paths[args[0]]
        elif name == "fsync":
            path = self.paths[args[0]]
            self.unsynced.discard(path)
            self.renamed = [pair for pair in self.renamed if os.fspath(pair[0].parent) != path]
        elif name == "rename":
            self.renamed.append(args)
        return result

    def bury(self):
        """Do what the kernel does for the dead: close its files, and with them drop its locks."""
        for fd in self.paths:
            os.close(fd)

    def lose_power(self):
        """Take half of what was not brought to disk; of new names, every second."""
        for old, new in self.renamed:
            if self.at % 2:
                new.rename(old)
        for name in self.unsynced:
            for path in (Path(name), Path(name.replace(".partial", ""))):
                if path.exists():
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("power_lost", [False, True])
def test_death_at_any_call_leaves_a_whole_snapshot(tmp_path, monkeypatch, power_lost):
    outcomes = set()
    done = False
    while not done:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        write(root, 1)
        mortal = Mortal(int(root.name))
        with system(monkeypatch, mortal):
            try:
                write(root, 2)
                done = True
            except Killed:
                pass
        mortal.bury()
        if power_lost:
            mortal.lose_power()
        reader, skipped = newest(root)
        assert reader is not None
        assert skipped == []
        with reader:
            assert reader.meta["examples"] == reader.sequence
            assert reader.sequence == 2 or not done
            outcomes.add((reader.sequence, done))
        prune(root, 1)
        assert left(root) == [reader.sequence]
    assert int(root.name) > 20
    assert outcomes == {(1, False), (2, False), (2, True)}


def test_death_while_pruning_leaves_only_whole_ones_and_leavings(root, monkeypatch):
    done = False
    at = 0
    while not done:
        for sequence in (1, 2, 3):
            if not (root / f"{sequence:012d}").exists():
                write(root, sequence)
        mortal = Mortal(at)
        with system(monkeypatch, mortal):
            try:
                prune(root, 1)
                done = True
            except Killed:
                pass
        mortal.bury()
        assert all(row["problem"] == "" for row in listing(root))
        assert listing(root)[-1]["sequence"] == 3
        prune(root, 1)
        assert [path.name for path in root.iterdir()] == ["000000000003"]
        at += 1
    assert at > 15
