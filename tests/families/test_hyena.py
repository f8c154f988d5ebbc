"""Hyena's filters against the forward pass of the original module, written here in numpy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.errors import LayerError
from ssmdiag.families import hyena
from ssmdiag.recurrence.modal import Recurrence

Read = Callable[..., list[Recurrence]]
CHANNELS, WIDTH, FEATURES, LENGTH = 6, 8, 5, 40
PATH = "backbone.layers.0.mixer.filter_fn"


def positions() -> tuple[np.ndarray, np.ndarray]:
    t, bands = np.linspace(0, 1, LENGTH), (FEATURES - 1) // 2
    turn = np.linspace(1e-4, bands - 1, bands) * (2 * np.pi * np.arange(LENGTH) / LENGTH)[:, None]
    z = np.exp(-1j * turn)
    return np.concatenate([t[:, None], z.real, z.imag], 1), t


def weights(inner: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [FEATURES, *[WIDTH] * (inner + 1), CHANNELS]
    w = {"modulation.deltas": np.linspace(-3, -15, CHANNELS)[None, None], "bias": rng.normal(size=CHANNELS)}
    for depth, (into, out) in enumerate(pairwise(sizes)):
        w[f"implicit_filter.{2 * depth}.weight"] = rng.normal(size=(out, into))
        if out != CHANNELS:
            w[f"implicit_filter.{2 * depth}.bias"] = rng.normal(size=out)
            w[f"implicit_filter.{2 * depth + 1}.freq"] = np.full((1, WIDTH), 1.7)
    z, t = positions()
    return w | {"pos_emb.z": z[None], "pos_emb.t": t[None, :, None]}


def filtered(w: dict[str, np.ndarray], shift: float | None, inner: int = 2) -> np.ndarray:
    """Return the filter, (channel, lag), as `filter` of the module computes it."""
    z, t = positions()
    h = z @ w["implicit_filter.0.weight"].T + w["implicit_filter.0.bias"]
    for depth in range(1, inner + 2):
        h = np.sin(w["implicit_filter.1.freq"] * h) @ w[f"implicit_filter.{2 * depth}.weight"].T
        h = h + w.get(f"implicit_filter.{2 * depth}.bias", 0.0)
    if shift is None:
        return h.T
    return (h * (np.exp(-t[:, None] * np.abs(w["modulation.deltas"][0])) + shift)).T


def state(w: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {f"{PATH}.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in w.items()}


def taps(found: list[Recurrence]) -> np.ndarray:
    (recurrence,) = found
    assert recurrence.taps is not None
    return recurrence.taps[0].numpy()


@pytest.mark.parametrize("inner", [0, 2, 3])
def test_the_taps_are_the_filter_of_the_original(inner: int, read_model: Read) -> None:
    w = weights(inner)
    found = read_model(state(w), {"shift": 0.0})
    np.testing.assert_allclose(taps(found), filtered(w, 0.0, inner), rtol=1e-11, atol=1e-13)
    assert (found[0].family, found[0].layer) == ("hyena", PATH)
    # |Δ| of 3 to 15 over the whole length of 40 lags.
    assert found[0].notes[0] == "its window alone falls to half in 1.8 to 9.01 steps"


def test_the_shift_is_that_of_hyenadna_where_the_file_is_one(read_model: Read) -> None:
    w = weights()
    found = read_model(state(w), {"model_type": "hyenadna"})
    np.testing.assert_allclose(taps(found), filtered(w, 0.05), rtol=1e-11, atol=1e-13)


def test_a_shift_that_nothing_states_is_said_to_be_assumed(read_model: Read) -> None:
    w = weights()
    found = read_model(state(w))
    np.testing.assert_allclose(taps(found), filtered(w, 0.0), rtol=1e-11, atol=1e-13)
    assert any(note.startswith("assumed: shift = 0") for note in found[0].notes)


def test_it_can_be_set(read_model: Read) -> None:
    w = weights()
    np.testing.assert_allclose(taps(read_model(state(w), shift="0.2")), filtered(w, 0.2), rtol=1e-11, atol=1e-13)


def test_without_modulation_there_is_no_window(read_model: Read) -> None:
    w = weights()
    np.testing.assert_allclose(taps(read_model(state(w), {"modulate": False})), filtered(w, None), rtol=1e-11)


def test_a_normalised_filter_adds_up_to_one_over_its_channels(read_model: Read) -> None:
    w = weights()
    h = filtered(w, 0.0)
    found = read_model(state(w), {"normalized": True, "shift": 0.0})
    np.testing.assert_allclose(taps(found), h / np.abs(h).sum(0), rtol=1e-10, atol=1e-13)


def test_sines_shared_by_all_layers_may_be_stored_once(read_model: Read) -> None:
    """safetensors keeps one of several names of a tensor."""
    w = {
        name: value
        for name, value in weights().items()
        if name not in ("implicit_filter.3.freq", "implicit_filter.5.freq")
    }
    np.testing.assert_allclose(taps(read_model(state(w), {"shift": 0.0})), filtered(w, 0.0), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["implicit_filter.6.weight", "implicit_filter.4.weight"])
def test_a_filter_with_a_layer_missing_is_refused(name: str, read_model: Read) -> None:
    w = {key: value for key, value in weights().items() if key != name}
    with pytest.raises(LayerError, match="a layer of its filter is missing"):
        read_model(state(w))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("implicit_filter.2.weight", lambda w: np.stack([w, w], -1), "outputs × 8, the outputs of the layer before"),
        ("implicit_filter.2.weight", lambda w: w[:, :5], "outputs × 8, the outputs of the layer before"),
        ("implicit_filter.4.bias", lambda w: w[:3], "(8,)"),
        ("implicit_filter.4.bias", lambda w: w[:1], "(8,)"),
        ("implicit_filter.1.freq", lambda w: w[..., None], "1 × as many"),
        ("implicit_filter.1.freq", lambda w: w[:, :4], "1 × as many"),
    ],
)
def test_tensors_of_a_filter_that_do_not_fit_each_other_are_named(
    name: str, change: Callable[[np.ndarray], np.ndarray], expected: str, read_model: Read
) -> None:
    """One that would be broadcast is no better: it gives other taps."""
    w = weights()
    w[name] = change(w[name])
    with pytest.raises(LayerError) as caught:
        read_model(state(w))
    assert f"{PATH}.{name} has shape {w[name].shape}" in caught.value.seen
    assert caught.value.expected == expected


def test_two_directions_are_refused(read_model: Read) -> None:
    with pytest.raises(LayerError, match="two directions"):
        read_model(state(weights()), {"bidirectional": True})


def test_of_a_filter_too_long_some_channels_are_evaluated(read_model: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyena, "MOST_TAPS", LENGTH)
    monkeypatch.setattr(hyena, "LAGS_AT_A_TIME", 7)
    w = weights()
    found = read_model(state(w), {"shift": 0.0})
    np.testing.assert_allclose(taps(found), filtered(w, 0.0)[[0, 2, 3, 5]], rtol=1e-11, atol=1e-13)
    assert "4 of 6 channels are evaluated, evenly spaced: a kernel has 40 taps" in found[0].notes


def test_a_model_of_them_is_diagnosed(write_model: Callable[..., Path]) -> None:
    (layer,) = (result := diagnose(write_model(state(weights()), {"l_max": LENGTH, "shift": 0.0}))).layers
    assert (layer.taps, result.context_length, result.problems, result.exit_code()) == (LENGTH, LENGTH, (), 0)
    assert layer.horizon is not None
    assert layer.horizon.max == LENGTH - 1


def test_a_filter_of_one_lag_is_a_product(read_model: Read) -> None:
    w = weights() | {name: value[:, :1] for name, value in weights().items() if name.startswith("pos_emb")}
    found = read_model(state(w), {"shift": 0.0})
    np.testing.assert_allclose(taps(found), filtered(w, 0.0)[:, :1], rtol=1e-11, atol=1e-13)
