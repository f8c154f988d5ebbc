"""Mamba-1, its twins, Vision Mamba, Hymba, VMamba, Flax trees and Zamba-1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mambapy.mamba
import mambapy.vim
import numpy as np
import pytest
import torch

from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

CHANNELS, MODES, RANK, WIDTH = 6, 4, 2, 3


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def log_eigenvalues(log_rate: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    """ℓ = −e^{A_log} softplus(bias), written in numpy from the paper's section 3.6."""
    rate = np.exp(log_rate.double().numpy()).reshape(-1, log_rate.shape[-1])
    return -rate * np.logaddexp(0, bias.double().numpy()).reshape(-1, 1)


def assert_read(found: Recurrence, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.log_eigenvalues.real.numpy(), expected, rtol=RELATIVE["float64"], atol=0)
    assert not found.log_eigenvalues.imag.any()


def mixer(prefix: str, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {
        "A_log": draw(CHANNELS, MODES),
        "D": draw(CHANNELS),
        "conv1d.weight": draw(CHANNELS, 1, 4),
        "conv1d.bias": draw(CHANNELS),
        "dt_proj.bias": draw(CHANNELS) - 3,
        "dt_proj.weight": draw(CHANNELS, RANK),
        "in_proj.weight": draw(2 * CHANNELS, WIDTH),
        "out_proj.weight": draw(WIDTH, CHANNELS),
        "x_proj.weight": draw(RANK + 2 * MODES, CHANNELS),
    }
    return {f"{prefix}{name}": value for name, value in {**state, **others}.items()}


JAMBA = {"dt_layernorm.weight": draw(RANK), "b_layernorm.weight": draw(MODES), "c_layernorm.weight": draw(MODES)}
MAMBAPY = {"dt_layernorm.weight": draw(RANK), "B_layernorm.weight": draw(MODES), "C_layernorm.weight": draw(MODES)}


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("backbone.layers.0.mixer.", {}),
        ("model.layers.0.mamba.", JAMBA),
        ("layers.0.mixer.", MAMBAPY),
        ("module.backbone.layers.0.mixer.", {}),
        ("", {}),
    ],
)
def test_decay_is_read_at_the_bias_of_the_step(
    read_model: Callable[..., list[Recurrence]], prefix: str, others: dict[str, torch.Tensor]
) -> None:
    state = mixer(prefix, **others)
    (found,) = read_model(state)
    assert_read(found, log_eigenvalues(state[f"{prefix}A_log"], state[f"{prefix}dt_proj.bias"]))
    assert found.family == "mamba"
    assert not found.time_invariant
    assert [(w.role, w.map) for w in found.weights] == [("rate", "exp"), ("step", "softplus")]
    assert found.input_matrix is None


def test_report_says_that_zero_input_is_another_point_only_where_a_bias_reaches_the_step(
    read_model: Callable[..., list[Recurrence]], write_model: Callable[..., Any]
) -> None:
    state = mixer("mixer.")
    (found,) = read_model(state)
    assert found.notes == ("at zero input Δ differs from its bias: a bias before x_proj reaches it",)
    del state["mixer.conv1d.bias"]
    (found,) = extract_recurrences(write_model(state, name="without"))
    assert (found.operating_point, found.notes) == ("the gates at their bias", ())


