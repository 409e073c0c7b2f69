"""Training runs as users start them: signals, snapshots, bad input, positions, exit codes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard

from streamlearn import training
from streamlearn.config import JobConfig, LrConfig, MfConfig, ModelConfig
from streamlearn.model import Counts, load
from streamlearn.online.losses import new_validation
from streamlearn.shards import manifest as manifests
from streamlearn.shards.snapshot import listing
from tests.click_log import BAD, clicks, gzipped, spoiled, text, written
from tests.runs import Ended, Running, bad_records, run, settings, spawn

SLOW = settings("compute.minibatch=1", "output.snapshot_seconds=0.1")
KEYS = {
    "model": str,
    "examples": int,
    "bytes": int,
    "seconds": float,
    "examples_per_second": float,
    "megabytes_per_second": float,
    "cpu_seconds": float,
    "peak_rss_bytes": int,
    "bad_records": int,
    "logloss": float,
    "auc": float,
    "calibration": float,
    "normalized_entropy": float,
    "features": int,
    "nonzeros": int,
}


def train(*arguments: object) -> Ended:
    return run("train", "--format", "criteo", *arguments, "--json")


def assert_one_sentence(ended: Ended, code: int, *parts: str) -> None:
    said = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "cause:"))]
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert said, ended.stderr
    for part in parts:
        assert part in "\n".join(said), ended.stderr


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120,000 records: long enough to do things to a run that learns them one by one."""
    return written(tmp_path_factory.mktemp("log") / "log.tsv", text(clicks(6_000, 1)) * 20)


