"""A few layers → what is known of each: its spectrum in numbers, its horizon, decay law and capacity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence, LayerEvidence
from ssmdiag.assessment.spectrum import summarise
from ssmdiag.errors import LayerError
from ssmdiag.guard import guard

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence.modal import Recurrence

Held = tuple["Layer", int, "Recurrence"]
"""A layer, which of its recurrences this is, and the recurrence."""

MOST_CHANNELS = 64
"""Channels of a layer whose law is found by default: a second for 64 layers."""
EVERY_HORIZON = 2**15, 2**22
"""Modes of a time-invariant layer, and their squares added up over channels, up to which every channel's horizon is
found; in larger layers, those of the sample.

In a time-invariant layer C decides which channel reaches farthest, so all count; in a selective one it has a slow mode
and is in the sample.
"""
MOST_CAPACITIES = 16
"""Channels whose memory capacity is found by default: it costs ten times a horizon."""
DENSE_WORK = 2**23
"""Most states cubed times channels for dense state matrices: 32 channels of 64 states."""
FEWEST_CHANNELS = 4


def examine_layers(
    held: Sequence[Held],
    whole: CheckpointEvidence,
    context: int | None,
    most_channels: int | None,
    tails: bool = True,
) -> Iterator[LayerEvidence | LayerError]:
    """Yield what is known of each recurrence: its spectrum and, unless `most_channels` is 0, its memory.

    `tails`: also the law of the energy that remains, and the lags that hold shares of it.

    A recurrence that cannot be examined yields a LayerError; the numbers of the others do not depend on it.
    """
    try:
        yield from list(_examine(held, whole, context, most_channels, tails))
    except Exception:  # one of them failed: examined one by one, only that one is lost
        for one in held:
            try:
                with guard(one[2].layer, "its examination"):
                    found = list(_examine([one], whole, context, most_channels, tails))
            except LayerError as error:
                yield error
            else:
                yield from found


def _examine(
    held: Sequence[Held], whole: CheckpointEvidence, context: int | None, most_channels: int | None, tails: bool
) -> Iterator[LayerEvidence]:
    """Yield what is known of each recurrence, those alike measured together."""
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT, assess_memories, summarise_memory
    from ssmdiag.capacity.capacity import affordable_channels, assess_capacities, summarise_capacity

    steps, remember = context or DEFAULT_CONTEXT, most_channels != 0
    if remember:
        layers = [recurrence for _, _, recurrence in held]
        some = [_sample(layer, most_channels, MOST_CHANNELS) for layer in layers]
        reaching = [layer if _is_quick(layer) else few for layer, few in zip(layers, some, strict=True)]
        memories = assess_memories(some, steps, horizons_of=reaching, tails=tails)
        rebuilt = [
            layer  # of a convolution it is where its taps end
            if layer.layout == "finite"
            else _sample(layer, most_channels, affordable_channels(layer.modes, MOST_CAPACITIES))
            for layer in layers
        ]
        capacities = assess_capacities(rebuilt, steps)
    for position, (layer, branch, recurrence) in enumerate(held):
        numbers, memory = summarise(recurrence, layer.family.title), None
        if remember:
            memory = memories[position]
            horizon, decay = summarise_memory(memory)
            capacity = summarise_capacity(capacities[position])
            every = reaching[position].channels == recurrence.channels
            numbers = replace(numbers, horizon=horizon, every_horizon=every, decay=decay, capacity=capacity)
        yield LayerEvidence(recurrence, layer, numbers, memory, whole, branch)


def _sample(layer: Recurrence, most_channels: int | None, most: int) -> Recurrence:
    from ssmdiag.recurrence.channels import sample_channels

    if most_channels is None:
        return layer
    if layer.dense is not None:  # each channel's Gramian costs the cube of its states
        most = max(min(most, DENSE_WORK * most // MOST_CHANNELS // layer.modes**3), FEWEST_CHANNELS)
    return sample_channels(layer, min(most_channels, most))


def _is_quick(layer: Recurrence) -> bool:
    """Whether the horizons of all its channels are found at once."""
    if layer.layout == "finite":  # the last tap that is not 0
        return True
    modes, work = layer.log_eigenvalues.numel(), layer.log_eigenvalues.numel() * layer.modes
    return layer.time_invariant and layer.dense is None and modes <= EVERY_HORIZON[0] and work <= EVERY_HORIZON[1]
