"""Kernels in a file: laid out as others read them, traceable to their source, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ssmdiag.errors import SsmdiagError
from ssmdiag.kernel import file as kernel_file
from ssmdiag.kernel.archive import create_archive
from ssmdiag.kernel.file import describe, write_kernels
from ssmdiag.kernel.kernel import KernelSizeError, compute_kernel
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

SOURCE: Any = SimpleNamespace(path=Path("model.safetensors"))


def layer(name: str = "x", channels: int = 5, copies: int = 3) -> Recurrence:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, channels, 4, generator=generator, dtype=torch.float64)
    return Recurrence(
        layer=name,
        family="s4d",
        spelling="drawn",
        log_eigenvalues=torch.complex(-draw[0].abs() / 10, draw[1]),
        time_invariant=True,
        input_matrix=torch.ones(channels, 4, dtype=torch.complex128),
        output_matrix=torch.randn(copies, channels, 4, generator=generator, dtype=torch.complex128),
    )


def dense_layer() -> Recurrence:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 3, 3, generator=generator, dtype=torch.complex128) / 4
    B = torch.randn(2, 3, generator=generator, dtype=torch.complex128)
    C = torch.randn(1, 2, 3, generator=generator, dtype=torch.complex128)
    ell = torch.linalg.eigvals(A).log()
    return Recurrence("d", "s4", "drawn", ell, True, dense=lambda: DenseRealisation(A, B, C))


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_every_value_stands_where_its_copy_channel_and_lag_say(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_file, "PART", 2 * 77)  # two channels at a time
    layers, target = [layer("a.0"), layer("ä.1", channels=1), dense_layer()], tmp_path / f"k{ending}"
    written = write_kernels(iter(layers), 77, target, source=SOURCE)
    assert written.size == 77 * 4 * (15 + 3 + 2)
    for recurrence in layers:
        expected = compute_kernel(recurrence, 77, dtype=torch.float32).values.numpy()
        if ending == ".npz":
            with np.load(target) as file:
                found = file[f"{recurrence.layer}.kernel"]
        else:
            with safe_open(target, "np") as file:
                found = file.get_tensor(f"{recurrence.layer}.kernel")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("which", ["state_matrix", "input_matrix", "output_matrix"])
def test_the_hash_of_a_dense_layer_knows_all_its_matrices(which: str) -> None:
    recurrence = dense_layer()
    assert recurrence.dense is not None
    dense = recurrence.dense()
    other = replace(dense, **{which: getattr(dense, which) * 2})
    hashes = [describe(replace(recurrence, dense=lambda built=built: built))["sha256"] for built in (dense, other)]
    assert hashes[0] != hashes[1]
    assert hashes[0] == describe(recurrence)["sha256"]


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_a_file_that_fails_half_way_is_not_there(tmp_path: Path, ending: str) -> None:
    def failing() -> Iterator[Recurrence]:
        yield layer()
        raise SsmdiagError("the second layer is lost")

    with pytest.raises(SsmdiagError, match="is lost"):
        write_kernels(failing(), 20, tmp_path / f"k{ending}", source=SOURCE)
    assert not list(tmp_path.iterdir())


def test_the_memory_limit_is_for_each_layer_not_for_all(tmp_path: Path) -> None:
    one = 15 * 1024 * 4
    layers = [layer(f"a.{i}") for i in range(4)]
    assert write_kernels(layers, 1024, tmp_path / "k.npz", source=SOURCE, memory_limit=one).size == 4 * one
    with pytest.raises(KernelSizeError):
        write_kernels(layers, 1024, tmp_path / "l.npz", source=SOURCE, memory_limit=one - 1)


def test_layers_of_one_name_keep_their_own_kernels(tmp_path: Path) -> None:
    target = tmp_path / "k.safetensors"
    write_kernels([layer(), replace(layer(), family="lru")], 8, target, source=SOURCE)
    with safe_open(target, "np") as file:
        assert sorted(file.keys()) == ["x (lru).kernel", "x.kernel"]
        assert set(json.loads(file.metadata()["layers"])) == set(file.keys())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_names_that_are_no_unicode_are_written_with_an_escape(suffix: str, tmp_path: Path) -> None:
    """Half a surrogate pair: JSON can hold it, and a file name that is no UTF-8 becomes one."""
    with create_archive(tmp_path / f"k{suffix}") as archive:
        archive.add("lay\ud800.0", (2,), [torch.ones(2)])
        archive.describe({"source": "bad\udcff.safetensors"})
    if suffix == ".npz":
        assert set(np.load(tmp_path / "k.npz").files) == {"lay\\ud800.0", "metadata"}
    else:
        with safe_open(tmp_path / "k.safetensors", "pt") as file:
            assert list(file.keys()) == ["lay\\ud800.0"]
            assert file.metadata()["source"] == "bad\\udcff.safetensors"
