"""The name store: what it keeps, how it is bounded, how it is kept."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import SnapshotError
from streamlearn.messages import I64, U8
from streamlearn.online.formats import Described
from streamlearn.online.names import (
    PICKS_AT_ONCE,
    ROWS_AT_FIRST,
    ROWS_PER_PICK,
    ROWS_WAITING_MAX,
    TOKEN_BYTES_MAX,
    Names,
    Sampler,
)
from tests.reference import names as reference

Feature = tuple[int, int, str]


def described(features: list[Feature]) -> Described:
    tokens = [token.encode() for _, _, token in features]
    return Described(
        np.array([key for key, _, _ in features], np.uint64),
        np.array([field for _, field, _ in features], np.int32),
        np.cumsum([0, *map(len, tokens)])[1:].astype(np.int64),
        np.frombuffer(b"".join(tokens), np.uint8),
    )


class Words:
    """A parser of records of words: the key of a word is its length's hash; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        self.calls += 1
        words = [
            word
            for start, end in zip(starts, ends, strict=True)
            for word in buffer[start:end].tobytes().decode().split()
        ]
        return described([(key_of(word), 0, word) for word in words])


def key_of(word: str) -> int:
    return int.from_bytes(word.encode()[:8].ljust(8, b"\1"), "big") | 1


def block(records: list[str]) -> tuple[U8, I64]:
    data = "".join(record + "\n" for record in records).encode()
    starts = np.cumsum([0, *(len(record.encode()) + 1 for record in records)])[:-1]
    return np.frombuffer(data + b"\0" * 128, np.uint8), starts.astype(np.int64)


keys = st.one_of(
    st.integers(0, 20).map(lambda k: 2 * k + 1),  # all in one place of the index
    st.integers(0, 20).map(lambda k: (k << 60 | 1) & (2**64 - 1)),
    st.integers(0, 2**63 - 1).map(lambda k: 2 * k + 1),
)
features = st.tuples(keys, st.integers(-1, 2), st.text(max_size=6))


@settings(max_examples=200, deadline=None)  # the first call compiles
@given(st.lists(st.lists(features, max_size=12), max_size=6), st.integers(1, 30))
def test_store_equals_a_bounded_dictionary(parts: list[list[Feature]], names_max: int) -> None:
    names = Names(["a", "b", "c"], names_max, 60)
    twin = reference.Names(names_max, 60, TOKEN_BYTES_MAX)
    for part in parts:
        names.insert(described(part))
        for feature in part:
            twin.insert(*feature)
    assert len(names) == len(twin.texts)
    assert names.bytes == twin.bytes
    assert names.refused == twin.refused
    assert names.keys.tolist() == list(twin.texts)
    wanted = sorted({key for part in parts for key, _, _ in part} | {12345})
    expected = [
        None
        if key not in twin.texts
        else twin.texts[key][1]
        if twin.texts[key][0] < 0
        else f"{'abc'[twin.texts[key][0]]}={twin.texts[key][1]}"
        for key in wanted
    ]
    assert names.lookup(np.array(wanted, np.uint64)) == expected


def test_lookup_of_nothing_and_in_an_empty_store() -> None:
    names = Names(["f"], 10)
    assert names.lookup(np.zeros(0, np.uint64)) == []
    assert names.lookup(np.array([1, 3], np.uint64)) == [None, None]
    assert names.find("f=x") is None


@pytest.mark.parametrize("token", ["x" * 200, "x" * 201, "ä" * 150, "x" + "𝄞" * 80, "x" * 5000])
def test_long_tokens_are_cut_at_a_character(token: str) -> None:
    names = Names(["f"], 4, 10_000)
    names.insert(described([(5, -1, token)]))
    (kept,) = names.lookup(np.array([5], np.uint64))
    assert kept is not None
    assert len(kept.encode()) <= TOKEN_BYTES_MAX
    if len(token.encode()) <= TOKEN_BYTES_MAX:
        assert kept == token
    else:
        assert kept.endswith("…")
        assert token.startswith(kept[:-1])
        assert len(kept.encode()) > TOKEN_BYTES_MAX - 4


