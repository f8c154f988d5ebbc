"""A part of a model is refused, whatever wrote it; what only looks like a part is read."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.errors import CheckpointError, PartialModelError
from tests.checkpoint.formats import distributed_files

State = dict[str, torch.Tensor]
HEADS, WIDTH = 32, 64


def mamba2(*layers: int, name: str = "backbone.layers", seed: int = 0) -> State:
    """Return Mamba-2 layers of 32 heads, with a norm outside them."""
    generator = torch.Generator().manual_seed(seed)
    inner, conv = 2 * WIDTH, 2 * WIDTH + 8
    shapes = {
        "norm.weight": (WIDTH,), "mixer.A_log": (HEADS,), "mixer.dt_bias": (HEADS,), "mixer.D": (HEADS,),
        "mixer.in_proj.weight": (inner + conv + HEADS, WIDTH), "mixer.conv1d.weight": (conv, 1, 4),
        "mixer.conv1d.bias": (conv,), "mixer.norm.weight": (inner,), "mixer.out_proj.weight": (WIDTH, inner),
    }  # fmt: skip
    return {
        f"{name}.{layer}.{local}": torch.randn(shape, generator=generator)
        for layer in layers
        for local, shape in shapes.items()
    }


def rows(state: State, rank: int, ranks: int) -> State:
    """Return one rank's rows of every tensor."""
    return {name: value.chunk(ranks)[rank].contiguous() for name, value in state.items()}


def refused(path: Path, *says: str) -> PartialModelError:
    with pytest.raises(PartialModelError) as caught:
        read_checkpoint(path)
    for text in says:
        assert text in str(caught.value)
    assert caught.value.advice
    return caught.value


def layers_of(path: Path) -> int:
    result = diagnose(path, memory=False)
    assert result.problems == ()
    return len(result.layers)


