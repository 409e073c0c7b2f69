from __future__ import annotations

from streamlearn.net.inbox import Inbox


def test_bytes_are_bounded_and_come_back() -> None:
    inbox = Inbox(100)
    assert inbox.take(60)
    assert not inbox.take(41)
    assert inbox.take(40)
    inbox.give(40)
    assert inbox.bytes == 60


def test_who_waits_is_let_in_in_order() -> None:
    inbox, let_in = Inbox(100), list[str]()
    assert inbox.take(100)
    inbox.wait(50, lambda _: let_in.append("first"))
    inbox.wait(30, lambda _: let_in.append("second"))
    inbox.give(40)
    assert let_in == []
    inbox.give(20)
    assert let_in == ["first"]
    inbox.give(20)
    assert let_in == ["first", "second"]
    assert inbox.bytes == 100


def test_nobody_overtakes_who_waits() -> None:
    inbox = Inbox(100)
    assert inbox.take(90)
    inbox.wait(50, lambda _: None)
    assert not inbox.take(5)


def test_who_leaves_makes_room_for_the_next() -> None:
    inbox, let_in = Inbox(100), list[int]()

    def large(count: int) -> None:
        raise AssertionError

    assert inbox.take(90)
    inbox.wait(50, large)
    inbox.wait(10, let_in.append)
    inbox.leave(large)
    assert let_in == [10]
