"""The clocks of a live model's selective layers, on the input that reaches them.

    with observing(model, seen) as observed:
        model(tokens, use_cache=False)

A hook on each selective layer computes its clock from its input, by its family's `clock`, and hands it to `seen`;
nothing is kept. Layers are found as in a checkpoint. A layer without a clock is reported as such, and one that never
ran is an error: a compiled model runs without its hooks, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint.live import LiveModule, as_checkpoint
from ssmdiag.checkpoint.names import clean_names
from ssmdiag.errors import LayerError, SsmdiagError
from ssmdiag.families.interface import Family
from ssmdiag.families.layer import Layer
from ssmdiag.families.recognition import recognise
from ssmdiag.guard import guard
from ssmdiag.printable import module_name
from ssmdiag.recurrence.clock import Clock

HOLDERS = frozenset({"_fp32_params", "base_layer"})
"""Path elements of modules that hold tensors of the layer around them, and are not the layer."""
MOST_NAMED = 8
"""Most layers that an error names."""


@dataclass(frozen=True, eq=False)
class ObservedLayer:
    """A recurrent layer of a live model whose clock ssmdiag can compute."""

    name: str
    """Its dotted path in the plain model, as in every report; empty for the model itself."""
    path: str
    """The path of the module that carries the hook; `name` and the elements that wrappers add."""
    family: Family
    layer: Layer
    module: nn.Module
    """The module that holds its tensors, within its wrappers."""
    compute: Callable[..., Clock]
    """Its family's `clock`."""

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return module_name(self.name)


class WithoutClock(NamedTuple):
    """A recurrent layer that was not observed."""

    name: str
    family: Family
    why: str
    """In words; where `family.memory` is exact, nothing is missing: its decay does not depend on the input."""


@dataclass(eq=False)
class Observed:
    """What `observing` found and saw; complete after its block."""

    layers: tuple[ObservedLayer, ...]
    """In layer order. A module at several paths is one layer, by its first."""
    firings: dict[str, int]
    """Name of each layer → how often it ran; a shared block runs several times in one forward pass."""
    missing: dict[str, WithoutClock] = field(default_factory=dict)

    @property
    def without_clock(self) -> tuple[WithoutClock, ...]:
        """Layers that were not observed, and why."""
        return tuple(self.missing.values())


