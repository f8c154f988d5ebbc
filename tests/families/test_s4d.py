"""S4D against its equations, written here from the paper and the tables of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from ssmdiag.diagnosis import diagnose
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel
from tests.tolerances import RELATIVE

H, S, N, COPIES, LAGS = 4, 2, 3, 2, 40

Read = Callable[..., list[Recurrence]]
State = dict[str, Tensor]

TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda w: w,
    "exp": torch.exp,
    "relu": lambda w: torch.relu(w) + 1e-4,
    "sigmoid": torch.sigmoid,
    "softplus": lambda w: torch.log(1 + torch.exp(w)),
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def v4(prefix: str = "layers.0.layer.layer.kernel.", *, untied: bool = False) -> State:
    """Weights of SSMKernelDiag with S copies of A and B for H channels."""
    return {
        f"{prefix}inv_dt": -2 + 0.5 * random(H, N if untied else 1, seed=1),
        f"{prefix}A_real": 0.3 + 0.2 * random(S, N, seed=2).abs(),
        f"{prefix}A_imag": 1 + random(S, N, seed=3).abs(),
        f"{prefix}B": random(1, S, N, 2, seed=4),
        f"{prefix}C": random(COPIES, H, N, 2, seed=5),
    }


def parts(state: State, prefix: str = "layers.0.layer.layer.kernel.") -> State:
    return {name.removeprefix(prefix): value for name, value in state.items()}


def complex_of(values: Tensor) -> Tensor:
    return torch.complex(values[..., 0], values[..., 1])


def untile(values: Tensor) -> Tensor:
    """(S, N) → (H, N): channel h uses copy h mod S."""
    return torch.stack([values[h % S] for h in range(H)])


def kernel_of(A: Tensor, B: Tensor, C: Tensor, step: Tensor, disc: str, factor: float = 2) -> Tensor:
    """K[c, h, t] = factor · Re Σ_n C B̄ λ̄^t for A, B (H, N), C (copy, H, N), Δ (H, 1 or N)."""
    if disc == "zoh":
        decay, gain = (step * A).exp(), ((step * A).exp() - 1) / A
    else:
        decay, gain = (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2)
    return torch.stack([factor * (C * B * gain * decay**t).sum(-1).real for t in range(LAGS)], -1)


@pytest.mark.one_in(9)
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("dt", TRANSFORMS)
@pytest.mark.parametrize(
    ("real", "imag"), [*((name, "none") for name in TRANSFORMS), *(("exp", n) for n in TRANSFORMS)]
)
def test_v4_follows_its_transforms_and_its_discretisation(
    real: str, imag: str, dt: str, disc: str, read_model: Read
) -> None:
    state = v4()
    if dt not in ("exp", "softplus", "sigmoid"):
        state["layers.0.layer.layer.kernel.inv_dt"] = state["layers.0.layer.layer.kernel.inv_dt"].exp()
    (found,) = read_model(state, real_transform=real, imag_transform=imag, dt_transform=dt, disc=disc)
    w = parts(state)
    A = untile(-TRANSFORMS[real](w["A_real"]) - 1j * TRANSFORMS[imag](w["A_imag"]))
    step = TRANSFORMS[dt](w["inv_dt"])
    K = kernel_of(A, untile(complex_of(w["B"][0])), complex_of(w["C"]), step, disc)
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    z = A * step
    ell = z if disc == "zoh" else ((1 + z / 2) / (1 - z / 2)).log()
    torch.testing.assert_close(found.log_eigenvalues, ell, rtol=RELATIVE["float64"], atol=1e-14)
    assert found.kernel_factor == 2
    assert found.conjugate_pairs
    assert (found.family, found.layer) == ("s4d", "layers.0.layer.layer.kernel")


def test_the_rate_of_a_mode_near_the_boundary_keeps_its_digits(read_model: Read) -> None:
    state = v4()
    state["layers.0.layer.layer.kernel.A_real"].fill_(-27)  # e^−27 = 2e-12
    (found,) = read_model(state, disc="bilinear")
    w = parts(state)
    with mpmath.workdps(60):
        for h in range(H):
            for n in range(N):
                a = -mpmath.exp(mpmath.mpf(-27)) - 1j * mpmath.mpf(float(w["A_imag"][h % S, n]))
                z = a * mpmath.exp(mpmath.mpf(float(w["inv_dt"][h, 0]))) / 2
                ell = mpmath.log((1 + z) / (1 - z))
                assert abs(mpmath.mpf(float(found.rate[h, n])) / -ell.real - 1) < RELATIVE["float64"]
                assert abs(mpmath.mpf(float(found.frequency[h, n])) / ell.imag - 1) < RELATIVE["float64"]


def test_v4_agrees_with_float32_code_on_float32_weights(read_model: Read) -> None:
    state = {name: value.float() for name, value in v4().items()}
    (found,) = read_model(state)
    w = parts(state)
    ell = torch.exp(w["inv_dt"]) * untile(-torch.exp(w["A_real"]) - 1j * w["A_imag"])
    torch.testing.assert_close(found.log_eigenvalues, ell.to(torch.complex128), rtol=RELATIVE["float32"], atol=0)
    assert found.dtype == "float32"


def test_v4_takes_its_transforms_from_the_training_settings(read_model: Read) -> None:
    state = v4()
    settings = {"model": {"layer": {"_name_": "s4", "dt_transform": "softplus", "disc": "bilinear", "dt_fast": False}}}
    (found,) = read_model(state, settings)
    w = parts(state)
    A = untile(-w["A_real"].exp() - 1j * w["A_imag"])
    K = kernel_of(A, untile(complex_of(w["B"][0])), complex_of(w["C"]), torch.log(1 + w["inv_dt"].exp()), "bilinear")
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    sources = {a.option: a.source for a in found.assumptions}
    assert sources == {
        "real_transform": "usual",
        "imag_transform": "usual",
        "dt_transform": "file",
        "dt_fast": "file",
        "disc": "file",
    }


def test_v4_counts_the_modes_of_its_real_variant_twice(read_model: Read) -> None:
    w = {
        "inv_dt": -2 + 0.5 * random(H, 1, seed=1),
        "A_real": random(S, N, seed=2),
        "B": random(1, S, N, seed=3),
        "C": random(COPIES, H, N, seed=4),
    }
    (found,) = read_model({f"k.{name}": value for name, value in w.items()})
    K = kernel_of(untile(-w["A_real"].exp() + 0j), untile(w["B"][0]), w["C"], w["inv_dt"].exp(), "zoh", factor=2)
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    assert not found.conjugate_pairs
    assert bool((found.frequency == 0).all())


def test_v4_steps_may_differ_between_the_modes_of_a_channel(read_model: Read) -> None:
    state = v4(untied=True)
    (found,) = read_model(state)
    w = parts(state)
    A = untile(-w["A_real"].exp() - 1j * w["A_imag"])
    K = kernel_of(A, untile(complex_of(w["B"][0])), complex_of(w["C"]), w["inv_dt"].exp(), "zoh")
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12


@pytest.mark.parametrize("dt", ["exp", "softplus"])
def test_dt_fast_takes_the_step_through_sinh(dt: str, read_model: Read) -> None:
    state = v4()
    (found,) = read_model(state, {"dt_fast": True}, dt_transform=dt)
    w = parts(state)
    step = TRANSFORMS[dt](torch.sinh(w["inv_dt"]))
    torch.testing.assert_close(
        found.log_eigenvalues, step * untile(-w["A_real"].exp() - 1j * w["A_imag"]), rtol=1e-12, atol=0
    )


def test_a_band_limit_silences_the_modes_past_half_of_it(read_model: Read) -> None:
    state, limit = v4(), 0.08
    (found,) = read_model(state, {"bandlimit": limit})
    w = parts(state)
    A, step = untile(-w["A_real"].exp() - 1j * w["A_imag"]), w["inv_dt"].exp()
    inside = step * A.imag.abs() / (2 * math.pi) < limit / 2
    assert 0 < int(inside.sum()) < inside.numel()
    K = kernel_of(A, untile(complex_of(w["B"][0])), complex_of(w["C"]) * inside, step, "zoh")
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    assert any("bandlimit" in note for note in found.notes)


def test_dss_discretisation_normalises_each_mode_over_the_length(read_model: Read) -> None:
    state, length = v4(), 50
    state["layers.0.layer.layer.kernel.A_real"][0, 0] *= -1  # grows: normalised from its far end
    (found,) = read_model(state, {"l_max": length}, disc="dss", real_transform="none")
    w = parts(state)
    A = untile(-w["A_real"] - 1j * w["A_imag"])
    z = w["inv_dt"].exp() * A
    powers = torch.stack([(z * t).exp() for t in range(length)], -1)
    total = powers.sum(-1)
    # The softmax over lags, up to the ε of its reciprocal: Σ_t λ̄^t = (λ̄^L − 1)/(λ̄ − 1).
    K = torch.einsum("chn,hnl->chl", complex_of(w["C"]) * untile(complex_of(w["B"][0])) / (A * total), powers).real
    assert relative_error(stepped_kernel(found, length), K) < 1e-4
    assert found.kernel_factor == 1


def test_without_a_length_the_dss_discretisation_has_a_spectrum_and_no_kernel(read_model: Read) -> None:
    (found,) = read_model(v4(), disc="dss")
    w = parts(v4())
    ell = w["inv_dt"].exp() * untile(-w["A_real"].exp() - 1j * w["A_imag"])
    torch.testing.assert_close(found.log_eigenvalues, ell, rtol=RELATIVE["float64"], atol=0)
    assert found.input_matrix is None
    assert any("length" in note for note in found.notes)


def v3(prefix: str) -> State:
    return {
        f"{prefix}log_dt": -3 + random(H, seed=1),
        f"{prefix}inv_A_real": random(S, N, seed=2) - 1,
        f"{prefix}A_imag": random(S, N, seed=3),
        f"{prefix}B": random(S, N, 2, seed=4),
        f"{prefix}C": random(COPIES, H, N, 2, seed=5),
    }


def v3_kernel(w: State, disc: str = "bilinear", rate: Callable[[Tensor], Tensor] = torch.exp) -> Tensor:
    A = untile(-rate(w["inv_A_real"]) + 1j * w["A_imag"])
    return kernel_of(A, untile(complex_of(w["B"])), complex_of(w["C"]), w["log_dt"].exp()[:, None], disc)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("disc", ["zoh", "bilinear", None])
def test_v3_is_bilinear_unless_told_and_does_not_use_its_stale_a(
    transform: str, disc: str | None, read_model: Read
) -> None:
    prefix = "layers.1.layer.kernel.kernel."
    state = v3(prefix)
    stale = {f"{prefix}A": random(S, N, 2, seed=9)}
    (found,) = read_model(state | stale, {"real_type": transform} | ({"disc": disc} if disc else {}))
    K = v3_kernel(parts(state, prefix), disc or "bilinear", TRANSFORMS[transform])
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    assert f"{prefix}A" not in found.tensors
    assert found.spelling == "state-spaces/s4 v3, SSKernelDiag"


def test_a_file_half_converted_to_v4_has_the_kernel_it_had_before(read_model: Read) -> None:
    """The repository's converter renames log_dt, negates A_imag and leaves inv_A_real as it is."""
    before = v3("l.layer.kernel.kernel.")
    after = {}
    for name, value in before.items():
        name = name.replace("log_dt", "inv_dt").replace("kernel.kernel", "kernel")
        after[name.replace("layer.kernel", "layer.layer.kernel")] = value
    after["l.layer.layer.kernel.inv_dt"] = after["l.layer.layer.kernel.inv_dt"][:, None]
    after["l.layer.layer.kernel.A_imag"] = -after["l.layer.layer.kernel.A_imag"]
    (found,) = read_model(after)
    K = v3_kernel(parts(before, "l.layer.kernel.kernel."))
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12


