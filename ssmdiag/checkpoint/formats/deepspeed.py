"""Checkpoints of DeepSpeed's ZeRO: each rank has a share of the optimiser's flat float32 copies of the weights.

The files are read together, and each weight is cut out of the shares. How DeepSpeed lays them out is in its
runtime/engine.py (`_get_zero_param_shapes`), runtime/zero/stage_1_and_2.py and stage3.py (`state_dict`) and
utils/zero_to_fp32.py (deepspeedai/DeepSpeed, edaa7221). Stages 1 and 2: the weights of a group follow each other, and
the ranks have equal, consecutive shares of the whole; padding at its end may be left out. Stage 3: every weight is
shared out by itself, the share of the last rank padded. The shares have no names: unless all numbers fit, nothing is
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ssmdiag.checkpoint.budget import read_text, shortened, train_step
from ssmdiag.checkpoint.formats.inert_pickle import StandIn
from ssmdiag.checkpoint.formats.interface import Container, Format, Refusal, Source, Tensor
from ssmdiag.checkpoint.formats.pickled_settings import settings_of
from ssmdiag.checkpoint.formats.torch_archive import BROKEN, TensorRecord, open_archive
from ssmdiag.checkpoint.formats.torch_file import RANKS_KEY, SETTINGS_KEYS
from ssmdiag.checkpoint.location import Location, entries, open_ahead, size_of, source_of
from ssmdiag.errors import CheckpointError, PartialModelError, RemoteError, UnsafePickleError
from ssmdiag.printable import first_of

SHARE = re.compile(r"((?:bf16_|fp16_)?)zero_pp_rank_(\d{1,6})_mp_rank_00_optim_states\.pt")
MODEL = {
    False: re.compile(r"()mp_rank_0(0)_model_states\.pt"),
    True: re.compile(r"()zero_pp_rank_(\d{1,6})_mp_rank_00_model_states\.pt"),
}
"""Files of the model's part: one, or from stage 3 on one of each rank."""
LATEST, LONGEST_TAG = "latest", 255
GROUPS = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
STAGES = {"optimizer_states": 1, "gradients": 2, "weights": 3}
"""Names of deepspeed.runtime.zero.config.ZeroStageEnum."""
EXPERTS = ("ds_autoep_layers", "autoep_layers", "ds_zero_partition_groups")
"""Entries of checkpoints whose experts are shared out among other ranks than the rest."""
CLOSE = 2.0**-6
"""Relative difference between a weight and its copy in 16 bits, of which bfloat16 keeps eight."""
_WHAT, _ADVICE = (
    "a DeepSpeed checkpoint, which holds shards of tensors",
    "run its zero_to_fp32.py and inspect the result.",
)


class _UnfitError(Exception):
    """Something does not fit together."""


class _File:
    """What torch.save wrote for one rank."""

    def __init__(self, path: Location) -> None:
        self.source: Source = source_of(path)
        self.archive = open_archive(self.source)
        content = self.archive.content
        self.content: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}

    def values(self, record: TensorRecord) -> Tensor:
        return record.load(self.archive.read)


Run = tuple[_File, TensorRecord]


@dataclass(frozen=True)
class _Weight:
    """A tensor, and where it is: in the model's file, of stage 3 a share in each, or in the shares of a group."""

    shape: tuple[int, ...]
    dtype: str
    record: TensorRecord | None = None
    """In the first file of the model's part; None for what was trained."""
    shared_as: str = ""
    """The name under which each rank's file of the model has a share of it; "" where none has."""
    group: int = 0
    start: int = 0
    """Where the weight begins in the group; at stage 3 in each rank's share of it."""


