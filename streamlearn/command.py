"""A verb of the command line: its flags made from the settings, its errors turned into exit codes.

A verb is a function of one :class:`Call`. :func:`verb` gives it the arguments and options that it
names, a flag for every setting of the sections that it names, and the options that all verbs have.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import typer

from streamlearn.config import settings
from streamlearn.errors import ConfigError, StreamlearnError
from streamlearn.settings import Setting, joined

__all__ = ["Call", "option", "sources", "verb"]

_PANELS: Final = {
    "source": "Source",
    "model": "Model",
    "tables": "Table",
    "cluster": "Cluster",
    "compute": "Lanes",
    "output": "Output",
    "http": "HTTP",
}
_METAVARS: Final = {"int": "INTEGER", "float": "NUMBER", "text": "TEXT"}


class Call:
    """The command line as parsed: options by name, and the settings that it gives.

    Parameters
    ----------
    given : dict
        Parameters by name, as typer hands them over.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name)

    def job_path(self) -> Path | None:
        """Return the job file among the sources; raises ConfigError where there are two."""
        found = [uri for uri in self._given.get("sources") or () if uri.endswith(".toml")]
        if len(found) > 1:
            raise ConfigError(f"there are two job files, {found[0]} and {found[1]}")
        return Path(found[0]) if found else None

    def flags(self) -> dict[str, Any]:
        """Return the settings given by flags and arguments, by path."""
        flags: dict[str, Any] = {}
        for setting in settings():
            value = self._given.get(_parameter_name(setting))
            if isinstance(value, list):
                value = joined(setting, value) if value else None
            if value is not None:
                flags[setting.path] = value
        uris = [uri for uri in self._given.get("sources") or () if not uri.endswith(".toml")]
        if uris:
            flags["source.uri"] = uris
        # whoever asks for a number of bits wants the table that has them
        said = any(text.startswith("tables.index=") for text in self._given.get("set") or ())
        if "tables.bits" in flags and not said:
            flags.setdefault("tables.index", "hashed")
        return flags


def option(name: str, annotation: Any, info: Any) -> inspect.Parameter:
    """Return a parameter of a verb; ``info`` is a ``typer.Option`` or ``typer.Argument``."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation
    )


def sources(more: str = "", *, needed: bool = True) -> inspect.Parameter:
    """Return the SOURCE... argument."""
    about = "Files, directories, globs, - (standard input), http(s):// or s3:// URIs"
    return option(
        "sources",
        list[str] | None,
        typer.Argument(
            None, metavar="SOURCE..." if needed else "[SOURCE]...", help=f"{about}{more}."
        ),
    )


def verb(
    app: typer.Typer,
    sections: Sequence[str],
    own: Sequence[inspect.Parameter],
    *,
    examples: Sequence[str],
) -> Callable[[Callable[[Call], None]], Callable[[Call], None]]:
    """Register a function as a verb of ``app``, under its name without a trailing underscore.

    Parameters
    ----------
    app : typer.Typer
    sections : sequence of str
        Sections of the job whose settings are flags of the verb.
    own : sequence of inspect.Parameter
        What else it takes.
    examples : sequence of str
        Lines below its help.
    """

    def register(body: Callable[[Call], None]) -> Callable[[Call], None]:
        def run(**given: Any) -> None:
            _guarded(body, Call(given))

        parameters = [*own, *_flags(sections, own), *_common(with_set=bool(sections))]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        app.command(
            body.__name__.rstrip("_"),
            help=_markup(inspect.cleandoc(body.__doc__ or "")),
            epilog="\b\nExamples:\n" + "\n".join(f"  {_markup(line)}" for line in examples),
        )(run)
        return body

    return register


def _flags(sections: Sequence[str], own: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return a flag for each setting of the sections; those that few need are not in the help.

    What the verb itself takes under a flag's name stands in the flag's place.
    """
    taken = {flag for one in own for flag in getattr(one.default, "param_decls", None) or ()}
    return [
        option(_parameter_name(setting), *_flag(setting))
        for setting in settings()
        if setting.section in sections and not setting.positional and setting.flag not in taken
    ]


