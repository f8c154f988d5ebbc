"""A starting map file for a checkpoint no family recognises: its likeliest recurrent tensors, filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint, StoredTensor

_DECAY = re.compile(
    r"(?<![a-z])(?:a_?log|log_?a|a_real|a_diag|lambda|lam|nu|decay|forget|rate|tau|time_?const\w*|eig\w*|poles?|"
    r"alpha|leak|retention|radius|damp\w*)(?![a-z])",
    re.IGNORECASE,
)
_STEP = re.compile(r"(?<![a-z])(?:dt|delta|steps?|step_?size|timescale)(?![a-z])", re.IGNORECASE)
_FREQUENCY = re.compile(
    r"(?<![a-z])(?:theta|omega|freq\w*|imag|im|phase|phi|a_imag|angle|rotation)(?![a-z])", re.IGNORECASE
)
_NUMBERED = re.compile(r"(?:.*_)?\d+")
_MOST_VALUES = 2**22
"""A recurrence's own parameters are small beside its projections."""


@dataclass(frozen=True)
class _Repeated:
    """A tensor that stands once per layer."""

    local: str
    tensor: StoredTensor
    """In the first layer."""
    layers: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape


def starting_map(checkpoint: Checkpoint, candidates: Collection[str]) -> str:
    """Return the text of a map file to correct, or "" where nothing in the file looks recurrent.

    `candidates` are tensors whose names are known to belong to recurrences.
    """
    repeated = _repeated(checkpoint)
    weights = [r for r in repeated if _DECAY.search(_last(r.local)) and not _STEP.search(_last(r.local))]
    weights = weights or [r for r in repeated if r.tensor.name in candidates and not _STEP.search(_last(r.local))]
    if not weights:
        return ""
    weight = max(weights, key=lambda r: (r.layers, r.tensor.name in candidates, "." not in r.local, -len(r.local)))
    module = weight.local.rpartition(".")[0]
    siblings = [r for r in repeated if r.local.rpartition(".")[0] == module and r is not weight]
    step = next((r for r in siblings if _STEP.search(_last(r.local)) and _fits(r, weight)), None)
    frequency = next((r for r in siblings if _FREQUENCY.search(_last(r.local)) and r.shape == weight.shape), None)
    map_ = _map(weight)
    where = f"{weight.tensor.dtype} {weight.shape} in {weight.layers} layer{'s' * (weight.layers > 1)}; * is any path"
    lines = ["[[layer]]"]
    lines += [
        _line("name", f"my-{re.sub(r'[^A-Za-z0-9_-]', '-', checkpoint.path.stem) or 'model'}", "for the report"),
        _line("weight", f"*.{weight.local}", where),
        _line("axes", " ".join(_names(weight)), "mode; any other names together are the channels; 1"),
        _line("map", map_, "f: exp, softplus, sigmoid, relu, none (f(w) = w), direct (f(w) = -w), ..."),
    ]
    if step:
        lines += [
            _line("domain", "continuous", "-f(w) per unit time; or rate: f(w) nats per step; discrete: f(w) itself"),
            _line("step", f"*.{step.local}", "a tensor or a number"),
            _line("step_axes", _step_axes(step, weight), "as above"),
            _line("step_map", "exp" if _is_log(step) else "softplus", "as above"),
            _line("discretisation", "zoh", "or bilinear"),
        ]
    else:
        domain = "discrete" if map_ == "sigmoid" else "rate"
        lines.append(_line("domain", domain, "rate: f(w) nats per step; discrete: f(w) itself; continuous: needs step"))
        lines.append('# step = "*.…", step_axes, step_map')
    if frequency:
        lines += [
            _line("frequency", f"*.{frequency.local}", "imaginary part, or angle per step"),
            _line("frequency_map", "exp" if _is_log(frequency) else "none", "as above"),
        ]
    else:
        lines.append('# frequency = "*.…", frequency_map')
    selective = weight.local.endswith(".bias")
    lines.append(_line("conjugate_pairs", frequency is not None, "true: one of each conjugate pair is stored"))
    lines.append(_line("selective", selective, "true: the decay depends on the input; this is its bias"))
    return "\n".join(lines) + "\n"


