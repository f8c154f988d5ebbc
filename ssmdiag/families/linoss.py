"""LinOSS, linear oscillators (Rusch & Rus, 2024, arXiv 2410.03943), and D-LinOSS with damping (2505.12171).

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_diag` | oscillator | a = relu(w), squared frequency; D-LinOSS limits it to complex pairs |
| G | `G_diag` | oscillator | g = relu(w), damping; in D-LinOSS only |
| Δ | `steps`, or `dt` | oscillator | Δ = σ(w) |
| B | `B` | oscillator, input, 2 | input |
| C | `C` | output, oscillator, 2 | output, reads the position |

A second-order system has two modes per oscillator, λ± = e^{ℓ ± iθ}, of the 2 × 2 matrix M of (velocity, position):

- IM (implicit): ℓ = −½ log(1 + Δ²a), θ = atan(Δ√a): dissipates
- IMEX (implicit-explicit): ℓ = 0, θ = 2 asin(Δ√a/2): conserves energy; past Δ²a = 4 one mode grows
- D-LinOSS: s² = 1 + Δg, ℓ = −log s, cos²(θ/2) = ((s + 1)² − Δ²a)/4s

K_t = Re Σ C B Δ (M^{t+1})₂₁ and (M^t)₂₁ = M₂₁ (λ₊^t − λ₋^t)/(λ₊ − λ₋). B and C are complex, so neither
mode is implied by the other: both are listed and κ = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import as_complex

NEARLY_DOUBLE = 1e-8
"""Relative distance of two eigenvalues below which their modal form keeps under half of float64's digits."""


def read(layer: Layer) -> Iterator[Recurrence]:
    import torch

    step = layer.weight("steps" if "steps" in layer else "dt", "sigmoid", role="step")
    stiffness = layer.weight("A_diag", "none" if "G_diag" in layer else "relu", role="frequency")
    if "G_diag" in layer:
        _require_paper_rule(layer)
        plus, minus, coupling = _explicit(step, stiffness, layer.weight("G_diag", "relu") * step, limited=True)
    elif layer.option("discretization") == "imex":
        plus, minus, coupling = _explicit(step, stiffness, 0 * step, limited=False)
    else:
        squared = step.square() * stiffness
        plus = as_complex(-squared.log1p() / 2) + 1j * squared.sqrt().atan()
        minus, coupling = plus.conj(), step / (1 + squared)
    yield layer.recurrence(
        torch.cat([plus, minus])[None],
        step=torch.cat([step, step])[None],
        **_matrices(layer, plus, minus, step * coupling),
    )


def _require_paper_rule(layer: Layer) -> None:
    """Raise LayerError where the settings name one of D-LinOSS's three other rules; they share all tensor names."""
    rule = str(layer.setting("layer_name", default="")).lower()
    if rule in ("dampedimex2", "dampedim", "dampedex"):
        raise LayerError(f"{layer.title}: D-LinOSS layers of kind {rule} are not read.", expected="DampedIMEX1")
    if "dt" in layer and rule != "dampedimex1":
        layer.note("read as DampedIMEX1, the paper's rule; tensors do not distinguish D-LinOSS's four rules")


def _explicit(step: Tensor, stiffness: Tensor, growth: Tensor, *, limited: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ℓ₊, ℓ₋ and M₂₁ of the implicit-explicit rule for Δg = `growth`.

    `limited`: a is clamped to where the pair is complex, as D-LinOSS does. Otherwise Δ²a may exceed
    (s + 1)², where the pair is real and negative.
    """
    root = (1 + growth).sqrt()
    below, above = (growth / (root + 1)).square(), (root + 1).square()
    squared = step.square() * stiffness
    if limited:
        squared = squared.clamp(min=below).clamp(max=above)
    angle = 2 * (squared - below).clamp(min=0).sqrt().atan2((above - squared).clamp(min=0).sqrt())
    split = 2 * ((squared - above).clamp(min=0) / (4 * root)).sqrt().asinh()
    # Real negative modes both turn by π; a conjugated angle would call one of them −π.
    other = (-angle).where(split == 0, math.pi)
    center = -root.log()
    return center + split + 1j * angle, center - split + 1j * other, step / (1 + growth)


def _matrices(layer: Layer, plus: Tensor, minus: Tensor, weight: Tensor) -> dict[str, Any]:
    """Return B̄ and C over both modes of each oscillator, or nothing where a pair coincides.

    `weight` is Δ M₂₁, the gain of the divided difference of λ^{t+1}.
    """
    import torch

    difference = 2 * ((plus - minus) / 2).sinh()  # (λ₊ − λ₋) / √(λ₊λ₋)
    double = int((difference.abs() < NEARLY_DOUBLE).sum())
    if double:
        layer.note(
            f"{double} of {len(plus)} oscillators have a double eigenvalue: their response grows before it decays, "
            "which no sum of exponentials gives, so the kernel is left out"
        )
        return {}
    gain = weight / difference / ((plus + minus) / 2).exp()
    B, C = layer.complex("B"), layer.complex("C")
    return {
        "input_matrix": torch.cat([(gain * plus.exp())[:, None] * B, (-gain * minus.exp())[:, None] * B]),
        "output_matrix": torch.cat([C, C], -1),
    }


_IO = {"B": "oscillator input 2", "C": "output oscillator 2"}
_DAMPING = {"G_diag": "oscillator"}

FAMILY = Family(
    name="linoss",
    title="LinOSS",
    paper="arXiv 2410.03943",
    memory="exact",
    spellings=(
        Spelling("tk-rusch/linoss", {"A_diag": "oscillator", "steps": "oscillator", **_IO}, _DAMPING),
        Spelling("jaredbmit/damped-linoss", {"A_diag": "oscillator", "dt": "oscillator", **_IO}, _DAMPING),
    ),
    repositories=(
        "jaredbmit/damped-linoss",
        "tk-rusch/linoss",
    ),
    read=read,
    options=(
        Option(
            "discretization",
            ("im", "imex"),
            "im",
            "whether undamped oscillators dissipate (implicit) or conserve energy (implicit-explicit)",
            ("linoss_discretization", "layer_name"),
        ),
    ),
)
