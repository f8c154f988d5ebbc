"""The residual block of P1's experiments, for all arms at once.

encoder → depth × (x ← norm(x + GLU(W GELU(recurrence(x))))) → decoder, as in radarFudan/StableSSM
(post-norm, no dropout). Parameters are tensors with a leading axis `arm`; what differs between arms is
the map of the recurrence, nothing else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ssmdiag.errors import ConfigurationError, meant
from ssmdiag.printable import plural
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.convolution import gate, linear
from ssmdiag.retrain.recurrences import LRU, RECURRENCES, S4D, MapsOfArms
from ssmdiag.retrain.tasks import TaskData

ACTIVATION = defaultdict(lambda: 256 << 20, cpu=1 << 20)
"""Bytes of one layer's output that arms computed together may have, by type of device."""
MOST = defaultdict(lambda: 1 << 30, cpu=16 << 20)
"""Bytes of one layer's output of one arm; a step takes a larger batch in parts. A layer keeps about a dozen such."""


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the built-in model."""

    recurrence: str = "s4d"
    """One of `RECURRENCES`."""
    width: int = 64
    modes: int = 32
    depth: int = 1

    def __post_init__(self) -> None:
        if self.recurrence not in RECURRENCES:
            raise ConfigurationError(
                f"--model {self.recurrence}: no such recurrence.",
                expected=f"one of {', '.join(RECURRENCES)}",
                instead=meant(self.recurrence, RECURRENCES),
            )

    @property
    def title(self) -> str:
        layer = RECURRENCES[self.recurrence]
        size = f"width {self.width}, {plural(self.modes, 'mode')}"
        return f"{layer.title}, {plural(self.depth, 'layer')}, {size}"


class Ensemble:
    """Models of all arms as one: `forward` is one batched computation, arms never mix."""

    def __init__(self, arms: Sequence[Arm], settings: ModelSettings, data: TaskData, device: str = "cpu") -> None:
        self.arms = tuple(arms)
        self.settings = settings
        self.layer: type[S4D] | type[LRU] = RECURRENCES[settings.recurrence]
        self.read_out = data.read_out
        self.tokens = data.vocabulary
        starts = [_start(arm, settings, data) for arm in self.arms]
        self.parameters = {
            name: torch.stack([start[name] for start in starts]).to(device).requires_grad_() for name in starts[0]
        }
        self._maps = cache(lambda start, stop: MapsOfArms(self.arms[start:stop]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return answers (arm, batch, step, output), or (arm, batch, output) where they are read once.

        `inputs` (arm, batch, step, feature), or (arm, batch, step) tokens.
        """
        parts = [
            self.answers(inputs[some], some, {name: value[some] for name, value in self.parameters.items()})
            for some in self.pieces(*inputs.shape[1:3])
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def sequences_at_once(self, steps: int) -> int:
        """Return how many sequences a step takes at a time: a long one fills the memory, not only the caches."""
        return max(1, MOST[self.device.type] // (4 * steps * self.settings.width))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def pieces(self, batch: int, steps: int) -> Iterator[slice]:
        """Yield the arms that are computed at a time, so that what a layer computes fits the caches."""
        most = max(1, ACTIVATION[self.device.type] // (4 * batch * steps * self.settings.width))
        for start in range(0, len(self.arms), most):
            yield slice(start, min(start + most, len(self.arms)))

    def answers(self, inputs: Tensor, some: slice, p: Mapping[str, Tensor]) -> Tensor:
        """Return the answers of some arms, whose parameters are `p`, to their inputs."""
        maps = self._maps(some.start, some.stop)
        if self.tokens:
            arm = torch.arange(len(inputs), device=inputs.device)[:, None, None]
            x = p["encoder.weight"][arm, inputs]
        else:
            x = linear(inputs, p["encoder.weight"], p["encoder.bias"])
        for depth in range(self.settings.depth):
            y = functional.gelu(self.layer.apply(self.of_layer(depth, p), maps, x))
            y = gate(linear(y, p[f"mixers.{depth}.weight"], p[f"mixers.{depth}.bias"]))
            x = _layer_norm(x + y, p[f"norms.{depth}.weight"], p[f"norms.{depth}.bias"])
        if self.read_out == "last step":
            x = x[:, :, -1:]
        elif self.read_out == "mean":
            x = x.mean(2, keepdim=True)
        answers = linear(x, p["decoder.weight"], p["decoder.bias"])
        return answers if self.read_out == "every step" else answers[:, :, 0]

    def of_layer(self, depth: int, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of one recurrent layer under their local names."""
        head = f"{self.layer.path}.{depth}."
        return {name.removeprefix(head): value for name, value in p.items() if name.startswith(head)}

    def recurrent(self, name: str) -> str | None:
        """Return `eigenvalues` or `step` for a parameter of the recurrence, None for any other."""
        local = name.removeprefix(f"{self.layer.path}.").partition(".")[2]
        parts = dict.fromkeys(self.layer.eigenvalues, "eigenvalues") | dict.fromkeys(self.layer.step, "step")
        return parts.get(local) if name.startswith(self.layer.path) else None

    def state_dict(self, position: int) -> dict[str, Tensor]:
        """Return one arm's tensors, under the names of the published code."""
        return {name: value[position].detach().cpu().contiguous() for name, value in self.parameters.items()}

    def load_state(self, position: int, state: Mapping[str, Tensor]) -> None:
        """Put one arm's tensors back. Raises KeyError for a missing one."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value[position] = state[name].to(value.device)


def require_reach(arms: Sequence[Arm], settings: ModelSettings, data: TaskData) -> None:
    """Raise MapError where an arm's map cannot hold the rates its layers start at."""
    for arm in arms:
        _start(arm, settings, data)


def shapes_of(settings: ModelSettings, features: int, outputs: int, vocabulary: int | None) -> dict[str, torch.Size]:
    """Return the shape of every tensor in one arm's checkpoint."""
    inputs, targets = torch.zeros(1, 2, features), torch.zeros(1, 2, outputs)
    data = TaskData(inputs, targets, inputs, targets, "squared error", "every step", outputs, vocabulary)
    return {name: value.shape for name, value in _start(Arm("exp"), settings, data).items()}


def _start(arm: Arm, settings: ModelSettings, data: TaskData) -> dict[str, Tensor]:
    """Return one arm's initial parameters. The seed alone decides them: every map starts as the same function."""
    generator = torch.Generator().manual_seed(arm.seed)
    width = settings.width
    start: dict[str, Tensor] = {}
    if data.vocabulary:
        start["encoder.weight"] = torch.randn(data.vocabulary, width, generator=generator)
    else:
        start |= _affine("encoder", data.features, width, generator)
    layer = RECURRENCES[settings.recurrence]
    for depth in range(settings.depth):
        own = layer.start(arm, width, settings.modes, data.length, generator)
        start |= {f"{layer.path}.{depth}.{name}": value for name, value in own.items()}
        start |= _affine(f"mixers.{depth}", width, 2 * width, generator)
        start |= {f"norms.{depth}.weight": torch.ones(width), f"norms.{depth}.bias": torch.zeros(width)}
    return start | _affine("decoder", width, data.outputs, generator)


def _affine(name: str, inputs: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a linear layer as torch.nn.Linear starts it."""
    bound = 1 / math.sqrt(inputs)
    weight = (2 * torch.rand(outputs, inputs, generator=generator) - 1) * bound
    return {f"{name}.weight": weight, f"{name}.bias": (2 * torch.rand(outputs, generator=generator) - 1) * bound}


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the normalised x over its last axis, with every arm's weight and bias (arm, channel)."""
    if len(x) == 1:
        return functional.layer_norm(x, x.shape[-1:], weight[0], bias[0])
    return functional.layer_norm(x, x.shape[-1:]) * weight[:, None, None] + bias[:, None, None]
