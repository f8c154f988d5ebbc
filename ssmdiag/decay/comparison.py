"""The decay laws of many channels side by side, as numbers and as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ssmdiag.decay.gauss_newton import LawFit
from ssmdiag.decay.grid import SHORTEST_OFFSET
from ssmdiag.decay.verdict import FITTED_LAWS, LAWS, NEPER_DB, STATUSES, DecayStatus, Law
from ssmdiag.printable import plural

SAME_CUT = 0.1
"""A fitted cut-off this near the slowest modes' rate is attributed to them."""
AT_BOUND = 1.01
"""How near its bound a t₀ counts as at the bound."""


@dataclass(frozen=True)
class ChannelDecay:
    """The decay of one channel; a number is None where its law has no such parameter, or nothing was fitted."""

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

    @property
    def offset_at_bound(self) -> bool:
        """Whether t₀ is at its lower bound, a quarter step: its value and error then mean nothing."""
        return self.offset is not None and self.offset <= AT_BOUND * SHORTEST_OFFSET


@dataclass(frozen=True)
class DecayComparison:
    """Laws of all channels side by side; every tensor is (channel,). Numbers are valid only where `fitted`."""

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
        """Remove the law of some channels, (channel,) bool, and record why they have none."""
        self.law[channels] = LAWS.index(Law.UNDETERMINED)
        self.status[channels] = STATUSES.index(status)
        self.fitted[channels] = False

    def mark_finite(self) -> None:
        """Call the law of a convolution's channels finite, where none was found for their taps."""
        silent = [STATUSES.index(why) for why in (DecayStatus.ZERO, DecayStatus.TINY, DecayStatus.NOT_FINITE)]
        among = ~torch.isin(self.status, self.status.new_tensor(silent))
        finite = among & (self.law == LAWS.index(Law.UNDETERMINED))
        self.law[finite], self.status[finite] = LAWS.index(Law.FINITE), STATUSES.index(DecayStatus.FINITE)

    def counts(self) -> dict[Law, int]:
        """Return how many channels follow each law; `finite` only where one does."""
        counts = dict(zip(LAWS, torch.bincount(self.law, minlength=len(LAWS)).tolist(), strict=True))
        return {law: count for law, count in counts.items() if count or law is not Law.FINITE}

    def channel(self, index: int) -> ChannelDecay:
        """Return one channel's decay as plain numbers."""
        law, status = LAWS[int(self.law[index])], STATUSES[int(self.status[index])]
        fitted = bool(self.fitted[index])
        fit = self.fits.get(law)

        def number(name: str, *laws: Law) -> float | None:
            return float(getattr(fit, name)[index]) if fit is not None and law in laws else None

        power, decaying = (Law.POLYNOMIAL, Law.TRUNCATED), (Law.EXPONENTIAL, Law.TRUNCATED)
        amplitude, offset = number("amplitude", *FITTED_LAWS), number("offset", *power)
        at_bound = offset is not None and offset <= AT_BOUND * SHORTEST_OFFSET
        return ChannelDecay(
            law=law,
            status=status,
            window=(int(self.first[index]), int(self.last[index])) if fitted else None,
            amplitude=None if amplitude is None else math.exp(amplitude),
            exponent=number("exponent", *power),
            exponent_error=number("exponent_error", *power),
            rate=number("rate", *decaying),
            rate_error=number("rate_error", *decaying),
            offset=offset,
            offset_error=None if at_bound else number("offset_error", *power),
            residual_db={law: NEPER_DB * float(fit.residual[index]) for law, fit in self.fits.items()}
            if fitted
            else None,
        )

    def describe(self, index: int, slowest: float | None = None) -> str:
        """Return one sentence on one channel's decay, with its window.

        `slowest`: the rate of its slowest modes, which replaces a fitted cut-off that is not near it.
        """
        decay = self.channel(index)
        if decay.window is None or decay.law is Law.FINITE:
            return f"{decay.status.value[0].upper()}{decay.status.value[1:]}."
        where = f"over lags {decay.window[0]:,} to {decay.window[1]:,}"
        if decay.window[1] < self.context - 1:
            where += f" of {self.context:,}"
        assert decay.residual_db is not None
        if decay.law is Law.UNDETERMINED:
            # The sort is stable: of laws with equal residuals the simplest comes first.
            (law, least), *others = sorted(decay.residual_db.items(), key=lambda item: float(f"{item[1]:.2g}"))
            best = f"best: {law.value}, {least:.2g} dB rms"
            more = (f", before {name.value}, {dB:.2g} dB" for name, dB in others if f"{dB:.2g}" != f"{least:.2g}")
            return f"Undetermined {where}: {decay.status.value} ({best}{next(more, '')})."
        off = f"{decay.residual_db[decay.law]:.2g} dB rms off"
        if decay.law is Law.FLAT:
            return f"Does not decay {where} ({off})."
        if decay.law is Law.EXPONENTIAL:
            assert decay.rate is not None
            every = plural(f"{math.log(2) / decay.rate:,.3g}", "step").removeprefix("1 ")
            return f"Forgets exponentially, half gone every {every}, {where} ({off})."
        assert decay.offset is not None
        power = f"(1 + t/{decay.offset:.3g})^−{decay.exponent:.2f}"
        off += ", t₀ at its bound" if decay.offset_at_bound else ""
        if decay.law is Law.POLYNOMIAL:
            return f"Forgets like a power of the lag, {power}, {where} ({off})."
        assert decay.rate is not None
        cut = f"cut off at {plural(f'{1 / decay.rate:,.3g}', 'step')}"
        if slowest and abs(slowest - decay.rate) > SAME_CUT * slowest:
            cut = f"cut off by its slowest modes, of {plural(f'{1 / slowest:,.3g}', 'step')}"
        return f"Forgets like a power of the lag, {power}, {cut}, {where} ({off})."


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
