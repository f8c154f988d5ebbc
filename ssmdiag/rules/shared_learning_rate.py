"""SSM502: the recurrence has the learning rate of the other weights, though its code asks for a smaller one.

Formula. The group that holds A or Δ of an S4, S4D, DSS, S5 or LRU layer holds other weights too, and its learning rate
(before the schedule, where the state says it) is above the threshold. state-spaces/s4 tags A, B and Δ with min(lr,
0.001) and no weight decay; S5 and LRU train them with a smaller rate and a second optimiser.

Why it hurts. A step of η in log Δ or log A changes every time constant by a factor e^η at once. At learning rates that
suit projections, time scales jump, modes reach the stability boundary, and the loss becomes NaN.

What to do. Collect parameters with an `_optim` attribute into groups of their own, as example.py of state-spaces/s4
does, before the optimiser is built; in JAX, label the tree and use a multi-transform.

Example. srush/annotated-s4 issue 16 (https://github.com/srush/annotated-s4/issues/16): the fixed small learning rate
and the missing weight decay of the original were not respected.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.errors import CheckpointError
from ssmdiag.rules.decayed_recurrence import DECAYED
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_optimizer, page


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    try:
        groups = evidence.checkpoint.optimizer_groups
    except CheckpointError:  # SSM501 reports it
        return
    recurrent = {
        layer.path: [
            name for name in evidence.names_by_layer[layer.path] if name.removeprefix(f"{layer.path}.") in DECAYED
        ]
        for layer in evidence.recognition.layers
        if "slow recurrence" in layer.family.traits
    }
    slow = {name for names in recurrent.values() for name in names}
    for group in groups:
        rate = group.initial_learning_rate or group.learning_rate or 0.0
        everything = len(groups) == 1 and group.count >= len(slow)
        named = set(group.parameters or ())
        shared = named - slow or (everything and group.count > len(slow))
        if rate <= limits["rate"] * (1 + 1e-6) or not shared:
            continue
        for path, names in recurrent.items():
            if held := [name for name in names if name in named or everything]:
                local = [name.removeprefix(f"{path}.") for name in held]
                yield Observation(
                    f"{', '.join(local)} learn at {rate:g}, in one group with {_beside(shared)}; their code gives them "
                    f"{limits['rate']:g} at most, in a group of their own",
                    count=len(held),
                    of=len(names),
                    value=rate,
                    threshold=limits["rate"],
                    tensor=held[0],
                    layer=path,
                )


def _beside(shared: set[str] | bool) -> str:
    """Say which other weights the group holds: one of them by name, where names are known."""
    if isinstance(shared, bool):
        return "all other weights"
    others = len(shared) - 1
    return f"{min(shared)}{f' and {others:,} more' if others else ''}"


RULE = Rule(
    code="SSM502",
    name="shared-learning-rate",
    severity="warning",
    summary="learning-rate tags of the recurrence were ignored",
    looks_at="checkpoint",
    examine=examine,
    lacks=lacks_optimizer,
    advice="group parameters by the `_optim` tags of the code, or give A and Δ their own group at 0.001.",
    **page(__doc__),
    thresholds={"rate": Threshold(1e-3, "largest learning rate at which S4's code trains A and Δ")},
)
