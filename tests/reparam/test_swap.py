"""How a swap behaves inside torch: gradients, dtypes, ties, order, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import ssmdiag
from ssmdiag import Family, Recurrence, Spelling, find_map
from ssmdiag.errors import LayerError, MapError, UnknownFamilyError
from ssmdiag.families.layer import Layer
from ssmdiag.recurrence.discretisation import log_of
from ssmdiag.recurrence.maps import MAPS, STABLE_MAPS
from ssmdiag.reparam import find_recurrence
from ssmdiag.reparam.parametrisations import to_old_weight
from tests.device import cuda as cuda
from tests.reparam.bag import Bag

MAPS_THAT_FIT_EXP = ("direct", "relu", "exp", "softplus", "best", "best(b=0.1)", "best(a=2, b=0.1)", "heavy-tail")


def mamba(layers: int = 1, channels: int = 3, modes: int = 4, dtype: torch.dtype = torch.float32) -> Bag:
    """Return Mamba's parameters with rates from 0.02 to 1.5 and steps near 0.01."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(layers):
        mixer = f"layers.{layer}.mixer"
        state[f"{mixer}.A_log"] = -4 + 4.4 * torch.rand(channels, modes, generator=generator)
        state[f"{mixer}.D"] = torch.ones(channels)
        state[f"{mixer}.dt_proj.weight"] = torch.randn(channels, 2, generator=generator)
        state[f"{mixer}.dt_proj.bias"] = -4.6 + torch.randn(channels, generator=generator)
    return Bag({name: value.to(dtype) for name, value in state.items()})


def mixer(model: nn.Module, layer: int = 0) -> nn.Module:
    return model.get_submodule(f"layers.{layer}.mixer")


def lru(**weights: Tensor) -> Bag:
    generator = torch.Generator().manual_seed(1)
    state = {f"rnn.{name}": torch.randn(4, 2, generator=generator) for name in ("B_re", "B_im")}
    state |= {f"rnn.{name}": torch.randn(2, 4, generator=generator) for name in ("C_re", "C_im")}
    ring = {"nu_log": torch.full((4,), -2.0), "theta_log": torch.zeros(4), "gamma_log": torch.zeros(4)}
    return Bag({f"rnn.{name}": value for name, value in (ring | weights).items()} | state)


