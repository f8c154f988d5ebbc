"""Files that one rank of a parallel run wrote: some rows of each tensor, or some of the layers, and so no model.

They are recognised by the name of the file or its folder, beside those of other ranks; by the offsets that torch's
distributed writers record; by the arguments that Megatron and DeepSpeed save with the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.checkpoint import Container
from ssmdiag.checkpoint.copies import first_difference
from ssmdiag.checkpoint.location import Location
from ssmdiag.checkpoint.opening import open_container
from ssmdiag.checkpoint.pieces import Assembled, Piece
from ssmdiag.errors import CheckpointError, PartialModelError
from ssmdiag.printable import first_of

HF_DISTRIBUTED = re.compile(r"shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors")
"""A file of torch.distributed.checkpoint.HuggingFaceStorageWriter: every rank writes its rows under the same names."""
OFFSETS = "DCP_SHARDING_INFO"
"""Where that writer records, in each file's header, the row and column of a tensor at which the file's part begins."""
_CERTAIN = re.compile(
    r"(?:(?:mp|tp|pp|ep|zero_pp)_rank_|^shard[-_]|^consolidated\.(?=\d\d\.)|^layer_(?=\d+-model_\d+-model_states))"
    r"(\d+)(?:_\d+)*"
)
"""Marks of a rank, a shard or a stage that only writers of parts set. mp_rank_00_001: tensor, then pipeline."""
_LIKELY = re.compile(r"(?<![a-z])(?:rank|tp|pp(?:[-_.]?stage)?)[-_.]?(\d+)", re.IGNORECASE)
"""Words for ranks, also used in sweeps over the rank of a matrix or the degree of tensor parallelism."""
_WORLD = re.compile(r"world_size[-_.]?(\d+)", re.IGNORECASE)
_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "mp_world_size")
"""Arguments of Megatron and entries of DeepSpeed's files that give the number of files of a model."""
MOST_NEIGHBOURS = 10_000

MERGE = {
    "deepspeed": "merge its files with DeepSpeed: python zero_to_fp32.py {folder} OUT where ZeRO split it, "
    "ds_to_universal.py where a pipeline or tensor parallelism did; then inspect the result.",
    "megatron": "convert it with Megatron-LM, tools/checkpoint/convert.py or hybrid_conversion.py with a target tensor "
    "and pipeline parallel size of 1; then inspect the result.",
    "consolidated": "merge the files of all ranks with the code that wrote them; then inspect the result.",
}


def require_no_rank(container: Container) -> None:
    """Raise PartialModelError where a file holds one rank's part of a model, by its name, its neighbours or itself."""
    path = container.path
    if HF_DISTRIBUTED.fullmatch(container.name) or _begins_later(container):
        raise PartialModelError(
            f"{container.name} holds one rank's rows of each tensor, under the names of the whole tensors.",
            expected="whole tensors",
            advice=f"consolidate_safetensors_files({_folder(path)!r}, OUT, {{name: 1 for every tensor}}) of "
            "torch.distributed.checkpoint._consolidate_hf_safetensors writes the whole; or save again with "
            "HuggingFaceStorageWriter(…, enable_consolidation=True).",
        )
    if (world := _WORLD.search(container.name)) and int(world[1]) > 1:
        raise _part(container, f"the part of one of {int(world[1]):,} ranks, by its name", "the parts of all merged")
    _require_whole_arguments(container)
    if path is None:
        return
    for mark, others in _neighbours(path):
        if any(_is_other_part(container, other, mark) for other in others):
            some = first_of([_named(other, path) for other in others])
            raise _part(container, f"one rank's part of a model; beside it {'are' if len(others) > 1 else 'is'} {some}",
                        f"the parts of all {len(others) + 1:,} merged")  # fmt: skip


def join_ranks(directory: Location, names: Iterable[str]) -> Container | None:
    """Return the model whose rows the ranks of torch's Hugging Face writer have in these files.

    None for files of one rank, of no offsets or with a gap in their numbers: these are no whole model. What the last
    ranks wrote can be absent all the same, as no file says how many there were.
    """
    found = {(int(f[1]), int(f[2])): name for name in names if (f := HF_DISTRIBUTED.fullmatch(name))}
    ranks, files = {rank for rank, _ in found}, {file for _, file in found}
    if len(ranks) < 2 or ranks != set(range(1, len(ranks) + 1)) or max(files) != len(files):
        return None
    opened = [open_container(directory / name) for _, name in sorted(found.items())]
    pieces: dict[str, list[Piece]] = {}
    for container in opened:
        for name in container.names():
            offsets, sizes = container.settings.get(f"{OFFSETS}.{name}.saved_offsets"), container.shape(name)
            if not isinstance(offsets, list) or len(offsets) != len(sizes):
                return None
            if any(type(offset) is not int or not 0 <= offset < 2**60 for offset in offsets):
                return None
            pieces.setdefault(name, []).append(Piece(container, name, tuple(offsets), sizes))
    model = Assembled(directory, f"safetensors of {len(ranks)} ranks", pieces, {})
    model.notes.append(
        f"the rows of {len(ranks)} ranks were put together; no file says how many ranks there were, so that rows of "
        "further ranks could be missing"
    )
    return model


