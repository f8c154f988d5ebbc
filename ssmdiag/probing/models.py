"""Live models from folders that transformers' `save_pretrained` wrote: no network is asked, no code in them is run."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmdiag.checkpoint.budget import MOST_CONFIG, MOST_TOKENIZER, parse_json, read_text, require_size
from ssmdiag.errors import CheckpointError, ConfigurationError, SsmdiagError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
ONLY_LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""What transformers may do: neither ask the network nor run code that lies beside weights."""
TYPES = ("float64", "float32", "bfloat16", "float16")


def open_model(
    path: Path, *, device: str = "cpu", dtype: str | None = None, device_map: str | dict[str, Any] | None = None
) -> nn.Module:
    """Return the causal language model in a folder, in evaluation mode and keeping no cache.

    `dtype`: one of TYPES; None: as it is stored. `device_map`: as transformers and accelerate read it ("auto" spreads
    a model over all GPUs and the CPU's memory); `device` is then not used.
    Raises CheckpointError where the folder makes no such model, SsmdiagError where memory runs out.
    """
    if dtype not in (None, *TYPES):
        raise ConfigurationError(f"dtype {dtype}.", expected=f"one of {', '.join(TYPES)}")
    transformers = import_transformers()
    require_pretrained(path)
    where = {}
    if device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise ConfigurationError("device_map needs accelerate.", advice="pip install accelerate")
        where = {"device_map": device_map}
    try:
        model = load_pretrained(transformers, path, dtype=dtype or "auto", **where)
        model = model if where else model.to(device)
    except torch.OutOfMemoryError as error:
        raise SsmdiagError(
            f"{path.name} does not fit into the memory of {device}.",
            advice="--dtype bfloat16 halves it; --device-map auto spreads it over all GPUs and the CPU's memory.",
        ) from error
    model.config.use_cache = False
    return model.eval()


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the number of tokens a model of transformers takes; None for any other module."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None


def import_transformers() -> Any:
    """Return the module. Raises ConfigurationError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigurationError(
            "a directory with config.json needs transformers to run.", advice="pip install 'ssmdiag[hf]'"
        ) from error
    return transformers


def require_pretrained(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder's tokenizer. Raises CheckpointError where its settings cannot be read."""
    if not folder.is_dir():
        seen = f"{folder} is a file." if folder.exists() else f"{folder} does not exist."
        model = (folder.parent / "config.json").is_file()
        raise CheckpointError(
            seen,
            expected="a folder that save_pretrained wrote",
            instead=(str(folder), str(folder.parent)) if model else None,
        )
    if not (folder / "config.json").is_file():
        models = [entry.parent for entry in folder.glob("*/config.json")]
        last = max(
            models, key=lambda entry: (int((re.findall(r"\d{1,18}", entry.name) or [-1])[-1]), entry.name), default=None
        )
        raise CheckpointError(
            f"{folder}: no config.json in it.",
            expected="what save_pretrained wrote",
            instead=(str(folder), str(last)) if last else None,
        )
    config = folder / "config.json"
    try:
        parse_json(read_text(config, MOST_CONFIG))
        tokenizer = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
        for file in tokenizer:
            require_size(file, MOST_TOKENIZER)
    except (OSError, ValueError) as error:
        name, reason = getattr(error, "filename", None) or config, getattr(error, "strerror", None) or error
        raise CheckpointError(f"{name} cannot be read: {reason}.", expected="what save_pretrained wrote") from error
    return tokenizer


def load_pretrained(transformers: Any, path: Path, **options: Any) -> Any:
    """Return the causal language model in a folder, with all of its weights from there. Raises CheckpointError."""
    with read_by(transformers, path):
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, **ONLY_LOCAL, **options
        )
    absent = sorted([*loading["missing_keys"], *(str(entry) for entry in loading.get("mismatched_keys", ()))])
    if absent:
        raise CheckpointError(
            f"{path}: {len(absent)} weights of {type(model).__name__} are not in it, such as {absent[0]}; transformers "
            "would draw them at random.",
            expected="all weights of the model that config.json describes",
        )
    return model


@contextmanager
def read_by(transformers: Any, path: Path) -> Iterator[None]:
    """Silence transformers' progress bars and remarks, and raise CheckpointError for whatever its readers raise."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        own_code = "trust_remote_code" in str(error)
        raise CheckpointError(
            f"{path}: transformers makes no causal language model of it ({describe_error(error)}).",
            expected="what save_pretrained wrote, of an architecture that transformers itself has",
            advice=f"{'code in the directory is not run; ' * own_code}build the model in a function: --model "
            "package.module:function.",
        ) from error
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def describe_error(error: Exception) -> str:
    """Return what kind of error this is, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
