"""Whether a map can replace a model's own: it must hold the model's rates, and reach none that its own map does not."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ssmdiag.checkpoint.live import Place
from ssmdiag.errors import LayerError, MapError
from ssmdiag.recurrence.maps import StableMap, best, find_map
from ssmdiag.reparam.weights import LiveWeight, flatten_numbers

ROOM = 1.25
"""How far beyond the fastest rate the range of `best` ends."""


def rate_map(weight: LiveWeight) -> StableMap:
    """Return the map from the weight to its rate or step; where the model maps to |λ̄|, the map to −log |λ̄|."""
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


def without_ties(chosen: list[LiveWeight], places: Mapping[str, Place]) -> list[LiveWeight]:
    """Return one weight for each parameter; raise where layers that share a parameter read it differently."""
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


def best_for(chosen: list[LiveWeight], places: Mapping[str, Place]) -> StableMap:
    """Return `best` with the paper's b where it ends `ROOM` times beyond these rates, else with a b by which it does.

    A rate at the very end of the map is at w = 0, where the gradient is 0 too. Rates that no map holds change nothing.
    """
    paper = best()
    fastest, allowed = 0.0, math.inf
    for weight in chosen:
        old = rate_map(weight)
        magnitude = old(_numbers(weight, getattr(*places[weight.name]).detach()))
        if not magnitude.numel() or not bool((magnitude.isfinite() & (magnitude > 0)).all()):
            return paper
        fastest, allowed = (
            max(fastest, float(magnitude.max())) if magnitude.numel() else fastest,
            min(allowed, old.high),
        )
    if ROOM * fastest <= paper.high < allowed or not fastest < allowed or 1 / fastest <= sys.float_info.min:
        return paper
    return best(b=float(_b_beyond(fastest, allowed)))


def require_fit(chosen: list[LiveWeight], places: Mapping[str, Place], new: StableMap) -> None:
    """Raise where a weight is NaN, or its rate is not a value of the map; the error names all such weights."""
    broken, outside = [], []
    of = " and ".join(sorted({f"{weight.role}s" for weight in chosen}))
    fastest, allowed, grows = 0.0, math.inf, False
    for weight in chosen:
        tensor = getattr(*places[weight.name]).detach()
        old = rate_map(weight)
        numbers = _numbers(weight, tensor)
        _require_reach(weight, old, new)
        if nans := int(numbers.isnan().sum()):
            broken.append(f"{weight.name}: {nans} of {numbers.numel()} are NaN")
            continue
        magnitude = old(numbers)
        wrong = magnitude[~new.holds(magnitude)]
        if wrong.numel():
            outside.append(
                f"{weight.name}: {wrong.numel():,} of {numbers.numel():,}, "
                f"from {_shown(wrong.min(), new)} to {_shown(wrong.max(), new)}"
            )
            fastest, allowed = max(fastest, float(wrong.max())), min(allowed, old.high)
            grows |= bool((wrong <= 0).any())
    if broken:
        raise LayerError(
            f"weights of {_tensors(broken)} are NaN.",
            details=first_of(broken),
            expected="numbers",
            advice="go back to a checkpoint without NaN.",
        )
    if outside:
        edge = "]" if new.reaches_high else ")"
        raise MapError(
            f"{new.name}, f(w) = {new.formula}, cannot hold the {of} of {_tensors(outside)}.",
            details=first_of(outside),
            expected=f"values in ({new.low:g}, {new.high:g}{edge}",
            advice=advise(new, fastest, allowed, grows),
        )


def _numbers(weight: LiveWeight, tensor: Tensor) -> Tensor:
    """Return the numbers of a weight in float64 on one axis. Raises LayerError where it has no usable ones."""
    _require_plain(weight, tensor)
    numbers = flatten_numbers(tensor)
    return (numbers if weight.entries is None else numbers[weight.entries.to(numbers.device)]).double()


def _require_plain(weight: LiveWeight, tensor: Tensor) -> None:
    if tensor.device.type == "meta" or not (tensor.is_floating_point() or tensor.is_complex()):
        raise LayerError(
            f"{weight.name} is {tensor.dtype} on {tensor.device}: it has no usable numbers.",
            expected="a weight in memory, not quantised",
        )
    if type(tensor.data) is not Tensor:
        raise LayerError(
            f"{weight.name} is a {type(tensor.data).__name__}.",
            expected="a plain tensor",
            advice="reparameterize the model before it is sharded.",
        )


def _require_reach(weight: LiveWeight, old: StableMap, new: StableMap) -> None:
    """Raise where the new map could reach rates for which the model's own map has no weight."""
    too_high = new.high > old.high or (new.high == old.high and new.reaches_high and not old.reaches_high)
    if too_high or (new.low < old.low and not old.linear):
        raise MapError(
            f"{weight.name} goes through {old.name} in the model, whose values end at {old.low:g} and {old.high:g}; "
            f"those of {new.name} end at {new.low:g} and {new.high:g}.",
            expected="a map whose values stay within the model's",
            advice=f"best(b=…) reaches 1/b, so take b > {1 / old.high:g}." if new.low == old.low else "leave it out.",
        )


def advise(new: StableMap, fastest: float, allowed: float, grows: bool) -> str:
    """Return the advice where a map cannot hold rates up to `fastest`: a b with which `best` can, below `allowed`."""
    if grows:
        return "a rate of 0 or below does not decay, and no stable map holds it: bring it below the boundary first."
    if math.isinf(fastest):
        return "no map holds an infinite rate: go back to a checkpoint without one."
    if new.name.startswith("best") and 1 / fastest > sys.float_info.min:
        return f"best(b={_b_beyond(fastest, allowed)}) reaches beyond {fastest:.4g}, the fastest."
    return "exp, softplus and heavy-tail hold every positive rate."


def _b_beyond(fastest: float, allowed: float) -> str:
    """Return a b with which `best` ends `ROOM` times beyond the fastest rate, so that it can grow; below `allowed`."""
    top = min(ROOM * fastest, (fastest + allowed) / 2)
    return _round_down(1 / top, 1 / allowed)


def _round_down(value: float, above: float) -> str:
    """Return a number just below `value` and above `above`, with as few digits as possible."""
    for digits in range(1, 17):
        scale = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
        rounded = math.floor(value / scale * (1 + 1e-12)) * scale
        if rounded > above:
            return f"{rounded:.{digits}g}"
    return f"{value!r}"


def _shown(value: Tensor, new: StableMap) -> str:
    """Return a number in few digits, but enough that rounding does not move it into the map's range."""
    short = f"{float(value):.4g}"
    return f"{float(value):.10g}" if float(short) in (new.low, new.high) else short


def _tensors(lines: list[str]) -> str:
    return "one tensor" if len(lines) == 1 else f"{len(lines)} tensors"


def first_of(lines: list[str], count: int = 5) -> list[str]:
    """Return the first lines, and how many more there are."""
    return [*lines[:count], *[f"and {len(lines) - count} more"][: len(lines) - count]]
