"""What remains of a kernel: the rate that rules its tail and the lags that hold its energy, against stepped kernels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmdiag.assessment.memory import LayerMemory, assess_memories, assess_memory, lag_edges, summarise_memory
from ssmdiag.decay.sentence import describe_tail
from ssmdiag.decay.tail import Tail, TailLaw, TailStatus
from ssmdiag.decay.verdict import Law
from ssmdiag.kernel.mode_energy import ModeEnergies
from ssmdiag.kernel.pair_forms import first_rates
from ssmdiag.kernel.status import channel_status
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

CONTEXT = 4096


def modal(ell: object, weights: object, *, factor: float = 1.0) -> Recurrence:
    """Return a layer of channels with these log-eigenvalues, whose C is `weights`, both (channel, mode)."""
    spectrum = torch.as_tensor(np.asarray(ell), dtype=torch.complex128)
    C = torch.as_tensor(np.asarray(weights), dtype=torch.complex128)
    return Recurrence(
        "layers.0", "s4d", "x", spectrum, time_invariant=True, kernel_factor=factor,
        input_matrix=torch.ones_like(spectrum), output_matrix=C[None],
    )  # fmt: skip


def stepped(layer: Recurrence, lags: int) -> np.ndarray:
    """Return K_t, (channel, lag), by stepping the recurrence."""
    decay = layer.log_eigenvalues.exp().numpy()
    assert layer.output_matrix is not None
    state, C = np.ones_like(decay), layer.output_matrix[0].numpy()
    kernel = np.empty((len(decay), lags))
    for lag in range(lags):
        kernel[:, lag] = layer.kernel_factor * (C * state).sum(1).real
        state = state * decay
    return kernel


def tail_of(layer: Recurrence, context: int = CONTEXT) -> Tail | None:
    return assess_memory(layer, context).remaining.whole.row(0)


def drawn(random: np.random.Generator, channels: int, modes: int, *, real: bool = False) -> Recurrence:
    rate = np.exp(random.uniform(math.log(3e-3), math.log(0.5), (channels, modes)))
    weights = random.standard_normal((channels, modes))
    if real:
        return modal(-rate, weights)
    frequency, phase = random.uniform(0, math.pi, (channels, modes)), random.uniform(0, 6.28, (channels, modes))
    return modal(-rate + 1j * frequency, weights * np.exp(1j * phase), factor=2.0)


def test_the_slower_of_two_exponentials_rules_from_where_the_other_is_gone() -> None:
    tail = tail_of(modal([[-0.1, -0.002]], [[1.0, 0.05]]))
    assert tail is not None
    assert tail.law is TailLaw.EXPONENTIAL
    assert tail.rate == pytest.approx(0.002, rel=1e-12)
    energy = stepped(modal([[-0.1, -0.002]], [[1.0, 0.05]]), CONTEXT)[0] ** 2
    assert tail.energy_share == pytest.approx(energy[tail.first :].sum() / energy.sum(), rel=1e-6)
    # e^{−0.1 t} is a fifth of 0.05 e^{−0.002 t} at lag 47.
    assert 20 <= tail.first <= 47


@pytest.mark.parametrize("real", [True, False])
def test_energies_of_groups_are_those_of_stepped_kernels(real: bool) -> None:
    layer = drawn(np.random.default_rng(1), 5, 6, real=real)
    lags = torch.tensor([0.0, 1.0, 2.0, 5.0, 17.0, 64.0, 200.0], dtype=torch.float64)
    modes = ModeEnergies(layer, channel_status(layer), lags)
    found = modes.groups(torch.full((5,), 6))
    energy = stepped(layer, 4000) ** 2
    for k, lag in enumerate([0, 1, 2, 5, 17, 64]):
        expected = energy[:, lag:].sum(1)
        np.testing.assert_allclose(found.whole[:, k].numpy(), expected / modes_unit(modes) ** 2, rtol=1e-9)
    # The rest is what the kernel is without the modes of the ruling group.
    rate = layer.rate
    ruling = found.rate[:, -2:-1]
    own = (rate >= ruling / 1.1) & (rate <= ruling * 1.1)
    assert layer.output_matrix is not None
    others = replace(layer, output_matrix=layer.output_matrix.where(~own, 0.0))
    left = (stepped(others, 4000) ** 2)[:, 5:].sum(1)
    np.testing.assert_allclose(found.rest[:, 3].numpy(), left / modes_unit(modes) ** 2, rtol=1e-7, atol=1e-12)
    whole = modes.groups_of_layer(torch.tensor([6])).whole
    unit = float(modes.unit)
    np.testing.assert_allclose(whole[0, 3].item() * unit**2, energy[:, 5:].sum(), rtol=1e-9)


def modes_unit(modes: ModeEnergies) -> np.ndarray:
    return np.concatenate([form.unit.numpy() for _, form in modes.forms()])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_rings_of_one_rate_are_told_as_such(seed: int) -> None:
    """Frequencies of 0.1 to 0.5 turns a time constant, and sums of 16 rings: at least 95 %, at the rate put in."""
    random = np.random.default_rng(seed)
    told = 0
    for case in range(40):
        rate = float(np.exp(random.uniform(math.log(4e-3), math.log(0.1))))
        if case % 2:
            spectrum, phase = random.uniform(0.1, 0.5, (1, 1)) * 2 * math.pi * rate, random.uniform(0, 6.28, (1, 1))
            size = np.ones((1, 1))
        else:
            spectrum, phase = random.uniform(0, math.pi, (1, 16)), random.uniform(0, 6.28, (1, 16))
            size = np.abs(random.standard_normal((1, 16)))
        tail = tail_of(modal(-rate + 1j * spectrum, size * np.exp(1j * phase), factor=2.0))
        told += tail is not None and tail.rate == pytest.approx(rate, rel=1e-6)
    assert told >= 0.95 * 40


@pytest.mark.slow
@pytest.mark.parametrize("real", [True, False])
def test_no_tail_is_named_that_the_stepped_kernel_does_not_follow(real: bool) -> None:
    random = np.random.default_rng(7)
    named = 0
    for _ in range(40):
        layer = drawn(random, 1, int(random.choice([2, 3, 5, 8])), real=real)
        tail = tail_of(layer)
        if tail is None or tail.law is not TailLaw.EXPONENTIAL:
            continue
        named += 1
        energy = stepped(layer, CONTEXT)[0] ** 2
        left = energy[::-1].cumsum()[::-1]
        assert tail.energy_share == pytest.approx(left[tail.first] / left[0], rel=1e-4)
        middle = (tail.first + tail.last) // 2
        first, second = energy[tail.first : middle].sum(), energy[middle : 2 * middle - tail.first].sum()
        fall = 0.5 * math.log(first / second)
        assert fall == pytest.approx(tail.rate * (middle - tail.first), rel=0.1, abs=0.4), tail
    assert named >= 10


def test_modes_that_cancel_are_not_taken_for_one_exponential() -> None:
    """e^{−rt} − e^{−1.0001 rt} is t e^{−rt} all along, which falls with r only at the very end."""
    memory = assess_memory(modal([[-0.01, -0.010001]], [[1.0, -1.0]]), CONTEXT)
    tail = memory.remaining.whole.row(0)
    assert tail is None
    assert memory.remaining.whole.reason(0) in (TailStatus.BENT, TailStatus.FEW_LAGS)


def test_a_mode_that_a_model_cannot_see_rules_no_tail() -> None:
    tail = tail_of(modal([[-0.05, -1e-4]], [[1.0, 1e-9]]))
    assert tail is not None
    assert tail.rate == pytest.approx(0.05)
    assert tail.first == 0


@pytest.mark.parametrize(("rate", "law"), [(0.0, TailLaw.FLAT), (1e-9, TailLaw.FLAT), (1e-4, TailLaw.EXPONENTIAL)])
def test_what_does_not_decay_is_flat(rate: float, law: TailLaw) -> None:
    tail = tail_of(modal([[-rate, -0.5]], [[1.0, 1.0]]))
    assert tail is not None
    assert (tail.law, tail.rate) == (law, pytest.approx(rate, rel=1e-9, abs=1e-15))


def test_a_growing_or_dense_or_dead_layer_has_no_tail_and_says_why() -> None:
    grows = assess_memory(modal([[1e-3, -0.1]], [[1.0, 1.0]]), CONTEXT)
    dead = assess_memory(modal([[-0.1, -0.2]], [[0.0, 0.0]]), CONTEXT)
    for memory in (grows, dead):
        assert memory.remaining.whole.row(0) is None
        assert memory.remaining.whole.reason(0) is TailStatus.NO_KERNEL
    assert summarise_memory(grows)[1].lags == (math.inf, math.inf, math.inf)
    brief = assess_memory(modal([[-9.0]], [[1.0]]), CONTEXT)
    assert brief.remaining.whole.reason(0) is TailStatus.SHORT_MEMORY


def lags_by_summing(energy: np.ndarray, share: float) -> float:
    left = energy[::-1].cumsum()[::-1]
    return float(np.argmax(left <= (1 - share) * left[0]))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("real", [True, False])
def test_lags_of_half_nine_tenths_and_ninety_nine_are_those_of_stepped_kernels(real: bool) -> None:
    layer = drawn(np.random.default_rng(3), 6, 4, real=real)
    memory = assess_memory(layer, 64, every_passing=True)  # a context shorter than the memory bounds none of them
    energy = stepped(layer, 20_000) ** 2
    assert memory.remaining.channels is not None
    for k, share in enumerate((0.5, 0.9, 0.99)):
        expected = [lags_by_summing(row, share) for row in energy]
        assert memory.remaining.channels.lags[:, k].tolist() == expected
        assert float(memory.remaining.passing.lags[0, k]) == lags_by_summing(energy.sum(0), share)
    assert memory.remaining.channels.lags[:, 2].tolist() == memory.horizon.lags.tolist()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("rate", [1e-6, 3e-4, 0.07, 0.3, 1.0])
def test_heaviness_of_an_exponential_is_1_at_any_rate(rate: float) -> None:
    assert float(assess_memory(modal([[-rate]], [[1.0]]), 256).remaining.passing.heaviness[0]) == pytest.approx(1.0)


def test_heaviness_tells_a_late_peak_from_a_long_tail() -> None:
    late = assess_memory(modal([[-0.01, -0.0101]], [[1.0, -1.0]]), CONTEXT)
    long = assess_memory(modal([[-0.1, -0.002]], [[1.0, 0.05]]), CONTEXT)
    assert float(late.remaining.passing.heaviness[0]) < 0.6
    assert float(long.remaining.passing.heaviness[0]) > 10


def dense_of(layer: Recurrence) -> Recurrence:
    """Return the same kernel from a full state matrix, by a basis that is not orthogonal."""
    mix = torch.randn(layer.modes, layer.modes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mix = mix.to(torch.complex128)
    assert layer.output_matrix is not None
    A = mix @ torch.diag_embed(layer.log_eigenvalues.exp()) @ mix.inverse()
    B = (mix @ torch.ones(layer.modes, 1, dtype=torch.complex128))[..., 0].expand(layer.channels, -1)
    C = layer.output_matrix @ mix.inverse()
    return replace(layer, input_matrix=None, output_matrix=None, dense=lambda: DenseRealisation(A, B, C))


def test_lags_are_the_same_from_a_full_state_matrix() -> None:
    layer = drawn(np.random.default_rng(5), 3, 4, real=True)
    own, dense = (assess_memory(one, CONTEXT, every_passing=True).remaining for one in (layer, dense_of(layer)))
    assert dense.passing.lags.tolist() == own.passing.lags.tolist()
    assert own.channels is not None
    assert dense.channels is not None
    assert dense.channels.lags.tolist() == own.channels.lags.tolist()


@pytest.mark.slow
def test_order_of_modes_scale_and_conjugates_change_nothing() -> None:
    random = np.random.default_rng(11)
    for _ in range(5):
        layer = drawn(random, 3, 5)
        assert layer.output_matrix is not None
        order = torch.as_tensor(random.permutation(5))
        same = [
            replace(layer, log_eigenvalues=layer.log_eigenvalues[:, order],
                    output_matrix=layer.output_matrix[..., order]),
            replace(layer, output_matrix=layer.output_matrix * 1e-30),
            replace(layer, log_eigenvalues=layer.log_eigenvalues.conj().resolve_conj(),
                    output_matrix=layer.output_matrix.conj().resolve_conj()),
        ]  # fmt: skip
        expected = numbers(assess_memory(layer, CONTEXT, every_passing=True))
        for other in same:
            found = numbers(assess_memory(other, CONTEXT, every_passing=True))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def numbers(memory: LayerMemory) -> Tensor:
    """Return everything that is said of what remains as one list."""
    remaining = memory.remaining
    assert remaining.channels is not None
    parts = [remaining.passing.lags, remaining.channels.lags]
    for tails in (remaining.tails, remaining.whole):
        parts += [tails.law, tails.first, tails.last, tails.rate, tails.energy_share, tails.slowest]
    return torch.cat([part.flatten().double() for part in parts])


def test_a_layers_tail_does_not_depend_on_the_layers_beside_it() -> None:
    random = np.random.default_rng(13)
    layers = [drawn(random, 3, 5), drawn(random, 70, 8, real=True), drawn(random, 1, 2)]
    together = assess_memories(layers, CONTEXT, every_passing=True)
    for one, memory in zip(layers, together, strict=True):
        assert torch.equal(numbers(assess_memory(one, CONTEXT, every_passing=True)).nan_to_num(-1.0),
                           numbers(memory).nan_to_num(-1.0))  # fmt: skip


def test_many_inputs_on_one_state_have_a_tail_too() -> None:
    random = np.random.default_rng(17)
    ell = torch.tensor([[-0.002, -0.1 + 1j, -0.2 + 2j]], dtype=torch.complex128)
    B = torch.as_tensor(random.standard_normal((3, 4)) + 0j)
    C = torch.as_tensor(random.standard_normal((5, 3)) + 0j)
    layer = Recurrence("l", "s5", "x", ell, time_invariant=True, kernel_factor=2.0, input_matrix=B, output_matrix=C)
    memory = assess_memory(layer, CONTEXT)
    powers = torch.exp(ell[0, :, None] * torch.arange(20_000))
    energy = np.zeros(20_000)
    for i in range(4):
        for o in range(5):
            energy += (2 * ((C[o] * B[:, i])[:, None] * powers).sum(0).real.numpy()) ** 2
    assert memory.remaining.passing.lags[0].tolist() == [lags_by_summing(energy, s) for s in (0.5, 0.9, 0.99)]
    tail = memory.remaining.whole.row(0)
    assert tail is not None
    assert tail.rate == pytest.approx(0.002)
    assert tail.energy_share == pytest.approx(energy[tail.first : CONTEXT].sum() / energy[:CONTEXT].sum(), rel=1e-4)


@pytest.mark.parametrize("dead", ["input_matrix", "output_matrix"])
def test_many_inputs_of_which_none_reaches_an_output_have_no_tail_and_say_why(dead: str) -> None:
    """As S5 and LRU whose C begins at zero: the layer is examined all the same."""
    ell = torch.tensor([[-0.002, -0.1 + 1j, -0.2 + 2j]], dtype=torch.complex128)
    matrices = {"input_matrix": torch.ones(3, 4).to(ell), "output_matrix": torch.ones(5, 3).to(ell)}
    matrices[dead] = 0 * matrices[dead]
    for kernel_factor in (1.0, 2.0):
        layer = Recurrence("l", "s5", "x", ell, time_invariant=True, kernel_factor=kernel_factor, **matrices)
        memory = assess_memory(layer, CONTEXT)
        assert memory.remaining.whole.row(0) is None
        assert memory.remaining.whole.reason(0) is TailStatus.NO_KERNEL
        decay = summarise_memory(memory)[1]
        assert (decay.lags, decay.heaviness, decay.energy_curve) == ((None, None, None), None, None)
        assert decay.sentence == "The kernel is zero at every lag."


def test_a_tail_is_a_sentence() -> None:
    tail = Tail(TailLaw.EXPONENTIAL, 23, 2896, math.log(2) / 347, 0.1011)
    assert describe_tail(tail) == (
        "By its modes it is exponential from lag 23 on, half every 347 steps, which is the last 10 % of the energy."
    )
    assert describe_tail(replace(tail, law=TailLaw.FLAT, first=0)) == "By its modes it does not decay."
    memory = assess_memory(modal([[-0.1, -0.002]], [[1.0, 0.05]]), CONTEXT)
    sentence = summarise_memory(memory)[1].sentence
    assert sentence.startswith("Undetermined over lags 0 to 4,095")
    assert "dB rms, before " in sentence
    assert "half every 347 steps" in sentence
    assert "50, 90, 99 % of the energy have passed after" in sentence
    assert len(lag_edges(CONTEXT)) > 40


def test_what_two_rates_share_to_the_end_is_a_sum_of_two_exponentials() -> None:
    ell, weights = [[-0.004 + 0.9j, -0.006 + 2.1j, -0.3 + 1j]], [[1.0, 1.2, 2.0]]
    memory = assess_memory(modal(ell, weights, factor=2.0), 400)
    tail = memory.remaining.whole.row(0)
    assert tail is not None
    assert tail.law is TailLaw.EXPONENTIALS
    assert tail.rates == pytest.approx((0.004, 0.006))
    energy = stepped(modal(ell, weights, factor=2.0), 400)[0] ** 2
    assert tail.energy_share == pytest.approx(energy[tail.first :].sum() / energy.sum(), rel=1e-6)
    rest = stepped(modal([ell[0][2:]], [weights[0][2:]], factor=2.0), 400)[0] ** 2
    for lag in range(tail.first, 300):
        assert rest[lag:].sum() <= 0.1 * energy[lag:].sum()
    said = summarise_memory(memory)[1].sentence
    assert ("a sum of 2 exponentials" in said) == (memory.whole.channel(0).law is Law.UNDETERMINED)


def test_a_band_of_a_layer_begins_at_its_slowest_modes_not_at_their_mean() -> None:
    """The two slowest are one group, of a mean between them; both end last."""
    rates = [0.001, 0.00109, 0.002, 0.003, 0.004, 0.006, 0.008, 0.2]
    weights = [0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 20.0]
    layer = modal(-np.array(rates)[:, None] + 0j, np.array(weights)[:, None])
    tail = tail_of(layer, 600)
    assert tail is not None
    assert tail.law is TailLaw.BAND
    assert tail.rates[0] == pytest.approx(0.001)
    assert tail.rates[1] <= 0.008 * (1 + 1e-9)
    assert tail.energy_share >= 0.03


def test_one_mode_that_turns_slowly_is_no_exponential() -> None:
    """What remains of its energy strays from its rate by 5 dB rms: all its memory lasts is little over half a turn."""
    turning = modal(np.array([[-0.0013 + 0.00043j]]), np.array([[0.6 + 3.0j]]), factor=2.0)
    assert tail_of(turning, 10_000) is None
    swinging = modal(np.array([[-0.0013 + 0.05j]]), np.array([[0.6 + 3.0j]]), factor=2.0)
    tail = tail_of(swinging, 10_000)
    assert tail is not None
    assert (tail.law, tail.rate, tail.first) == (TailLaw.EXPONENTIAL, pytest.approx(0.0013), 0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("ell", "weights"), [([-0.003 + 0.001j, -0.003 + 0.0015j], [1.0, -1.0]), ([-0.002 + 0.005j], [1.0])]
)
def test_no_band_is_told_where_less_or_more_is_lost_than_its_rates_lose(
    ell: list[complex], weights: list[float]
) -> None:
    """Over a short window a beat is few decibels and yet all, or twice, of what the rates alone would lose."""
    layer = modal([ell], [weights], factor=2.0)
    squares = stepped(layer, 20_000)[0] ** 2
    fall = math.log(squares.sum() / squares[64:].sum()) / (2 * 64)
    assert not 0.0018 < fall < 0.0033
    assert tail_of(layer, 64) is None


@pytest.mark.slow
@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_tail_leaves_out_holds_a_tenth_of_the_energy_at_most_at_every_lag(seed: int, real: bool) -> None:
    random = np.random.default_rng(100 + seed)
    named = 0
    for _ in range(25):
        layer = drawn(random, 1, 5, real=real)
        tail = tail_of(layer, 512)
        if tail is None:
            continue
        named += 1
        near = [(layer.rate >= rate / 1.1) & (layer.rate <= rate * 1.1) for rate in tail.rates or (tail.rate,)]
        if tail.law is TailLaw.BAND:
            low, high = tail.rates
            near = [(layer.rate >= low) & (layer.rate <= high)]
        assert layer.output_matrix is not None
        others = replace(layer, output_matrix=layer.output_matrix.where(~torch.stack(near).any(0), 0.0))
        rest, whole = ((stepped(one, 8192)[0] ** 2)[::-1].cumsum()[::-1] for one in (others, layer))
        held = rest[tail.first : tail.last + 1] <= 0.1 * whole[tail.first : tail.last + 1] * (1 + 1e-9)
        assert held.all(), (tail, tail.first + int((~held).argmax()))
    assert named >= 6


@pytest.mark.parametrize(
    ("ell", "weights", "context", "word", "window"),
    [
        ([-0.1, -0.002], [1.0, 0.05], CONTEXT, "exp. tail", True),
        (-np.geomspace(3e-4, 0.3, 60), np.geomspace(0.02, 1.0, 60), 64, "near 2 exp.", True),
        ([-0.0013 + 0.00043j], [0.6 + 3.0j], 10_000, "undet., exponential", False),
        ([1e-3, -0.1], [1.0, 1.0], CONTEXT, "grows", False),
        ([-0.1, -0.2], [0.0, 0.0], CONTEXT, "zero", False),
        ([-9.0], [1.0], CONTEXT, "a few steps", False),
        ([-0.1, math.nan], [1.0, 1.0], CONTEXT, "not finite", False),
    ],
)
def test_a_table_never_says_undetermined_and_nothing_more(
    ell: list[complex], weights: list[float], context: int, word: str, window: bool
) -> None:
    layer = modal(np.array(ell, complex)[:, None], np.array(weights)[:, None])
    layer = layer if word == "near 2 exp." else modal([ell], [weights], factor=2.0)
    said, lags = summarise_memory(assess_memory(layer, context))[1].law
    assert (said, lags is not None) == (word, window)


@pytest.mark.slow
def test_laws_of_several_rates_are_not_told_of_modes_that_turn_slowly_against_them() -> None:
    """No sum of exponentials falls slower than its slowest or faster than its fastest: 3 dB are allowed for beats."""
    random = np.random.default_rng(23)
    named, context = 0, 256
    for _ in range(60):
        rate = np.exp(random.uniform(math.log(0.3 / context), math.log(20 / context), (1, 3)))
        phase = np.exp(1j * random.uniform(0, 6.28, (1, 3)))
        turning = modal(
            (-1 + 2j * math.pi * random.uniform(0, 0.6, (1, 3))) * rate, random.standard_normal((1, 3)) * phase
        )
        tail = tail_of(turning, context)
        if tail is None or not tail.rates:
            continue
        named += 1
        left = (stepped(turning, 6000)[0] ** 2)[::-1].cumsum()[::-1][tail.first : tail.last + 1]
        lag = np.arange(len(left))
        slow, fast = (10 * np.log10(left) + 20 / math.log(10) * rate * lag for rate in (tail.rates[0], tail.rates[-1]))
        assert (slow - np.minimum.accumulate(slow)).max() <= 3.1, tail
        assert (np.maximum.accumulate(fast) - fast).max() <= 3.1, tail
    assert named >= 15


@pytest.mark.one_in(3)
@pytest.mark.parametrize("context", [64, 512, CONTEXT])
def test_a_tail_begins_at_the_first_lag_from_which_the_others_hold_under_a_tenth(context: int) -> None:
    """Not only at a bin's edge, up to √2 later: a window of 64 lags has few of them."""
    layers = [
        modal([[-0.1, -0.012]], [[1.0, 0.35]]),
        modal([[-0.004 + 0.9j, -0.006 + 2.1j, -0.12 + 1j]], [[1.0, 1.2, 6.0]], factor=2.0),
        modal([[-0.4], [-0.02], [-0.01], [-0.004]], [[9.0], [1.0], [0.9], [0.7]]),
    ]
    for layer in layers if context > 64 else layers[1:]:  # over 64 lags the first is a sum
        tail = tail_of(layer, context)
        assert tail is not None
        own = (layer.rate >= tail.rate / 1.001) & (layer.rate <= 1.001 * max(tail.rates, default=tail.rate))
        assert layer.output_matrix is not None
        others = replace(layer, output_matrix=layer.output_matrix.where(~own, 0.0))
        rest, whole = ((stepped(one, 20_000) ** 2).sum(0)[::-1].cumsum()[::-1] for one in (others, layer))
        first = int(np.nonzero(rest[: tail.last + 1] > 0.1 * whole[: tail.last + 1])[0].max()) + 1
        bent = tail.law is TailLaw.EXPONENTIAL and layer is not layers[0]  # it begins where it is straight
        assert first <= tail.first
        assert bent or tail.first <= first + 1 + tail.last / 500, tail
        within = whole[: context + 1] - whole[context]
        assert tail.energy_share == pytest.approx(within[tail.first] / within[0], rel=1e-7)


def test_modes_that_grow_or_are_no_numbers_are_grouped_in_the_end() -> None:
    """A rate below zero times more than one is below itself."""
    for rates in (
        [-0.5, -0.1, 0.0, 0.2, 0.21],
        [-1.0],
        [math.nan],
        [0.1, math.nan],
        [0.0, 0.0],
        [math.inf, math.inf],
        [],
    ):
        found = first_rates(rates)
        assert 1 <= len(found) <= max(len(rates), 1)
