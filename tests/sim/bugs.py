"""Bugs that somebody could have written, to be planted: the simulation must catch each of them.

A bug is there only for code that runs as a process of the simulation; what the judge computes by
itself is sound.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from streamlearn.cluster.feeding import Feeds
from streamlearn.cluster.image_files import ImageFiles
from streamlearn.cluster.preparing import Stepper
from streamlearn.cluster.remote import Remote
from streamlearn.cluster.service import Service
from streamlearn.net import frame
from streamlearn.shards import log_recovery
from streamlearn.shards.clock import Clocks
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.image import ImageMeta, Imaging
from streamlearn.shards.log import Log
from streamlearn.shards.shard import Shard
from streamlearn.shards.table import ExactTable
from tests.sim.disk import SimFile
from tests.sim.loop import OWNER

__all__ = ["BUGS", "planted"]

Change = tuple[Any, str, Callable[..., Any]]  # what, which attribute, and its wrong twin
BUGS: Final[dict[str, tuple[str, Callable[[], list[Change]]]]] = {}


def _bug(what: str) -> Callable[[Any], Any]:
    def enter(changes: Callable[[], list[Change]]) -> Callable[[], list[Change]]:
        BUGS[changes.__name__.strip("_")] = (what, changes)
        return changes

    return enter


@contextmanager
def planted(name: str) -> Generator[None, None, None]:
    """Have a bug."""
    with ExitStack() as stack:
        for owner, attribute, wrong in BUGS[name][1]():
            either = _for_processes(owner, attribute, wrong)
            stack.enter_context(patch.object(owner, attribute, either))
        yield


def _for_processes(owner: Any, attribute: str, wrong: Callable[..., Any]) -> Callable[..., Any]:
    sound = getattr(owner, attribute)

    def either(*arguments: Any, **keywords: Any) -> Any:
        if OWNER.get() is None:
            return sound(*arguments, **keywords)
        return wrong(sound, *arguments, **keywords)

    return either


@_bug("a push that was applied before is applied again")
def _applies_twice() -> list[Change]:
    def verdict(sound: Any, self: Shard, mark: Any) -> str:
        found = sound(self, mark)
        return "next" if found == "duplicate" else found

    return [(Shard, "verdict", verdict)]


@_bug("a push is applied though the ones before it are missing")
def _applies_out_of_order() -> list[Change]:
    def verdict(sound: Any, self: Shard, mark: Any) -> str:
        found = sound(self, mark)
        return "next" if found == "gap" else found

    return [(Shard, "verdict", verdict)]


@_bug("a push is acknowledged before its log record is on disk")
def _acknowledges_early() -> list[Change]:
    def say(sound: Any, self: Service, session: int, request: int, message: Any, *_: Any) -> None:
        sound(self, session, request, message, 0)

    return [(Service, "say", say)]


@_bug("the log is not brought to disk at all")
def _syncs_nothing() -> list[Change]:
    def sync(sound: Any, self: Log) -> int:
        self.synced_lsn = self.next_lsn - 1
        return self.synced_lsn

    return [(Log, "sync", sync)]


@_bug("the directory is not brought to disk when the log begins a new file")
def _forgets_names_of_the_log() -> list[Change]:
    def sync(sound: Any, self: Log) -> int:
        self._names_new = False
        return sound(self)

    return [(Log, "sync", sync)]


@_bug("records that no snapshot holds are dropped from the log")
def _drops_too_much_of_the_log() -> list[Change]:
    def drop_before(sound: Any, self: Log, lsn: int) -> None:
        sound(self, self.next_lsn)

    return [(Log, "drop_before", drop_before)]


@_bug("a torn tail of the log is left where it is")
def _keeps_the_torn_tail() -> list[Change]:
    def truncate(sound: Any, self: SimFile, size: int) -> None:
        if size == 0:
            sound(self, size)

    def write_anew(sound: Any, disk: Any, directory: str, file: Any) -> None:
        pass

    return [(SimFile, "truncate", truncate), (log_recovery, "_write_anew", write_anew)]


@_bug("what a failed sync left to be read is taken for written")
def _trusts_what_it_reads() -> list[Change]:
    def write_anew(sound: Any, disk: Any, directory: str, file: Any) -> None:
        handle = disk.append(file.path)
        handle.truncate(file.size)
        handle.sync()
        handle.close()

    return [(log_recovery, "_write_anew", write_anew)]


@_bug("a snapshot's positions are of another moment than its rows")
def _snapshots_in_two_cuts() -> list[Change]:
    def step(sound: Any, self: Imaging) -> bool:
        sink = self._sink
        did = bool(sound(self))
        if self._sink is None and isinstance(sink, ImageFiles) and sink.meta is not None:
            marks = ImageMeta.of(self._shard).marks
            sink.meta = msgspec.structs.replace(sink.meta, marks=marks)
        return did

    return [(Imaging, "step", step)]


@_bug("rows that change while a snapshot is taken are not kept for it")
def _snapshots_what_changes() -> list[Change]:
    def step(sound: Any, self: Imaging) -> bool:
        did = bool(sound(self))
        self._shard.keeper = Nothing()
        return did

    return [(Imaging, "step", step)]


@_bug("a position is dropped when a snapshot is loaded")
def _drops_a_position() -> list[Change]:
    def restore(sound: Any, self: ImageMeta, shard: Shard) -> None:
        sound(self, shard)
        if shard.marks:
            del shard.marks[max(shard.marks)]

    return [(ImageMeta, "restore", restore)]


@_bug("a worker's clock is advanced by two minibatches")
def _advances_the_clock_too_far() -> list[Change]:
    def advance(sound: Any, self: Clocks, worker: str, incarnation: int, clock: int) -> None:
        sound(self, worker, incarnation, clock + 1)

    return [(Clocks, "advance", advance)]


@_bug("a pull is answered before the slowest worker is where it must be")
def _reads_too_early() -> list[Change]:
    def may_read(sound: Any, self: Clocks, clock: int, tau: int) -> bool:
        return True

    return [(Clocks, "may_read", may_read)]


@_bug("a follower is sent records before they are on the shard's disk")
def _feeds_what_may_be_lost() -> list[Change]:
    def due(sound: Any, self: Feeds, durable: int) -> Any:
        return sound(self, self._last)

    return [(Feeds, "due", due)]


@_bug("a push that is sent again has other bytes")
def _rounds_again() -> list[Change]:
    def send_push(sound: Any, self: Remote, pushing: Any) -> None:
        if pushing.attempt and len(pushing.message.values):
            values = bytearray(pushing.message.values)
            values[-1] ^= 1
            again = msgspec.structs.replace(pushing.message, values=memoryview(values))
            pushing.message = again
        sound(self, pushing)

    return [(Remote, "_send_push", send_push)]


class _Blind:
    """A cut that keeps the table's old lines and none of the embeddings'."""

    vector_lines = Nothing()

    def __init__(self, cut: Cut) -> None:
        self.arguments = cut.arguments


@_bug("embeddings that change while a snapshot is taken are not kept for it")
def _snapshots_embeddings_that_change() -> list[Change]:
    def step(sound: Any, self: Imaging) -> bool:
        did = bool(sound(self))
        if isinstance(self._shard.keeper, Cut):
            self._shard.keeper = _Blind(self._shard.keeper)
        return did

    return [(Imaging, "step", step)]


@_bug("occurrences are counted in every pass")
def _counts_in_every_pass() -> list[Change]:
    def step(sound: Any, self: Stepper, prepared: Any, pulled: Any, seed: int, epoch: int) -> Any:
        return sound(self, prepared, pulled, seed, epoch=0)

    return [(Stepper, "step", step)]


@_bug("slots that a pull found are used though the rows have moved")
def _uses_slots_of_before() -> list[Change]:
    def refresh(sound: Any, self: ExactTable, *_: Any) -> None:
        pass

    return [(ExactTable, "refresh", refresh)]


@_bug("frames are taken whatever their checksums say")
def _checks_no_sums() -> list[Change]:
    def crc32(sound: Any, data: Any, value: int = 0) -> int:
        return 0

    return [(frame, "crc32", crc32)]


@_bug("a worker that is gone is waited for for ever")
def _waits_for_the_dead() -> list[Change]:
    def advance(sound: Any, self: Service, now: float, minute: int) -> None:
        self._absent = dict.fromkeys(self._absent, now + 1e9)
        sound(self, now, minute)

    return [(Service, "advance", advance)]
