"""`reparameterize`: put another map under the recurrent weights of a live model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssmdiag.errors import LayerError, MapError
from ssmdiag.families.interface import Family
from ssmdiag.maps import StableMap, find_map
from ssmdiag.reparam.live import Place, links_of, owners_of
from ssmdiag.reparam.parametrisations import MapSwap, order_of
from ssmdiag.reparam.weights import LeftAlone, LiveWeight, Role, find_recurrence, flatten_numbers

Target = Literal["rate", "step", "both"]

_ALREADY = "the model's own map is this one"


@dataclass(frozen=True)
class SwappedWeight:
    """One weight that went from one map to another."""

    name: str
    family: str
    role: Role
    old: str
    new: str
    count: int
    """How many numbers of the tensor."""
    largest_change: float
    """Largest relative change of a rate or step by the rounding of the new weight."""


@dataclass(frozen=True)
class Reparameterisation:
    """What `reparameterize` did."""

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
    """Put `map` under the recurrent weights of a live model, and leave the model's function as it is.

    The model's own code goes on reading `A_log`, `nu_log`, … as before; what is trained is the weight v
    with f_new(v) = f_old(w), under `parametrizations.A_log.original`. The Parameter stays the same object,
    so an optimizer made before goes on with it, though not with its moments. `fold` undoes it.

    Parameters
    ----------
    map
        A name of `maps.MAPS`, or `best(a=…, b=…)`. Where the model has no step its rate is −log |λ̄|.
    target
        Which weights: those of the rate (Re λ), of the step Δ, or both.
    assume, families
        As in `recognise`, for what tensors cannot tell.
    config
        Settings as in config.json; by default `module.config`'s.

    Raises
    ------
    MapError
        The map is not known, cannot hold the rates, or reaches rates that the model's own map does not.
    LayerError
        A weight is NaN, or holds no numbers to work with, or is under another parametrisation.
    UnknownFamilyError
        No known recurrence in the module.

    Nothing is changed where anything is raised.
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
        reasons = "\n".join(f"  {weight.name}: {weight.reason}" for weight in left[:3])
        more = f"\n  and {len(left) - 3} more" if len(left) > 3 else ""
        raise MapError(
            f"{type(module).__name__} has no trainable weight of a {' or '.join(roles)} to put under {new.name}."
            + (f"\n{reasons}{more}" if left else ""),
            advice="`freeze` also holds weights that no map can be put under.",
        )
    chosen = _without_ties(chosen, found.places)
    _require_fit(chosen, found.places, new)
    return Reparameterisation(tuple(_swap(weight, found.places, new) for weight in chosen), tuple(left))


def rate_map(weight: LiveWeight) -> StableMap:
    """Return the map from the weight to its rate or step; where it is |λ̄| itself, to −log |λ̄|."""
    map = find_map(weight.map)
    if not weight.discrete:
        return map
    if map.name == "sigmoid":
        return find_map("-logsigmoid")
    return replace(
        map,
        name=f"-log {map.name}",
        function=lambda w: -map(w).log(),
        inverse=lambda r: map.inverse((-r).exp()),
        low=max(0.0, -math.log(map.high)),
        high=-math.log(map.low) if map.low else math.inf,
        linear=False,
    )


def _reason_to_leave(weight: LiveWeight, place: Place, new: StableMap) -> str | None:
    """Say why this weight stays as it is, if it does; raise if that would surprise."""
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


def _without_ties(chosen: list[LiveWeight], places: Mapping[str, Place]) -> list[LiveWeight]:
    """Return one weight for each parameter; raise where layers that share one read it differently."""
    first: dict[int, LiveWeight] = {}
    for weight in chosen:
        other = first.setdefault(id(getattr(*places[weight.name])), weight)
        alike = (weight.map, weight.discrete, weight.role) == (other.map, other.discrete, other.role)
        same_entries = weight.entries is other.entries or (
            weight.entries is not None and other.entries is not None and weight.entries.equal(other.entries)
        )
        if not (alike and same_entries):
            raise LayerError(
                f"{other.name} and {weight.name} are one parameter, read as a {other.role} through {other.map} "
                f"and as a {weight.role} through {weight.map}.",
                expected="one map",
                advice="untie them first.",
            )
    return list(first.values())


