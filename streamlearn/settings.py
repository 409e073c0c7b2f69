"""A setting: one field of a struct, with its limits, help and flag, and what a value for it means.

Knows nothing of jobs: :mod:`streamlearn.config` has the structs, and everything that lists, shows,
documents or reads settings goes through here, so that nothing about a setting is written twice.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Meta

from streamlearn.errors import ConfigError

__all__ = [
    "ENVIRONMENT_PREFIX",
    "Given",
    "Setting",
    "about",
    "convert",
    "joined",
    "nearest",
    "parse_size",
    "refuse",
    "shown",
    "start_seconds",
    "struct_settings",
    "wrong",
]

ENVIRONMENT_PREFIX: Final = "STREAMLEARN_"

_SIZE: Final = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*(?:([kmgt])(i)?)?b?")
_TRUTH: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
# A comma that is not within brackets.
_COMMA: Final = re.compile(r",(?![^\[]*\])")
_CHARACTERS: Final = {"\\t": "\t", "tab": "\t", "space": " ", "none": ""}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the job, as its struct describes it.

    Attributes
    ----------
    section, name : str
        ``model`` and ``alpha`` of ``model.alpha``.
    shape : str
        ``bool``, ``int``, ``float``, ``text``, ``list`` (of texts) or ``table`` (name = text or
        number).
    type : object
        What msgspec converts to, limits included.
    default : object
    description : str
    limits : dict
        ``gt ge lt le min_length max_length pattern``, where given.
    choices : tuple of str
        The only values allowed; empty: no such limit.
    flag, short : str
        ``--alpha``, ``-l`` (may be empty).
    common, split, character, expects, inherited, positional
        See :func:`about`.
    models : tuple of str
        Kinds of model that have the setting; empty where it does not depend on the model.
    counts, free : bool
        Whether the values of a table are whole numbers, not texts; or whatever TOML has.
    """

    section: str
    name: str
    shape: str
    type: Any
    default: Any
    description: str
    limits: Mapping[str, Any]
    choices: tuple[str, ...]
    flag: str
    short: str
    common: bool
    split: bool
    character: bool
    expects: str
    inherited: bool
    positional: bool
    models: tuple[str, ...]
    counts: bool = False
    free: bool = False

    @property
    def path(self) -> str:
        """``section.name``."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return f"{ENVIRONMENT_PREFIX}{self.section}_{self.name}".upper()

    @property
    def is_size(self) -> bool:
        """Whether it counts bytes, so that ``256MB`` is understood."""
        return self.shape == "int" and self.name.endswith(("_bytes", "_bytes_max"))

    @property
    def expected(self) -> str:
        """Say in words which values are allowed."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.expects:
            return self.expects
        low, high = self.limits.get("ge"), self.limits.get("le")
        above, below = self.limits.get("gt"), self.limits.get("lt")
        bounds = [f"> {above}"] if above is not None else []
        bounds += [f">= {low}"] if low is not None else []
        bounds += [f"<= {high}"] if high is not None else []
        bounds += [f"< {below}"] if below is not None else []
        limit = " " + " and ".join(bounds) if bounds else ""
        if self.is_size:
            return f"a number of bytes{limit} (256MB, 1GiB)"
        if self.shape == "text" and self.limits.get("max_length") == 1:
            return "one character" + ("" if self.limits.get("min_length") else " or nothing")
        return {
            "bool": "true or false",
            "int": f"a whole number{limit}",
            "float": f"a number{limit}",
            "text": "text",
            "list": "text or a list of texts",
            "table": "a table of name = text",
        }[self.shape]


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody gave it.

    Attributes
    ----------
    path : str
    value : object
    origin : str
        As ``config show`` prints it: ``flag``, ``job file``, ….
    place : str
        What errors name (the file, the flag); empty: the origin.
    text : bool
        Whether it is text as typed and stands for a value of the setting's type.
    """

    path: str
    value: Any
    origin: str
    place: str
    text: bool

    @property
    def where(self) -> str:
        """Where it was given, for the end of an error's sentence."""
        return f" ({self.place or self.origin})" if self.origin != "default" else ""


