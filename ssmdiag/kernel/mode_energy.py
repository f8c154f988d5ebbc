"""Energy of a kernel by groups of its modes, as a form over pairs of modes in closed form.

    Σ_{t≥τ} K_t² = ½ (zᴴ M z + Re zᵀ S z),     z = λ̄^τ
    M_ij = Σ w_i* w_j / (1 − λ̄_i* λ̄_j),     S_ij = Σ w_i w_j / (1 − λ̄_i λ̄_j)

Sums are over copies, or over outputs and inputs. Row i of z∘(Hz) is what mode i has in the energy with all others; with
the pairs inside a group alone it is the group's own. Without the pairs whose beat completes a turn within a window it
is the energy that an eye draws through the swings.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ssmdiag.kernel.powers import powers
from ssmdiag.kernel.quadratic_form import QuadraticForm
from ssmdiag.kernel.response import EPSILON, LEAST, modal_terms
from ssmdiag.status import Status

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence import Recurrence

ALIKE = 0.1
"""Rates of a group exceed its slowest by this share of it at most."""
SLOWEST = 1e-8
"""Nats over the context that a mode loses at least, here: those on the boundary have sums over all lags too."""
WORKING_SET = 16 * 2**20
"""Bytes of forms and states at a time."""
HELD = 8 * WORKING_SET
"""Bytes of forms that are kept while they are wanted again; more are made anew."""
BANDS, FINER = 24, 1.3
"""Bands of a layer that are tried, and how many times faster each begins."""
BAND_HOLDS = 0.9
"""Share of the energy that a band is to hold."""
HEARD = 1e-6
"""Share of the energy from which on a group counts as heard."""


@dataclass(frozen=True, eq=False)
class GroupEnergy:
    """What is left of each kernel's energy at some lags, and what the group that holds the last of it has of that."""

    members: tuple[Tensor, ...]
    """Whether a mode is of the group, (channel, mode) bool of each chunk of channels."""
    whole: Tensor
    """Energy from each lag on, without an end, (row, lag), in units of each row's own."""
    rest: Tensor
    """The same of all modes but the group's."""
    bins: Tensor
    """Energy between each lag and the next, without the group's swings that complete within the window, (row, bin)."""
    rate: Tensor
    """Mean rate of the group's modes by their energy from each lag on, nats per step."""
    noise: Tensor
    """What rounding may have added to any of them."""
    slowest: Tensor
    """Rate of the slowest group that holds a millionth of the energy, (row,); NaN where none does."""
    heard: Tensor
    """The group's own energy over that of its modes by themselves, (row, lag): little where they cancel."""
    rates: Tensor
    """Mean rates at lag 0 of the groups that were taken as one, (row, group)."""


@dataclass(frozen=True, eq=False)
class Band:
    """Modes whose rates lie next to each other."""

    members: tuple[Tensor, ...]
    """As those of a `GroupEnergy`."""
    rates: Tensor
    """The slowest and the fastest of each row, (row, 2)."""


