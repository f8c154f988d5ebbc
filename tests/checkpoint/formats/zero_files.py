"""Folders as DeepSpeed's ZeRO leaves them, cut and padded as its optimisers do.

After runtime/engine.py and stage_1_and_2.py, stage3.py and partition_parameters.py of runtime/zero in
deepspeedai/DeepSpeed (edaa7221).
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@contextmanager
def stage_enum() -> Iterator[Any]:
    """Yield a class that pickles as DeepSpeed's ZeroStageEnum does."""
    name = "deepspeed.runtime.zero.config"
    module = types.ModuleType(name)
    kind = enum.Enum(
        "ZeroStageEnum", {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}, type=int, module=name
    )
    module.ZeroStageEnum = kind  # type: ignore[attr-defined]
    kept = {key: sys.modules.get(key) for key in (name, *_parents(name))}
    sys.modules.update(dict.fromkeys((name, *_parents(name)), module))
    try:
        yield kind
    finally:
        for key, value in kept.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def write(
    folder: Path,
    groups: Sequence[Mapping[str, Tensor]],
    stage: int,
    ranks: int,
    *,
    frozen: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, str] | None = None,
    lean: bool = True,
    bits: torch.dtype = torch.bfloat16,
) -> Path:
    """Write the files of a save: `groups` of trained weights, at stage 3 its sub-groups; `lean`: padding is left out.

    Padding is of numbers that are none, so that no test passes which reads it.
    """
    folder.mkdir(parents=True)
    frozen, buffers, shared = frozen or {}, buffers or {}, shared or {}
    prefix = "bf16_" if bits is torch.bfloat16 else ""
    with stage_enum() as kind:
        for rank in range(ranks):
            if stage == 3:
                flat = [torch.cat([_share(value, rank, ranks) for value in group.values()]) for group in groups]
                flat = [torch.nn.Parameter(tensor) for tensor in flat]
                for number, tensor in enumerate(flat):
                    tensor.ds_id = f"{number}_{number}"  # type: ignore[attr-defined]
                optimizer: dict[str, Any] = {"fp32_flat_groups": flat, "partition_count": ranks}
                optimizer["optimizer_state_dict"] = _base(flat)
            else:
                cut = [_partition(group, rank, ranks) for group in groups]
                flat = [share[: len(share) - padding * lean] for share, padding in cut]
                optimizer = {"single_partition_of_fp32_groups": flat, "partition_count": [ranks] * len(groups)}
                optimizer |= {"group_paddings": [padding for _, padding in cut], "base_optimizer_state": _base(flat)}
            optimizer |= {"zero_stage": kind(stage), "loss_scaler": None, "overflow": False}
            share_of = {"optimizer_state_dict": optimizer, "ds_config": {"optimizer": {"type": "AdamW"}}}
            torch.save(
                {**share_of, "ds_version": "0.19.8"}, folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            )
            if stage < 3 and rank:
                continue
            trained = {name: value.to(bits) for group in groups for name, value in group.items()}
            halved = {name: value.to(bits) for name, value in frozen.items()}
            whole = trained | halved
            module = {name: torch.empty(0, dtype=bits) for name in whole} if stage == 3 else dict(whole)
            module |= {name: module[kept] for name, kept in shared.items()} | dict(buffers)
            fragments = {name: _share(value, rank, ranks) for name, value in halved.items()} if stage == 3 else halved
            model = {
                "module": OrderedDict(module),
                "buffer_names": list(buffers),
                "optimizer": None,
                "param_shapes": [OrderedDict((name, value.shape) for name, value in group.items()) for group in groups],
                "frozen_param_shapes": OrderedDict((n, v.shape) for n, v in frozen.items()) if stage > 1 else None,
                "shared_params": dict(shared) if rank == 0 else {},
                "frozen_param_fragments": OrderedDict(fragments) if stage > 1 else None,
                "global_steps": 500,
                "dp_world_size": ranks,
                "mp_world_size": 1,
                "ds_version": "0.19.8",
            }
            name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
            torch.save(model, folder / name)
    (folder.parent / "latest").write_text(folder.name)
    (folder.parent / "zero_to_fp32.py").write_text("#\n")
    return folder


def _partition(group: Mapping[str, Tensor], rank: int, ranks: int) -> tuple[Tensor, int]:
    """Return a rank's share of a group at stages 1 and 2, and how much of it is padding."""
    flat = torch.cat([value.flatten().float() for value in group.values()])
    size = -(-len(flat) // (2 * ranks)) * 2
    padded = torch.cat([flat, torch.full((size * ranks - len(flat),), torch.nan)])
    padding = min(max(0, (rank + 1) * size - len(flat)), size)
    return padded[rank * size : (rank + 1) * size].clone(), padding


def _share(value: Tensor, rank: int, ranks: int) -> Tensor:
    """Return a rank's share of one weight at stage 3."""
    flat = value.flatten() if value.dtype is torch.bfloat16 else value.flatten().float()
    size = -(-len(flat) // ranks)
    padded = torch.cat([flat, flat.new_full((size * ranks - len(flat),), torch.nan)])
    return padded[rank * size : (rank + 1) * size].clone()


def _base(flat: Sequence[Tensor]) -> dict[str, Any]:
    state = {
        number: {"step": torch.tensor(500.0), "exp_avg": torch.ones_like(tensor)} for number, tensor in enumerate(flat)
    }
    groups = [
        {"lr": 1e-3, "weight_decay": 0.1 * (number == 0), "betas": (0.9, 0.95), "params": [number]}
        for number in range(len(flat))
    ]
    return {"state": state, "param_groups": groups}
