"""Every metric, declared once: what the node tells Prometheus.

Metrics are sums and states, so that whoever reads them chooses the window: the loss of the last
five minutes is ``rate(streamlearn_progressive_loss_sum_total[5m])`` over
``rate(streamlearn_example_weight_total[5m])``. Nothing is counted twice: the parts keep their own
figures, and those are handed over when a scrape asks (:meth:`Metrics.on_scrape`) or once a block.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from streamlearn.online.totals import AnyTotals
    from streamlearn.shards.arena import Arena

__all__ = ["METRICS", "STATES", "Metric", "Metrics", "metrics_table"]

PREFIX: Final = "streamlearn_"
# Values of all labels of one metric: reasons, lanes and states are few; a key or an address here
# would be a mistake that fills Prometheus' memory.
CHILDREN_MAX: Final = 128
# As ``messages.Progress.state`` has them; a shard or follower is first ``recovering``, then
# ``serving``.
STATES: Final = (
    *("compiling", "learning", "following", "recovering", "serving"),
    *("draining", "done", "failed"),
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is declared.

    Attributes
    ----------
    name : str
        Without the prefix; units last; a counter's ends in ``_total``.
    kind : str
        ``counter`` (only grows while the process lives) or ``gauge``.
    text : str
        What it counts, with its unit.
    labels : tuple of str
        Names of its labels, whose values are of small fixed sets.
    """

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    labels: tuple[str, ...] = ()


