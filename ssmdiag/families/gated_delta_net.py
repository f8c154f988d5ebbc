"""Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2024, arXiv 2412.06464) and the hybrids built on it.

    S_t = e^{g_t} S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ,    g_t = −A softplus(W_a x_t + b_a)

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log`, llama.cpp: −`ssm_a` | head | A = exp(A_log), one rate per value head |
| b_a | `dt_bias`, `ssm_dt.bias` | head | Δ = softplus(W_a x + dt_bias), read at the bias |

The gate does not pass through the short convolution, so its bias is also its value at zero input.
Comba, Gated DeltaProduct and mixtures of such memories have the same gate but other write rules.
lara_mini and Megatron (NVIDIA/Megatron-LM 00caa53, core/ssm/gated_delta_net.py:296-360) have one `in_proj`, its rows
those of q, k, v, z, b and a. llama.cpp keeps Qwen3-Next's order of heads; from Qwen3.5 on (`ssm_alpha`) it stores the
value heads of one key head apart (ggml-org/llama.cpp 03173d5, conversion/qwen.py:479-590), and they are put back here.
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
# Raven has the gate too, and a router that decides which slots it applies to.
_RAVEN = ("r_proj.weight", "r_proj.2.weight")
# Siblings of ssm_a in the files of Mamba-1, Mamba-2 and KDA.
_LLAMA_CPP_OTHERS = ("ssm_d", "ssm_x.weight", "ssm_dt.weight", "ssm_in.weight", "ssm_f_a.weight", "ssm_conv1d_q.weight")


def read(layer: Layer) -> Iterator[Recurrence]:
    if "ssm_a" in layer:
        rate = layer.weight("ssm_a", "direct", part=_in_model_order(layer["ssm_a"], layer))[:, None]
        bias = _in_model_order(layer["ssm_dt.bias"], layer)
        step = layer.weight("ssm_dt.bias", "softplus", role="step", part=bias)[:, None]
        if _is_tiled(layer):
            layer.note(
                "heads are numbered as in the model it was converted from; llama.cpp stores them in another order"
            )
    else:
        rate = layer.weight("A_log", "exp")[:, None]
        step = layer.weight("dt_bias", "softplus", role="step")[:, None]
    yield layer.recurrence(zoh(-rate, step), step=step, operating_point="the gates at their bias, as at zero input")


def _is_tiled(layer: Layer) -> bool:
    """Whether the value heads of one key head are stored apart: the first of every key head, then the second …"""
    groups = _key_heads(layer)
    return layer.beside("ssm_alpha.weight") is not None and groups is not None and 1 < groups < layer.axis("head")


def _in_model_order(rows: Tensor, layer: Layer) -> Tensor:
    """Return rows, as many for each value head, with the value heads of one key head beside each other."""
    groups = _key_heads(layer)
    if not _is_tiled(layer) or not groups or len(rows) % layer.axis("head"):
        return rows
    return rows.unflatten(0, (layer.axis("head") // groups, groups, -1)).transpose(0, 1).flatten(0, 2)


def _key_heads(layer: Layer) -> int | None:
    """Return the number of key heads that the settings give, if the value heads can be shared among them."""
    groups = layer.setting(*KEY_HEADS.names)
    fits = isinstance(groups, int) and groups > 0 and layer.axis("head") % groups == 0
    return groups if fits else None


def clock(module: Any, input: Tensor) -> Clock:
    if hasattr(module, "num_memories"):
        raise LayerError("each token goes to some of its memories alone, which its input does not show.")
    if hasattr(module, "out_norm") and hasattr(module, "in_proj"):
        raise LayerError("Megatron hands its layers (time, batch, feature), where all others have the batch first.")
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
        for name in ("in_proj_ba.weight", "ssm_ba.weight"):
            yield Steering(role, name, partial(_of_ba, part=part))
        yield Steering(role, "in_proj.weight", partial(_last_rows, part=part))
        yield Steering(role, f"ssm_{('beta', 'alpha')[part]}.weight", _put_back)
    yield Steering("decay", "gk_proj.weight")
    for part, role in enumerate(("query", "key", "value")):
        yield Steering(role, f"{role[0]}_proj.weight")
        for name in ("in_proj_qkv.weight", "attn_qkv.weight"):
            yield Steering(role, name, partial(_stacked, part=part))
        yield Steering(role, "in_proj.weight", partial(_first_rows, part=part))
        yield Steering(role, "in_proj_qkvz.weight", partial(_grouped, part=part))
        convolution = f"convolution of the {role}"
        yield Steering(convolution, f"{role[0]}_conv1d.weight", taps)
        for name in ("conv1d", "ssm_conv1d"):
            yield Steering(convolution, f"{name}.weight", partial(_stacked, part=part))
        yield Steering(f"bias of the {convolution}", f"{role[0]}_conv1d.bias")
    yield Steering("bias of the convolution", "conv1d.bias")
    yield Steering("feedback", "decay")  # Comba's two
    yield Steering("query correction", "D")


def _put_back(rows: Tensor, layer: Layer) -> Tensor | None:
    """Return the rows of each value head in the model's order; None where no setting says how they are stored."""
    return None if _key_heads(layer) is None else _in_model_order(rows, layer)


