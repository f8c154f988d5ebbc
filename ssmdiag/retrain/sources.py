"""Where a module that the tool does not build comes from: a function of the user's, or a directory of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.errors import CheckpointError, ConfigurationError, LayerError
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
    notes: tuple[str, ...] = ()


def function_source(name: str, weights: Path | None = None) -> ModelSource:
    """Return the source of `--model package.module:function`; `weights` is a checkpoint of the module to start with.

    Raises CheckpointError where that holds other tensors than the module, when the module is built.
    """
    if weights is None:
        return ModelSource(name, lambda seed: without_nan(name, build_model(name, seed)))

    def build(seed: int) -> nn.Module:
        module = build_model(name, seed)
        state = {tensor.stored_name: tensor.load() for tensor in read_checkpoint(weights).values()}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
            raise CheckpointError(
                f"{weights}: not the weights of {type(module).__name__}. {reasons}",
                expected="the state dict of the module that --model builds",
            ) from error
        return without_nan(str(weights), module)

    notes = (f"all arms start with the weights of {weights}",)
    return ModelSource(name, build, seeded=False, notes=notes)


def directory_source(path: Path) -> ModelSource:
    """Return the source of a directory that transformers' `save_pretrained` wrote, read without a network.

    Weights narrower than float32 are trained in float32. Code that lies in the directory is not run.
    Raises ConfigurationError without transformers, CheckpointError where it cannot make a causal language model of it.
    """
    transformers = import_transformers()
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{path}: no config.json in it.", expected="what save_pretrained wrote")
    title = str(path)
    notes: list[str] = []
    with _quietly(transformers):
        try:
            settings = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            vocabulary = int(settings.get_text_config().vocab_size)
        except Exception as error:  # whatever its many readers raise
            raise _unreadable(path, error) from error
    if _stored_dtype(settings) in (torch.float16, torch.bfloat16):
        notes.append(f"{path.name} is stored in {str(settings.dtype).removeprefix('torch.')} and trained in float32")
    return ModelSource(
        title,
        lambda seed: without_nan(title, _load(transformers, path)),
        config=config.read_bytes(),
        seeded=False,
        vocabulary=vocabulary,
        notes=tuple(notes),
    )


def import_transformers() -> Any:
    """Return the module. Raises ConfigurationError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigurationError(
            "a directory with config.json needs transformers to train.", advice="pip install 'ssmdiag[hf]'"
        ) from error
    return transformers


def settings_file(source: ModelSource, module: nn.Module, length: int | None) -> bytes:
    """Return config.json for the source's checkpoints: its own, or the module's settings and the sequence length."""
    from ssmdiag.reparam import read_module

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
    broken = [key for key, value in tensors.items() if value.isnan().any()]
    if broken:
        some = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise LayerError(
            f"{name}: {len(broken)} of {len(tensors)} weights hold NaN: {some}.",
            expected="numbers",
            advice="go back to a checkpoint from before they were.",
        )
    return module


def _load(transformers: Any, path: Path) -> nn.Module:
    with _quietly(transformers):
        try:
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, dtype="auto", output_loading_info=True
            )
        except Exception as error:
            raise _unreadable(path, error) from error
    absent = sorted([*loading["missing_keys"], *(str(entry) for entry in loading.get("mismatched_keys", ()))])
    if absent:
        raise CheckpointError(
            f"{path}: {len(absent)} weights of {type(model).__name__} are not in it, such as {absent[0]}; transformers "
            "would draw them at random.",
            expected="all weights of the model that config.json describes",
        )
    model.config.use_cache = False  # a state kept between calls has no gradient
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()
    for owner in model.modules():
        for key, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.dtype.itemsize < 4:
                owner._buffers[key] = buffer.float()
    return model


def _stored_dtype(settings: Any) -> torch.dtype | None:
    dtype = getattr(settings, "dtype", None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    own_code = "trust_remote_code" in str(error)
    return CheckpointError(
        f"{path}: transformers makes no causal language model of it ({type(error).__name__}: {reason}).",
        expected="what save_pretrained wrote, of an architecture that transformers itself has",
        advice="code in the directory is not run; build the model in a function: --model package.module:function."
        if own_code
        else "build the model in a function: --model package.module:function.",
    )


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Keep transformers' bars and remarks off the screen for a while."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
