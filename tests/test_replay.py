"""Quarantined records are learned once the schema is mended, each once, whatever dies meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.model import load
from tests.click_log import written
from tests.runs import Ended, Running, bad_records, run, settings

COLUMNS = ("--column", "y=label", "--column", "x=categorical")
GOOD = [b"%d,t%d,%d" % (n % 2, n % 5, n) for n in range(200)]
# The third column is a number where the schema says so: these are mended by ignoring it ...
MENDABLE = [b"1,t1,n/a", b"0,t2,unknown", b"1,t9,"]
# ... and these are not.
HOPELESS = [b"maybe,t1,1", b"1,t1"]


MODELS = {"lr": (), "fm": settings("model.kind=fm", "model.dim=4", "model.threshold=2")}


@pytest.fixture(params=MODELS)
def trained(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model with good, mendable and hopeless records of two objects behind it."""
    for name, first in (("a.csv", 0), ("b.csv.gz", 100)):
        lines = [
            *GOOD[first : first + 50],
            *MENDABLE[:2],
            *HOPELESS,
            *GOOD[first + 50 : first + 100],
        ]
        written(tmp_path / name, b"y,x,z\n" + b"\n".join(lines) + b"\n")
    ended = run(
        *("train", tmp_path / "a.csv", tmp_path / "b.csv.gz", "--format", "delimited", "--header"),
        *(*COLUMNS, "--column", "z=number", "--out", tmp_path / "out", "--json"),
        *MODELS[request.param],
    )
    assert ended.code == 0, ended.stderr
    assert (ended.report["examples"], ended.report["bad_records"]) == (200, 8)
    return tmp_path / "out"


def replay(out: Path, *arguments: object) -> Ended:
    return run("replay", out, *COLUMNS, "--column", "z=ignore", "--json", *arguments)


def test_mended_records_are_learned_and_the_others_kept(trained: Path, tmp_path: Path) -> None:
    first = bad_records(trained)
    ended = replay(trained)
    assert ended.code == 0, ended.stderr
    report = ended.report
    assert (report["replayed"], report["still_bad"]) == (8, 4)
    assert (report["examples"], report["bad_records"]) == (204, 4)
    assert report.get("examples_dropped", 0) == 0
    kept = bad_records(trained)
    assert kept[:8] == first  # the file only grows
    hopeless = [entry for entry in first if entry["record"].encode() in HOPELESS]
    strip = ("uri", "offset", "reason", "record")
    assert [[e[k] for k in strip] for e in kept[8:]] == [[e[k] for k in strip] for e in hopeless]
    model = load(trained)
    assert model.counts.examples == 204
    # Beside what was learned first, it learned the mended ones as a log of them would have been.
    assert {p.position.done for p in model.positions.values()} == {True}


def test_replaying_again_tries_only_what_is_still_bad(trained: Path) -> None:
    assert replay(trained).code == 0
    digest = load(trained).digest()
    again = replay(trained)
    assert again.code == 0
    assert (again.report["replayed"], again.report["still_bad"]) == (4, 4)
    assert (again.report["examples"], again.report["bad_records"]) == (204, 4)
    assert load(trained).digest() == digest


def test_nothing_to_replay_is_said_in_words(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", b"y,x,z\n1,t1,n/a\n" + b"\n".join(GOOD) + b"\n")
    out = tmp_path / "out"
    ended = run(
        *("train", tmp_path / "a.csv", "--format", "delimited", "--header", *COLUMNS),
        *("--column", "z=number", "--out", out),
    )
    assert ended.code == 0, ended.stderr
    assert replay(out).report["still_bad"] == 0
    digest = load(out).digest()
    again = replay(out)
    assert again.code == 2
    assert "holds no records that could be replayed" in again.stderr
    assert load(out).digest() == digest
    nothing = replay(tmp_path / "none")
    assert nothing.code == 2
    assert "there is no model in" in nothing.stderr


def test_a_replay_that_dies_before_its_snapshot_has_changed_nothing(
    trained: Path, tmp_path: Path
) -> None:
    expected = tmp_path / "expected"
    shutil.copytree(trained, expected)
    assert replay(expected).code == 0
    before = load(trained)
    command = ["replay", trained, *COLUMNS, "--column", "z=ignore"]
    with Running(*command) as running:
        running.wait_for_text("replaying")
        running.kill()
    if load(trained).counts.examples == 200:  # it was too quick for us otherwise
        assert load(trained).digest() == before.digest()
        assert replay(trained).code == 0
    assert load(trained).digest() == load(expected).digest()
    assert bad_records(trained) == bad_records(expected)
    # half of a replay's records in the file, and no snapshot that knows of them
    with (expected / "bad_records.jsonl").open("ab") as file:
        file.write(b'{"uri":"a.csv","offs')
    assert replay(expected).code == 0
    assert len(bad_records(expected)) == 8 + 4 + 4


def test_training_goes_on_with_the_mended_schema(trained: Path, tmp_path: Path) -> None:
    assert replay(trained).code == 0
    sources = [tmp_path / "a.csv", tmp_path / "b.csv.gz"]
    more = written(tmp_path / "c.csv", b"y,x,z\n1,t1,n/a\n0,t2,\n")
    model = MODELS[load(trained).job.model.kind]
    flags = ["--format", "delimited", "--header", *COLUMNS, "--out", trained, *model]
    ended = run("train", *sources, more, *flags, "--column", "z=ignore", "--json")
    assert ended.code == 0, ended.stderr
    assert ended.report["examples"] == 206
    old = run("train", *sources, more, *flags, "--column", "z=number")
    assert old.code == 2
    assert "source.columns is" in old.stderr


def test_a_large_share_may_still_be_bad(tmp_path: Path) -> None:
    lines = [b"1,t1,n/a"] * 10 + [b"maybe,t1,1"] * 1_500
    written(tmp_path / "a.csv", b"y,x,z\n" + b"\n".join([*GOOD, *lines]) + b"\n")
    out = tmp_path / "out"
    ended = run(
        *("train", tmp_path / "a.csv", "--format", "delimited", "--header", *COLUMNS),
        *("--column", "z=number", "--out", out, *settings("source.bad_records_max=1")),
    )
    assert ended.code == 0, ended.stderr
    ended = replay(out)
    assert ended.code == 0, ended.stderr
    assert (ended.report["replayed"], ended.report["still_bad"]) == (1_510, 1_500)
    assert ended.report["examples"] == 210


def test_what_was_cut_off_is_not_learned_in_part(tmp_path: Path) -> None:
    # what is kept of the long record would be a good one
    long = b"1 " + b"f:1 " * (RECORD_BYTES_MAX // 4)
    log = written(tmp_path / "log.svm", b"1 a:1\n" + long + b"\nx a:1\n0 b:1\n" + b"1 a:1\n" * 50)
    out = tmp_path / "out"
    anything = settings("source.bad_records_max=1")
    ended = run("train", log, "--format", "svmlight", "--out", out, *anything)
    assert ended.code == 0, ended.stderr
    assert [entry["reason"] for entry in bad_records(out)] == ["too_long", "label"]
    ended = run("replay", out, "--json")
    assert ended.code == 0, ended.stderr
    assert (ended.report["replayed"], ended.report["still_bad"]) == (1, 1)
    assert (ended.report["examples"], ended.report["bad_records"]) == (52, 2)
    assert [entry["reason"] for entry in bad_records(out)[2:]] == ["too_long", "label"]
