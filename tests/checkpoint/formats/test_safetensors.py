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
from ssmdiag.errors import CheckpointError, PartialModelError

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
        assert checkpoint.format == "safetensors, 2 shards"
        assert set(checkpoint) == set(mamba(0, 1))
        assert checkpoint.size == sum((directory / name).stat().st_size for name in names)


def test_shards_without_an_index_read_as_one_and_one_that_is_missing_is_named(tmp_path: Path) -> None:
    for number in (1, 3, 2):
        assert number == 1 or not readable(tmp_path)
        save_file(mamba(number), tmp_path / f"model-{number:05d}-of-00003.safetensors")
    assert len(read_checkpoint(tmp_path)) == len(mamba(1, 2, 3))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(PartialModelError) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.details == ("shard model-00002-of-00003.safetensors is missing",)


def readable(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def refusal(path: Path) -> PartialModelError:
    """Return what a path that holds a part of a model is refused with, by every door."""
    with pytest.raises(PartialModelError) as caught:
        read_checkpoint(path)
    with pytest.raises(PartialModelError):
        diagnose(path)
    assert caught.value.expected
    assert caught.value.advice
    return caught.value


@pytest.mark.parametrize("beside", [True, False])
def test_one_shard_of_several_is_refused(beside: bool, tmp_path: Path) -> None:
    save_file(mamba(0), tmp_path / "model-00001-of-00002.safetensors")
    if beside:
        save_file(mamba(1), tmp_path / "model-00002-of-00002.safetensors")
    said = refusal(tmp_path / "model-00001-of-00002.safetensors")
    assert said.seen == "model-00001-of-00002.safetensors is shard 1 of the 2 shards of a model."
    assert said.advice == f"ssmdiag inspect {tmp_path}"


def test_the_only_shard_is_a_model(tmp_path: Path) -> None:
    save_file(mamba(0), tmp_path / "model-00001-of-00001.safetensors")
    for path in (tmp_path, tmp_path / "model-00001-of-00001.safetensors"):
        assert set(read_checkpoint(path)) == set(mamba(0))


def test_a_missing_shard_is_named_and_nothing_of_the_rest_is_said(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", {"a.safetensors": mamba(0), "b.safetensors": mamba(1)})
    (directory / "b.safetensors").unlink()
    assert refusal(directory).details == ("shard b.safetensors is missing (4 tensors)",)


@pytest.mark.parametrize("there", [True, False])
def test_a_shard_that_the_index_leaves_out_is_named(there: bool, tmp_path: Path) -> None:
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    shards = {name: mamba(i) for i, name in enumerate(names)}
    directory = write_shards(tmp_path / "m", shards, {n: f for f, s in shards.items() if f != names[1] for n in s})
    if not there:
        (directory / names[1]).unlink()
    said = refusal(directory)
    assert said.details == (f"shard {names[1]} is left out by model.safetensors.index.json",)


def test_a_shard_that_lacks_promised_tensors_is_named(tmp_path: Path) -> None:
    weight_map = dict.fromkeys(mamba(0, 1), "a.safetensors")
    directory = write_shards(tmp_path / "m", {"a.safetensors": mamba(0)}, weight_map)
    (fault,) = refusal(directory).details
    assert fault.startswith("shard a.safetensors lacks 4 tensors the index promises: model.layers.1.mixer.A_log")


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("alike", [True, False])
def test_a_tensor_in_two_shards_is_read_where_both_hold_the_same(alike: bool, indexed: bool, tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    shards = {first: {"w": torch.full((2,), float(alike)), "x": torch.zeros(1)}, second: {"w": torch.ones(2)}}
    directory = write_shards(tmp_path / "m", shards, {"w": second, "x": first})
    if not indexed:
        (directory / "model.safetensors.index.json").unlink()
    if alike:
        checkpoint = read_checkpoint(directory)
        assert sorted(checkpoint) == ["w", "x"]
        assert checkpoint["w"].load().tolist() == [1.0, 1.0]
        assert checkpoint["w"].container.path.name == (second if indexed else first)
    else:
        assert f"{first} and {second} both hold w (2,), with different values" in refusal(directory).seen


def test_links_to_one_shard_are_one_shard(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    save_file(mamba(0), blob)
    directory = tmp_path / "m"
    directory.mkdir()
    for name in ("model-00001-of-00001.safetensors", "copy-00001-of-00001.safetensors"):
        (directory / name).symlink_to(blob)
    assert set(read_checkpoint(directory)) == set(mamba(0))


def test_two_models_in_shards_are_not_one(tmp_path: Path) -> None:
    for head in ("ema", "model"):
        for number in (1, 2):
            save_file(mamba(number), tmp_path / f"{head}-{number:05d}-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 2 models in shards: ema-….safetensors, model-….safetensors"):
        read_checkpoint(tmp_path)


def test_a_torn_shard_is_named(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", {"a.safetensors": mamba(0), "b.safetensors": mamba(1)})
    torn = directory / "b.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (fault,) = refusal(directory).details
    assert fault.startswith("shard b.safetensors cannot be read (4 tensors): b.safetensors is torn")


def test_an_index_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    save_file({"secret": torch.zeros(2)}, tmp_path / "elsewhere.safetensors")
    outside = str(tmp_path / "elsewhere.safetensors")
    directory = write_shards(
        tmp_path / "m",
        {"a.safetensors": mamba(0)},
        {"x": "../elsewhere.safetensors", "y": outside, **dict.fromkeys(mamba(0), "a.safetensors")},
    )
    said = refusal(directory)
    assert len(said.details) == 2
    assert all("points outside its directory" in fault for fault in said.details)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []', "\udcff"])
def test_a_broken_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not a shard index"):
        read_checkpoint(tmp_path)


def test_an_index_of_which_no_shard_is_there_is_an_error(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "m", {}, {"w": "a.safetensors"})
    with pytest.raises(CheckpointError, match=r"shard a\.safetensors is missing"):
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
