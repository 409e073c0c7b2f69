"""Parts of a topic model over shards: documents, a worker and its shards, nothing between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamlearn.cluster.batcher import Cut
from streamlearn.cluster.preparing import Buffers, Preparer, marked
from streamlearn.cluster.topics import TopicStepper, new_stepper
from streamlearn.config import JobConfig
from streamlearn.messages import U64
from streamlearn.online.localized import Localized
from streamlearn.online.losses import new_validation
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.protocol import Mark, PulledTopics, PullTopics, PushTopics
from streamlearn.shards.shard import Shard, prefixes_of
from tests.reference.tables import minibatch
from tests.shard_parts import Desk, MemoryLog, changed, job, spec

MODEL: dict[str, Any] = {
    "kind": "lda", "topics": 6, "epochs": 5, "min_df": 2, "max_df": 0.9, "optimize": "none",
}  # fmt: skip
NNZ = FEATURES_PER_RECORD_MAX + 4096


def topic_job(**model: Any) -> JobConfig:
    """Return a job of a topic model."""
    return job(model=MODEL | model, tau=-1)


def documents(seed: int, count: int, *, words: int = 60, length: int = 20) -> list[list[int]]:
    """Return documents of a few topics: keys of their tokens."""
    rng = np.random.default_rng(seed)
    keys = np.random.default_rng(0).integers(0, 1 << 63, words, dtype=np.uint64) * 2 + 1
    phi = np.random.default_rng(1).dirichlet(np.full(words, 0.1), 4)
    out = []
    for _ in range(count):
        mixture = rng.dirichlet(np.full(4, 0.2)) @ phi
        out.append(keys[rng.choice(words, rng.integers(0, length), p=mixture)].tolist())
    return out


class TopicRun:
    """One worker and its shards.

    Attributes
    ----------
    pushes : list of list of PushTopics
        Of each minibatch, by shard.
    """

    def __init__(self, of_job: JobConfig, of: int, batches: Sequence[Sequence[list[int]]]) -> None:
        self.specs = [spec(of_job, index, of) for index in range(of)]
        self.desks = [Desk(one, log=MemoryLog()) for one in self.specs]
        for desk in self.desks:
            desk.join(1, "a", 1, 0)
        self.batches = [minibatch(list(one), [0.0] * len(one), None, None) for one in batches]
        self.preparer = Preparer(of_job, [prefixes_of(index, of)[0] for index in range(of)], NNZ)
        self.validation = new_validation(of_job.model, 100)
        made = new_stepper(of_job, 64, self.validation)
        assert isinstance(made, TopicStepper)
        self.stepper = made
        self.topics = of_job.model.topics
        self.mark = Mark("p", "v", 0, 0, 0, 0)
        self.clock = 0
        self.pushes: list[list[PushTopics]] = []

    @property
    def shards(self) -> list[Shard]:
        return [desk.shard for desk in self.desks]

    def made(self) -> list[PushTopics]:
        """Pull for the minibatch that comes next, and return its pushes."""
        mark = self.mark
        if mark.done:
            mark = changed(mark, epoch=mark.epoch + 1, sequence=0, done=False, loss=0.0, weight=0.0)
        batch: Minibatch = self.batches[mark.sequence]
        done = mark.sequence + 1 == len(self.batches)
        cut = Cut(batch, 10 * (mark.sequence + 1), mark.records + batch.rows, done=done)
        prepared = self.preparer.prepare(cut, Buffers(batch, Localized(NNZ)))
        prepared.place = ("p", mark.epoch, mark.sequence + 1)
        pulled = []
        for desk, part in zip(self.desks, prepared.parts, strict=True):
            told = (0, 1, self.clock, part.count, part.keys, 0)
            answer = desk.asked(1, PullTopics(*told, *prepared.place))
            assert isinstance(answer, PulledTopics), answer
            pulled.append(answer)
        pushed, totals = self.stepper.step(prepared, pulled, self.clock, mark.epoch)
        self.mark = marked(mark, cut, totals, 0)
        nothing = memoryview(b"")
        made = [
            PushTopics(
                0, "a", 1, self.clock, 0, part.signature, part.count, part.keys, 0, nothing,
                one.counts, self.mark, one.lengths, nothing, one.documents, one.topics, one.fit,
            )
            for part, one in zip(prepared.parts, pushed, strict=True)
        ]  # fmt: skip
        self.clock += 1
        return made

    def learn(self, minibatches: int = 1) -> None:
        """Learn minibatches one after the other."""
        for _ in range(minibatches):
            made = self.made()
            for desk, push in zip(self.desks, made, strict=True):
                desk.asked(1, push)
            self.pushes.append(made)

    def passes(self, count: int) -> None:
        """Make whole passes."""
        self.learn(count * len(self.batches))

    def tokens_of(self, words: U64) -> int:
        """Return how many tokens the documents have of words."""
        held = np.concatenate([batch.keys[: batch.nnz] for batch in self.batches])
        return int(np.isin(held, words).sum())


def counts_of(shard: Shard) -> dict[int, list[int]]:
    """Return the counts by topic of the words that have some."""
    assert shard.topics is not None
    out: dict[int, list[int]] = {}
    for segment in shard.table.key_order():
        rows = shard.table.rows(segment)
        for row in rows[rows[:, 3] >> np.uint64(48) != 0]:
            first = int(row[3] & np.uint64((1 << 48) - 1)) * 16
            out[int(row[0])] = shard.topics.counts[first : first + shard.topics.topics].tolist()
    return out


def seen_of(shard: Shard) -> dict[int, tuple[int, int]]:
    """Return how many tokens, and documents, of each word were counted."""
    out: dict[int, tuple[int, int]] = {}
    for segment in shard.table.key_order():
        for row in shard.table.rows(segment).tolist():
            out[row[0]] = (row[1] & 0xFFFFFFFF, row[2] & 0xFFFFFFFF)
    return out
