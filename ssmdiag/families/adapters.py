"""Adapters of PEFT (LoRA and its kin): what they change of a model whose weights are elsewhere."""

from __future__ import annotations

import re
from collections import Counter

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.checkpoint.budget import MOST_CONFIG, parse_json, read_text, shortened
from ssmdiag.errors import UnknownFamilyError
from ssmdiag.printable import first_of

_FACTOR = re.compile(
    r"\.lora_(?:A|B|E|magnitude_vector|embedding_[AB])(?:\..*)?$|\.(?:ia3_l|hada_w\d_[ab]|lokr_w\d.*)$"
)
_HUB = re.compile(r"[\w.-]{1,100}/[\w.-]{1,100}", re.ASCII)


def adapter_error(checkpoint: Checkpoint) -> UnknownFamilyError | None:
    """Return the error for a file of an adapter without its base; None where it is none. Reads no values.

    The base is named by adapter_config.json beside it (huggingface/peft), which need not be there.
    """
    adapted = {name[: found.start()] for name in checkpoint if (found := _FACTOR.search(name))}
    if not adapted:
        return None
    counts = Counter(module.rpartition(".")[2] for module in sorted(adapted))
    modules = first_of([f"{module} ({count:,})" for module, count in counts.items()], 8)
    base = _base(checkpoint)
    named = shortened(base, 200) if base else "a model that no adapter_config.json beside it names"
    first = f"inspect hf://{base}" if base and _HUB.fullmatch(base) else "inspect the base model"
    return UnknownFamilyError(
        f"{checkpoint.path.name} is a PEFT adapter of {named}: {len(checkpoint):,} tensors, and no decay among them.",
        details=[f"it adapts {modules}"],
        expected="a whole model: the base, or the base with the adapter merged into it",
        advice=f"{first}; for the adapted model, call merge_and_unload() and save_pretrained(), then inspect that, and "
        "see with `ssmdiag compare --strict BASE MERGED` what the adapter changed.",
    )


def _base(checkpoint: Checkpoint) -> str | None:
    """Return the name of the base from adapter_config.json, None where it is not there or says none."""
    path = (checkpoint.directory or checkpoint.path.parent) / "adapter_config.json"
    try:
        base = parse_json(read_text(path, MOST_CONFIG))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) and base else None
