"""What remains of a layer's energy: the law of its tail by its modes, and the lags that hold shares of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ssmdiag.decay.decay import NOISE_MARGIN
from ssmdiag.decay.energy_curve import FEWEST_CHANNELS, EnergyCurve, describe_energy
from ssmdiag.decay.tail import (
    LEAST_SUM_SHARE,
    MOST_TERMS,
    Shares,
    Tails,
    TailStatus,
    energy_left,
    judge_tails,
    name_bands,
    name_sums,
    no_tails,
    window_ends,
)
from ssmdiag.kernel.energy import Energy, horizon, tail_energy
from ssmdiag.kernel.mode_energy import ModeEnergies
from ssmdiag.kernel.passing import SHARES, Left, Passing, find_passing, heaviness
from ssmdiag.kernel.powers import MAX_LAG, is_real
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import Recurrence

MIDDLE = 0.1
"""Share of the energy left where the terms of a sum are sought."""
BAND, BANDS_OF_LAYERS = 1.6, (4.0, 16.0)
"""Largest ratio of a band's fastest to its slowest rate, for a channel; for a layer, the first that suffices."""
PROBED = (0.999, 0.5, 0.1, LEAST_SUM_SHARE)
"""Shares of the energy left at the lags where a band is chosen: at the last of them and later, a band must hold."""
EVERY_LAG = 12
"""Edges up to which all serve as lags; later, two an octave are enough."""
ENDLESS = (Status.GROWS, Status.BOUNDARY, Status.BEYOND)


@dataclass(frozen=True, eq=False)
class Remaining:
    """The tails of a layer's channels, and of the layer as one."""

    tails: Tails
    whole: Tails
    """One row."""
    passing: Passing
    """Of the layer, one row."""
    channels: Passing | None
    """Of each channel; None where it was not requested."""
    curve: EnergyCurve | None = None
    """The layer's energy as a sum of a few exponentials, where that describes it."""


def leave_out(rows: int, like: Tensor) -> Remaining:
    """Return a placeholder for `rows` channels, on the device of `like`: the law was not requested."""
    unknown = like.new_full((1,), math.nan, dtype=torch.float64)
    return Remaining(
        tails=no_tails(rows, TailStatus.NOT_ASKED, like),
        whole=no_tails(1, TailStatus.NOT_ASKED, like),
        passing=Passing(unknown.repeat(1, len(SHARES)), unknown),
        channels=None,
    )


def assess_remaining(
    source: Recurrence, edges: Tensor, rows: Energy, counted: Tensor, *, every_channel: bool
) -> Remaining:
    """Return tails within the edges, and lags without a bound.

    `rows` are the mean squares of the channels, then of the layer, whose sum goes over the channels `counted`
    (channel,). `every_channel`: also return the lags of each channel.
    """
    status = rows.status[:-1]
    if source.layout in ("dense", "finite"):
        why = TailStatus.DENSE if source.layout == "dense" else TailStatus.FINITE
        tails = no_tails(len(rows.status), why, edges)
        channels = _by_factor(source) if every_channel else None
        lags, left = edges.double(), _summed_left(source, counted)
        start = left(lags[None])
    else:
        places = _coarse(len(edges), edges.device)
        modes = ModeEnergies(source, status.where(counted, int(Status.CANCELLED)), edges[places].double())
        tails, start = _tails(modes, edges, places, rows)
        channels = _modal_channels(source, modes, status) if every_channel else None
        lags, left = modes.lags, modes.left_of_layer
    passing = find_passing(left, lags, start)
    if source.layout == "finite":  # where it is cut off says nothing of its shape
        passing = replace(passing, heaviness=torch.full_like(passing.heaviness, math.nan))
    whole = rows.status[-1:].clone()
    whole[bool((status[counted] == Status.BOUNDARY).any()) & (whole != Status.GROWS)] = Status.BOUNDARY
    return Remaining(
        tails=tails.select(slice(0, len(status))),
        whole=tails.select(slice(len(status), None)),
        passing=_endless(passing, whole),
        channels=None if channels is None else _endless(channels, status),
        curve=describe_energy(left, lags, start)
        if bool(whole[0] == Status.KNOWN) and _smooth(source, counted)
        else None,
    )


