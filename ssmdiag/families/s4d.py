"""S4D in its minimal form (Gu et al., 2022, arXiv 2206.11893), the file most copied: models/s4/s4d.py.

| paper | tensor | shape | role |
|---|---|---|---|
| Re A | `kernel.log_A_real` | channel, mode | Re A = −exp(w) |
| Im A | `kernel.A_imag` | channel, mode | Im A = +w; one of each conjugate pair |
| Δ | `kernel.log_dt` | channel | Δ = exp(w) |
| C | `kernel.C` | channel, mode, 2 | output; B ≡ 1 |

ZOH; K_t = 2 Re Σ_n C_n (λ̄_n − 1)/A_n λ̄_n^t.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.families.interface import Family, Spelling
from ssmdiag.recurrence import zoh, zoh_gain

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence import Recurrence


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("kernel.log_A_real", "exp")
    frequency = layer.weight("kernel.A_imag", "none", role="frequency")
    step = layer.weight("kernel.log_dt", "exp", role="step")[:, None]
    eigenvalues = -rate + 1j * frequency
    yield layer.recurrence(
        zoh(eigenvalues, step),
        step=step,
        conjugate_pairs=True,
        kernel_factor=2.0,
        input_matrix=zoh_gain(eigenvalues, step),
        output_matrix=layer.complex("kernel.C")[None],
    )


FAMILY = Family(
    name="s4d",
    title="S4D",
    paper="arXiv 2206.11893",
    memory="exact",
    spellings=(
        Spelling(
            "state-spaces/s4, models/s4/s4d.py",
            {
                "kernel.log_A_real": "channel mode",
                "kernel.A_imag": "channel mode",
                "kernel.log_dt": "channel",
                "kernel.C": "channel mode 2",
            },
            absent=("kernel.B", "kernel.P"),
        ),
    ),
    read=read,
)