def about(
    description: str,
    *,
    flag: str = "",
    short: str = "",
    common: bool = False,
    choices: Sequence[str] = (),
    split: bool = True,
    character: bool = False,
    expects: str = "",
    inherited: bool = False,
    positional: bool = False,
    **limits: Any,
) -> Meta:
    """Describe a setting: help text, limits (msgspec's ``gt ge lt le pattern …``), and its flag.

    Parameters
    ----------
    flag, short : str
        Flag if it is not the field's name in kebab-case; one-letter form.
    common : bool
        Whether ``--help`` shows the flag (all of them are accepted).
    choices : sequence of str
        The only values allowed.
    split : bool
        Whether text with commas is several items of a list.
    character : bool
        Whether ``tab`` (or a backslash and a t) means the tabulator.
    expects : str
        What is allowed, in words, where type and limits do not say it.
    inherited : bool
        Whether it comes with a trained model: it says what keys and numbers mean, or how the
        sources are reached.
    positional : bool
        Whether the command line takes it as arguments and not as a flag.
    """
    return Meta(
        description=description,
        extra_json_schema={"enum": list(choices)} if choices else None,
        extra={
            "flag": flag,
            "short": short,
            "common": common,
            "choices": tuple(choices),
            "split": split,
            "character": character,
            "expects": expects,
            "inherited": inherited,
            "positional": positional,
        },
        **limits,
    )


def struct_settings(
    section: str, struct: type[msgspec.Struct], models: tuple[str, ...]
) -> Iterable[Setting]:
    """Yield the settings of one struct."""
    from msgspec import inspect

    shapes: dict[type[Any], str] = {
        inspect.BoolType: "bool",
        inspect.IntType: "int",
        inspect.FloatType: "float",
        inspect.StrType: "text",
        inspect.VarTupleType: "list",
        inspect.DictType: "table",
    }
    for field in msgspec.structs.fields(struct):
        known = inspect.type_info(field.type)
        assert isinstance(known, inspect.Metadata), f"{section}.{field.name} has no description"
        schema, extra = known.extra_json_schema or {}, known.extra or {}
        limits = {
            name: getattr(known.type, name)
            for name in ("gt", "ge", "lt", "le", "min_length", "max_length", "pattern")
            if getattr(known.type, name, None) is not None
        }
        default = field.default
        if default is msgspec.NODEFAULT:
            default = field.default_factory()
        yield Setting(
            section=section,
            name=field.name,
            shape=shapes[type(known.type)],
            type=field.type,
            default=default,
            description=schema["description"],
            limits=limits,
            choices=extra["choices"],
            flag=extra["flag"] or "--" + field.name.replace("_", "-"),
            short=extra["short"],
            common=extra["common"],
            split=extra["split"],
            character=extra["character"],
            expects=extra["expects"],
            inherited=extra["inherited"],
            positional=extra["positional"],
            models=models,
            counts=isinstance(getattr(known.type, "value_type", None), inspect.IntType),
            free=isinstance(getattr(known.type, "value_type", None), inspect.AnyType),
        )


def convert(
    setting: Setting, one: Given, allowed: Callable[[Any], bool] = lambda value: True
) -> Any:
    """Return a value as the setting's type.

    Parameters
    ----------
    setting : Setting
    one : Given
    allowed : callable
        Says of a converted value what type and limits cannot say; may raise ValueError for no.

    Raises
    ------
    ConfigError
        With the path, what was expected and the value.
    """
    try:
        value = msgspec.convert(_meant(setting, one), setting.type)
        good = setting.shape != "float" or math.isfinite(value)
        good = good and (not setting.choices or value in setting.choices) and allowed(value)
    except ValueError as error:  # what msgspec and tomllib raise is one
        raise wrong(setting, one) from error
    if not good:
        raise wrong(setting, one)
    return value


def joined(setting: Setting, items: Sequence[str]) -> Any:
    """Return the list or table that a flag given several times means.

    Raises
    ------
    ConfigError
        An item is not what the setting takes.
    """
    try:
        parts = [_typed(setting, item) for item in items]
    except ValueError as error:
        given = Given(setting.path, list(items), "flag", f"flag {setting.flag}", text=True)
        raise wrong(setting, given) from error
    if setting.shape == "table":
        return {name: item for part in parts for name, item in part.items()}
    return [item for part in parts for item in part]


