"""NumPy .npz files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmdiag import read_checkpoint
from ssmdiag.errors import CheckpointError

ARRAYS = {
    "float16": np.array([0.5, -2.0], np.float16),
    "float32": np.array([[0.1, 0.2], [0.3, 0.4]], np.float32),
    "float64": np.array([1e-300, 1.0]),
    "complex64": np.array([1 + 2j, 3 - 4j], np.complex64),
    "complex128": np.array([1 + 2j]),
    "int8": np.array([-3, 4], np.int8),
    "uint32": np.array([2**31], np.uint32),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_dtype_reads_back(save: object, tmp_path: Path) -> None:
    save(tmp_path / "m.npz", **ARRAYS)  # type: ignore[operator]
    checkpoint = read_checkpoint(tmp_path / "m.npz")
    assert checkpoint.format == "npz"
    assert checkpoint.notes == ()
    for name, array in ARRAYS.items():
        stored = checkpoint[name]
        assert (stored.dtype, stored.shape) == (name, array.shape)
        assert stored.load().numpy().tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">c8", ">i4"])
def test_big_endian_arrays_keep_their_values(dtype: str, tmp_path: Path) -> None:
    array = np.array([1, -2, 3], dtype)
    np.savez(tmp_path / "m.npz", w=array)
    stored = read_checkpoint(tmp_path / "m.npz")["w"]
    assert stored.load().tolist() == array.tolist()
    assert stored.dtype == np.dtype(dtype).name


def test_two_bytes_without_a_type_are_bfloat16(tmp_path: Path) -> None:
    """What numpy.save makes of a JAX array in bfloat16."""
    values = torch.tensor([[1.0, -2.5], [1e30, 3.0]], dtype=torch.bfloat16)
    np.savez(tmp_path / "m.npz", w=values.view(torch.int16).numpy().view("V2"))
    checkpoint = read_checkpoint(tmp_path / "m.npz")
    assert (checkpoint["w"].dtype, checkpoint["w"].nbytes) == ("bfloat16", 8)
    assert checkpoint["w"].load().equal(values)
    assert "bfloat16" in checkpoint.notes[0]


def test_scalars_fortran_order_and_empty_arrays_keep_shape(tmp_path: Path) -> None:
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "m.npz", scalar=np.float32(3.0), fortran=fortran, empty=np.zeros((0, 4)))
    checkpoint = read_checkpoint(tmp_path / "m.npz")
    assert checkpoint["scalar"].load().shape == checkpoint["scalar"].shape == ()
    assert checkpoint["fortran"].load().tolist() == fortran.tolist()
    assert checkpoint["empty"].load().shape == (0, 4)


def test_extended_precision_is_read_in_double(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.array([1.5], np.longdouble))
    stored = read_checkpoint(tmp_path / "m.npz")["w"]
    assert (stored.dtype, stored.load().tolist()) == ("float64", [1.5])


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_python_objects_are_not_unpickled_and_the_rest_is_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    objects = np.array([_Marker(marker)], dtype=object)
    text = np.array(["a", "b"])
    eight = np.zeros(3, "V1")
    np.savez(tmp_path / "m.npz", allow_pickle=True, w=np.ones(2), o=objects, t=text, f8=eight)
    checkpoint = read_checkpoint(tmp_path / "m.npz")
    assert list(checkpoint) == ["w"]
    assert len(checkpoint.notes) == 3
    assert any("Python objects" in note and note.endswith(": o") for note in checkpoint.notes)
    assert not marker.exists()


def test_slashes_in_member_names_become_dots(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **{"params/layers_0/nu_log": np.ones(2), "größe/λ": np.ones(1)})
    checkpoint = read_checkpoint(tmp_path / "m.npz")
    assert list(checkpoint) == ["params.layers_0.nu_log", "größe.λ"]
    assert checkpoint["params.layers_0.nu_log"].stored_name == "params/layers_0/nu_log"


def test_a_torn_file_is_called_torn(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, w=np.ones(1000))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="torn"):
        read_checkpoint(path)


def test_damaged_values_are_a_known_problem_of_that_array(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, w=np.ones(1000), x=np.zeros(3))
    content = bytearray(path.read_bytes())
    content[4000] ^= 0xFF
    path.write_bytes(bytes(content))
    checkpoint = read_checkpoint(path)
    assert checkpoint["x"].load().tolist() == [0, 0, 0]
    with pytest.raises(CheckpointError, match="array w cannot be read"):
        checkpoint["w"].load()


def test_an_array_that_announces_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("w.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(CheckpointError, match="announces more values than it holds"):
        read_checkpoint(tmp_path / "m.npz")


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00\x10\x00{'descr': 1}     "])
def test_a_member_that_is_no_array_is_a_known_problem(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("w.npy", content)
    with pytest.raises(CheckpointError, match=r"broken \.npz"):
        read_checkpoint(tmp_path / "m.npz")