@pytest.fixture(scope="module")
def learned(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of all of the log, learned without a break."""
    out = tmp_path_factory.mktemp("learned")
    ended = train(log, "--out", out)
    assert ended.code == 0, ended.stderr
    return out


# --- the report


def test_the_report_has_the_keys_that_are_promised(log: Path, learned: Path) -> None:
    report = json.loads((learned / "report.json").read_text())
    for name, kind in KEYS.items():
        assert type(report[name]) is kind, name
    assert report["model"] == "lr"
    assert report["examples"] == 120_000
    assert report["bytes"] == log.stat().st_size
    assert report["resumed_from"] is None
    assert report["stopped"] is None
    assert "failed" not in report
    assert report["logloss"] < report["baseline_logloss"]
    assert not (learned / "report.partial").exists()


def test_a_run_with_nothing_left_to_learn_says_the_same_and_writes_nothing(
    log: Path, learned: Path
) -> None:
    before = sorted(path.name for path in (learned / "model").iterdir())
    first = json.loads((learned / "report.json").read_text())
    again = train(log, "--out", learned)
    assert again.code == 0, again.stderr
    assert again.report["resumed_from"] == str(learned / "model" / before[-1])
    for name in ("examples", "bytes", "logloss", "auc", "features", "nonzeros"):
        assert again.report[name] == first[name]
    assert sorted(path.name for path in (learned / "model").iterdir()) == before


# --- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_with_a_snapshot_from_which_the_same_command_goes_on(
    log: Path, learned: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = ["train", log, "--format", "criteo", "--out", tmp_path, "--json"]
    slow = settings("compute.minibatch=1", "output.snapshot_seconds=1000")
    with Running(*command, *slow) as running:
        assert running.wait_until_learning()
        time.sleep(0.1)
        running.signal(number)
        ended = running.end()
    assert ended.code == code, ended.stderr
    assert ended.report["stopped"] == number.name
    stopped = load(tmp_path)
    assert 0 < stopped.counts.examples < 120_000
    assert stopped.counts.examples == ended.report["examples"]
    again = train(log, "--out", tmp_path)
    assert again.code == 0, again.stderr
    assert again.report["resumed_from"] == stopped.resumed_from
    assert again.report["examples"] == 120_000
    assert load(tmp_path).digest() == load(learned).digest()


def test_a_second_signal_ends_at_once_and_leaves_nothing_in_the_way(
    log: Path, tmp_path: Path
) -> None:
    # a last snapshot of 128 MB: the second signal comes long before it is written
    command = ["train", log, "--format", "criteo", "--out", tmp_path, "-b", "24"]
    slow = settings("compute.minibatch=1", "output.snapshot_seconds=1000")
    with Running(*command, *slow) as running:
        assert running.wait_until_learning()
        running.signal(signal.SIGINT)
        running.signal(signal.SIGTERM)
        ended = running.end()
    second = {1: "SIGTERM", 130: "SIGINT"}[ended.code]  # the system may deliver them in any order
    assert f"error: a second signal, {second}, ended the run" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "model").glob("*[0-9]"))
    again = train(log, "--out", tmp_path, "-b", "24")
    assert again.code == 0, again.stderr
    assert again.report["resumed_from"] is None
    assert again.report["examples"] == 120_000


def test_a_run_that_died_in_its_first_snapshot_left_no_model(log: Path, tmp_path: Path) -> None:
    partial = tmp_path / "model" / "000000000001.partial"
    partial.mkdir(parents=True)
    (partial / "rows.000").write_bytes(b"half")
    small = written(tmp_path / "small.tsv", b"".join(log.read_bytes().splitlines(True)[:500]))
    ended = train(small, "--out", tmp_path)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["examples"] == 500
    assert [row["problem"] for row in listing(tmp_path / "model")] == [""]


def test_two_runs_do_not_write_in_one_directory(log: Path, tmp_path: Path) -> None:
    with Running("train", log, "--format", "criteo", "--out", tmp_path, *SLOW) as running:
        assert running.wait_until_learning()
        second = train(log, "--out", tmp_path)
    assert_one_sentence(second, 1, "is being written by process", str(tmp_path))


# --- snapshots


def test_every_snapshot_taken_under_load_is_one_cut(
    log: Path, learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kept = settings("output.snapshots_kept=50")
    ended = run("train", log, "--format", "criteo", "--out", out, *SLOW, *kept, "--json")
    assert ended.code == 0, ended.stderr
    snapshots = sorted((out / "model").iterdir())
    assert len(snapshots) > 2
    expected = load(learned).digest()
    assert load(out).digest() == expected
    for number in sorted({0, len(snapshots) // 2, len(snapshots) - 2}):
        other = tmp_path / f"from-{number}"
        (other / "model").mkdir(parents=True)
        shutil.copytree(snapshots[number], other / "model" / snapshots[number].name)
        shutil.copy(out / "bad_records.jsonl", other)
        part = load(other)
        position = part.positions[str(log)].position
        assert position.records == part.counts.examples < 120_000
        with log.open("rb") as file:
            assert file.read(position.offset).count(b"\n") == position.records
        assert train(log, "--out", other).code == 0
        assert load(other).digest() == expected


def test_only_the_last_snapshots_are_kept(log: Path, tmp_path: Path) -> None:
    ended = train(log, "--out", tmp_path, *SLOW, *settings("output.snapshots_kept=2"))
    assert ended.code == 0, ended.stderr
    rows = listing(tmp_path / "model")
    assert len(rows) == 2
    assert rows[0]["sequence"] + 1 == rows[1]["sequence"]
    assert rows[1]["sequence"] > 2
    assert rows[1]["meta"]["counts"]["examples"] == 120_000
    told = run("snapshot", "ls", tmp_path, "--json")
    assert [row["examples"] for row in json.loads(told.stdout)][-1] == 120_000


def test_a_full_disk_spoils_one_snapshot_and_not_the_run(
    log: Path, learned: Path, tmp_path: Path
) -> None:
    command = ["train", log, "--format", "criteo", "--out", tmp_path, *SLOW]
    with Running(*command) as running:
        assert running.wait_for_text("snapshot " + str(tmp_path))
        # What the system says at a full disk it says at a file that may not grow, too.
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        said = running.wait_for_text("no snapshot was written")
        assert said is not None
        assert said["level"] == "error"
        before = load(tmp_path)  # what was there is still whole
        assert 0 < before.counts.examples < 120_000
        resource.prlimit(
            running.process.pid,
            resource.RLIMIT_FSIZE,
            (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        )
        ended = running.end()
    assert ended.code == 0, ended.stderr
    assert load(tmp_path).digest() == load(learned).digest()


def test_a_disk_that_stays_full_fails_the_run_and_keeps_the_last_snapshot(
    log: Path, tmp_path: Path
) -> None:
    command = ["train", log, "--format", "criteo", "--out", tmp_path, *SLOW]
    with Running(*command) as running:
        assert running.wait_for_text("snapshot " + str(tmp_path))
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        ended = running.end()
    assert ended.code == 1, ended.stderr
    assert "cannot write snapshot" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert 0 < load(tmp_path).counts.examples < 120_000
    assert json.loads((tmp_path / "report.json").read_text())["examples"] == 120_000


def test_a_damaged_snapshot_is_passed_over_and_that_is_said(
    log: Path, learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert train(log, "--out", out, *SLOW).code == 0
    newest = max((out / "model").iterdir())
    spoil(newest)
    again = train(log, "--out", out)
    assert again.code == 0, again.stderr
    assert f"passed over a damaged snapshot: snapshot {newest} is damaged" in again.stderr
    assert again.report["examples"] == 120_000
    assert load(out).digest() == load(learned).digest()


def spoil(snapshot: Path) -> None:
    victim = max(snapshot.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


def _of_another_version(snapshot: Path) -> None:
    written = msgspec.structs.replace(manifests.read(snapshot), format_version=9)
    (snapshot / manifests.MANIFEST_NAME).write_bytes(manifests.encode(written))


@pytest.mark.parametrize(
    ("harm", "parts"),
    [(spoil, ("no snapshot in", "is damaged")), (_of_another_version, ("version",))],
)
def test_a_model_without_a_whole_snapshot_is_refused(
    learned: Path, log: Path, tmp_path: Path, harm: object, parts: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(learned, out)
    for snapshot in (out / "model").iterdir():
        harm(snapshot)  # type: ignore[operator]
    for ended in (train(log, "--out", out), run("evaluate", out, log), run("inspect", out)):
        assert_one_sentence(ended, 1, *parts)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--alpha", "0.5"), "model is"),
        (("--index", "hashed"), "tables.index is hashed"),
        (("--negative-rate", "0.5"), "source.negative_rate is 0.5"),
        (("--format", "svmlight"), "source.format is svmlight"),
    ],
)
def test_a_model_goes_on_only_with_what_its_numbers_mean(
    learned: Path, log: Path, flags: tuple[str, ...], said: str
) -> None:
    ended = train(log, "--out", learned, *flags)
    assert_one_sentence(ended, 2, said, "was learned with")


# --- bad records


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_bad_record_is_kept_with_where_it_stands_and_why(tmp_path: Path, suffix: str) -> None:
    good = clicks(300, 4)
    lines = [b"", *good[:100], *(record for _, record in BAD), b"", *good[100:]]
    plain = text(lines)
    log = written(tmp_path / f"log.tsv{suffix}", plain)
    ended = train(log, "--out", tmp_path / "out", *settings("source.bad_records_max=0.1"))
    assert ended.code == 0, ended.stderr
    assert ended.report["examples"] == 300
    assert ended.report["bad_records"] == len(BAD)
    kept = bad_records(tmp_path / "out")
    assert [entry["reason"] for entry in kept] == [reason for reason, _ in BAD]
    for entry, (_, record) in zip(kept, BAD, strict=True):
        assert entry["uri"] == str(log)
        assert plain[entry["offset"] :].startswith(record + b"\n")
        assert entry["detail"]
        assert ("record" in entry) == (record.isascii())


def test_a_share_of_bad_records_above_the_limit_stops_with_a_snapshot(tmp_path: Path) -> None:
    lines, bad = spoiled(clicks(3_000, 5), every=5, seed=1)
    log = written(tmp_path / "log.tsv", text(lines))
    small = settings("compute.minibatch=100")
    ended = train(log, "--out", tmp_path / "out", *small)
    assert_one_sentence(ended, 1, "records are bad", "source.bad_records_max = 5.0%")
    model = load(tmp_path / "out")
    assert 1_000 <= model.counts.examples + model.counts.bad_records < len(lines)
    assert model.counts.bad_records == len(bad_records(tmp_path / "out"))
    allowed = train(log, "--out", tmp_path / "out", *settings("source.bad_records_max=0.5"))
    assert allowed.code == 0, allowed.stderr
    assert allowed.report["examples"] == 3_000
    assert len(bad_records(tmp_path / "out")) == bad


def test_values_that_are_no_numbers_never_reach_the_model(tmp_path: Path) -> None:
    rows = [f"{label},{number}" for label in (0, 1) for number in range(30)]
    bad = ["1,nan", "0,inf", "0,-Infinity", "1,1e400", "NaN,1"]
    log = written(tmp_path / "log.csv", ("y,x\n" + "\n".join(rows + bad) + "\n").encode())
    ended = run(
        *("train", log, "--format", "delimited", "--header", "--out", tmp_path / "out", "--json"),
        *("--column", "y=label", "--column", "x=number:raw"),
        *settings("source.bad_records_max=1"),
    )
    assert ended.code == 0, ended.stderr
    assert (ended.report["examples"], ended.report["bad_records"]) == (60, len(bad))
    for part in load(tmp_path / "out").parts():
        assert np.isfinite(part.weights).all()


# --- damaged and missing objects


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_what_stands_before_damage_is_learned_and_other_objects_go_on(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    first, second = clicks(2_000, 6), clicks(500, 7)
    plain = text(first)
    # frames of 100 records: what can be read is known
    parts = [text(first[at : at + 100]) for at in range(0, 2_000, 100)]
    frames = [gzipped(part) if suffix == ".gz" else zstandard.compress(part, 1) for part in parts]
    data = bytearray(b"".join(frames))
    at = sum(map(len, frames[:12])) + len(frames[12]) // 2
    if damage == "truncated":
        del data[at:]
    else:
        data[at : at + 40] = bytes(40)
    broken = tmp_path / f"a.tsv{suffix}"
    broken.write_bytes(data)
    whole = written(tmp_path / f"b.tsv{suffix}", text(second))
    out = tmp_path / "out"
    anything = settings("source.bad_records_max=1")  # what damage makes of records is bad records
    ended = train(broken, whole, "--out", out, *anything)
    assert_one_sentence(ended, 1, str(broken), "byte")
    model = load(out)
    assert model.positions[str(whole)].position.done
    position = model.positions[str(broken)].position
    assert not position.done
    assert 1_200 <= position.records < 1_300 + 700 * (damage == "corrupt")
    if damage == "truncated":  # damaged gzip goes on with other bytes until its checksum comes
        assert plain[: position.offset].count(b"\n") == position.records
    assert model.counts.examples + model.counts.bad_records == position.records + 500
    report = json.loads((out / "report.json").read_text())
    assert list(report["failed"]) == [str(broken)]
    again = train(broken, whole, "--out", out, *anything)
    assert_one_sentence(again, 1, str(broken), "byte")
    assert load(out).counts.examples == model.counts.examples
    # once it is whole, it is another object: learned in part, it is not begun anew
    written(broken, plain)
    assert_one_sentence(train(broken, whole, "--out", out), 1, "has changed", str(broken))


@pytest.mark.parametrize(
    "source", ["none.tsv", "none*.tsv", "none/", "empty/", "s3://"], ids=lambda name: name
)
def test_a_source_that_is_not_there_is_one_sentence(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    uri = source if "://" in source else f"{tmp_path}/{source}"
    ended = train(uri, "--out", tmp_path / "out")
    assert_one_sentence(ended, 2)
    assert not (tmp_path / "out" / "report.json").exists()


def test_an_object_that_changed_between_runs_is_an_error_that_names_both_versions(
    log: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "a.tsv"
    shutil.copy(log, mine)
    other = written(tmp_path / "b.tsv", text(clicks(100, 8)))
    out = tmp_path / "out"
    with Running("train", mine, "--format", "criteo", "--out", out, *SLOW) as running:
        running.wait_for_text("snapshot " + str(out))
        running.kill()
    before = load(out).positions[str(mine)]
    assert not before.position.done
    with mine.open("ab") as file:
        file.write(text(clicks(10, 9)))
    ended = train(mine, other, "--out", out)
    assert_one_sentence(ended, 1, "has changed", before.version, str(mine.stat().st_size))
    after = load(out)
    assert after.positions[str(mine)] == before
    assert after.positions[str(other)].position.done
    assert after.counts.examples == before.position.records + 100


def test_an_object_that_grew_after_it_was_learned_is_not_learned_twice(tmp_path: Path) -> None:
    small = settings("source.block_bytes=65536", "source.range_bytes=65536")
    records = clicks(1_000, 10)
    log = written(tmp_path / "a.tsv", text(records))
    out = tmp_path / "out"
    assert train(log, "--out", out, *small).report["examples"] == 1_000
    # the same bytes in other ranges
    ended = train(log, "--out", out, *settings("source.block_bytes=65536"))
    assert load(out).counts.examples == 1_000
    assert_one_sentence(ended, 2, "was learned in other ranges")
    with log.open("ab") as file:
        file.write(text(clicks(10, 11)))
    ended = train(log, "--out", out, *small)
    assert_one_sentence(ended, 1, "has changed")
    assert load(out).counts.examples == 1_000


# --- passes, starts, following


def test_a_second_pass_is_learned_and_resumed_in_its_middle(tmp_path: Path) -> None:
    records, bad = spoiled(clicks(5_000, 12), every=100, seed=2)
    log = written(tmp_path / "log.tsv", text(records) * 10)
    twice = ["--epochs", "2", *settings("source.bad_records_max=1")]
    whole = train(log, "--out", tmp_path / "whole", *twice)
    assert whole.code == 0, whole.stderr
    assert whole.report["examples"] == 100_000
    assert whole.report["bad_records"] == 2 * 10 * bad
    assert len(bad_records(tmp_path / "whole")) == 10 * bad
    out = tmp_path / "out"
    command = ["train", log, "--format", "criteo", "--out", out, *twice, *SLOW]
    with Running(*command) as running:
        while running.wait_for_text("snapshot " + str(out)):
            if load(out).epoch == 1:
                break
        running.kill()
    assert load(out).epoch == 1
    again = train(log, "--out", out, *twice)
    assert again.code == 0, again.stderr
    assert again.report["examples"] == 100_000
    assert load(out).digest() == load(tmp_path / "whole").digest()
    kept = (tmp_path / "whole" / "bad_records.jsonl").read_bytes()
    assert (out / "bad_records.jsonl").read_bytes() == kept
    assert train(log, "--out", out, *twice).report["examples"] == 100_000


def test_where_a_job_starts(tmp_path: Path) -> None:
    old = written(tmp_path / "a.tsv", text(clicks(100, 13)))
    os.utime(old, (1_000_000_000, 1_000_000_000))
    new = written(tmp_path / "b.tsv", text(clicks(50, 14)))
    source = f"{tmp_path}/*.tsv"
    recent = train(source, "--out", tmp_path / "recent", "--start", "@2020-01-01")
    assert recent.report["examples"] == 50
    latest = train(source, "--out", tmp_path / "latest", "--start", "latest")
    assert latest.report["examples"] == 0
    written(tmp_path / "c.tsv", text(clicks(20, 15)))
    # what came while nobody looked is not passed over
    assert train(source, "--out", tmp_path / "latest", "--start", "latest").report["examples"] == 20
    assert train(source, "--out", tmp_path / "latest").report["examples"] == 20
    stored = train(old, new, "--out", tmp_path / "stored")
    assert stored.report["examples"] == 150
    again = train(old, new, "--out", tmp_path / "stored", "--start", "earliest")
    assert again.report["examples"] == 300


def test_following_learns_files_as_they_appear_and_goes_on_with_only_the_new(
    tmp_path: Path,
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    os.utime(written(logs / "a.tsv", text(clicks(100, 16))), (1_000_000_000, 1_000_000_000))
    out = tmp_path / "out"
    command = [
        *("train", f"{logs}/", "--format", "criteo", "--out", out, "--follow"),
        *settings("source.follow_seconds=0.1", "output.snapshot_seconds=0.1"),
    ]
    with Running(*command, "--json") as running:
        assert running.wait_for_text("following")
        written(logs / "b.tsv.gz", text(clicks(50, 17)))
        written(logs / "c.tsv", text(clicks(7, 18)))
        # snapshots are finished though nothing comes that would push them on
        while running.wait_for_text("snapshot " + str(out)):
            if load(out).counts.examples == 157:
                break
        running.signal(signal.SIGTERM)
        ended = running.end()
    assert ended.code == 0, ended.stderr
    assert ended.report["examples"] == 157
    written(logs / "d.tsv", text(clicks(3, 19)))
    with Running(*command, "--json") as running:
        while running.wait_for_text("snapshot " + str(out)):
            if load(out).counts.examples == 160:
                break
        running.signal(signal.SIGTERM)
        ended = running.end()
    assert ended.code == 0, ended.stderr
    assert ended.report["examples"] == 160


def test_standard_input_is_learned_again_when_it_is_piped_again(tmp_path: Path) -> None:
    first, second = text(clicks(100, 20)), text(clicks(60, 21))
    command = ["train", "-", "--out", tmp_path, "--json"]
    assert spawn(*command, stdin=first).report["examples"] == 100
    assert spawn(*command, stdin=second).report["examples"] == 160


# --- negatives


def test_dropped_negatives_leave_the_model_calibrated_and_resume_the_same(tmp_path: Path) -> None:
    lines = clicks(12_000, 22, rate=0.1)
    log = written(tmp_path / "log.tsv", text(lines) * 5)
    rate = ["--negative-rate", "0.25"]
    whole = train(log, "--out", tmp_path / "whole", *rate)
    assert whole.code == 0, whole.stderr
    report = whole.report
    assert report["examples"] + report["subsampled"] == 60_000
    negatives = 5 * sum(line.startswith(b"0") for line in lines)
    assert report["subsampled"] == pytest.approx(0.75 * negatives, rel=0.03)
    assert report["calibration"] == pytest.approx(1, abs=0.06)
    out = tmp_path / "out"
    with Running("train", log, "--format", "criteo", "--out", out, *rate, *SLOW) as running:
        running.wait_for_text("snapshot " + str(out))
        running.kill()
    again = train(log, "--out", out, *rate)
    assert again.report["examples"] == report["examples"]
    assert again.report["subsampled"] == report["subsampled"]
    assert load(out).digest() == load(tmp_path / "whole").digest()
    scored = run("evaluate", out, log, "--json").report
    assert scored["examples"] == 60_000
    assert scored["calibration"] == pytest.approx(1, abs=0.15)


# --- factorization machines

EMBEDDED = ("model.kind=fm", "model.dim_by_count=5=4,100=16", "model.v_lr=0.05")
TABLES = {"exact": (), "hashed": ("tables.index=hashed", "tables.bits=14")}


@pytest.mark.parametrize("table", TABLES)
def test_embeddings_go_on_where_ctrl_c_ended_them(tmp_path: Path, table: str) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(4_000, 30)) * 10)
    sets = settings(*(EMBEDDED if table == "exact" else EMBEDDED[::2]), *TABLES[table])
    whole = train(log, "--out", tmp_path / "whole", *sets)
    assert whole.code == 0, whole.stderr
    assert whole.report["embeddings"] > 0
    assert whole.report["embeddings_bytes"] % 64 == 0
    assert whole.report["examples_dropped"] == 0
    command = ["train", log, "--format", "criteo", "--out", tmp_path / "cut", "--json", *sets]
    with Running(*command, *settings("compute.minibatch=1")) as running:
        assert running.wait_until_learning()
        time.sleep(0.1)
        running.signal(signal.SIGINT)
        ended = running.end()
    assert ended.code == 130, ended.stderr
    assert 0 < ended.report["examples"] < 40_000
    again = train(log, "--out", tmp_path / "cut", *sets)
    assert again.code == 0, again.stderr
    assert load(tmp_path / "cut").digest() == load(tmp_path / "whole").digest()
    for name in ("examples", "features", "embeddings", "embeddings_bytes"):
        assert again.report[name] == whole.report[name], name


@pytest.mark.parametrize("lanes", [("lanes=1",), ("lanes=3", "shard_lanes=2"), ("learn_lanes=2",)])
def test_embeddings_end_at_their_limit_and_that_is_said_once(
    tmp_path: Path, lanes: tuple[str, ...]
) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(4_000, 31)))
    limit = settings("tables.embeddings_bytes_max=6400", *(f"compute.{one}" for one in lanes))
    out = tmp_path / "out"
    ended = train(log, "--out", out, *settings(*EMBEDDED, "compute.minibatch=100"), *limit)
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("embeddings have reached their limit, 6,400 bytes") == 1
    report = ended.report
    assert report["embeddings_refused"] > 0
    assert 0 < report["embeddings"] <= 100
    assert 0 < report["embeddings_bytes"] <= 6_400
    assert report["examples"] == 4_000
    # going on with more room gives them
    more = train(log, "--out", out, *settings(*EMBEDDED, "model.epochs=1"))
    assert more.code == 0, more.stderr
    assert more.report["embeddings"] == report["embeddings"]


@pytest.mark.parametrize("lanes", [("lanes=1",), ("lanes=3",), ("learn_lanes=2",)])
def test_examples_that_have_no_finite_score_teach_nothing_and_are_told_with_their_place(
    tmp_path: Path, lanes: tuple[str, ...]
) -> None:
    good, huge = b"1 a:1 b:1\n0 a:1 c:1\n0 b:1 c:1\n", b"1 a:1e30 b:1e30 c:1e30\n"
    log = written(tmp_path / "log.svm", good * 50 + huge * 3 + good * 50)
    sets = settings("model.kind=fm", "model.l1=0", "model.threshold=1", "compute.minibatch=30")
    sets = (*sets, *settings(*(f"compute.{one}" for one in lanes)))
    command = ("train", log, "--format", "svmlight", "--out", tmp_path / "out", "--json")
    ended = run(*command, *sets)
    assert ended.code == 0, ended.stderr
    assert (ended.report["examples"], ended.report["examples_dropped"]) == (303, 3)
    first = len(good) * 50
    place = f"bytes {first} to {first + len(huge) * 3 + len(good) * 9}"
    assert f"3 examples of {log}, {place}, have a score that is not finite" in ended.stderr
    for part in load(tmp_path / "out").parts():
        assert np.isfinite(part.weights).all()
        assert np.isfinite(part.vectors).all()


# --- lanes and limits


@pytest.mark.parametrize("index", ["exact", "hashed"])
def test_lanes_and_pieces_change_nothing_in_the_model(tmp_path: Path, index: str) -> None:
    logs = [written(tmp_path / f"{n}.tsv", text(clicks(3_000, n))) for n in (23, 24)]
    digests = set()
    for number, pairs in enumerate(
        (
            ("compute.lanes=1",),
            ("compute.lanes=2", "compute.minibatch=7"),
            ("compute.lanes=2", "source.block_bytes=65536", "source.range_bytes=131072"),
        )
    ):
        table = settings(f"tables.index={index}", "tables.bits=16")
        ended = train(*logs, "--out", tmp_path / str(number), *table, *settings(*pairs))
        assert ended.code == 0, ended.stderr
        assert ended.report["examples"] == 6_000
        digests.add(load(tmp_path / str(number)).digest())
    assert len(digests) == 1


def test_a_full_table_stops_with_a_snapshot_of_what_was_learned(tmp_path: Path) -> None:
    log = written(tmp_path / "log.tsv", text(clicks(3_000, 25, tokens=5_000)))
    out = tmp_path / "out"
    ended = train(log, "--out", out, *settings("tables.features_max=800"))
    assert_one_sentence(ended, 1, "features_max")
    model = load(out)
    position = model.positions[str(log)].position
    assert 0 < model.counts.examples == position.records < 3_000
    assert log.read_bytes()[: position.offset].count(b"\n") == position.records
    whole = train(log, "--out", out)
    assert whole.report["examples"] == 3_000
    assert train(log, "--out", tmp_path / "other").code == 0
    assert load(out).digest() == load(tmp_path / "other").digest()


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (
            LrConfig(),
            [
                "logloss",
                "baseline_logloss",
                "auc",
                "auc_error",
                "calibration",
                "normalized_entropy",
            ],
        ),
        (MfConfig(), ["rmse", "mae", "baseline_rmse"]),
    ],
    ids=["clicks", "ratings"],
)
def test_a_report_has_the_figures_of_the_models_loss_and_no_others(
    monkeypatch: pytest.MonkeyPatch, model: ModelConfig, keys: list[str]
) -> None:
    validation = new_validation(model, 100)
    labels, scores = np.array([[0, 1, 1, 0], [0.25, 0.5, 0.75, -1]], np.float32)
    validation.update(scores, labels, np.ones(4, np.float32))
    learned: Any = SimpleNamespace(
        job=JobConfig(model=model), validation=validation, counts=Counts(examples=4),
        has_embeddings=False, resumed_from=None,
    )  # fmt: skip
    monkeypatch.setattr(training, "sizes", lambda _: {"features": 2, "sparsity": 0.5})
    telemetry: Any = SimpleNamespace(summary=validation.summary(), compile_seconds=0.0)
    report = training.run_report(
        SimpleNamespace(model=learned),
        training.Started(learned),
        telemetry,  # type: ignore[arg-type]
    )
    every = {"logloss", "baseline_logloss", "auc", "auc_error", "calibration"}
    every |= {"normalized_entropy", "rmse", "mae", "baseline_rmse"}
    assert every & report.keys() == set(keys)
    assert np.isfinite([report[key] for key in keys]).all()
