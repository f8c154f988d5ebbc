"""The Typer application; each command is a module of this package."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

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
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in [arguments[0]] if arguments and arguments[0] in COMMANDS else COMMANDS:
        module = importlib.import_module(f"ssmdiag.cli.{COMMANDS[name]}")
        if name == "config":
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"ssmdiag {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diagnose memory in trained sequence models: any checkpoint in, verdict on memory out, exit code."""
