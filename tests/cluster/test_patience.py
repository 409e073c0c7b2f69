"""How often a process is started again."""

from __future__ import annotations

from streamlearn.cluster.patience import (
    FAILURES_MAX,
    KILLS_MAX,
    PAUSE_SECONDS,
    PAUSE_SECONDS_MAX,
    Patience,
)


def test_pauses_double_up_to_a_limit_and_then_it_is_given_up() -> None:
    patience = Patience()
    pauses = [patience.ended(1, 1.0, was_ready=True) for _ in range(FAILURES_MAX)]
    assert pauses[:3] == [PAUSE_SECONDS, 2 * PAUSE_SECONDS, 4 * PAUSE_SECONDS]
    assert pauses[-1] is None


def test_a_process_that_lived_long_has_all_its_tries_again() -> None:
    patience = Patience()
    for _ in range(10 * FAILURES_MAX):
        assert patience.ended(1, 60.0, was_ready=True) == PAUSE_SECONDS


def test_kills_of_a_process_that_was_ready_never_end_it() -> None:
    patience = Patience()
    for _ in range(10 * KILLS_MAX):
        assert patience.ended(-9, 0.5, was_ready=True) == PAUSE_SECONDS


def test_kills_before_it_is_ready_have_a_limit_of_their_own() -> None:
    patience = Patience()
    pauses = [patience.ended(-9, 0.5, was_ready=False) for _ in range(KILLS_MAX)]
    assert None not in pauses[:-1]
    assert max(p for p in pauses if p is not None) == PAUSE_SECONDS_MAX
    assert pauses[-1] is None
