"""StableSSM (Wang & Li, 2024, arXiv 2311.14495): S4D under a stable reparameterisation of Re A.

| paper | tensor | shape | role |
|---|---|---|---|
| w | `kernel.log_A_real` | channel, mode | Re λ = f(w), under this name whatever f is |
| Im λ | `kernel.A_imag` | channel, mode | +w; one of each conjugate pair |
| Δ | `kernel.log_dt` | channel | exp(w) |
| C | `kernel.C` | channel, mode, 2 | output; B ≡ 1 |

f(w) = −eʷ (exp), −log(1 + eʷ) (softplus), −1/(w² + 0.1) (best) or +w (direct). Files of the released code do not say
which; those of `ssmdiag retrain` do, under `rate_map`.
ZOH and the factor 2 of S4D.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling
from ssmdiag.families.s4d import MINIMAL, read_minimal

# The released code has b = 0.1 where the paper's best map has b = 0.5, and `direct` without a minus.
_MAPS = {"direct": "direct", "exp": "exp", "softplus": "softplus", "best": "best(b=0.1)"}


def read(layer: Layer) -> Iterator[Recurrence]:
    yield read_minimal(layer, layer.rate_map() or _MAPS[layer.option("parameterization")])


FAMILY = Family(
    name="stablessm",
    title="StableSSM",
    paper="arXiv 2311.14495",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=(Spelling("radarFudan/StableSSM", MINIMAL, path="stablessm_layers"),),
    repositories=("radarFudan/StableSSM",),
    read=read,
    options=(
        # `direct` is what every configuration of the repository trains, although the constructor's
        # default is exp; it is also the one reading that cannot show an unstable model as stable.
        Option(
            "parameterization",
            tuple(_MAPS),
            "direct",
            "f in Re λ = f(w): direct in every shipped configuration, exp in the constructor",
        ),
    ),
)
