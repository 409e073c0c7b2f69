from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench_mf
import libmf
import netflix_ratings
import surprise_svd
from bench_mf import Prepared, Quality
from streamlearn.online.ratings import rating_keys

MASK = (1 << 64) - 1
MIXER = 0x9E3779B97F4A7C15
LIBMF = Path("mf-train")


def _held_out(user: int, item: int, share: float) -> bool:
    """Say what ours holds out, given keys, the slow and obvious way."""
    h = (user ^ item * MIXER & MASK) * MIXER & MASK
    h = (h ^ h >> 29) * MIXER & MASK
    return h >> 32 < round(share * 2**32)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return bench_mf.generated(4000, 1, tmp_path)


def _lines(path: Path) -> list[list[int]]:
    return np.loadtxt(path, ndmin=2).astype(int).tolist()


def test_holds_out_what_ours_does() -> None:
    users, items = np.arange(1, 1001), np.arange(1000, 0, -1)
    keys = zip(*(side.tolist() for side in rating_keys(users, items)), strict=True)
    expected = [_held_out(user, item, 0.1) for user, item in keys]
    assert bench_mf.holds_out(users, items, 0.1).tolist() == expected
    assert 60 < sum(expected) < 140


def test_generated_ratings_are_parted(prepared: Prepared) -> None:
    lines = [line.split("::") for line in prepared.source.read_text().splitlines()]
    rows = [[int(field) for field in line[:3]] for line in lines]
    assert prepared.ratings == len(rows) == 4000
    held = bench_mf.holds_out(*np.array(rows)[:, :2].T, bench_mf.HELD_OUT)
    assert prepared.ratings_held_out == held.sum()
    assert _lines(prepared.learned) == [row for row, out in zip(rows, held, strict=True) if not out]
    assert _lines(prepared.held_out) == [row for row, out in zip(rows, held, strict=True) if out]
    assert prepared.users == len({row[0] for row in rows})
    assert prepared.items == len({row[1] for row in rows})
    assert prepared.truth_rmse == pytest.approx(0.845, abs=0.03)


def test_ratings_are_made_once(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netflix_ratings, "draw", None)
    assert bench_mf.generated(4000, 1, prepared.source.parent) == prepared


@pytest.mark.parametrize("form", ["dat", "tab", "csv"])
@pytest.mark.parametrize("compressed", [False, True])
def test_movielens_files_are_parted(
    tmp_path: Path, prepared: Prepared, form: str, *, compressed: bool
) -> None:
    path = tmp_path / f"ratings.{form}"
    netflix_ratings.write(netflix_ratings.draw(4000, 1).learned, path, form)
    if compressed:
        raw, path = path, tmp_path / f"ratings.{form}.gz"
        path.write_bytes(gzip.compress(raw.read_bytes()))
    found = bench_mf.movielens(path, tmp_path)
    assert found.name == f"ratings.{form}"
    assert found.source.read_bytes() == (tmp_path / f"ratings.{form}").read_bytes()
    assert found.truth_rmse is None
    for name in ("ratings", "ratings_held_out", "users", "items"):
        assert getattr(found, name) == getattr(prepared, name)
    for name in ("learned", "held_out"):
        assert _lines(getattr(found, name)) == _lines(getattr(prepared, name))


def test_halves_of_stars_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\n1,2,3.5,4\n")
    bench_mf.movielens(path, tmp_path)
    said = (tmp_path / "ratings.csv.libmf").read_text()
    said += (tmp_path / "ratings.csv.held.libmf").read_text()
    assert said == "1 2 3.5\n"


def test_what_is_no_rating_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text("1::2\n")
    with pytest.raises(ValueError, match=r"ratings.dat: .*; expected a user, an item and a rating"):
        bench_mf.movielens(path, tmp_path)


