"""What settings there are and what they are set to, as text: TOML, JSON Schema, the docs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from streamlearn.config import MODELS, JobConfig, Resolved, settings
from streamlearn.settings import Setting, struct_settings

__all__ = ["job_json", "job_toml", "schema", "settings_markdown"]

_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
# Comments stand in one column where the values are no longer than this.
_VALUE_WIDTH: Final = 44


def job_toml(resolved: Resolved) -> str:
    """Return a job as a job file, each value with its origin as a comment."""
    lines: list[str] = []
    for setting in settings(resolved.job.model.kind):
        head = f"[{setting.section}]"
        if head not in lines:
            lines += ["", head] if lines else [head]
        value = getattr(getattr(resolved.job, setting.section), setting.name)
        entry = f"{setting.name} = {_toml(value)}"
        lines.append(f"{entry:<{_VALUE_WIDTH}}  # {_origin(setting, resolved)}")
    return "\n".join(lines) + "\n"


def job_json(resolved: Resolved) -> dict[str, dict[str, dict[str, Any]]]:
    """Return a job as section -> key -> ``{"value": …, "origin": …}``."""
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for setting in settings(resolved.job.model.kind):
        value = getattr(getattr(resolved.job, setting.section), setting.name)
        told.setdefault(setting.section, {})[setting.name] = {
            "value": list(value) if isinstance(value, tuple) else value,
            "origin": _origin(setting, resolved),
        }
    return told


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file: sizes may be text, and a list of one its only item."""
    made = msgspec.json.schema(JobConfig)
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streamlearn job",
        **made,
    }
    structs = {section.name: [section.type] for section in msgspec.structs.fields(JobConfig)}
    structs["model"] = list(MODELS.values())
    for name, members in structs.items():
        for struct in members:
            section = made["$defs"][struct.__name__]
            # msgspec asks for the tag; a job file may leave it out and get the default kind
            section |= {"title": name, "required": []}
            for setting in struct_settings(name, struct, ()):
                _as_written(setting, section["properties"][setting.name])
    return made


def _as_written(setting: Setting, written: dict[str, Any]) -> None:
    """Let a setting's schema allow what a job file may write besides the struct's own type."""
    if not setting.is_size and setting.shape != "list":
        return
    limits = {k: written.pop(k) for k in (*_LIMITS, "type", "items") if k in written}
    text = {"type": "string"} | ({"pattern": _SIZE_PATTERN} if setting.is_size else {})
    written["anyOf"] = [limits, text]


def settings_markdown() -> str:
    """Return the tables of docs/configuration.md, one a section."""
    parts: list[str] = []
    for section in msgspec.structs.fields(JobConfig):
        own = [setting for setting in settings() if setting.section == section.name]
        if section.name != "model":
            parts += _table(f"## [{section.name}]", section.type.__doc__ or "", own)
            continue
        shared = [setting for setting in own if len(setting.models) in (0, len(MODELS))]
        parts += _table("## [model]", "What is learned. Settings of all kinds:", shared)
        told = {setting.name: (setting.default, setting.description) for setting in shared}
        for kind, struct in MODELS.items():
            named = [
                setting
                for setting in settings(kind)
                if setting.section == "model"
                and setting.models
                and told.get(setting.name) != (setting.default, setting.description)
            ]
            parts += _table(f"### kind = {_toml(kind)}", struct.__doc__ or "", named)
    return "\n".join(parts)


def _table(title: str, about: str, own: Iterable[Setting]) -> list[str]:
    """Return the lines of one table of the docs."""
    lines = [title, "", about.strip(), ""]
    lines += ["| key | flag | allowed | default | meaning |", "|---|---|---|---|---|"]
    for setting in own:
        flags = " ".join(f"`{flag}`" for flag in (setting.flag, setting.short) if flag)
        cells = [
            f"`{setting.name}`",
            "arguments" if setting.positional else flags,
            setting.expected,
            f"`{_default(setting)}`",
            setting.description,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


_LIMITS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SIZE_PATTERN: Final = r"^\s*[0-9][0-9_]*(\.[0-9]+)?\s*([KkMmGgTt][Ii]?)?[Bb]?\s*$"


def _default(setting: Setting) -> str:
    value = setting.default
    if setting.is_size:
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value >= size and value % size == 0:
                return f"{value // size}{unit}"
    return _toml(value)


def _origin(setting: Setting, resolved: Resolved) -> str:
    """Return where a value came from; of a table, where each of its entries did."""
    prefix = f"{setting.path}."
    entries = {
        name.removeprefix(prefix): origin
        for name, origin in resolved.origins.items()
        if name.startswith(prefix)
    }
    if len(set(entries.values())) <= 1:
        return next(iter(entries.values()), resolved.origins[setting.path])
    return ", ".join(f"{name}: {origin}" for name, origin in entries.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def _key(name: str) -> str:
    return name if name and _BARE.issuperset(name) else _toml(name)
