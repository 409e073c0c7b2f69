"""A cut is the table as it was when it began, whatever happens to it since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import FmConfig
from streamlearn.errors import TableFullError
from streamlearn.online.minibatch import Minibatch
from streamlearn.shards import cut as cuts
from streamlearn.shards.arena import Arena
from streamlearn.shards.cut import Cut, Nothing, Part
from streamlearn.shards.hashed import HashedTable
from streamlearn.shards.table import ExactTable
from tests.reference.embeddings import as_bytes, check_arena, embeddings_in, embeddings_of
from tests.reference.tables import Learning, check_layout, image, minibatch, small_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = np.unique(
    np.random.default_rng(1).integers(0, 1 << 63, 6000, np.uint64) << np.uint64(1) | np.uint64(1)
)


def keys_of(seed: int, n: int) -> NDArray[np.uint64]:
    """Return a few keys, some over and over, some rarely."""
    places = np.random.default_rng(seed).pareto(0.4, n) * 20
    order = np.random.default_rng(0).permutation(len(VOCABULARY))
    return VOCABULARY[order[places.astype(np.int64) % len(VOCABULARY)]]


def lesson(seed: int, examples: int, width: int) -> Minibatch:
    rng = np.random.default_rng(seed)
    return minibatch(
        [np.unique(keys_of(seed + i * 1000, width)) for i in range(examples)],
        rng.integers(0, 2, examples).tolist(),
    )


def taken(table: ExactTable | HashedTable, parts: list[Part]) -> NDArray:
    """Return the image that parts make, in any order, as ``image`` would."""
    if isinstance(table, HashedTable):
        return np.concatenate([part.rows for part in sorted(parts, key=lambda part: part.number)])
    for part in parts:
        assert (np.diff(part.rows[:, 0].astype(object)) > 0).all(), "rows of a part come by key"
    rows = np.concatenate([part.rows for part in parts]) if parts else np.empty((0, 4), np.uint64)
    assert len(np.unique(rows[:, 0])) == len(rows)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def embedded(table: ExactTable | HashedTable) -> object:
    """Return all embeddings, to be compared with ``taken_embeddings``."""
    if isinstance(table, HashedTable):
        return table.vectors.values.tobytes() if table.vectors is not None else b""
    return as_bytes(embeddings_of(table)) if table.arena is not None else {}


def taken_embeddings(table: ExactTable | HashedTable, parts: list[Part]) -> object:
    if isinstance(table, HashedTable):
        ordered = sorted(parts, key=lambda part: part.number)
        return b"".join(part.vectors.tobytes() for part in ordered)
    out: dict[int, bytes] = {}
    for part in parts:
        if table.arena is not None:
            out |= as_bytes(embeddings_in(part, table.arena.geometry.tiers))
        else:
            assert len(part.vectors) == 0
    return out


def rows_of(table: ExactTable | HashedTable) -> NDArray:
    """Return the image, of places of embeddings nothing."""
    rows = image(table)
    if isinstance(table, ExactTable) and table.arena is not None:
        rows[:, 3] &= np.uint64(0xFFFF << 48)
    return rows


actions = st.lists(
    st.tuples(
        st.sampled_from(["learn", "learn", "take", "grow"]),
        st.integers(0, 1 << 16),
        st.integers(1, 6),
        st.sampled_from([0, 3, 30, 200]),
    ),
    max_size=14,
)


# Embeddings of all lengths are earned soon, and move a lot.
MACHINE = {"l1": 0.1, "v_lr": 0.1, "v_init_scale": 0.5, "order": 3, "l1_shrk": False}
MODELS = {
    "exact": None,
    "evicting": None,
    "hashed": None,
    "exact-embedded": FmConfig(dim_by_count={"0": 3, "2": 8, "4": 17}, **MACHINE),
    "evicting-embedded": FmConfig(threshold=1, dim=16, **MACHINE),
    "hashed-embedded": FmConfig(dim=5, **MACHINE),
}


def new_table(kind: str) -> ExactTable | HashedTable:
    model = MODELS[kind]
    if kind == "hashed":
        return HashedTable(11)
    if kind == "hashed-embedded":
        return HashedTable(11, model.tiers, l1_shrk=model.l1_shrk)
    table = ExactTable(500, "evict") if kind.startswith("evicting") else ExactTable(50_000)
    if model is not None:
        Arena.of(table, model, 1 << 40)
    return table


@given(st.sampled_from(list(MODELS)), actions, actions, actions)
@settings(max_examples=100, deadline=None)
def test_a_cut_is_the_table_at_its_beginning_whatever_is_learned_meanwhile(
    kind: str, before: list[tuple], during: list[tuple], again: list[tuple]
) -> None:
    with small_tables(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "_PART_BYTES", 1 << 12 if kind == "hashed" else 1 << 16)
        patch.setattr(cuts, "_SIDE_LINES_INITIAL", 4)
        table, model = new_table(kind), MODELS[kind]
        learning = Learning(table, model, l1=0.1)
        # an example's rows, and those found ahead, with the longest embedding of each
        lines = 1 if model is None else 2 + model.tiers.lines(model.tiers.dim)
        for _, seed, examples, width in before:
            learning.learn(lesson(seed, examples, width), tick=1)
        for round_ in (during, again):  # a second cut after the first
            expected, vectors = rows_of(table), embedded(table)
            intercept = table.intercept.copy()
            cut = Cut(table)
            parts, touched = [], 0
            for action, seed, examples, width in round_:
                if action == "learn":
                    batch = lesson(seed, examples, width)
                    touched += batch.nnz
                    learning.learn(batch, cut, tick=2)
                elif action == "grow" and isinstance(table, ExactTable):
                    table.grow(seed % table.segments)
                elif action == "take" and (part := cut.take()) is not None:
                    parts.append(part)
            assert cut.lines_kept <= touched * lines
            while (part := cut.take()) is not None:
                parts.append(part)
            assert cut.take() is None
            cut.close()
            np.testing.assert_array_equal(taken(table, parts), expected)
            assert taken_embeddings(table, parts) == vectors
            np.testing.assert_array_equal(cut.intercept, intercept)
            if isinstance(table, ExactTable):
                check_layout(table)
                assert table.before_change is None
                if table.arena is not None:
                    check_arena(table)


@pytest.mark.parametrize("kind", MODELS)
def test_learning_is_the_same_to_a_bit_while_a_cut_is_open(kind: str) -> None:
    with small_tables():
        tables = [new_table(kind), new_table(kind)]
        one, other = (Learning(table, MODELS[kind]) for table in tables)
        for seed in range(4):
            one.learn(lesson(seed, 5, 40))
            other.learn(lesson(seed, 5, 40))
        cut = Cut(tables[0])
        for seed in range(10, 30):
            scores = one.learn(lesson(seed, 5, 40), cut)
            np.testing.assert_array_equal(scores, other.learn(lesson(seed, 5, 40)))
            if seed % 4 == 0:
                cut.take()
        np.testing.assert_array_equal(image(tables[0]), image(tables[1]))
        assert embedded(tables[0]) == embedded(tables[1])
        np.testing.assert_array_equal(tables[0].intercept, tables[1].intercept)


@pytest.mark.parametrize("kind", ["exact", "hashed"])
def test_a_line_is_kept_once_and_only_until_its_part_is_taken(kind: str) -> None:
    table = ExactTable.sized(20_000, 100_000) if kind == "exact" else HashedTable(16)
    learning = Learning(table)
    learning.learn(lesson(1, 30, 200))
    cut = Cut(table)
    batch = lesson(2, 4, 100)
    learning.learn(batch, cut)
    kept = cut.lines_kept
    assert 0 < kept <= batch.nnz
    learning.learn(batch, cut)
    assert cut.lines_kept == kept
    while cut.take() is not None:
        pass
    learning.learn(lesson(3, 4, 100), cut)
    assert cut.lines_kept == kept


def test_rows_that_were_inserted_since_are_not_in_a_cut() -> None:
    with small_tables():
        table = ExactTable(50_000)
        cut = Cut(table)
        learning = Learning(table)
        for seed in range(20):
            learning.learn(lesson(seed, 5, 60), cut)
        assert table.segments > 1
        parts = []
        while (part := cut.take()) is not None:
            parts.append(part)
        assert [len(part.rows) for part in parts] == [0]
        assert cut.intercept.tolist() == [0, 0]


def test_a_segment_that_could_not_grow_is_in_the_cut_all_the_same() -> None:
    with small_tables():
        table = ExactTable(50_000)
        learning = Learning(table)
        learning.learn(lesson(1, 5, 60))
        expected = image(table)
        cut = Cut(table)
        crowd = [(0xFFFFFFFF << 32) | (2 * i + 1) for i in range(500)]
        with pytest.raises(TableFullError):
            learning.learn(minibatch([crowd]), cut)
        learning.learn(lesson(2, 5, 60), cut)
        parts = []
        while (part := cut.take()) is not None:
            parts.append(part)
        np.testing.assert_array_equal(taken(table, parts), expected)
        check_layout(table)


@pytest.mark.parametrize("kind", ["exact", "hashed"])
def test_a_cut_closed_early_gives_no_more_parts_and_a_new_one_can_begin(kind: str) -> None:
    with small_tables():
        table = new_table(kind)
        learning = Learning(table)
        learning.learn(lesson(1, 5, 200))
        cut = Cut(table)
        learning.learn(lesson(2, 5, 100), cut)
        if isinstance(table, ExactTable):
            table.grow(0)
        cut.close()
        assert cut.take() is None
        learning.learn(lesson(3, 5, 100))
        expected = image(table)
        second = Cut(table)
        cut.close()  # of no effect on the second
        learning.learn(lesson(4, 20, 100), second)
        parts = []
        while (part := second.take()) is not None:
            parts.append(part)
        np.testing.assert_array_equal(taken(table, parts), expected)


def test_without_a_cut_nothing_is_kept() -> None:
    nothing = Nothing()
    saving, kept, _, _, count = nothing.arguments(1 << 20)
    Learning(HashedTable(8)).learn(lesson(1, 5, 60), nothing)
    assert (saving, int(kept[0]), int(count[0])) == (0, 0, 0)
