"""What a seed decides: the size of the world, its job, and which faults it has."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

import msgspec

from streamlearn.config import (
    ClusterConfig,
    ComputeConfig,
    FmConfig,
    JobConfig,
    LrConfig,
    MfConfig,
    ModelConfig,
    OutputConfig,
    TablesConfig,
)
from streamlearn.net.limits import Limits
from tests.sim.source import RATINGS, SVMLIGHT

__all__ = ["LIMITS", "MINIBATCH", "Scenario"]

MINIBATCH: Final = 8
MINIBATCHES: Final = 48
FEATURES_MAX: Final = 100_000
FAULT_SHARE: Final = 0.3
FM_SHARE: Final = 0.4
# Memory of embeddings of a shard where it is short: some hundred of them.
EMBEDDINGS_BYTES_FEW: Final = 16_000

# Seconds as they are in earnest would let most of a run pass in waiting for them.
LIMITS: Final = Limits(
    frame_bytes_max=1 << 20,
    requests_max=16,
    inbox_bytes_max=4 << 20,
    outbox_bytes_max=8 << 20,
    write_bytes_high=1 << 16,
    sessions_max=64,
    handshake_seconds=2.0,
    silence_seconds=4.0,
    linger_seconds=0.5,
)


@dataclass(frozen=True)
class Scenario:
    """The outline of a run.

    Attributes
    ----------
    seed : int
    shards, workers, followers : int
    records_seed : int
    partitions : int
    job : JobConfig
    faults : tuple of str
    embeddings_bytes_max : int
        Of a shard.
    """

    seed: int
    shards: int
    workers: int
    followers: int
    records_seed: int
    partitions: int
    job: JobConfig
    faults: tuple[str, ...]
    embeddings_bytes_max: int

    @property
    def forgets(self) -> bool:
        """Whether shards forget features."""
        tables = self.job.tables
        return tables.features_max < FEATURES_MAX or tables.ttl_seconds > 0

    @classmethod
    def drawn(cls, seed: int, faults: list[str], model: str = "") -> Scenario:
        """Draw one; with ``model``, of that kind (``mf`` is not learned otherwise)."""
        random = Random(f"{seed}/scenario")
        shards = random.choice((1, 2, 2, 3))
        followers = random.choice((0, 1, 1))
        chosen = tuple(
            name
            for name in faults
            if random.random() < FAULT_SHARE and (followers or name != "kill_follower")
        )
        of_fm = Random(f"{seed}/fm")
        kind = "fm" if of_fm.random() < FM_SHARE else "lr"
        drawn: FmConfig | MfConfig | None = None
        if (model or kind) == "fm":
            drawn = _fm(of_fm)
        elif model == "mf":
            drawn = _mf(of_fm)
        bytes_max = of_fm.choice((1 << 40, 1 << 40, EMBEDDINGS_BYTES_FEW))
        return cls(
            seed=seed,
            shards=shards,
            workers=random.choice((1, 2, 2, 3)),
            followers=followers,
            records_seed=random.randrange(16),
            partitions=random.choice((1, 3, 5)),
            job=_job(random, shards, drawn),
            faults=chosen,
            embeddings_bytes_max=bytes_max,
        )


def _fm(random: Random) -> FmConfig:
    """Draw factorization machines: embeddings that few or many features have, that grow or not."""
    lowest = random.choice((0, 1, 3))
    few = {str(lowest): 3, str(lowest + 4): 11}
    return FmConfig(
        dim=random.choice((1, 4, 16)),
        order=random.choice((2, 2, 3)),
        threshold=lowest,
        dim_by_count=random.choice(({}, few, few | {str(lowest + 9): 16})),
        l1_shrk=random.choice((True, False)),
        v_lr=0.1,
        v_clip=random.choice((0.0, 0.5)),
        v_dropout=random.choice((0.0, 0.0, 0.2)),
        v_normalize=random.choice((False, False, True)),
    )


def _mf(random: Random) -> MfConfig:
    """Draw matrix factorization, of ratings: its steps are large, so that a lot moves."""
    return MfConfig(dim=random.choice((1, 5, 16, 20)), alpha=0.3, l2=random.choice((0.0, 0.05)))


def _job(random: Random, shards: int, drawn: FmConfig | MfConfig | None) -> JobConfig:
    features_max = random.choice((FEATURES_MAX, FEATURES_MAX, 60 * shards))
    model: ModelConfig = LrConfig(
        rule=random.choice(("ftrl", "ftrl", "adagrad", "sgd")),
        l1=random.choice((0.0, 0.2)),
        epochs=random.choice((1, 1, 2)),
    )
    if isinstance(drawn, FmConfig):
        model = msgspec.structs.replace(drawn, l1=model.l1, epochs=model.epochs)
    elif drawn is not None:
        model = msgspec.structs.replace(drawn, epochs=model.epochs)
    return JobConfig(
        source=RATINGS if isinstance(drawn, MfConfig) else SVMLIGHT,
        model=model,
        tables=TablesConfig(
            shards=tuple(f"shard{i}:7700" for i in range(shards)),
            tau=random.choice((0, 1, 1, 4, -1)),
            window=random.choice((0, 0, 1, 3)),
            durability=random.choice(("log", "log", "log", "snapshot")),
            pull_values=random.choice(("float32", "float16")),
            push_values=random.choice(("float32", "float16", "byte")),
            compression="none",
            features_max=features_max,
            when_full="evict",
            # msgspec checks limits where it reads a job, so that files can be this small here
            log_file_bytes=random.choice((1500, 6000, 1 << 20)),
            ttl_seconds=random.choice((0.0, 0.0, 0.0, 120.0)),
        ),
        cluster=ClusterConfig(name="sim", lease_seconds=random.choice((0.5, 2.0))),
        compute=ComputeConfig(minibatch=MINIBATCH),
        output=OutputConfig(
            snapshot_seconds=random.choice((0.7, 2.0, 1000.0)), snapshots_kept=2, names_max=16
        ),
    )
