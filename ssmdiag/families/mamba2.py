"""Mamba-2 (Dao & Gu, 2024, arXiv 2405.21060) and the hybrids built on it.

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | head | A = −exp(A_log), one real rate per head |
| Δ bias | `dt_bias` | head | Δ = softplus(W_dt x + dt_bias) |
| Δ bias | `in_proj.bias` | its last `head` rows | added to dt_bias where in_proj has a bias |
| A, Δ bias, llama.cpp | `ssm_a`, `ssm_dt.bias`, `ssm_in.bias` | (head, 1); head | ssm_a is A itself, −exp(A_log) |

The same names in mamba2, Codestral, Bamba, Zamba2, Nemotron-H, Granite 4 and Falcon-H1. Decay per token:
exp(Δ_t A), shared by the whole state of a head. Δ bypasses the convolution: the bias is zero input.
Runtimes clamp Δ differently, so it is read unclamped and the note says what a clamp changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.families.forward import ACTIVATION, BIDIRECTIONAL, GROUPS, LEAST_STEP, STEP_LIMIT
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import convolve, rows, silu, softplus
from ssmdiag.recurrence.clock import Clock, Scan
from ssmdiag.recurrence.discretisation import zoh

OTHERS = (
    *("a_proj.weight", "b_proj.weight", "f_proj.weight", "f_proj.0.weight", "f_a_proj.weight", "decay"),
    *("in_proj_a.weight", "in_proj_ba.weight", "in_proj_qkvz.weight", "in_proj_qkv.weight", "q_proj.weight"),
    *("bcdt_proj.weight", "dt_norm_weight", "dt_proj.weight", "x_proj.weight", "forget_gate.A_log"),
)
"""Siblings of A_log and dt_bias in delta-rule families and PLaMo-2."""


_LLAMA_CPP = "llama.cpp"
LLAMA_CPP_OTHERS = (
    *("ssm_x.weight", "ssm_dt.weight", "ssm_ba.weight", "ssm_alpha.weight", "ssm_beta.weight", "ssm_f_a.weight"),
    *("ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"),
)
"""Siblings of ssm_a in the files of other families."""


def read(layer: Layer) -> Iterator[Recurrence]:
    log_rate, step_bias, in_bias = "A_log", "dt_bias", "in_proj.bias"
    if layer.spelling.name == _LLAMA_CPP:
        log_rate, step_bias, in_bias = "ssm_a", "ssm_dt.bias", "ssm_in.bias"
    rate = layer.weight(log_rate, "direct" if log_rate == "ssm_a" else "exp").reshape(-1, 1)
    step = layer.weight(step_bias, "softplus", role="step")
    if in_bias in layer:
        bias = layer[in_bias][-len(step) :]
        multipliers = layer.setting("ssm_multipliers", default=(1, 1, 1, 1, 1))  # Falcon-H1: z, x, B, C, Δ
        step = softplus(layer[step_bias] + float(multipliers[-1]) * bias)
    _remark_on_clamp(layer, step)
    yield layer.recurrence(
        zoh(-rate, step[:, None]),
        step=step[:, None],
        operating_point="the gates at their bias, as at zero input",
    )


def clock(module: Any, input: Tensor) -> Clock:
    """With the model's limits on Δ, which transformers applies to whole sequences and not to single steps."""
    heads = module.A_log.shape[0]
    gate = rows(module.in_proj, input * getattr(module, "ssm_in_multiplier", 1.0), -heads)
    if hasattr(module, "mup_vector"):  # Falcon-H1
        gate = gate * module.mup_vector[..., -heads:]
    low, high = getattr(module, "time_step_limit", None) or getattr(module, "dt_limit", None) or (0.0, math.inf)
    step = softplus(gate.double() + module.dt_bias.double()).clamp(low, high)
    return Clock(step, module.A_log.double().exp()[:, None])


def scan(module: Any, input: Tensor) -> Scan:
    """x, B and C leave the convolution together; in_proj makes them right before Δ."""
    heads, convolved = module.A_log.shape[0], module.conv1d.weight.shape[0]
    mixed = rows(module.in_proj, input * getattr(module, "ssm_in_multiplier", 1.0), -convolved - heads, -heads)
    if hasattr(module, "mup_vector"):  # Falcon-H1
        mixed = mixed * module.mup_vector[..., -convolved - heads : -heads]
    mixed = silu(module, convolve(module.conv1d, mixed))
    size = getattr(module, "head_dim", None) or module.headdim
    groups = getattr(module, "n_groups", None) or module.ngroups
    B, C = mixed[..., heads * size :].unflatten(-1, (2 * groups, -1)).chunk(2, -2)
    x = mixed[..., : heads * size].unflatten(-1, (heads, size))
    return Scan(clock(module, input), x, B, C, module.D.reshape(heads, -1))


def _remark_on_clamp(layer: Layer, step: Tensor) -> None:
    try:
        low, high = step_limits(layer)
    except (TypeError, ValueError):
        layer.note(f"the limits on Δ in the settings, {_clamp(layer)!r}, are not two numbers and were ignored")
        return
    outside = int(((step < low) | (step > high)).sum())
    if outside:
        bounds = f"at least {low:g}" if high == math.inf else f"within [{low:g}, {high:g}]"
        layer.note(
            f"transformers clamps Δ to {bounds} while it reads a prompt (not in single steps), which changes "
            f"{outside} of {len(step)} heads at their bias; shown unclamped"
        )


