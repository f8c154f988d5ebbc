"""Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2024, arXiv 2412.06464) and the hybrids built on it.

    S_t = e^{g_t} S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ,    g_t = −A softplus(W_a x_t + b_a)

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | head | A = exp(A_log), one rate per value head |
| b_a | `dt_bias` | head | Δ = softplus(W_a x + dt_bias), read at the bias |

The gate does not pass through the short convolution, so its bias is also its value at zero input.
Comba, Gated DeltaProduct and mixtures of such memories have the same gate but other write rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.forward import ACTIVATION, KEY_HEADS, NEGATIVE_EIGENVALUES
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import zoh

_GATE = {"dt_bias": "head", "A_log": "head"}
# KDA has a gate per channel under the same names; its projection, packed or not, distinguishes it.
_KDA_GATE = tuple(
    f"{name}.{ending}"
    for name in ("f_proj", "f_proj.0", "f_a_proj")
    for ending in ("weight", "qweight", "weight_packed")
)


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("A_log", "exp")[:, None]
    step = layer.weight("dt_bias", "softplus", role="step")[:, None]
    yield layer.recurrence(zoh(-rate, step), step=step, operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    if hasattr(module, "num_memories"):
        raise LayerError("each token goes to some of its memories alone, which its input does not show.")
    if hasattr(module, "in_proj_ba"):  # for each key head, first β and then the decay
        gate = module.in_proj_ba(input).unflatten(-1, (module.num_k_heads, 2, -1))[..., 1, :].flatten(-2)
    else:
        names = ("in_proj_a", "a_proj", "gk_proj")
        gate = next(getattr(module, name) for name in names if hasattr(module, name))(input)
    if getattr(module, "use_mamba_gate", True) is False:
        raise LayerError("its gate is a sigmoid (use_mamba_gate is off): A_log and dt_bias are not in its decay.")
    return Clock(softplus(gate.double() + module.dt_bias.double()), module.A_log.double().exp()[:, None])


def steering(layer: Layer) -> Iterator[Steering]:
    for part, role, letter in ((1, "decay", "a"), (0, "write strength", "b")):
        names = [f"in_proj_{letter}.weight", f"{letter}_proj.weight"]
        for name in names if "conv1d.weight" in layer else names[::-1]:
            yield Steering(role, name, needed=True)
        yield Steering(role, "in_proj_ba.weight", partial(_of_ba, part=part))
    yield Steering("decay", "gk_proj.weight")
    for part, role in enumerate(("query", "key", "value")):
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(role, "in_proj_qkv.weight", partial(_stacked, part=part))
        yield Steering(role, "in_proj_qkvz.weight", partial(_grouped, part=part))
        convolution = f"convolution of the {role}"
        yield Steering(convolution, f"{role[0]}_conv1d.weight", taps)
        yield Steering(convolution, "conv1d.weight", partial(_stacked, part=part))
        yield Steering(f"bias of the {convolution}", f"{role[0]}_conv1d.bias")
    yield Steering("bias of the convolution", "conv1d.bias")
    yield Steering("feedback", "decay")  # Comba's two
    yield Steering("query correction", "D")


def _of_ba(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return the rows of β or of the decay from a matrix that holds, for each key head, first β and then the decay."""
    groups = layer.setting("linear_num_key_heads")
    if not isinstance(groups, int) or groups < 1 or len(rows) % (2 * groups):
        return None
    return rows.unflatten(0, (groups, 2, -1))[:, part].flatten(0, 1)


def _grouped(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return q, k or v from a matrix that holds q, k, v and z for each key head in turn."""
    groups, key, value = (
        layer.setting(f"linear_{name}") for name in ("num_key_heads", "key_head_dim", "value_head_dim")
    )
    if not all(isinstance(size, int) and size > 0 for size in (groups, key, value)):
        return None
    values = layer.axis("head") // groups * value
    if len(rows) != groups * 2 * (key + values):
        return None
    start, size = ((0, key), (key, key), (2 * key, values))[part]
    return rows.unflatten(0, (groups, -1))[:, start : start + size].flatten(0, 1)


def _stacked(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return q, k or v from stacked matrices; the norm of the output gives the width of a value."""
    norm = layer.beside("norm.weight") or layer.beside("o_norm.weight")
    values = 0 if norm is None else layer.axis("head") * norm.shape[0]
    keys, odd = divmod(len(rows) - values, 2)
    if not values or odd or keys <= 0:
        return None
    return rows.flatten(1).split([keys, keys, values])[part]


FAMILY = Family(
    name="gated_delta_net",
    title="Gated DeltaNet",
    paper="arXiv 2412.06464",
    memory="nominal",
    traits=frozenset({"constant step", "float32 decay", "layers alike", "matrix memory", "overwrites"}),
    spellings=(
        # Mamba-2 has the same four names, and D and in_proj besides.
        Spelling(
            "Qwen3-Next, Qwen3.5, Qwen4",
            {**_GATE, "norm.weight": "_", "conv1d.weight": "_ _ _"},
            absent=("D", "in_proj.weight", "B_bias"),
        ),
        Spelling("OLMo-Hybrid, fla, Comba", {**_GATE, "o_norm.weight": "_"}, absent=_KDA_GATE),
        Spelling("NVlabs/GatedDeltaNet", {**_GATE, "gk_proj.weight": "head _"}, absent=("o_norm.weight",)),
    ),
    read=read,
    clock=clock,
    steering=steering,
    forward=(ACTIVATION, KEY_HEADS, NEGATIVE_EIGENVALUES),
    caveat="Along the key that is written the memory is overwritten too (by β), so the decay bounds it from above.",
)