def test_names_are_found_by_their_text() -> None:
    names = Names(["city", "city=x"], 10)
    names.insert(described([(3, 0, "x=1"), (5, 1, "1"), (7, -1, "free=text"), (9, 0, "")]))
    assert names.find("free=text") == 7
    assert names.find("city=") == 9
    assert names.find("city=x=1") == 3
    assert names.find("city=nowhere") is None


def test_noted_records_are_described_many_at_a_time_and_before_anything_is_asked() -> None:
    records = [f"w{i} common" for i in range(3 * ROWS_WAITING_MAX + 5)]
    buffer, lines = block(records)
    parser, names = Words(), Names(["word"], 10_000)
    for start in range(0, len(records), 10):
        part = lines[start : start + 10]
        names.note(parser, buffer, part, np.arange(part.size))
    assert parser.calls == 3
    last = f"w{len(records) - 1}"
    asked = np.array([key_of("common"), key_of(last)], np.uint64)
    assert names.lookup(asked) == ["word=common", f"word={last}"]
    assert parser.calls == 4
    assert len(names) == len(records) + 1


def test_only_picked_records_are_described_whatever_becomes_of_the_block() -> None:
    records = ["one two", "three", "four five"]
    buffer, lines = block(records)
    buffer = buffer.copy()
    names = Names(["word"], 100)
    names.note(Words(), buffer, lines, np.array([2, 0]))
    buffer[:] = 0
    asked = [
        names.find(f"word={word}") is not None for word in ["one", "two", "three", "four", "five"]
    ]
    assert asked == [True, True, False, True, True]


def test_records_of_another_parser_are_described_by_it() -> None:
    buffer, lines = block(["one", "two"])
    first, second = Words(), Words()
    names = Names(["word"], 100)
    names.note(first, buffer, lines, np.array([0]))
    names.note(second, buffer, lines, np.array([1]))
    names.flush()
    assert (first.calls, second.calls) == (1, 1)
    assert len(names) == 2


def test_keys_without_a_name_are_told_once_each_while_there_is_room() -> None:
    names = Names(["a"], 4)
    asked = np.array([7, 9, 7, 11, 9, 13], np.uint64)
    assert sorted(names.unnamed(asked).tolist()) == [0, 1, 3, 5]
    names.insert(described([(9, 0, "nine"), (11, 0, "eleven")]))
    assert sorted(names.unnamed(asked).tolist()) == [0, 5]
    assert names.unnamed(asked[:0]).size == 0
    names.insert(described([(1, 0, "one"), (3, 0, "three")]))
    assert names.unnamed(asked).size == 0  # it is full


def test_full_store_takes_no_more_until_pruned() -> None:
    names = Names(["f"], 4)
    names.insert(described([(2 * i + 1, 0, f"t{i}") for i in range(4)]))
    assert not names.prune_due
    names.insert(described([(101, 0, "late"), (1, 0, "t0")]))
    assert names.refused == 1
    assert names.prune_due
    assert names.prune(lambda keys: keys != 5) == 1
    assert not names.prune_due
    asked = np.array([1, 3, 5, 7, 101], np.uint64)
    assert names.lookup(asked) == ["f=t0", "f=t1", None, "f=t3", None]
    names.insert(described([(101, 0, "late")]))
    assert names.lookup(np.array([101], np.uint64)) == ["f=late"]


def test_pruning_that_frees_little_is_not_due_again_at_once() -> None:
    names = Names(["f"], 100)
    names.insert(described([(2 * i + 1, 0, "t") for i in range(101)]))
    assert names.prune(lambda keys: np.ones(keys.size, bool)) == 0
    for refusals in range(101):
        assert not names.prune_due, refusals
        names.insert(described([(9999, 0, "t")]))
    assert names.prune_due


