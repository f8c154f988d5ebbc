"""GGUF files written by llama.cpp's own package: what is read, what is refused, and that conversions are proven."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssmdiag import diagnose, prove_conversion, read_checkpoint
from ssmdiag.compare.conversion import Outcome
from ssmdiag.errors import CheckpointError
from tests.checkpoint.formats.llama_cpp import ARCHITECTURES, converted, write_gguf
from tests.families.tiny_transformers import save_tiny

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def pair(model_type: str, tmp_path: Path, **changes: float) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Return (directory of transformers, GGUF file, its tensors); `changes` scales tensors by the end of their name."""
    model, directory = save_tiny(model_type, tmp_path)
    state = {name: value.float() for name, value in load_file(directory / "model.safetensors").items()}
    tensors = converted(model_type, state, model.config.num_hidden_layers)
    for end, factor in changes.items():
        tensors = {name: value * factor if name.endswith(end) else value for name, value in tensors.items()}
    architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model_type]]
    # Falcon-Mamba's norms have no weights: llama.cpp's converter states them.
    settings = {"ssm.dt_b_c_rms": True} if model_type == "falcon_mamba" else {}
    return directory, write_gguf(tmp_path / "model.gguf", tensors, architecture, **settings), tensors


# --- the container --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_and_settings_read_as_the_package_wrote_them(version: int, tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 5), "b": torch.randn(2, 1, 4), "scalar": torch.randn(1), "c": torch.randn(70)}
    path = write_gguf(tmp_path / "m.gguf", tensors, "jamba", context_length=300, **{"ssm.state_size": 16, "eps": 0.5})
    content = bytearray(path.read_bytes())
    content[4] = version
    path.write_bytes(content)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "GGUF"
    assert checkpoint.bytes_read == 0
    assert {name: (stored.shape, stored.dtype) for name, stored in checkpoint.items()} == {
        name: (tuple(value.shape), "float32") for name, value in tensors.items()
    }
    for name, value in tensors.items():
        assert checkpoint[name].load().equal(value)
    assert checkpoint.settings == {
        "general.architecture": "jamba", "jamba.context_length": 300, "jamba.ssm.state_size": 16, "jamba.eps": 0.5,
    }  # fmt: skip
    assert checkpoint.optimizer_groups == ()
    checkpoint["c"].load().zero_()  # a copy: the file stays as it is
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F16", torch.float16), ("F64", torch.float64), ("BF16", torch.bfloat16), ("I32", torch.int32)]
)
def test_other_plain_types_read_back(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[1.5, -2.0, 8.0]]).to(dtype)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    raw = values.view(torch.uint8).numpy() if kind == "BF16" else values.numpy()
    writer.add_tensor("w", raw, raw_dtype=gguf.GGMLQuantizationType[kind] if kind == "BF16" else None)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    stored = read_checkpoint(tmp_path / "m.gguf")["w"]
    assert (stored.shape, stored.dtype) == ((1, 3), str(dtype).removeprefix("torch."))
    assert stored.load().equal(values)


def test_every_type_of_the_package_has_its_name(tmp_path: Path) -> None:
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
        writer.add_tensor("w", np.zeros((2, size), dtype=np.uint8), raw_dtype=kind)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        stored = read_checkpoint(tmp_path / "m.gguf")["w"]
        assert stored.shape[-1] in (block, size)
        plain = {"F": "float", "BF": "bfloat", "I": "int"}.get(kind.name.rstrip("0123456789"))
        assert stored.dtype == (f"{plain}{kind.name.lstrip('BFI')}" if plain else kind.name.lower())


def test_quantised_tensors_keep_the_name_of_their_type_and_are_not_loaded(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", {"a": torch.ones(4), "w.weight": torch.randn(6, 64)}, kinds={"w.weight": Q8_0}
    )
    stored = read_checkpoint(path)["w.weight"]
    assert (stored.shape, stored.dtype) == ((6, 64), "q8_0")
    with pytest.raises(CheckpointError, match=r"w\.weight is quantised \(q8_0\)") as caught:
        stored.load()
    assert "does not undo" in str(caught.value.advice)


