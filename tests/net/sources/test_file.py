"""Files, directories and globs."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from streamlearn.errors import ObjectChangedError, SourceError, SourceMissingError
from streamlearn.net.sources.file import FileStore
from streamlearn.net.sources.source import NothingMatchedError, StoredObject


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b.csv",
        "a.csv",
        "note.txt",
        "deep/c.csv",
        "deep/er/d.csv",
        "_SUCCESS",
        ".hidden",
        "_temporary/0/e.csv",
        "deep/.f.csv.crc",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


async def names(uri, root):
    return [stored.uri.removeprefix(f"{root}/") for stored in await FileStore(str(uri)).list()]


async def fetch(stored, start, size):
    into = bytearray(size)
    count = await FileStore(stored.uri).fetch(stored, start, memoryview(into))
    return bytes(into[:count])


async def test_a_file_is_listed_with_what_pins_it(tree):
    path = tree / "a.csv"
    (stored,) = await FileStore(str(path)).list()
    status = path.stat()
    assert stored == StoredObject(
        str(path), 5, f"5-{status.st_mtime_ns}", status.st_mtime_ns / 1e9, settled=False
    )


async def test_a_directory_is_all_files_below_it_but_for_markers_in_order(tree):
    assert await names(tree, tree) == [
        "a.csv",
        "b.csv",
        "deep/c.csv",
        "deep/er/d.csv",
        "note.txt",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        ("[b-z]*", ["b.csv", "deep/c.csv", "deep/er/d.csv", "note.txt"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "deep/c.csv", "deep/er/d.csv"]),
        ("deep/**", ["deep/c.csv", "deep/er/d.csv"]),
        ("*/*.csv", ["deep/c.csv"]),
        ("_*", ["_SUCCESS"]),
    ],
)
async def test_a_glob_is_what_it_matches(tree, pattern, expected):
    got = await names(tree / pattern, tree)
    if pattern == "**/*.csv":
        got = [name for name in got if not name.startswith("_")]
    assert sorted(set(got) - {"_temporary/0/e.csv"}) == expected


async def test_globs_pass_over_directories_that_are_markers(tree):
    assert "_temporary/0/e.csv" not in await names(tree / "**/*.csv", tree)
    assert await names(tree / "_temporary/**/*.csv", tree) == ["_temporary/0/e.csv"]


async def test_a_path_that_exists_is_no_glob(tmp_path):
    (tmp_path / "a[1].csv").write_bytes(b"x")
    (tmp_path / "a1.csv").write_bytes(b"y")
    assert await names(tmp_path / "a[1].csv", tmp_path) == ["a[1].csv"]


async def test_links_are_followed_but_not_in_circles(tree):
    (tree / "deep" / "up").symlink_to(tree)
    (tree / "link.csv").symlink_to(tree / "a.csv")
    (tree / "gone.csv").symlink_to(tree / "nowhere")
    got = await names(tree, tree)
    assert "link.csv" in got
    assert "gone.csv" not in got
    assert len(got) == 6


async def test_what_is_no_file_is_passed_over(tree):
    os.mkfifo(tree / "pipe")
    assert "pipe" not in await names(tree, tree)


@pytest.mark.parametrize("uri", ["file://{}", "{}"])
async def test_a_file_url_and_a_home_are_paths(tree, uri, monkeypatch):
    (stored,) = await FileStore(uri.format(tree / "a.csv")).list()
    assert stored.uri == str(tree / "a.csv")
    monkeypatch.setenv("HOME", str(tree))
    assert (await FileStore("~/a.csv").list())[0].uri == stored.uri


async def test_nothing_matched_says_so(tmp_path):
    for uri in (tmp_path, tmp_path / "*.csv"):
        with pytest.raises(NothingMatchedError, match="no file matches") as caught:
            await FileStore(str(uri)).list()
        assert caught.value.exit_code == 2


async def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(SourceMissingError) as caught:
        await FileStore(str(tmp_path / "none.csv")).list()
    assert str(caught.value) == f"cannot open {tmp_path}/none.csv\ncause: No such file or directory"
    assert not isinstance(caught.value, NothingMatchedError)


async def test_a_file_that_may_not_be_read_is_one_sentence_with_the_next_step(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.csv"
    path.write_bytes(b"x")
    (stored,) = await FileStore(str(path)).list()

    def refuse(*args):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(SourceMissingError) as caught:
            await fetch(stored, 0, 1)
    assert str(caught.value).splitlines() == [
        f"cannot open {path}",
        "cause: Permission denied",
        f"hint: let this user read it: chmod +r {path}",
    ]


async def test_bytes_are_read_from_anywhere(tree):
    (stored,) = await FileStore(str(tree / "deep/c.csv")).list()
    assert await fetch(stored, 0, 4) == b"deep"
    assert await fetch(stored, 5, 100) == b"c.csv"


async def test_a_file_that_grew_shrank_or_was_written_again_is_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"12345")
    (stored,) = await FileStore(str(path)).list()
    for content in (b"123456", b"1", b"54321"):
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
        with pytest.raises(ObjectChangedError, match="changed while it was read"):
            await fetch(stored, 0, 5)


async def test_a_file_that_went_away_is_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"12345")
    (stored,) = await FileStore(str(path)).list()
    path.unlink()
    with pytest.raises(SourceMissingError, match="cannot open"):
        await fetch(stored, 0, 5)


async def test_a_disk_that_fails_is_reported_with_the_place(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_bytes(b"12345")
    (stored,) = await FileStore(str(path)).list()

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(SourceError, match=r"cannot read .* at byte 2\ncause: Input/output error"):
        await fetch(stored, 2, 3)


async def test_a_slow_disk_does_not_hold_the_loop_and_gets_its_memory_back_to_the_end(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.csv"
    path.write_bytes(b"12345")
    (stored,) = await FileStore(str(path)).list()
    go = threading.Event()
    read = os.preadv

    def slow(*args):
        go.wait(10)
        return read(*args)

    monkeypatch.setattr(os, "preadv", slow)
    into = bytearray(5)
    task = asyncio.create_task(FileStore(str(path)).fetch(stored, 0, memoryview(into)))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert into == b"12345"


async def test_closing_is_nothing(tree):
    await FileStore(str(tree)).aclose()
