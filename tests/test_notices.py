"""What is said of embeddings: once or a few times, and all counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from streamlearn.notices import Notices
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, S_REPLACED, S_SPLIT, Minibatch

if TYPE_CHECKING:
    import pytest


def test_examples_that_taught_nothing_are_counted_and_named_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = Notices()
    for i in range(50):
        notices.note_dropped(i % 3, "day_0.gz", i * 100, i * 100 + 99)
    assert notices.dropped == sum(i % 3 for i in range(50))
    assert len(caplog.messages) == 20
    assert (
        "1 examples of day_0.gz, bytes 100 to 199, have a score that is not" in caplog.messages[0]
    )
    assert [message.endswith("counted only") for message in caplog.messages] == [False] * 19 + [
        True
    ]


def test_a_full_arena_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices()
    arena = SimpleNamespace(refused=0, bytes_max=64_000_000)
    for refused in (0, 0, 3, 9):
        arena.refused = refused
        notices.look_at(arena)
        notices.look_at(None)
    assert len(caplog.messages) == 1
    assert "64,000,000 bytes (tables.embeddings_bytes_max)" in caplog.messages[0]


def test_documents_that_were_split_or_are_no_text_are_counted_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = Notices()
    batch = Minibatch(1, FEATURES_PER_RECORD_MAX, has_values=False)
    for split, replaced in ((0, 0), (2, 0), (1, 3), (0, 4)):
        batch.state[S_SPLIT], batch.state[S_REPLACED] = split, replaced
        notices.note_documents(batch, "a.tar")
    assert (notices.rows_split, notices.replaced) == (3, 7)
    assert [message.partition(":")[0].partition(",")[0] for message in caplog.messages] == [
        "a document of a.tar has more than 65",
        "a document of a.tar has bytes that are no UTF-8",
    ]
