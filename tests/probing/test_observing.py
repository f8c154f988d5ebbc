"""Which layers are observed, how often, and what is said of those that are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mambapy.mamba import Mamba, MambaConfig
from torch import Tensor, nn

from ssmdiag.errors import SsmdiagError
from ssmdiag.probing.clocks import Observed, ObservedLayer, observing
from ssmdiag.recurrence.clock import Clock
from tests.probing import originals
from tests.probing.originals import Stack, drawn

DOUBLE = {"dtype": torch.float64}


def input_(batch: int = 2, length: int = 7, width: int = originals.WIDTH) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(3), **DOUBLE)


def observe(model: nn.Module, *arguments: Any, run: Any = None, **named: Any) -> tuple[Observed, list[Clock]]:
    clocks: list[Clock] = []
    with observing(model, lambda _, clock: clocks.append(clock)) as observed:
        (run or model)(*(arguments or (input_(),)), **named)
    return observed, clocks


def same(clocks: list[Clock], others: list[Clock]) -> None:
    assert len(clocks) == len(others) > 0
    for one, other in zip(clocks, others, strict=True):
        torch.testing.assert_close(one.step, other.step, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.rate, other.rate, rtol=1e-12, atol=0)


def mambapy_model() -> nn.Module:
    return drawn(Mamba(MambaConfig(d_model=originals.WIDTH, n_layers=2, d_state=3, dt_rank=2)))


def test_every_layer_is_named_as_in_a_report_and_its_firings_are_counted() -> None:
    model = drawn(Stack(originals.MinGRU))
    seen: list[tuple[str, str]] = []
    with observing(model, lambda layer, _: seen.append((layer.name, layer.family.name))) as observed:
        model(input_())
        model(input_())
    assert seen == [("layers.0.mixer", "min_gru"), ("layers.1.mixer", "min_gru")] * 2
    assert observed.firings == {"layers.0.mixer": 2, "layers.1.mixer": 2}
    assert [layer.module for layer in observed.layers] == [layer["mixer"] for layer in model.layers]


def test_hooks_are_gone_after_the_block_even_where_it_fails() -> None:
    model = drawn(Stack(originals.MinGRU))
    observe(model)
    with pytest.raises(ZeroDivisionError), observing(model, lambda *_: None):
        _ = 1 / 0
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_no_gradients_are_recorded_for_clocks() -> None:
    _, clocks = observe(drawn(Stack(originals.GatedDeltaNet)))
    assert not any(clock.step.requires_grad or clock.rate.requires_grad for clock in clocks)


class Shared(nn.Module):
    """One block, used at two depths, as the shared blocks of Zamba."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = originals.MinGRU()

    def forward(self, input: Tensor) -> Tensor:
        return self.second(self.first(input))


def test_a_block_used_twice_is_one_layer_that_runs_twice() -> None:
    observed, clocks = observe(drawn(Shared()))
    assert observed.firings == {"first": 2}
    assert not torch.equal(clocks[0].step, clocks[1].step)


class Aside(nn.Module):
    """Around a layer, as torch.compile and DistributedDataParallel put it: its attribute is in every path."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.name = name

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self, self.name)(*arguments, **named)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_checkpoint_wrapped_module"])
def test_wrappers_around_the_model_or_a_layer_change_nothing(wrapper: str) -> None:
    plain = drawn(Stack(originals.RWKV7))
    _, expected = observe(plain)
    observed, clocks = observe(Aside(plain, wrapper))
    same(clocks, expected)
    assert list(observed.firings) == ["layers.0.mixer", "layers.1.mixer"]
    for layer in plain.layers:
        layer["mixer"] = Aside(layer["mixer"], wrapper)
    observed, clocks = observe(plain)
    same(clocks, expected)
    assert [(layer.name, layer.path) for layer in observed.layers] == [(f"layers.{n}.mixer",) * 2 for n in (0, 1)]
    assert {type(layer.module) for layer in observed.layers} == {originals.RWKV7}


class Held(originals.GatedDeltaNet):
    A_log = property(lambda self: self._fp32_params.A_log)
    dt_bias = property(lambda self: self._fp32_params.dt_bias)


def test_a_module_that_holds_tensors_of_the_layer_around_it_is_not_the_layer() -> None:
    plain = drawn(Stack(originals.GatedDeltaNet))
    _, expected = observe(plain)
    for layer in plain.layers:
        mixer, holder = layer["mixer"], nn.Module()
        for name in ("A_log", "dt_bias"):
            holder.register_parameter(name, getattr(mixer, name))
            delattr(mixer, name)
        mixer._fp32_params = holder
        mixer.__class__ = Held
    observed, clocks = observe(plain)
    assert not observed.without_clock
    same(clocks, expected)


def test_data_parallel_is_seen_through() -> None:
    plain = drawn(Stack(originals.RWKV7))
    same(observe(nn.DataParallel(plain))[1], observe(plain)[1])


def test_a_model_that_is_the_layer_is_observed() -> None:
    observed, clocks = observe(drawn(originals.MinGRU()))
    assert observed.firings == {"": 1}
    assert len(clocks) == 1


class LoRA(nn.Module):
    """A linear layer with an adapter, as PEFT wraps it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.base_layer(input) + self.lora_B(self.lora_A(input))


