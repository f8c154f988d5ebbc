"""Settings of `ssmdiag check`: ssmdiag.toml, or [tool.ssmdiag] of pyproject.toml, and what the command line says.

    select = ["SSM1", "unstable-mode"]      # all rules where absent
    ignore = ["SSM205"]
    fail-on = "warning"
    format = "text"
    context-length = 4096
    baseline = "ssmdiag-baseline.json"      # beside this file

    [thresholds.SSM205]
    spread = 0.2

    [per-layer-ignores]
    "encoder.*" = ["SSM2"]

The file is the first one found from the working directory upwards; ssmdiag.toml wins over pyproject.toml beside it. A
unknown key is an error: a misspelt threshold must not seem to be set. Imports no torch.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.budget import MOST_TOML, parse_toml, read_text, shortened
from ssmdiag.errors import ConfigurationError
from ssmdiag.reports import formats
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import SEVERITIES
from ssmdiag.rules.selection import Selection, codes_of, select_rules

NAME = "ssmdiag.toml"
LONGEST_NAME = 100
"""Characters of an unknown name that are compared with the known ones."""
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Configuration:
    """The settings in effect. Make it with `read_configuration`."""

    select: tuple[str, ...] = ()
    """Codes, starts of codes or names; all rules where empty."""
    ignore: tuple[str, ...] = ()
    fail_on: str = "error"
    """Least severity that fails a check."""
    format: str = "text"
    context_length: int | None = None
    """Steps; None: the checkpoint's own settings decide."""
    baseline: Path | None = None
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By rule (as written in the file), then by name."""
    per_layer_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rules left out, by glob pattern of the layer's path."""
    path: Path | None = None
    """The file they come from."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where a setting comes from, by its key in the file; absent for a default."""

    def selection(self) -> Selection:
        """Return the rules to run, with their thresholds.

        Raises ConfigurationError for a rule or threshold that does not exist, or where no rule is left.
        """
        selection = select_rules(
            select=self.select, ignore=self.ignore, thresholds=self.thresholds, layer_ignores=self.per_layer_ignores
        )
        if not selection.rules:
            raise ConfigurationError(
                f"no rule is left to run: select is {list(self.select)}, ignore is {list(self.ignore)}.",
                advice="`ssmdiag config show` says where each comes from.",
            )
        return selection

    def overridden(
        self,
        *,
        select: Sequence[str] | None = None,
        ignore: Sequence[str] | None = None,
        fail_on: str | None = None,
        format: str | None = None,
        context_length: int | None = None,
        baseline: Path | None = None,
    ) -> Configuration:
        """Return the settings with those of the command line over them; None or an empty list means not given.

        A rule selected here runs even if the file ignores it; rules ignored here add to the file's.
        """
        given: dict[str, Any] = {
            "fail_on": fail_on, "format": format, "context_length": context_length, "baseline": baseline,
        }  # fmt: skip
        given = {key: value for key, value in given.items() if value is not None}
        sources = {**self.sources, **{key.replace("_", "-"): COMMAND_LINE for key in given}}
        if select:
            given |= {"select": tuple(select), "ignore": ()}
            sources |= {"select": COMMAND_LINE}
            sources.pop("ignore", None)
        if ignore:
            kept = given.get("ignore", self.ignore)
            given["ignore"] = (*kept, *(key for key in ignore if key not in kept))
            sources["ignore"] = f"{sources['ignore']}, {COMMAND_LINE}" if kept and "ignore" in sources else COMMAND_LINE
        return replace(self, **given, sources=sources)


def read_configuration(start: Path, explicit: Path | None = None, isolated: bool = False) -> Configuration:
    """Return the settings in the file nearest to `start`, in `explicit`, or, if `isolated`, the defaults.

    Raises ConfigurationError where a file cannot be read or has invalid settings.
    """
    if isolated and explicit:
        raise ConfigurationError(f"--isolated and --config {explicit} exclude each other.", advice="give one.")
    path = None if isolated else explicit or find_configuration(start)
    if path is None:
        return Configuration()
    data = _load(path)
    own = _section(path, data)
    if own is None and path.name == "pyproject.toml":
        raise ConfigurationError(f"{path} has no [tool.ssmdiag].", advice="add it, or give another file.")
    return _interpret(path, data if own is None else own)


def find_configuration(start: Path) -> Path | None:
    """Return the nearest file with settings in a directory or those above it, or None. Raises ConfigurationError."""
    start = start.absolute()
    for directory in (start, *start.parents):
        if os.path.lexists(directory / NAME):  # an entry that is not a file is an error, not skipped
            return directory / NAME
        project = directory / "pyproject.toml"
        if project.is_file() and _section(project, _load(project)) is not None:
            return project
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path, MOST_TOML))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or error}.", advice="check the path, or give --isolated."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.", advice=_CORRECT) from error


