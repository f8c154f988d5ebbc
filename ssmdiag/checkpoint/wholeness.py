"""Whether a checkpoint is a whole model: no emptied tensors, no layer missing from the middle or the end."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection

from ssmdiag.checkpoint.checkpoint import Checkpoint
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.errors import PartialModelError
from ssmdiag.printable import first_of

STACKS = frozenset({"layers", "layer", "blocks", "block", "blk", "h"})
"""Names of lists of layers in which every number has tensors."""
DEPTHS = ("num_hidden_layers", "n_layer")
"""Settings of config.json that count the layers of such a list."""


def require_whole(checkpoint: Checkpoint) -> None:
    """Raise PartialModelError where tensors were emptied or layers are missing. Reads no values."""
    _require_values(checkpoint)
    _require_layers(checkpoint)


def _require_values(checkpoint: Checkpoint) -> None:
    """Refuse what ZeRO-3 saves when its partitions are not gathered: all tensors, or the large ones, of shape (0,)."""
    floats = [name for name, tensor in checkpoint.items() if is_number(tensor.dtype)]
    empty = [name for name in floats if checkpoint[name].shape == (0,)]
    weights = [name for name in empty if name.endswith("weight")]
    if not empty or (not weights and 2 * len(empty) <= len(floats)):
        return
    many = "all" if len(empty) == len(floats) else f"{len(empty):,} of"
    raise PartialModelError(
        f"{checkpoint.path.name} has names but no values: {many} {len(floats):,} tensors are empty, as "
        f"{(weights or empty)[0]}.",
        expected="weights; ZeRO-3 leaves such tensors where a model is saved before its partitions are gathered",
        advice="run zero_to_fp32.py of the DeepSpeed checkpoint (python zero_to_fp32.py DIR OUT), or save with "
        "stage3_gather_16bit_weights_on_model_save; then inspect the result.",
    )


def _require_layers(checkpoint: Checkpoint) -> None:
    """Refuse a list of layers with a gap, in files that hold a whole model or state how many layers it has."""
    stacks: dict[str, set[int]] = defaultdict(set)
    for name in checkpoint:
        elements = name.split(".", 8)
        for position, element in enumerate(elements[:-1]):
            if re.fullmatch(r"\d{1,6}", elements[position + 1]) and element in STACKS:
                stacks[".".join(elements[: position + 1])].add(int(elements[position + 1]))
                break
    depth = _depth(checkpoint)
    deep = sum(map(len, stacks.values()))
    sharded = len({id(tensor.container) for tensor in checkpoint.values()}) > 1
    adapter = any("lora_" in name for name in checkpoint)
    for stack, numbers in stacks.items():
        last = max(numbers)
        missing = set[int]()
        if sharded:
            missing = set(range(min(1, min(numbers)), last)) - numbers
        if depth is not None and deep < depth and last < depth and not adapter and not _is_excerpt(numbers, depth):
            missing = set(range(depth)) - numbers
        if missing:
            counted = f" of the {depth:,} that config.json counts" if depth is not None and depth > last else ""
            raise PartialModelError(
                f"{checkpoint.path.name} lacks {len(missing):,} layer{'s' * (len(missing) > 1)}{counted}: {stack} has "
                f"no tensor of {first_of(list(map(str, sorted(missing))), 6)}.",
                expected=f"every layer from 0 to {max(last, (depth or 0) - 1):,}",
                advice="a shard, an index or a stage of a pipeline is incomplete: get the rest, then inspect it again.",
            )


def _is_excerpt(numbers: Collection[int], depth: int) -> bool:
    """Whether so few layers are left that they were cut out on purpose, and they are not a pipeline stage.

    Pipeline stages of equal length hold consecutive layers, and each begins at a multiple of that length.
    """
    count, first = len(numbers), min(numbers)
    stage = max(numbers) - first == count - 1 and depth % count == first % count == 0
    return count == 1 or (2 * count < depth and not stage)


def _depth(checkpoint: Checkpoint) -> int | None:
    """Return the number of layers in config.json; None where it gives none or contradicts itself."""
    said = [value for key, value in flatten(checkpoint.config).items() if key.rpartition(".")[2] in DEPTHS]
    depth = said[0] if said and all(value == said[0] for value in said) else None
    return depth if type(depth) is int and 1 < depth <= 10_000 else None