def test_packed_projections_do_not_hide_the_decay(read_model: Callable[..., list[Recurrence]]) -> None:
    state = mixer("backbone.layers.0.mixer.")
    expected = log_eigenvalues(state["backbone.layers.0.mixer.A_log"], state["backbone.layers.0.mixer.dt_proj.bias"])
    packed = torch.zeros(RANK * CHANNELS // 2, 1, dtype=torch.uint8)
    state["backbone.layers.0.mixer.dt_proj.weight"] = packed
    state["backbone.layers.0.mixer.x_proj.qweight"] = packed.clone()
    del state["backbone.layers.0.mixer.x_proj.weight"]
    (found,) = read_model(state)
    assert_read(found, expected)


def test_bfloat16_weights_are_upcast_before_the_exponential(read_model: Callable[..., list[Recurrence]]) -> None:
    state = {name: value.bfloat16() for name, value in mixer("mixer.").items()}
    (found,) = read_model(state)
    assert found.dtype == "bfloat16"
    assert_read(found, log_eigenvalues(state["mixer.A_log"], state["mixer.dt_proj.bias"]))


@pytest.mark.parametrize("spelling", ["A_b_log", "A_log_b"])
def test_vision_mamba_has_a_backward_branch_with_its_own_step(
    read_model: Callable[..., list[Recurrence]], spelling: str
) -> None:
    backward = {
        spelling: draw(CHANNELS, MODES),
        "D_b": draw(CHANNELS),
        "conv1d_b.bias": draw(CHANNELS),
        "conv1d_b.weight": draw(CHANNELS, 1, 4),
        "dt_proj_b.bias": draw(CHANNELS),
        "dt_proj_b.weight": draw(CHANNELS, RANK),
        "x_proj_b.weight": draw(RANK + 2 * MODES, CHANNELS),
    }
    state = mixer("layers.3.mixer.", **backward)
    forth, back = read_model(state)
    assert (forth.layer, back.layer) == ("layers.3.mixer", "layers.3.mixer (backward)")
    assert_read(forth, log_eigenvalues(state["layers.3.mixer.A_log"], state["layers.3.mixer.dt_proj.bias"]))
    assert_read(back, log_eigenvalues(backward[spelling], backward["dt_proj_b.bias"]))
    assert [weight.name for weight in back.weights] == [
        f"layers.3.mixer.{spelling}",
        "layers.3.mixer.dt_proj_b.bias",
    ]


def test_vision_mamba_v1_shares_the_step_between_its_branches(read_model: Callable[..., list[Recurrence]]) -> None:
    state = mixer("mixer.", A_b_log=draw(CHANNELS, MODES))
    _, back = read_model(state)
    assert back.layer == "mixer (backward)"
    assert_read(back, log_eigenvalues(state["mixer.A_b_log"], state["mixer.dt_proj.bias"]))


def test_hymba_lists_its_single_parameters(read_model: Callable[..., list[Recurrence]]) -> None:
    state = {
        "model.layers.7.mamba.A_log.0": draw(CHANNELS, MODES),
        "model.layers.7.mamba.D.0": draw(CHANNELS),
        "model.layers.7.mamba.dt_proj.0.bias": draw(CHANNELS),
        "model.layers.7.mamba.dt_proj.0.weight": draw(CHANNELS, RANK),
    }
    (found,) = read_model(state)
    assert found.layer == "model.layers.7.mamba"
    assert_read(
        found, log_eigenvalues(state["model.layers.7.mamba.A_log.0"], state["model.layers.7.mamba.dt_proj.0.bias"])
    )


def test_vmamba_stacks_its_scans_in_the_channels(read_model: Callable[..., list[Recurrence]]) -> None:
    state = {
        "layers.0.blocks.1.op.A_logs": draw(4 * CHANNELS, 1),
        "layers.0.blocks.1.op.dt_projs_bias": draw(4, CHANNELS),
        "layers.0.blocks.1.op.dt_projs_weight": draw(4, CHANNELS, RANK),
    }
    (found,) = read_model(state)
    assert_read(found, log_eigenvalues(*list(state.values())[:2]))
    assert any("4 scans" in note for note in found.notes)


def test_vmamba_with_channels_that_disagree_is_an_error(read_model: Callable[..., list[Recurrence]]) -> None:
    with pytest.raises(LayerError, match="do not belong together"):
        read_model({"op.A_logs": draw(4 * CHANNELS + 1, 1), "op.dt_projs_bias": draw(4, CHANNELS)})


@pytest.mark.parametrize(("block", "offset"), [("CheckpointMambaBlock1D_0", 1e-4), ("MambaLayer_0", 0.0)])
def test_flax_trees_are_read_by_the_order_of_their_dense_layers(
    read_model: Callable[..., list[Recurrence]], block: str, offset: float
) -> None:
    state = {
        f"params/{block}/A_log": draw(CHANNELS, MODES),
        f"params/{block}/Conv_0/bias": draw(CHANNELS),
        f"params/{block}/Dense_0/kernel": draw(WIDTH, 2 * CHANNELS),
        f"params/{block}/Dense_1/kernel": draw(CHANNELS, RANK + 2 * MODES),
        f"params/{block}/Dense_2/bias": draw(CHANNELS),
        f"params/{block}/Dense_2/kernel": draw(RANK, CHANNELS),
    }
    (found,) = read_model(state)
    step = np.logaddexp(0, state[f"params/{block}/Dense_2/bias"].numpy()) + offset
    assert_read(found, -np.exp(state[f"params/{block}/A_log"].numpy()) * step[:, None])
    assert found.notes


def test_a_step_bias_of_another_length_is_named(read_model: Callable[..., list[Recurrence]]) -> None:
    state = mixer("mixer.")
    state["mixer.dt_proj.bias"] = draw(CHANNELS + 1)
    with pytest.raises(LayerError, match=r"mixer\.dt_proj\.bias has shape \(7,\)"):
        read_model(state)


def test_zamba_heads_stand_one_after_the_other(read_model: Callable[..., list[Recurrence]]) -> None:
    log_rate, bias = draw(2, CHANNELS, MODES), draw(2, CHANNELS)
    prefix = "model.layers.4.mamba_decoder.mamba."
    state = {
        f"{prefix}A_log": log_rate,
        f"{prefix}D": draw(2, CHANNELS),
        f"{prefix}conv1d.bias": draw(2 * CHANNELS),
        f"{prefix}dt_proj_bias": bias,
        f"{prefix}dt_proj_weight": draw(2, CHANNELS, RANK),
        f"{prefix}x_proj_weight": draw(2, RANK + 2 * MODES, CHANNELS),
    }
    (found,) = read_model(state)
    assert (found.family, found.channels, found.modes) == ("zamba", 2 * CHANNELS, MODES)
    assert_read(found, log_eigenvalues(log_rate, bias))
    assert_read(Recurrence("", "", "", found.log_eigenvalues[CHANNELS:], False), log_eigenvalues(log_rate[1], bias[1]))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the casts to float32 in the original code, so that a comparison is not limited by them."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("inner_layernorms", [False, True])
def test_mambapy_forgets_a_state_at_the_rate_that_is_read(
    read_model: Callable[..., list[Recurrence]], inner_layernorms: bool
) -> None:
    torch.manual_seed(1)
    config = mambapy.mamba.MambaConfig(d_model=8, n_layers=2, d_state=5, inner_layernorms=inner_layernorms)
    model = mambapy.mamba.Mamba(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = read_model(model.state_dict())
    assert len(found) == 2
    for recurrence, layer in zip(found, model.layers, strict=True):
        block = layer.mixer
        with torch.no_grad():
            block.dt_proj.weight.zero_()  # the gate stays at its bias, whatever the input
            past, token = torch.randn(2, 16, 3).double(), torch.randn(1, 8).double().expand(2, 8)
            past[1] = past[0]  # two states apart by one, everything else alike
            states = torch.stack([torch.zeros(16, 5), torch.ones(16, 5)]).double()
            _, (after, _) = block.step(token, (states, past))
        torch.testing.assert_close((after[1] - after[0]).log(), recurrence.log_eigenvalues.real, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("in_float64")
def test_mambapy_vim_decays_in_both_directions_as_read(read_model: Callable[..., list[Recurrence]]) -> None:
    torch.manual_seed(2)
    block = mambapy.vim.VMambaBlock(mambapy.vim.MambaConfig(d_model=8, n_layers=1, d_state=5)).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = read_model({f"layers.0.mixer.{name}": value for name, value in block.state_dict().items()})
    seen: list[torch.Tensor] = []

    def scan(x: torch.Tensor, step: torch.Tensor, A: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        seen.append(step[0, 0, :, None] * A)
        return torch.zeros_like(x)

    block.selective_scan = block.selective_scan_seq = scan
    with torch.no_grad():
        block.dt_proj.weight.zero_()
        block.dt_proj_b.weight.zero_()
        block(torch.randn(1, 3, 8).double())
    assert len(seen) == len(found) == 2
    for recurrence, ell in zip(found, seen, strict=True):
        torch.testing.assert_close(recurrence.log_eigenvalues.real, ell, rtol=1e-12, atol=0)