def _section(path: Path, data: Mapping[str, Any]) -> dict[str, Any] | None:
    tool = data.get("tool")
    section = tool.get("ssmdiag") if isinstance(tool, dict) else None
    if section is not None and not isinstance(section, dict):
        raise _mistyped(path, "tool.ssmdiag", section, "a table")
    return section


def _interpret(path: Path, data: Mapping[str, Any]) -> Configuration:
    """Return the settings of one table, every key and every type checked."""
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in data.items():
        if key not in _SETTINGS:
            raise _unknown(path, key, "", _SETTINGS)
        settings[key.replace("-", "_")] = _SETTINGS[key](path, key, value)
        sources[key] = path.name
        if key == "thresholds":
            sources |= {f"{key}.{rule}.{name}": path.name for rule, limits in value.items() for name in limits}
    return Configuration(**settings, path=path, sources=sources)


def _rules(path: Path, key: str, value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise _mistyped(path, key, value, 'an array of rules, such as ["SSM1", "unstable-mode"]')
    for item in value:
        _codes(path, key, item)
    return tuple(value)


def _codes(path: Path, key: str, rule: str) -> set[str]:
    try:
        return codes_of([rule])
    except ConfigurationError as error:
        names = [name for known in known_rules() for name in (known.code, known.name)]
        raise _unknown(path, rule, key, names, kind="rule", expected=error.expected) from error


def _one_of(choices: Callable[[], Collection[str]]) -> Callable[[Path, str, Any], str]:
    def check(path: Path, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _mistyped(path, key, value, f"one of {', '.join(choices())}")
        if value not in choices():
            raise _unknown(path, value, key, choices(), kind="value")
        return value

    return check


def _context_length(path: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**40:
        raise _mistyped(path, key, value, "a number of steps, at least 1 and at most 2**40")
    return value


def _beside(path: Path, key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise _mistyped(path, key, value, "the path of a file, relative to this one")
    return path.absolute().parent / value


def _thresholds(path: Path, key: str, value: Any) -> dict[str, dict[str, float]]:
    limits: dict[str, dict[str, float]] = {}
    for rule, values in _table(path, key, value, f"[{key}.RULE] with a rule's thresholds").items():
        where = f"{key}.{rule}"
        known = set.intersection(*({*r.thresholds} for r in known_rules() if r.code in _codes(path, key, rule)))
        for name, number in _table(path, where, values, "a table of thresholds").items():
            if name not in known:
                expected = None if known else f"nothing: {rule} has no threshold"
                raise _unknown(path, name, where, known, kind="threshold", expected=expected)
            if not isinstance(number, int | float) or isinstance(number, bool) or math.isnan(number):
                raise _mistyped(path, f"{where}.{name}", number, "a number")
            limits.setdefault(rule, {})[name] = float(number)
    return limits


def _layer_ignores(path: Path, key: str, value: Any) -> dict[str, tuple[str, ...]]:
    table = _table(path, key, value, '"layer.*" = ["SSM205"], by glob pattern of the layer\'s path')
    return {glob: _rules(path, f'{key}."{glob}"', rules) for glob, rules in table.items()}


def _table(path: Path, key: str, value: Any, expected: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _mistyped(path, key, value, expected)
    return value


_SETTINGS: dict[str, Callable[[Path, str, Any], Any]] = {
    "select": _rules,
    "ignore": _rules,
    "fail-on": _one_of(lambda: SEVERITIES),
    "format": _one_of(formats),
    "context-length": _context_length,
    "baseline": _beside,
    "thresholds": _thresholds,
    "per-layer-ignores": _layer_ignores,
}

_CORRECT = "correct it, or ignore it with --isolated."
_TYPES = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "a table"}


def _mistyped(path: Path, key: str, value: Any, expected: str) -> ConfigurationError:
    kind = _TYPES.get(type(value), "a date or a time")
    shown = f" {shortened(repr(value))}," if isinstance(value, str | int | float) else ""
    return ConfigurationError(f"{path}: {key} is{shown} {kind}.", expected=expected, advice=_CORRECT)


def _unknown(
    path: Path, name: str, where: str, known: Iterable[str], *, kind: str = "key", expected: str | None = None
) -> ConfigurationError:
    known = sorted(known) if isinstance(known, set) else list(known)
    near = [name.lower()[:LONGEST_NAME], name.upper()[:LONGEST_NAME]]
    close = [match for spelt in near for match in difflib.get_close_matches(spelt, known, n=1)]
    return ConfigurationError(
        f"{path}: {where + ': ' if where else ''}unknown {kind} {shortened(repr(name))}.",
        expected=expected or ", ".join(known),
        advice=f"did you mean {close[0]}?" if close else None,
    )
