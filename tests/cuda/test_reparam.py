"""Live models on a GPU: another map under their rates, frozen, folded back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ssmdiag
from tests.cuda.conftest import KINDS, SPELLINGS, slow_but
from tests.cuda.same import SINGLE, assert_same
from tests.families.synthetic import config
from tests.reparam.bag import Bag
from tests.reparam.test_every_spelling import cannot_swap, rates_below_one

EACH = [
    pytest.param(name, id=name, marks=slow_but(name, KINDS["selective"]))
    for name, (family, spelling) in SPELLINGS.items()
    if not cannot_swap(family, spelling)
]


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items()}


def read(module: nn.Module) -> list[torch.Tensor]:
    """Return what the model's own code would read: every weight through its parametrisation."""
    places = (name.rpartition(".") for name in ssmdiag.folded_state_dict(module))
    values = [getattr(module.get_submodule(path), name) for path, _, name in places]
    return [value for value in values if value.is_floating_point() or value.is_complex()]


def train(module: nn.Module) -> None:
    """Move every parameter that is trained down the gradient of Σ |w|²."""
    module.zero_grad()
    loss = torch.stack([value.abs().square().sum() for value in read(module)]).sum()
    if not loss.requires_grad:
        assert not any(parameter.requires_grad for parameter in module.parameters())  # all it has is frozen
        return
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)


@pytest.mark.parametrize("name", EACH)
def test_swap_train_freeze_and_fold(name: str, cuda: str) -> None:
    family, spelling = SPELLINGS[name]
    home = Bag(rates_below_one(family, spelling), config(family, spelling))
    away = Bag(rates_below_one(family, spelling), config(family, spelling)).to(cuda)
    for module in (away, home):
        assert ssmdiag.reparameterize(module, "best(b=1.01)").swapped
    assert_same(tensors(away), tensors(home), tolerance=SINGLE)
    for module in (away, home):
        train(module)
        ssmdiag.freeze(module, "eigenvalues")
        train(module)
    assert_same(tensors(away), tensors(home), tolerance=SINGLE)
    groups = [[len(group["params"]) for group in ssmdiag.parameter_groups(module, lr=1e-3)] for module in (away, home)]
    assert groups[0] == groups[1]
    assert_same(ssmdiag.folded_state_dict(away), ssmdiag.folded_state_dict(home), tolerance=SINGLE)
    for module in (away, home):
        ssmdiag.fold(module)
    assert_same(tensors(away), tensors(home), tolerance=SINGLE)
    home_read, away_read = (ssmdiag.diagnose(ssmdiag.read_module(module), memory=False) for module in (home, away))
    assert_same(away_read.layers, home_read.layers, tolerance=SINGLE)


@pytest.mark.parametrize("target", ["rate", "step"])
def test_a_model_is_moved_after_the_swap(target: str, cuda: str) -> None:
    family, spelling = SPELLINGS[KINDS["selective"]]
    away = Bag(rates_below_one(family, spelling), config(family, spelling))
    plain = {name: value.clone() for name, value in tensors(away).items()}
    ssmdiag.reparameterize(away, "best(b=1.01)", target=target)
    away.to(cuda)
    ssmdiag.fold(away)
    assert_same(tensors(away), plain, tolerance=SINGLE)


@pytest.mark.slow
def test_a_live_model_on_a_gpu_is_diagnosed(cuda: str) -> None:
    """Its weights lie on the GPU; the diagnosis is asked for on the CPU, and on the GPU."""
    family, spelling = SPELLINGS[KINDS["channels"]]
    module = Bag(rates_below_one(family, spelling), config(family, spelling))
    home = ssmdiag.diagnose(ssmdiag.read_module(module))
    module.to(cuda)
    for device in ("cpu", cuda):
        away = ssmdiag.diagnose(ssmdiag.read_module(module), device=device)
        assert_same(away.layers, home.layers)
        assert_same(away.findings, home.findings)
