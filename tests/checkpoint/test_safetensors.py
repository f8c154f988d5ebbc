"""safetensors: single files, shards, and what can be wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.errors import CheckpointError

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint32, torch.bool,
)  # fmt: skip


def mamba(*layers: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"A_log": (8, 4), "dt_proj.bias": (8,), "dt_proj.weight": (8, 2), "x_proj.weight": (10, 8)}
    return {
        f"model.layers.{layer}.mixer.{name}": torch.randn(shape, generator=generator)
        for layer in layers
        for name, shape in shapes.items()
    }


def write_shards(
    directory: Path, shards: Mapping[str, Mapping[str, torch.Tensor]], weight_map: Mapping[str, str] | None = None
) -> Path:
    directory.mkdir()
    for file, state in shards.items():
        save_file(dict(state), directory / file)
    weight_map = weight_map or {name: file for file, state in shards.items() for name in state}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_reads_back_as_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).to(dtype)
    save_file({"w": values}, tmp_path / "model.safetensors")
    stored = read_checkpoint(tmp_path / "model.safetensors")["w"]
    assert (stored.shape, stored.dtype) == ((2, 2), str(dtype).removeprefix("torch."))
    assert stored.nbytes == values.nbytes
    assert stored.load().dtype == dtype
    assert stored.load().to(torch.complex128).equal(values.to(torch.complex128))


def test_metadata_gives_settings_and_the_step(tmp_path: Path) -> None:
    metadata = {"format": "pt", "step": "1200", "config": json.dumps({"d_model": 8, "ssm": {"dt_min": 0.001}})}
    save_file({"w": torch.zeros(2)}, tmp_path / "weights.safetensors", metadata=metadata)
    checkpoint = read_checkpoint(tmp_path / "weights.safetensors")
    assert checkpoint.train_step == 1200
    assert checkpoint.settings["config.d_model"] == 8
    assert checkpoint.settings["config.ssm.dt_min"] == 0.001


@pytest.mark.parametrize(
    ("name", "step"),
    [("step-02000", 2000), ("model_step=70", 70), ("checkpoint-500", 500), ("stepwise", None), ("footstep3", None)],
)
def test_the_step_is_read_from_the_name(name: str, step: int | None, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    assert read_checkpoint(tmp_path / f"{name}.safetensors").train_step == step


def test_shards_read_as_one(tmp_path: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    directory = write_shards(tmp_path / "m", dict(zip(names, (mamba(0), mamba(1)), strict=True)))
    for path in (directory, directory / "model.safetensors.index.json"):
        checkpoint = read_checkpoint(path)
        assert (checkpoint.format, checkpoint.problems) == ("safetensors, 2 shards", ())
        assert set(checkpoint) == set(mamba(0, 1))
        assert checkpoint.size == sum((directory / name).stat().st_size for name in names)


def test_shards_without_an_index_read_as_one_and_a_gap_is_a_problem(tmp_path: Path) -> None:
    for number in (1, 3):
        save_file(mamba(number), tmp_path / f"model-{number:05d}-of-00003.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    assert len(checkpoint) == len(mamba(1, 3))
    assert checkpoint.problems == ("shard model-00002-of-00003.safetensors is missing",)


def test_one_shard_alone_says_that_it_is_a_part(tmp_path: Path) -> None:
    save_file(mamba(0), tmp_path / "model-00001-of-00002.safetensors")
    save_file(mamba(1), tmp_path / "model-00002-of-00002.safetensors")
    checkpoint = read_checkpoint(tmp_path / "model-00001-of-00002.safetensors")
    assert "shard 1 of 2" in checkpoint.notes[0]


def test_a_missing_shard_is_a_problem_and_the_rest_is_diagnosed(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", {"a.safetensors": mamba(0), "b.safetensors": mamba(1)})
    (directory / "b.safetensors").unlink()
    result = diagnose(directory)
    assert result.problems == ("shard b.safetensors is missing (4 tensors)",)
    assert [layer.name for layer in result.layers] == ["model.layers.0.mixer"]
    assert result.exit_code() == 2


def test_a_shard_that_lacks_promised_tensors_is_a_problem(tmp_path: Path) -> None:
    weight_map = dict.fromkeys(mamba(0, 1), "a.safetensors")
    directory = write_shards(tmp_path / "m", {"a.safetensors": mamba(0)}, weight_map)
    (problem,) = read_checkpoint(directory).problems
    assert problem.startswith("shard a.safetensors lacks 4 tensors the index promises: model.layers.1.mixer.A_log")


def test_a_tensor_in_two_shards_is_read_from_the_one_the_index_names(tmp_path: Path) -> None:
    stale = {"w": torch.zeros(2), "x": torch.zeros(1)}
    directory = write_shards(
        tmp_path / "m",
        {"a.safetensors": stale, "b.safetensors": {"w": torch.ones(2)}},
        {"w": "b.safetensors", "x": "a.safetensors"},
    )
    checkpoint = read_checkpoint(directory)
    assert sorted(checkpoint) == ["w", "x"]
    assert checkpoint["w"].load().tolist() == [1.0, 1.0]


def test_a_torn_shard_is_a_problem(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", {"a.safetensors": mamba(0), "b.safetensors": mamba(1)})
    torn = directory / "b.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (problem,) = read_checkpoint(directory).problems
    assert problem.startswith("shard b.safetensors cannot be read (4 tensors): b.safetensors is torn")


def test_an_index_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    save_file({"secret": torch.zeros(2)}, tmp_path / "elsewhere.safetensors")
    outside = str(tmp_path / "elsewhere.safetensors")
    directory = write_shards(
        tmp_path / "m",
        {"a.safetensors": mamba(0)},
        {"x": "../elsewhere.safetensors", "y": outside, **dict.fromkeys(mamba(0), "a.safetensors")},
    )
    checkpoint = read_checkpoint(directory)
    assert "secret" not in checkpoint
    assert [problem for problem in checkpoint.problems if "outside" in problem] == list(checkpoint.problems)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []', "\udcff"])
def test_a_broken_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not a shard index"):
        read_checkpoint(tmp_path)


def test_an_index_of_which_no_shard_is_there_is_an_error(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", {}, {"w": "a.safetensors"})
    with pytest.raises(CheckpointError, match=r"none of its 1 shards can be read"):
        read_checkpoint(directory)


@pytest.mark.parametrize("cut", [0.001, 0.3, 0.999])
def test_a_torn_file_is_called_torn(cut: float, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(mamba(0, 1, 2), path)
    content = path.read_bytes()
    path.write_bytes(content[: math.ceil(cut * len(content))])
    with pytest.raises(CheckpointError, match="torn") as caught:
        read_checkpoint(path)
    assert caught.value.advice


@pytest.mark.parametrize(
    "content",
    [
        b"\x10\0\0\0\0\0\0\0{not json at all",
        b"\x02\0\0\0\0\0\0\0[]",
        b'\x10\0\0\0\0\0\0\0{"w": "nothing"}',
        b"\xff" * 64,
    ],
)
def test_a_header_that_is_none_is_a_known_problem(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "model.safetensors" in caught.value.seen
    assert caught.value.advice


def test_the_file_is_known_without_its_suffix(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "blob")
    assert read_checkpoint(tmp_path / "blob").format == "safetensors"


def test_names_need_not_be_ascii(tmp_path: Path) -> None:
    save_file({"schicht.0.λ": torch.ones(2)}, tmp_path / "gewichte-ü.safetensors")
    checkpoint = read_checkpoint(tmp_path / "gewichte-ü.safetensors")
    assert checkpoint["schicht.0.λ"].load().tolist() == [1.0, 1.0]
