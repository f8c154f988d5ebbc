"""Files that were made to exhaust or to crash whoever reads them; every one is under 10 MB.

Each function writes one case into an empty directory and returns the path to give to ssmdiag.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from tests.checkpoint.formats.flax_files import array, pack

Write = Callable[[Path], Path]
MAMBA = {
    "layers.0.mixer.A_log": (8, 4), "layers.0.mixer.dt_proj.bias": (8,), "layers.0.mixer.dt_proj.weight": (8, 2),
    "layers.0.mixer.x_proj.weight": (10, 8),
}  # fmt: skip
"""One layer, names and shapes."""

HOSTILE: dict[str, Write] = {}
"""What must be refused or read within the budget, by name."""


LARGE: dict[str, Write] = {}
"""Those that take seconds to write or to refuse."""


def case(write: Write) -> Write:
    """Register a case under the name of its function."""
    HOSTILE[write.__name__] = write
    return write


def large(write: Write) -> Write:
    """Register a case that takes seconds."""
    LARGE[write.__name__] = write
    return write


# --- parts of pickles -----------------------------------------------------------------------------

HEAD = b"\x80\x02"


def text(value: str) -> bytes:
    """Return the instruction that pushes a string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """Return the instruction that pushes a whole number."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(raw)) + raw


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def mapping(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def tensor(key: str, shape: tuple[int, ...], stride: tuple[int, ...], numel: int, view: bytes = b"") -> bytes:
    """Return the instructions that make a tensor; the old format has a view beside its storage, or None."""
    storage = tuple_of(text("storage"), b"ctorch\nFloatStorage\n", text(key), text("cpu"), number(numel), view) + b"Q"
    sizes = (tuple_of(*map(number, shape)), tuple_of(*map(number, stride)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(storage, number(0), *sizes, b"\x89", b"}") + b"R"


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def layer(view: bytes = b"") -> dict[str, bytes]:
    """Return a sound layer, its tensors all in storage 0."""
    return {name: tensor("0", shape, strides(shape), 100, view) for name, shape in MAMBA.items()}


def laughs(depth: int, opening: bytes = b"]", closing: bytes = b"e") -> bytes:
    """Return a list of two lists of two lists …: a few bytes a level, twice as many elements."""
    made = text("ha")
    for level in range(depth):
        at = struct.pack("<I", 1000 + level)
        made += b"r" + at + b"0" + opening + b"(" + (b"j" + at) * 2 + closing if opening else b""
    return made


def tuple_laughs(depth: int) -> bytes:
    made = text("ha")
    for level in range(depth):
        at = struct.pack("<I", 1000 + level)
        made += b"r" + at + b"0" + (b"j" + at) * 2 + b"\x86"
    return made


def torch_zip(
    path: Path, content: bytes, method: int = zipfile.ZIP_STORED, records: Mapping[str, bytes] | None = None
) -> Path:
    """Write what torch.save would, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("m/data.pkl", HEAD + content + b".")
        archive.writestr("m/byteorder", "little")
        for name, record in {"m/data/0": bytes(400), **(records or {})}.items():
            archive.writestr(name, record)
    return path


