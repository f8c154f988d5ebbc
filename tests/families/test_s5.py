"""S5: the JAX code's convention, s5-pytorch's own module, lrnnx."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import stepped_matrix_kernel
from tests.tolerances import RELATIVE

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # s5-pytorch scripts its scan with torch.jit
    from s5 import S5

Read = Callable[..., list[Recurrence]]
MODES, INPUTS, LAGS = 6, 3, 50


def jax_state(seed: int = 0, **extra: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "seq.Lambda_re": -0.5 + 0.4 * normal(MODES),
        "seq.Lambda_im": -10 * normal(MODES).abs() - 1,
        "seq.log_step": -3 + normal(MODES, 1),
        "seq.B": normal(MODES, INPUTS, 2),
        "seq.D": normal(INPUTS),
        **({"seq.C": normal(INPUTS, MODES, 2)} if not extra else {}),
        **{f"seq.{name}": normal(*shape) for name, shape in extra.items()},
    }


def stepped(state: dict[str, Tensor], rule: str, clip: bool, factor: float, C: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return λ̄ and K (lag, output, input) by running the recurrence of the paper."""
    get = {name.removeprefix("seq."): value.numpy() for name, value in state.items()}
    real = np.minimum(get["Lambda_re"], -1e-4) if clip else get["Lambda_re"]
    poles, step = real + 1j * get["Lambda_im"], np.exp(get["log_step"][:, 0])
    B = get["B"][..., 0] + 1j * get["B"][..., 1]
    if rule == "zoh":
        discrete, gain = np.exp(poles * step), (np.exp(poles * step) - 1) / poles
    else:
        discrete, gain = (1 + step / 2 * poles) / (1 - step / 2 * poles), step / (1 - step / 2 * poles)
    memory, kernel = gain[:, None] * B, []
    for _ in range(LAGS):
        kernel.append(factor * (C @ memory).real)
        memory = discrete[:, None] * memory
    return discrete, np.array(kernel)


def as_complex(values: Tensor) -> np.ndarray:
    return values[..., 0].numpy() + 1j * values[..., 1].numpy()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("conj_sym", ["true", "false"])
@pytest.mark.parametrize("clip", ["true", "false"])
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_jax_s5_reads_as_its_recurrence_runs(read_model: Read, rule: str, clip: str, conj_sym: str) -> None:
    state = jax_state()
    assert (state["seq.Lambda_re"] > -1e-4).any(), "nothing to clip"
    (found,) = read_model(state, discretization=rule, clip_eigs=clip, conj_sym=conj_sym)
    factor = 2.0 if conj_sym == "true" else 1.0
    discrete, kernel = stepped(state, rule, clip == "true", factor, as_complex(state["seq.C"]))
    np.testing.assert_allclose(found.log_eigenvalues.exp()[0].numpy(), discrete, rtol=RELATIVE["float64"])
    np.testing.assert_allclose(stepped_matrix_kernel(found, LAGS).numpy(), kernel, rtol=1e-11, atol=1e-12)
    assert found.conjugate_pairs is (conj_sym == "true")
    assert found.channels == 1
    assert found.notes == ()


def test_zoh_keeps_the_digits_of_a_rate_that_is_lost_in_the_eigenvalue(read_model: Read) -> None:
    state = jax_state()
    state["seq.Lambda_re"][:] = -1e-14
    (found,) = read_model(state)
    expected = 1e-14 * np.exp(state["seq.log_step"][:, 0].numpy())
    np.testing.assert_allclose(found.rate[0].numpy(), expected, rtol=RELATIVE["float64"])


@pytest.mark.parametrize("names", [("C1", "C2"), ("C",)])
def test_bidirectional_s5_is_two_recurrences_on_one_spectrum(read_model: Read, names: tuple[str, ...]) -> None:
    width = MODES * 2 // len(names)
    state = jax_state(**dict.fromkeys(names, (INPUTS, width, 2)))
    forward, backward = read_model(state)
    assert (forward.layer, backward.layer) == ("seq (forward)", "seq (backward)")
    torch.testing.assert_close(forward.log_eigenvalues, backward.log_eigenvalues, rtol=0, atol=0)
    columns = np.concatenate([as_complex(state[f"seq.{name}"]) for name in names], axis=1)
    for found, C in ((forward, columns[:, :MODES]), (backward, columns[:, MODES:])):
        kernel = stepped(state, "zoh", False, 2.0, C)[1]
        np.testing.assert_allclose(stepped_matrix_kernel(found, LAGS).numpy(), kernel, rtol=1e-11, atol=1e-12)


