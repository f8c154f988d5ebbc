"""DeepSpeed's ZeRO: every weight is cut out of the ranks' shares, and what does not fit to the number is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.checkpoint.formats.torch_archive import TorchZip
from ssmdiag.errors import CheckpointError, PartialModelError, UnsafePickleError
from tests.checkpoint.formats.distributed_files import mamba
from tests.checkpoint.formats.zero_files import stage_enum, write

STATE = {name: value.float() for name, value in mamba().items()}
FREE = ("A_log", "D", "bias")
GROUPS = [
    {name: value for name, value in STATE.items() if not name.endswith(FREE)},
    {name: value for name, value in STATE.items() if name.endswith(FREE)},
]
FROZEN = {"embedding.weight": torch.randn(7, 3).bfloat16(), "scale": torch.randn(5).bfloat16()}
BUFFERS = {"inv_freq": torch.rand(3), "count": torch.tensor(7)}
SHARED = {"head.weight": "embedding.weight", "layers.0.mixer.tied": "layers.1.mixer.D"}


def require_equal(path: Path | str, state: dict[str, Tensor]) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.prefetch(checkpoint)
    assert set(checkpoint) == set(state)
    for name, value in state.items():
        assert checkpoint[name].shape == tuple(value.shape), name
        loaded = checkpoint[name].load()
        assert loaded.dtype == value.dtype, name
        assert torch.equal(loaded, value), name


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("bits", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ranks", [1, 2, 3, pytest.param(7, marks=pytest.mark.slow), 64])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_weight_of_all_groups_is_whole(
    stage: int, ranks: int, bits: torch.dtype, lean: bool, tmp_path: Path
) -> None:
    """On 64 ranks the last ones have nothing but padding."""
    folder = write(tmp_path / "m" / "global_step500", GROUPS, stage, ranks, lean=lean, bits=bits)
    require_equal(folder, STATE)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_buffers_frozen_and_shared_weights_are_there(stage: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "global_step500", GROUPS, stage, 2, frozen=FROZEN, buffers=BUFFERS, shared=SHARED)
    tied = {name: (STATE | FROZEN)[kept] for name, kept in SHARED.items()}
    if stage == 1:  # a file of stage 1 names no frozen weights: the model has them, and the second name, in 16 bits
        tied["head.weight"] = FROZEN["embedding.weight"]
    require_equal(folder, STATE | FROZEN | BUFFERS | tied)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_folder_above_names_the_last_save(stage: int, tmp_path: Path) -> None:
    write(tmp_path / "run" / "global_step400", [{"w": torch.ones(2)}], stage, 2)
    write(tmp_path / "run" / "global_step500", GROUPS, stage, 2)
    checkpoint = read_checkpoint(tmp_path / "run")
    assert set(checkpoint) == set(STATE)
    assert (checkpoint.train_step, checkpoint.format) == (500, f"DeepSpeed, ZeRO-{stage}, 2 ranks")
    assert checkpoint.size == sum(file.stat().st_size for file in (tmp_path / "run" / "global_step500").iterdir())
    assert checkpoint.path == tmp_path / "run"
    for name in ("latest", "zero_to_fp32.py"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "global_step400")
    assert set(read_checkpoint(tmp_path / "run")) == set(STATE)


@pytest.mark.parametrize("stage", [2, 3])
def test_layers_and_optimizer_are_diagnosed(stage: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "global_step500", GROUPS, stage, 3)
    save_file(STATE, tmp_path / "whole.safetensors")
    one, other = diagnose(folder), diagnose(tmp_path / "whole.safetensors")
    assert [layer.rate for layer in one.layers] == [layer.rate for layer in other.layers]
    assert len(one.layers) == 2
    groups = {group.weight_decay: set(group.parameters or ()) for group in read_checkpoint(folder).optimizer_groups}
    assert groups == {0.1: set(GROUPS[0]), 0.0: set(GROUPS[1])}


def test_of_a_share_no_more_is_read_than_the_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"embedding.weight": torch.rand(1000, 100), **STATE}
    folder = write(tmp_path / "global_step500", [large], 3, 2)
    read: list[int] = []
    whole = TorchZip.read

    def count(self: TorchZip, *arguments: Any) -> bytes:
        read.append(len(content := whole(self, *arguments)))
        return content

    monkeypatch.setattr(TorchZip, "read", count)
    checkpoint = read_checkpoint(folder)
    assert not read
    checkpoint["layers.0.mixer.A_log"].load()
    assert sum(read) == 4 * 40


@pytest.mark.parametrize("stage", [2, 3])
def test_a_bucket_is_asked_for_the_runs_of_a_weight(stage: int, tmp_path: Path) -> None:
    large = {"embedding.weight": torch.rand(1000, 1000), **STATE}
    folder = write(tmp_path / "global_step500", [large], stage, 2)
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/bucket/global_step500/{file.name}", file.read_bytes())
    checkpoint = read_checkpoint("memory://bucket/global_step500")
    names = [name for name in STATE if name.endswith("A_log")]
    checkpoint.prefetch(names)
    for name in names:
        assert torch.equal(checkpoint[name].load(), STATE[name])
    assert checkpoint.path.place.traffic.bytes < checkpoint.size / 3  # type: ignore[union-attr]
    memory.store.clear()


# --- what does not fit ------------------------------------------------------------------------------


def change(folder: Path, kind: str, edit: Callable[[dict[str, Any]], object], rank: int = 0) -> None:
    """Change what one of the files holds."""
    path = sorted(folder.glob(f"*_{kind}_states.pt"))[rank]
    with stage_enum():
        content = torch.load(path, weights_only=False)
        edit(content)
        torch.save(content, path)


def flat(content: dict[str, Any]) -> list[Tensor]:
    state = content["optimizer_state_dict"]
    return state["fp32_flat_groups"] if "fp32_flat_groups" in state else state["single_partition_of_fp32_groups"]


def set_optimizer(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["optimizer_state_dict"].update(values)


def set_group(make: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda content: flat(content).__setitem__(1, make(flat(content)[1].detach()))


def rename(shapes: dict[str, Any], name: str) -> None:
    """Give the first of a group's weights another name, in its place."""
    kept = list(shapes.values())
    names = [name, *list(shapes)[1:]]
    shapes.clear()
    shapes.update(zip(names, kept, strict=True))


