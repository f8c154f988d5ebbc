"""What clocks compute with a live module's submodules, as the forward pass of its model does.

A linear layer is called, so that adapters (LoRA) and quantised weights count. Where it is a plain one, only the rows
that are wanted are multiplied: in Mamba-2, 1 in 200 of in_proj's.
"""

from __future__ import annotations

from typing import Any

from ssmdiag.families.interface import Tensor


def rows(linear: Any, input: Tensor, start: int, stop: int | None = None) -> Tensor:
    """Return the outputs `start` … `stop` of a linear layer, (…, row)."""
    import torch

    changed = "forward" in vars(linear) or linear._forward_hooks or linear._forward_pre_hooks  # by accelerate, say
    if type(linear) is not torch.nn.Linear or changed:
        return linear(input)[..., start:stop]
    bias = None if linear.bias is None else linear.bias[start:stop]
    return torch.nn.functional.linear(input, linear.weight[start:stop], bias)


def convolve(convolution: Any, input: Tensor) -> Tensor:
    """Return a causal depthwise convolution of (batch, time, channel), from its weights alone.

    Models use the weights and do not call the submodule, so an adapter on it is without effect. For a few taps this
    is three times as fast as torch's, which wants time last.
    """
    import torch

    taps = convolution.weight.flatten(1).T  # (tap, channel), the present last
    wide = torch.promote_types(taps.dtype, torch.float32)
    past, taps = input.to(wide), taps.to(wide)
    total = past * taps[-1]
    for lag in range(1, min(len(taps), input.shape[1])):
        total[:, lag:].addcmul_(past[:, :-lag], taps[-1 - lag])
    if convolution.bias is not None:
        total += convolution.bias
    return total.to(input.dtype)


def silu(module: Any, values: Tensor) -> Tensor:
    """Return the module's own activation of these values; SiLU where it has none of its own."""
    activation = getattr(module, "act", None)
    return activation(values) if callable(activation) else values * values.sigmoid()


def softplus(gate: Tensor) -> Tensor:
    """Return log(1 + eˣ) in the gate's dtype, or float32 if that is finer: as finely as models compute it.

    torch's own returns x itself above 20, which loses 2e-9 of it: here above 40, which loses nothing.
    """
    import torch

    return torch.nn.functional.softplus(gate.to(torch.promote_types(gate.dtype, torch.float32)), threshold=40)


def token_shift(input: Tensor) -> Tensor:
    """Return the token before minus this one, (batch, time, feature); there is a zero before the first."""
    before = input.roll(1, dims=1)
    before[:, 0] = 0
    return before - input
