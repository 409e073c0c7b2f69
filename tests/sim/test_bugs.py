"""Bugs are caught: each is planted, and one of the seeds that make sim would run finds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sim.bugs import BUGS, planted
from tests.sim.world import simulate_quietly

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
# From the seed that is written down on, since that takes seconds and not minutes.
SEEDS_MORE = 300
SEEDS_MAX = 2000


def _written_down() -> dict[str, int]:
    rows = re.findall(r"^\| `(\w+)`: .* \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: int(seed) for name, seed in rows}


def test_bugs_are_written_down() -> None:
    assert len(BUGS) >= 10
    assert _written_down().keys() == BUGS.keys()


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_caught(name: str) -> None:
    first = _written_down()[name]
    assert first < SEEDS_MAX
    for seed in range(first, min(first + SEEDS_MORE, SEEDS_MAX)):
        with planted(name):
            caught = simulate_quietly(seed).error
        if caught:
            assert not simulate_quietly(seed).error, "it is not the bug that is caught"
            return
    pytest.fail(f"{name} was not caught by seeds {first} to {first + SEEDS_MORE}")
