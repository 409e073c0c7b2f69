"""The job: every setting, typed and frozen; the only reader of job files and of the environment.

A setting is a field of a struct below and nothing else: its type, limits, help text and flag stand
beside it, and the command line, ``config show``, ``config schema`` and ``docs/configuration.md``
are derived from there. A value comes from the first of: flag (``--alpha 0.3`` or
``--set model.alpha=0.3``), environment (``STREAMLEARN_MODEL_ALPHA``), job file
(``[model] alpha = 0.3``), the model that the job goes on with, default. Keys that no struct has are
errors.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from streamlearn.errors import ConfigError
from streamlearn.kinds import MODELS, LrConfig, ModelConfig
from streamlearn.settings import (
    ENVIRONMENT_PREFIX,
    Given,
    Setting,
    about,
    convert,
    nearest,
    parse_size,
    shown,
    start_seconds,
    struct_settings,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ENVIRONMENT_PREFIX",
    "MODELS",
    "ComputeConfig",
    "HttpConfig",
    "JobConfig",
    "LrConfig",
    "ModelConfig",
    "OutputConfig",
    "Resolved",
    "Setting",
    "SourceConfig",
    "TablesConfig",
    "check_job",
    "load_job",
    "parse_size",
    "settings",
    "start_seconds",
]


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
            choices=("auto", "criteo", "delimited", "svmlight", "libffm", "jsonl"),
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
            "The character between fields.",
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
            "ignore.",
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
    cross: Annotated[
        tuple[str, ...],
        about("Crossed features: `origin*destination`.", short="-q", common=True, inherited=True),
    ] = ()
    fields: Annotated[
        tuple[str, ...],
        about("jsonl: the fields to use; empty: all.", flag="--field", inherited=True),
    ] = ()
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
        about("exact: rows at most; 0: as many as fit four fifths of this machine's memory.", ge=0),
    ] = 0
    when_full: Annotated[
        str,
        about("What a full table does: stop, or forget old features.", choices=("error", "evict")),
    ] = "error"


class ComputeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Lanes (threads that run kernels)."""

    lanes: Annotated[
        int,
        about(
            "1: parse and learn in one lane; 2: a parse lane before a learn lane; 0: 2 where there "
            "are two cores.",
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
    minibatch: Annotated[int, about("Examples parsed at once.", ge=1, le=1 << 20)] = 4096


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
            "HOST:PORT of /metrics, /healthz, /readyz and /status; empty: none.",
            flag="--http",
            pattern=r"^$|^.*:\d{1,5}$",
            expects="HOST:PORT (127.0.0.1:9100)",
            common=True,
        ),
    ] = ""


class JobConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole job."""

    source: SourceConfig = SourceConfig()
    model: ModelConfig = LrConfig()
    tables: TablesConfig = TablesConfig()
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig = OutputConfig()
    http: HttpConfig = HttpConfig()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A job, with where each of its values came from.

    Attributes
    ----------
    job : JobConfig
    origins : mapping of str to str
        By path (``model.alpha``; ``source.columns.late`` for an entry of a table): ``flag``,
        ``environment STREAMLEARN_…``, ``job file``, ``model``, ``default``.
    """

    job: JobConfig
    origins: Mapping[str, str]


def load_job(
    path: Path | None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    base: JobConfig | None = None,
) -> Resolved:
    """Read a job from everywhere a setting can be given.

    Parameters
    ----------
    path : Path or None
        Job file (TOML).
    sets : sequence of str
        ``section.key=value`` as typed after ``--set``; the later one wins.
    flags : mapping, optional
        Path to value (typed, or text as typed), from flags; None: a flag not given. They win
        over ``sets``.
    environ : mapping, optional
        Environment; names that do not begin with ``STREAMLEARN_`` and a section are not looked at.
    base : JobConfig, optional
        What a model was trained with; of the settings that are inherited, it takes the place of
        the defaults.

    Raises
    ------
    ConfigError
        A file, key, type or value is not right; the message says path, expected and actual.
    """
    given = [*_from_file(path)] if path is not None else []
    given += _from_environment(environ or {})
    given += [_from_set(text) for text in sets]
    names = {setting.path: f"flag {setting.flag}" for setting in settings()}
    given += [
        Given(name, value, "flag", names.get(name, "flag"), isinstance(value, str))
        for name, value in (flags or {}).items()
        if value is not None
    ]
    return _resolve(given, base)


def check_job(job: JobConfig) -> None:
    """Check every value of a job made in Python, as :func:`load_job` checks those it reads.

    Raises
    ------
    ConfigError
        A value has the wrong type or is not allowed.
    """
    for setting in settings(job.model.kind):
        value = getattr(getattr(job, setting.section), setting.name)
        given = Given(setting.path, value, "default", "", text=False)
        convert(setting, given, _CHECKS.get(setting.path, _anything))


@functools.cache
def settings(kind: str | None = None) -> tuple[Setting, ...]:
    """Return every setting of a job, in order of the structs.

    Parameters
    ----------
    kind : str or None
        Kind of model whose settings count; None: those of all kinds, each name once.
    """
    found: dict[str, Setting] = {}
    for section in msgspec.structs.fields(JobConfig):
        if section.name != "model":
            for setting in struct_settings(section.name, section.type, ()):
                found[setting.path] = setting
            continue
        found["model.kind"] = _MODEL_KIND
        for model, struct in MODELS.items():
            if kind not in (None, model):
                continue
            for setting in struct_settings("model", struct, (model,)):
                known = found.setdefault(setting.path, setting)
                if known is not setting:
                    found[setting.path] = replace(known, models=(*known.models, model))
    return tuple(found.values())


