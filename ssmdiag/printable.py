r"""The only escape function: makes text from a file safe for a terminal and for the log of a CI runner.

A name may hold ESC, line ends, characters that reverse the direction of a line, or text that a CI runner reads as a
command (`::add-mask::` at the start of a line; `##[`, `##vso[`, `##teamcity[` anywhere). Text is escaped in two places:

    printable(text)          where names enter a report or a message: the result is one line
    printable_record(record) the same for every string of a result, so that no field can be forgotten
    harmless(text)           where a text goes to a stream or a file: its own line ends and colours stay

An escape is `\uXXXX`, as in JSON: `harmless` changes no value of a JSON text, and names are read back exactly.
Greek, Chinese, emoji and box-drawing characters are safe and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar

# Control characters but tab and line feed; soft hyphen, fillers and other zero-width characters; direction marks; line
# and paragraph separators; lone surrogates; tags.
_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f"
)
# Joiners belong to emoji and some scripts; next to ASCII they are invisible.
_JOINER = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
_COMMAND = r"#(?=#\w*\[)"

_IN_NAMES = re.compile(rf"[{_HIDDEN}\t\n]|{_JOINER}|{_COMMAND}")
_IN_TEXT = re.compile(rf"[{_HIDDEN}]|{_JOINER}|{_COMMAND}")
_IN_COLOURED_TEXT = re.compile(rf"\x1b\[[0-9;]*m|{_IN_TEXT.pattern}")
_AT_START = re.compile(r"^((?:\x1b\[[0-9;]*m|[^\S\n])*):(?=:)", re.MULTILINE)
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}

Record = TypeVar("Record")


def printable(text: str) -> str:
    r"""Return text as one line in which every character shows.

    >>> print(printable("layers.0\n::add-mask::\x1b[31m"), printable("σ_层.🙂"))
    layers.0\n::add-mask::\u001b[31m σ_层.🙂
    """
    return _IN_NAMES.sub(lambda found: _SHORT.get(found[0]) or _code(found[0]), text)


def harmless(text: str, *, colours: bool = False, commands: bool = False) -> str:
    r"""Return text in which only our own layout has an effect: line ends, tabs and, if requested, colours.

    `commands`: the text is a list of workflow commands, whose lines may start with `::`.

    >>> print(harmless("a\r\u202e\n ::add-mask::x"))
    a\u000d\u202e
     \u003a:add-mask::x
    """
    shown = (_IN_COLOURED_TEXT if colours else _IN_TEXT).sub(_shown, text)
    return shown if commands else _AT_START.sub(lambda found: f"{found[1]}\\u003a", shown)


def printable_record(record: Record) -> Record:
    """Return a result with every string in it made printable; the same object where nothing changes.

    Goes through dataclasses, mappings, sequences and paths; tensors, numbers and enum members are left unchanged.
    """
    return _of(record, {})


_NUMBERS = frozenset({float, int, bool, type(None)})
"""Types of what is most of a result, and holds no text."""


def _of(value: Any, seen: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _NUMBERS or (kind is tuple and _NUMBERS.issuperset(map(type, value))):
        return value
    if isinstance(value, str):
        return value if isinstance(value, Enum) else printable(value)
    if value is None or isinstance(value, int | float | complex | Enum | type):
        return value
    if id(value) not in seen:
        seen[id(value)] = _compound(value, seen)
    return seen[id(value)]


def _compound(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, PurePath):
        path = printable(str(value))
        return value if path == str(value) else type(value)(path)
    if isinstance(value, Mapping):
        items = {_of(key, seen): _of(item, seen) for key, item in value.items()}
        same = all(a is c and b is d for (a, b), (c, d) in zip(items.items(), value.items(), strict=False))
        return value if same and len(items) == len(value) else items
    if isinstance(value, list | tuple):
        parts = [_of(item, seen) for item in value]
        if all(a is b for a, b in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value):
        return _dataclass(value, seen)
    return value


def _dataclass(value: Any, seen: dict[int, Any]) -> Any:
    changed = {}
    for field in fields(value):
        before = getattr(value, field.name)
        if (after := _of(before, seen)) is not before:
            changed[field.name] = after
    if not changed:
        return value
    new = copy(value)
    kept = getattr(new, "__dict__", {})
    for name in kept.keys() - {field.name for field in fields(value)}:
        del kept[name]  # a cached property of the raw strings
    for name, after in changed.items():
        object.__setattr__(new, name, after)
    return new


def _shown(found: re.Match[str]) -> str:
    return found[0] if len(found[0]) > 1 else _code(found[0])


def _code(character: str) -> str:
    """Return a character as `\\uXXXX`; one beyond 16 bits as the two halves that JSON writes."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def module_name(path: str) -> str:
    """Return what a sentence calls a module. The path of a layer with no model around it is empty, but for a branch.

    >>> [module_name(path) for path in ("layers.0.mixer", "", "(backward)")]
    ['layers.0.mixer', 'the model itself', 'the model itself (backward)']
    """
    return path if path and not path.startswith("(") else f"the model itself {path}".rstrip()


def plural(count: int | str, noun: str) -> str:
    """Return a count and what it counts; a count that is written already stays so.

    >>> plural(1, "layer"), plural(2000, "layer"), plural("1", "step"), plural("0.5", "step")
    ('1 layer', '2,000 layers', '1 step', '0.5 steps')
    """
    said = count if isinstance(count, str) else f"{count:,}"
    return f"{said} {noun}{'s' * (said != '1')}"


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first names for a message, with an ellipsis where there are more.

    >>> first_of(["a", "b"]), first_of(["a", "b", "c", "d"])
    ('a, b', 'a, b, c …')
    """
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def without_secrets(command: str) -> str:
    """Return a command without what opens an account: a password or a signature in an address.

    >>> without_secrets("ssmdiag inspect https://me:pass@host/m.pt?X-Signature=1 -o r.html")
    'ssmdiag inspect https://…@host/m.pt?… -o r.html'
    """
    command = re.sub(r"(?<=://)[^/\s@]+@", "…@", command)
    return re.sub(r"(://[^\s?'\"]*\?)[^\s'\"]+", r"\1…", command)
