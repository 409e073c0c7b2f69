"""Clocks: who is slowest, who may read, and who begins where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.shards.clock import Clocks, Member


def joined(**clocks: int) -> Clocks:
    """Return clocks of members by name, each of incarnation 1."""
    made = Clocks()
    for worker, clock in clocks.items():
        made.join(worker, 1, clock)
    return made


def test_slowest_is_the_least_of_the_members():
    made = joined(a=3, b=5)
    assert (made.slowest, made.highest) == (3, 5)
    made.advance("a", 1, 3)
    made.advance("a", 1, 4)
    assert made.slowest == 5
    made.advance("b", 1, 5)
    made.leave("a", 1)
    assert made.slowest == 6


def test_nobody_holds_nobody_back():
    made = Clocks()
    assert made.slowest is None
    assert made.may_read(10**9, 0)


@pytest.mark.parametrize(("tau", "clock"), [(0, 3), (1, 4), (4, 7)])
def test_read_may_be_stale_by_tau(tau, clock):
    made = joined(a=3, b=9)
    assert made.may_read(clock, tau)
    assert not made.may_read(clock + 1, tau)
    assert made.may_read(clock + 1, -1)


def test_advance_is_of_the_incarnation_that_takes_part():
    made = joined(a=3)
    made.advance("a", 2, 3)
    made.advance("b", 1, 3)
    assert made.members == {"a": Member(1, 3)}


def test_advance_never_goes_back():
    made = joined(a=3)
    made.advance("a", 1, 2)
    assert made.members["a"].clock == 3
    made.advance("a", 1, 7)
    made.advance("a", 1, 3)
    assert made.members["a"].clock == 8


def test_leave_is_of_the_incarnation_that_takes_part():
    made = joined(a=3)
    made.join("a", 2, 4)
    made.leave("a", 1)
    assert made.members == {"a": Member(2, 4)}
    made.leave("a", 2)
    made.leave("a", 2)
    assert not made.members


def test_is_member_asks_for_the_process():
    made = joined(a=3)
    made.join("a", 2, 4)
    assert made.is_member(2)
    assert not made.is_member(1)


def test_who_joins_begins_no_earlier_than_the_slowest():
    made = joined(a=3, b=9)
    assert made.proposed("c", 1, -1) == 3
    assert made.proposed("c", 1, 6) == 6
    assert made.proposed("c", 1, 0) == 3


def test_member_that_joins_again_keeps_the_higher_clock():
    made = joined(a=3, b=9)
    assert made.proposed("b", 1, 4) == 9
    assert made.proposed("b", 1, 12) == 12


def test_later_process_of_a_member_is_held_to_the_others():
    made = joined(a=3, b=9)
    assert made.proposed("a", 2, 0) == 9
    assert made.proposed("b", 2, 0) == 3


def test_who_joins_alone_goes_on_from_the_highest_ever():
    made = joined(a=3)
    made.advance("a", 1, 40)
    made.leave("a", 1)
    assert made.proposed("b", 1, -1) == 41
    assert Clocks().proposed("a", 1, -1) == 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "advance"]),
        st.sampled_from("abc"),
        st.integers(1, 3),
        st.integers(0, 20),
    ),
    max_size=40,
)


def happen(made: Clocks, events: list[tuple[str, str, int, int]]) -> None:
    """Let things happen as a shard lets them."""
    for what, worker, incarnation, clock in events:
        if what == "join":
            made.join(worker, incarnation, made.proposed(worker, incarnation, clock))
        elif what == "leave":
            made.leave(worker, incarnation)
        else:
            made.advance(worker, incarnation, clock)


@given(EVENTS, EVENTS)
def test_state_is_all_that_is_needed_to_go_on(before, after):
    made, again = Clocks(), Clocks()
    happen(made, before)
    again.restore(made.state())
    happen(made, after)
    happen(again, after)
    assert again.state() == made.state()
    assert (again.slowest, again.highest) == (made.slowest, made.highest)


@given(EVENTS)
def test_slowest_falls_only_when_members_change(events):
    made = Clocks()
    for event in events:
        before, members = made.slowest, set(made.members)
        happen(made, [event])
        if before is not None and set(made.members) == members and event[0] == "advance":
            assert made.slowest >= before
        if made.slowest is not None:
            assert made.slowest == min(member.clock for member in made.members.values())
            assert made.highest >= made.slowest
