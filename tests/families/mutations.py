"""Strange layers: mutations of shape, dtype and value of one layer of three, over every spelling of every family."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmdiag.checkpoint.checkpoint import Checkpoint, collect
from ssmdiag.families import Family, Spelling, known_families
from tests.families.synthetic import config, path_for, state_dict

SPELLINGS = [(family, spelling) for family in known_families() for spelling in family.spellings]


class Held:
    """A container whose tensors are in memory."""

    format = "held"
    name = "held.safetensors"
    path = None

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.notes: list[str] = []
        self.settings: Mapping[str, Any] = {}
        self.train_step = None

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self.tensors[name].dtype).removeprefix("torch.")

    def load(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def hold(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Checkpoint:
    """Return a checkpoint of tensors in memory."""
    container = Held(state)
    return Checkpoint(Path(container.name), container.format, collect({container: list(state)}), 1, config=settings)


Mutation = Callable[[Tensor, random.Random], Tensor]


def _axis(change: Callable[[Tensor, int], Tensor]) -> Mutation:
    """Return the change of one axis, whichever it falls on; a scalar stays one."""
    return lambda values, dice: change(values, dice.randrange(values.ndim)) if values.ndim else values


def _permuted(values: Tensor, dice: random.Random) -> Tensor:
    return values.permute(dice.sample(range(values.ndim), values.ndim))


SHAPES: Mapping[str, Mutation] = {
    "0-dim": lambda values, dice: values.flatten()[0] if values.numel() else values,
    "flat": lambda values, dice: values.flatten(),
    "an axis before": lambda values, dice: values[None],
    "an axis behind": lambda values, dice: values[..., None],
    "an axis of two behind": lambda values, dice: torch.stack([values, values], -1),
    "an empty axis": _axis(lambda values, k: values.narrow(k, 0, 0)),
    "an axis of one": _axis(lambda values, k: values.narrow(k, 0, min(1, values.shape[k]))),
    "half an axis": _axis(lambda values, k: values.narrow(k, 0, values.shape[k] // 2)),
    "one less": _axis(lambda values, k: values.narrow(k, 0, max(values.shape[k] - 1, 0))),
    "one more": _axis(lambda values, k: torch.cat([values, values.narrow(k, 0, min(1, values.shape[k]))], k)),
    "twice": _axis(lambda values, k: torch.cat([values, values], k)),
    "ninety times": _axis(lambda values, k: torch.cat([values] * 90, k)),
    "axes permuted": _permuted,
}

DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.complex64, torch.complex128),
)

EXTREMES = (
    *(1e300, -1e300, 1e-300, -1e-300, 5e-324, 1e19, -1e19, 1e38, 1e-38, 1e-45, 1e8, -1e8),
    *(0.0, -0.0, 1.0, -1.0, 0.5, 37.0, -37.0, 88.8, -104.0, 710.0, -710.0, -745.2, 4.0, 2.0**-53),
    *(float("nan"), float("inf"), float("-inf")),
)


def _one(values: Tensor, dice: random.Random) -> Tensor:
    """Give one entry an extreme value; its real or imaginary part where it is complex."""
    numbers = (torch.view_as_real(values) if values.is_complex() else values).flatten()
    if numbers.numel():
        numbers[dice.randrange(numbers.numel())] = dice.choice(EXTREMES)
    return torch.view_as_complex(numbers.reshape(*values.shape, 2)) if values.is_complex() else numbers.view_as(values)


def _scattered(values: Tensor, dice: random.Random) -> Tensor:
    """Give every entry a magnitude of its own, over all that float64 holds."""
    generator = torch.Generator().manual_seed(dice.randrange(2**31))
    magnitude = 10 ** (600 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 300)
    return values.sgn() * magnitude


VALUES: Mapping[str, Mutation] = {
    "one entry": lambda values, dice: _one(_wide(values), dice),
    "every entry": lambda values, dice: torch.full_like(_wide(values), dice.choice(EXTREMES)),
    "negated": lambda values, dice: -values,
    "scaled": lambda values, dice: _wide(values) * dice.choice((1e-300, 1e-10, 10.0, -100.0, 1e3, 1e10, 1e150, 1e300)),
    "shifted": lambda values, dice: _wide(values) + dice.choice((-700.0, -40.0, -8.0, 8.0, 40.0, 700.0)),
    "alike": lambda values, dice: values.flatten()[:1].expand(values.numel()).reshape(values.shape),
    "scattered": lambda values, dice: _scattered(_wide(values), dice),
}


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


INTEGERS = (0, 1, -1, 2, 3, 64, 1000, 2**31, 2**62, -(2**62))
SIZES = (0, 1, 2, 3, 5, 8, 33)


@dataclass(frozen=True)
class Case:
    """A model of three layers of one spelling, the middle one of which is strange."""

    family: Family
    spelling: Spelling
    seed: int
    said: tuple[str, ...]
    """What was done to it, in words."""
    paths: tuple[str, ...]
    state: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Any]

    @property
    def strange(self) -> str:
        return self.paths[1]

    @property
    def checkpoint(self) -> Checkpoint:
        return hold(self.state, self.settings)

    def __str__(self) -> str:
        return f"{self.family.name}:{self.spelling.name}, seed {self.seed}: {'; '.join(self.said)}"


def paths_of(spelling: Spelling) -> tuple[str, ...]:
    """Return the paths of three layers, as different as the spelling's pattern allows."""
    if "layers.3" in path_for(spelling):
        return tuple(path_for(spelling, number) for number in (2, 3, 4))
    return tuple(f"{name}.{path_for(spelling)}" for name in ("first", "second", "third"))