def h3(prefix: str) -> State:
    return v3(f"{prefix}kernel.kernel.") | {
        f"{prefix}D": random(H, seed=6),
        f"{prefix}ssm_k_kernel.kernel.B": random(2 * H, N, seed=7),
        f"{prefix}ssm_k_kernel.kernel.C": random(1, 2 * H, N, seed=8),
        f"{prefix}ssm_k_D": random(2 * H, seed=9),
    }


def test_h3_is_read_through_its_diagonal_ssm_and_says_that_it_gates(read_model: Read) -> None:
    state = h3("backbone.layers.3.mixer.")
    (found,) = read_model(state)
    K = v3_kernel({n.rpartition(".")[2]: v for n, v in v3("").items()})
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    assert (found.layer, found.spelling) == ("backbone.layers.3.mixer", "HazyResearch/H3")
    assert any("shift" in note for note in found.notes)


def test_a_bidirectional_layer_says_which_outputs_run_backwards(read_model: Read) -> None:
    (found,) = read_model(v4(), {"model": {"layer": {"bidirectional": True}}})
    assert any("reversed" in note for note in found.notes)


def test_h3_can_be_forced_to_real_modes(read_model: Read) -> None:
    (found,) = read_model(h3("mixer."), {"force_real": True})
    assert bool((found.frequency == 0).all())


