"""Short convolutions against the original modules, and what every command says of a model that has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssmdiag import diagnose
from ssmdiag.compare.conversion import Outcome, prove_conversion
from ssmdiag.compare.run import compare_run
from ssmdiag.errors import UnknownFamilyError
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.reports.answer import answer
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.json import render_all

Read = Callable[..., list[Recurrence]]
Write = Callable[..., Path]
WIDTH, TAPS = 6, 3


def lfm2(taps: int = TAPS, layers: int = 4, attention: tuple[int, ...] = (2,)) -> dict[str, torch.Tensor]:
    """Return the tensors of a hybrid as transformers names them."""
    generator = torch.Generator().manual_seed(taps)
    state = {"model.embed_tokens.weight": torch.randn(8, WIDTH, generator=generator)}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        shapes: dict[str, tuple[int, ...]] = {"feed_forward.w1.weight": (8, WIDTH)}
        if layer in attention:
            shapes |= {f"self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
        else:
            shapes |= {"conv.in_proj.weight": (3 * WIDTH, WIDTH), "conv.out_proj.weight": (WIDTH, WIDTH)}
            shapes["conv.conv.weight"] = (WIDTH, 1, taps)
        state |= {f"{path}.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state


def causal(weight: torch.Tensor, lags: int) -> torch.Tensor:
    """Return the response to an impulse, (channel, lag), of a causal depthwise convolution as modules compute it."""
    channels, _, taps = weight.shape
    impulse = torch.zeros(1, channels, lags, dtype=weight.dtype)
    impulse[..., 0] = 1
    return F.conv1d(impulse, weight, padding=taps - 1, groups=channels)[0, :, :lags]


def taps_of(recurrence: Recurrence, lags: int) -> torch.Tensor:
    assert recurrence.taps is not None
    return F.pad(recurrence.taps[0], (0, lags - recurrence.taps.shape[2]))


def said_of(path: Path) -> str:
    return answer(diagnose(path)).line


def test_taps_are_the_response_of_the_original_module(read_model: Read) -> None:
    lfm = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    config = lfm.Lfm2Config(hidden_size=WIDTH, num_hidden_layers=1, layer_types=["conv"], conv_L_cache=4)
    module = lfm.Lfm2ShortConv(config, 0).double()
    (found,) = read_model({f"model.layers.0.conv.{name}": value for name, value in module.state_dict().items()})
    # With gates B = C = 1 and the identity as its projections, the module is its convolution.
    eye = torch.eye(WIDTH, dtype=torch.float64)
    module.in_proj.forward = lambda x: torch.cat([torch.ones_like(x), torch.ones_like(x), x], -1)
    module.out_proj.weight.data = eye
    impulse = torch.zeros(1, 9, WIDTH, dtype=torch.float64)
    impulse[:, 0] = 1
    with torch.no_grad():
        response = module(impulse)[0].T
    torch.testing.assert_close(taps_of(found, 9), response, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["attn.k_sconv.weight", "self_attn.k_sconv.conv1d.weight", "mlp_sconv.conv1d.weight"])
def test_inkling_is_read_by_its_names(name: str, read_model: Read) -> None:
    weight = torch.randn(WIDTH, 1, 4, dtype=torch.float64)
    (found,) = read_model({f"model.layers.0.{name}": weight})
    assert torch.equal(taps_of(found, 9), causal(weight, 9))


def _read(write_model: Write, state: dict[str, torch.Tensor]) -> list[Recurrence]:
    from ssmdiag import extract_recurrences

    return extract_recurrences(write_model(state, name="second"))


def test_filters_of_evo_2_turn_round_at_128_taps(read_model: Read, write_model: Write) -> None:
    """vortex convolves with the short ones by conv1d, with the long ones by their spectrum."""
    for taps in (7, 128):
        weight = torch.randn(WIDTH, 1, taps, dtype=torch.float64)
        state = {"blocks.0.filter.h": weight, "blocks.0.filter.short_filter_weight": torch.randn(3 * WIDTH, 1, 3)}
        (found,) = read_model(state) if taps == 7 else _read(write_model, state)
        if taps == 7:
            expected = causal(weight, 200)
        else:
            impulse = np.zeros((WIDTH, 200))
            impulse[:, 0] = 1
            spectrum = np.fft.rfft(weight[:, 0].numpy(), 400) * np.fft.rfft(impulse, 400)
            expected = torch.from_numpy(np.fft.irfft(spectrum, 400)[:, :200])
        torch.testing.assert_close(taps_of(found, 200), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["mlx", "gguf"])
def test_other_layouts_are_the_same_taps(form: str, read_model: Read, write_model: Write) -> None:
    state = lfm2(layers=1, attention=())
    (plain,) = read_model(state)
    other = {name.replace(".conv.", ".shortconv.", 1) if form == "gguf" else name: w for name, w in state.items()}
    name = next(name for name in other if name.endswith("conv.conv.weight"))
    other[name] = other[name].movedim(1, 2) if form == "mlx" else other[name][:, 0]
    (found,) = _read(write_model, other)
    assert torch.equal(taps_of(found, 3), taps_of(plain, 3))


def test_a_hybrid_remembers_what_its_convolutions_reach(write_model: Write) -> None:
    path = write_model(lfm2(attention=(1, 3)), {"model_type": "lfm2", "max_position_embeddings": 4096})
    assert said_of(path) == "OK  remembers K − 1 = 2 steps by its convolutions; 2 attention layers not judged"
    result = diagnose(path)
    assert (len(result.layers), len(result.attention_layers), result.exit_code()) == (2, 2, 0)
    assert result.findings == ()
    for layer in result.layers:
        assert (layer.taps, layer.rate, layer.half_life, layer.margin) == (3, None, None, None)
        assert layer.horizon is not None
        assert (layer.horizon.min, layer.horizon.max) == (2.0, 2.0)
        assert layer.decay is not None
        assert layer.decay.law == ("finite", None)
    data = json.loads(render_all([result], Settings()))
    assert [layer["taps"] for layer in data["layers"]] == [3, 3]
    assert data["layers"][0]["half_life"] is None
    assert data["layers"][0]["decay"]["layer"]["law"] == "finite"


def test_the_verdict_counts_only_taps_that_are_not_zero(write_model: Write) -> None:
    state = lfm2(taps=7, attention=())
    for name in state:
        if name.endswith("conv.conv.weight"):
            state[name][..., 0] = 0
    assert said_of(write_model(state)) == "OK  remembers 5 of K − 1 = 6 steps by its convolutions"


def test_a_tower_for_images_is_not_counted(write_model: Write) -> None:
    state = lfm2() | {"vision_tower.layers.0.self_attn.q_proj.weight": torch.randn(4, 4)}
    assert len(diagnose(write_model(state)).attention_layers) == 1


def test_a_towers_convolution_over_an_image_is_no_incomplete_layer(write_model: Write) -> None:
    """LFM3-VL: its vision tower's convolutions have the projections of the language model's, and two axes."""
    tower = {
        f"vision_tower.layers.0.conv.{name}.weight": torch.randn(shape)
        for name, shape in {"in_proj": (12, 4), "spatial_conv": (4, 1, 3, 3), "out_proj": (4, 4)}.items()
    }
    result = diagnose(write_model(lfm2() | tower))
    assert (result.problems, result.findings) == ((), ())


def test_a_layer_whose_taps_have_another_name_is_incomplete(write_model: Write) -> None:
    state = lfm2()
    state["model.layers.1.conv.taps.weight"] = state.pop("model.layers.1.conv.conv.weight")
    (problem,) = diagnose(write_model(state)).problems
    assert problem.startswith("model.layers.1.conv: looks like Short convolution, but model.layers.1.conv.conv.weight")


def test_a_tap_that_is_not_a_number_is_found(write_model: Write) -> None:
    state = lfm2()
    state["model.layers.0.conv.conv.weight"][2, 0, 1] = torch.nan
    result = diagnose(write_model(state))
    assert result.layers[0].nonfinite == 1
    assert "SSM401" in {finding.code for finding in result.findings}
    said = "PROBLEM  1 tap in layer 0 is NaN or infinite (SSM401); remembers K − 1 = 2 steps"
    assert said_of(Path(result.path)).startswith(said)


def test_every_tap_is_compared(write_model: Write) -> None:
    state = lfm2(taps=40)
    one = write_model(state, name="one")
    assert prove_conversion(one, write_model(state, name="same")).proven
    changed = {name: value.clone() for name, value in state.items()}
    changed["model.layers.1.conv.conv.weight"][3, 0, 2] += 1
    proof = prove_conversion(one, write_model(changed, name="changed"))
    assert [layer.outcome for layer in proof.layers] == [Outcome.SAME, Outcome.DIFFERS, Outcome.SAME]
    kernel = proof.layers[1].kernel
    assert kernel is not None
    assert (kernel.channel, kernel.at) == (3, 37)
    longer = prove_conversion(one, write_model(lfm2(taps=41), name="longer"))
    assert {layer.outcome for layer in longer.layers} == {Outcome.DIFFERS}


def test_a_run_of_convolutions_has_no_rates_to_follow(write_model: Write) -> None:
    states = [lfm2(), lfm2()]
    states[1]["model.layers.0.conv.conv.weight"] *= 2
    run = compare_run([write_model(state, name=f"step-{k}") for k, state in enumerate(states)])
    assert all(layer.last.rate is None and layer.last.moved is None for layer in run.layers)


def test_convolutions_inside_other_layers_are_not_claimed(write_model: Write) -> None:
    path = "model.layers.0"
    states: list[dict[str, Any]] = [
        {f"{path}.mixer.conv1d.weight": torch.randn(6, 1, 4), f"{path}.mixer.in_proj.weight": torch.randn(18, 6)},
        {f"{path}.self_attn.q_conv1d.weight": torch.randn(6, 1, 4)},
        {f"{path}.conv.weight": torch.randn(6, 1, 4)},
        {f"{path}.conv.conv.weight": torch.randn(6, 1, 4)},
        {f"{path}.h": torch.randn(6, 1, 4)},
        {f"encoder.posconv{end}": torch.randn(6, 1, 4) for end in (".weight", ".conv1d.weight")},
        *(gated(f"{path}.glu", rows) for rows in (12, 18)),
    ]
    for number, state in enumerate(states):
        with pytest.raises(UnknownFamilyError) as refused:
            diagnose(write_model(state, name=f"other{number}"))
        if number > 4:
            assert "short_convolution" not in str(refused.value)


def gated(path: str, rows: int) -> dict[str, Any]:
    """Return a convolution between two linear layers, as conformers have it: nothing says that it is causal."""
    shapes = {"in_proj.weight": (rows, 6), "conv.weight": (6, 1, 7), "out_proj.weight": (6, 6)}
    return {f"{path}.{name}": torch.randn(shape) for name, shape in shapes.items()}


def test_no_convolution_of_a_model_without_a_recurrence_is_named_as_what_is_closest(write_model: Write) -> None:
    state = {f"feature_extractor.conv_layers.{n}.conv.weight": torch.randn(6, 1, 10) for n in range(2)}
    with pytest.raises(UnknownFamilyError) as refused:
        diagnose(write_model(state))
    assert not refused.value.details
