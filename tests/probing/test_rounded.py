"""A layer stepped with a rounded state: from what its own scan is given, against its own answers and known errors."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from ssmdiag.errors import LayerError
from ssmdiag.probing import rounded
from ssmdiag.probing.clocks import ObservedLayer, observing
from ssmdiag.probing.rounded import FORMATS, StateError, state_errors, stepping
from ssmdiag.recurrence.clock import Clock, Scan
from tests.families.tiny_transformers import tiny_model


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(1))


def scans_of(model: Any, x: Tensor) -> list[Scan]:
    """Return what each layer's scan is given, by its family."""
    found: list[Scan] = []
    layers: tuple[ObservedLayer, ...] = ()
    with torch.no_grad(), observing(model, lambda *_: None) as observed:
        layers = observed.layers
        handles = []
        for one in layers:
            assert one.family.scan is not None

            def enter(module: Any, arguments: Any, named: Any, one: ObservedLayer = one) -> None:
                input = next(v for v in (*arguments, *named.values()) if isinstance(v, Tensor) and v.ndim == 3)
                assert one.family.scan is not None
                found.append(one.family.scan(one.module, input))

            handles.append(model.get_submodule(one.path).register_forward_pre_hook(enter, with_kwargs=True))
        model(x, use_cache=False)
        for handle in handles:
            handle.remove()
    return found


