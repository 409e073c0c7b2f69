"""The sections of a job: a struct each, every field with its type, limits, help and flag.

:mod:`streamlearn.config` puts them together, reads and checks them; import them from there.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from streamlearn.settings import about

__all__ = [
    "WINDOW_DEFAULT_MAX",
    "ClusterConfig",
    "ComputeConfig",
    "HttpConfig",
    "OutputConfig",
    "SourceConfig",
    "TablesConfig",
]

# One minibatch computes while another's weights travel. More hide no more latency on one network,
# and each that learns from weights of before the others' pushes costs accuracy.
WINDOW_DEFAULT_MAX: Final = 2


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where records come from and how they read."""

    uri: Annotated[
        tuple[str, ...],
        about(
            "One or many: a file, directory or glob, `-` for standard input, `http(s)://…`, "
            "`s3://bucket/prefix*`.",
            expects="a URI or a list of URIs, none of them empty",
            positional=True,
            split=False,
        ),
    ] = ()
    format: Annotated[
        str,
        about(
            "How records read; auto decides by suffix and first line.",
            choices=(
                *("auto", "criteo", "delimited", "svmlight", "libffm", "jsonl", "ratings"),
                *("documents", "ldac", "bow", "idx", "samples"),
            ),
            common=True,
            inherited=True,
        ),
    ] = "auto"
    # --- records
    header: Annotated[
        bool, about("The first line of each object names its columns.", common=True, inherited=True)
    ] = False
    delimiter: Annotated[
        str,
        about(
            "The character between fields; of ratings, and of documents in columns, the default is "
            "what the first line shows.",
            min_length=1,
            max_length=1,
            character=True,
            common=True,
            inherited=True,
        ),
    ] = ","
    quote: Annotated[
        str,
        about(
            "The character around fields that hold delimiters; empty: none.",
            max_length=1,
            character=True,
            inherited=True,
        ),
    ] = '"'
    trim: Annotated[
        bool, about("Strip spaces around the fields of delimited records.", inherited=True)
    ] = False
    columns: Annotated[
        dict[str, str],
        about(
            "Column name (or number from 0) = kind: label, weight, categorical, number, time, "
            "ignore, and `*` for all others that a header names; of ratings: user, item, rating, "
            "time, weight, ignore; of documents: text, ignore.",
            flag="--column",
            common=True,
            inherited=True,
        ),
    ] = {}
    label: Annotated[
        str,
        about(
            'A rule that makes the label: `delay > 15`, `class != "normal."`.',
            common=True,
            inherited=True,
        ),
    ] = ""
    classes: Annotated[
        tuple[str, ...],
        about(
            "Texts of labels that are classes, in the order of their numbers; empty: labels are "
            "numbers from 0.",
            flag="--class",
            inherited=True,
        ),
    ] = ()
    cross: Annotated[
        tuple[str, ...],
        about("Crossed features: `origin*destination`.", short="-q", common=True, inherited=True),
    ] = ()
    fields: Annotated[
        tuple[str, ...],
        about(
            "jsonl: the fields to use; empty: all. libffm: those there are, which a deep model "
            "must know; `0-38` stands for all from 0 to 38.",
            flag="--field",
            inherited=True,
        ),
    ] = ()
    # --- documents
    documents: Annotated[
        str,
        about(
            "What a document is: a line, or a file, which is a member of a tar archive, too. auto: "
            "members of archives, lines of all else.",
            choices=("auto", "lines", "files"),
            common=True,
            inherited=True,
        ),
    ] = "auto"
    encoding: Annotated[
        str,
        about("How documents are encoded.", choices=("utf-8", "latin-1"), inherited=True),
    ] = "utf-8"
    undecodable: Annotated[
        str,
        about(
            "Bytes of documents that are no UTF-8: replace (they end words, as blanks do, and the "
            "documents are counted), or bad (such a document is a bad record).",
            choices=("replace", "bad"),
            inherited=True,
        ),
    ] = "replace"
    markup: Annotated[
        str,
        about(
            "html: tags of HTML, comments and entities such as `&nbsp;` are no words of documents; "
            "none: all is text.",
            choices=("html", "none"),
            inherited=True,
        ),
    ] = "html"
    digits: Annotated[bool, about("Digits are parts of words.", inherited=True)] = False
    word_length_min: Annotated[
        int,
        about("Words with fewer characters are left out.", ge=1, le=1024, inherited=True),
    ] = 2
    word_length_max: Annotated[
        int,
        about("Words with more characters are left out.", ge=1, le=1024, inherited=True),
    ] = 64
    stop_words: Annotated[
        str,
        about(
            "Words that are left out: none, english, or a file with one a line.",
            min_length=1,
            expects="none, english, or the path of a file",
            common=True,
            inherited=True,
        ),
    ] = "none"
    vocabulary: Annotated[
        str,
        about(
            "ldac, bow: file with a word a line, which numbers stand for in their order; empty: "
            "words are their numbers.",
            common=True,
            inherited=True,
        ),
    ] = ""
    # --- samples
    sample: Annotated[
        str,
        about(
            "samples: extension of the member that is the input, an image or an array; empty: the "
            "first of png, jpg, jpeg, webp and npy.",
            inherited=True,
        ),
    ] = ""
    image_size: Annotated[
        str,
        about(
            "samples: HEIGHTxWIDTH to which images are resized; empty: all are as the first.",
            pattern="^$|^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$",
            expects="HEIGHTxWIDTH (224x224)",
            common=True,
            inherited=True,
        ),
    ] = ""
    image_mode: Annotated[
        str,
        about(
            "samples: RGB: images have three channels; L: one.",
            choices=("RGB", "L"),
            inherited=True,
        ),
    ] = "RGB"
    bad_records_max: Annotated[
        float, about("Share of bad records above which the job stops.", ge=0, le=1)
    ] = 0.05
    negative_rate: Annotated[
        float,
        about(
            "Share of negatives kept; each one kept weighs 1 / rate.",
            gt=0,
            le=1,
            common=True,
            inherited=True,
        ),
    ] = 1.0
    # --- reading
    compression: Annotated[
        str,
        about(
            "Compression of the objects; auto recognises it by content.",
            choices=("auto", "none", "gzip", "zstd", "lz4"),
        ),
    ] = "auto"
    read_ahead_bytes: Annotated[
        int, about("Bound on the memory of blocks read ahead.", ge=1 << 20)
    ] = 256 << 20
    block_bytes: Annotated[
        int,
        about(
            "Plain bytes handed to the parser at once, and fetched by one GET; at least 64 KiB; "
            "0: 8 MiB where the source is on a network, else 2 MiB.",
            ge=0,
            le=1 << 30,
        ),
    ] = 0
    range_bytes: Annotated[
        int,
        about("Plain objects larger than this are split into ranges read apart.", ge=1 << 16),
    ] = 256 << 20
    start: Annotated[
        str,
        about(
            "Where to begin: stored (where the snapshot left off), earliest, latest, @TIME "
            "(ISO 8601 or seconds since the epoch; objects changed since then).",
            expects="stored, earliest, latest or @TIME (@2026-11-01T00:00, @1793491200)",
            common=True,
        ),
    ] = "stored"
    follow: Annotated[bool, about("Learn new objects as they appear, for ever.", common=True)] = (
        False
    )
    follow_seconds: Annotated[float, about("Time between two listings.", gt=0)] = 5.0
    queue: Annotated[
        str, about("URL of an SQS queue with S3 event messages, used in place of listings.")
    ] = ""
    # --- S3
    endpoint_url: Annotated[
        str,
        about(
            "S3 endpoint, before AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL.",
            pattern="^$|^https?://",
            expects="a URL (http://127.0.0.1:9000)",
            common=True,
            inherited=True,
        ),
    ] = ""
    region: Annotated[
        str, about("S3 region, before AWS_REGION and AWS_DEFAULT_REGION.", inherited=True)
    ] = ""
    anonymous: Annotated[
        bool, about("Read S3 without credentials.", common=True, inherited=True)
    ] = False
    requester_pays: Annotated[
        bool, about("Agree to pay for reading the bucket.", common=True, inherited=True)
    ] = False
    retries: Annotated[
        int, about("Tries after a failed request before it is an error.", ge=0, le=100)
    ] = 8


class TablesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where parameters live."""

    index: Annotated[
        str,
        about(
            "exact: every feature has a row of its own; hashed: 2**bits rows, features may "
            "collide.",
            choices=("exact", "hashed"),
            common=True,
            inherited=True,
        ),
    ] = "exact"
    bits: Annotated[
        int,
        about(
            "hashed: the table has 2**bits rows.",
            ge=8,
            le=32,
            short="-b",
            common=True,
            inherited=True,
        ),
    ] = 24
    features_max: Annotated[
        int,
        about(
            "exact: rows at most, of all shards together; 0: as many as fit four fifths of this "
            "machine's memory.",
            ge=0,
        ),
    ] = 0
    embeddings_bytes_max: Annotated[
        int,
        about(
            "exact: memory of embeddings at most, of all shards together; beyond it no feature "
            "earns one. 0: what features_max leaves of four fifths of this machine's memory.",
            ge=0,
        ),
    ] = 0
    ratings_bytes_max: Annotated[
        int,
        about(
            "mf: memory of the ratings that are kept for further passes, 8 bytes each; beyond it "
            "they are kept in a file in the output directory. 0: a quarter of this machine's "
            "memory.",
            ge=0,
        ),
    ] = 0
    tokens_bytes_max: Annotated[
        int,
        about(
            "lda: memory of the tokens that are kept for further passes, 4 bytes each; beyond it "
            "they are kept in a file in the output directory. 0: a quarter of this machine's "
            "memory.",
            ge=0,
        ),
    ] = 0
    when_full: Annotated[
        str,
        about("What a full table does: stop, or forget old features.", choices=("error", "evict")),
    ] = "error"
    features_min: Annotated[
        int, about("Rows that neither expiry nor eviction goes below, of all shards.", ge=0)
    ] = 0
    ttl_seconds: Annotated[
        float,
        about("Shards forget features that were not seen for so long; 0: never.", ge=0),
    ] = 0.0
    # --- over shards
    shards: Annotated[
        tuple[str, ...],
        about(
            "HOST:PORT of every shard, in order of their index; empty: in this process.",
            expects="HOST:PORT or a list of them, no two the same (10.0.0.1:7700)",
            common=True,
        ),
    ] = ()
    tau: Annotated[
        int,
        about(
            "Minibatches by which a read may lag the slowest worker; 0: bulk-synchronous, -1: any.",
            ge=-1,
            le=1 << 20,
            common=True,
        ),
    ] = 4
    window: Annotated[
        int,
        about(
            "Minibatches that a worker has between pull and push; 0: tau + 1, "
            f"{WINDOW_DEFAULT_MAX} at most.",
            ge=0,
            le=64,
            flag="--in-flight",
        ),
    ] = 0
    copies_bytes_max: Annotated[
        int,
        about(
            "mf: memory of the copies of popular items' factors that a worker keeps, and pulls "
            "anew once they may lag by more than tau; 0: no copies.",
            ge=0,
        ),
    ] = 64 << 20
    durability: Annotated[
        str,
        about(
            "A push is acknowledged once it is in the shard's log on disk, or, with snapshot, at "
            "once: then the source is read again from the last snapshot after a crash.",
            choices=("log", "snapshot"),
            common=True,
        ),
    ] = "log"
    pull_values: Annotated[str, about("How weights travel.", choices=("float32", "float16"))] = (
        "float16"
    )
    push_values: Annotated[
        str,
        about(
            "How gradients travel; byte: one byte a value and a scale a block, rounded without "
            "bias, what is lost is added to the next.",
            choices=("float32", "float16", "byte"),
        ),
    ] = "byte"
    compression: Annotated[
        str,
        about(
            "Compression of what is sent; auto: where it saves.",
            choices=("none", "auto", "lz4", "zstd"),
            flag="--wire-compression",
        ),
    ] = "auto"
    kkt: Annotated[
        float,
        about(
            "Do not send the gradient of a zero weight that is below l1 less this; 0: send all. "
            "Not with rule ftrl, whose sums need every gradient.",
            ge=0,
        ),
    ] = 0.0
    log_file_bytes: Annotated[
        int, about("Size at which a shard's log begins a new file.", ge=1 << 20, le=1 << 34)
    ] = 256 << 20
    snapshots: Annotated[
        str,
        about(
            "Where shards copy their snapshots to; empty: nowhere.",
            pattern="^$|^s3://[^/]+",
            expects="an S3 URI (s3://bucket/prefix)",
            flag="--shard-snapshots",
        ),
    ] = ""

    @property
    def minibatches_in_flight(self) -> int:
        """How many minibatches a worker has under way: ``window``, or what follows from ``tau``."""
        if self.window:
            return self.window
        return WINDOW_DEFAULT_MAX if self.tau < 0 else min(self.tau + 1, WINDOW_DEFAULT_MAX)


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How shards, workers and followers know one another."""

    name: Annotated[
        str,
        about(
            "Whoever names another cluster is refused.",
            min_length=1,
            max_length=255,
            expects="a name of 1 to 255 characters",
            flag="--cluster",
        ),
    ] = "streamlearn"
    token_file: Annotated[
        str,
        about("File with the secret that all share; for networks that are trusted.", common=True),
    ] = ""
    certificate: Annotated[
        str, about("TLS: file with this process's certificate (PEM), its chain behind it.")
    ] = ""
    key: Annotated[
        str, about("TLS: file with the certificate's private key (PEM).", flag="--private-key")
    ] = ""
    authority: Annotated[
        str, about("TLS: file with the certificates that sign the other side's (PEM).")
    ] = ""
    lease_seconds: Annotated[
        float,
        about(
            "How long a worker whose connections are lost still holds the others back, and its "
            "partitions.",
            gt=0,
        ),
    ] = 5.0
    exchange_address: Annotated[
        str,
        about(
            "deep: address (without a port) of the interface by which workers exchange dense "
            "gradients, in a private network; empty: that by which the first shard is reached.",
        ),
    ] = ""


class ComputeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Lanes (threads that run kernels)."""

    lanes: Annotated[
        int,
        about(
            "1: parse and learn in one lane; 2: a parse lane before a learn lane; more: worker "
            "lanes with partitions of their own, and shard lanes with a part of the table each; "
            "0: 2 where there are two cores. mf: so many in the passes after the first, 0: one a "
            "core.",
            ge=0,
            le=256,
            common=True,
        ),
    ] = 0
    learn_lanes: Annotated[
        int,
        about(
            "More than 1: lock-free learning lanes, each with its own partitions (no longer "
            "deterministic).",
            ge=1,
            le=256,
        ),
    ] = 1
    shard_lanes: Annotated[
        int,
        about(
            "How many of the lanes are shard lanes (then two lanes may be a worker and a shard); "
            "0: a third where there are more than two.",
            ge=0,
            le=255,
        ),
    ] = 0
    minibatch: Annotated[
        int,
        about(
            "Examples parsed at once; of mf over shards and of deep those of a step.",
            ge=1,
            le=1 << 20,
            common=True,
        ),
    ] = 4096
    device: Annotated[
        str,
        about(
            "deep: where the net computes: cpu, cuda, cuda:1, or several with commas; auto: cuda "
            "where there is one.",
            common=True,
        ),
    ] = "auto"
    cache_bytes: Annotated[
        int,
        about(
            "mf: the second-level cache that the order of ratings is laid out for; 0: this "
            "machine's.",
            ge=0,
        ),
    ] = 0


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is left behind, and what is told on the way."""

    dir: Annotated[
        str,
        about("Directory of model, report and bad records.", flag="--out", common=True),
    ] = ""
    snapshot_seconds: Annotated[
        float, about("Time between snapshots while learning.", gt=0, common=True)
    ] = 300.0
    snapshots_kept: Annotated[int, about("Snapshots kept, newest first.", ge=1)] = 3
    window: Annotated[int, about("Examples of the windowed validation.", ge=1, inherited=True)] = (
        100_000
    )
    progress_seconds: Annotated[
        float, about("Spacing of plain progress lines from a minute on.", gt=0)
    ] = 10.0
    names_max: Annotated[int, about("Feature names kept, for inspect and export.", ge=0)] = (
        1_000_000
    )


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can be asked of the running node."""

    listen: Annotated[
        str,
        about(
            "HOST:PORT of /metrics, /healthz, /readyz, /status and, of mf, /recommend; empty: "
            "none.",
            flag="--http",
            pattern=r"^$|^.*:\d{1,5}$",
            expects="HOST:PORT (127.0.0.1:9100)",
            common=True,
        ),
    ] = ""
