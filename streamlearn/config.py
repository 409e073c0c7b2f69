"""The job: every setting, typed and frozen; the only reader of job files and of the environment."""

from __future__ import annotations

import msgspec

__all__ = [
    "ComputeConfig",
    "HttpConfig",
    "JobConfig",
    "ModelConfig",
    "OutputConfig",
    "SourceConfig",
    "TablesConfig",
]


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[source]: where records come from and how they read."""

    uri: tuple[str, ...] = ()
    format: str = "auto"  # criteo delimited svmlight libffm jsonl; auto: by suffix and first line
    # --- records
    header: bool = False
    delimiter: str = ","
    quote: str = '"'
    columns: dict[str, str] = {}  # column name (or number from 0, as text) -> kind
    label: str = ""  # a rule: delay > 15, class != "normal."
    cross: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()  # jsonl: the fields to use; empty: all
    bad_records_max: float = 0.05  # share of records above which the job stops
    negative_rate: float = 1.0  # share of negatives kept; the kept ones weigh 1 / rate
    # --- reading
    compression: str = "auto"  # auto none gzip zstd lz4
    read_ahead_bytes: int = 256 << 20
    block_bytes: int = 4 << 20
    range_bytes: int = 256 << 20  # plain objects larger than this are split
    start: str = "stored"  # stored earliest latest @TIME
    follow: bool = False
    follow_seconds: float = 5.0
    queue: str = ""  # SQS queue with S3 event messages
    # --- S3
    endpoint_url: str = ""
    region: str = ""
    anonymous: bool = False
    requester_pays: bool = False
    retries: int = 8


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[model]: what is learned."""

    kind: str = "lr"
    rule: str = "ftrl"  # ftrl adagrad sgd
    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 1.0
    l2: float = 0.0
    intercept: bool = True
    epochs: int = 1


class TablesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[tables]: where parameters live."""

    index: str = "exact"  # exact hashed
    bits: int = 24  # hashed: 2**bits rows
    features_max: int = 0  # exact: 0 = as many as fit four fifths of this machine's memory
    when_full: str = "error"  # error evict


class ComputeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[compute]: lanes."""

    # 1: all in one lane; 2: parse lane -> learn lane; 0: 2 where there are two cores
    lanes: int = 0
    # > 1: lock-free learning lanes, each parsing its own partitions (not deterministic)
    learn_lanes: int = 1
    minibatch: int = 1024


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[output]: what is left behind."""

    dir: str = ""
    snapshot_seconds: float = 300.0
    snapshots_kept: int = 3
    window: int = 100_000  # examples of the windowed validation
    progress_seconds: float = 10.0  # spacing of plain progress lines, once they are this far apart
    names_max: int = 1_000_000


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[http]: what can be asked of the node."""

    listen: str = ""


class JobConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole job."""

    source: SourceConfig = SourceConfig()
    model: ModelConfig = ModelConfig()
    tables: TablesConfig = TablesConfig()
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig = OutputConfig()
    http: HttpConfig = HttpConfig()
