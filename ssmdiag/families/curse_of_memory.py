"""Linear RNNs of the "curse of memory" (Wang et al., 2023, arXiv 2305.19190), in float64.

| paper | tensor | shape | role |
|---|---|---|---|
| Λ | `W.weight` | state | rates g = f(w); the class decides f |
| P | `P.weight` | state, state | basis of the rates; begun orthogonal, free afterwards |

Explicit Euler: h ← h + Δ(x − G h), so λ̄ = 1 − Δγ with γ the eigenvalues of G = Pᵀ diag(g) P, which is symmetric
whatever P is. f is relu (SimpleDiagonalRNN, SimpleRNN, SimpleSSM) or softplus (SoftplusRNN). Their LRU is
h ← h + Δ(w h + √(1 − w²) x), w = exp(−e^W) − 1. Neither the class nor Δ is in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import as_complex


def read(layer: Layer) -> Iterator[Recurrence]:
    coupled = "P.weight" in layer
    kind = layer.option("class", among=("simplernn", "softplusrnn") if coupled else ("simplediagonalrnn", "lru"))
    dt = float(layer.option("dt"))
    if kind == "lru":
        rate = layer.weight("W.weight", "exp")
        # At Δ = 1 the decay is exp(−e^W) itself; 1 + expm1(−e^W) would lose the fast modes' digits.
        ell = as_complex(-rate) if dt == 1 else log_one_minus(-dt * (-rate).expm1())
        yield _one_unit_each(layer, ell, dt, dt * ((-rate).exp() * (2 - (-rate).exp())).sqrt())
        return
    if kind == "softplusrnn":
        rate = layer.weight("W.weight", "softplus")
    else:
        rate = layer.weight("W.weight", "relu" if layer.option("training") == "true" else "none")
    if not coupled:
        yield _one_unit_each(layer, log_one_minus(dt * rate), dt, dt + 0 * rate)
        return
    rate, modes = _symmetric_modes(layer["P.weight"], rate)
    if "g.linear1.weight" in layer:
        layer.note("SimpleSSM: this is the linear core between the two MLPs g and f")
    yield layer.recurrence(
        log_one_minus(dt * rate)[None],
        step=0 * rate[None] + dt,
        input_matrix=as_complex(dt * modes),
        output_matrix=as_complex(modes.T),
    )


def log_one_minus(x: Tensor) -> Tensor:
    """Return log(1 − x) for real x, with the angle π past x = 1."""
    modulus = (-x).log1p().where(x < 1, (x - 1).log())
    return as_complex(modulus) + 1j * math.pi * (x > 1)


def _one_unit_each(layer: Layer, ell: Tensor, dt: float, gain: Tensor) -> Recurrence:
    """Return a recurrence in which each unit has one mode, one input and one output."""
    return layer.recurrence(
        ell[:, None],
        step=0 * gain[:, None] + dt,
        input_matrix=as_complex(gain)[:, None],
        output_matrix=as_complex(0 * gain + 1)[None, :, None],
    )


def _symmetric_modes(basis: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (mode) and orthonormal eigenvectors (mode, state) of Pᵀ diag(g) P.

    Where no rate is negative they come from the singular values of diag(√g) P, which keep a rate of 0
    from rounding to the unstable side.
    """
    import torch

    if not bool(rate.isfinite().all() and basis.isfinite().all()):
        return rate * torch.nan, basis * torch.nan
    if bool((rate >= 0).all()):
        _, singular, modes = torch.linalg.svd(rate.sqrt()[:, None] * basis)
        singular[int((rate > 0).sum()) :] = 0
        return singular.square(), modes
    values, vectors = torch.linalg.eigh(basis.T @ (rate[:, None] * basis))
    return values, vectors.T


FAMILY = Family(
    name="curse_of_memory",
    title="Curse-of-memory RNN",
    paper="arXiv 2305.19190",
    memory="exact",
    spellings=(
        Spelling(
            "radarFudan/Curse-of-memory, one unit per mode",
            {"W.weight": "float64: state"},
            absent=("P.weight", "W.bias"),
            strangers=".",
        ),
        Spelling(
            "radarFudan/Curse-of-memory, units coupled by P",
            {"P.weight": "float64: state state", "W.weight": "float64: state"},
            {"g.linear1.weight": "_ state"},
            strangers="^[^gf]",
        ),
    ),
    repositories=("radarFudan/Curse-of-memory",),
    read=read,
    options=(
        Option(
            "class",
            ("simplediagonalrnn", "lru", "simplernn", "softplusrnn"),
            "simplediagonalrnn",
            "which recurrent class was trained: two pairs of them write the same tensors",
        ),
        # 1.0 is the default of the classes and of every experiment; the model configurations alone say 0.33.
        Option("dt", ("1.0", "0.33"), "1.0", "the step Δ of the Euler rule", number=True),
        Option("training", ("true", "false"), "true", "whether relu keeps the rates at or above zero"),
    ),
    caveat="With a tanh or hardtanh activation this is the recurrence linearised at zero.",
)
