"""The recurrent weights of a live module, found by observing which numbers its family's `read` uses.

A family says which stored tensor is a rate, a frequency or a step, and through which map. It does not say which
entries of a packed tensor these are. So it reads the module once with every value replaced by a unique number. A
weight whose numbers come back unchanged is known entry by entry. A weight that the family changed first (capped,
scaled by another weight) is not, and is reported as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint.live import LiveModule, Place, as_checkpoint
from ssmdiag.families.interface import Family
from ssmdiag.families.layer import Layer
from ssmdiag.families.recognition import recognise

Role = Literal["rate", "frequency", "step"]


@dataclass(frozen=True, eq=False)
class LiveWeight:
    """One recurrent weight in a live module: a tensor, or the entries of one."""

    name: str
    """Dotted name of the tensor, as in the plain state dict."""
    family: str
    role: Role
    map: str
    """The model's own map, by its name in `maps.MAPS`."""
    entries: Tensor | None
    """Flat positions, real and imaginary parts counted separately; None: the whole tensor."""
    time_invariant: bool
    discrete: bool = False
    """Whether f(w) is |λ̄| itself, and not a rate or a step."""


@dataclass(frozen=True)
class LeftAlone:
    """A recurrent weight that was not changed, and why."""

    name: str
    family: str
    role: Role
    reason: str


@dataclass(frozen=True, eq=False)
class LiveRecurrence:
    """Every recurrent weight of a module, and where its tensors are."""

    weights: tuple[LiveWeight, ...]
    opaque: tuple[LeftAlone, ...]
    """Weights whose entries cannot be located."""
    layers: tuple[Layer, ...]
    """Layers read with the values of `codes`, which are not the model's."""
    places: Mapping[str, Place]
    codes: Codes

    def find_shared_sources(self) -> Iterator[tuple[str, str]]:
        """Yield (family, tensor name) of all other tensors on which eigenvalues depend and steps do not.

        Only where the decay does not depend on the input, or a weight is opaque: elsewhere these are the
        biases of gates. Each tensor is changed in turn and the module read again, once per spelling.
        """
        weights = {weight.name for weight in self.weights}
        opaque = {weight.name for weight in self.opaque if weight.role == "rate"}
        sources: dict[tuple[str, ...], set[str]] = {}
        for layer in self.layers:
            stored = {local: layer.stored(local).stored_name for local in layer.names}
            if layer.family.memory == "nominal" and opaque.isdisjoint(stored.values()):
                continue
            alike = (layer.family.name, layer.spelling.name, *sorted(stored))
            if alike not in sources:
                sources[alike] = {local for local, name in stored.items() if self._decides(layer, name)}
            for local in sorted(sources[alike]):
                if stored[local] not in weights:
                    yield layer.family.name, stored[local]

    def _decides(self, layer: Layer, name: str) -> bool:
        """Whether changing this tensor changes the eigenvalues but not the step."""
        # relu is flat on one side; direct with a lower bound is flat on the other.
        for sign in (-1, 1):
            with self.codes.changing(None, sign):
                plain = layer.read()
            if name not in {layer.checkpoint[used].stored_name for found in plain for used in found.tensors}:
                return False
            with self.codes.changing(name, sign):
                pairs = list(zip(plain, layer.read(), strict=True))
            if not all(_equal(a.step, b.step) for a, b in pairs):
                return False
            if not all(_equal(a.log_eigenvalues, b.log_eigenvalues) for a, b in pairs):
                return True
        return False


def find_recurrence(
    module: nn.Module,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    config: Mapping[str, Any] | None = None,
) -> LiveRecurrence:
    """Return the recurrent weights of every recognised layer, in layer order.

    Raises UnknownFamilyError where no layer is recognised, LayerError where one cannot be read.
    """
    codes = Codes()
    container = LiveModule(module, codes)
    checkpoint = as_checkpoint(container, module, config)
    found = recognise(checkpoint, assume=assume, families=families)
    found.require_layers(checkpoint)
    places = container.places
    located: dict[tuple[str, str, str], Tensor] = {}
    weights: dict[tuple[str, str, str], LiveWeight] = {}
    opaque: dict[tuple[str, str], LeftAlone] = {}
    for layer in found.layers:
        for recurrence in layer.read():
            for weight in recurrence.weights:
                name = checkpoint[weight.name].stored_name
                entries = codes.entries(name, weight.values)
                if entries is None:
                    reason = f"{layer.family.title} changes it before the map {weight.map}"
                    opaque[name, weight.role] = LeftAlone(name, recurrence.family, weight.role, reason)
                    continue
                key = (name, weight.role, weight.map)
                if key in located:  # another recurrence of the module uses some of the same tensor
                    entries = torch.cat([located[key], entries]).unique()
                located[key] = entries
                weights[key] = LiveWeight(
                    name=name,
                    family=recurrence.family,
                    role=weight.role,
                    map=weight.map,
                    entries=entries if len(entries) < count_numbers(getattr(*places[name])) else None,
                    time_invariant=recurrence.time_invariant,
                    discrete=weight.discrete,
                )
    return LiveRecurrence(tuple(weights.values()), tuple(opaque.values()), found.layers, places, codes)


def count_numbers(tensor: Tensor) -> int:
    """Return how many real numbers a tensor holds."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def flatten_numbers(tensor: Tensor) -> Tensor:
    """Return the real numbers of a tensor on one axis; a view where it can be."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def unflatten_numbers(numbers: Tensor, like: Tensor) -> Tensor:
    """Return real numbers, as `flatten_numbers` gives them, in the shape of a tensor, and complex where it is."""
    return torch.view_as_complex(numbers.reshape(*like.shape, 2)) if like.is_complex() else numbers.reshape(like.shape)


class Codes:
    """Gives every number of every tensor a unique value, and finds numbers by these values."""

    def __init__(self) -> None:
        self.given: dict[str, Tensor] = {}
        self.changed: str | None = None
        self.sign = -1

    @contextmanager
    def changing(self, name: str | None, sign: int) -> Iterator[None]:
        """Give one tensor other values, all of this sign, until the context ends."""
        self.changed, self.sign = name, sign
        try:
            yield
        finally:
            self.changed, self.sign = None, -1

    def __call__(self, name: str, values: Tensor) -> Tensor:
        if not (values.is_floating_point() or values.is_complex()):
            return values
        count = count_numbers(values)
        if name not in self.given:
            shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(count))
            # Between 0.1 and 0.9, where no family's map saturates; the irrational offset avoids coincidences.
            self.given[name] = (0.1 + 0.8 * (shuffled + 0.381966) / max(count, 1)).double()
        coded = self.sign * (0.97 * self.given[name].flip(0) if name == self.changed else self.given[name])
        return unflatten_numbers(coded, values)

    def entries(self, name: str, values: Tensor) -> Tensor | None:
        """Return the flat positions of these numbers in the tensor, or None if they are not all in it."""
        codes = self.sign * self.given[name]
        wanted = flatten_numbers(values.detach()).double()
        if torch.equal(wanted, codes):  # the usual case, a thousand times cheaper than a search
            return torch.arange(len(codes))
        numbers, order = codes.sort()
        place = torch.searchsorted(numbers, wanted.contiguous()).clamp(max=len(numbers) - 1)
        return order[place].unique() if torch.equal(numbers[place], wanted) else None


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a.nan_to_num(), b.nan_to_num())