def test_outputs_that_fit_no_direction_are_an_error(read_model: Read) -> None:
    with pytest.raises(LayerError, match="C reads 9 states, the recurrence has 6"):
        read_model(jax_state(C=(INPUTS, 9, 2)))


@pytest.mark.parametrize(
    ("signs", "pairs", "said"),
    [
        ([-1, -1, -1, -1, -1, -1], True, "as S5 is initialised"),
        ([-1, -1, -1, 1, 1, 1], False, "as S5 is initialised"),
        ([-1, -1, -1, -1, -1, 1], True, "uncertain"),
        ([-1, -1, 1, 1, 1, 1], False, "uncertain"),
        ([0, 0, 0, 0, 0, 0], True, "uncertain"),
    ],
)
def test_signs_of_the_imaginary_parts_decide_conj_sym(
    read_model: Read, signs: list[int], pairs: bool, said: str
) -> None:
    state = jax_state()
    state["seq.Lambda_im"] = state["seq.Lambda_im"].abs() * torch.tensor(signs)
    (found,) = read_model(state)
    assert found.conjugate_pairs is pairs
    assert found.kernel_factor == (2.0 if pairs else 1.0)
    assert any("conj_sym" in note and said in note for note in found.notes)
    assert {a.option: a.source for a in found.assumptions}["conj_sym"] == "inferred"


def test_settings_beat_the_signs(read_model: Read) -> None:
    (found,) = read_model(jax_state(), {"conj_sym": False, "discretization": "bilinear", "step_rescale": 2.0})
    assert found.kernel_factor == 1.0
    assert {a.option: a.source for a in found.assumptions} == {
        "clip_eigs": "usual",
        "conj_sym": "file",
        "discretization": "file",
    }
    state = jax_state()
    state["seq.log_step"] += np.log(2.0)
    discrete = stepped(state, "bilinear", False, 1.0, as_complex(state["seq.C"]))[0]
    np.testing.assert_allclose(found.log_eigenvalues.exp()[0].numpy(), discrete, rtol=RELATIVE["float64"])


