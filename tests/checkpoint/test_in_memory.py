"""A live model and a state dict are read as the file that they would be saved to."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ssmdiag
from ssmdiag.checkpoint.live import LiveModule, as_checkpoint
from ssmdiag.compare.models import tabulate_models
from ssmdiag.errors import CheckpointError, LayerError, PartialModelError, UnknownFamilyError
from ssmdiag.families.recognition import recognise, unknown_family
from tests.families.tiny_transformers import tiny_model
from tests.reparam.bag import Bag

SAME = ("layers", "findings", "context_length", "problems", "alternatives", "not_judged", "unrecognised")
"""What does not depend on where the numbers were."""


def mamba(layers: int = 2, context: int | None = None) -> Bag:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(layers):
        mixer = f"layers.{layer}.mixer"
        state[f"{mixer}.A_log"] = torch.arange(1.0, 5.0).log().repeat(6, 1)
        state[f"{mixer}.D"] = torch.ones(6)
        state[f"{mixer}.dt_proj.weight"] = torch.randn(6, 2, generator=generator)
        state[f"{mixer}.dt_proj.bias"] = -4.6 + torch.randn(6, generator=generator)
    return Bag(state, {"max_position_embeddings": context} if context else {})


def assert_same(one: ssmdiag.Diagnosis, other: ssmdiag.Diagnosis) -> None:
    for name in SAME:
        assert getattr(one, name) == getattr(other, name), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A Mamba of transformers, and the directory that its own code writes."""
    folder, model = tmp_path_factory.mktemp("saved"), tiny_model("mamba").float()
    model.save_pretrained(folder)
    return model, folder


