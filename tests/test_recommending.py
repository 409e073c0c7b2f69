"""Recommendations on the command line are what predictions, one by one, would rank first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamlearn.factorized import factorized, ids_of
from streamlearn.model import load
from tests.rated import learned, ratings, written
from tests.runs import run, spawn


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("rated"))


def rows(text: str) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for line in text.splitlines():
        user, item, score = line.split("\t")
        found.setdefault(user, []).append((item, float(score)))
    return found


def predicted(out: Path, pairs: list[tuple[str, str]], tmp_path: Path) -> list[float]:
    """Return what ``predict`` says of pairs."""
    path = tmp_path / "pairs.dat"
    path.write_text("".join(f"{user}::{item}\n" for user, item in pairs))
    ended = run("predict", out, path)
    assert ended.code == 0, ended.stderr
    return [float(line) for line in ended.stdout.splitlines()]


def test_best_items_are_those_of_the_highest_predictions(out: Path, tmp_path: Path) -> None:
    ended = run("recommend", out, "--user", "u7", "--user", "u3", "-n", 4)
    assert ended.code == 0, ended.stderr
    found = rows(ended.stdout)
    assert list(found) == ["u7", "u3"]
    model = load(out)
    items = ids_of(model, factorized(model).items.keys)
    assert sorted(items) == sorted({item for _, item, _ in ratings()})
    for user, best in found.items():
        scores = predicted(out, [(user, item) for item in items], tmp_path)
        order = np.argsort(-np.array(scores), kind="stable")[:4]
        assert [item for item, _ in best] == [items[i] for i in order]
        np.testing.assert_allclose([score for _, score in best], np.array(scores)[order], rtol=1e-5)


def test_what_sources_say_was_rated_is_left_out(out: Path) -> None:
    source = out.parent / "ratings.dat"
    ended = run("recommend", out, source, "-n", 100)
    assert ended.code == 0, ended.stderr
    rated: dict[str, set[str]] = {}
    for user, item, _ in ratings():
        rated.setdefault(user, set()).add(item)
    found = rows(ended.stdout)
    everything = {item for _, item, _ in ratings()}
    for user, items in rated.items():
        assert {item for item, _ in found.get(user, [])} == everything - items
    assert list(found) == [user for user in rated if user in found]  # as they were met
    assert "seen             3,000" in ended.stderr
    few = run("recommend", out, source, "--user", "u9", "-n", 100)
    assert rows(few.stdout) == {"u9": found["u9"]}


def test_ratings_in_another_layout_are_left_out_as_well(out: Path, tmp_path: Path) -> None:
    best = rows(run("recommend", out, "--user", "u9", "-n", 2).stdout)["u9"]
    seen = tmp_path / "seen.csv"
    seen.write_text(f"item,user\n{best[0][0]},u9\n{best[1][0]},u8\n")
    ended = run("recommend", out, seen, "--header", "--user", "u9", "-n", 1)
    assert rows(ended.stdout)["u9"] == [best[1]], ended.stderr


def test_users_may_stand_in_a_file_and_count_once(out: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u2\r\n\nu1\nu2\n")
    ended = run("recommend", out, "--user", "u5", "--users", users, "-n", 1, "--json")
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["user"] for one in found] == ["u5", "u2", "u1"]
    assert set(found[0]) == {"user", "item", "score"}
    piped = spawn("recommend", out, "--users", "-", "-n", 1, stdin=b"u5\nu2\nu1\n")
    text = rows(piped.stdout)
    for one in found:
        ((item, score),) = text[one["user"]]
        assert item == one["item"]
        assert score == pytest.approx(one["score"], rel=1e-5)
    users.write_text("")
    assert run("recommend", out, "--users", users).stdout == ""


def test_unknown_users_are_given_the_items_of_highest_bias(out: Path) -> None:
    ended = run("recommend", out, "--user", "U12", "--user", "u1", "-n", 3)
    assert ended.code == 0
    model = load(out)
    items = factorized(model).items
    order = np.argsort(-items.biases, kind="stable")[:3]
    best = rows(ended.stdout)["U12"]
    assert [item for item, _ in best] == ids_of(model, items.keys[order])
    expected = items.biases[order] + model.solver.intercept
    np.testing.assert_allclose([score for _, score in best], expected, rtol=1e-5)
    assert "1 of 2 users are not in the model, 'U12' the first (did you mean 'u12'?)" in (
        ended.stderr
    )


def test_logistic_scores_are_probabilities(tmp_path: Path) -> None:
    rows_ = [(user, item, float(value > 3)) for user, item, value in ratings()]
    source = written(tmp_path / "liked.dat", rows_)
    flags = ("--model", "mf", "--loss", "logistic", "--dim", 4, "--epochs", 3)
    assert run("train", source, *flags, "--out", tmp_path / "out").code == 0
    ended = run("recommend", tmp_path / "out", "--user", "u1", "-n", 60)
    scores = [score for _, score in rows(ended.stdout)["u1"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] < 1


def test_what_cannot_be_recommended_is_one_sentence(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = run("recommend", tmp_path / "none")
    assert nothing.code == 2
    assert "error: there is no model in" in nothing.stderr
    log = tmp_path / "log.svm"
    log.write_text("1 1:1\n0 2:1\n")
    assert run("train", log, "--out", tmp_path / "lr").code == 0
    other = run("recommend", tmp_path / "lr")
    assert other.code == 2
    assert "recommend needs users and items, but the model is lr" in other.stderr
    missing = run("recommend", out, "--users", tmp_path / "nowhere")
    assert missing.code == 2
    assert "cannot be read" in missing.stderr
    twice = run("recommend", out, "-", "--users", "-")
    assert twice.code == 2
    assert "standard input can be read once" in twice.stderr
    assert run("recommend", out, "--user", "").code == 2
    full = run("recommend", out, out.parent / "ratings.dat", "--set", "tables.ratings_bytes_max=99")
    assert full.code == 1
    assert "tables.ratings_bytes_max = 99" in full.stderr
