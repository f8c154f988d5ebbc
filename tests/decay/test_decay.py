"""Decay laws of kernels whose law is known in closed form, and of kernels that have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssmdiag.assessment.memory import assess_memory, lag_edges
from ssmdiag.decay.decay import LAWS, STATUSES, DecayStatus, Law, compare_decay
from ssmdiag.decay.laws import binned_law
from ssmdiag.decay.sentence import describe
from tests.assessment.test_tail import modal
from tests.decay.decay_suite import bin_energy, log_spaced_edges, power_law_by_quadrature, sum_of_exponentials

CONTEXT = 10_000
LAG = np.arange(CONTEXT)


def compare(*kernels: np.ndarray, floor: float = 0.0):
    edges = log_spaced_edges(kernels[0].size)
    profile = np.stack([bin_energy(kernel**2, edges) for kernel in kernels])
    return compare_decay(torch.from_numpy(edges).long(), torch.from_numpy(profile), floor, context=kernels[0].size)


def binned(exponent: float, rate: float, offset: float, edges: np.ndarray) -> np.ndarray:
    lag = np.arange(int(edges[-1]))
    return 0.5 * np.log(bin_energy((1 + lag / offset) ** (-2 * exponent) * np.exp(-2 * rate * lag), edges))


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 0.7])
def test_law_of_an_exponential_is_exact_in_bins_of_any_width(rate: float) -> None:
    edges = np.array([0.0, 1, 2, 5, 11, 40, 100, 400])
    width = torch.from_numpy(np.diff(edges))[None]
    lag = torch.from_numpy(edges[:-1])[None] + (width - 1) / 2
    one = torch.ones(1, 1, dtype=torch.float64)
    law, _ = binned_law(lag, width, 0 * one, rate * one, one, ("rate",))
    assert np.allclose(law[0].numpy(), binned(0, rate, 1, edges), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("exponent", "rate", "offset"), [(0.6, 0, 0.5), (3, 0, 1), (1.1, 0, 10), (1, 1e-3, 5), (3, 0, 100)]
)
def test_law_of_a_power_is_within_a_fiftieth_of_a_decibel_in_bins_of_a_twelfth_decade(
    exponent: float, rate: float, offset: float
) -> None:
    edges = log_spaced_edges(CONTEXT)
    width = torch.from_numpy(np.diff(edges))[None]
    lag = torch.from_numpy(edges[:-1])[None] + (width - 1) / 2
    one = torch.ones(1, 1, dtype=torch.float64)
    law, _ = binned_law(lag, width, exponent * one, rate * one, offset * one, ("exponent", "rate", "offset"))
    error = np.abs(law[0].numpy() - binned(exponent, rate, offset, edges)).max()
    assert error * 20 / math.log(10) < 0.02


def test_derivatives_of_the_binned_law_are_its_difference_quotients() -> None:
    edges = log_spaced_edges(CONTEXT)
    width = torch.from_numpy(np.diff(edges))[None]
    lag = torch.from_numpy(edges[:-1])[None] + (width - 1) / 2
    free = ("exponent", "rate", "offset")

    def law(exponent: float, rate: float, log_offset: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        values = torch.tensor([exponent, rate, math.exp(log_offset)], dtype=torch.float64)[:, None, None]
        return binned_law(lag, width, *values, free)

    at = [1.3, 2e-3, math.log(7)]
    _, derivatives = law(*at)
    for position, step in enumerate((1e-6, 1e-8, 1e-6)):
        up, down = list(at), list(at)
        up[position] += step
        down[position] -= step
        quotient = (law(*up)[0] - law(*down)[0]) / (2 * step)
        assert torch.allclose(derivatives[position], quotient, rtol=1e-5, atol=1e-6 * float(quotient.abs().max()))


def test_one_real_pole_is_exponential_with_its_rate_and_half_life() -> None:
    comparison = compare(np.exp(-0.01 * LAG))
    found = comparison.channel(0)
    assert found.law is Law.EXPONENTIAL
    assert found.rate == pytest.approx(0.01, rel=1e-5)
    assert found.amplitude == pytest.approx(1, rel=1e-4)
    assert found.exponent is None
    assert found.offset is None
    assert "half gone every 69.3 steps" in comparison.describe(0)
    assert "10,000" not in comparison.describe(0) or "9,999" in comparison.describe(0)


def test_target_of_stable_ssm_is_polynomial_with_its_exponent_and_offset() -> None:
    comparison = compare((1 + 0.1 * LAG) ** -1.1)
    found = comparison.channel(0)
    assert found.law is Law.POLYNOMIAL
    assert found.exponent == pytest.approx(1.1, abs=1e-3)
    assert found.offset == pytest.approx(10, rel=1e-2)
    assert found.rate is None
    assert found.window == (0, CONTEXT - 1)
    assert "(1 + t/10)^−1.10" in comparison.describe(0)


def test_power_law_with_a_cut_off_is_truncated() -> None:
    found = compare((1 + LAG / 5) ** -0.8 * np.exp(-LAG / 2000)).channel(0)
    assert found.law is Law.TRUNCATED
    assert found.exponent == pytest.approx(0.8, abs=1e-3)
    assert found.rate == pytest.approx(1 / 2000, rel=1e-3)


def test_integrator_is_flat() -> None:
    comparison = compare(np.full(CONTEXT, 0.3))
    assert comparison.channel(0).law is Law.FLAT
    assert comparison.channel(0).amplitude == pytest.approx(0.3)
    assert comparison.describe(0).startswith("Does not decay over lags 0 to 9,999")


def test_four_exponentials_are_no_power_law_over_four_decades_and_forty_are() -> None:
    comparison = compare(sum_of_exponentials(1.1, 10, CONTEXT, 4), power_law_by_quadrature(1.1, 10, CONTEXT, 40))
    four, forty = comparison.channel(0), comparison.channel(1)
    assert four.law is Law.UNDETERMINED
    assert four.residual_db is not None
    assert four.residual_db[Law.POLYNOMIAL] > 0.35
    assert forty.law is Law.POLYNOMIAL
    assert forty.exponent == pytest.approx(1.1, abs=0.01)
    assert forty.window == (0, CONTEXT - 1)


def test_window_ends_where_the_noise_begins() -> None:
    noise = 1e-7
    kernel = np.exp(-0.01 * LAG) + noise * np.random.default_rng(0).standard_normal(CONTEXT)
    comparison = compare(kernel, floor=noise**2)
    found = comparison.channel(0)
    assert found.law is Law.EXPONENTIAL
    assert found.rate == pytest.approx(0.01, rel=5e-3)
    assert found.window is not None
    # 30 dB above the noise is reached at ln(10⁷ / 10^1.5) / 0.01 lags.
    assert found.window[1] == pytest.approx(math.log(10**5.5) / 0.01, rel=0.2)
    assert f"to {found.window[1]:,} of 10,000" in comparison.describe(0)


def test_decaying_oscillation_is_exponential() -> None:
    found = compare(np.exp(-2e-3 * LAG) * np.cos(0.3 * LAG + 1)).channel(0)
    assert found.law is Law.EXPONENTIAL
    assert found.rate == pytest.approx(2e-3, rel=0.02)


def test_scaling_a_kernel_changes_its_amplitude_alone() -> None:
    kernel = (1 + LAG / 3) ** -1.4
    plain, scaled = compare(kernel).channel(0), compare(1e-12 * kernel).channel(0)
    assert plain.exponent is not None
    assert plain.amplitude is not None
    assert scaled.law is plain.law
    assert scaled.exponent == pytest.approx(plain.exponent, rel=1e-4)
    assert scaled.amplitude == pytest.approx(1e-12 * plain.amplitude, rel=1e-4)


def test_a_channel_is_judged_as_if_it_were_alone() -> None:
    kernels = [np.exp(-0.01 * LAG), (1 + 0.1 * LAG) ** -1.1, np.exp(-0.003 * LAG) * np.cos(0.05 * LAG), 0.0 * LAG]
    together = compare(*kernels)
    for index, kernel in enumerate(kernels):
        alone, beside = compare(kernel).channel(0), together.channel(index)
        assert alone.law is beside.law
        assert alone.window == beside.window
        assert alone.status is beside.status
        assert (alone.rate is None) == (beside.rate is None)
        assert (alone.rate or 0) == pytest.approx(beside.rate or 0, rel=1e-4)
        assert (alone.exponent or 0) == pytest.approx(beside.exponent or 0, rel=1e-4)


def without_decay() -> dict[str, tuple[np.ndarray, DecayStatus]]:
    nan = np.exp(-0.01 * LAG)
    nan[77] = math.nan
    return {
        "nan": (nan, DecayStatus.NOT_FINITE),
        "zero": (np.zeros(CONTEXT), DecayStatus.ZERO),
        "growing": (np.exp(1e-3 * LAG), DecayStatus.GROWS),
        "overflowing": (np.where(LAG > 5000, np.inf, 1e3), DecayStatus.GROWS),
        "one step": (1.0 * (LAG == 0), DecayStatus.SHORT_MEMORY),
        "four steps": (1.0 * (LAG < 4), DecayStatus.SHORT_MEMORY),
    }


@pytest.mark.parametrize("name", without_decay())
def test_kernel_without_a_law_has_a_sentence_and_no_numbers(name: str) -> None:
    kernel, status = without_decay()[name]
    comparison = compare(np.exp(-0.01 * LAG), kernel, np.exp(-0.02 * LAG))
    found = comparison.channel(1)
    assert found.status is status
    assert found.law is Law.UNDETERMINED
    assert found.window is None
    assert found.residual_db is None
    assert [found.amplitude, found.exponent, found.rate, found.offset] == [None] * 4
    assert comparison.describe(1).lower() == f"{status.value.lower()}."
    for fit in comparison.fits.values():
        for values in vars(fit).values():
            assert bool(values.isfinite().all())
            assert float(values[1]) == 0
    assert comparison.channel(0).rate == pytest.approx(0.01, rel=1e-5)
    assert comparison.channel(2).rate == pytest.approx(0.02, rel=1e-5)


def undetermined() -> dict[str, tuple[np.ndarray, DecayStatus]]:
    lags = np.arange(2000)
    return {
        "an exponential that loses 4 dB": (np.exp(-0.5 * LAG / CONTEXT), DecayStatus.LITTLE_DECAY),
        "a power law that has hardly begun": ((1 + lags / 200) ** -2.0, DecayStatus.SHORT_WINDOW),
        "four exponentials that imitate a power law": (sum_of_exponentials(1.1, 10, CONTEXT, 4), DecayStatus.ROUGH),
        "a power law and an exponential of 2 dB each": (
            (1 + lags / 30) ** -0.7 * np.exp(-0.2 * lags / lags.size),
            DecayStatus.INDISTINCT,
        ),
        "two rates a decade apart": (np.exp(-LAG / 100) + 0.1 * np.exp(-LAG / 2000), DecayStatus.NO_LAW),
    }


@pytest.mark.parametrize("name", undetermined())
def test_undetermined_says_whether_the_window_the_decay_or_the_laws_are_to_blame(name: str) -> None:
    kernel, status = undetermined()[name]
    comparison = compare(kernel)
    found = comparison.channel(0)
    assert found.status is status
    assert found.law is Law.UNDETERMINED
    assert found.residual_db is not None
    assert f"Undetermined over lags 0 to {kernel.size - 1:,}: {status.value} (best: " in comparison.describe(0)


def test_rates_that_nearly_agree_are_one_exponential() -> None:
    found = compare(np.exp(-0.0096 * LAG) + np.exp(-0.0104 * LAG), floor=1e-12).channel(0)
    assert found.law is Law.EXPONENTIAL
    assert found.rate == pytest.approx(0.01, rel=0.02)


def test_one_broken_channel_among_thousands_leaves_the_others_as_they_were() -> None:
    edges = log_spaced_edges(1000)
    rate = torch.linspace(0.004, 0.02, 3000, dtype=torch.float64)[:, None]
    profile = torch.from_numpy(
        np.stack([bin_energy(np.exp(-2 * float(value) * np.arange(1000)), edges) for value in rate])
    )
    profile[1234, 5] = math.nan
    comparison = compare_decay(torch.from_numpy(edges).long(), profile, 0.0, context=1000)
    assert comparison.counts()[Law.EXPONENTIAL] == 2999
    assert STATUSES[int(comparison.status[1234])] is DecayStatus.NOT_FINITE
    found = comparison.fits[Law.EXPONENTIAL].rate
    keep = torch.arange(3000) != 1234
    assert torch.allclose(found[keep], rate[keep, 0], rtol=1e-5)


def test_channels_shared_between_cores_are_the_channels_done_in_one_and_torch_keeps_its_threads() -> None:
    edges = torch.from_numpy(log_spaced_edges(500)).long()
    rate = torch.linspace(0.01, 0.1, 9000, dtype=torch.float64)[:, None]
    profile = torch.exp(-2 * rate * edges[:-1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = compare_decay(edges, profile, 0.0, context=500)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = compare_decay(edges, profile, 0.0, context=500)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.law, two.law)
    assert torch.allclose(one.fits[Law.EXPONENTIAL].rate, two.fits[Law.EXPONENTIAL].rate, rtol=1e-5)


def test_context_of_one_lag_says_so() -> None:
    comparison = compare_decay(torch.tensor([0, 1]), torch.ones(2, 1, dtype=torch.float64), 0.0, context=1)
    assert STATUSES[int(comparison.status[0])] is DecayStatus.SHORT_CONTEXT
    assert comparison.describe(1) == "The context has too few lags to tell a law."


def test_no_channels_give_no_verdicts() -> None:
    comparison = compare_decay(torch.tensor([0, 1, 2]), torch.ones(0, 2, dtype=torch.float64), 0.0, context=2)
    assert comparison.channels == 0
    assert sum(comparison.counts().values()) == 0


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="expected \\(channel, bin\\) and \\(bin \\+ 1,\\)"):
        compare_decay(torch.arange(5), torch.ones(2, 5, dtype=torch.float64), 0.0, context=4)
    with pytest.raises(ValueError, match="ascending"):
        compare_decay(torch.tensor([0, 2, 2]), torch.ones(1, 2, dtype=torch.float64), 0.0, context=2)


def test_every_verdict_has_a_sentence() -> None:
    assert len({status.value for status in DecayStatus}) == len(DecayStatus)
    assert all(len(status.value.split()) > 4 for status in DecayStatus)
    assert LAWS[-1] is Law.UNDETERMINED


@pytest.mark.slow
@pytest.mark.parametrize("context", [64, 4096, 70_000])
def test_no_channel_depends_on_its_neighbours_to_the_last_bit(context: int) -> None:
    """Smooth and swinging kernels, zeros, NaN and infinity: alone, in fives or all at once, the same numbers."""
    generator = torch.Generator().manual_seed(1)
    edges = lag_edges(context)
    lag = (edges[:-1] + edges[1:] - 1).double() / 2
    rate = 10 ** (-5 * torch.rand(60, 1, generator=generator, dtype=torch.float64))
    power = 3 * torch.rand(60, 1, generator=generator, dtype=torch.float64)
    energy = (-2 * rate * lag).exp() * (1 + lag / 3) ** (-2 * power)
    energy[::3] *= 1 + 0.5 * (lag * rate[::3] * 7).cos()
    energy[5], energy[7], energy[9] = 0.0, math.nan, math.inf
    floor = 2.0**-48 * energy.nan_to_num(0.0, posinf=1.0).amax(1, keepdim=True).expand_as(energy)

    def numbers(rows: slice) -> torch.Tensor:
        laws = compare_decay(edges, energy[rows], floor[rows], context=context)
        fits = [getattr(fit, name) for fit in laws.fits.values() for name in vars(fit)]
        return torch.stack([laws.law.double(), laws.status.double(), laws.last.double(), *fits])

    whole = numbers(slice(None))
    for size in (1, 5, 17, 33):
        for start in range(0, 60 - size, size):
            rows = slice(start, start + size)
            torch.testing.assert_close(numbers(rows), whole[:, rows], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("context", [512, 4096])
def test_a_law_holds_from_where_the_kernel_has_risen_to_it(context: int) -> None:
    """e^{−t/100} − e^{−t/10} is 0 at lag 0, and within 3 dB of e^{−t/100} from lag 14 on."""
    memory = assess_memory(modal([[-0.01, -0.1]], [[1.0, -1.0]]), context)
    window, tail = memory.whole.channel(0).window, memory.remaining.whole.row(0)
    assert tail is not None
    assert 12 <= tail.first <= 23
    assert window is not None
    assert (memory.whole.channel(0).law is Law.EXPONENTIAL) == (window[0] > 0)
    sentence = describe(memory.whole, memory.remaining)
    assert sentence.startswith("Forgets exponentially, half gone every 71") == (context == 4096)
    assert ("over lags 0 to" in sentence) == (context == 512)  # undetermined
