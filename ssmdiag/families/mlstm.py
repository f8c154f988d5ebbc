"""mLSTM, the matrix memory of xLSTM (Beck et al., 2024, arXiv 2405.04517).

    C_t = f_t C_{t−1} + i_t v_t k_tᵀ,    f_t = σ(f̃_t),   f̃_t = c tanh((w_f x_t + b_f)/c)

| paper | tensor | shape | role |
|---|---|---|---|
| b_f | `fgate_preact.bias`, `mlstm_cell.fgate.bias` | head | forget gate at its bias |
| b_i, b_f | `ifgate_preact.bias` | 2 × head | fused: input gates first, forget gates second |

c is the soft cap on gates of xLSTM-large; the original cell has none. The running maximum of the
implementation rescales numerator and denominator alike and does not change the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import share, taps
from ssmdiag.families.submodules import rows, softplus
from ssmdiag.recurrence.clock import Clock

_CELL = "mlstm_cell.fgate.bias"


def read(layer: Layer) -> Iterator[Recurrence]:
    if _CELL in layer:
        yield layer.recurrence(-layer.weight(_CELL, "-logsigmoid")[:, None])
        return
    name = "fgate_preact.bias" if "fgate_preact.bias" in layer else "ifgate_preact.bias"
    bias = layer[name] if name == "fgate_preact.bias" else layer[name].chunk(2)[1]
    named = {name.rpartition(".")[2] for name in layer.checkpoint.settings}
    uncapped = "gate_soft_cap" in named and layer.setting("gate_soft_cap") is None
    cap = layer.option("gate_soft_cap", known="none" if uncapped else None)
    if cap != "none" and float(cap) <= 0:
        raise LayerError(f"{layer.title}: gate_soft_cap is {cap}.", expected="a positive number, or none")
    capped = bias if cap == "none" else float(cap) * (bias / float(cap)).tanh()
    rate = layer.weight(name, "-logsigmoid", part=capped)
    yield layer.recurrence(-rate[:, None], operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    if hasattr(module, "mlstm_cell"):
        x = rows(module.proj_up, input, 0, module.mlstm_cell.fgate.in_features // 3)
        folded = module.conv_act_fn(module.conv1d(x))
        gate = module.mlstm_cell.fgate(_joined(module.q_proj(folded), module.k_proj(folded), module.v_proj(x))).double()
        return Clock(softplus(-gate), gate.new_ones(gate.shape[-1], 1))
    if hasattr(module, "fgate_preact"):
        gate = module.fgate_preact(input).double()
    else:
        gate = module.ifgate_preact(input).double().chunk(2, -1)[1]
    cap = module.config.gate_soft_cap
    capped = gate if cap is None else cap * (gate / cap).tanh()
    return Clock(softplus(-capped), gate.new_ones(gate.shape[-1], 1))


def _joined(*parts: Tensor) -> Tensor:
    import torch

    return torch.cat(parts, dim=-1)


def steering(layer: Layer) -> Iterator[Steering]:
    for gate, half, needed in (("forget", 1, True), ("input", 0, False)):
        yield Steering(f"{gate} gate", f"{gate[0]}gate_preact.weight", needed=needed)
        yield Steering(f"{gate} gate", f"mlstm_cell.{gate[0]}gate.weight")
        yield Steering(f"{gate} gate", "ifgate_preact.weight", partial(share, part=half, parts=2))
    yield Steering("bias of the input gate", "igate_preact.bias")
    yield Steering("bias of the input gate", "mlstm_cell.igate.bias")
    yield Steering("bias of the input gate", "ifgate_preact.bias", partial(share, part=0, parts=2))
    for part, role in enumerate(("query", "key", "value")):
        yield Steering(role, f"{role[0]}.weight")
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(role, "qkv_opreact.weight", partial(_fused, part=part))
    # NX-AI's first blocks: the cell reads q, k and v behind a convolution.
    yield Steering("convolution", "conv1d.conv.weight", taps)
    yield Steering("bias of the convolution", "conv1d.conv.bias")
    yield Steering("input", "proj_up.weight", partial(share, part=0, parts=2))


def _fused(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return q, k or v of xLSTM-large's fused matrix; v and the output gate, the last two, are as wide as the model."""
    width = rows.shape[1]
    keys, odd = divmod(len(rows) - 2 * width, 2)
    return None if odd or keys <= 0 else rows.split([keys, keys, width, width])[part]


FAMILY = Family(
    name="mlstm",
    title="mLSTM",
    paper="arXiv 2405.04517",
    memory="nominal",
    traits=frozenset({"float32 decay"}),
    spellings=(
        Spelling("xLSTM-large, transformers", {"fgate_preact.bias": "head", "igate_preact.bias": "head"}),
        Spelling("xLSTM-large, fused weights", {"ifgate_preact.bias": "_", "qkv_opreact.weight": "_ _"}),
        Spelling("NX-AI/xlstm", {_CELL: "head", "mlstm_cell.igate.bias": "head"}),
    ),
    repositories=("NX-AI/xlstm",),
    model_types=("xlstm",),
    read=read,
    clock=clock,
    steering=steering,
    options=(
        Option(
            "gate_soft_cap",
            ("15", "none"),
            usual="15",
            meaning="gates are squashed to c tanh(x/c) before their sigmoid",
            number=True,
        ),
    ),
)
