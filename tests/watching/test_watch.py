"""`Watch`: its numbers are those of a diagnosis, whatever is around the model; what it refuses; when it reads."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor, nn

import ssmdiag
from ssmdiag import Watch
from ssmdiag.errors import LayerError, SsmdiagError, UnknownFamilyError
from ssmdiag.watching.reading import LayerReading
from tests.reparam.bag import Bag
from tests.watching.drifting import SPELLINGS, build

KINDS = (
    "mamba:state-spaces/mamba, transformers, mambapy, fla",
    "mamba:hustvl/Vim, bimamba v2",
    "s4d:state-spaces/s4 v4, SSMKernelDiag",
    "lru:minimal-LRU, lrnnx",
    "s4:state-spaces/s4 v4, companion",
)


def mamba(layers: int = 2, dtype: torch.dtype = torch.float32) -> Bag:
    state = {}
    for n in range(layers):
        path = f"layers.{n}.mixer"
        state |= {
            f"{path}.A_log": torch.arange(1.0, 5.0).log().repeat(3, 1).to(dtype),
            f"{path}.dt_proj.bias": torch.tensor([-3.0, -4.0 - n, -5.0]).to(dtype),
            f"{path}.dt_proj.weight": torch.zeros(3, 1).to(dtype),
            f"{path}.x_proj.weight": torch.zeros(9, 3).to(dtype),
        }
    return Bag(state)


def read(model: nn.Module) -> tuple[LayerReading, ...]:
    return Watch(model, laws_every=0).read(0).layers


def test_the_margin_of_a_mamba_is_one_less_its_slowest_decay() -> None:
    layers = read(mamba())
    rate = math.log1p(math.exp(-5.0))
    assert [layer.name for layer in layers] == ["layers.0.mixer", "layers.1.mixer"]
    for layer in layers:
        assert layer.margin == pytest.approx(1 - math.exp(-rate), rel=1e-12)
        assert layer.half_life == pytest.approx(math.log(2) / rate, rel=1e-12)
    # Rates n·log(1 + e^b) against 2⁻⁹: none of b = −3, none of −4; of −5 none either but in the second layer's −5.
    below = [n * math.log1p(math.exp(b)) <= 2.0**-9 for b in (-3, -4, -5) for n in range(1, 5)]
    assert layers[0].near_boundary == sum(below) / 12


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", [*KINDS, *(name for name in SPELLINGS if name not in KINDS)])
def test_numbers_are_those_of_a_diagnosis(name: str) -> None:
    model = build(name)
    diagnosis = ssmdiag.diagnose(ssmdiag.read_module(model), memory=False)
    read_ = read(model)
    assert [layer.name for layer in read_] == [layer.name for layer in diagnosis.layers]
    for ours, theirs in zip(read_, diagnosis.layers, strict=True):
        if theirs.taps is not None:  # a convolution has neither: the widest margin, and no half-life
            assert (ours.margin, ours.half_life, theirs.margin, theirs.half_life) == (1.0, 0.0, None, None)
            continue
        assert ours.margin == theirs.margin
        assert theirs.half_life is not None
        assert ours.half_life == pytest.approx(theirs.half_life.max, rel=1e-12)
        assert (ours.nonfinite, ours.modes) == (theirs.nonfinite, theirs.channels * theirs.modes)


class OptimizedModule(nn.Module):
    """The shape of what torch.compile returns."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inside


