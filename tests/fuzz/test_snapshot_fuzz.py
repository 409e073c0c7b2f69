import random

import numpy as np

from streamlearn.errors import SnapshotError
from streamlearn.shards.snapshot import SnapshotReader, SnapshotWriter, newest
from tests.fuzz.mutations import KINDS, PIECE_BYTES, bit

MUTATIONS = 4000


def write(root, sequence):
    rng = np.random.default_rng(sequence)
    with SnapshotWriter(root, sequence, piece_bytes=PIECE_BYTES) as writer:
        for name, size in (("keys", 4096), ("weights", 4096), ("names", 700), ("one", 1)):
            with writer.open(name) as blob:
                blob.write(rng.integers(0, 256, size, np.uint8))
        return writer.commit({"kind": "lr", "positions": {"s3://b/k": [sequence, 7]}})


def refused(path):
    try:
        with SnapshotReader.open(path) as reader:
            for name in reader.sizes:
                reader.read(name)
    except SnapshotError:
        return True
    return False


def test_no_mutation_is_accepted(tmp_path):
    older, path = write(tmp_path, 1), write(tmp_path, 2)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    previous = {file.name: file.read_bytes() for file in older.iterdir()}
    rng = random.Random(20)
    tried = dict.fromkeys([kind.__name__ for kind in KINDS] + ["from_previous"], 0)
    for _ in range(MUTATIONS):
        name = rng.choice(sorted(files))
        if rng.random() < 0.02:
            kind, changes = "from_previous", {name: previous[name]}
        else:
            mutate = rng.choice(KINDS)
            kind, changes = mutate.__name__, mutate(rng, files, name)
        changes = {name: data for name, data in changes.items() if data != files[name]}
        if not changes:
            continue
        for name, data in changes.items():
            if data is None:
                (path / name).unlink()
            else:
                (path / name).write_bytes(data)
        assert refused(path), (kind, name)
        tried[kind] += 1
        for name in changes:
            (path / name).write_bytes(files[name])
    assert not refused(path)
    assert sum(tried.values()) > 2000
    assert min(tried.values()) > 0
    print(f"{sum(tried.values())} mutations, none accepted: {tried}")  # noqa: T201 shown by -s


def test_newest_falls_back_whatever_is_mutated(tmp_path):
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    rng = random.Random(21)
    for _ in range(200):
        name = rng.choice(sorted(files))
        changes = bit(rng, files, name)
        (path / name).write_bytes(changes[name])
        reader, skipped = newest(tmp_path)
        assert reader is not None
        with reader:
            assert reader.sequence == 1
        assert len(skipped) == 1
        (path / name).write_bytes(files[name])
