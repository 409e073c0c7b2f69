"""A source in memory: small partitions of records, and what learning them once must add up to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Final

import numpy as np

from streamlearn.config import SourceConfig
from streamlearn.errors import StreamlearnError
from streamlearn.messages import (
    BLOCK_HEADROOM_BYTES,
    BLOCK_TAILROOM_BYTES,
    Block,
    Partition,
    Position,
)
from streamlearn.online.formats import open_format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = ["RATINGS", "SVMLIGHT", "Records", "SimSource", "records"]

SVMLIGHT: Final = SourceConfig(format="svmlight", bad_records_max=1.0)
# Laid out as is said, so that nobody looks at first lines.
RATINGS: Final = SourceConfig(
    format="ratings",
    bad_records_max=1.0,
    delimiter="\t",
    columns={"0": "user", "1": "item", "2": "rating"},
)
USERS: Final = 150
ITEMS: Final = 60
FEATURES: Final = 3000
FEATURES_A_RECORD_MAX: Final = 6
BAD_SHARE: Final = 0.03


@dataclass(frozen=True)
class Records:
    """Partitions of svmlight records, or of ratings.

    Attributes
    ----------
    texts : dict of str to bytes
        By partition.
    ends : dict
        For each partition, where its minibatches end: (offset, records before, done).
    good, bad : int
        Records.
    counts : Counter
        How often each key occurs.
    """

    texts: dict[str, bytes]
    ends: dict[str, list[tuple[int, int, bool]]]
    good: int
    bad: int
    counts: Counter[int] = field(repr=False)

    @property
    def minibatches(self) -> int:
        """Minibatches of one pass."""
        return sum(map(len, self.ends.values()))


@lru_cache(maxsize=64)
def records(
    seed: int, partitions: int, minibatches: int, minibatch: int, *, rated: bool = False
) -> Records:
    """Make partitions of about ``minibatches`` minibatches in all, the same for the same seed."""
    make = _rating if rated else _record
    random = Random(seed)
    texts: dict[str, bytes] = {}
    ends: dict[str, list[tuple[int, int, bool]]] = {}
    good = bad = 0
    for number in range(partitions):
        share = max(1, minibatches * minibatch // partitions)
        lines, is_good = [], []
        for _ in range(random.randint(share // 2, share * 3 // 2)):
            is_good.append(random.random() >= BAD_SHARE)
            lines.append(make(random) if is_good[-1] else b"x 1:1\n")
        name = f"mem://log/{number}"
        texts[name] = b"".join(lines)
        ends[name] = _ends(lines, is_good, minibatch)
        good += sum(is_good)
        bad += len(is_good) - sum(is_good)
    source = RATINGS if rated else SVMLIGHT
    return Records(texts, ends, good, bad, _count(texts.values(), source))


def _rating(random: Random) -> bytes:
    """Make a rating of any user, of items that follow a power law."""
    user, item = random.randrange(USERS), int(ITEMS * random.random() ** 2)
    rating = 3 + (user % 5 - 2) * (item % 3 - 1) / 2 + random.choice((-0.5, 0, 0.5))
    return f"{user}\t{item}\t{rating}\n".encode()


def _record(random: Random) -> bytes:
    """Make a record whose features follow a power law."""
    picked = sorted(
        {
            int(FEATURES * random.random() ** 2.5)
            for _ in range(random.randint(1, FEATURES_A_RECORD_MAX))
        }
    )
    label = int(random.random() < 1 / (1 + picked[0] / 200))
    pairs = " ".join(f"{one}:{random.choice(('1', '0.5', '2'))}" for one in picked)
    return f"{label} {pairs}\n".encode()


def _ends(lines: list[bytes], is_good: list[bool], minibatch: int) -> list[tuple[int, int, bool]]:
    """Cut a partition into minibatches: so many good records, or so many bad ones."""
    ends: list[tuple[int, int, bool]] = []
    offset = rows = wrong = 0
    for number, (line, fine) in enumerate(zip(lines, is_good, strict=True), 1):
        offset += len(line)
        rows += fine
        wrong += not fine
        if minibatch in {rows, wrong}:
            ends.append((offset, number, False))
            rows = wrong = 0
    ends.append((offset, len(lines), True))  # it may be empty: nobody knows before the end
    return ends


def _count(texts: Iterable[bytes], source: SourceConfig) -> Counter[int]:
    """Count the keys of all good records, by the format's own parser over whole partitions."""
    format = open_format(source)
    counts: Counter[int] = Counter()
    for text in texts:
        buffer = np.frombuffer(text + bytes(BLOCK_TAILROOM_BYTES), np.uint8).copy()
        rows = text.count(b"\n") + 1
        batch = Minibatch(rows, FEATURES_PER_RECORD_MAX + 16 * rows, has_values=format.has_values)
        batch.clear()
        assert format.parser(None).parse(buffer, 0, len(text), batch) == len(text)
        counts.update(batch.keys[: batch.nnz].tolist())
    return counts


class SimSource:
    """What ``net.sources.source.Source`` is, over partitions in memory.

    Parameters
    ----------
    records : Records
    random : Random
        Cuts blocks.
    wait : callable
        Seconds that the next block takes to come.
    """

    def __init__(self, records: Records, random: Random, wait: Callable[[], float]) -> None:
        self._records = records
        self._random = random
        self._wait = wait

    async def partitions(self) -> list[Partition]:
        """Return all partitions."""
        await asyncio.sleep(self._wait())
        return [
            Partition(name, version="v1", size=len(text))
            for name, text in self._records.texts.items()
        ]

    async def follow(self) -> AsyncIterator[Partition]:
        """Yield nothing, for ever: there is no more."""
        await asyncio.Event().wait()
        yield Partition("")

    async def read(self, partition: Partition, position: Position) -> AsyncIterator[Block]:
        """Yield a partition from a position on, in blocks that end anywhere in a record."""
        text = self._records.texts[partition.uri]
        offset = position.offset
        while True:
            await asyncio.sleep(self._wait())
            part = text[offset : offset + self._random.choice((40, 300, 1000))]
            yield _block(part, offset, last=offset + len(part) >= len(text))
            offset += len(part)
            if offset >= len(text):
                return

    async def read_many(
        self,
        todo: Iterable[tuple[Partition, Position]] | AsyncIterable[tuple[Partition, Position]],
    ) -> AsyncIterator[tuple[Partition, Block | StreamlearnError]]:
        """Read partitions one after another."""
        if isinstance(todo, AsyncIterable):
            async for partition, position in todo:
                async for block in self.read(partition, position):
                    yield partition, block
            return
        for partition, position in todo:
            async for block in self.read(partition, position):
                yield partition, block

    async def header(self, partition: Partition) -> bytes:
        """Return a partition's first line."""
        return self._records.texts[partition.uri].split(b"\n", 1)[0]

    async def aclose(self) -> None:
        """Do nothing."""


def _block(part: bytes, offset: int, *, last: bool) -> Block:
    start = BLOCK_HEADROOM_BYTES
    buffer = np.empty(start + len(part) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[start : start + len(part)] = np.frombuffer(part, np.uint8)
    return Block(buffer, start, start + len(part), offset, last, len(part), lambda: None)