# What is learned.
EXAMPLES = Metric("examples_total", "counter", "Examples learned.")
DROPPED = Metric(
    "examples_dropped_total",
    "counter",
    "Examples whose score was not finite: nothing was learned of them.",
)
WEIGHT = Metric("example_weight_total", "counter", "Sum of the weights of examples learned.")
LOSS_SUM = Metric(
    "progressive_loss_sum_total",
    "counter",
    "Weighted sum of the loss of each example before it was learned.",
)
LABEL_SUM = Metric("label_sum_total", "counter", "Weighted sum of labels, where they are 0 or 1.")
PREDICTION_SUM = Metric(
    "prediction_sum_total",
    "counter",
    "Weighted sum of predictions before learning, where they are probabilities.",
)
ABSOLUTE_ERROR_SUM = Metric(
    "progressive_absolute_error_sum_total",
    "counter",
    "Weighted sum of the absolute error of each rating before it was learned.",
)
RMSE = Metric(
    "progressive_rmse",
    "gauge",
    "Root of the mean squared error of ratings before learning; span is run or window.",
    ("span",),
)
MAE = Metric(
    "progressive_mae",
    "gauge",
    "Mean absolute error of ratings before learning; span is run or window.",
    ("span",),
)
ACCURACY = Metric(
    "progressive_accuracy",
    "gauge",
    "Share of examples whose class was predicted before learning; span is run or window.",
    ("span",),
)
PERPLEXITY = Metric(
    "progressive_perplexity",
    "gauge",
    "One over the geometric mean of tokens' probabilities; span is run or window.",
    ("span",),
)
TOPIC_TOKENS = Metric(
    "topic_tokens",
    "gauge",
    "Tokens that topics are counted of; in further passes always those that are kept.",
)
AUC = Metric(
    "progressive_auc",
    "gauge",
    "Area under the ROC curve of predictions before learning; span is run or window.",
    ("span",),
)
AUC_ERROR = Metric(
    "progressive_auc_error",
    "gauge",
    "Bound on the difference of progressive_auc to the exact area.",
    ("span",),
)
EVENT_TIME = Metric(
    "learned_event_timestamp_seconds",
    "gauge",
    "Event time of the last example learned, since the epoch.",
)
# What is read.
RECORDS = Metric("source_records_total", "counter", "Records read, good and bad.")
BYTES = Metric("source_bytes_total", "counter", "Plain (decompressed) bytes learned from.")
STORED_BYTES = Metric("source_stored_bytes_total", "counter", "Bytes read as they are stored.")
REJECTED = Metric(
    "source_rejected_total", "counter", "Records skipped and kept aside, by reason.", ("reason",)
)
DOCUMENTS_SPLIT = Metric(
    "documents_split_total",
    "counter",
    "Documents that were too long for one record, and rows beyond the first of one record.",
)
DOCUMENTS_UNDECODABLE = Metric(
    "documents_undecodable_total",
    "counter",
    "Documents with bytes that are no text, which were passed over.",
)
RETRIES = Metric(
    "source_retries_total", "counter", "Reads of storage tried again, by reason.", ("reason",)
)
LAG_SECONDS = Metric(
    "source_lag_seconds",
    "gauge",
    "Age of the last example learned, by its event time; absent where records have none.",
)
LAG_BYTES = Metric(
    "source_lag_bytes", "gauge", "Stored bytes that are known and not yet learned from."
)
PARTITIONS = Metric(
    "source_partitions",
    "gauge",
    "Partitions known, by state: waiting, reading, done or failed.",
    ("state",),
)
READ_AHEAD_BYTES = Metric(
    "source_read_ahead_bytes", "gauge", "Memory holding bytes read ahead of learning."
)
READ_AHEAD_BYTES_MAX = Metric(
    "source_read_ahead_bytes_max", "gauge", "Limit of source_read_ahead_bytes, as configured."
)
# The table and the names.
FEATURES = Metric("table_features", "gauge", "Features (rows) in the table.")
FEATURES_MAX = Metric("table_features_max", "gauge", "Features that the table may hold.")
CAPACITY = Metric("table_capacity", "gauge", "Rows that the table's segments have room for now.")
TABLE_BYTES = Metric("table_bytes", "gauge", "Memory of the table.")
GROWTHS = Metric("table_growths_total", "counter", "Times that a segment grew.")
GROWTH_SECONDS = Metric(
    "table_growth_seconds_total", "counter", "Time that learning stood while segments grew."
)
GROWTH_SECONDS_MAX = Metric(
    "table_growth_seconds_max", "gauge", "Longest time that one growth took."
)
EVICTIONS = Metric("table_evictions_total", "counter", "Features dropped to make room.")
EMBEDDINGS_BYTES = Metric(
    "table_embeddings_bytes", "gauge", "Memory of the embeddings that features have."
)
EMBEDDINGS_BYTES_MAX = Metric(
    "table_embeddings_bytes_max",
    "gauge",
    "Limit of table_embeddings_bytes; beyond it none is given.",
)
EMBEDDINGS_REFUSED = Metric(
    "embeddings_refused_total",
    "counter",
    "Times that a feature had earned an embedding and got none, for want of memory.",
)
NAMES = Metric("names", "gauge", "Features whose field and token are known.")
NAMES_BYTES = Metric("names_bytes", "gauge", "Bytes of their texts.")
NAMES_REFUSED = Metric(
    "names_refused_total", "counter", "Names not kept because the store of names was full."
)
# What is kept.
SNAPSHOT_TIME = Metric(
    "snapshot_timestamp_seconds", "gauge", "When the last snapshot was complete, since the epoch."
)
SNAPSHOT_SECONDS = Metric("snapshot_seconds", "gauge", "Time that the last snapshot took.")
SNAPSHOT_BYTES = Metric("snapshot_bytes", "gauge", "Size of the last snapshot.")
SNAPSHOTS = Metric("snapshots_total", "counter", "Snapshots written.")
SNAPSHOT_FAILURES = Metric(
    "snapshot_failures_total", "counter", "Snapshots that could not be written."
)
# What shards, workers and followers say to one another.
SESSIONS = Metric(
    "sessions", "gauge", "Connections that are open, by the other side's role.", ("role",)
)
REQUESTS = Metric("requests_total", "counter", "Requests that came, by kind.", ("kind",))
FAULTS = Metric(
    "faults_total",
    "counter",
    "Requests refused and connections ended for a fault of the other side's, by reason.",
    ("reason",),
)
WIRE_BYTES = Metric(
    "wire_bytes_total",
    "counter",
    "Bytes of messages; direction is in or out, form is plain (before compression) or sent.",
    ("direction", "form"),
)
PULLS = Metric("pulls_total", "counter", "Pulls answered.")
PULL_KEYS = Metric("pull_keys_total", "counter", "Keys of pulls answered.")
PULL_WAIT_SECONDS = Metric(
    "pull_wait_seconds_total", "counter", "Time that pulls waited for slower workers."
)
PULLS_PARKED = Metric("pulls_parked", "gauge", "Pulls that wait for slower workers now.")
PUSHES = Metric("pushes_total", "counter", "Pushes applied.")
PUSH_KEYS = Metric("push_keys_total", "counter", "Keys of pushes applied.")
DUPLICATES = Metric(
    "push_duplicates_total", "counter", "Pushes that had been applied before, and were not again."
)
KEY_MISSES = Metric(
    "key_misses_total", "counter", "Pushes asked for again with their keys: the pull was forgotten."
)
CLOCK = Metric(
    "clock", "gauge", "Minibatches of the slowest worker (a shard), or of this one (a worker)."
)
STALENESS = Metric(
    "staleness", "gauge", "Minibatches by which the slowest worker is behind the fastest."
)
IN_FLIGHT = Metric("minibatches_in_flight", "gauge", "Minibatches that this worker has under way.")
MARKS_DONE = Metric("marks_done", "gauge", "Partitions applied to their end.")
# What workers of a net exchange.
DENSE_STEPS = Metric("dense_steps", "gauge", "Steps that the dense part of a net has made.")
DENSE_SKIPPED = Metric(
    "dense_steps_skipped",
    "gauge",
    "Of those, steps of which nothing was learned: loss or gradients were no numbers.",
)
DENSE_IDLE = Metric(
    "dense_steps_idle_total",
    "counter",
    "Steps of other workers in which this one had no example of its own.",
)
DENSE_BYTES = Metric(
    "dense_bytes_total",
    "counter",
    "Bytes of dense gradients sent to other workers; form is plain (as float32) or sent.",
    ("form",),
)
DENSE_GROUP_SIZE = Metric(
    "dense_group_size",
    "gauge",
    "Workers that make the steps of a net together, this one with them.",
)
DENSE_GENERATION = Metric(
    "dense_group_generation", "gauge", "Number of their group: it grows whenever one is formed."
)
DENSE_LOST = Metric(
    "dense_groups_lost_total", "counter", "Groups that ended since another worker was lost."
)
DEVICE_BUSY_SECONDS = Metric(
    "device_busy_seconds_total", "counter", "Time that the devices of a net computed, in all."
)
DEVICE_BYTES = Metric(
    "device_bytes_total",
    "counter",
    "Bytes that went to the devices of a net and came back; direction is in or out.",
    ("direction",),
)
# The log.
LSN = Metric("log_lsn", "gauge", "Number of the last log record applied.")
DURABLE_LSN = Metric("log_durable_lsn", "gauge", "Number of the last log record that is on disk.")
LOG_BYTES = Metric("log_bytes", "gauge", "Size of the log.")
LOG_APPENDED_BYTES = Metric("log_appended_bytes_total", "counter", "Bytes written to the log.")
FSYNCS = Metric("log_fsyncs_total", "counter", "Times that the log was brought to disk.")
FSYNC_SECONDS = Metric(
    "log_fsync_seconds_total", "counter", "Time that bringing the log to disk took."
)
RECOVERY_SECONDS = Metric(
    "recovery_seconds", "gauge", "Time that loading the snapshot and the log took at the start."
)
FOLLOWER_LAG = Metric(
    "follower_lag_records", "gauge", "Log records of its shard that a follower has not applied yet."
)
RESTARTS = Metric(
    "restarts_total", "counter", "Processes that ended and were started again, by role.", ("role",)
)
# The process.
STATE = Metric(
    "state", "gauge", "1 for the state that the run is in, 0 for the others.", ("state",)
)
COMPILE_SECONDS = Metric("compile_seconds", "gauge", "Time spent compiling kernels at the start.")
LANE_BUSY_SECONDS = Metric(
    "lane_busy_seconds_total", "counter", "Time that a lane ran kernels.", ("lane",)
)
BUILD_INFO = Metric("build_info", "gauge", "1; its labels say what runs.", ("version", "python"))