def test_the_minimal_kernel_is_s4d_with_b_equal_to_one(read_model: Read) -> None:
    w = {
        "log_dt": -3 + random(H, seed=1),
        "log_A_real": random(H, N, seed=2) - 1,
        "A_imag": random(H, N, seed=3),
        "C": random(H, N, 2, seed=4),
    }
    (found,) = read_model({f"s4_layers.2.kernel.{name}": value for name, value in w.items()})
    A = -w["log_A_real"].exp() + 1j * w["A_imag"]
    K = kernel_of(A, torch.ones_like(A), complex_of(w["C"])[None], w["log_dt"].exp()[:, None], "zoh")
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12
    assert found.layer == "s4_layers.2"
    assert found.assumptions == ()


def test_every_dimension_of_an_s4nd_layer_is_one_recurrence(read_model: Read) -> None:
    found = read_model(v4("m.layers.0.layer.kernel.0.") | v4("m.layers.0.layer.kernel.1."))
    assert [r.layer for r in found] == ["m.layers.0.layer.kernel.0", "m.layers.0.layer.kernel.1"]


def test_copies_that_do_not_divide_the_channels_are_a_problem_of_that_layer(write_model: Callable[..., Path]) -> None:
    good, bad = v4("layers.0.kernel."), v4("layers.1.kernel.")
    for name in ("A_real", "A_imag"):
        bad[f"layers.1.kernel.{name}"] = random(3, N, seed=1).abs()
    bad["layers.1.kernel.B"] = random(1, 3, N, 2, seed=1)
    diagnosis = diagnose(write_model(good | bad))
    assert [layer.name for layer in diagnosis.layers] == ["layers.0.kernel"]
    assert "4 channels cannot share 3 copies" in diagnosis.problems[0]
