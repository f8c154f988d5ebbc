"""A tiny model, what was observed of it, and the same with other numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import ssmdiag
from ssmdiag.probing.saved import read_probe
from ssmdiag.reports.probe.json import Shown, document
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.families.tiny_transformers import tiny_model
from tests.rules.healthy import save

Document = dict[str, Any]
LENGTH = 64


@cache
def _observed() -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    model = tiny_model("mamba2")
    texts = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    memory = ssmdiag.probe(model, [texts], cuts=1)
    config = json.loads(model.config.to_json_string())
    return dict(model.state_dict()), config, json.dumps(document(memory, Shown("tiny", ("text.txt",))))


def observed(directory: Path, change: Callable[[Document], None] = lambda found: None) -> tuple[Path, Path]:
    """Write the model, and what was observed of it after a change; return both paths."""
    state, config, text = _observed()
    model = save(directory / "model", {name: value.clone() for name, value in state.items()}, config)
    found = json.loads(text)
    change(found)
    (directory / "p.json").write_text(json.dumps(found))
    return model, directory / "p.json"


def findings_of(code: str, directory: Path, change: Callable[[Document], None], **limits: float) -> list[Finding]:
    """Return what one rule finds in what was observed after a change."""
    model, probe = observed(directory, change)
    rules = select_rules(select=[code], thresholds={code: limits} if limits else None)
    return list(ssmdiag.diagnose(model, memory=False, rules=rules, probe=read_probe(probe)).findings)
