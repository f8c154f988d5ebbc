"""SSM206: far fewer effective modes than the family starts with.

Formula. tr((G + N)⁻¹ G) with G_ij = 1/(1 − λ̄_i λ̄_j*) and N_ii = (ε²/3) G_ii/(1 − |λ̄_i|²), the noise in the state
when every step rounds it to relative precision ε: how many of N modes a readout can distinguish (P2, arXiv 2510.00563;
`ssmdiag explain capacity`). Compared with the family's initialisations.

Why it hurts. N modes cost N states of memory and of compute. Modes with nearly equal decays hold nearly the same
numbers: a readout that distinguishes them amplifies the state's rounding.

What to do. Spread the decays: log 1 … log N for Mamba, a different imaginary part for each mode of S4D. Where training
drew them together, freeze the recurrence or lower its learning rate, and compare: `ssmdiag retrain --freeze`.

Example. The Mamba that typeseg 0.2.7 ships (https://pypi.org/project/typeseg/): A_log near 0 throughout; of its 16
modes about 2 survive a bf16 state, where the standard start keeps 5.2 to 6.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

MANY = 128
"""Modes above which only the middle step of an initialisation is computed."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    own = evidence.numbers.capacity
    if own is None or own.effective_modes is None or own.modes is None:
        return
    median, modes = own.effective_modes.median, evidence.recurrence.modes
    # No initialisation has more than all its modes and their conjugates: where that is enough, none is computed.
    if median >= limits["share"] * 2 * modes:
        return
    if (initial := _effective_at_start(evidence.recurrence.family, modes, own.state_dtype)) is None:
        return
    # Compared with the poorest of the family's initialisations: what every healthy fresh model has.
    if median < limits["share"] * initial:
        yield Observation(
            f"{median:.2g} of {own.modes.median:.0f} modes survive rounding the state to {own.state_dtype} in the "
            f"median channel; the family starts with {initial:.2g} or more",
            count=own.channels,
            of=own.channels,
            value=median / initial,
            threshold=limits["share"],
            tensor=next((weight.name for weight in evidence.weights("rate")), None),
        )


@cache
def _effective_at_start(family: str, modes: int, state_dtype: str) -> float | None:
    """Return the median effective modes of the poorest of a family's initialisations; None where none is known."""
    from ssmdiag.capacity.noise import noisy_capacity
    from ssmdiag.families.initial_spectra import initial_spectra
    from ssmdiag.recurrence.channels import select_channel
    from ssmdiag.recurrence.quantiles import Quantiles

    medians = []
    for start in initial_spectra(family, modes):
        layer = start.recurrence
        # Channels hardly differ, and each costs the cube of its modes.
        values = noisy_capacity(select_channel(layer, layer.channels // 2) if modes > MANY else layer, state_dtype)
        own = Quantiles.of(values)
        medians += [own.median] if own else []
    return min(medians, default=None)


RULE = Rule(
    code="SSM206",
    name="few-effective-modes",
    severity="warning",
    summary="far fewer effective modes than the family starts with",
    looks_at="layer",
    examine=examine,
    advice="check whether the modes share a time scale (SSM205); start again from the family's initialisation.",
    **page(__doc__),
    thresholds={"share": Threshold(0.5, "effective modes of the median channel, as a share of the start's")},
    worse="lower",
)
