"""Checkpoint → `Diagnosis`: every layer's spectrum summarised, and what could not be read.

Layers are read one after another and only their summaries are kept, so memory does not grow with
the depth of the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssmdiag import __version__
from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.errors import LayerError
from ssmdiag.families.recognition import Recognition, recognise
from ssmdiag.recurrence import Assumption, Recurrence

if TYPE_CHECKING:
    from ssmdiag.families.interface import Family
    from ssmdiag.families.layer import Layer

BINS_PER_DECADE = 4
FIRST_DECADE, LAST_DECADE = -1, 8
SAMPLED_EIGENVALUES = 512

CONTEXT_SETTINGS = (
    "max_position_embeddings", "max_seq_len", "max_seq_length", "max_sequence_length", "seq_length", "seq_len",
    "n_ctx", "context_length", "model_max_length", "l_max", "ctx_len", "block_size",
)  # fmt: skip
"""Settings that give the context length, in the order they are looked for."""


@dataclass(frozen=True)
class Quantiles:
    """Five numbers of a distribution over the finite modes of a layer."""

    min: float
    p05: float
    median: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Quantiles | None:
        """Return the quantiles of a float64 tensor (nearest rank), or None if it is empty."""
        if values.numel() == 0:
            return None
        ordered = values.flatten().sort().values
        ranks = (torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64) * (ordered.numel() - 1)).round().long()
        return cls(*(float(value) for value in ordered[ranks.to(ordered.device)]))


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer's spectrum in numbers. Steps are time steps (tokens) of the model."""

    name: str
    """Dotted path in the checkpoint, with the branch if the layer has several."""
    family: str
    title: str
    spelling: str
    time_invariant: bool
    operating_point: str | None
    channels: int
    modes: int
    dtype: str
    rate: Quantiles | None
    """Nats per step."""
    half_life: Quantiles | None
    """Steps."""
    time_constant: Quantiles | None
    """Steps."""
    spectral_radius: float | None
    margin: float | None
    """Smallest 1 − |λ̄|; negative where a mode grows."""
    nonfinite: int
    """Modes that are NaN or infinite, left out of everything else."""
    unstable: int
    """Modes with |λ̄| > 1."""
    marginal: int
    """Modes with |λ̄| = 1 exactly."""
    histogram: tuple[int, ...]
    """Modes per quarter decade of the time constant from 0.1 to 10⁸ steps; the ends take what lies beyond."""
    eigenvalues: tuple[tuple[float, float], ...]
    """(rate, frequency) of a sample of modes, slowest first, for the picture."""
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Alternative:
    """What a layer would be under another reading of something its tensors cannot tell."""

    assumption: Assumption
    layers: int
    """How many layers rest on it."""
    slowest: float | None
    """Longest half-life of those layers as read, in steps."""
    others: tuple[tuple[str, float | None], ...]
    """(other value, longest half-life under it); None where it cannot be computed."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with the evidence and what to do. Rules produce them."""

    code: str
    severity: str
    layer: str | None
    count: int
    value: float | None
    threshold: float | None
    message: str
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything ssmdiag has to say of one checkpoint."""

    path: str
    format: str
    size: int
    bytes_read: int
    train_step: int | None
    context_length: int | None
    layers: tuple[LayerDiagnosis, ...]
    alternatives: tuple[Alternative, ...]
    problems: tuple[str, ...]
    """What is missing or could not be read; the rest of the report stands."""
    notes: tuple[str, ...]
    unrecognised: tuple[str, ...]
    findings: tuple[Finding, ...]
    device: str
    seconds: float
    ssmdiag_version: str = __version__
    torch_version: str = torch.__version__

    def exit_code(self, fail_on: str | None = None) -> int:
        """Return 2 if part of the recurrence could not be read, 1 if findings reach `fail_on`, else 0."""
        if self.problems:
            return 2
        ranks = {"note": 0, "warning": 1, "error": 2}
        worst = max((ranks[finding.severity] for finding in self.findings), default=-1)
        return int(fail_on is not None and worst >= ranks[fail_on])


def extract_recurrences(
    checkpoint: Checkpoint | str | Path,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
) -> list[Recurrence]:
    """Return every recurrence of a checkpoint, in layer order, all in memory at once.

    Raises UnknownFamilyError if there is none, LayerError at the first layer that cannot be read.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    found = recognise(checkpoint, assume=assume, families=families, device=device)
    found.require_layers(checkpoint)
    return [recurrence for layer in found.layers for recurrence in layer.read()]


