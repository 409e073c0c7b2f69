"""The registry: partitions are handed out, back and on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamlearn.protocol import GIVEN, NOTHING_LEFT, WAIT, Claimed, Listed, Mark
from streamlearn.shards.registry import Registry


def registry(names: str = "pqr", *, epochs: int = 1, complete: bool = True, **marks) -> Registry:
    """Return a registry of partitions named by one letter each."""
    made = Registry()
    made.register([Listed(name, "v", 1) for name in names], complete, epochs, marks)
    return made


def claim(made: Registry, worker: str, held: str = "", *, wanted=True, marks=None) -> Claimed:
    """Claim for the worker's first process."""
    return made.claim(worker, 1, held, wanted, marks or {})


def mark(name: str, epoch: int, *, done: bool) -> Mark:
    """Return a mark."""
    return Mark(name, "v", epoch, 3, 4, 5, done)


def test_partitions_are_handed_out_in_the_order_in_which_they_were_listed():
    made = registry()
    assert [claim(made, "abc"[i]).partition for i in range(3)] == ["p", "q", "r"]
    assert claim(made, "d") == Claimed(WAIT, "", 0)
    assert len(made) == 3


def test_nothing_is_left_once_all_are_finished():
    made = registry("p")
    assert claim(made, "a").state == GIVEN
    made.finish("a", "p", 0)
    assert made.finished == 1
    assert claim(made, "b") == Claimed(NOTHING_LEFT, "", 0)


def test_a_source_that_goes_on_is_waited_for():
    made = registry("p", complete=False)
    claim(made, "a")
    made.finish("a", "p", 0)
    assert claim(made, "a").state == WAIT
    made.register([Listed("p", "v", 1), Listed("q", "v", 1)], False, 1, {})
    assert claim(made, "a").partition == "q"


def test_nothing_is_known_before_anything_is_registered():
    assert claim(Registry(), "a").state == WAIT


def test_an_empty_source_has_nothing_left():
    assert claim(registry(""), "a").state == NOTHING_LEFT


def test_begun_partitions_come_first():
    made = registry()
    assert claim(made, "a", marks={"q": mark("q", 0, done=False)}).partition == "q"


def test_marks_say_what_is_finished():
    made = registry(p=mark("p", 0, done=True), q=mark("q", 0, done=False))
    assert made.finished == 1
    assert [claim(made, w).partition for w in "ab"] == ["q", "r"]


def test_a_pass_begins_when_the_last_is_finished_everywhere():
    made = registry("pq", epochs=2)
    claim(made, "a")
    claim(made, "b")
    made.finish("a", "p", 0)
    assert claim(made, "a") == Claimed(WAIT, "", 0)
    made.finish("b", "q", 0)
    assert made.epoch == 1
    assert claim(made, "a") == Claimed(GIVEN, "p", 1)
    assert made.finished == 0


def test_what_is_held_is_not_handed_out():
    made = registry()
    claim(made, "a", "pq", wanted=False)
    assert claim(made, "b").partition == "r"


def test_first_to_hold_is_the_holder():
    made = registry("p")
    claim(made, "a", "p", wanted=False)
    claim(made, "b", "p", wanted=False)
    made.release("b", 1)
    assert claim(made, "c").state == WAIT
    made.release("a", 1)
    assert claim(made, "c").partition == "p"


def test_what_a_worker_no_longer_holds_goes_back():
    made = registry()
    assert claim(made, "a").partition == "p"
    assert claim(made, "a").partition == "p"
    assert claim(made, "a", "p").partition == "q"


def test_later_process_of_a_worker_holds_nothing_of_the_first():
    made = registry("p")
    made.claim("a", 1, [], True, {})
    assert made.claim("b", 1, [], True, {}).state == WAIT
    assert made.claim("a", 2, [], False, {}).state == WAIT
    assert made.claim("b", 1, [], True, {}).partition == "p"


def test_only_the_holder_gives_back():
    made = registry("p")
    claim(made, "a")
    made.release("a", 2)
    made.release("b", 1)
    assert claim(made, "b").state == WAIT


def test_finished_by_another_than_the_holder():
    made = registry("p")
    claim(made, "a")
    made.finish("b", "p", 0)
    assert claim(made, "b").state == NOTHING_LEFT


def test_reopened_partitions_are_handed_out_again():
    made = registry("pq", epochs=2, p=mark("p", 1, done=True), q=mark("q", 1, done=True))
    assert claim(made, "a").state == NOTHING_LEFT
    made.reopen(["q", "unknown"], 0)
    assert claim(made, "a") == Claimed(GIVEN, "q", 0)
    made.reopen(["p"], 5)
    assert made.finished == 1


def test_unknown_partitions_are_none_of_its_business():
    made = registry("p")
    made.finish("a", "x", 0)
    claim(made, "a", "x", wanted=False)
    assert len(made) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["claim", "finish", "die", "reopen"]),
            st.sampled_from("abc"),
            st.integers(0, 3),
        ),
        max_size=60,
    ),
    st.integers(1, 3),
)
def test_every_partition_is_finished_as_often_as_there_are_passes(events, epochs):
    """Whatever happens, a partition has one holder at a time, and in the end all is done."""
    made = registry("pqrs", epochs=epochs)
    held: dict[str, str] = {}

    def take(worker: str) -> int:
        answer = claim(made, worker, held.get(worker, ""))
        if answer.state == GIVEN:
            assert answer.partition not in held.values()
            held[worker] = answer.partition
        return answer.state

    for what, worker, number in events:
        if what == "claim" and worker not in held:
            take(worker)
        elif what == "finish" and worker in held:
            made.finish(worker, held.pop(worker), made.epoch)
        elif what == "die":
            held.pop(worker, None)
            made.release(worker, 1)
        elif what == "reopen":
            name = "pqrs"[number]
            made.reopen([name], made.epoch)
    for worker in list(held):
        made.finish(worker, held.pop(worker), made.epoch)
    for _ in range(4 * epochs + 1):
        if take("a") == NOTHING_LEFT:
            break
        made.finish("a", held.pop("a"), made.epoch)
    assert made.finished == 4
