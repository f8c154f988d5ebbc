"""Layers with the tensors of the original repositories, whose decay at a token is computed from the tokens up to it.

Each follows its repository's formula token by token, so that nothing is shared with the clocks but the paper.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

WIDTH = 6


class Original(nn.Module):
    """A layer that multiplies its state by `decay` at each token, and remembers what it multiplied it with."""

    def __init__(self, without: tuple[str, ...] = (), **parts: nn.Module | tuple[int, ...]) -> None:
        super().__init__()
        self.decays: list[Tensor] = []
        for name, part in parts.items():
            if name not in without:
                setattr(self, name, nn.Parameter(torch.empty(part)) if isinstance(part, tuple) else part)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        """Return λ̄ (batch, channel or head and key, mode) at the last token of `past` (batch, time, feature)."""
        raise NotImplementedError

    def forward(self, input: Tensor, **given: Any) -> Tensor:
        state: Any = 0.0
        self.decays = []
        for time in range(input.shape[1]):
            factor = self.decay(input[:, : time + 1], **given)
            self.decays.append(factor.flatten(1))
            state = factor * state + 1
        return input + state.flatten(1).mean(1)[:, None, None]


def dense(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def shifted(past: Tensor, mix: Tensor) -> Tensor:
    """Return the last token moved by `mix` towards the one before it."""
    before = past[:, -2] if past.shape[1] > 1 else torch.zeros_like(past[:, -1])
    return past[:, -1] * (1 - mix) + before * mix


def weighted(past: Tensor, convolution: nn.Conv1d) -> Tensor:
    """Return a causal depthwise convolution at the last token."""
    taps = convolution.weight[:, 0].T.flip(0)  # the present first
    total = sum(past[:, -1 - lag] * tap for lag, tap in enumerate(taps) if lag < past.shape[1])
    return total if convolution.bias is None else total + convolution.bias


def convolved(past: Tensor, convolution: nn.Conv1d) -> Tensor:
    """Return SiLU of it."""
    return nn.functional.silu(weighted(past, convolution))


class GLA(Original):
    gate_logit_normalizer, clamp_min = 16, -0.03

    def __init__(self) -> None:
        super().__init__(gk_proj=nn.Sequential(dense(WIDTH, 2), dense(2, 4, bias=True)))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return (self.gk_proj(past[:, -1]).sigmoid() ** (1 / 16)).clamp(min=math.exp(-0.03))


class SimpleGLA(Original):
    gate_logit_normalizer = 4

    def __init__(self) -> None:
        super().__init__(gk_proj=dense(WIDTH, 3, bias=True))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return self.gk_proj(past[:, -1]).sigmoid() ** 0.25


class GatedSlots(Original):
    gate_logit_normalizer = 8

    def __init__(self) -> None:
        super().__init__(f_proj=dense(WIDTH, 4))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return self.f_proj(past[:, -1]).sigmoid() ** (1 / 8)


class MesaNet(Original):
    """Its two stores have one decay; `lambda_params` belongs to the solver that reads them."""

    def __init__(self) -> None:
        super().__init__(a_proj=dense(WIDTH, 3, bias=True), b_proj=dense(WIDTH, 3, bias=True), lambda_params=(6,))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return self.a_proj(past[:, -1]).sigmoid()


class LrnnxRGLRU(Original):
    """The gate is dense, behind a projection and a convolution; a = sigmoid(a_log)."""

    c = 8.0

    def __init__(self) -> None:
        convolution = nn.Conv1d(4, 4, 4, padding=3, groups=4)
        super().__init__(
            in_proj=dense(WIDTH, 4), conv1d=convolution, recurrent_gate_proj=dense(4, 4, bias=True), a_log=(4, 1)
        )

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        gate = self.recurrent_gate_proj(weighted(self.in_proj(past), self.conv1d)).sigmoid()
        return self.a_log[:, 0].sigmoid() ** (self.c * gate)


class S7(Original):
    """Its eigenvalues can be negative: what is remembered is their size."""

    d_state = 3

    def __init__(self) -> None:
        super().__init__(
            in_proj=dense(WIDTH, WIDTH), x_proj=dense(WIDTH, 3 + 2 * 3 * WIDTH + WIDTH + 3), base_params=(3,)
        )

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        moved = self.base_params + self.x_proj(self.in_proj(past[:, -1]))[:, :3]
        return (1 - 1 / (moved * moved + 0.5)).abs()


class Raven(Original):
    """A token's decay applies to the slots that the router chooses for it, each by its weight."""

    num_slots, topk, router_score, gate_logit_normalizer = 4, 2, "sigmoid", 8

    def __init__(self, gla: bool = False, score: str = "sigmoid", bias: bool = False) -> None:
        gate = {"f_proj": dense(WIDTH, 8)} if gla else {"a_proj": dense(WIDTH, 2), "A_log": (2,), "dt_bias": (2,)}
        super().__init__(r_proj=dense(WIDTH, 8), **gate, **({"r_bias": (2, 4)} if bias else {}))
        self.router_score, self.bias_rmm, self.gla = score, bias, gla

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        now = past[:, -1]
        scores = self.r_proj(now).reshape(len(now), 2, 4)
        scores = scores.sigmoid() if self.router_score == "sigmoid" else scores.softmax(-1)
        rank = scores + self.r_bias if self.bias_rmm else scores
        weights = scores * (rank >= rank.sort(-1).values[..., -2:-1])
        if self.router_score == "sigmoid":
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
        if self.gla:
            rate = (1 + (-self.f_proj(now)).exp()).log().reshape(len(now), 2, 4) / 8
        else:
            rate = (self.A_log.exp() * (1 + (self.a_proj(now) + self.dt_bias).exp()).log())[..., None]
        return (-rate * weights).exp()


