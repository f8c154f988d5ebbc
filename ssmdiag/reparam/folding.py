"""Restore a model's own weights, so that a checkpoint loads into its original code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssmdiag.checkpoint.live import stored_tensor
from ssmdiag.reparam.parametrisations import order_of, ours


def fold(module: nn.Module) -> tuple[str, ...]:
    """Remove the parametrisations of `reparameterize` and `freeze`, keeping values; return the attributes' names.

    Every weight is a plain Parameter again, the same object under its own name, in its own dtype and place,
    and its gradient is dropped. `requires_grad` does not change: a frozen weight stays frozen. Parametrisations of
    other packages stay.
    """
    folded = []
    names = {id(part): path for path, part in module.named_modules()}
    values: dict[int, tuple[Tensor, Tensor]] = {}
    places = list(ours(module))
    for place, _ in places:
        # Tied weights share storage, so all are read before the first is written.
        with torch.no_grad():
            values[id(stored_tensor(place))] = (stored_tensor(place), getattr(*place).detach().clone())
    for (part, name), links in places:
        order = links[0].order
        parametrize.remove_parametrizations(part, name, leave_parametrized=False)
        for other in order:
            if other in part._parameters:
                part._parameters[other] = part._parameters.pop(other)
        folded.append(f"{names[id(part)]}.{name}".lstrip("."))
    for stored, value in values.values():
        stored.data = value
        stored.grad = None
    return tuple(folded)


def folded_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that `fold` would leave, without touching the module.

    For checkpoints during the training: it has the original names, dtypes and order, and loads into the
    original class with `strict=True`.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    under = {(id(part), name) for (part, name), _ in ours(module)}
    plain: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        path, inside, rest = key.rpartition("parametrizations.")
        part, name = parts.get(path.rstrip(".")), rest.partition(".")[0]
        if not inside or part is None or (id(part), name) not in under:
            plain[key] = value
        elif rest.endswith(".original"):
            with torch.no_grad():
                plain[f"{path}{name}"] = getattr(part, name).detach().clone()
    # Parameters and buffers in their order before any swap, then what else a state dict has.
    usual = [
        f"{path}.{name}" if path else name for path, part in parts.items() for name in (*order_of(part), *part._buffers)
    ]
    return {name: plain[name] for name in dict.fromkeys([*usual, *plain]) if name in plain}
