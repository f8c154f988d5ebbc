"""Mamba-1 (Gu & Dao, 2023, arXiv 2312.00752) and the models that keep its mixer.

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | channel, mode | A = −exp(A_log), one real rate per state |
| Δ bias | `dt_proj.bias` | channel | Δ = softplus(W_dt r + bias) |
| A, Δ bias, backward | `A_b_log`, `dt_proj_b.bias` | the same | Vision Mamba's scan from the end (2401.09417) |
| A, Δ bias, all scans | `A_logs`, `dt_projs_bias` | (scan·channel, mode), (scan, channel) | VMamba (2401.10166) |
| A, Δ bias, llama.cpp | `ssm_a`, `ssm_dt.bias` | channel, mode; channel | ssm_a is A itself, −exp(A_log) |

Decay per token: exp(Δ_t A). It is read at the bias of Δ; the discretisation of A is exact (ZOH), that
of B is Euler's. Δ is computed from the convolution's output, so a bias of the convolution (or of in_proj)
moves it even where the input is zero: zero input is another operating point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families.forward import ACTIVATION, BIDIRECTIONAL, NORMS_WITHOUT_WEIGHTS
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps, transposed
from ssmdiag.families.submodules import convolve, rows, silu, softplus
from ssmdiag.recurrence.clock import Clock, Scan
from ssmdiag.recurrence.discretisation import zoh

# Packed (quantised) projections have other shapes, so only the tensors of the decay are required.
_PROJECTIONS = {"dt_proj.weight": "_ _", "x_proj.weight": "_ _", "conv1d.bias": "channel", "in_proj.bias": "_"}
_BACKWARD = {"dt_proj_b.weight": "_ _", "x_proj_b.weight": "_ _", "conv1d_b.bias": "channel"}
_FLAX = {"Dense_2.bias": "channel", "Dense_2.kernel": "rank channel", "Dense_1.kernel": "channel _"}
_LLAMA_CPP = {"ssm_in.weight": "_ _", "ssm_conv1d.bias": "channel", "ssm_d": "channel", "ssm_in.bias": "_"}
_BEFORE_DELTA = (
    *("conv1d.bias", "conv1d_b.bias", "conv2d.bias", "in_proj.bias", "Conv_0.bias", "Dense_0.bias"),
    *("ssm_conv1d.bias", "ssm_in.bias"),
)

_FLAX_UNNAMED = "Flax, unnamed Dense layers"
_SHARED_STEP = "hustvl/Vim, bimamba v1"

_SCANS: tuple[tuple[str, str, str], ...] = (
    ("", "A_log", "dt_proj.bias"),
    ("", "A_log.0", "dt_proj.0.bias"),
    ("", "A_log", "Dense_2.bias"),
    ("", "A_logs", "dt_projs_bias"),
    ("", "ssm_a", "ssm_dt.bias"),
    ("backward", "A_b_log", "dt_proj_b.bias"),
    ("backward", "A_log_b", "dt_proj_b.bias"),
)
"""Branch, log-rate and step bias of each scan; a layer has the scans whose tensors are in its spelling."""


def read(layer: Layer) -> Iterator[Recurrence]:
    scans = [scan for scan in _SCANS if scan[1] in layer and scan[2] in layer]
    if layer.spelling.name == _SHARED_STEP:
        scans.append(("backward", "A_b_log", "dt_proj.bias"))
    for branch, log_rate, bias in scans:
        bench = layer.again()
        rate = bench.weight(log_rate, "direct" if log_rate == "ssm_a" else "exp")
        map_ = "softplus+1e-4" if _is_block_1d(layer) else "softplus"
        step = bench.weight(bias, map_, role="step").reshape(-1)[:, None]
        _remark(bench)
        if any(name in bench for name in _BEFORE_DELTA):
            bench.note("at zero input Δ differs from its bias: a bias before x_proj reaches it")
        yield bench.recurrence(zoh(-rate, step), step=step, branch=branch)


def _remark(layer: Layer) -> None:
    if _is_block_1d(layer):
        layer.note(
            "MambaBlock1D adds 1e-4 to Δ, and scans both ways with the same weights: memory reaches ahead as far"
        )
    elif layer.spelling.name == _FLAX_UNNAMED:
        layer.note("Dense_2 is read as the projection of Δ, by its shape, and Δ as its softplus")
    elif "dt_projs_bias" in layer:
        layer.note(f"{layer.axis('scan')} scans over the image stand one after the other in the channels")


def clock(module: Any, input: Tensor) -> Clock:
    """Of a bidirectional layer, the scan from the start."""
    x = _convolved(module, input)
    return _clock(module, rows(module.x_proj, x, 0, -2 * module.A_log.shape[1]))  # B and C are below


def scan(module: Any, input: Tensor) -> Scan:
    """Of a bidirectional layer, the scan from the start; each channel is a head, and all are one group."""
    x, modes = _convolved(module, input), module.A_log.shape[1]
    mixed = module.x_proj(x)
    low, B, C = mixed[..., : -2 * modes], mixed[..., -2 * modes : -modes], mixed[..., -modes:]
    B, C = (_normed(module, name, part)[..., None, :] for name, part in (("b", B), ("c", C)))
    return Scan(_clock(module, low), x[..., None], B, C, module.D[:, None])


def _convolved(module: Any, input: Tensor) -> Tensor:
    return silu(module, convolve(module.conv1d, rows(module.in_proj, input, 0, module.A_log.shape[0])))


def _normed(module: Any, part: str, values: Tensor) -> Tensor:
    """Return Δ, B or C through its norm, where the model has one; mambapy has the attribute without the norm."""
    norm = getattr(module, f"{part}_layernorm", None) or getattr(module, f"{part.upper()}_layernorm", None)
    return values if norm is None else norm(values)


def _clock(module: Any, low: Tensor) -> Clock:
    import torch

    low = _normed(module, "dt", low)
    wide = torch.promote_types(low.dtype, torch.float32)
    if hasattr(getattr(module, "config", None), "_is_quantized"):
        gate = module.dt_proj(low)
    else:  # models use the weight and do not call the submodule: an adapter on it is without effect
        gate = (low @ module.dt_proj.weight.T).to(wide) + module.dt_proj.bias.to(wide)
    return Clock(softplus(gate), module.A_log.double().exp())


def _is_block_1d(layer: Layer) -> bool:
    """Whether this is typeseg's Flax class, whose Δ is softplus(·) + 1e-4."""
    return layer.spelling.name == _FLAX_UNNAMED and "MambaBlock1D" in layer.path


