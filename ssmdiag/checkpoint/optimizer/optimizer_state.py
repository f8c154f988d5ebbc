"""The optimiser state saved with a checkpoint: found, read and matched to the checkpoint's tensor names.

It is in the checkpoint's own file (Lightning, Composer, most training scripts), in optimizer.pt
or optimizer.bin beside the weights (transformers' Trainer, accelerate) or in DeepSpeed's files in
global_stepN/. No file is opened until the groups are asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ssmdiag.checkpoint.budget import require_file
from ssmdiag.checkpoint.checkpoint import Checkpoint, StoredTensor
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.checkpoint.file_names import LEFT_BY_TRANSFORMERS
from ssmdiag.checkpoint.formats.distributed import DistributedCheckpoint
from ssmdiag.checkpoint.formats.jax_tree import JaxTree
from ssmdiag.checkpoint.formats.pickled_settings import settings_of
from ssmdiag.checkpoint.formats.torch_archive import TensorRecord, TorchPickles, TorchZip, open_archive
from ssmdiag.checkpoint.formats.torch_file import TorchFile
from ssmdiag.checkpoint.location import Location, entries, source_of
from ssmdiag.checkpoint.names import clean_names
from ssmdiag.checkpoint.optimizer.group_membership import certain_groups
from ssmdiag.checkpoint.optimizer.groups import OptimizerGroup, OptimizerState
from ssmdiag.checkpoint.optimizer.optax_state import optax_groups
from ssmdiag.checkpoint.optimizer.saved_optimizer import (
    SavedGroup,
    SavedOptimizer,
    find_optimizers,
    name_by_partition,
    number,
    other_settings,
)
from ssmdiag.errors import CheckpointError, UnsafePickleError

BESIDE = re.compile(r"optimizer(_\d+)?\.(pt|bin)")
"""Files that transformers' Trainer and accelerate write beside the weights."""

PARTITIONED, SHAPES = "*_optim_states.pt", "*model_states.pt"
"""Files that DeepSpeed writes into global_stepN/, one per rank."""

OPTIMIZER_SETTINGS = (
    "optimizer", "optimizer._name_", "optimizer._target_", "optimizer.name", "optimizer.type",
    "optimizer.class_path", "optimizer_name", "optim",
)  # fmt: skip
"""Where the settings of a run name the optimiser."""

MOST_MATCHES = 16
"""Number of tensors compared with an optimiser's first name to find the prefix that all its names have."""

WITHOUT_DECAY = (
    re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)"),
    re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)|(^|[._])(ln|norm)(_?\d+|_\w+)?\.weight$"),
    re.compile(r"bias"),
)
"""Names that the Trainer's usual optimiser puts into its second group, without weight decay: what is called
bias or norm; also every torch.nn.LayerNorm, whatever its name; in older versions norms of other classes stay."""

BY_RULE = "assumed to be split as transformers' Trainer does, biases and norms apart; the shapes in both groups agree"

_BUFFERS = re.compile(r"(^|\.)(running_mean|running_var|inv_freq)$")


def read_optimizer_state(checkpoint: Checkpoint) -> OptimizerState:
    """Return the groups of the optimisers saved with a checkpoint; none where none were saved.

    Raises
    ------
    UnsafePickleError
        A file beside the weights asks for code to be run.
    """
    notes: list[str] = []
    files = dict.fromkeys(stored.container for stored in checkpoint.values())
    own = {stored.stored_name: stored.name for stored in checkpoint.values()}
    if found := [group for file in files if isinstance(file, JaxTree) for group in optax_groups(file, own)]:
        return OptimizerState(tuple(found))
    archives = [file.archive for file in files if isinstance(file, TorchFile)]
    saved = [optimizer for archive in archives for optimizer in find_optimizers(archive.content, archive.read)]
    saved += [
        optimizer
        for file in files
        if isinstance(file, DistributedCheckpoint)
        for state, read in file.training_states(notes)
        for optimizer in find_optimizers(state, read)
    ]
    if not saved and checkpoint.directory is not None:
        saved = _beside(checkpoint.directory, notes)
    if not saved:
        return OptimizerState(notes=tuple(notes))
    groups = [group for optimizer in saved for group in optimizer.groups]
    members, assumption, reason = _members(checkpoint, groups)
    usual = _optimizer_in_settings(checkpoint)
    optimizers = [optimizer.name or usual for optimizer in saved for _ in optimizer.groups]
    return OptimizerState(
        tuple(
            OptimizerGroup(
                learning_rate=number(group, "lr"),
                initial_learning_rate=number(group, "initial_lr"),
                weight_decay=number(group, "weight_decay"),
                parameters=tuple(names) or None,
                count=len(group.parameters),
                optimizer=optimizer,
                settings=other_settings(group),
                note=_note(len(group.parameters), len(names), assumption, reason),
            )
            for group, names, optimizer in zip(groups, members, optimizers, strict=True)
        ),
        tuple(notes),
    )


