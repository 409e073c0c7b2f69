"""The job: every setting, typed and frozen; the only reader of job files and of the environment.

A setting is a field of a struct (:mod:`streamlearn.sections`, :mod:`streamlearn.kinds`) and nothing
else: its type, limits, help text and flag stand beside it, and the command line, ``config show``,
``config schema`` and ``docs/configuration.md`` are derived from there. A value comes from the first
of: flag (``--alpha 0.3`` or ``--set model.alpha=0.3``), environment
(``STREAMLEARN_MODEL_ALPHA``), job file (``[model] alpha = 0.3``), the model that the job goes on
with, default. Keys that no struct has are errors.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlearn.deep_checks import check_deep
from streamlearn.embeddings import Tiers
from streamlearn.errors import ConfigError
from streamlearn.kinds import (
    MODELS,
    DeepConfig,
    FmConfig,
    LdaConfig,
    LrConfig,
    MfConfig,
    ModelConfig,
)
from streamlearn.privacy import check_private
from streamlearn.sections import (
    ClusterConfig,
    ComputeConfig,
    HttpConfig,
    OutputConfig,
    SourceConfig,
    TablesConfig,
)
from streamlearn.settings import (
    ENVIRONMENT_PREFIX,
    Given,
    Setting,
    convert,
    nearest,
    parse_size,
    refuse,
    shown,
    start_seconds,
    struct_settings,
)
from streamlearn.topic_checks import check_topics_for_shards

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BINDING",
    "ENVIRONMENT_PREFIX",
    "MODELS",
    "SHARDS_MAX",
    "ClusterConfig",
    "ComputeConfig",
    "DeepConfig",
    "FmConfig",
    "HttpConfig",
    "JobConfig",
    "LdaConfig",
    "LrConfig",
    "MfConfig",
    "ModelConfig",
    "OutputConfig",
    "Resolved",
    "Setting",
    "SourceConfig",
    "TablesConfig",
    "check_for_shards",
    "check_job",
    "classes_of",
    "job_differences",
    "job_signature",
    "load_job",
    "loss_of",
    "parse_size",
    "settings",
    "start_seconds",
]

# Each shard owns whole prefixes of keys, and there are so many (shards.table).
SHARDS_MAX: Final = 256
# What keys and numbers mean.
_MEANING: Final = (
    *(f"source.{name}" for name in ("format", "columns", "label", "cross", "fields", "header")),
    *(f"source.{name}" for name in ("delimiter", "quote", "trim", "negative_rate", "classes")),
    *(f"source.{name}" for name in ("documents", "encoding", "undecodable", "markup", "digits")),
    *(f"source.{name}" for name in ("word_length_min", "word_length_max", "stop_words")),
    *(f"source.{name}" for name in ("vocabulary", "sample", "image_size", "image_mode")),
    "model",
    "tables.index",
)
# What a model cannot change while it goes on: this, and the shapes of what it keeps.
BINDING: Final = (*_MEANING, "tables.bits", "output.window")
# What all shards and workers of a model must agree on: this, and where partitions and minibatches
# begin and end. A minibatch is known by its number, so whoever takes over a partition must cut it
# as those before.
_AGREED: Final = (
    *_MEANING,
    *("source.range_bytes", "source.block_bytes", "source.compression"),
    "compute.minibatch",
)


class JobConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole job."""

    source: SourceConfig = SourceConfig()
    model: ModelConfig = LrConfig()
    tables: TablesConfig = TablesConfig()
    cluster: ClusterConfig = ClusterConfig()
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
    _check_together(job)


def loss_of(model: ModelConfig) -> str:
    """Return by what a model is judged.

    ``logistic``: labels are 0 or 1; ``classes``: one of several; ``squared``: they are any;
    ``likelihood``: there are none.
    """
    if isinstance(model, LdaConfig):
        return "likelihood"
    return model.loss if isinstance(model, MfConfig | DeepConfig) else "logistic"


def classes_of(job: JobConfig) -> int:
    """Return how many classes labels are of; 0 where they are no classes."""
    if not isinstance(job.model, DeepConfig) or job.model.loss != "classes":
        return 0
    return job.model.classes or len(job.source.classes)


