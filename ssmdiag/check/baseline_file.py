"""The baseline's file: JSON to commit, one finding a line, sorted, so that a diff shows what changed.

    {"schema_version": 1, "tolerance": 0.1, "findings": [{"code", "rule", "layer", "tensor", "family",
     "severity", "count", "of", "value"[, "tolerance"]}, …]}

When it is written (`keep_baseline`): only `--write-baseline` creates it or adds to it, so that no finding is accepted
by accident. A successful run removes fixed findings from it, so that they cannot come back unnoticed. Under CI it is
never written: the change would be lost with the machine, or pushed without review.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ssmdiag.check.baseline import TOLERANCE, Baseline, BaselineComparison, Entry
from ssmdiag.checkpoint.budget import MOST_BASELINE, parse_json, read_text, shortened
from ssmdiag.errors import BaselineError, OutputError
from ssmdiag.output.writer import Target
from ssmdiag.rules.finding import SEVERITIES

SCHEMA_VERSION = 1


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in a file. Raises BaselineError where it is absent, torn or not a baseline."""
    try:
        text = read_text(path, MOST_BASELINE)
    except FileNotFoundError as error:
        raise BaselineError(
            f"baseline {path} does not exist.", advice="create it with --write-baseline, read it, and commit it."
        ) from error
    except OSError as error:
        raise BaselineError(
            f"baseline {path} cannot be read: {error.strerror or error}.",
            expected="a JSON file",
            advice="check the path.",
        ) from error
    if re.search(r"^(<{7}|={7}|>{7})", text, re.MULTILINE):
        raise BaselineError(
            f"baseline {path} contains merge conflict markers.",
            advice="keep the lines of both sides, or write it again with --write-baseline.",
        )
    try:
        data = parse_json(text, parse_constant=_refuse)
    except ValueError as error:
        raise _corrupt(path, f"not JSON ({error})") from error
    return _baseline(path, data)


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline whole, or leave the old one. Raises BaselineError where writing fails."""
    try:
        Target(path, "baseline").write(as_text(baseline))
    except OutputError as error:
        raise BaselineError(error.seen, expected=error.expected, advice=error.advice) from error


def keep_baseline(
    path: Path, comparison: BaselineComparison, *, accept: bool, successful: bool, environment: Mapping[str, str]
) -> str | None:
    """Write the baseline if this run should, and return a remark for the user, or None.

    Parameters
    ----------
    accept
        `--write-baseline`: accept what is new or worse.
    successful
        Every checkpoint was read whole and, unless `accept`, nothing failed the check.
    environment
        `os.environ`; `CI` set to anything but 0 or false forbids writing.

    Raises BaselineError for `accept` under CI, or where the run read only a part.
    """
    in_ci = environment.get("CI", "").lower() not in ("", "0", "false")
    if accept and in_ci:
        raise BaselineError(
            f"--write-baseline: {path} is not written where CI is set.",
            advice="write it on your machine, read the difference, and commit it.",
        )
    if accept and not successful:
        raise BaselineError(
            f"--write-baseline: {path} is not written, as not everything could be read.",
            advice="check why; give only checkpoints that can be read.",
        )
    updated = comparison.updated(accept=accept)
    gone, more = len(comparison.gone), len(comparison.observed) if accept else 0
    if not successful or (updated == comparison.baseline and not (accept and not path.exists())):
        return None
    if in_ci:
        total = len(comparison.baseline.entries)
        return f"{path}: {gone:,} of {total:,} findings are gone; a run outside CI drops them"
    write_baseline(path, updated)
    changes = [f"{count:,} {what}" for count, what in ((more, "accepted"), (gone, "gone and dropped")) if count]
    return f"{path}: {', '.join(changes) or 'created'}, {len(updated.entries):,} in the baseline; commit it"


def as_text(baseline: Baseline) -> str:
    """Return the file's text: layers in natural order, keys in a fixed order."""
    lines = ",".join(f"\n    {_line(entry)}" for entry in sorted(baseline.entries, key=_order))
    head = f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "tolerance": {json.dumps(baseline.tolerance)},\n'
    return head + f'  "findings": [{lines}{chr(10) + "  " if lines else ""}]\n}}\n'


