"""torch files (.pt, .pth, .bin, .ckpt): finds the weights, the settings and the step in what trainers save.

Pickles are read without running them (`inert_pickle`): classes become inert stand-ins whose content
stays readable. So research files full of omegaconf, Lightning and argparse objects open, and so do
whole pickled modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from ssmdiag.checkpoint.budget import Allowance, shortened, train_step
from ssmdiag.checkpoint.formats.inert_pickle import PLAIN_MODULES, StandIn
from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Source, Tensor
from ssmdiag.checkpoint.formats.pickled_settings import settings_of
from ssmdiag.checkpoint.formats.table import TensorTable
from ssmdiag.checkpoint.formats.torch_archive import BROKEN, TensorRecord, open_archive
from ssmdiag.checkpoint.formats.zip_file import PICKLES, member_names
from ssmdiag.checkpoint.names import Path, path_name
from ssmdiag.errors import CheckpointError
from ssmdiag.printable import first_of

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net", "module", "params", "ema", "model_ema")
"""Keys under which trainers put the weights, in the order they are tried."""

WRAPPER_KEYS = ("state", "train_state", "training_state")
"""Keys under which trainers put the weights together with the optimiser, as Composer does under `state`."""

SETTINGS_KEYS = ("hyper_parameters", "hparams", "config", "cfg", "args")
RANKS_KEY = "mp_world_size"
"""Number of files that DeepSpeed wrote, one for each tensor parallel rank."""
STEP_KEYS = ("global_step", "step", "iteration")
TRAINER_KEYS = frozenset({
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optimizer_state", "optim", "opt",
    "last_optimizer_state", "training_state", "train_state", "lr_schedulers", "scheduler", "lr_scheduler",
    "callbacks", "loops", "scaler", "amp", "rng_state", "cuda_rng_state", "random_rng_states",
})  # fmt: skip
"""Other things that trainers save; tensors in them are not the model's."""

MOST_REMARKED = 20
"""Names in one remark."""
DEEPEST_WEIGHTS, DEEPEST_WRAPPER = 100, 4
MOST_NESTED = 1_000_000
"""Most entries of nested mappings and lists searched for tensors: an object graph can be made to expand without end."""


class TorchFile(TensorTable):
    """One file written by `torch.save`."""

    broken = (*BROKEN, OSError)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.archive = open_archive(source)
        """The file's whole content, which may include an optimiser's state."""
        self.format = self.archive.format
        content = self.archive.content
        left = Allowance(MOST_NESTED)
        key, state = _state_dict(content, left)
        found = list(_leaves(state, left))
        self.entries = {name: leaf for name, leaf in found if isinstance(leaf, TensorRecord)}
        if not self.entries and left.spent:
            raise CheckpointError(
                f"{source.name} holds no tensors among its first {MOST_NESTED:,} entries: it expands without end.",
                expected="a state dict",
                advice="save model.state_dict() alone.",
            )
        if not self.entries:
            raise CheckpointError(
                f"{source.name} holds no tensors{_top_level(content)}.",
                expected=f"a state dict, at the top or under one of {', '.join(STATE_DICT_KEYS)}",
                advice="save model.state_dict().",
            )
        rest = {name: value for name, value in content.items() if name != key} if isinstance(content, Mapping) else {}
        self._remark(key, rest, [name for name, leaf in found if not isinstance(leaf, TensorRecord)])
        if left.spent:
            self.notes.append(f"it expands without end; its first {MOST_NESTED:,} entries were searched for tensors")
        self.train_step = train_step(next((rest[name] for name in STEP_KEYS if type(rest.get(name)) is int), None))
        settings = settings_of(next((rest[name] for name in SETTINGS_KEYS if name in rest), {}))
        ranks = rest.get(RANKS_KEY)
        self.settings = settings | ({RANKS_KEY: ranks} if type(ranks) is int else {})

    def values(self, name: str) -> Tensor:
        return self.entries[name].load(self.archive.read)

    def pieces(self, name: str) -> Iterable[tuple[int, int]]:
        return self.archive.pieces(self.entries[name])

    def place(self, name: str) -> Hashable:
        """Return the location of a tensor's values; tied tensors, which are stored once, have the same one."""
        return self.entries[name].place

    def _remark(self, key: str | None, rest: Mapping[Any, Any], unreadable: list[str]) -> None:
        packages = {name.partition(".")[0] for name in self.archive.names} - PLAIN_MODULES - {"torch", SCRIPTED}
        if packages:
            some = ", ".join([*sorted(packages)[:MOST_REMARKED], *["…"][: len(packages) - MOST_REMARKED]])
            self.notes.append(f"objects of {some} were read as plain data")
        candidates = [(name, value) for name, value in rest.items() if name not in TRAINER_KEYS][:MOST_REMARKED]
        others = [shortened(repr(name)) for name, value in candidates if _holds_tensors(value)]
        if key is not None and others:
            self.notes.append(f"the weights under {key!r} were read; tensors under {', '.join(others)} were not")
        if unreadable:
            self.notes.append(
                f"{len(unreadable):,} quantised, sparse or otherwise packed tensors were left out: "
                + first_of(unreadable)
            )


