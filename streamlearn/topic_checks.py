"""What of a topic model's settings cannot be had over shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streamlearn.errors import ConfigError
from streamlearn.settings import shown

if TYPE_CHECKING:
    from streamlearn.config import JobConfig
    from streamlearn.kinds import LdaConfig

__all__ = ["MINIBATCH_MAX", "check_topics_for_shards"]

# Documents of a block have numbers of 16 bits, and the last record of a minibatch may be several.
MINIBATCH_MAX: Final = 1 << 15


def check_topics_for_shards(job: JobConfig, model: LdaConfig) -> None:
    """Refuse what topics over shards are not learned with.

    Raises
    ------
    ConfigError
    """
    refused = {
        "held_out": (model.held_out > 0, "no documents are held out", "leave it out"),
        "patience": (model.patience > 0, "no documents are held out", "leave it out"),
        "vocabulary_max": (
            model.vocabulary_max > 0,
            "each shard knows its own words alone",
            "bound the vocabulary by model.min_df and model.max_df",
        ),
        "half_life": (model.half_life > 0, "nothing is forgotten", "leave it out"),
        "epochs": (
            job.source.follow and model.epochs > 1,
            "a source that goes on has one pass",
            "--epochs 1",
        ),
    }
    for name, (wrong, why, hint) in refused.items():
        if wrong:
            raise ConfigError(
                f"`model.{name}` is {shown(getattr(model, name))}, but over shards {why}", hint=hint
            )
    tables = job.tables
    if tables.when_full == "evict" or tables.ttl_seconds:
        name = "ttl_seconds" if tables.ttl_seconds else "when_full"
        raise ConfigError(
            f"`tables.{name}` is {shown(getattr(tables, name))}, but shards of a topic model do "
            "not forget words: their tokens would be left without counts",
            hint="leave it out, and raise tables.features_max",
        )
    if job.compute.minibatch > MINIBATCH_MAX:
        raise ConfigError(
            f"`compute.minibatch` is {job.compute.minibatch}, but over shards a topic model has at "
            f"most {MINIBATCH_MAX} documents in a minibatch"
        )
