"""SSM405: A_log went through the logarithm twice.

Formula. With modes: |median_c w − log log n| small and less than half of |median_c w − log n| over modes n ≥ 2, the
first mode (log 0) at −∞ or under −1. With one rate per head, over all layers: w ≤ log log 16 = 1.02 throughout (1.33 if
A has grown e times), and NaN or −∞ among them (A < 1 has a negative logarithm) or exp(exp(w)) uniform in [1, 16]; a
warning where it is nearly uniform, as after training.

Why it hurts. The decay becomes exp(−Δ log A) instead of exp(−Δ A): a mode with A = 16 remembers six times too long, one
with A = 1 for ever, and one with A below 1 is NaN, which spreads to every output.

What to do. Load the original file and compare A_log in memory with it. In transformers 5 an `_init_weights` that
computes log(A) in place runs again on loaded weights unless they are flagged as initialised.

Example. fla-org/flash-linear-attention PR 754 (https://github.com/fla-org/flash-linear-attention/pull/754): with
transformers 5 a second initialisation took the logarithm of loaded A_log, and rows became NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page
from ssmdiag.rules.uniformity import distance_from_uniform, uniform_p_value

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.families.layer import Layer

NAMES = ("A_log", "A_b_log", "A_log_b", "A_logs", "A_log.0")
HIGHEST = math.log(math.log(16) + 1)
"""Upper bound after two logarithms: of an A that began in [0, 16] and grew e times in training."""
FEWEST = 8
FEWEST_TRAINED = 128
"""Fewest rates from which a distribution that training has moved is still recognised."""


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    scalars: list[tuple[Layer, str, Tensor]] = []
    for layer in evidence.recognition.layers:
        for local, values in layer.readable(NAMES):
            modes = values.shape[-1] if values.numel() else 0
            if values.ndim >= 2 and modes >= 4:
                yield from _examine_rows(layer, layer.names[local], values.reshape(-1, modes), limits["distance"])
            else:
                scalars.append((layer, layer.names[local], values.flatten()))
    yield from _examine_scalars(scalars, limits)


def _examine_rows(layer: Layer, name: str, values: Tensor, most: float) -> Iterator[Observation]:
    """Look for log log n in place of log n, with the first mode at −∞ or far below the second."""
    local = name.removeprefix(f"{layer.path}.")
    index = (values.new_ones(values.shape[1]).cumsum(0))[1:]
    usual = values[:, 1:].nanmedian(0).values
    twice, once = (usual - index.log().log()).abs(), (usual - index.log()).abs()
    first = values[:, 0].where(values[:, 0].isfinite(), -math.inf)
    distance = float(twice.median())
    if not (distance < most and distance < float(once.median()) / 2 and float(first.median()) < -1):
        return
    lost = int((~values.isfinite()).sum())
    yield Observation(
        f"{local} is the logarithm of an A_log: modes lie at log log n ({float(usual[-1]):.2f} for mode "
        f"{len(index) + 1}, not {math.log(len(index) + 1):.2f}), {lost:,} of {values.numel():,} are NaN or −∞",
        count=values.numel(),
        of=values.numel(),
        value=distance,
        threshold=most,
        tensor=name,
        layer=layer.path,
    )


def _examine_scalars(found: list[tuple[Layer, str, Tensor]], limits: Limits) -> Iterator[Observation]:
    """Look at heads with one rate: NaN where A was under 1, or A = exp(exp(w)) that is uniform in [1, 16]."""
    import torch

    if not found:
        return
    pooled = torch.cat([values for _, _, values in found])
    finite = pooled[pooled.isfinite()]
    lost = pooled.numel() - finite.numel()
    if finite.numel() < FEWEST or float(finite.max()) > HIGHEST:
        return
    position = ((finite.exp().exp() - 1) / 15).clamp(0, 1)
    chance, away = uniform_p_value(position), distance_from_uniform(position)
    fresh = finite.numel() >= 4 * FEWEST and chance >= limits["p_value"]
    if not lost and not fresh and (finite.numel() < FEWEST_TRAINED or away > limits["from_uniform"]):
        return
    if lost and float(finite.median()) < -1:
        return
    evidence = (
        f"{lost:,} of {pooled.numel():,} are NaN or −∞ and none is above {float(finite.max()):.2f}"
        if lost
        else f"exp(exp(w)) is uniform in [1, 16] (p = {chance:.2g})"
        if fresh
        else f"exp(exp(w)) is within {away:.2g} of uniform in [1, 16], as a trained A may be"
    )
    for layer, name, values in found:
        local = name.removeprefix(f"{layer.path}.")
        yield Observation(
            f"{local} looks like the logarithm of an A_log: over all layers {evidence}; log 16 is 2.77",
            count=values.numel(),
            of=values.numel(),
            value=float(lost) if lost else chance if fresh else away,
            threshold=0.0 if lost else limits["p_value" if fresh else "from_uniform"],
            severity=None if lost or fresh else "warning",
            tensor=name,
            layer=layer.path,
        )


RULE = Rule(
    code="SSM405",
    name="log-of-log",
    severity="error",
    summary="A_log went through the logarithm twice",
    looks_at="checkpoint",
    examine=examine,
    advice="the file's A_log is log(A_log): load it again without the initialiser that ran after loading.",
    **page(__doc__),
    thresholds={
        "distance": Threshold(0.2, "median distance of the modes from log log n"),
        "p_value": Threshold(0.05, "p-value below which exp(exp(w)) is not uniform in [1, 16]"),
        "from_uniform": Threshold(0.1, "largest distance from uniform (Kolmogorov–Smirnov) at which it nearly is"),
    },
)