def _require_fit(chosen: list[LiveWeight], places: Mapping[str, Place], new: StableMap) -> None:
    """Raise where a weight is not a number, or its rate no value of the map, naming all of them."""
    broken, outside = [], []
    of = " and ".join(sorted({f"{weight.role}s" for weight in chosen}))
    fastest, allowed, grows = 0.0, math.inf, False
    for weight in chosen:
        tensor = getattr(*places[weight.name]).detach()
        old = rate_map(weight)
        _require_plain(weight, tensor)
        _require_reach(weight, old, new)
        numbers = flatten_numbers(tensor)
        numbers = (numbers if weight.entries is None else numbers[weight.entries.to(numbers.device)]).double()
        if nans := int(numbers.isnan().sum()):
            broken.append(f"  {weight.name}: {nans} of {numbers.numel()} are NaN")
            continue
        magnitude = old(numbers)
        wrong = magnitude[~new.holds(magnitude)]
        if wrong.numel():
            outside.append(
                f"  {weight.name}: {wrong.numel():,} of {numbers.numel():,}, "
                f"from {_shown(wrong.min(), new)} to {_shown(wrong.max(), new)}"
            )
            fastest, allowed = max(fastest, float(wrong.max())), min(allowed, old.high)
            grows |= bool((wrong <= 0).any())
    if broken:
        raise LayerError(
            f"weights of {_tensors(broken)} are NaN.\n" + _first(broken),
            expected="numbers",
            advice="go back to a checkpoint from before they were.",
        )
    if outside:
        edge = "]" if new.reaches_high else ")"
        raise MapError(
            f"{new.name}, f(w) = {new.formula}, cannot hold the {of} of {_tensors(outside)}.\n" + _first(outside),
            expected=f"values in ({new.low:g}, {new.high:g}{edge}",
            advice=_advice(new, fastest, allowed, grows),
        )


def _require_plain(weight: LiveWeight, tensor: Tensor) -> None:
    if tensor.device.type == "meta" or not (tensor.is_floating_point() or tensor.is_complex()):
        raise LayerError(
            f"{weight.name} is {tensor.dtype} on {tensor.device}: no numbers to work with.",
            expected="a weight in memory, not quantised",
        )
    if type(tensor.data) is not Tensor:
        raise LayerError(
            f"{weight.name} is a {type(tensor.data).__name__}.",
            expected="a plain tensor",
            advice="reparameterize the model before it is sharded.",
        )


def _require_reach(weight: LiveWeight, old: StableMap, new: StableMap) -> None:
    """Raise where training could take the new map to rates that the model's own map has no weight for."""
    too_high = new.high > old.high or (new.high == old.high and new.reaches_high and not old.reaches_high)
    if too_high or (new.low < old.low and not old.linear):
        raise MapError(
            f"{weight.name} goes through {old.name} in the model, whose values end at {old.low:g} and {old.high:g}; "
            f"those of {new.name} end at {new.low:g} and {new.high:g}.",
            expected="a map that reaches no further",
            advice=f"best(b=…) reaches 1/b, so take b > {1 / old.high:g}." if new.low == old.low else "leave it out.",
        )


def _advice(new: StableMap, fastest: float, allowed: float, grows: bool) -> str:
    if grows:
        return "a rate of 0 or below does not decay, and no stable map holds it: bring it below the boundary first."
    if new.name.startswith("best"):
        # A quarter beyond the fastest, so that it has room to move, within what the model's own map reaches.
        top = min(1.25 * fastest, (fastest + allowed) / 2)
        return f"best(b={_round_down(1 / top, 1 / allowed)}) reaches beyond {fastest:.4g}, the fastest."
    return "exp, softplus and heavy-tail hold every positive rate."


def _round_down(value: float, above: float) -> str:
    """Return a number just below `value` and above `above`, of as few digits as it takes."""
    for digits in range(1, 17):
        scale = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
        rounded = math.floor(value / scale * (1 + 1e-12)) * scale
        if rounded > above:
            return f"{rounded:.{digits}g}"
    return f"{value!r}"


def _shown(value: Tensor, new: StableMap) -> str:
    """Return a number short, but not so short that it looks as if it were within the map's range."""
    short = f"{float(value):.4g}"
    return f"{float(value):.10g}" if float(short) in (new.low, new.high) else short


def _tensors(lines: list[str]) -> str:
    return "one tensor" if len(lines) == 1 else f"{len(lines)} tensors"


def _first(lines: list[str], count: int = 5) -> str:
    return "\n".join(lines[:count]) + (f"\n  and {len(lines) - count} more" if len(lines) > count else "")


def _swap(weight: LiveWeight, places: Mapping[str, Place], new: StableMap) -> SwappedWeight:
    """Register the parametrisation wherever the model holds this parameter."""
    part, name = places[weight.name]
    parameter = getattr(part, name)
    before = parameter.detach().clone()
    old = rate_map(weight)
    entries = None if weight.entries is None else weight.entries.to(parameter.device)
    swap = MapSwap(old, new, entries, before.dtype, ())
    if before.dtype.itemsize < 4:
        parameter.data = before.float()
    stored = swap.right_inverse(parameter.detach())
    for owner, attribute in owners_of(parameter, places):
        link = MapSwap(old, new, entries, before.dtype, order_of(owner))
        parameter.data = before.to(stored.dtype)
        parametrize.register_parametrization(owner, attribute, link, unsafe=True)
    parameter.data = stored
    parameter.grad = None
    after = getattr(part, name).detach()
    rates = [old(swap.take(tensor).double()) for tensor in (before, after)]
    change = ((rates[1] - rates[0]) / rates[0]).abs()
    return SwappedWeight(
        weight.name, weight.family, weight.role, old.name, new.name, change.numel(), float(change.max().nan_to_num(0.0))
    )
