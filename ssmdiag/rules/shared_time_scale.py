"""SSM205: the modes of a channel share one time scale.

Formula. Per channel s = max(σ(r)/mean(r), σ(ω)/mean|ω|) over its modes, r the rates and ω the frequencies; real modes
have the first alone. Fires where s is below the threshold in most channels of a layer with four modes or more. Heads
with one mode (Mamba-2) and keys of a matrix memory (RWKV, GLA) are no modes in this sense. Published initialisations
have s = 0.54 (A = 1 … 16), 0.15 (Mega), and above 0.5 in frequency (S4D).

Why it hurts. N exponentials of one rate span one dimension, not N: the state costs N times what it holds. In exact
arithmetic nearly equal rates can still tell N lags apart, but with huge coefficients that cancel, which 16-bit
arithmetic cannot represent.

What to do. Initialise A_log to log 1 … log N (or A to the spectrum of HiPPO) and keep weight decay off it, which pulls
every A_log towards 0 and so every rate to 1. In a trained model the modes do not separate by themselves: they receive
nearly the same gradient. Retrain, or prune the state to the dimensions it spans.

Example. The trained Mamba inside typeseg 0.2.7 (https://pypi.org/project/typeseg/) has 16 modes a channel within 2.4 to
3.2 % of one rate in all six blocks: A_log stayed near 0 and was never log 1 … log 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_MODES = 4


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    recurrence = evidence.recurrence
    if recurrence.modes < FEWEST_MODES or "matrix memory" in evidence.layer.family.traits:
        return
    rate, frequency = recurrence.rate, recurrence.frequency
    finite = (rate.isfinite() & frequency.isfinite()).all(1)
    spread = _spread(rate, rate)[finite]
    # Modes of one rate and different frequencies are a Fourier basis: S4D starts with one.
    if bool((frequency != 0).any()):
        spread = spread.maximum(_spread(frequency, frequency.abs())[finite])
    narrow = int((spread < limits["spread"]).sum())
    if not narrow or narrow < limits["share"] * recurrence.channels:
        return
    typical = float(spread.median())
    what = "one time scale" if not bool((frequency != 0).any()) else "one time scale and frequency"
    whose = "the layer" if recurrence.channels == 1 else "a channel"
    most = "" if narrow == recurrence.channels else f" in {narrow:,} of {recurrence.channels:,} channels"
    yield Observation(
        f"the {recurrence.modes} modes of {whose} share {what}{most} (spread {100 * typical:.2g} %, "
        f"{100 * limits['spread']:g} % asked)",
        count=narrow,
        of=recurrence.channels,
        value=typical,
        threshold=limits["spread"],
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
    )


def _spread(values: Tensor, size: Tensor) -> Tensor:
    """Return σ/mean over the modes of each channel, 0 where the mean is 0."""
    mean = size.mean(1).abs()
    return (values.std(1, correction=0) / mean).where(mean > 0, 0.0)


RULE = Rule(
    code="SSM205",
    name="shared-time-scale",
    severity="warning",
    summary="the modes of a channel share one time scale",
    looks_at="layer",
    examine=examine,
    advice="start A at log 1 … log N (S4D-Real) or another spread of time scales; check that no wrapper resets it.",
    **page(__doc__),
    thresholds={
        "spread": Threshold(0.1, "σ/mean of rates and of frequencies over the modes of a channel"),
        "share": Threshold(0.5, "share of a layer's channels that must be under it"),
    },
    worse="lower",
)
