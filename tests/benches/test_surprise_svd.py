from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import netflix_ratings
import surprise_svd


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ratings")
    drawn = netflix_ratings.draw(2000, 1, users=100, items=80, held_out=0.1)
    netflix_ratings.write(drawn.learned, folder / "learned", "libmf")
    netflix_ratings.write(drawn.held_out, folder / "held", "libmf")
    return folder / "learned", folder / "held"


def test_missing_package_is_one_clear_sentence(
    ratings: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surprise_svd, "installed", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="not installed: pip install scikit-surprise=="):
        surprise_svd.learn(*ratings, dim=4, rate=0.01, l2=0.05, epochs=2)


@pytest.mark.full
def test_learns_what_stands_in_the_files(ratings: tuple[Path, Path]) -> None:
    pytest.importorskip("surprise", reason="comes with the extra `bench`")
    result = surprise_svd.learn(*ratings, dim=4, rate=0.01, l2=0.05, epochs=20)
    learned, held = (np.loadtxt(path) for path in ratings)
    assert result["ratings"] == len(learned)
    constant = np.sqrt(((held[:, 2] - learned[:, 2].mean()) ** 2).mean())
    assert 0.7 < result["rmse"] < constant


@pytest.mark.full
def test_predictions_are_its_own(ratings: tuple[Path, Path]) -> None:
    surprise = pytest.importorskip("surprise", reason="comes with the extra `bench`")
    rows = np.loadtxt(ratings[0]).astype(int).tolist()
    reader = surprise.Reader(rating_scale=(1, 5))
    known = surprise.Dataset(reader).construct_trainset([(*row, None) for row in rows])
    model = surprise.SVD(n_factors=4, n_epochs=3, random_state=1).fit(known)
    # a user and an item that it knows, and one of each that it does not
    pairs = np.array([rows[0][:2], (rows[0][0], 999), (999, rows[0][1]), (999, 999)])
    expected = [model.predict(*pair, clip=False).est for pair in pairs.tolist()]
    assert surprise_svd._predict(model, known, pairs) == pytest.approx(expected)