METRICS: Final[tuple[Metric, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)


_FIGURES: Final = {
    "auc": AUC,
    "auc_error": AUC_ERROR,
    "rmse": RMSE,
    "mae": MAE,
    "accuracy": ACCURACY,
    "perplexity": PERPLEXITY,
}


class Metrics:
    """Values of all metrics, on a registry of its own or its caller's.

    Parameters
    ----------
    registry : CollectorRegistry
        Gets these metrics and the standard ones of the process (CPU, memory, open files).
    version : str
        Of streamlearn, for ``build_info``.

    Notes
    -----
    A metric is set from one thread; a scrape may come from another.
    """

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        self.registry = registry
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {m: {} for m in METRICS}
        self._readers: list[Callable[[], None]] = []
        self.set(BUILD_INFO, 1, version, platform.python_version())
        registry.register(self)
        ProcessCollector(registry=registry)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Say what a metric's value is now; a counter's never falls.

        Parameters
        ----------
        metric : Metric
        value : float
        labels : str
            Values of ``metric.labels``, in that order.
        """
        assert len(labels) == len(metric.labels), f"{metric.name} has labels {metric.labels}"
        children = self._values[metric]
        assert labels in children or len(children) < CHILDREN_MAX, f"{metric.name}: {labels}"
        children[labels] = value

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a metric's value, 0 before."""
        self.set(metric, self._values[metric].get(labels, 0.0) + amount, *labels)

    def set_state(self, state: str) -> None:
        """Say which of :data:`STATES` the run is in."""
        assert state in STATES, state
        for each in STATES:
            self.set(STATE, each == state, each)

    def set_validation(self, totals: AnyTotals, figures: Mapping[str, float]) -> None:
        """Show progressive validation: its sums, and of ``summary()`` what it has."""
        sums = totals._asdict()
        self.set(EXAMPLES, totals.examples)
        self.set(WEIGHT, totals.weight)
        self.set(LOSS_SUM, totals.loss)
        if "absolute_error" in sums:  # ratings may be negative: the sum of theirs is no counter
            self.set(ABSOLUTE_ERROR_SUM, sums["absolute_error"])
        elif "label" in sums:
            self.set(LABEL_SUM, sums["label"])
            self.set(PREDICTION_SUM, sums["prediction"])
        self.set_figures(figures)

    def set_figures(self, figures: Mapping[str, float]) -> None:
        """Show those figures of a validation's ``summary()`` that have a metric."""
        for name, metric in _FIGURES.items():
            for span, suffix in (("run", ""), ("window", "_window")):
                if name + suffix in figures:
                    self.set(metric, figures[name + suffix], span)

    def set_embeddings(self, arena: Arena | None) -> None:
        """Show the embeddings of a table, where it has some."""
        if arena is not None:
            self.set(EMBEDDINGS_BYTES, arena.nbytes)
            self.set(EMBEDDINGS_BYTES_MAX, arena.bytes_max)
            self.set(EMBEDDINGS_REFUSED, arena.refused)

    def set_dense(self, told: Mapping[str, float]) -> None:
        """Show what a worker of a net tells of its group (``DenseMember.figures``)."""
        self.set(DENSE_STEPS, told["steps"])
        self.set(DENSE_SKIPPED, told["skipped"])
        self.set(DENSE_IDLE, told["idle"])
        self.set(DENSE_BYTES, told["bytes_plain"], "plain")
        self.set(DENSE_BYTES, told["bytes_sent"], "sent")
        self.set(DENSE_GROUP_SIZE, told["workers"])
        self.set(DENSE_GENERATION, told["generation"])
        self.set(DENSE_LOST, told["lost"])

    def set_net(self, told: Mapping[str, float]) -> None:
        """Show what a net tells of its own steps (``DeepStep.figures``)."""
        self.set(DENSE_STEPS, told["steps"])
        self.set(DENSE_SKIPPED, told["skipped"])
        self.set(DEVICE_BUSY_SECONDS, told["busy_seconds"])
        self.set(DEVICE_BYTES, told["bytes_in"], "in")
        self.set(DEVICE_BYTES, told["bytes_out"], "out")

    def on_scrape(self, read: Callable[[], None]) -> None:
        """Call ``read`` before each scrape, to ``set`` what has changed; it must not wait."""
        self._readers.append(read)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield all metrics, as the registry asks."""
        for read in self._readers:
            read()
        for metric, children in self._values.items():
            family = _family(metric)
            for labels, value in list(children.items()):
                family.add_metric(labels, value)
            yield family

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield all metrics without values, so that the registry need not read them to know."""
        yield from map(_family, METRICS)


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(PREFIX + metric.name, metric.text, labels=metric.labels)


def metrics_table() -> str:
    """Return the table of ``docs/metrics.md``."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{PREFIX}{m.name}` | {m.kind} | {', '.join(m.labels) or '-'} | {m.text} |"
        for m in METRICS
    ]
    return "\n".join(rows) + "\n"
