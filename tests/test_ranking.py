"""The best items of users, in blocks, without those that they have seen."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn import ranking
from streamlearn.ranking import Ranking, seen_by
from tests.reference import top as reference


def factors(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_blocks_have_no_seams_and_scores_are_inner_products(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    users, items, biases = factors(50, 20, 1), factors(311, 20, 2), factors(311, 1, 3)[:, 0]
    whole, scores = Ranking(items, biases).best(users, n)
    expected = reference.best(users, items, biases, n)
    assert whole.tolist() == [[item for _, item in row] for row in expected]
    np.testing.assert_allclose(
        scores, [[score for score, _ in row] for row in expected], rtol=1e-5, atol=1e-5
    )
    monkeypatch.setattr(ranking, "_BLOCK", 13)
    for cut, again in zip((whole, scores), Ranking(items, biases).best(users, n), strict=True):
        assert (cut == again).all()


def test_what_was_seen_is_left_out_and_nothing_is_where_all_was() -> None:
    users, items = factors(300, 8, 4), factors(40, 8, 5)
    rng = np.random.default_rng(6)
    pairs = [(u, i) for u in range(300) for i in np.flatnonzero(rng.random(40) < 0.5).tolist()]
    pairs += [(299, item) for item in range(40)] + pairs[:10]
    words = np.array([user << 32 | item for user, item in pairs], np.uint64)
    rng.shuffle(words)
    seen = seen_by(words, 300)
    found, scores = Ranking(items, np.zeros(40, np.float32)).best(users, 25, seen)
    held = [sorted({item for user, item in pairs if user == u}) for u in range(300)]
    for u, row in enumerate(reference.best(users, items, np.zeros(40), 25, held)):
        missing = 25 - len(row)
        assert found[u].tolist() == [item for _, item in row] + [-1] * missing
        assert np.isnan(scores[u]).sum() == missing
    assert (found[299] == -1).all()


def test_there_are_no_more_items_than_there_are() -> None:
    users = factors(3, 4, 7)
    found, scores = Ranking(factors(2, 4, 8), np.zeros(2, np.float32)).best(users, 10)
    assert found.shape == scores.shape == (3, 2)
    assert np.sort(found, axis=1).tolist() == [[0, 1]] * 3
    none, _ = Ranking(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).best(users, 10)
    assert none.shape == (3, 0)
    nobody, _ = Ranking(factors(2, 4, 8), np.zeros(2, np.float32)).best(users[:0], 10)
    assert nobody.shape == (0, 2)
