"""Settings, flat and dotted, from JSON and from the plain data of a pickle: as much of them as settings can be.

What a file keeps beside its weights can be nested without end, or be a table and no setting: paths have a depth and a
length, lists and texts a size, and there is a most of everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ssmdiag.checkpoint.inert_pickle import StandIn

MOST_SETTINGS, DEEPEST_SETTING = 200_000, 32
"""Entries looked into in one file, elements of lists included, and how deep."""
LONGEST_PATH, LONGEST_TEXT, LONGEST_LIST, DEEPEST_LIST = 1000, 100_000, 10_000, 8
"""Characters of a path and of a text, elements of a list with all that is in it, and how deep; what has more is no
setting."""
_SETTING = (str, int, float, list, tuple, Mapping, type(None))
_REFERENCE = re.compile(r"\$\{(.*)\}")
_LONGEST_REFERENCE, _MOST_ATTRIBUTES = 1000, 256
_Open = Callable[[Any], Any]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names; everything else is a leaf.

    >>> flatten({"d_model": 8, "ssm": {"dt": [0.1, 1]}})
    {'d_model': 8, 'ssm.dt': [0.1, 1]}
    """
    return _leaves(tree, (prefix,) if prefix else (), _as_it_is, _as_it_is)


def settings_of(tree: Any) -> dict[str, Any]:
    """Return settings flat and dotted, with omegaconf, Namespace and other objects opened."""
    flat = _leaves(tree, (), _plain, _listed)
    return {key: value for key, value in _followed(flat) if not _reference(value)}


def _leaves(tree: Any, prefix: tuple[str, ...], opened: _Open, listed: _Open) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    room = MOST_SETTINGS
    waiting: list[tuple[tuple[str, ...], Any]] = [(prefix, tree)]
    while waiting and room > 0:
        path, value = waiting.pop()
        value = opened(value)
        room -= 1
        if isinstance(value, (Mapping, list, tuple)):
            if len(value) > room:
                continue
            room -= len(value)
            value = listed(value)
        if isinstance(value, Mapping):
            if len(path) < DEEPEST_SETTING:
                waiting += reversed([((*path, str(key)), item) for key, item in value.items()])
        elif path and sum(map(len, path)) + len(path) <= LONGEST_PATH:
            cost = _cost(value, min(room, LONGEST_LIST))
            if cost is not None:
                room -= cost
                flat[".".join(path)] = value
    return flat


def _cost(value: Any, most: int) -> int | None:
    """Return how much there is in a leaf, None where it is more than a setting can have or of another kind."""
    if isinstance(value, str):
        return 0 if len(value) <= LONGEST_TEXT else None
    if isinstance(value, (int, float, type(None))):
        return 0
    if not isinstance(value, (list, tuple)):
        return None
    cost = 0
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        cost += len(node)
        if cost > most or depth > DEEPEST_LIST:
            return None
        for item in (*node, *node.values()) if isinstance(node, Mapping) else node:
            if isinstance(item, (Mapping, list, tuple)):
                waiting.append((item, depth + 1))
            elif isinstance(item, (str, bytes)):
                cost += len(item) // 64
    return cost


def _as_it_is(value: Any) -> Any:
    return value


def _listed(value: Any) -> Any:
    """Return a list with its objects opened; one that holds mappings as one mapping, by their numbers."""
    if isinstance(value, Mapping) or len(value) > LONGEST_LIST:
        return value
    items = [item if isinstance(item, _SETTING) else None for item in map(_plain, value)]
    return dict(enumerate(items)) if any(isinstance(item, Mapping) for item in items) else items


def _followed(flat: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings with omegaconf's absolute references, ${model.d_model}, replaced by what they name."""
    for key, value in flat.items():
        for _ in range(8):
            name = _reference(value)
            value = flat.get(name, value) if name else value
        yield key, value


def _reference(value: Any) -> str | None:
    short = isinstance(value, str) and len(value) <= _LONGEST_REFERENCE
    found = _REFERENCE.fullmatch(value) if short else None
    return found[1] if found else None


def _plain(value: Any) -> Any:
    """Return what an object of an unknown class holds: its attributes, its items or the one value it was made of."""
    for _ in range(8):  # wrappers within wrappers
        if not isinstance(value, StandIn):
            break
        state = _attributes(value.state)
        if isinstance(state, Mapping) and state:
            value = state.get("_content", state.get("_val", state))  # omegaconf: container, leaf
        elif value.items is not None:
            value = value.items
        elif len(value.arguments) == 1:  # an enum's value
            value = value.arguments[0]
        else:
            break
    if isinstance(value, type) and issubclass(value, StandIn) and value.attribute:  # a member of an enum, by its name
        return value.attribute
    return value


def _attributes(state: Any) -> Any:
    """Return the attributes of an object, those in slots beside those in its dict."""
    if not (isinstance(state, tuple) and len(state) == 2):
        return state
    parts = [part for part in state if isinstance(part, Mapping) and part]
    if len(parts) == 2 and sum(map(len, parts)) <= _MOST_ATTRIBUTES:
        return {**parts[0], **parts[1]}
    return parts[0] if parts else None