class Around(nn.Module):
    """The shape of a LightningModule."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head, self.model = nn.Linear(3, 3), model


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, OptimizedModule, lambda model: nn.DataParallel(OptimizedModule(model))]
)
def test_wrappers_are_looked_through(wrap: type[nn.Module]) -> None:
    assert read(wrap(mamba())) == read(mamba())


def test_settings_are_those_of_the_model_inside_another_module() -> None:
    model = mamba()
    model.config = {"max_position_embeddings": 77}
    assert Watch(Around(model))._context == Watch(nn.DataParallel(model))._context == 77
    assert Watch(Around(model), context_length=5)._context == 5


def test_reading_goes_through_a_parametrisation_put_there_later() -> None:
    model = mamba()
    before = read(model)
    watch = Watch(model, laws_every=0)
    ssmdiag.reparameterize(model, "best(b=0.01)")
    for ours, plain, after in zip(watch.read(0).layers, before, read(model), strict=True):
        assert ours == after
        assert ours.margin == pytest.approx(plain.margin, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type_are_read_in_float64(dtype: torch.dtype) -> None:
    model = mamba(dtype=dtype)
    assert read(model)[0].margin == pytest.approx(read(model.double())[0].margin, rel=1e-12)


def test_a_rate_beyond_the_model_s_own_arithmetic_is_not_finite() -> None:
    model = mamba()
    weight = model.get_parameter("layers.1.mixer.A_log")
    with torch.no_grad():
        weight[1, 2] = 100.0
    layers = read(model)
    assert (layers[0].nonfinite, layers[1].nonfinite) == (0, 1)
    assert math.isnan(layers[1].margin)
    assert not read(model.double())[1].nonfinite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_layer_that_is_not_finite_is_warned_of_and_the_others_are_read(value: float) -> None:
    model, said = mamba(), []
    watch = Watch(model, every=10, warn=said.append)
    assert watch.step(0).broken is False
    with torch.no_grad():
        model.get_parameter("layers.1.mixer.A_log")[0, 0] = value
    reading = watch.step(10)
    assert reading.broken
    assert math.isnan(reading.margin)
    assert reading.worst.name == "layers.1.mixer"
    assert reading.layers[0].margin > 0
    assert said == ["step 10: 1 of 12 modes of layers.1.mixer is NaN or infinite."] == list(reading.warnings)


def test_a_reading_is_taken_at_the_first_call_and_where_a_multiple_has_come() -> None:
    watch = Watch(mamba(), every=100, laws_every=0)
    read_at = [n for n in (1, 2, 99, 100, 100, 150, 199, 230, 231, 300, 40, 41, 120) if watch.step(n)]
    assert read_at == [1, 100, 230, 300, 40, 120]
    assert [reading.train_step for reading in watch.readings] == read_at


def test_only_the_last_readings_are_kept_and_laws_are_found_every_so_often() -> None:
    watch = Watch(mamba(), every=1, laws_every=2, keep=3)
    laws = [reading.layers[0].law is not None for n in range(5) if (reading := watch.step(n))]
    assert laws == [True, False, True, False, True]
    assert [reading.train_step for reading in watch.readings] == [2, 3, 4]
    diagnosis = ssmdiag.diagnose(ssmdiag.read_module(mamba()), tails=False)
    for ours, theirs in zip(watch.readings[-1].layers, diagnosis.layers, strict=True):
        assert theirs.decay is not None
        assert theirs.horizon is not None
        assert (ours.law, ours.horizon) == (theirs.decay.law[0], theirs.horizon.median)


def test_scalars_are_named_for_the_layer_and_the_smallest_margin_for_none() -> None:
    watch = Watch(mamba(), every=1)
    scalars = watch.step(0).scalars()
    per_layer = {f"ssmdiag/layers.{n}.mixer/{what}" for n in range(2) for what in ("margin", "half_life")}
    assert per_layer <= set(scalars)
    assert scalars["ssmdiag/margin"] == min(scalars[f"ssmdiag/layers.{n}.mixer/margin"] for n in range(2))
    assert scalars["ssmdiag/half_life"] == max(scalars[f"ssmdiag/layers.{n}.mixer/half_life"] for n in range(2))
    assert "ssmdiag/layers.0.mixer/horizon" in scalars
    assert "ssmdiag/layers.0.mixer/horizon" not in watch.step(1).scalars()
    assert all(type(value) is float for value in scalars.values())


def test_weights_and_gradients_are_left_as_they_were() -> None:
    model = mamba()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = sum((parameter**2).sum() for parameter in model.parameters())
    Watch(model).step(0)
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_warnings_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    model = mamba()
    watch = Watch(model, every=1, laws_every=0)
    watch.step(0)
    with torch.no_grad():
        model.get_parameter("layers.0.mixer.A_log").fill_(math.nan)
    with caplog.at_level(logging.WARNING, "ssmdiag"):
        watch.step(1)
    assert [record.getMessage() for record in caplog.records] == [
        "step 1: 12 of 12 modes of layers.0.mixer are NaN or infinite."
    ]


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(TypeError, match="watched, not a dict"):
        Watch({"A_log": torch.zeros(3)})  # type: ignore[arg-type]


def test_a_model_without_a_recurrence_is_refused_at_once() -> None:
    with pytest.raises(UnknownFamilyError, match="no recurrent layer recognised in Sequential"):
        Watch(nn.Sequential(nn.Linear(3, 3)))


def test_a_layer_that_cannot_be_read_is_told_of_once_and_training_goes_on() -> None:
    model, said = mamba(), []
    model.get_submodule("layers.1.mixer").A_log = nn.Parameter(torch.zeros(5, 4))
    watch = Watch(model, every=1, laws_every=0, warn=said.append)
    readings = [watch.step(n) for n in range(3)]
    assert [[layer.name for layer in reading.layers] for reading in readings] == [["layers.0.mixer"]] * 3
    assert len(said) == 1
    assert "layers.1.mixer" in said[0]
    assert list(readings[-1].problems) == said


def test_a_model_of_which_no_layer_can_be_read_is_refused() -> None:
    model = mamba(1)
    model.get_submodule("layers.0.mixer").A_log = nn.Parameter(torch.zeros(5, 4))
    with pytest.raises(LayerError, match="no recurrent layer of it can be read"):
        Watch(model)


class FullyShardedDataParallel(nn.Module):
    """The name of torch's own."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = inside


def test_sharded_weights_are_refused_with_what_to_do_instead() -> None:
    with pytest.raises(SsmdiagError, match="FullyShardedDataParallel's flat pieces: no rank has a layer whole"):
        Watch(FullyShardedDataParallel(mamba()))
    model = mamba()
    next(model.parameters()).ds_shape = (3, 4)
    with pytest.raises(SsmdiagError, match=r"partitioned by ZeRO-3.*\n.*\n.*ssmdiag watch RUN_DIR"):
        Watch(model)


class Distributed:
    """The shape of a DTensor."""

    def __init__(self, local: Tensor, ranks: int, replicated: bool) -> None:
        self.local = local
        self.device_mesh = type("Mesh", (), {"size": lambda _: ranks})()
        self.placements = (type("Placement", (), {"is_replicate": lambda _: replicated})(),)

    def to_local(self) -> Tensor:
        return self.local


def test_of_a_dtensor_what_this_rank_holds_whole_is_read_and_a_part_refused() -> None:
    from ssmdiag.checkpoint.wrapped import whole_values

    values = torch.arange(3.0)
    assert whole_values("A", values) is values
    for ranks, replicated in ((1, False), (8, True)):
        assert whole_values("A", Distributed(values, ranks, replicated)) is values
    with pytest.raises(SsmdiagError, match="A is a DTensor over 8 ranks"):
        whole_values("A", Distributed(values, 8, False))


@pytest.mark.parametrize("wrong", [{"every": 0}, {"limit": 0.0}, {"keep": 0}, {"laws_every": -1}, {"limit": math.nan}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="every and keep"):
        Watch(mamba(), **wrong)
