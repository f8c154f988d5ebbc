"""Why a channel's memory is unknown, as a sentence for the user."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from ssmdiag.recurrence.modal import Recurrence


class Status(IntEnum):
    """Status of one channel's kernel or of one quantity computed from it. Results hold these as uint8."""

    KNOWN = 0
    ZERO = 1
    BOUNDARY = 2
    GROWS = 3
    NOT_FINITE = 4
    CANCELLED = 5
    BEYOND = 6

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Status.KNOWN: "known to the digits of float64",
    Status.ZERO: "the kernel is zero: nothing that is written reaches the output",
    Status.BOUNDARY: "a mode on the stability boundary reaches the output: its energy never runs out",
    Status.GROWS: "a growing mode reaches the output: the kernel has no bound",
    Status.NOT_FINITE: "weights that are NaN or infinite: the kernel is not a number",
    Status.CANCELLED: "the modes cancel beyond float64's digits: unknown",
    Status.BEYOND: "longer than the largest lag asked for",
}


def channel_status(recurrence: Recurrence) -> Tensor:
    """Return the `Status` of each channel's kernel, (channel,) uint8, from its spectrum and weights.

    Modes of weight zero count for nothing. Raises ValueError where B or C is absent.
    """
    ell, layout = recurrence.log_eigenvalues, recurrence.layout
    if recurrence.taps is not None:
        finite = recurrence.taps.isfinite().all(2).all(0)
        known = torch.where((recurrence.taps != 0).any(2).any(0), int(Status.KNOWN), int(Status.ZERO))
        return known.where(finite, int(Status.NOT_FINITE)).to(torch.uint8)
    if recurrence.dense is not None:
        dense = recurrence.dense()
        A, B, C = dense.state_matrix, dense.input_matrix, dense.output_matrix
        finite = A.isfinite().flatten(1).all(1) & B.isfinite().all(1) & C.isfinite().all(-1).all(0)
        reaches = (B != 0).any(1, keepdim=True) & (C != 0).any(-1).any(0)[:, None]
    else:
        B, C = recurrence.matrices
        if layout == "many inputs":
            B = B.abs().amax(1)
        reaches = ((C != 0).any(0) & (B != 0)).expand(ell.shape)
        finite = (C.isfinite().all(0) & B.isfinite()).expand(ell.shape).all(1)
    # λ̄ = 0 is a rate of +inf: a mode that forgets at once.
    broken = ell.real.isnan() | ell.imag.isnan() | (ell.real == torch.inf)
    rate = -ell.real
    result = torch.zeros(len(ell), dtype=torch.uint8, device=ell.device)
    result[~reaches.any(1)] = Status.ZERO
    result[(reaches & (rate == 0)).any(1)] = Status.BOUNDARY
    result[(reaches & (rate < 0)).any(1)] = Status.GROWS
    result[~finite | broken.any(1)] = Status.NOT_FINITE
    return result
