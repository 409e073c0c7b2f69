"""Records wherever blocks, ranges and objects cut them, from file to model."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.model import load
from tests.click_log import clicks, text, written
from tests.runs import Ended, bad_records, run, settings

BLOCK = 65_536  # the smallest that may be set


def train(log: Path | str, out: Path, *arguments: object) -> Ended:
    ended = run("train", log, "--out", out, "--json", *arguments)
    assert ended.code == 0, ended.stderr
    return ended


def csv(log: Path, out: Path, *arguments: object) -> Ended:
    columns = ("--column", "y=label", "--column", "x=categorical", "--header")
    return train(log, out, "--format", "delimited", *columns, *arguments)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_record_may_lie_anywhere_across_a_block_and_a_range(tmp_path: Path, suffix: str) -> None:
    # The first record's length moves all others: each byte of a short record, its newline and its
    # neighbours' once is the last of a block.
    short = [b"%d,t%d" % (n % 2, n % 7) for n in range(20_000)]
    digests: set[str] = set()
    small = settings(f"source.block_bytes={BLOCK}", f"source.range_bytes={BLOCK}")
    for shift in range(8):
        data = b"y,x\n" + b"1," + b"a" * shift + b"\n" + text(short)
        log = written(tmp_path / f"log-{shift}.csv{suffix}", data)
        for lanes in (1, 2):
            out = tmp_path / f"{shift}-{lanes}"
            report = csv(log, out, *small, *settings(f"compute.lanes={lanes}")).report
            assert report["examples"] == 20_001
            assert report["bad_records"] == 0
            assert report["bytes"] == len(data)
            model = load(out)
            assert sum(p.position.records for p in model.positions.values()) == 20_001
            assert len(model.positions) == (1 if suffix else -(-len(data) // BLOCK))
            digests.add(f"{shift} {model.digest()}")
        whole = tmp_path / f"{shift}-whole"
        csv(log, whole)
        digests.add(f"{shift} {load(whole).digest()}")
    assert len(digests) == 8


@pytest.mark.parametrize(
    ("data", "examples"),
    [
        (b"", 0),
        (b"y,x\n", 0),
        (b"y,x", 0),
        (b"y,x\r\n", 0),
        (b"y,x\n1,a", 1),
        (b"y,x\n1,a\n", 1),
        (b"y,x\r\n1,a\r\n0,b\r\n", 2),
        (b"y,x\r\n1,a\r\n0,b", 2),
        (b"y,x\n\n\n1,a\n\r\n\n0,b\n\n\n", 2),
        (b"\xef\xbb\xbfy,x\n1,a\n0,b\n", 2),
        (b"\xef\xbb\xbfy,x\r\n1,a\r\n", 1),
        (b"y,x," + b"filler " * 20_000 + b"\n1,a,b\n0,c,d\n", 2),  # a header of three blocks
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_end_as_they_like(tmp_path: Path, data: bytes, examples: int, suffix: str) -> None:
    log = written(tmp_path / f"log.csv{suffix}", data)
    for lanes in (1, 2):
        pairs = (f"source.block_bytes={BLOCK}", f"compute.lanes={lanes}")
        report = csv(log, tmp_path / str(lanes), *settings(*pairs)).report
        assert (report["examples"], report["bad_records"]) == (examples, 0)
        again = csv(log, tmp_path / str(lanes), *settings(*pairs)).report
        assert (again["examples"], again["bad_records"]) == (examples, 0)


def test_each_object_has_a_header_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", b"y,x\n1,a\n0,b\n")
    written(tmp_path / "b.csv", b"x,y\na,1\nb,0\n")
    csv(f"{tmp_path}/*.csv", tmp_path / "both")
    csv(tmp_path / "a.csv", tmp_path / "one", "--epochs", "2")
    assert load(tmp_path / "both").digest() == load(tmp_path / "one").digest()


def test_an_object_whose_header_lacks_a_column_fails_and_the_others_go_on(tmp_path: Path) -> None:
    wrong = written(tmp_path / "a.csv", b"y,z\n1,a\n")
    written(tmp_path / "b.csv", b"y,x\n1,a\n")
    ended = run(
        *("train", f"{tmp_path}/*.csv", "--out", tmp_path / "out", "--format", "delimited"),
        *("--header", "--column", "y=label", "--column", "x=categorical"),
    )
    assert ended.code != 0
    assert "Traceback" not in ended.stderr
    assert "x" in ended.stderr
    model = load(tmp_path / "out")
    assert model.counts.examples == 1
    assert str(wrong) not in model.positions


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("block", [BLOCK, 4 << 20])
def test_a_record_over_the_limit_is_kept_in_part_and_passed_over(
    tmp_path: Path, lanes: int, block: int
) -> None:
    first, second = clicks(300, 1), clicks(300, 2)
    huge = b"1\t" + b"7" * (RECORD_BYTES_MAX + 100_000)
    largest = b"0\t" + b"7" * (RECORD_BYTES_MAX - 2)  # as long as may be: bad for its field count
    data = text([*first, huge, *second, largest, huge])
    log = written(tmp_path / "log.tsv", data)
    out = tmp_path / "out"
    pairs = (f"compute.lanes={lanes}", f"source.block_bytes={block}", "source.bad_records_max=1")
    report = train(log, out, "--format", "criteo", *settings(*pairs)).report
    assert report["examples"] == 600
    assert report["bad_records"] == 3
    assert report["bytes"] == len(data)
    kept = bad_records(out)
    assert [entry["reason"] for entry in kept] == ["too_long", "field_count", "too_long"]
    assert [len(entry["record"]) for entry in kept] == [4096, len(largest), 4096]
    assert kept[0]["detail"] == f"record of {len(huge)} bytes is longer than the 1048576 allowed"
    for entry in kept:
        assert data[entry["offset"] :].startswith(entry["record"].encode())
    assert load(out).positions[str(log)].position.records == 603
    lines = run("predict", out, log, "-p", tmp_path / "p.txt", *settings(*pairs[1:2]))
    assert lines.code == 0, lines.stderr
    said = (tmp_path / "p.txt").read_text().splitlines()
    assert len(said) == 603
    assert [n for n, line in enumerate(said) if line == "nan"] == [300, 601, 602]


def test_a_snapshot_between_a_long_record_and_the_next_counts_it_once(tmp_path: Path) -> None:
    # Every block ends with a record over the limit: were it noted apart from its position, the
    # snapshots that are begun at ends of blocks would have one without the other.
    rows = []
    for number in range(12):
        lines = text(clicks(20, number))
        rows.append(lines + b"1" * (-len(lines) % BLOCK + 17 * BLOCK - 1) + b"\n")
    log = written(tmp_path / "log.tsv", b"".join(rows))
    pairs = [f"source.block_bytes={BLOCK}", "source.bad_records_max=1", "compute.minibatch=1"]
    kept = ["output.snapshot_seconds=0.001", "output.snapshots_kept=1000", "compute.lanes=2"]
    out = tmp_path / "out"
    train(log, out, "--format", "criteo", *settings(*pairs, *kept))
    assert len(bad_records(out)) == 12
    found = 0
    for snapshot in sorted((out / "model").iterdir()):
        other = tmp_path / f"at-{snapshot.name}"
        (other / "model").mkdir(parents=True)
        snapshot.rename(other / "model" / snapshot.name)
        part = load(other)
        known = part.positions.get(str(log))
        if known is not None:
            counts = part.counts
            assert counts.examples + counts.bad_records == known.position.records
            lines = (out / "bad_records.jsonl").read_bytes()[: part.quarantine_size]
            assert lines.count(b"\n") == counts.bad_records
            found += 1
    assert found


@pytest.mark.parametrize("pairs", [(), ("source.range_bytes=65536", f"source.block_bytes={BLOCK}")])
def test_lock_free_lanes_count_every_record_once(tmp_path: Path, pairs: tuple[str, ...]) -> None:
    names = [f"log-{n}.tsv" + (".gz" if n % 2 else "") for n in range(5)]
    logs = [written(tmp_path / name, text(clicks(2_000, n))) for n, name in enumerate(names)]
    several = settings("compute.learn_lanes=3", "output.snapshot_seconds=0.01", *pairs)
    source = f"{tmp_path}/*.tsv*"
    free = train(source, tmp_path / "free", "--format", "criteo", *several).report
    one = train(source, tmp_path / "one", "--format", "criteo").report
    for name in ("examples", "bytes", "features"):
        assert free[name] == one[name], name
    assert free["logloss"] == pytest.approx(one["logloss"], rel=0.03)
    model = load(tmp_path / "free")
    assert {key.partition("#")[0] for key in model.positions} == {str(log) for log in logs}
    assert sum(p.position.records for p in model.positions.values()) == 10_000
