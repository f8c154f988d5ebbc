"""What each family's original code writes into its recurrent tensors before the first step of training.

One function per family: (generator, layer number, number of layers) → the tensors of one layer under the
family's own names. Formulas are those of the code named beside each; sizes are those of small real models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

State = dict[str, Tensor]
Initialise = Callable[[Generator, int, int], State]


@dataclass(frozen=True)
class Architecture:
    """How a model of one family is put together: its layers, their paths, what is not in them."""

    layer: Initialise
    path: str = "model.layers.{}.mixer"
    norm: str | None = "model.layers.{}.norm.weight"
    config: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 3
    shared: Callable[[int], State] | None = None
    """Tensors of the whole model: (number of layers) → state."""
    fixed: frozenset[str] = frozenset()
    """Local names of tensors that are never trained."""


def uniform(g: Generator, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def normal(g: Generator, *shape: int, std: float = 1.0) -> Tensor:
    return std * torch.randn(shape, generator=g)


def linear(g: Generator, rows: int, columns: int) -> Tensor:
    """torch.nn.Linear's weight."""
    return uniform(g, rows, columns) / math.sqrt(columns)


def log_step(g: Generator, *shape: int) -> Tensor:
    """log Δ, Δ log-uniform in [0.001, 0.1]."""
    return uniform(g, *shape, low=math.log(1e-3), high=math.log(1e-1))


def step_bias(g: Generator, *shape: int) -> Tensor:
    """softplus⁻¹(Δ), Δ log-uniform in [0.001, 0.1] and at least 1e-4 (mamba_ssm)."""
    step = log_step(g, *shape).exp().clamp(min=1e-4)
    return step + (-torch.expm1(-step)).log()