class Rodimus(Original):
    """Its gates read a short convolution of the projected input."""

    def __init__(self) -> None:
        convolution = nn.Conv1d(8, 8, 4, padding=3, groups=8)
        gates: dict[str, nn.Module] = {name: dense(8, 4, bias=True) for name in ("g_gate_proj", "tau_gate_proj")}
        gates["i_gate_proj"] = nn.Sequential(dense(8, 2), dense(2, 8, bias=True))
        super().__init__(up_proj=dense(WIDTH, 8), short_conv=convolution, residual_weight=(8,), **gates)
        self.use_short_conv = True

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        inner = convolved(self.up_proj(past), self.short_conv)
        rate = (1 + self.g_gate_proj(inner).exp()).log()
        return (-rate * self.tau_gate_proj(inner).sigmoid()).exp()


class ShortConvolution(nn.Conv1d):
    """fla's, which returns its state too."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2), None


class HGRN(Original):
    """The second layer of three has a convolution behind its gate."""

    def __init__(self, layer_idx: int = 0) -> None:
        super().__init__(f_proj=dense(WIDTH, WIDTH), i_proj=dense(WIDTH, WIDTH), g_norm=nn.RMSNorm(WIDTH))
        self.layer_idx = layer_idx
        if layer_idx == 1:
            self.f_conv1d = ShortConvolution(WIDTH, WIDTH, 4, padding=3, groups=WIDTH, bias=False)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        bound = given["lower_bound"] if self.layer_idx else 0.0
        gate = self.f_proj(past[:, -1])
        if self.layer_idx == 1:
            gate = weighted(self.f_proj(past), self.f_conv1d)
        return bound + (1 - bound) * gate.sigmoid()


class HGRNModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower_bounds = nn.Parameter(torch.empty(3, WIDTH))
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": HGRN(number)}) for number in range(3))

    def forward(self, input: Tensor) -> Tensor:
        shares = self.lower_bounds.softmax(0)
        for number, layer in enumerate(self.layers):
            bound = shares[1 : number + 1].sum(0) if number else shares[0]  # the first layer ignores it
            input = layer["attn"](input, lower_bound=bound)
        return input


class RWKV6(Original):
    """BlinkDL's; the mix of the decay is the first of five."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        mixes = {"time_maa_x": (1, 1, WIDTH), "time_maa_w": (1, 1, WIDTH), "time_maa_w1": (WIDTH, 10)}
        decay = {"time_decay": (1, 1, 8), "time_decay_w1": (WIDTH, 3), "time_decay_w2": (3, 8)}
        super().__init__(without, **mixes, **decay, time_maa_w2=(5, 2, WIDTH), time_faaaa=(2, 4))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        first = (shifted(past, self.time_maa_x[0]) @ self.time_maa_w1[:, :2]).tanh() @ self.time_maa_w2[0]
        mixed = shifted(past, self.time_maa_w[0] + first)
        rate = (self.time_decay[0] + (mixed @ self.time_decay_w1).tanh() @ self.time_decay_w2).exp()
        return (-rate).exp()


