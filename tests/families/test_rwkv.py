"""RWKV-4 to RWKV-7: decays from the papers' formulas, and which version a file is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag import prove_conversion
from ssmdiag.compare.conversion import Outcome
from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.errors import LayerError, UnknownFamilyError
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]

HEADS, KEYS = 2, 8
CHANNELS = HEADS * KEYS
_MIX = {"key.weight": (CHANNELS, CHANNELS), "receptance.weight": (CHANNELS, CHANNELS)}
_LORA = {"time_decay_w1": (CHANNELS, 4), "time_decay_w2": (4, CHANNELS), "time_maa_x": (1, 1, CHANNELS)}
_V7 = {"w1": (CHANNELS, 4), "w2": (4, CHANNELS), "a0": (1, 1, CHANNELS), "k_a": (1, 1, CHANNELS)}

FILES: dict[str, tuple[str, str, str, dict[str, tuple[int, ...]]]] = {
    "4, BlinkDL": ("rwkv4", "blocks.0.att", "time_decay", {
        "time_decay": (CHANNELS,), "time_first": (CHANNELS,), "time_mix_k": (1, 1, CHANNELS), **_MIX}),
    "4, transformers": ("rwkv4", "rwkv.blocks.0.attention", "time_decay", {
        "time_decay": (CHANNELS,), "time_first": (CHANNELS,), "time_mix_key": (1, 1, CHANNELS), **_MIX}),
    "5.0": ("rwkv5", "blocks.0.att", "time_decay", {
        "time_decay": (HEADS,), "time_first": (HEADS,), "time_mix_k": (1, 1, CHANNELS), "ln_x.weight": (CHANNELS,)}),
    "5.1": ("rwkv5", "blocks.0.att", "time_decay", {
        "time_decay": (HEADS,), "time_faaaa": (HEADS,), "gate.weight": (CHANNELS, CHANNELS),
        "ln_x.weight": (CHANNELS,)}),
    "5.2": ("rwkv5", "blocks.0.att", "time_decay", {
        "time_decay": (HEADS, KEYS), "time_faaaa": (HEADS, KEYS), "ln_x.weight": (CHANNELS,), **_MIX}),
    "6, BlinkDL": ("rwkv6", "blocks.0.att", "time_decay", {
        "time_decay": (1, 1, CHANNELS), "time_faaaa": (HEADS, KEYS), "ln_x.weight": (CHANNELS,), **_LORA, **_MIX}),
    "6, fla": ("rwkv6", "model.layers.0.attn", "w_proj.linear.lora.2.bias", {
        "w_proj.linear.lora.2.bias": (CHANNELS,), "w_proj.linear.lora.0.weight": (4, CHANNELS),
        "bonus": (HEADS, KEYS), "x_bias": (5, CHANNELS)}),
    "7, BlinkDL": ("rwkv7", "blocks.0.att", "w0", {
        "w0": (1, 1, CHANNELS), "r_k": (HEADS, KEYS), "k_k": (1, 1, CHANNELS), "ln_x.weight": (CHANNELS,), **_V7}),
    "7, fla": ("rwkv7", "model.layers.0.attn", "w_lora.lora.2.bias", {
        "w_lora.lora.2.bias": (CHANNELS,), "w_lora.lora.0.weight": (4, CHANNELS), "r_k": (HEADS, KEYS),
        "k_k": (CHANNELS,), "a_lora.lora.2.bias": (CHANNELS,)}),
}  # fmt: skip
SHAPES = {"4": (CHANNELS, 1), "5.0": (HEADS, 1), "5.1": (HEADS, 1)}


def model(version: str) -> tuple[dict[str, torch.Tensor], np.ndarray[Any, Any]]:
    """Return a state dict and its raw decay weight."""
    _, path, decay, shapes = FILES[version]
    torch.manual_seed(3)
    state = {f"{path}.{name}": torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return state, state[f"{path}.{decay}"].numpy()


@pytest.mark.parametrize("version", FILES)
def test_log_decay_follows_the_formula_of_its_version(version: str, read_model: Read) -> None:
    state, weight = model(version)
    (recurrence,) = read_model(state)
    number = version.split(",")[0]
    # RWKV-7 as its authors write it: w = −softplus(−w₀) − 1/2, decay exp(−exp(w)).
    expected = -np.exp(-np.logaddexp(0.0, -weight) - 0.5 if number == "7" else weight)
    shape = SHAPES.get(number, (HEADS, KEYS))
    assert recurrence.family == FILES[version][0]
    assert recurrence.log_eigenvalues.shape == shape
    assert recurrence.time_invariant == (number[0] in "45")
    np.testing.assert_allclose(
        recurrence.log_eigenvalues.real.numpy(), expected.reshape(shape), rtol=RELATIVE["float64"]
    )


def test_rwkv_7_decay_stays_above_its_floor(read_model: Read) -> None:
    state, _ = model("7, BlinkDL")
    state["blocks.0.att.w0"] *= 1e3
    (recurrence,) = read_model(state)
    assert float(recurrence.log_eigenvalues.real.min()) == pytest.approx(-math.exp(-0.5), rel=1e-15)


def test_decay_of_rwkv_4_is_what_its_average_does(read_model: Read) -> None:
    """One value enters, then nothing: numerator over nine steps, by the paper's own recurrence."""
    state, weight = model("4, BlinkDL")
    (recurrence,) = read_model(state)
    numerator = np.ones(CHANNELS)
    for _ in range(9):
        numerator = np.exp(-np.exp(weight)) * numerator + 0.0
    np.testing.assert_allclose(np.exp(9 * recurrence.log_eigenvalues.real[:, 0].numpy()), numerator, rtol=1e-10)