def save(state: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


# --- torch.distributed's Hugging Face writer ------------------------------------------------------


def write_by_rank(directory: Path, state: State, ranks: int) -> list[Path]:
    """Write as HuggingFaceStorageWriter(save_distributed=True) does: every rank its rows, under the whole's names."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for rank in range(ranks):
        part = rows(state, rank, ranks)
        offsets = {n: {"saved_offsets": [rank * len(v), *[0] * (v.ndim - 1)]} for n, v in part.items()}
        files.append(directory / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors")
        save_file(part, files[-1], {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"})
    return files


def test_ranks_of_one_name_are_never_read_as_the_model(tmp_path: Path) -> None:
    files = write_by_rank(tmp_path / "m", mamba2(0, 1), 2)
    for path in files:
        refused(path, "shard-0000", "rows of each tensor", "consolidate_safetensors_files", "enable_consolidation")
    files[1].unlink()  # how many ranks there were is in no file
    refused(tmp_path / "m", "shard-00001")
    refused(files[0], "shard-00001")


def test_offsets_give_a_renamed_part_away(tmp_path: Path) -> None:
    first, second = write_by_rank(tmp_path / "m", mamba2(0, 1), 2)
    first.unlink()
    refused(second.rename(tmp_path / "m" / "model.safetensors"), "rows of each tensor")
    refused(tmp_path / "m")


def test_what_torch_itself_writes_is_refused_by_rank_and_read_when_consolidated(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    state = mamba2(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of saving from one process
        for name, whole in (("parts", False), ("whole", True)):
            writer = dcp.HuggingFaceStorageWriter(
                str(tmp_path / name), save_distributed=True, enable_consolidation=whole
            )
            dcp.save(state, storage_writer=writer, no_dist=True)
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path / "plain")), no_dist=True)
    refused(tmp_path / "parts", "shard-00001-model-00001-of-00001.safetensors")
    refused(tmp_path / "whole" / "sharded")
    assert layers_of(tmp_path / "whole") == layers_of(tmp_path / "plain") == 2


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("ranks", [2, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_rows_of_all_ranks_are_put_together(ranks: int, dim: int, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    state = mamba2(0, 1)
    files = {name: 1 + number % 2 for number, name in enumerate(state)}

    def writer(folder: Path) -> Any:
        return dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True, fqn_to_index_mapping=files)

    distributed_files.save(
        tmp_path / "m", lambda rank: distributed_files.sharded(state, rank, ranks, dim), ranks, writer
    )
    checkpoint = read_checkpoint(tmp_path / "m")
    assert set(checkpoint) == set(state)
    assert all(torch.equal(checkpoint[name].load(), value) for name, value in state.items())
    (note,) = checkpoint.notes
    assert note.startswith(f"the rows of {ranks} ranks were put together; no file says how many")
    for file in (tmp_path / "m").glob("shard-00001-*"):
        file.unlink()
    refused(tmp_path / "m", "rows of each tensor")


# --- ranks of tensor and pipeline parallelism -----------------------------------------------------


def megatron(state: State, **args: int) -> dict[str, Any]:
    return {"model": state, "args": argparse.Namespace(hidden_size=WIDTH, **args), "iteration": 100}


@pytest.mark.parametrize("key", ["tensor_model_parallel_size", "pipeline_model_parallel_size"])
@pytest.mark.parametrize("alone", [True, False])
def test_one_rank_of_megatron_is_refused_by_its_arguments(key: str, alone: bool, tmp_path: Path) -> None:
    state = mamba2(0, 1, name="decoder.layers")
    for rank in range(2):
        save(megatron(rows(state, rank, 2), **{key: 2}), tmp_path / f"iter/mp_rank_{rank:02d}/model_optim_rng.pt")
    if alone:
        one = (tmp_path / "iter/mp_rank_00/model_optim_rng.pt").rename(tmp_path / "model.pt")
        refused(one, f"saved with {key} = 2", "hybrid_conversion.py")
    else:
        for path in (tmp_path / "iter/mp_rank_00", tmp_path / "iter/mp_rank_01/model_optim_rng.pt"):
            refused(path, f"{key} = 2")
            assert f"ssmdiag inspect {tmp_path / 'iter'}," in refused(path).advice
        if key.startswith("pipeline"):
            refused(tmp_path / "iter", "holds 2 ranks of a model that has 2 tensor by 2 pipeline ranks")


WIDE, DEEP = 2, 2
"""Tensor ranks and stages."""


def shared(state: State, rank: int) -> State:
    """Return a tensor rank's share, as megatron/core/ssm divides it: of each part of a projection, its part."""
    inner, convolved = 2 * WIDTH, 2 * WIDTH + 8
    parts = {"in_proj.weight": [inner, inner, 4, 4, HEADS], "conv1d": [inner, 4, 4]}
    share: State = {}
    for name, value in state.items():
        sizes = next((sizes for kind, sizes in parts.items() if kind in name), [len(value)])
        if name.endswith("layers.0.norm.weight") or name.endswith("layers.1.norm.weight"):
            share[name] = value
        elif name.endswith("out_proj.weight"):
            share[name] = value.chunk(WIDE, 1)[rank].contiguous()
        else:
            share[name] = torch.cat([part.chunk(WIDE)[rank] for part in value.split(sizes)])
    assert convolved == sum(parts["conv1d"])
    return share


@pytest.mark.parametrize("stages", [1, 2])
def test_the_folder_of_all_ranks_of_megatron_is_the_model(stages: int, tmp_path: Path) -> None:
    whole = mamba2(*range(2 * stages), name="decoder.layers")
    sizes = {"tensor_model_parallel_size": WIDE, "pipeline_model_parallel_size": stages}
    for stage in range(stages):
        number = {f".{2 * stage + layer}.": f".{layer}." for layer in range(2)}
        local = {
            name.replace(old, new): value for old, new in number.items() for name, value in whole.items() if old in name
        }
        for rank in range(WIDE):
            folder = f"mp_rank_{rank:02d}" + f"_{stage:03d}" * (stages > 1)
            mlp = {"decoder.layers.0.mlp.linear_fc1.weight": torch.randn(4, 4)}
            save(megatron(shared(local, rank) | mlp, **sizes), tmp_path / "iter" / folder / "model_optim_rng.pt")
    checkpoint = read_checkpoint(tmp_path / "iter")
    assert set(checkpoint) == set(whole)
    for name, value in whole.items():
        assert torch.equal(checkpoint[name].load(), value), name
    assert checkpoint.train_step == 100
    (note,) = checkpoint.notes
    assert note.startswith(f"{stages} tensors that cannot be joined were left out: decoder.layers.0.mlp.linear_fc1")
    assert layers_of(tmp_path / "iter") == 2 * stages
    one = tmp_path / "iter" / ("mp_rank_01" + f"_{stages - 1:03d}" * (stages > 1))
    (one / "model_optim_rng.pt").unlink()
    one.rmdir()
    refused(tmp_path / "iter", f"{WIDE} tensor by {stages} pipeline ranks")


def test_a_rank_without_arguments_is_told_by_its_neighbours(tmp_path: Path) -> None:
    state = mamba2(0, 1, name="decoder.layers")
    names = ("tp_rank_00_pp_rank_000", "tp_rank_01_pp_rank_000")
    for rank, name in enumerate(names):
        save(rows(state, rank, 2), tmp_path / name / "model_weights.ckpt")
    refused(tmp_path / names[0], f"{names[0]}/model_weights.ckpt is one rank's part", names[1])


def test_a_stage_of_a_pipeline_is_told_by_its_neighbours(tmp_path: Path) -> None:
    for stage, layers in enumerate([(0, 1), (0, 1)]):
        state = mamba2(*layers, name="decoder.layers", seed=stage)
        save({"model": state}, tmp_path / f"mp_rank_00_{stage:03d}" / "model_optim_rng.pt")
    refused(tmp_path / "mp_rank_00_000" / "model_optim_rng.pt", "mp_rank_00_001/model_optim_rng.pt")


def test_the_only_rank_is_a_model(tmp_path: Path) -> None:
    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    save(megatron(mamba2(0, 1, name="decoder.layers"), **sizes), tmp_path / "mp_rank_00/model_optim_rng.pt")
    assert layers_of(tmp_path / "mp_rank_00") == 2


def test_a_merged_file_may_keep_its_old_arguments(tmp_path: Path) -> None:
    state = mamba2(0, 1, name="decoder.layers") | {"embedding.word_embeddings.weight": torch.zeros(96, WIDTH)}
    sizes = {"tensor_model_parallel_size": 2, "padded_vocab_size": 96, "num_layers": 2}
    assert layers_of(save(megatron(state, **sizes), tmp_path / "merged.pt")) == 2
    for change in ({"padded_vocab_size": 192}, {"num_layers": 4}):
        refused(save(megatron(state, **(sizes | change)), tmp_path / "merged.pt"))


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "name",
    [
        "mp_rank_0{}_model_states.pt", "consolidated.0{}.pth", "model-rank-{}-part-0.safetensors", "rank{}.safetensors",
        "layer_0{}-model_00-model_states.pt", "shard_{}.safetensors", "model_world_size_2_rank_{}.pt",
        "model_tp{}.safetensors", "pp_stage{}.pt",
    ],
)  # fmt: skip
def test_a_file_of_one_rank_is_told_by_the_other_beside_it(name: str, tmp_path: Path) -> None:
    state = mamba2(0, 1)
    for rank in range(2):
        save(rows(state, rank, 2), tmp_path / name.format(rank))
    for path in (tmp_path, tmp_path / name.format(0), tmp_path / name.format(1)):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert "inspect" in str(caught.value.advice) or "DeepSpeed" in str(caught.value)
        assert "name the files" not in str(caught.value.advice)
        assert path.is_dir() or isinstance(caught.value, PartialModelError)