def skew_spectrum(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """S4's NPLR form of HiPPO-LegS: w = −1/2 + iω (upper half), P and B in its eigenbasis; complex64 (size/2,)."""
    n = torch.arange(size, dtype=torch.float64)
    p, b = (n + 0.5).sqrt(), (2 * n + 1).sqrt()
    A = -torch.tril(b[:, None] * b[None], -1) - torch.diag(n + 1)
    skew = A + p[:, None] * p[None] + 0.5 * torch.eye(size, dtype=torch.float64)
    omega, V = torch.linalg.eigh((-1j * skew).to(torch.complex128))
    upper = omega > 0
    w = -0.5 + 1j * omega[upper]
    V = V[:, upper]
    return w.cfloat(), (V.conj().T @ p.cdouble()).cfloat(), (V.conj().T @ b.cdouble()).cfloat()


def pairs(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()).clone()


# state-spaces/mamba, hustvl/Vim, MzeroMiko/VMamba, Zyphra's Zamba, pfnet/plamo-2

CHANNELS, MODES, MODEL, HEADS = 256, 16, 128, 32


def rates(*rows: int, modes: int = MODES) -> Tensor:
    """S4D-Real, log 1 … log N in every row."""
    return torch.arange(1, modes + 1).float().log().expand(*rows, modes).clone()


def mamba(g: Generator, layer: int, layers: int) -> State:
    rank = MODEL // 16
    return {
        "A_log": rates(CHANNELS),
        "D": torch.ones(CHANNELS),
        "in_proj.weight": linear(g, 2 * CHANNELS, MODEL),
        "conv1d.weight": uniform(g, CHANNELS, 1, 4) / 2,
        "conv1d.bias": uniform(g, CHANNELS) / 2,
        "x_proj.weight": linear(g, rank + 2 * MODES, CHANNELS),
        "dt_proj.weight": uniform(g, CHANNELS, rank) * rank**-0.5,
        "dt_proj.bias": step_bias(g, CHANNELS),
        "out_proj.weight": linear(g, MODEL, CHANNELS) / math.sqrt(layers),
    }


def vim(g: Generator, layer: int, layers: int) -> State:
    forward, backward = mamba(g, layer, layers), mamba(g, layer, layers)
    local = ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias")
    both = {"A_b_log": "A_log", "D_b": "D", **{name.replace(".", "_b."): name for name in local}}
    return forward | {name: backward[source] for name, source in both.items()}


def vmamba(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_logs": rates(4 * CHANNELS),
        "Ds": torch.ones(4 * CHANNELS),
        "dt_projs_weight": uniform(g, 4, CHANNELS, 8) * 8**-0.5,
        "dt_projs_bias": step_bias(g, 4, CHANNELS),
        "x_proj_weight": uniform(g, 4, 8 + 2 * MODES, CHANNELS) / 16,
    }


def hymba(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_log.0": rates(CHANNELS),
        "D.0": torch.ones(CHANNELS),
        "dt_proj.0.weight": uniform(g, CHANNELS, 8) * 8**-0.5,
        "dt_proj.0.bias": step_bias(g, CHANNELS),
        "conv1d.bias": uniform(g, CHANNELS) / 2,
    }


def zamba(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_log": rates(2, CHANNELS),
        "D": torch.ones(2, CHANNELS),
        "dt_proj_weight": uniform(g, 2, CHANNELS, 8) * 8**-0.5,
        "dt_proj_bias": step_bias(g, 2, CHANNELS),
        "x_proj_weight": uniform(g, 2, 8 + 2 * MODES, CHANNELS) / 16,
    }


def mamba2(g: Generator, layer: int, layers: int) -> State:
    width = CHANNELS + 2 * 64
    return {
        "A_log": uniform(g, HEADS, low=1, high=16).log(),
        "D": torch.ones(HEADS),
        "dt_bias": step_bias(g, HEADS),
        "in_proj.weight": linear(g, CHANNELS + width + HEADS, MODEL),
        "conv1d.weight": uniform(g, width, 1, 4) / 2,
        "conv1d.bias": uniform(g, width) / 2,
        "norm.weight": torch.ones(CHANNELS),
        "out_proj.weight": linear(g, MODEL, CHANNELS),
    }


def mamba3(g: Generator, layer: int, layers: int) -> State:
    return {
        "dt_bias": step_bias(g, HEADS),
        "B_bias": torch.ones(HEADS, 1, 64),
        "C_bias": torch.ones(HEADS, 1, 64),
        "B_norm.weight": torch.ones(64),
        "C_norm.weight": torch.ones(64),
        "D": torch.ones(HEADS),
        "in_proj.weight": linear(g, 2 * CHANNELS + 2 * 64 + 3 * HEADS + 32, MODEL),
    }


def plamo2(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_log": torch.arange(1, HEADS + 1).float().log(),
        "D": torch.ones(HEADS),
        "dt_bias": step_bias(g, HEADS),
        "dt_norm_weight": torch.ones(8),
        "bcdt_proj.weight": linear(g, 2 * 64 + 8, CHANNELS),
        "dt_proj.weight": linear(g, HEADS, 8),
    }


# fla-org/flash-linear-attention, MoonshotAI's KDA


def gated_delta_net(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_log": uniform(g, HEADS, low=1e-3, high=16).log(),
        "dt_bias": step_bias(g, HEADS),
        "a_proj.weight": linear(g, HEADS, MODEL),
        "b_proj.weight": linear(g, HEADS, MODEL),
        "q_proj.weight": linear(g, MODEL, MODEL),
        "o_norm.weight": torch.ones(16),
    }


def kda(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_log": uniform(g, HEADS, low=1, high=16).log(),
        "dt_bias": step_bias(g, HEADS * 16),
        "f_proj.0.weight": linear(g, 16, MODEL),
        "f_proj.1.weight": linear(g, HEADS * 16, 16),
        "b_proj.weight": linear(g, HEADS, MODEL),
        "o_norm.weight": torch.ones(16),
    }


def gla(g: Generator, layer: int, layers: int) -> State:
    return {
        "gk_proj.0.weight": linear(g, 16, MODEL),
        "gk_proj.1.weight": linear(g, MODEL, 16),
        "gk_proj.1.bias": torch.zeros(MODEL),
        "g_norm_swish_gate.weight": torch.ones(32),
    }


def hgrn(g: Generator, layer: int, layers: int) -> State:
    return {f"{name}_proj.weight": linear(g, MODEL, MODEL) for name in "ifgo"} | {"g_norm.weight": torch.ones(MODEL)}


def lower_bounds(layers: int) -> State:
    return {"model.lower_bounds": torch.zeros(layers, MODEL)}


def min_gru(g: Generator, layer: int, layers: int) -> State:
    return {"to_hidden_and_gate.weight": linear(g, 2 * MODEL, MODEL)}


def torch_recurrence(g: Generator, gates: int) -> State:
    """torch.nn.LSTM, GRU and RNN of two layers: all weights are uniform within 1/√hidden."""
    spread = MODEL**-0.5
    shapes = {"weight_ih": (gates * MODEL, MODEL), "weight_hh": (gates * MODEL, MODEL)}
    shapes |= {"bias_ih": (gates * MODEL,), "bias_hh": (gates * MODEL,)}
    return {
        f"{name}_l{layer}": uniform(g, *shape, low=-spread, high=spread)
        for layer in range(2) for name, shape in shapes.items()
    }  # fmt: skip


def lstm(g: Generator, layer: int, layers: int) -> State:
    return torch_recurrence(g, 4)


def gru(g: Generator, layer: int, layers: int) -> State:
    return torch_recurrence(g, 3)


def rnn(g: Generator, layer: int, layers: int) -> State:
    return torch_recurrence(g, 1)


def retention(g: Generator, layer: int, layers: int) -> State:
    """microsoft/torchscale: γ = 1 − 2^(−5−h)."""
    return {"decay": (1 - 2 ** (-5 - torch.arange(8).float())).log(), "angle": 10000 ** -uniform(g, 64, low=0)}


def lightning(g: Generator, layer: int, layers: int) -> State:
    """transformers, minimax: slopes 2^(−8h/H), shallower layer by layer."""
    slope = 2 ** (-8 * torch.arange(1, HEADS + 1) / HEADS) * (1 - layer / (layers - 1 + 1e-5) + 1e-5)
    return {"slope_rate": slope[:, None, None], "qkv_proj.weight": linear(g, 3 * MODEL, MODEL)}


def mlstm(g: Generator, layer: int, layers: int) -> State:
    """NX-AI/xlstm: forget gates' biases from 3 to 6."""
    return {
        "mlstm_cell.fgate.weight": torch.zeros(4, 3 * MODEL),
        "mlstm_cell.fgate.bias": torch.linspace(3, 6, 4),
        "mlstm_cell.igate.weight": torch.zeros(4, 3 * MODEL),
        "mlstm_cell.igate.bias": normal(g, 4, std=0.1),
        "mlstm_cell.outnorm.weight": torch.zeros(MODEL),
    }


def mlstm_large(g: Generator, layer: int, layers: int) -> State:
    return {
        "fgate_preact.bias": torch.linspace(3, 6, 8),
        "fgate_preact.weight": torch.zeros(8, MODEL),
        "igate_preact.bias": torch.full((8,), -10.0),
        "igate_preact.weight": torch.zeros(8, MODEL),
    }


def rg_lru(g: Generator, layer: int, layers: int) -> State:
    """google-deepmind/recurrentgemma: exp(−2 softplus(w)) uniform in [0.9², 0.999²]."""
    squared = uniform(g, CHANNELS, low=0.9**2 + 1e-8, high=0.999**2 + 1e-8)
    return {
        "recurrent_param": (-0.5 * squared.log()).expm1().log(),
        "recurrent_gate_weight": normal(g, 4, CHANNELS // 4, CHANNELS // 4, std=(CHANNELS // 4) ** -0.5),
        "recurrent_gate_bias": torch.zeros(4, CHANNELS // 4),
    }


# BlinkDL/RWKV-LM


def _ramp(layer: int, layers: int, size: int, *, low: float, span: float, power: float = 0.7) -> Tensor:
    position = torch.arange(size).float() / (size - 1)
    return low + span * position ** (power + 1.3 * layer / (layers - 1))


def rwkv4(g: Generator, layer: int, layers: int) -> State:
    zigzag = 0.5 * torch.tensor([(i + 1) % 3 - 1 for i in range(MODEL)])
    return {
        "time_decay": _ramp(layer, layers, MODEL, low=-5, span=8),
        "time_first": math.log(0.3) + zigzag,
        "time_mix_k": uniform(g, 1, 1, MODEL, low=0),
    }


def rwkv5(g: Generator, layer: int, layers: int) -> State:
    decay = _ramp(layer, layers, MODEL, low=-6, span=5).reshape(8, -1)
    return {"time_decay": decay, "time_faaaa": 0.5 + 0 * decay, "ln_x.weight": torch.ones(MODEL)}


def rwkv6(g: Generator, layer: int, layers: int) -> State:
    return {
        "time_decay": _ramp(layer, layers, MODEL, low=-6, span=5).reshape(1, 1, -1),
        "time_decay_w1": torch.zeros(MODEL, 64),
        "time_decay_w2": uniform(g, 64, MODEL) * 0.01,
        "time_faaaa": torch.full((8, MODEL // 8), 0.5),
        "ln_x.weight": torch.ones(MODEL),
    }


def rwkv7(g: Generator, layer: int, layers: int) -> State:
    position = torch.arange(MODEL).float() / (MODEL - 1)
    speed = -7 + 5 * position ** (0.85 + (layer / (layers - 1)) ** 0.5)
    return {
        "w0": (speed + 0.5).reshape(1, 1, -1),
        "w1": torch.zeros(MODEL, 32),
        "w2": normal(g, 32, MODEL, std=0.03),
        "r_k": torch.full((8, MODEL // 8), -0.04),
        "k_k": torch.full((1, 1, MODEL), 0.85),
        "ln_x.weight": torch.full((MODEL,), ((1 + layer) / layers) ** 0.7),
    }


# state-spaces/s4, ag1988/dss, HazyResearch/H3, radarFudan/StableSSM, srush/annotated-s4

WIDTH, STATES = 64, 32


def s4d_minimal(g: Generator, layer: int, layers: int) -> State:
    return {
        "kernel.C": normal(g, WIDTH, STATES, 2, std=0.5**0.5),
        "kernel.log_dt": log_step(g, WIDTH),
        "kernel.log_A_real": torch.full((WIDTH, STATES), math.log(0.5)),
        "kernel.A_imag": math.pi * torch.arange(STATES).float().expand(WIDTH, STATES).clone(),
        "D": normal(g, WIDTH),
    }


def stablessm(g: Generator, layer: int, layers: int) -> State:
    return s4d_minimal(g, layer, layers) | {"kernel.log_A_real": torch.full((WIDTH, STATES), 1.3784)}


def s4d(g: Generator, layer: int, layers: int) -> State:
    w, _, _ = skew_spectrum(2 * STATES)
    return {
        "A_real": (-w.real).log()[None],
        "A_imag": w.imag[None].clone(),
        "B": torch.stack([torch.ones(1, 1, STATES), torch.zeros(1, 1, STATES)], -1),
        "C": normal(g, 1, WIDTH, STATES, 2, std=0.5**0.5),
        "inv_dt": log_step(g, WIDTH, 1),
    }


def s4d_real(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_real": rates(WIDTH, modes=STATES),
        "B": torch.ones(1, WIDTH, STATES),
        "C": normal(g, 1, WIDTH, STATES),
        "inv_dt": log_step(g, WIDTH, 1),
    }


def s4(g: Generator, layer: int, layers: int) -> State:
    w, P, B = skew_spectrum(2 * STATES)
    return {
        "A_real": (-w.real).log()[None],
        "A_imag": -w.imag[None],
        "P": pairs(P)[None, None],
        "B": pairs(B)[None, None],
        "C": normal(g, 1, WIDTH, STATES, 2, std=0.5**0.5),
        "inv_dt": log_step(g, WIDTH, 1),
        "l_kernel": torch.tensor(0),
    }


def s4_v3(g: Generator, layer: int, layers: int) -> State:
    new = s4(g, layer, layers)
    kept = {name: new[name] for name in ("P", "B", "C")}
    return kept | {
        "inv_w_real": new["A_real"],
        "w_imag": -new["A_imag"],
        "log_dt": new["inv_dt"][:, 0],
        "L": torch.tensor(0),
    }


def h3(g: Generator, layer: int, layers: int) -> State:
    diagonal = s4d(g, layer, layers)
    kernel = {
        "inv_A_real": diagonal["A_real"].expand(WIDTH, -1).clone(),
        "A_imag": diagonal["A_imag"].expand(WIDTH, -1).clone(),
        "B": diagonal["B"][0].expand(WIDTH, -1, -1).clone(),
        "C": diagonal["C"],
        "log_dt": diagonal["inv_dt"][:, 0],
    }
    return {f"kernel.kernel.{name}": value for name, value in kernel.items()} | {
        "ssm_k_kernel.kernel.C": normal(g, 1, MODEL, STATES),
        "ssm_k_kernel.kernel.B": torch.eye(STATES)[:1].expand(MODEL, -1).clone(),
        "ssm_k_D": normal(g, MODEL),
        "D": normal(g, WIDTH),
    }


def dss(g: Generator, layer: int, layers: int) -> State:
    w, _, _ = skew_spectrum(2 * STATES)
    return {
        "Lambda": pairs(w),
        "W": normal(g, 1, WIDTH, STATES, 2),
        "log_dt": log_step(g, WIDTH),
        "D": normal(g, WIDTH),
    }


def dss_exp(g: Generator, layer: int, layers: int) -> State:
    w, _, _ = skew_spectrum(2 * STATES)
    return {
        "Lambda_log_neg_re": (-w.real).log(),
        "Lambda_im": w.imag.clone(),
        "W": normal(g, 1, WIDTH, STATES, 2),
        "log_dt": log_step(g, WIDTH),
    }


def annotated_s4d(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_re": torch.full((STATES, WIDTH), -0.5),
        "A_im": (math.pi * torch.arange(STATES).float())[:, None].expand(-1, WIDTH).clone(),
        "C": normal(g, STATES, WIDTH, 2, std=0.5**0.5),
        "D": torch.ones(1, WIDTH),
        "log_step": log_step(g, 1, WIDTH),
    }


def annotated_s4(g: Generator, layer: int, layers: int) -> State:
    w, P, B = skew_spectrum(2 * STATES)
    return {
        "Lambda_re": w.real[:, None].expand(-1, WIDTH).clone(),
        "Lambda_im": w.imag[:, None].expand(-1, WIDTH).clone(),
        "P": P[:, None].expand(-1, WIDTH).clone(),
        "B": B[:, None].expand(-1, WIDTH).clone(),
        "C": normal(g, STATES, WIDTH, 2, std=0.5**0.5),
        "D": torch.ones(1, WIDTH),
        "log_step": log_step(g, 1, WIDTH),
    }


# lindermanlab/S5, NicolasZucchet/minimal-LRU, tk-rusch/linoss


def s5(g: Generator, layer: int, layers: int) -> State:
    w, _, _ = skew_spectrum(2 * STATES)
    return {
        "Lambda_re": w.real.clone(),
        "Lambda_im": -w.imag,
        "B": normal(g, STATES, WIDTH, 2, std=WIDTH**-0.5),
        "C": normal(g, WIDTH, STATES, 2, std=STATES**-0.5),
        "D": normal(g, WIDTH),
        "log_step": log_step(g, STATES, 1),
    }


def lru(g: Generator, layer: int, layers: int) -> State:
    """minimal-LRU at its defaults: |λ| over the unit disc, phases up to 6.28."""
    squared = torch.rand(WIDTH, generator=g)
    nu = (-0.5 * squared.log()).log()
    weights = {f"{m}_{part}": normal(g, WIDTH, WIDTH, std=(2 * WIDTH) ** -0.5) for m in "BC" for part in ("re", "im")}
    return weights | {
        "nu_log": nu,
        "theta_log": (6.28 * torch.rand(WIDTH, generator=g)).log(),
        "gamma_log": (1 - squared).log() / 2,
        "D": normal(g, WIDTH),
    }


def lru_long(g: Generator, layer: int, layers: int) -> State:
    """minimal-LRU as run on the Long Range Arena: a ring from 0.9 to 0.999."""
    squared = uniform(g, WIDTH, low=0.9**2, high=0.999**2)
    return lru(g, layer, layers) | {"nu_log": (-0.5 * squared.log()).log(), "gamma_log": (1 - squared).log() / 2}


def linoss(g: Generator, layer: int, layers: int) -> State:
    return {
        "A_diag": torch.rand(STATES, generator=g),
        "steps": torch.rand(STATES, generator=g),
        "B": uniform(g, STATES, WIDTH, 2) * WIDTH**-0.5,
        "C": uniform(g, WIDTH, STATES, 2) * STATES**-0.5,
        "D": normal(g, WIDTH),
    }


# facebookresearch/mega, XuezheMax/megalodon, radarFudan/Curse-of-memory


def mega(g: Generator, layer: int, layers: int) -> State:
    signs = torch.ones(16)
    signs[1::2] = -1
    return {
        "delta": normal(g, MODEL, 16, 1, std=0.2),
        "alpha": normal(g, MODEL, 16, 1, std=0.2),
        "beta": signs[:, None] + normal(g, MODEL, 16, 1, std=0.02),
        "gamma": normal(g, MODEL, 16),
        "omega": normal(g, MODEL),
    }


def megalodon(g: Generator, layer: int, layers: int) -> State:
    share = torch.exp(-math.log(MODEL) / MODEL * torch.arange(1, MODEL + 1).float())
    return {
        "alpha": normal(g, MODEL, 16, 1, std=0.2),
        "delta": normal(g, MODEL, 16, 1, std=0.2),
        "theta": (share / (1 - share)).log()[:, None, None],
        "gamma": normal(g, MODEL, 16, 2),
        "omega": normal(g, MODEL, 1),
    }


def curse_of_memory(g: Generator, layer: int, layers: int) -> State:
    return {"W.weight": torch.rand(STATES, generator=g, dtype=torch.float64)}


def curse_of_memory_coupled(g: Generator, layer: int, layers: int) -> State:
    P, _ = torch.linalg.qr(torch.randn(STATES, STATES, generator=g, dtype=torch.float64))
    return curse_of_memory(g, layer, layers) | {"P.weight": P.contiguous()}


_S4_PATH = "model.layers.{}.layer.layer.kernel"
_FLA = "model.layers.{}.attn"
_RWKV = {"path": "blocks.{}.att", "norm": "blocks.{}.ln1.weight"}
_LONG = {"max_position_embeddings": 2048}

ARCHITECTURES: dict[str, Architecture] = {
    "mamba": Architecture(mamba, config=_LONG),
    "vim": Architecture(vim),
    "vmamba": Architecture(vmamba),
    "hymba": Architecture(hymba, "model.layers.{}.mamba", config=_LONG),
    "zamba": Architecture(zamba, "model.layers.{}.mamba", config=_LONG),
    "mamba2": Architecture(mamba2, config=_LONG),
    "mamba3": Architecture(mamba3, config=_LONG),
    "plamo2": Architecture(plamo2, config=_LONG),
    "gated-deltanet": Architecture(gated_delta_net, _FLA, config=_LONG),
    "kda": Architecture(kda, _FLA, config=_LONG),
    "gla": Architecture(gla, _FLA, config=_LONG | {"num_heads": 4}),
    "hgrn": Architecture(hgrn, _FLA, config=_LONG, shared=lower_bounds),
    "min-gru": Architecture(min_gru, "layers.{}.1"),
    "lstm": Architecture(lstm, "rnns.{}"),
    "gru": Architecture(gru, "rnns.{}", config=_LONG),
    "rnn": Architecture(rnn, "rnns.{}", config=_LONG),
    "retnet": Architecture(
        retention, "decoder.retnet_rel_pos", "decoder.norm.weight", layers=1, fixed=frozenset({"decay", "angle"})
    ),
    "minimax": Architecture(lightning, "model.layers.{}.self_attn", config=_LONG, fixed=frozenset({"slope_rate"})),
    "mlstm": Architecture(mlstm, "blocks.{}.xlstm"),
    "mlstm-large": Architecture(mlstm_large, "backbone.blocks.{}.mlstm_layer"),
    "rg-lru": Architecture(rg_lru, "model.layers.{}.temporal_block.rg_lru", config=_LONG),
    "rwkv4": Architecture(rwkv4, **_RWKV, config={"ctx_len": 1024}),
    "rwkv5": Architecture(rwkv5, **_RWKV, config={"ctx_len": 4096}),
    "rwkv6": Architecture(rwkv6, **_RWKV, config={"ctx_len": 4096}),
    "rwkv7": Architecture(rwkv7, **_RWKV, config={"ctx_len": 4096}),
    "s4d-minimal": Architecture(s4d_minimal, "s4_layers.{}", "norms.{}.weight", config={"l_max": 1024}),
    "stablessm": Architecture(stablessm, "stablessm_layers.{}", config={"parameterization": "best", "l_max": 1024}),
    "s4d": Architecture(s4d, _S4_PATH, config={"l_max": 1024}),
    "s4d-real": Architecture(s4d_real, _S4_PATH, config={"l_max": 1024}),
    "s4": Architecture(s4, _S4_PATH, config={"l_max": 1024}, layers=2),
    "s4-v3": Architecture(s4_v3, "model.layers.{}.layer.kernel.kernel", layers=2),
    "h3": Architecture(h3, "backbone.layers.{}.mixer", config={"l_max": 2048}),
    "dss": Architecture(dss, "layers.{}.kernel", config={"l_max": 1024}),
    "dss-exp": Architecture(dss_exp, "layers.{}.kernel", config={"l_max": 1024}),
    "annotated-s4d": Architecture(annotated_s4d, "params.layers_{}.seq"),
    "annotated-s4": Architecture(annotated_s4, "params.layers_{}.seq", config={"l_max": 784}, layers=2),
    "s5": Architecture(s5, "params.encoder.layers_{}.seq", "params.encoder.layers_{}.norm.scale"),
    "lru": Architecture(lru, "params.encoder.layers_{}.seq", "params.encoder.layers_{}.norm.scale"),
    "lru-long": Architecture(lru_long, "params.encoder.layers_{}.seq", config={"seq_len": 1024}),
    "linoss": Architecture(linoss, "blocks.{}.ssm"),
    "mega": Architecture(mega, "encoder.layers.{}.mega_layer.move"),
    "megalodon": Architecture(megalodon, "layers.{}.mega.cema"),
    "curse-of-memory": Architecture(curse_of_memory, "net", None, {"dt": "0.33"}, layers=1),
    "curse-of-memory-coupled": Architecture(curse_of_memory_coupled, "net", None, {"dt": "0.33"}, layers=1),
}  # fmt: skip
"""Models by name. No context where the published models have none of their own."""