def _repeated(checkpoint: Checkpoint) -> list[_Repeated]:
    """Return the small floating point tensors, one for each name below a layer's number."""
    first: dict[str, StoredTensor] = {}
    count: dict[str, int] = {}
    for name, tensor in checkpoint.items():
        local = _local(name)
        first.setdefault(local, tensor)
        count[local] = count.get(local, 0) + 1
    return [
        _Repeated(local, tensor, count[local])
        for local, tensor in first.items()
        if _is_parameter(local) and _could_be(tensor)
    ]


def _is_parameter(local: str) -> bool:
    """Whether a name can be a recurrence's own parameter, and not the weight of a projection or a norm."""
    return not re.search(r"norm|conv|embed|(?:^|\.)weight$", local, re.IGNORECASE) or bool(_DECAY.search(_last(local)))


def _could_be(tensor: StoredTensor) -> bool:
    size = prod(tensor.shape)
    number = tensor.dtype.startswith(("float", "bfloat")) and not tensor.dtype.startswith(("float8", "float4"))
    return number and 1 <= len(tensor.shape) <= 3 and 1 < size <= _MOST_VALUES


def _local(name: str) -> str:
    """Return what follows the layer's number, or the last two elements.

    >>> _local("net.layers.3.rnn.decay"), _local("encoder.layers_0.seq.nu"), _local("a.rnn.decay")
    ('rnn.decay', 'seq.nu', 'rnn.decay')
    """
    elements = name.split(".")
    numbered = [i for i, element in enumerate(elements[:-1]) if _NUMBERED.fullmatch(element)]
    return ".".join(elements[numbered[-1] + 1 :] if numbered else elements[-2:])


def _last(local: str) -> str:
    """Return the element that tells what the tensor is; `bias` and `weight` do not."""
    elements = local.split(".")
    return elements[-2] if elements[-1] in ("bias", "weight") and len(elements) > 1 else elements[-1]


def _fits(step: _Repeated, weight: _Repeated) -> bool:
    sizes = [size for size in step.shape if size != 1]
    return len(step.shape) <= len(weight.shape) and all(size in weight.shape for size in sizes)


def _names(weight: _Repeated) -> list[str]:
    """Return a name for each axis: the last of several is the mode, a single one the channel."""
    several = sum(size != 1 for size in weight.shape)
    named = iter(["channel"] if several == 1 else ["head", "channel", "mode"][-several:])
    return [next(named) if size != 1 else "1" for size in weight.shape]


def _step_axes(step: _Repeated, weight: _Repeated) -> str:
    """Return the weight's names for the axes of the step, by their sizes."""
    free = [(size, name) for size, name in zip(weight.shape, _names(weight), strict=True) if name != "1"]
    names = []
    for size in step.shape:
        found = next((pair for pair in free if pair[0] == size), None)
        names.append(found[1] if found else "1")
        if found:
            free.remove(found)
    return " ".join(names)


def _is_log(tensor: _Repeated) -> bool:
    return re.search(r"(?<![a-z])log(?!i)|log(?![a-z])", _last(tensor.local), re.IGNORECASE) is not None


def _map(weight: _Repeated) -> str:
    last = _last(weight.local).lower()
    return "sigmoid" if re.search(r"logit|sigmoid|forget|alpha|retention", last) and not _is_log(weight) else "exp"


def _line(key: str, value: str | bool, comment: str) -> str:
    line = (
        f"{key} = {str(value).lower()}"
        if isinstance(value, bool)
        else f"{key} = {json.dumps(value, ensure_ascii=False)}"
    )
    return f"{line:<40}# {comment}"
