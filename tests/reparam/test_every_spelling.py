"""Every spelling of every family as a live module: what can be swapped, what can only be frozen, and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ssmdiag
from ssmdiag import Recurrence, known_families
from ssmdiag.errors import LayerError, MapError
from ssmdiag.families import Family, Spelling
from ssmdiag.reparam import find_recurrence
from tests.families.synthetic import config, state_dict
from tests.reparam.bag import Bag

SPELLINGS = [
    pytest.param(family, spelling, id=f"{family.name}:{spelling.name}")
    for family in known_families()
    for spelling in family.spellings
]
each_spelling = pytest.mark.parametrize(("family", "spelling"), SPELLINGS)

NO_RATE_TO_SWAP = {
    "delta_net": "there is no decay",
    "gru": "two biases are added",
    "hgrn": "the gates have no bias; the lower bounds are a softmax over layers",
    "gla:fla, gated slot attention": "the gate has no bias",
    "hyena": "a convolution has no rate",
    "kda:GLM-5-next": "a bounded gate: dt_bias is scaled by A_log before its sigmoid",
    "kda:Ling": "a bounded gate, the same",
    "kda:llama.cpp, Ling": "a bounded gate, the same",
    "linear_attention": "there is no decay",
    "raven:fla, gate of GLA": "the gate has no bias",
    "retention:fla": "the decay is computed from the number of heads",
    "lightning_attention:MiniMax-Text-01": "slopes are computed from the size of the model",
    "linoss": "the decay follows from the step, or from damping that two weights share",
    "long_convolution": "a convolution has no rate",
    "lstm": "two biases are added",
    "mamba3": "the rate is projected from the input",
    "min_gru": "the gate has no bias",
    "mlstm:xLSTM-large": "the gate is capped by a tanh before its logsigmoid",
    "rwkv5:the rwkv package": "a converted copy holds the factors themselves",
    "rnn": "a full state matrix",
    "s4:state-spaces/s4 v4, SSMKernelDense": "a full state matrix",
    "s4:state-spaces/s4 v4, companion": "a companion matrix",
    "short_convolution": "a convolution has no rate",
    "stripedhyena:StripedHyena": "the eigenvalues themselves are stored, as re and im",
}
"""Families, or spellings of them, without a weight that is a rate of its own. Everything else can be swapped."""

SLOW_ABOVE_ZERO = (
    "curse_of_memory",
    "gla",
    "lightning_attention",
    "mesa_net",
    "mlstm",
    "rg_lru:lrnnx",
    "rwkv5:the",
    "s7",
)
"""Families whose weight is the rate itself, or whose rate falls with it."""


def rates_below_one(family: Family, spelling: Spelling) -> dict[str, torch.Tensor]:
    """Return a state dict whose weights are rates between 0 and 1 under whatever map they go through."""
    sign = 1 if f"{family.name}:{spelling.name}".startswith(SLOW_ABOVE_ZERO) else -1
    state = state_dict(spelling)
    for name, value in state.items():
        if value.is_complex():
            state[name] = torch.complex(-0.2 - 0.3 * value.real.abs().clamp(max=2), value.imag)
        elif value.is_floating_point():
            state[name] = sign * (0.1 + 0.3 * value.abs().clamp(max=2))
            if family.name == "s7":  # its rate is 1/(w² + 1/2)
                state[name] += 1
    return state


def build(family: Family, spelling: Spelling) -> Bag:
    return Bag(rates_below_one(family, spelling), config(family, spelling))


def recurrences(module: nn.Module) -> list[Recurrence]:
    return ssmdiag.extract_recurrences(ssmdiag.read_module(module))


def cannot_swap(family: Family, spelling: Spelling) -> bool:
    return any(f"{family.name}:{spelling.name}".startswith(start) for start in NO_RATE_TO_SWAP)


@pytest.mark.one_in(7)
@each_spelling
def test_a_live_module_is_read_as_its_file_would_be(family: Family, spelling: Spelling) -> None:
    module = build(family, spelling)
    checkpoint = ssmdiag.read_module(module)
    assert set(checkpoint) == set(module.state_dict())
    found = ssmdiag.recognise(checkpoint)
    assert [layer.family.name for layer in found.layers] == [family.name]


@pytest.mark.one_in(7)
@each_spelling
def test_the_spectrum_is_the_same_under_another_map_and_after_folding(family: Family, spelling: Spelling) -> None:
    module = build(family, spelling)
    before, plain = recurrences(module), module.state_dict()
    plain = {name: value.clone() for name, value in plain.items()}
    if cannot_swap(family, spelling):
        with pytest.raises(MapError, match="no trainable weight of a rate"):
            ssmdiag.reparameterize(module, "best(b=1.01)")
        return
    done = ssmdiag.reparameterize(module, "best(b=1.01)")
    assert done.swapped
    for old, new in zip(before, recurrences(module), strict=True):
        torch.testing.assert_close(new.log_eigenvalues, old.log_eigenvalues, rtol=1e-5, atol=1e-6)
    ssmdiag.fold(module)
    names = {weight.name for weight in done.swapped}
    assert list(module.state_dict()) == list(plain)
    for name, value in module.state_dict().items():
        if name in names:
            torch.testing.assert_close(value, plain[name], rtol=2e-6, atol=1e-6)
        else:
            assert torch.equal(value, plain[name])


@pytest.mark.one_in(7)
@each_spelling
def test_steps_can_be_swapped_wherever_there_is_one(family: Family, spelling: Spelling) -> None:
    module = build(family, spelling)
    roles = {weight.role for weight in find_recurrence(module).weights}
    if "step" not in roles:
        with pytest.raises(MapError, match="no trainable weight of a step"):
            ssmdiag.reparameterize(module, "best(b=1.01)", target="step")
        return
    before = recurrences(module)
    assert ssmdiag.reparameterize(module, "best(b=1.01)", target="step").swapped
    for old, new in zip(before, recurrences(module), strict=True):
        torch.testing.assert_close(new.log_eigenvalues, old.log_eigenvalues, rtol=1e-5, atol=1e-6)


@pytest.mark.one_in(7)
@each_spelling
def test_what_freezing_fixes_is_all_that_decides_the_spectrum(family: Family, spelling: Spelling) -> None:
    """Every other parameter may be overwritten: the eigenvalues of a time-invariant layer stay, to the bit."""
    module = build(family, spelling)
    before = recurrences(module)
    fixed = [one for one in before if one.layout != "finite"]
    if not any(recurrence.weights or (recurrence.time_invariant and recurrence.tensors) for recurrence in fixed):
        with pytest.raises(LayerError, match="has no weight that decides"):
            ssmdiag.freeze(module, "both")
        return
    ssmdiag.freeze(module, "both")
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    for old, new in zip(before, recurrences(module), strict=True):
        for was, weight in zip(old.weights, new.weights, strict=True):
            assert torch.equal(weight.values, was.values)
        if old.time_invariant:
            assert torch.equal(new.log_eigenvalues, old.log_eigenvalues)


@pytest.mark.one_in(7)
@each_spelling
def test_eigenvalues_without_the_step_are_fixed_per_unit_time(family: Family, spelling: Spelling) -> None:
    """Where ℓ = Δλ, frozen eigenvalues leave ℓ/Δ as it was whatever becomes of Δ."""
    module = build(family, spelling)
    roles = {weight.role for weight in find_recurrence(module).weights}
    if not {"rate", "step"} <= roles or not ssmdiag.recognise(ssmdiag.read_module(module)).layers:
        return
    ssmdiag.freeze(module, "eigenvalues")
    before = {(w.name, w.role): w.values for r in recurrences(module) for w in r.weights}
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 0.9
    for recurrence in recurrences(module):
        for weight in recurrence.weights:
            same = torch.equal(weight.values, before[weight.name, weight.role])
            assert same == (weight.role != "step"), weight.name


def test_nothing_is_listed_as_unswappable_that_is_not_known() -> None:
    names = [f"{family.name}:{spelling.name}" for family in known_families() for spelling in family.spellings]
    for start in NO_RATE_TO_SWAP:
        assert any(name.startswith(start) for name in names), start
    swappable = {name.split(":")[0] for name in names if not any(name.startswith(start) for start in NO_RATE_TO_SWAP)}
    assert len(swappable) >= 24
