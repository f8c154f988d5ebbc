"""The Typer application; each command is a module of this package."""

from __future__ import annotations

import typer

app = typer.Typer(name="ssmdiag", no_args_is_help=True, pretty_exceptions_enable=False)
