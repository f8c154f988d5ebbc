"""SSM402: the recurrence is exactly at its initialisation, in a model that was trained.

Formula. w = w₀ to rounding, where w₀ is log 1 … log N (Mamba, S4D-Real), one constant (S4, S4D, DSS, S5: Re A = −1/2;
GLA: 0), or a + b(i/(n − 1))^p (RWKV; p = 1: xLSTM), in at least `share` of the channels, and norms beside it are no
longer constant. Random starts (Mamba-2, LRU) cannot be recognised like this. Fixed decays (RetNet, Lightning attention)
are left out. Values rounded to 16 bits on the way are recognised.

Why it hurts. The time scales of the model are those of its initialisation, not those its data need. In a reservoir that
is intended and no loss (arXiv 2510.00563). Where a converter left the weight out and the loader filled in fresh values,
the outputs are those of another model.

What to do. Look for trainable=False, requires_grad=False or a parameter group that misses the weight; for pure 16-bit
training, whose updates of log 16 = 2.77 are lost under 0.008; and for `newly initialized` in the loader's output.
Ignore this rule for a model frozen on purpose; files of `ssmdiag retrain --freeze` say so themselves and are left out.

Example. vedant-jumle/Mamba-tf issue 2 (https://github.com/vedant-jumle/Mamba-tf/issues/2): A_log was created with
trainable=False. ServiceNow/Fast-LLM issue 380 (https://github.com/ServiceNow/Fast-LLM/issues/380): a converted model
reports A_log, D and dt as newly initialised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.families.initialisations import frozen_on_purpose
from ssmdiag.printable import plural
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence.modal import RecurrentWeight

FEWEST = 4
"""Fewer values than this may equal an initialisation by chance."""

MOST_PARAMETERS = 8
"""Values from which three free numbers (a, b, p) cannot fit them all by chance."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    if "fixed decay" in evidence.layer.family.traits or frozen_on_purpose(evidence.layer, "eigenvalues"):
        return
    for weight in evidence.weights("rate"):
        if (found := _start(_as_stored(evidence, weight))) is None:
            continue
        name, still, rows = found
        local = evidence.local(weight.name)
        if still < limits["share"] * rows or not evidence.whole.training.trained:
            continue
        some = f"{still:,} of {plural(rows, 'channel')} of {local} {'is' if still == 1 else 'are'}"
        what = some if still < rows else f"{local} is"
        yield Observation(
            f"{what} still {name}, to the last bit, though {evidence.whole.training.evidence}",
            count=still,
            of=rows,
            value=still / rows,
            threshold=limits["share"],
            tensor=weight.name,
        )


def _as_stored(evidence: LayerEvidence, weight: RecurrentWeight) -> RecurrentWeight:
    """Return the weight with the values of the file, where the family caps them or GGUF holds −A = e^A_log."""
    if weight.map == "-logsigmoid" and evidence.recurrence.family == "mlstm":
        values = evidence.layer[evidence.local(weight.name)]
        return replace(weight, values=values[-len(weight.values) :])  # fused: the forget gates are the second half
    if weight.map == "direct" and weight.name.endswith("ssm_a"):
        return replace(weight, values=(-weight.values).log(), map="exp")
    return weight


def _start(weight: RecurrentWeight) -> tuple[str, int, int] | None:
    """Return (initialisation, rows that equal it, all rows), or None."""
    values = weight.values
    if values.numel() < FEWEST or not bool(values.isfinite().any()):
        return None
    modes = values.shape[-1]
    if weight.map == "exp" and values.ndim >= 2 and modes >= 4:
        start = (values.new_ones(modes).cumsum(0)).log()
        channels = values.reshape(-1, modes)
        rows = _equal(channels[:, -1], start[-1])  # one mode excludes nearly every trained channel
        if bool(rows.any()):
            rows &= _equal(channels, start).all(1)
            return f"log 1 … log {modes}", int(rows.sum()), len(rows)
    flat = values.flatten()
    if bool((flat - flat[0]).abs().max() <= 2e-6 * flat[0].abs()):
        # A bias that starts at 0 and a missing one look alike until training moves it.
        return f"{float(flat[0]):.4g} in every mode", flat.numel(), flat.numel()
    count = flat.numel()
    if weight.map == "exp" and values.ndim == 1 and bool(_equal(flat, flat.new_ones(count).cumsum(0).log()).all()):
        return f"log 1 … log {count}", count, count
    if _is_power_ramp(flat, power=1.0):
        return "evenly spaced", count, count
    power = count >= MOST_PARAMETERS and _is_power_ramp(flat)
    return ("a power of the channel's index", count, count) if power else None


def _equal(values: Tensor, start: Tensor) -> Tensor:
    """Whether each value equals its start, in float32 or after rounding to 16 bits."""
    import torch

    exact = torch.zeros_like(values, dtype=torch.bool)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rounded = start.to(dtype).to(values.dtype)
        exact |= (values - rounded).abs() <= 3e-7 * rounded.abs()
    return exact


def _is_power_ramp(values: Tensor, power: float | None = None) -> bool:
    """Whether values are a + b·(i/(n − 1))^p to rounding: RWKV's start, and with p = 1 that of xLSTM's gates."""
    count = len(values)
    span = float(values[-1] - values[0])
    if count < FEWEST or span == 0 or not bool(values.isfinite().all()):
        return False
    position = (values - values[0]) / span
    index = (values.new_ones(count).cumsum(0) - 1) / (count - 1)
    middle = count // 2
    if not 0 < float(position[middle]) < 1:
        return False
    exponent = power or math.log(float(position[middle])) / math.log(float(index[middle]))
    return bool((position - index**exponent).abs().max() <= 4e-7 * (float(values.abs().max()) / abs(span) + 1))


RULE = Rule(
    code="SSM402",
    name="untrained-recurrence",
    severity="warning",
    summary="the recurrence is exactly at its initialisation in a trained model",
    looks_at="layer",
    examine=examine,
    advice="check that the weight requires a gradient, is in the optimiser, and was in the file it was loaded from.",
    **page(__doc__),
    thresholds={"share": Threshold(0.5, "share of a layer's channels that are exactly at their start")},
)