@pytest.mark.parametrize("name", MAPS_THAT_FIT_EXP)
def test_the_stored_weight_holds_the_rate_and_the_model_reads_its_own(name: str) -> None:
    model = mamba()
    before = mixer(model).A_log.detach().clone()
    ssmdiag.reparameterize(model, name)
    if name == "exp":
        assert torch.equal(mixer(model)._parameters["A_log"], before)
        return
    stored = mixer(model).parametrizations.A_log.original
    assert stored.dtype == before.dtype
    torch.testing.assert_close(find_map(name)(stored), before.exp(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mixer(model).A_log, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MAPS_THAT_FIT_EXP[1:])
def test_the_gradient_is_that_of_the_new_map(name: str) -> None:
    """dL/dv = dL/dr · g′(v) for L a function of the rates, by torch's own autograd on g."""
    model = mamba(dtype=torch.float64)
    ssmdiag.reparameterize(model, name)
    weights = mixer(model).A_log
    weights.exp().sin().sum().backward()
    part = mixer(model)
    stored = part.parametrizations.A_log.original if name != "exp" else part._parameters["A_log"]
    v = stored.detach().clone().requires_grad_()
    find_map(name)(v).sin().sum().backward()
    torch.testing.assert_close(stored.grad, v.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.one_in(7)
@pytest.mark.parametrize("old", MAPS)
@pytest.mark.parametrize("new", STABLE_MAPS)
def test_every_pair_of_maps_agrees_on_the_rate_over_the_range_they_share(old: str, new: str) -> None:
    """f(f⁻¹(g(v))) = g(v), in float64 for rates from 1e-12 to 1e6, with a finite gradient."""
    f, g = find_map(old), find_map(new)
    r = torch.logspace(-12, 6, 400, dtype=torch.float64)
    r = r[f.holds(r) & g.holds(r) & (r > 1.01 * f.low) & (r < 0.99 * min(f.high, g.high))]
    v = g.inverse(r).requires_grad_()
    w = to_old_weight(f, g, v)
    torch.testing.assert_close(f(w), r, rtol=1e-11, atol=0)
    w.sum().backward()
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


@pytest.mark.parametrize("old", ["exp", "softplus", "sigmoid", "-logsigmoid", "direct", "none", "relu", "heavy-tail"])
def test_a_rate_of_zero_has_no_gradient_that_is_not_a_number(old: str) -> None:
    """relu's flat side: the rate is 0, and so is the gradient, not NaN."""
    f = find_map(old)
    v = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    w = to_old_weight(f, find_map("relu"), v)
    assert f(w.detach()).tolist() == pytest.approx([0.0, 0.0, 0.5])
    f(w).sum().backward()
    assert v.grad is not None
    assert v.grad[0].item() == 0
    assert v.grad[2].item() == pytest.approx(1.0)
    assert not bool(v.grad.isnan().any())


def test_past_the_boundary_a_model_that_cannot_grow_gets_nan_and_one_that_can_grows() -> None:
    """`direct` under exp has no weight for a rate below 0; under direct and none it has."""
    v = torch.tensor([-0.5, 0.25])
    direct = find_map("direct")
    assert to_old_weight(find_map("exp"), direct, v)[1].isnan()
    assert to_old_weight(find_map("heavy-tail"), direct, v)[1].isnan()
    assert to_old_weight(direct, direct, v).tolist() == [-0.5, 0.25]
    assert to_old_weight(find_map("none"), direct, v).tolist() == [0.5, -0.25]


def test_a_tensor_that_packs_other_things_keeps_them() -> None:
    """LRURec stores ν, θ and γ as rows of one tensor, s5-pytorch Re Λ and Im Λ as one complex number."""
    rows = torch.tensor([[-2.0, -3.0], [0.3, 0.4], [0.5, 0.6]])
    blocks = {"in_proj.weight": torch.ones(2, 2, dtype=torch.complex64), "out_proj.weight": torch.ones(2, 2) + 0j}
    model = Bag({"lru.params_log": rows, **{f"lru.{name}": value for name, value in blocks.items()}})
    (done,) = ssmdiag.reparameterize(model, "best").swapped
    assert done.count == 2
    assert torch.equal(model.lru.params_log[1:], rows[1:])
    stored = model.lru.parametrizations.params_log.original
    assert torch.equal(stored[1:], rows[1:])
    torch.testing.assert_close(1 / (stored[0].square() + 0.5), rows[0].exp())

    Lambda = torch.complex(torch.tensor([-0.5, -0.01]), torch.tensor([3.0, -7.0]))
    s5 = {"log_step": torch.zeros(2), "B": torch.ones(2, 1, 2), "C": torch.ones(1, 2) + 0j}
    model = Bag({"seq.Lambda": Lambda, **{f"seq.{name}": value for name, value in s5.items()}})
    ssmdiag.reparameterize(model, "best")
    stored = model.seq.parametrizations.Lambda.original
    assert torch.equal(stored.imag, Lambda.imag)
    torch.testing.assert_close(1 / (stored.real.square() + 0.5), -Lambda.real)
    torch.testing.assert_close(model.seq.Lambda, Lambda, rtol=1e-6, atol=0)
    model.seq.Lambda.abs().sum().backward()
    assert bool((stored.grad.real != 0).all())
    assert bool((stored.grad.imag != 0).all())


def test_frozen_rows_stay_while_the_other_rows_of_the_tensor_train() -> None:
    rows = torch.tensor([[-2.0, -3.0], [0.3, 0.4], [0.5, 0.6]])
    blocks = {"in_proj.weight": torch.ones(2, 2, dtype=torch.complex64), "out_proj.weight": torch.ones(2, 2) + 0j}
    model = Bag({"lru.params_log": rows, **{f"lru.{name}": value for name, value in blocks.items()}})
    (frozen,) = ssmdiag.freeze(model)
    assert (frozen.count, frozen.of) == (4, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model.lru.params_log.square().sum().backward()
        optimizer.step()
    assert torch.equal(model.lru.params_log[:2], rows[:2])
    assert not bool((model.lru.params_log[2] == rows[2]).any())
    state = ssmdiag.folded_state_dict(model)
    ssmdiag.fold(model)
    assert type(model.lru) is nn.Module
    assert torch.equal(model.lru.params_log, state["lru.params_log"])
    assert torch.equal(model.lru.params_log[:2], rows[:2])


def test_freezing_twice_holds_once_and_freezing_more_holds_more() -> None:
    A = torch.tensor([[0.5, 2.0], [1.0, -3.0]])
    rest = {"log_dt": torch.zeros(2), "B": torch.ones(2, 3), "C": torch.ones(3, 2, 2), "D": torch.ones(3, 3)}
    model = Bag({"seq.A": A, **{f"seq.{name}": value for name, value in rest.items()}})  # lrnnx: Re and Im Λ
    for _ in range(2):
        ssmdiag.freeze(model, "eigenvalues")
        ssmdiag.freeze(model, "both")
    assert not model.seq.A.requires_grad
    assert not model.seq.log_dt.requires_grad
    rows = Bag(
        {
            "lru.params_log": torch.zeros(3, 2),
            **{f"lru.{n}.weight": torch.ones(2, 2) + 0j for n in ("in_proj", "out_proj")},
        }
    )
    ssmdiag.freeze(rows)
    ssmdiag.freeze(rows)
    assert len(rows.lru.parametrizations.params_log) == 1


def test_a_wrapped_model_is_swapped_and_folded_inside_its_wrapper() -> None:
    """DistributedDataParallel and torch.compile put an element before every name."""
    for element in ("module", "_orig_mod"):
        model, wrapper = mamba(), nn.Module()
        plain = list(model.state_dict())
        wrapper.add_module(element, model)
        (done,) = ssmdiag.reparameterize(wrapper, "best").swapped
        assert done.name == f"{element}.layers.0.mixer.A_log"
        assert list(ssmdiag.folded_state_dict(wrapper)) == [f"{element}.{name}" for name in plain]
        assert list(ssmdiag.folded_state_dict(model)) == plain
        ssmdiag.fold(wrapper)
        assert list(model.state_dict()) == plain


def test_a_swap_follows_its_model_to_the_gpu_and_back(cuda: str) -> None:
    Lambda = torch.complex(torch.tensor([-0.5, -0.01]), torch.tensor([3.0, -7.0]))
    s5 = {"log_step": torch.zeros(2), "B": torch.ones(2, 1, 2), "C": torch.ones(1, 2) + 0j}
    for device_first in (True, False):
        model = Bag({"seq.Lambda": Lambda, **{f"seq.{name}": value for name, value in s5.items()}})
        model = model.to(cuda) if device_first else model
        ssmdiag.reparameterize(model, "best")
        model = model.to(cuda)
        assert model.seq.Lambda.device.type == "cuda"
        torch.testing.assert_close(model.seq.Lambda.cpu(), Lambda, rtol=1e-6, atol=0)
        model.seq.Lambda.abs().sum().backward()
        ssmdiag.freeze(model)
        ssmdiag.fold(model)
        torch.testing.assert_close(model.seq.Lambda.cpu(), Lambda, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_kept_in_float32_and_read_as_they_were(dtype: torch.dtype) -> None:
    """The model reads the very bits it stored, while steps too small for the narrow type still count."""
    model = mamba(dtype=dtype)
    before = mixer(model).A_log.detach().clone()
    parameter = mixer(model).A_log
    ssmdiag.reparameterize(model, "best")
    stored = mixer(model).parametrizations.A_log.original
    assert stored is parameter
    assert stored.dtype == torch.float32
    assert torch.equal(mixer(model).A_log, before)
    assert mixer(model).A_log.dtype == dtype
    assert ssmdiag.folded_state_dict(model)["layers.0.mixer.A_log"].dtype == dtype
    mixer(model).A_log.sum().backward()
    ssmdiag.fold(model)
    assert mixer(model).A_log is parameter
    assert torch.equal(parameter, before)
    assert parameter.dtype == dtype


def test_float64_stays_float64_and_a_later_cast_is_followed() -> None:
    model = mamba(dtype=torch.float64)
    before = mixer(model).A_log.detach().clone()
    ssmdiag.reparameterize(model, "heavy-tail")
    torch.testing.assert_close(mixer(model).A_log, before, rtol=1e-14, atol=1e-14)
    assert mixer(model.float()).A_log.dtype == torch.float32
    ssmdiag.fold(model)
    torch.testing.assert_close(mixer(model).A_log, before.float())


def test_tied_weights_stay_tied_through_swap_training_and_fold() -> None:
    model = mamba(layers=2)
    mixer(model, 1).A_log = mixer(model, 0).A_log
    before = mixer(model).A_log.detach().clone()
    assert len(ssmdiag.reparameterize(model, "best").swapped) == 1
    stored = [mixer(model, layer).parametrizations.A_log.original for layer in (0, 1)]
    assert stored[0] is stored[1]
    for layer in (0, 1):
        torch.testing.assert_close(mixer(model, layer).A_log, before, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        stored[0].mul_(1.5)
    values = mixer(model, 0).A_log.detach().clone()
    assert torch.equal(mixer(model, 1).A_log, values)
    state = ssmdiag.folded_state_dict(model)
    assert set(ssmdiag.fold(model)) == {"layers.0.mixer.A_log", "layers.1.mixer.A_log"}
    assert mixer(model, 0).A_log is mixer(model, 1).A_log
    assert torch.equal(mixer(model, 0).A_log, values)
    assert torch.equal(state["layers.1.mixer.A_log"], values)


def test_tied_tensors_that_pack_other_things_are_held_once() -> None:
    rows = torch.tensor([[-2.0, -3.0], [0.3, 0.4], [0.5, 0.6]])
    blocks = {"in_proj.weight": torch.ones(2, 2, dtype=torch.complex64), "out_proj.weight": torch.ones(2, 2) + 0j}
    state = {f"{i}.lru.{name}": value for i in (0, 1) for name, value in ({"params_log": rows} | blocks).items()}
    model = Bag(state)
    first, second = (model.get_submodule(f"{i}.lru") for i in (0, 1))
    second.params_log = first.params_log
    assert len(ssmdiag.freeze(model)) == 1
    assert len(first.parametrizations.params_log) == len(second.parametrizations.params_log) == 1
    with torch.no_grad():
        first.parametrizations.params_log.original.add_(1.0)
    for part in (first, second):
        assert torch.equal(part.params_log[:2], rows[:2])
        assert torch.equal(part.params_log[2], rows[2] + 1)
    ssmdiag.fold(model)
    assert first.params_log is second.params_log


def test_a_parameter_shared_under_two_maps_is_refused() -> None:
    families = [own_family("first", "gate", "exp"), own_family("second", "leak", "softplus")]
    model = Bag({"a.gate": torch.full((3,), -2.0), "b.leak": torch.full((3,), -2.0)})
    model.b.leak = model.a.gate
    with pytest.raises(LayerError, match=r"a\.gate and b\.leak are one parameter, read as a rate through exp"):
        ssmdiag.reparameterize(model, "best", families=families)
    assert torch.equal(model.a.gate, torch.full((3,), -2.0))


def test_a_layer_used_twice_is_swapped_once() -> None:
    model = mamba(layers=2)
    model.layers.add_module("1", model.layers.get_submodule("0"))
    assert len(ssmdiag.reparameterize(model, "best").swapped) == 1
    assert len(ssmdiag.fold(model)) == 1


def test_an_optimizer_made_before_goes_on_and_moves_the_recurrence() -> None:
    model = mamba()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = mixer(model).A_log.detach().clone()
    ssmdiag.reparameterize(model, "best")
    mixer(model).A_log.sum().backward()
    optimizer.step()
    assert not bool((mixer(model).A_log == before).any())


def test_a_stale_gradient_does_not_survive_the_swap_or_the_fold() -> None:
    model = mamba()
    mixer(model).A_log.sum().backward()
    ssmdiag.reparameterize(model, "best")
    stored = mixer(model).parametrizations.A_log.original
    assert stored.grad is None
    mixer(model).A_log.sum().backward()
    ssmdiag.fold(model)
    assert mixer(model).A_log.grad is None


def test_parameters_are_in_their_old_order_after_folding() -> None:
    """An optimizer's state dict goes by order, not by name."""
    model = mamba(layers=2)
    order = [name for name, _ in model.named_parameters()]
    ssmdiag.reparameterize(model, "best", target="both")
    ssmdiag.freeze(model, "step")
    assert [name for name, _ in model.named_parameters()] != order
    assert list(ssmdiag.folded_state_dict(model)) == order
    ssmdiag.fold(model)
    assert [name for name, _ in model.named_parameters()] == order


def test_attributes_on_the_parameter_survive() -> None:
    model = mamba()
    mixer(model).A_log._no_weight_decay = True
    ssmdiag.reparameterize(model, "best")
    assert mixer(model).parametrizations.A_log.original._no_weight_decay
    ssmdiag.fold(model)
    assert mixer(model).A_log._no_weight_decay


def test_a_swapped_model_can_be_copied_and_resumed() -> None:
    model = mamba()
    ssmdiag.reparameterize(model, "best")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        mixer(twin).parametrizations.A_log.original.add_(1.0)
    assert not torch.equal(mixer(twin).A_log, mixer(model).A_log)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(mixer(twin).A_log, mixer(model).A_log)


def test_a_swapped_model_is_read_with_the_values_its_code_reads() -> None:
    model = mamba()
    before = ssmdiag.extract_recurrences(ssmdiag.read_module(model))[0].log_eigenvalues
    ssmdiag.reparameterize(model, "best")
    after = ssmdiag.extract_recurrences(ssmdiag.read_module(model))[0].log_eigenvalues
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
    diagnosis = ssmdiag.diagnose(ssmdiag.read_module(model))
    assert (diagnosis.path, diagnosis.format, diagnosis.notes) == ("Bag", "live module", diagnosis.notes)
    assert not any("parametrisation" in note for layer in diagnosis.layers for note in layer.notes)


def test_folding_a_model_without_swaps_changes_nothing() -> None:
    model = mamba()
    state = model.state_dict()
    assert ssmdiag.fold(model) == ()
    assert list(ssmdiag.folded_state_dict(model)) == list(state)
    assert ssmdiag.fold(model) == ()


def test_the_map_a_model_already_has_is_left_in_place() -> None:
    model = mamba()
    done = ssmdiag.reparameterize(model, "exp")
    assert done.swapped == ()
    assert [left.reason for left in done.left_alone] == ["the model's own map is this one"]
    assert not hasattr(mixer(model), "parametrizations")


def test_a_buffer_is_not_swapped_and_needs_no_freezing() -> None:
    model = mamba()
    values = mixer(model).A_log.detach()
    del mixer(model).A_log
    mixer(model).register_buffer("A_log", values)
    with pytest.raises(MapError, match="A_log: it is a buffer, which no optimizer trains"):
        ssmdiag.reparameterize(model, "best")
    assert "buffer" in ssmdiag.freeze(model, "eigenvalues")[0].note
    assert len(ssmdiag.reparameterize(model, "best", target="both").left_alone) == 1


def own_family(name: str, tensor: str, map: str, *, discrete: bool = False) -> Family:
    """Return a family as another package may bring it: one tensor, one map."""

    def read(layer: Layer) -> Iterator[Recurrence]:
        values = layer.weight(tensor, map, discrete=discrete)
        yield layer.recurrence((log_of(values) if discrete else -values)[:, None])

    return Family(name, name, "none", "exact", (Spelling(name, {tensor: "channel"}),), read)


def test_a_declared_discrete_eigenvalue_keeps_its_decay() -> None:
    """A weight that goes to |λ̄| through a sigmoid: the rate is −log σ(w)."""
    family = own_family("own", "gate", "sigmoid", discrete=True)
    model = Bag({"net.gate": torch.tensor([4.0, 0.5, 9.0])})
    before = model.net.gate.sigmoid().detach().clone()
    (done,) = ssmdiag.reparameterize(model, "best", families=[family]).swapped
    assert done.old == "-logsigmoid"
    torch.testing.assert_close(model.net.gate.sigmoid(), before)
    stored = model.net.parametrizations.gate.original
    torch.testing.assert_close((-1 / (stored.square() + 0.5)).exp(), before)


# --- refusals -------------------------------------------------------------------------------------


def unchanged(model: nn.Module, state: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(state) and all(torch.equal(now[k].nan_to_num(), state[k].nan_to_num()) for k in state)


def test_an_unknown_map_lists_the_known_ones() -> None:
    with pytest.raises(MapError, match=r"no map is called 'bets'") as error:
        ssmdiag.reparameterize(mamba(), "bets")
    assert "direct, relu, exp, softplus, sigmoid, best, heavy-tail, best(a=…, b=…)" in str(error.value)


def test_rates_out_of_range_are_counted_and_a_map_that_holds_them_is_named() -> None:
    model = mamba(layers=7)
    with torch.no_grad():
        for layer in range(7):
            mixer(model, layer).A_log[:, 3] = math.log(16.0)
        mixer(model, 2).A_log[0, 0] = math.log(3.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MapError) as error:
        ssmdiag.reparameterize(model, "best(b=0.5)", target="both")
    text = str(error.value)
    assert "best, f(w) = 1/(w² + 0.5), cannot hold the rates and steps of 7 tensors." in text
    assert "layers.0.mixer.A_log: 3 of 12, from 16 to 16" in text
    assert "layers.2.mixer.A_log: 4 of 12, from 3 to 16" in text
    assert "and 2 more" in text
    assert "expected: values in (0, 2]" in text
    assert "next: best(b=0.04) reaches beyond 16, the fastest." in text
    assert unchanged(model, state)
    ssmdiag.reparameterize(model, "best(b=0.04)", target="both")


def test_a_rate_a_hair_above_the_range_is_shown_with_its_digits() -> None:
    model = mamba()
    with torch.no_grad():
        mixer(model).A_log.fill_(math.log(2.0))  # whose float32 is above log 2
    with pytest.raises(MapError, match=r"12 of 12, from 2\.00000\d+ to 2\.00000\d+"):
        ssmdiag.reparameterize(model, "best(b=0.5)")


def test_best_by_its_name_alone_is_the_papers_where_that_holds_the_rates() -> None:
    assert {done.new for done in ssmdiag.reparameterize(mamba(layers=2)).swapped} == {"best"}


@pytest.mark.parametrize(("fastest", "new"), [(2.0, "best(b=0.4)"), (15.0, "best(b=0.05)"), (3e7, "best(b=2e-08)")])
def test_best_by_its_name_alone_reaches_a_quarter_beyond_the_fastest_rate(fastest: float, new: str) -> None:
    """Also at 2, the very end of the paper's: its weight would be at 0, where the gradient is 0, and never move."""
    model = mamba(layers=2, dtype=torch.float64)
    with torch.no_grad():
        mixer(model, 1).A_log[2, 1] = math.log(fastest)
    before = mixer(model, 1).A_log.detach().clone()
    done = ssmdiag.reparameterize(model, target="both").swapped
    assert {one.new for one in done} == {new}
    torch.testing.assert_close(mixer(model, 1).A_log, before, rtol=1e-9, atol=1e-9)
    mixer(model, 1).A_log[2, 1].backward()
    assert mixer(model, 1).parametrizations.A_log.original.grad[2, 1] != 0
    ssmdiag.fold(model)
    torch.testing.assert_close(mixer(model, 1).A_log.detach(), before, rtol=1e-9, atol=1e-9)


def test_best_by_its_name_alone_stays_within_the_models_own_map() -> None:
    """σ ends at 1, which the paper's best would pass."""
    axes = {"w0": torch.full((1, 1, 4), -1.0), "r_k": torch.ones(2, 2), "k_k": torch.ones(1, 1, 4)}
    model = Bag({f"att.{name}": value for name, value in axes.items()})
    (done,) = ssmdiag.reparameterize(model).swapped
    assert find_map("sigmoid")(torch.tensor(-1.0)) < find_map(done.new).high < 1


def test_a_mode_that_grows_has_no_stable_map() -> None:
    s5 = {"log_step": torch.zeros(2), "B": torch.ones(2, 1, 2), "C": torch.ones(1, 2) + 0j}
    model = Bag({"Lambda": torch.tensor([-0.5 + 1j, 0.25 + 2j]), **s5})
    with pytest.raises(MapError, match=r"Lambda: 1 of 2, from -0\.25 to -0\.25") as error:
        ssmdiag.reparameterize(model, "exp")
    assert "does not decay, and no stable map holds it" in str(error.value)


def test_nan_is_counted_and_nothing_is_changed() -> None:
    model = mamba(layers=2)
    with torch.no_grad():
        mixer(model, 1).A_log[1, 2] = math.nan
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LayerError, match=r"layers\.1\.mixer\.A_log: 1 of 12 are NaN"):
        ssmdiag.reparameterize(model, "best")
    with pytest.raises(LayerError, match=r"layers\.1\.mixer\.A_log: 1 of its numbers are NaN"):
        ssmdiag.freeze(model)
    assert unchanged(model, state)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_infinite_weight_is_out_of_range() -> None:
    model = mamba()
    with torch.no_grad():
        mixer(model).A_log[0, 0] = -math.inf
    with pytest.raises(MapError, match="1 of 12, from 0 to 0"):
        ssmdiag.reparameterize(model, "best")


def test_a_model_without_a_known_recurrence_says_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 4))
    for call in (ssmdiag.reparameterize, ssmdiag.freeze, lambda m: ssmdiag.parameter_groups(m, lr=1.0)):
        with pytest.raises(UnknownFamilyError, match="no recurrent layer recognised in Sequential"):
            call(model)


def test_a_second_swap_asks_to_fold_first() -> None:
    model = mamba()
    ssmdiag.reparameterize(model, "best")
    with pytest.raises(LayerError, match=r"A_log is under a torch parametrisation already \(MapSwap\)"):
        ssmdiag.reparameterize(model, "heavy-tail")
    ssmdiag.fold(model)
    ssmdiag.reparameterize(model, "heavy-tail")


def test_parametrisations_of_others_are_respected() -> None:
    model = lru()
    torch.nn.utils.parametrize.register_parametrization(model.rnn, "nu_log", nn.Identity())
    with pytest.raises(LayerError, match="must be removed by hand"):
        ssmdiag.reparameterize(model, "best")
    ssmdiag.freeze(model)
    assert not model.rnn.parametrizations.nu_log.original.requires_grad
    assert ssmdiag.fold(model) == ()
    assert hasattr(model.rnn, "parametrizations")


def test_a_map_that_reaches_further_than_the_models_own_is_refused() -> None:
    """σ ends at 1: training could take exp to rates for which the model has no weight."""
    axes = {"w0": torch.full((1, 1, 4), -1.0), "r_k": torch.ones(2, 2), "k_k": torch.ones(1, 1, 4)}
    model = Bag({f"att.{name}": value for name, value in axes.items()})
    with pytest.raises(
        MapError, match=r"goes through sigmoid .* end at 0 and 1; those of exp end at 0 and inf"
    ) as error:
        ssmdiag.reparameterize(model, "exp")
    assert "take b > 1" in str(error.value)
    ssmdiag.reparameterize(model, "best(b=1.01)")


def test_weights_without_values_are_refused() -> None:
    model = mamba().to("meta")
    with pytest.raises(LayerError, match=r"torch\.float32 on meta: it has no usable numbers"):
        ssmdiag.reparameterize(model, "best")


@pytest.mark.parametrize("call", [ssmdiag.reparameterize, ssmdiag.freeze])
def test_a_target_that_does_not_exist_is_a_value_error(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected"):
        call(mamba(), **({"target": "rates"} if call is ssmdiag.reparameterize else {"what": "rates"}))


def test_a_model_without_a_step_has_none_to_freeze() -> None:
    with pytest.raises(LayerError, match="Bag has no weight that decides its step"):
        ssmdiag.freeze(lru(), "step")


def test_opaque_weights_are_named_with_the_reason() -> None:
    model = Bag(
        {"mlstm_layer.fgate_preact.bias": torch.ones(4), "mlstm_layer.igate_preact.bias": torch.ones(4)},
        {"model_type": "xlstm"},
    )
    found = find_recurrence(model)
    assert found.weights == ()
    with pytest.raises(MapError, match="mLSTM changes it before the map -logsigmoid"):
        ssmdiag.reparameterize(model, "best")
    (frozen,) = ssmdiag.freeze(model, "eigenvalues")
    assert frozen.note.startswith("all of the tensor: mLSTM")
