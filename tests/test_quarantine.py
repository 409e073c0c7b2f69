"""The file of bad records: what is appended, read back, and cut off again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamlearn.errors import DataError, RunError
from streamlearn.messages import BadRecord
from streamlearn.quarantine import Quarantine, merge_quarantines, read_quarantine

RECORDS = [
    BadRecord("a.tsv", 0, "label", "label 'x' is not 0 or 1", b"x\t1"),
    BadRecord("s3://b/ä#1", 1 << 40, "utf8", "not UTF-8", b"\xff\x00\n\r"),
    BadRecord("a.tsv", 17, "quote", 'a "quote"', 'ü"\\'.encode()),
    BadRecord("-", 20, "too_long", "", b""),
]


def test_records_come_back_as_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "bad_records.jsonl"
    quarantine = Quarantine(path, 0)
    sizes = [0]
    for record in RECORDS:
        quarantine.add(record)
        sizes.append(quarantine.sync())
    quarantine.close()
    assert sizes[-1] == path.stat().st_size
    assert list(read_quarantine(path)) == RECORDS
    assert list(read_quarantine(path, sizes[1], sizes[3])) == RECORDS[1:3]
    assert list(read_quarantine(path, sizes[-1])) == []
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {
        "uri": "a.tsv",
        "offset": 0,
        "reason": "label",
        "detail": "label 'x' is not 0 or 1",
        "record": "x\t1",
    }


def test_what_came_after_a_snapshot_is_cut_off_when_it_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "bad_records.jsonl"
    quarantine = Quarantine(path, 0)
    quarantine.add(RECORDS[0])
    kept = quarantine.sync()
    quarantine.add(RECORDS[1])
    quarantine.close()
    resumed = Quarantine(path, kept)
    assert resumed.size == kept
    resumed.add(RECORDS[2])
    resumed.close()
    assert list(read_quarantine(path)) == [RECORDS[0], RECORDS[2]]


def test_a_file_that_lacks_what_a_snapshot_knows_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad_records.jsonl"
    path.write_bytes(b"{}\n")
    with pytest.raises(DataError, match="has 3 bytes, but the snapshot knows of 4"):
        Quarantine(path, 4)


def test_a_place_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write") as caught:
        Quarantine(tmp_path / "none" / "bad_records.jsonl", 0)
    assert caught.value.cause == "No such file or directory"
    full = Path("/dev/full")
    if full.exists():
        quarantine = Quarantine(tmp_path / "bad_records.jsonl", 0)
        quarantine._file.close()
        quarantine._file = full.open("wb")
        quarantine.add(RECORDS[0])
        with pytest.raises(RunError, match="cannot write"):
            quarantine.sync()
        quarantine.close()


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"1", b'{"uri":"a"}', b'{"uri":"a","offset":0,"reason":"","detail":""}']
)
def test_a_line_that_is_no_quarantined_record_is_named_by_its_byte(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "bad_records.jsonl"
    quarantine = Quarantine(path, 0)
    quarantine.add(RECORDS[0])
    size = quarantine.sync()
    quarantine.close()
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=f"no quarantined record at byte {size}"):
        list(read_quarantine(path))


# --- several files into one


def kept(path: Path, *places: tuple[str, int]) -> Path:
    quarantine = Quarantine(path, 0)
    for uri, offset in places:
        quarantine.add(BadRecord(uri, offset, "label", f"in {path.name}", b"x"))
    quarantine.sync()
    quarantine.close()
    return path


def test_files_are_merged_in_order_and_each_place_once(tmp_path: Path) -> None:
    one = kept(tmp_path / "a", ("x", 1), ("x", 2), ("y", 1), ("x", 1))
    two = kept(tmp_path / "b", ("y", 1), ("y", 2), ("z", 0))
    target = tmp_path / "bad_records.jsonl"
    target.write_text("what was there before\n")
    size = merge_quarantines([one, two], target, lambda uri, offset: uri != "z")
    assert size == target.stat().st_size
    found = list(read_quarantine(target))
    assert [(bad.uri, bad.offset) for bad in found] == [("x", 1), ("x", 2), ("y", 1), ("y", 2)]
    assert [bad.detail for bad in found] == ["in a", "in a", "in a", "in b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "bad_records.jsonl"]


def test_no_files_give_an_empty_one(tmp_path: Path) -> None:
    target = tmp_path / "bad_records.jsonl"
    assert merge_quarantines([], target, lambda uri, offset: True) == 0
    assert target.read_bytes() == b""


def test_a_line_that_was_cut_short_is_passed_over_and_a_wrong_one_told(tmp_path: Path) -> None:
    one = kept(tmp_path / "a", ("x", 1))
    target = tmp_path / "bad_records.jsonl"
    with one.open("ab") as file:
        file.write(b'{"uri": "x", "offset": 2')
    merge_quarantines([one], target, lambda uri, offset: True)
    assert len(list(read_quarantine(target))) == 1
    at = one.stat().st_size
    with one.open("ab") as file:
        file.write(b"}\nnot JSON\n")
    with pytest.raises(DataError, match=rf"has no quarantined record at byte {at + 2}"):
        merge_quarantines([one], target, lambda uri, offset: True)
    with pytest.raises(RunError, match="cannot read"):
        merge_quarantines([tmp_path / "none"], target, lambda uri, offset: True)
    with pytest.raises(RunError, match="cannot write"):
        merge_quarantines([], tmp_path / "none" / "file", lambda uri, offset: True)