def check_for_shards(job: JobConfig) -> None:
    """Refuse what cannot be learned over shards.

    Raises
    ------
    ConfigError
    """
    if job.tables.index == "hashed":
        raise ConfigError(
            '`tables.shards` are for tables with `tables.index = "exact"`, but it is "hashed"',
            hint="a hashed table has no keys by which shards could divide it: leave out one of the "
            "two",
        )
    if isinstance(job.model, LdaConfig):
        check_topics_for_shards(job, job.model)
    if not isinstance(job.model, MfConfig):
        return
    for name in ("held_out", "patience"):
        if value := getattr(job.model, name):
            raise ConfigError(
                f"`model.{name}` is {value}, but over shards no ratings are held out",
                hint="leave it out: progressive figures are of ratings that were not learned yet",
            )


def job_signature(job: JobConfig) -> str:
    """Return a digest of what must be equal between all shards and workers of a model.

    Of the job as it was given: a worker's format may be ``auto`` until it has seen a record, and a
    shard never sees one.
    """
    encoded = msgspec.json.encode(_agreed(job), order="sorted")
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def job_differences(job: JobConfig, other: JobConfig) -> list[str]:
    """Return where two jobs whose signatures differ do so: ``model.alpha is 0.3, was 0.1``."""
    found = []
    for (path, now), was in zip(_agreed(job).items(), _agreed(other).values(), strict=True):
        if path == "model":
            one, two = msgspec.to_builtins(now), msgspec.to_builtins(was)
            names = [name for name in (one | two) if one.get(name) != two.get(name)]
            found += [f"model.{n} is {shown(one.get(n))}, was {shown(two.get(n))}" for n in names]
        elif now != was:
            found.append(f"{path} is {shown(now)}, was {shown(was)}")
    return found


def _agreed(job: JobConfig) -> dict[str, Any]:
    agreed = {}
    for path in _AGREED:
        section, _, name = path.partition(".")
        value = getattr(job, section)
        agreed[path] = getattr(value, name) if name else value
    return agreed


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
    description="What is learned: lr (sparse logistic regression), fm (factorization machines), mf "
    "(matrix factorization of ratings), lda (topics of documents), deep (deep nets).",
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
            full = f"{section}.{name}"
            is_path = full in _PATHS and (full, value) not in _NAMES
            said = _beside(here, value) if is_path else value
            yield Given(f"{section}.{name}", said, "job file", place, text=False)


# Settings that are paths from where the job file is, but for names that mean something else.
_PATHS: Final = ("source.uri", "source.vocabulary", "source.stop_words")
_NAMES: Final = (("source.stop_words", "none"), ("source.stop_words", "english"))


def _beside(folder: Path, value: Any) -> Any:
    """Take relative paths of a job file from where the job file is."""
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
    job = JobConfig(**sections)
    _check_together(job)
    return Resolved(job, origins)


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


def _are_shards(value: tuple[str, ...]) -> bool:
    return len(set(value)) == len(value) <= SHARDS_MAX and all(map(_is_address, value))


def _are_tiers(value: dict[str, int]) -> bool:
    """Say whether a table of count = dim is in order; may raise ValueError."""
    return not value or bool(Tiers(2, tuple(map(int, value)), tuple(value.values())))


def _is_address(value: str) -> bool:
    """Say whether a text is HOST:PORT of something that can be reached."""
    host, colon, port = value.rpartition(":")
    return bool(host and colon) and port.isdecimal() and 0 < int(port) < 1 << 16


# What a type and its limits cannot say: path -> whether the value is allowed.
_CHECKS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "source.start": _is_start,
    "source.uri": all,
    "tables.shards": _are_shards,
    "model.dim_by_count": _are_tiers,
    "http.listen": lambda value: not value or int(value.rpartition(":")[2]) < 1 << 16,
}


