"""LSTM with forget gates (Gers, Schmidhuber & Cummins, 2000, Neural Computation 12(10)), as torch.nn.LSTM stores it.

    c_t = f_t ⊙ c_{t−1} + i_t ⊙ g_t,    f_t = σ(W_f x_t + U_f h_{t−1} + b_f),    h_t = o_t ⊙ tanh(c_t)

| paper | tensor | shape | role |
|---|---|---|---|
| W_i, W_f, W_g, W_o | `weight_ih_l0` | 4 × hidden, input | forget gate: rows hidden … 2 hidden |
| U_i, U_f, U_g, U_o | `weight_hh_l0` | 4 × hidden, hidden | with a projection: 4 × hidden, projection |
| b | `bias_ih_l0`, `bias_hh_l0` | 4 × hidden | they are added |

Read is ∂c_t/∂c_{t−1} along the cell at zero input and state, σ(b_f); 1/2 where there is no bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families import stacked
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.clock import Clock

FORGET = 1
"""Number of the forget gate among four."""


def read(layer: Layer) -> Iterator[Recurrence]:
    for part, branch in stacked.directions(layer):
        decay = stacked.log_gate(part, 4, FORGET)
        yield part.recurrence(decay, branch=branch, operating_point="zero input and state")


def clock(module: Any, input: Tensor, hx: Any = None) -> Clock:
    """Of a bidirectional module, the direction from the start; layers stand one after the other in the channels."""
    return stacked.clock(module, input, hx, 4, FORGET)


def _projected(spelling: Spelling) -> Spelling:
    end = spelling.telltale.removeprefix("weight_hh")
    shapes = {**spelling.tensors, f"weight_hh{end}": "4*hidden projection", f"weight_hr{end}": "projection hidden"}
    return Spelling(f"{spelling.name}, with a projection", shapes, spelling.optional)


_MODULE, _CELL = stacked.spellings(4, "LSTM")

FAMILY = Family(
    name="lstm",
    title="LSTM",
    paper="Gers et al. 2000",
    memory="nominal",
    traits=frozenset({"fast channels", "feedback"}),
    spellings=(_MODULE, _projected(_MODULE), _CELL),
    repositories=("pytorch/pytorch",),
    model_types=(
        "apertus1p5",
        "bark",
        "encodec",
        "musicgen",
        "musicgen_melody",
        "nemotron3_5_asr",
        "nemotron_asr_streaming",
        "parakeet_rnnt",
        "parakeet_tdt",
        "wavtokenizer",
        "wavtokenizer_encoder",
    ),
    read=read,
    clock=clock,
    steering=stacked.steering,
    caveat="Forget gates at their bias, in torch's order; what comes back through weight_hh is left out, so that the "
    "memory of real input can be shorter or longer.",
)
