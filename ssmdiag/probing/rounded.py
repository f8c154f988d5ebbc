"""What rounding the state at every step does to a layer's answers on real input.

The layer's own recurrence, with all that its scan was given, is stepped for some of its channels, once in float64 and
once for each format with the state rounded after every step:

    ĥ_t = Q(exp(−Δ_t r) ĥ_{t−1} + Δ_t B_t x_t),   ŷ_t = Σ_n C_t[n] ĥ_t[n] + D x_t,   error = (Σ (ŷ − y)² / Σ y²)^½

`noisy_capacity` foresees the same for white input at the nominal point, and does not predict it: there the errors of
slow modes that real gates keep for long are not seen. An 8-bit state has one fixed scale for each number, channel or
layer, by the largest that occurred in the text: no scale that is fixed before the text can do better without clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.errors import LayerError
from ssmdiag.guard import guard
from ssmdiag.probing.clocks import ObservedLayer, input_of
from ssmdiag.recurrence.clock import Scan

STATE_CHANNELS = 32
FORMATS = ("bf16", "fp16", "int8 state", "int8 channel", "int8 layer")
"""Formats of a state; an 8-bit integer with what shares one of its scales."""
_FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StateError:
    """Relative error of a layer's output with its state rounded: over the channels that were stepped."""

    median: float
    worst: float


@contextmanager
def stepping(
    model: nn.Module,
    layers: Sequence[ObservedLayer],
    found: dict[str, dict[str, StateError]],
    errors: dict[str, str],
    channels: int = STATE_CHANNELS,
) -> Iterator[None]:
    """Step each layer whose scan is known, on the first text that reaches it within the block.

    What is found, by the name of the layer and then by format, is in `found`; why a layer was not stepped in `errors`.
    """
    handles = []
    try:
        for one in layers:
            if one.family.scan is not None:
                hook = _hook(one, found, errors, channels)
                handles.append(model.get_submodule(one.path).register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    one: ObservedLayer, found: dict[str, dict[str, StateError]], errors: dict[str, str], channels: int
) -> Callable[..., None]:
    def enter(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if one.name in found or one.name in errors or one.family.scan is None:
            return
        try:
            with torch.no_grad(), guard(one.name, "stepping its state"):
                device = next(one.module.parameters()).device
                found[one.name] = state_errors(
                    one.family.scan(one.module, input_of(one, arguments, named)[:1].to(device)), channels
                )
        except LayerError as error:
            errors[one.name] = error.sentence

    return enter


@torch.no_grad()
def state_errors(scan: Scan, channels: int = STATE_CHANNELS) -> dict[str, StateError]:
    """Return the error of each format over at most so many channels of the first text, spread over the heads.

    Channels that answer nothing are left out. Raises LayerError where none is left, or an answer is not finite.
    """
    decay, write, read, skipped = _of_channels(scan, channels)
    exact, largest = _step(decay, write, read)
    if not bool(exact.isfinite().all()):
        raise LayerError("its answers are not finite.")
    size = (exact + skipped).square().sum(0)
    answering = size > 0
    if not bool(answering.any()):
        raise LayerError("none of its channels answers anything.")
    rounded, _ = _step(decay, write, read, _scales(largest))
    error = ((rounded - exact[:, None]).square().sum(0) / size).sqrt()[:, answering]
    return {
        name: StateError(float(own.median()), float(own.max()))
        for name, own in zip(FORMATS, error.nan_to_num(torch.inf, torch.inf), strict=True)
    }


def _of_channels(scan: Scan, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return decay, Δ B x and C, (time, channel, mode) float64, and D x, of some channels of the first text."""
    step, rate = scan.clock.step[0].double(), scan.clock.rate.double()
    heads, size = scan.input.shape[2:]
    order = rate.amin(1).argsort(stable=True).repeat_interleave(size) * size
    order = order + torch.arange(size, device=order.device).repeat(heads)
    picks = torch.linspace(0, len(order) - 1, min(most, len(order)), dtype=torch.float64).round().long()
    chosen = order[picks.to(order.device)]
    head = chosen // size
    group = head // (heads // scan.write.shape[2])
    x = scan.input[0].double().flatten(1)[:, chosen]
    step = step[:, head, None]
    return (
        torch.exp(-step * rate[head]),
        step * x[..., None] * scan.write[0].double()[:, group],
        scan.read[0].double()[:, group],
        x * scan.skip.double().expand(heads, size).flatten()[chosen],
    )


def _step(decay: Tensor, write: Tensor, read: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return Σ C h (time, channel), with scales (time, format, channel), and the largest |state| of each number.

    `scales`: the step of each 8-bit format, (format, channel, mode); with them every format is stepped, without them
    nothing is rounded.
    """
    state = torch.zeros_like(write[0] if scales is None else write[0].expand(len(FORMATS), -1, -1))
    largest = torch.zeros_like(write[0])
    answers = []
    modes = write.shape[-1]
    for kept, written, asked in zip(decay.expand(*decay.shape[:-1], modes), write, read, strict=True):
        state = kept * state + written
        if scales is None:
            largest = torch.maximum(largest, state.abs())
        else:
            state = _rounded(state, scales)
        answers.append((asked * state).sum(-1))
    return torch.stack(answers), largest


def _rounded(state: Tensor, scales: Tensor) -> Tensor:
    """Return the state of each format, (format, channel, mode), rounded to it."""
    floats = [state[k].to(dtype).to(state.dtype) for k, dtype in enumerate(_FLOATS.values())]
    whole = (state[len(floats) :] / scales).round().clamp(-127, 127) * scales
    return torch.cat([torch.stack(floats), whole])


def _scales(largest: Tensor) -> Tensor:
    """Return the step of an 8-bit state whose scale is each number's own, its channel's and its layer's."""
    shared = [largest, largest.amax(1, keepdim=True).expand_as(largest), largest.amax().expand_as(largest)]
    return torch.stack(shared).clamp(min=1e-300) / 127
