"""A whole cluster in one process, from one seed: shards, workers, followers, and what befalls them.

A run is a storm and the calm behind it. In the storm the seed's faults happen, each sudden one at
least once, while the source hands out records no faster than the storm goes on, so that both
overlap. Then everything is mended, and the job must end by itself and add up.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from streamlearn.cluster.flight import _OPEN_MAX
from streamlearn.cluster.service import PULLS_KEPT_MAX
from streamlearn.cluster.worker import Worker
from streamlearn.config import job_signature
from streamlearn.errors import StreamlearnError
from streamlearn.net.client import Link
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.net.security import Secrets
from streamlearn.protocol import TakeSnapshot
from streamlearn.shards.image import load_image
from streamlearn.shards.shard import Shard, ShardSpec
from streamlearn.shards.snapshot import SnapshotReader
from tests.sim import watching
from tests.sim.disk import Faults
from tests.sim.faults import FAULTS, calm
from tests.sim.judge import Judge, ViolationError, frame_bytes
from tests.sim.loop import OWNER, SimLoop
from tests.sim.machines import Machine, world_context
from tests.sim.network import Fabric
from tests.sim.processes import run_follower, run_shard, run_worker
from tests.sim.scenario import LIMITS, MINIBATCH, MINIBATCHES, Scenario
from tests.sim.source import records
from tests.sim.trace import Trace

__all__ = ["Result", "World", "simulate", "simulate_quietly"]

STORM_SECONDS_MAX: Final = 90.0
CALM_SECONDS_MAX: Final = 600.0
# A transport takes what is written whole, so one peer's unanswered requests may pile up in it above
# the mark from which nobody should write more.
UNSENT_BYTES_MAX: Final = LIMITS.write_bytes_high + LIMITS.requests_max * (32 << 10)
# Mean seconds between two sudden faults.
GAP_SECONDS: Final = 0.6


@dataclass
class Result:
    """How a run ended.

    Attributes
    ----------
    error : str
        Empty: nothing was wrong.
    counts : bool
        Whether enough traffic got through, and all of the seed's faults took effect.
    idle : tuple of str
        Faults that did not take effect.
    """

    seed: int
    error: str
    counts: bool
    digest: str
    events: int
    virtual_seconds: float
    steps: int
    acknowledged: int
    faults: tuple[str, ...]
    idle: tuple[str, ...]
    checked: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    tail: list[str] = field(default_factory=list, repr=False)


class World:
    """Everything of one run.

    Attributes
    ----------
    fired : Counter
        Faults that took effect, by name, those of network and disks aside.
    exits : Counter
        Why processes ended by themselves.
    """

    def __init__(
        self,
        seed: int,
        out: Callable[[str], None] | None = None,
        faults: Iterable[str] = FAULTS,
        model: str = "",
    ) -> None:
        self.seed = seed
        scenario = self.scenario = Scenario.drawn(seed, sorted(faults), model)
        self.loop = SimLoop()
        self.trace = Trace(self.loop.time, out)
        self.random = Random(f"{seed}/world")
        rated = scenario.job.source.format == "ratings"
        self.records = records(
            scenario.records_seed, scenario.partitions, MINIBATCHES, MINIBATCH, rated=rated
        )
        self.signature = job_signature(scenario.job)
        self.secrets = Secrets(tokens={"": b"known to this cluster alone"})
        self.specs = [
            ShardSpec(
                i,
                scenario.shards,
                scenario.job,
                self.signature,
                scenario.job.tables.features_max // scenario.shards,
                scenario.embeddings_bytes_max,
            )
            for i in range(scenario.shards)
        ]
        self.addresses = scenario.job.tables.shards
        self.judge = Judge(self.records, scenario.job, self.specs, forgets=scenario.forgets)
        self.fabric = Fabric(
            self.loop, Random(f"{seed}/network"), self.trace, frame_bytes, self.judge.frame
        )
        self.fired: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.problems: list[str] = []
        self.lane_mean = self.log_mean = self.stall_share = 0.0
        self.machines = [
            *(
                Machine(self, f"shard{i}", partial(run_shard, index=i))
                for i in range(scenario.shards)
            ),
            *(
                Machine(self, f"worker{i}", partial(run_worker, name=f"worker{i}"))
                for i in range(scenario.workers)
            ),
            *(
                Machine(self, f"follower{i}", partial(run_follower, index=i % scenario.shards))
                for i in range(scenario.followers)
            ),
        ]
        self._turns = [name for name in scenario.faults if not FAULTS[name].steady]
        self._turns_taken = 0
        self._waits = False  # for a fault to take effect
        self._rotten: set[str] = set()

    def of(self, kind: str) -> list[Machine]:
        """Return the machines of a kind."""
        return [machine for machine in self.machines if machine.name.startswith(kind)]

    # ------------------------------------------------------------ what machines ask

    def rate(self, random: Random) -> float:
        """Return how fast a machine's wall clock goes."""
        return random.uniform(0.9, 1.1) if "drift" in self.scenario.faults else 1.0

    def lane_seconds(self, kind: str) -> float:
        """Draw how long a lane takes for a piece of work."""
        mean = max(self.lane_mean, self.log_mean if kind == "log" else 0.0)
        return self.random.expovariate(1.0 / mean) if mean else 0.0

    def source_seconds(self) -> float:
        """Draw how long a source takes for a block: no faster than the storm goes on."""
        if self.stall_share and self.random.random() < self.stall_share:
            self.fired["source_stalls"] += 1
            return 3.0 * self.random.random()
        due = 0.85 * self._turns_taken / max(1, len(self._turns))
        ahead = self.judge.progress > due and (self._waits or self._turns_taken < len(self._turns))
        return self.random.expovariate(1.0 / (0.5 if ahead else 0.02))

    def problem(self, text: str, error: BaseException) -> None:
        """Note what must not happen."""
        self.problems.append(text)
        self.loop.fail(ViolationError(text))

    # ------------------------------------------------------------ what faults ask

    def later(self, seconds: float, then: Callable[[], object]) -> None:
        """Do something later, as nobody's."""
        self.loop.call_later(seconds, then, context=world_context())

    def cut(self, routes: Iterable[tuple[str, str]], random: Random, fired: str) -> None:
        """Let nothing through between hosts for a while."""
        routes = list(routes)
        for route in routes:
            self.fabric.cut(*route)
        self.fired[fired] += 1

        def heal() -> None:
            for route in routes:
                self.fabric.heal(*route)

        self.later(random.expovariate(1.0 / random.choice((0.5, 5.0))), heal)

    def drain(self, random: Random, kind: str) -> None:
        """Ask a process to end in order, as SIGTERM does; it is started again."""
        ready = [m for m in self.of(kind) if m.app is not None and not m.draining and m.life]
        if not ready:
            return
        machine = random.choice(ready)
        machine.draining = True
        self.fired[f"drain_{kind}"] += 1
        assert machine.life is not None
        with self.loop.as_owner(machine.life):
            if kind == "worker":
                machine.app.stop()
            else:
                self.loop.create_task(_drained(self, machine), name=f"{machine.name}-drain")

    def twin(self, random: Random) -> None:
        """Start a second process of a worker's name elsewhere; the first is soon gone."""
        first = random.choice(self.of("worker"))
        if first.life is None or first.done:
            return
        name = first.name.removesuffix("b")
        if any(m.name == f"{name}b" for m in self.machines):
            return
        second = Machine(self, f"{name}b", partial(run_worker, name=name))
        self.machines.append(second)
        self.fired["twin"] += 1
        second.start()

        def retire() -> None:
            first.done = True
            first.kill(power=False)

        self.later(random.choice((0.2, 2.0)), retire)

    def knock(self, random: Random) -> None:
        """Connect as somebody who does not belong here."""
        context = world_context()
        self.loop.create_task(
            _knock(self, random, random.choice(self.addresses)), name="stranger", context=context
        )
        self.fired["stranger"] += 1

    def ask_snapshot(self, random: Random) -> None:
        """Ask a shard for a snapshot, as an administrator."""
        self.fired["snapshot_now"] += 1
        self.loop.create_task(
            _snapshot(self, random.choice(self.addresses)), name="admin", context=world_context()
        )

    def rot(self, random: Random) -> None:
        """Damage a snapshot of a shard, once; the one before and the log make up for it."""
        machine = random.choice(self.of("shard"))
        files = [
            name for name in machine.disk.contents() if "/snapshots/" in name and "rows." in name
        ]
        if files and machine.name not in self._rotten:
            newest = max(files)
            self._rotten.add(machine.name)
            machine.disk.flip(newest)
            self.trace("rot", machine.name, newest)
            self.fired["rot"] += 1
            machine.kill(power=False)

    # ------------------------------------------------------------ what the judge is shown

    def check_snapshot(self, index: int, machine: Machine, path: str) -> None:
        """Look into a snapshot that was just committed."""
        disk = machine.disk
        faults, disk.faults = disk.faults, Faults()
        try:
            with (
                self.loop.as_owner(None),
                SnapshotReader.open(Path(path), disk) as reader,  # type: ignore[arg-type]
            ):
                state = load_image(reader, self.specs[index])
                self.judge.snapshot(index, state)
        finally:
            disk.faults = faults
        self.trace("snapshot", machine.name, state.lsn)

    # ------------------------------------------------------------ the run

    def run(self) -> Result:
        """Run it, and say how it ended."""
        error = ""
        collects = gc.isenabled()
        gc.disable()  # when it runs depends on what ran before this seed
        try:
            with watching.of(self):
                self.loop.run_until_complete(self._story(), seconds_max=1e5)
        except (ViolationError, AssertionError, StreamlearnError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        except BaseException as failure:
            error = repr(failure)
            raise
        finally:
            if collects:
                gc.enable()
            self.loop.close()
        problems = [*self.problems, *self.loop.problems]
        if problems and not error:
            error = "; ".join(problems[:3])
        idle = self._idle()
        return Result(
            seed=self.seed,
            error=error,
            counts=not idle and self.judge.progress >= 1.0,
            digest=self.trace.digest,
            events=self.trace.events,
            virtual_seconds=self.loop.time(),
            steps=self.loop.steps,
            acknowledged=self.judge.acknowledged,
            faults=self.scenario.faults,
            idle=idle,
            checked=self.judge.checked,
            exits=self.exits,
            tail=self.trace.tail,
        )

    def _idle(self) -> tuple[str, ...]:
        """Return the faults of this seed that have not taken effect."""
        fired = self.fired + self.fabric.fired
        for machine in self.machines:
            fired += machine.disk.fired
        return tuple(name for name in self.scenario.faults if not fired[FAULTS[name].fired])

    async def _story(self) -> None:
        self.trace("scenario", self.scenario)
        for name in self.scenario.faults:
            if FAULTS[name].steady:
                FAULTS[name].begin(self, self.random)
        for machine in self.machines:
            self.later(self.random.random() * 0.2, machine.start)
        await self._storm()
        self.trace("calm")
        self.lane_mean = self.log_mean = self.stall_share = 0.0
        calm(self)
        await self._until(self._all_learned)
        await self._until(self._followed)
        shards = [machine.app.service.shard for machine in self.of("shard")]
        followers = [
            (i % len(shards), self._followed_state(m)) for i, m in enumerate(self.of("follower"))
        ]
        with self.loop.as_owner(None):
            self.judge.finish(shards, followers)
        await self._end_twice()

    async def _storm(self) -> None:
        order = self.random.sample(self._turns, len(self._turns))
        order.sort(key=lambda name: name != "read_flips")  # only on disks that are whole so far
        begun = self.loop.time()
        while self.loop.time() - begun < STORM_SECONDS_MAX:
            await asyncio.sleep(self.random.expovariate(1.0 / GAP_SECONDS))
            self._fail_on_problems()
            over = self._turns_taken >= len(order)
            idle = [name for name in self._idle() if name in order] if over else []
            if over and not idle and (self.judge.progress >= 0.7 or not order):
                return
            self._waits = bool(idle)
            name = self.random.choice(idle or order) if over else order[self._turns_taken]
            self._turns_taken += 1
            self.trace("fault", name)
            FAULTS[name].begin(self, self.random)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait for what must come by itself in the calm."""
        end = self.loop.time() + CALM_SECONDS_MAX
        while not is_so():
            if self.loop.time() > end:
                raise ViolationError(self._stuck())
            await asyncio.sleep(0.1)
        self._fail_on_problems()

    def _check_bounds(self) -> None:
        """Look whether anything is kept that no limit allows."""
        limits = LIMITS
        in_flight_max = _OPEN_MAX + self.scenario.job.tables.minibatches_in_flight
        held: dict[str, tuple[int, int]] = {
            "bytes left unsent": (self.fabric.write_bytes_max, UNSENT_BYTES_MAX)
        }
        for machine in self.machines:
            app = machine.app
            if app is None:
                continue
            if isinstance(app, Worker):
                held[f"minibatches in flight of {machine}"] = (app.in_flight, in_flight_max)
                continue
            service = app.service
            if service is not None:
                most = limits.sessions_max * limits.requests_max
                held[f"parked pulls of {machine}"] = (service.parked, most)
                pulls = max((len(one.held) for one in service._sessions.values()), default=0)
                held[f"pulls remembered of {machine}"] = (pulls, PULLS_KEPT_MAX)
        for what, (found, most) in held.items():
            if found > most:
                raise ViolationError(f"{found:,} {what}, at most {most:,} are allowed")
        self.judge.checked["bounds"] += 1

    def _fail_on_problems(self) -> None:
        self._check_bounds()
        problems = [*self.problems, *self.loop.problems]
        if problems:
            raise ViolationError("; ".join(problems[:3]))

    def _all_learned(self) -> bool:
        """Say whether workers are done, and it is so.

        Without a log a shard may die when the workers are gone, with what no snapshot holds: then
        whoever runs the job starts them again.
        """
        workers = self.of("worker")
        if not all(machine.done for machine in workers):
            return False
        up = all(m.app is not None and m.app.state == "serving" for m in self.of("shard"))
        if not up or self.judge.progress >= 1.0 or self.scenario.job.tables.durability == "log":
            return up
        for machine in workers:
            machine.done = False
            machine.start()
        return False

    def _followed(self) -> bool:
        """Say whether all shards run, and all followers have what they have."""
        shards = [machine.app for machine in self.of("shard")]
        if not all(app is not None and app.state == "serving" for app in shards):
            return False
        return all(
            machine.app is not None
            and machine.app.state == "serving"
            and self._followed_state(machine).lsn == shards[i % len(shards)].service.shard.lsn
            for i, machine in enumerate(self.of("follower"))
        )

    def _followed_state(self, machine: Machine) -> Shard:
        state: Shard = machine.app.shard
        return state

    async def _end_twice(self) -> None:
        """Take the power from all shards; what comes back must be what was there."""
        for machine in self.of("shard"):
            machine.kill(power=True)
        await self._until(self._followed)

    def _stuck(self) -> str:
        states = [
            f"{m.name}: {'done' if m.done else getattr(m.app, 'state', 'down')}"
            for m in self.machines
        ]
        exits = [f"{text} ({count})" for text, count in self.exits.most_common(5)]
        waits = self.loop._who_waits()
        return (
            f"the job did not end: progress {self.judge.progress:.2f}; {', '.join(states)}; "
            f"ended by themselves: {exits}{waits}"
        )


async def _drained(world: World, machine: Machine) -> None:
    life = machine.life
    try:
        await machine.app.drain()
    except StreamlearnError as error:
        world.exits[f"{machine.name}: {error}"] += 1
    if life is not None:
        world.loop.call_soon(machine._end, life, False, False, context=world_context())


async def _link(world: World, role: str, address: str, **changes: Any) -> Link:
    keywords: dict[str, Any] = {
        "cluster": "sim",
        "peer": Peer(role, role),
        "secrets": world.secrets,
        "network": world.fabric.host(role),
        "limits": LIMITS,
        "nonce": lambda: world.random.randbytes(32),
        "counters": Counters(),
    }
    return await Link.open(address, **(keywords | changes))


async def _snapshot(world: World, address: str) -> None:
    try:
        link = await _link(world, "admin", address)
        async with asyncio.timeout(30):
            await link.ask(TakeSnapshot())
        await link.close()
    except (StreamlearnError, OSError, TimeoutError) as error:
        world.trace("no snapshot", type(error).__name__)


async def _knock(world: World, random: Random, address: str) -> None:
    kind = random.choice(("garbage", "token", "cluster"))
    try:
        if kind == "token":
            wrong = Secrets(tokens={"": b"known to nobody at all"})
            await _link(world, "worker", address, secrets=wrong)
        elif kind == "cluster":
            await _link(world, "worker", address, cluster="another")
        else:
            stranger = await world.fabric.host("stranger").connect(address, _Stranger)
            stranger.transport.write(random.randbytes(random.choice((3, 50, 5000))))
            await asyncio.sleep(1)
            stranger.transport.close()
            return
    except (StreamlearnError, OSError) as error:
        world.trace("refused", kind, type(error).__name__)
        return
    raise ViolationError(f"a stranger was let in ({kind})")


class _Stranger(asyncio.BufferedProtocol):
    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._memory = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._memory

    def buffer_updated(self, nbytes: int) -> None:
        pass


def simulate(seed: int, out: Callable[[str], None] | None = None, model: str = "") -> Result:
    """Run one seed; with ``model``, whatever else it decides, it learns one of that kind."""
    assert OWNER.get() is None
    return World(seed, out, model=model).run()


def simulate_quietly(seed: int, model: str = "") -> Result:
    """Run one seed; what its processes log is not shown."""
    logging.disable(logging.CRITICAL)
    try:
        return simulate(seed, model=model)
    finally:
        logging.disable(logging.NOTSET)
