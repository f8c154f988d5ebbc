"""Energy of a layer's channels by groups of modes: which group holds the remaining energy, and what the others hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ssmdiag.kernel.pair_forms import ALIKE, PairForms, first_rates, inside_band
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import Recurrence

WORKING_SET = 16 * 2**20
"""Bytes of forms and states at a time."""
HELD = 8 * WORKING_SET
"""Bytes of forms that are cached for reuse; others are recomputed."""
BANDS, FINER = 44, 1.14
"""Number of bands of a layer that are tried, and the factor between the rates at which they begin."""
BAND_HOLDS, LEAST_HELD = 0.91, 0.9
"""Share of the energy that a band should hold, and that it must, the other modes by themselves holding the rest."""
LATE = 3
NEGLIGIBLE = 1e-6
"""Share of the energy below which a group is negligible."""


@dataclass(frozen=True, eq=False)
class GroupEnergy:
    """Each kernel's remaining energy at some lags, and the part of it in the group that holds the last of it."""

    members: tuple[Tensor, ...]
    """Whether a mode is in the group, (channel, mode) bool for each chunk of channels."""
    whole: Tensor
    """Energy from each lag to infinity, (row, lag), in a unit of each row's own."""
    rest: Tensor
    """The same without the group's modes."""
    bins: Tensor
    """Energy between each lag and the next, without beats in the group that complete within the window, (row, bin)."""
    rate: Tensor
    """Mean rate of the group's modes, weighted by their energy from each lag on, nats per step."""
    noise: Tensor
    """Bound on the rounding error of the energies."""
    slowest: Tensor
    """Rate of the slowest group that holds a millionth of the energy, (row,); NaN where none does."""
    coherence: Tensor
    """The group's energy over the sum of its modes' separate energies, (row, lag): small where they cancel."""
    rates: Tensor
    """Mean rates at lag 0 of the groups that were merged, (row, group)."""


@dataclass(frozen=True, eq=False)
class Band:
    """Modes of neighbouring rates."""

    members: tuple[Tensor, ...]
    """As those of a `GroupEnergy`."""
    rates: Tensor
    """The slowest and the fastest of each row, (row, 2); NaN where it does not hold the last `LATE` probes."""