def test_a_transformers_model_is_diagnosed_as_the_directory_it_saves(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    live = ssmdiag.diagnose(model)
    assert_same(live, ssmdiag.diagnose(folder))
    assert live.path == type(model).__name__


def test_a_state_dict_is_diagnosed_as_its_file(tmp_path: Path) -> None:
    state = dict(mamba().state_dict())
    save_file(state, tmp_path / "model.safetensors")
    in_file = ssmdiag.diagnose(tmp_path / "model.safetensors")
    for form in (
        state,
        {name: value.numpy() for name, value in state.items()},
        {"state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3},
        {"model": mamba(), "epoch": 3},
        {"layers": [{"mixer": nested(state, f"layers.{n}.mixer.")} for n in range(2)]},
    ):
        assert_same(ssmdiag.diagnose(form), in_file)


def nested(state: dict[str, Any], below: str) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for name, value in state.items():
        if name.startswith(below):
            *path, leaf = name.removeprefix(below).split(".")
            place = own
            for key in path:
                place = place.setdefault(key, {})
            place[leaf] = np.asarray(value)
    return own


def test_what_torch_load_returns_is_read_as_the_file(tmp_path: Path) -> None:
    """The weights under the trainer's key, its settings, its step, and the same remark on what is beside them."""
    content = {
        "state_dict": dict(mamba().state_dict()),
        "hyper_parameters": {"block_size": 512},
        "teacher": {"weight": torch.ones(2, 2)},
        "global_step": 70,
    }
    torch.save(content, tmp_path / "last.ckpt")
    live = ssmdiag.diagnose(torch.load(tmp_path / "last.ckpt"))
    in_file = ssmdiag.diagnose(tmp_path / "last.ckpt")
    assert_same(live, in_file)
    assert (live.train_step, live.context_length) == (70, 512)
    assert live.notes == in_file.notes
    assert "'teacher'" in live.notes[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", ">f4", "float64"])
def test_arrays_of_every_kind_keep_their_values(dtype: str) -> None:
    kind = getattr(ml_dtypes, dtype, dtype)
    array = np.linspace(-3, 3, 12).reshape(3, 4).astype(kind)[::-1]
    stored = ssmdiag.read_state_dict({"a": array})["a"]
    assert stored.shape == (3, 4)
    values = stored.load()
    assert str(values.dtype) == f"torch.{stored.dtype}"
    np.testing.assert_array_equal(values.double().numpy(), array.astype(np.float64))


@pytest.mark.parametrize("config", [{"n_ctx": 300}, Namespace(n_ctx=300)], ids=["mapping", "namespace"])
def test_settings_are_given_beside_a_state_dict(config: Any) -> None:
    checkpoint = ssmdiag.read_state_dict(mamba().state_dict(), config=config)
    assert ssmdiag.diagnose(checkpoint, memory=False).context_length == 300


def test_settings_are_those_of_the_model_inside() -> None:
    class Lightning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = mamba(context=777)

    assert ssmdiag.diagnose(Lightning(), memory=False).context_length == 777


def test_wrappers_are_undone_and_the_model_is_named() -> None:
    wrapped = nn.DataParallel(mamba())
    assert ssmdiag.diagnose(wrapped, memory=False).path == "Bag"
    assert [r.layer for r in ssmdiag.extract_recurrences(wrapped)] == ["layers.0.mixer", "layers.1.mixer"]


def test_values_read_do_not_change_with_training_and_no_gradient_is_taken() -> None:
    model = mamba(1)
    checkpoint = ssmdiag.read_checkpoint(model)
    before = checkpoint["layers.0.mixer.A_log"].load()
    kept = before.clone()
    with torch.no_grad():
        model.get_parameter("layers.0.mixer.A_log").add_(1.0)
    assert torch.equal(before, kept)
    assert not before.requires_grad
    state = {"A_log": model.get_parameter("layers.0.mixer.A_log")}
    assert not ssmdiag.read_state_dict(state)["A_log"].load().requires_grad
    assert ssmdiag.read_checkpoint(checkpoint) is checkpoint


def test_two_models_in_memory_are_compared_and_a_conversion_is_proven(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    assert ssmdiag.prove_conversion(folder, model).proven
    other = {name: value + 1.0 if name.endswith("A_log") else value for name, value in model.state_dict().items()}
    assert ssmdiag.prove_conversion(model, model.state_dict()).proven
    assert not ssmdiag.prove_conversion(model, other).proven
    comparison = ssmdiag.compare_models(model, other)
    assert (comparison.a.path, comparison.b.path) == (type(model).__name__, "state_dict")
    assert len(tabulate_models([model, other, nn.Linear(2, 2)]).models) == 2


def test_a_model_on_the_meta_device_is_refused_with_what_to_do() -> None:
    for source in (mamba().to("meta"), mamba().to("meta").state_dict()):
        with pytest.raises(CheckpointError, match="all of its 8 tensors are on the meta device") as error:
            ssmdiag.diagnose(source)
        assert "load_state_dict(…, assign=True)" in str(error.value)


def test_a_map_is_offered_without_the_values_of_the_meta_device() -> None:
    """A container that a probe or a swap made, of a model in which nothing is recognised."""
    model = nn.ModuleList([nn.ParameterDict({"log_decay": torch.zeros(4), "poles": torch.zeros(4)}) for _ in range(2)])
    checkpoint = as_checkpoint(LiveModule(model.to("meta")), model)
    error = unknown_family(checkpoint, recognise(checkpoint))
    assert "log_decay" in str(error)
    assert "is on the meta device" in str(error)
    with pytest.raises(CheckpointError, match=r"0\.poles is on the meta device"):
        checkpoint["0.poles"].load()


def test_one_layer_on_the_meta_device_costs_that_layer_alone() -> None:
    """As accelerate leaves layers for which there was no room."""
    model = mamba()
    model.get_submodule("layers.1").to("meta")
    found = ssmdiag.diagnose(model)
    assert [layer.name for layer in found.layers] == ["layers.0.mixer"]
    assert "layers.1.mixer.A_log is on the meta device" in found.problems[0]
    assert found.exit_code() == 2
    with pytest.raises(LayerError, match="meta device"):
        ssmdiag.extract_recurrences(model)


def test_emptied_weights_are_refused() -> None:
    """ZeRO-3 leaves them in a state dict that was not gathered."""
    state = {f"layers.{n}.mixer.in_proj.weight": torch.empty(0) for n in range(3)}
    with pytest.raises(PartialModelError, match="names but no values"):
        ssmdiag.diagnose(state)


def test_what_holds_no_weights_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"the mapping of 2 entries holds no tensors, but int, str\."):
        ssmdiag.diagnose({"epoch": 3, "name": "run"})
    with pytest.raises(CheckpointError, match="the mapping of 0 entries holds no tensors"):
        ssmdiag.diagnose({})
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module or a mapping of tensors, not from a list"):
        ssmdiag.diagnose([torch.ones(3)])  # type: ignore[arg-type]
    with pytest.raises(UnknownFamilyError, match="no recurrent layer recognised in Linear"):
        ssmdiag.diagnose(nn.Linear(3, 3))


def test_a_run_of_models_in_memory_is_refused_with_what_takes_them() -> None:
    with pytest.raises(TypeError, match="from paths, not from a Bag; `compare_models` takes two models in memory"):
        ssmdiag.compare_run([mamba(), mamba()])  # type: ignore[list-item]


def test_a_mapping_that_holds_itself_ends() -> None:
    state: dict[str, Any] = dict(mamba().state_dict())
    state["self"] = state
    assert len(ssmdiag.diagnose(state, memory=False).layers) == 2