def torch_old(path: Path, content: bytes, keys: bytes = b"](X\x01\x00\x00\x000e.", values: bytes = b"") -> Path:
    """Write a file in the old format of torch.save."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(head + content + keys + (values or struct.pack("<q", 100) + bytes(400)))
    return path


def both(entries: Mapping[str, bytes]) -> bytes:
    """Return a sound state dict with other entries beside it."""
    return mapping({"state_dict": mapping(layer()), **entries})


# --- pickles --------------------------------------------------------------------------------------


@large
def five_million_instructions(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"N0" * 4_900_000 + mapping(layer()))


@large
def a_pickle_of_sets(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"](" + b"\x8f\x94" * 4_500_000 + b"e")


@large
def a_pickle_that_unpacks_to_half_a_gigabyte(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"N0" * 250_000_000 + b"}", zipfile.ZIP_DEFLATED)


@case
def a_pickle_that_announces_gigabytes(folder: Path) -> Path:
    path = torch_zip(folder / "m.pt", b"N0" * 1_000_000 + mapping(layer()), zipfile.ZIP_DEFLATED)
    return with_size(path, 4_000_000_000)


def with_size(path: Path, size: int) -> Path:
    """Let the table of contents give another size for its first member."""
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


@large
def a_byte_order_of_half_a_gigabyte(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", HEAD + mapping(layer()) + b".")
        with archive.open("m/byteorder", "w") as file:
            for _ in range(500):
                file.write(bytes(1_000_000))
        archive.writestr("m/data/0", bytes(400))
    return folder / "m.pt"


@case
def a_deep_tuple_as_a_key(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"}N" + b"\x85" * 200_000 + b"Ns")


@case
def a_deep_tuple_in_a_set(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"\x8f(N" + b"\x85" * 200_000 + b"\x90")


@case
def a_deep_tuple_in_a_frozenset(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"(N" + b"\x85" * 200_000 + b"\x91")


@case
def a_deep_tuple_in_a_builtin_set(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"cbuiltins\nset\n](N" + b"\x85" * 200_000 + b"e\x85R")


@case
def a_deep_tuple_as_a_key_of_an_ordered_dict(folder: Path) -> Path:
    pairs = b"](N" + b"\x85" * 200_000 + b"N\x86e"
    return torch_zip(folder / "m.pt", b"ccollections\nOrderedDict\n" + pairs + b"\x85R")


@case
def a_deep_tuple_as_the_key_of_a_storage(folder: Path) -> Path:
    pid = tuple_of(text("storage"), b"ctorch\nFloatStorage\n", b"N" + b"\x85" * 200_000, text("cpu"), number(1))
    return torch_zip(folder / "m.pt", pid + b"Q")


@case
def a_deep_list_beside_the_weights(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", both({"hparams": mapping({"a": b"]" * 200_000 + b"a" * 199_999})}))


@case
def a_deep_dict_as_the_weights(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"}X\1\0\0\0a" * 100_000 + b"N" + b"s" * 100_000)


@case
def modules_within_modules(folder: Path) -> Path:
    begin = b"cm\nM\n)\x81}X\x08\0\0\0_modules"
    return torch_zip(folder / "m.pt", begin * 20_000 + b"N" + b"sb" * 20_000)


@case
def laughing_settings(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", both({"hparams": mapping({"a": laughs(60)})}))


@case
def laughing_keys(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", both({"hparams": b"}" + tuple_laughs(60) + b"Ns"}))


@large
def laughing_weights(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", mapping({"model": laughs(60), **layer()}))


@case
def laughing_optimizer(folder: Path) -> Path:
    group = mapping({"lr": laughs(60), "params": b"](K\0e"})
    return torch_zip(folder / "m.pt", both({"optimizer": mapping({"param_groups": b"](" + group + b"e"})}))


@large
def a_million_leaves_in_many_places(folder: Path) -> Path:
    leaves = b"](" + b"N" * 1_000_000 + b"er\1\0\0\0" + b"0"
    return torch_zip(folder / "m.pt", leaves + mapping({"model": b"](" + b"j\1\0\0\0" * 100_000 + b"e", **layer()}))


@large
def a_million_settings_in_many_places(folder: Path) -> Path:
    leaves = b"](" + b"}" * 1_000_000 + b"er\1\0\0\0" + b"0"
    many = b"](" + b"j\1\0\0\0" * 100_000 + b"e"
    return torch_zip(folder / "m.pt", leaves + both({"hparams": mapping({"a": many})}))


@large
def a_million_parameters_in_many_groups(folder: Path) -> Path:
    group = mapping({"lr": b"N", "params": b"](" + b"K\0" * 1_000_000 + b"e"}) + b"r\1\0\0\0" + b"0"
    many = b"](" + b"j\1\0\0\0" * 100_000 + b"e"
    return torch_zip(folder / "m.pt", group + both({"optimizer": mapping({"param_groups": many})}))


@large
def a_hundred_thousand_groups(folder: Path) -> Path:
    groups = b"](" + (b"}(" + text("params") + b"](K\0eu") * 100_000 + b"e"
    return torch_zip(folder / "m.pt", both({"optimizer": mapping({"param_groups": groups})}))


@large
def weights_below_weights(folder: Path) -> Path:
    made = mapping(layer())
    for level in range(60):
        at = struct.pack("<I", 1000 + level)
        made += b"r" + at + b"0" + mapping(dict.fromkeys(("state", "train_state", "training_state"), b"j" + at))
    return torch_zip(folder / "m.pt", made)


@large
def a_dict_copied_over_and_over(folder: Path) -> Path:
    big = b"}(" + b"".join(number(i) + b"N" for i in range(200_000)) + b"ur\1\0\0\0" + b"0"
    copies = b"(" + b"ccollections\nOrderedDict\nj\1\0\0\0\x85R" * 100_000 + b"t0"
    return torch_zip(folder / "m.pt", big + copies + mapping(layer()))


@large
def arguments_copied_over_and_over(folder: Path) -> Path:
    big = b"(" + b"N" * 1_000_000 + b"tr\1\0\0\0" + b"0" + b"ca\nB\nr\2\0\0\0" + b"0"
    return torch_zip(folder / "m.pt", big + b"j\2\0\0\0j\1\0\0\0\x810" * 400_000 + mapping(layer()))


@case
def bytes_copied_over_and_over(folder: Path) -> Path:
    big = text("a" * 4_000_000) + b"r\1\0\0\0" + b"0" + b"c_codecs\nencode\nr\2\0\0\0" + b"0"
    return torch_zip(folder / "m.pt", big + b"(" + b"j\2\0\0\0j\1\0\0\0\x85R" * 1000 + b"t0" + mapping(layer()))


@case
def a_path_twice_as_long_each_time(folder: Path) -> Path:
    made = text("a" * 100) + b"r\1\0\0\0" + b"0"
    made += b"cpathlib\nPosixPath\nj\1\0\0\0j\1\0\0\0\x86Rr\1\0\0\0" + b"0"
    made += b"cpathlib\nPosixPath\nj\1\0\0\0j\1\0\0\0\x86Rr\1\0\0\0" * 40
    return torch_zip(folder / "m.pt", made)


@case
def attributes_of_attributes(folder: Path) -> Path:
    name = text("a" * 100_000) + b"r\1\0\0\0" + b"0"
    return torch_zip(
        folder / "m.pt", name + b"ca\nB\n" + (b"r\2\0\0\0" + b"0cbuiltins\ngetattr\nj\2\0\0\0j\1\0\0\0\x86R") * 9000
    )


@large
def half_a_million_classes(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"".join(b"cm\nC%d\n0" % i for i in range(600_000)) + mapping(layer()))


@large
def a_class_of_a_long_name_over_and_over(folder: Path) -> Path:
    names = text("m." * 1_000_000) + b"r\1\0\0\0" + b"0"
    return torch_zip(folder / "m.pt", names + b"j\1\0\0\0j\1\0\0\0\x930" * 500_000 + mapping(layer()))


@large
def an_object_appended_to_one_at_a_time(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"ca\nB\n)\x81" + b"Na" * 1_000_000)


@large
def keys_that_collide(folder: Path) -> Path:
    keys = b"".join(number(k * (2**61 - 1)) + b"N" for k in range(600_000))
    return torch_zip(folder / "m.pt", both({"hparams": b"}(" + keys + b"u"}))


@case
def a_step_of_five_thousand_digits(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", both({"step": number(10**5000)}))


@case
def a_setting_of_four_hundred_digits(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", both({"hparams": mapping({"seq_len": number(10**400)})}))


@case
def a_shape_of_huge_numbers(folder: Path) -> Path:
    shapes = {"0": (2**62, 2**62), "1": (2**62, 0), "2": (10**300,), "3": (0,) * 500_000}
    tensors = {name: tensor("0", shape, shape, 100) for name, shape in shapes.items()}
    return torch_zip(folder / "m.pt", mapping({**layer(), **tensors}))


@case
def a_tensor_of_gigabytes_in_a_kilobyte(folder: Path) -> Path:
    wide = {name: tensor("0", shape, (0,) * len(shape), 100) for name, shape in {
        "layers.0.mixer.A_log": (40_000, 10_000), "layers.0.mixer.dt_proj.bias": (40_000,),
        "layers.0.mixer.dt_proj.weight": (40_000, 2), "layers.0.mixer.x_proj.weight": (20_002, 40_000),
    }.items()}  # fmt: skip
    return torch_zip(folder / "m.pt", mapping(wide))


@large
def a_key_of_a_megabyte_at_every_level(folder: Path) -> Path:
    made = text("a" * 1_000_000) + b"r\1\0\0\0" + b"0"
    made += b"}j\1\0\0\0" * 90 + b"](" + tensor("0", (1,), (1,), 100) * 10_000 + b"e" + b"s" * 90
    return torch_zip(folder / "m.pt", mapping({"model": made, **layer()}))


@case
def a_frame_longer_than_the_file(folder: Path) -> Path:
    return torch_old(folder / "m.bin", b"\x80\x04\x95" + struct.pack("<Q", 2**42) + b"}.")


@case
def a_string_longer_than_the_file(folder: Path) -> Path:
    return torch_old(folder / "m.bin", b"\x80\x04\x8d" + struct.pack("<Q", 2**42) + b"}.")


@case
def old_format_keys_that_laugh(folder: Path) -> Path:
    return torch_old(folder / "m.bin", HEAD + mapping(layer(b"N")) + b".", HEAD + b"](" + tuple_laughs(60) + b"e.")


@case
def old_format_view_beyond_its_storage(folder: Path) -> Path:
    view = tuple_of(text("v"), number(0), number(2**40))
    wide = tensor("0", (2**33, 8), (8, 1), 100, view)
    return torch_old(folder / "m.bin", HEAD + mapping({**layer(b"N"), "layers.0.mixer.A_log": wide}) + b".")


@case
def old_format_storage_of_negative_size(folder: Path) -> Path:
    return torch_old(folder / "m.bin", HEAD + mapping(layer(b"N")) + b".", values=struct.pack("<q", -(2**62)))


# --- zip archives ---------------------------------------------------------------------------------


@case
def members_over_one_another(folder: Path) -> Path:
    """Every entry of the table of contents points at the same bytes."""
    names = [f"layers.{i}.nu_log.npy" for i in range(1500)]
    array = io.BytesIO()
    np.save(array, np.zeros(1_000_000, np.float32))
    with zipfile.ZipFile(folder / "m.npz", "w") as archive:
        archive.writestr(names[0], array.getvalue())
        info = archive.infolist()[0]
        for name in names[1:]:
            copy = zipfile.ZipInfo(name)
            for field in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(copy, field, getattr(info, field))
            archive.filelist.append(copy)
    return folder / "m.npz"


@case
def two_members_of_one_name(folder: Path) -> Path:
    path = torch_zip(folder / "m.pt", mapping(layer()))
    with zipfile.ZipFile(path, "a") as archive:
        other = zipfile.ZipInfo("m/datA.pkl")
        archive.writestr(other, HEAD + b"}.")
    path.write_bytes(path.read_bytes().replace(b"m/datA.pkl", b"m/data.pkl"))
    return path


@case
def an_encrypted_member(folder: Path) -> Path:
    path = torch_zip(folder / "m.pt", mapping(layer()))
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 8] |= 1
    path.write_bytes(content)
    return path


@large
def members_in_bzip2(folder: Path) -> Path:
    return torch_zip(folder / "m.pt", b"N0" * 50_000_000 + mapping(layer()), zipfile.ZIP_BZIP2)


@large
def five_thousand_structures_of_many_fields(folder: Path) -> Path:
    fields = ", ".join(f"('{i}', 'f4')" for i in range(550))
    header = f"{{'descr': [{fields}], 'fortran_order': False, 'shape': (1,), }}\n".encode()
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(2200)
    with zipfile.ZipFile(folder / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(5_000):
            archive.writestr(f"{i}.npy", content)
    return folder / "m.npz"


@large
def a_member_that_lies_about_its_size(folder: Path) -> Path:
    """The table announces 100 bytes; 300 MB come out."""
    path = torch_zip(folder / "m.pt", b"N0" * 150_000_000 + b"}", zipfile.ZIP_DEFLATED)
    return with_size(path, 100)


@large
def sixty_thousand_members(folder: Path) -> Path:
    array = io.BytesIO()
    np.save(array, np.zeros(0, np.float32))
    with zipfile.ZipFile(folder / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(50_000):
            archive.writestr(f"{i}.npy", array.getvalue())
    return folder / "m.npz"


@case
def a_zip64_directory_that_lies(folder: Path) -> Path:
    path = torch_zip(folder / "m.pt", mapping(layer()))
    content = path.read_bytes()
    at = content.find(b"PK\5\6")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**60, 2**60, 2**60, 2**61)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    path.write_bytes(content[:at] + end64 + locator + content[at:])
    return path


# --- npz ------------------------------------------------------------------------------------------


def npz(path: Path, header: bytes, values: bytes = b"", version: bytes = b"\1\0", length: int | None = None) -> Path:
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header) if length is None else length)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nu_log.npy", b"\x93NUMPY" + version + size + header + values)
    return path


@large
def a_header_of_half_a_gigabyte(folder: Path) -> Path:
    return npz(folder / "m.npz", b" " * 500_000_000, version=b"\2\0")


@case
def a_header_that_is_no_python(folder: Path) -> Path:
    return npz(folder / "m.npz", b"{'descr': '<f4', 'shape': (((((((((((\n")


@case
def a_header_nested_deep(folder: Path) -> Path:
    return npz(folder / "m.npz", b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"-" * 9000 + b"1}\n")


@case
def a_header_of_brackets(folder: Path) -> Path:
    return npz(folder / "m.npz", b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"[" * 9000 + b"}\n")


@case
def an_array_of_negative_shape(folder: Path) -> Path:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-100000, -100000), }\n"
    return npz(folder / "m.npz", header, bytes(64))


@case
def an_array_with_a_size_of_five_thousand_digits(folder: Path) -> Path:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1" * 5000 + b",), }\n"
    return npz(folder / "m.npz", header, bytes(64))


@case
def an_empty_array_of_huge_axes(folder: Path) -> Path:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9223372036854775807), }\n"
    return npz(folder / "m.npz", header)


@case
def an_array_of_two_byte_tuples(folder: Path) -> Path:
    return npz(folder / "m.npz", b"{'descr': '(2,)i1', 'fortran_order': False, 'shape': (4,), }\n", bytes(8))


@case
def an_array_of_structures(folder: Path) -> Path:
    fields = b", ".join(b"('f%d', '<f4')" % i for i in range(500))
    return npz(
        folder / "m.npz", b"{'descr': [" + fields + b"], 'fortran_order': False, 'shape': (1,), }\n", bytes(2000)
    )


@large
def an_array_that_unpacks_to_a_gigabyte(folder: Path) -> Path:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (250000000,), }\n"
    path = folder / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("nu_log.npy", "w") as file:
        file.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
        for _ in range(1000):
            file.write(bytes(1_000_000))
    return path


@case
def a_stored_member_that_announces_gigabytes(folder: Path) -> Path:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }\n"
    path = folder / "m.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nu_log.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64))
    return with_size(path, 4_100_000_000)


# --- GGUF -----------------------------------------------------------------------------------------


def gguf(path: Path, tensors: int, pairs: int, rest: bytes) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest)
    return path


def word(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@case
def more_tensors_than_bytes(folder: Path) -> Path:
    return gguf(folder / "m.gguf", 2**60, 0, bytes(1000))


@large
def more_settings_than_bytes(folder: Path) -> Path:
    return gguf(folder / "m.gguf", 0, 2**60, (word(b"") + struct.pack("<IB", 0, 1)) * 700_000)


@case
def a_string_of_2_to_the_60(folder: Path) -> Path:
    return gguf(folder / "m.gguf", 0, 1, struct.pack("<Q", 2**60))


@case
def arrays_in_arrays(folder: Path) -> Path:
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000
    return gguf(folder / "m.gguf", 0, 1, word(b"a") + nested)


@case
def an_array_of_2_to_the_60_arrays(folder: Path) -> Path:
    nested = struct.pack("<IIQ", 9, 9, 2**60) + struct.pack("<IQ", 0, 0) * 600_000
    return gguf(folder / "m.gguf", 0, 1, word(b"a") + nested)


@case
def an_alignment_of_zero(folder: Path) -> Path:
    return gguf(folder / "m.gguf", 0, 1, word(b"general.alignment") + struct.pack("<II", 4, 0))


@large
def four_hundred_thousand_tensors(folder: Path) -> Path:
    entries = b"".join(word(b"%d" % i) + struct.pack("<IIQ", 0, 0, 0) for i in range(330_000))
    return gguf(folder / "m.gguf", 330_000, 0, entries + bytes(100))


@large
def nine_thousand_arrays_of_a_thousand_numbers(folder: Path) -> Path:
    array = struct.pack("<IIQ", 9, 0, 1024) + bytes(1024)
    return gguf(folder / "m.gguf", 0, 9_000, b"".join(word(b"%d" % i) + array for i in range(9_000)))


@case
def a_packed_tensor_larger_than_the_file(folder: Path) -> Path:
    entry = word(b"blk.0.ssm_a") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 12, 0)
    return gguf(folder / "m.gguf", 1, 0, entry + bytes(200))


@case
def a_tensor_beyond_the_file(folder: Path) -> Path:
    entry = word(b"blk.0.ssm_a") + struct.pack("<IQIQ", 1, 4, 0, 2**63)
    return gguf(folder / "m.gguf", 1, 0, entry + bytes(200))


# --- flax msgpack ---------------------------------------------------------------------------------


def flax(folder: Path, inside: bytes) -> Path:
    """Write a tree with one sound array and something beside it."""
    (folder / "m.msgpack").write_bytes(b"\x82" + pack("params") + pack({"nu_log": torch.zeros(4)}) + pack("x") + inside)
    return folder / "m.msgpack"


@case
def mappings_in_mappings(folder: Path) -> Path:
    return flax(folder, b"\x81\xa1a" * 300_000 + b"\xc0")


@case
def lists_in_lists(folder: Path) -> Path:
    return flax(folder, b"\x91" * 1_000_000 + b"\xc0")


@case
def a_mapping_of_four_thousand_million(folder: Path) -> Path:
    return flax(folder, b"\xdf\xff\xff\xff\xff" + bytes(1000))


@case
def an_array_of_huge_axes_in_no_bytes(folder: Path) -> Path:
    return flax(folder, array((2**62, 0, 2**62), "float32", b""))


@case
def pieces_of_one_array_in_many_places(folder: Path) -> Path:
    whole = {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": torch.zeros(4)}}
    return flax(folder, pack(whole))


@large
def nine_million_values_of_nothing(folder: Path) -> Path:
    return flax(folder, b"\xdd" + struct.pack(">I", 9_900_000) + b"\xc0" * 9_900_000)


@large
def two_hundred_thousand_arrays_below_a_long_name(folder: Path) -> Path:
    many = {f"{i:x}": torch.zeros(0) for i in range(200_000)}
    (folder / "m.msgpack").write_bytes(pack({"params": {"k" * 1000: many}}))
    return folder / "m.msgpack"


@large
def empty_mappings_below_long_names(folder: Path) -> Path:
    inside = pack({f"{i:x}": {} for i in range(400_000)})
    return flax(folder, b"".join(b"\x81" + pack("k" * 1000) for _ in range(60)) + inside)


# --- tar ------------------------------------------------------------------------------------------


def tar_header(name: bytes, size: int, kind: bytes) -> bytes:
    head = name.ljust(100, b"\0") + b"0000644\0" * 3 + b"%011o\0" % size + b"0" * 12 + b" " * 8 + kind
    return head.ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")


@case
def nineteen_thousand_members_of_nothing(folder: Path) -> Path:
    (folder / "m.nemo").write_bytes(b"".join(tar_header(b"%d.pt" % number, 0, b"0") for number in range(19_000)))
    return folder / "m.nemo"


@case
def extended_headers_without_a_member(folder: Path) -> Path:
    (folder / "m.nemo").write_bytes((tar_header(b"x", 65_000, b"x") + bytes(65_024)) * 140)
    return folder / "m.nemo"


@case
def records_of_one_byte_in_extended_headers(folder: Path) -> Path:
    (folder / "m.nemo").write_bytes((tar_header(b"x", 65_000, b"x") + b"2 " * 32_500 + bytes(24)) * 140)
    return folder / "m.nemo"


@case
def a_member_of_eight_thousand_million_bytes(folder: Path) -> Path:
    (folder / "m.nemo").write_bytes(tar_header(b"m.pt", 8**11 - 1, b"0") + bytes(4096))
    return folder / "m.nemo"


@case
def archives_in_archives(folder: Path) -> Path:
    content = b""
    for _ in range(5000):
        content = tar_header(b"m.nemo", len(content), b"0") + content
    (folder / "m.nemo").write_bytes(content)
    return folder / "m.nemo"


# --- safetensors ----------------------------------------------------------------------------------


def safetensors(path: Path, header: bytes, values: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + values)
    return path


def entries(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    return json.dumps(header, separators=(",", ":")).encode()


def sound(folder: Path) -> Path:
    """Write a model directory that is in order."""
    state = {name: torch.zeros(shape) for name, shape in MAMBA.items()}
    (folder / "model.safetensors").write_bytes(save(state))
    return folder / "model.safetensors"


@case
def a_header_nested_a_hundred_thousand_deep(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@case
def a_tensor_twice(folder: Path) -> Path:
    one = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return safetensors(folder / "m.safetensors", b"{" + one + b"," + one + b"}", bytes(4))


@case
def a_name_of_two_million_brackets(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", entries({"[" * 2_000_000: (1,)}), bytes(4))


@case
def a_name_of_two_million_dots(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", entries({"a." * 1_000_000 + "A_log": (1,)}), bytes(4))


@case
def a_name_of_a_thousand_elements(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", entries({"a." * 1000 + "A_log": (1,)}), bytes(4))


@large
def a_hundred_thousand_empty_tensors(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", entries({f"{i}.A_log": (0,) for i in range(130_000)}))


@large
def a_hundred_thousand_names_that_become_one(folder: Path) -> Path:
    names = [
        "".join(("_orig_mod.", "module.")[i >> bit & 1] for bit in range(7)) + f"{i >> 7}.w" for i in range(60_000)
    ]
    return safetensors(folder / "m.safetensors", entries(dict.fromkeys({f"module.{n}" for n in names}, (0,))))


@case
def a_layer_number_of_four_thousand_digits(folder: Path) -> Path:
    shapes = {name.replace(".0.", "." + "9" * 4000 + "."): shape for name, shape in MAMBA.items()}
    return safetensors(folder / "m.safetensors", entries(shapes), bytes(4 * 136))


@case
def a_layer_number_of_superscripts(folder: Path) -> Path:
    shapes = {name.replace(".0.", ".²."): shape for name, shape in MAMBA.items()}
    return safetensors(folder / "m.safetensors", entries(shapes), bytes(4 * 136))


@case
def a_shape_of_2_to_the_62(folder: Path) -> Path:
    header = b'{"w":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904,0],"data_offsets":[0,0]}}'
    return safetensors(folder / "m.safetensors", header)


@case
def a_step_of_superscripts(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", entries(MAMBA, {"step": "²"}), bytes(4 * 136))


@case
def a_step_of_ten_thousand_digits(folder: Path) -> Path:
    return safetensors(folder / "m.safetensors", entries(MAMBA, {"step": "9" * 10_000}), bytes(4 * 136))


@case
def metadata_nested_deep(folder: Path) -> Path:
    deep = '{"a":' * 900 + "1" + "}" * 900
    deeper = '{"a":' * 90_000 + "1" + "}" * 90_000
    return safetensors(folder / "m.safetensors", entries(MAMBA, {"config": deep, "more": deeper}), bytes(4 * 136))


@case
def metadata_with_long_keys_at_every_level(folder: Path) -> Path:
    key = "k" * 10_000
    deep = "1"
    for _ in range(400):
        deep = json.dumps({key: 0})[:-1].replace("0", deep) + "}"
    return safetensors(folder / "m.safetensors", entries(MAMBA, {"config": deep}), bytes(4 * 136))


@case
def a_number_of_ten_thousand_digits_in_the_metadata(folder: Path) -> Path:
    metadata = {"config": '{"seq_len": ' + "9" * 10_000 + "}"}
    return safetensors(folder / "m.safetensors", entries(MAMBA, metadata), bytes(4 * 136))


# --- what lies beside the weights -----------------------------------------------------------------


def beside(name: str, content: bytes | Callable[[], bytes]) -> Write:
    def write(folder: Path) -> Path:
        path = sound(folder)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        return path

    return write


DEEP = b'{"a":' * 900 + b"1" + b"}" * 900
TEXTS = {
    "empty": b"", "not UTF-8": b"\xff\xfe{}", "nested 900 deep": DEEP, "nested 100,000 deep": b"[" * 100_000,
    "of 400 digits": b'{"seq_len": ' + b"9" * 400 + b', "global_step": ' + b"9" * 400 + b"}",
    "of 5,000 digits": b'{"seq_len": ' + b"9" * 5000 + b', "global_step": ' + b"9" * 5000 + b"}",
    "not finite": b'{"seq_len": 1e999, "global_step": 1e999, "dt_min": NaN, "max_seq_len": -Infinity}',
}  # fmt: skip
LARGE_TEXTS = {
    "of a million lists": lambda: b'{"seq_len": [' + b"[]," * 3_000_000 + b"0]}",
    "of a million settings": lambda: json.dumps({str(i): {"x": i} for i in range(400_000)}).encode(),
    "of long keys": lambda: json.dumps({"k" * 100_000: {"l" * 100_000: {str(i): i for i in range(100_000)}}}).encode(),
}  # made where they are written: they take seconds


def index_of(content: bytes | Callable[[], bytes]) -> Write:
    def write(folder: Path) -> Path:
        sound(folder).rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(content if isinstance(content, bytes) else content())
        return folder

    return write


for cases, texts in ((HOSTILE, TEXTS), (LARGE, LARGE_TEXTS)):
    for kind, content in texts.items():
        cases[f"config.json {kind}"] = beside("config.json", content)
        cases[f"trainer_state.json {kind}"] = beside("trainer_state.json", content)
        cases[f"index {kind}"] = index_of(content)
INDEXES = {
    "of names nested deep": {"weight_map": {"w": [[["a"] * 1000] * 1000]}},
    "of one file by many names": {"weight_map": {f"w{i}": "./" * i + "a.safetensors" for i in range(490)}},
    "of many missing files": {"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(9000)}},
    "of too many files": {"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(12_000)}},
    "of an impossible name": {"weight_map": {"w": "a\0b"}},
    "of a name that is too long": {"weight_map": {"w": "a" * 5_000_000, "v": "a\0b"}},
}
for kind, index in INDEXES.items():
    HOSTILE[f"index {kind}"] = index_of(lambda index=index: json.dumps(index).encode())


@case
def shards_of_many_counts(folder: Path) -> Path:
    for count in range(300):
        (folder / f"model-00001-of-{99999 - count}.safetensors").write_bytes(b"")
    return folder


@case
def a_step_of_250_digits_in_the_name(folder: Path) -> Path:
    return sound(folder).rename(folder / f"step-{'9' * 230}.safetensors")


# --- torch.distributed ------------------------------------------------------------------------------


def _metadata(folder: Path, content: bytes) -> Path:
    (folder / ".metadata").write_bytes(content)
    return folder


@large
def distributed_metadata_of_dicts(folder: Path) -> Path:
    return _metadata(folder, b"\x80\x04" + b"}" * 9_900_000 + b".")


@large
def distributed_metadata_of_objects(folder: Path) -> Path:
    return _metadata(folder, b"\x80\x04ca\nb\n\x940" + b"h\0)\x81\x94}\x94(" * 1_200_000 + b".")


@case
def distributed_metadata_of_sizes(folder: Path) -> Path:
    return _metadata(folder, b"\x80\x04ctorch\nSize\n\x940" + b"h\0K\1K\2\x86\x94\x85\x94R\x94" * 100_000 + b".")