class FlaMix(nn.Module):
    """fla's interpolation between a token and the one before it, and a projection of it in two factors."""

    def __init__(self, outputs: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Module()
        self.linear.lora = nn.Sequential(dense(WIDTH, rank), nn.Tanh(), dense(rank, outputs, bias=bias))

    def forward(self, x: Tensor, mu: Tensor, delta: Tensor) -> Tensor:
        return self.linear.lora(x + delta * mu)


class FlaFirstMix(FlaMix):
    def __init__(self, outputs: int, rank: int) -> None:
        super().__init__(outputs, rank, bias=True)
        self.mu = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor, delta: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, self.mu, delta)


class FlaRWKV6(Original):
    """The mix of the decay is the second of five."""

    def __init__(self) -> None:
        first = nn.Sequential(FlaFirstMix(10, 3), nn.Tanh(), dense(10, WIDTH))
        super().__init__(x_proj=first, x_bias=(5, WIDTH), w_proj=FlaMix(8, 3, bias=True), bonus=(2, 4))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        low = self.x_proj[0].linear.lora(shifted(past, self.x_proj[0].mu)).tanh()[:, 2:4]
        mix = linear(low, self.x_proj[2].weight[:, 2:4]) + self.x_bias[1]
        return (-self.w_proj.linear.lora(shifted(past, mix)).exp()).exp()


class RWKV7(Original):
    def __init__(self) -> None:
        super().__init__(x_w=(1, 1, WIDTH), w0=(1, 1, 8), w1=(WIDTH, 3), w2=(3, 8), r_k=(2, 4), k_k=(1, 1, 8))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        gate = self.w0[0] + (shifted(past, self.x_w[0]) @ self.w1).tanh() @ self.w2
        w = -nn.functional.softplus(-gate) - 0.5  # as its training code writes it
        return (-w.exp()).exp()


class FlaRWKV7(Original):
    def __init__(self) -> None:
        super().__init__(x_w=(1, 1, WIDTH), r_k=(2, 4), w_lora=nn.Module())
        self.w_lora.lora = nn.Sequential(dense(WIDTH, 3), nn.Tanh(), dense(3, 8, bias=True))
        self.w_lora.forward = self.w_lora.lora.forward

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return (-0.6065306597126334 * self.w_lora.lora(shifted(past, self.x_w[0])).sigmoid()).exp()


class MinGRU(Original):
    def __init__(self) -> None:
        super().__init__(to_hidden_and_gate=dense(WIDTH, 10))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return 1 - self.to_hidden_and_gate(past[:, -1])[:, 5:].sigmoid()


class MinLSTM(Original):
    def __init__(self) -> None:
        super().__init__(to_hidden_and_f_i_gate=dense(WIDTH, 15))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        _, forget, take = self.to_hidden_and_f_i_gate(past[:, -1]).sigmoid().chunk(3, -1)
        return forget / (forget + take)


class PLaMo2(Original):
    """Two heads of 3; for each, in_proj gives the gate z and then x."""

    def __init__(self) -> None:
        super().__init__(
            in_proj=dense(WIDTH, 12), conv1d=nn.Conv1d(6, 6, 4, groups=6, bias=False), bcdt_proj=dense(6, 8),
            dt_proj=dense(4, 2), dt_norm_weight=(4,), A_log=(2,), dt_bias=(2,), D=(2,),
        )  # fmt: skip
        self.config = SimpleNamespace(rms_norm_eps=1e-3)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        projected = self.in_proj(past)
        x = convolved(torch.cat([projected[..., 3:6], projected[..., 9:12]], dim=-1), self.conv1d)
        low = self.bcdt_proj(x)[:, -4:]
        normed = nn.functional.rms_norm(low, (4,), self.dt_norm_weight, 1e-3)
        return (1 + (self.dt_proj(normed) + self.dt_bias).exp()) ** -self.A_log.exp()


def heavy_tail_activation(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1 + x, 1 / (1 - x))


class Mamba3(Original):
    """Rows of in_proj: z and x (8 each), B and C (4 each), Δ, A and trapezoid (2 each), 2 angles."""

    A_floor, num_rope_angles = 0.6, 2

    def __init__(self) -> None:
        super().__init__(in_proj=dense(WIDTH, 32), dt_bias=(2,), B_bias=(2, 1, 4), C_bias=(2, 1, 4))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        step, rate = self.in_proj(past[:, -1])[:, 24:28].chunk(2, -1)
        return (1 + (step + self.dt_bias).exp()) ** -heavy_tail_activation(rate).clamp(min=0.6)


class CausalConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)


