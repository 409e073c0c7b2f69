"""Records that are no text: what is written is what is read, and damage is said."""

from __future__ import annotations

import gzip
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.binary import IDX_TYPES, IdxHeader, Sample, stuff, unstuff
from streamlearn.config import SourceConfig
from streamlearn.errors import DataError
from streamlearn.messages import Position
from streamlearn.net.sources.uri import open_source
from streamlearn.online.formats import Deep, open_format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.stream import Stream
from tests.net.sources.test_idx import idx_of
from tests.net.sources.test_unpacking import tar_of
from tests.online.test_images import image_of, npy

NAMES = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.binary(max_size=2000))
def test_bytes_come_back(data):
    assert unstuff(stuff(data)) == data


@given(
    st.sampled_from(list(IDX_TYPES)),
    st.lists(st.integers(1, 1 << 32), min_size=1, max_size=3).map(tuple),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20),
)
def test_a_header_comes_back(type_, shape, labelled, labels):
    header = IdxHeader(type_, shape, labelled, labels)
    record = header.encode()
    assert b"\n" not in record
    assert IdxHeader.decode(record) == header


@pytest.mark.parametrize(
    "record", [b"", b"idx", b"1,2,3", b"idx ubyte x none ", b"idx ulong 1 none ", b"\xff idx 1 1 1"]
)
def test_what_is_no_header_is_refused(record):
    with pytest.raises(DataError, match="expected the first record of an idx file"):
        IdxHeader.decode(record)


@given(
    NAMES,
    st.lists(
        st.tuples(NAMES, st.none() | st.binary(max_size=300)), max_size=5
    ).map(tuple),
    st.integers(0, 1 << 50),
)  # fmt: skip
def test_a_sample_comes_back_as_a_line_with_ends_of_its_own(key, members, too_long):
    sample = Sample(key, members, too_long)
    record = sample.encode()
    assert b"\n" not in record
    assert record.endswith(b".")
    assert not record.startswith(b"\xef\xbb\xbf")
    assert Sample.decode(record) == sample


@given(st.binary(max_size=100))
def test_damage_to_a_sample_is_said(tail):
    record = Sample("a/1", (("png", b"12345"), ("cls", b"7"))).encode()
    for damaged in (record[:-1], record[:20], tail.replace(b"\n", b""), stuff(b"S" + tail)):
        with pytest.raises(DataError):
            Sample.decode(damaged)


# ---------------------------------------------------------------- from storage to minibatches


async def examples(config, *, skipped=0, labelled=True):
    """Return labels, dense parts and bad records of a source, resumed behind so many records."""
    source = open_source(config)
    format_ = open_format(config, deep=Deep("classes", 10), labelled=labelled)
    labels, dense, bad = [], [], []
    for partition in await source.partitions():
        header = await source.header(partition) if format_.first_line else None
        parser = format_.parser(header)
        position = Position()
        if skipped:
            position = Position(offset=await _offset(source, partition, format_, skipped))
        due = format_.has_header and position.offset == 0
        stream = Stream(partition, parser, due, skipped, position.offset)
        batch = Minibatch.of(format_, 7, FEATURES_PER_RECORD_MAX)
        async with aclosing(source.read(partition, position)) as blocks:
            async for block in blocks:
                for work in stream.minibatches(block, lambda made=batch: made, 1.0):
                    labels += batch.labels[: batch.rows].tolist()
                    dense += list(batch.dense[: batch.rows].copy())
                    bad += [(one.reason, one.detail) for one in work.bad_records(format_)]
                block.release()
    await source.aclose()
    return labels, np.array(dense), bad


async def _offset(source, partition, format_, records):
    """Return where a partition is behind so many records."""
    plain = b""
    async with aclosing(source.read(partition, Position())) as blocks:
        async for block in blocks:
            plain += block.buffer[block.start : block.end].tobytes()
            block.release()
    lines = plain.split(b"\n")[: records + format_.has_header]
    return sum(len(line) + 1 for line in lines)


