"""What progress looks like, line by line, and when a line is due."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from streamlearn.messages import Progress
from streamlearn.progress import (
    JsonLines,
    LiveBoard,
    PlainLines,
    ProgressView,
    Seen,
    Spacing,
    duration,
    short_count,
)

NOW = 1_793_491_260.0
AT = Progress(
    state="learning",
    detail="",
    seconds=1.0,
    examples=1_000_000,
    bad_records=0,
    bytes=243_000_000,
    stored_bytes=100_000_000,
    bytes_done=100_000_000,
    bytes_total=1_000_000_000,
    examples_per_second=1_720_000.0,
    bytes_per_second=418e6,
    weight=1_000_000.0,
    measure="logloss",
    loss=0.5,
    loss_window=0.48,
    baseline_loss=0.56,
    figures={"auc": 0.78125, "auc_window": 0.79, "calibration": 1.002, "normalized_entropy": 0.9},
    last_label=1.0,
    last_prediction=0.25,
    last_features=39,
    features=41_234,
    event_seconds=1_793_491_200.0,
)
UNKNOWN = replace(
    AT,
    bytes_total=-1,
    loss=math.nan,
    figures=dict.fromkeys(AT.figures, math.nan),
    last_label=math.nan,
    last_prediction=math.nan,
    event_seconds=math.nan,
)
RATINGS = replace(
    AT,
    measure="rmse",
    loss=0.9,
    loss_window=0.88,
    baseline_loss=1.0625,
    figures={"mae": 0.71875, "mae_window": 0.7},
    last_label=4.5,
    last_prediction=3.75,
    last_features=2,
)
CLASSES = replace(
    AT,
    measure="cross_entropy",
    loss=1.25,
    loss_window=1.0,
    baseline_loss=2.302585,
    figures={"accuracy": 0.625, "accuracy_window": 0.75},
    last_label=7.0,
    last_prediction=3.0,
    last_features=0,
)


def plain(*progress: Progress, spacing: Spacing | None = None) -> list[str]:
    out = io.StringIO()
    view = ProgressView(PlainLines(out.write), spacing or Spacing(), lambda: NOW)
    for one in progress:
        view(one)
    view.close()
    return out.getvalue().splitlines()


def counters(lines: list[str]) -> list[int]:
    return [int(line.split()[2]) for line in lines[2:]]


def test_a_plain_line_has_vowpal_wabbits_columns_and_what_a_stream_adds() -> None:
    later = replace(
        AT, seconds=4.0, examples=4_000_000, weight=4e6, loss=0.425, bytes_done=4 * 10**8
    )
    assert plain(AT, later) == [
        "average  since            example        example  current  current  current"
        "  event                                    lag or",
        "loss     last             counter         weight    label  predict features"
        "  time                records/s     MB/s      ETA     AUC",
        "0.500000 0.500000         1000000      1000000.0   1.0000   0.2500       39"
        "  2026-11-01T00:00:00     1.72M    418.0        -  0.7812",
        "0.425000 0.400000         4000000      4000000.0   1.0000   0.2500       39"
        "  2026-11-01T00:00:00     1.72M    418.0       6s  0.7812",
    ]


def test_a_plain_line_of_ratings_has_rmse_and_mae() -> None:
    # 4e6 ratings whose mean square is 0.9^2 for the first million, 0.6^2 for the others
    rmse = math.sqrt((0.9**2 + 3 * 0.6**2) / 4)
    later = replace(RATINGS, seconds=4.0, examples=4_000_000, weight=4e6, loss=rmse)
    assert plain(RATINGS, later) == [
        "average  since            example        example  current  current  current"
        "  event                                    lag or",
        "rmse     last             counter         weight    label  predict features"
        "  time                records/s     MB/s      ETA     MAE",
        "0.900000 0.900000         1000000      1000000.0   4.5000   3.7500        2"
        "  2026-11-01T00:00:00     1.72M    418.0        -  0.7188",
        "0.687386 0.600000         4000000      4000000.0   4.5000   3.7500        2"
        "  2026-11-01T00:00:00     1.72M    418.0        -  0.7188",
    ]


def test_headers_end_where_their_columns_end() -> None:
    _, header, line = plain(AT)
    for name, value in (
        ("counter", "1000000"),
        ("weight", "1000000.0"),
        ("label", "1.0000"),
        ("predict", "0.2500"),
        ("features", " 39"),
        ("records/s", "1.72M"),
        ("MB/s", "418.0"),
        ("AUC", "0.7812"),
    ):
        assert header.index(name) + len(name) == line.index(value) + len(value), name


def test_what_is_not_known_is_a_dash() -> None:
    line = plain(UNKNOWN)[2]
    assert line.split() == [
        *("-", "-", "1000000", "1000000.0", "-", "-", "39", "-", "1.72M", "418.0", "-", "-")
    ]


def test_spacing_doubles_and_from_a_minute_on_goes_by_time() -> None:
    every_second = [
        replace(AT, seconds=float(s), examples=1000 * s, weight=1000.0 * s) for s in range(1, 101)
    ]
    seconds = [count // 1000 for count in counters(plain(*every_second))]
    assert seconds == [1, 2, 3, 5, 9, 17, 33, 60, 70, 80, 90, 100]


def test_after_a_resume_the_spacing_begins_anew() -> None:
    resumed = [
        replace(AT, seconds=float(s), examples=10**9 + 1000 * s, weight=1e9) for s in range(1, 9)
    ]
    assert len(counters(plain(*resumed))) == 5


def test_after_a_resume_the_loss_since_is_that_of_this_run() -> None:
    before = replace(AT, state="compiling", detail="compiling kernels 1/1")
    lines = plain(before, replace(AT, examples=2_000_000, weight=2e6, loss=0.45))
    assert [line.split()[:2] for line in lines[3:]] == [
        ["0.500000", "-"],
        ["0.450000", "0.400000"],
    ]


def test_the_loss_since_a_line_that_knew_none_is_not_known() -> None:
    lines = plain(replace(UNKNOWN, weight=0.0), replace(AT, examples=2_000_000, weight=2e6))
    assert lines[3].split()[:2] == ["0.500000", "-"]


def test_spacing_by_examples() -> None:
    spacing = Spacing(every=1000)
    steps = [replace(AT, examples=n, seconds=n) for n in (1, 600, 1001, 1500, 2400, 2900, 3001)]
    assert counters(plain(*steps, spacing=spacing)) == [1, 1001, 2400, 3001]


def test_the_last_progress_is_always_shown_once() -> None:
    steps = [replace(AT, examples=n, weight=float(n)) for n in (1, 2, 3, 4)]
    assert counters(plain(*steps)) == [1, 2, 3, 4]
    assert counters(plain(*steps[:3], replace(steps[2], state="done"))) == [1, 2, 3]


def test_compilation_is_told_step_by_step() -> None:
    first = replace(AT, state="compiling", detail="compiling kernels 3/7", examples=0)
    second = replace(first, detail="compiling kernels 4/7")
    assert plain(first, first, second) == ["compiling kernels 3/7", "compiling kernels 4/7"]


def test_states_that_matter_are_told_once() -> None:
    told = plain(
        AT,
        replace(AT, state="following", bytes_total=-1),
        replace(AT, state="draining", detail="snapshot"),
        replace(AT, state="draining", detail="closing"),
    )
    assert told[3:] == ["following", "draining: snapshot"]


def test_following_shows_the_lag_of_event_time() -> None:
    line = plain(replace(AT, state="following", bytes_total=-1))[3]
    assert line.split()[-2] == "1:00"


def test_time_left_needs_an_end_and_a_rate() -> None:
    early = replace(AT, seconds=0.5, bytes_done=1)
    soon = replace(AT, seconds=1.5, examples=3_000_000)
    assert [line.split()[-2] for line in plain(early, soon)[2:]] == ["-", "-"]
    stalled = [replace(AT, seconds=float(s), examples=10**s) for s in range(1, 7)]
    assert {line.split()[-2] for line in plain(*stalled)[2:]} == {"-"}


def test_time_left_follows_the_last_half_minute() -> None:
    fast = [replace(AT, seconds=float(s), bytes_done=10**7 * s, examples=s) for s in range(60)]
    slow = [
        replace(AT, seconds=60.0 + s, bytes_done=6 * 10**8 + 10**6 * s, examples=60 + s)
        for s in range(41)
    ]
    assert plain(*fast, *slow)[-1].split()[-2] == "6:00"


def test_json_lines_have_the_fields_by_name_and_null_for_nan() -> None:
    out = io.StringIO()
    view = ProgressView(JsonLines(out.write), Spacing(), lambda: NOW)
    view(replace(UNKNOWN, state="compiling", detail="compiling kernels 1/2", examples=0))
    view(UNKNOWN)
    view.close()
    state, progress = map(json.loads, out.getvalue().splitlines())
    assert state == {"event": "state", "detail": "compiling kernels 1/2"}
    assert progress["event"] == "progress"
    assert progress["examples"] == 1_000_000
    assert progress["loss"] is None
    assert progress["left_seconds"] is None


@pytest.mark.parametrize(
    ("progress", "has", "has_not"),
    [
        (AT, {"logloss", "auc", "calibration", "normalized_entropy"}, {"rmse", "mae"}),
        (RATINGS, {"rmse", "rmse_window", "mae", "mae_window"}, {"logloss", "auc", "calibration"}),
        (CLASSES, {"cross_entropy", "cross_entropy_window", "accuracy"}, {"logloss", "rmse"}),
    ],
    ids=["clicks", "ratings", "classes"],
)
def test_json_lines_have_the_figures_of_the_loss_and_no_others(
    progress: Progress, has: set[str], has_not: set[str]
) -> None:
    out = io.StringIO()
    view = ProgressView(JsonLines(out.write), Spacing(), lambda: NOW)
    view(progress)
    view.close()
    told = json.loads(out.getvalue())
    assert has <= told.keys()
    assert not told.keys() & (has_not | {"figures"})
    assert told[progress.measure] == told["loss"] == progress.loss
    assert None not in [told[name] for name in has]


def test_the_board_of_ratings_says_rmse_and_mae() -> None:
    board = LiveBoard(Console(file=io.StringIO()))
    seen = Seen(RATINGS, math.nan, math.nan, math.nan)
    assert board.lines(seen)[3:] == [
        "  RMSE        0.90000   window 0.88000   best constant 1.06250",
        "  MAE         0.71875   window 0.70000",
        "  last        label 4.5, predicted 3.7500, 2 features, 2026-11-01T00:00:00 UTC",
    ]


def test_of_classes_the_line_and_the_board_say_loss_and_accuracy() -> None:
    header, line = plain(CLASSES)[1:]
    assert header.startswith("loss  ")
    assert header.endswith("correct")
    assert line.startswith("1.250000 1.250000 ")
    assert line.endswith(" 0.6250")
    board = LiveBoard(Console(file=io.StringIO()))
    seen = Seen(CLASSES, math.nan, math.nan, math.nan)
    assert board.lines(seen)[3:] == [
        "  loss        1.25000   window 1.00000   best constant 2.30259",
        "  accuracy    0.6250   window 0.7500",
        "  last        label 7, predicted 3.0000, 0 features, 2026-11-01T00:00:00 UTC",
    ]


def test_the_board_says_state_share_and_measures() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110, legacy_windows=False)
    seen = []
    board = LiveBoard(console)

    class Recorded(LiveBoard):
        def show(self, one):  # type: ignore[no-untyped-def]
            seen.append(self.lines(one))

    view = ProgressView(Recorded(console), Spacing(), lambda: NOW)
    view(replace(AT, state="compiling", detail="compiling kernels 3/7", examples=0))
    view(replace(AT, detail="reading day_0.gz"))
    view(replace(AT, seconds=6.0, bytes_done=6 * 10**8, bad_records=12))
    view.close()
    board.close()
    assert seen[0] == ["compiling; compiling kernels 3/7"]
    assert seen[1][0] == "learning; 1.72M records/s; reading day_0.gz"
    assert seen[2] == [
        "learning; 1.72M records/s",
        "  " + "█" * 24 + "░" * 16 + "  60%   ETA 4s",
        "  examples    1,000,000   12 bad   41.2k features   418.0 MB/s",
        "  logloss     0.50000   window 0.48000   best constant 0.56000",
        "  AUC         0.7812   window 0.7900",
        "  calibration 1.002    normalized entropy 0.9000",
        "  last        label 1, predicted 0.2500, 39 features, 2026-11-01T00:00:00 UTC",
    ]


def test_the_board_is_drawn_in_place_and_taken_away() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, legacy_windows=False)
    view = ProgressView(LiveBoard(console), Spacing(), lambda: NOW)
    view(AT)
    view(replace(AT, state="following", bytes_total=-1))
    view.close()
    text = out.getvalue()
    assert "learning; 1.72M records/s" in text
    assert "following; 1:00 behind; 1.72M records/s" in text
    assert "\x1b[1A" in text  # the cursor goes up to draw over the lines before
    assert text.endswith("\x1b[2K")  # and the last thing done is to clear them


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1:00"),
        (3599.0, "59:59"),
        (7400.0, "2:03:20"),
        (273_600.0, "3d04h"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (41_234, "41.2k"),
        (999_400, "999k"),
        (999_600, "1.00M"),
        (1_720_000, "1.72M"),
        (2.5e9, "2.50G"),
        (math.nan, "-"),
    ],
)
def test_short_counts_have_three_digits(count: float, text: str) -> None:
    assert short_count(count) == text
