"""A run over many checkpoints: which of them are its own, which an earlier run did, what became of all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ssmdiag.checkpoint.budget import MOST_BASELINE, MOST_TOML, read_text
from ssmdiag.cli import terminal
from ssmdiag.cli.path_list import Shard, expand
from ssmdiag.cli.tally import Tally
from ssmdiag.errors import SsmdiagError
from ssmdiag.reports.json import pick
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.check.configuration import Configuration
    from ssmdiag.checkpoint.location import Location
    from ssmdiag.cli.diagnosing import Options
    from ssmdiag.output.writer import Target
    from ssmdiag.reports import Settings


class Many:
    """The paths of one command, by its arguments and the options on many. Raises SsmdiagError for a bad list."""

    def __init__(
        self, arguments: Sequence[Location], jobs: int | None, shard: Shard | None, resume: bool, retry_errors: bool
    ) -> None:
        if retry_errors and not resume:
            raise SsmdiagError("--retry-errors is for --resume, which is not given.", advice="add --resume.")
        paths, lists = expand(arguments)
        self.reads = [*paths, *lists]
        """What the command reads, or another of its shards does."""
        self.own = shard.take(paths) if shard else paths
        self.tally = Tally()
        self._resume, self._retry_errors = resume, retry_errors
        self._asked = bool(jobs or shard or resume or lists)

    def left(
        self, target: Target | None, settings: Settings, format: str, *, fail_on: str | None, alone: bool = True
    ) -> list[Location]:
        """Return the paths to be diagnosed; with --resume, those that the file of lines lacks.

        `alone`: nothing else is made of the results, neither a copy nor a baseline. Raises SsmdiagError.
        """
        if not self._resume:
            return self.own
        if target is None or format != "jsonl":
            raise SsmdiagError("--resume continues a file of JSON lines.", expected="--format jsonl --output FILE")
        if not alone:
            raise SsmdiagError(
                "--resume continues one file of JSON lines; a copy or a baseline would lack what was done before.",
                expected="neither --also nor a baseline",
            )
        from ssmdiag.cli.resuming import remaining

        assert settings.run is not None
        return remaining(target, self.own, settings.run, self.tally, fail_on=fail_on, retry_errors=self._retry_errors)

    def finish(self, fail_on: str | None, *, quiet: bool) -> NoReturn:
        """Say on stderr what became of all, where one of the options on many was given, and exit with their code."""
        if self._asked and not quiet:
            terminal.remark(self.tally.sentence(fail_on))
        raise typer.Exit(self.tally.code)


def said(
    command: str, options: Options, configuration: Configuration | None = None, probe: Path | None = None
) -> dict[str, Any]:
    """Return what decides a report, besides the checkpoint; of a map and a probe a digest."""
    run = {
        **{"command": command, "ssmdiag_version": __version__},
        **pick(options, "device length every_channel assume"),
        "map": _digest(options.map_file, MOST_TOML),
    }
    if configuration:
        run |= pick(configuration, "select ignore thresholds per_layer_ignores")
        run |= {"probe": _digest(probe, MOST_BASELINE), "baseline": configuration.baseline is not None}
    return run


def _digest(path: Path | None, most: int) -> str | None:
    """Return the start of a text's SHA-256; None where it cannot be read, which whoever needs it reports."""
    try:
        return None if path is None else hashlib.sha256(read_text(path, most).encode()).hexdigest()[:16]
    except OSError:
        return None
