"""GRU (Cho et al., 2014, arXiv 1406.1078), as torch.nn.GRU stores it.

    h_t = z_t ⊙ h_{t−1} + (1 − z_t) ⊙ n_t,    z_t = σ(W_z x_t + U_z h_{t−1} + b_z)

| paper | tensor | shape | role |
|---|---|---|---|
| W_r, W_z, W_n | `weight_ih_l0` | 3 × hidden, input | update gate z: rows hidden … 2 hidden |
| U_r, U_z, U_n | `weight_hh_l0` | 3 × hidden, hidden | the state that gates and candidate read |
| b | `bias_ih_l0`, `bias_hh_l0` | 3 × hidden | in the gates they are added |

In torch, as in the paper, z is what is kept; others keep 1 − z. Read is z at zero input and state, σ(b_z); 1/2 where
there is no bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families import stacked
from ssmdiag.families.interface import Family, Layer, Recurrence, Tensor
from ssmdiag.recurrence.clock import Clock

UPDATE = 1
"""Number of the update gate among three."""


def read(layer: Layer) -> Iterator[Recurrence]:
    for part, branch in stacked.directions(layer):
        decay = stacked.log_gate(part, 3, UPDATE)
        yield part.recurrence(decay, branch=branch, operating_point="zero input and state")


def clock(module: Any, input: Tensor, hx: Any = None) -> Clock:
    """Of a bidirectional module, the direction from the start; layers stand one after the other in the channels."""
    return stacked.clock(module, input, hx, 3, UPDATE)


FAMILY = Family(
    name="gru",
    title="GRU",
    paper="arXiv 1406.1078",
    memory="nominal",
    traits=frozenset({"fast channels", "feedback"}),
    spellings=tuple(stacked.spellings(3, "GRU")),
    repositories=("pytorch/pytorch",),
    model_types=(
        "slanet",
        "slanext",
    ),
    read=read,
    clock=clock,
    steering=stacked.steering,
    caveat="Update gates at their bias, in torch's order; what comes back through weight_hh is left out, so that the "
    "memory of real input can be shorter or longer.",
)
