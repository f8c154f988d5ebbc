"""`ssmdiag config show`: the settings in effect, and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.command import Command, Group
from ssmdiag.cli.options import Isolated
from ssmdiag.cli.process import working_folder

app = typer.Typer(cls=Group, no_args_is_help=True, help="Settings of `ssmdiag check`.", rich_markup_mode=None)


@app.callback()
def config() -> None:
    """Settings of `ssmdiag check`."""


@app.command("show", cls=Command, short_help="The settings in effect, as an ssmdiag.toml.")
def show(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="This file, not the nearest ssmdiag.toml.")
    ] = None,
    isolated: Isolated = False,
) -> None:
    """Print the settings in effect as an ssmdiag.toml, each with where it comes from."""
    from ssmdiag.check.configuration import read_configuration
    from ssmdiag.check.configuration_text import as_toml
    from ssmdiag.output.writer import keep_streams_off

    settings = read_configuration(working_folder(), config, isolated)
    if settings.path is not None and settings.path.stat().st_size:  # `config show > ssmdiag.toml` begins one
        keep_streams_off([settings.path])
    terminal.emit(as_toml(settings), None)