def _note(count: int, named: int, assumption: str, reason: str) -> str:
    unnamed = f"{count - named:,} of {count:,} parameters cannot be named: {reason}" if named < count else ""
    return "; ".join(filter(None, [assumption, unnamed]))


def _members(checkpoint: Checkpoint, groups: Sequence[SavedGroup]) -> tuple[list[list[str]], str, str]:
    """Return the names in each group, by names, places in the file or shapes.

    With them the assumption that they rest on, if any, and the reason why the other names are unknown.
    """
    absent = "they are not in the checkpoint"
    if all(group.names is not None for group in groups):
        home = _resolve([name for group in groups for name in group.names or ()], checkpoint)
        return [[home[name] for name in group.names or () if name in home] for group in groups], "", absent
    places: dict[Hashable, StoredTensor] = {}
    for stored in checkpoint.values():
        file = stored.container
        places.setdefault((file, file.place(stored.stored_name)) if isinstance(file, TorchFile) else stored, stored)
    if all(isinstance(parameter, TensorRecord) for group in groups for parameter in group.parameters):
        at = {place[1]: stored.name for place, stored in places.items() if isinstance(place, tuple)}
        return [[at[p.place] for p in group.parameters if p.place in at] for group in groups], "", absent
    tensors = [
        stored for stored in places.values() if is_number(stored.dtype) and not _BUFFERS.search(stored.stored_name)
    ]
    owner = certain_groups(
        [stored.stored_name for stored in tensors],
        [stored.shape for stored in tensors],
        [group.shapes for group in groups],
        in_order=all(isinstance(stored.container, TorchFile) for stored in tensors),
    )
    assumption = ""
    folder = checkpoint.directory
    by_trainer = folder is not None and any((folder / name).is_file() for name in LEFT_BY_TRANSFORMERS)
    if by_trainer and len(owner) < sum(len(group.parameters) for group in groups):
        by_rule = _by_the_trainers_rule(tensors, groups)
        if by_rule and all(by_rule.get(position, group) == group for position, group in owner.items()):
            owner, assumption = {**owner, **by_rule}, BY_RULE
    members: list[list[str]] = [[] for _ in groups]
    for position, group_number in sorted(owner.items()):
        members[group_number].append(tensors[position].name)
    return members, assumption, _why(groups, tensors)


def _by_the_trainers_rule(tensors: Sequence[StoredTensor], groups: Sequence[SavedGroup]) -> dict[int, int]:
    """Return tensor → group as transformers' Trainer splits them, if the shapes in both groups agree.

    Experts that are merged in memory but separate in the file differ in shape between the two; they are ignored.
    """
    shapes = [stored.shape for stored in tensors]
    held, wanted = Counter(shapes), Counter(shape for group in groups for shape in group.shapes)
    fit = {shape for shape in held if held[shape] == wanted[shape]}
    split = [Counter(shape for shape in group.shapes if shape in fit) for group in groups]
    for rule in WITHOUT_DECAY:
        owner = {
            position: int(bool(rule.search(stored.name.lower())))
            for position, stored in enumerate(tensors)
            if shapes[position] in fit
        }
        if split == [Counter(shapes[position] for position in owner if owner[position] == n) for n in (0, 1)]:
            return owner
    return {}


def _why(groups: Sequence[SavedGroup], tensors: Sequence[StoredTensor]) -> str:
    """Return why names cannot be found for parameters that the optimiser only numbers."""
    shapes = [shape for group in groups for shape in group.shapes]
    if len(shapes) > len(tensors):
        return f"the optimiser numbers {len(shapes):,} parameters and the checkpoint holds {len(tensors):,} tensors"
    if None in shapes:
        return "the optimiser numbers its parameters and stores no shapes"
    held = {stored.shape for stored in tensors}
    if strange := sum(shape not in held for shape in shapes):
        return (
            f"the optimiser numbers its parameters, and {strange:,} of their shapes match no tensor of the checkpoint"
        )
    return "the optimiser numbers its parameters, and their shapes match several tensors"


