"""What a shard answers to a pull, by kind of model; nothing changes by it."""

from __future__ import annotations

from typing import Final

from streamlearn import columns
from streamlearn.errors import RefusedError
from streamlearn.protocol import Pull, Pulled, PulledFactors, PulledTopics, PullFactors, PullTopics
from streamlearn.shards.shard import Located, Shard

__all__ = ["embedded", "read"]

_EMPTY: Final = memoryview(b"")


def read(shard: Shard, pull: Pull, located: Located) -> Pulled:
    """Return the answer to a pull.

    Raises
    ------
    RefusedError
        It is for another kind of model.
    ValueError
        A value does not fit the coding.
    """
    if isinstance(pull, PullTopics) != (shard.topics is not None):
        raise RefusedError(
            f"a {type(pull).__name__} for a model {shard.spec.job.model.kind}", code="invalid"
        )
    if isinstance(pull, PullTopics) and shard.topics is not None:
        if not shard.topics.online and not pull.epoch:
            return PulledTopics(pull.count, pull.coding, _EMPTY)
        topics = shard.topics.read(
            located.slots, pull.partition, pull.epoch, pull.sequence, shard.documents
        )
        return PulledTopics(pull.count, pull.coding, _EMPTY, **topics)
    weights = shard.values(located)
    column = columns.encode_values(weights, pull.coding)
    copied = None
    if isinstance(pull, PullFactors):
        copied = columns.decode_lengths(pull.copied, pull.count, (1,))
    lengths, vectors = shard.vectors(located, weights, pull.coding, copied)
    told = (pull.count, pull.coding, column.data, lengths.data, vectors.data)
    if not isinstance(pull, PullFactors):
        return Pulled(*told)
    slowest = shard.clocks.slowest
    return PulledFactors(*told, pull.clock if slowest is None else slowest)


def embedded(shard: Shard) -> dict[str, float]:
    """Return what is to be said of a shard's embeddings, if its model has some."""
    arena = shard.table.arena
    if arena is None:
        return {}
    told: dict[str, float] = {"embeddings_bytes": arena.nbytes, "embeddings_refused": arena.refused}
    if shard.topics is not None:
        told |= {
            "words_with_topics": shard.topics.words,
            "tokens_assigned": int(shard.topics.totals.sum()),
            "topics_bytes": shard.topics.nbytes,
        }
    return told
