"""Initial steps and rates of published models, with which rules compare trained weights.

| family | start of the rate | start of Δ |
|---|---|---|
| Mamba-1, Zamba, S4D-Real | A_log = log 1 … log N in every channel | log-uniform in [0.001, 0.1] |
| Mamba-2, PLaMo-2, KDA, fla's DeltaNets | A uniform in [1, 16] or [0, 16], or 1 … H | the same |
| S4, S4D, DSS, S5, StableSSM | Re A = −1/2 in every mode | the same |
| RWKV-4 … 7 | a + b·(i/(n − 1))^p over the channels i | – |
| xLSTM | forget biases evenly spaced from 3 to 6 | – |

Sources: the original repositories, as listed in the family modules.
"""

from __future__ import annotations

import math

from ssmdiag.families.interface import Layer, Recurrence
from ssmdiag.recurrence.modal import RecurrentWeight

USUAL_STEP = (1e-3, 1e-1)
"""Range of Δ in which nearly every published model starts, log-uniformly; per unit of A's time."""

_LOW = ("time_step_min", "dt_min")
_HIGH = ("time_step_max", "dt_max")


def usual_step(layer: Layer) -> tuple[float, float]:
    """Return (low, high) of Δ at the start of training: from the settings, else the usual range."""
    low, high = (_positive(layer.setting(*names)) for names in (_LOW, _HIGH))
    bounds = low or USUAL_STEP[0], high or USUAL_STEP[1]
    return bounds if bounds[0] < bounds[1] else USUAL_STEP


def log_uniform_step(recurrence: Recurrence) -> RecurrentWeight | None:
    """Return the weight behind Δ where the family starts it log-uniformly, else None."""
    steps = [weight for weight in recurrence.weights if weight.role == "step"]
    known = len(steps) == 1 and steps[0].map in ("softplus", "softplus+1e-4", "exp")
    return steps[0] if known else None


def frozen_on_purpose(layer: Layer, part: str) -> bool:
    """Whether the file says that `part` (eigenvalues or step) was not trained, as files of `ssmdiag retrain` do."""
    said = f"{layer.setting('freeze', default='')} {layer.setting('arm', default='')}"
    return part in said or '"freeze": "both"' in said or said.startswith("both")


def _positive(value: object) -> float | None:
    """Return a setting as a positive finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < math.inf else None