def save_converted(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write what the rwkv package's converter writes: squeezed tensors and its marks."""
    state: dict[str, Any] = {f"blocks.0.att.{name}": -torch.rand(shape) for name, shape in shapes.items()}
    torch.save({**state, "_strategy": "cpu fp32", "_rescale_layer": 0, "_version": "0.7"}, path)
    return path


def test_rwkv_4_converted_by_the_rwkv_package_is_refused(tmp_path: Path) -> None:
    shapes = {"time_decay": (CHANNELS,), "time_first": (CHANNELS,), "time_mix_k": (CHANNELS,)}
    with pytest.raises(LayerError, match="the rwkv package stores transformed decays"):
        extract_recurrences(save_converted(tmp_path / "converted.pth", shapes))


CONVERTED = {"5.0": (HEADS, 1, 1), "5.1": (HEADS, 1, 1), "5.2": (HEADS, KEYS, 1), "6, BlinkDL": (HEADS, KEYS, 1)}


@pytest.mark.parametrize("version", CONVERTED)
def test_a_file_of_the_rwkv_packages_converter_is_the_model_it_was_made_from(version: str, tmp_path: Path) -> None:
    """The converter squeezes what begins with time_, takes exp(−exp(w)) in version 5 and transposes matrices."""
    own, _ = model(version)
    own |= {f"blocks.0.att.{name}.weight": torch.randn(CHANNELS, CHANNELS) for name in ("key", "value", "receptance")}
    own = {name: value.float() for name, value in own.items()}
    converted: dict[str, Any] = {"_strategy": "cpu fp32", "_rescale_layer": 0, "_version": "0.7"}
    for name, value in own.items():
        local = name.removeprefix("blocks.0.att.")
        value = value.squeeze() if local.startswith("time_") else value.t().contiguous() if value.ndim == 2 else value
        if local == "time_decay":
            value = (value if version[0] == "6" else torch.exp(-torch.exp(value))).reshape(CONVERTED[version])
        if local in ("time_faaaa", "time_first"):
            name, value = "blocks.0.att.time_first", value.reshape(CONVERTED[version])
        converted[name] = value
    torch.save(own, tmp_path / "own.pth")
    torch.save(converted, tmp_path / "converted.pth")
    (first,), (second,) = (extract_recurrences(tmp_path / f"{name}.pth") for name in ("own", "converted"))
    assert (second.family, second.time_invariant) == (first.family, first.time_invariant)
    assert second.channels * second.modes == first.channels * first.modes
    ours, theirs = (r.log_eigenvalues.exp().flatten() for r in (second, first))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    (layer,) = prove_conversion(tmp_path / "own.pth", tmp_path / "converted.pth").layers
    assert layer.outcome is Outcome.SAME, layer
    swapped = converted | {"blocks.0.att.key.weight": own["blocks.0.att.key.weight"]}
    torch.save(swapped, tmp_path / "swapped.pth")
    if version[0] == "6":
        assert prove_conversion(tmp_path / "own.pth", tmp_path / "swapped.pth").layers[0].outcome is Outcome.DIFFERS


def test_release_candidates_of_rwkv_7_are_not_taken_for_rwkv_6(tmp_path: Path) -> None:
    own, _ = model("6, BlinkDL")
    own |= {"blocks.0.att.time_aaaaa": torch.zeros(1, 1, CHANNELS)}
    torch.save(own, tmp_path / "candidate.pth")
    with pytest.raises(UnknownFamilyError):
        extract_recurrences(tmp_path / "candidate.pth")


@pytest.mark.parametrize(("version", "name"), [("6, BlinkDL", "time_decay"), ("7, fla", "w_lora.lora.2.bias")])
def test_a_decay_that_does_not_fit_the_heads_is_named(version: str, name: str, read_model: Read) -> None:
    state, weight = model(version)
    path = FILES[version][1]
    state[f"{path}.{name}"] = torch.randn(*weight.shape[:-1], CHANNELS + 1)
    with pytest.raises(LayerError, match=f"head × key = {CHANNELS}"):
        read_model(state)
