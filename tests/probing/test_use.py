"""measure_use on modules whose use of the past is known in closed form, or found by trying every cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor, nn
from torch.nn import functional

from ssmdiag.errors import SsmdiagError
from ssmdiag.probing.plan import Plan
from ssmdiag.probing.use import Use, measure_use

WINDOW = 5


def noise(
    texts: int, length: int, features: int = 1, *, batch: int = 8, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(texts, length, features, generator=generator, dtype=torch.float64).to(dtype).split(batch))


def tokens(texts: int, length: int, vocabulary: int, *, batch: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(vocabulary, (texts, length), generator=generator).split(batch))


def figures(use: Use) -> tuple[int | None, int | None, int | None]:
    cutting = use.by_cutting
    return cutting.half, cutting.nine_tenths, cutting.all_but_a_hundredth


def filtered(taps: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a causal convolution with these taps, that of the present step first."""

    def answer(x: Tensor) -> Tensor:
        padded = functional.pad(x[..., 0], (len(taps) - 1, 0))
        return functional.conv1d(padded[:, None], taps.flip(0)[None, None].to(x)).mT

    return answer


def recurrence(rates: Tensor, x: Tensor) -> Tensor:
    """Return h_t = λ h_{t−1} + x_t of independent channels, (batch, time, channel)."""
    channels = zip(rates.tolist(), x.unbind(2), strict=True)
    return torch.stack([torch.as_tensor(lfilter([1], [1, -rate], channel)) for rate, channel in channels], 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_causal_convolution_of_eight_taps_keeps_all_with_seven_steps_of_the_past(dtype: torch.dtype) -> None:
    use = measure_use(filtered(torch.ones(8)), noise(4, 128, dtype=dtype))
    assert use.by_cutting.all_but_a_hundredth == 7
    assert use.by_cutting.interval == (7, 7)
    assert all(share == 0 for steps, share in use.by_cutting.lost if steps > 7) or dtype != torch.float64
    assert "99 % of the past's effect with 7 steps" in use.sentence
    assert not use.sees_ahead


def test_a_delay_line_keeps_nothing_until_all_of_its_steps_are_there() -> None:
    taps = torch.zeros(101)
    taps[100] = 1
    use = measure_use(filtered(taps), noise(4, 256))
    assert figures(use) == (100, 100, 100)
    assert use.by_cutting.intervals == dict.fromkeys(use.by_cutting.intervals, (100, 100))
    assert "95 %" not in use.sentence  # an interval without width
    peak = max(use.by_replacement, key=lambda point: point[1])[0]
    assert 91 <= peak <= 108


def test_what_was_not_reached_within_the_steps_tested_is_none() -> None:
    taps = torch.zeros(101)
    taps[100] = 1
    use = measure_use(filtered(taps), noise(2, 128))
    assert figures(use) == (None, None, None)
    assert (use.by_cutting.tested, use.by_cutting.interval) == (64, (None, None))
    assert "need more than 64 steps" in use.sentence


@pytest.mark.one_in(3)
@pytest.mark.parametrize("rate", [0.8, 0.95, 0.98])
def test_an_echo_state_network_keeps_the_share_of_its_rate(rate: float) -> None:
    rates = torch.full((16,), rate)
    use = measure_use(lambda x: recurrence(rates, x), noise(16, 512, 16))
    for found, share in zip(figures(use), (0.5, 0.1, 0.01), strict=True):
        exact = math.ceil(math.log(share) / (2 * math.log(rate)))
        assert found is not None
        assert abs(found - exact) <= max(1, 0.05 * exact)


@pytest.mark.slow
def test_channels_of_several_rates_add_up() -> None:
    rates = torch.tensor([0.5, 0.9, 0.97]).repeat(8)
    use = measure_use(lambda x: recurrence(rates, x), noise(16, 512, 24))
    lost = [float((rates.double() ** (2 * n + 2) / (1 - rates.double() ** 2)).sum()) for n in range(257)]
    for found, share in zip(figures(use), (0.5, 0.1, 0.01), strict=True):
        exact = next(n for n, value in enumerate(lost) if value <= share * lost[0])
        assert found is not None
        assert abs(found - exact) <= max(1, 0.05 * exact)
    for steps, share in use.by_cutting.lost[1:20]:
        assert share == pytest.approx(lost[steps] / lost[0], rel=0.2)


class Attention(nn.Module):
    """Causal attention over the last `window` steps, the present among them, with positions it is told or counts."""

    def __init__(self, window: int, vocabulary: int = 11, width: int = 8, positions: float = 0.0) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(vocabulary, width), nn.Linear(width, 3 * width)
        self.head, self.place = nn.Linear(width, vocabulary), nn.Embedding(512, width)
        self.window, self.positions = window, positions

    def forward(self, x: Tensor, position_ids: Tensor | None = None) -> Tensor:
        lag = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        at = torch.arange(x.shape[1])[None] if position_ids is None else position_ids
        embedded = self.embed(x) + self.positions * self.place(at)
        q, k, v = self.mix(embedded).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=(lag >= 0) & (lag < self.window))
        return 3 * self.head(mixed)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def test_sliding_window_attention_needs_its_window_and_no_step_more() -> None:
    use = measure_use(seeded(lambda: Attention(WINDOW)), tokens(4, 96, 11))
    lost = dict(use.by_cutting.lost)
    assert lost[WINDOW - 2] > 0.01
    assert use.by_cutting.all_but_a_hundredth == WINDOW - 1
    assert all(lost[n] < 1e-9 for n in lost if n >= WINDOW - 1)
    assert use.distance == "KL divergence, nats"