def test_deepspeed_says_in_the_file_how_many_ranks_there_are(tmp_path: Path) -> None:
    for ranks in (1, 2):
        content = {"module": rows(mamba2(0, 1), 0, ranks), "mp_world_size": ranks, "dp_world_size": 4}
        path = save(content, tmp_path / str(ranks) / "mp_rank_00_model_states.pt")
        if ranks == 1:
            assert layers_of(path) == 2
        else:
            refused(path, "mp_world_size = 2", "ds_to_universal.py")


def test_copies_that_every_rank_saved_are_each_a_model(tmp_path: Path) -> None:
    for rank in range(2):
        save(mamba2(0, 1), tmp_path / f"model_rank{rank}.pt")
    assert layers_of(tmp_path / "model_rank1.pt") == 2


@pytest.mark.parametrize("numbers", [(4, 8, 16), (0, 10, 20)])
def test_a_sweep_over_a_rank_is_no_parallel_run(numbers: tuple[int, ...], tmp_path: Path) -> None:
    for number in numbers:
        save(mamba2(0, 1, seed=number), tmp_path / f"rank-{number}.safetensors")
    assert layers_of(tmp_path / f"rank-{numbers[1]}.safetensors") == 2


@pytest.mark.parametrize("names", [("step-0", "step-1"), ("seed0", "seed1"), ("model", "model_ema"), ("a.00", "a.01")])
def test_independent_checkpoints_of_a_folder_are_each_a_model(names: tuple[str, str], tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        save(mamba2(0, 1, seed=seed), tmp_path / f"{name}.safetensors")
    for name in names:
        assert layers_of(tmp_path / f"{name}.safetensors") == 2


# --- sharded by torch.distributed or ZeRO ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("__0_0.distcp", "ssmdiag inspect"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
    ],
)
def test_a_part_is_known_by_its_name_and_none_of_it_is_read(name: str, says: str, tmp_path: Path) -> None:
    refused(save({"w": torch.ones(2)}, tmp_path / name), name, says)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("stray", ["common.pt", "meta.pt", "sampler.bin", "model_weights.pt"])