def answers_of(scan: Scan) -> Tensor:
    """Return y of every channel of the first text, (time, head, channel), state by state."""
    heads, size = scan.input.shape[2:]
    groups, modes = scan.write.shape[2:]
    state = torch.zeros(heads, size, modes, dtype=torch.float64)
    found = []
    for t in range(scan.input.shape[1]):
        for head in range(heads):
            group = head * groups // heads
            step = scan.clock.step[0, t, head]
            decay = torch.exp(-step * scan.clock.rate[head])
            state[head] = decay * state[head] + step * scan.input[0, t, head][:, None] * scan.write[0, t, group]
        found.append(torch.stack([state[h] @ scan.read[0, t, h * groups // heads] for h in range(heads)]))
    return torch.stack(found)


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", pytest.param("jamba", marks=pytest.mark.slow)])
def test_a_mamba_layers_scan_gives_the_answers_of_the_model(model_type: str) -> None:
    model, x = live(model_type), tokens(1, 12)
    own = captured(model, x, "mamba_selective_scan")
    for scan, (given, answer) in zip(scans_of(model, x), own, strict=True):
        u, z = given["hidden_states"][0].T, given["z"][0].T
        expected = (answers_of(scan)[..., 0] + scan.skip[:, 0] * u) * torch.nn.functional.silu(z)
        torch.testing.assert_close(answer[0].T.double(), expected, rtol=1e-5, atol=1e-6)


SSD = {
    "mamba2": {"time_step_limit": (0.05, 0.9)},
    "falcon_h1": {"ssm_multipliers": [0.7, 0.5, 0.9, 1.3, 2.6], "ssm_in_multiplier": 1.7},
    "bamba": {},
    "zamba2": {},
    "nemotron_h": {},
    "granitemoehybrid": {},
}


@pytest.mark.parametrize(
    "model_type", [pytest.param(kind, marks=[] if kind == "mamba2" else [pytest.mark.slow]) for kind in SSD]
)
def test_a_mamba_2_layers_scan_gives_the_answers_of_the_model(model_type: str) -> None:
    model, x = live(model_type, **SSD[model_type]), tokens(1, 12)
    own = captured(model, x, "mamba2_chunk_scan")
    for scan, (given, answer) in zip(scans_of(model, x), own, strict=True):
        u = given["hidden_states"][0]
        expected = answers_of(scan) + scan.skip * u
        torch.testing.assert_close(answer[0].double(), expected, rtol=1e-5, atol=1e-6)


def live(model_type: str, **settings: Any) -> Any:
    model = tiny_model(model_type, **settings)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the others refuse float64
    return model


def captured(model: Any, x: Tensor, name: str) -> list[tuple[dict[str, Any], Tensor]]:
    """Return the arguments and the answer of every call of a model's scan."""
    import inspect

    found: list[tuple[dict[str, Any], Tensor]] = []
    home = next(
        sys.modules[m] for m in {type(part).__module__ for part in model.modules()} if hasattr(sys.modules[m], name)
    )
    scan = getattr(home, name)

    def scanned(*arguments: Any, **named: Any) -> Any:
        answer = scan(*arguments, **named)
        given = inspect.signature(scan).bind(*arguments, **named)
        given.apply_defaults()
        found.append((dict(given.arguments), answer[0] if isinstance(answer, tuple) else answer))
        return answer

    with patch.object(home, name, scanned), torch.no_grad():
        model(x, use_cache=False)
    return found


def scan_of(decay: float, write: Tensor, *, channels: int = 1) -> Scan:
    """Return a scan of one mode a channel that decays by so much a step and adds `write` (time,)."""
    time = len(write)
    rate = torch.full((channels, 1), -math.log(decay), dtype=torch.float64)
    one = torch.ones(1, time, 1, 1, dtype=torch.float64)
    return Scan(
        Clock(torch.ones(1, time, channels, dtype=torch.float64), rate),
        write[None, :, None, None].expand(1, time, channels, 1).double(),
        one,
        one,
        torch.zeros(channels, 1),
    )


def test_a_state_that_the_format_holds_has_no_error() -> None:
    """Decay ½ of an impulse of 1: powers of two, exact in every float."""
    found = state_errors(scan_of(0.5, torch.eye(1, 12)[0]))
    assert found["bf16"] == found["fp16"] == StateError(0.0, 0.0)


def test_an_impulse_decays_by_the_rounded_products() -> None:
    """bf16 has 8 digits: 0.9, then 0.81 → each rounded to the nearest multiple of 2^(e−7)."""
    found = state_errors(scan_of(0.9, torch.eye(1, 20)[0]))
    state, exact, error, size = 1.0, 1.0, 0.0, 1.0
    for _ in range(19):
        state, exact = 0.9 * state, 0.9 * exact
        ulp = 2.0 ** (math.floor(math.log2(state)) - 7)
        state = round(state / ulp) * ulp
        error, size = error + (state - exact) ** 2, size + exact**2
    assert found["bf16"].worst == pytest.approx(math.sqrt(error / size), rel=1e-9)
    assert found["fp16"].worst < found["bf16"].worst / 4


def test_what_a_step_adds_is_swallowed_past_256_steps_of_bf16() -> None:
    """A state that never decays and adds 1 a step stops at 256: 256 + 1 is rounded to 256, by the tie to even."""
    found = state_errors(scan_of(1.0, torch.ones(1000)))
    exact = torch.arange(1.0, 1001.0, dtype=torch.float64)
    assert found["bf16"].worst == pytest.approx(
        float(((exact.clamp(max=256) - exact).square().sum() / exact.square().sum()).sqrt()), rel=1e-12
    )
    assert found["fp16"].worst == 0.0


def test_a_state_past_the_range_of_fp16_is_lost() -> None:
    found = state_errors(scan_of(0.5, torch.full((8,), 1e5)))
    assert found["fp16"].worst == math.inf
    assert found["bf16"].worst < 0.01


def test_an_8_bit_scale_that_is_shared_is_the_largest_ones() -> None:
    """Two channels, one a hundredth of the other: with a scale of its own each is as exact, with one for both not."""
    draw = torch.Generator().manual_seed(0)
    small = torch.randn(400, generator=draw, dtype=torch.float64)
    one = scan_of(0.9, small, channels=2)
    both = replace(one, input=one.input * torch.tensor([1.0, 0.01])[:, None])
    found = state_errors(both)
    assert found["int8 state"] == found["int8 channel"]
    assert found["int8 state"].worst == pytest.approx(found["int8 state"].median, rel=0.05)
    assert found["int8 layer"].worst > 20 * found["int8 state"].worst
    assert 1e-3 < found["int8 state"].worst < 0.05


def test_a_scale_of_a_channel_is_that_of_its_largest_mode() -> None:
    """Two modes, one written a hundredth of the other, read so that each answers as much."""
    draw = torch.Generator().manual_seed(0)
    one = scan_of(0.9, torch.randn(400, generator=draw, dtype=torch.float64), channels=2)
    sizes = torch.tensor([1.0, 0.01], dtype=torch.float64)
    found = state_errors(replace(one, write=one.write * sizes, read=one.read / sizes))
    assert found["int8 channel"].worst > 20 * found["int8 state"].worst
    assert found["int8 channel"] == found["int8 layer"]


def test_the_skip_is_part_of_the_output() -> None:
    """An error e of a state's answer y is e / |y + D x| of the output."""
    one = scan_of(1.0, torch.ones(1000))
    alone, beside = state_errors(one), state_errors(replace(one, skip=torch.full((1, 1), 500.0)))
    ramp = torch.arange(1.0, 1001.0, dtype=torch.float64)
    smaller = float((ramp.square().sum() / (ramp + 500).square().sum()).sqrt())
    assert beside["bf16"].worst == pytest.approx(alone["bf16"].worst * smaller, rel=1e-12)


def test_channels_that_answer_nothing_are_left_out_and_none_at_all_is_an_error() -> None:
    one = scan_of(0.9, torch.ones(10), channels=2)
    half = replace(one, input=one.input * torch.tensor([1.0, 0.0])[:, None])
    assert state_errors(half)["bf16"].worst == state_errors(scan_of(0.9, torch.ones(10)))["bf16"].worst
    with pytest.raises(LayerError, match="answers anything"):
        state_errors(scan_of(0.9, torch.zeros(10)))
    with pytest.raises(LayerError, match="not finite"):
        state_errors(scan_of(0.9, torch.full((10,), math.nan)))


def test_chosen_channels_are_spread_over_the_heads() -> None:
    model = tiny_model("mamba2")
    (scan, _) = scans_of(model, tokens(1, 10))
    every = state_errors(scan, 10**6)
    some = state_errors(scan, 8)
    assert set(every) == set(FORMATS)
    assert some["bf16"].worst <= every["bf16"].worst
    decay, write, read, _ = rounded._of_channels(scan, 10**6)
    own = torch.einsum("tcn,tcn->tc", read, _stepped(decay, write))
    expected = answers_of(scan).flatten(1)
    assert {round(float(v), 9) for v in own[-1]} == {round(float(v), 9) for v in expected[-1]}


def _stepped(decay: Tensor, write: Tensor) -> Tensor:
    state, found = torch.zeros_like(write[0]), []
    for kept, written in zip(decay, write, strict=True):
        state = kept * state + written
        found.append(state)
    return torch.stack(found)


def test_layers_are_stepped_once_on_the_first_text() -> None:
    model, x = tiny_model("mamba2"), tokens(2, 10)
    found: dict[str, dict[str, StateError]] = {}
    errors: dict[str, str] = {}
    with (
        torch.no_grad(),
        observing(model, lambda *_: None) as observed,
        stepping(model, observed.layers, found, errors),
    ):
        model(x, use_cache=False)
        first = dict(found)
        model(x.flip(1), use_cache=False)
    assert found == first
    assert errors == {}
    assert list(found) == [one.name for one in observed.layers]
    for name, own in state_errors(scans_of(model, x)[0]).items():
        assert found[observed.layers[0].name][name].worst == pytest.approx(own.worst, rel=1e-9)
    assert not any(part._forward_pre_hooks for part in model.modules())