def step_limits(layer: Layer) -> tuple[float, float]:
    """Return transformers' limits on Δ while it reads a prompt, from the settings.

    Raises TypeError or ValueError where the settings do not hold two numbers.
    """
    low, high = (_number(limit) for limit in _clamp(layer))
    return low, high


def _clamp(layer: Layer) -> Any:
    """Return transformers' limits on Δ in prefill, as written in the settings."""
    settings = layer.checkpoint.settings
    model_types = {str(value) for key, value in settings.items() if key.split(".")[-1] == "model_type"}
    if model_types & {"zamba2", "nemotron_h"}:  # these two ignore time_step_limit
        return layer.setting("time_step_min", default=0.001), math.inf
    return layer.setting("time_step_limit", "dt_limit", default=(0.0, math.inf))


def _number(value: Any) -> float:
    """Return a float from JSON, where infinity may be spelled null or {"__float__": "Infinity"}."""
    if value is None:
        return math.inf
    return float(value.get("__float__", "") if isinstance(value, dict) else value)


def steering(layer: Layer) -> Iterator[Steering]:
    for projection in ("in_proj", "ssm_in"):
        yield Steering("step", f"{projection}.weight", _step_rows, needed=True)
        yield Steering("x, B and C", f"{projection}.weight", _convolved_rows)
        yield Steering("bias of x, B and C", f"{projection}.bias", _convolved_rows)
    for convolution in ("conv1d", "ssm_conv1d"):
        yield Steering("convolution", f"{convolution}.weight", taps)
        yield Steering("bias of the convolution", f"{convolution}.bias")


def _step_rows(rows: Tensor, layer: Layer) -> Tensor:
    """Return the rows of in_proj that make Δ, always its last, times Falcon-H1's multipliers."""
    return _scaled(rows, layer)[-layer.axis("head") :]


def _convolved_rows(rows: Tensor, layer: Layer) -> Tensor | None:
    """Return the rows that make x, B and C, as many as the convolution has channels; the gate z's are above them."""
    convolution = layer.beside("conv1d.weight") or layer.beside("ssm_conv1d.weight")
    if convolution is None:
        return None
    heads = layer.axis("head")
    return _scaled(rows, layer)[-convolution.shape[0] - heads : -heads]


def _scaled(rows: Tensor, layer: Layer) -> Tensor:
    """Return in_proj with Falcon-H1's multipliers in it, as llama.cpp and MLX store it.

    A bias is multiplied by the multiplier of its part, not by that of the input.
    """
    multipliers = layer.setting("ssm_multipliers")
    convolution = layer.beside("conv1d.weight")
    if not multipliers or convolution is None or convolution.shape[1] != 1:
        return rows
    heads, convolved = layer.axis("head"), convolution.shape[0]
    inner = len(rows) - convolved - heads
    state = (convolved - inner) // 2
    whole = float(layer.setting("ssm_in_multiplier", default=1.0)) if rows.ndim > 1 else 1.0
    factors, start = rows[:0].double().new_ones(len(rows)), 0
    for factor, size in zip(multipliers, (inner, inner, state, state, heads), strict=True):  # z, x, B, C, Δ
        factors[start : start + size] = float(factor) * whole
        start += size
    return rows * factors.reshape(-1, *(1 for _ in rows.shape[1:]))


FAMILY = Family(
    name="mamba2",
    title="Mamba-2",
    paper="arXiv 2405.21060",
    memory="nominal",
    traits=frozenset({"float32 decay", "layers alike", "undecayed skip"}),
    spellings=(
        Spelling(
            "state-spaces/mamba, transformers, mambapy, fla",
            {"A_log": "head", "dt_bias": "head", "D": "_"},
            optional={"in_proj.weight": "_ _", "in_proj.bias": "_", "conv1d.weight": "_ _ _", "norm.weight": "_"},
            absent=OTHERS,
        ),
        Spelling(
            _LLAMA_CPP,
            {"ssm_a": "head 1", "ssm_dt.bias": "head", "ssm_d": "head 1"},
            optional={"ssm_in.weight": "_ _", "ssm_in.bias": "_", "ssm_conv1d.weight": "_ _", "ssm_norm.weight": "_ _"},
            absent=LLAMA_CPP_OTHERS,
        ),
    ),
    repositories=(
        "state-spaces/mamba",
        "fla-org/flash-linear-attention",
    ),
    model_types=(
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "mamba2",
        "nemo_speechlm",
        "nemotron_h",
        "nemotron_h_omni",
        "zamba2",
    ),
    gguf=(
        "falcon-h1",
        "granitehybrid",
        "mamba2",
        "nemotron_h",
        "nemotron_h_moe",
    ),
    read=read,
    clock=clock,
    scan=scan,
    steering=steering,
    forward=(ACTIVATION, BIDIRECTIONAL, GROUPS, LEAST_STEP, STEP_LIMIT),
)
