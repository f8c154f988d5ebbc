"""torch files (.pt, .pth, .bin, .ckpt): where trainers put the weights, the settings and the step.

Pickles are read without running them (`inert_pickle`), so research files full of omegaconf,
Lightning and argparse objects open, and so do whole pickled modules: classes become inert
stand-ins, and what they hold stays readable.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.checkpoint.inert_pickle import PLAIN_MODULES, StandIn, UnsafeName
from ssmdiag.checkpoint.saved_optimizer import SavedOptimizer, find_optimizers
from ssmdiag.checkpoint.torch_archive import BROKEN, TensorRecord, TorchPickles, TorchZip, open_archive
from ssmdiag.errors import CheckpointError, UnsafePickleError

if TYPE_CHECKING:
    from torch import Tensor

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net", "module", "params", "ema", "model_ema")
"""Where trainers put the weights, in the order they are looked for."""

WRAPPER_KEYS = ("state", "train_state", "training_state")
"""Where trainers put the weights together with the optimiser, as Composer does under `state`."""

SETTINGS_KEYS = ("hyper_parameters", "hparams", "config", "cfg", "args")
STEP_KEYS = ("global_step", "step", "iteration")
TRAINER_KEYS = frozenset({
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optimizer_state", "optim", "opt",
    "last_optimizer_state", "training_state", "train_state", "lr_schedulers", "scheduler", "lr_scheduler",
    "callbacks", "loops", "scaler", "amp", "rng_state", "cuda_rng_state", "random_rng_states",
})  # fmt: skip
"""What else trainers save; its tensors are not the model's."""

_SETTING = (str, int, float, bool, list, tuple, Mapping, type(None))
_REFERENCE = re.compile(r"\$\{(.*)\}")
MOST_SETTINGS, DEEPEST_SETTING = 100_000, 32
"""Settings read from one file, and how deep: an object graph can be made to unfold without end."""
MOST_NESTED = 200_000
"""Nested mappings and lists looked into for tensors, for the same reason."""


class TorchFile:
    """One file written by `torch.save`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._archive = open_pickle(path)
        self.format = self._archive.format
        content = self._archive.content
        key, state = _state_dict(content)
        found = list(_leaves(state))
        self._tensors = {name: leaf for name, leaf in found if isinstance(leaf, TensorRecord)}
        if not self._tensors:
            raise CheckpointError(
                f"{path.name} holds no tensors{_top_level(content)}.",
                expected=f"a state dict, at the top or under one of {', '.join(STATE_DICT_KEYS)}",
                advice="save model.state_dict().",
            )
        rest = {name: value for name, value in content.items() if name != key} if isinstance(content, Mapping) else {}
        self._remark(key, rest, [name for name, leaf in found if not isinstance(leaf, TensorRecord)])
        step = next((rest[name] for name in STEP_KEYS if type(rest.get(name)) is int), None)
        self.train_step: int | None = step
        self.settings: Mapping[str, Any] = settings_of(next((rest[name] for name in SETTINGS_KEYS if name in rest), {}))

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].size

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def load(self, name: str) -> Tensor:
        try:
            return self._tensors[name].load(self._archive.read)
        except BROKEN as error:
            raise CheckpointError(
                f"{self.path.name}: tensor {name} cannot be read ({error}).", advice="save or download the file again."
            ) from error

    def place(self, name: str) -> Hashable:
        """Return where the values of a tensor are; the same for tied tensors, which are stored once."""
        return self._tensors[name].place

    def saved_optimizers(self) -> list[SavedOptimizer]:
        """Return the optimisers whose state the file carries."""
        return find_optimizers(self._archive.content, self._archive.read)

    def _remark(self, key: str | None, rest: Mapping[Any, Any], unreadable: list[str]) -> None:
        packages = sorted({name.partition(".")[0] for name in self._archive.names} - PLAIN_MODULES - {"torch"})
        if packages:
            self.notes.append(f"objects of {', '.join(packages)} were not built; what they hold was read as plain data")
        others = [repr(name) for name, value in rest.items() if name not in TRAINER_KEYS and _holds_tensors(value)]
        if key is not None and others:
            self.notes.append(f"the weights under {key!r} were read; tensors under {', '.join(others)} were not")
        if unreadable:
            self.notes.append(
                f"{len(unreadable):,} quantised, sparse or otherwise packed tensors were left out: "
                + ", ".join(unreadable[:3]) + (" …" if len(unreadable) > 3 else "")
            )  # fmt: skip


def open_pickle(path: Path) -> TorchZip | TorchPickles:
    """Return what torch.save wrote. Raises CheckpointError, and UnsafePickleError where code is called for."""
    try:
        return open_archive(path)
    except UnsafeName as error:
        raise UnsafePickleError(
            f"{path.name} is refused: its pickle calls for {error.name}. Nothing of it was run.",
            expected="tensors and plain settings",
            advice="ask whoever made the file for a .safetensors; do not torch.load this one.",
        ) from error


def settings_of(tree: Any) -> dict[str, Any]:
    """Return settings flat and dotted, with omegaconf, Namespace and other objects opened."""
    flat: dict[str, Any] = {}
    left: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    for _ in range(MOST_SETTINGS):
        if not left:
            break
        path, value = left.pop()
        value = _plain(value)
        if isinstance(value, (list, tuple)):
            value = [item if isinstance(item, _SETTING) else None for item in map(_plain, value)]
            if any(isinstance(item, Mapping) for item in value):
                value = dict(enumerate(value))
        if isinstance(value, Mapping) and len(path) < DEEPEST_SETTING:
            left += reversed([((*path, str(key)), item) for key, item in value.items()])
        elif path and isinstance(value, _SETTING):
            flat[".".join(path)] = value
    return {key: value for key, value in _followed(flat) if not _REFERENCE.fullmatch(str(value))}


def _followed(flat: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings with omegaconf's absolute references, ${model.d_model}, replaced by what they name."""
    for key, value in flat.items():
        for _ in range(8):
            found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            value = flat.get(found[1], value) if found else value
        yield key, value


