"""Discretisations and maps against arithmetic with 50 digits, up to the stability boundary."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.recurrence.discretisation import bilinear, bilinear_gain, log_of, zoh, zoh_gain
from ssmdiag.recurrence.maps import MAPS
from ssmdiag.recurrence.modal import Recurrence

mpmath.mp.dps = 50

decay = st.floats(-15, 1.5).map(lambda exponent: -(10.0**exponent))
angle = st.floats(0, 40)
step = st.floats(-4, 0).map(lambda exponent: 10.0**exponent)


def column(value: complex) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.complex128)


def real(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def close(got: complex, wanted: mpmath.mpc, relative: float = 1e-13) -> bool:
    return bool(abs(mpmath.mpc(got) - wanted) <= relative * abs(wanted) + mpmath.mpf(10) ** -300)


@given(decay, angle, step)
def test_bilinear_log_eigenvalue_keeps_the_digits_of_a_tiny_rate(re: float, im: float, dt: float) -> None:
    z = mpmath.mpf(dt) * mpmath.mpc(re, im) / 2
    wanted = mpmath.log((1 + z) / (1 - z))
    got = complex(bilinear(column(complex(re, im)), real(dt))[0, 0])
    # The rate alone, not the modulus of ℓ: a rate of 1e-15 beside an angle of 1 must keep its digits.
    assert close(got.real, wanted.real, 1e-11)
    assert abs(mpmath.mpf(got.imag) - wanted.imag) <= 1e-13


@given(decay, angle, step)
def test_zoh_gain_is_expm1_over_lambda_without_cancellation(re: float, im: float, dt: float) -> None:
    eigenvalue = mpmath.mpc(re, im)
    wanted = mpmath.expm1(mpmath.mpf(dt) * eigenvalue) / eigenvalue
    assert close(complex(zoh_gain(column(complex(re, im)), real(dt))[0, 0]), wanted, 1e-12)


def test_zoh_gain_of_an_integrator_is_the_step() -> None:
    assert complex(zoh_gain(column(0), real(0.01))[0, 0]) == 0.01


@given(decay, angle, step)
def test_bilinear_gain_is_step_over_one_minus_half(re: float, im: float, dt: float) -> None:
    z = mpmath.mpf(dt) * mpmath.mpc(re, im) / 2
    assert close(complex(bilinear_gain(column(complex(re, im)), real(dt))[0, 0]), dt / (1 - z))


def test_zoh_is_step_times_eigenvalue_and_real_input_stays_real() -> None:
    ell = zoh(-torch.tensor([[1.0, 2.0]], dtype=torch.float64), real(0.5))
    assert ell.dtype == torch.complex128
    assert ell.tolist() == [[-0.5, -1.0]]


def test_bilinear_of_a_fast_mode_flips_sign_as_tustin_does() -> None:
    ell = bilinear(column(-8.0), real(1.0))[0, 0]  # λ̄ = (1 − 4)/(1 + 4) = −0.6
    assert math.isclose(ell.real, math.log(0.6), rel_tol=1e-15)
    assert math.isclose(abs(ell.imag), math.pi)


def test_log_of_zero_is_a_mode_that_forgets_at_once() -> None:
    ell = log_of(torch.zeros(1, 1, dtype=torch.complex128))
    recurrence = Recurrence("x", "x", "x", ell, time_invariant=True)
    assert recurrence.half_life.item() == 0
    assert recurrence.margin.item() == 1


@pytest.mark.parametrize(
    ("rate", "time_constant", "margin"),
    [(1e-12, 1e12, 1e-12), (0.0, math.inf, 0.0), (-0.5, math.inf, -math.expm1(0.5)), (2.0, 0.5, -math.expm1(-2.0))],
)
def test_derived_quantities_hold_up_to_and_past_the_boundary(rate: float, time_constant: float, margin: float) -> None:
    recurrence = Recurrence("x", "x", "x", column(-rate), time_invariant=True)
    assert recurrence.time_constant.item() == pytest.approx(time_constant, rel=1e-15)
    assert recurrence.half_life.item() == pytest.approx(math.log(2) * time_constant, rel=1e-15)
    assert recurrence.margin.item() == pytest.approx(margin, rel=1e-14)


def test_a_recurrence_refuses_anything_but_channel_mode_complex128() -> None:
    for wrong in (torch.zeros(3, dtype=torch.complex128), torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"\(channel, mode\) complex128"):
            Recurrence("x", "x", "x", wrong, time_invariant=True)


MAGNITUDES = {
    "none": lambda w: w,
    "direct": lambda w: -w,
    "exp": mpmath.exp,
    "softplus": lambda w: mpmath.log1p(mpmath.exp(w)),
    "softplus+1e-4": lambda w: mpmath.log1p(mpmath.exp(w)) + mpmath.mpf(1e-4),
    "-logsigmoid": lambda w: mpmath.log1p(mpmath.exp(-w)),
    "direct, at least 1e-4": lambda w: max(-w, mpmath.mpf(1e-4)),
    "sigmoid": lambda w: 1 / (1 + mpmath.exp(-w)),
    "relu": lambda w: max(w, mpmath.mpf(0)),
    "relu+1e-4": lambda w: max(w, mpmath.mpf(0)) + mpmath.mpf(1e-4),
    "best": lambda w: 1 / (w**2 + mpmath.mpf(0.5)),
    "best(b=0.1)": lambda w: 1 / (w**2 + mpmath.mpf(0.1)),
    "heavy-tail": lambda w: 1 + w if w >= 0 else 1 / (1 - w),
}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("w", [-700.0, -30.0, -1.5, -1e-9, 0.0, 0.3, 1.0, 20.5, 36.0, 600.0])
def test_maps_agree_with_fifty_digits_in_both_tails(name: str, w: float) -> None:
    got = MAPS[name](torch.tensor(w, dtype=torch.float64)).item()
    assert close(got, MAGNITUDES[name](mpmath.mpf(w)), 1e-15 if name != "exp" else 1e-13)