def test_flax_names_with_slashes_are_read(tmp_path: Path) -> None:
    state = {
        f"params/encoder/layers_{i}/{name.replace('.', '/')}": v for i in range(2) for name, v in jax_state().items()
    }
    np.savez(tmp_path / "s5.npz", **{name: value.numpy() for name, value in state.items()})
    found = extract_recurrences(tmp_path / "s5.npz")
    assert [recurrence.layer for recurrence in found] == [f"params.encoder.layers_{i}.seq" for i in range(2)]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_s5_pytorch_responds_as_its_own_module(read_model: Read, bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = S5(4, 8, bidir=bidirectional)
    found = read_model(model.state_dict())
    assert [r.spelling for r in found] == ["s5-pytorch"] * (1 + bidirectional)
    with torch.no_grad():
        own, _ = model.seq.discretize(model.seq.Lambda, model.seq.get_BC_tilde()[0], model.seq.log_step.exp())
        # In float32 its (λ̄ − 1)/λ loses three digits at Δ = 0.001, so its response is taken in float64.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.complex128 if parameter.is_complex() else torch.float64)
        exact, _ = model.seq.discretize(model.seq.Lambda, model.seq.get_BC_tilde()[0], model.seq.log_step.exp())
        impulses = torch.zeros(4, 2 * LAGS - 1, 4, dtype=torch.float64)
        impulses[torch.arange(4), LAGS - 1, torch.arange(4)] = 1
        response = (model(impulses) - model.seq.D * impulses).permute(1, 2, 0)
    kernel = torch.zeros_like(response)
    kernel[LAGS - 1 :] += stepped_matrix_kernel(found[0], LAGS)
    if bidirectional:
        kernel[:LAGS] += stepped_matrix_kernel(found[1], LAGS).flip(0)
    for recurrence in found:
        read = recurrence.log_eigenvalues.exp()[0]
        torch.testing.assert_close(read, exact, rtol=RELATIVE["float64"], atol=0)
        torch.testing.assert_close(read.to(own.dtype), own, rtol=RELATIVE["float32"], atol=0)
        assert not recurrence.conjugate_pairs
    assert (response - kernel).abs().max() < 1e-11 * kernel.abs().max()


@pytest.mark.parametrize("rule", ["zoh", "dirac", "bilinear"])
def test_lrnnx_reads_as_it_runs(read_model: Read, rule: str) -> None:
    rng = np.random.default_rng(0)
    A, log_dt = rng.normal(size=(5, 2)), rng.normal(size=5) - 3
    B, C, D = rng.normal(size=(5, 3)), rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 3))
    tensors = {"A": A, "log_dt": log_dt, "B": B, "C": C, "D": D}
    (found,) = read_model({f"layers.0.{k}": torch.tensor(v) for k, v in tensors.items()}, discretization=rule)
    poles, step = -np.log1p(np.exp(A[:, 0])) + 1j * A[:, 1], np.exp(log_dt)
    discrete, gain = {
        "zoh": (np.exp(poles * step), (np.exp(poles * step) - 1) / poles),
        "dirac": (np.exp(poles * step), np.ones(5)),
        "bilinear": ((1 - step / 2 * poles) / (1 + step / 2 * poles), step / (1 + step / 2 * poles)),
    }[rule]
    np.testing.assert_allclose(found.log_eigenvalues.exp()[0].numpy(), discrete, rtol=RELATIVE["float64"])
    kernel = [((C[..., 0] + 1j * C[..., 1]) @ (discrete[:, None] ** t * gain[:, None] * B)).real for t in range(LAGS)]
    np.testing.assert_allclose(stepped_matrix_kernel(found, LAGS).numpy(), kernel, rtol=1e-11, atol=1e-12)
    assert (found.rate < 0).all() == (rule == "bilinear")
    assert any("bilinear" in note for note in found.notes) == (rule == "bilinear")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rule", ["zoh", "dirac", "bilinear"])
def test_lrnnx_for_events_reads_as_it_runs(read_model: Read, rule: str, half: bool) -> None:
    """Its Re Λ is stored as it is, B is complex, and its bilinear rule is the usual one."""
    rng = np.random.default_rng(1)
    A, log_dt = np.stack([-np.exp(rng.normal(size=6)), rng.normal(size=6)], -1), rng.normal(size=6) - 3
    A[:, 1] = np.abs(A[:, 1]) if half else np.array([1, -1] * 3) * np.abs(A[:, 1])
    B, C, D = rng.normal(size=(6, 3, 2)), rng.normal(size=(3, 6, 2)), rng.normal(size=3)
    tensors = {"A": A, "log_dt": log_dt, "B": B, "C": C, "D": D}
    (found,) = read_model({f"layers.0.{k}": torch.tensor(v) for k, v in tensors.items()}, discretization=rule)
    poles, step = A[:, 0] + 1j * A[:, 1], np.exp(log_dt)
    discrete, gain = {
        "zoh": (np.exp(poles * step), (np.exp(poles * step) - 1) / poles),
        "dirac": (np.exp(poles * step), np.ones(6)),
        "bilinear": ((1 + step / 2 * poles) / (1 - step / 2 * poles), step / (1 - step / 2 * poles)),
    }[rule]
    state, kernel = gain[:, None] * (B[..., 0] + 1j * B[..., 1]), []
    for _ in range(LAGS):
        kernel.append((2.0 if half else 1.0) * ((C[..., 0] + 1j * C[..., 1]) @ state).real)
        state = discrete[:, None] * state
    np.testing.assert_allclose(stepped_matrix_kernel(found, LAGS).numpy(), kernel, rtol=1e-11, atol=1e-12)
    assert (found.rate > 0).all()
