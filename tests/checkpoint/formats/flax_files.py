"""flax msgpack files: those that flax itself wrote, and a writer of the same layout for all others."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def _written(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


EVERY_KIND = _written(
    "eNpl0D1PwkAYB/A7QNNEYkgk0cGBL2DCWwiDCcXdxG9QDyzQQF9CMVEmIg7GCWFx5LACDiaOupHY5ExYHBkZHRnd9E8rOtjk1zb33D1397/kRbEV"
    "6E5zC+I9U9n/EscwDXUytFid6fY1ZyJKezfBcaFUM1kjkXHXSW6Si8l3Ba3cflEU3S5brFhVipVTo6qeKKxeZ+eK8npvV5ilXvD4Gk9IQ69qt3lc"
    "HKJbZOQ1SyXdn01bObzwL0ML+jCB+bKeJyQCMYiDDEdwDFaeJ/53bKFyBR24hT6M4QmeYQJv8A4zmMMHLOAzz5NiDx2l344xnOGAkBBIEIYIRGEH"
    "dg+4KjZpr0uCo1VGZFDKernRR28oq6hpPVUyXLrvlGqsLMKoBZyCadbcACUDLS02lrMdzWikXUoHWvZvIOvSL26LaLDX8TfIpF3Jzy0k86bYXk58"
    "KJq6VVPP/Jqfp9NU6+aMrpbhKqFlpI7dUK3gN1TInlQ="
)
"""What flax 0.12.8 writes of arrays of every kind, with MAX_CHUNK_SIZE = 64, so that `big` is in three pieces."""

S5_TRAIN_STATE = _written(
    "eNprXlJcklrAuKwgsSgxt7hxeWpecn5KalHTipzEytSi4niDpiV5+UW5jUuLkxNzUo+LME6eyLwiKS0nP7HE0OwI2wF7EFxcnFrYttDpeD7j5Mks"
    "zEzLwdLGRkcSjig07D/wL3P/993B+/Urbfenm6nvn/dZYP/axK/7ZO6c2NcdNmfft4Xx+65NY9t3Rc9s74a/ura9XSx2a6fG2qUHzLb7fvW4XUf0"
    "F7ueAgH70M1q9rLfbOyfWgTbr63OtC/dV2+/0BlsJzMLPe10OS4JCgW4jTwgG82EmneBZFf6JOYmpSTGZ+YelwWqYoGrErC6/9/eY5aWw0eXUIc5"
    "7+sdYCqLUtFVHr67Z5/CBvP9hkc27d/KoXdgRU5+ejwomo7LMU6exMKIUGnAseDA7U1dB3h2Zx1IFHA4AIs1w9FYG0KxtjK/oASoMrEktXmhQfPS"
    "5PzSvJLjfIyTJyzNzANpYGFkYGBYlFtKcu48awuCOOP57JkztrTE2OKZ5nZixDOyLO54RjcHdzyjq8Qdz5gqicqdo7E2qGJtUR7pGa/ZCgRxRmG+"
    "ULMVLTG2KKS5nRhRiCyLOwrRzcEdhegqcUchpkqiMt5orA2qWFto2LDQqAEAQP/K3A=="
)
"""A TrainState of flax 0.12.8 after one step of adamw: two layers named as lindermanlab/S5 names them, and moments."""


def pack(value: Any) -> bytes:
    """Return a tree of mappings, lists, texts, numbers and tensors as flax packs it."""
    if isinstance(value, Tensor):
        return array(tuple(value.shape), str(value.dtype)[6:], _raw(value))
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return bytes([value]) if 0 <= value < 128 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xdb" + struct.pack(">I", len(raw))) + raw
    if isinstance(value, Mapping):
        head = bytes([0x80 | len(value)]) if len(value) < 16 else b"\xdf" + struct.pack(">I", len(value))
        return head + b"".join(pack(key) + pack(inside) for key, inside in value.items())
    return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))


def array(shape: tuple[int, ...], dtype: str, raw: bytes, kind: int = 1) -> bytes:
    """Return an array as flax packs it, whether or not the three fit."""
    triple = b"\x93" + pack(list(shape)) + pack(dtype) + b"\xc6" + struct.pack(">I", len(raw)) + raw
    return b"\xc9" + struct.pack(">Ib", len(triple), kind) + triple


def chunked(value: Tensor, size: int) -> dict[str, Any]:
    """Return an array in flat pieces of so many values, as flax splits those above a gigabyte."""
    pieces = value.flatten().split(size)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): length for axis, length in enumerate(value.shape)},
        "chunks": {str(number): piece for number, piece in enumerate(pieces)},
    }


def nested(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a state dict as the tree of mappings that JAX would have."""
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *path, last = name.split(".")
        node = tree
        for element in path:
            node = node.setdefault(element, {})
        node[last] = value
    return tree


def _raw(value: Tensor) -> bytes:
    return bytes(value.contiguous().flatten().view(torch.uint8).tolist()) if value.numel() else b""
