"""GSS, gated state spaces (Mehta et al., 2022, arXiv 2206.13947): a DSS whose modes all channels share.

| paper | tensor | shape | role |
|---|---|---|---|
| Λ | `Lambda_real`, `Lambda_imag` | mode | Λ = −exp(re) + i exp(im) |
| C | `C_real`, `C_imag` | channel, mode | output |
| D | `param_D` | channel | skip |

K_t = Re Σ_n C_n (e^Λ − 1)/Λ e^{Λt}: there is no step, and no mode is implied.
lucidrains/gated-state-spaces-pytorch 0347886, gated_state_spaces_pytorch/gss.py:59.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling
from ssmdiag.recurrence.discretisation import as_complex, zoh_gain


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("Lambda_real", "exp")
    eigenvalues = -rate + 1j * layer.weight("Lambda_imag", "exp", role="frequency")
    C = as_complex(layer["C_real"]) + 1j * layer["C_imag"]
    yield layer.recurrence(
        eigenvalues.expand(C.shape),
        input_matrix=zoh_gain(eigenvalues, rate * 0 + 1).expand(C.shape),
        output_matrix=C[None],
    )


FAMILY = Family(
    name="gss",
    title="GSS",
    paper="arXiv 2206.13947",
    memory="exact",
    spellings=(
        Spelling(
            "lucidrains/gated-state-spaces-pytorch",
            {"Lambda_real": "mode", "Lambda_imag": "mode", "C_real": "channel mode", "C_imag": "channel mode"},
            {"param_D": "channel"},
        ),
    ),
    read=read,
)