def continues(names: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two files share no name, and both hold layers of one kind: the same names but for their numbers."""
    one, other = set(names), set(others)
    kinds = ({re.sub(r"\d+", "#", name) for name in side if re.search(r"\.\d+\.", name)} for side in (one, other))
    return one.isdisjoint(other) and not next(kinds).isdisjoint(next(kinds))


def _begins_later(container: Container) -> bool:
    """Whether, by the file's header, its part of any tensor begins after the tensor's start."""
    return any(
        type(offset) is int and offset > 0
        for key, value in container.settings.items()
        if key.startswith(OFFSETS) and key.endswith(".saved_offsets") and isinstance(value, list)
        for offset in value
    )


def _require_whole_arguments(container: Container) -> None:
    """Raise PartialModelError where the arguments saved with the weights say that the model has several files."""
    settings: dict[str, Any] = {}
    for key, value in container.settings.items():
        settings.setdefault(key.rpartition(".")[2], value)
    sizes = {key: settings[key] for key in _PARALLEL if type(settings.get(key)) is int and settings[key] > 1}
    if not sizes or _has_all(container, settings):
        return
    said = ", ".join(f"{key} = {size}" for key, size in sizes.items())
    raise _part(container, f"one rank's part of a model: it was saved with {said}", "the parts of all ranks merged")


def _has_all(container: Container, settings: dict[str, Any]) -> bool:
    """Whether all embedding rows and layers are there, as in a merged file that kept its old arguments."""
    names = container.names()
    rows = [container.shape(name)[:1] for name in names if name.endswith("word_embeddings.weight")]
    layers = {int(found[1]) for name in names if (found := re.search(r"layers\.(\d{1,9})\.", name))}
    words, depth = settings.get("padded_vocab_size"), settings.get("num_layers")
    return bool(rows) and all(size == (words,) for size in rows) and len(layers) == depth


def _part(container: Container, what: str, expected: str) -> PartialModelError:
    path: Location = container.path or Path(container.name)
    deepspeed = path.name.endswith("model_states.pt")
    kind = "deepspeed" if deepspeed else "megatron" if "rank" in f"{path.parent.name}/{path.name}" else "consolidated"
    advice = MERGE[kind].format(folder=_folder(container.path))
    if re.fullmatch(r"mp_rank_\d+(_\d+)?", path.absolute().parent.name):
        advice = f"ssmdiag inspect {path.parent.parent}, the folder of all ranks; or {advice}"
    return PartialModelError(f"{_named(path, path)} is {what}.", expected=expected, advice=advice)


def _folder(path: Location | None) -> str:
    return str(path.parent) if path else "DIR"


def _named(other: Location, path: Location) -> str:
    """Return the name that distinguishes a file from its neighbours, with its folder's name where that has the mark."""
    marked = _CERTAIN.search(path.absolute().parent.name)
    return f"{other.absolute().parent.name}/{other.name}" if marked and not _marks(path.name) else other.name


def is_marked(name: str) -> bool:
    """Whether the name of a file or folder has a mark that only the files of ranks have."""
    return _CERTAIN.search(name) is not None


def may_be_marked(name: str) -> bool:
    """Whether the name of a file mentions ranks."""
    return bool(_marks(name))


def _marks(name: str) -> list[re.Match[str]]:
    return list(_CERTAIN.finditer(name)) or list(_LIKELY.finditer(name))


def _neighbours(path: Location) -> Iterator[tuple[bool, list[Location]]]:
    """Yield the files of other ranks, by the marks in the file's name and in its folder's; True for a certain mark."""
    path = path.absolute()
    for entry in (path, path.parent):
        if not (marks := _marks(entry.name)):
            continue
        pattern, at = "", 0
        for mark in marks:
            pattern += re.escape(entry.name[at : mark.start(1)]) + r"(\d+(?:_\d+)*)"
            at = mark.end()
        alike = re.compile(pattern + re.escape(entry.name[at:]))
        try:
            names = sorted(name.name for name in entry.parent.iterdir() if alike.fullmatch(name.name))[:MOST_NEIGHBOURS]
        except OSError:
            continue
        numbers = sorted({int(found[1]) for name in names if (found := alike.fullmatch(name)) and found[1].isdecimal()})
        certain = bool(_CERTAIN.search(entry.name))
        if not certain and numbers not in (list(range(len(names))), list(range(1, len(names) + 1))):
            continue
        others = [entry.parent / name for name in names if name != entry.name]
        if entry != path:
            others = [other / path.name for other in others if (other / path.name).is_file()]
        if others:
            yield certain, others


def _is_other_part(container: Container, other: Location, certain: bool) -> bool:
    """Whether a neighbour holds another part, rather than a copy of the whole model as every rank of a run may save."""
    try:
        neighbour = open_container(other)
        names = container.names()
        if set(names) != set(neighbour.names()):
            return certain or continues(names, neighbour.names())
        if not certain and any(container.shape(name) != neighbour.shape(name) for name in names):
            return False  # models of different sizes, as in a sweep over a matrix rank
        return first_difference(container, neighbour, names) is not None
    except (CheckpointError, OSError):
        return certain
