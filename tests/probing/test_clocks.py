"""Clocks of live layers against the decays that each model hands to its own scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mambapy import mamba, vim
from torch import Tensor, nn

from ssmdiag.probing.clocks import ObservedLayer, observing
from ssmdiag.recurrence.clock import Clock
from tests.families.tiny_transformers import TINY, tiny_model
from tests.probing import originals
from tests.probing.originals import Stack, drawn
from tests.probing.own_scans import gates_in_float64, per_layer, recording

_LINEAR = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
_GDN = {**TINY["qwen3_5_moe_text"], **_LINEAR}
TYPES: dict[str, dict[str, Any]] = {
    "mamba2": {"time_step_limit": (0.05, 0.9)},
    "mamba": {},
    "falcon_mamba": {},
    "jamba": {},
    "zamba": {},
    "zamba2": {"time_step_min": 0.3},
    "bamba": {"time_step_limit": (0.05, 0.9)},
    "nemotron_h": {"time_step_min": 0.3},
    "granitemoehybrid": {"time_step_limit": (0.05, 0.9)},
    "falcon_h1": {"ssm_multipliers": [0.7, 0.5, 0.9, 1.3, 2.6], "ssm_in_multiplier": 1.7},
    "qwen3_next": {},
    "qwen3_5_text": {},
    "qwen3_5_moe_text": {},
    "qwen4_exp_text": {
        **_GDN, "ngram_vocab_size_base": 50, "ple_embed_dim": 16, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2,
    },
    "lara_mini": _GDN,
    "olmo_hybrid": {},
    "kimi_linear": {},
    "glm5_next_text": {
        **TINY["kimi_linear"], **_LINEAR, "qk_rope_head_dim": 0, "n_routed_experts": 2, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 16, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 16, "head_dim": 8,
        "linear_lower_bound": -5.0,
    },
    "bailing_hybrid": {},
    "recurrent_gemma": {},
    "xlstm": {"gate_soft_cap": 2.0},
}  # fmt: skip
"""Type of model → settings under which every part of its clock counts."""
FAST = ("mamba2",)
LIMIT = 1e-9
"""Largest relative error; the models' softplus returns its argument above 20."""


def live(model_type: str) -> Any:
    """Return a tiny model in float64, so that no rounding of its gates hides an error."""
    model = tiny_model(model_type, **TYPES[model_type])
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the others refuse float64
    return model


def log_decay(clock: Clock) -> Tensor:
    return -clock.step[..., None] * clock.rate


def tokens(batch: int = 2, length: int = 21) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(1))


def observe(model: Any) -> list[tuple[ObservedLayer, Clock]]:
    found: list[tuple[ObservedLayer, Clock]] = []
    with torch.no_grad(), observing(model, lambda layer, clock: found.append((layer, clock))):
        model(tokens(), use_cache=False)
    return found


def worst(ours: list[Tensor], own: list[Tensor]) -> float:
    """Return the largest relative error over all layers."""
    assert [one.shape for one in ours] == [one.shape for one in own]
    return max(float(((a - b) / b).abs().max()) for a, b in zip(ours, own, strict=True))


@pytest.mark.parametrize(
    "model_type", [pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow]) for kind in TYPES]
)
def test_clock_is_the_decay_that_the_model_hands_to_its_own_scan(model_type: str) -> None:
    model = live(model_type)
    # Where the model itself goes down to float32, its decay and not the clock would be off.
    with recording(model) as scans, gates_in_float64(model):
        found = observe(model)
    own = per_layer(scans, len(found))

    assert worst([log_decay(clock) for _, clock in found], own) <= LIMIT
    for layer, _ in found:
        if layer.family.name in ("gated_delta_net", "kda", "rg_lru", "mlstm"):
            assert_nominal_at_zero_input(layer, model.config.hidden_size)
    # The input moves every layer's decay, or the comparison would show little.
    assert all(float((clock.step.amax(1) / clock.step.amin(1)).max()) > 2 for _, clock in found)


@dataclass
class Without:
    """A module as a clock would see it that overlooks some of its parts."""

    module: Any
    changes: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.changes[name] if name in self.changes else getattr(self.module, name)


OVERLOOKED = {
    "mup_vector": ("falcon_h1", {"mup_vector": torch.ones(1)}),
    "ssm_in_multiplier": ("falcon_h1", {"ssm_in_multiplier": 1.0}),
    "weightless dt_layernorm": ("falcon_mamba", {"dt_layernorm": None}),
    "dt_layernorm": ("jamba", {"dt_layernorm": None}),
    "clamp from the settings": ("mamba2", {"time_step_limit": None}),
    "clamp of its own": ("zamba2", {"time_step_limit": None}),
    "soft cap": ("xlstm", {"config": SimpleNamespace(gate_soft_cap=None)}),
}
"""Part of a clock → a type of model that has it, and what the clock would see without it."""


