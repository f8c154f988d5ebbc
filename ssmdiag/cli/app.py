"""The Typer application; each command is a module of this package."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ssmdiag.cli.command import Command, Group
from ssmdiag.cli.help_pages import SUMMARIES
from ssmdiag.version import __version__

COMMANDS = {
    "inspect": "inspect",
    "check": "check",
    "capacity": "capacity",
    "compare": "compare",
    "watch": "watch",
    "probe": "probe",
    "kernel": "kernel",
    "retrain": "retrain",
    "families": "families",
    "rules": "rules",
    "explain": "rules",
    "config": "config",
}
"""The module of each command, in the order that --help lists them."""


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the application, with one command only if the arguments start with its name: each takes time to build."""
    app = typer.Typer(
        name="ssmdiag",
        cls=Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "obj": {"commands": tuple(COMMANDS), "command_named": command_named},
        },
    )
    app.callback()(options)
    for name in [arguments[0]] if arguments and arguments[0] in COMMANDS else COMMANDS:
        module = importlib.import_module(f"ssmdiag.cli.{COMMANDS[name]}")
        if name == "config":
            app.add_typer(module.app, name=name)
        else:
            app.command(name, cls=Command, short_help=SUMMARIES[name])(getattr(module, name))
    return app


def command_named(name: str) -> Any:
    """Return one command of the application, as Typer builds it."""
    command: Any = typer.main.get_command(make_app([name]))
    return command.commands[name]


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `help COMMAND` as `COMMAND --help`.

    >>> spelled_out(["help"]), spelled_out(["help", "check"]), spelled_out(["check", "help"])
    (['--help'], ['check', '--help'], ['check', 'help'])
    """
    asks = bool(arguments) and arguments[0] == "help"
    if list(arguments) == ["help", "help"]:
        return ["--help"]
    return [*arguments[1:], "--help"] if asks and arguments[-1] not in ("-h", "--help") else list(arguments)[asks:]


def _version(asked: bool) -> None:
    if asked:
        print(f"ssmdiag {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diagnose memory in trained sequence models: any checkpoint in, verdict on memory out, exit code."""
