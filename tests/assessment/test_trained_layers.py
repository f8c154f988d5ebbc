"""What is said of trained layers is true of their exact kernels, and what is a little wrong is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag import diagnose
from tests.assessment.trained_layers.__main__ import report, trained_models
from tests.assessment.trained_layers.exact import ExactEnergy, stepped_squares
from tests.assessment.trained_layers.judging import false_statements
from tests.assessment.trained_layers.layers import FAMILIES, Mamba, StateSpace
from tests.assessment.trained_layers.training import TASKS, train

TIME_INVARIANT = [name for name, layer in FAMILIES.items() if layer is not Mamba]
CONTEXT = 1024


@pytest.mark.parametrize("family", TIME_INVARIANT)
def test_a_layer_computes_the_kernel_it_is_judged_by(family: str) -> None:
    torch.manual_seed(0)
    layer, lags = FAMILIES[family](3, 4), 40
    space = layer.state_space({name: value.detach().numpy() for name, value in layer.named_parameters()})
    squares = stepped_squares(space)[:, :lags]
    answers = []
    for channel in range(3):
        impulse = torch.zeros(1, lags, 3)
        impulse[0, 0, channel] = 1
        answer = layer(impulse)[0].detach().double()
        answer[0, channel] -= layer.get_parameter("D")[channel].item()
        answers.append(answer.numpy())
    found = np.stack(answers) ** 2  # (input, lag, output)
    shared = space.decay.ndim == 1
    own = found.sum((0, 2))[None] if shared else found[range(3), :, range(3)]
    np.testing.assert_allclose(squares, own, rtol=1e-3, atol=1e-6 * own.max())


def test_mamba_forgets_by_the_retention_it_is_judged_by() -> None:
    torch.manual_seed(0)
    layer = Mamba(3, 4)
    with torch.no_grad():  # at its bias whatever comes in
        layer.dt_proj.weight.zero_()
    space = layer.state_space({name: value.detach().numpy() for name, value in layer.named_parameters()})
    step = torch.nn.functional.softplus(layer.dt_proj.bias)[:, None].detach().double()
    decay = (-step * layer.A_log.exp().detach()).exp()
    np.testing.assert_allclose(space.decay.real, decay.numpy(), rtol=1e-6)
    squares = stepped_squares(space)
    np.testing.assert_allclose(squares[:, 5], decay.pow(5).mean(1).square().numpy(), rtol=1e-6)


FAST, SLOW = 0.1, 0.004
TWO = ExactEnergy(
    StateSpace(np.exp([[-FAST, -SLOW]]) + 0j, np.array([[1.0, 0.05]]) + 0j, np.ones((1, 2), complex), 1.0)
)
"""K_t = e^−0.1t + 0.05 e^−0.004t: the slow mode holds 90 % of what is left from lag 26 on."""


def said(**changes: Any) -> dict[str, Any]:
    """Return a true statement on these two, but for what is changed in its tail or its lags."""
    left = TWO.left[0]
    lags = {name: int(np.argmax(left <= (1 - share) * left[0]))
            for name, share in (("half", 0.5), ("nine_tenths", 0.9), ("ninety_nine", 0.99))}  # fmt: skip
    start = int(changes.get("from", 26))
    tail = {"from": start, "law": "exponential", "rate": SLOW, "to": CONTEXT}
    tail["energy_share"] = (left[start] - left[CONTEXT]) / (left[0] - left[CONTEXT])
    tail |= {name: value for name, value in changes.items() if name in tail or name == "rates"}
    lags |= {name: value for name, value in changes.items() if name in lags}
    return {"law": "undetermined", "tail": tail, "lags": lags}


def test_a_true_statement_is_not_called_false() -> None:
    assert not false_statements(said(), TWO, 0, CONTEXT)
    assert not false_statements(said(), TWO, None, CONTEXT)
    both = {"law": "exponentials", "rates": [SLOW, FAST], "from": 5}
    assert not false_statements(said(**both), TWO, 0, CONTEXT)
    assert not false_statements({"law": "undetermined", "tail": None, "lags": None}, TWO, 0, CONTEXT)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"from": 25}, "no group"),
        ({"rate": FAST}, "no group"),
        ({"rate": 1.02 * SLOW}, "no group"),
        ({"energy_share": 0.5}, "the share left is"),
        ({"half": said()["lags"]["half"] + 1}, "half at"),
        ({"ninety_nine": said()["lags"]["ninety_nine"] - 1}, "ninety_nine at"),
        ({"law": "polynomial"}, "nothing here judges"),
        ({"law": "exponentials", "rates": [SLOW, 2 * FAST]}, "no group of modes of these rates"),
        ({"law": "band", "rates": [SLOW, 1.5 * SLOW], "from": 25}, "no group of modes of these rates"),
        ({"law": "band", "rates": [1.1 * SLOW, FAST]}, "no group of modes of these rates"),
        ({"law": "band", "rates": [SLOW, FAST], "from": 0}, "are no band"),
    ],
)
def test_a_statement_that_is_a_little_wrong_is_called_false(change: dict[str, Any], why: str) -> None:
    assert any(why in false for false in false_statements(said(**change), TWO, 0, CONTEXT))


def told_curve(*, scale: float = 1.0, share: float = 1.0, within: float = 0.01, start: int = 0) -> dict[str, Any]:
    """Return K² of these two, which is three exponentials; `scale` of its slowest rate, `share` of what is left."""
    rates = np.array([FAST, (FAST + SLOW) / 2, SLOW])
    parts = np.array([1.0, 2 * 0.05, 0.05**2]) / -np.expm1(-2 * rates) * np.exp(-2 * rates * start)
    rates[2] *= scale
    terms = [{"rate": rate, "share": part} for rate, part in zip(rates, parts / parts.sum(), strict=True)]
    left = TWO.left[0][start] / TWO.left[0][0]
    return {"from": start, "to": CONTEXT, "within_db": within, "terms": terms, "energy_share": share * left}


def test_an_energy_curve_is_held_against_what_is_left_at_every_lag() -> None:
    def false(**changes: Any) -> list[str]:
        return false_statements({"law": "undetermined", "energy_curve": told_curve(**changes)}, TWO, 0, CONTEXT)

    assert not false()
    assert not false(start=20)
    assert any("dB off" in why for why in false(scale=1.02))
    assert any("dB off" in why for why in false(scale=2.0, within=100.0))
    assert any("the share left is" in why for why in false(share=0.99, start=20))


def test_a_fitted_law_is_held_against_what_is_left() -> None:
    one = ExactEnergy(StateSpace(np.exp([[-SLOW]]) + 0j, np.ones((1, 1), complex), np.ones((1, 1), complex), 1.0))
    law = {"law": "exponential", "rate": SLOW, "exponent": None, "offset": None, "window": [0, CONTEXT - 1]}
    assert not false_statements(law, one, 0, CONTEXT)
    assert false_statements(law | {"rate": 2 * SLOW}, one, 0, CONTEXT)
    assert false_statements(law, TWO, 0, CONTEXT)


@pytest.mark.slow
def test_trained_checkpoints_are_recognised_as_their_families(tmp_path: Path) -> None:
    for family in FAMILIES:
        trained = train(family, "digits", tmp_path, steps=2)
        layers = diagnose(trained.path, context_length=trained.length).layers
        assert [layer.family for layer in layers] == [family] * 2


@pytest.mark.slow
def test_nothing_that_is_said_of_layers_trained_for_a_while_is_wrong(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    models = list(trained_models(tmp_path, families=FAMILIES, tasks=("digits",), steps=100))
    assert_true(models)


@pytest.mark.slow
def test_nothing_that_is_said_of_layers_trained_for_1000_steps_is_wrong(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    models = list(trained_models(tmp_path, families=FAMILIES, tasks=TASKS, steps=1000))
    assert all(model.end < 0.6 * model.start for model in models)  # they have learned something
    assert_true(models)


def assert_true(models: list[Any]) -> None:
    for context in (None, 4096):
        for tally in report(models, context):
            assert not tally.wrong
