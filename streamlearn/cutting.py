"""One open cut of a model at a time: its parts are taken between minibatches, and written beside.

Whoever learns calls ``begin`` and ``take_parts``; a lane of its own writes. Parts that are taken
and not yet written are bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from streamlearn.compute.pool import Lane
from streamlearn.errors import StreamlearnError
from streamlearn.model_cut import ModelCut
from streamlearn.shards.cut import Part

__all__ = ["Cutting", "SnapshotDone"]

# Parts of a table waiting to be written while a snapshot is made: 16 MB each.
_PARTS_WAITING_MAX: Final = 2

SnapshotDone = Callable[[dict[str, object]], None]


class Cutting:
    """Takes cuts of a model and has them written.

    Parameters
    ----------
    lane : Lane
        Writes.
    alone : callable
        Gives a context in which nobody changes the table.
    fail : callable
        Told of what is no fault of a disk.

    Attributes
    ----------
    cut : ModelCut or None
        The one that is open.
    """

    def __init__(
        self,
        lane: Lane,
        alone: Callable[[], AbstractContextManager[None]],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.lane = lane
        self.cut: ModelCut | None = None
        self._done: SnapshotDone | None = None
        self._alone = alone
        self._fail = fail
        self._waiting = threading.Semaphore(_PARTS_WAITING_MAX)
        self._abandoned = False

    def begin(self, cut: ModelCut, done: SnapshotDone) -> None:
        """Take parts of ``cut`` from now on; none is open.

        ``done`` is called in the lane that writes with what ``ModelCut.commit`` returns, or with
        ``error``.
        """
        assert self.cut is None, "a cut is open"
        self.cut, self._done = cut, done
        if cut.at_once:
            self.take_parts(all_parts=True)

    def abandon(self) -> None:
        """Take no more."""
        self._abandoned = True

    def take_parts(self, *, all_parts: bool) -> None:
        """Hand parts of the open cut to the lane that writes: one, or all that are left."""
        while self.cut is not None and not self._abandoned:
            if not self._waiting.acquire(blocking=all_parts):
                return
            cut, done = self.cut, self._done
            assert done is not None
            with self._alone():
                part = cut.take()
            if part is None:
                self.cut = self._done = None
            self.lane.post(self._write_task(cut, done, part))
            if not all_parts:
                return

    def _write_task(
        self, cut: ModelCut, done: SnapshotDone, part: Part | None
    ) -> Callable[[], None]:
        def task() -> None:
            try:
                if cut.failed is None:
                    if part is not None:
                        cut.write(part)
                    else:
                        done(cut.commit())
                elif part is None:
                    done({"error": cut.failed})
            except StreamlearnError as error:
                cut.abort(error)
                if part is None:
                    done({"error": error})
            except BaseException as error:  # noqa: BLE001 - raised by whoever learns
                self._fail(error)
            finally:
                self._waiting.release()

        return task
