"""Groups of real optimisers over real models, from the files that trainers write."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import Checkpoint, read_checkpoint
from ssmdiag.checkpoint.formats import torch_archive
from ssmdiag.checkpoint.optimizer import optimizer_state
from ssmdiag.errors import UnsafePickleError
from tests.checkpoint.formats.test_torch import UNLISTED, attacks, zip_with
from tests.families.tiny_transformers import tiny_model

Named = list[list[str]]


def trained(model: Any, groups: Named, kind: Any = torch.optim.AdamW, **settings: Any) -> Any:
    """Return an optimiser over these groups, the first with weight decay, after one step."""
    parameters = dict(model.named_parameters())
    optimizer = kind(
        [
            {"params": [parameters[name] for name in group], "weight_decay": 0.0 if number else 0.1}
            for number, group in enumerate(groups)
        ],
        **{"lr": 1e-3, **settings},
    )
    step(optimizer)
    return optimizer


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    optimizer.step()


def names(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def split(model: Any, decays: Callable[[str], bool]) -> Named:
    return [[name for name in names(model) if decays(name) is first] for first in (True, False)]


def as_the_trainer(model: Any) -> Named:
    """Return the names in the two groups of transformers' Trainer, without the seconds that its import takes."""
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    return split(
        model,
        lambda name: (
            not re.search(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)", name.lower())
            and name.rpartition(".")[0] not in norms
        ),
    )


def as_mamba_ssm(model: Any) -> Named:
    """Return the groups of code that reads what mamba_ssm marks: A_log, D and dt_bias, with all other vectors."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter._no_weight_decay = name.endswith(("A_log", ".D", "dt_bias"))
    return split(model, lambda name: parameters[name].ndim > 1 and not parameters[name]._no_weight_decay)


def in_one_file(model: Any, optimizer: Any, tmp_path: Path) -> Checkpoint:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}, tmp_path / "step.pt")
    return read_checkpoint(tmp_path / "step.pt")


def in_a_directory(model: Any, optimizer: Any, tmp_path: Path, name: str = "optimizer.pt") -> Checkpoint:
    directory = tmp_path / "checkpoint-500"
    model.save_pretrained(directory)
    torch.save(optimizer.state_dict(), directory / name)
    return read_checkpoint(directory)


def told(checkpoint: Checkpoint) -> Named:
    return [list(group.parameters or ()) for group in checkpoint.optimizer_groups]


def same(found: Named, expected: Iterable[Sequence[str]]) -> bool:
    return [sorted(group) for group in found] == [sorted(group) for group in expected]


# --- one group, two groups, many ------------------------------------------------------------------


@pytest.mark.parametrize("keep", [in_one_file, in_a_directory])
def test_one_group_over_all_parameters(keep: Callable[..., Checkpoint], tmp_path: Path) -> None:
    model = tiny_model("mamba")
    optimizer = trained(model, [names(model)], betas=(0.8, 0.99), lr=4.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    step(optimizer)
    schedule.step()
    checkpoint = keep(model, optimizer, tmp_path)
    (group,) = checkpoint.optimizer_groups
    assert same(told(checkpoint), [names(model)])
    assert (group.learning_rate, group.initial_learning_rate, group.weight_decay) == (2.0, 4.0, 0.1)
    assert (group.count, group.unnamed, group.note) == (len(names(model)), 0, "")
    assert (group.settings["betas"], group.settings["amsgrad"]) == ((0.8, 0.99), False)
    assert group.optimizer == "AdamW"
    assert checkpoint.optimizer_notes == ()
    assert checkpoint.optimizer_groups is checkpoint.optimizer_groups


@pytest.mark.slow  # its import
@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "jamba", "zamba", "kimi_linear", "xlstm"])
def test_the_groups_of_these_tests_are_those_of_the_trainer_itself(model_type: str) -> None:
    from transformers import Trainer

    model = tiny_model(model_type)
    with_decay = set(Trainer.get_decay_parameter_names(None, model))
    assert as_the_trainer(model) == split(model, with_decay.__contains__)
    assert 0 < len(with_decay) < len(names(model))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("model_type", ["mamba", "jamba", "zamba", "kimi_linear", "xlstm"])
def test_decay_and_no_decay_are_told_in_a_file_with_the_models_order(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    groups = as_the_trainer(model)
    assert same(told(in_one_file(model, trained(model, groups), tmp_path)), groups)


def test_decay_and_no_decay_are_told_without_the_models_order(tmp_path: Path) -> None:
    """safetensors sorts by name. The norm at the end, which the Trainer decays, may be the last layer's instead."""
    model = tiny_model("mamba")
    groups = as_the_trainer(model)
    found = told(in_a_directory(model, trained(model, groups), tmp_path))
    open_ = {"backbone.norm_f.weight", "backbone.layers.1.norm.weight"}
    assert same(found, [set(group) - open_ for group in groups])
    assert (
        sum(name.endswith("A_log") for name in found[0]) == sum(name.endswith("dt_proj.bias") for name in found[1]) == 2
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("keep", [in_one_file, in_a_directory])
@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "bamba", "zamba2"])
def test_the_attribute_no_weight_decay(model_type: str, keep: Callable[..., Checkpoint], tmp_path: Path) -> None:
    model = tiny_model(model_type)
    groups = as_mamba_ssm(model)
    if model_type == "mamba":  # one rate per state: a matrix, apart by its attribute alone
        assert any(name.endswith("A_log") for name in groups[1])
    checkpoint = keep(model, trained(model, groups), tmp_path)
    recurrent = {name for name in names(model) if name.endswith(("A_log", "dt_bias", ".D"))}
    assert recurrent <= set(told(checkpoint)[1])
    assert all(set(found) <= set(group) for found, group in zip(told(checkpoint), groups, strict=True))