def test_vocabularies_are_passed_over_in_no_time(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba2")
    writer.add_token_list([f"token {n}" for n in range(50_000)])
    writer.add_token_scores([0.5] * 50_000)
    writer.add_head_count_kv([0, 8, 0])
    writer.add_tensor("w", np.ones(3, dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    start = time.perf_counter()
    checkpoint = read_checkpoint(tmp_path / "m.gguf")
    assert time.perf_counter() - start < 1
    assert checkpoint.settings == {"general.architecture": "mamba2", "mamba2.attention.head_count_kv": [0, 8, 0]}
    assert checkpoint["w"].load().tolist() == [1, 1, 1]


def test_shards_and_directories(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-00001-of-00002.gguf", {"a": torch.ones(2)}, "jamba", context_length=77)
    write_gguf(tmp_path / "m-00002-of-00002.gguf", {"b": torch.zeros(2)}, "jamba", context_length=77)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.format == "GGUF, 2 shards"
    assert {name: stored.load().tolist() for name, stored in checkpoint.items()} == {"a": [1, 1], "b": [0, 0]}
    assert checkpoint.settings["jamba.context_length"] == 77


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [4, 8, 20, 24, 60, 0.5, 0.999])
def test_a_torn_file_is_called_torn(keep: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"a": torch.ones(300)}, "jamba", **{"ssm.state_size": 16})
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep > 1 else int(keep * len(content.rstrip(b"\0")))])
    with pytest.raises(CheckpointError, match=r"m\.gguf is torn or not a GGUF file"):
        read_checkpoint(path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def entry(name: str, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


FORGED = {
    "version 1": header(0, 0, 1),
    "big-endian": header(0, 0, 3 << 24),
    "2⁶³ tensors": header(2**63, 0),
    "2⁶³ settings": header(0, 2**63),
    "a name of 2⁶³ bytes": header(1, 0) + struct.pack("<Q", 2**63),
    "an array of 2⁶³ numbers": header(0, 1) + text("k") + struct.pack("<IIQ", 9, 6, 2**63),
    "an array of 2⁶³ strings": header(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**63),
    "an array of 2⁶³ arrays": header(0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 2**63),
    "arrays within arrays": header(0, 1) + text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
    "a setting of no type": header(0, 1) + text("k") + struct.pack("<IQ", 77, 1),
    "2³¹ axes": header(1, 0) + text("w") + struct.pack("<I", 2**31),
    "sizes whose product overflows": header(1, 0) + entry("w", (2**40, 2**40)),
    "an offset past the end": header(1, 0) + entry("w", (4,), 0, 2**62) + b"\0" * 64,
    "an alignment of 0": header(0, 1) + text("general.alignment") + struct.pack("<II", 4, 0),
    "an alignment of text": header(0, 1) + text("general.alignment") + struct.pack("<I", 8) + text("32"),
    "two tensors of one name": header(2, 0) + entry("w", (1,)) + entry("w", (1,)) + b"\0" * 64,
}


@pytest.mark.parametrize("trick", FORGED)
def test_forged_headers_are_refused_at_once(trick: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(FORGED[trick])
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="torn or not a GGUF file"):
        read_checkpoint(path)
    assert time.perf_counter() - start < 2


def test_any_flipped_byte_of_the_header_is_read_or_a_known_problem(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"a": torch.ones(2, 2), "b": torch.ones(3)}, "jamba", eps=0.5)
    whole = path.read_bytes()
    outcomes = {"read": 0, "refused": 0}
    for position in range(4, len(whole) - 64):
        for flip in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                for stored in read_checkpoint(path).values():
                    stored.load()
                outcomes["read"] += 1
            except CheckpointError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def test_an_unknown_type_is_named_and_refused_on_loading(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(1, 0) + entry("w", (4,), 999) + b"\0" * 64)
    stored = read_checkpoint(path)["w"]
    assert stored.dtype == "ggml type 999"
    with pytest.raises(CheckpointError, match="quantised"):
        stored.load()


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.one_in(5)
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_converted_model_has_the_memory_of_the_original(model_type: str, tmp_path: Path) -> None:
    directory, path, tensors = pair(model_type, tmp_path)
    assert any(name.endswith(".ssm_a") for name in tensors)
    proof = prove_conversion(directory, path)
    assert proof.proven, proof
    assert len(proof.layers) == sum(name.endswith(".ssm_a") for name in tensors)
    assert all(layer.spectrum is not None and layer.spectrum.value < 1e-6 for layer in proof.layers)
    family = "mamba" if model_type in ("mamba", "falcon_mamba", "jamba") else "mamba2"
    result = diagnose(path)
    assert {layer.family for layer in result.layers} == {family}
    assert result.unrecognised == ()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mamba", {".ssm_a": 1.01}),
        ("mamba", {".ssm_dt.bias": 1.02}),
        ("mamba2", {".ssm_a": 1.01}),
        ("mamba2", {"blk.1.ssm_dt.bias": 1.02}),
    ],
)
def test_a_wrong_conversion_is_not_proven(model_type: str, changes: Mapping[str, float], tmp_path: Path) -> None:
    directory, path, _ = pair(model_type, tmp_path, **changes)
    assert not prove_conversion(directory, path).proven