class Int8(nn.Module):
    """A quantised linear layer: its weight is not the matrix that it applies."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, input: Tensor) -> Tensor:
        return input @ (self.weight * self.scale).T


@pytest.mark.parametrize("wrap", [LoRA, Int8])
@pytest.mark.parametrize("projections", [["in_proj"], ["x_proj"], ["in_proj", "x_proj"]])
def test_adapters_and_quantised_projections_count(
    wrap: type[nn.Module], projections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mambapy_model()
    _, plain = observe(model)
    for layer in model.layers:
        for name in projections:
            setattr(layer.mixer, name, wrap(getattr(layer.mixer, name)))
    drawn(model, seed=1)
    own: list[Tensor] = []
    block = type(model.layers[0].mixer)
    monkeypatch.setattr(block, "selective_scan", lambda _, x, delta, *rest: own.append(delta) or x)
    observed, clocks = observe(model)
    assert not observed.without_clock
    for clock, step, other in zip(clocks, own, plain, strict=True):
        torch.testing.assert_close(clock.step, step.detach(), rtol=1e-9, atol=0)
        assert not torch.allclose(clock.step, other.step, rtol=1e-3)


def test_what_a_hook_makes_of_a_projection_counts() -> None:
    model = mambapy_model()
    _, plain = observe(model)
    for layer in model.layers:
        layer.mixer.in_proj.weight.data *= 2
    _, doubled = observe(model)
    for layer in model.layers:
        layer.mixer.in_proj.weight.data /= 2
        layer.mixer.in_proj.register_forward_hook(lambda _, inputs, output: 2 * output)
    same(observe(model)[1], doubled)
    assert not torch.allclose(plain[0].step, doubled[0].step, rtol=1e-3)


def test_an_adapter_on_the_step_is_without_effect_where_the_model_uses_the_weight_alone() -> None:
    model = mambapy_model()
    _, plain = observe(model)
    for layer in model.layers:
        layer.mixer.dt_proj = LoRA(layer.mixer.dt_proj).double()
    same(observe(model)[1], plain)


class Fixed(nn.Module):
    """RetNet's decays, which no input changes, and a layer beside them whose tensors are a Mamba of llama.cpp."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.register_parameter("time_decay", nn.Parameter(torch.zeros(6)))
        self.attn.register_parameter("time_first", nn.Parameter(torch.zeros(6)))
        self.gated = originals.MinGRU()

    def forward(self, input: Tensor) -> Tensor:
        return self.gated(input)


def test_a_decay_that_no_input_changes_is_said_to_need_no_clock() -> None:
    observed, _ = observe(drawn(Fixed()))
    (one,) = observed.without_clock
    assert (one.name, one.family.name, one.family.memory) == ("attn", "rwkv4", "exact")
    assert one.why == "its decay does not depend on the input: the weights alone say it"
    assert list(observed.firings) == ["gated"]


def test_a_selective_family_without_a_clock_is_named() -> None:
    from dataclasses import replace

    from ssmdiag.families import known_families

    blind = tuple(replace(family, clock=None) for family in known_families())
    model = drawn(Stack(originals.MinGRU))
    with observing(model, lambda *_: pytest.fail("nothing can be seen"), families=blind) as observed:
        model(input_())
    assert [(one.name, one.why) for one in observed.without_clock] == [
        (f"layers.{n}.mixer", "ssmdiag cannot observe minGRU, minLSTM: its decay is known at the nominal point alone")
        for n in (0, 1)
    ]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (originals.FirstGatedDeltaNet(use_mamba_gate=False), "its gate is a sigmoid (use_mamba_gate is off)"),
        (originals.Memories(), "each token goes to some of its memories alone"),
        (originals.KDA(config={"kda_lower_bound": -5.0}), "its code does not show where it applies"),
        (originals.RWKV6(without=("time_maa_w1",)), "failed with AttributeError"),
    ],
)
def test_a_layer_whose_clock_cannot_be_told_is_reported_and_the_others_are_seen(model: nn.Module, why: str) -> None:
    model.decay = lambda past, **given: torch.ones(len(past), 1)  # the model itself runs
    both = drawn(nn.Sequential(model, originals.MinGRU()))
    observed, clocks = observe(both)
    assert [one.name for one in observed.without_clock] == ["0"]
    assert why in observed.without_clock[0].why
    assert len(clocks) == 1
    assert observed.firings == {"0": 1, "1": 1}