def test_a_module_that_takes_position_ids_is_told_the_positions_of_the_steps_that_are_left() -> None:
    told = seeded(lambda: Attention(WINDOW, positions=1.0))
    counted = seeded(lambda: Attention(WINDOW, positions=1.0))

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return counted(x)

    use, other = measure_use(told, tokens(4, 96, 11)), measure_use(Counting(), tokens(4, 96, 11))
    assert use.keeps_positions
    assert use.by_cutting.all_but_a_hundredth == WINDOW - 1
    assert not other.keeps_positions
    assert other.by_cutting.all_but_a_hundredth is None  # cutting moves every step


class Recurrent(nn.Module):
    """An LSTM or GRU over tokens."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM, vocabulary: int = 13, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 12)
        self.mix = kind(12, 16, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(16 * (1 + bidirectional), vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(self.mix(3 * self.embed(x))[0])


def brute_force(module: nn.Module, texts: Tensor) -> list[float]:
    """Return S(N), from passes for every start between a quarter and a half of the text and every N up to its half."""
    length = texts.shape[1]
    distances = torch.zeros(2, length // 2 + 1, dtype=torch.float64)
    with torch.no_grad():
        full = module(texts).log_softmax(-1)
        for start in range(length // 4, length // 2):
            for n in range(length // 2 + 1):
                t = start + n
                for kind, first in enumerate((start, t)):
                    cut = module(texts[:, first : t + 1])[:, -1].log_softmax(-1)
                    distances[kind, n] += (full[:, t].exp() * (full[:, t] - cut)).sum()
    return (distances[0] / distances[1]).tolist()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_an_lstm_and_a_gru_use_what_trying_every_cut_finds(kind: type[nn.Module]) -> None:
    module = seeded(lambda: Recurrent(kind)).double()
    (texts,) = tokens(6, 24, 13)
    share = brute_force(module, texts)
    use = measure_use(module, [texts], cuts=6)  # there are no more starts
    for steps, lost in use.by_cutting.lost[:8]:
        assert lost == pytest.approx(share[steps], rel=1e-9)
    for found, limit in zip(figures(use), (0.5, 0.1, 0.01), strict=True):
        assert found == next(n for n, value in enumerate(share) if value <= limit)


def test_a_module_without_memory_uses_none_of_its_past() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 3))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        use = measure_use(mlp.to(dtype), noise(4, 64, 6, dtype=dtype))
        assert use.by_cutting.none
        assert figures(use) == (0, 0, 0)
        assert "none of the past" in use.sentence


def test_a_bidirectional_module_loses_its_past_alone() -> None:
    class Around(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # three steps back, nine ahead
            padded = functional.pad(x[..., 0], (3, 9))
            return functional.conv1d(padded[:, None], torch.ones(1, 1, 13).to(x)).mT

    use = measure_use(Around(), noise(4, 128))
    assert use.sees_ahead
    assert use.by_cutting.all_but_a_hundredth == 3
    assert measure_use(seeded(lambda: Recurrent(bidirectional=True)), tokens(4, 64, 13)).sees_ahead


def test_noise_of_repeated_passes_is_not_counted_as_use() -> None:
    generator = torch.Generator().manual_seed(3)

    def answer(x: Tensor) -> Tensor:
        exact = filtered(torch.ones(16))(x)
        return exact + 0.05 * torch.randn(exact.shape, generator=generator, dtype=exact.dtype)

    use = measure_use(answer, noise(8, 128))
    assert use.by_cutting.noise == pytest.approx(0.005, rel=0.2)
    assert figures(use) == (8, 14, 15)  # of 15 past taps 1 is lost with 14
    assert not use.by_cutting.untold

    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    hidden = measure_use(noisy, noise(8, 128))
    assert figures(hidden) == (None, None, None)
    assert not hidden.by_cutting.none
    assert "cannot be told" in hidden.sentence


def test_loss_improves_as_far_as_the_text_repeats_and_no_further() -> None:
    """A text whose every token repeats the one 6 before, and a module that knows it but looks at 24."""
    generator = torch.Generator().manual_seed(5)
    texts = torch.randint(7, (16, 6), generator=generator).repeat(1, 16)

    class Repeating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = functional.one_hot(x, 7).double()
            back = [functional.pad(seen, (0, 0, k, 0))[:, : x.shape[1]] for k in (5, 23)]
            return 2 * back[0] + torch.roll(back[1], 1, -1)

    use = measure_use(Repeating(), [texts[:8], texts[8:]])
    assert use.by_cutting.all_but_a_hundredth == 23  # used, to no avail
    assert use.useful == 4
    assert use.loss_by_context is not None
    loss = {point.steps: point for point in use.loss_by_context}
    assert loss[4].nats - loss[6].nats > 1
    assert loss[4].low > 0
    assert loss[6].gain < 0  # what it adds from 23 steps back is wrong
    assert use.loss == pytest.approx(loss[32].nats if 32 in loss else use.loss, rel=1e-6)


@pytest.mark.slow
def test_figures_do_not_depend_on_how_texts_are_batched() -> None:
    module = seeded(Recurrent).double()
    alone, together = (measure_use(module, tokens(6, 48, 13, batch=batch)) for batch in (1, 6))
    assert alone.texts == together.texts == 6
    assert alone.by_cutting.effect == pytest.approx(together.by_cutting.effect, rel=0.1)
    assert all(abs((a or 0) - (b or 0)) <= 1 for a, b in zip(figures(alone), figures(together), strict=True))


def test_a_module_is_left_in_the_mode_it_was_in_and_dropout_is_off() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    module[1].eval()
    use = measure_use(module, noise(2, 32, 2, dtype=torch.float32))
    assert use.by_cutting.none
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    assert all(p.grad is None for p in module.parameters())


def test_cost_is_what_the_plan_says_and_keeps_within_the_budget() -> None:
    spent = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            spent.append(x.shape[0] * x.shape[1])
            return filtered(torch.ones(4))(x)

    module, texts = Counting(), noise(4, 128)
    use = measure_use(module, texts, cuts=4)
    repeats = 4 * (128 + 128 - 17)
    assert sum(spent) == use.tokens == 4 * Plan(128, 4).tokens + repeats
    spent.clear()
    seen: list[tuple[int, int]] = []
    budget = 4 * Plan(128, 2).tokens + 4 * 256
    small = measure_use(module, texts, budget=budget, progress=lambda done, of: seen.append((done, of)))
    assert budget - 4 * 64 < sum(spent) == small.tokens <= budget
    assert small.by_cutting.all_but_a_hundredth == 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= of for done, of in seen)


def nan_after(x: Tensor) -> Tensor:
    answer = x.clone()
    answer[:, 20:] = math.nan
    return answer


@pytest.mark.parametrize(
    ("module", "batches", "words"),
    [
        (nan_after, [torch.ones(2, 32, 1)], "NaN at step 20 of sequence 0"),
        (nn.Identity(), [torch.ones(2, 1, 1)], "texts of 1 step"),
        (nn.Identity(), [], "no text"),
        (nn.Identity(), [torch.ones(2, 32, 1), torch.ones(2, 16, 1)], "16 steps after texts of 32"),
        (nn.Identity(), [torch.full((2, 32, 1), math.nan)], "NaN or infinite"),
        (nn.Identity(), [[1, 2]], "a list"),
        (lambda x: x[:, -1], [torch.ones(2, 32, 1)], "answers a tensor of shape (2, 1)"),
        (lambda x: x.unfold(1, 4, 1), [torch.ones(2, 32, 1)], "answers a tensor of shape"),
        (nn.Conv1d(32, 32, 1), [torch.ones(2, 32, 1)], "failed on"),
        (lambda x: (x * 1e30) ** 2, [torch.randn(2, 32, 1)], "infinitely far"),
    ],
)
def test_what_cannot_be_measured_is_said(module: Callable[..., Tensor], batches: list[Tensor], words: str) -> None:
    with pytest.raises(SsmdiagError) as caught:
        measure_use(module, batches)
    assert words in str(caught.value)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rate, within = 0.9, 0
    exact = math.ceil(math.log(0.1) / (2 * math.log(rate)))
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 96, 1, generator=generator, dtype=torch.float64)
        low, high = measure_use(lambda x: recurrence(torch.tensor([rate]), x), [x]).by_cutting.intervals["nine_tenths"]
        assert low is not None
        within += low <= exact <= (high or 48)
    assert within >= 13
