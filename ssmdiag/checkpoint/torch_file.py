"""torch pickles (.pt, .pth, .bin, .ckpt), mapped into memory and read without running their code.

`torch.load(weights_only=True)` refuses every class it does not know, and research checkpoints are
full of them (omegaconf, Lightning, argparse). Such classes are replaced by inert stand-ins that
accept anything and do nothing, so their plain contents – hyper-parameters above all – stay readable.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.checkpoint.checkpoint import flatten
from ssmdiag.errors import CheckpointError, UnsafePickleError

if TYPE_CHECKING:
    from torch import Tensor

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net", "module", "params", "ema", "model_ema")
"""Where trainers put the weights, in the order they are looked for."""

# fmt: off
_CODE_RUNNING = frozenset({
    "os", "nt", "posix", "sys", "subprocess", "socket", "shutil", "importlib", "runpy", "pty", "ctypes", "code",
    "codeop", "pdb", "timeit", "webbrowser", "asyncio", "multiprocessing", "threading", "signal", "pip",
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__", "builtins.input",
    "builtins.breakpoint", "__builtin__.eval", "__builtin__.exec", "__builtin__.compile", "__builtin__.open",
    "__builtin__.execfile", "__builtin__.__import__",
})
# fmt: on
"""Modules and functions that no checkpoint has reason to name."""


class TorchFile:
    """One file written by `torch.save`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        content = self._read()
        key, state = _state_dict(content)
        self._tensors = dict(_tensors(state))
        if not self._tensors:
            raise CheckpointError(
                f"{path.name} holds no tensors"
                + (
                    f": its top level has {', '.join(map(str, list(content)[:8]))}."
                    if isinstance(content, Mapping)
                    else "."
                ),
                expected=f"a state dict, at the top or under one of {', '.join(STATE_DICT_KEYS)}",
                advice="save model.state_dict().",
            )
        rest = content if key is not None and isinstance(content, Mapping) else {}
        others = [name for name in STATE_DICT_KEYS if name != key and any(True for _ in _tensors(rest.get(name)))]
        if others:
            self.notes.append(f"read the weights under {key!r}; {', '.join(map(repr, others))} hold others")
        step = rest.get("global_step", rest.get("step", rest.get("iteration")))
        self.train_step = step if isinstance(step, int) and not isinstance(step, bool) else None
        found: Any = next((rest[k] for k in ("hyper_parameters", "hparams", "config", "cfg", "args") if k in rest), {})
        self.hyper_parameters = flatten(_plain(found))
        self.optimizer_states = rest.get("optimizer_states", rest.get("optimizer"))

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def load(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def _read(self) -> Any:
        import torch

        is_zip = zipfile.is_zipfile(self.path)
        self.container = "torch zip" if is_zip else "torch pickle, old format"
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(self.path) if is_zip else []
            self._refuse_code(names)
            if names:
                self.notes.append(
                    f"objects of {_modules(names)} in the file were not loaded, only their plain contents"
                )
            stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            raise self._refused(error) from error
        except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, OSError, IndexError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if "TorchScript" in str(error) or "constants.pkl" in str(error):
                raise CheckpointError(
                    f"{self.path.name} is a TorchScript archive, which holds code.",
                    advice="torch.save(torch.jit.load(path).state_dict(), 'weights.pt') and inspect that.",
                ) from error
            raise CheckpointError(
                f"{self.path.name} is torn or not a torch checkpoint ({first}).", advice="save or download it again."
            ) from error

    def _refuse_code(self, names: list[str]) -> None:
        wanted = [name for name in names if name in _CODE_RUNNING or name.split(".")[0] in _CODE_RUNNING]
        if wanted:
            raise UnsafePickleError(
                f"{self.path.name} is refused: its pickle calls {', '.join(wanted)}. Nothing of it was run.",
                expected="tensors and plain settings",
                advice="ask whoever made the file for a .safetensors; do not torch.load this one.",
            )

    def _refused(self, error: Exception) -> CheckpointError:
        import re

        blocked = re.search(r"unsupported GLOBAL (\S+)", str(error))
        if blocked:
            self._refuse_code([blocked.group(1).replace("posix.", "os.")])
        named = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        what = f"it needs the class {named.group(1)}" if named else str(error).strip().splitlines()[0]
        return UnsafePickleError(
            f"{self.path.name} is refused: it cannot be read as weights alone ({what}).",
            advice="where it was written: safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        )


class _StandIn:
    """Takes the place of a class the file names; keeps what it is given, runs nothing."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> _StandIn:
        self = super().__new__(cls)
        self.__dict__["arguments"] = arguments
        return self

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def __hash__(self) -> int:
        return id(self)


def _stand_in(name: str) -> type[_StandIn]:
    return type(name.rpartition(".")[2] or "StandIn", (_StandIn,), {"__module__": "ssmdiag.stand_in"})


def _plain(value: Any) -> Any:
    """Return settings as plain dicts, lists and scalars; omegaconf and Namespace contents included."""
    if isinstance(value, _StandIn):
        state = value.__dict__.get("state", value.__dict__.get("items"))
        if isinstance(state, Mapping):
            if "_content" in state:  # omegaconf container
                return _plain(state["_content"])
            if "_val" in state:  # omegaconf leaf
                return _plain(state["_val"])
            return _plain(dict(state))
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _state_dict(content: Any) -> tuple[str | None, Any]:
    """Return the mapping that holds the weights and the key it stood under."""
    if not isinstance(content, Mapping):
        return None, content
    if any(_is_tensor(value) for value in content.values()):
        return None, content
    for key in STATE_DICT_KEYS:
        if any(True for _ in _tensors(content.get(key))):
            inner = content[key]
            deeper, state = _state_dict(inner) if isinstance(inner, Mapping) else (None, inner)
            return (key, state) if deeper in ("state_dict", "params", None) else (key, inner)
    return None, content


def _tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor of nested mappings under its dotted name."""
    if _is_tensor(tree):
        yield prefix or "tensor", tree
    elif isinstance(tree, _StandIn):  # a whole pickled nn.Module
        state = tree.__dict__.get("state")
        for part in ("_parameters", "_buffers", "_modules"):
            yield from _tensors(state.get(part) if isinstance(state, Mapping) else None, prefix)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _modules(names: list[str]) -> str:
    return ", ".join(sorted({name.split(".")[0] for name in names}))
