"""Users and items of a model are told apart, and stand in the order in which they were met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamlearn.errors import ConfigError
from streamlearn.factorized import Places, factorized, ids_of, need_factorization
from streamlearn.model import Model, load
from streamlearn.shards.table import ExactTable
from tests.rated import learned, ratings
from tests.runs import run

USERS = list(dict.fromkeys(user for user, _, _ in ratings()))
ITEMS = list(dict.fromkeys(item for _, item, _ in ratings()))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(learned(tmp_path))


def test_users_and_items_stand_in_the_order_in_which_they_were_met(model: Model) -> None:
    it = factorized(model)
    for side, ids, place in ((it.users, USERS, 0), (it.items, ITEMS, 1)):
        assert ids_of(model, side.keys) == ids
        counts = [sum(row[place] == one for row in ratings()) for one in ids]
        assert side.counts.tolist() == counts
        assert (side.biases == model.weights_at(side.keys)).all()
        assert (side.factors == model.embeddings_at(side.keys)).all()
        assert side.factors.shape == (len(ids), 5)
    assert it.mean == model.solver.intercept
    bare = factorized(model, factors=False)
    assert (bare.items.keys == it.items.keys).all()
    assert bare.items.factors.shape == (len(ITEMS), 0)


def test_rows_without_a_number_are_told_apart_by_name(model: Model) -> None:
    before = factorized(model)
    table = model.table
    assert isinstance(table, ExactTable)
    keys = np.concatenate([before.users.keys, before.items.keys])
    table.words[table.find(keys) * 4 + 1] &= np.uint64(0xFFFFFFFF)
    after = factorized(model)
    for side, ids in ((after.users, USERS), (after.items, ITEMS)):
        assert sorted(ids_of(model, side.keys)) == sorted(ids)


def test_who_was_only_held_out_is_not_among_them(tmp_path: Path) -> None:
    source = tmp_path / "few.dat"
    source.write_text("".join(f"u{number}::i{number}::3\n" for number in range(200)))
    flags = ("--model", "mf", "--held-out", 0.5, "--out", tmp_path / "out")
    assert run("train", source, *flags, "--format", "ratings").code == 0
    model = load(tmp_path / "out")
    assert isinstance(model.table, ExactTable)
    it = factorized(model)
    assert len(it.users.keys) == len(it.items.keys) < 150
    assert model.table.features == 400
    assert (it.items.counts == 1).all()


def test_a_name_that_was_not_kept_is_the_key(model: Model) -> None:
    assert ids_of(model, np.array([12345], np.uint64)) == ["#12345"]


def test_places_are_found_and_what_is_missing_is_said() -> None:
    places = Places(np.array([9, 2, 7], np.uint64))
    assert places.find(np.array([7, 1, 9, 100, 2], np.uint64)).tolist() == [2, -1, 0, -1, 1]
    assert Places(np.zeros(0, np.uint64)).find(np.array([7], np.uint64)).tolist() == [-1]


def test_a_model_without_users_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.svm"
    log.write_text("1 1:1\n0 2:1\n")
    assert run("train", log, "--out", tmp_path / "lr").code == 0
    with pytest.raises(ConfigError, match="x needs users and items, but the model is lr"):
        need_factorization(load(tmp_path / "lr"), "x")