UNFIT: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "a number too few": ("optim", set_group(lambda values: values[:-1].clone()), "group 1 has weights of"),
    "numbers too many": ("optim", set_group(lambda v: torch.cat([v, torch.ones(99)])), "group 1 has weights of"),
    "no numbers, as offloading to a disk leaves": ("optim", set_group(lambda v: v[:0]), "group 1 has weights of"),
    "two axes": ("optim", set_group(lambda values: values[None]), "no flat groups"),
    "every other number": ("optim", set_group(lambda values: values.repeat_interleave(2)[::2]), "no flat groups"),
    "another type": ("optim", set_group(lambda values: values.bfloat16()), "differ in type"),
    "a group less": ("optim", lambda content: flat(content).pop(), "not one of its groups"),
    "another stage": ("optim", set_optimizer(zero_stage=1), "differ in their stage"),
    "no stage": ("optim", set_optimizer(zero_stage=None), "does not tell its stage"),
    "experts": ("optim", set_optimizer(partition_count=[2, 1]), "different numbers of ranks"),
    "experts at stage 3": ("optim", set_optimizer(ds_zero_partition_groups=[{}]), "its experts are shared out"),
    "a shape more": ("model", lambda m: m["param_shapes"][0].update(w=torch.Size([40])), "group 0 has weights of"),
    "a name twice": ("model", lambda m: rename(m["param_shapes"][1], next(iter(GROUPS[0]))), "there twice"),
    "no shapes": ("model", lambda m: m.pop("param_shapes"), "list of shapes"),
    "shapes that are none": ("model", lambda m: m["param_shapes"][0].update(w=(-3, "x")), "impossible shape"),
    "tensor parallelism": ("model", lambda m: m.update(mp_world_size=2), "share one model"),
    "other ranks": ("model", lambda m: m.update(dp_world_size=4), "share one model"),
    "no module": ("model", lambda m: m.pop("module"), "has no module"),
    "a frozen weight that is cut": (
        "model",
        lambda m: m["frozen_param_fragments"].update(scale=torch.ones(2)),
        "scale",
    ),
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("fault", UNFIT)
def test_what_does_not_fit_is_refused_with_what_merges_it(fault: str, stage: int, tmp_path: Path) -> None:
    kind, edit, says = UNFIT[fault]
    folder = write(tmp_path / "m" / "global_step500", GROUPS, stage, 2, frozen=FROZEN)
    change(folder, kind, edit)
    for path in (folder, folder.parent):
        with pytest.raises(CheckpointError) as refused:
            read_checkpoint(path)
        assert "global_step500 is a DeepSpeed checkpoint, which holds shards of tensors: " in refused.value.seen
        assert says in refused.value.seen
        assert refused.value.advice == "run its zero_to_fp32.py and inspect the result."


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["optim", "model"])
def test_a_missing_rank_is_told(kind: str, stage: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "global_step500", GROUPS, stage, 3)
    sorted(folder.glob(f"*_{kind}_states.pt"))[-1].unlink()
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(folder)
    assert "zero_to_fp32.py" in str(refused.value.advice)
    if stage == 3 or kind == "optim":
        assert isinstance(refused.value, PartialModelError)
        assert "holds 2 of the 3 files of the" in refused.value.seen


