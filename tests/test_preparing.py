"""What is known before the first record is learned, or said where it cannot be."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamlearn import node
from streamlearn.config import JobConfig, SourceConfig
from streamlearn.errors import DataError
from streamlearn.net.sources.uri import open_source
from streamlearn.online.formats import Deep, open_format
from streamlearn.preparing import first_records
from tests.net.sources.test_idx import IMAGES, LABELS
from tests.net.sources.test_unpacking import tar_of
from tests.online.test_images import npy

if TYPE_CHECKING:
    from pathlib import Path


async def first(config: SourceConfig, *, needed: bool = True, labelled: bool = True):
    """Return header and first records of a source, and the shape that its format knows then."""
    source = open_source(config)
    format_ = open_format(config, deep=Deep("classes", 12), labelled=labelled)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(source.aclose)
        found = await first_records(format_, source, await source.partitions(), needed=needed)
    return *found, format_.dense


async def test_a_header_says_what_minibatches_have(tmp_path: Path) -> None:
    (tmp_path / "images-idx3").write_bytes(IMAGES)
    (tmp_path / "labels-idx1").write_bytes(LABELS)
    header, records, dense = await first(SourceConfig(uri=(str(tmp_path),), format="idx"))
    assert header is not None
    assert header.startswith(b"idx ubyte 5,6 labels ")
    assert records.count(b"\n") == 40
    assert dense == (1, 5, 6)


async def test_it_is_known_however_long_the_first_record_is(tmp_path: Path) -> None:
    members = {"1.npy": npy(np.zeros((300, 1000), np.uint8)), "1.cls": b"1"}
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    config = SourceConfig(uri=(str(tmp_path),), format="samples", sample="npy")
    header, records, dense = await first(config)
    assert dense == (300, 1000)
    assert records == (header or b"") + b"\n"


async def test_what_a_net_needs_to_know_is_an_error_at_once(tmp_path: Path) -> None:
    images = tmp_path / "images-idx3"
    images.write_bytes(IMAGES)
    config = SourceConfig(uri=(str(tmp_path),), format="idx")
    with pytest.raises(DataError) as caught:
        await first(config)
    assert caught.value.message == (
        f"{images}: there are no labels: there is no {tmp_path}/labels-idx1"
    )
    assert await first(config, needed=False) == (None, b"", ())
    assert (await first(config, labelled=False))[2] == (1, 5, 6)
    (tmp_path / "labels-idx1").write_bytes(LABELS[:-1])
    with pytest.raises(DataError, match="has 39 labels, but says that it has 40"):
        await first(config)
    images.write_bytes(b"some text")
    with pytest.raises(DataError, match=f"{images} is no idx file"):
        await first(config)


async def test_arrays_are_checked_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "images-idx3").write_bytes(IMAGES)
    config = SourceConfig(uri=(f"{tmp_path}/images*",), format="idx")
    told = await node.source_check(JobConfig(source=config))
    assert (told["ok"], told["format"]) == (True, "idx")
    (tmp_path / "x.tar").write_bytes(tar_of({"d/1.npy": npy([1.0]), "d/1.cls": b"1"}))
    config = SourceConfig(uri=(f"{tmp_path}/x.tar",), format="samples", sample="npy")
    told = await node.source_check(JobConfig(source=config))
    assert (told["ok"], told["format"], told["first_line"]) == (True, "samples", "d/1: npy, cls")