def test_ours_learns_what_the_peers_learn(prepared: Prepared) -> None:
    setting = bench_mf.SETTINGS[0]
    report = bench_mf.train(prepared.source, setting, dim=8, epochs=3, share=bench_mf.HELD_OUT)
    bench_mf._check(prepared, report)
    assert [told["pass"] for told in report["passes"]] == [1, 2, 3]
    assert all(0.5 < told["held_out_rmse"] < 1.5 for told in report["passes"])
    assert report["epoch_cpu_seconds"] >= 0
    assert report["process_peak_rss_bytes"] > 0
    whole = bench_mf.train(prepared.source, setting, dim=8, epochs=2)
    with pytest.raises(RuntimeError, match=r"ours learned 4000 ratings, peers 3\d\d\d"):
        bench_mf._check(prepared, whole)


def test_quality_is_the_best_of_all_settings() -> None:
    quality = Quality({(0.1, 0.05): {1: 1.0, 2: 0.95, 3: 0.96}, (0.05, 0.05): {1: 0.99, 2: 0.97}})
    assert quality.best == (0.95, 2, (0.1, 0.05))
    assert quality.epochs_to(0.99) == 1
    assert quality.epochs_to(0.97) == 2
    assert quality.epochs_to(0.94) is None


# What the contenders reach, pass by pass, at any setting.
OURS, THEIRS = (0.95, 0.90, 0.88), (0.96, 0.92, 0.90)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have contenders that do nothing; return which ran, in order."""
    ran = []

    def train(source: Path, setting: Any, *, dim: int, epochs: int, **kinds: Any) -> dict[str, Any]:
        lanes, share = kinds.get("lanes", 1), kinds.get("share", 0.0)
        ran.append(f"ours {dim} {lanes} {epochs} {share:g} {setting[0]}")
        told = {"examples_per_second": 3600.0, "seconds": 1.0}
        passes = [{"pass": i, "held_out_rmse": r, **told} for i, r in enumerate(OURS, 1)]
        return {
            "passes": passes,
            "duplicates": 0,
            "epoch_seconds": 1.0,
            "epoch_cpu_seconds": 2.0,
            "process_seconds": 5.0,
            "process_cpu_seconds": 6.0,
            "process_peak_rss_bytes": 10**8,
        }

    def run(program: Path, learned: Path, *, dim: int, epochs: int, **kinds: Any) -> dict[str, Any]:
        ran.append(f"libmf {dim} {kinds.get('threads', 1)} {epochs} {kinds.get('held_out')}")
        return {
            "held_out_rmse": list(THEIRS),
            "epoch_seconds": 3.0,
            "epoch_cpu_seconds": 9.0,
            "seconds": 5.0,
            "cpu_seconds": 30.0,
            "peak_rss_bytes": 10**7,
        }

    def surprise(learned: Path, held_out: Path, *, epochs: int, **kinds: Any) -> dict[str, Any]:
        ran.append(f"surprise {kinds['dim']} {epochs}")
        speed = {"epoch_seconds": 18.0, "epoch_cpu_seconds": 18.0, "peak_rss_bytes": 10**9}
        return {"rmse": 0.9 + 1 / epochs, **speed}

    monkeypatch.setattr(bench_mf, "train", train)
    monkeypatch.setattr(libmf, "run", run)
    monkeypatch.setattr(surprise_svd, "run", surprise)
    return ran


def _set(truth_rmse: float | None = None) -> Prepared:
    return Prepared("set", Path("s"), Path("l"), Path("h"), 4000, 400, 40, 200, truth_rmse)


def test_rounds_are_interleaved_after_quality_is_known(order: list[str]) -> None:
    peers: dict[str, Path | None] = {"libmf": LIBMF, "surprise": None}
    rows = bench_mf.compare(_set(), 32, epochs=3, lanes=[1, 2], rounds=2, peers=peers)
    assert [(row["name"], row["lanes"]) for row in rows] == [
        ("streamlearn", 1),
        ("LIBMF", 1),
        ("streamlearn", 2),
        ("LIBMF", 2),
        ("surprise", 1),
    ]
    tuned = [f"ours 32 1 3 0.1 {setting[0]}" for setting in bench_mf.SETTINGS]
    tuned += ["libmf 32 1 3 h"] * 4 + ["surprise 32 1", "surprise 32 3"] * 4
    warm = ["ours 32 1 2 0 0.02", "ours 32 2 2 0 0.02"]
    round_ = ["ours 32 1 5 0 0.02", "libmf 32 1 5 None", "ours 32 2 5 0 0.02", "libmf 32 2 5 None"]
    assert order == [*tuned, *warm, *round_, *round_]


def test_rates_and_times_are_of_a_pass(order: list[str]) -> None:
    peers: dict[str, Path | None] = {"libmf": LIBMF, "surprise": None}
    rows = bench_mf.compare(_set(), 32, epochs=3, lanes=[1], rounds=1, peers=peers)
    ours, theirs, surprise = rows
    # a timed pass of ours has all ratings, one of a peer those that are not held out
    assert ours["ratings_per_cpu_second"] == 4000 / 2
    assert ours["ratings_per_second"] == 4000
    assert theirs["ratings_per_cpu_second"] == 3600 / 9
    assert surprise["ratings_per_cpu_second"] == 3600 / 18
    assert [row["best_rmse"] for row in rows] == [0.88, 0.9, 0.9 + 1 / 3]
    assert [row["best_epoch"] for row in rows] == [3, 3, 3]
    assert [row["epochs_to_target"] for row in rows] == [2, 3, None]
    assert ours["cpu_seconds_to_target"] == pytest.approx(2 * 2 * 0.9)
    assert theirs["cpu_seconds_to_target"] == 27
    assert surprise["cpu_seconds_to_target"] is None


def test_quality_is_not_asked_for_at_large_dims_nor_surprise_for_generated_ratings(
    order: list[str],
) -> None:
    peers: dict[str, Path | None] = {"libmf": LIBMF, "surprise": None}
    rows = bench_mf.compare(_set(), 2048, epochs=3, lanes=[1], rounds=1, peers=peers)
    assert order == ["ours 2048 1 2 0 0.02", "ours 2048 1 5 0 0.02", "libmf 2048 1 5 None"]
    assert not any("best_rmse" in row for row in rows)
    rows = bench_mf.compare(_set(0.845), 32, epochs=3, lanes=[1], rounds=1, peers=peers)
    assert [row["name"] for row in rows] == ["streamlearn", "LIBMF"]


def test_without_peers_the_target_is_our_own(order: list[str]) -> None:
    (row,) = bench_mf.compare(_set(), 32, epochs=3, lanes=[1], rounds=1, peers={})
    assert row["target_rmse"] == 0.88
    assert row["epochs_to_target"] == 3
    assert not any("libmf" in what for what in order)


def test_table_has_a_line_for_each_row_and_the_ratios(
    order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    peers: dict[str, Path | None] = {"libmf": LIBMF, "surprise": None}
    rows = bench_mf.compare(_set(), 32, epochs=3, lanes=[1], rounds=1, peers=peers)
    rows += bench_mf.compare(_set(), 2048, epochs=3, lanes=[1], rounds=1, peers=peers)
    json.dumps(rows)
    capsys.readouterr()
    bench_mf.show(_set(), rows)
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({line.count("|") for line in table}) == 1
    assert "| 32 | streamlearn | 1 | 0.00 | 0.00 | 5.00 |" in said
    assert "| 32 | surprise | 1 | 0.00 | 0.00 | 0.50 |" in said
    assert "dim 32: LIBMF's best RMSE in 7.5 x less CPU than LIBMF" in said


def test_peers_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no such program"):
        bench_mf.peer(f"libmf={tmp_path}")
    (tmp_path / "mf-train").touch()
    assert bench_mf.peer(f"libmf={tmp_path}") == ("libmf", tmp_path / "mf-train")
    with pytest.raises(argparse.ArgumentTypeError, match="'libmf' is no peer"):
        bench_mf.peer("libmf")
    monkeypatch.setattr(surprise_svd, "installed", lambda: False)
    with pytest.raises(argparse.ArgumentTypeError, match="not installed"):
        bench_mf.peer("surprise")
    monkeypatch.setattr(surprise_svd, "installed", lambda: True)
    assert bench_mf.peer("surprise") == ("surprise", None)


def test_lists_of_numbers_of_the_command_line() -> None:
    assert bench_mf._numbers("32,256") == [32, 256]
    for wrong in ("", "0", "1,x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected numbers from 1 on"):
            bench_mf._numbers(wrong)
