"""The Typer application; each command is a module of this package."""

from __future__ import annotations

from typing import Annotated

import typer

from ssmdiag import __version__
from ssmdiag.cli import capacity, check, compare, config, families, inspect, kernel, retrain, rules

app = typer.Typer(
    name="ssmdiag",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect")(inspect.inspect)
app.command("check")(check.check)
app.command("capacity")(capacity.capacity)
app.command("compare")(compare.compare)
app.command("kernel")(kernel.kernel)
app.command("retrain")(retrain.retrain)
app.command("families")(families.families)
app.command("rules")(rules.rules)
app.command("explain")(rules.explain)
app.add_typer(config.app, name="config")


def _version(asked: bool) -> None:
    if asked:
        print(f"ssmdiag {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Diagnose memory in trained sequence models: any checkpoint in, verdict on memory out, exit code."""
