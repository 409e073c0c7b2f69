"""When priors are fitted, when held-out documents are looked at, and when it is enough."""

from __future__ import annotations

from streamlearn.topics.schedule import Looks, fits


def test_priors_are_fitted_every_tenth_pass_from_the_twentieth_on() -> None:
    assert [number for number in range(1, 55) if fits(number)] == [20, 30, 40, 50]


def test_held_out_documents_are_looked_at_every_tenth_pass_and_at_last() -> None:
    assert [n for n in range(1, 36) if Looks.due(n, 35)] == [10, 20, 30, 35]


def test_it_is_enough_after_so_many_looks_without_anything_better() -> None:
    looks = Looks(2)
    said = []
    for value in (-9.0, -8.0, -8.5, -7.9, -8.0, -7.9):
        looks.note(value)
        said.append((looks.worse, looks.enough))
    assert said == [(0, False), (0, False), (1, False), (0, False), (1, False), (2, True)]
    never = Looks(0)
    for _ in range(50):
        never.note(-1.0)
    assert not never.enough