def _flag(setting: Setting) -> tuple[Any, Any]:
    """Return annotation and option of a setting's flag; absent is None, whatever the default."""
    names = [setting.flag]
    annotation: Any = str | None
    metavar: str | None = "BYTES" if setting.is_size else _METAVARS.get(setting.shape)
    if setting.shape == "bool":
        names = [f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"]
        annotation, metavar = bool | None, None
    elif setting.shape in ("list", "table"):
        annotation = list[str] | None
        metavar = "NAME=KIND" if setting.shape == "table" else "TEXT"
    if setting.short:
        names.append(setting.short)
    help_text = setting.description
    if setting.choices:
        help_text += f" One of {', '.join(setting.choices)}."
    if setting.shape in ("list", "table"):
        help_text += " Repeatable."
    elif setting.shape != "bool" and setting.default != "":
        help_text += f" Default: {setting.default}{_others(setting)}."
    elif setting.default is True:
        help_text += " Default: yes."
    if setting.path == "tables.bits":
        help_text += " Implies --index hashed."
    choices = list(setting.choices)
    info = typer.Option(
        None,
        *names,
        metavar=metavar,
        help=_markup(help_text),
        hidden=not setting.common,
        show_default=False,
        rich_help_panel=_PANELS[setting.section],
        autocompletion=(lambda incomplete: [c for c in choices if c.startswith(incomplete)])
        if choices
        else None,
    )
    return annotation, info


def _others(setting: Setting) -> str:
    """Return the defaults of models for which another one than the first's holds."""
    found = {
        kind: one.default
        for kind in setting.models
        for one in settings(kind)
        if one.path == setting.path and one.default != setting.default
    }
    return f" ({', '.join(f'{kind}: {value}' for kind, value in found.items())})" if found else ""


def _common(*, with_set: bool) -> list[inspect.Parameter]:
    """Return the options that every verb has."""
    found = []
    if with_set:
        found.append(
            option(
                "set",
                list[str] | None,
                typer.Option(
                    None,
                    "--set",
                    metavar="SECTION.KEY=VALUE",
                    help="Set anything a job file can say (docs/configuration.md lists all). "
                    "Repeatable.",
                ),
            )
        )
    for name, flag, about in (
        ("json", "--json", "Print results as JSON."),
        ("json_logs", "--json-logs", "Print progress and logs as JSON lines."),
        ("quiet", "--quiet", "Print neither progress nor logs below a warning."),
        ("debug", "--debug", "Log more, and show where errors come from."),
    ):
        found.append(option(name, bool, typer.Option(False, flag, help=about)))
    return found


def _markup(text: str) -> str:
    """Return plain text as rich's markup."""
    return text.replace("[", r"\[")


def _parameter_name(setting: Setting) -> str:
    return f"{setting.section}_{setting.name}"


def _guarded(body: Callable[[Call], None], call: Call) -> None:
    """Run a verb; say what went wrong in words, and exit with the code that stands for it."""
    _configure_logs(call)
    try:
        body(call)
        sys.stdout.flush()
    except (typer.Exit, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (the edge: every failure gets its words here)
        failure = _leaf(error)
        if isinstance(failure, BrokenPipeError):
            _silence_stdout()
            raise typer.Exit(0) from None
        if isinstance(failure, KeyboardInterrupt):
            raise typer.Exit(130) from None
        if isinstance(failure, StreamlearnError):
            if call["debug"]:
                _print_traceback(error)
            _print_error(f"error: {failure}")
            raise typer.Exit(failure.exit_code) from None
        _print_traceback(error)
        _print_error(
            f"error: {type(failure).__name__}: {failure}\n"
            "hint: this is a bug in streamlearn; please report it with the lines above"
        )
        raise typer.Exit(1) from None


def _leaf(error: BaseException) -> BaseException:
    """Return what a group of exceptions is about: the first a user can understand, or the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_leaf(inner) for inner in error.exceptions]
    known = (StreamlearnError, BrokenPipeError, KeyboardInterrupt)
    return next((leaf for leaf in leaves if isinstance(leaf, known)), leaves[0])


def _print_error(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _print_traceback(error: BaseException) -> None:
    import traceback

    _print_error("".join(traceback.format_exception(error)).rstrip())


def _silence_stdout() -> None:
    """Point stdout to nowhere, so that the interpreter's last flush does not fail again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _configure_logs(call: Call) -> None:
    import logging

    from streamlearn.logs import configure_logs

    level = logging.DEBUG if call["debug"] else logging.INFO
    configure_logs(
        as_json=call["json_logs"] or not sys.stderr.isatty(),
        level=logging.WARNING if call["quiet"] else level,
    )