class ModeEnergies:
    """Energies of a layer's channels and of the whole layer, from forms that are computed once.

    Channels whose `status` is neither `KNOWN` nor `BOUNDARY` are zero. The recurrence must be modal, not dense.
    `lags` ascend from 0.
    """

    def __init__(self, source: Recurrence, status: Tensor, lags: Tensor) -> None:
        self.source, self.lags = source, lags
        self.usable = (status == Status.KNOWN) | (status == Status.BOUNDARY)
        row = source.modes * 2
        span = max(1, WORKING_SET // (8 * row * (row + len(lags)) * 6))
        self.chunks = [slice(start, start + span) for start in range(0, source.channels, span)]
        self.held: dict[int, PairForms] = {}

    def forms(self) -> Iterator[tuple[slice, PairForms]]:
        """Yield the forms of all channels, a few at a time."""
        for chunk in self.chunks:
            form = self.held.get(chunk.start)
            if form is None and self.source.layout == "many inputs":
                some = bool(self.usable[chunk].any())
                form = (PairForms.of_matrices if some else PairForms.of_nothing)(self.source, self.lags)
            elif form is None:
                form = PairForms.of_channels(self.source, chunk, self.usable[chunk], self.lags)
            if len(self.chunks) * WORKING_SET <= HELD:
                self.held[chunk.start] = form
            yield chunk, form

    def groups(
        self, ends: Tensor, middle: Tensor | None = None, most: int = 1, *, rows: Tensor | None = None
    ) -> GroupEnergy:
        """Return the energies of each channel whose window ends at `ends` (channel,), positions in the lags.

        `rows`, ascending: only these channels.

        `most` groups are merged: the one that holds the last of the energy, and those with most of it at `middle`.
        """
        found, members = [], []
        middle = ends if middle is None else middle
        for chunk, form in self.forms():
            end, half, place = ends[chunk], middle[chunk], None
            members.append(torch.zeros_like(form.rate, dtype=torch.bool))
            if rows is not None:
                place = rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start
                if not len(place):
                    continue
                form, end, half = form.select(place), end[place], half[place]
            number = form.number
            probes = torch.cat([_probes(end), half[:, None]], 1)
            energies = form.by_group(number, int(number.max()) + 1, probes)
            best, rates, slowest = _choose(energies, most)
            chosen = (number[..., None] == best[:, None]).any(2)
            members[-1][slice(None) if place is None else place] = chosen
            found.append(_row(form.of_modes(chosen, self.lags[end]), slowest, rates))
        return GroupEnergy(tuple(members), *(torch.cat(parts) for parts in zip(*found, strict=True)))

    def groups_of_layer(self, end: Tensor) -> GroupEnergy:
        """Return the energies of the layer as one row, by groups of the modes of all its channels; `end` (1,)."""
        rates, unit = self.source.rate[self.usable], self.unit
        bounds = rates.new_tensor(first_rates(rates.flatten().sort().values.tolist()))
        energies, numbers = rates.new_zeros(4, 1, len(bounds), 3), []
        for _, form in self.forms():
            number = (torch.searchsorted(bounds, form.rate.contiguous(), right=True) - 1).clamp(min=0)
            numbers.append(number)
            # One channel has few of the layer's groups: they are renumbered.
            own = torch.zeros_like(number)
            own[:, 1:] = (number.diff(dim=1) != 0).cumsum(1)
            groups = int(own.max()) + 1
            which = torch.zeros(len(number), groups, dtype=torch.long, device=number.device).scatter_(1, own, number)
            parts = form.by_group(own, groups, _probes(end).expand(len(number), -1))
            parts = parts * (form.unit / unit).square()[:, None, None]
            energies[:, 0].index_add_(1, which.flatten(), parts.flatten(1, 2))
        best, rate, slowest = _choose(energies, 1)
        total = rates.new_zeros(7, 1, len(self.lags))
        members = tuple(number == best for number in numbers)
        for (_, form), chosen in zip(self.forms(), members, strict=True):
            some = form.of_modes(chosen, self.lags[end].expand(len(chosen)))
            total += (some * (form.unit / unit).square()[:, None]).sum(1, keepdim=True)
        return GroupEnergy(members, *_row(total, slowest, rate))

    def bands(self, rows: Tensor, probes: Tensor, width: float) -> Band:
        """Return, for some channels, the band of rates up to `width` times its slowest that holds most of the energy to
        the end; `rows` ascend, `probes` (row, probe) ascending positions in the lags.
        """
        members, rates = [], []
        for chunk, form in self.forms():
            here = (rows >= chunk.start) & (rows < chunk.stop)
            members.append(torch.zeros_like(form.rate, dtype=torch.bool))
            if bool(here.any()):
                place = rows[here] - chunk.start
                some = form.select(place)
                chosen, holds = _widest(*some.bands(some.rate, self.lags[probes[here]], width))
                inside = inside_band(some.rate, some.rate.gather(1, chosen[:, None]), width)
                members[-1][place] = inside
                rates.append(_ends(some.rate, inside).where(holds[:, None], math.nan))
        return Band(tuple(members), torch.cat(rates))

    def band_of_layer(self, slowest: Tensor, probes: Tensor, width: float) -> Band:
        """Return the same for the layer; `slowest` (1,) is its slowest non-negligible rate, `probes` (1, probe)."""
        # The rate is its group's mean: the group begins a tenth below at most.
        low = slowest / (1 + ALIKE) * FINER ** torch.arange(BANDS, dtype=slowest.dtype, device=slowest.device)
        whole, rest = slowest.new_zeros(1, probes.shape[1]), slowest.new_zeros(1, BANDS, probes.shape[1])
        for _, form in self.forms():
            count = len(form.unit)
            parts = form.bands(low.expand(count, -1), self.lags[probes].expand(count, -1), width)
            scale = (form.unit / self.unit).square()
            whole += (parts[0] * scale[:, None]).sum(0)
            rest += (parts[1] * scale[:, None, None]).sum(0)
        chosen, holds = _widest(whole, rest)
        members = tuple(inside_band(form.rate, low[chosen], width) for _, form in self.forms())
        ends = [_ends(form.rate, inside) for (_, form), inside in zip(self.forms(), members, strict=True)]
        rates = torch.stack([torch.cat(ends)[:, 0].amin(), torch.cat(ends)[:, 1].amax()])
        return Band(members, rates[None].where(holds[:, None], math.nan))

    def shares(self, members: Sequence[Tensor], rows: Tensor, lags: Tensor) -> Tensor:
        """Return, of some channels at lags of their own (row, lag), the energy from each lag on, that of the modes that
        are no members, and the noise of either: (3, row, lag). `rows` ascend.
        """
        found = []
        for (chunk, form), chosen in zip(self.forms(), members, strict=True):
            here = (rows >= chunk.start) & (rows < chunk.stop)
            if bool(here.any()):
                place = rows[here] - chunk.start
                found.append(form.select(place).shares(chosen[place], lags[here]))
        return torch.cat(found, 1)

    def shares_of_layer(self, members: Sequence[Tensor], lags: Tensor) -> Tensor:
        """Return the same of the layer, (3, 1, lag), for (1, lag)."""
        total = lags.new_zeros(3, *lags.shape)
        for (_, form), chosen in zip(self.forms(), members, strict=True):
            found = form.shares(chosen, lags.expand(len(chosen), -1))
            total += (found * (form.unit / self.unit).square()[:, None]).sum(1, keepdim=True)
        return total

    @cached_property
    def unit(self) -> Tensor:
        """The largest unit of any channel."""
        return torch.stack([form.unit.amax() for _, form in self.forms()]).amax()

    def left(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy of each channel from each lag to infinity, and its noise; both (channel, lag)."""
        found = [form.left(lags[chunk]) for chunk, form in self.forms()]
        values, noise = zip(*found, strict=True)
        return torch.cat(values), torch.cat(noise)

    def left_of_layer(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for the layer; both (1, lag)."""
        total = lags.new_zeros(2, *lags.shape)
        for _, form in self.forms():
            found = torch.stack(form.left(lags.expand(len(form.unit), -1)))
            total += (found * (form.unit / self.unit).square()[:, None]).sum(1, keepdim=True)
        return total[0], total[1]


def _probes(ends: Tensor) -> Tensor:
    """Return the positions of lag 0, of the last lag before each window's end, and of the end, (row, 3)."""
    return torch.stack([torch.zeros_like(ends), (ends - 1).clamp(min=0), ends], 1)


def _choose(energies: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row `most` groups: first the one without which least energy is left at the window's end, then
    those with most energy at the fourth probe; their rates, NaN where there are fewer, both (row, group); and the
    slowest rate of a non-negligible group, (row,).
    """
    parts, own, alone, weighted = energies
    whole = parts.sum(1, keepdim=True)
    rest = whole - 2 * parts + own
    best = (rest[..., 1] - rest[..., 2]).argmin(1)
    counted = own[..., 0] - own[..., 2] > NEGLIGIBLE * (whole[..., 0] - whole[..., 2])
    rate = (weighted / alone.clamp(min=torch.finfo(torch.float64).tiny))[..., 0]
    slowest = rate.where(counted, math.inf).amin(1)
    slowest = slowest.where(slowest.isfinite(), math.nan)
    if most == 1:
        return best[:, None], rate.gather(1, best[:, None]), slowest
    score = (own[..., 3] - own[..., 2]).scatter(1, best[:, None], math.inf)
    chosen = score.topk(min(most, score.shape[1]), dim=1).indices
    rates = rate.where(alone[..., 0] > 0, math.nan).gather(1, chosen)
    return chosen, torch.nn.functional.pad(rates, (0, most - rates.shape[1]), value=math.nan), slowest


def _widest(whole: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the band that holds enough energy at most lags, counted from the last, and whether it does at the last
    few, both (row,).

    The energies are (row, lag) and (row, band, lag).
    """
    share = (rest / whole[:, None].clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    held = (share <= 1 - BAND_HOLDS).flip(2).to(torch.uint8).cumprod(2).sum(2)
    best = (held - share.mean(2) / 2).argmax(1)
    late = share[..., -LATE:].amax(2).gather(1, best[:, None])[:, 0]
    return best, late <= 1 - LEAST_HELD


def _ends(rate: Tensor, inside: Tensor) -> Tensor:
    """Return the slowest and the fastest of some rates, (row, 2)."""
    return torch.stack([rate.where(inside, math.inf).amin(1), rate.where(inside, -math.inf).amax(1)], 1)


def _row(energies: Tensor, slowest: Tensor, rates: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of a `GroupEnergy` from the result of `of_modes`."""
    whole, rest, own, smooth, alone, weighted, noise = energies
    bins = -(whole - own + smooth).diff(dim=1)
    rate = weighted / alone.clamp(min=torch.finfo(torch.float64).tiny)
    coherence = own / alone.clamp(min=torch.finfo(torch.float64).tiny)
    return whole.clamp(min=0), rest.clamp(min=0), bins, rate, noise, slowest, coherence, rates