class MLSTM(Original):
    """NX-AI's first: its gates read q, k and v, behind an up-projection and a convolution."""

    def __init__(self) -> None:
        projections = {name: dense(4, 4) for name in ("q_proj", "k_proj", "v_proj")}
        super().__init__(proj_up=dense(WIDTH, 8), conv1d=CausalConv(4), mlstm_cell=nn.Module(), **projections)
        self.conv_act_fn = nn.SiLU()
        self.mlstm_cell.igate, self.mlstm_cell.fgate = dense(12, 2, bias=True), dense(12, 2, bias=True)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        x = self.proj_up(past)[..., :4]
        folded = convolved(x, self.conv1d.conv)
        parts = [self.q_proj(folded), self.k_proj(folded), self.v_proj(x[:, -1])]
        return self.mlstm_cell.fgate(torch.cat(parts, -1)).sigmoid()


class FusedMLSTM(Original):
    """xLSTM-large's: input gates first, then forget gates, in one matrix."""

    def __init__(self, cap: float | None) -> None:
        super().__init__(ifgate_preact=dense(WIDTH, 4, bias=True), qkv_opreact=dense(WIDTH, 16))
        self.config = SimpleNamespace(gate_soft_cap=cap)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        gate = self.ifgate_preact(past[:, -1])[:, 2:]
        cap = self.config.gate_soft_cap
        return (gate if cap is None else cap * (gate / cap).tanh()).sigmoid()


class BlockDiagonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.empty(2, 3, 3)), nn.Parameter(torch.empty(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [part @ w + b for part, w, b in zip(x.chunk(2, -1), self.w, self.b, strict=True)]
        return torch.cat(parts, -1)


class RGLRU(Original):
    """DeepMind's own."""

    def __init__(self) -> None:
        super().__init__(a_param=(6,), a_gate=BlockDiagonal())

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return (1 + self.a_param.exp()) ** (-8 * self.a_gate(past[:, -1]).sigmoid())


class GatedDeltaNet(Original):
    """fla's and Comba's."""

    def __init__(self) -> None:
        super().__init__(a_proj=dense(WIDTH, 3), o_norm=nn.LayerNorm(4, bias=False), A_log=(3,), dt_bias=(3,))

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return (1 + (self.a_proj(past[:, -1]) + self.dt_bias).exp()) ** -self.A_log.exp()


class FirstGatedDeltaNet(Original):
    """NVlabs'."""

    def __init__(self, use_mamba_gate: bool = True) -> None:
        super().__init__(gk_proj=dense(WIDTH, 3, bias=True), A_log=(3,), dt_bias=(3,))
        self.use_mamba_gate = use_mamba_gate

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        return (1 + (self.gk_proj(past[:, -1]) + self.dt_bias).exp()) ** -self.A_log.exp()


class Memories(GatedDeltaNet):
    """fla's mixture of memories."""

    num_memories = 4


class KDA(Original):
    """fla's, with a lower bound; safe_gate only picks a kernel. A_log is padded, as in some checkpoints."""

    def __init__(self, lower_bound: float | None = None, config: dict[str, Any] | None = None) -> None:
        factors = nn.Sequential(dense(WIDTH, 2), dense(2, 8))
        super().__init__(f_proj=factors, b_proj=dense(WIDTH, 2), A_log=(4,), dt_bias=(8,))
        self.lower_bound, self.safe_gate = lower_bound, False
        if config is not None:
            del self.lower_bound
            self.config = SimpleNamespace(**config)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        z = (self.f_proj(past[:, -1]) + self.dt_bias).unflatten(-1, (2, 4))
        slope = self.A_log[:2].exp()[:, None]
        if self.lower_bound is None:
            return (1 + z.exp()) ** -slope
        return (self.lower_bound * (slope * z).sigmoid()).exp()


class GDN2(Original):
    """fla's: it writes channel by channel, and has the plain gate."""

    def __init__(self) -> None:
        writing = {"b_proj": dense(WIDTH, 8), "w_proj": dense(WIDTH, 4)}
        super().__init__(f_proj=nn.Sequential(dense(WIDTH, 2), dense(2, 8)), A_log=(2,), dt_bias=(8,), **writing)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        z = (self.f_proj(past[:, -1]) + self.dt_bias).unflatten(-1, (2, 4))
        return (1 + z.exp()) ** -self.A_log.exp()[:, None]


class Stack(nn.Module):
    """Two layers of one kind, one after the other."""

    def __init__(self, kind: type[nn.Module], config: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config or {}
        self.layers = nn.ModuleList(nn.ModuleDict({"mixer": kind(**settings)}) for _ in range(2))

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.layers:
            input = layer["mixer"](input)
        return input


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a model in float64 with every parameter drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model
