"""What a run says of itself: progress a few times a second, and metrics when a scrape asks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from prometheus_client import CollectorRegistry

from streamlearn import __version__, metrics
from streamlearn.config import DeepConfig
from streamlearn.learner import Learner
from streamlearn.messages import Partition, Progress
from streamlearn.metrics import Metrics
from streamlearn.model import Model
from streamlearn.net.sources.objects import ObjectSource
from streamlearn.online.lda import LdaSolver
from streamlearn.online.losses import validation_of
from streamlearn.online.solvers import DeviceSolver
from streamlearn.shards.table import ExactTable

if TYPE_CHECKING:
    from streamlearn.config import ModelConfig

__all__ = ["Telemetry"]

# Progress shows rates over about this long.
_RATE_SECONDS: Final = 5.0


class Telemetry:
    """State, progress and metrics of one run.

    Parameters
    ----------
    clock : callable
        Monotonic seconds.
    sink : callable
        Receives every Progress.
    model : ModelConfig
        What is learned or scored.
    """

    def __init__(
        self, clock: Callable[[], float], sink: Callable[[Progress], None], model: ModelConfig
    ) -> None:
        self.state = "compiling"
        self.detail = ""
        self.compile_seconds = 0.0
        self.summary: dict[str, float] = {}
        self.snapshot: dict[str, Any] = {}
        self.snapshots = 0
        self.snapshot_failures = 0
        self.partitions: dict[str, int] = {}  # stored bytes by partition name
        self.follows = False
        self.metrics = Metrics(CollectorRegistry(), __version__)
        self._validation = validation_of(model)
        self._clock = clock
        self._sink = sink
        self._started = clock()
        self._recent: deque[tuple[float, int, int]] = deque()
        self._learned = self._started  # when examples were last seen to have grown
        self._learner: Learner | None = None
        self._source: ObjectSource | None = None
        self.last: Progress = self._progress(math.nan)
        self.metrics.on_scrape(self._read)

    def attach(self, learner: Learner, source: ObjectSource | None) -> None:
        """Say whose figures these are, once they exist."""
        self._learner, self._source = learner, source

    def tell(self, state: str, detail: str = "") -> None:
        """Enter a state and show it."""
        self.state, self.detail = state, detail
        self.metrics.set_state(state)
        self.show()

    def show(self) -> None:
        """Show progress as it is now."""
        now = self._clock()
        learner = self._learner
        if learner is not None:
            counts = learner.model.counts
            if self._recent and counts.examples != self._recent[-1][1]:
                self._learned = now
            self._recent.append((now, counts.examples, counts.bytes))
            while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_SECONDS:
                self._recent.popleft()
        self.last = self._progress(now)
        try:
            self._sink(self.last)
        except OSError:  # nobody looks any more: that is no reason to stop
            self._sink = lambda _: None

    def add_partition(self, partition: Partition) -> None:
        """Count a partition's stored bytes for the time left; unknown sizes count as -1."""
        ranged = partition.end >= 0
        size = partition.end - partition.start if ranged else partition.size
        self.partitions[partition.name] = size

    @property
    def age_seconds(self) -> float:
        """How long nothing has been learned, as exactly as progress is shown."""
        return self._clock() - self._learned

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether the node is ready, and why (not)."""
        return self.state in {"learning", "following"}, self.detail or self.state

    def status(self) -> dict[str, Any]:
        """Return what ``/status`` shows."""
        learner = self._learner
        return {
            "version": __version__,
            "state": self.state,
            "detail": self.detail,
            "progress": self.last.told(),
            "validation": self.summary,
            "snapshot": self.snapshot,
            "positions": {
                name: {"offset": p.position.offset, "records": p.position.records}
                | ({"done": True} if p.position.done else {})
                for name, p in (list(learner.model.positions.items()) if learner else [])
            },
            "failed": {
                name: str(error) for name, error in (learner.failed.items() if learner else ())
            },
        }

    def _rates(self) -> tuple[float, float]:
        if len(self._recent) < 2:
            return 0.0, 0.0
        (before, examples, size), (now, examples_now, size_now) = self._recent[0], self._recent[-1]
        seconds = max(now - before, 1e-9)
        return (examples_now - examples) / seconds, (size_now - size) / seconds

    def _progress(self, now: float) -> Progress:
        learner = self._learner
        model = learner.model if learner else None
        examples_rate, bytes_rate = self._rates()
        label, score, features = learner.last if learner else (math.nan, math.nan, 0)
        if not self._validation.labelled:
            label = score = math.nan
        done, total = self._bytes()
        return Progress(
            state=self.state,
            detail=self.detail,
            seconds=0.0 if math.isnan(now) else now - self._started,
            examples=model.counts.examples if model else 0,
            bad_records=model.counts.bad_records if model else 0,
            bytes=model.counts.bytes if model else 0,
            stored_bytes=model.counts.stored_bytes if model else 0,
            bytes_done=done,
            bytes_total=total,
            examples_per_second=examples_rate,
            bytes_per_second=bytes_rate,
            weight=self.summary.get("weight", 0.0),
            **self._validation.judged(self.summary),
            last_label=label,
            last_prediction=self._validation.prediction(score),
            last_features=features,
            features=_features(model),
            event_seconds=math.nan,
        )

    def _bytes(self) -> tuple[int, int]:
        """Return stored bytes done and in all, -1 where no end is known."""
        learner = self._learner
        if learner is None:
            return 0, -1
        done = learner.stored_bytes
        if self.follows or not self.partitions or min(self.partitions.values()) < 0:
            return done, -1
        return done, sum(self.partitions.values())

    def _read(self) -> None:
        """Set metrics from the parts, as a scrape asks."""
        m, learner, source = self.metrics, self._learner, self._source
        m.set_state(self.state)
        m.set(metrics.COMPILE_SECONDS, self.compile_seconds)
        if learner is None:
            return
        model = learner.model
        m.set_validation(model.validation.totals(), self.summary)
        m.set(metrics.DROPPED, learner.notices.dropped)
        splits = source.splits.count if source is not None else 0
        m.set(metrics.DOCUMENTS_SPLIT, splits + learner.notices.rows_split)
        m.set(metrics.DOCUMENTS_UNDECODABLE, learner.notices.replaced)
        m.set(metrics.RECORDS, learner.records)
        m.set(metrics.BYTES, model.counts.bytes)
        m.set(metrics.STORED_BYTES, model.counts.stored_bytes)
        for reason, count in learner.reasons.items():
            m.set(metrics.REJECTED, count, reason)
        done, total = self._bytes()
        if total >= 0:
            m.set(metrics.LAG_BYTES, max(total - done, 0))
        finished = sum(1 for p in list(model.positions.values()) if p.position.done)
        failed = len(learner.failed)
        reading = len(model.positions) - finished
        waiting = max(0, len(self.partitions) - finished - failed - reading)
        for state, count in (
            ("waiting", waiting),
            ("reading", reading),
            ("done", finished),
            ("failed", failed),
        ):
            m.set(metrics.PARTITIONS, count, state)
        if source is not None:
            m.set(metrics.READ_AHEAD_BYTES, source.pool.bytes_in_use)
            for reason, count in source.retries().items():
                m.set(metrics.RETRIES, count, reason)
        m.set(metrics.READ_AHEAD_BYTES_MAX, model.job.source.read_ahead_bytes)
        table = model.table
        m.set(metrics.TABLE_BYTES, table.nbytes)
        if isinstance(model.solver, LdaSolver):
            m.set(metrics.TOPIC_TOKENS, int(model.solver.priors.totals.sum()))
        if isinstance(table, ExactTable):
            m.set(metrics.FEATURES, table.features)
            m.set(metrics.FEATURES_MAX, table.features_max)
            m.set(metrics.CAPACITY, table.capacity)
            m.set(metrics.GROWTHS, table.growths)
            m.set(metrics.GROWTH_SECONDS, table.growth_seconds)
            m.set(metrics.GROWTH_SECONDS_MAX, table.growth_seconds_max)
            m.set(metrics.EVICTIONS, table.evicted)
            m.set_embeddings(table.arena)
        elif model.has_embeddings:
            m.set(metrics.EMBEDDINGS_BYTES, table.embeddings_bytes)
        if isinstance(model.job.model, DeepConfig):
            m.set_net(cast("DeviceSolver", model.solver).figures())
        m.set(metrics.NAMES, len(model.names))
        m.set(metrics.NAMES_BYTES, model.names.bytes)
        m.set(metrics.NAMES_REFUSED, model.names.refused)
        for lane in learner.lanes:
            m.set(metrics.LANE_BUSY_SECONDS, lane.busy_seconds, lane.name)
        m.set(metrics.SNAPSHOTS, self.snapshots)
        m.set(metrics.SNAPSHOT_FAILURES, self.snapshot_failures)
        if self.snapshot:
            m.set(metrics.SNAPSHOT_TIME, self.snapshot.get("created_seconds", 0.0))
            m.set(metrics.SNAPSHOT_SECONDS, self.snapshot.get("seconds", 0.0))
            m.set(metrics.SNAPSHOT_BYTES, self.snapshot.get("bytes", 0))


def _features(model: Model | None) -> int:
    return model.table.features if model and isinstance(model.table, ExactTable) else 0
