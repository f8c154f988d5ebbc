"""A live model inside what training wraps around it: unwrapped, or refused where no rank holds its weights whole."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ssmdiag.errors import CheckpointError

INSTEAD = "diagnose a full state dict, or watch the checkpoints that training writes: `ssmdiag watch RUN_DIR`."


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inside = model._modules.get("_orig_mod")
        if inside is None and _is(model, "DistributedDataParallel", "DataParallel"):
            inside = model._modules.get("module")
        if inside is None:
            return model
        model = inside


def require_unsharded(model: nn.Module) -> None:
    """Raise CheckpointError where FSDP's first version or ZeRO-3 has replaced the weights by pieces of them."""
    if any(_is(part, "FullyShardedDataParallel") for part in model.modules()):
        raise _sharded("its weights are in FullyShardedDataParallel's flat pieces")
    if any(hasattr(parameter, "ds_shape") for parameter in model.parameters()):
        raise _sharded("its weights are partitioned by ZeRO-3")


def whole_values(name: str, values: Tensor) -> Tensor:
    """Return a weight as it is on this rank. Raises CheckpointError for a DTensor of which the rank has a part."""
    sharded: Any = values
    if not hasattr(sharded, "to_local"):
        return values
    if sharded.device_mesh.size() > 1 and not all(placement.is_replicate() for placement in sharded.placements):
        raise _sharded(
            f"{name} is a DTensor over {sharded.device_mesh.size():,} ranks",
            "leave what decides the decays out of the sharding, fully_shard(…, ignored_params=…), ",
        )
    local: Tensor = sharded.to_local()
    return local


def _sharded(seen: str, advice: str = "") -> CheckpointError:
    return CheckpointError(
        f"{seen}: no rank has a layer whole.", expected="whole weights on this rank", advice=advice + INSTEAD
    )


def _is(module: nn.Module, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(module).__mro__)
