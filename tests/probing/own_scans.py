"""The decays that a transformers model hands to its own scan, recorded while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import softplus

Arguments = dict[str, Any]


def _mamba(given: Arguments) -> Tensor:
    step = softplus(given["dt"] + given["delta_bias"][:, None])
    return step.transpose(1, 2)[..., None] * given["A"]


def _mamba2(given: Arguments) -> Tensor:
    step = softplus(given["dt"] + given["dt_bias"]).clamp(*given["dt_limit"])
    return (step * given["A"])[..., None]


SCANS: dict[str, Callable[[Arguments], Tensor]] = {
    "mamba_selective_scan": _mamba,
    "mamba2_chunk_scan": _mamba2,
}
"""Function that a model's file calls by its name → the log-decay (batch, time, channel, mode) in its arguments."""


@contextmanager
def recording(model: Any) -> Iterator[list[Tensor]]:
    """Record the log-decays that a model's scans are called with, in the order of the calls."""
    found: list[Tensor] = []
    layers = {type(module).__module__ for module in model.modules() if ".models." in type(module).__module__}

    def record(scan: Callable[..., Any], decay: Callable[[Arguments], Tensor]) -> Callable[..., Any]:
        def scanned(*arguments: Any, **named: Any) -> Any:
            given = signature(scan).bind(*arguments, **named)
            given.apply_defaults()
            found.append(decay({**given.arguments, **given.arguments.get("kwargs", {})}).detach().double())
            return scan(*arguments, **named)

        return scanned

    patches = [
        patch.object(sys.modules[name], scan, record(getattr(sys.modules[name], scan), decay))
        for name in layers
        for scan, decay in SCANS.items()
        if hasattr(sys.modules[name], scan)
    ]
    assert patches, f"no scan is known in {layers}"
    for one in patches:
        one.start()
    try:
        yield found
    finally:
        for one in patches:
            one.stop()


def per_layer(scans: list[Tensor], layers: int) -> list[Tensor]:
    """Return one log-decay per layer, where a layer scans each of its heads by itself."""
    heads = len(scans) // layers
    return [torch.cat(scans[heads * one : heads * (one + 1)], dim=2) for one in range(layers)]