@pytest.mark.parametrize(
    ("beside", "says"),
    [(".metadata", "copy or save"), ("__0_0.distcp", "wait for it"), ("zero_to_fp32.py", "run its")],
)
def test_a_file_beside_a_distributed_checkpoint_is_not_the_model(
    beside: str, says: str, stray: str, tmp_path: Path
) -> None:
    save({"w": torch.ones(2)}, tmp_path / stray)
    (tmp_path / beside).write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path)
    assert says in str(caught.value.advice)


def test_weights_gathered_beside_a_distributed_checkpoint_are_read(tmp_path: Path) -> None:
    save(mamba2(0, 1), tmp_path / "model.safetensors")
    (tmp_path / "zero_to_fp32.py").write_text("#")
    (tmp_path / "global_step5").mkdir()
    assert layers_of(tmp_path) == 2


@pytest.mark.parametrize("kept", [(), ("A_log", "D", "dt_bias")])
def test_tensors_that_were_never_gathered_are_refused(kept: tuple[str, ...], tmp_path: Path) -> None:
    empty = torch.empty(0, dtype=torch.bfloat16)
    state = {name: v if name.endswith(kept or "-") else empty for name, v in mamba2(0, 1).items()}
    for path in (tmp_path / "model.safetensors", tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        save(state, path)
        refused(path, "empty", "ZeRO-3", "zero_to_fp32.py")
    refused(tmp_path, "12 of 18" if kept else "all 18")


def test_an_empty_buffer_is_no_placeholder(tmp_path: Path) -> None:
    state = mamba2(0, 1) | {"backbone.layers.0.mixer._extra_state": torch.empty(0), "inv_freq": torch.empty(0)}
    assert layers_of(save(state, tmp_path / "model.safetensors")) == 2


# --- layers that are missing ----------------------------------------------------------------------


def write_shards(directory: Path, *shards: State, config: Mapping[str, Any] | None = None) -> Path:
    directory.mkdir(parents=True)
    weight_map = {}
    for number, state in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(state, directory / file)
        weight_map |= dict.fromkeys(state, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("layers", "missing"), [((0, 1, 3), "2"), ((0, 4), "1, 2, 3"), ((2, 3), "1"), ((3, 5, 6), "1, 2, 4")]
)
def test_a_layer_that_shards_and_their_index_leave_out_is_named(
    layers: tuple[int, ...], missing: str, tmp_path: Path
) -> None:
    said = refused(write_shards(tmp_path / "m", *(mamba2(layer) for layer in layers)))
    assert f"backbone.layers has no tensor of {missing}." in said.seen


def test_stages_of_a_pipeline_are_told_by_their_layers(tmp_path: Path) -> None:
    paths = [save(mamba2(2 * stage, 2 * stage + 1), tmp_path / f"model-pp{stage}.pt") for stage in range(2)]
    for path in paths:
        refused(path, "one rank's part")


def test_a_file_of_further_layers_beside_an_index_that_leaves_it_out_is_named(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", mamba2(0), mamba2(1))
    for name, state in {"ema": mamba2(0, 1), "draft": mamba2(2, name="draft.layers"), "readout": mamba2()}.items():
        save_file(state | {"head": torch.zeros(2)}, directory / f"{name}.safetensors")
    (directory / "note.safetensors").write_bytes(b"not weights")
    assert layers_of(directory) == 2
    save_file(mamba2(2, 3), directory / "rest.safetensors")
    refused(directory, "model.safetensors.index.json leaves out rest.safetensors")


def test_layers_between_which_others_attend_are_a_whole_model(tmp_path: Path) -> None:
    attention = {f"backbone.layers.{i}.self_attn.q_proj.weight": torch.zeros(4, 4) for i in (0, 2, 3, 5)}
    config = {"model_type": "x", "num_hidden_layers": 6}
    directory = write_shards(tmp_path / "m", mamba2(1), mamba2(4) | attention, config=config)
    assert layers_of(directory) == 2


@pytest.mark.parametrize("layers", [(0, 1, 3), (0, 1), (2, 3)])
@pytest.mark.parametrize("depth", ["num_hidden_layers", "n_layer"])
def test_a_model_of_fewer_layers_than_its_config_counts_is_refused(
    layers: tuple[int, ...], depth: str, tmp_path: Path
) -> None:
    save(mamba2(*layers), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {depth: 4}}))
    missing = sorted({0, 1, 2, 3} - set(layers))
    refused(tmp_path, f"lacks {len(missing)} layer", "config.json counts", ", ".join(map(str, missing)))


