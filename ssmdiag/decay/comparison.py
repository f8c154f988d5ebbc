"""The decay laws of many channels side by side, as numbers and as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ssmdiag.decay.gauss_newton import LawFit
from ssmdiag.decay.verdict import FITTED_LAWS, LAWS, NEPER_DB, STATUSES, DecayStatus, Law


@dataclass(frozen=True)
class ChannelDecay:
    """The decay of one channel; None where there is nothing to say."""

    law: Law
    status: DecayStatus
    window: tuple[int, int] | None
    """First and last lag used."""
    amplitude: float | None
    """Envelope at lag 0 by the chosen law."""
    exponent: float | None
    exponent_error: float | None
    rate: float | None
    """Nats per step."""
    rate_error: float | None
    offset: float | None
    """t₀, steps."""
    offset_error: float | None
    residual_db: dict[Law, float] | None
    """Rms residual of each law over the window."""


@dataclass(frozen=True)
class DecayComparison:
    """Laws of all channels side by side; every tensor is (channel,). Numbers mean something only where `fitted`."""

    context: int
    law: Tensor
    """Index into `LAWS`."""
    status: Tensor
    """Index into `STATUSES`."""
    fitted: Tensor
    """Whether laws were fitted at all, whatever the verdict; everything below is 0 where not."""
    first: Tensor
    last: Tensor
    """Window of lags used, both ends included."""
    fits: Mapping[Law, LawFit]

    @property
    def channels(self) -> int:
        return self.law.numel()

    def select(self, index: slice | Tensor) -> DecayComparison:
        """Return the comparison of some of the channels."""
        names = ("law", "status", "fitted", "first", "last")
        fits = {
            law: LawFit(**{field.name: getattr(fit, field.name)[index] for field in fields(fit)})
            for law, fit in self.fits.items()
        }
        return replace(self, fits=fits, **{name: getattr(self, name)[index] for name in names})

    def withhold(self, channels: Tensor, status: DecayStatus) -> None:
        """Take back what was said of some channels, (channel,) bool: they have no law, for this reason."""
        self.law[channels] = LAWS.index(Law.UNDETERMINED)
        self.status[channels] = STATUSES.index(status)
        self.fitted[channels] = False

    def counts(self) -> dict[Law, int]:
        """Return how many channels follow each law."""
        return dict(zip(LAWS, torch.bincount(self.law, minlength=len(LAWS)).tolist(), strict=True))

    def channel(self, index: int) -> ChannelDecay:
        """Return one channel's decay as plain numbers."""
        law, status = LAWS[int(self.law[index])], STATUSES[int(self.status[index])]
        fitted = bool(self.fitted[index])
        fit = self.fits.get(law)

        def number(name: str, *laws: Law) -> float | None:
            return float(getattr(fit, name)[index]) if fit is not None and law in laws else None

        power, decaying = (Law.POLYNOMIAL, Law.TRUNCATED), (Law.EXPONENTIAL, Law.TRUNCATED)
        amplitude = number("amplitude", *FITTED_LAWS)
        return ChannelDecay(
            law=law,
            status=status,
            window=(int(self.first[index]), int(self.last[index])) if fitted else None,
            amplitude=None if amplitude is None else math.exp(amplitude),
            exponent=number("exponent", *power),
            exponent_error=number("exponent_error", *power),
            rate=number("rate", *decaying),
            rate_error=number("rate_error", *decaying),
            offset=number("offset", *power),
            offset_error=number("offset_error", *power),
            residual_db={law: NEPER_DB * float(fit.residual[index]) for law, fit in self.fits.items()}
            if fitted
            else None,
        )

    def describe(self, index: int) -> str:
        """Return one sentence on one channel's decay, with its window."""
        decay = self.channel(index)
        if decay.window is None:
            return f"{decay.status.value[0].upper()}{decay.status.value[1:]}."
        where = f"over lags {decay.window[0]:,} to {decay.window[1]:,}"
        if decay.window[1] < self.context - 1:
            where += f" of {self.context:,}"
        if decay.law is Law.UNDETERMINED:
            assert decay.residual_db is not None
            law, least = min(decay.residual_db.items(), key=lambda item: item[1])
            return f"Undetermined {where}: {decay.status.value} (best: {law.value}, {least:.2g} dB rms)."
        assert decay.residual_db is not None
        off = f"{decay.residual_db[decay.law]:.2g} dB rms off"
        if decay.law is Law.FLAT:
            return f"Does not decay {where} ({off})."
        if decay.law is Law.EXPONENTIAL:
            assert decay.rate is not None
            return f"Forgets exponentially, half gone every {math.log(2) / decay.rate:,.3g} steps, {where} ({off})."
        power = f"(1 + t/{decay.offset:.3g})^−{decay.exponent:.2f}"
        if decay.law is Law.POLYNOMIAL:
            return f"Forgets like a power of the lag, {power}, {where} ({off})."
        assert decay.rate is not None
        return f"Forgets like a power of the lag, {power}, cut off at {1 / decay.rate:,.3g} steps, {where} ({off})."


def blank_comparison(channels: int, context: int, device: torch.device) -> tuple[DecayComparison, dict[Law, Tensor]]:
    """Return a comparison to fill in, undetermined throughout, and the (field, channel) tables behind its fits."""
    whole = torch.zeros(channels, dtype=torch.long, device=device)
    tables = {
        law: torch.zeros(len(fields(LawFit)), channels, dtype=torch.float64, device=device) for law in FITTED_LAWS
    }
    comparison = DecayComparison(
        context=context,
        law=torch.full_like(whole, LAWS.index(Law.UNDETERMINED)),
        status=torch.full_like(whole, STATUSES.index(DecayStatus.ZERO)),
        fitted=torch.zeros_like(whole, dtype=torch.bool),
        first=whole.clone(),
        last=whole.clone(),
        fits={law: LawFit(*table) for law, table in tables.items()},
    )
    return comparison, tables
