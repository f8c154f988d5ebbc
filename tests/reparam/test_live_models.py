"""Swap, train, fold and freeze on the code that others wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ssmdiag
from ssmdiag import Recurrence
from ssmdiag.reparam import find_recurrence
from tests.reparam.live_models import FREEZABLE, ONE_PER_FAMILY, SWAPPABLE, Live, output

each_swappable = pytest.mark.parametrize("live", SWAPPABLE.values(), ids=SWAPPABLE)
each_freezable = pytest.mark.parametrize("live", FREEZABLE.values(), ids=FREEZABLE)
one_per_family = pytest.mark.parametrize("live", [FREEZABLE[name] for name in ONE_PER_FAMILY], ids=ONE_PER_FAMILY)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def recurrences(model: nn.Module) -> list[Recurrence]:
    return ssmdiag.extract_recurrences(ssmdiag.read_module(model))


def train(live: Live, model: nn.Module, steps: int = 2) -> None:
    """Take a few steps of AdamW with a weight decay that would show."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        live.run(model).square().mean().backward()
        optimizer.step()


@pytest.mark.one_in(12)
@each_swappable
def test_a_swap_leaves_the_output_as_it_was(live: Live) -> None:
    model = live.build(0)
    before = output(live, model)
    done = ssmdiag.reparameterize(model, live.map, target="both")
    assert done.swapped
    assert done.left_alone == ()
    assert all(weight.largest_change < 1e-6 for weight in done.swapped)
    assert difference(output(live, model), before) < 1e-5


@pytest.mark.one_in(12)
@each_swappable
def test_the_default_map_holds_the_rates_of_every_model(live: Live) -> None:
    """As Mamba's, from 1 to its state size, which the paper's b does not hold."""
    model = live.build(0)
    before = output(live, model)
    assert ssmdiag.reparameterize(model).swapped
    assert difference(output(live, model), before) < 1e-5
    ssmdiag.fold(model)
    assert difference(output(live, model), before) < 1e-5


@pytest.mark.one_in(32)
@each_swappable
def test_what_is_trained_and_folded_loads_into_the_original_code(live: Live, tmp_path: Path) -> None:
    """swap → train → fold → save → load with strict=True: the same outputs, and a rate that has moved."""
    model = live.build(0)
    plain = list(model.state_dict())
    names = {weight.name for weight in ssmdiag.reparameterize(model, live.map).swapped}
    start = {name: value.clone() for name, value in ssmdiag.folded_state_dict(model).items()}
    train(live, model)
    trained = output(live, model)
    state = ssmdiag.folded_state_dict(model)
    assert list(state) == plain
    assert all(not torch.equal(state[name], start[name]) for name in names)

    assert set(ssmdiag.fold(model)) == names
    assert list(model.state_dict()) == plain
    assert torch.equal(output(live, model), trained)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any("Parametrized" in type(part).__name__ for part in model.modules())

    fresh = live.build(1)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(live, fresh), trained)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, tmp_path / "model.safetensors")
    config = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(tmp_path)
    for stored, read in zip(ssmdiag.extract_recurrences(tmp_path), recurrences(model), strict=True):
        assert torch.equal(stored.log_eigenvalues, read.log_eigenvalues)


def test_a_folded_model_goes_through_save_pretrained_and_back(tmp_path: Path) -> None:
    import transformers

    live = SWAPPABLE["transformers mamba"]
    model = live.build(0)
    ssmdiag.reparameterize(model, live.map, target="both")
    train(live, model)
    ssmdiag.fold(model)
    model.save_pretrained(tmp_path)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(output(live, again.eval()), output(live, model))


@pytest.mark.one_in(32)
@each_freezable
def test_frozen_eigenvalues_and_steps_do_not_move_while_the_rest_trains(live: Live) -> None:
    """To the bit, through AdamW with weight decay; P2's fixed reservoir."""
    model = live.build(0)
    frozen = ssmdiag.freeze(model, "both")
    assert frozen
    before = recurrences(model)
    others = {name: value.clone() for name, value in model.state_dict().items()}
    train(live, model)
    after = recurrences(model)
    for old, new in zip(before, after, strict=True):
        for was, weight in zip(old.weights, new.weights, strict=True):
            assert torch.equal(weight.values, was.values)
        if old.time_invariant:
            assert torch.equal(old.log_eigenvalues, new.log_eigenvalues)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, others[name])]
    assert len(moved) > len(others) / 4


@pytest.mark.one_in(12)
@one_per_family
def test_freezing_one_of_the_two_leaves_the_other_to_train(live: Live) -> None:
    roles = {weight.role for weight in find_recurrence(live.build(0)).weights}
    for what in ("eigenvalues", "step") if "step" in roles else ("eigenvalues",):
        model = live.build(0)
        ssmdiag.freeze(model, what)
        before = [weight for recurrence in recurrences(model) for weight in recurrence.weights]
        train(live, model)
        after = [weight for recurrence in recurrences(model) for weight in recurrence.weights]
        for old, new in zip(before, after, strict=True):
            fixed = (new.role == "step") == (what == "step")
            assert torch.equal(old.values, new.values) == fixed, (what, new.name)


@pytest.mark.one_in(6)
@one_per_family
def test_a_swapped_model_can_be_frozen_and_folded(live: Live) -> None:
    model = live.build(0)
    swapped = ssmdiag.reparameterize(model, live.map).swapped
    ssmdiag.freeze(model, "eigenvalues")
    state = ssmdiag.folded_state_dict(model)
    train(live, model)
    ssmdiag.fold(model)
    for weight in swapped:
        assert torch.equal(model.state_dict()[weight.name], state[weight.name])
        assert not model.get_parameter(weight.name).requires_grad


@pytest.mark.one_in(6)
@each_freezable
def test_every_trainable_parameter_is_in_one_optimizer_group(live: Live) -> None:
    model = live.build(0)
    groups = ssmdiag.parameter_groups(model, lr=1e-3, recurrence_lr=1e-4, weight_decay=0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    by_name = {group["name"]: group for group in groups}
    assert (by_name["everything else"]["lr"], by_name["everything else"]["weight_decay"]) == (1e-3, 0.1)
    if any(weight.requires_grad for weight in _recurrent_parameters(model)):
        assert (by_name["recurrence"]["lr"], by_name["recurrence"]["weight_decay"]) == (1e-4, 0.0)
        assert {id(p) for p in by_name["recurrence"]["params"]} == {id(p) for p in _recurrent_parameters(model)}
    torch.optim.AdamW(groups)


def _recurrent_parameters(model: nn.Module) -> list[nn.Parameter]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {weight.name for recurrence in recurrences(model) for weight in recurrence.weights}
    return [parameters[name] for name in names if name in parameters]