def _state_dict(content: Any, left: Allowance, depth: int = 0) -> tuple[str | None, Any]:
    """Return the mapping that holds the weights, and its key; None for the key if it is the whole content."""
    if not isinstance(content, Mapping) or depth > DEEPEST_WRAPPER:
        return None, content
    direct = sum(isinstance(value, TensorRecord) and bool(value.shape) for value in content.values())
    for key in STATE_DICT_KEYS:
        # {"model": …, "best_loss": tensor}: a stray tensor beside the weights does not make a state dict.
        if next(itertools.islice(_leaves(content.get(key), left), direct, None), None) is not None:
            inner = content[key]
            deeper, state = _state_dict(inner, left, depth + 1)
            return key, state if deeper in ("state_dict", "params") else inner
    for key in WRAPPER_KEYS:
        deeper, state = _state_dict(content.get(key), left, depth + 1)
        if deeper in STATE_DICT_KEYS:
            return key, state
    return None, {key: value for key, value in content.items() if key not in TRAINER_KEYS}


def _leaves(tree: Any, left: Allowance) -> Iterator[tuple[str, Any]]:
    """Yield every tensor of nested mappings, lists and pickled modules under its dotted name, up to a limit."""
    waiting: list[tuple[Any, Path, tuple[int, ...]]] = [(tree, None, ())]
    while waiting:
        node, path, above = waiting.pop()
        if isinstance(node, TensorRecord) or (isinstance(node, StandIn) and node.origin.startswith(_REBUILT)):
            name = path_name(path)
            if not left.take(1 + len(name) // 16):
                return
            yield name or "tensor", node
        if isinstance(node, TensorRecord) or id(node) in above or len(above) > DEEPEST_WEIGHTS:
            continue
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(node, StandIn):
            if isinstance(node.state, Mapping) and node.origin.startswith(f"{SCRIPTED}."):
                if not left.take(1 + len(node.state)):
                    return
                items = node.state.items()
            elif isinstance(node.state, Mapping):
                items = [(None, node.state.get(part)) for part in ("_parameters", "_buffers", "_modules")]
        elif isinstance(node, (Mapping, list, tuple)):
            if not left.take(1 + len(node)):
                return
            items = node.items() if isinstance(node, Mapping) else enumerate(node)
        inside = (*above, id(node))
        below = [
            (value, path if key is None else (path, key), inside)
            for key, value in items
            if isinstance(value, (TensorRecord, StandIn, Mapping, list, tuple))
        ]
        waiting += reversed(below)


SCRIPTED = "__torch__"
"""Package of the classes of TorchScript, whose objects have their parameters as attributes."""
_REBUILT = "torch._utils._rebuild"


def _holds_tensors(tree: Any) -> bool:
    return any(True for _ in _leaves(tree, Allowance(MOST_NESTED // 10)))


def _top_level(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        return f": its top level has {', '.join(shortened(str(key)) for key in list(content)[:8])}"
    return f": it is one {content.origin}" if isinstance(content, StandIn) and content.origin else ""


def _recognises(look: FirstLook) -> bool:
    # The length with which a safetensors file begins can look like the beginning of a pickle; JSON follows it.
    pickled = look.head[:1] == b"\x80" and look.head[8:9] != b"{"
    return pickled or any(name.endswith(PICKLES) for name in look.once(member_names))


FORMAT = Format(name="torch file", recognises=_recognises, open=TorchFile, suffixes=(".pt", ".pth", ".bin", ".ckpt"))
