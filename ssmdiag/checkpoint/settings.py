"""Settings under flat, dotted names, within limits of size; settings in JSON are flattened here.

What a file stores beside its weights can be nested without end, or be a table of data and no setting. So there are
limits on the depth and length of paths, on the size of lists and texts, and on the number of entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MOST_SETTINGS, DEEPEST_SETTING = 200_000, 32
"""Most entries looked at in one file, elements of lists included, and how deep."""
LONGEST_PATH, LONGEST_TEXT, LONGEST_LIST, DEEPEST_LIST = 1000, 100_000, 10_000, 8
"""Most characters of a path and of a text, most elements of a list (nested ones included), and how deep; a value with
more is not a setting."""
Open = Callable[[Any], Any]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names; everything else is a leaf.

    >>> flatten({"d_model": 8, "ssm": {"dt": [0.1, 1]}})
    {'d_model': 8, 'ssm.dt': [0.1, 1]}
    """
    return leaves(tree, (prefix,) if prefix else ())


def leaves(
    tree: Any, prefix: tuple[str, ...], opened: Open = lambda value: value, listed: Open = lambda value: value
) -> dict[str, Any]:
    """Return the leaves of a tree; `opened` returns an object's content, `listed` the form of a mapping or a list."""
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
    """Return the size of a leaf; None where it exceeds that of a setting or is of another type."""
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
