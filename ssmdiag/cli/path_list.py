"""Which checkpoints a command takes of many: lists in files, one share of a job array, how many at a time."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ssmdiag.errors import SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location

Named = TypeVar("Named")
MOST_LIST = 256 << 20
"""Most bytes of a list: two million paths."""
LIST = "@"
"""What the name of a list begins with; a checkpoint that has such a name is given by its absolute path."""


@dataclass(frozen=True)
class Shard:
    """One share of the checkpoints: number `number` of `of`, from 1."""

    number: int = 1
    of: int = 1

    def take(self, paths: Sequence[Named]) -> list[Named]:
        """Return every `of`-th path, in their order; each is in exactly one shard.

        >>> [Shard(number, 3).take("abcde") for number in (1, 2, 3)]
        [['a', 'd'], ['b', 'e'], ['c']]
        """
        return list(paths[self.number - 1 :: self.of])


def parse_shard(text: str) -> Shard:
    """Return the shard `i/n`. Raises BadParameter unless 1 ≤ i ≤ n."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= shard.number <= shard.of:
        raise typer.BadParameter(f"{text!r} is no shard; expected i/n with 1 <= i <= n, such as 1/8 or 8/8.")
    return shard


def parse_jobs(text: str) -> int:
    """Return how many processes are asked for; `auto` or 0: one for each core. Raises BadParameter."""
    if text in ("auto", "0"):
        return cores()
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise typer.BadParameter(f"{text!r} is no number of processes; expected 1 or more, or auto.")
    return int(text)


def cores() -> int:
    """Return how many of the processor's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        parser=parse_jobs,
        help="Processes, of one thread each; auto: one for each core. One that is killed costs one checkpoint.",
    ),
]
OneShard = Annotated[
    Shard | None,
    typer.Option(
        "--shard", metavar="I/N", parser=parse_shard, help="Only the I-th of N shares of the paths, for job arrays."
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Only what the lines of --output lack; the same settings as before."),
]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="With --resume: also what could not be read before.")]


def expand(arguments: Sequence[Location]) -> tuple[list[Location], list[Path]]:
    """Return the paths, each `@FILE` replaced by those in it, one a line, and the files of lists; `@-` is stdin.

    Raises SsmdiagError for a list that cannot be read, and where all lists are empty.
    """
    from ssmdiag.checkpoint.location import locate

    paths: list[Location] = []
    lists: list[Path] = []
    for argument in arguments:
        name = os.fspath(argument)
        if not name.startswith(LIST):
            paths.append(argument)
            continue
        paths += [locate(line) for line in _lines(name)]
        if name != f"{LIST}-":
            lists.append(Path(name.removeprefix(LIST)))
    if not paths:
        raise SsmdiagError(f"{', '.join(map(os.fspath, arguments))}: no path is in it.", expected="a path on each line")
    return paths, lists


def _lines(name: str) -> list[str]:
    file = name.removeprefix(LIST)
    advice = "give the absolute path of a checkpoint whose name begins with @."
    try:
        if file == "-":
            content = sys.stdin.buffer.read(MOST_LIST + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(MOST_LIST + 1)
    except OSError as error:
        raise SsmdiagError(
            f"{name}: the list {file or 'without a name'} cannot be read ({error.strerror or error}).",
            expected="a file with a path on each line",
            advice=advice,
        ) from error
    if len(content) > MOST_LIST or b"\0" in content:
        seen = "it holds bytes of value 0" if b"\0" in content else f"it has more than {MOST_LIST:,} bytes"
        raise SsmdiagError(f"{name}: {seen}, so it is no list of paths.", expected="a path on each line", advice=advice)
    lines = [line.removesuffix(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    return [os.fsdecode(line) for line in lines if line.strip()]


def unquoted(paths: Any) -> SsmdiagError | None:
    """Return the error for a path with a space in it that a shell took for two."""
    given = [os.fspath(path) for path in paths or () if isinstance(path, Path)]
    for first, second in pairwise(given):
        whole = f"{first} {second}"
        if not os.path.lexists(first) and os.path.lexists(whole):
            return SsmdiagError(
                f"{first} does not exist; {whole} does, and a name with a space needs quotes.",
                advice=f"put it in quotes: {shlex.quote(whole)}",
                instead=(f"{first}\0{second}", whole),
            )
    return None
