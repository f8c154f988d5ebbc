"""How far back a module on a GPU uses its past."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssmdiag.probing.use import measure_use
from tests.cuda.same import assert_same


class Averages(nn.Module):
    """Each step mixed with a few before it, and with what is told of its position."""

    def __init__(self, vocabulary: int | None, *, ahead: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(vocabulary, 4) if vocabulary else None
        self.weight = nn.Parameter(torch.randn(4, vocabulary or 4, generator=generator))
        self.ahead = ahead
        self.double()

    def forward(self, x: Tensor, position_ids: Tensor | None = None) -> Tensor:
        rows = x if self.embed is None else self.embed(x)
        step = torch.arange(x.shape[1], device=x.device)
        lag = step[:, None] - step
        mixed = ((lag < 6) & (lag >= -self.ahead)).to(rows.dtype) @ rows
        return mixed @ self.weight + (0 if position_ids is None else 0.01 * position_ids[..., None])


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("vocabulary", "ahead"), [(7, 0), (None, 0), (7, 3)])
def test_use_of_the_past(cuda: str, vocabulary: int | None, ahead: int) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = torch.randn(4, 32, 4, generator=generator, dtype=torch.float64)
    texts = texts if vocabulary is None else texts[..., 0].abs().mul(3).long().clamp(max=vocabulary - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        module = Averages(vocabulary, ahead=ahead)
    home = measure_use(module, texts.split(3), cuts=2)
    away = measure_use(module.to(cuda), texts.split(3), cuts=2)
    lost = dict(home.by_cutting.lost)
    assert lost[5] < 1e-9 < lost[4]
    assert home.sees_ahead == bool(ahead)
    assert_same(away, home)


def test_a_module_may_answer_on_another_device_than_it_is_asked_on(cuda: str) -> None:
    class Spread(Averages):
        def forward(self, x: Tensor, position_ids: Tensor | None = None) -> Tensor:
            return super().forward(x, position_ids).cpu()

    texts = torch.randint(7, (2, 24), generator=torch.Generator().manual_seed(1))
    use = measure_use(Spread(7).to(cuda), [texts], cuts=1)
    assert dict(use.by_cutting.lost)[5] < 1e-9
