"""Whether a learned kernel decays by the law of the target kernel, and with which parameters.

`inspect` asks which of all laws a kernel follows, and over a decade of lags that has no answer. Here the law is known:
its parameters are fitted, t₀ up to the last lag, and reported where it describes the kernel. The residual of each rival
is reported beside them: over few lags a rival may fit as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ssmdiag.assessment.memory import FLOAT32_FLOOR, lag_edges
from ssmdiag.decay.decay import NEPER_DB, Law, compare_decay
from ssmdiag.decay.gauss_newton import PARAMETERS
from ssmdiag.decay.grid import SHORTEST_OFFSET
from ssmdiag.decay.verdict import CONTRAST, MODEL_ERROR_DB, POWER_DB
from ssmdiag.retrain.results import LearnedLaw
from ssmdiag.retrain.tasks import TargetLaw

DESCRIBES_DB = POWER_DB
"""Largest rms residual of a law that describes a learned kernel."""
_AT_BOUND = 1e-6


def fit_target_law(values: Tensor, noise: Tensor, asked: TargetLaw) -> LearnedLaw:
    """Return the target's law fitted to a learned kernel, both (lag,) float64; `noise` is its standard error."""
    edges = lag_edges(len(values))
    mean_square, floor = _means(values.square(), edges), _means(noise.square(), edges)
    floor = floor + FLOAT32_FLOOR * mean_square.amax()
    found = compare_decay(edges, mean_square[None], floor, context=len(values), offset_share=1.0)
    if not found.fitted[0]:
        return LearnedLaw(asked, False, found.channel(0).status.value)
    window = int(found.first[0]), int(found.last[0])
    residual = {law.value: NEPER_DB * float(fit.residual[0]) for law, fit in found.fits.items()}
    own = residual[asked.law]
    fit, free = found.fits[Law(asked.law)], PARAMETERS[asked.law]
    offset = float(fit.offset[0])
    bound = "offset" in free and not (1 + _AT_BOUND) * SHORTEST_OFFSET < offset < (1 - _AT_BOUND) * window[1]
    if reason := _objection(asked.law, residual, offset if bound else None):
        return LearnedLaw(asked, False, reason, window, residual, offset_at_bound=bound)
    # The binned law is itself known to MODEL_ERROR_DB only.
    widen = math.hypot(own, MODEL_ERROR_DB) / own if own else 1.0
    parameters: dict[str, float | None] = {}
    for name in free:
        # At a bound the optimum is not reached, and p depends on t₀. Without a residual the error is unknown.
        known = own and (not bound or name == "rate")
        parameters[name] = float(getattr(fit, name)[0])
        parameters[f"{name}_error"] = widen * float(getattr(fit, f"{name}_error")[0]) if known else None
    return LearnedLaw(asked, True, None, window, residual, offset_at_bound=bound, **parameters)


def _objection(law: str, residual: Mapping[str, float], bound: float | None) -> str | None:
    """Return why the law does not describe the kernel, or None; `bound` is the bound that t₀ stayed at."""
    own = residual[law]
    rival = min((name for name in residual if name != law), key=residual.__getitem__)
    nearer = own > CONTRAST * math.hypot(residual[rival], MODEL_ERROR_DB)
    if own <= DESCRIBES_DB and not nearer:
        return None
    if bound is not None:
        return f"t₀ is at its bound of {bound:,.3g} steps, and the law is too far off there"
    return f"{rival} comes much nearer" if nearer else "no law comes near it"


def _means(values: Tensor, edges: Tensor) -> Tensor:
    """Return the mean over the lags of each bin."""
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])[edges]
    return sums.diff() / edges.diff()
