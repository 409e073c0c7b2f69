"""Which embedding a count earns, and how long its row is."""

from __future__ import annotations

import pytest

from streamlearn.embeddings import DIM_MAX, TIERS_MAX, Tiers


@pytest.mark.parametrize(
    ("order", "dims", "lanes", "block", "lines"),
    [
        (2, (16,), 16, 32, [2]),
        (2, (1,), 8, 16, [1]),
        (2, (8, 16, 24), 8, 16, [1, 2, 3]),
        (2, (9,), 8, 16, [2]),
        (2, (16, 48, 512), 16, 32, [2, 6, 64]),
        (3, (16,), 16, 64, [4]),
        (3, (3, 8, 17), 8, 32, [2, 2, 6]),
        (3, (512,), 16, 64, [128]),
    ],
)
def test_rows_are_whole_lines_of_blocks(
    order: int, dims: tuple[int, ...], lanes: int, block: int, lines: list[int]
) -> None:
    tiers = Tiers(order, tuple(range(len(dims))), dims)
    assert (tiers.lanes, tiers.block_floats, tiers.parts) == (lanes, block, order - 1)
    assert [tiers.lines(dim) for dim in dims] == lines
    assert [tiers.floats(dim) for dim in dims] == [16 * n for n in lines]
    assert tiers.dim == dims[-1]
    assert tiers.block_floats % 16 == 0
    # each coordinate and its sum have a place
    assert all(tiers.floats(dim) >= 2 * tiers.parts * dim for dim in dims)


@pytest.mark.parametrize(
    ("dim", "lines"), [(1, 1), (15, 1), (16, 2), (31, 2), (32, 3), (64, 5), (128, 9), (512, 33)]
)
def test_a_row_with_one_sum_is_longer_by_one_number(dim: int, lines: int) -> None:
    by_row = Tiers(2, (0,), (dim,), sums=False, row_sum=True)
    assert by_row.lines(dim) == lines == -(-(dim + 1) // 16)
    assert by_row.floats(dim) == 16 * lines
    # never more than with a sum for each coordinate
    assert lines <= Tiers(2, (0,), (dim,)).lines(dim)


@pytest.mark.parametrize("sums", [{}, {"sums": False}, {"sums": False, "row_sum": True}])
def test_an_embedding_of_nothing_takes_nothing(sums: dict[str, bool]) -> None:
    assert Tiers(2, (0,), (16,), **sums).lines(0) == 0


@pytest.mark.parametrize(("order", "sums"), [(2, True), (3, False)])
def test_one_sum_a_row_is_in_the_place_of_others_and_of_pairs(order: int, sums: bool) -> None:
    with pytest.raises(ValueError, match="one sum for a row"):
        Tiers(order, (0,), (8,), sums=sums, row_sum=True)


@pytest.mark.parametrize(
    ("order", "counts", "dims", "reason"),
    [
        (1, (0,), (8,), "order 1 is not 2 or 3"),
        (4, (0,), (8,), "order 4 is not 2 or 3"),
        (2, (), (), "are not 1 to 8, ascending"),
        (2, tuple(range(TIERS_MAX + 1)), tuple(range(1, TIERS_MAX + 2)), "are not 1 to 8"),
        (2, (5, 5), (8, 16), "ascending"),
        (2, (5, 4), (8, 16), "ascending"),
        (2, (5, 6), (8, 8), "ascending"),
        (2, (5, 6), (16, 8), "ascending"),
        (2, (-1,), (8,), "are not from 0 to 4294967295"),
        (2, (1 << 32,), (8,), "are not from 0 to 4294967295"),
        (2, (0,), (0,), "are not from 1 to 512"),
        (2, (0, 1), (8, DIM_MAX + 1), "are not from 1 to 512"),
    ],
)
def test_tiers_that_are_out_of_order_or_beyond_a_limit_are_refused(
    order: int, counts: tuple[int, ...], dims: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Tiers(order, counts, dims)


def test_tiers_at_the_limits_are_taken() -> None:
    many = tuple(range(TIERS_MAX))
    assert Tiers(3, many, tuple(DIM_MAX - 7 + i for i in many)).dim == DIM_MAX
    assert Tiers(2, ((1 << 32) - 1,), (1,)).counts == ((1 << 32) - 1,)
    with pytest.raises(ValueError, match="zip"):
        Tiers(2, (0, 1), (8,))
