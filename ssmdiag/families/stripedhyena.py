"""StripedHyena (Poli et al., 2023) and StripedHyena 2: the long filters of Evo (Nguyen et al., 2024) and of Evo 2.

| symbol | StripedHyena, Evo | Evo 2 | role |
|---|---|---|---|
| λ̄ | `poles`: filter, mode, 1, 2 | `log_poles`: filter, mode, 1 | λ̄ itself, complex; log λ̄, real |
| R | `residues`: filter, mode, 1, 2 | `residues`: filter, mode | weight of each mode |

K_t = Re Σ_n R_n λ̄_n^t, exact: what a gate multiplies before and after it does not change how long it lasts.
togethercomputer/stripedhyena 7e13f61, stripedhyena/model.py:266; Zymrael/vortex cb229ae, vortex/model/model.py:390.
Groups of channels may share a filter; `D`, which passes the present input on, and the short convolution before the
gates are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling
from ssmdiag.recurrence.discretisation import as_complex, log_of


def read(layer: Layer) -> Iterator[Recurrence]:
    if "poles" in layer:
        poles, residues = layer.complex("poles")[..., 0], layer.complex("residues")[..., 0]
        layer.weight("poles", "none", part=poles.abs(), discrete=True)
        layer.weight("poles", "none", role="frequency", part=poles.angle())
        ell = log_of(poles)
    else:
        rate = layer.weight("log_poles", "direct")[..., 0]
        ell, residues = as_complex(-rate), as_complex(layer["residues"])
    yield layer.recurrence(ell, input_matrix=as_complex(0 * residues.real + 1), output_matrix=residues[None])


_BESIDE = {"D": "channel", "short_filter_weight": "3*channel 1 _"}
"""Every layer has them, and no other sum of poles and residues."""
_BIAS = {"short_filter_bias": "3*channel"}

FAMILY = Family(
    name="stripedhyena",
    title="StripedHyena",
    paper="github.com/togethercomputer/stripedhyena",
    memory="exact",
    spellings=(
        Spelling("StripedHyena, Evo", {"poles": "filter mode 1 2", "residues": "filter mode 1 2", **_BESIDE}, _BIAS),
        Spelling("vortex, Evo 2", {"log_poles": "filter mode 1", "residues": "filter mode", **_BESIDE}, _BIAS),
    ),
    repositories=(
        "togethercomputer/stripedhyena",
        "Zymrael/vortex",
    ),
    read=read,
)
