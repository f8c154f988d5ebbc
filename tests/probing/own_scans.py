"""The decays that a transformers model hands to its own scan, recorded while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

Arguments = dict[str, Any]


def _mamba(given: Arguments) -> Tensor:
    step = softplus(given["dt"] + given["delta_bias"][:, None])
    return step.transpose(1, 2)[..., None] * given["A"]


def _mamba2(given: Arguments) -> Tensor:
    step = softplus(given["dt"] + given["dt_bias"]).clamp(*given["dt_limit"])
    return (step * given["A"])[..., None]


def _delta_rule(given: Arguments) -> Tensor:
    return given["g"][..., None]


def _delta_attention(given: Arguments) -> Tensor:
    return given["g"].flatten(2)[..., None]


def _rg_lru(given: Arguments) -> Tensor:
    return given["recurrent_gate"].log()[..., None]


def _mlstm(given: Arguments) -> Tensor:
    return logsigmoid(given["fgate"]).transpose(1, 2)[..., None]


SCANS: dict[str, Callable[[Arguments], Tensor]] = {
    "mamba_selective_scan": _mamba,
    "mamba2_chunk_scan": _mamba2,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_attention,
    "RecurrentGemmaRglru._rnn_scan": _rg_lru,
    "xLSTMBackend.forward": _mlstm,
}
"""Function of a model's file, called by this name → the log-decay (batch, time, channel, mode) in its arguments."""


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

    patches = []
    for file, (scan, decay) in product(layers, SCANS.items()):
        kind, _, name = scan.rpartition(".")
        place = getattr(sys.modules[file], kind, None) if kind else sys.modules[file]
        if hasattr(place, name):
            patches.append(patch.object(place, name, record(getattr(place, name), decay)))
    assert patches, f"no scan is known in {layers}"
    for one in patches:
        one.start()
    try:
        yield found
    finally:
        for one in patches:
            one.stop()


@contextmanager
def gates_in_float64(model: Any) -> Iterator[None]:
    """Lift the casts to float32 in the original code, in its gates alone where they are modules of their own."""
    lifted = patch.object(Tensor, "float", Tensor.double)
    gates = [module for name, module in model.named_modules() if name.endswith("forget_gate")]
    handles = [gate.register_forward_pre_hook(lambda *_: (lifted.start(), None)[1]) for gate in gates]
    handles += [gate.register_forward_hook(lambda *_: (lifted.stop(), None)[1]) for gate in gates]
    try:
        with nullcontext() if gates else lifted:
            yield
    finally:
        for handle in handles:
            handle.remove()


def per_layer(scans: list[Tensor], layers: int) -> list[Tensor]:
    """Return one log-decay per layer, where a layer scans each of its heads by itself."""
    heads = len(scans) // layers
    return [torch.cat(scans[heads * one : heads * (one + 1)], dim=2) for one in range(layers)]