@pytest.mark.slow
@pytest.mark.parametrize("part", OVERLOOKED)
def test_the_comparison_finds_a_clock_that_overlooks_a_part(part: str) -> None:
    model_type, changes = OVERLOOKED[part]
    model = live(model_type)
    with recording(model) as scans:
        layers = [layer for layer, _ in observe(model)]
    errors = []
    inputs: list[Tensor] = []
    for layer in layers:
        layer.module.register_forward_pre_hook(
            lambda _, given, named: inputs.append([*given, *named.values()][0]), with_kwargs=True
        )
    with torch.no_grad():
        model(tokens(), use_cache=False)
        for layer, input, own in zip(layers, inputs, per_layer(scans, len(layers)), strict=True):
            errors.append(worst([log_decay(layer.compute(Without(layer.module, changes), input))], [own]))
    assert min(errors) > 0.2


@pytest.mark.one_in(5)
@pytest.mark.parametrize("inner_layernorms", [False, True])
@pytest.mark.parametrize("bidirectional", [None, False, True])
def test_clock_of_mambapy_is_the_step_of_its_own_scan(
    inner_layernorms: bool, bidirectional: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"d_model": originals.WIDTH, "n_layers": 2, "d_state": 3, "dt_rank": 2}
    if bidirectional is None:
        model = mamba.Mamba(mamba.MambaConfig(**settings, inner_layernorms=inner_layernorms))
    else:
        model = vim.VMamba(vim.MambaConfig(**settings, inner_layernorms=inner_layernorms, bidirectional=bidirectional))
    own: list[Tensor] = []
    block = type(drawn(model).layers[0].mixer)

    def scan(_: Any, x: Tensor, step: Tensor, A: Tensor, *rest: Tensor) -> Tensor:
        own.append(step[..., None] * A)
        return x

    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(block, "selective_scan", scan)
    found: list[Clock] = []
    with torch.no_grad(), observing(model, lambda _, clock: found.append(clock)):
        model(torch.randn(2, 9, originals.WIDTH, dtype=torch.float64))
    forward = own[:: 2 if bidirectional else 1]  # the scan from the end comes after the one from the start
    assert len(found) == 2
    assert worst([log_decay(clock) for clock in found], forward) <= LIMIT


