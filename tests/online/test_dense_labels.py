"""Labels of arrays: what each loss takes, as numbers and as texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamlearn.online.dense_labels import DenseLabels
from streamlearn.online.formats import Deep

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("deep", "good", "bad"),
    [
        (Deep("classes", 3), [0, 1, 2], [3, -1, 0.5, NAN, INF]),
        (Deep("logistic", 0), [0, 1], [2, -1, 0.5, NAN, INF]),
        (Deep("squared", 0), [0, -7.25, 3e38], [NAN, INF, -INF, 1e39]),
    ],
)
def test_numbers_are_what_the_loss_asks_for(deep, good, bad):
    labels = DenseLabels(deep, ())
    fit = labels.fit(np.array([*good, *bad], np.float64))
    assert fit.tolist() == [True] * len(good) + [False] * len(bad)
    assert [labels.number(one) for one in good] == good
    assert all(math.isnan(labels.number(one)) for one in bad)


@pytest.mark.parametrize(
    ("deep", "classes", "texts"),
    [
        (Deep("classes", 3), (), {"2": 2, " 1\n": 1, "2.0": 2, "3": NAN, "cat": NAN, "": NAN}),
        (Deep("classes", 2), ("cat", "dog"), {"dog\n": 1, "cat": 0, "1": NAN, "bird": NAN}),
        (Deep("logistic", 0), (), {"1": 1, "-1": 0, "true": 1, "no": 0, "2": NAN, "x": NAN}),
        (Deep("squared", 0), (), {"-2.5\n": -2.5, "1e3": 1000, "inf": NAN, "nan": NAN, "x": NAN}),
    ],
)
def test_texts_are_numbers_or_none(deep, classes, texts):
    labels = DenseLabels(deep, classes)
    np.testing.assert_array_equal([labels.number(text) for text in texts], list(texts.values()))


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"1", 10**400])
def test_what_is_no_label_at_all(value):
    assert math.isnan(DenseLabels(Deep("squared", 0), ()).number(value))


def test_what_was_expected_is_said():
    assert DenseLabels(Deep("classes", 10), ()).expected == "a whole number from 0 to 9"
    assert DenseLabels(Deep("logistic", 0), ()).expected == "0 or 1"
    assert DenseLabels(Deep("squared", 0), ()).expected == "a finite number"
    assert DenseLabels(Deep("classes", 2), ("a", "b")).expected_text == "one of a, b"
    many = DenseLabels(Deep("classes", 30), tuple(map(str, range(30)))).expected_text
    assert many.endswith(", 19, …")
