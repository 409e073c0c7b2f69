"""What runs on the machines: the project's own shards, workers and followers."""

from __future__ import annotations

from streamlearn.cluster.follower_host import FollowerHost
from streamlearn.cluster.remote import Who
from streamlearn.cluster.shard_host import Lanes, Place, ShardHost
from streamlearn.cluster.worker import Worker
from streamlearn.cluster.worker_node import connector, remotes_of
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.online.formats import open_format
from streamlearn.online.losses import new_validation
from streamlearn.online.names import Names
from tests.sim.machines import Machine
from tests.sim.scenario import LIMITS
from tests.sim.source import SimSource

__all__ = ["place", "run_follower", "run_shard", "run_worker"]


def place(machine: Machine) -> Place:
    """Return what a daemon runs on."""
    clock = machine.clock
    return Place(machine.network, machine.disk, clock.monotonic, clock.wall, machine.number)


async def run_shard(machine: Machine, index: int) -> None:
    """Run a shard until it fails or is drained."""
    world = machine.world
    world.judge.starting(index)
    host = ShardHost(
        world.specs[index],
        "/shard",
        place(machine),
        Lanes(machine.lane("requests"), machine.lane("log"), machine.lane("snapshots")),
        world.secrets,
        LIMITS,
        on_snapshot=lambda path: world.check_snapshot(index, machine, path),
    )
    await host.start(world.addresses[index])
    machine.app = host
    await host.ended()


async def run_worker(machine: Machine, name: str) -> None:
    """Run a worker until nothing is left."""
    world = machine.world
    job = world.scenario.job
    who = Who(name, machine.number(), world.signature)
    worker = Worker(
        job,
        who,
        SimSource(world.records, machine.random, world.source_seconds),
        open_format(job.source),
        machine.lane("parse"),
        machine.lane("step"),
        Names((), job.output.names_max),
        new_validation(job.model, 1000),
        None,
    )
    remotes_of(worker, who, job, world.secrets, place(machine), LIMITS, Counters())
    machine.app = worker
    await worker.run()


async def run_follower(machine: Machine, index: int) -> None:
    """Run a follower of a shard until it fails."""
    world = machine.world
    spec, where = world.specs[index], place(machine)
    host = FollowerHost(
        spec,
        connector(
            world.addresses[index],
            index,
            spec.of,
            spec.job,
            Peer("follower", machine.name),
            world.secrets,
            where,
            LIMITS,
            Counters(),
        ),
        where,
        machine.lane("requests"),
        world.secrets,
        LIMITS,
    )
    await host.start(f"{machine.name}:7800")
    machine.app = host
    await host.failed
