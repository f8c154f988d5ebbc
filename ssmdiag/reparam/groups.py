"""Optimizer groups: no weight decay on the recurrence, and a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ssmdiag.checkpoint.live import stored_tensor
from ssmdiag.families.interface import Family
from ssmdiag.reparam.weights import find_recurrence


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    recurrence_lr: float | None = None,
    weight_decay: float = 0.0,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return two optimizer groups, `everything else` and `recurrence`; every trainable parameter is in one.

    The recurrence is every weight that decides rates, frequencies and steps, reparameterised or not. It gets
    `recurrence_lr`, by default `lr`, and no weight decay, which would pull log-rates to 0 and so every time
    constant to one. Frozen parameters are in neither group; an empty group is left out.

        torch.optim.AdamW(ssmdiag.parameter_groups(model, lr=1e-3, recurrence_lr=1e-4, weight_decay=0.05))

    Raises UnknownFamilyError where there is no known recurrence.
    """
    found = find_recurrence(module, assume=assume, families=families, config=config)
    names = {weight.name for weight in found.weights} | {weight.name for weight in found.opaque}
    recurrent = {id(stored_tensor(found.places[name])) for name in names}
    groups: dict[bool, list[Tensor]] = {False: [], True: []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in recurrent].append(parameter)
    own = lr if recurrence_lr is None else recurrence_lr
    result = [
        {"name": "everything else", "params": groups[False], "lr": lr, "weight_decay": weight_decay},
        {"name": "recurrence", "params": groups[True], "lr": own, "weight_decay": 0.0},
    ]
    return [group for group in result if group["params"]]
