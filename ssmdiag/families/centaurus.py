"""Centaurus (Pei, 2025, arXiv 2501.13230): convolutions by states of several modes each, mixed by E.

| paper | tensor | shape | role |
|---|---|---|---|
| Δ | `log_delta` | state | Δ = exp(w) |
| A | `A` | state, mode | complex, as it is |
| E | `E` | state, mode | mixes the modes of a state; absent in the pointwise kind |
| B | `B` | state, input; flat mode, input; or state | input, times Δ |
| C | `C` | output, state; output, flat mode; or state | output |

λ̄ = e^{ΔA} and K_t = Σ_n C_n Σ_m E_nm Re λ̄_nm^t ΔB_n: no mode is implied, κ = 1. B and C with one number per state
belong to a state per channel (dws) or per pair of input and output (full): each has a kernel of its own.
SforAiDl/lrnnx b28d4ee, lrnnx/models/lti/centaurus.py:54 and 96.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling
from ssmdiag.recurrence.discretisation import as_complex


def read(layer: Layer) -> Iterator[Recurrence]:
    A = layer["A"]
    layer.weight("A", "direct", part=A.real)
    layer.weight("A", "none", role="frequency", part=A.imag)
    step = layer.weight("log_delta", "exp", role="step")[:, None].expand(A.shape)
    B, C = layer["B"], layer["C"]
    if B.ndim == 1:
        yield layer.recurrence(
            step * A,
            step=step,
            input_matrix=as_complex(step * B[:, None]),
            output_matrix=as_complex(layer["E"] * C[:, None])[None],
        )
        return
    if "E" in layer:
        B, C = B.repeat_interleave(A.shape[1], 0), C.repeat_interleave(A.shape[1], 1) * layer["E"].flatten()
    yield layer.recurrence(
        (step * A).reshape(1, -1),
        step=step.reshape(1, -1),
        input_matrix=as_complex(step.reshape(-1, 1) * B),
        output_matrix=as_complex(C),
    )


_STATES = {"log_delta": "state", "A": "complex: state mode"}
_MIXED = {**_STATES, "E": "state mode"}

FAMILY = Family(
    name="centaurus",
    title="Centaurus",
    paper="arXiv 2501.13230",
    memory="exact",
    spellings=(
        Spelling("SforAiDl/lrnnx, neck", {**_MIXED, "B": "state input", "C": "output state"}),
        Spelling("SforAiDl/lrnnx, dws and full", {**_MIXED, "B": "state", "C": "state"}),
        Spelling(
            "SforAiDl/lrnnx, pointwise", {**_STATES, "B": "state*mode input", "C": "output state*mode"}, absent=("E",)
        ),
    ),
    repositories=("SforAiDl/lrnnx",),
    read=read,
)
