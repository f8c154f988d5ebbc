"""Perturbation errors E(β): of the trained weights, with noise of the size that is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ssmdiag.reparam import freeze, reparameterize
from ssmdiag.reparam.parametrisations import Hold
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.gradients import losses_of
from ssmdiag.retrain.model import Ensemble
from ssmdiag.retrain.perturbation import BETAS, module_perturbation_curve, perturbation_curve
from ssmdiag.retrain.results import PerturbationCurve
from ssmdiag.retrain.sources import function_source
from tests.retrain import given_models
from tests.retrain.small import BUDGET, RECURRENCES, compare_arms, compare_modules, ensemble, model, task, trained

ARMS = (Arm("exp", lr=0.05), Arm("best", lr=0.05), Arm("direct", lr=0.05))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_without_noise_the_loss_is_the_last_validation(recurrence: str) -> None:
    data = task()
    trainee = trained(ARMS[1], ARMS[0], recurrence=recurrence, data=data)
    curve = perturbation_curve(trainee.ensemble, 1, data, betas=(0.0, 0.1), draws=3, sequences=10_000)
    assert curve.worst[0] == pytest.approx(trainee.validate(8)[1].loss, rel=1e-5)
    assert curve.median[0] == pytest.approx(curve.worst[0], rel=1e-5)  # float32, in batches of other sizes
    assert curve.worst[0] < curve.worst[1] > curve.median[1]
    assert curve.sequences == len(data.validation_inputs)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_the_loss_is_that_of_weights_moved_by_at_most_beta(recurrence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = task()
    ensemble_of_one = trained(ARMS[0], recurrence=recurrence, data=data).ensemble
    weights, seen = ensemble_of_one.state_dict(0), []
    plain = Ensemble.forward

    def noted(self: Ensemble, inputs: torch.Tensor) -> torch.Tensor:
        seen.append({name: value.detach().clone() for name, value in self.parameters.items()})
        return plain(self, inputs)

    monkeypatch.setattr(Ensemble, "forward", noted)
    beta, draws = 0.25, 40
    curve = perturbation_curve(ensemble_of_one, 0, data, betas=(beta,), draws=draws, sequences=8)
    monkeypatch.undo()
    arms = ensemble(*[ARMS[0]] * draws, recurrence=recurrence, data=data)
    moved = seen[-1]
    for name, value in moved.items():
        change = value - weights[name]
        if name.endswith(arms.layer.rate):
            assert 0.9 * beta < float(change.abs().max()) <= beta * 1.001
            assert float(change.mean()) == pytest.approx(0, abs=0.1 * beta)
            assert len({tuple(draw.flatten().tolist()) for draw in change}) == draws
        else:
            assert not change.any()
    for draw in range(draws):
        arms.load_state(draw, {name: value[draw] for name, value in moved.items()})
    inputs, targets = (
        side[:8].expand(draws, 8, *side.shape[1:]) for side in (data.validation_inputs, data.validation_targets)
    )
    losses = losses_of(arms.forward(inputs).detach(), targets, data)
    assert curve.worst[0] == pytest.approx(float(losses.max()), rel=1e-5)


@pytest.mark.slow
def test_arms_get_the_same_noise_and_it_repeats(tmp_path: Path) -> None:
    data = task()
    result = compare_arms(ARMS, data, model(), BUDGET, task="lf-poly", folder=tmp_path, perturb=True)
    again = compare_arms(ARMS[::-1], data, model(), BUDGET, task="lf-poly", perturb=True)
    for one, other in zip(result.arms, again.arms[::-1], strict=True):
        assert one.perturbation is not None
        assert other.perturbation is not None
        assert one.perturbation.betas == BETAS
        assert one.perturbation.worst == pytest.approx(other.perturbation.worst, rel=1e-3)
    plain = compare_arms(ARMS[:1], data, model(), BUDGET, task="lf-poly")
    assert plain.arms[0].perturbation is None


def test_an_arm_that_diverged_has_no_curve() -> None:
    result = compare_arms([replace(ARMS[0], lr=1e9)], task(), model(), BUDGET, task="lf-poly", perturb=True)
    assert result.arms[0].diverged_at is not None
    assert result.arms[0].perturbation is None


def test_losses_that_are_not_finite_are_infinite() -> None:
    data = task()
    curve = perturbation_curve(trained(ARMS[2], data=data).ensemble, 0, data, betas=(0.0, 1e9), draws=4)
    assert curve.worst[1] == math.inf
    assert math.isfinite(curve.worst[0])


def test_the_reach_of_a_curve_is_the_last_beta_before_it_leaves_the_limit() -> None:
    curve = PerturbationCurve((0.0, 0.1, 0.2, 0.4), (1.0, 1.5, 2.5, 1.0), (1.0,) * 4, 3, 8)
    assert curve.reach() == 0.1
    assert curve.reach(3.0) == 0.4
    assert curve.reach(0.5) is None
    assert replace(curve, worst=(1.0, math.inf, 1.0, 1.0)).reach() == 0.0


class Bare(nn.Module):
    """An LRU-like recurrence under the names of LRU-pytorch, with a loss that its rates alone decide."""

    def __init__(self) -> None:
        super().__init__()
        self.net = given_models.Net().double()

    def rates(self) -> torch.Tensor:
        return self.net.lru.nu_log.exp()


def loss_of(module: Bare, seen: list[torch.Tensor]) -> Callable[[int], tuple[float, int]]:
    def loss(sequences: int) -> tuple[float, int]:
        seen.append(module.rates().detach().clone())
        return float(module.rates().square().sum()), min(sequences, 7)

    return loss


def test_a_modules_rates_alone_are_moved_through_its_own_map_and_put_back() -> None:
    module, seen = Bare(), list[torch.Tensor]()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    curve = module_perturbation_curve(module, loss_of(module, seen), betas=(0.0, 0.25), draws=20, sequences=9)
    assert curve is not None
    assert (curve.draws, curve.sequences) == (20, 7)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    plain, moved = seen[0], torch.stack(seen[1:])
    assert len(moved) == 20
    # nu_log moved by at most β is a rate times e^±β.
    assert 0.2 < float((moved / plain).log().abs().max()) <= 0.25 + 1e-12
    assert curve.worst == (
        pytest.approx(float(plain.square().sum())),
        pytest.approx(float(moved.square().sum(1).max())),
    )


def test_under_another_map_it_is_that_maps_weight_that_moves() -> None:
    module, seen = Bare(), list[torch.Tensor]()
    reparameterize(module, "best(b=0.05)")
    rates = module.rates().detach()
    curve = module_perturbation_curve(module, loss_of(module, seen), betas=(0.0, 0.1), draws=20)
    assert curve is not None
    # rate = 1/(w² + b): |δ(1/rate)| ≤ 2 |w| β + β².
    weight = (1 / rates - 0.05).sqrt()
    assert float(((1 / torch.stack(seen[1:]) - 1 / rates).abs() - 2 * weight * 0.1 - 0.01).max()) < 1e-9
    torch.testing.assert_close(module.rates().detach(), rates, rtol=0, atol=0)


def test_rates_that_are_a_part_of_a_tensor_and_held_have_no_curve() -> None:
    module = Bare()
    freeze(module, "eigenvalues")
    assert (
        module_perturbation_curve(module, loss_of(module, []), betas=(0.0,)) is not None
    )  # a whole tensor still moves
    held = Bare()
    part = held.net.lru
    parametrize.register_parametrization(
        part, "nu_log", Hold(torch.arange(2), part.nu_log.detach()[:2].clone(), tuple(part._parameters)), unsafe=True
    )
    assert module_perturbation_curve(held, loss_of(held, []), betas=(0.0,)) is None


@pytest.mark.slow
def test_arms_of_a_given_model_have_curves(tmp_path: Path) -> None:
    whole = task(length=given_models.STEPS)
    data = replace(
        whole, validation_inputs=whole.validation_inputs[:8], validation_targets=whole.validation_targets[:8]
    )
    source = function_source("tests.retrain.given_models:regressor", None)
    arms = [Arm("own", lr=0.05), Arm("best(b=0.05)", lr=0.05), Arm("own", lr=1e12)]
    result = compare_modules(
        arms, source, SampledBatches.of(data, 8), BUDGET, task="lf-poly", folder=tmp_path, perturb=True
    )
    for arm in result.arms:
        if arm.diverged_at is not None:
            assert arm.perturbation is None
            assert arm.kernel is None
            continue
        assert arm.perturbation is not None
        assert arm.kernel is not None
        assert arm.perturbation.worst[0] <= arm.perturbation.worst[-1]
        assert len(arm.kernel.values) == given_models.STEPS == len(result.target)
    assert result.arms[0].diverged_at is None
