"""RG-LRU, the recurrence of Griffin and RecurrentGemma (De et al., 2024, arXiv 2402.19427).

    h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ x_t),    a_t = exp(−c softplus(Λ) r_t),  r_t = σ(W_a x_t + b_a)

| paper | tensor | shape | role |
|---|---|---|---|
| Λ | `recurrent_param`, DeepMind: `a_param` | channel | rate at an open gate is c softplus(Λ); c = 8 |
| b_a | `recurrent_gate_bias`, `a_gate.b` | block, width | gate r = σ(b_a) at the bias |
| – | `a_imag_param` | channel | frequency at an open gate, in the complex variant |

The paper writes a = σ(Λ)^{c r}: its Λ is the negative of what is stored. lrnnx (SforAiDl/lrnnx 1e79400,
models/ltv/rglru.py:107-131, 180-235) stores that Λ as `a_log`, whatever its name, with a dense gate
`recurrent_gate_proj`; its c can be set, and is not in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps, transposed
from ssmdiag.families.submodules import convolve, softplus
from ssmdiag.recurrence.clock import Clock

OPEN_GATE = 8.0
"""The constant c; no setting changes it."""


def read(layer: Layer) -> Iterator[Recurrence]:
    if "a_log" in layer:
        gate = layer["recurrent_gate_proj.bias"].sigmoid()
        rate = layer.weight("a_log", "-logsigmoid")[:, 0]
        yield layer.recurrence((-float(layer.setting("c", default=OPEN_GATE)) * rate * gate)[:, None])
        return
    param, bias = ("a_param", "a_gate.b") if "a_param" in layer else ("recurrent_param", "recurrent_gate_bias")
    gate = layer[bias].sigmoid().flatten()
    log_eigenvalues = -OPEN_GATE * layer.weight(param, "softplus") * gate
    if is_complex := "a_imag_param" in layer:
        log_eigenvalues = log_eigenvalues + 1j * layer.weight("a_imag_param", "none", role="frequency") * gate
    yield layer.recurrence(log_eigenvalues[:, None], conjugate_pairs=is_complex)


def clock(module: Any, input: Tensor) -> Clock:
    """Of the RG-LRU itself: its input is behind linear_x and the convolution."""
    if hasattr(module, "recurrent_gate_proj"):  # lrnnx's, the whole block
        gate = module.recurrent_gate_proj(convolve(module.conv1d, module.in_proj(input)))
        return Clock(gate.double().sigmoid(), module.c * softplus(-module.a_log.double()))
    if hasattr(module, "a_gate"):  # DeepMind's
        gate, param = module.a_gate(input), module.a_param
    else:
        weight, param = module.recurrent_gate_weight, module.recurrent_param
        blocks = input.unflatten(-1, (len(weight), 1, -1))
        gate = ((blocks @ weight).squeeze(-2) + module.recurrent_gate_bias).flatten(-2)
    return Clock(gate.double().sigmoid(), OPEN_GATE * softplus(param.double())[:, None])


def steering(layer: Layer) -> Iterator[Steering]:
    for own, deepmind, role in (
        ("recurrent_gate_weight", "a_gate.w", "decay"),
        ("input_gate_weight", "input_gate.w", "input gate"),
        ("input_gate_bias", "input_gate.b", "bias of the input gate"),
    ):
        yield Steering(role, own, needed=role == "decay")
        yield Steering(role, deepmind)
    for own, role in (("recurrent", "decay"), ("input", "input gate")):
        yield Steering(role, f"{own}_gate_proj.weight")
    yield Steering("bias of the input gate", "input_gate_proj.bias")
    for name, role in (("in_proj", "input"), ("conv1d", "convolution")):
        yield Steering(role, f"{name}.weight", taps)
        yield Steering(f"bias of the {role}", f"{name}.bias")
    # The block's own, between its input and the gates; DeepMind's convolution is (tap, channel).
    for name, role in (("linear_x", "input"), ("conv_1d", "convolution")):
        yield Steering(role, f"^.{name}.weight", taps)
        yield Steering(role, f"^.{name}.w", transposed)
        yield Steering(f"bias of the {role}", f"^.{name}.bias")
        yield Steering(f"bias of the {role}", f"^.{name}.b")


FAMILY = Family(
    name="rg_lru",
    title="RG-LRU",
    paper="arXiv 2402.19427",
    memory="nominal",
    spellings=(
        Spelling("transformers", {"recurrent_param": "block*width", "recurrent_gate_bias": "block width"}),
        Spelling(
            "google-deepmind/recurrentgemma",
            {"a_param": "block*width", "a_gate.b": "block width"},
            {"a_imag_param": "block*width"},
        ),
        Spelling("lrnnx", {"a_log": "channel 1", "recurrent_gate_proj.bias": "channel"}),
    ),
    repositories=("google-deepmind/recurrentgemma",),
    model_types=("recurrent_gemma",),
    read=read,
    clock=clock,
    steering=steering,
    caveat="In its block the gate also sees the biases of the layers before it; they are left out here.",
)
