"""AdamW for arms together, against torch's own on each arm alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmdiag.retrain.adamw import ArmAdamW

RATES, DECAYS = [1e-2, 3e-1, 1e-3], [0.0, 0.1, 0.5]
ALL = torch.tensor([True, True, True])


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(3, 4, 2, generator=generator, dtype=torch.float64),
        "b": torch.randn(3, 5, generator=generator, dtype=torch.float64),
    }


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in start().items()}


def rates(values: list[float]) -> dict[str, list[float]]:
    return dict.fromkeys(start(), values)


def test_every_arm_is_torchs_adamw() -> None:
    together = start()
    optimiser = ArmAdamW(together, rates(RATES), DECAYS)
    alone = [{name: value[k].clone().requires_grad_() for name, value in start().items()} for k in range(3)]
    torchs = [
        torch.optim.AdamW(arm.values(), lr=rate, weight_decay=decay)
        for arm, rate, decay in zip(alone, RATES, DECAYS, strict=True)
    ]
    for step in range(30):
        scale = 1 - step / 40
        optimiser.step(gradients(step), scale, ALL)
        for k, (arm, other) in enumerate(zip(alone, torchs, strict=True)):
            other.param_groups[0]["lr"] = scale * RATES[k]
            for name, value in arm.items():
                value.grad = gradients(step)[name][k]
            other.step()
    for k, arm in enumerate(alone):
        for name, value in arm.items():
            torch.testing.assert_close(together[name][k], value.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_rate_of_zero_keeps_every_bit_beside_any_gradient_and_weight_decay(bad: float) -> None:
    weights = start()
    weights["w"][1, 0, 0] = -0.0
    optimiser = ArmAdamW(weights, rates([1e-2, 0.0, 1e-2]), [0.5, 0.5, 0.5])
    before = {name: value.clone() for name, value in weights.items()}
    for step in range(3):
        given = gradients(step)
        given["w"][1, 0] = bad
        optimiser.step(given, 1.0, ALL)
    for name, value in weights.items():
        assert value[1].view(torch.int64).equal(before[name][1].view(torch.int64))
        assert not value[0].equal(before[name][0])


def test_an_arm_that_rests_keeps_its_weights_and_others_do_not_notice() -> None:
    resting, running = start(), start()
    one = ArmAdamW(resting, rates(RATES), DECAYS)
    other = ArmAdamW(running, rates(RATES), DECAYS)
    for step in range(4):
        given = gradients(step)
        other.step(given, 1.0, ALL)
        given = {name: value.clone() for name, value in given.items()}
        given["w"][2] = float("nan")
        one.step(given, 1.0, torch.tensor([True, True, False]))
    for name, value in resting.items():
        assert value[:2].equal(running[name][:2])
        assert value[2].equal(start()[name][2])


def test_a_state_put_back_goes_on_as_if_nothing_had_been() -> None:
    through, stopped = start(), start()
    one = ArmAdamW(through, rates(RATES), DECAYS)
    first = ArmAdamW(stopped, rates(RATES), DECAYS)
    for step in range(6):
        one.step(gradients(step), 1.0, ALL)
        if step < 3:
            first.step(gradients(step), 1.0, ALL)
    second = ArmAdamW(stopped, rates(RATES), DECAYS)
    second.load(first.state())
    for step in range(3, 6):
        second.step(gradients(step), 1.0, ALL)
    assert all(value.equal(through[name]) for name, value in stopped.items())
