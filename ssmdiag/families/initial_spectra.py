"""Memory of the families before training: the spectra of their usual initialisations.

Steps that models draw log-uniformly from [0.001, 0.1] are evenly spaced quantiles here, one per channel, and so are the
moduli of a ring; nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssmdiag.recurrence.discretisation import bilinear, zoh
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

STEP_RANGE = (1e-3, 1e-1)
"""Smallest and largest Δ of S4, S4D, S5, DSS and Mamba."""
STEPS = 16
GOLDEN = (math.sqrt(5) - 1) / 2
Built = tuple[str, dict[str, Any]]
"""The source of a spectrum, and its fields of a `Recurrence`."""


@dataclass(frozen=True)
class InitialSpectrum:
    """One initialisation: a recurrence with a channel for each of its steps."""

    name: str
    source: str
    """Its source, and what replaces the random draws."""
    recurrence: Recurrence


def initial_spectra(family: str, modes: int) -> tuple[InitialSpectrum, ...]:
    """Return the usual initialisations of a family with this many stored modes per channel; () where none is known.

    Raises ValueError for fewer than one mode.
    """
    if modes < 1:
        raise ValueError(f"a spectrum has at least one mode, got {modes}")
    found = []
    for name in FAMILIES.get(family, ()):
        source, spectrum = _SPECTRA[name](modes)
        fields = {"layer": name, "family": family, "spelling": "as initialised", "time_invariant": True, **spectrum}
        found.append(InitialSpectrum(name, source, Recurrence(**fields)))
    return tuple(found)


def legs_matrix(states: int) -> tuple[Tensor, Tensor]:
    """Return A (state, state) and B (state,) of HiPPO-LegS, whose eigenvalues are −1 … −N (Gu et al., 2020)."""
    root = (2 * torch.arange(states, dtype=torch.float64) + 1).sqrt()
    A = -(root[:, None] * root).tril(-1) - torch.arange(1, states + 1, dtype=torch.float64).diag()
    return A, root


def normal_legs(states: int) -> Tensor:
    """Return the eigenvalues of LegS's normal part, −½ + iω with ω descending, (state,) complex128."""
    A, B = legs_matrix(states)
    skew = A + 0.5 * B[:, None] * B + 0.5 * torch.eye(states, dtype=torch.float64)
    skew = (skew - skew.mT) / 2
    frequencies = torch.linalg.eigvalsh(1j * skew).flip(0)
    return torch.complex(torch.full_like(frequencies, -0.5), frequencies)


def _steps() -> Tensor:
    """Return Δ at the quantiles of its log-uniform distribution, (channel, 1)."""
    low, high = (math.log(step) for step in STEP_RANGE)
    share = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    return (low + (high - low) * share).exp()[:, None]


def _stepped(source: str, eigenvalues: Tensor, pairs: bool) -> Built:
    """Return continuous modes (mode,) at all steps, by a zero-order hold."""
    fields = {"log_eigenvalues": zoh(eigenvalues, _steps()), "conjugate_pairs": pairs, "step": _steps()}
    return f"{source}; Δ log-uniform in [0.001, 0.1], at {STEPS} quantiles", fields


def _linear(modes: int) -> Built:
    frequency = math.pi * torch.arange(modes, dtype=torch.float64)
    eigenvalues = torch.complex(torch.full_like(frequency, -0.5), frequency)
    return _stepped("arXiv 2206.11893: −½ + iπn", eigenvalues, True)


def _inverse(modes: int) -> Built:
    states = 2 * modes
    frequency = states / math.pi * (states / (2 * torch.arange(modes, dtype=torch.float64) + 1) - 1)
    eigenvalues = torch.complex(torch.full_like(frequency, -0.5), frequency)
    return _stepped("arXiv 2206.11893: −½ + i N/π (N/(2n + 1) − 1)", eigenvalues, True)


def _real(modes: int) -> Built:
    eigenvalues = -torch.arange(1, modes + 1, dtype=torch.float64)
    return _stepped("arXiv 2206.11893, 2312.00752: −1 … −N", eigenvalues, False)


def _normal(modes: int) -> Built:
    return _stepped("arXiv 2206.11893, 2208.04933: normal part of LegS", normal_legs(2 * modes)[:modes], True)


def _legs(modes: int) -> Built:
    (A, B), step = legs_matrix(modes), _steps()
    spectrum = bilinear(-torch.arange(1, modes + 1, dtype=torch.float64), step)

    def dense() -> DenseRealisation:
        identity = torch.eye(modes, dtype=torch.float64)
        half = step[..., None] / 2 * A
        solved = torch.linalg.solve(identity - half, torch.cat([identity + half, (step * B)[..., None]], -1))
        return DenseRealisation(solved[..., :-1], solved[..., -1], torch.ones(1, STEPS, modes, dtype=torch.float64))

    source = f"arXiv 2111.00396: HiPPO-LegS, bilinear; Δ log-uniform in [0.001, 0.1], at {STEPS} quantiles"
    return source, {"log_eigenvalues": spectrum, "step": step, "dense": dense}


def _ring(modes: int, *, inner: float, outer: float) -> Built:
    index = torch.arange(modes, dtype=torch.float64)
    square = inner**2 + (outer**2 - inner**2) * (index + 0.5) / modes
    angle = 2 * math.pi * (index * GOLDEN % 1)
    source = f"arXiv 2303.06349: |λ|² uniform between {inner}² and {outer}², any angle; moduli at quantiles"
    return source, {"log_eigenvalues": torch.complex(square.log() / 2, angle)[None]}


def _heads(modes: int) -> Built:
    """Return heads of one mode each, every A with every Δ."""
    A = 1 + 15 * (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    rate = (A * _steps()).flatten()[:, None]
    step = _steps().expand(-1, STEPS).flatten()[:, None]
    source = f"arXiv 2405.21060: A uniform in [1, 16], Δ log-uniform in [0.001, 0.1], each at {STEPS} quantiles"
    return source, {"log_eigenvalues": zoh(-rate, torch.ones_like(rate)), "time_invariant": False, "step": step}


_SPECTRA: dict[str, Callable[[int], Built]] = {
    "S4D-Lin": _linear,
    "S4D-Inv": _inverse,
    "S4D-Real": _real,
    "S4D-LegS": _normal,
    "LegS": _legs,
    "HiPPO-N": _normal,
    "A = 1 … N": _real,
    "A in 1 … 16": _heads,
    "ring 0–1": partial(_ring, inner=0.0, outer=1.0),
    "ring 0.9–0.999": partial(_ring, inner=0.9, outer=0.999),
}
FAMILIES: dict[str, tuple[str, ...]] = {
    "s4": ("LegS",),
    "s4d": ("S4D-Lin", "S4D-Inv", "S4D-LegS", "S4D-Real"),
    "annotated_s4": ("S4D-LegS", "S4D-Lin"),
    "stablessm": ("S4D-Lin",),
    "dss": ("S4D-LegS",),
    "s5": ("HiPPO-N",),
    "lru": ("ring 0–1", "ring 0.9–0.999"),
    "mamba": ("A = 1 … N",),
    "zamba": ("A = 1 … N",),
    "mamba2": ("A in 1 … 16",),
}
"""Names of the initialisations of each family that has some."""
