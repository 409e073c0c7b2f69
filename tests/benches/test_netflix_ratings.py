from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import netflix_ratings
from netflix_ratings import Drawn, Order, Ratings, draw, generate, held_path, write

USERS, RATINGS = 4000, 837_009  # as dense as the Netflix prize's


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw(RATINGS, seed=1)


def _pairs(ratings: Ratings) -> np.ndarray:
    return ratings.users.astype(np.int64) << 32 | ratings.items


def _rows(ratings: Ratings) -> np.ndarray:
    columns = ratings.users, ratings.items, ratings.stars, ratings.timestamps
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def _sorted(rows: np.ndarray) -> list[list[int]]:
    return sorted(rows.tolist())


def test_as_many_ratings_as_asked_for_by_users_in_proportion(drawn: Drawn) -> None:
    assert len(drawn.learned.stars) == RATINGS
    assert drawn.known["users"] == USERS
    assert len(drawn.held_out.stars) == 0
    for ids, last in ((drawn.learned.users, USERS), (drawn.learned.items, netflix_ratings.ITEMS)):
        assert 1 <= ids.min() < ids.max() <= last


def test_no_pair_is_there_twice(drawn: Drawn) -> None:
    assert len(np.unique(_pairs(drawn.learned))) == RATINGS


def test_users_degrees_are_those_of_the_real_ones(drawn: Drawn) -> None:
    degrees = np.bincount(drawn.learned.users)[1:]
    # three standard errors of a median of so many; the largest of them is expected at 4,000
    assert np.median(degrees) == pytest.approx(96, abs=8)
    assert np.quantile(degrees, 0.25) == pytest.approx(32, abs=5)
    assert np.quantile(degrees, 0.75) == pytest.approx(252, abs=25)
    assert 3000 < degrees.max() < 6000
    assert drawn.known["users_rating"] == np.count_nonzero(degrees) > 0.99 * USERS


