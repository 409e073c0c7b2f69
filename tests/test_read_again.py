"""What a run does that reads its source once more, in parts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamlearn.errors import ObjectChangedError
from streamlearn.messages import F32, Partition
from streamlearn.online.mappings import Examples
from streamlearn.online.minibatch import Minibatch
from streamlearn.read_again import check_unchanged, keep_again


@pytest.mark.parametrize(
    ("lost", "told"),
    [(600, "1,200 tokens are of words that the model has not met, or has forgotten"), (0, "")],
)
async def test_what_is_not_known_is_counted_and_warned_of(
    lost: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    batches, seen = [Examples(1, 1), Examples(1, 1)], []

    async def read_again(tell: Callable[[F32, Minibatch], None]) -> None:
        for batch in batches:
            tell(np.zeros(0, np.float32), batch)

    def keep(batch: Minibatch) -> int:
        seen.append(batch)
        return lost

    await keep_again(read_again, keep, "tokens are of words")
    assert seen == batches
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


@pytest.mark.parametrize(
    ("now", "told"),
    [([Partition("a", version="2")], "it was 1, it is 2"), ([], "it is gone")],
)
def test_what_has_changed_since_is_refused(now: list[Partition], told: str) -> None:
    was = Partition("a", version="1")
    model: Any = SimpleNamespace(positions={was.name: SimpleNamespace(version="1")})
    check_unchanged(model, [was, Partition("b", version="7")])
    with pytest.raises(ObjectChangedError, match=told):
        check_unchanged(model, now)
