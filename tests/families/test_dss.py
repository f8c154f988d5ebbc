"""DSS against its definition: a softmax over lags, or the exponential's own scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel
from tests.tolerances import RELATIVE

H, N, COPIES, LAGS = 3, 4, 2, 30

Read = Callable[..., list[Recurrence]]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(version: str, *, two_steps: bool) -> dict[str, Tensor]:
    real, imag = -0.5 - random(N, seed=1).abs(), 1 + random(N, seed=2).abs()
    if version == "exp-re-im":
        state = {"Lambda_log_neg_re": (-real).log(), "Lambda_log_im": imag.log()}
    elif version.startswith("exp"):
        state = {"Lambda_log_neg_re": (-real).log(), "Lambda_im": imag}
    else:
        state = {"Lambda": torch.stack([real, imag], -1)}
    steps = -2 + 0.5 * random(H, 2, seed=3)
    return state | {"log_dt": steps if two_steps else steps[:, 0], "W": random(COPIES, H, N, 2, seed=4)}


def spectrum(two_steps: bool, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Λ (N) and ΔΛ (H, N) of `weights`."""
    real = -0.5 - random(N, seed=1).abs() if real is None else real
    imag = 1 + random(N, seed=2).abs()
    steps = (-2 + 0.5 * random(H, 2, seed=3)).exp()
    return real + 1j * imag, steps[:, :1] * real + 1j * steps[:, 1 if two_steps else 0, None] * imag


def summed(scale: Tensor, ell: Tensor) -> Tensor:
    W = random(COPIES, H, N, 2, seed=4)
    W = torch.complex(W[..., 0], W[..., 1])
    return torch.stack([(W * scale * (ell * t).exp()).sum(-1).real for t in range(LAGS)], -1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("version", ["exp", "exp-re-im", "clip", "exp-no-scale", "clip-no-scale"])
def test_modes_of_the_exponential_versions_are_not_doubled(version: str, two_steps: bool, read_model: Read) -> None:
    state = {f"layer.kernel.{n}": v for n, v in weights(version, two_steps=two_steps).items()}
    (found,) = read_model(state, {"version": version})
    eigenvalues, ell = spectrum(two_steps)
    scale = torch.ones_like(ell) if "no-scale" in version else (ell.exp() - 1) / eigenvalues
    assert relative_error(stepped_kernel(found, LAGS), summed(scale, ell)) < 1e-12
    torch.testing.assert_close(found.log_eigenvalues, ell, rtol=RELATIVE["float64"], atol=1e-15)
    assert found.kernel_factor == 1
    assert not found.conjugate_pairs


@pytest.mark.parametrize("two_steps", [True, False])
@pytest.mark.parametrize("grows", [True, False])
def test_weights_of_the_softmax_version_sum_to_w_over_lambda(grows: bool, two_steps: bool, read_model: Read) -> None:
    """Each mode is softmax(ΔΛ·t) over the L lags, over Λ; a growing one too, for a softmax may be shifted."""
    state = weights("softmax", two_steps=two_steps)
    if grows:
        state["Lambda"][1, 0] *= -0.2
    (found,) = read_model({f"k.{n}": v for n, v in state.items()}, {"l_max": LAGS})
    eigenvalues, ell = spectrum(two_steps, state["Lambda"][:, 0])
    total = torch.stack([(ell * t).exp() for t in range(LAGS)]).sum(0)
    # |den·Λ|² + 1e-7 in the reciprocal keeps it from the exact softmax by no more than this.
    assert relative_error(stepped_kernel(found, LAGS), summed(1 / (total * eigenvalues), ell)) < 1e-5
    assert int((found.rate < 0).sum()) == (H if grows else 0)


def test_without_a_length_the_softmax_version_has_a_spectrum_and_no_kernel(read_model: Read) -> None:
    (found,) = read_model(weights("softmax", two_steps=True))
    torch.testing.assert_close(found.log_eigenvalues, spectrum(True)[1], rtol=RELATIVE["float64"], atol=1e-15)
    assert found.input_matrix is None
    assert any("length" in note for note in found.notes)


def test_clip_holds_the_real_part_under_its_limit(read_model: Read) -> None:
    state = weights("clip", two_steps=False)
    state["Lambda"][0, 0] = 0.7
    (clipped,) = read_model(state, {"version": "clip", "max_real_Lambda": -0.01})
    step = state["log_dt"].exp()
    torch.testing.assert_close(clipped.rate[:, 0], 0.01 * step, rtol=RELATIVE["float64"], atol=0)


@pytest.mark.parametrize(
    ("version", "open_choices"),
    [
        ("softmax", ("softmax", "clip", "clip-no-scale")),
        ("exp", ("exp", "exp-no-scale")),
        ("exp-re-im", ("exp-re-im",)),
    ],
)
def test_the_version_is_open_only_as_far_as_the_tensors_leave_it(
    version: str, open_choices: tuple[str, ...], read_model: Read
) -> None:
    (found,) = read_model(weights(version, two_steps=True))
    (assumption,) = found.assumptions
    assert (assumption.value, assumption.choices) == (version, open_choices)


def test_a_version_that_the_tensors_rule_out_is_noted_and_not_used(read_model: Read) -> None:
    (found,) = read_model(weights("exp", two_steps=True), version="softmax")
    assert found.assumptions[0].value == "exp"
    assert any("version=softmax does not fit" in note for note in found.notes)