def test_a_conversion_with_quantised_projections_is_known_at_the_nominal_point_alone(tmp_path: Path) -> None:
    directory, _, tensors = pair("mamba", tmp_path)
    packed = write_gguf(tmp_path / "q.gguf", tensors, kinds={"ssm_x.weight": Q8_0, "ssm_in.weight": Q8_0})
    proof = prove_conversion(directory, packed)
    assert proof.exit_code() == 1
    assert {layer.outcome for layer in proof.layers} == {Outcome.NOMINAL}
    assert "ssm_x.weight is q8_0" in str(proof.layers[0].steering)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(packed.read_bytes())
    assert prove_conversion(packed, copy).exit_code() == 0
    changed = {name: 2 * value if name.endswith("1.ssm_x.weight") else value for name, value in tensors.items()}
    other = write_gguf(tmp_path / "o.gguf", changed, kinds={"ssm_x.weight": Q8_0, "ssm_in.weight": Q8_0})
    assert prove_conversion(packed, other).exit_code() == 1


def test_quantised_projections_leave_the_recurrence_readable(tmp_path: Path) -> None:
    """As in practice: what is no matrix stays in float32."""
    wide = {"blk.0.ssm_a": -torch.rand(64, 32), "blk.0.ssm_dt.bias": torch.randn(64), "blk.0.ssm_d": torch.ones(64)}
    wide |= {"blk.0.ssm_dt.weight": torch.randn(64, 32), "blk.0.ssm_x.weight": torch.randn(96, 64)}
    path = write_gguf(tmp_path / "m.gguf", wide, kinds={"dt.weight": Q8_0, "x.weight": Q8_0})
    (layer,) = diagnose(path).layers
    assert (layer.family, layer.channels, layer.modes, layer.dtype) == ("mamba", 64, 32, "float32")


def test_a_quantised_recurrence_is_refused_with_the_reason(tmp_path: Path) -> None:
    wide = {"blk.0.ssm_a": -torch.rand(64, 32), "blk.0.ssm_dt.bias": torch.randn(64)}
    wide |= {"blk.0.ssm_dt.weight": torch.randn(64, 32), "blk.0.ssm_x.weight": torch.randn(96, 64)}
    result = diagnose(write_gguf(tmp_path / "m.gguf", wide, kinds={"ssm_a": Q8_0}))
    assert result.layers == ()
    assert any("ssm_a is stored as q8_0" in problem for problem in result.problems)


def test_the_context_length_that_the_converter_makes_up_is_left_aside(tmp_path: Path) -> None:
    made_up = read_checkpoint(pair("mamba", tmp_path)[1])
    assert "mamba.context_length" not in made_up.settings
    assert "ignored" in made_up.notes[0]
    real = read_checkpoint(write_gguf(tmp_path / "j.gguf", {"a": torch.ones(2)}, "jamba", context_length=2**20))
    assert real.settings["jamba.context_length"] == 2**20