def _meant(setting: Setting, one: Given) -> Any:
    """Return the value that was meant (a size, an item written as text); raises ValueError."""
    value = _typed(setting, one.value) if one.text else one.value
    if isinstance(value, str):
        if setting.is_size:
            return parse_size(value)
        if setting.shape == "list":
            return (value,)
        if setting.character:
            return _CHARACTERS.get(value, value)
    if setting.shape == "table" and isinstance(value, dict):
        if setting.counts:
            return {name: _number(item) for name, item in value.items()}
        if setting.free:
            return {name: _free(item) for name, item in value.items()}
        for name, item in value.items():
            if not isinstance(item, str):
                raise ConfigError(
                    f"`{setting.path}.{name}` must be text, but is {shown(item)}{one.where}"
                )
    return value


def _number(item: Any) -> Any:
    """Return a whole number that may be typed as text; raises ValueError."""
    return int(item) if isinstance(item, str) else item


def _free(item: Any) -> Any:
    """Return what TOML reads an item as that may be typed as text; text where it reads nothing."""
    if not isinstance(item, str):
        return item
    with suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {item}")["value"]
    return item


def _typed(setting: Setting, text: str) -> Any:
    """Return what text typed in a flag or a variable means for a setting; raises ValueError."""
    if setting.shape == "bool":
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    if setting.shape == "int":
        return parse_size(text) if setting.is_size else int(text)
    if setting.shape == "float":
        return float(text)
    if setting.shape == "list":
        if text.startswith("["):
            return tomllib.loads(f"value = {text}")["value"]
        items = text.split(",") if setting.split else [text]
        return [item.strip() for item in items if item.strip()]
    if setting.shape == "table":
        if text.startswith("{"):
            return tomllib.loads(f"value = {text}")["value"]
        pairs = [item.partition("=") for item in _COMMA.split(text) if item.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(text)
        return {name.strip(): value.strip() for name, _, value in pairs}
    return text


def parse_size(text: str) -> int:
    """Return the bytes that a size such as ``256MB``, ``1GiB`` or ``65536`` means.

    ``kB MB GB TB`` are powers of 1000, ``KiB MiB GiB TiB`` of 1024; case and spaces do not matter.

    Raises
    ------
    ValueError
        It is no size, or no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    number, letter, binary = match.groups()
    scale = (1024 if binary else 1000) ** " kmgt".index(letter or " ")
    size = float(number.replace("_", "")) * scale
    if not math.isfinite(size) or size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def start_seconds(start: str) -> float:
    """Return the time that ``source.start = "@TIME"`` means, in seconds since the epoch.

    A time without a zone is UTC.

    Raises
    ------
    ValueError
        It is no time.
    """
    text = start.removeprefix("@")
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a time")
    return seconds


def nearest(name: str, valid: Iterable[str]) -> str:
    """Name the valid name nearest to a wrong one, and where there are few, all of them."""
    valid = list(valid)
    section = name.partition(".")[0]
    close = difflib.get_close_matches(name, valid, 1, cutoff=0.0)
    beside = [other for other in valid if other.partition(".")[0] == section] or valid
    takes = ", ".join(other.partition(".")[2] or other for other in beside)
    listed = f"; [{section}] takes {takes}" if "." in name else ""
    if not listed and len(valid) <= 10:
        listed = f"; there are {takes}"
    return f"did you mean {close[0]}?{listed}"


def wrong(setting: Setting, one: Given) -> ConfigError:
    """Return the error for a value that is not allowed, with the nearest of its choices."""
    close = difflib.get_close_matches(str(one.value), setting.choices, 1)
    return ConfigError(
        f"`{one.path}` must be {setting.expected}, but is {shown(one.value)}{one.where}",
        hint=f"did you mean {close[0]}?" if close else None,
    )


def refuse(job: Any, refused: Mapping[str, tuple[bool, str]], hints: Mapping[str, str]) -> None:
    """Refuse settings that a kind of model has no use for.

    Parameters
    ----------
    job : JobConfig
    refused : mapping
        By path, whether it is given, and why it is not for the kind.
    hints : mapping of str to str
        By section, what to do beside leaving it out.

    Raises
    ------
    ConfigError
        Names the first that is given.
    """
    for path, (given, why) in refused.items():
        section, _, name = path.partition(".")
        if given:
            raise ConfigError(
                f"`{path}` is {shown(getattr(getattr(job, section), name))}, which is not for "
                f'`model.kind = "{job.model.kind}"`: {why}',
                hint=hints.get(section, "leave it out"),
            )


def shown(value: Any) -> str:
    """Return a value as errors quote it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "…"