@contextmanager
def observing(
    model: nn.Module,
    seen: Callable[[ObservedLayer, Clock], None],
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[Observed]:
    """Hand the clock of each selective layer to `seen`, whenever the layer runs within the block.

    Run whole sequences from their start, without a cache (`use_cache=False`) and without padding: the hook sees the
    input, and neither the state before it nor the mask. `seen` is called without gradients, before the layer itself
    runs; the clock is on the layer's device, and should be reduced there. Parameters as in `find_recurrence`.

    Raises SsmdiagError after the block where a layer never ran, and within it where the input is padded or a single
    token. A layer whose clock cannot be computed or is not finite is in `without_clock`, and is not observed further.
    """
    found, places = _find_layers(model, assume, families, config)
    layers: dict[int, ObservedLayer] = {}
    observed = Observed((), {})
    for layer in found:
        if layer.family.clock is None:
            observed.missing[layer.path] = WithoutClock(layer.path, layer.family, _why_not(layer.family))
        elif (one := _locate(model, layer, layer.family.clock)) is None:
            why = "its weights lie in a larger module, by their names alone: there is no module of its own to observe"
            observed.missing[layer.path] = WithoutClock(layer.path, layer.family, why)
        else:
            layers.setdefault(id(one.module), one)
    observed.layers = tuple(layers.values())
    observed.firings = {one.name: 0 for one in observed.layers}
    handles = []
    try:
        for one in observed.layers:
            device = getattr(*places[one.layer.stored(one.layer.spelling.telltale).stored_name]).device
            hook = _hook(one, device, observed, seen)
            handles.append(model.get_submodule(one.path).register_forward_pre_hook(hook, with_kwargs=True))
        yield observed
    finally:
        for handle in handles:
            handle.remove()
    _require_firings(model, observed)


def _find_layers(
    model: nn.Module,
    assume: Mapping[str, str] | None,
    families: Sequence[Family] | None,
    config: Mapping[str, Any] | None,
) -> tuple[tuple[Layer, ...], Mapping[str, tuple[nn.Module, str]]]:
    """Return the recurrent layers of a live model, and where its tensors are by stored name."""
    container = LiveModule(model)
    found = recognise(as_checkpoint(container, model, config), assume=assume, families=families)
    return found.layers, container.places


def _why_not(family: Family) -> str:
    if family.memory == "exact":
        return "its decay does not depend on the input: the weights alone say it"
    return f"ssmdiag cannot observe {family.title}: its decay is known at the nominal point alone"


def _locate(model: nn.Module, layer: Layer, compute: Callable[..., Clock]) -> ObservedLayer | None:
    """Return a layer with its module; None where it has none.

    Wrappers around the module carry the hook, since a compiled one runs no hook inside.
    """
    elements = layer.stored(layer.spelling.telltale).stored_name.split(".")
    prefixes = [elements[:count] for count in range(len(elements))]
    around = [path for path in prefixes if _clean(path) == layer.path]
    if not around:
        return None
    within = [path for path in around if path == around[0] or path[-1] not in HOLDERS]
    return ObservedLayer(
        name=layer.path,
        path=".".join(around[0]),
        family=layer.family,
        layer=layer,
        module=model.get_submodule(".".join(within[-1])),
        compute=compute,
    )


def _clean(path: list[str]) -> str:
    """Return a module's path without what wrappers add to it."""
    # Cleaned as a tensor's name is, which is never empty.
    return clean_names([".".join([*path, "tensor"])])[0].removesuffix("tensor").removesuffix(".")


def _hook(
    one: ObservedLayer, device: torch.device, observed: Observed, seen: Callable[[ObservedLayer, Clock], None]
) -> Callable[..., None]:
    def enter(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        observed.firings[one.name] += 1
        if one.name in observed.missing:
            return
        with torch.no_grad():
            try:
                clock = _clock(one, device, arguments, named)
                _require_finite(one, clock)
            except LayerError as error:
                if isinstance(error.__cause__, torch.OutOfMemoryError):
                    raise error.__cause__ from error
                observed.missing[one.name] = WithoutClock(one.name, one.family, error.sentence)
                return
            seen(one, clock)

    return enter


def _clock(one: ObservedLayer, device: torch.device, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Clock:
    """Return the clock of a layer for the arguments it was called with. Raises LayerError where it has none."""
    input = input_of(one, arguments, named)
    if device.type == "meta":
        raise LayerError(
            f"{one.title}: its weights are offloaded, and only there while it runs.",
            advice="load the model without offloading to the CPU or to disk.",
        )
    _require_whole(one, input, named.get("attention_mask"))
    further = _further(one, arguments, named)
    with guard(one.name, f"computing the clock of {one.family.title}"):
        return one.compute(one.module, input.detach().to(device), **further)


def _further(one: ObservedLayer, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else a clock asks for of what its layer was called with, by name or by position."""
    wanted = [*signature(one.compute).parameters][2:]
    try:
        given = {**signature(one.module.forward).bind(*arguments, **named).arguments, **named} if wanted else {}
    except TypeError:  # a wrapper takes other arguments than the layer itself
        given = dict(named)
    return {name: given[name] for name in wanted if name in given}


def input_of(one: ObservedLayer, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return the first (batch, time, feature) tensor that a layer was called with. Raises LayerError without one.

    torch's recurrent modules have time first unless they say `batch_first`.
    """
    tensors = (value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
    input = next((value for value in tensors if value.ndim == 3 and value.is_floating_point()), None)
    if input is None:
        raise LayerError(f"{one.title} was called without an input.", expected="a tensor (batch, time, feature)")
    return input.transpose(0, 1) if getattr(one.module, "batch_first", True) is False else input


def _require_whole(one: ObservedLayer, input: Tensor, mask: Any) -> None:
    """Raise SsmdiagError where the input is padded, or a single token that continues a sequence."""
    if input.shape[1] == 1:
        raise SsmdiagError(
            f"{one.title} was run on a single token: its clock needs the tokens before it.",
            expected="whole sequences",
            advice="run the model on each sequence at once, with use_cache=False.",
        )
    if isinstance(mask, Tensor) and mask.shape == input.shape[:2] and not bool(mask.all()):
        raise SsmdiagError(
            f"{one.title} was run on a padded batch: its clock would count the padding.",
            expected="sequences of one length",
            advice="cut the sequences to one length, or run them one at a time.",
        )


def _require_finite(one: ObservedLayer, clock: Clock) -> None:
    """Raise LayerError where a clock is NaN or infinite."""
    if bool((clock.step.sum() * 0 + clock.rate.sum() * 0).isfinite()):
        return
    if not bool(clock.rate.isfinite().all()):
        raise LayerError(f"{one.title}: its weights hold NaN or infinite rates.", advice="`ssmdiag check` shows them.")
    strange = ~clock.step.isfinite().all(-1)  # (batch, time)
    first = int(strange.any(0).int().argmax())
    raise LayerError(
        f"{one.title}: its decay is NaN or infinite at {int(strange.sum()):,} of {strange.numel():,} tokens, the "
        f"first at position {first:,}.",
        expected="finite activations",
        advice="the layers before it have overflowed, or their weights are damaged: try --dtype float32.",
    )


def _require_firings(model: nn.Module, observed: Observed) -> None:
    """Raise SsmdiagError where a layer never ran."""
    silent = [module_name(name) for name, count in observed.firings.items() if not count]
    if not silent:
        return
    more = f" and {len(silent) - MOST_NAMED} more" if len(silent) > MOST_NAMED else ""
    compiled = any(hasattr(part, "_orig_mod") or part._compiled_call_impl for part in model.modules())
    raise SsmdiagError(
        f"{len(silent)} of {len(observed.firings)} selective layers never ran under observation: "
        f"{', '.join(silent[:MOST_NAMED])}{more}.",
        expected="a forward pass that calls every layer",
        advice="a model that torch.compile compiled runs without its hooks: observe and run the module before it was "
        "compiled, model._orig_mod."
        if compiled
        else "run the model within the block; a module whose forward() is called directly runs no hooks.",
    )
