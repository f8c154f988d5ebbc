"""flax msgpack (flax.serialization): finds the weights and the step in a tree of mappings whose leaves are arrays.

`msgpack` reads the tree and skips the values, which are read on request.
"""

from __future__ import annotations

import struct

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Source
from ssmdiag.checkpoint.formats.jax_tree import JaxTree
from ssmdiag.checkpoint.formats.msgpack import read_tree
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.errors import CheckpointError


class FlaxFile(JaxTree):
    """One file of flax.serialization."""

    format = "flax msgpack"
    called = "array"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        try:
            with source.open() as file:
                tree = read_tree(file, source.size)
            self.take(tree)
        except (TornError, EOFError, UnicodeDecodeError, struct.error) as error:
            raise CheckpointError(
                f"{source.name} is torn or not a checkpoint of flax ({error}).",
                expected="what flax.serialization.to_bytes or msgpack_serialize writes",
                advice="save or download it again.",
            ) from error
        if not self.entries:
            top = f" (its top level has {', '.join(map(shortened, list(tree)[:8]))})" if tree else ""
            raise CheckpointError(
                f"{source.name} is not a checkpoint of flax: msgpack without arrays of numbers{top}.",
                expected="flax.serialization.to_bytes(params)",
                advice="save the parameters.",
            )


def _recognises(look: FirstLook) -> bool:
    """Whether it begins with a mapping whose first key is text, and not with the length that begins safetensors."""
    head = look.head
    start = 1 if 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], 0)
    kind = head[start : start + 1]
    if not start or not kind or head[4:9] == b"\0\0\0\0{":
        return False
    if 0xA1 <= kind[0] <= 0xBF:
        key = head[start + 1 :][: kind[0] & 0x1F]
    elif kind == b"\xd9":
        key = head[start + 2 :][: head[start + 1]] if len(head) > start + 1 else b""
    else:
        return False
    text = key.decode(errors="replace")
    return bool(key) and text.isprintable() and "\ufffd" not in text


FORMAT = Format(name="flax msgpack", recognises=_recognises, open=FlaxFile, suffixes=(".msgpack",))
