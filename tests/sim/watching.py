"""Where the judge looks: what shards apply and recover, without changing any of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from streamlearn.cluster import image_files, shard_host
from streamlearn.shards import table
from streamlearn.shards.image import ImageMeta
from streamlearn.shards.shard import Shard
from tests.sim.loop import OWNER

if TYPE_CHECKING:
    from tests.sim.world import World

__all__ = ["of"]

# Tables so small that a few hundred rows make them grow and split.
INITIAL_SLOTS: Final = 32
SPLIT_SLOTS: Final = 128


@contextmanager
def of(world: World) -> Generator[None, None, None]:
    """Show the judge what the processes of a world do."""
    apply, recover, begin = Shard.apply, shard_host.recover, image_files.ImageFiles.begin
    judge = world.judge

    def applied(self: Shard, lsn: int, record: Any, *rest: Any) -> None:
        apply(self, lsn, record, *rest)
        owner = OWNER.get()
        if owner is not None and owner.name.startswith("shard"):
            world.trace("applies", owner.name, lsn, type(record).__name__)
            judge.applied(self.spec.index, lsn, record)
        elif owner is not None:
            judge.follows(owner, self.spec.index, lsn, record)

    def recovered(*arguments: Any, **keywords: Any) -> Any:
        found = recover(*arguments, **keywords)
        owner, token = OWNER.get(), OWNER.set(None)
        try:
            judge.recovered(found.shard.spec.index, found.shard)
        finally:
            OWNER.reset(token)
        if owner is not None:
            world.trace("recovered", owner.name, found.shard.lsn, found.snapshot_lsn, *found.notes)
        return found

    def began(self: Any, meta: ImageMeta) -> None:
        begin(self, meta)
        judge.imaging(meta.shard[0], meta.lsn)

    with (
        patch.object(table, "INITIAL_SLOTS", INITIAL_SLOTS),
        patch.object(table, "SPLIT_SLOTS", SPLIT_SLOTS),
        patch.object(Shard, "apply", applied),
        patch.object(shard_host, "recover", recovered),
        patch.object(image_files.ImageFiles, "begin", began),
    ):
        yield