def test_store_bounded_by_bytes_takes_shorter_texts_still() -> None:
    names = Names(["f"], 100, 10)
    names.insert(described([(1, 0, "eight888"), (3, 0, "four"), (5, 0, "to"), (7, 0, "")]))
    assert names.bytes == 10
    assert names.lookup(np.array([1, 3, 5, 7], np.uint64)) == ["f=eight888", None, "f=to", "f="]


def filled() -> Names:
    names = Names(["a", "b"], 50)
    names.insert(described([(2 * i + 1, i % 3 - 1, f"t{i}") for i in range(30)]))
    return names


def test_restored_names_are_the_same_and_go_on() -> None:
    names, resumed = filled(), Names(["a", "b"], 50)
    resumed.restore(names.state())
    for store in (names, resumed):
        store.insert(described([(1, 0, "other"), (9999, 1, "new")]))
    asked = np.array([*range(1, 60, 2), 9999], np.uint64)
    assert resumed.lookup(asked) == names.lookup(asked)
    for name, array in names.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array)


@given(st.lists(features, max_size=12, unique_by=lambda one: one[0]))
def test_sorted_names_are_the_same_in_whatever_order_they_came(part: list[Feature]) -> None:
    found = []
    for order in (part, part[::-1]):
        names = Names(["a", "b", "c"], 20)
        names.insert(described(order))
        before = names.lookup(names.keys)
        known = dict(zip(names.keys.tolist(), before, strict=True))
        names.sort()
        assert names.keys.tolist() == sorted(known)
        assert dict(zip(names.keys.tolist(), names.lookup(names.keys), strict=True)) == known
        found.append({name: array.tobytes() for name, array in names.state().items()})
        names.insert(described([(3 << 50 | 1, 0, "later")]))
        assert names.find("a=later") == 3 << 50 | 1
    assert found[0] == found[1]


def test_handed_out_state_stays_as_it_was_while_names_come_and_go() -> None:
    names = filled()
    state = names.state()
    before = {name: array.copy() for name, array in state.items()}
    names.insert(described([(777, 0, "new")]))
    names.prune(lambda keys: keys > 20)
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)


def test_names_of_a_larger_store_are_kept_as_far_as_they_fit() -> None:
    small = Names(["a", "b"], 7)
    small.restore(filled().state())
    assert len(small) == 7
    few_bytes = Names(["a", "b"], 50, 11)
    few_bytes.restore(filled().state())
    assert (len(few_bytes), few_bytes.bytes) == (5, 10)


def test_fields_are_matched_by_name_when_their_order_changed() -> None:
    names = Names(["new", "b"], 50)
    names.restore(filled().state())
    names.insert(described([(997, 0, "x"), (999, 1, "y")]))
    asked = np.array([1, 3, 5, 997, 999], np.uint64)
    assert names.lookup(asked) == ["t0", "a=t1", "b=t2", "new=x", "b=y"]
    assert names.fields == ("a", "b", "new")


def test_fields_that_grow_with_a_header_leave_earlier_names_alone() -> None:
    names = filled()
    buffer, lines = block(["waiting"])
    names.note(Words(), buffer, lines, np.array([0]))
    names.use_fields(["c", "b"])
    names.insert(described([(997, 0, "x"), (999, 1, "y")]))
    asked = np.array([3, 5, key_of("waiting"), 997, 999], np.uint64)
    assert names.lookup(asked) == ["a=t1", "b=t2", "a=waiting", "c=x", "b=y"]


