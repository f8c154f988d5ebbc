"""One fault planted in a healthy fresh model, and what one rule says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmdiag import diagnose
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.rules.healthy import ARCHITECTURES, initial_state, save

Change = Callable[[Tensor], Tensor]


def plant(
    directory: Path,
    name: str,
    changes: Mapping[str, Change] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write the fresh model of that name with the tensors whose names end so changed, and other settings."""
    state = initial_state(name)
    for ending, change in (changes or {}).items():
        hit = [key for key in state if key.endswith(ending)]
        assert hit, f"no tensor of {name} ends in {ending}"
        state |= {key: change(state[key].clone()) for key in hit}
    settings = dict(ARCHITECTURES[name].config) if config is None else dict(config)
    return save(directory / "planted", state, settings)


def findings_of(code: str, path: Path, **options: Any) -> list[Finding]:
    """Return what one rule finds."""
    thresholds = {code: options.pop("thresholds")} if "thresholds" in options else None
    report = diagnose(path, memory=False, rules=select_rules(select=[code], thresholds=thresholds), **options)
    return list(report.findings)


def cast(dtype: torch.dtype) -> Change:
    return lambda values: values.to(dtype)


def fill(value: float, where: Any = ...) -> Change:
    """Return a change that sets some of a tensor's values."""

    def change(values: Tensor) -> Tensor:
        values[where] = value
        return values

    return change