LABELS = np.random.default_rng(7).integers(0, 10, 300).astype(np.uint8)
PIXELS = np.random.default_rng(8).integers(0, 256, (300, 9, 8), np.uint8)
DENSE = PIXELS.reshape(300, 72) / np.float32(255)


@pytest.mark.parametrize("skipped", [0, 1, 123, 300])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
async def test_idx_files_become_minibatches(tmp_path, compress, skipped):
    (tmp_path / "train-images-idx3-ubyte.x").write_bytes(compress(idx_of(PIXELS)))
    (tmp_path / "train-labels-idx1-ubyte.x").write_bytes(compress(idx_of(LABELS)))
    config = SourceConfig(uri=(str(tmp_path),), format="idx", block_bytes=4096)
    labels, dense, bad = await examples(config, skipped=skipped)
    assert (labels, bad) == (LABELS[skipped:].tolist(), [])
    np.testing.assert_array_equal(dense.reshape(-1, 72), DENSE[skipped:])


async def test_idx_files_need_labels_that_go_with_them(tmp_path):
    (tmp_path / "images-idx3-ubyte").write_bytes(idx_of(PIXELS))
    config = SourceConfig(uri=(str(tmp_path),), format="idx")
    with pytest.raises(DataError, match=r"there are no labels: there is no .*/labels-idx1-ubyte"):
        await examples(config)
    assert len((await examples(config, labelled=False))[0]) == 300
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx_of(LABELS[1:]))
    with pytest.raises(DataError, match=r"has 300 items, but .*labels-idx1-ubyte has 299 labels"):
        await examples(config)


@pytest.mark.parametrize("skipped", [0, 1, 123, 300])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
async def test_archives_of_samples_become_minibatches(tmp_path, compress, skipped):
    members = {}
    for i in range(300):
        name = f"d/{i:04}"
        members |= {f"{name}.png": image_of(PIXELS[i]), f"{name}.cls": b"%d" % LABELS[i]}
    members["d/0007.cls"] = b"11"
    members["d/0200.png"] = members["d/0200.png"][:50]
    (tmp_path / "s.tar").write_bytes(compress(tar_of(members)))
    config = SourceConfig(
        uri=(str(tmp_path),), format="samples", image_mode="L", block_bytes=4096
    )  # fmt: skip
    labels, dense, bad = await examples(config, skipped=skipped)
    good = [i for i in range(skipped, 300) if i not in (7, 200)]
    assert labels == LABELS[good].tolist()
    np.testing.assert_array_equal(dense.reshape(-1, 72), DENSE[good])
    wrong = [("label", "label '11' of the sample 'd/0007' is not a whole number from 0 to 9")]
    assert bad[: skipped <= 7] == wrong[: skipped <= 7]
    assert [reason for reason, _ in bad] == ["label"] * (skipped <= 7) + ["image"] * (
        skipped <= 200
    )


async def test_samples_longer_than_blocks_and_too_long_ones(tmp_path):
    arrays = [np.full(70_000, i, np.uint8) for i in range(3)]
    members = {}
    for i, array in enumerate(arrays):
        members |= {f"{i}.npy": npy(array), f"{i}.cls": b"%d" % i}
        members |= {f"long{i}.npy": npy(np.zeros(1 << 20)), f"long{i}.cls": b"1"}
    (tmp_path / "s.tar").write_bytes(tar_of(members))
    config = SourceConfig(
        uri=(str(tmp_path),), format="samples", sample="npy", block_bytes=4096
    )  # fmt: skip
    labels, dense, bad = await examples(config)
    assert labels == [0, 1, 2]
    np.testing.assert_array_equal(dense, np.array(arrays) / np.float32(255))
    assert [reason for reason, _ in bad] == ["too_long"] * 3
    assert bad[1][1].startswith("the sample 'long1' has 8,388,")
