"""Mamba-3 (Lahoti et al., 2026, arXiv 2603.15569): no stored A, a step bias per head, rotating states.

| paper | tensor | shape | role |
|---|---|---|---|
| Δ bias | `dt_bias` | head | Δ = softplus(W_dt x + dt_bias) |
| B, C biases | `B_bias`, `C_bias` | head, rank, state | distinguish Mamba-3 from its relatives; not in the decay |

A_t = −f(W_A x_t): at zero input −f(0), the same for all heads, where f depends on the version of the code and
not on the tensors. Decay per token: exp(Δ_t A_t). The angles by which states rotate come from the input;
at zero input nothing rotates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.submodules import rows, softplus
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import zoh
from ssmdiag.recurrence.maps import MAPS


def read(layer: Layer) -> Iterator[Recurrence]:
    step = layer.weight("dt_bias", "softplus", role="step")[:, None]
    # fla's port kept softplus; only its config.json has this model_type.
    usual = "softplus" if layer.setting("model_type") == "mamba3" else "heavy-tail"
    rate = MAPS[layer.option("a_activation", usual=usual)](0 * step)
    layer.note("no A is stored: at zero input all heads share one A, and the half-lives differ by Δ alone")
    if "in_proj.bias" in layer:
        layer.note("in_proj has a bias, which is left out here: it changes A, Δ and the rotation")
    yield layer.recurrence(
        zoh(-rate, step),
        step=step,
        operating_point="Δ at its bias, A and rotation at zero input",
    )


def clock(module: Any, input: Tensor) -> Clock:
    """Δ |A| in one: both come from the input."""
    heads = len(module.dt_bias)
    start = -3 * heads - module.num_rope_angles
    gate = rows(module.in_proj, input, start, start + 2 * heads).double()
    step = softplus(gate[..., :heads] + module.dt_bias.double())
    rate = MAPS[_activation(module)](gate[..., heads:]).clamp(min=module.A_floor)
    return Clock(step * rate, step.new_ones(heads, 1))


def _activation(module: Any) -> str:
    """Return the map of A that a live module uses: its own file tells the versions apart."""
    runs = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return "heavy-tail" if hasattr(sys.modules[runs.__module__], "heavy_tail_activation") else "softplus"


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("A, step, B, C, rotation and input", "in_proj.weight", _without_gate, needed=True)
    yield Steering("bias of A, step, B, C, rotation and input", "in_proj.bias", _without_gate)
    for name in ("B_bias", "C_bias", "B_norm.weight", "C_norm.weight", "mimo_x"):
        yield Steering(name.removesuffix(".weight").replace("_", " "), name)


def _without_gate(rows: Tensor, layer: Layer) -> Tensor | None:
    """Return the rows of in_proj below those of the gate z, which are first and as many as out_proj has inputs."""
    output = layer.beside("out_proj.weight")
    return None if output is None or len(output.shape) != 2 else rows[output.shape[1] :]


FAMILY = Family(
    name="mamba3",
    title="Mamba-3",
    paper="arXiv 2603.15569",
    memory="nominal",
    traits=frozenset({"layers alike", "undecayed skip"}),
    spellings=(
        Spelling(
            "state-spaces/mamba, fla",
            {"B_bias": "head rank state", "C_bias": "head rank state", "dt_bias": "head"},
            optional={"in_proj.weight": "_ _", "in_proj.bias": "_", "D": "_", "B_norm.weight": "state"},
            absent=("A_log",),
        ),
    ),
    repositories=(
        "state-spaces/mamba",
        "fla-org/flash-linear-attention",
    ),
    read=read,
    clock=clock,
    steering=steering,
    options=(
        Option(
            "a_activation",
            ("heavy-tail", "softplus"),
            usual="heavy-tail",
            meaning="f in A = −f(W_A x): heavy-tail in mamba_ssm since June 2026, f(0) = 1; "
            "softplus in mamba_ssm before and in fla, f(0) = ln 2",
        ),
    ),
    caveat="A and the rotation depend on the input entirely; only Δ is stored.",
)
