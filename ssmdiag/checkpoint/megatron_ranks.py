"""Megatron-LM's folders mp_rank_0N and mp_rank_0N_00M, one for each tensor and pipeline rank, read as one model.

Tensor ranks hold rows or columns of each tensor, as tools/checkpoint/hybrid_conversion.py and `sharded_state_dict` of
megatron/core/ssm of NVIDIA/Megatron-LM (d98e8a64) divide them. Of a projection in parts, each rank holds its share of
every part, one below the other, so that the parts are joined one by one. Stages of a pipeline number their layers from
zero each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ssmdiag.checkpoint.checkpoint import Container
from ssmdiag.checkpoint.location import Location
from ssmdiag.checkpoint.opening import open_container
from ssmdiag.checkpoint.pieces import Assembled, Piece
from ssmdiag.errors import CheckpointError, PartialModelError
from ssmdiag.printable import first_of

FOLDER = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
FILES = ("model_optim_rng.pt", "model_rng.pt")
_AXES = (
    (r"(word_embeddings|output_layer|linear_qkv|mixer\.norm|dt_proj)\.weight", 0),
    (r"A_log|D|dt_bias|(dt_proj|linear_qkv)\.bias", 0),
    (r"(linear_proj|linear_fc2|out_proj|x_proj)\.weight", 1),
)
"""Ends of names, and the axis along which the ranks' shares follow each other."""
_COPIED = re.compile(r".*(layer_?norm_(weight|bias)|layernorm\.(weight|bias)|norm\.(weight|bias)|proj\.bias|fc2\.bias)")
"""Names of tensors that every rank has whole."""
_IN_PARTS = re.compile(r"(.*\.)?(in_proj|conv1d)[._](weight|bias)")
_LAYER = re.compile(r"((?:^|.*?\.)layers\.)(\d{1,6})(\..*)")


def read_ranks(path: Location, folders: Sequence[str]) -> Container:
    """Return the model whose ranks are in these folders. Raises PartialModelError where some are missing."""
    grid = {(int(found[1]), int(found[2] or 0)): name for name in folders if (found := FOLDER.fullmatch(name))}
    tensor, stages = (1 + max(rank[axis] for rank in grid) for axis in (0, 1))
    opened = {rank: _open(path / name) for rank, name in sorted(grid.items())}
    first = opened[min(opened)]
    known = {key.rpartition(".")[2]: value for key, value in first.settings.items()}
    wanted = [known.get(f"{kind}_model_parallel_size") for kind in ("tensor", "pipeline")]
    counts = [n if type(n) is int and n > 0 else seen for n, seen in zip(wanted, (tensor, stages), strict=True)]
    if len(grid) != len(folders) or counts[0] * counts[1] != len(grid) or (tensor, stages) != tuple(counts):
        raise PartialModelError(
            f"{path} holds {len(folders):,} ranks of a model that has {counts[0]:,} tensor by {counts[1]:,} pipeline "
            f"ranks: {first_of(sorted(folders))}.",
            expected=f"mp_rank_00 to mp_rank_{counts[0] - 1:02d} of every stage, and no ranks of experts",
            advice="copy the missing folders; Megatron-LM's tools/checkpoint/convert.py merges ranks of experts.",
        )
    pieces: dict[str, list[Piece]] = {}
    left_out: list[str] = []
    before = 0
    for stage in range(stages):
        ranks = [opened[rank, stage] for rank in range(tensor)]
        names = ranks[0].names()
        if any(set(names) != set(rank.names()) for rank in ranks) or any(n.startswith("model0.") for n in names):
            raise CheckpointError(
                f"{path}: the tensors of stage {stage} differ between ranks, or belong to interleaved stages.",
                expected="the same names in every tensor rank",
                advice="merge the ranks with Megatron-LM's tools/checkpoint/convert.py, then inspect the result.",
            )
        for name in names:
            shares = list(_shares(name, ranks))
            if shares:
                pieces.setdefault(_numbered(name, before), shares)
            else:
                left_out.append(_numbered(name, before))
        before += 1 + max((int(found[2]) for name in names if (found := _LAYER.fullmatch(name))), default=-1)
    model = Assembled(path, f"Megatron-LM, {len(grid)} ranks", pieces, first.settings)
    model.train_step = first.train_step
    model.notes += first.notes
    if left_out:
        model.notes.append(f"{len(left_out):,} tensors that cannot be joined were left out: {first_of(left_out)}")
    if None in wanted and len(grid) > 1:
        model.notes.append(f"{len(grid)} ranks were put together; the files do not say how many there were")
    return model