def diagnose(
    checkpoint: Checkpoint | str | Path,
    *,
    assume: Mapping[str, str] | None = None,
    families: Sequence[Family] | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Return the diagnosis of a checkpoint.

    Parameters
    ----------
    assume
        Values for options that tensors cannot tell, and `family` where several claim a layer.
    families
        Families to look for; all known ones by default.
    context_length
        Steps of context; by default what config.json says.
    on_layer
        Called with (layers read, layers in all) after each layer.

    Raises
    ------
    CheckpointError, UnknownFamilyError, AssumptionError
    """
    start = time.perf_counter()
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    found = recognise(checkpoint, assume=assume, families=families, device=device)
    found.require_layers(checkpoint)
    layers: list[LayerDiagnosis] = []
    problems = [*checkpoint.problems, *found.problems]
    for position, layer in enumerate(found.layers, 1):
        try:
            layers += [summarise(recurrence, layer.family.title) for recurrence in layer.read()]
        except LayerError as error:
            problems.append(str(error))
        if on_layer:
            on_layer(position, len(found.layers))
    return Diagnosis(
        path=str(checkpoint.path),
        format=checkpoint.format,
        size=checkpoint.size,
        bytes_read=checkpoint.bytes_read,
        train_step=checkpoint.train_step,
        context_length=context_length or _context_length(checkpoint.settings),
        layers=tuple(layers),
        alternatives=tuple(_alternatives(found)),
        problems=tuple(problems) + tuple(_missing_siblings(found)),
        notes=checkpoint.notes + _caveats(found),
        unrecognised=found.unrecognised,
        findings=(),
        device=device,
        seconds=time.perf_counter() - start,
    )


def summarise(recurrence: Recurrence, title: str) -> LayerDiagnosis:
    """Return the numbers of one recurrence; modes that are not finite are counted and left out."""
    ell = recurrence.log_eigenvalues.flatten()
    rate, frequency = -ell.real, ell.imag
    # λ̄ = 0 is a rate of +inf: a mode that forgets at once, not a broken one.
    finite = ~(rate.isnan() | frequency.isnan() | (rate == -math.inf))
    rate, frequency = rate[finite], frequency[finite]
    time_constant = (1 / rate).where(rate > 0, math.inf)
    order = rate.argsort()
    slowest = float(rate[order[0]]) if rate.numel() else None
    return LayerDiagnosis(
        name=recurrence.layer,
        family=recurrence.family,
        title=title,
        spelling=recurrence.spelling,
        time_invariant=recurrence.time_invariant,
        operating_point=recurrence.operating_point,
        channels=recurrence.channels,
        modes=recurrence.modes,
        dtype=recurrence.dtype,
        rate=Quantiles.of(rate),
        half_life=Quantiles.of(math.log(2) * time_constant),
        time_constant=Quantiles.of(time_constant),
        spectral_radius=None if slowest is None else math.exp(min(-slowest, 700.0)),
        margin=None if slowest is None else -math.expm1(min(-slowest, 700.0)),
        nonfinite=int((~finite).sum()),
        unstable=int((rate < 0).sum()),
        marginal=int((rate == 0).sum()),
        histogram=_histogram(time_constant),
        eigenvalues=_sample(rate[order], frequency[order]),
        assumptions=recurrence.assumptions,
        notes=recurrence.notes,
        tensors=recurrence.tensors,
    )


def _histogram(time_constant: torch.Tensor) -> tuple[int, ...]:
    bins = (LAST_DECADE - FIRST_DECADE) * BINS_PER_DECADE
    position = ((time_constant.log10() - FIRST_DECADE) * BINS_PER_DECADE).floor().clamp(0, bins - 1)
    return tuple(torch.bincount(position.long(), minlength=bins).tolist())


def _sample(rate: torch.Tensor, frequency: torch.Tensor) -> tuple[tuple[float, float], ...]:
    """Return at most `SAMPLED_EIGENVALUES` modes spread evenly over the order of their rates."""
    count = min(rate.numel(), SAMPLED_EIGENVALUES)
    picks = torch.linspace(0, max(rate.numel() - 1, 0), count, dtype=torch.float64).round().long().to(rate.device)
    return tuple(zip(rate[picks].tolist(), frequency[picks].tolist(), strict=True))


def _alternatives(found: Recognition) -> list[Alternative]:
    """Return, for every option nothing decided, the longest half-life under each of its values."""
    groups: dict[tuple[str, str, str], tuple[Assumption, list[Layer], list[float]]] = {}
    for layer in found.layers:
        for recurrence in _readable(layer):
            for assumption in recurrence.assumptions:
                if assumption.source == "usual":
                    key = (layer.family.name, assumption.option, assumption.value)
                    group = groups.setdefault(key, (assumption, [], []))
                    group[1].append(layer)
                    group[2].append(_longest_half_life([recurrence]))
    result = []
    for assumption, layers, longest in groups.values():
        unique = list(dict.fromkeys(layers))
        others = []
        for choice in assumption.choices:
            if choice != assumption.value:
                read = [_longest_half_life(_readable(layer, **{assumption.option: choice})) for layer in unique]
                known = [value for value in read if not math.isnan(value)]
                others.append((choice, max(known) if known else None))
        known = [value for value in longest if not math.isnan(value)]
        result.append(Alternative(assumption, len(unique), max(known) if known else None, tuple(others)))
    return result


def _readable(layer: Layer, **assume: str) -> list[Recurrence]:
    try:
        return layer.read(**assume) if layer.family.options else []
    except LayerError:
        return []


def _longest_half_life(recurrences: list[Recurrence]) -> float:
    values = [r.half_life[~r.half_life.isnan()].max() for r in recurrences if not r.half_life.isnan().all()]
    return float(max(values)) if values else math.nan


def _missing_siblings(found: Recognition) -> list[str]:
    """Say which module looks like a family and lacks a tensor, in a file where others are complete."""
    known = {layer.spelling.name for layer in found.layers}
    seen: set[str] = set()
    result = []
    for miss in found.near_misses:
        if (
            miss.missing
            and miss.spelling.name in known
            and miss.spelling.telltale in miss.present
            and miss.path not in seen
        ):
            seen.add(miss.path)
            result.append(f"{miss.path}: looks like {miss.family.title}, but {miss.reason}.")
    return result


def _caveats(found: Recognition) -> tuple[str, ...]:
    """Return what the modal form leaves out, family by family."""
    families = {layer.family.name: layer.family for layer in found.layers}
    return tuple(f"{family.title}: {family.caveat}" for family in families.values() if family.caveat)


def _context_length(settings: Mapping[str, Any]) -> int | None:
    for leaf in CONTEXT_SETTINGS:
        for key, value in settings.items():
            if (key == leaf or key.endswith(f".{leaf}")) and str(value).isdecimal() and 1 < int(value) < 10**12:
                return int(value)
    return None
