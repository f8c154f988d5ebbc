"""Where a user's module comes from: a function, or a directory of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.checkpoint.budget import MOST_CONFIG, parse_json, read_text
from ssmdiag.checkpoint.file_names import WEIGHTS
from ssmdiag.errors import CheckpointError, LayerError
from ssmdiag.probing.models import ONLY_LOCAL, import_transformers, load_pretrained, read_by, require_pretrained
from ssmdiag.reparam import read_module
from ssmdiag.retrain.seeding import seeded
from ssmdiag.retrain.user_code import build_model


@dataclass(frozen=True, eq=False)
class ModelSource:
    """What builds a module, and what others need to read its checkpoints."""

    name: str
    """As the user gave it."""
    build: Callable[[int], nn.Module]
    """Seed → module, on the CPU."""
    config: bytes | None = None
    """config.json to lie beside its checkpoints; None: the settings the module carries."""
    seeded: bool = True
    """Whether the seed decides the initial weights."""
    vocabulary: int | None = None
    """Number of tokens, for a language model."""
    tokenizer: tuple[Path, ...] = ()
    """Files of its tokenizer, saved beside its checkpoints: training from one of them needs the same tokens."""
    notes: tuple[str, ...] = ()


def function_source(name: str, weights: Path | None = None) -> ModelSource:
    """Return the source of `--model package.module:function`; `weights` is a checkpoint of the module to start with.

    Raises CheckpointError where that holds other tensors than the module, when the module is built.
    """

    def build(seed: int) -> nn.Module:
        module = build_model(name, seed)
        if weights is not None:
            _load_into(module, weights, "the state dict of the module that --model builds")
        return without_nan(str(weights or name), module)

    notes = (f"all arms start with the weights of {weights}",) if weights else ()
    return ModelSource(name, build, seeded=weights is None, notes=notes)


def of_transformers(path: Path) -> bool:
    """Whether PATH is a directory, or a checkpoint that retraining one saved: its config.json names an architecture."""
    return path.is_dir() or (path.name.startswith("step-") and path.is_file() and bool(_architecture(path.parent)))


def directory_source(path: Path) -> ModelSource:
    """Return the source of a directory that transformers' `save_pretrained` wrote, read without a network.

    Or of a step-….safetensors that retraining such a directory saved, with config.json beside it. Weights narrower
    than float32 are trained in float32. Code that lies in the directory is not run.
    Raises ConfigurationError without transformers, CheckpointError where it cannot make a causal language model of it.
    """
    transformers = import_transformers()
    folder = path.parent if path.is_file() else path
    if path == folder:
        _require_no_run(path)
    tokenizer = require_pretrained(folder)
    load = _load if path == folder else _load_step
    with read_by(transformers, path):
        settings = transformers.AutoConfig.from_pretrained(folder, **ONLY_LOCAL)
        vocabulary = int(settings.get_text_config().vocab_size)
    dtype = str(getattr(settings, "dtype", None)).removeprefix("torch.")
    narrow = path == folder and dtype in ("float16", "bfloat16")
    return ModelSource(
        str(path),
        lambda seed: without_nan(str(path), load(transformers, path)),
        config=(folder / "config.json").read_bytes(),
        seeded=False,
        vocabulary=vocabulary,
        notes=(f"{folder.name} is stored in {dtype} and trained in float32",) * narrow,
        tokenizer=tokenizer,
    )


def settings_file(source: ModelSource, module: nn.Module, length: int | None) -> bytes:
    """Return config.json for the source's checkpoints: its own, or the module's settings and the sequence length."""
    if source.config is not None:
        return source.config
    settings: dict[str, Any] = {"seq_len": length} if length else {}
    carried: Mapping[str, Any] = read_module(module).config
    return json.dumps({**settings, **carried}, indent=2, default=str).encode() + b"\n"


def without_nan(name: str, module: nn.Module) -> nn.Module:
    """Return the module. Raises LayerError where a weight of it is NaN, or it has none."""
    tensors = {key: value for key, value in module.named_parameters() if value.device.type != "meta"}
    if not tensors:
        raise LayerError(f"{name}: {type(module).__name__} has no weights in memory.", expected="an nn.Module to train")
    refuse_nan(name, tensors)
    return module


def refuse_nan(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise LayerError where a weight is NaN."""
    broken = [key for key, value in tensors.items() if value.isnan().any()]
    if broken:
        some = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise LayerError(
            f"{name}: {len(broken)} of {len(tensors)} weights hold NaN: {some}.",
            expected="numbers",
            advice="go back to a checkpoint without NaN.",
        )


def _load(transformers: Any, path: Path) -> nn.Module:
    return _to_train(load_pretrained(transformers, path, dtype="auto"))


def _load_step(transformers: Any, path: Path) -> nn.Module:
    with read_by(transformers, path.parent), seeded("model"):
        settings = transformers.AutoConfig.from_pretrained(path.parent, **ONLY_LOCAL)
        model = _to_train(transformers.AutoModelForCausalLM.from_config(settings, trust_remote_code=False))
    _load_into(model, path, "the state dict of the model that config.json beside it describes")
    return model


def _load_into(module: nn.Module, path: Path, expected: str) -> None:
    state = {tensor.stored_name: tensor.load() for tensor in read_checkpoint(path).values()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise CheckpointError(
            f"{path}: not the weights of {type(module).__name__}. {reasons}", expected=expected
        ) from error


def _to_train(model: Any) -> nn.Module:
    """Return a model of transformers without what is narrower than float32, or for inference alone."""
    model.config.use_cache = False  # a state kept between calls has no gradient
    model._apply(lambda value: value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value)
    return model


def _architecture(folder: Path) -> str | None:
    """Return the model type in a directory's config.json, where there is one."""
    try:
        content = parse_json(read_text(folder / "config.json", MOST_CONFIG))
    except (OSError, ValueError):
        return None
    found = content.get("model_type") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def _require_no_run(path: Path) -> None:
    """Raise CheckpointError for the folder of an arm or of a whole run, and name a checkpoint in it."""
    steps = sorted(path.glob("step-*.*"))
    below = sorted(path.glob("*/step-*.*"))
    if (steps or below) and not any((path / name).exists() for name in WEIGHTS):
        kind = f"one arm's folder, with {len(steps)} checkpoints" if steps else "the folder of a run"
        raise CheckpointError(
            f"{path} is {kind}.",
            expected="one of its step-….safetensors, or what save_pretrained wrote",
            advice=f"to go on from the last, name it: {(steps or below)[-1]}",
        )
