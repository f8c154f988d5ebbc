"""Energies and the horizon of a layer with many inputs and outputs on one state: ‖K_t‖², the Frobenius norm.

From a quadratic form over pairs of modes; where its rounding error is too large, from a factor. The more accurate of
two values is used.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ssmdiag.kernel.quadratic_form import QuadraticForm
from ssmdiag.kernel.tangential import TangentialFactor
from ssmdiag.recurrence.modal import Recurrence

WANTED = 1e-6
"""Relative noise above which a factor is made."""
UNRESOLVED = 2.0**-48
"""Mean square, relative to the largest bin's, below which accuracy does not matter: float32 cannot resolve it."""
SUMMED_LAGS = 16
"""Bins of up to this many lags are summed lag by lag where the form is inaccurate."""


class MatrixEnergy:
    """Σ ‖K_t‖² from any lag on, over bins, and the horizon; no mode of nonzero weight may grow or be NaN."""

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence

    @cached_property
    def form(self) -> QuadraticForm:
        """The quick route."""
        return QuadraticForm(self.recurrence)

    @cached_property
    def factor(self) -> TangentialFactor:
        """The route with less noise."""
        return TangentialFactor(self.form)

    def tail(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(τ) and its noise, (lag,), for float64 lags (lag,)."""
        values, noise = (part[0] for part in self.form.tail(self.form.states(lags)))
        unsure = (noise > WANTED * values).nonzero()[:, 0]
        if len(unsure):
            _replace_noisy(values, noise, unsure, *self.factor.tail(self.factor.states(lags[unsure])))
        return self._in_units(values), self._in_units(noise)

    def bands(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ ‖K_t‖² over bins and its noise, (bin,), for float64 edges (bin + 1,)."""
        values, noise = (part[0] for part in self.form.bands(edges))
        first, width = edges[:-1], edges.diff()
        enough = torch.maximum(WANTED * values, UNRESOLVED * (values / width).amax() * width)
        unsure = noise > enough
        short = (unsure & (width <= SUMMED_LAGS)).nonzero()[:, 0]
        if len(short):
            bins = torch.arange(len(short), device=edges.device).repeat_interleave(width[short].long())
            offset = torch.arange(len(bins), device=edges.device) - (width[short].cumsum(0) - width[short])[bins]
            found = [torch.zeros_like(edges[short]) for _ in range(2)]
            for into, part in zip(found, self.factor.squares(first[short][bins] + offset), strict=True):
                into.index_add_(0, bins, part[0])
            _replace_noisy(values, noise, short, *found)
        long = (unsure & (width > SUMMED_LAGS)).nonzero()[:, 0]
        if len(long) and self.form.stable:
            _replace_noisy(values, noise, long, *self.factor.difference(first[long], width[long]))
        return self._in_units(values), self._in_units(noise)

    def _in_units(self, values: Tensor) -> Tensor:
        return values * self.form.unit * self.form.unit

    def horizon(self, share: float, max_lag: int) -> tuple[float, float]:
        """Return the last lag with more than 1 − share of the energy after it, and the target's relative noise."""
        lag, unsure = self._search(self.form, share, max_lag)
        if unsure <= WANTED:
            return lag, unsure
        return min((lag, unsure), self._search(self.factor, share, max_lag), key=lambda found: found[1])

    def _search(self, response: QuadraticForm | TangentialFactor, share: float, max_lag: int) -> tuple[float, float]:
        total, floor = response.tail(response.start())
        target = (1 - share) * total
        if not bool(floor < total):
            return torch.nan, torch.inf
        last, state = response.last_above(target, max_lag)
        unsure = torch.maximum(response.tail(state)[1] / target, floor / total)
        return float(last), float(unsure)


def _replace_noisy(values: Tensor, noise: Tensor, at: Tensor, others: Tensor, floors: Tensor) -> None:
    """Replace the values at some positions where the new ones have less noise."""
    surer = floors.flatten() < noise[at]
    values[at] = others.flatten().where(surer, values[at])
    noise[at] = floors.flatten().where(surer, noise[at])