def _resolve(names: Sequence[str], checkpoint: Checkpoint) -> dict[str, str]:
    """Return name in the optimiser → name in the checkpoint; one of the two may have an extra prefix."""
    cleaned = dict(zip(names, clean_names(list(names)), strict=True))
    best: dict[str, str] = {name: clean for name, clean in cleaned.items() if clean in checkpoint}
    strange = next((clean for name, clean in cleaned.items() if name not in best), None)
    if strange is None:
        return best
    elements = strange.split(".")
    for strip in range(max(1, min(len(elements) - 1, 4))):
        for match in checkpoint.ending_in(".".join(elements[strip:]))[:MOST_MATCHES]:
            prefix = [*match.split(".")][: -len(elements[strip:])]
            moved = {name: ".".join([*prefix, *clean.split(".")[strip:]]) for name, clean in cleaned.items()}
            found = {name: new for name, new in moved.items() if new in checkpoint}
            if len(found) > len(best) and len(set(found.values())) == len(found):
                best = found
    return best


def _beside(directory: Location, notes: list[str]) -> list[SavedOptimizer]:
    """Return the optimisers in files beside the weights; add a note for each file that cannot be read."""
    try:
        present = sorted(entry.name for entry in directory.iterdir())
        own = [directory / name for name in present if BESIDE.fullmatch(name)]
        found = [optimizer for path in own for optimizer in _in_file(path, notes)]
        return found or (_partitioned(_newest_step(directory, present), notes) if not own else [])
    except OSError as error:
        notes.append(f"the files beside the weights cannot be listed ({error.strerror or error})")
        return []


def _in_file(path: Location, notes: list[str]) -> list[SavedOptimizer]:
    content = _open(path, notes)
    found = find_optimizers(content.content, content.read) if content else []
    if content and not found:
        notes.append(f"{path.name} holds no optimiser that can be read")
    return found


def _open(path: Location, notes: list[str]) -> TorchZip | TorchPickles | None:
    try:
        require_file(path)
        return open_archive(source_of(path))
    except UnsafePickleError:
        raise
    except (CheckpointError, OSError) as error:
        notes.append(f"the state of the optimiser was not read: {getattr(error, 'seen', error)}")
        return None


def _newest_step(directory: Location, present: Sequence[str]) -> Location:
    """Return where DeepSpeed put the files of the last step: the directory itself, or one in it."""
    steps = {name: int(name.removeprefix("global_step")) for name in present if re.fullmatch(r"global_step\d+", name)}
    return directory / max(steps, key=steps.__getitem__) if steps else directory


def _partitioned(directory: Location, notes: list[str]) -> list[SavedOptimizer]:
    """Return DeepSpeed's optimisers; the first rank's files give the groups and all names in them."""
    states, weights = (entries(directory, pattern) for pattern in (PARTITIONED, SHAPES))
    state = _open(states[0], notes) if states else None
    if state is None:
        return []
    model = _open(weights[0], notes) if weights else None
    shapes = model.content.get("param_shapes") if model and isinstance(model.content, Mapping) else None
    named = [name_by_partition(optimizer, shapes) for optimizer in find_optimizers(state.content, state.read)]
    kind = settings_of(state.content.get("ds_config")) if isinstance(state.content, Mapping) else {}
    known = [replace(optimizer, name=_class_name(kind.get("optimizer.type"))) for optimizer in named if optimizer]
    if len(known) < len(named) or not named:
        notes.append(f"{states[0].name}: the parameter groups of DeepSpeed's optimiser cannot be read or named")
        return []
    return known


def _optimizer_in_settings(checkpoint: Checkpoint) -> str | None:
    """Return the optimiser's name in the settings of the run or in transformers' training_args.bin."""
    if name := next(filter(None, (_class_name(checkpoint.settings.get(key)) for key in OPTIMIZER_SETTINGS)), None):
        return name
    arguments = checkpoint.directory / "training_args.bin" if checkpoint.directory is not None else None
    opened = _open(arguments, []) if arguments is not None and arguments.is_file() else None
    return _class_name(settings_of(opened.content).get("optim")) if opened else None


def _class_name(value: Any) -> str | None:
    return value.rpartition(".")[2] if isinstance(value, str) and 0 < len(value) < 100 else None