def test_a_stage_of_a_pipeline_of_four_is_refused(tmp_path: Path) -> None:
    save(mamba2(6, 7, 8), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 12}')
    refused(tmp_path, "lacks 9 layers of the 12", "no tensor of 0, 1, 2, 3, 4, 5 …")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("state", "config"),
    [
        (mamba2(0, 3, 6, name="net.layers"), None),  # a Sequential with activations and dropouts between
        (mamba2(0, 1, 3, name="net"), {"n_layer": 3}),
        (mamba2(0, 1, name="a.layers") | mamba2(0, 1, name="b.layers"), {"n_layer": 4}),
        (mamba2(0, 1), {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 24}}),
        (mamba2(0, 1, 2), {"num_hidden_layers": 2}),  # a layer more, as for the prediction of a second token
        (mamba2(0, 1), {"num_hidden_layers": "two"}),
        (mamba2(0, 1), {"layers": 24}),
        (mamba2(3), {"n_layer": 4}),
        (mamba2(3, 7, 11), {"n_layer": 12}),
        (mamba2(2, 3, 4), {"n_layer": 12}),
    ],
    ids=[
        "sequential",
        "a list of another name",
        "two stacks",
        "two depths",
        "one more",
        "no number",
        "other setting",
        "one cut out",
        "three cut out",
        "three neighbours cut out",
    ],
)
def test_what_is_no_evidence_of_a_missing_layer_refuses_nothing(
    state: State, config: dict[str, Any] | None, tmp_path: Path
) -> None:
    save(state, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert layers_of(tmp_path) == sum(name.endswith("A_log") for name in state)


def test_an_adapter_has_as_few_layers_as_it_adapts(tmp_path: Path) -> None:
    state = {f"base_model.model.backbone.layers.3.mixer.in_proj.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    save(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 24}')
    assert len(read_checkpoint(tmp_path)) == 2


def test_one_part_of_a_split_gguf_is_told_by_its_header_too(tmp_path: Path) -> None:
    for name, count in (("model.gguf", 3), ("whole.gguf", 1)):
        writer = gguf.GGUFWriter(tmp_path / name, "mamba")
        writer.add_uint16("split.count", count)
        writer.add_tensor("a", torch.ones(2).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    refused(tmp_path / "model.gguf", "one of the 3 shards")
    assert len(read_checkpoint(tmp_path / "whole.gguf")) == 1


# --- what stands beside --------------------------------------------------------


def test_it_is_said_which_of_two_copies_was_read(tmp_path: Path) -> None:
    save(mamba2(0, 1), tmp_path / "consolidated.safetensors")
    directory = write_shards(tmp_path / "m", mamba2(0), mamba2(1))
    (tmp_path / "consolidated.safetensors").rename(directory / "consolidated.safetensors")
    said = "model.safetensors was read, but not consolidated.safetensors beside it"
    assert read_checkpoint(directory).notes == (said,)
    save(mamba2(0, 1), directory / "model.safetensors")
    (note,) = read_checkpoint(directory).notes
    assert "but not model.safetensors.index.json, consolidated.safetensors beside it" in note
    save({"state": {}, "param_groups": []}, directory / "optimizer.pt")
    (directory / "consolidated.safetensors").unlink()
    (directory / "model.safetensors.index.json").unlink()
    assert read_checkpoint(directory).notes == ()
