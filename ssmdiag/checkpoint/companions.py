"""Files beside the weights that are read with them: config.json, and those that give the optimiser step."""

from __future__ import annotations

import re
from typing import Any

from ssmdiag.checkpoint.budget import MOST_CONFIG, MOST_TRAINER_STATE, parse_json, read_text, shortened, train_step
from ssmdiag.checkpoint.location import Location


def read_config(directory: Location) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return config.json, remarks if it holds no settings, and the fault if it exists but cannot be read."""
    path = directory / "config.json"
    try:
        if not path.exists() and not path.is_symlink():
            return {}, [], []
        content = parse_json(read_text(path, MOST_CONFIG), object_hook=_special_float)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        said = f"{shortened(str(path), 300)} cannot be read ({reason}); the usual settings are assumed, as "
        return {}, [], [f"{said}if it were absent. Correct it, or move it away."]
    if not isinstance(content, dict):
        return {}, ["config.json holds no settings; the usual ones are assumed"], []
    return content, [], []


def _special_float(content: dict[str, Any]) -> Any:
    """Return the float behind {"__float__": "Infinity"}, as transformers 5 writes it."""
    if set(content) == {"__float__"} and content["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(content["__float__"])
    return content


def step_of(directory: Location) -> int | None:
    """Return the optimiser step of a directory: from its name, or from the file of transformers' Trainer in it."""
    step = step_in(directory.name)
    path = directory / "trainer_state.json"
    if step is None and path.is_file():
        try:
            step = parse_json(read_text(path, MOST_TRAINER_STATE))["global_step"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return train_step(step) if type(step) is int else None


def step_in(name: str) -> int | None:
    """Return the optimiser step from a name such as `step-01000` or `checkpoint-500`; `step-10k` is not read."""
    word = r"(?:^|[^a-z])(?:global_?step|step|checkpoint|ckpt|iter)"
    found = re.search(rf"{word}[-_=]?(\d{{1,15}})(?![\dkm])", name, re.IGNORECASE)
    return int(found[1]) if found else None