def _plain(value: Any) -> Any:
    """Return what an object of an unknown class holds: its attributes, its items or the one value it was made of."""
    for _ in range(8):  # wrappers within wrappers
        if not isinstance(value, StandIn):
            break
        state = value.state
        if isinstance(state, tuple) and len(state) == 2:  # attributes, slots
            state = {key: item for part in state if isinstance(part, Mapping) for key, item in part.items()}
        if isinstance(state, Mapping) and state:
            value = state.get("_content", state.get("_val", state))  # omegaconf: container, leaf
        elif value.items is not None:
            value = value.items
        elif len(value.arguments) == 1:  # an enum's value
            value = value.arguments[0]
        else:
            break
    if isinstance(value, type) and issubclass(value, StandIn) and value.attribute:  # a member of an enum, by its name
        return value.attribute
    return value


def _state_dict(content: Any, depth: int = 0) -> tuple[str | None, Any]:
    """Return the mapping that holds the weights and the key it stood under, None if it is the whole."""
    if not isinstance(content, Mapping) or depth > DEEPEST_SETTING:
        return None, content
    direct = sum(isinstance(value, TensorRecord) and bool(value.size) for value in content.values())
    for key in STATE_DICT_KEYS:
        # {"model": …, "best_loss": tensor}: a stray tensor beside the weights does not make a state dict.
        if sum(1 for _ in _leaves(content.get(key))) > direct:
            inner = content[key]
            deeper, state = _state_dict(inner, depth + 1)
            return key, state if deeper in ("state_dict", "params") else inner
    for key in WRAPPER_KEYS:
        deeper, state = _state_dict(content.get(key), depth + 1)
        if deeper in STATE_DICT_KEYS:
            return key, state
    return None, {key: value for key, value in content.items() if key not in TRAINER_KEYS}


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every tensor of nested mappings, lists and pickled modules, under its dotted name, while it is sane."""
    return _leaves_below(tree, "", (), itertools.repeat(True, MOST_NESTED))


def _leaves_below(tree: Any, prefix: str, above: tuple[int, ...], left: Iterator[bool]) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, TensorRecord):
        yield prefix or "tensor", tree
    elif isinstance(tree, StandIn):
        if tree.origin.startswith("torch._utils._rebuild"):
            yield prefix, tree
        for part in ("_parameters", "_buffers", "_modules") if isinstance(tree.state, Mapping) else ():
            if id(tree) not in above:
                yield from _leaves_below(tree.state.get(part), prefix, (*above, id(tree)), left)
    elif isinstance(tree, (Mapping, list, tuple)) and id(tree) not in above and len(above) < 100 and next(left, False):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _leaves_below(value, f"{prefix}.{key}" if prefix else str(key), (*above, id(tree)), left)


def _holds_tensors(tree: Any) -> bool:
    return any(True for _ in _leaves(tree))


def _top_level(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        return f": its top level has {', '.join(str(key) for key in list(content)[:8])}"
    return f": it is one {content.origin}" if isinstance(content, StandIn) and content.origin else ""
