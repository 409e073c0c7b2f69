"""The gate between lanes that share a table and whoever lays it out anew."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from streamlearn.gate import Gate, Youth

# Generous: only a hang fails, never a slow machine.
PATIENCE = 60.0


def start(*works: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a wake-up was lost"


def test_many_pass_together() -> None:
    gate, inside = Gate(), threading.Barrier(4)

    def pass_through() -> None:
        with gate.shared():
            inside.wait(PATIENCE)  # breaks unless all four are inside at once

    join(start(*[pass_through] * 4))
    assert not inside.broken


def test_one_alone_keeps_out_all_others() -> None:
    gate = Gate()
    inside = {"shared": 0, "alone": 0}
    lock = threading.Lock()
    wrong: list[dict[str, int]] = []
    passed: list[str] = []

    def many(kind: str) -> None:
        for _ in range(300):
            with gate.shared() if kind == "shared" else gate.alone():
                with lock:
                    inside[kind] += 1
                    if inside["alone"] > 1 or (inside["alone"] and inside["shared"]):
                        wrong.append(dict(inside))
                with lock:
                    inside[kind] -= 1
                    passed.append(kind)

    kinds = ["shared", "shared", "shared", "alone", "alone"]
    join(start(*[lambda kind=kind: many(kind) for kind in kinds]))
    assert wrong == []
    assert passed.count("shared") == 900
    assert passed.count("alone") == 600


def test_whoever_wants_to_be_alone_goes_before_those_who_come_later() -> None:
    gate = Gate()
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with gate.shared():
            entered.set()
            assert leave.wait(PATIENCE)
            order.append("first")

    def alone() -> None:
        with gate.alone():
            order.append("alone")

    def later() -> None:
        with gate.shared():
            order.append("later")

    threads = start(first)
    assert entered.wait(PATIENCE)
    threads += start(alone)
    while not gate._waiting:  # until it stands at the gate
        threading.Event().wait(0.001)
    threads += start(later)
    assert order == []
    leave.set()
    join(threads)
    assert order == ["first", "alone", "later"]


@pytest.mark.parametrize("kind", ["shared", "alone"])
def test_a_failure_inside_leaves_the_gate_open(kind: str) -> None:
    gate = Gate()
    with pytest.raises(ValueError, match="inside"), getattr(gate, kind)():
        raise ValueError("inside")
    with gate.alone():
        pass
    with gate.shared(), gate.shared():  # nobody waits to be alone
        pass


def test_a_young_model_bears_one_worker_and_then_ever_more() -> None:
    youth, entered = Youth(0), threading.Semaphore(0)

    def work() -> None:
        youth.enter()
        entered.release()

    youth.enter()
    second = start(work)
    assert not entered.acquire(timeout=0.05)
    for _ in range(64):
        youth.learned()
    assert entered.acquire(timeout=PATIENCE)
    join(second)
    third = start(work)
    assert not entered.acquire(timeout=0.05)
    youth.leave()
    assert entered.acquire(timeout=PATIENCE)
    join(third)


def test_nobody_waits_for_a_model_whose_youth_is_over() -> None:
    youth = Youth(64)
    youth.enter()
    youth.enter()
    waiting = start(youth.enter)
    youth.end()
    join(waiting)
    youth.enter()