def _check_together(job: JobConfig) -> None:
    """Refuse settings that contradict one another."""
    tables, cluster = job.tables, job.cluster
    if tables.shards:
        check_for_shards(job)
    if tables.kkt and job.model.rule in ("ftrl", "difacto"):
        raise ConfigError(
            f"`tables.kkt` is {tables.kkt}, but the sums of `model.rule` ftrl need every gradient",
            hint="leave out tables.kkt, or take --rule adagrad or sgd",
        )
    if tables.index == "hashed" and getattr(job.model, "dim_by_count", None):
        raise ConfigError(
            '`model.dim_by_count` goes by counts, and a table with `tables.index = "hashed"` keeps '
            "none",
            hint="leave out one of the two",
        )
    _check_tiers(job.model)
    if isinstance(job.model, LdaConfig) and job.source.negative_rate < 1:
        raise ConfigError(
            f"`source.negative_rate` is {job.source.negative_rate}, but documents have no labels",
            hint="leave it out",
        )
    if (loss := loss_of(job.model)) in ("squared", "classes") and job.source.negative_rate < 1:
        raise ConfigError(
            f"`source.negative_rate` is {job.source.negative_rate}, but of such labels "
            f'(`model.loss` is "{loss}") none is a negative',
            hint="leave it out, or take --loss logistic where every label is 0 or 1",
        )
    if tables.features_max and tables.features_min > tables.features_max:
        raise ConfigError(
            f"`tables.features_min` is {tables.features_min}, which is above "
            f"`tables.features_max`, {tables.features_max}"
        )
    _check_lanes(job)
    check_private(job)
    if isinstance(job.model, MfConfig | LdaConfig):
        _check_dense_rows(job)
    if isinstance(job.model, DeepConfig):
        check_deep(job, job.model)
    files = {name: getattr(cluster, name) for name in ("certificate", "key", "authority")}
    if any(files.values()) and not all(files.values()):
        given, missing = ([n for n in files if bool(files[n]) == said] for said in (True, False))
        raise ConfigError(
            f"`cluster.{given[0]}` is given, but `cluster.{missing[0]}` is not",
            hint="TLS needs certificate, key and authority on both sides",
        )


def _check_dense_rows(job: JobConfig) -> None:
    """Refuse what matrix factorization and topics have no use for."""
    tables, compute = job.tables, job.compute
    refused = {
        "tables.index": (tables.index == "hashed", "each of its rows is somebody's own"),
        "tables.kkt": (tables.kkt > 0, "its rows have no weights of zero"),
        "compute.learn_lanes": (compute.learn_lanes > 1, "its first pass has one learning lane"),
        "compute.shard_lanes": (compute.shard_lanes > 0, "its first pass has one learning lane"),
    }
    lanes = "leave it out; compute.lanes is how many lanes make the further passes"
    refuse(job, refused, {"compute": lanes})


def _check_tiers(model: ModelConfig) -> None:
    """Refuse tiers that are out of order once they are laid over one another."""
    try:
        _ = model.tiers
    except ValueError as error:
        setting = next(one for one in settings(model.kind) if one.name == "dim_by_count")
        raise ConfigError(
            f"`{setting.path}` must be {setting.expects}, but together it is "
            f"{shown(getattr(model, setting.name))}",
            cause=str(error),
        ) from error


def _check_lanes(job: JobConfig) -> None:
    """Refuse lanes that cannot be what they should be."""
    compute = job.compute
    lanes, shards = compute.lanes, compute.shard_lanes
    if lanes and shards >= lanes:
        raise ConfigError(
            f"`compute.shard_lanes` is {shards} of `compute.lanes` = {lanes}: no lane is left to "
            "work",
            hint="a worker lane takes about twice as long as all shard lanes for the same records",
        )
    if (lanes <= 2 and not shards) or isinstance(job.model, MfConfig | LdaConfig | DeepConfig):
        return
    setting = "`compute.shard_lanes`" if shards else f"`compute.lanes` = {lanes}"
    if job.tables.index == "hashed":
        raise ConfigError(
            f'{setting} divides a table with `tables.index = "exact"`, but it is "hashed"',
            hint="take --lanes 2, or learn_lanes for a hashed table on many cores",
        )
    if compute.learn_lanes > 1:
        raise ConfigError(
            f"{setting} and `compute.learn_lanes` = {compute.learn_lanes} are two ways to fill a "
            "machine",
            hint="leave out one of the two",
        )


def _anything(value: Any) -> bool:
    return True


def _sections() -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(JobConfig))


def _check_section(section: str, place: str) -> None:
    if section not in _sections():
        raise ConfigError(
            f"`{section}` is no section ({place})", hint=nearest(section, _sections())
        )