def _tails(modes: ModeEnergies, edges: Tensor, places: Tensor, rows: Energy) -> tuple[Tails, tuple[Tensor, Tensor]]:
    """Return the tails of the channels and then of the layer, and the layer's energy from each lag on and its noise."""
    known = (rows.status == Status.KNOWN) | (rows.status == Status.BOUNDARY)
    values = rows.values.where(known[:, None], 0.0)
    above = (values > NOISE_MARGIN * rows.noise) & known[:, None]
    share = energy_left(values * edges.diff(), above)[:, places]
    ends = window_ends(share)
    layer = modes.groups_of_layer(ends[-1:])
    own, one = ends[:-1], len(ends) == 2  # then the layer is its channel
    single = modes.groups(own)
    channels = judge_tails(modes.lags, own, share[:-1], single, partial(modes.shares, single.members))
    whole = judge_tails(modes.lags, ends[-1:], share[-1:], layer, _of_layer(modes, layer.members))
    tails = channels.join(whole)
    middle = (share[:-1] > MIDDLE).sum(1)
    middle = middle.where(middle < own, 0)  # what does not fall so far: by the energy of the whole window
    for terms in range(2, MOST_TERMS + 1):
        left = channels.unsettled()
        if len(left):
            named, several = channels.select(left), modes.groups(own, middle, terms, rows=left)
            name_sums(named, modes.lags, own[left], share[left], several, _of_rows(modes, several.members, left))
            channels.put(left, named)
    for width in BANDS_OF_LAYERS if modes.source.layout == "many inputs" else (BAND,):
        left = channels.unsettled()
        if len(left):
            named, band = channels.select(left), modes.bands(left, _probes(share[left], own[left]), width)
            name_bands(named, modes.lags, own[left], share[left], band.rates, _of_rows(modes, band.members, left))
            channels.put(left, named)
    for width in BANDS_OF_LAYERS:
        if not one and len(whole.unsettled()) and bool(whole.slowest.isfinite().all()):
            band = modes.band_of_layer(whole.slowest, _probes(share[-1:], ends[-1:]), width)
            name_bands(whole, modes.lags, ends[-1:], share[-1:], band.rates, _of_layer(modes, band.members))
    tails = channels.join(channels if one else whole)
    tails.withhold(~known | (rows.values <= 0).all(1), TailStatus.NO_KERNEL)
    return tails, (layer.whole, layer.noise)


def _probes(share: Tensor, ends: Tensor) -> Tensor:
    """Return the positions where so much of (row, lag) is left, of each window's end and half way, (row, probe)."""
    places = [torch.minimum((share > part).sum(1), ends) for part in PROBED]
    return torch.stack([*places, (places[-1] + ends) // 2, ends], 1)


def _of_layer(modes: ModeEnergies, members: Sequence[Tensor]) -> Shares:
    """Return the same of the layer, one row."""
    return lambda _, at: modes.shares_of_layer(members, at)


def _of_rows(modes: ModeEnergies, members: Sequence[Tensor], rows: Tensor) -> Shares:
    """Return the `Shares` of some rows, by position among these: the other modes are all but `members`."""
    return lambda some, at: modes.shares(members, rows[some], at)


def _coarse(count: int, device: torch.device) -> Tensor:
    """Return which edges serve as lags: the first ones, every second of the others, the last."""
    place = torch.arange(count, device=device)
    return place[(place < EVERY_LAG) | ((count - 1 - place) % 2 == 0)]


def _endless(passing: Passing, status: Tensor) -> Passing:
    """Mark energies that never end, and unknown ones, as not passing."""
    endless = torch.isin(status, status.new_tensor(ENDLESS))
    lags = passing.lags.where(~endless[:, None], math.inf)
    lags = lags.where((endless | (status == Status.KNOWN))[:, None], math.nan)
    return Passing(lags, passing.heaviness.where(status == Status.KNOWN, math.nan))


def _modal_channels(source: Recurrence, modes: ModeEnergies, status: Tensor) -> Passing:
    """Return the lags of each channel, by the kernel's factor where its modes cancel beyond the form's digits."""
    passing = find_passing(modes.left, modes.lags, modes.left(modes.lags.expand(len(status), -1)))
    unsure = passing.lags.isnan().any(1) & (status == Status.KNOWN)
    if not bool(unsure.any()):
        return passing
    exact = _by_factor(source)
    lags = exact.lags.where(unsure[:, None], passing.lags)
    return Passing(lags, exact.heaviness.where(unsure, passing.heaviness))


def _by_factor(source: Recurrence) -> Passing:
    """Return the lags of each channel from the kernel's factor, exact to the step."""
    lags = torch.stack([horizon(source, share, MAX_LAG).lags for share in SHARES], 1)
    return Passing(lags, heaviness(lags[:, 0] - 0.5, lags[:, -1] - 0.5))


def _smooth(source: Recurrence, counted: Tensor) -> bool:
    """Return whether a layer's energy does not oscillate: its modes are real, or many channels are summed."""
    if source.layout == "finite":  # cut off, not exponential
        return False
    many = source.layout == "many inputs" or int(counted.sum()) >= FEWEST_CHANNELS
    return many or is_real(source.log_eigenvalues)


def _summed_left(source: Recurrence, counted: Tensor) -> Left:
    """Return the function that gives the layer's energy from each lag on and its noise, (1, lag)."""

    def left(lags: Tensor) -> tuple[Tensor, Tensor]:
        energy = tail_energy(source, lags[0])
        return energy.values[counted].sum(0, keepdim=True), energy.noise[counted].sum(0, keepdim=True)

    return left