@pytest.mark.slow
def test_a_quantised_projection_of_the_step_is_called_where_the_model_calls_it() -> None:
    class Packed(nn.Module):
        """Its weight has not the shape of the matrix that it applies."""

        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.matrix, self.bias = linear.weight.detach(), linear.bias
            self.weight = nn.Parameter(torch.zeros(7, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, self.matrix, self.bias)

    model = live("jamba")
    with gates_in_float64(model):
        plain = observe(model)
    for layer, _ in plain:
        layer.module.dt_proj = Packed(layer.module.dt_proj)
    model.config._is_quantized = True
    with recording(model) as scans, gates_in_float64(model):
        found = observe(model)
    assert worst([log_decay(clock) for _, clock in found], per_layer(scans, len(found))) <= LIMIT
    assert worst([log_decay(clock) for _, clock in found], [log_decay(clock) for _, clock in plain]) <= LIMIT


class FlaMamba3(originals.Mamba3):
    """fla's, and that of the first releases: A is a softplus, as this file has no other activation."""

    def forward(self, input: Tensor, **given: Any) -> Tensor:
        return super().forward(input, **given)

    def decay(self, past: Tensor, **given: Any) -> Tensor:
        step, rate = self.in_proj(past[:, -1])[:, 24:28].chunk(2, -1)
        return (1 + (step + self.dt_bias).exp()) ** -(1 + rate.exp()).log().clamp(min=self.A_floor)


ORIGINALS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "fla GLA": ("gla", lambda: Stack(originals.GLA, {"clamp_min": -0.03})),
    "fla simple GLA": ("gla", lambda: Stack(originals.SimpleGLA, {"gate_logit_normalizer": 4})),
    "fla gated slot attention": ("gla", lambda: Stack(originals.GatedSlots, {"model_type": "gsa"})),
    "fla HGRN": ("hgrn", originals.HGRNModel),
    "BlinkDL RWKV-6": ("rwkv6", lambda: Stack(originals.RWKV6)),
    "fla RWKV-6": ("rwkv6", lambda: Stack(originals.FlaRWKV6)),
    "BlinkDL RWKV-7": ("rwkv7", lambda: Stack(originals.RWKV7)),
    "fla RWKV-7": ("rwkv7", lambda: Stack(originals.FlaRWKV7)),
    "lucidrains minGRU": ("min_gru", lambda: Stack(originals.MinGRU)),
    "lucidrains minLSTM": ("min_gru", lambda: Stack(originals.MinLSTM)),
    "pfnet PLaMo-2": ("plamo2", lambda: Stack(originals.PLaMo2)),
    "state-spaces Mamba-3": ("mamba3", lambda: Stack(originals.Mamba3)),
    "fla Mamba-3": ("mamba3", lambda: Stack(FlaMamba3, {"model_type": "mamba3"})),
    "NX-AI mLSTM": ("mlstm", lambda: Stack(originals.MLSTM)),
    "xLSTM-large, fused weights": ("mlstm", lambda: Stack(originals.FusedMLSTM, {"gate_soft_cap": 2.0}, cap=2.0)),
    "xLSTM-large without a cap": ("mlstm", lambda: Stack(originals.FusedMLSTM, {"gate_soft_cap": None}, cap=None)),
    "DeepMind RG-LRU": ("rg_lru", lambda: Stack(originals.RGLRU)),
    "fla Gated DeltaNet": ("gated_delta_net", lambda: Stack(originals.GatedDeltaNet)),
    "NVlabs Gated DeltaNet": ("gated_delta_net", lambda: Stack(originals.FirstGatedDeltaNet)),
    "fla MesaNet": ("mesa_net", lambda: Stack(originals.MesaNet)),
    "fla Raven": ("raven", lambda: Stack(originals.Raven)),
    "fla Raven, a biased router": ("raven", lambda: Stack(originals.Raven, score="softmax", bias=True)),
    "fla Raven, GLA's gate": ("raven", lambda: Stack(originals.Raven, {"model_type": "raven"}, gla=True)),
    "lrnnx RG-LRU": ("rg_lru", lambda: Stack(originals.LrnnxRGLRU)),
    "lrnnx S7": ("s7", lambda: Stack(originals.S7)),
    "fla Rodimus": ("rodimus", lambda: Stack(originals.Rodimus)),
    "fla KDA": ("kda", lambda: Stack(originals.KDA)),
    "fla GDN-2": ("kda", lambda: Stack(originals.GDN2)),
    "fla KDA with a lower bound": ("kda", lambda: Stack(originals.KDA, {"lower_bound": -5.0}, lower_bound=-5.0)),
}


BIASED = (
    "NX-AI mLSTM",
    "NVlabs Gated DeltaNet",
    "fla Rodimus",
    "lrnnx RG-LRU",
    "fla Raven",
    "fla Raven, a biased router",
    "fla Raven, GLA's gate",
)
"""Their gates are not at their nominal point where the input is zero, because of biases beside the gate's own."""


def assert_nominal_at_zero_input(layer: ObservedLayer, width: int, **given: Tensor) -> None:
    """The clock of an input of zeros is the nominal decay, channel by channel and mode by mode."""
    with torch.no_grad():
        clock = layer.compute(layer.module, torch.zeros(1, 3, width, dtype=torch.float64), **given)
    nominal = layer.layer.read()[0].log_eigenvalues.real.flatten()
    torch.testing.assert_close(log_decay(clock)[0, 1].flatten(), nominal, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ORIGINALS)
def test_clock_is_the_decay_of_the_original_stepped_token_by_token(name: str) -> None:
    family, build = ORIGINALS[name]
    model = drawn(build())
    found: list[tuple[ObservedLayer, Clock]] = []
    with torch.no_grad(), observing(model, lambda layer, clock: found.append((layer, clock))) as observed:
        model(torch.randn(2, 7, originals.WIDTH, dtype=torch.float64))
    assert not observed.without_clock
    assert [layer.family.name for layer, _ in found] == [family] * len(found)
    for number, (layer, clock) in enumerate(found):
        own = torch.stack(layer.module.decays, dim=1).log()
        torch.testing.assert_close(log_decay(clock).flatten(2), own, rtol=1e-10, atol=1e-15)
        if name not in BIASED:
            bounds = getattr(model, "lower_bounds", torch.zeros(3, 1)).softmax(0)
            given = {"lower_bound": bounds[1 : number + 1].sum(0)} if family == "hgrn" else {}
            assert_nominal_at_zero_input(layer, originals.WIDTH, **given)