def steering(layer: Layer) -> Iterator[Steering]:
    usual = "A_logs" not in layer and "A_log.0" not in layer  # VMamba and Hymba come in variants
    for end, branch in (("", ""), ("_b", ", backward")):
        needed = not end or f"dt_proj{end}.bias" in layer
        for step in (f"dt_proj{end}.weight", *(() if end else _STEPS)):
            layout = transposed if step.endswith("kernel") else None
            yield Steering(f"step{branch}", step, layout, needed=needed, channels=0)
        for projection in (f"x_proj{end}.weight", *(() if end else _PROJECTED)):
            layout = transposed if projection.endswith("kernel") else None
            yield Steering(f"step, B and C{branch}", projection, layout, needed=needed, channels=1)
        for convolution in (f"conv1d{end}", *(() if end else ("ssm_conv1d", "conv2d"))):
            firm = usual and not end
            yield Steering(f"convolution{branch}", f"{convolution}.weight", taps, needed=firm, channels=0)
            yield Steering(f"bias of the convolution{branch}", f"{convolution}.bias", channels=0)
    for projection in ("in_proj", "ssm_in"):
        yield Steering("input", f"{projection}.weight", _input_rows, needed=usual, channels=0)
        yield Steering("bias of the input", f"{projection}.bias", _input_rows, channels=0)
    for flax, role, layout in (("Conv_0", "convolution", _flax_taps), ("Dense_0", "input", transposed)):
        yield Steering(role, f"{flax}.kernel", layout, channels=0)
        yield Steering(f"bias of the {role}", f"{flax}.bias", channels=0)
    for role, names in _NORMS.items():
        for name in names:
            yield Steering(f"norm of {role}", name)


