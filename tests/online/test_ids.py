"""Users and items in all forms that they are handed in, and what is wrong with others."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from streamlearn.online.ids import Ids, named, read_column, read_pairs, read_rating, read_ratings
from streamlearn.online.ratings import rating_keys

USERS, ITEMS = [3, 7, 3], [10, 11, 12]
TEXTS = [("u1", "i1"), ("ü", "i 2"), ("u1", "x" * 300)]


def keys(users: list[Any], items: list[Any]) -> list[list[int]]:
    return np.stack(rating_keys(list(map(str, users)), list(map(str, items))), axis=1).tolist()


@pytest.mark.parametrize(
    "form",
    [
        np.array,
        lambda rows: np.array(rows, np.uint16),
        lambda rows: np.array(rows, np.float64),
        lambda rows: np.array(rows).astype(str),
        lambda rows: np.array(rows).astype(object),
        list,
        tuple,
        lambda rows: [list(row) for row in rows],
        lambda rows: [(float(user), np.int32(item)) for user, item in rows],
        lambda rows: [{"user": user, "item": item, "when": 3} for user, item in rows],
        lambda rows: list(np.array(rows)),
        lambda rows: pd.DataFrame(rows, columns=["a", "b"]),
        lambda rows: pd.DataFrame(rows),
        lambda rows: pd.DataFrame(rows, columns=["a", "b"]).astype("category"),
        lambda rows: pd.DataFrame(rows, columns=["a", "b"]).astype("Int64"),
        lambda rows: pd.DataFrame(rows, columns=["a", "b"]).astype("string"),
    ],
)
def test_whole_numbers_have_the_keys_of_their_digits(form: Any) -> None:
    pairs = read_pairs(form(list(zip(USERS, ITEMS, strict=True))))
    assert pairs.keys.tolist() == keys(USERS, ITEMS)


@pytest.mark.parametrize(
    "form",
    [list, lambda rows: np.array(rows, object), np.array, lambda rows: pd.DataFrame(rows)],
)
def test_texts_have_the_keys_of_their_bytes(form: Any) -> None:
    pairs = read_pairs(form(TEXTS))
    assert pairs.keys.tolist() == keys([u for u, _ in TEXTS], [i for _, i in TEXTS])
    described = named(pairs, [1, 2])
    assert described.keys.tolist() == pairs.keys[1:].reshape(-1).tolist()
    assert described.fields.tolist() == [0, 1, 0, 1]
    text = described.text.tobytes().decode()
    assert text == "üi 2u1" + "x" * 300
    assert described.ends.tolist() == [2, 5, 7, 307]


def test_names_of_a_frame_are_kept() -> None:
    frame = pd.DataFrame({"who": [1], "what": [2]})
    assert read_pairs(frame).names == ("who", "what")
    assert read_pairs(frame.to_numpy()).names is None
    with pytest.raises(ValueError, match="columns are item and user, expected user and item"):
        read_pairs(pd.DataFrame({"item": [1], "user": [2]}))


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (np.zeros(3), ValueError, "Expected 2D array, got 1D array instead"),
        ([1, 2], ValueError, "Expected 2D array, got 1D array instead"),
        (["ab", "cd"], ValueError, "Expected 2D array, got 1D array instead"),
        (np.zeros((2, 3)), ValueError, "X has 3 columns, expected two: user and item"),
        (pd.DataFrame({"a": [1]}), ValueError, "X has 1 columns, expected two"),
        ([(1, 2), (1, 2, 3)], ValueError, r"X\[1\] has 3 values, expected two"),
        ([{"user": 1}], ValueError, r"X\[0\] has \['user'\], expected user and item"),
        ({"user": [1], "item": [2]}, TypeError, "X is dict, expected pairs of user and item"),
        ("ab", TypeError, "X is str"),
        (7, TypeError, "X is int"),
        (sp.eye(2, format="csr"), TypeError, "X is a sparse matrix, expected pairs"),
        (np.array([[1.0, np.nan]]), ValueError, "NaN or infinity: item in row 0 is nan"),
        (np.array([[1.0, 1], [np.inf, 1]]), ValueError, "NaN or infinity: user in row 1 is inf"),
        ([(None, 1)], ValueError, "NaN or None: the user in row 0 is missing"),
        ([("a", 1), ("b", float("nan"))], ValueError, "the item in row 1 is missing"),
        (pd.DataFrame({"u": ["a", None], "i": [1, 2]}), ValueError, "the user in row 1 is missing"),
        (pd.DataFrame({"u": [1], "i": pd.array([pd.NA], "Int64")}), ValueError, "item in row 0"),
        ([("", 1)], ValueError, r"users\[0\] is empty"),
        (np.array([[1j, 2]]), TypeError, "Complex data not supported"),
    ],
)
def test_what_is_no_pair_is_said(x: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_pairs(x)


def given_back(kind: str, ids: Any) -> np.ndarray:
    """Return ids as they come back after they were learned."""
    column, known = read_column(kind, ids), Ids()
    known.meet(column)
    texts = [str(one)[:200] for one in column.ids]
    return known.array(known.give_back(column.keys, texts))


def test_ids_come_back_as_they_were() -> None:
    numbers = given_back("user", np.array([3, -4], np.int32))
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [3, -4]
    assert given_back("user", [3.0, 4]).dtype == np.int64
    texts = given_back("item", ["a", "007"])
    assert texts.dtype.kind == "U"
    assert texts.tolist() == ["a", "007"]
    assert given_back("item", np.array(["a", "b"])).tolist() == ["a", "b"]
    odd = [uuid.UUID(int=5), ("a", 1), b"raw", True, 2.5]
    assert given_back("user", odd).tolist() == odd
    long = ["x" * 300, "y"]
    assert given_back("user", long).tolist() == long
    huge = given_back("user", [1 << 80, 2])
    assert huge.tolist() == [1 << 80, 2]
    assert given_back("user", ["a", 7]).tolist() == ["a", "7"]


def test_ratings_are_finite_numbers_one_a_row() -> None:
    for y in ([1, 2.5], np.array([[1], [2.5]]), pd.Series([1, 2.5], index=[7, 9])):
        found = read_ratings(y, 2, binary=False)
        assert found.dtype == np.float32
        assert found.tolist() == [1, 2.5]
    assert read_ratings([True, False], 2, binary=True).tolist() == [1, 0]
    for y, rows, said in (
        (None, 1, "requires y to be passed"),
        ([1, np.nan], 2, r"y\[1\] is nan"),
        ([np.inf], 1, "NaN or infinity"),
        ([1e39], 1, "NaN or infinity"),
        (["a"], 1, "values that are no numbers"),
        ([[1, 2]], 1, "1d array"),
        ([1, 2], 3, "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=said):
            read_ratings(y, rows, binary=False)
    with pytest.raises(ValueError, match=r'y\[1\] is 0.5, but loss="logistic" learns 0 and 1'):
        read_ratings([1, 0.5], 2, binary=True)


def test_one_rating_is_read_as_many_are() -> None:
    for y in (3, 3.0, np.float32(3), np.int64(3), True):
        assert read_rating(y, binary=False) == float(y)
    for y in (float("nan"), float("inf"), 1e39, np.nan, None, "a"):
        with pytest.raises(ValueError, match=r"y"):
            read_rating(y, binary=False)
    with pytest.raises(ValueError, match="learns 0 and 1"):
        read_rating(3, binary=True)
