"""RNN (Elman, 1990, Cognitive Science 14(2)) and echo state networks (Jaeger, 2001, GMD report 148), as torch.nn.RNN.

    h_t = φ(W_ih x_t + W_hh h_{t−1} + b),    φ = tanh or relu;    with a leak a: h_t = (1 − a) h_{t−1} + a φ(…)

| paper | tensor | shape | role |
|---|---|---|---|
| W_ih | `weight_ih_l0` | hidden, input | input |
| W_hh, the reservoir | `weight_hh_l0` | hidden, hidden | feeds the state back |
| b | `bias_ih_l0`, `bias_hh_l0` | hidden | they are added |

There is no decay but that of the whole matrix, and it depends on the state. Read is the slope at zero input and state,
J = (1 − a) + a diag(φ′(b)) W_hh, whose eigenvalues are those of W_hh where there is no bias; of a relu, which has no
slope at zero, the slope with all units on. K_t = J^t a diag(φ′(b)) W_ih, from the eigenvectors of J where they can bear
it. Modes with |λ̄| > 1 leave zero, and a tanh bounds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families import stacked
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Tensor
from ssmdiag.recurrence.discretisation import as_complex, log_of, matrix_eigenvalues

WORST_CONDITION = 1e8
"""Of the eigenvectors; past it the kernel would keep under half of float64's digits."""
MOST_UNITS = 2048
"""Of which eigenvalues are computed: they take six seconds there, and eight times as long for twice as many."""
MOST_UNITS_KERNEL = 512
"""Of which eigenvectors are computed too, and with them a kernel."""


def read(layer: Layer) -> Iterator[Recurrence]:
    for part, branch in stacked.directions(layer):
        slope, entry = _linearised(part)
        ell, matrices = _modes(part, slope, entry)
        part.note("its eigenvalues are those of a matrix: no weight is the rate of a mode")
        _note_growth(part, ell)
        yield part.recurrence(ell[None], branch=branch, operating_point="zero input and state, linearised", **matrices)


def _linearised(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the slope J (hidden, hidden) of the next state in the last one, and that in the input (hidden, input)."""
    import torch

    state, input = layer["weight_hh"], layer["weight_ih"]
    if len(state) > MOST_UNITS:
        raise LayerError(
            f"{layer.names['weight_hh']} is {len(state):,} × {len(state):,}: its eigenvalues would take too long.",
            expected=f"at most {MOST_UNITS:,} units",
        )
    bias = stacked.bias(layer)
    if layer.option("nonlinearity") == "tanh" and bias is not None:
        gain = 1 - bias.tanh().square()
        state, input = gain[:, None] * state, gain[:, None] * input
    if layer.setting("leaking_rate") is not None or "leaking_rate" in layer.assume:
        leak = float(layer.option("leaking_rate"))
        state, input = leak * state, leak * input
        state = state + (1 - leak) * torch.eye(len(state), dtype=state.dtype, device=state.device)
    return state, input


def _modes(layer: Layer, slope: Tensor, entry: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return ℓ (mode,), and B̄ and C of these modes, or nothing where the eigenvectors are too close to each other."""
    import torch

    if not bool(slope.isfinite().all()):
        return as_complex(torch.full_like(slope[0], torch.nan)), {}
    if len(slope) > MOST_UNITS_KERNEL:
        layer.note(f"no kernel: eigenvectors are found for {MOST_UNITS_KERNEL} units at most; its eigenvalues are read")
        return log_of(matrix_eigenvalues(slope[None])[0]), {}
    values, vectors = torch.linalg.eig(slope)
    inverse, failed = torch.linalg.inv_ex(vectors)
    condition = float(torch.linalg.matrix_norm(vectors) * torch.linalg.matrix_norm(inverse))
    if int(failed) or not condition < WORST_CONDITION:
        layer.note("its eigenvectors are so close to each other that no sum of exponentials gives its kernel: left out")
        return log_of(values), {}
    return log_of(values), {"input_matrix": inverse @ as_complex(entry), "output_matrix": vectors}


def _note_growth(layer: Layer, ell: Tensor) -> None:
    grow = int((ell.real > 0).sum())
    if grow:
        bounded = layer.option("nonlinearity") == "tanh"
        then = "the tanh bounds them, and the state need not forget" if bounded else "relu does not bound them"
        layer.note(
            f"{grow:,} of {len(ell):,} modes leave zero, the fastest by a factor of {float(ell.real.max().exp()):.4g} "
            f"a step (the spectral radius): {then}"
        )


FAMILY = Family(
    name="rnn",
    title="RNN",
    paper="Elman 1990",
    memory="nominal",
    traits=frozenset({"feedback", "linearised"}),
    spellings=tuple(stacked.spellings(1, "RNN")),
    repositories=("pytorch/pytorch",),
    read=read,
    steering=stacked.steering,
    options=(
        Option("nonlinearity", ("tanh", "relu"), "tanh", "the function the state goes through", ("nonlinearity",)),
        Option(
            "leaking_rate",
            ("1",),
            "1",
            "the share of a unit that a step replaces, in echo state networks",
            ("leaking_rate",),
            number=True,
        ),
    ),
    caveat="A nonlinear recurrence, linearised at zero: larger states saturate and forget faster, or settle where they "
    "are; the kernel is that of small inputs.",
)
