"""A starting map file for a checkpoint that no family recognises, where the meaning of its recurrent tensors is clear.

Where it is not clear, there is no map, only a list of possible decays with the reason why each cannot be read.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from ssmdiag.checkpoint import Checkpoint, StoredTensor
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.errors import CheckpointError
from ssmdiag.families.interface import Tensor
from ssmdiag.families.unknown_decay import (
    FREQUENCY,
    LOG,
    MATRIX,
    PROJECTION,
    RAW,
    STEERS,
    STEP,
    Reading,
    StepReading,
    UnclearError,
    is_decay,
    read_decay,
    read_poles,
    read_step,
)

_NONLINEAR = re.compile(r"(?<![a-z])hh(?![a-z])|recurrent_?kernel|hidden_to_hidden", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:.*_)?\d+")
_HOLDERS = ("value", "_value", "raw_value")
"""Flax's name for the array inside a variable."""
_MOST_VALUES, _MOST_LAYERS, _MOST_READ, MOST_CANDIDATES = 2**22, 2000, 2**23, 4
"""Most values of a recurrence's own parameter (projections have more), layers and values read, candidates listed."""


@dataclass(eq=False)
class _Weight:
    """A tensor that occurs once per layer."""

    local: str
    tensors: list[StoredTensor] = field(default_factory=list)

    @property
    def elements(self) -> list[str]:
        elements = self.local.split(".")
        return elements[:-1] if elements[-1] in _HOLDERS and len(elements) > 1 else elements

    @property
    def kind(self) -> str:
        """`bias`, `weight` or `kernel` of a module, else empty."""
        last = self.elements[-1]
        return last if last in ("bias", "weight", "kernel") and len(self.elements) > 1 else ""

    @property
    def name(self) -> str:
        """The path element that describes the tensor."""
        return self.elements[-2 if self.kind else -1]

    @property
    def module(self) -> list[str]:
        return self.elements[: -2 if self.kind else -1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors[0].shape

    @property
    def stored_as(self) -> str:
        """Its dtype, shape and number of layers, in words."""
        layers = len(self.tensors)
        return f"{self.tensors[0].dtype} {self.shape} in {layers} layer{'s' * (layers > 1)}"

    @property
    def is_projection(self) -> bool:
        """Whether it multiplies an input: two axes or more, as a module's weight or by its name."""
        if self.kind in ("weight", "kernel"):
            return len(self.shape) > 1
        return sum(size > 1 for size in self.shape) > 1 and PROJECTION.search(self.name) is not None

    @cached_property
    def values(self) -> Tensor:
        """All finite values of the layers that are read, one after another."""
        import torch

        room = max(1, min(_MOST_LAYERS, _MOST_READ // prod(self.shape)))
        loaded = [tensor.load().flatten() for tensor in self.tensors[:room]]
        kept = torch.cat([v.to(torch.complex128 if v.is_complex() else torch.float64) for v in loaded])
        return kept[kept.isfinite()]

    def described(self) -> str:
        """Return name, dtype, shape, layers and range of values, on one line."""
        text = f"{self.local}, {self.stored_as}"
        try:
            values = self.values
        except CheckpointError:
            return text
        if values.is_complex() or not values.numel():
            return text
        return f"{text}, {float(values.min()):.3g} … {float(values.max()):.3g}"


@dataclass(frozen=True)
class _Recurrence:
    """A weight with everything that turns it into a decay."""

    weight: _Weight
    reading: Reading
    pairs: bool
    """Whether the last axis is (re, im)."""
    selective: bool
    step: _Weight | None = None
    step_reading: StepReading | None = None
    frequency: _Weight | None = None


@dataclass(frozen=True)
class Offer:
    """The map file offered for an unknown checkpoint."""

    text: str
    """A map file, or empty."""
    unclear: tuple[str, ...]
    """If there is none: each candidate, and why it cannot be read."""


def starting_map(checkpoint: Checkpoint) -> Offer:
    """Return a map file that reads the decays of a checkpoint, or why there is none."""
    weights = _repeated(checkpoint)
    found: dict[str, list[_Recurrence]] = {}
    unclear: dict[str, str] = {}
    for weight in weights:
        if weight.is_projection or not is_decay(weight.name) or _is_step(weight) or _is_of_others(weight):
            continue
        near = [other for other in weights if other is not weight and _is_near(other, weight)]
        try:
            recurrence = _recurrence(weight, near)
            found.setdefault(".".join(weight.module), []).append(recurrence)
        except (UnclearError, CheckpointError) as error:
            unclear[weight.local] = f"{weight.described()}: {getattr(error, 'seen', error)}"
    for several in found.values():
        for one in several if len(several) > 1 else ():
            unclear[one.weight.local] = (
                f"{one.weight.described()}: one of {len(several)} that could be its module's decay"
            )
    if found and max(map(len, found.values())) == 1:
        stem = re.sub(r"[^A-Za-z0-9_-]", "-", checkpoint.path.stem) or "model"
        names = [f"my-{stem}" + f"-{number}" * (number > 1) for number in range(1, len(found) + 1)]
        return Offer("\n".join(map(_table, names, itertools.chain(*found.values()))), ())
    shown = list(unclear.values())
    more = len(shown) - MOST_CANDIDATES
    return Offer("", (*shown[:MOST_CANDIDATES], *([f"{more:,} more candidates"] if more > 0 else [])))


def _recurrence(weight: _Weight, near: list[_Weight]) -> _Recurrence:
    """Return how a weight is read, with the tensors beside it. Raises UnclearError where that is not clear."""
    values = weight.values
    if not values.numel():
        raise UnclearError("no finite value")
    bias = weight.kind == "bias"
    steers = [other for other in near if STEERS.search(other.name) and other.is_projection]
    own = [other for other in near if other.name == weight.name and other.is_projection]
    if _is_full_matrix(weight, near):
        raise UnclearError(
            "the full matrix of a linear system by the B and C beside it; its decays are its eigenvalues: save those, "
            "and read them with a map"
        )
    step, step_reading = _step(weight, near)
    if (steers or (own and not bias)) and not bias and not (step_reading and step_reading.selective):
        raise UnclearError(
            f"steered by the input through {(steers or own)[0].local}, without a bias that could be read"
        )
    frequency = next((other for other in near if FREQUENCY.search(other.name) and other.shape == weight.shape), None)
    if frequency is not None and (RAW.search(frequency.name) or frequency.kind):
        raise UnclearError(f"its frequency {frequency.local} goes through a function that its name does not say")
    if any(other.name in ("P", "Q", "p", "q") and not other.kind for other in near) and MATRIX.search(weight.name):
        raise UnclearError("there may be a low-rank term beside it, which changes the eigenvalues")
    if any(_NONLINEAR.search(other.name) for other in near):
        raise UnclearError("its module feeds the state back through a matrix: no linear recurrence")
    pairs = not values.is_complex() and _holds_pairs(weight)
    if values.is_complex() or pairs:
        reading = read_poles(_paired(weight) if pairs else values, step=step is not None)
    else:
        reading = read_decay(weight.name, values, bias=bias, step=step is not None, turns=frequency is not None)
    selective = bias or bool(step_reading and step_reading.selective)
    return _Recurrence(weight, reading, pairs, selective, step, step_reading, frequency)


def _is_full_matrix(weight: _Weight, near: Iterable[_Weight]) -> bool:
    """Whether it is the A of (A, B, C): square, with a row of B and a column of C for each state."""
    if not (MATRIX.search(weight.name) and len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]):
        return False
    beside = {other.name.upper(): other.shape for other in near if len(other.shape) <= 2 and not other.kind}
    entry, exit = beside.get("B", ()), beside.get("C", ())
    # Where all three are square, A may as well be a table of channels and modes.
    return entry[:1] == exit[-1:] == weight.shape[:1] and not entry == exit == weight.shape


def _step(weight: _Weight, near: Iterable[_Weight]) -> tuple[_Weight | None, StepReading | None]:
    """Return the step beside a weight and how it is read; None where there is no step."""
    named = [other for other in near if _is_step(other)]
    if not (biases := [other for other in named if other.kind == "bias" or not other.is_projection]):
        if named:
            raise UnclearError(f"its step depends on the input through {named[0].local}, without a bias")
        return None, None
    if len(biases) > 1:
        raise UnclearError(f"there are several steps beside it: {', '.join(other.local for other in biases[:3])}")
    (step,) = biases
    if not all(size in (1, *weight.shape) for size in step.shape):
        raise UnclearError(f"its step {step.local} {step.shape} has other axes")
    try:
        return step, read_step(step.name, step.values, bias=step.kind == "bias")
    except UnclearError as error:
        raise UnclearError(f"its step {step.local} is {error}") from None


def _is_step(weight: _Weight) -> bool:
    if re.search("norm|embed", weight.name, re.IGNORECASE):
        return False
    return STEP.search(re.sub(r"(?i)_?(proj|bias|weight|log|inv)_?|log", "", weight.name) or weight.name) is not None


def _is_of_others(weight: _Weight) -> bool:
    """Whether it belongs to a norm, an embedding or a gate's projection, none of which is a decay."""
    elsewhere = re.search("norm|embed|conv", weight.local, re.IGNORECASE) is not None
    return elsewhere or (weight.kind == "bias" and PROJECTION.search(weight.name) is not None)


def _repeated(checkpoint: Checkpoint) -> list[_Weight]:
    """Return the floating point tensors that could be a recurrence's own or a projection beside it, by local name."""
    found: dict[str, _Weight] = {}
    for name, tensor in checkpoint.items():
        if _could_be(tensor):
            local = _local(name)
            found.setdefault(local, _Weight(local)).tensors.append(tensor)
    return [weight for weight in found.values() if len({tensor.shape for tensor in weight.tensors}) == 1]


def _could_be(tensor: StoredTensor) -> bool:
    number = is_number(tensor.dtype) and not tensor.dtype.startswith(("float8", "float4"))
    return number and 1 <= len(tensor.shape) <= 4 and 1 < prod(tensor.shape) <= _MOST_VALUES


def _local(name: str) -> str:
    """Return what follows the layer's number, or the last two elements.

    >>> _local("net.layers.3.rnn.decay"), _local("encoder.layers_0.seq.nu"), _local("a.rnn.decay")
    ('rnn.decay', 'seq.nu', 'rnn.decay')
    """
    elements = name.split(".")
    numbered = [i for i, element in enumerate(elements[:-1]) if _NUMBERED.fullmatch(element)]
    return ".".join(elements[numbered[-1] + 1 :] if numbered else elements[-2:])


def _is_near(other: _Weight, weight: _Weight) -> bool:
    """Whether two tensors belong to one module, or one's module is inside the other's."""
    depth = min(len(other.module), len(weight.module))
    return other.module[:depth] == weight.module[:depth] and len(other.tensors) == len(weight.tensors)


def _holds_pairs(weight: _Weight) -> bool:
    """Whether the last axis is (re, im): two columns, one of one sign and one of both."""
    several = len(weight.shape) > 1 and weight.shape[-1] == 2
    return several and _one_way(_paired(weight).imag) and not _one_way(_paired(weight).real)


def _paired(weight: _Weight) -> Tensor:
    import torch

    return torch.view_as_complex(weight.values[: weight.values.numel() // 2 * 2].reshape(-1, 2).contiguous())


def _one_way(turns: Tensor) -> bool:
    """Whether no two values differ in sign, as imaginary parts where one of each conjugate pair is stored."""
    return bool((turns >= 0).all() | (turns <= 0).all())


def _names(weight: _Weight, pairs: bool) -> list[str]:
    """Return a name for each axis: the last of several is the mode, a single axis the channel."""
    shape = weight.shape[:-1] if pairs else weight.shape
    several = sum(size != 1 for size in shape)
    named = iter(["channel"] if several == 1 else ["group", "head", "channel", "mode"][-several:])
    return [next(named) if size != 1 else "1" for size in shape] + ["2"] * pairs


def _step_axes(step: _Weight, weight: _Weight, names: list[str]) -> str:
    """Return the weight's names for the axes of the step, by their sizes."""
    free = [(size, name) for size, name in zip(weight.shape, names, strict=True) if not name.isdigit()]
    axes = []
    for size in step.shape:
        found = next((pair for pair in free if pair[0] == size), None)
        axes.append(found[1] if found else "1")
        if found:
            free.remove(found)
    return " ".join(axes)


def _table(name: str, found: _Recurrence) -> str:
    """Return one [[layer]] of a map file, each line with a comment."""
    weight, step, frequency = found.weight, found.step, found.frequency
    where = f"{weight.stored_as}; * is any path"
    names = _names(weight, found.pairs)
    one_way = found.pairs or (weight.values.is_complex() and _one_way(weight.values.imag))
    lines = [
        "[[layer]]",
        _line("reviewed", False, "a guess by names and values: check every line, then true"),
        _line("name", name, "for the report"),
        _line("weight", f"*.{weight.local}", where),
        _line("axes", " ".join(names), "mode; any other names together are the channels; 1; 2 for (re, im)"),
        _line("map", found.reading.map, "f: exp, softplus, sigmoid, relu, none (f(w) = w), direct (f(w) = -w), ..."),
        _line("domain", found.reading.domain, "continuous: -f(w) per unit time; rate: nats per step; discrete: |λ̄|"),
    ]
    if step is not None and found.step_reading is not None:
        lines += [
            _line("step", f"*.{step.local}", "a tensor or a number"),
            _line("step_axes", _step_axes(step, weight, names), "as above"),
            _line("step_map", found.step_reading.map, "as above"),
            _line("discretisation", "zoh", "or bilinear"),
        ]
    if frequency is not None:
        lines += [
            _line("frequency", f"*.{frequency.local}", "imaginary part, or angle per step"),
            _line("frequency_map", "exp" if LOG.search(frequency.name) else "none", "as above"),
        ]
    lines += [
        _line("conjugate_pairs", frequency is not None or one_way, "true: one of each conjugate pair is stored"),
        _line("selective", found.selective, "true: the decay depends on the input; this is its bias"),
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: str | bool, comment: str) -> str:
    return f"{f'{key} = {json.dumps(value, ensure_ascii=False)}':<40}# {comment}"
