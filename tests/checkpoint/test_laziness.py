"""Only what is asked for is read; nothing is written; large files stay cheap."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import diagnose, read_checkpoint, recognise
from tests.benchmarks.inspect_2_8b import measure, write_sparse_mamba

STATE = {
    "layers.0.mixer.A_log": torch.zeros(8, 4),
    "layers.0.mixer.dt_proj.bias": torch.zeros(8),
    "layers.0.mixer.dt_proj.weight": torch.zeros(8, 2),
    "layers.0.mixer.x_proj.weight": torch.zeros(10, 8),
    "lm_head.weight": torch.zeros(1000, 100),
}


def save_npz(state: Mapping[str, torch.Tensor], path: Path) -> None:
    np.savez(path, **{name: value.numpy() for name, value in state.items()})


WRITERS: dict[str, Callable[[Mapping[str, torch.Tensor], Path], None]] = {
    "model.safetensors": lambda state, path: save_file(dict(state), path),
    "model.pt": torch.save,
    "old.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "model.npz": save_npz,
}
every_container = pytest.mark.parametrize("name", sorted(WRITERS))


@every_container
def test_opening_reads_no_values_and_loading_counts_each_tensor_once(name: str, tmp_path: Path) -> None:
    WRITERS[name](STATE, tmp_path / name)
    checkpoint = read_checkpoint(tmp_path / name)
    assert [(key, checkpoint[key].shape, checkpoint[key].dtype) for key in checkpoint] == [
        (key, tuple(value.shape), "float32") for key, value in STATE.items()
    ]
    assert checkpoint.bytes_read == 0
    for _ in range(2):
        checkpoint["layers.0.mixer.A_log"].load()
        assert checkpoint.bytes_read == 8 * 4 * 4


@every_container
def test_a_diagnosis_reads_the_recurrence_alone(name: str, tmp_path: Path) -> None:
    WRITERS[name](STATE, tmp_path / name)
    result = diagnose(tmp_path / name)
    assert result.size > 400_000
    assert 0 < result.bytes_read < 1000


@pytest.mark.one_in(2)
@every_container
def test_nothing_is_written_beside_the_checkpoint(name: str, tmp_path: Path) -> None:
    WRITERS[name](STATE, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")

    def snapshot() -> list[tuple[str, int, int, bytes]]:
        files = sorted(tmp_path.rglob("*"))
        return [(str(f), f.stat().st_mtime_ns, f.stat().st_ino, f.read_bytes()) for f in files]

    before = snapshot()
    checkpoint = read_checkpoint(tmp_path / name)
    diagnose(checkpoint)
    checkpoint["lm_head.weight"].load().add_(1)  # what is loaded is a copy or a private mapping
    assert snapshot() == before


@pytest.mark.one_in(2)
@every_container
def test_a_read_only_directory_is_enough(name: str, tmp_path: Path) -> None:
    WRITERS[name](STATE, tmp_path / name)
    (tmp_path / name).chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert len(diagnose(tmp_path / name).layers) == 1
    finally:
        tmp_path.chmod(0o755)


def write_header(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Write a safetensors file with a hole where its values are."""
    widths = {"BF16": 2, "F32": 4}
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + widths[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.slow
def test_a_hundred_thousand_tensors_open_and_are_recognised_in_seconds(tmp_path: Path) -> None:
    """200 layers with a 165-expert MoE each; about 1 s on two cores, where anything quadratic takes minutes."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(200):
        for name, shape in {"A_log": (8, 4), "dt_proj.bias": (8,), "dt_proj.weight": (8, 2), "D": (8,)}.items():
            shapes[f"model.layers.{layer}.mixer.{name}"] = ("F32", shape)
        for expert in range(165):
            for name in ("gate_proj", "up_proj", "down_proj"):
                shapes[f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"] = ("BF16", (2, 2))
    write_header(tmp_path / "model.safetensors", shapes)
    start = time.perf_counter()
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    found = recognise(checkpoint)
    seconds = time.perf_counter() - start
    assert len(checkpoint) == len(shapes) > 99_000
    assert [layer.number for layer in found.layers] == list(range(200))
    assert len(diagnose(checkpoint).layers) == 200
    assert seconds < 20


@pytest.mark.slow
def test_a_model_of_5_gb_is_diagnosed_in_under_900_mb(tmp_path: Path) -> None:
    """The shape of Mamba-2.8B, in a sparse file; measured in its own process."""
    path = write_sparse_mamba(tmp_path / "model.safetensors")
    assert path.stat().st_size > 5e9
    figures = measure(path, "cpu")
    assert figures["layers"] == 64
    assert figures["bytes_read"] < 0.01 * path.stat().st_size
    assert figures["peak_mb"] < 900


def test_opening_a_pickle_or_arrays_does_not_import_torch(tmp_path: Path) -> None:
    """Names, shapes and settings of torch and NumPy files need no torch."""
    for name in ("model.pt", "old.bin", "model.npz"):
        WRITERS[name](STATE, tmp_path / name)
    program = (
        "import sys, ssmdiag, pathlib\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    checkpoint = ssmdiag.read_checkpoint(path)\n"
        "    assert [t.shape for t in checkpoint.values()][-1] == (1000, 100)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
