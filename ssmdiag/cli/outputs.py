"""Where a command's reports go, and in which format: the suffix of a file says it, or --format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.cli import terminal
from ssmdiag.errors import OutputError, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location
    from ssmdiag.output.writer import Target
    from ssmdiag.reports import Settings

SUFFIXES = {
    ".json": ("json", "sarif"),
    ".jsonl": ("jsonl",),
    ".ndjson": ("jsonl",),
    ".md": ("markdown",),
    ".markdown": ("markdown",),
    ".html": ("html",),
    ".htm": ("html",),
    ".csv": ("csv",),
    ".svg": ("svg",),
    ".sarif": ("sarif",),
    ".xml": ("junit",),
}
"""Suffix → the formats that it may hold, the one that it stands for first."""
ANY = (".txt", ".log", ".out")
"""Suffixes of every format; text by default."""

Report = Callable[["Settings"], str]


@dataclass(frozen=True)
class Outputs:
    """Where the reports of a command go."""

    format: str
    target: Target | None
    also: Sequence[tuple[str, Target]] = ()

    @property
    def formats(self) -> tuple[str, ...]:
        """All formats, that of the report itself first."""
        return (self.format, *(format for format, _ in self.also))

    def write(self, reports: Mapping[str, Report], settings: Settings) -> None:
        """Write the report, then its copies. Raises OutputError."""
        terminal.emit(reports[self.format](settings), self.target, colours=settings.colour)
        for format, target in self.also:
            terminal.emit(reports[format](replace(settings, colour=False, unicode=True)), target)


def claim(
    output: Path | None,
    also: Sequence[str] | None,
    *,
    format: str | None,
    known: Sequence[str],
    reads: Iterable[Location | None],
    usual: str = "text",
    baseline: Path | None = None,
) -> Outputs:
    """Return where the reports go, each checked before the work.

    `format` is what --format says, `known` the formats of the command, `usual` what it writes where nothing says.
    Raises OutputError for a suffix that is none of theirs or another format's, and for a file that cannot be written.
    """
    chosen = choose_format(output, format, known, usual)
    pairs = parse_also(also, known)
    target, targets = terminal.claim_outputs(output, pairs, reads=reads, format=chosen, baseline=baseline)
    return Outputs(chosen, target, [(form, place) for (form, _), place in zip(pairs, targets, strict=True)])


def choose_format(output: Path | None, format: str | None, known: Sequence[str], usual: str = "text") -> str:
    """Return the format of a report. Raises OutputError where --format and the suffix disagree, or none is known.

    >>> choose_format(Path("r.html"), None, ("text", "html")), choose_format(Path("r"), None, ("text", "html"))
    ('html', 'text')
    """
    suffix = suffix_of(output)
    if output is None or not suffix or suffix in ANY:
        return format or usual
    stands_for = SUFFIXES.get(suffix, ())
    if format is not None:
        if stands_for and format not in stands_for:
            raise OutputError(
                f"--output {output}: {suffix} is {stands_for[0]}, and --format says {format}.",
                expected=f"a file that ends in {_endings([format]) or '.txt'}, or no --format",
                instead=_renamed(output, [format]),
            )
        return format
    if not stands_for or stands_for[0] not in known:
        raise OutputError(
            f"--output {output}: this command writes no {suffix}.",
            expected=f"a file that ends in {_endings(known)} or .txt, or --format",
            instead=_renamed(output, ["html", "svg", *known]),
        )
    return stands_for[0]


def require_folder(output: Path | None) -> None:
    """Raise OutputError where --output, of a command that keeps a run there, has the name of a report."""
    suffix = suffix_of(output)
    if suffix in SUFFIXES and output is not None and not output.is_dir():
        format = SUFFIXES[suffix][0]
        raise OutputError(
            f"--output {output}: is the directory that a run is kept in, and {suffix} is the name of a report.",
            expected="the name of a directory",
            advice=f"--also {format}={output} writes the report there.",
        )


def suffix_of(output: Path | None) -> str:
    """Return the suffix of a report's file in small letters; empty where it has none that could name a format.

    >>> [suffix_of(Path(name)) for name in ("R.HTML", "a.sarif.json", "step-0.5", "/dev/stdout")]
    ['.html', '.sarif', '', '']
    """
    name = output.name.lower() if output is not None else ""
    if name.endswith(".sarif.json"):
        return ".sarif"
    found = re.search(r"\.[a-z][a-z0-9]{0,11}$", name)
    return found[0] if found else ""


def parse_also(pairs: Sequence[str] | None, known: Sequence[str]) -> list[tuple[str, Path]]:
    """Return --also's pairs. Raises SsmdiagError for anything but FORMAT=FILE, and for another format's suffix."""
    formats = [format for format in known if format != "text"]
    parsed = []
    for pair in pairs or ():
        format, _, file = pair.partition("=")
        if format not in formats or not file:
            raise SsmdiagError(f"--also {pair}: not understood.", expected=f"FORMAT=FILE; FORMAT: {', '.join(formats)}")
        stands_for = SUFFIXES.get(suffix_of(Path(file)), ())
        if stands_for and format not in stands_for:
            raise OutputError(
                f"--also {pair}: {suffix_of(Path(file))} is {stands_for[0]}.",
                expected=f"{stands_for[0]}={file}" if stands_for[0] in formats else f"{format}=FILE of another name",
            )
        parsed.append((format, Path(file)))
    return parsed


def _renamed(output: Path, formats: Sequence[str]) -> tuple[str, str]:
    """Return the name of a report, and the same with the suffix of the first of some formats that has one."""
    suffix = next((suffix for format in formats for suffix, held in SUFFIXES.items() if held[0] == format), ".txt")
    return str(output), str(output.with_suffix(suffix))


def _endings(formats: Sequence[str]) -> str:
    return ", ".join(suffix for suffix, held in SUFFIXES.items() if held[0] in formats and suffix not in _OTHERS)


_OTHERS = (".ndjson", ".markdown", ".htm")
"""Suffixes that are understood but not advertised."""
