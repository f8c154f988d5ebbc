"""The built-in model as the published code computes it, to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmdiag.retrain.recurrences import S4D, MapsOfArms


def direct_kernel(p: Mapping[str, Tensor], maps: MapsOfArms, length: int) -> Tensor:
    """Return the kernel of S4D as the published code forms it: exp(ℓ t) for every lag, in the weights' precision."""
    dtype = torch.complex128 if p["kernel.C"].dtype == torch.float64 else torch.complex64
    ell, weights = (values.to(dtype) for values in S4D.modes(p, maps))
    powers = (ell[..., None] * torch.arange(length, device=ell.device)).exp()
    return 2 * (weights[..., None] * powers).sum(2).real
