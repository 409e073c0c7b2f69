"""Images of a shard: one cut each, taken while pushes go on, and loaded as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamlearn.errors import SnapshotError
from streamlearn.protocol import Join, Tick
from streamlearn.shards.cut import Part
from streamlearn.shards.image import (
    ImageMeta,
    Imaging,
    load_image,
    read_meta,
    snapshot_meta,
    write_part,
)
from streamlearn.shards.shard import Shard
from streamlearn.shards.snapshot import SnapshotReader, SnapshotWriter, next_sequence
from tests.reference.tables import small_tables
from tests.shard_parts import job, keys_of, mark, push, spec
from tests.shards.test_shard import FM, NET, embedded_records_of, records_of

SPEC = spec(job(ttl_seconds=1200.0, when_full="evict"), 1, 3, features_max=200)
FM_SPEC = spec(job(model=FM, ttl_seconds=1200.0, when_full="evict"), 1, 3, features_max=200)
NET_SPEC = spec(job(model=NET, ttl_seconds=1200.0, when_full="evict"), 1, 3, features_max=200)


@pytest.fixture(params=[SPEC, FM_SPEC, NET_SPEC], ids=["lr", "fm", "net"])
def of(request):
    return request.param


def some_records(of, seed: int, count: int) -> list:
    """Return records of a shard, of embeddings where its model has some."""
    return records_of(seed, count) if of is SPEC else embedded_records_of(of, seed, count)


class Sheet:
    """A sink that keeps what it is given.

    Attributes
    ----------
    takes : int
        Parts that it takes before it is not ready.
    """

    def __init__(self, takes: int = 10**9) -> None:
        self.takes = takes
        self.gone = False
        self.meta: ImageMeta | None = None
        self.parts: list[Part] = []
        self.whole = False

    @property
    def ready(self) -> bool:
        return len(self.parts) < self.takes

    def begin(self, meta: ImageMeta) -> None:
        assert self.meta is None
        self.meta = meta

    def part(self, part: Part) -> None:
        assert not self.whole
        self.parts.append(Part(part.number, part.rows.copy(), part.vectors.copy()))

    def end(self) -> None:
        self.whole = True

    def shard(self, of=SPEC) -> Shard:
        """Return the shard that was taken."""
        assert self.whole
        assert self.meta is not None
        made = Shard(of, Shard.new_table(of, rows=self.meta.features))
        for part in self.parts:
            made.table.insert_rows(part.rows, part.vectors)
        self.meta.restore(made)
        return made


def until(made: Shard, records: list, lsn: int) -> None:
    """Apply records up to one."""
    while made.lsn < lsn:
        made.apply(made.lsn + 1, records[made.lsn])


def written(root: Path, sheet: Sheet, of=SPEC) -> Path:
    """Write an image as a snapshot."""
    assert sheet.meta is not None
    with SnapshotWriter(root, next_sequence(root)) as writer:
        for number, part in enumerate(sheet.parts):
            write_part(writer, part, f"{number:03d}")
        return writer.commit(snapshot_meta(sheet.meta, of.job, 5.0))


def test_image_is_the_moment_when_it_began(of):
    with small_tables():
        records = some_records(of, 4, 80)
        made, still = Shard(of), Shard(of)
        until(made, records, 40)
        until(still, records, 40)
        imaging, sheet = Imaging(made), Sheet()
        imaging.want(sheet)
        assert imaging.busy
        while imaging.step():
            if made.lsn < len(records):
                until(made, records, made.lsn + 1)
        assert not imaging.busy
        assert sheet.meta.lsn == 40
        assert sum(len(part.rows) for part in sheet.parts) == sheet.meta.features
        assert sheet.shard(of).digest() == still.digest()
        until(made, records, len(records))
        until(still, records, len(records))
        assert made.digest() == still.digest()


def test_what_was_loaded_goes_on_as_what_was_taken(of):
    with small_tables():
        records = some_records(of, 5, 120)
        made = Shard(of)
        until(made, records, 60)
        imaging, sheet = Imaging(made), Sheet()
        imaging.want(sheet)
        while imaging.step():
            pass
        again = sheet.shard(of)
        until(again, records, len(records))
        until(made, records, len(records))
        assert made.table.evicted > 0
        assert again.digest() == made.digest()


def test_images_are_taken_one_after_the_other():
    made = Shard(SPEC)
    imaging, first, second = Imaging(made), Sheet(), Sheet()
    imaging.want(first)
    imaging.want(second)
    made.apply(1, Tick(1))
    imaging.step()
    assert (first.meta.lsn, second.meta) == (1, None)
    made.apply(2, Tick(2))
    while imaging.step():
        pass
    assert first.whole
    assert (second.whole, second.meta.lsn) == (True, 2)


def test_image_waits_for_its_sink():
    made = Shard(SPEC)
    imaging, sheet = Imaging(made), Sheet(takes=0)
    imaging.want(sheet)
    assert not imaging.step()
    assert imaging.busy
    sheet.takes = 10**9
    while imaging.step():
        pass
    assert sheet.whole


def test_sink_that_is_gone_ends_its_image():
    made = Shard(SPEC)
    imaging, first, second, third = Imaging(made), Sheet(), Sheet(), Sheet()
    for sheet in (first, second, third):
        imaging.want(sheet)
    imaging.step()
    first.gone = second.gone = True
    while imaging.step():
        pass
    assert (first.whole, second.meta, third.whole) == (False, None, True)
    assert not imaging.busy
    # nothing keeps old lines any more
    assert made.keeper.arguments(1)[0] == 0
    assert made.table.before_change is None


def test_snapshot_is_loaded_as_it_was(tmp_path, of):
    made = Shard(of)
    until(made, some_records(of, 6, 60), 50)
    imaging, sheet = Imaging(made), Sheet()
    imaging.want(sheet)
    while imaging.step():
        pass
    path = written(tmp_path, sheet, of)
    with SnapshotReader.open(path) as reader:
        assert load_image(reader, of).digest() == made.digest()
        names = {name.partition(".")[0] for name in reader.sizes}
        meta = read_meta(reader)
    assert meta == ImageMeta.of(made)
    assert meta.shard == (1, 3)
    assert names == ({"rows"} if of is SPEC else {"rows", "vectors"})


def test_snapshot_whose_embeddings_are_not_those_of_its_rows_is_refused(tmp_path):
    made = Shard(FM_SPEC)
    until(made, embedded_records_of(FM_SPEC, 6, 60), 50)
    imaging, sheet = Imaging(made), Sheet()
    imaging.want(sheet)
    while imaging.step():
        pass
    at = next(i for i, part in enumerate(sheet.parts) if len(part.vectors))
    part = sheet.parts[at]
    for wrong in (part.vectors[:-16], np.append(part.vectors, part.vectors[:16])):
        sheet.parts[at] = Part(part.number, part.rows, wrong)
        path = written(tmp_path, sheet, FM_SPEC)
        with (
            SnapshotReader.open(path) as reader,
            pytest.raises(SnapshotError, match="is damaged") as caught,
        ):
            load_image(reader, FM_SPEC)
        assert f"expected {len(part.vectors)}" in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [spec(SPEC.job, 0, 3), spec(SPEC.job, 1, 4), spec(job(model={"alpha": 0.7}), 1, 3)],
    ids=["index", "of", "job"],
)
def test_snapshot_of_another_shard_is_refused(tmp_path, other):
    imaging, sheet = Imaging(Shard(SPEC)), Sheet()
    imaging.want(sheet)
    while imaging.step():
        pass
    with (
        SnapshotReader.open(written(tmp_path, sheet)) as reader,
        pytest.raises(SnapshotError, match="expected job") as caught,
    ):
        load_image(reader, other)
    assert caught.value.hint


def test_snapshot_of_no_shard_is_refused(tmp_path):
    with SnapshotWriter(tmp_path, 1) as writer:
        path = writer.commit({"kind": "lr"})
    with SnapshotReader.open(path) as reader, pytest.raises(SnapshotError):
        read_meta(reader)
    with SnapshotWriter(tmp_path, 2) as writer:
        path = writer.commit({"kind": "shard", "image": {"signature": 5}})
    with SnapshotReader.open(path) as reader, pytest.raises(SnapshotError, match="another version"):
        read_meta(reader)


def test_meta_holds_what_is_not_rows():
    made = Shard(SPEC)
    made.apply(1, Join("a", 7, 3))
    made.apply(2, Tick(55))
    made.apply(3, push(SPEC, keys_of(SPEC, 1, 2), at=mark(1, "b")))
    made.apply(4, push(SPEC, keys_of(SPEC, 1, 2), at=mark(1, "a")))
    meta = ImageMeta.of(made)
    assert [one.partition for one in meta.marks] == ["a", "b"]
    assert (meta.lsn, meta.minute, meta.features) == (4, 55, 2)
    assert meta.clocks["a"] == [7, 3]
