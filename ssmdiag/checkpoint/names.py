"""Stored names → the names families look for.

Training wrappers insert elements in the middle of a dotted path, JAX trees use slashes. Both are
undone here; families then match on the end of a name.
"""

from __future__ import annotations

import re
from collections import Counter

WRAPPERS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "module",  # DistributedDataParallel, DataParallel, AveragedModel
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning strategies
        "_fp32_params",  # Automodel's float32 holder around A_log, D, dt_bias
    }
)
"""Path elements that wrappers insert; removed wherever they stand as a whole element."""

_PARAMETRIZED = re.compile(r"(?P<dot>^|\.)parametrizations\.(?P<name>[^.]+)\.original$")


def clean_names(stored: list[str]) -> list[str]:
    """Return one cleaned, dotted name for each stored name, without collisions.

    Where two stored names would become one (an average beside the live weights, say), the
    longer of the two keeps its own.
    """
    separator = _separator(stored)
    dotted = [name.replace(separator, ".") for name in stored]
    cleaned = [_clean(name) for name in dotted]
    count = Counter(cleaned)
    taken: set[str] = {name for name, times in count.items() if times == 1}
    result = list(cleaned)
    for position in sorted(range(len(stored)), key=lambda i: (len(stored[i]), stored[i])):
        if count[cleaned[position]] == 1:
            continue
        name = cleaned[position] if cleaned[position] not in taken else dotted[position]
        while name in taken:
            name += "_"
        taken.add(name)
        result[position] = name
    return result


def parametrized(stored_name: str) -> str | None:
    """Return the attribute whose torch parametrisation this is the raw weight of, if it is one.

    >>> parametrized("layer.parametrizations.A_log.original")
    'A_log'
    """
    found = _PARAMETRIZED.search(stored_name)
    return found.group("name") if found else None


def layer_numbers(name: str) -> tuple[int, ...]:
    """Return the whole numbers among the path elements, for natural sorting.

    >>> layer_numbers("model.layers.10.mixer"), layer_numbers("encoder.layers_3.seq")
    ((10,), (3,))
    """
    found = (re.fullmatch(r"(?:.*_)?(\d+)", element) for element in name.split("."))
    return tuple(int(match.group(1)) for match in found if match)


def _separator(stored: list[str]) -> str:
    if any("/" in name for name in stored):
        return "/"
    # npz member names cannot hold a slash on some systems, so exporters write two underscores.
    if stored and not any("." in name for name in stored) and any("__" in name for name in stored):
        return "__"
    return "."


def _clean(name: str) -> str:
    name = _PARAMETRIZED.sub(r"\g<dot>\g<name>", name)
    elements = [element for element in name.split(".") if element not in WRAPPERS]
    if elements[:2] == ["base_model", "model"]:  # PEFT
        elements = elements[2:]
    return ".".join(elements) or name
