"""All that can go wrong, by name; each seed has some of it.

A *steady* fault is there from the beginning of the storm to its end. A *sudden* one happens now and
then, and what it broke is mended a while later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.sim.disk import Faults
from tests.sim.network import Weather

if TYPE_CHECKING:
    from tests.sim.machines import Machine
    from tests.sim.world import World

__all__ = ["FAULTS", "Fault", "calm"]


@dataclass(frozen=True)
class Fault:
    """One class of faults.

    Attributes
    ----------
    name : str
    begin : callable
        Lets it happen, or sets it going.
    steady : bool
    fired : str
        Under which name it is counted when it takes effect.
    """

    name: str
    begin: Callable[[World, Random], None]
    steady: bool
    fired: str


# A disk's fault waits so long for somebody to use that disk.
DISK_SECONDS_MAX: Final = 15.0

FAULTS: Final[dict[str, Fault]] = {}


def _fault(*, steady: bool, fired: str = "") -> Callable[[Any], Any]:
    def enter(begin: Callable[[World, Random], None]) -> Callable[[World, Random], None]:
        name = begin.__name__.strip("_")
        FAULTS[name] = Fault(name, begin, steady, fired or name)
        return begin

    return enter


def calm(world: World) -> None:
    """Mend everything that a storm can have broken."""
    world.fabric.weather = Weather()
    world.fabric.slow.clear()
    world.fabric.heal_all()
    for machine in world.machines:
        machine.disk.faults = Faults()
        machine.doom = machine.next_doom = 0
        if machine.life is not None:
            world.loop.thaw(machine.life)


def _weather(world: World, **changes: Any) -> None:
    world.fabric.weather = replace(world.fabric.weather, **changes)


def _later(world: World, random: Random, seconds: float, then: Callable[[], None]) -> None:
    world.later(random.expovariate(1.0 / seconds), then)


# --- the network, steadily


@_fault(steady=True, fired="delay")
def _delay(world: World, random: Random) -> None:
    _weather(world, jitter_seconds=random.choice((0.005, 0.05)))
    world.fired["delay"] += 1


@_fault(steady=True, fired="spike")
def _reorder(world: World, random: Random) -> None:
    _weather(world, spike_share=0.03, spike_seconds=random.choice((0.3, 3.0)))


@_fault(steady=True)
def _trickle(world: World, random: Random) -> None:
    _weather(world, piece_bytes_max=random.choice((60, 250)))
    world.fired["trickle"] += 1


@_fault(steady=True)
def _throttle(world: World, random: Random) -> None:
    _weather(world, bytes_per_second=random.choice((3e3, 3e4)))
    world.fired["throttle"] += 1


@_fault(steady=True)
def _reset(world: World, random: Random) -> None:
    _weather(world, reset_share=0.006)


@_fault(steady=True)
def _half_reset(world: World, random: Random) -> None:
    _weather(world, half_reset_share=0.004)


@_fault(steady=True)
def _corrupt(world: World, random: Random) -> None:
    _weather(world, corrupt_share=0.006)


@_fault(steady=True)
def _duplicate(world: World, random: Random) -> None:
    _weather(world, duplicate_share=0.01)


@_fault(steady=True)
def _refuse(world: World, random: Random) -> None:
    _weather(world, refuse_share=0.3)


# --- the network, suddenly


def _pair(world: World, random: Random) -> tuple[str, str]:
    one, other = random.sample([machine.name for machine in world.machines], 2)
    return one, other


@_fault(steady=False)
def _partition(world: World, random: Random) -> None:
    one, other = _pair(world, random)
    world.cut(((one, other), (other, one)), random, "partition")


@_fault(steady=False)
def _one_way(world: World, random: Random) -> None:
    world.cut((_pair(world, random),), random, "one_way")


@_fault(steady=False)
def _isolate(world: World, random: Random) -> None:
    host = random.choice(world.machines).name
    others = [machine.name for machine in world.machines if machine.name != host]
    world.cut(
        [*((host, other) for other in others), *((other, host) for other in others)],
        random,
        "isolate",
    )


@_fault(steady=False)
def _resets(world: World, random: Random) -> None:
    if world.fabric.reset(random.choice(world.machines).name):
        world.fired["resets"] += 1


@_fault(steady=False)
def _slow_host(world: World, random: Random) -> None:
    host = random.choice(world.machines).name
    world.fabric.slow[host] = random.choice((0.1, 1.0))
    _later(world, random, 2.0, lambda: world.fabric.slow.pop(host, None))


@_fault(steady=False)
def _stranger(world: World, random: Random) -> None:
    world.knock(random)


# --- processes


def _living(world: World, kind: str) -> list[Machine]:
    return [m for m in world.machines if m.name.startswith(kind) and m.life is not None]


def _kill(world: World, random: Random, kind: str, *, power: bool, fired: str) -> None:
    living = _living(world, kind)
    if living:
        random.choice(living).kill(power=power)
        world.fired[fired] += 1


@_fault(steady=False)
def _kill_shard(world: World, random: Random) -> None:
    _kill(world, random, "shard", power=False, fired="kill_shard")


@_fault(steady=False)
def _kill_worker(world: World, random: Random) -> None:
    _kill(world, random, "worker", power=False, fired="kill_worker")


@_fault(steady=False)
def _kill_follower(world: World, random: Random) -> None:
    _kill(world, random, "follower", power=False, fired="kill_follower")


@_fault(steady=False)
def _power_shard(world: World, random: Random) -> None:
    _kill(world, random, "shard", power=True, fired="power_shard")


@_fault(steady=False)
def _power_worker(world: World, random: Random) -> None:
    _kill(world, random, "worker", power=True, fired="power_worker")


@_fault(steady=False)
def _power_all(world: World, random: Random) -> None:
    for machine in world.machines:
        machine.kill(power=True)
    world.fired["power_all"] += 1


@_fault(steady=False, fired="mid_write")
def _dies_writing(world: World, random: Random) -> None:
    for machine in _living(world, "shard"):
        machine.doom, machine.doom_power = random.randint(1, 30), random.random() < 0.5


@_fault(steady=False, fired="in_recovery")
def _dies_recovering(world: World, random: Random) -> None:
    living = _living(world, "shard")
    if living:
        machine = random.choice(living)
        machine.next_doom, machine.doom_power = random.randint(1, 4), random.random() < 0.5
        machine.kill(power=random.random() < 0.5)


@_fault(steady=False)
def _freeze(world: World, random: Random) -> None:
    machine = random.choice(world.machines)
    if machine.life is not None:
        life = machine.life
        world.loop.freeze(life)
        world.fired["freeze"] += 1
        _later(world, random, random.choice((0.3, 4.0)), lambda: world.loop.thaw(life))


@_fault(steady=False)
def _drain_shard(world: World, random: Random) -> None:
    world.drain(random, "shard")


@_fault(steady=False)
def _drain_worker(world: World, random: Random) -> None:
    world.drain(random, "worker")


@_fault(steady=False)
def _twin(world: World, random: Random) -> None:
    world.twin(random)


@_fault(steady=True)
def _slow_lanes(world: World, random: Random) -> None:
    world.lane_mean = random.choice((0.003, 0.03))
    world.fired["slow_lanes"] += 1


# --- disks


def _disk(world: World, random: Random, **faults: float) -> None:
    machine = random.choice([m for m in world.machines if m.name.startswith("shard")])
    machine.disk.faults = replace(machine.disk.faults, **faults)
    mended = dict.fromkeys(faults, 0.0)

    fired = machine.disk.fired
    before = sum(fired[fault] for fault in faults)
    ends = world.loop.time() + DISK_SECONDS_MAX

    def mend() -> None:
        if sum(fired[one] for one in faults) > before or world.loop.time() > ends:
            machine.disk.faults = replace(machine.disk.faults, **mended)
        else:
            _later(world, random, 0.5, mend)

    _later(world, random, 0.5, mend)


@_fault(steady=False, fired="write_full")
def _disk_full(world: World, random: Random) -> None:
    _disk(world, random, write_full=random.choice((0.1, 1.0)))


@_fault(steady=False, fired="write_error")
def _write_fails(world: World, random: Random) -> None:
    _disk(world, random, write_error=0.3)


@_fault(steady=False, fired="write_torn")
def _write_torn(world: World, random: Random) -> None:
    _disk(world, random, write_torn=0.3)


@_fault(steady=False, fired="sync_error")
def _sync_fails(world: World, random: Random) -> None:
    _disk(world, random, sync_error=0.3)


@_fault(steady=False, fired="name_error")
def _name_fails(world: World, random: Random) -> None:
    _disk(world, random, name_error=0.5)
    world.ask_snapshot(random)


@_fault(steady=False, fired="read_error")
def _read_fails(world: World, random: Random) -> None:
    _disk(world, random, read_error=0.3)
    _kill(world, random, "shard", power=False, fired="kill_shard")


@_fault(steady=False, fired="read_flip")
def _read_flips(world: World, random: Random) -> None:
    _disk(world, random, read_flip=0.3)
    _kill(world, random, "shard", power=False, fired="kill_shard")


@_fault(steady=True)
def _slow_disk(world: World, random: Random) -> None:
    world.log_mean = random.choice((0.01, 0.2))
    world.fired["slow_disk"] += 1


@_fault(steady=False)
def _rot(world: World, random: Random) -> None:
    world.rot(random)


# --- clocks


@_fault(steady=False)
def _wall_forward(world: World, random: Random) -> None:
    random.choice(world.machines).clock.step(random.choice((70.0, 4000.0, 1e6)))
    world.fired["wall_forward"] += 1


@_fault(steady=False)
def _wall_back(world: World, random: Random) -> None:
    random.choice(world.machines).clock.step(-random.choice((70.0, 4000.0, 1e6)))
    world.fired["wall_back"] += 1


@_fault(steady=False)
def _time_jumps(world: World, random: Random) -> None:
    world.loop.jump(random.choice((0.5, 3.0, 20.0)))
    world.fired["time_jumps"] += 1


@_fault(steady=True)
def _drift(world: World, random: Random) -> None:
    world.fired["drift"] += 1  # see World.rate


# --- the source, operators


@_fault(steady=True)
def _source_stalls(world: World, random: Random) -> None:
    world.stall_share = 0.1


@_fault(steady=False)
def _snapshot_now(world: World, random: Random) -> None:
    world.ask_snapshot(random)
