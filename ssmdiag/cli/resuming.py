"""A file of lines that an earlier run began: what is in it, what is to be done again, why it cannot be continued.

A line is skipped work if it is of the same path, of a file not modified since, and made with the same settings. Lines
on other paths stay.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.cli.diagnosing import modified
from ssmdiag.cli.tally import Tally
from ssmdiag.output.temporaries import replacing
from ssmdiag.output.writer import Target, is_json
from ssmdiag.reports.json import plain
from ssmdiag.rules.finding import SEVERITIES

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location

LONGEST_SHOWN = 80
"""Most characters of a setting in a message."""


def remaining(
    target: Target,
    paths: Sequence[Location],
    settings: Mapping[str, Any],
    tally: Tally,
    *,
    fail_on: str | None,
    retry_errors: bool,
) -> list[Location]:
    """Return the paths that the file has no valid line of, each once, and count the others in the tally.

    Lines to be done again are taken out of the file. Raises OutputError where it was made with other settings, or is no
    such file.
    """
    wanted = {os.fspath(path): path for path in paths}
    now = plain(settings)
    done: set[str] = set()
    dropped: set[int] = set()
    for number, line in _lines(target):
        row = _row(target, number, line)
        _require_same(target, row.get("settings"), now)
        given = row["checkpoint"].get("given")
        if given not in wanted:
            continue
        again = retry_errors and _exit_code(row, None) == 2
        if given in done or again or row["checkpoint"].get("modified") != modified(wanted[given]):
            dropped.add(number)
        else:
            done.add(given)
            tally.add(_exit_code(row, fail_on), earlier=True)
    if dropped:
        kept = (line for number, line in _lines(target) if number not in dropped)
        with target.sentences("the old file is unchanged"), replacing(target.path, durable=True) as temporary:
            _write_lines(temporary, kept)
    return [path for given, path in wanted.items() if given not in done]


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(lines)


def _lines(target: Target) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines and their numbers; a torn last one is dropped when the file is continued."""
    with target.sentences():
        try:
            info = os.stat(target.path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(info.st_mode):
            raise target.refusal("is not a file, so --resume cannot read what is in it", expected="the name of a file")
        with target.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, line
                elif is_json(line):
                    yield number, line + b"\n"


def _row(target: Target, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row["checkpoint"], dict) and isinstance(row["settings"], dict):
            return row
    except (ValueError, KeyError, RecursionError):
        pass
    raise target.refusal(
        f"line {number:,} is no line of a run that can be continued",
        expected="lines that `ssmdiag check` or `inspect` of this version wrote",
        advice="give a new name.",
    )


def _require_same(target: Target, before: Any, now: Mapping[str, Any]) -> None:
    for key in (*now, *before):
        if before.get(key) != now.get(key):
            raise target.refusal(
                f"was begun with other settings: {key} was {_shown(before, key)} and is now {_shown(now, key)}",
                advice="give the same settings, or a new name.",
            )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    text = json.dumps(settings[key]) if key in settings else "not said"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def _exit_code(row: Mapping[str, Any], fail_on: str | None) -> int:
    """Return what `Diagnosis.exit_code` returned of the checkpoint, 2 for a failure."""
    if "error" in row or row.get("problems"):
        return 2
    found = [SEVERITIES.index(finding["severity"]) for finding in row.get("findings", ())]
    return int(fail_on is not None and any(rank >= SEVERITIES.index(fail_on) for rank in found))