# Kubernetes sets NAME_SERVICE_HOST, NAME_PORT_… for every Service: one called streamlearn-http must
# not stop a job.
_SERVICE_VARIABLE: Final = re.compile(r"_(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_.*)?)$")


_MODEL_KIND: Final = Setting(
    section="model",
    name="kind",
    shape="text",
    type=str,
    default="lr",
    description="What is learned: lr (sparse logistic regression).",
    limits={},
    choices=tuple(MODELS),
    flag="--model",
    short="",
    common=True,
    split=False,
    character=False,
    expects="",
    inherited=True,
    positional=False,
    models=(),
)


def _from_file(path: Path) -> Iterable[Given]:
    """Yield what a job file says."""
    try:
        with path.open("rb") as file:
            job = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"job file {path} cannot be read", cause=error.strerror) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"job file {path} is not TOML", cause=str(error)) from error
    place = f"job file {path}"
    for section, table in job.items():
        if section not in _sections() or not isinstance(table, dict):
            _check_section(section, place)
            raise ConfigError(
                f"`{section}` must be a table, but is {shown(table)} ({place})",
                hint=f"write its settings under [{section}]",
            )
        for name, value in table.items():
            here = path.parent
            said = _beside(here, value) if (section, name) == ("source", "uri") else value
            yield Given(f"{section}.{name}", said, "job file", place, text=False)


def _beside(folder: Path, value: Any) -> Any:
    """Take relative paths among the URIs of a job file from where the job file is."""
    if isinstance(value, list):
        return [_beside(folder, one) for one in value]
    if not isinstance(value, str) or value in {"", "-"} or value.startswith("~") or "://" in value:
        return value
    return str(folder / value)


def _from_environment(environ: Mapping[str, str]) -> Iterable[Given]:
    """Yield what STREAMLEARN_SECTION_KEY variables say, in order of name."""
    known = {setting.variable: setting for setting in settings()}
    sections = tuple(f"{ENVIRONMENT_PREFIX}{name}_".upper() for name in _sections())
    for name in sorted(environ):
        if not name.startswith(sections) or _SERVICE_VARIABLE.search(name):
            continue
        if name not in known:
            raise ConfigError(
                f"environment variable {name} is no setting", hint=nearest(name, known)
            )
        yield Given(known[name].path, environ[name], f"environment {name}", "", text=True)


def _from_set(text: str) -> Given:
    """Read one ``section.key=value``."""
    path, equals, value = text.partition("=")
    if not equals or "." not in path:
        raise ConfigError(
            f"--set takes section.key=value, but got {text!r}", hint="--set model.alpha=0.3"
        )
    return Given(path.strip(), value, "flag", f"--set {text}", text=True)


def _resolve(given: Sequence[Given], base: JobConfig | None) -> Resolved:
    """Lay the values over one another (later ones win) and build the structs."""
    kind = base.model.kind if base else "lr"
    for one in given:
        if one.path == _MODEL_KIND.path:
            kind = convert(_MODEL_KIND, one)
    known = {setting.path: setting for setting in settings(kind)}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, setting in known.items():
        values[path], origins[path] = setting.default, "default"
        section = getattr(base, setting.section, None) if setting.inherited else None
        if section is not None and (setting.section != "model" or section.kind == kind):
            values[path], origins[path] = getattr(section, setting.name), "model"
        if setting.shape == "table":
            origins |= dict.fromkeys((f"{path}.{name}" for name in values[path]), origins[path])
    for one in given:
        entry = _entry(one, known)
        setting = known[".".join(one.path.split(".")[:2])]
        value = convert(setting, entry, _CHECKS.get(setting.path, _anything))
        if setting.shape == "table":
            origins |= dict.fromkeys((f"{setting.path}.{name}" for name in value), one.origin)
            value = {**values[setting.path], **value}
        values[setting.path], origins[setting.path] = value, one.origin
    sections: dict[str, Any] = {}
    for section in msgspec.structs.fields(JobConfig):
        struct = MODELS[kind] if section.name == "model" else section.type
        names = [field.name for field in msgspec.structs.fields(struct)]
        sections[section.name] = struct(**{n: values[f"{section.name}.{n}"] for n in names})
    return Resolved(JobConfig(**sections), origins)


def _entry(one: Given, known: Mapping[str, Setting]) -> Given:
    """Return a value as one of a whole setting: ``source.columns.late`` is a table of one entry."""
    section, _, rest = one.path.partition(".")
    _check_section(section, one.place or one.origin)
    name, dot, key = rest.partition(".")
    setting = known.get(f"{section}.{name}")
    if setting is not None and not dot:
        return one
    if setting is not None and setting.shape == "table":
        return replace(one, value={key: one.value}, text=False)
    others = [s for s in settings() if s.path == one.path]
    if others:
        owners = ", ".join(others[0].models)
        raise ConfigError(
            f"`{one.path}` is a setting of model {owners}, not of this one{one.where}"
        )
    raise ConfigError(f"`{one.path}` is no setting{one.where}", hint=nearest(one.path, known))


def _is_start(value: str) -> bool:
    """Say whether a value of ``source.start`` means something; may raise ValueError."""
    if value.startswith("@"):
        start_seconds(value)
        return True
    return value in ("stored", "earliest", "latest")


# What a type and its limits cannot say: path -> whether the value is allowed.
_CHECKS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "source.start": _is_start,
    "source.uri": all,
    "http.listen": lambda value: not value or int(value.rpartition(":")[2]) < 1 << 16,
}


def _anything(value: Any) -> bool:
    return True


def _sections() -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(JobConfig))


def _check_section(section: str, place: str) -> None:
    if section not in _sections():
        raise ConfigError(
            f"`{section}` is no section ({place})", hint=nearest(section, _sections())
        )
