"""`freeze`: fix the eigenvalues, the step, or both, while the rest of a model trains.

P2 (arXiv 2510.00563) finds that training hardly lengthens a memory, so a recurrence that starts with a long
memory and stays fixed is as good or better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssmdiag.checkpoint.live import links_of, owners_of, stored_tensor
from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family
from ssmdiag.reparam.parametrisations import Hold, OnEntries, order_of
from ssmdiag.reparam.weights import LiveRecurrence, count_numbers, find_recurrence, flatten_numbers

What = Literal["eigenvalues", "step", "both"]

_ROLES = {"eigenvalues": ("rate", "frequency"), "step": ("step",), "both": ("rate", "frequency", "step")}


@dataclass(frozen=True)
class FrozenTensor:
    """One tensor that no longer trains, or some entries of it."""

    name: str
    family: str
    count: int
    """Number of fixed entries."""
    of: int
    """How many it has."""
    note: str = ""
    """Remark on what else this fixes, or leaves free."""


def freeze(
    module: nn.Module,
    what: What = "both",
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[FrozenTensor, ...]:
    """Fix the recurrence of a live model; return what was fixed.

    `eigenvalues` fixes all that decides Re λ and Im λ apart from the step; in time-invariant families this
    includes tensors that do not belong to single modes, such as P of S4. `step` fixes Δ. Where Δ or the decay
    depends on the input, its bias is fixed and its projection still trains.

    A whole tensor gets `requires_grad = False` and loses its gradient, so that no optimizer changes it. In a
    tensor that also packs other weights, a parametrisation holds the entries; `fold` removes it.
    Works before and after `reparameterize`; `assume`, `families` and `config` mean the same as there.

    Raises UnknownFamilyError where there is no known recurrence, LayerError where no weight decides what is to
    be fixed, or a weight is NaN. The module is then unchanged.
    """
    if what not in _ROLES:
        raise ValueError(f"cannot freeze {what!r}; expected one of {', '.join(_ROLES)}")
    found = find_recurrence(module, assume=assume, families=families, config=config)
    chosen = _choose(found, what)
    if not chosen:
        raise LayerError(
            f"{type(module).__name__} has no weight that decides its {what if what != 'both' else 'recurrence'}.",
            expected="a weight of a " + " or ".join(_ROLES[what]),
            advice="`ssmdiag inspect` says what its decays depend on.",
        )
    for name in chosen:
        place = found.places[name]
        if nans := int(flatten_numbers(getattr(*place).detach()).isnan().sum()):
            raise LayerError(
                f"{name}: {nans} of its numbers are NaN.",
                advice="go back to a checkpoint without NaN.",
            )
        if chosen[name].entries is not None and not all(isinstance(link, OnEntries) for link in links_of(place)):
            raise LayerError(
                f"{name} is under another torch parametrisation, and only some of its entries are to be fixed.",
                advice="remove the parametrisation first.",
            )
    tied = {id(stored_tensor(found.places[name])): name for name in reversed(chosen)}
    return tuple(_fix(name, chosen[name], found) for name in chosen if name in tied.values())


@dataclass
class _Choice:
    """Entries of one tensor to be fixed; None: all."""

    family: str
    entries: Tensor | None
    note: str = ""


def _choose(found: LiveRecurrence, what: What) -> dict[str, _Choice]:
    chosen: dict[str, _Choice] = {}
    for weight in found.weights:
        if weight.role in _ROLES[what]:
            entries = weight.entries
            if weight.name in chosen:
                first = chosen[weight.name].entries
                entries = None if first is None or entries is None else torch.cat([first, entries]).unique()
            note = "" if weight.time_invariant else "the decay still depends on the input"
            chosen[weight.name] = _Choice(weight.family, entries, note)
    for opaque in found.opaque:
        if opaque.role in _ROLES[what]:
            chosen[opaque.name] = _Choice(opaque.family, None, f"all of the tensor: {opaque.reason}")
    if what != "step":
        for family, name in found.find_shared_sources():
            chosen.setdefault(name, _Choice(family, None, "decides the eigenvalues together with others"))
    return chosen


def _fix(name: str, choice: _Choice, found: LiveRecurrence) -> FrozenTensor:
    place = found.places[name]
    stored = stored_tensor(place)
    numbers = count_numbers(stored)
    entries = choice.entries
    whole = entries is None or len(entries) == numbers
    if whole:
        stored.requires_grad_(False)
        stored.grad = None
    elif stored.requires_grad:
        entries = entries.to(stored.device)  # type: ignore[union-attr]
        held = flatten_numbers(getattr(*place).detach())[entries].clone()
        if not any(isinstance(link, Hold) and link.covers(entries) for link in links_of(place)):
            for part, attribute in owners_of(stored, found.places):
                link = Hold(entries, held, order_of(part))
                parametrize.register_parametrization(part, attribute, link, unsafe=True)
    note = choice.note if isinstance(stored, nn.Parameter) else "a buffer, which no optimizer trains"
    return FrozenTensor(name, choice.family, numbers if whole else len(entries), numbers, note)  # type: ignore[arg-type]
