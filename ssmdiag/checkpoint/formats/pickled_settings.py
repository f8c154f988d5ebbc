"""Settings in the plain data of a pickle: flattens omegaconf, Namespace and other objects, resolves references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ssmdiag.checkpoint.formats.inert_pickle import StandIn
from ssmdiag.checkpoint.settings import LONGEST_LIST, leaves

_SETTING = (str, int, float, list, tuple, Mapping, type(None))
_REFERENCE = re.compile(r"\$\{(.*)\}")
_LONGEST_REFERENCE, _MOST_ATTRIBUTES = 1000, 256


def settings_of(tree: Any) -> dict[str, Any]:
    """Return settings under flat, dotted names, those in omegaconf, Namespace and other objects included."""
    flat = leaves(tree, (), _plain, _listed)
    return {key: value for key, value in _followed(flat) if not _reference(value)}


def _listed(value: Any) -> Any:
    """Return a list with its objects unwrapped; a list of mappings as one mapping, by their positions."""
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
    return found[1] if short and (found := _REFERENCE.fullmatch(value)) else None


def _plain(value: Any) -> Any:
    """Return the content of an object of an unknown class: its attributes, its items or the one value it holds."""
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
    member = isinstance(value, type) and issubclass(value, StandIn) and value.attribute  # of an enum, by its name
    return member or value


def _attributes(state: Any) -> Any:
    """Return the attributes of an object, both in slots and in its dict."""
    if not (isinstance(state, tuple) and len(state) == 2):
        return state
    parts = [part for part in state if isinstance(part, Mapping) and part]
    if len(parts) == 2 and sum(map(len, parts)) <= _MOST_ATTRIBUTES:
        return {**parts[0], **parts[1]}
    return parts[0] if parts else None