def _line(entry: Entry) -> str:
    data = asdict(entry)
    if entry.tolerance is None:
        del data["tolerance"]
    value = entry.value
    if value is not None and not math.isfinite(value):
        data["value"] = None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _order(entry: Entry) -> tuple[Any, ...]:
    parts = re.split(r"([0-9]{1,18})", entry.key[1])
    return entry.code, [(-1, part) if at % 2 == 0 else (int(part), "") for at, part in enumerate(parts)], entry.key


def _baseline(path: Path, data: Any) -> Baseline:
    if not isinstance(data, dict) or "schema_version" not in data:
        raise _corrupt(path, "no schema_version in it")
    version = data["schema_version"]
    if version != SCHEMA_VERSION:
        raise BaselineError(
            f"baseline {path} has schema_version {shortened(repr(version))}.",
            expected=str(SCHEMA_VERSION),
            advice="upgrade ssmdiag, or write the baseline again with --write-baseline under another name.",
        )
    _only(path, data, {"schema_version", "tolerance", "findings"}, "the baseline")
    if not isinstance(data.get("findings"), list):
        raise _corrupt(path, "findings is not a list")
    tolerance = data.get("tolerance", TOLERANCE)
    if not _is_share(tolerance):
        raise _corrupt(path, f"tolerance is {shortened(repr(tolerance))}, not {_SHARE[1]}")
    entries: dict[tuple[str, str, str], Entry] = {}
    for number, item in enumerate(data["findings"], 1):
        entry = _entry(path, item, f"finding {number}")
        if entry.key in entries:
            raise _corrupt(
                path, f"{shortened(entry.code)} of {shortened(entry.key[1] or 'the checkpoint')} is listed twice"
            )
        entries[entry.key] = entry
    return Baseline(tuple(entries.values()), float(tolerance))


def _entry(path: Path, item: Any, where: str) -> Entry:
    names = [field.name for field in fields(Entry)]
    if not isinstance(item, dict):
        raise _corrupt(path, f"{where} is not an object")
    _only(path, item, set(names), where)
    for name in names:
        if name not in item and name != "tolerance":
            raise _corrupt(path, f"{where} has no {name}")
        fits, expected = _FIELDS[name]
        if name in item and not fits(item[name]):
            raise _corrupt(path, f"{name} of {where} is {shortened(repr(item[name]))}, not {expected}")
    value = item["value"]
    return Entry(**{**item, "value": None if value is None else float(value)})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


_TEXT = (lambda value: isinstance(value, str)), "a string"
_NAME = (lambda value: isinstance(value, str | None)), "a string or null"
_SHARE = _is_share, "a share such as 0.1"
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "code": _TEXT,
    "rule": _TEXT,
    "layer": _NAME,
    "tensor": _NAME,
    "family": _NAME,
    "severity": ((lambda value: value in SEVERITIES), f"one of {', '.join(SEVERITIES)}"),
    "count": (_is_count, "a count"),
    "of": ((lambda value: value is None or _is_count(value)), "a count or null"),
    "value": ((lambda value: value in (None, "inf", "-inf") or _is_number(value)), 'a number, "inf" or null'),
    "tolerance": _SHARE,
}


def _only(path: Path, data: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(data) - known):
        raise BaselineError(
            f"baseline {path}: {where} has an unknown key {shortened(unknown[0])}.",
            expected=", ".join(sorted(known)),
            advice="upgrade ssmdiag if a newer one wrote the file; else correct the key.",
        )


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is no JSON number")


def _corrupt(path: Path, what: str) -> BaselineError:
    return BaselineError(
        f"baseline {path}: {what}.",
        expected=f"what --write-baseline writes, schema_version {SCHEMA_VERSION}",
        advice="restore it (git checkout), or delete it and write it again with --write-baseline.",
    )