def test_what_the_shapes_leave_open_is_not_guessed(tmp_path: Path) -> None:
    """Mamba-2's A_log, D and dt_bias are alike, and the Trainer puts two of the three into one group."""
    model = tiny_model("mamba2")
    groups = as_the_trainer(model)
    checkpoint = in_one_file(model, trained(model, groups), tmp_path)
    open_ = {name for name in names(model) if name.endswith(("A_log", "dt_bias", ".D"))}
    assert same(told(checkpoint), [set(group) - open_ for group in groups])
    first, second = checkpoint.optimizer_groups
    assert (first.unnamed, second.unnamed) == (4, 2)
    assert first.note.startswith("4 of 13 parameters cannot be named: ")
    assert "their shapes match several tensors" in first.note


@pytest.mark.one_in(3)
@pytest.mark.parametrize("model_type", ["mamba2", "zamba2", "qwen3_5_text", "rwkv", "recurrent_gemma"])
def test_the_trainers_own_rule_tells_the_rest_in_its_directory(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    groups = as_the_trainer(model)
    checkpoint = in_a_directory(model, trained(model, groups), tmp_path)
    assert any(group.unnamed for group in checkpoint.optimizer_groups)
    (tmp_path / "checkpoint-500" / "trainer_state.json").write_text(json.dumps({"global_step": 500}))
    checkpoint = read_checkpoint(tmp_path / "checkpoint-500")
    assert same(told(checkpoint), groups)
    assert "Trainer" in checkpoint.optimizer_groups[0].note


def test_the_trainers_rule_is_dropped_where_the_shapes_contradict_it(tmp_path: Path) -> None:
    model = tiny_model("mamba2")
    groups = split(model, lambda name: not name.endswith((".D", "norm.weight")))
    checkpoint = in_a_directory(model, trained(model, groups), tmp_path)
    (tmp_path / "checkpoint-500" / "trainer_state.json").write_text("{}")
    checkpoint = read_checkpoint(tmp_path / "checkpoint-500")
    assert all(set(found) <= set(group) for found, group in zip(told(checkpoint), groups, strict=True))
    assert "Trainer" not in checkpoint.optimizer_groups[0].note


def test_experts_stored_apart_leave_the_recurrence_told(tmp_path: Path) -> None:
    """transformers 5 joins the experts of a layer in memory and writes them one by one."""
    model = tiny_model("jamba")
    groups = as_the_trainer(model)
    checkpoint = in_a_directory(model, trained(model, groups), tmp_path)
    assert [set(group) - set(found) for found, group in zip(told(checkpoint), groups, strict=True)] == [
        {name for name in groups[0] if ".experts." in name},
        set(),
    ]
    assert "2 of their shapes match no tensor of the checkpoint" in checkpoint.optimizer_groups[0].note


class S4Layer(torch.nn.Module):
    """As in state-spaces/s4: parameters of the kernel carry their own settings in `_optim`."""

    def __init__(self, width: int = 6, modes: int = 4) -> None:
        super().__init__()
        self.D = torch.nn.Parameter(torch.randn(width))
        kernel = torch.nn.Module()
        kernel.C = torch.nn.Parameter(torch.randn(width, modes, 2))
        for name, shape in {"log_dt": (width,), "log_A_real": (width, modes), "A_imag": (width, modes)}.items():
            parameter = torch.nn.Parameter(torch.randn(shape))
            parameter._optim = {"weight_decay": 0.0, "lr": 1e-3} if name == "log_dt" else {"weight_decay": 0.0}
            kernel.register_parameter(name, parameter)
        self.kernel = kernel
        self.output_linear = torch.nn.Conv1d(width, 2 * width, 1)


class S4Model(torch.nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(3, 6)
        self.s4_layers = torch.nn.ModuleList(S4Layer() for _ in range(layers))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(6) for _ in range(layers))
        self.decoder = torch.nn.Linear(6, 10)


def s4_optimizer(model: torch.nn.Module) -> tuple[torch.optim.AdamW, Named]:
    """As S4's training script: one group for the rest, then one per distinct `_optim`."""
    marked = {name: getattr(parameter, "_optim", None) for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    groups = [[name for name in marked if marked[name] is None]]
    optimizer = torch.optim.AdamW([parameters[name] for name in groups[0]], lr=0.01, weight_decay=0.05)
    for special in sorted({tuple(sorted(mark.items())) for mark in marked.values() if mark is not None}):
        groups.append([name for name in marked if marked[name] == dict(special)])
        optimizer.add_param_group({"params": [parameters[name] for name in groups[-1]], **dict(special)})
    step(optimizer)
    return optimizer, groups


def test_s4s_groups_of_special_learning_rates(tmp_path: Path) -> None:
    model = S4Model()
    optimizer, groups = s4_optimizer(model)
    checkpoint = in_one_file(model, optimizer, tmp_path)
    assert same(told(checkpoint), groups)
    rates = {group.count: (group.learning_rate, group.weight_decay) for group in checkpoint.optimizer_groups}
    assert rates == {len(groups[0]): (0.01, 0.05), 4: (0.001, 0.0), 8: (0.01, 0.0)}


def test_a_tag_that_nobody_read_shows_as_one_group(tmp_path: Path) -> None:
    model = S4Model()
    checkpoint = in_one_file(model, trained(model, [names(model)]), tmp_path)
    (group,) = checkpoint.optimizer_groups
    assert "s4_layers.3.kernel.log_dt" in (group.parameters or ())
    assert group.weight_decay == 0.1


def test_names_in_alphabetical_order_as_min_gpt_sorts_them(tmp_path: Path) -> None:
    model = tiny_model("mamba", num_hidden_layers=12)
    groups = [sorted(group) for group in as_the_trainer(model)]
    assert names(model) != sorted(names(model))
    for keep in (in_one_file, in_a_directory):
        checkpoint = keep(model, trained(model, groups), tmp_path)
        assert all(set(found) <= set(group) for found, group in zip(told(checkpoint), groups, strict=True))
        assert any(name.endswith("A_log") for name in told(checkpoint)[0])


# --- frozen and tied ------------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize("keep", [in_one_file, in_a_directory])
@pytest.mark.parametrize("passed", [False, True], ids=["left out", "passed without gradient"])
def test_frozen_parameters(passed: bool, keep: Callable[..., Checkpoint], tmp_path: Path) -> None:
    model = tiny_model("mamba", tie_word_embeddings=True)
    model.backbone.embeddings.weight.requires_grad_(False)
    groups = [[name for name in group if passed or "embeddings" not in name] for group in as_the_trainer(model)]
    checkpoint = keep(model, trained(model, groups), tmp_path)
    certain = [set(group) - {"backbone.embeddings.weight"} for group in groups]
    assert all(set(found) <= set(group) for found, group in zip(told(checkpoint), groups, strict=True))
    assert {name for name in certain[0] if name.endswith("A_log")} <= set(told(checkpoint)[0])
    if keep is in_one_file:
        assert same(told(checkpoint), groups)


def test_a_frozen_layer_like_the_others_leaves_all_layers_open(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    groups = [[name for name in names(model) if "layers.0." not in name]]
    checkpoint = in_one_file(model, trained(model, groups), tmp_path)
    found = told(checkpoint)[0]
    assert "backbone.embeddings.weight" in found
    assert not any(".layers." in name for name in found)


@pytest.mark.parametrize("keep", [in_one_file, in_a_directory])
def test_tied_tensors_count_once_and_stand_under_their_first_name(
    keep: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    model = tiny_model("mamba", tie_word_embeddings=True)
    assert len(model.state_dict()) == len(names(model)) + 1
    checkpoint = keep(model, trained(model, [names(model)]), tmp_path)
    assert ("lm_head.weight" in checkpoint) == (keep is in_one_file)
    assert same(told(checkpoint), [names(model)])
    assert checkpoint.optimizer_groups[0].unnamed == 0


def test_buffers_are_in_no_group(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    model.register_buffer("omega", torch.randn(9))
    assert same(told(in_one_file(model, trained(model, [names(model)]), tmp_path)), [names(model)])


# --- files of trainers ----------------------------------------------------------------------------


def test_a_lightning_file(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    groups = as_the_trainer(model)
    content = {
        "epoch": 1,
        "global_step": 30,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [trained(model, groups, torch.optim.SGD, momentum=0.9).state_dict()],
        "lr_schedulers": [{"base_lrs": [0.1], "last_epoch": 3}],
        "hyper_parameters": {"optimizer": {"_name_": "sgd"}, "lr": 0.1},
    }
    torch.save(content, tmp_path / "epoch=1.ckpt")
    checkpoint = read_checkpoint(tmp_path / "epoch=1.ckpt")
    assert same(told(checkpoint), [[f"model.{name}" for name in group] for group in groups])
    assert checkpoint.optimizer_groups[0].optimizer == "SGD"
    assert checkpoint.optimizer_groups[0].settings["momentum"] == 0.9
    assert checkpoint.notes == ()


def test_two_optimisers_over_one_model(tmp_path: Path) -> None:
    """As with Muon for matrices and AdamW for the rest: each counts from 0."""
    model = tiny_model("mamba")
    parameters = dict(model.named_parameters())
    groups = split(model, lambda name: parameters[name].ndim == 2)
    states = [
        trained(model, [groups[0]], torch.optim.SGD, momentum=0.9).state_dict(),
        trained(model, [groups[1]]).state_dict(),
    ]
    torch.save({"state_dict": model.state_dict(), "optimizer_states": states}, tmp_path / "m.ckpt")
    checkpoint = read_checkpoint(tmp_path / "m.ckpt")
    assert same(told(checkpoint), groups)
    assert [group.optimizer for group in checkpoint.optimizer_groups] == ["SGD", "AdamW"]


class OptimizerNames:
    """As transformers' enumeration, without its class."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ("adamw_torch_fused",)

    def __init__(self, value: str = "adamw_torch_fused") -> None:
        self.value = value


class TrainingArguments:
    def __init__(self) -> None:
        self.optim = OptimizerNames()
        self.weight_decay = 0.1


def test_a_directory_of_transformers_trainer(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    groups = as_the_trainer(model)
    state = trained(model, groups).state_dict()
    for group in state["param_groups"]:
        del group["decoupled_weight_decay"]  # as torch before 2.7
    out = tmp_path / "out"
    model.save_pretrained(out)
    torch.save(state, out / "optimizer.pt")
    torch.save({"last_epoch": 500, "base_lrs": [1e-3, 1e-3]}, out / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, out / "rng_state.pth")
    torch.save(TrainingArguments(), out / "training_args.bin")
    (out / "trainer_state.json").write_text(json.dumps({"global_step": 1500, "log_history": [{"step": 10}]}))
    for path in (out, out / "model.safetensors"):
        checkpoint = read_checkpoint(path)
        assert same(told(checkpoint), groups)
        assert checkpoint.train_step == 1500
        assert checkpoint.optimizer_groups[0].optimizer == "adamw_torch_fused"


@pytest.mark.parametrize("content", ["", "[]", '{"global_step": "7"}', '{"global_step": null}', "[" * 100_000])
def test_a_trainer_state_that_says_nothing_is_no_step(content: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text(content)
    assert read_checkpoint(tmp_path).train_step is None


def test_a_directory_of_accelerate(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    groups = as_the_trainer(model)
    checkpoint = in_a_directory(model, trained(model, groups), tmp_path, "optimizer.bin")
    assert any(name.endswith("A_log") for name in told(checkpoint)[0])
    assert checkpoint.optimizer_groups[1].weight_decay == 0.0


def test_shards_with_an_optimiser_beside_them(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    torch.save(trained(model, [names(model)]).state_dict(), tmp_path / "optimizer.pt")
    assert same(told(read_checkpoint(tmp_path)), [names(model)])


def test_optimisers_with_names(tmp_path: Path) -> None:
    """torch 2.6 and later keep names if they are given them."""
    model = tiny_model("mamba2")
    decay, no_decay = as_the_trainer(model)
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [(name, p) for name, p in named if name in decay]},
            {"params": [(name, p) for name, p in named if name in no_decay], "weight_decay": 0.0},
        ]
    )
    step(optimizer)
    for keep in (in_one_file, in_a_directory):
        assert told(keep(model, optimizer, tmp_path)) == [decay, no_decay]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("prefix", ["", "model.", "model._fsdp_wrapped_module."])
def test_full_states_of_torch_distributed_are_keyed_by_name(flat: bool, prefix: str, tmp_path: Path) -> None:
    model = tiny_model("mamba2")
    groups = as_the_trainer(model)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, trained(model, groups), options=options)
    weights = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": weights, "optim": state}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    under = "model." if prefix else ""
    assert same(told(checkpoint), [[under + name for name in group] for group in groups])
    assert [group.weight_decay for group in checkpoint.optimizer_groups] == [0.1, 0.0]
    assert checkpoint.notes == ()


def test_names_that_the_checkpoint_lacks_are_counted(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    state = get_optimizer_state_dict(model, trained(model, [names(model)]))
    kept = {name: value for name, value in model.state_dict().items() if "layers.1." not in name}
    torch.save({"model": kept, "optimizer": state}, tmp_path / "m.pt")
    (group,) = read_checkpoint(tmp_path / "m.pt").optimizer_groups
    assert set(group.parameters or ()) == {name for name in names(model) if name in kept}
    assert group.note == "10 of 22 parameters cannot be named: they are not in the checkpoint"


def test_composer_files_both_under_state(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    groups = as_the_trainer(model)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    state = {"model": weights, "optimizers": {"DecoupledAdamW": trained(model, groups).state_dict()}}
    torch.save({"state": state, "rng": []}, tmp_path / "ep1.pt")
    checkpoint = read_checkpoint(tmp_path / "ep1.pt")
    assert set(checkpoint) == set(weights)
    assert same(told(checkpoint), [[f"model.{name}" for name in group] for group in groups])
    assert checkpoint.optimizer_groups[0].optimizer == "DecoupledAdamW"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"optim": state},
        lambda state: {"opt": state},
        lambda state: {"optimizer_state_dict": state},
        lambda state: {"training_state": {"optimizer": state, "epoch": 3}},
        lambda state: {"state": {"optimizer": state}},
        lambda state: {"optimizer": {"optimizer": state, "fp32_from_fp16_params": [[torch.ones(3)]]}},  # Megatron
    ],
)
def test_the_keys_of_other_trainers(wrap: Callable[[Any], dict[str, Any]], tmp_path: Path) -> None:
    model = S4Model()
    optimizer, groups = s4_optimizer(model)
    torch.save({"model": model.state_dict(), **wrap(optimizer.state_dict())}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert set(checkpoint) == set(model.state_dict())
    assert same(told(checkpoint), groups)


def test_a_pickled_optimiser_points_at_its_tensors(tmp_path: Path) -> None:
    model = tiny_model("mamba2")
    groups = as_the_trainer(model)
    torch.save({"model": model, "optimizer": trained(model, groups)}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert same(told(checkpoint), groups)
    assert checkpoint.optimizer_groups[0].optimizer == "AdamW"


def deepspeed(directory: Path, model: Any, groups: Named, partitions: list[list[list[str]]]) -> None:
    """Write what ZeRO saves: per group, flat tensors over partitions of its parameters (stage 3: several)."""
    shapes = {name: value.shape for name, value in model.named_parameters()}
    flat = [[torch.zeros(9, requires_grad=True) for _ in parts] for parts in partitions]
    optimizer = torch.optim.AdamW(
        [{"params": parts, "weight_decay": 0.0 if n else 0.1} for n, parts in enumerate(flat)]
    )
    step(optimizer)
    inner = {"base_optimizer_state": optimizer.state_dict(), "zero_stage": 2, "partition_count": 8}
    directory.mkdir(parents=True)
    torch.save(
        {"optimizer_state_dict": inner, "ds_config": {"optimizer": {"type": "FusedAdam"}}, "ds_version": "0.17"},
        directory / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    )
    listed = [{name: shapes[name] for name in part} for parts in partitions for part in parts]
    torch.save(
        {"module": model.state_dict(), "param_shapes": listed, "optimizer": None, "global_steps": 4},
        directory / "mp_rank_00_model_states.pt",
    )


@pytest.mark.parametrize("stage_3", [False, True])
def test_deepspeed_names_what_its_flat_tensors_hold(stage_3: bool, tmp_path: Path) -> None:
    model = tiny_model("mamba2")
    groups = as_the_trainer(model)
    parts = [[group[:5], group[5:]] if stage_3 else [group] for group in groups]
    model.save_pretrained(tmp_path)
    deepspeed(tmp_path / "global_step90", model, groups, [[[]], [[]]])
    deepspeed(tmp_path / "global_step100", model, groups, parts)
    (tmp_path / "latest").write_text("global_step100")
    for path in (tmp_path, tmp_path / "global_step100" / "mp_rank_00_model_states.pt"):
        checkpoint = read_checkpoint(path)
        assert told(checkpoint) == groups
        assert [group.weight_decay for group in checkpoint.optimizer_groups] == [0.1, 0.0]
        assert [group.count for group in checkpoint.optimizer_groups] == list(map(len, groups))
        assert checkpoint.optimizer_groups[0].optimizer == "FusedAdam"


def test_deepspeed_without_its_names_is_noted(tmp_path: Path) -> None:
    model = tiny_model("mamba2")
    model.save_pretrained(tmp_path)
    deepspeed(tmp_path / "global_step100", model, [], [[[]], [[]]])
    (tmp_path / "global_step100" / "mp_rank_00_model_states.pt").unlink()
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.optimizer_groups == ()
    assert "DeepSpeed" in checkpoint.optimizer_notes[0]


# --- optimisers -----------------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adadelta, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Adafactor, {}),
        pytest.param("transformers", {"scale_parameter": False, "relative_step": False}, marks=pytest.mark.slow),
        pytest.param("transformers", {"lr": None}, marks=pytest.mark.slow),
    ],
)
def test_the_shapes_are_read_off_whatever_an_optimiser_keeps(kind: Any, settings: Any, tmp_path: Path) -> None:
    if kind == "transformers":
        import transformers

        kind = transformers.Adafactor  # takes seconds to import
    model = tiny_model("mamba")
    groups = as_the_trainer(model)
    checkpoint = in_one_file(model, trained(model, groups, kind, **settings), tmp_path)
    assert same(told(checkpoint), groups)
    assert checkpoint.optimizer_groups[0].learning_rate == settings.get("lr", 1e-3)


def test_an_optimiser_without_moments_tells_one_group_and_not_two(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    plain = in_one_file(model, trained(model, [names(model)], torch.optim.SGD), tmp_path)
    assert same(told(plain), [names(model)])
    first, second = in_one_file(
        model, trained(model, as_the_trainer(model), torch.optim.SGD), tmp_path
    ).optimizer_groups
    assert first.parameters is second.parameters is None
    assert (first.weight_decay, second.weight_decay) == (0.1, 0.0)
    assert "stores no shapes" in second.note
    assert first.optimizer == "SGD"


def test_learning_rates_may_be_tensors_or_numpy_scalars(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=torch.tensor(0.25), weight_decay=np.float64(0.125), capturable=True
    )
    state = optimizer.state_dict()
    state["param_groups"][0].update(initial_lr=np.float32(0.5), betas=[0.5, np.float64(0.75)], other=object)
    for protocol in (2, 4):
        torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "m.pt", pickle_protocol=protocol)
        (group,) = read_checkpoint(tmp_path / "m.pt").optimizer_groups
        assert (group.learning_rate, group.initial_learning_rate, group.weight_decay) == (0.25, 0.5, 0.125)
        assert group.settings["betas"] == (0.5, 0.75)
        assert "other" not in group.settings
        assert all(isinstance(value, (int, float, str, tuple)) for value in group.settings.values())


def test_shapes_all_alike_are_not_told(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(6)))
    checkpoint = in_one_file(model, trained(model, [names(model)[::2], names(model)[1::2]]), tmp_path)
    assert [group.parameters for group in checkpoint.optimizer_groups] == [None, None]
    assert [group.count for group in checkpoint.optimizer_groups] == [3, 3]


def test_no_optimiser_is_no_group(tmp_path: Path) -> None:
    state = {"w": torch.ones(2)}
    save_file(state, tmp_path / "m.safetensors")
    np.savez(tmp_path / "m.npz", w=np.ones(2))
    torch.save(state, tmp_path / "m.pt")
    torch.save({"model": state, "optimizer": None, "param_groups": [1], "opt": {"param_groups": []}}, tmp_path / "n.pt")
    for path in tmp_path.iterdir():
        checkpoint = read_checkpoint(path)
        assert checkpoint.optimizer_groups == checkpoint.optimizer_notes == ()


@pytest.mark.parametrize(
    "state",
    [
        {"param_groups": [{}]},
        {"param_groups": [{"params": 3, "lr": "high"}], "state": 4},
        {"param_groups": [{"params": [None, {}, 1.5, "w"], "param_names": "ab"}], "state": {1.5: {}}},
        {"param_groups": [{"params": [0], "lr": float("nan")}], "state": {0: {"exp_avg": 3}}},
        {"param_groups": [{"params": [[]], "param_names": [3]}], "state": {0: [1]}},
    ],
)
def test_states_of_another_form_end_in_groups_without_names(state: Any, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2), "b": torch.ones(3)}, "optimizer": state}, tmp_path / "m.pt")
    (group,) = read_checkpoint(tmp_path / "m.pt").optimizer_groups
    assert group.parameters is None
    assert group.learning_rate is None or math.isnan(group.learning_rate)


# --- nothing runs, nothing is read that was not asked for -------------------------------------------


@pytest.mark.parametrize("trick", ["os.system", "protocol 4", "eval", "stack global", "pickle in a pickle"])
@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "training_args.bin"])
def test_a_malicious_optimiser_is_refused_when_it_is_asked_for(trick: str, name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    directory = tmp_path / "m"
    directory.mkdir()
    save_file({"w": torch.ones(2)}, directory / "model.safetensors")
    torch.save(
        {"param_groups": [{"params": [0]}], "state": {0: {"exp_avg": torch.ones(2)}}}, directory / "optimizer.pt"
    )
    zip_with(attacks(marker)[trick], directory / name)
    checkpoint = read_checkpoint(directory)
    assert checkpoint["w"].load().tolist() == [1, 1]
    with pytest.raises(UnsafePickleError, match=name):
        _ = checkpoint.optimizer_groups
    assert not marker.exists()


@pytest.mark.parametrize("trick", sorted(UNLISTED))
def test_an_optimiser_that_is_no_optimiser_is_noted(trick: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    zip_with(UNLISTED[trick], tmp_path / "optimizer.pt")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.optimizer_groups == ()
    assert "optimizer.pt" in checkpoint.optimizer_notes[0]


def test_a_torn_optimiser_is_noted_and_the_weights_are_read(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    in_a_directory(model, trained(model, [names(model)]), tmp_path)
    path = tmp_path / "checkpoint-500" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-5000])
    checkpoint = read_checkpoint(tmp_path / "checkpoint-500")
    assert len(checkpoint) == len(names(model))
    assert checkpoint.optimizer_groups == ()
    (note,) = checkpoint.optimizer_notes
    assert note.startswith("the state of the optimiser was not read: optimizer.pt is torn")


def test_a_pipe_in_the_place_of_the_optimiser_is_not_opened(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "optimizer.pt")
    os.mkfifo(tmp_path / "trainer_state.json")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint["w"].load().tolist() == [1, 1]
    assert checkpoint.optimizer_groups == ()
    assert "not a file" in checkpoint.optimizer_notes[0]


def test_an_optimiser_beside_the_weights_is_opened_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("mamba")
    in_a_directory(model, trained(model, [names(model)]), tmp_path)
    opened: list[str] = []
    original = optimizer_state.open_archive
    monkeypatch.setattr(optimizer_state, "open_archive", lambda source: opened.append(source.name) or original(source))
    checkpoint = read_checkpoint(tmp_path / "checkpoint-500")
    for stored in checkpoint.values():
        stored.load()
    assert opened == []
    assert checkpoint.optimizer_groups
    assert opened == ["optimizer.pt"]


def test_no_value_of_a_moment_or_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mamba")
    optimizer = trained(model, as_the_trainer(model))
    read: list[object] = []
    monkeypatch.setattr(torch_archive.TorchZip, "read", lambda self, *asked: read.append(asked) or b"")
    for keep in (in_one_file, in_a_directory):
        checkpoint = keep(model, optimizer, tmp_path)
        assert checkpoint.optimizer_groups
        assert checkpoint.bytes_read == 0
    assert read == []


def test_groups_are_read_without_importing_torch(tmp_path: Path) -> None:
    model = tiny_model("mamba")
    in_one_file(model, trained(model, as_the_trainer(model)), tmp_path)
    program = (
        "import sys, ssmdiag\n"
        "assert len(ssmdiag.read_checkpoint(sys.argv[1]).optimizer_groups[0].parameters) == 16\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "step.pt")], check=True, env=environment)


def test_64_layers_of_5120_channels_are_told_in_seconds(tmp_path: Path) -> None:
    """The shapes of Mamba-2.8B with 17 GB of moments, every tensor expanded from one number."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (50280, 2560)}
    layer = {
        "mixer.A_log": (5120, 16), "mixer.D": (5120,), "mixer.conv1d.weight": (5120, 1, 4),
        "mixer.conv1d.bias": (5120,), "mixer.in_proj.weight": (10240, 2560), "mixer.x_proj.weight": (192, 5120),
        "mixer.dt_proj.weight": (5120, 160), "mixer.dt_proj.bias": (5120,), "mixer.out_proj.weight": (2560, 5120),
        "norm.weight": (2560,),
    }  # fmt: skip
    for number in range(64):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["norm_f.weight"] = (2560,)
    groups = [[n for n in shapes if ("bias" in n or "norm" in n) is second] for second in (False, True)]

    def expanded(name: str) -> torch.Tensor:
        return torch.zeros(1).expand(shapes[name])

    flat = [name for group in groups for name in group]
    state = {n: {"exp_avg": expanded(name), "exp_avg_sq": expanded(name)} for n, name in enumerate(flat)}
    param_groups = [{"params": [flat.index(name) for name in group], "lr": 1e-3} for group in groups]
    weights = {name: expanded(name) for name in shapes}
    torch.save({"model": weights, "optimizer": {"state": state, "param_groups": param_groups}}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    start = time.perf_counter()
    found = told(checkpoint)
    seconds = time.perf_counter() - start
    assert same(found, groups)
    assert seconds < 5


def test_a_pickle_that_unfolds_without_end_is_searched_only_so_far(tmp_path: Path) -> None:
    tree: Any = {"param_groups": 1}
    for _ in range(60):
        tree = {"a": tree, "b": tree}
    loop: dict[str, Any] = {}
    loop["again"] = loop
    content = {"model": {"w": torch.ones(2)}, "x": tree, "loop": loop}
    torch.save(content, tmp_path / "m.pt")
    assert pickle.loads(pickle.dumps(loop)).keys() == {"again"}
    assert read_checkpoint(tmp_path / "m.pt").optimizer_groups == ()