def _of_ba(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return the rows of β or of the decay from a matrix that holds, for each key head, first β and then the decay."""
    groups = _key_heads(layer)
    if groups is None or len(rows) != 2 * layer.axis("head"):
        return None
    return rows.unflatten(0, (groups, 2, -1))[:, part].flatten(0, 1)


def _last_rows(rows: Tensor, layer: Layer, *, part: int) -> Tensor:
    """Return the rows of β or of the decay from a matrix of q, k, v, z, b and a."""
    return rows[-2 * layer.axis("head") :].chunk(2)[part]


def _first_rows(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return q, k or v from a matrix of q, k, v, z, b and a."""
    behind = 2 * layer.axis("head") + _value_rows(layer)
    return _stacked(rows[:-behind], layer, part=part)


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
    """Return q, k or v from stacked matrices."""
    values = _value_rows(layer)
    keys, odd = divmod(len(rows) - values, 2)
    if not values or odd or keys <= 0:
        return None
    found = rows.flatten(1).split([keys, keys, values])[part]
    if part < 2 or layer.beside("ssm_alpha.weight") is None:
        return found
    return _put_back(found, layer)


def _value_rows(layer: Layer) -> int:
    """Return the rows of v, from the norm of the output, which gives the width of a value; 0 where there is none."""
    norms = (layer.beside(f"{name}.weight") for name in ("norm", "o_norm", "out_norm", "ssm_norm"))
    return next((layer.axis("head") * norm.shape[0] for norm in norms if norm is not None), 0)


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
        Spelling(
            "lara_mini, Megatron",
            {**_GATE, "out_norm.weight": "_"},
            optional={"in_proj.weight": "_ _", "conv1d.weight": "_ _ _"},
            absent=("D", "norm.weight", "o_norm.weight", *_KDA_GATE),
        ),
        Spelling(
            "llama.cpp",
            {"ssm_a": "head", "ssm_dt.bias": "head", "ssm_norm.weight": "_"},
            optional={"ssm_conv1d.weight": "_ _"},
            absent=_LLAMA_CPP_OTHERS,
        ),
        Spelling("OLMo-Hybrid, fla, Comba", {**_GATE, "o_norm.weight": "_"}, absent=(*_KDA_GATE, *_RAVEN)),
        Spelling("NVlabs/GatedDeltaNet", {**_GATE, "gk_proj.weight": "head _"}, absent=("o_norm.weight",)),
    ),
    repositories=(
        "fla-org/flash-linear-attention",
        "NVlabs/GatedDeltaNet",
    ),
    model_types=(
        "jev",
        "lara_mini",
        "minicpm_ocr",
        "minicpmv4_6",
        "minicpmv4_7",
        "olmo_hybrid",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "qwen4_exp",
        "qwen4_exp_text",
    ),
    gguf=(
        "qwen35",
        "qwen35moe",
        "qwen3next",
    ),
    read=read,
    clock=clock,
    steering=steering,
    forward=(ACTIVATION, KEY_HEADS, NEGATIVE_EIGENVALUES),
    caveat="Along the key that is written the memory is overwritten too (by β), so the decay bounds it from above.",
)