def test_empty_state_is_restored() -> None:
    names = filled()
    names.restore(Names(["a"], 5).state())
    assert len(names) == 0
    assert names.lookup(np.array([1], np.uint64)) == [None]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("keys", np.zeros(30, np.uint64), "name 0 of 30"),
        ("keys", np.full(30, 5, np.uint64), "name 1 of 30"),
        ("keys", np.ones(29, np.uint64), "29 keys"),
        ("keys", np.ones(30, np.int64), "int64, expected uint64"),
        ("ends", np.arange(30)[::-1].copy(), "outside"),
        ("ends", np.arange(30) * 100, "outside"),
        ("ends", np.arange(30) - 5, "outside"),
        ("fields", np.full(30, 2, np.int32), "outside the 2"),
        ("fields", np.full(30, -2, np.int32), "outside the 2"),
        ("field_names", np.frombuffer(b"[1]", np.uint8), "list of texts"),
        ("field_names", np.frombuffer(b'["a", "a"]', np.uint8), "different"),
        ("field_names", np.frombuffer(b"\xff{", np.uint8), "cannot be read"),
    ],
)
def test_contradicting_state_is_refused(name: str, value: np.ndarray, complaint: str) -> None:
    with pytest.raises(SnapshotError, match=complaint):
        Names(["a", "b"], 50).restore(filled().state() | {name: value})


def test_missing_array_is_refused() -> None:
    state = filled().state()
    del state["text"]
    with pytest.raises(SnapshotError, match="no array 'text'"):
        Names(["a"], 50).restore(state)


def test_first_records_are_all_picked_and_then_ever_fewer() -> None:
    sampler, fresh = Sampler(), np.ones(1024, np.uint8)
    counts = [sampler.pick(fresh, 1024).size for _ in range(2000)]
    first = ROWS_AT_FIRST // 1024
    assert counts[:first] == [1024] * first
    eras = [sum(counts[start : start + 100]) for start in range(first, 2000 - 100, 100)]
    assert all(a >= b - PICKS_AT_ONCE for a, b in pairwise(eras))
    assert eras[-1] == pytest.approx(100 * 1024 / ROWS_PER_PICK, abs=PICKS_AT_ONCE)
    assert counts.count(0) > 500


@pytest.mark.parametrize("rows", [1, 7, 300, 5000])
def test_share_of_rows_picked_does_not_depend_on_the_minibatch(rows: int) -> None:
    sampler, fresh = Sampler(10**9), np.ones(rows, np.uint8)
    minibatches = 100 * ROWS_PER_PICK // rows
    count = sum(sampler.pick(fresh, rows).size for _ in range(minibatches))
    assert count == pytest.approx(minibatches * rows / ROWS_PER_PICK, abs=PICKS_AT_ONCE)


def test_rows_with_fresh_weights_come_first_and_others_are_not_forgotten() -> None:
    fresh = np.zeros(1024, np.uint8)
    fresh[[7, 500, 1000]] = 1
    sampler = Sampler(10**9)
    picks = [sampler.pick(fresh, 1024).copy() for _ in range(200)]
    others: set[int] = set()
    for picked in picks:
        assert not picked.size or {7, 500, 1000} <= set(picked.tolist())
        others |= set(picked.tolist()) - {7, 500, 1000}
    assert len(others) > 100


def test_minibatch_of_no_rows_gives_none() -> None:
    assert Sampler().pick(np.zeros(8, np.uint8), 0).size == 0


def test_choice_depends_only_on_what_was_seen() -> None:
    fresh = (np.random.default_rng(0).random((50, 256)) < 0.2).astype(np.uint8)
    whole = Sampler()
    picks = [whole.pick(row, 256).tolist() for row in fresh]
    resumed = Sampler(20 * 256)
    assert [resumed.pick(row, 256).tolist() for row in fresh[20:]] == picks[20:]


@pytest.mark.parametrize("rows", [1, 8, 500])
def test_a_pick_is_due_where_some_would_be_picked_if_all_were_fresh(rows: int) -> None:
    sampler, fresh = Sampler(10**6), np.ones(rows, np.uint8)
    due = []
    for _ in range(5000):
        due.append(sampler.due(rows))
        assert (sampler.pick(fresh, rows).size > 0) == due[-1]
    assert any(due)
    assert not all(due)