def _input_rows(rows: Tensor, layer: Layer) -> Tensor:
    """Return the rows of in_proj that make x; the gate z's are below them. Hymba's in_proj has further rows."""
    return rows if "A_log.0" in layer else rows[: layer.axis("channel")]


def _flax_taps(kernel: Tensor, layer: Layer) -> Tensor:
    """Return (channel, tap) of Flax's (tap, 1, channel)."""
    return kernel.flatten(0, -2).T


_STEPS = ("ssm_dt.weight", "dt_proj.0.weight", "dt_projs_weight", "Dense_2.kernel")
_PROJECTED = ("ssm_x.weight", "x_proj.0.weight", "x_proj_weight", "Dense_1.kernel")
_NORMS = {
    "the step": ("dt_layernorm.weight", "ssm_dt_norm.weight"),
    "B": ("b_layernorm.weight", "B_layernorm.weight", "ssm_b_norm.weight"),
    "C": ("c_layernorm.weight", "C_layernorm.weight", "ssm_c_norm.weight"),
}


FAMILY = Family(
    name="mamba",
    title="Mamba-1",
    paper="arXiv 2312.00752",
    memory="nominal",
    traits=frozenset({"float32 decay", "layers alike", "undecayed skip"}),
    spellings=(
        Spelling(
            "state-spaces/mamba, transformers, mambapy, fla",
            {"A_log": "channel mode", "dt_proj.bias": "channel"},
            optional=_PROJECTIONS,
            absent=("A_b_log", "A_log_b"),
        ),
        Spelling(
            "hustvl/Vim, bimamba v2",
            {
                "A_b_log": "channel mode",
                "A_log": "channel mode",
                "dt_proj_b.bias": "channel",
                "dt_proj.bias": "channel",
            },
            optional=_PROJECTIONS | _BACKWARD,
        ),
        Spelling(
            _SHARED_STEP,
            {"A_b_log": "channel mode", "A_log": "channel mode", "dt_proj.bias": "channel"},
            optional=_PROJECTIONS,
            absent=("dt_proj_b.bias",),
        ),
        Spelling(
            "mambapy, vim.py",
            {
                "A_log_b": "channel mode",
                "A_log": "channel mode",
                "dt_proj_b.bias": "channel",
                "dt_proj.bias": "channel",
            },
            optional=_PROJECTIONS | _BACKWARD,
        ),
        Spelling("NVlabs/hymba", {"A_log.0": "channel mode", "dt_proj.0.bias": "channel"}, {"conv1d.bias": "channel"}),
        Spelling(
            "VMamba", {"A_logs": "scan*channel mode", "dt_projs_bias": "scan channel"}, {"conv2d.bias": "channel"}
        ),
        Spelling(
            "llama.cpp",
            {
                "ssm_a": "channel mode",
                "ssm_dt.bias": "channel",
                "ssm_dt.weight": "channel _",
                "ssm_x.weight": "_ channel",
            },
            optional=_LLAMA_CPP,
        ),
        Spelling(
            _FLAX_UNNAMED,
            {"A_log": "channel mode", **_FLAX},
            optional={"Conv_0.bias": "channel", "Dense_0.bias": "_"},
        ),
    ),
    repositories=(
        "state-spaces/mamba",
        "fla-org/flash-linear-attention",
        "hustvl/Vim",
        "MzeroMiko/VMamba",
        "NVlabs/hymba",
        "alxndrTL/mamba.py",
    ),
    model_types=(
        "falcon_mamba",
        "jamba",
        "mamba",
    ),
    gguf=(
        "jamba",
        "mamba",
    ),
    read=read,
    clock=clock,
    scan=scan,
    steering=steering,
    forward=(ACTIVATION, BIDIRECTIONAL, NORMS_WITHOUT_WEIGHTS),
)
