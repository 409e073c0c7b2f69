"""Who is in a group with whom, on a clock that tests turn."""

from __future__ import annotations

from streamlearn.cluster.meeting import GRACE_SECONDS, SETTLE_SECONDS, Meeting, Said
from streamlearn.protocol import Done, Meet, Met, Stay


class Hall:
    """A meeting, workers with a session each, and what they were answered."""

    def __init__(self) -> None:
        self.meeting = Meeting()
        self.now = 100.0
        self.requests = 0
        self.sessions = {name: number for number, name in enumerate("abcd", 1)}
        self.met: dict[str, Met] = {}
        self.called: list[str] = []
        self._of: dict[int, str] = {}

    def meet(self, name: str, step: int = 0, generation: int = 0, incarnation: int = 1) -> None:
        self.met.pop(name, None)
        message = Meet(name, incarnation, step, f"{name}:1", generation)
        self._hear(self.meeting.meet(self.sessions[name], self._next(name), message, self.now))

    def stay(self, name: str, generation: int, incarnation: int = 1) -> None:
        message = Stay(name, incarnation, generation)
        self._hear(self.meeting.stay(self.sessions[name], self._next(name), message))

    def leave(self, name: str, incarnation: int = 1) -> None:
        self._hear(self.meeting.leave(name, incarnation, self.now))

    def close(self, name: str) -> None:
        self._hear(self.meeting.closed(self.sessions[name], self.now))
        self.sessions[name] += 100

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self._hear(self.meeting.advance(self.now))

    def group(self, names: str) -> None:
        """Have a group of these workers stand."""
        for name in names:
            self.meet(name)
        self.advance(SETTLE_SECONDS)
        for name in names:
            self.stay(name, self.met[name].generation)

    def _next(self, name: str) -> int:
        self.requests += 1
        self._of[self.requests] = name
        return self.requests

    def _hear(self, said: list[Said]) -> None:
        for one in said:
            name = self._of.pop(one.request)  # each is answered once
            assert one.session % 100 == self.sessions[name] % 100
            if isinstance(one.message, Met):
                self.met[name] = one.message
            else:
                assert one.message == Done()
                self.called.append(name)


def test_first_group_waits_a_moment_for_more() -> None:
    hall = Hall()
    hall.meet("a")
    hall.advance(SETTLE_SECONDS / 2)
    assert not hall.met
    hall.meet("b")
    hall.advance(SETTLE_SECONDS / 2)
    assert hall.met == {"a": Met(1, 0, 2, "a:1"), "b": Met(1, 1, 2, "a:1")}


def test_who_has_most_steps_is_the_first() -> None:
    hall = Hall()
    for name, step in (("a", 3), ("b", 7), ("c", 7)):
        hall.meet(name, step)
    hall.advance(SETTLE_SECONDS)
    assert [hall.met[name].rank for name in "bca"] == [0, 1, 2]
    assert {met.address for met in hall.met.values()} == {"b:1"}


def test_members_are_called_when_another_asks_and_all_meet() -> None:
    hall = Hall()
    hall.group("ab")
    hall.meet("c")
    assert sorted(hall.called) == ["a", "b"]
    hall.meet("a", 5, 1)
    assert "c" not in hall.met
    hall.meet("b", 5, 1)
    assert [hall.met[name] for name in "abc"] == [Met(2, rank, 3, "a:1") for rank in range(3)]


def test_member_whose_connection_ends_is_not_waited_for() -> None:
    hall = Hall()
    hall.group("ab")
    hall.meet("a", 9, 1)
    assert hall.called == ["a", "b"]  # its own wait ends, too
    assert "a" not in hall.met
    hall.close("b")
    assert hall.met["a"] == Met(2, 0, 1, "a:1")


def test_member_that_leaves_is_not_waited_for_and_does_not_call_others() -> None:
    hall = Hall()
    hall.group("abc")
    hall.leave("c")
    assert hall.called == ["c"]
    hall.meet("a", 1, 1)
    hall.meet("b", 1, 1)
    assert hall.met["b"] == Met(2, 1, 2, "a:1")


def test_who_asks_and_goes_is_in_no_group() -> None:
    hall = Hall()
    hall.group("a")
    hall.meet("b")
    hall.close("b")
    hall.meet("c")
    hall.leave("c")
    hall.meet("a", 1, 1)
    assert hall.met["a"] == Met(2, 0, 1, "a:1")


def test_member_that_does_not_come_is_waited_for_for_a_while() -> None:
    hall = Hall()
    hall.group("ab")
    hall.meet("a", 9, 1)
    hall.advance(GRACE_SECONDS - 1)
    assert "a" not in hall.met
    hall.advance(1)
    assert hall.met["a"] == Met(2, 0, 1, "a:1")
    hall.called.clear()
    hall.stay("a", 2)
    hall.stay("b", 1)  # it comes late, with the old group
    assert hall.called == ["b"]
    hall.meet("b", 9, 1)
    hall.meet("a", 12, 2)
    assert [hall.met[name] for name in "ab"] == [Met(3, 0, 2, "a:1"), Met(3, 1, 2, "a:1")]


def test_member_that_is_told_before_it_stays_is_called_then() -> None:
    hall = Hall()
    hall.meet("a")
    hall.advance(SETTLE_SECONDS)
    hall.meet("b")
    assert not hall.called
    hall.stay("a", 1)
    assert hall.called == ["a"]
    hall.meet("a", 1, 1)
    assert hall.met["b"].size == 2


def test_new_process_takes_the_place_of_one_of_the_same_name() -> None:
    hall = Hall()
    hall.group("ab")
    hall.close("b")
    hall.meet("b", 0, 0, incarnation=2)
    hall.leave("b", 1)  # of the one before, and late
    hall.meet("a", 4, 1)
    assert [hall.met[name] for name in "ab"] == [Met(2, 0, 2, "a:1"), Met(2, 1, 2, "a:1")]


def test_shard_that_starts_anew_learns_of_the_group_that_stands() -> None:
    hall = Hall()
    hall.stay("a", 5)
    hall.stay("b", 5)
    assert not hall.called
    hall.meet("c")
    hall.meet("a", 2, 5)
    assert sorted(hall.called) == ["a", "b"]
    hall.meet("b", 2, 5)
    assert hall.met["c"] == Met(6, 2, 3, "a:1")


def test_two_groups_that_know_nothing_of_one_another_become_one() -> None:
    hall = Hall()
    hall.meet("c")
    hall.advance(SETTLE_SECONDS)  # a shard that starts anew hears of the joiner first
    hall.stay("c", 1)
    hall.stay("a", 5)
    assert hall.called == ["c"]
    hall.meet("c", 1, 1)
    assert hall.called == ["c", "a"]
    hall.meet("a", 2, 5)
    assert hall.met["c"] == Met(6, 1, 2, "a:1")


def test_worker_that_asks_again_over_another_connection_is_there_once() -> None:
    hall = Hall()
    hall.group("ab")
    hall.meet("a", 1, 1)
    hall.close("a")
    hall.meet("a", 1, 1)
    hall.meet("b", 1, 1)
    assert hall.met["a"].size == 2