def _open(folder: Location) -> Container:
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise PartialModelError(
            f"{folder} holds no {FILES[0]}.", expected="the weights of every rank", advice="copy the folder again."
        )
    return open_container(found[0])


def _numbered(name: str, before: int) -> str:
    """Return a name with its layer counted from the first stage."""
    found = _LAYER.fullmatch(name)
    return f"{found[1]}{int(found[2]) + before}{found[3]}" if found and before else name


def _shares(name: str, ranks: Sequence[Container]) -> Iterator[Piece]:
    """Yield the pieces of a tensor in the ranks' files; none where it is not known how they are joined."""
    shapes = [rank.shape(name) for rank in ranks]
    if len(ranks) == 1 or (_COPIED.fullmatch(name) and not name.endswith("mixer.norm.weight") and len({*shapes}) == 1):
        yield Piece(ranks[0], name, (0,) * len(shapes[0]), shapes[0])
        return
    axis = next((axis for ends, axis in _AXES if re.fullmatch(rf"(.*\.)?({ends})", name)), None)
    parts = [[shape[0]] for shape in shapes if shape]
    if _IN_PARTS.fullmatch(name):
        axis, parts = 0, [_parts(name, rank) for rank in ranks]
    if axis is None or any(len(shape) <= axis for shape in shapes) or not all(parts):
        return
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1 or len({len(each) for each in parts}) > 1:
        return
    at = 0
    for part in range(len(parts[0])):
        for rank, shape, sizes in zip(ranks, shapes, parts, strict=True):
            offsets = (*(0,) * axis, at, *(0,) * (len(shape) - axis - 1))
            yield Piece(rank, name, offsets, (sizes[part], *shape[1:]), sum(sizes[:part]))
            at += sizes[part] if axis == 0 else shape[axis]


def _parts(name: str, rank: Container) -> list[int]:
    """Return how many rows of a rank's projection each part has; none where its layer's shapes do not tell.

    Mamba-2: z, x, B, C, Δ in in_proj and x, B, C in conv1d. Gated DeltaNet: query, key, value, z, β, α and query, key,
    value. Mamba: x, z, and all of conv1d.
    """
    layer, kind, _ = re.split(r"(in_proj|conv1d)[._](?:weight|bias)$", name)
    names = set(rank.names())
    convolution = next((each for each in (f"{layer}conv1d.weight", f"{layer}conv1d_weight") if each in names), None)
    if convolution is None or not {f"{layer}A_log", f"{layer}out_proj.weight"} <= names:
        return []
    rows, rate = rank.shape(name)[0], rank.shape(f"{layer}A_log")
    inner, convolved = rank.shape(f"{layer}out_proj.weight")[-1], rank.shape(convolution)[0]
    rest, odd = divmod(convolved - inner, 2)
    if len(rate) == 2:
        parts = [inner, inner] if kind == "in_proj" else [inner]
    elif f"{layer}D" in names:
        parts = [inner, inner, rest, rest, rate[0]] if kind == "in_proj" else [inner, rest, rest]
    else:
        parts = [rest, rest, inner, inner, rate[0], rate[0]] if kind == "in_proj" else [rest, rest, inner]
    return parts if sum(parts) == rows and not odd and rest >= 0 else []
