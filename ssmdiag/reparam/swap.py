"""`reparameterize`: train the recurrent weights of a live model through another map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.utils import parametrize

from ssmdiag.checkpoint.live import Place, links_of, owners_of
from ssmdiag.errors import LayerError, MapError
from ssmdiag.families.interface import Family
from ssmdiag.recurrence.maps import StableMap, find_map
from ssmdiag.reparam.fit import best_for, first_of, rate_map, require_fit, without_ties
from ssmdiag.reparam.parametrisations import MapSwap, order_of
from ssmdiag.reparam.weights import LeftAlone, LiveWeight, Role, find_recurrence

Target = Literal["rate", "step", "both"]

_ALREADY = "the model's own map is this one"


@dataclass(frozen=True)
class SwappedWeight:
    """One weight that was put under another map."""

    name: str
    family: str
    role: Role
    old: str
    new: str
    count: int
    """Number of entries that changed."""
    largest_change: float
    """Largest relative change of a rate or step caused by rounding the new weight."""


@dataclass(frozen=True)
class Reparameterisation:
    """The changes that `reparameterize` made."""

    swapped: tuple[SwappedWeight, ...]
    left_alone: tuple[LeftAlone, ...]


def reparameterize(
    module: nn.Module,
    map: str | StableMap = "best",
    *,
    target: Target = "rate",
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Reparameterisation:
    """Train the recurrent weights of a live model through `map`, without changing the model's function.

    The model's own code reads `A_log`, `nu_log`, … as before; the trained weight is v with f_new(v) = f_old(w),
    under `parametrizations.A_log.original`. The Parameter stays the same object, so an existing optimizer still
    updates it, though its moments no longer apply. `fold` undoes it.

    Parameters
    ----------
    map
        A name in `maps.MAPS`, or `best(a=…, b=…)`. Where the model has no step, the rate is −log |λ̄|. `best` by its
        name alone is 1/(w² + b) with the paper's b = 0.5 where no rate is above 1.6, else with a b by which its range
        ends a quarter beyond the fastest: `SwappedWeight.new` says which.
    target
        Which weights: those of the rate (Re λ), of the step Δ, or both.
    assume, families
        As in `recognise`, for settings that tensors do not determine.
    config
        Settings as in config.json; by default `module.config`'s.

    Raises
    ------
    MapError
        The map is not known, cannot hold the rates, or reaches rates that the model's own map does not.
    LayerError
        A weight is NaN, has no usable numbers, or is under another parametrisation.
    UnknownFamilyError
        No known recurrence in the module.

    The module is unchanged where an error is raised.
    """
    if target not in ("rate", "step", "both"):
        raise ValueError(f"cannot reparameterize {target!r}; expected rate, step or both")
    new = find_map(map) if isinstance(map, str) else map
    roles = ("rate", "step") if target == "both" else (target,)
    found = find_recurrence(module, assume=assume, families=families, config=config)
    left = [weight for weight in found.opaque if weight.role in roles]
    chosen: list[LiveWeight] = []
    for weight in found.weights:
        if weight.role in roles:
            reason = _reason_to_leave(weight, found.places[weight.name], new)
            if reason:
                left.append(LeftAlone(weight.name, weight.family, weight.role, reason))
            else:
                chosen.append(weight)
    if not chosen and not any(weight.reason == _ALREADY for weight in left):
        raise MapError(
            f"{type(module).__name__} has no trainable weight of a {' or '.join(roles)} to put under {new.name}.",
            details=first_of([f"{weight.name}: {weight.reason}" for weight in left], 3),
            advice="`freeze` also holds weights that no map can be put under.",
        )
    chosen = without_ties(chosen, found.places)
    if map == "best":
        new = best_for(chosen, found.places)
    require_fit(chosen, found.places, new)
    return Reparameterisation(tuple(_swap(weight, found.places, new) for weight in chosen), tuple(left))


def _reason_to_leave(weight: LiveWeight, place: Place, new: StableMap) -> str | None:
    """Return why this weight is skipped, None if it is not; raise where skipping it would surprise the user."""
    part, name = place
    if links := links_of(place):
        kinds = ", ".join(type(link).__name__ for link in links)
        raise LayerError(
            f"{weight.name} is under a torch parametrisation already ({kinds}).",
            advice="`fold` the model first; parametrisations of others must be removed by hand.",
        )
    if rate_map(weight).name == new.name:
        return _ALREADY
    if not isinstance(getattr(part, name), nn.Parameter):
        return "it is a buffer, which no optimizer trains"
    return None


def _swap(weight: LiveWeight, places: Mapping[str, Place], new: StableMap) -> SwappedWeight:
    """Register the parametrisation wherever the model holds this parameter."""
    part, name = places[weight.name]
    parameter = getattr(part, name)
    before = parameter.detach().clone()
    old = rate_map(weight)
    entries = None if weight.entries is None else weight.entries.to(parameter.device)
    wide = before.float() if before.dtype.itemsize < 4 else before
    for owner, attribute in owners_of(parameter, places):
        link = MapSwap(old, new, entries, before.dtype, order_of(owner))
        # Registering turns w into v in place; a tied weight is turned once for each owner.
        parameter.data = wide
        parametrize.register_parametrization(owner, attribute, link, unsafe=True)
    parameter.grad = None
    after = getattr(part, name).detach()
    rates = [old(link.take(tensor).double()) for tensor in (before, after)]
    change = ((rates[1] - rates[0]) / rates[0]).abs()
    largest = float(change.amax()) if len(change) else 0.0
    return SwappedWeight(weight.name, weight.family, weight.role, old.name, new.name, change.numel(), largest)