def test_items_degrees_are_those_of_the_real_ones(drawn: Drawn) -> None:
    degrees = np.sort(np.bincount(drawn.learned.items)[1:])[::-1]
    assert degrees[0] / USERS == pytest.approx(0.49, abs=0.03)
    median = degrees[np.searchsorted(np.cumsum(degrees), RATINGS // 2)]
    assert median / USERS == pytest.approx(0.12, abs=0.01)
    # the item in the middle has 561 of 480,189 there
    assert degrees[netflix_ratings.ITEMS // 2] / USERS == pytest.approx(561 / 480_189, rel=0.3)


def test_ids_say_nothing_of_degrees(drawn: Drawn) -> None:
    for ids in (drawn.learned.users, drawn.learned.items):
        degrees = np.bincount(ids)[1:]
        ranks = np.argsort(np.argsort(degrees))
        assert abs(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1]) < 4 / math.sqrt(len(ranks))


def test_stars_and_the_truths_error_are_what_was_aimed_at(drawn: Drawn) -> None:
    stars = drawn.learned.stars
    assert set(np.unique(stars)) == {1, 2, 3, 4, 5}
    assert stars.mean() == pytest.approx(3.60, abs=0.02)
    assert stars.std() == pytest.approx(1.083, abs=0.02)
    assert drawn.known["mean"] == pytest.approx(stars.mean())
    assert drawn.known["deviation"] == pytest.approx(stars.std())
    assert drawn.known["learned"]["truth_rmse"] == pytest.approx(0.845, abs=0.005)


def test_users_and_items_deviate_from_the_mean(drawn: Drawn) -> None:
    # what biases explain of the stars, at least: means of frequent users, of frequent items
    for ids in (drawn.learned.users, drawn.learned.items):
        counts = np.bincount(ids)
        means = np.bincount(ids, drawn.learned.stars) / np.maximum(counts, 1)
        frequent = counts > 300
        assert 0.3 < np.average(means[frequent], weights=counts[frequent]) - 3 < 0.9
        assert 0.3 < means[frequent].std() < 0.55


def test_the_truths_error_is_reproduced_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truths = []
    made = netflix_ratings._truth

    def truth(*args: object) -> object:
        truths.append(made(*args))  # type: ignore[arg-type]
        return truths[-1]

    monkeypatch.setattr(netflix_ratings, "_truth", truth)
    drawn = draw(20_000, seed=3, items=500, held_out=0.2)
    known = generate(tmp_path / "ratings.tab", "tab", drawn)
    mean, noise, user_biases, item_biases, user_factors, item_factors, *_ = truths[0]
    for path, name in (
        (tmp_path / "ratings.tab", "learned"),
        (tmp_path / "ratings.held.tab", "held_out"),
    ):
        users, items, stars, _ = np.loadtxt(path, np.int64, delimiter="\t").T
        users, items = users - 1, items - 1
        terms = mean + user_biases[users] + item_biases[items]
        terms += (user_factors[users] * item_factors[items]).sum(1)
        # the expectation of stars: the chances that rounded and cut they exceed 1, 2, 3 and 4
        above = [
            [math.erfc((k + 0.5 - term) / noise / math.sqrt(2)) / 2 for k in range(1, 5)]
            for term in terms
        ]
        errors = stars - 1 - np.array(above).sum(1)
        said = known[name]
        assert said["ratings"] == len(stars)
        assert said["truth_rmse"] == pytest.approx(math.sqrt((errors**2).mean()), rel=1e-5)
        assert said["truth_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
        # nothing that is known of a pair predicts better than its expectation
        assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(len(errors))


@pytest.mark.parametrize("form", netflix_ratings.FORMS)
def test_text_equals_arrays(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netflix_ratings, "BLOCK_RATINGS", 1000)
    drawn = draw(5500, seed=2, items=300)
    text, arrays = tmp_path / "text", tmp_path / "arrays"
    assert write(drawn.learned, text, form) == text.stat().st_size
    assert write(drawn.learned, arrays, "npz") == arrays.stat().st_size
    expected = np.load(arrays)
    lines = text.read_text().splitlines()
    if form == "csv":
        assert lines[0] == "userId,movieId,rating,timestamp"
        assert all(line.split(",")[2].endswith(".0") for line in lines[1:])
        lines = lines[1:]
    between = {"dat": "::", "tab": "\t", "csv": ",", "libmf": " "}[form]
    rows = [[int(float(field)) for field in line.split(between)] for line in lines]
    names = ["users", "items", "stars", "timestamps"][: 3 if form == "libmf" else 4]
    assert rows == np.stack([expected[name].astype(np.int64) for name in names], axis=1).tolist()


def test_json_says_what_stands_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    known = generate(path, "dat", draw(5000, seed=2, items=300, held_out=0.1))
    assert known == json.loads((tmp_path / "ratings.dat.json").read_text())
    assert known["learned"]["bytes"] == path.stat().st_size
    assert known["held_out"]["bytes"] == held_path(path).stat().st_size
    assert known["format"] == "dat"
    assert known["seed"] == 2


def test_a_seed_draws_the_same_again_and_another_something_else() -> None:
    first, again, other = (draw(5000, seed, items=300, held_out=0.1) for seed in (1, 1, 2))
    for part in ("learned", "held_out"):
        assert np.array_equal(_rows(getattr(first, part)), _rows(getattr(again, part)))
    assert first.known == again.known
    common = np.isin(_pairs(first.learned), _pairs(other.learned)).mean()
    assert common < 0.2


@pytest.mark.parametrize("order", ["item", "time"])
def test_order_changes_nothing_else(order: Order) -> None:
    by_user = draw(5000, 1, items=300, held_out=0.1)
    other = draw(5000, 1, items=300, held_out=0.1, order=order)
    for part in ("learned", "held_out"):
        rows, expected = (_rows(getattr(drawn, part)) for drawn in (other, by_user))
        assert rows.tolist() != expected.tolist()
        assert _sorted(rows) == _sorted(expected)


@pytest.mark.parametrize(("order", "column"), [("user", 0), ("item", 1), ("time", 3)])
def test_ratings_are_in_order_and_within_it_by_time(order: Order, column: int) -> None:
    rows = _rows(draw(5000, 1, items=300, order=order).learned)
    keys = list(zip(rows[:, column].tolist(), rows[:, 3].tolist(), strict=True))
    assert keys == sorted(keys)


def test_held_out_share_is_kept_and_nobody_starves() -> None:
    drawn = draw(200_000, 1, held_out=0.25)
    learned, held = drawn.learned, drawn.held_out
    assert len(held.stars) / 200_000 == pytest.approx(0.25, abs=0.01)
    assert len(np.unique(np.concatenate([_pairs(learned), _pairs(held)]))) == 200_000
    # nearly half of the items are rated once or not at all, so the hash alone would starve some
    assert np.isin(held.users, learned.users).all()
    assert np.isin(held.items, learned.items).all()


def test_held_out_ratings_are_those_of_the_whole() -> None:
    whole = draw(5000, 1, items=300)
    parts = draw(5000, 1, items=300, held_out=0.1)
    rows = np.concatenate([_rows(parts.learned), _rows(parts.held_out)])
    assert _sorted(rows) == _sorted(_rows(whole.learned))


def test_few_users_and_items_may_be_dense() -> None:
    drawn = draw(300, 1, users=30, items=20)
    assert len(np.unique(_pairs(drawn.learned))) == 300
    assert drawn.learned.users.max() <= 30
    assert drawn.learned.items.max() <= 20


@pytest.mark.parametrize(
    ("ratings", "changes", "message"),
    [
        (301, {"users": 30, "items": 20}, "ratings is 301; expected 1 to half of 30 users x 20"),
        (0, {"users": 30}, "ratings is 0"),
        (10, {"users": 30, "items": 0}, "users, items are 30, 0"),
        (10, {"users": 30, "held_out": 1.0}, r"held_out is 1.0; expected 0 <= held_out < 1"),
    ],
)
def test_what_cannot_be_is_refused(ratings: int, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(ratings, 1, **changes)  # type: ignore[arg-type]
