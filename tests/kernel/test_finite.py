"""Convolutions: every quantity from the taps, against plain sums and against the same kernel as a shift register."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from ssmdiag import hankel_singular_values, memory_function, noisy_capacity, trade_off
from ssmdiag.assessment.memory import assess_memory, summarise_memory
from ssmdiag.capacity.capacity import assess_capacity, summarise_capacity
from ssmdiag.decay.verdict import Law
from ssmdiag.kernel.energy import band_energy, band_energy_and_horizon, horizon, tail_energy
from ssmdiag.kernel.kernel import compute_kernel, iter_kernel, sample_kernel
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.channels import sample_channels, select_channels
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

COPIES, CHANNELS, TAPS = 2, 5, 7


def convolution(taps: torch.Tensor) -> Recurrence:
    gone = torch.full((1, 1), complex(-torch.inf, 0), dtype=torch.complex128)
    return Recurrence("layer", "family", "spelling", gone.expand(taps.shape[1:]), time_invariant=True, taps=taps)


def shift_register(taps: torch.Tensor) -> Recurrence:
    """Return the same kernel as a state that holds the last inputs: Ā moves them on, B̄ writes the first, C is K."""
    _, channels, lags = taps.shape
    shift = torch.diag(torch.ones(lags - 1, dtype=torch.complex128), -1).expand(channels, -1, -1)
    write = torch.zeros(channels, lags, dtype=torch.complex128)
    write[:, 0] = 1
    dense = DenseRealisation(shift, write, taps.to(torch.complex128))
    gone = torch.full((channels, lags), complex(-1e6, 0), dtype=torch.complex128)
    return Recurrence("layer", "family", "spelling", gone, time_invariant=True, dense=lambda: dense)


def random_taps(lags: int = TAPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(lags)
    return torch.randn(COPIES, CHANNELS, lags, dtype=torch.float64, generator=generator)


def with_zeros() -> torch.Tensor:
    """A channel that ends early, one that starts late, one that is all zero, and one that is not finite."""
    taps = random_taps()
    taps[:, 1, 3:], taps[:, 2, :4], taps[:, 3], taps[1, 4, 2] = 0, 0, 0, torch.nan
    return taps


LAGS = [0, 1, 2, 5, 6, 7, 8, 1000, 2**40]


def test_energies_are_sums_of_squares() -> None:
    taps = random_taps()
    square = np.pad((taps.numpy() ** 2).sum(0), ((0, 0), (0, 100)))
    found = tail_energy(convolution(taps), LAGS)
    expected = np.stack([square[:, lag:].sum(1) for lag in LAGS], 1)
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-14)
    assert bool(found.known.all())
    edges = [0, 1, 3, 6, 9, 50]
    bands = band_energy(convolution(taps), edges)
    means = [square[:, a:b].mean(1) for a, b in pairwise(edges)]
    np.testing.assert_allclose(bands.values.numpy(), np.stack(means, 1), rtol=1e-14)
    # Bins that start after lag 0 leave out what comes before.
    np.testing.assert_allclose(band_energy(convolution(taps), [2, 5]).values[:, 0].numpy(), square[:, 2:5].mean(1))


def test_a_tiny_end_keeps_its_digits() -> None:
    taps = torch.tensor([1.0, 1e-9, 1e-11], dtype=torch.float64)[None, None]
    assert tail_energy(convolution(taps), [2]).values.item() == pytest.approx(1e-22, rel=1e-14)
    assert band_energy(convolution(taps), [2, 3]).values.item() == pytest.approx(1e-22, rel=1e-14)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_the_horizon_of_a_share_is_the_first_lag_with_less_left(share: float) -> None:
    taps = random_taps(20)
    square = (taps.numpy() ** 2).sum(0)
    left = square[:, ::-1].cumsum(1)[:, ::-1]
    left = np.pad(left, ((0, 0), (0, 1)))
    expected = [int(np.argmax(row <= (1 - share) * row[0])) for row in left]
    assert horizon(convolution(taps), share).lags.tolist() == expected
    assert band_energy_and_horizon(convolution(taps), [0, 5, 9], share)[1].lags.tolist() == expected


def test_the_shift_register_has_the_same_energies_and_horizons() -> None:
    taps = random_taps()
    one, other = convolution(taps), shift_register(taps)
    torch.testing.assert_close(
        tail_energy(one, LAGS[:7]).values, tail_energy(other, LAGS[:7]).values, rtol=1e-12, atol=1e-13
    )
    edges = [0, 1, 2, 4, 8]
    torch.testing.assert_close(band_energy(one, edges).values, band_energy(other, edges).values, rtol=1e-12, atol=1e-13)
    assert torch.equal(horizon(one).lags, horizon(other).lags)


def test_kernels_are_the_taps_and_then_nothing() -> None:
    taps = random_taps()
    padded = torch.nn.functional.pad(taps, (0, 93))
    one = convolution(taps)
    assert torch.equal(compute_kernel(one, 100).values, padded)
    assert torch.equal(compute_kernel(one, 4).values, taps[..., :4])
    assert torch.equal(compute_kernel(one, 10, dtype=torch.float32).values, padded[..., :10].float())
    assert torch.equal(sample_kernel(one, LAGS), padded[..., [0, 1, 2, 5, 6, 7, 8, 50, 99]])
    parts = list(iter_kernel(one, 16, memory_limit=900))
    assert len(parts) > 1
    assert torch.equal(torch.cat([part.values for part in parts], 1), padded[..., :16])


def test_what_is_known_of_each_channel() -> None:
    one = convolution(with_zeros())
    status = tail_energy(one, [0]).status.tolist()
    assert status == [Status.KNOWN, Status.KNOWN, Status.KNOWN, Status.ZERO, Status.NOT_FINITE]
    memory = assess_memory(one, 64)
    assert memory.horizon.lags[:3].tolist() == [6.0, 2.0, 6.0]
    assert bool(memory.horizon.lags[3:].isnan().all())
    reach, decay = summarise_memory(memory)
    assert reach is not None
    assert (reach.min, reach.max) == (2.0, 6.0)
    assert decay.law == ("finite", None)
    assert decay.counts["finite"] == 3
    assert decay.sentence == "A convolution of 7 taps: nothing older than 6 steps reaches its output."


def test_taps_that_end_in_zeros_end_there() -> None:
    taps = random_taps()
    taps[..., 4:] = 0
    _, decay = summarise_memory(assess_memory(convolution(taps), 64))
    assert (
        decay.sentence
        == "A convolution of 7 taps, the last 3 of them 0: nothing older than 3 steps reaches its output."
    )


def test_a_long_convolution_has_the_law_of_its_taps() -> None:
    lags = torch.arange(2000, dtype=torch.float64)
    slow, power = (-0.004 * lags).exp(), (1 + lags / 3) ** -0.8
    for taps, law in ((slow, Law.EXPONENTIAL), (power, Law.POLYNOMIAL)):
        memory = assess_memory(convolution(taps.expand(1, 3, -1)), 4096)
        _, decay = summarise_memory(memory)
        assert decay.whole.law is law
        assert decay.whole.window == (0, 1721)  # the bin that 1,999 lies in is not full
        assert memory.horizon.lags.tolist() == [1999.0] * 3
        assert decay.sentence.startswith("A convolution of 2,000 taps: nothing older than 1,999 steps")
    assert decay.whole.exponent == pytest.approx(0.8, abs=0.01)


def test_it_can_rebuild_the_inputs_its_taps_reach_and_none_older() -> None:
    taps = with_zeros()
    found = assess_capacity(convolution(taps), 64)
    assert found.modes[:4].tolist() == [7, 3, 7, 0]
    assert found.length_half[:3].tolist() == [6.0, 2.0, 6.0]
    assert found.capacity[:4].tolist() == [7.0, 3.0, 7.0, 0.0]
    assert found.sound.tolist() == [True, True, True, True, False]
    assert assess_capacity(convolution(taps), 2).capacity[:3].tolist() == [2.0, 2.0, 2.0]
    said = summarise_capacity(found)
    assert (
        said.sentence
        == "The convolution sees its last 7 inputs themselves: each can be rebuilt exactly, and none older."
    )
    assert said.length_half is not None
    assert said.accuracy is not None
    assert said.accuracy.min == 1.0
    assert said.without_half == 1
    assert said.unknown == 1


def test_the_shift_register_can_rebuild_the_same() -> None:
    taps = random_taps()
    one, other = (memory_function(layer, range(10)) for layer in (convolution(taps), shift_register(taps)))
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-12)
    assert torch.equal(one.modes, other.modes)
    first, second = (
        assess_capacity(layer, 64, state_dtype="bf16") for layer in (convolution(taps), shift_register(taps))
    )
    for name in ("length_half", "length_tenth", "accuracy", "capacity", "held_half", "held_nine_tenths"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-9, atol=1e-9)
    # The register counts a rounding at every step, of which the convolution knows that only the first one errs.
    assert bool((first.effective_modes >= second.effective_modes - 1e-9).all())
    torch.testing.assert_close(first.effective_modes, second.effective_modes, rtol=1e-3, atol=0)


def test_its_hankel_singular_values_are_those_of_the_hankel_matrix() -> None:
    taps = random_taps()
    hankel = np.zeros((CHANNELS, COPIES * TAPS, TAPS))
    for s in range(TAPS):
        for t in range(TAPS - s):
            for copy in range(COPIES):
                hankel[:, copy * TAPS + s, t] = taps[copy, :, s + t]
    expected = np.linalg.svd(hankel, compute_uv=False)
    np.testing.assert_allclose(
        hankel_singular_values(convolution(taps)).values.numpy(), expected, rtol=1e-12, atol=1e-13
    )


def test_what_needs_a_step_or_a_rounded_state_says_that_it_has_none() -> None:
    one = convolution(random_taps())
    with pytest.raises(ValueError, match="no step to scale"):
        trade_off(one, 64)
    with pytest.raises(ValueError, match="its state is its input"):
        noisy_capacity(one, "bf16")


@pytest.mark.parametrize("channels", [[3], [0, 4]])
def test_some_of_its_channels_are_those_alone(channels: Sequence[int]) -> None:
    taps = random_taps()
    some = select_channels(convolution(taps), torch.tensor(channels))
    assert some.taps is not None
    assert torch.equal(some.taps, taps[:, channels])
    assert some.channels == len(channels)
    assert sample_channels(convolution(taps), 2).channels == 2


def test_taps_of_another_shape_are_refused() -> None:
    one = convolution(random_taps())
    with pytest.raises(ValueError, match="its taps have shape"):
        Recurrence("layer", "family", "s", one.log_eigenvalues[:, :3], time_invariant=True, taps=one.taps)