class Direct(nn.Module):
    """Runs a model as torch.compile's graph does: no hook of it is called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner

    def forward(self, input: Tensor) -> Tensor:
        for layer in self._orig_mod.layers:
            input = layer["mixer"].forward(input)
        return input


def test_layers_that_never_ran_are_an_error_that_names_them() -> None:
    model = drawn(Stack(originals.MinGRU))
    with pytest.raises(SsmdiagError) as caught:
        observe(model, run=lambda x: model.layers[1]["mixer"](x))
    assert caught.value.seen == "1 of 2 selective layers never ran under observation: layers.0.mixer."
    with pytest.raises(SsmdiagError) as caught:
        observe(Direct(model))
    assert "2 of 2 selective layers never ran under observation: layers.0.mixer, layers.1.mixer." in str(caught.value)
    assert "model._orig_mod" in str(caught.value)


class Gate(nn.Module):
    """The gate of a minGRU alone, simple enough to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(originals.WIDTH, 2 * originals.WIDTH, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        hidden, gate = self.to_hidden_and_gate(input).chunk(2, -1)
        return input + hidden * gate.sigmoid()


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_refused_and_the_module_inside_is_not(in_place: bool) -> None:
    plain = drawn(Stack(Gate))
    _, expected = observe(plain)
    compiled: Any = plain if in_place else torch.compile(plain, backend="eager")
    if in_place:
        plain.compile(backend="eager")
    with torch.no_grad():
        compiled(input_())
        with pytest.raises(SsmdiagError, match=r"2 of 2 selective layers never ran(.|\n)*torch\.compile"):
            observe(compiled)
        if not in_place:
            same(observe(compiled._orig_mod)[1], expected)


@pytest.mark.slow
def test_layers_compiled_one_by_one_are_observed() -> None:
    plain = drawn(Stack(Gate))
    _, expected = observe(plain)
    for layer in plain.layers:
        layer["mixer"] = torch.compile(layer["mixer"], backend="eager")
    with torch.no_grad():
        plain(input_())
        same(observe(plain)[1], expected)


def test_a_single_token_is_refused() -> None:
    with pytest.raises(SsmdiagError, match=r"run on a single token(.|\n)*use_cache=False"):
        observe(drawn(Stack(originals.MinGRU)), input_(length=1))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = originals.MinGRU()

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        return self.mixer(input, attention_mask=mask)


def test_a_padded_batch_is_refused_and_a_full_mask_is_not() -> None:
    model = drawn(Masked())
    mask = torch.ones(2, 7)
    assert len(observe(model, input_(), mask)[1]) == 1
    mask[1, -1] = 0
    with pytest.raises(SsmdiagError, match="run on a padded batch"):
        observe(model, input_(), mask)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_clock_that_is_not_finite_is_reported_with_its_layer_and_token_and_never_handed_on(value: float) -> None:
    spoilt = input_()
    spoilt[1, 4] = value
    observed, clocks = observe(drawn(Stack(originals.MinGRU)), spoilt)
    assert not clocks
    seen = "layers.0.mixer: its decay is NaN or infinite at 1 of 14 tokens, the first at position 4."
    assert observed.without_clock[0].why.startswith(seen)


def test_a_rate_that_is_not_finite_costs_that_layer_alone() -> None:
    model = drawn(Stack(originals.GatedDeltaNet))
    spoilt = model.layers[1]["mixer"].A_log
    spoilt.data[2] = torch.nan
    observed, clocks = observe(model)
    assert len(clocks) == 1
    (one,) = observed.without_clock
    assert one.why.startswith("layers.1.mixer: its weights hold NaN or infinite rates.")


class Flat(Gate):
    def forward(self, input: Tensor) -> Tensor:
        return input


def test_a_layer_that_is_not_given_a_sequence_is_reported() -> None:
    observed, clocks = observe(drawn(Flat()), torch.zeros(7, originals.WIDTH))
    assert (clocks, observed.firings) == ([], {"": 1})
    why = "the model itself was called without an input. Expected a tensor (batch, time, feature)."
    assert observed.without_clock[0].why == why


def test_running_out_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model = drawn(Stack(originals.MinGRU))
    monkeypatch.setattr("ssmdiag.families.min_gru.rows", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        observe(model)


def _out_of_memory(*_: Any) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_failure_of_the_observer_is_its_own() -> None:
    def seen(layer: ObservedLayer, clock: Clock) -> None:
        raise KeyError(layer.name)

    model = drawn(Stack(originals.MinGRU))
    with pytest.raises(KeyError, match=r"layers\.0\.mixer"), observing(model, seen):
        model(input_())


def test_a_model_without_a_recurrence_has_nothing_to_observe() -> None:
    observed, clocks = observe(nn.Sequential(nn.Linear(6, 6)).double())
    assert (observed.layers, observed.firings, observed.without_clock, clocks) == ((), {}, (), [])


def test_layers_whose_weights_lie_in_a_larger_module_are_said_to_have_none_to_observe() -> None:
    """As in code that keeps one flat mapping of all weights."""
    flat = nn.Identity()
    for name, value in Mamba(MambaConfig(d_model=4, n_layers=1)).state_dict().items():
        flat.register_buffer(name.replace(".", "__"), value)
    with observing(flat, lambda *_: pytest.fail("nothing can be seen")) as observed:
        flat(torch.zeros(1, 5, 4))
    (one,) = observed.without_clock
    assert (one.family.name, one.name) == ("mamba", "layers.0.mixer")
    assert "no module of its own to observe" in one.why
