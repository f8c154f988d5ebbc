"""The Annotated S4, S4D and DSS (Rush & Karamcheti, 2022): the JAX tutorial's layers, one SSM per feature.

| paper | S4 | S4D | DSS | shape | role |
|---|---|---|---|---|---|
| Re Λ | `Lambda_re` | `A_re` | `Lambda_re` | mode, channel | S4 and S4D limit it to −1e-4 in the forward pass |
| Im Λ | `Lambda_im` | `A_im` | `Lambda_im` | mode, channel | all modes are stored, none implied |
| Δ | `log_step` | `log_step` | `log_step` | 1, channel | Δ = exp(w) |
| P, B | `P`, `B` | `B_re`, `B_im`: unused | – | mode, channel | A = Λ − PP*; S4D's kernel takes B = 1 |
| C | `C` | `C` | `W` (1, channel, mode, 2) | mode, channel, 2 | S4: C̃ = conj(C)(I − Ā^L), L = `l_max` |

S4: bilinear rule, K_t = Re(C Ā^t B̄) on the dense matrix, whose eigenvalues serve for margins alone.
S4D: ZOH, K_t = Re Σ_n C_n (λ̄_n − 1)/λ_n λ̄_n^t. DSS: K_t = Re Σ_n W_n/Λ_n softmax_t(tΔΛ_n) over L lags.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import as_complex, bilinear, bilinear_matrix, matrix_eigenvalues, zoh, zoh_gain

SOFTMAX_EPSILON = 1e-7
"""Added to |z|² in the reciprocal of DSS's softmax."""


def read(layer: Layer) -> Iterator[Recurrence]:
    real, imag = ("A_re", "A_im") if "A_re" in layer else ("Lambda_re", "Lambda_im")
    rate = layer.weight(real, "direct" if "W" in layer else "direct, at least 1e-4").T
    eigenvalues = -rate + 1j * layer.weight(imag, "none", role="frequency").T
    step = layer.weight("log_step", "exp", role="step").T
    if "P" in layer:
        yield _low_rank(layer, eigenvalues, step)
        return
    ell = zoh(eigenvalues, step)
    if "W" in layer:
        gain, C = _softmax_gain(layer, eigenvalues, ell), layer.complex("W")
    else:
        gain, C = zoh_gain(eigenvalues, step), layer.complex("C").T[None]
    yield layer.recurrence(ell, step=step, input_matrix=gain, output_matrix=None if gain is None else C)


def _low_rank(layer: Layer, eigenvalues: Tensor, step: Tensor) -> Recurrence:
    P, B, C = layer["P"].T, layer["B"].T, layer.complex("C").T.conj()
    A = eigenvalues.diag_embed() - P[:, :, None] * P[:, None, :].conj()
    length = _length(layer)
    dense = partial(bilinear_matrix, A, B, C[None], step, length) if length else None
    return layer.recurrence(bilinear(matrix_eigenvalues(A), step), step=step, dense=dense)


def _softmax_gain(layer: Layer, eigenvalues: Tensor, ell: Tensor) -> Tensor | None:
    """Return DSS's weight of each mode over W; growing modes are normalised at the far end."""
    length = _length(layer)
    if not length:
        return None
    grows = as_complex(eigenvalues.real > 0)
    falling = ell * (1 - 2 * grows)
    total = (falling * length).expm1() / falling.expm1()
    reciprocal = total.conj() / (total.abs().square() + SOFTMAX_EPSILON)
    return reciprocal * (-ell * grows * (length - 1)).exp() / eigenvalues


def _length(layer: Layer) -> int | None:
    value = layer.option("l_max")
    if value == "unknown" or float(value) < 1:
        layer.note("the length the kernel is made for is not in the file: decays are unaffected, the kernel is unknown")
        return None
    return int(float(value))


_PLANE = "mode channel"

FAMILY = Family(
    name="annotated_s4",
    title="Annotated S4",
    paper="srush.github.io/annotated-s4",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=(
        Spelling(
            "S4",
            {
                "Lambda_re": _PLANE,
                "Lambda_im": _PLANE,
                "P": f"complex: {_PLANE}",
                "B": f"complex: {_PLANE}",
                "C": f"{_PLANE} 2",
                "log_step": "1 channel",
            },
        ),
        Spelling("S4D", {"A_re": _PLANE, "A_im": _PLANE, "C": f"{_PLANE} 2", "log_step": "1 channel"}),
        Spelling("DSS", {"Lambda_re": _PLANE, "Lambda_im": _PLANE, "W": "1 channel mode 2", "log_step": "1 channel"}),
    ),
    repositories=("srush/annotated-s4",),
    read=read,
    options=(
        Option("l_max", ("unknown",), "unknown", "sequence length that S4 and DSS make their kernel for", number=True),
    ),
)
