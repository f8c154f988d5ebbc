"""Stored names → the names families look for.

Training wrappers insert elements in the middle of a dotted path, JAX trees use slashes, boxes of flax (Partitioned, the
variables of an nnx.State) add an element at the end. All are undone here; families then match on the end of a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.errors import CheckpointError

WRAPPERS = frozenset({
    "_orig_mod",  # torch.compile
    "module",  # DistributedDataParallel, DataParallel, AveragedModel
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning strategies
    "_fp32_params",  # Automodel's float32 holder around A_log, D, dt_bias
    "base_layer",  # PEFT: the frozen weight beside its adapter
})  # fmt: skip
"""Path elements that wrappers insert; removed wherever one is a whole element."""

LONGEST_NAME, MOST_ELEMENTS, MOST_NAMES = 1024, 64, 250_000
"""Most characters and path elements of a tensor's name, and most names in a file."""
Path = tuple[Any, Any] | None
"""A path as (path before, key): names that are never needed take no memory."""
_VALUE = ".value"
_BRACKETS = re.compile(r"""\[['"]?([^\[\]'"]*)['"]?\]""")
_PARAMETRIZED = re.compile(r"(?P<dot>^|\.)parametrizations\.(?P<name>[^.]+)\.original$")


def require_short_names(file: str, stored: Collection[str]) -> None:
    """Raise CheckpointError where a file's names are longer, or more numerous, than in any model."""
    if len(stored) > MOST_NAMES:
        raise CheckpointError(f"{file} has {len(stored):,} tensors.", expected=f"at most {MOST_NAMES:,} in a file")
    for name in stored:
        if len(name) > LONGEST_NAME or sum(map(name.count, "./[")) >= MOST_ELEMENTS:
            raise CheckpointError(
                f"{file} has a tensor whose name has {len(name):,} characters: {shortened(name, 60)}",
                expected=f"at most {LONGEST_NAME:,}, in at most {MOST_ELEMENTS} elements",
                advice="save the file again under the model's own names.",
            )


def clean_names(stored: list[str]) -> list[str]:
    """Return one cleaned, dotted name for each stored name, without collisions.

    Where two stored names would become one (say, an average beside the live weights), the
    shortest is cleaned and the others keep their own.
    """
    separator = _separator(stored)
    dotted = _without_value([_dotted(name, separator) for name in stored])
    result = [_clean(name) for name in dotted]
    count = Counter(result)
    if len(count) == len(stored):
        return result
    taken = {name for name, times in count.items() if times == 1}
    used: Counter[str] = Counter()
    rivals = [position for position, name in enumerate(result) if count[name] > 1]
    for position in sorted(rivals, key=lambda i: (len(stored[i]), stored[i])):
        name = base = result[position] if result[position] not in taken else dotted[position]
        while name in taken:
            used[base] += 1
            name = f"{base}_" if used[base] == 1 else f"{base}_{used[base]}"
        taken.add(name)
        result[position] = name
    return result


def join(path: str, local: str) -> str:
    """Return the full name of a tensor or module in the module at a path; the path may be empty.

    >>> join("layers.0", "A_log"), join("", "A_log")
    ('layers.0.A_log', 'A_log')
    """
    return f"{path}.{local}" if path else local


def path_name(path: Path) -> str:
    """Return a path through nested mappings as a dotted name, each key cut beyond the longest name allowed."""
    keys: list[str] = []
    while path is not None:
        path, key = path
        keys.append(str(key)[: LONGEST_NAME + 1])
    return ".".join(reversed(keys))


def parametrized(stored_name: str) -> str | None:
    """Return the attribute that this raw weight of a torch parametrisation belongs to; None for any other name.

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
    found = (re.fullmatch(r"(?:.*_)?(\d{1,15})", element) for element in name.split("."))
    return tuple(int(match.group(1)) for match in found if match)


def _separator(stored: list[str]) -> str:
    if any("/" in name for name in stored):  # JAX trees, Orbax
        return "/"
    # npz member names cannot hold a slash on some systems, so exporters write two underscores.
    if stored and not any("." in name for name in stored) and any("__" in name for name in stored):
        return "__"
    return "."


def _without_value(dotted: list[str]) -> list[str]:
    """Return names without the last element `value` where all have it, as every leaf of flax's nnx.State has."""
    if all(name.endswith(_VALUE) and len(name) > len(_VALUE) for name in dotted):
        return [name.removesuffix(_VALUE) for name in dotted]
    return dotted


def _dotted(name: str, separator: str) -> str:
    if "[" in name:  # jax.tree_util.keystr: ['params']['layers'][0].A
        name = _BRACKETS.sub(r".\1", name)
    return name.replace(separator, ".").strip(".") or name


def _clean(name: str) -> str:
    if ".parametrizations." in name or name.startswith("parametrizations."):
        name = _PARAMETRIZED.sub(r"\g<dot>\g<name>", name)
    elements = name.split(".")
    if WRAPPERS.isdisjoint(elements) and elements[0] != "base_model":
        return name
    kept = [element for element in elements if element not in WRAPPERS]
    if kept[:2] == ["base_model", "model"]:  # PEFT
        kept = kept[2:]
    return ".".join(kept) or name