def sound_state(spelling: Spelling, path: str, number: int) -> dict[str, Tensor]:
    """Return the tensors of one layer as the family declares them."""
    return state_dict(spelling, seed=number, path=path)


def settings_of(family: Family, spelling: Spelling, number: int) -> dict[str, Any]:
    """Return settings that select the spelling; those of odd numbers give a length too, so that kernels are known."""
    return config(family, spelling) | ({"l_max": 64} if number % 2 else {})


def sound_checkpoint(family: Family, spelling: Spelling, number: int) -> Checkpoint:
    """Return the model of `make_case` with nothing strange in it."""
    state: dict[str, Tensor] = {}
    for place, path in enumerate(paths_of(spelling)):
        state |= sound_state(spelling, path, place)
    return hold(state, settings_of(family, spelling, number))


def make_case(seed: int) -> Case:
    """Return a strange model; the same one for the same seed."""
    dice = random.Random(seed)
    family, spelling = SPELLINGS[seed % len(SPELLINGS)]
    number, paths, said = seed // len(SPELLINGS), paths_of(spelling), []
    if dice.random() < 0.12:
        axes = sorted({axis for dims in spelling.tensors.values() for token in dims.rpartition(":")[2].split()
                       for axis in token.split("*") if not axis.isdigit() and axis != "_"})  # fmt: skip
        sizes = {axis: dice.choice(SIZES) for axis in dice.sample(axes, min(len(axes), dice.choice((1, 1, 2))))}
        own = state_dict(spelling, seed=1, path=paths[1], sizes=sizes)
        said += [f"{axis} of {size}" for axis, size in sizes.items()]
    else:
        own = state_dict(spelling, seed=1, path=paths[1], optional=dice.random() < 0.3)
    names = list(own)
    chosen = dice.sample(names, min(len(names), dice.choice((1, 1, 1, 1, 2, len(names)))))
    kind = "shape" if said else dice.choices(("shape", "dtype", "value", "both"), (25, 20, 45, 10))[0]
    for name in [] if said else chosen:
        values, local = own[name], name.removeprefix(f"{paths[1]}.")
        if kind in ("value", "both"):
            if values.is_floating_point() or values.is_complex():
                how = dice.choice(list(VALUES))
                values = VALUES[how](values.clone(), dice)
            else:
                how = str(integer := dice.choice(INTEGERS))
                values = torch.full_like(values, integer)
            said.append(f"{local} {how}")
        if kind in ("shape", "both"):
            how = dice.choice(list(SHAPES))
            values = SHAPES[how](values, dice)
            said.append(f"{local} {how}")
        if kind == "dtype":
            dtype = dice.choice(DTYPES)
            values = values.real.to(dtype) if values.is_complex() and not dtype.is_complex else values.to(dtype)
            said.append(f"{local} {dtype}")
        elif (
            kind == "value"
            and values.is_floating_point()
            and "float64" not in spelling.tensors.get(local, "")
            and dice.random() < 0.5
        ):
            values = values.to(torch.float32)
        own[name] = values.contiguous()
    state = sound_state(spelling, paths[0], 0) | own | sound_state(spelling, paths[2], 2)
    return Case(family, spelling, seed, tuple(said), paths, state, settings_of(family, spelling, number))
