"""What validations of all losses have in common: windows, lanes, resume, and which is which."""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import FmConfig, LrConfig, MfConfig, ModelConfig, loss_of
from streamlearn.errors import SnapshotError
from streamlearn.online.losses import new_validation, validation_of
from streamlearn.online.progressive import Validation
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.validation import BinaryValidation
from streamlearn.protocol import MARKS

Kind = Callable[[int], Validation]
KINDS = pytest.mark.parametrize("kind", [BinaryValidation, RatingValidation])
Stream = tuple[np.ndarray, ...]


def stream(seed: int, n: int) -> Stream:
    """Return scores, labels of 0 and 1, which are ratings as well, and weights."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=n), rng.random(n) < 0.4, rng.integers(0, 4, n)
    return tuple(part.astype(np.float32) for part in parts)


def feed(validation: Validation, data: Stream, step: int = 1024) -> Validation:
    for start in range(0, data[0].size, step):
        validation.update(*(part[start : start + step] for part in data))
    return validation


def both(first: Stream, second: Stream) -> Stream:
    return tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (LrConfig(), BinaryValidation),
        (FmConfig(), BinaryValidation),
        (MfConfig(loss="logistic"), BinaryValidation),
        (MfConfig(), RatingValidation),
    ],
)
def test_the_loss_of_a_model_says_how_it_is_validated(
    model: ModelConfig, kind: type[Validation]
) -> None:
    assert validation_of(model) is kind
    validation = new_validation(model, 1_000)
    assert type(validation) is kind
    assert validation.window == 1_000
    # what a worker counts is what a mark of the same loss tells
    fields = {one.name for one in msgspec.structs.fields(MARKS[loss_of(model)])}
    assert set(kind.totals_type._fields) <= fields


@KINDS
def test_names_of_figures_are_those_of_the_summary(kind: type[Validation]) -> None:
    summary = feed(kind(100), stream(1, 300)).summary()
    assert summary["loss"] == summary[kind.measure]
    assert {"baseline_loss", "examples", "weight"} <= summary.keys()
    assert {f"{name}_window" for name in summary if not name.endswith("_window")} < summary.keys()
    assert kind.headlines(summary) == {name: summary[name] for name in kind.headline}
    report = kind.report(summary)
    assert set(kind.headline) < report.keys()
    assert report[f"baseline_{kind.measure}"] == summary["baseline_loss"]
    judged = kind.judged(summary)
    assert (judged["measure"], judged["loss"]) == (kind.measure, summary["loss"])
    assert judged["figures"] == {name: summary[name] for name in kind.shown}
    unknown = [*kind.report({}).values(), *kind.judged({})["figures"].values()]
    assert all(map(math.isnan, unknown))


@KINDS
def test_window_is_rounded_up_to_eighths(kind: Kind) -> None:
    assert kind(1).window == 8
    assert kind(100_000).window == 100_000


@KINDS
def test_merged_lanes_equal_one_lane_fed_with_both(kind: Kind) -> None:
    first, second = stream(6, 1500), stream(7, 900)
    lane, other = feed(kind(400), first), feed(kind(400), second)
    before = other.summary()
    lane.merge(other)
    merged, pooled = lane.summary(), feed(kind(400), both(first, second)).summary()
    cumulative = [name for name in merged if not name.endswith("_window")]
    assert {name: merged[name] for name in cumulative} == pytest.approx(
        {name: pooled[name] for name in cumulative}, rel=1e-12
    )
    assert other.summary() == before


@KINDS
def test_merged_window_is_both_windows(kind: Kind) -> None:
    first, second = stream(8, 410), stream(9, 1230)
    lane = feed(kind(400), first)
    lane.merge(feed(kind(800), second))
    last = both(
        tuple(part[410 - 360 :] for part in first), tuple(part[1230 - 730 :] for part in second)
    )
    assert lane.window == 1200
    expected = feed(kind(10_000), last).summary()
    summary = lane.summary()
    names = [name for name in summary if name.endswith("_window")]
    assert {name: summary[name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, rel=1e-12
    )


@pytest.mark.parametrize("cut", [0, 1, 333, 1024, 4999])
@KINDS
def test_resumed_validation_equals_the_uninterrupted_one_bit_for_bit(kind: Kind, cut: int) -> None:
    data = stream(10, 5000)
    head, tail = tuple(part[:cut] for part in data), tuple(part[cut:] for part in data)
    through, before = feed(feed(kind(600), head), tail), feed(kind(600), head)
    state = {name: array.copy() for name, array in before.state().items()}
    feed(before, tail)  # what was handed out must not move
    resumed = kind(17)
    resumed.restore(state)
    feed(resumed, tail)
    assert resumed.summary() == through.summary()
    for name, array in through.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([BinaryValidation, RatingValidation]),
    seed=st.integers(0, 1 << 30),
    n=st.integers(0, 300),
    window=st.integers(1, 90),
    step=st.integers(1, 70),
)
def test_sums_do_not_depend_on_how_a_stream_is_cut(
    kind: Kind, seed: int, n: int, window: int, step: int
) -> None:
    data = stream(seed, n)
    cut, whole = feed(kind(window), data, step), feed(kind(window), data, 10_000)
    assert tuple(cut.totals()) == pytest.approx(tuple(whole.totals()))
    assert tuple(cut.totals_window()) == pytest.approx(tuple(whole.totals_window()))
    assert cut.totals().examples == n
    assert cut.totals_window().examples <= cut.window


@KINDS
def test_difference_of_two_sums_is_what_came_between(kind: Kind) -> None:
    data = stream(12, 2000)
    validation = feed(kind(100), tuple(part[:1500] for part in data))
    before = validation.sums()
    last = tuple(part[1500:] for part in data)
    feed(validation, last)
    between = validation.totals_of(validation.sums() - before)
    assert type(between) is validation.totals_type
    assert tuple(between) == pytest.approx(tuple(feed(kind(1_000), last).totals()))


@KINDS
def test_sums_can_be_set_and_the_window_stays(kind: Kind) -> None:
    data = stream(13, 500)
    validation, other = feed(kind(200), data), feed(kind(200), stream(14, 700))
    window = validation.totals_window()
    validation.set_totals(other.totals())
    assert tuple(validation.totals()) == pytest.approx(tuple(other.totals()))
    assert validation.totals_window() == window


@pytest.mark.parametrize(
    ("kind", "other"), [(BinaryValidation, RatingValidation), (RatingValidation, BinaryValidation)]
)
def test_state_of_another_loss_is_refused_and_leaves_what_was_there(
    kind: Kind, other: Kind
) -> None:
    validation = feed(kind(100), stream(15, 300))
    before = validation.summary()
    with pytest.raises(SnapshotError, match="histograms"):
        validation.restore(feed(other(100), stream(16, 50)).state())
    assert validation.summary() == before


@KINDS
def test_state_of_another_shape_is_refused_and_leaves_what_was_there(kind: Kind) -> None:
    validation = feed(kind(100), stream(11, 50))
    before, state = validation.summary(), validation.state()
    wrong = [(name, array[:-1]) for name, array in state.items()]
    wrong += [(name, array.astype(np.float32)) for name, array in state.items()]
    wrong += [("window", np.array([0, 0])), ("window", np.array([1, 8]))]
    for name, array in wrong:
        with pytest.raises(SnapshotError, match="validation"):
            validation.restore(state | {name: array})
    for name in state:
        with pytest.raises(SnapshotError, match=f"no array '{name}'"):
            validation.restore({one: array for one, array in state.items() if one != name})
    assert validation.summary() == before