class ZeroCheckpoint:
    """The files of all ranks, in one folder."""

    def __init__(self, folder: Location, names: Iterable[str]) -> None:
        self.folder, self.name = folder, folder.name
        self.path: Location | None = folder
        self.notes: list[str] = []
        files = sorted(name for name in names if name.endswith(("_optim_states.pt", "_model_states.pt")))
        open_ahead([folder / name for name in files])
        shares = _by_rank(SHARE, [name for name in files if name.endswith("_optim_states.pt")])
        self._shares = [_File(folder / name) for name in shares.values()]
        self.stage, self.ranks = self._stage()
        self._require_ranks(shares, self.ranks, "optimiser")
        models = _by_rank(MODEL[self.stage == 3], [name for name in files if name.endswith("_model_states.pt")])
        self._require_ranks(models, self.ranks if self.stage == 3 else 1, "model")
        self._models = [_File(folder / name) for name in models.values()]
        model = self._models[0].content
        self._require_one_model(model)
        self._groups = [self._flat(share) for share in self._shares]
        self._weights: dict[str, _Weight] = {}
        self._add_buffers(model)
        self._add_frozen(model)
        self._add_trained(model)
        self._add_others(model)
        self.size = sum(size_of(folder / name) for name in files)
        self.format = f"DeepSpeed, ZeRO-{self.stage}, {self.ranks} ranks"
        self.settings: Mapping[str, Any] = settings_of(next((model[k] for k in SETTINGS_KEYS if k in model), {}))
        self.train_step = train_step(model.get("global_steps"))

    def names(self) -> list[str]:
        return list(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights[name].shape

    def dtype(self, name: str) -> str:
        return self._weights[name].dtype

    def prefetch(self, names: Iterable[str]) -> None:
        wanted: dict[_File, list[tuple[int, int]]] = {}
        for file, record in (run for name in names for run in self._runs(name)):
            wanted.setdefault(file, []).extend(file.archive.pieces(record))
        for file, pieces in wanted.items():
            file.source.prefetch(pieces)

    def load(self, name: str) -> Tensor:
        import torch

        weight = self._weights[name]
        try:
            if weight.record is not None and not weight.shared_as:
                return self._models[0].values(weight.record)
            parts = [file.values(record) for file, record in self._runs(name)]
            values = torch.cat(parts) if parts else torch.empty(0, dtype=getattr(torch, weight.dtype))
            values = values[: prod(weight.shape)].reshape(weight.shape)
            self._require_alike(name, values)
        except (*BROKEN, OSError) as error:
            why = shortened(str(error) or type(error).__name__, 200)
            raise CheckpointError(
                f"{self.name}: tensor {shortened(name)} cannot be read ({why}).",
                advice="copy or save the folder again.",
            ) from error
        return values

    def _runs(self, name: str) -> Iterator[Run]:
        """Yield where the values of a tensor are, one run after the other."""
        weight = self._weights[name]
        count = prod(weight.shape)
        if weight.shared_as:
            for model in self._models:
                yield model, model.content["frozen_param_fragments"][weight.shared_as]
        elif weight.record is not None:
            yield self._models[0], weight.record
        elif self.stage == 3:
            for file, groups in zip(self._shares, self._groups, strict=True):
                yield file, _cut(groups[weight.group], weight.start, -(-count // self.ranks))
        else:
            share = self._groups[0][weight.group].shape[0]
            for rank, (file, groups) in enumerate(zip(self._shares, self._groups, strict=True)):
                first, last = max(weight.start, rank * share), min(weight.start + count, (rank + 1) * share)
                if first < last:
                    yield file, _cut(groups[weight.group], first - rank * share, last - first)

    def _require_alike(self, name: str, values: Tensor) -> None:
        """Compare with the copy that the model computes with, in 16 bits, which stages 1 and 2 leave whole."""
        import torch

        module = self._models[0].content.get("module")
        copy = module.get(name) if isinstance(module, Mapping) else None
        if not isinstance(copy, TensorRecord) or copy.shape != tuple(values.shape) or self.stage == 3:
            return
        stored = self._models[0].values(copy).to(values.dtype)
        if not torch.allclose(values, stored, rtol=CLOSE, atol=2.0**-23, equal_nan=True):
            raise CheckpointError(
                f"{self.name}: the ranks' shares of {shortened(name)} differ from the model's own copy of it.",
                expected="one value, but for its rounding to 16 bits",
                advice=f"{_ADVICE} The file mp_rank_00_model_states.pt holds the model's copy.",
            )

    # --- what fits together ---------------------------------------------------------------------

    def _stage(self) -> tuple[int, int]:
        """Return the stage and the number of ranks, on which all files agree."""
        said = {_stage_of(share.content.get("optimizer_state_dict")) for share in self._shares}
        if len(said) != 1:
            raise _UnfitError("the files of its ranks differ in their stage or the number of ranks")
        return said.pop()

    def _require_ranks(self, found: Mapping[int, str], ranks: int, part: str) -> None:
        if list(found) != list(range(ranks)):
            raise PartialModelError(
                f"{self.folder} holds {len(found):,} of the {ranks:,} files of the {part}: "
                f"{first_of([*found.values()])}.",
                expected="those of all ranks, and of one save",
                advice=f"copy the missing files, and move others away; or {_ADVICE}",
            )

    def _require_one_model(self, model: Mapping[Any, Any]) -> None:
        if model.get(RANKS_KEY) != 1 or model.get("dp_world_size") != self.ranks:
            raise _UnfitError("it does not say that its ranks share one model, without tensor parallelism")
        states = (share.content["optimizer_state_dict"] for share in self._shares)
        if any(content.get(key) for content in (model, *states) for key in EXPERTS):
            raise _UnfitError("its experts are shared out among other ranks than the rest")

    def _flat(self, share: _File) -> list[TensorRecord]:
        groups = share.content["optimizer_state_dict"].get(GROUPS[self.stage])
        if not isinstance(groups, list) or not all(map(_is_run, groups)):
            raise _UnfitError(f"{share.source.name} holds no flat groups of weights")
        return groups

    def _add_trained(self, model: Mapping[Any, Any]) -> None:
        """Add what was trained, where the numbers of all groups and ranks fit."""
        shapes = model.get("param_shapes")
        if not isinstance(shapes, list) or any(len(groups) != len(shapes) for groups in self._groups):
            raise _UnfitError("its list of shapes is not one of its groups")
        for number, group in enumerate(shapes):
            kinds = {groups[number].dtype for groups in self._groups}
            if len(kinds) != 1:
                raise _UnfitError(f"the shares of group {number} differ in type")
            (dtype,) = kinds
            start = 0
            for name, shape in _shapes(group):
                if name in self._weights:
                    raise _UnfitError(f"{shortened(name)} is there twice")
                self._weights[name] = _Weight(shape, dtype, group=number, start=start)
                start += -(-prod(shape) // self.ranks) if self.stage == 3 else prod(shape)
            self._require_fit(number, start)

    def _require_fit(self, number: int, wanted: int) -> None:
        """Raise _UnfitError unless the shares of a group are as long as its weights are, and no padding needs more."""
        held = [groups[number].shape[0] for groups in self._groups]
        if self.stage == 3:
            fits = set(held) == {wanted}
        else:
            share, total = held[0], sum(held)
            full = -(-wanted // (2 * self.ranks)) * 2 * self.ranks
            # Where padding was left out, a share ends where the weights do, and those after it are empty.
            lean = [max(0, min(share, wanted - rank * share)) for rank in range(self.ranks)]
            fits = wanted <= total and share * self.ranks <= full and (held == lean or set(held) == {share})
        if not fits:
            raise _UnfitError(
                f"group {number} has weights of {wanted:,} numbers{' a rank' * (self.stage == 3)}, and its shares "
                f"have {first_of([f'{count:,}' for count in held])}"
            )

    def _add_buffers(self, model: Mapping[Any, Any]) -> None:
        module, names = model.get("module"), model.get("buffer_names")
        if not isinstance(module, Mapping) or not isinstance(names, list):
            raise _UnfitError("it has no module, or does not name its buffers")
        for name in names:
            if isinstance(name, str) and isinstance(record := module.get(name), TensorRecord):
                self._weights[name] = _Weight(record.shape, record.dtype, record)

    def _add_frozen(self, model: Mapping[Any, Any]) -> None:
        """Add what was not trained: whole, or at stage 3 a share of each rank."""
        fragments = [file.content.get("frozen_param_fragments") or {} for file in self._models]
        for name, shape in _shapes(model.get("frozen_param_shapes") or {}):
            records = [held.get(name) if isinstance(held, Mapping) else None for held in fragments]
            one = -(-prod(shape) // self.ranks) if self.stage == 3 else prod(shape)
            found = [record for record in records if isinstance(record, TensorRecord) and prod(record.shape) == one]
            if self.stage == 3 and not all(map(_is_run, found)):
                raise _UnfitError(f"the shares of the frozen {shortened(name)} are not runs of numbers")
            if len(found) < len(records) or len({record.dtype for record in found}) > 1:
                raise _UnfitError(f"the frozen {shortened(name)} is not there whole")
            self._weights[name] = _Weight(shape, found[0].dtype, found[0], name if self.stage == 3 else "")

    def _add_others(self, model: Mapping[Any, Any]) -> None:
        """Add weights under a second name; at stages 1 and 2, what the model holds besides those that were trained."""
        shared = model.get("shared_params")
        for name, stored in shared.items() if isinstance(shared, Mapping) else ():
            if isinstance(name, str) and isinstance(stored, str) and stored in self._weights:
                self._weights[name] = self._weights[stored]
        left = {
            name: record
            for name, record in model["module"].items()
            if isinstance(name, str) and isinstance(record, TensorRecord) and name not in self._weights
        }
        if self.stage < 3:
            self._weights |= {name: _Weight(record.shape, record.dtype, record) for name, record in left.items()}
        elif left:
            self.notes.append(f"{len(left):,} tensors that no rank has whole were left out: {first_of(list(left))}")


def _stage_of(state: Any) -> tuple[int, int]:
    """Return the stage and the number of ranks that a file tells of."""
    state = state if isinstance(state, Mapping) else {}
    stage, counts = state.get("zero_stage"), state.get("partition_count")
    if isinstance(stage, StandIn) and len(stage.arguments) == 1:  # ZeroStageEnum
        (stage,) = stage.arguments
    elif isinstance(stage, type) and issubclass(stage, StandIn):  # the same by its name, of Python 3.11.0 to 3.11.3
        stage = STAGES.get(stage.attribute)
    counts = counts if isinstance(counts, list) else [counts]
    if type(stage) is not int or stage not in GROUPS or len(set(map(str, counts))) != 1 or type(counts[0]) is not int:
        raise _UnfitError(
            "a file does not tell its stage, or the groups are shared out among different numbers of ranks"
        )
    return stage, counts[0]


def _by_rank(pattern: re.Pattern[str], names: list[str]) -> dict[int, str]:
    """Return files by their ranks, in order; all are of one kind."""
    found = {int(match[2]): (match[1], name) for name in names if (match := pattern.fullmatch(name))}
    if not names or len(found) < len(names) or len({kind for kind, _ in found.values()}) > 1:
        raise _UnfitError("its files are not those of the ranks of one model, without tensor or expert parallelism")
    return {rank: found[rank][1] for rank in sorted(found)}


def _shapes(group: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in group.items() if isinstance(group, Mapping) else [(None, None)]:
        if not isinstance(name, str) or not isinstance(shape, (tuple, list)):
            raise _UnfitError("its list of shapes holds other things")
        if len(shape) > 64 or any(type(size) is not int or not 0 <= size < 2**48 for size in shape):
            raise _UnfitError(f"{shortened(name)} has an impossible shape")
        yield name, tuple(shape)


def _is_run(record: Any) -> bool:
    """Whether a tensor is one run of numbers."""
    return isinstance(record, TensorRecord) and record.stride == (1,) and not record.flipped


def _cut(record: TensorRecord, start: int, count: int) -> TensorRecord:
    return replace(record, offset=record.offset + start, shape=(count,))


def _open(folder: Location) -> Container:
    """Open the folder of one save, or one that names the last save in it."""
    names = [entry.name for entry in entries(folder)]
    if not any(map(SHARE.fullmatch, names)) and LATEST in names:
        try:
            tag = read_text(folder / LATEST, LONGEST_TAG).strip()
            if re.fullmatch(r"\w[\w.-]*", tag) and (folder / tag).is_dir():
                folder = folder / tag
                names = [entry.name for entry in entries(folder)]
        except OSError as error:
            raise _refused(folder, f"{LATEST} cannot be read") from error
    if not any(map(SHARE.fullmatch, names)):
        raise _refused(folder, "")
    try:
        return ZeroCheckpoint(folder, names)
    except (UnsafePickleError, PartialModelError, RemoteError):
        raise
    except _UnfitError as error:
        raise _refused(folder, str(error)) from error
    except CheckpointError as error:
        raise _refused(folder, error.seen) from error


def _refused(folder: Location, why: str) -> CheckpointError:
    return CheckpointError(f"{folder} is {_WHAT}{f': {why}' if why else ''}.", advice=_ADVICE)


FORMAT = Format(
    name="DeepSpeed",
    open_folder=_open,
    refusals=(
        Refusal(
            "one rank's part of what DeepSpeed's ZeRO split: optimiser and weights without names",
            "ssmdiag inspect {folder}, the files of all ranks; or python zero_to_fp32.py DIR OUT, with the folder that "
            "holds the file `latest`, and inspect the result.",
            name=r"zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt$",
            partial=True,
        ),
        Refusal(_WHAT, _ADVICE, folder=r"zero_to_fp32\.py|global_step\d+|.*mp_rank_\d+_model_states\.pt|latest"),
    ),
    owns_folder=r"zero_to_fp32\.py|bf16_zero_pp_rank_.*|zero_pp_rank_.*",
    inner_folder=r"global_step\d+",
)