@pytest.mark.parametrize(
    "stray",
    ["zero_pp_rank_0_mp_rank_01_optim_states.pt", "zero_pp_rank_2_mp_rank_00_optim_states.pt",
     "layer_1_expert_0_mp_rank_00_model_states.pt", "expp_rank_0_mp_rank_00_optim_states.pt"],
)  # fmt: skip
def test_files_of_other_ranks_beside_are_no_part_of_it(stray: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "global_step500", GROUPS, 2, 2)
    shutil.copy(next(folder.glob("bf16_zero_pp_rank_0*")), folder / stray)
    with pytest.raises(CheckpointError, match="not those of the ranks of one model"):
        read_checkpoint(folder)


def test_shares_in_another_order_than_the_models_copy_are_refused(tmp_path: Path) -> None:
    """Two weights of one shape have changed places: all numbers fit, and the 16-bit copies tell."""
    folder = write(tmp_path / "global_step500", GROUPS, 2, 2)
    names = [f"layers.{layer}.mixer.D" for layer in range(2)]

    def swap(model: dict[str, Any]) -> None:
        one, other = (model["module"][name] for name in names)
        model["module"].update({names[0]: other, names[1]: one})

    change(folder, "model", swap)
    checkpoint = read_checkpoint(folder)
    with pytest.raises(CheckpointError, match="differ from the model's own copy"):
        checkpoint[names[0]].load()
    assert torch.equal(checkpoint["layers.0.mixer.A_log"].load(), STATE["layers.0.mixer.A_log"])


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "global_step500", GROUPS, 2, 2)
    os.truncate(folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", 500)
    with pytest.raises(CheckpointError, match=r"rank_1_mp_rank_00_optim_states\.pt is torn"):
        read_checkpoint(folder)


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "global_step500", GROUPS, 3, 2)
    change(folder, "optim", lambda content: content.update(loss_scaler=Call()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_a_model_saved_before_gathering_is_still_refused(tmp_path: Path) -> None:
    """transformers' Trainer leaves such a file beside the folder of the ranks."""
    write(tmp_path / "checkpoint-500" / "global_step500", GROUPS, 3, 2)
    empty = {name: torch.empty(0) for name in STATE}
    save_file(empty, tmp_path / "checkpoint-500" / "model.safetensors")
    with pytest.raises(PartialModelError, match="before its partitions are gathered") as refused:
        read_checkpoint(tmp_path / "checkpoint-500")
    assert "zero_to_fp32.py" in str(refused.value.advice)
    assert set(read_checkpoint(tmp_path / "checkpoint-500" / "global_step500")) == set(STATE)
