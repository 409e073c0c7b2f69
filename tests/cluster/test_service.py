"""What a shard answers: staleness, exactly-once, and that a refusal changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.cluster.service import PULLS_KEPT_MAX, Service
from streamlearn.errors import ColumnError
from streamlearn.protocol import (
    GIVEN,
    WAIT,
    Claim,
    Claimed,
    Done,
    Fault,
    Finished,
    Follow,
    Join,
    KeyMiss,
    Leave,
    Listed,
    Meet,
    Met,
    Ping,
    Pull,
    Pulled,
    PullFactors,
    PullTopics,
    Push,
    Pushed,
    PushFactors,
    PushTopics,
    RatingMark,
    Register,
    Reopen,
    State,
    StateIs,
    Stay,
    TakeSnapshot,
    Tick,
)
from streamlearn.shards.shard import Shard
from tests.reference.tables import small_tables
from tests.shard_parts import (
    Desk,
    MemoryLog,
    changed,
    job,
    keys_of,
    mark,
    pull,
    push,
    replayed,
    spec,
    weights,
)

# Not the first shard: a young model's first one holds pulls back for a reason of its own.
SPEC = spec(job(tau=1), index=1, of=2)
FIRST = spec(job(tau=8), index=0, of=2)
KEYS = keys_of(SPEC, *range(20))


def desk(of=SPEC, **more) -> Desk:
    """Return a desk with a log and worker ``a`` on connection 1."""
    made = Desk(of, log=MemoryLog(), **more)
    made.join(1, "a", 1, 0)
    return made


# ---------------------------------------------------------------- staleness


def test_pull_of_keys_that_nobody_pushed_is_zeros():
    made = desk()
    answer = made.asked(1, pull(SPEC, KEYS))
    assert weights(answer) == [0.0] * len(KEYS)
    assert made.shard.table.features == 0
    assert made.lsns[1, 2] == 0


def test_pull_waits_when_its_clock_is_too_far_ahead_and_is_answered_by_the_slow_workers_push():
    made = desk()
    made.join(2, "b", 2, 0)
    assert isinstance(made.asked(1, pull(SPEC, KEYS, clock=1)), Pulled)
    request = made.ask(1, pull(SPEC, KEYS, clock=2))
    assert (1, request) not in made.answers
    assert made.service.parked == 1
    made.asked(1, push(SPEC, KEYS, clock=0))
    made.asked(1, push(SPEC, KEYS, clock=1))
    assert (1, request) not in made.answers
    made.now += 2.5
    made.asked(2, push(SPEC, KEYS, clock=0, worker="b", incarnation=2, at=mark(1, "q")))
    made.open(3)
    reader = made.asked(3, pull(SPEC, KEYS, incarnation=0))
    assert weights(made.answers[1, request]) == weights(reader)
    assert made.service.figures()["pull_wait_seconds"] == 2.5
    assert made.service.parked == 0


def test_pull_that_waits_sees_what_it_waited_for():
    made = desk(spec(job(tau=0), index=1, of=2))
    made.join(2, "b", 2, 0)
    request = made.ask(1, pull(SPEC, KEYS, clock=1))
    made.asked(1, push(SPEC, KEYS, clock=0))
    pushed = push(SPEC, KEYS, clock=0, worker="b", incarnation=2, at=mark(1, "q"))
    made.asked(2, pushed)
    two = Shard(made.spec)
    two.apply(1, push(SPEC, KEYS, clock=0))
    two.apply(2, pushed)
    assert weights(made.answers[1, request]) == two.values(two.locate(KEYS)).tolist()


def test_pull_that_waits_is_answered_when_the_slow_worker_leaves():
    made = desk()
    made.join(2, "b", 2, 0)
    request = made.ask(1, pull(SPEC, KEYS, clock=2))
    made.asked(1, push(SPEC, KEYS, clock=0))
    made.asked(1, push(SPEC, KEYS, clock=1))
    assert isinstance(made.asked(2, Leave("b", 2)), Done)
    assert isinstance(made.answers[1, request], Pulled)


def test_pull_that_waits_is_answered_when_the_slow_workers_lease_ends():
    made = desk()
    made.join(2, "b", 2, 0)
    for clock in (0, 1):
        made.asked(1, push(SPEC, KEYS, clock=clock))
    request = made.ask(1, pull(SPEC, KEYS, clock=2))
    made.close(2)
    made.advance(4.9)
    assert (1, request) not in made.answers
    assert made.shard.clocks.members.keys() == {"a", "b"}
    made.advance(0.2)
    assert isinstance(made.answers[1, request], Pulled)
    assert made.log.messages[-1] == Leave("b", 2)


def test_worker_that_comes_back_within_its_lease_is_waited_for():
    made = desk()
    made.join(2, "b", 2, 0)
    made.close(2)
    made.advance(3)
    made.join(3, "b", 2, 0)
    made.advance(100)
    assert "b" in made.shard.clocks.members


def test_worker_that_moved_to_another_connection_is_not_lost_with_the_first():
    made = desk()
    made.join(2, "a", 1, 0)
    made.close(1)
    made.advance(100)
    assert "a" in made.shard.clocks.members


def test_later_process_of_a_worker_takes_its_place():
    made = desk()
    made.join(2, "a", 9, 0)
    fault = made.fault(1, pull(SPEC, KEYS, clock=0))
    assert (fault.code, fault.again) == ("stale", True)
    made.close(1)
    made.advance(100)
    assert made.shard.clocks.members["a"].incarnation == 9


def test_after_a_restart_members_are_waited_for_and_then_not():
    log = MemoryLog()
    first = Desk(SPEC, log=log)
    first.join(1, "a", 1, 0)
    first.join(2, "b", 2, 0)
    again = Desk(SPEC, log=log, shard=replayed(SPEC, log))
    again.join(1, "a", 1, 0)
    for clock in (0, 1):
        again.asked(1, push(SPEC, KEYS, clock=clock))
    request = again.ask(1, pull(SPEC, KEYS, clock=2))
    again.advance(5.1)
    assert isinstance(again.answers[1, request], Pulled)
    assert set(again.shard.clocks.members) == {"a"}


def test_pull_of_who_takes_no_part_is_refused_but_not_a_readers():
    made = Desk(SPEC, log=MemoryLog())
    made.open(1)
    assert made.fault(1, pull(SPEC, KEYS)).code == "stale"
    assert isinstance(made.asked(1, pull(SPEC, KEYS, clock=99, incarnation=0)), Pulled)


def test_pull_that_waits_is_forgotten_with_its_connection():
    made = desk()
    made.join(2, "b", 2, 0)
    request = made.ask(1, pull(SPEC, KEYS, clock=5))
    made.close(1)
    made.asked(2, Leave("b", 2))
    assert (1, request) not in made.answers
    assert made.service.parked == 0


def test_pull_that_waits_is_refused_when_its_worker_joins_anew():
    made = desk()
    made.join(2, "b", 2, 0)
    request = made.ask(1, pull(SPEC, KEYS, clock=5))
    made.asked(1, Join("a", 1, 6, SPEC.signature))
    answer = made.answers[1, request]
    assert isinstance(answer, Fault)
    assert (answer.code, answer.again) == ("stale", True)


def test_worker_joins_no_earlier_than_the_slowest():
    made = desk()
    for clock in range(3):
        made.asked(1, push(SPEC, KEYS, clock=clock))
    assert made.join(2, "b", 2).clock == 3
    assert made.join(3, "c", 3, 8).clock == 8
    assert made.join(4, "b", 2, 1).clock == 3


# ---------------------------------------------------------------- a young model


def test_young_model_bears_few_minibatches_under_way():
    made = desk(FIRST)
    keys = keys_of(FIRST, 1, 2, 3)
    assert isinstance(made.asked(1, pull(FIRST, keys, clock=0)), Pulled)
    waits = [made.ask(1, pull(FIRST, keys, clock=clock)) for clock in (1, 2)]
    assert not any((1, request) in made.answers for request in waits)
    made.asked(1, push(FIRST, keys, clock=0))
    assert (1, waits[0]) in made.answers
    assert (1, waits[1]) not in made.answers


def test_young_models_other_shards_hold_each_worker_back_by_itself():
    other = spec(job(tau=8), index=1, of=2)
    keys = keys_of(other, 1, 2, 3)
    made = desk(other)
    made.join(2, "b", 2, 0)
    assert isinstance(made.asked(1, pull(other, keys, clock=0)), Pulled)
    assert isinstance(made.asked(2, pull(other, keys, clock=0, incarnation=2)), Pulled)
    second = made.ask(1, pull(other, keys, clock=1))
    assert (1, second) not in made.answers
    made.asked(1, push(other, keys, clock=0))
    assert (1, second) in made.answers


def test_pull_does_not_overtake_an_earlier_one_that_waits():
    made = desk(FIRST)
    keys = keys_of(FIRST, 1, 2, 3)
    made.asked(1, pull(FIRST, keys, clock=0))
    second = made.ask(1, pull(FIRST, keys, clock=1))
    # its pull is not known: what is under way becomes less, and nobody is told
    missed = changed(push(FIRST, keys, clock=0, named=999), pull=999)
    assert isinstance(made.asked(1, missed), KeyMiss)
    third = made.ask(1, pull(FIRST, keys, clock=2))
    assert (1, third) not in made.answers
    made.asked(1, push(FIRST, keys, clock=0))
    assert (1, second) in made.answers
    made.asked(1, push(FIRST, keys, clock=1))
    assert (1, third) in made.answers


def test_lost_worker_holds_no_minibatch_under_way():
    made = desk(FIRST)
    keys = keys_of(FIRST, 1)
    made.join(2, "b", 2, 0)
    made.asked(1, pull(FIRST, keys, clock=0))
    request = made.ask(2, pull(FIRST, keys, clock=0, incarnation=2))
    made.close(1)
    assert isinstance(made.answers[2, request], Pulled)


# ---------------------------------------------------------------- pushes


def test_push_names_its_pull():
    made = desk()
    request = made.ask(1, pull(SPEC, KEYS))
    answer = made.asked(1, push(SPEC, KEYS, named=request))
    assert answer == Pushed(1, duplicate=False)
    assert made.lsns[1, request + 1] == made.shard.lsn
    assert made.shard.table.features == len(KEYS)
    # the log has the keys
    last = made.log.messages[-1]
    assert isinstance(last, Push)
    assert (last.pull, len(last.keys) > 0) == (0, True)
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_push_to_rows_that_moved_since_its_pull():
    with small_tables():
        made = desk()
        made.join(2, "b", 2, 0)
        request = made.ask(1, pull(SPEC, KEYS))
        many = keys_of(SPEC, *range(3000))
        made.asked(2, push(SPEC, many, worker="b", incarnation=2, at=mark(1, "q")))
        assert made.shard.table.growths > 0
        made.asked(1, push(SPEC, KEYS, named=request))
        assert replayed(SPEC, made.log).digest() == made.shard.digest()
        count = {int(row[0]): int(row[2]) & 0xFFFFFFFF for row in all_rows(made.shard)}
        assert {count[int(key)] for key in KEYS} == {2}


def all_rows(shard: Shard) -> list[np.ndarray]:
    """Return every row of a shard."""
    return [row for segment in shard.table.key_order() for row in shard.table.rows(segment)]


def test_pull_is_named_once():
    made = desk()
    request = made.ask(1, pull(SPEC, KEYS))
    made.asked(1, push(SPEC, KEYS, named=request))
    again = push(SPEC, KEYS, named=request, clock=1)
    assert made.asked(1, again) == KeyMiss(request)


def test_key_miss_after_another_connection():
    made = desk()
    request = made.ask(1, pull(SPEC, KEYS))
    made.close(1)
    made.join(2, "a", 1, 0)
    before = made.shard.digest()
    assert made.asked(2, push(SPEC, KEYS, named=request)) == KeyMiss(request)
    assert made.shard.digest() == before
    assert made.asked(2, push(SPEC, KEYS)) == Pushed(1, duplicate=False)


def test_key_miss_after_so_many_later_pulls():
    made = desk()
    requests = [made.ask(1, pull(SPEC, KEYS[:1])) for _ in range(PULLS_KEPT_MAX + 1)]
    assert made.asked(1, push(SPEC, KEYS[:1], named=requests[0])) == KeyMiss(requests[0])
    assert isinstance(made.asked(1, push(SPEC, KEYS[:1], named=requests[1])), Pushed)


@pytest.mark.parametrize("field", ["signature", "count"])
def test_key_miss_with_another_key_list(field):
    made = desk()
    request = made.ask(1, pull(SPEC, KEYS))
    wrong = push(SPEC, KEYS, named=request)
    wrong = changed(wrong, **{field: getattr(wrong, field) ^ 1})
    assert made.asked(1, wrong) == KeyMiss(request)
    assert made.shard.table.features == 0


def test_duplicate_is_answered_without_being_applied():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    before = made.shard.digest()
    assert made.asked(1, push(SPEC, KEYS)) == Pushed(1, duplicate=True)
    assert made.shard.digest() == before


def test_duplicate_is_answered_once_what_it_repeats_is_durable():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    request = made.ask(1, push(SPEC, KEYS))
    assert made.lsns[1, request] == made.shard.lsn == len(made.log.records)


def test_duplicate_of_what_another_applied_advances_the_clock():
    made = desk()
    made.join(2, "b", 2, 0)
    made.asked(1, push(SPEC, KEYS))
    assert made.asked(2, push(SPEC, KEYS, worker="b", incarnation=2)) == Pushed(1, duplicate=True)
    assert made.shard.clocks.members["b"].clock == 1
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


def test_duplicate_whose_clock_cannot_be_logged_is_answered_once():
    made = desk()
    made.join(2, "b", 2, 0)
    made.asked(1, push(SPEC, KEYS))
    made.log.full = True
    repeated = push(SPEC, KEYS, worker="b", incarnation=2)
    assert made.fault(2, repeated).code == "storage"
    made.log.full = False
    assert made.asked(2, repeated) == Pushed(1, duplicate=True)


def test_gap_is_refused():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    before = made.shard.digest()
    for at in (mark(3), mark(1, epoch=1), mark(2, "other"), mark(1, "other", epoch=1)):
        fault = made.fault(1, push(SPEC, KEYS, at=at, clock=1))
        assert (fault.code, fault.again) == ("gap", True)
    assert made.shard.digest() == before


def test_next_pass_follows_the_end_of_the_last():
    made = desk()
    made.asked(1, push(SPEC, KEYS, at=mark(1, done=True)))
    assert made.fault(1, push(SPEC, KEYS, at=mark(2), clock=1)).code == "gap"
    assert isinstance(made.asked(1, push(SPEC, KEYS, at=mark(1, epoch=1), clock=1)), Pushed)


def test_known_minibatch_that_ended_elsewhere_is_refused():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    fault = made.fault(1, push(SPEC, KEYS, at=mark(1, offset=101)))
    assert (fault.code, fault.again) == ("invalid", False)
    assert "100" in fault.message
    assert "101" in fault.message


def test_partition_of_another_version_is_refused():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    fault = made.fault(1, push(SPEC, KEYS, at=mark(2, version="w"), clock=1))
    assert fault.code == "invalid"


def test_mark_of_another_loss_is_refused():
    made = desk()
    before = made.shard.digest()
    fault = made.fault(1, push(SPEC, KEYS, at=RatingMark("p", "v", 0, 1, 100, 10)))
    assert (fault.code, fault.again) == ("invalid", False)
    assert "another loss" in fault.message
    assert made.shard.digest() == before


def _descending() -> Push:
    """Return a push of two near keys and a far one, the lower bits of the near ones exchanged."""
    near = SPEC.low + (1 << 40) + 1
    good = push(SPEC, np.array([near, near + 2, SPEC.high - 2], np.uint64))
    for bit in range(8, 8 * len(good.keys)):
        column = bytearray(good.keys)
        column[bit // 8] ^= 1 << bit % 8
        wrong = changed(good, keys=memoryview(bytes(column)))
        try:
            Shard(SPEC).decode_keys(wrong)
        except ColumnError as error:
            if "increas" in str(error):
                return wrong
    raise AssertionError("no bit makes the keys descend")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(push(SPEC, KEYS, np.where(np.arange(20) == 3, np.nan, 1)), id="nan"),
        pytest.param(push(SPEC, KEYS, np.where(np.arange(20) == 3, np.inf, 1)), id="infinite"),
        pytest.param(changed(push(SPEC, KEYS), values=memoryview(bytes(76))), id="few values"),
        pytest.param(changed(push(SPEC, KEYS), values=memoryview(bytes(84))), id="many values"),
        pytest.param(changed(push(SPEC, KEYS), count=19), id="lower count"),
        pytest.param(changed(push(SPEC, KEYS), count=1 << 60), id="count beyond memory"),
        pytest.param(changed(push(SPEC, KEYS), counts=memoryview(b"\0")), id="few counts"),
        pytest.param(changed(push(SPEC, KEYS), coding=9), id="coding"),
        pytest.param(changed(push(SPEC, KEYS), keys=push(SPEC, KEYS).keys[:-1]), id="cut keys"),
        pytest.param(changed(push(SPEC, KEYS), keys=memoryview(b"")), id="no keys"),
        pytest.param(changed(push(SPEC, KEYS), table=1), id="table"),
        pytest.param(_descending(), id="keys out of order"),
    ],
)
def test_push_that_is_wrong_is_refused_whole(wrong):
    made = desk()
    made.asked(1, push(SPEC, KEYS, at=mark(1, "q")))
    before, records = made.shard.digest(), len(made.log.records)
    fault = made.fault(1, wrong)
    assert fault.code in {"invalid", "unknown"}
    assert not fault.again
    assert fault.message
    assert made.shard.digest() == before
    assert len(made.log.records) == records
    assert made.asked(1, push(SPEC, KEYS)) == Pushed(1, duplicate=False)


@pytest.mark.parametrize("coding", [3, 9, 19, 255, 1 << 40])
def test_pull_of_an_unknown_coding_is_refused(coding):
    made = desk()
    assert made.fault(1, pull(SPEC, KEYS, coding=coding)).code == "invalid"
    assert isinstance(made.asked(1, pull(SPEC, KEYS)), Pulled)


def test_pull_of_wrong_keys_is_refused():
    made = desk()
    good = pull(SPEC, KEYS)
    for wrong in (
        changed(good, count=1 << 50),
        changed(good, keys=memoryview(b"\x05")),
        changed(good, table=2),
    ):
        assert made.fault(1, wrong).code in {"invalid", "unknown"}


def test_keys_of_another_shard_are_refused():
    made = desk(FIRST)
    others = np.array([SPEC.low + 1, SPEC.low + 3], np.uint64)
    assert made.fault(1, pull(FIRST, others)).code == "invalid"
    assert made.fault(1, push(FIRST, others)).code == "invalid"
    assert made.shard.table.features == 0


def test_full_table_is_refused_before_anything_is_logged():
    small = spec(job(tau=1), index=1, of=2, features_max=15)
    made = desk(small)
    made.asked(1, push(SPEC, KEYS[:15]))
    before, records = made.shard.digest(), len(made.log.records)
    fault = made.fault(1, push(SPEC, KEYS, clock=1))
    assert (fault.code, fault.again) == ("full", False)
    assert "tables.features_max" in fault.message
    assert (made.shard.digest(), len(made.log.records)) == (before, records)
    assert isinstance(made.asked(1, push(SPEC, KEYS[:15], clock=1)), Pushed)


def test_table_is_not_full_of_rows_that_another_has_made_since_the_pull():
    small = spec(job(tau=1), index=1, of=2, features_max=20)
    made = desk(small)
    made.join(2, "b", 2, 0)
    request = made.ask(1, pull(SPEC, KEYS))
    made.asked(2, push(SPEC, KEYS, worker="b", incarnation=2, at=mark(1, "q")))
    assert made.asked(1, push(SPEC, KEYS, named=request)) == Pushed(1, duplicate=False)


def test_full_table_forgets_the_same_rows_on_replay():
    with small_tables():
        small = spec(job(tau=-1, when_full="evict"), index=1, of=2, features_max=400)
        made = desk(small)
        made.join(2, "b", 2, 0)
        rng = np.random.default_rng(5)
        for clock in range(40):
            keys = keys_of(SPEC, *rng.integers(0, 900, 120).tolist())
            request = made.ask(1, pull(SPEC, keys, clock=clock))
            # the other makes some of the same rows in between
            made.asked(
                2, push(SPEC, keys[::2], clock=clock, worker="b", incarnation=2,
                        at=mark(clock + 1, "q")),
            )  # fmt: skip
            made.asked(1, push(SPEC, keys, clock=clock, named=request))
        assert made.shard.table.evicted > 0
        assert replayed(small, made.log).digest() == made.shard.digest()


def test_failing_log_refuses_and_leaves_the_state_untouched():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    request = made.ask(1, pull(SPEC, KEYS, clock=1))
    before = made.shard.digest()
    made.log.full = True
    for message in (
        push(SPEC, KEYS, clock=1, named=request),
        Join("c", 5, 0, SPEC.signature),
        Leave("a", 1),
    ):
        fault = made.fault(1, message)
        assert (fault.code, fault.again) == ("storage", True)
    made.advance(minute=99)
    assert made.shard.digest() == before
    made.log.full = False
    # the pull that it names is still known
    assert made.asked(1, push(SPEC, KEYS, clock=1, named=request)) == Pushed(2, duplicate=False)
    made.advance(minute=99)
    assert made.log.messages[-1] == Tick(99)


def test_lease_that_ends_while_the_log_fails_ends_later():
    made = desk()
    made.close(1)
    made.log.full = True
    made.advance(10)
    assert "a" in made.shard.clocks.members
    made.log.full = False
    made.advance(0)
    assert not made.shard.clocks.members


def test_without_a_log_pushes_are_answered_at_once():
    made = Desk(spec(job(tau=1, durability="snapshot"), index=1, of=2))
    made.join(1, "a", 1, 0)
    made.asked(1, push(SPEC, KEYS))
    assert made.service.durable_lsn == made.shard.lsn == 2


def test_push_of_no_keys_moves_the_mark_and_the_clock():
    made = desk()
    assert made.asked(1, push(SPEC, KEYS[:0])) == Pushed(1, duplicate=False)
    assert made.shard.clocks.members["a"].clock == 1
    assert made.shard.marks["p"] == mark(1)


def test_push_of_a_worker_that_takes_no_part_is_applied():
    made = desk()
    made.asked(1, Leave("a", 1))
    assert made.asked(1, push(SPEC, KEYS)) == Pushed(1, duplicate=False)
    assert not made.shard.clocks.members
    assert replayed(SPEC, made.log).digest() == made.shard.digest()


# ---------------------------------------------------------------- who may ask what


def test_worker_of_another_job_is_refused():
    made = desk()
    fault = made.fault(1, Join("x", 4, 0, "another"))
    assert fault.code == "invalid"
    assert SPEC.signature in fault.message
    assert "another" in fault.message
    assert "x" not in made.shard.clocks.members


@pytest.mark.parametrize(("name", "incarnation"), [("", 3), ("x", 0)])
def test_worker_without_a_name_or_incarnation_is_refused(name, incarnation):
    made = desk()
    assert made.fault(1, Join(name, incarnation, 0, SPEC.signature)).code == "invalid"


def test_what_is_no_request_is_refused():
    made = desk()
    assert made.fault(1, Tick(5)).code == "unknown"
    assert made.fault(1, Done()).code == "unknown"
    assert made.fault(1, Ping()).code == "unknown"  # the server answers it


def test_request_of_a_connection_that_is_gone_is_dropped():
    made = desk()
    made.close(1)
    made.service.request(1, 9, pull(SPEC, KEYS), made.now)
    made.collect()
    assert (1, 9) not in made.answers


def test_follower_refuses_writes():
    made = Desk(SPEC, read_only=True)
    made.open(1)
    for message in (
        push(SPEC, KEYS),
        Join("a", 1, 0, SPEC.signature),
        Leave("a", 1),
        Register([], True, 1),
        Claim("a", 1, [], True),
        Finished("a", 1, "p", 0),
        Reopen(["p"], 0),
        Follow(-1),
        TakeSnapshot(),
    ):
        assert made.fault(1, message).code == "forbidden"
    assert isinstance(made.asked(1, pull(SPEC, KEYS, incarnation=0)), Pulled)
    assert isinstance(made.asked(1, State()), StateIs)
    made.advance(100, minute=5)
    assert made.shard.minute == 0


def test_replaced_state_is_not_held_on_to():
    made = Desk(SPEC, read_only=True)
    fresh = Shard(SPEC)
    made.service.replace(fresh)
    assert made.service.feeds.imaging._shard is fresh


def test_state_says_where_a_shard_is():
    made = desk()
    made.asked(1, push(SPEC, KEYS))
    made.asked(1, push(SPEC, KEYS, at=mark(1, "q"), clock=1))
    made.service.durable_lsn = 2
    told = made.asked(1, State())
    assert isinstance(told, StateIs)
    assert (told.lsn, told.durable_lsn, told.incarnation, told.ready) == (3, 2, 77, True)
    assert [one.partition for one in told.marks] == ["p", "q"]
    assert told.clocks == {"a": 2}
    assert told.figures["features"] == len(KEYS)
    only = made.asked(1, State(marks=False, partition="q"))
    assert isinstance(only, StateIs)
    assert only.marks == [mark(1, "q")]
    none = made.asked(1, State(marks=False))
    assert isinstance(none, StateIs)
    assert none.marks == []


# ---------------------------------------------------------------- time and partitions


def test_minutes_are_records():
    made = desk()
    made.advance(minute=50)
    made.advance(minute=50)
    made.advance(minute=40)
    assert [m for m in made.log.messages if isinstance(m, Tick)] == [Tick(50)]


def test_partitions_are_handed_out_and_handed_on_when_a_lease_ends():
    made = desk()
    made.join(2, "b", 2)
    listed = [Listed(name, "v", 5) for name in "pq"]
    assert made.asked(1, Register(listed, True, 1)) == Done()
    assert made.asked(1, Claim("a", 1, [], True)) == Claimed(GIVEN, "p", 0)
    assert made.asked(2, Claim("b", 2, [], True)) == Claimed(GIVEN, "q", 0)
    assert made.asked(1, Finished("a", 1, "p", 0)) == Done()
    assert made.asked(1, Claim("a", 1, [], True)).state == WAIT
    made.close(2)
    made.advance(5.1)
    assert made.asked(1, Claim("a", 1, [], True)) == Claimed(GIVEN, "q", 0)
    assert made.asked(1, Reopen(["p"], 0)) == Done()
    made.join(3, "c", 3)
    assert made.asked(3, Claim("c", 3, [], True)) == Claimed(GIVEN, "p", 0)


def test_after_a_restart_nothing_is_handed_out_before_members_are_back():
    log = MemoryLog()
    first = Desk(SPEC, log=log)
    first.join(1, "a", 1, 0)
    first.join(2, "b", 2, 0)
    again = Desk(SPEC, log=log, shard=replayed(SPEC, log))
    again.join(1, "a", 1, 0)
    again.asked(1, Register([Listed("p", "v", 5)], True, 1))
    assert again.asked(1, Claim("a", 1, [], True)).state == WAIT
    again.join(2, "b", 2, 0)
    again.asked(2, Claim("b", 2, ["p"], False))
    assert again.asked(1, Claim("a", 1, [], True)).state == WAIT


def test_worker_that_is_lost_does_not_keep_others_from_what_is_free():
    made = desk()
    made.join(2, "b", 2)
    made.asked(1, Register([Listed(name, "v", 5) for name in "pq"], True, 1))
    made.asked(2, Claim("b", 2, [], True))
    made.close(2)
    assert made.asked(1, Claim("a", 1, [], True)) == Claimed(GIVEN, "q", 0)


def test_snapshots_wanted_are_noted():
    made = desk()
    request = made.ask(1, TakeSnapshot())
    assert made.service.snapshots_wanted == [(1, request)]


def test_every_request_is_answered_by_its_own_type():
    # what a session may ask, and nothing else, has a method
    made = Service(Shard(SPEC), None, incarnation=1, now=0.0)
    assert set(made._answers) == {
        Pull, PullFactors, PullTopics, Push, PushFactors, PushTopics, Join, Leave, Register, Claim,
        Finished, Reopen, State, Follow, TakeSnapshot, Meet, Stay,
    }  # fmt: skip


def test_workers_meet_at_the_first_shard_and_are_told_when_others_come():
    first = Desk(FIRST)
    first.open(1, 2)
    asked = first.ask(1, Meet("a", 1, 0, "h:1"))
    first.advance(0.6)
    assert first.answers[1, asked] == Met(1, 0, 1, "h:1")
    staying = first.ask(1, Stay("a", 1, 1))
    joining = first.ask(2, Meet("b", 2, 5, "h:2"))
    assert first.answers[1, staying] == Done()
    again = first.ask(1, Meet("a", 1, 7, "h:1", 1))
    assert first.answers[1, again] == Met(2, 0, 2, "h:1")
    assert first.answers[2, joining] == Met(2, 1, 2, "h:1")


def test_worker_that_leaves_or_is_lost_is_not_waited_for():
    first = Desk(FIRST)
    for session, name in enumerate("abc", 1):
        first.join(session, name, session)
        first.ask(session, Meet(name, session, 0, "h:1"))
    first.advance(0.6)
    again = first.ask(1, Meet("a", 1, 0, "h:1", 1))
    first.asked(2, Leave("b", 2))
    assert (1, again) not in first.answers
    first.close(3)
    assert first.answers[1, again] == Met(2, 0, 1, "h:1")


def test_other_shards_put_no_groups_together():
    made = desk()
    assert made.fault(1, Meet("a", 1, 0, "h:1")).code == "invalid"
    assert made.fault(1, Stay("a", 1, 0)).code == "invalid"


@pytest.mark.parametrize(("kind", "answered"), [("deep", 2), ("lr", 1)])
def test_young_nets_are_read_by_all_workers_at_once_since_they_step_together(kind, answered):
    of = spec(job(tau=8, model={"kind": kind}), index=0, of=2)
    made = Desk(of)
    keys = keys_of(of, 1, 2)
    made.join(1, "a", 1, 0)
    made.join(2, "b", 2, 0)
    for session in (1, 2):
        for clock in (0, 1):
            made.ask(session, pull(of, keys, clock, incarnation=session))
    pulled = [key for key, answer in made.answers.items() if isinstance(answer, Pulled)]
    assert len(pulled) == answered