class ModeEnergies:
    """The energy of a layer's channels, and of the layer, asked for in many ways of forms that are made once.

    Channels whose `status` is not `KNOWN` nor that of a mode on the `BOUNDARY` come as zero; there must be modes, not a
    dense state matrix. `lags` ascend from 0.
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
                form = PairForms.of_matrices(self.source, self.lags)
            elif form is None:
                form = PairForms.of_channels(self.source, chunk, self.usable[chunk], self.lags)
            if len(self.chunks) * WORKING_SET <= HELD:
                self.held[chunk.start] = form
            yield chunk, form

    def groups(
        self, ends: Tensor, middle: Tensor | None = None, most: int = 1, *, rows: Tensor | None = None
    ) -> GroupEnergy:
        """Return the energies of each channel whose window ends at `ends` (channel,), positions in the lags.

        `rows`, ascending: of these channels alone.

        `most` groups are taken as one: that which holds the last of the energy, and those with most of it at `middle`.
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
        bounds = rates.new_tensor(_first_rates(rates.flatten().sort().values.tolist()))
        energies, numbers = rates.new_zeros(4, 1, len(bounds), 3), []
        for _, form in self.forms():
            number = (torch.searchsorted(bounds, form.rate.contiguous(), right=True) - 1).clamp(min=0)
            numbers.append(number)
            # Few of the layer's groups are in one channel: they are numbered anew for it.
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
                chosen = _widest(*some.bands(some.rate, self.lags[probes[here]], width))
                inside = _inside(some.rate, some.rate.gather(1, chosen[:, None]), width)
                members[-1][place] = inside
                rates.append(_ends(some.rate, inside))
        return Band(tuple(members), torch.cat(rates))

    def band_of_layer(self, slowest: Tensor, probes: Tensor, width: float) -> Band:
        """Return the same of the layer, whose slowest modes heard have the rate `slowest` (1,); `probes` (1, probe)."""
        # The rate is its group's mean: the group begins a tenth below at most.
        low = slowest / (1 + ALIKE) * FINER ** torch.arange(BANDS, dtype=slowest.dtype, device=slowest.device)
        whole, rest = slowest.new_zeros(1, probes.shape[1]), slowest.new_zeros(1, BANDS, probes.shape[1])
        for _, form in self.forms():
            count = len(form.unit)
            parts = form.bands(low.expand(count, -1), self.lags[probes].expand(count, -1), width)
            scale = (form.unit / self.unit).square()
            whole += (parts[0] * scale[:, None]).sum(0)
            rest += (parts[1] * scale[:, None, None]).sum(0)
        first = low[_widest(whole, rest)]
        members = tuple(_inside(form.rate, first, width) for _, form in self.forms())
        ends = [_ends(form.rate, inside) for (_, form), inside in zip(self.forms(), members, strict=True)]
        return Band(members, torch.stack([torch.cat(ends)[:, 0].amin(), torch.cat(ends)[:, 1].amax()])[None])

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
        """The largest unit of all channels."""
        return torch.stack([form.unit.amax() for _, form in self.forms()]).amax()

    def left(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy of each channel from each lag on for ever, and its noise; all (channel, lag)."""
        found = [form.left(lags[chunk]) for chunk, form in self.forms()]
        values, noise = zip(*found, strict=True)
        return torch.cat(values), torch.cat(noise)

    def left_of_layer(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of the layer; all (1, lag)."""
        total = lags.new_zeros(2, *lags.shape)
        for _, form in self.forms():
            found = torch.stack(form.left(lags.expand(len(form.unit), -1)))
            total += (found * (form.unit / self.unit).square()[:, None]).sum(1, keepdim=True)
        return total[0], total[1]


class PairForms:
    """The forms of some channels at some lags, in units that make their largest weight 1."""

    def __init__(self, ell: Tensor, hermitian: Tensor, symmetric: Tensor | None, unit: Tensor, lags: Tensor) -> None:
        self.rate, self.unit, self.lags = -ell.real, unit, lags
        slowed = ell.real.clamp(max=-SLOWEST / float(lags[-1]))
        if symmetric is None:
            self.ell, self.symmetric = slowed, None
            self.hermitian = hermitian / -(slowed[:, :, None] + slowed[:, None]).expm1()
        else:
            self.ell = ell = torch.complex(slowed, ell.imag)
            self.hermitian = hermitian / _one_minus(ell.conj()[:, :, None] + ell[:, None])
            self.symmetric = symmetric / _one_minus(ell[:, :, None] + ell[:, None])

    @classmethod
    def of_channels(cls, source: Recurrence, chunk: slice, usable: Tensor, lags: Tensor) -> PairForms:
        ell, weights = modal_terms(source, chunk, usable)
        unit = weights.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
        weights = weights / unit[:, None, None]
        if not ell.is_complex():
            return cls(ell, weights.mT @ weights, None, unit, lags)
        return cls(ell, weights.mH @ weights, weights.mT @ weights, unit, lags)

    @classmethod
    def of_matrices(cls, source: Recurrence, lags: Tensor) -> PairForms:
        form = QuadraticForm(source)
        sizes = form.sizes.mT * form.sizes
        return cls(form.ell, (form.hermitian * sizes)[None], (form.symmetric * sizes)[None], form.unit[None], lags)

    @cached_property
    def number(self) -> Tensor:
        """The number of each mode's group, (channel, mode)."""
        return _numbers(self.rate)

    def select(self, rows: Tensor) -> PairForms:
        """Return the forms of some of the channels."""
        some = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and name != "lags":
                setattr(some, name, value[rows])
        return some

    def shares(self, chosen: Tensor, lags: Tensor) -> Tensor:
        """Return the energy from each lag on, that of all modes but the chosen ones, and the noise of either,
        (3, channel, lag); `chosen` (channel, mode) bool, `lags` (channel, lag).
        """
        states = self.states_at(lags)
        kept = ~chosen if self.symmetric is None else (~chosen).repeat(1, 2)
        others = states * kept[..., None]
        whole, rest = ((some * (self.form @ some)).sum(1) for some in (states, others))
        return torch.stack([whole, rest, self._noise(states)])

    def bands(self, low: Tensor, lags: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Return the energy from each of (channel, lag) on, and that of all modes outside each band, (channel, band,
        lag), which begins at a rate of `low` (channel, band).
        """
        outside = (~_inside(self.rate[:, None], low[..., None], width)).mT
        outside = outside if self.symmetric is None else outside.repeat(1, 2, 1)
        states = self.states_at(lags)
        others = (states[:, :, None] * outside[..., None]).flatten(2)
        whole, rest = ((some * (self.form @ some)).sum(1) for some in (states, others))
        return whole, rest.unflatten(1, low.shape[1:] + lags.shape[1:])

    @cached_property
    def states(self) -> Tensor:
        """λ̄^τ at the form's own lags."""
        return self.states_at(self.lags[None])

    def states_at(self, lags: Tensor) -> Tensor:
        """Return λ̄^τ, (channel, row, lag), for (channel, lag): real parts of all modes, then imaginary ones, if any."""
        if self.symmetric is None:
            return (self.ell[..., None] * lags[:, None]).clamp(min=LEAST).exp()
        states = powers(self.ell[..., None], lags[:, None])
        states = states.where(states.abs() > math.exp(LEAST), 0.0)
        return torch.cat([states.real, states.imag], 1)

    def left(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy from each lag on for ever and its noise, both (channel, lag)."""
        states = self.states_at(lags)
        return (states * (self.form @ states)).sum(1), self._noise(states)

    @cached_property
    def form(self) -> Tensor:
        """H, (channel, row, row)."""
        return self.hermitian if self.symmetric is None else _on_parts(self.hermitian, self.symmetric)

    @cached_property
    def alone(self) -> Tensor:
        """Each mode's energy by itself, averaged over its phase, (channel, mode, lag)."""
        size = self.hermitian.diagonal(dim1=1, dim2=2).real[..., None]
        if self.symmetric is None:
            return size * self.states.square()
        real, imaginary = self.states.tensor_split(2, 1)
        return size / 2 * (real.square() + imaginary.square())

    @cached_property
    def parts(self) -> Tensor:
        """z∘(Hz) of each mode, (channel, mode, lag): what it has in the energy of all."""
        parts = self.states * (self.form @ self.states)
        return parts if self.symmetric is None else torch.add(*parts.tensor_split(2, 1))

    @cached_property
    def whole(self) -> Tensor:
        """The energy from each lag on for ever, (channel, lag)."""
        return self.parts.sum(1)

    @cached_property
    def noise(self) -> Tensor:
        """What rounding may add to it, (channel, lag)."""
        return self._noise(self.states)

    def _noise(self, states: Tensor) -> Tensor:
        """Return what rounding may add to a sum of pairs, (channel, lag): it cannot exceed that of all moduli."""
        sizes = self.hermitian.diagonal(dim1=1, dim2=2).real.sqrt()
        moduli = states if self.symmetric is None else torch.hypot(*states.tensor_split(2, 1))
        reach = (sizes[:, None] @ moduli)[:, 0]
        return reach.square() * (2 * EPSILON * (16 + 2 * self.rate.shape[1]))

    def by_group(self, number: Tensor, groups: int, at: Tensor) -> Tensor:
        """Return, of each group of modes, (4, channel, group, lag): its part in the whole, its own energy, its modes'
        energy by themselves, and that times their rates.

        `number` (channel, mode) tells the groups, `at` (channel, lag) positions among the lags.
        """
        same = number[:, :, None] == number[:, None]
        modes = self.rate.shape[1]
        states = self.states.gather(2, at[:, None].expand(-1, self.states.shape[1], -1))
        alone = self.alone.gather(2, at[:, None].expand(-1, modes, -1))
        parts = states * (self.form @ states)
        if self.symmetric is None:
            own = states * ((self.hermitian * same) @ states)
        else:
            real, imaginary = parts.tensor_split(2, 1)
            parts, z = real + imaginary, torch.complex(*states.tensor_split(2, 1))
            own = (z.conj() * ((self.hermitian * same) @ z) + z * ((self.symmetric * same) @ z)).real / 2
        every = torch.stack([parts, own, alone, alone * self.rate[..., None]])
        into = every.new_zeros(4, len(number), groups, at.shape[1])
        return into.scatter_add_(2, number[None, ..., None].expand_as(every), every)

    def of_modes(self, chosen: Tensor, window: Tensor) -> Tensor:
        """Return, of each channel, (7, channel, lag): the energy of all modes, of all but the chosen ones, of these, of
        these without swings that complete within the window, of each of these by itself, that times its rate; and the
        noise.

        `chosen` (channel, mode) bool; `window` (channel,) lags.
        """
        parts = self.parts
        count = int(chosen.sum(1).amax().clamp(min=1))
        place = torch.arange(count, device=chosen.device)
        which = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count, None]
        there = (place < chosen.sum(1, keepdim=True))[..., None]

        def some(values: Tensor) -> Tensor:
            """Return the rows of the chosen modes."""
            return values.gather(1, which.expand(-1, -1, values.shape[2])).where(there, 0.0)

        def pairs(values: Tensor) -> Tensor:
            return some(some(values).mT).mT

        if self.symmetric is None:
            states = some(self.states)
            own = smooth = (states * (pairs(self.hermitian) @ states)).sum(1)
        else:
            M, S = pairs(self.hermitian), pairs(self.symmetric)
            states = torch.cat([some(part) for part in self.states.tensor_split(2, 1)], 1)
            own = (states * (_on_parts(M, S) @ states)).sum(1)
            turn = some(self.ell.imag[..., None])
            apart, together = (turn - turn.mT).abs(), turn + turn.mT
            reach = 2 * math.pi / window.clamp(min=1.0)[:, None, None]
            slow, slow_sum = apart < reach, torch.minimum(together, 2 * math.pi - together) < reach
            smooth = (states * (_on_parts(M * slow, S * slow_sum) @ states)).sum(1)
        alone = some(self.alone)
        weighted = (alone * some(self.rate[..., None])).sum(1)
        rest = self.whole - 2 * some(parts).sum(1) + own
        return torch.stack([self.whole, rest, own, smooth, alone.sum(1), weighted, self.noise])


def _on_parts(M: Tensor, S: Tensor) -> Tensor:
    """Return H over real and imaginary parts with zᵀHz = ½ (zᴴ M z + Re zᵀ S z)."""
    cross = -(M.imag + S.imag)
    rows = [torch.cat([M.real + S.real, cross], 2), torch.cat([cross.mT, M.real - S.real], 2)]
    return torch.cat(rows, 1).div_(2)


def _probes(ends: Tensor) -> Tensor:
    """Return the positions of lag 0, of the last lag before each window's end, and of the end, (row, 3)."""
    return torch.stack([torch.zeros_like(ends), (ends - 1).clamp(min=0), ends], 1)


def _choose(energies: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the group without which least is left at the end of each row's window and, to make `most`, those that
    have most at the fourth probe; their rates, NaN where there are fewer, both (row, group); and the slowest heard
    rate, (row,).
    """
    parts, own, alone, weighted = energies
    whole = parts.sum(1, keepdim=True)
    rest = whole - 2 * parts + own
    best = (rest[..., 1] - rest[..., 2]).argmin(1)
    heard = own[..., 0] - own[..., 2] > HEARD * (whole[..., 0] - whole[..., 2])
    rate = (weighted / alone.clamp(min=torch.finfo(torch.float64).tiny))[..., 0]
    slowest = rate.where(heard, math.inf).amin(1)
    slowest = slowest.where(slowest.isfinite(), math.nan)
    if most == 1:
        return best[:, None], rate.gather(1, best[:, None]), slowest
    score = (own[..., 3] - own[..., 2]).scatter(1, best[:, None], math.inf)
    chosen = score.topk(min(most, score.shape[1]), dim=1).indices
    rates = rate.where(alone[..., 0] > 0, math.nan).gather(1, chosen)
    return chosen, torch.nn.functional.pad(rates, (0, most - rates.shape[1]), value=math.nan), slowest


def _inside(rate: Tensor, low: Tensor, width: float) -> Tensor:
    """Return whether rates are in a band."""
    return (rate >= low) & (rate <= width * low)


def _widest(whole: Tensor, rest: Tensor) -> Tensor:
    """Return which band holds enough at most lags, counted from the last, (row,), of (row, lag), (row, band, lag)."""
    share = (rest / whole[:, None].clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    held = (share <= 1 - BAND_HOLDS).flip(2).to(torch.uint8).cumprod(2).sum(2)
    return (held - share.mean(2) / 2).argmax(1)


def _ends(rate: Tensor, inside: Tensor) -> Tensor:
    """Return the slowest and the fastest of some rates, (row, 2)."""
    return torch.stack([rate.where(inside, math.inf).amin(1), rate.where(inside, -math.inf).amax(1)], 1)


def _row(energies: Tensor, slowest: Tensor, rates: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of a `GroupEnergy`, of what `of_modes` returns."""
    whole, rest, own, smooth, alone, weighted, noise = energies
    bins = -(whole - own + smooth).diff(dim=1)
    rate = weighted / alone.clamp(min=torch.finfo(torch.float64).tiny)
    heard = own / alone.clamp(min=torch.finfo(torch.float64).tiny)
    return whole.clamp(min=0), rest.clamp(min=0), bins, rate, noise, slowest, heard, rates


def _numbers(rate: Tensor) -> Tensor:
    """Return the number of each mode's group, (channel, mode), for ascending rates."""
    if len(rate) == 1:
        bounds = rate.new_tensor(_first_rates(rate[0].tolist()))
        return torch.searchsorted(bounds, rate.contiguous(), right=True) - 1
    number, first = torch.zeros_like(rate, dtype=torch.long), rate[:, 0]
    for mode in range(1, rate.shape[1]):
        new = rate[:, mode] > first * (1 + ALIKE)
        first = torch.where(new, rate[:, mode], first)
        number[:, mode] = number[:, mode - 1] + new
    return number


def _first_rates(rates: list[float]) -> list[float]:
    """Return the slowest rate of each group of ascending rates."""
    found, position = [], 0
    while position < len(rates):
        found.append(rates[position])
        # One of a mode that grows is further down when multiplied: it is a group of its own.
        position = max(position + 1, bisect_right(rates, rates[position] * (1 + ALIKE), lo=position))
    return found or [0.0]


def _one_minus(exponent: Tensor) -> Tensor:
    """Return 1 − e^x without cancellation, for Re x ≤ 0."""
    half = (exponent.imag / 2).sin()
    size = exponent.real.exp()
    return torch.complex(2 * size * half.square() - exponent.real.expm1(), -size * exponent.imag.sin())
