"""LinOSS and D-LinOSS against the 2 × 2 oscillator matrices, stepped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import stepped_matrix_kernel

Read = Callable[..., list[Recurrence]]
OSCILLATORS, INPUTS, OUTPUTS, LAGS = 6, 3, 2, 40


def weights(damped: bool = False, stiffest: float = 3.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    w = {
        "A_diag": np.linspace(0.05, stiffest, OSCILLATORS),
        "steps": rng.normal(size=OSCILLATORS),
        "B": rng.normal(size=(OSCILLATORS, INPUTS, 2)),
        "C": rng.normal(size=(OUTPUTS, OSCILLATORS, 2)),
    }
    if not damped:
        return w
    growth = 1 / (1 + np.exp(-w["steps"])) * (G := rng.uniform(0.1, 2, size=OSCILLATORS))
    low, high = limits(w["steps"], growth)
    return w | {"G_diag": G, "A_diag": low + np.linspace(0.1, 0.9, OSCILLATORS) * (high - low)}


def limits(steps: np.ndarray, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the a between which a damped oscillator's eigenvalues are complex, for Δg = `growth`."""
    squared = (1 / (1 + np.exp(-steps))) ** 2
    return (2 + growth - 2 * np.sqrt(1 + growth)) / squared, (2 + growth + 2 * np.sqrt(1 + growth)) / squared


def matrices(w: dict[str, np.ndarray], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return M (oscillator, 2, 2) on (velocity, position), and F, what a unit force adds."""
    step = 1 / (1 + np.exp(-w["steps"]))
    a = np.maximum(w["A_diag"], 0)
    one = np.ones_like(a)
    if rule == "im":  # z' = z + Δ(−a x' + f), x' = x + Δ z', solved for the new values
        implicit = np.linalg.inv(np.array([[one, step * a], [-step, one]]).transpose(2, 0, 1))
        return implicit, (implicit @ np.stack([step, 0 * step], -1)[..., None])[..., 0]
    growth = step * np.maximum(w["G_diag"], 0) if "G_diag" in w else 0 * step
    if "G_diag" in w:
        a = np.clip(w["A_diag"], *limits(w["steps"], growth))
    # z' = z + Δ(−a x − g z' + f), x' = x + Δ z'
    kick = np.array([[1 / (1 + growth), -step * a / (1 + growth)], [0 * one, one]]).transpose(2, 0, 1)
    drift = np.array([[one, 0 * one], [step, one]]).transpose(2, 0, 1)
    force = np.stack([step / (1 + growth), 0 * step], -1)
    return drift @ kick, (drift @ force[..., None])[..., 0]


def response(w: dict[str, np.ndarray], rule: str) -> np.ndarray:
    transition, force = matrices(w, rule)
    B, C = (w[name][..., 0] + 1j * w[name][..., 1] for name in "BC")
    state, outputs = force, []
    for _ in range(LAGS):
        outputs.append((C @ (state[:, 1:] * B)).real)
        state = (transition @ state[..., None])[..., 0]
    return np.array(outputs)


def tensors(w: dict[str, np.ndarray], step: str = "steps") -> dict[str, torch.Tensor]:
    return {f"blocks.0.ssm.{step if k == 'steps' else k}": torch.tensor(v) for k, v in w.items()}


def ordered(values: np.ndarray) -> np.ndarray:
    return np.sort_complex(np.round(values, 10).flatten())


@pytest.mark.parametrize("step", ["steps", "dt"])
@pytest.mark.parametrize("rule", ["im", "imex", "damped"])
def test_linoss_reads_as_its_oscillators_run(read_model: Read, rule: str, step: str) -> None:
    w = weights(damped=rule == "damped")
    options = {} if rule == "damped" else {"discretization": rule}
    (found,) = read_model(tensors(w, step), **options)
    own = np.linalg.eigvals(matrices(w, rule)[0])
    np.testing.assert_allclose(ordered(found.log_eigenvalues.exp().numpy()), ordered(own), atol=1e-9)
    determinants = np.linalg.det(matrices(w, rule)[0])
    rate = -np.log(determinants) / 2
    np.testing.assert_allclose(found.rate[0].numpy(), np.tile(rate, 2), rtol=1e-12, atol=1e-15)
    kernel = response(w, rule)
    assert np.abs(stepped_matrix_kernel(found, LAGS).numpy() - kernel).max() < 1e-12 * np.abs(kernel).max()
    assert (found.modes, found.kernel_factor, found.conjugate_pairs) == (2 * OSCILLATORS, 1.0, False)
    assert len(found.assumptions) == (rule != "damped")


def test_imex_conserves_energy_exactly(read_model: Read) -> None:
    (found,) = read_model(tensors(weights()), {"linoss_discretization": "IMEX"})
    assert (found.rate == 0).all()
    assert found.assumptions[0].source == "file"


def test_imex_past_its_stability_limit_grows(read_model: Read) -> None:
    w = weights(stiffest=60.0)
    (found,) = read_model(tensors(w), discretization="imex")
    own = np.linalg.eigvals(matrices(w, "imex")[0])
    assert (np.abs(own) > 1.001).any()
    np.testing.assert_allclose(
        ordered(found.log_eigenvalues.exp().numpy()), ordered(own.astype(complex)), rtol=1e-8, atol=1e-8
    )
    kernel = response(w, "imex")
    assert np.abs(stepped_matrix_kernel(found, LAGS).numpy() - kernel).max() < 1e-11 * np.abs(kernel).max()


def test_implicit_rule_keeps_the_rate_of_a_soft_oscillator(read_model: Read) -> None:
    w = weights()
    w["A_diag"][:], w["steps"][:] = 1e-14, 0.0
    (found,) = read_model(tensors(w))
    np.testing.assert_allclose(found.rate.numpy(), 0.125e-14, rtol=1e-12)


@pytest.mark.parametrize(("damped", "a"), [(False, -1.0), (True, -1.0), (True, 1e6)])
def test_a_double_eigenvalue_has_a_spectrum_and_no_modal_kernel(read_model: Read, damped: bool, a: float) -> None:
    """relu(A) = 0 integrates twice; D-LinOSS's limits are where the two eigenvalues meet."""
    w = weights(damped)
    w["A_diag"][2] = a
    (found,) = read_model(tensors(w))
    assert found.input_matrix is None
    assert found.output_matrix is None
    assert any("1 of 6 oscillators have a double eigenvalue" in note for note in found.notes)
    rate = -np.log(np.linalg.det(matrices(w, "damped" if damped else "im")[0])) / 2
    np.testing.assert_allclose(found.rate[0].numpy(), np.tile(rate, 2), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("config", "notes"), [({}, ["DampedIMEX1, the paper's rule"]), ({"layer_name": "DampedIMEX1"}, [])]
)
def test_the_paper_s_damped_rule_is_assumed_aloud(read_model: Read, config: dict[str, str], notes: list[str]) -> None:
    (found,) = read_model(tensors(weights(damped=True), "dt"), config)
    assert len(found.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, found.notes, strict=True))


def test_other_damped_rules_are_refused_where_the_settings_name_them(read_model: Read) -> None:
    with pytest.raises(LayerError, match="dampedex are not read"):
        read_model(tensors(weights(damped=True), "dt"), {"layer_name": "DampedEX"})
