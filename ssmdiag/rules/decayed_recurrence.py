"""SSM501: the optimiser decays the weights of the recurrence.

Formula. w ← w(1 − ηλ) at every step, besides the gradient's part (decoupled decay, arXiv 1711.05101). Alone it halves w
in ln 2/(ηλ) steps; η is the learning rate before its schedule, λ the weight decay of the group that holds A_log,
dt_bias, D or their equivalents. A note where halving takes longer than the threshold. The optimiser state in or beside
the checkpoint gives the groups.

Why it hurts. A logarithm of zero is not a rate of zero: A_log → 0 makes every rate 1, Δ's bias → 0 makes every step
0.69, log_dt → 0 makes it 1. Long memories go first: their weights are furthest from zero.

What to do. Split the parameters by name or by the tags that the model's code leaves (`_no_weight_decay` in Mamba,
`_optim` in S4) and give the optimiser two groups. transformers' Trainer exempts biases and norms from decay: dt_bias,
but not A_log and D.

Example. athms/mad-lab issue 5 (https://github.com/athms/mad-lab/issues/5): weight decay on all parameters, A_log and D
among them. state-spaces/mamba issue 798 (https://github.com/state-spaces/mamba/issues/798): _no_weight_decay is set,
but nothing reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.errors import CheckpointError
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, are, lacks_optimizer, page

if TYPE_CHECKING:
    from ssmdiag.checkpoint import OptimizerGroup
    from ssmdiag.families.layer import Layer

DECAYED = frozenset(
    {
        *("A_log", "A_b_log", "A_log_b", "A_logs", "A_log.0"),
        *("dt_bias", "dt_proj.bias", "dt_projs_bias", "dt_proj_bias"),
        *("dt_proj_b.bias", "dt_proj.0.bias", "forget_gate.A_log", "forget_gate.dt_bias"),
        *("A_real", "A_imag", "inv_dt", "log_dt", "inv_w_real", "log_w_real", "w_imag", "w", "inv_A_real"),
        *("kernel.log_dt", "kernel.log_A_real", "kernel.A_imag"),
        *("kernel.kernel.log_dt", "kernel.kernel.inv_A_real", "kernel.kernel.A_imag"),
        *("Lambda", "Lambda_re", "Lambda_im", "Lambda_log_neg_re", "Lambda_log_im", "log_step", "A_re", "A_im"),
        *("nu_log", "theta_log", "gamma_log", "params_log", "A_diag", "steps"),
        *("recurrent_param", "a_param", "time_decay", "w0"),
    }
)
"""Local names of the weights that decide rates, frequencies and steps."""

SKIPS = frozenset({"D", "Ds", "D_b", "D.0"})
"""Mamba's code keeps them from decay too; S4's does not."""


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    try:
        groups = evidence.checkpoint.optimizer_groups
    except CheckpointError as error:
        yield Observation(
            f"the optimiser's state was not read: {error.seen}", count=1, severity="note", advice=error.advice
        )
        return
    home = {name: group for group in groups for name in group.parameters or ()}
    unnamed = [group for group in groups if group.unnamed]
    # A parameter whose group is unknown: judged if all candidates have the same weight decay.
    common = unnamed[0] if len({group.weight_decay for group in unnamed}) == 1 else None
    for layer in evidence.recognition.layers:
        if "fixed decay" in layer.family.traits:
            continue
        decayed: dict[int, list[str]] = {}
        for local, name in _recurrent(evidence, layer).items():
            group = home.get(name) or common
            if group is not None and (group.weight_decay or 0.0) > 0:
                decayed.setdefault(groups.index(group), []).append(local)
        for index, locals_ in decayed.items():
            yield _observation(groups[index], locals_, layer, limits["halving"])


def _observation(group: OptimizerGroup, names: list[str], layer: Layer, most: float) -> Observation:
    decay = group.weight_decay or 0.0
    rate = group.initial_learning_rate or group.learning_rate or 0.0
    steps = math.log(2) / (rate * decay) if rate * decay > 0 else math.inf
    by = f" of {group.optimizer}" if group.optimizer else ""
    now = group.learning_rate
    at = (
        f"its learning rate {rate:g}"
        if now in (rate, None)
        else f"the learning rate {rate:g} it began with ({now:g} now)"
    )
    pace = f", which halves them every {steps:,.0f} steps at {at}" if steps < math.inf else ""
    adam = (group.optimizer or "").lower() == "adam"
    return Observation(
        f"{are(names)} under the weight decay {decay:g}{by}{'' if adam else pace}",
        count=len(names),
        value=decay,
        threshold=0.0,
        tensor=layer.full_name(names[0]),
        layer=layer.path,
        # So slow that the gradient alone decides: a note.
        severity="note" if most < steps < math.inf and not adam else None,
    )


def _recurrent(evidence: CheckpointEvidence, layer: Layer) -> dict[str, str]:
    """Return local → full names of a layer's rates, steps and skip."""
    prefix = f"{layer.path}." if layer.path else ""
    wanted = DECAYED | SKIPS if "undecayed skip" in layer.family.traits else DECAYED
    names = evidence.names_by_layer[layer.path]
    return {local: name for name in names if (local := name.removeprefix(prefix)) in wanted}


RULE = Rule(
    code="SSM501",
    name="decayed-recurrence",
    severity="warning",
    summary="the optimiser decays A, Δ or D",
    looks_at="checkpoint",
    examine=examine,
    lacks=lacks_optimizer,
    advice="put them in a parameter group with weight_decay=0; torch does not read `_no_weight_decay` tags.",
    **page(__doc__),
    thresholds={"halving": Threshold(1e6, "steps in which decay alone halves a weight; slower is a note")},
)
