"""`Watch`: reads a live model's memory every so many train steps, and warns before it is lost."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ssmdiag.assessment.assess import MOST_CHANNELS
from ssmdiag.assessment.memory import DEFAULT_CONTEXT
from ssmdiag.checkpoint.live import LiveModule, Place, as_checkpoint, stored_tensor
from ssmdiag.checkpoint.wrapped import require_unsharded, unwrap, whole_values
from ssmdiag.diagnosis import context_length_of
from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family
from ssmdiag.families.layer import Layer
from ssmdiag.families.recognition import recognise
from ssmdiag.guard import guard
from ssmdiag.recurrence.channels import sample_channels
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.watching.alarm import Alarm
from ssmdiag.watching.reading import LayerReading, Reading, find_laws, read_layer

LIMIT = 1e-6
"""Smallest margin that is no reason to warn: a half-life of 700,000 steps. In float32 a decay rounds to 1 at 3e-8."""


@dataclass(eq=False)
class Watch:
    """Reads a live model every `every` train steps: `watch = Watch(model)`, then `watch.step(n)` after each step.

    Layers are recognised once: names and shapes do not change in training. A reading copies the few weights that
    decide decays, in float64; it takes part in no gradient and in no communication between ranks, so that it may be
    called on any of them. Weights may be on a GPU, in any type, under DDP, torch.compile and parametrisations.

    Raises SsmdiagError where the model has no recurrent layer, or one whose weights are sharded.
    """

    model: nn.Module
    every: int = 100
    limit: float = LIMIT
    """Smallest margin 1 − |λ̄| that is no reason to warn."""
    laws_every: int = 10
    """Readings from one search for decay laws and horizons to the next, which takes ten times as long; 0 for none."""
    keep: int = 1000
    """Readings that are kept."""
    context_length: int | None = None
    """Steps that laws are sought over; by default what the model's settings say."""
    config: Mapping[str, Any] | None = None
    """Settings as in config.json; by default those of `model.config`."""
    assume: Mapping[str, str] | None = None
    """What tensors cannot tell, as for `diagnose`."""
    families: Sequence[Family] | None = None
    warn: Callable[[str], object] | None = None
    """Called with each warning; by default it goes to the logger `ssmdiag`, of rank 0 alone."""
    readings: deque[Reading] = field(init=False, repr=False)
    """The last readings."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"a torch.nn.Module is watched, not a {type(self.model).__name__}")
        if self.every < 1 or self.laws_every < 0 or self.keep < 1 or not 0 < self.limit < 1:
            raise ValueError("every and keep are at least 1, laws_every at least 0, limit between 0 and 1")
        require_unsharded(self.model)
        module = unwrap(self.model)
        live = LiveModule(module, whole_values)
        checkpoint = as_checkpoint(live, module, self.config)
        found = recognise(checkpoint, assume=self.assume, families=self.families)
        found.require_layers(checkpoint)
        self.readings = deque(maxlen=self.keep)
        self._context = self.context_length or context_length_of(checkpoint.settings) or DEFAULT_CONTEXT
        self._layers, self._places = found.layers, live.places
        self._warn = self.warn or _log
        self._alarm = Alarm(self.limit)
        self._reported: set[str] = set()
        self._count = 0
        layers, problems = self._read(False)
        if not layers:
            raise LayerError("no recurrent layer of it can be read.", details=problems)
        self._report([*found.problems, *problems])

    def step(self, train_step: int) -> Reading | None:
        """Return a reading at the first call and where a multiple of `every` has come, else None.

        Call it after each step of the optimiser; the same step again, as in gradient accumulation, is not read twice.
        """
        last = self.readings[-1].train_step if self.readings else None
        if last is not None and train_step // self.every == last // self.every:
            return None
        if last is not None and train_step < last:  # training was set back: another path begins
            self._alarm = Alarm(self.limit)
        return self.read(train_step)

    def read(self, train_step: int) -> Reading:
        """Return a reading now, and warn of what is new in it."""
        start = time.perf_counter()
        layers, problems = self._read(bool(self.laws_every) and self._count % self.laws_every == 0)
        self._count += 1
        warnings = self._alarm.hear(train_step, layers)
        reading = Reading(train_step, tuple(layers), tuple(warnings), tuple(problems), time.perf_counter() - start)
        self.readings.append(reading)
        self._report(problems)
        for sentence in warnings:
            self._warn(sentence)
        return reading

    @torch.no_grad()
    def _read(self, laws: bool) -> tuple[list[LayerReading], list[str]]:
        readings: list[LayerReading] = []
        sampled: list[Recurrence] = []
        problems: list[str] = []
        for layer in self._layers:
            try:
                for recurrence in replace(layer, device=_device_of(layer, self._places)).read():
                    with guard(recurrence.layer, "reading its margins"):
                        readings.append(read_layer(recurrence))
                        if laws and not readings[-1].nonfinite:
                            sampled.append(sample_channels(recurrence, MOST_CHANNELS))
            except LayerError as error:  # training goes on
                problems.append(error.sentence)
        found = find_laws(sampled, self._context, problems)
        return [replace(one, **found.get(one.name, {})) for one in readings], problems

    def _report(self, problems: Sequence[str]) -> None:
        """Warn once of each layer that cannot be read."""
        for sentence in problems:
            if sentence not in self._reported:
                self._reported.add(sentence)
                self._warn(sentence)


def _device_of(layer: Layer, places: Mapping[str, Place]) -> str:
    """Return the GPU that a layer's weights are on, where float64 is known there; else the CPU."""
    device = stored_tensor(places[layer.stored(layer.spelling.telltale).stored_name]).device
    return str(device) if device.type == "cuda" else "cpu"


def _log(sentence: str) -> None:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        logging.getLogger("ssmdiag").warning("%s", sentence)
