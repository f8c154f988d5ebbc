"""The recurrent layers of the built-in model, for all arms at once: S4D (one system a channel) and LRU.

Every parameter has a leading axis `arm`; inputs and outputs are (arm, batch, step, channel). Rates go
through the arm's own map: Re λ = −f(w). Tensors are named as the published code names them, so that a
saved arm is a file `ssmdiag inspect` reads.

| layer | paper | one step | output |
|---|---|---|---|
| S4D | arXiv 2206.11893 | h ← λ̄ h + B̄ u, λ̄ = e^{Δλ}, B̄ = (λ̄ − 1)/λ | y = 2 Re(C h) + D u |
| LRU | arXiv 2303.06349 | h ← λ̄ h + γ B u, λ̄ = e^{−f(ν) + iθ} | y = Re(C h) + D u |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssmdiag.errors import MapError
from ssmdiag.recurrence.maps import find_map
from ssmdiag.reparam.fit import advise
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.convolution import causal_convolution, linear, modal_states

RATE = 0.5
"""−Re λ of S4D-Lin at the start. The authors' `direct` arm starts at Re λ = +0.5, which grows."""
STEPS = (1e-3, 1e-1)
"""Δ at the start, log-uniform."""
RING = (0.5, 0.99)
"""|λ̄| of LRU at the start, uniform over the ring's area."""

Parameters = dict[str, Tensor]


class MapsOfArms:
    """The rate −Re λ of every arm, each through its own map."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.groups: dict[str, list[int]] = {}
        for position, arm in enumerate(arms):
            self.groups.setdefault(arm.param, []).append(position)
        order = [position for positions in self.groups.values() for position in positions]
        self.back = torch.tensor(order).argsort().tolist()

    def rates(self, weights: Tensor) -> Tensor:
        """Return f(w), (arm, …)."""
        if len(self.groups) == 1:
            return find_map(next(iter(self.groups)))(weights)
        parts = [find_map(name)(weights[positions]) for name, positions in self.groups.items()]
        return torch.cat(parts)[self.back]


class S4D:
    """Independent diagonal systems, one for each channel."""

    name = "s4d"
    title = "S4D"
    path = "stablessm_layers"
    rate = "kernel.log_A_real"
    eigenvalues = (rate, "kernel.A_imag")
    step: tuple[str, ...] = ("kernel.log_dt",)

    @staticmethod
    def start(arm: Arm, channels: int, modes: int, length: int, generator: torch.Generator) -> Parameters:
        """Return one arm's parameters, without the arm axis."""
        ranges = {
            "short": (1 / (10 * RATE), 1 / RATE),  # time constants 1/(RATE Δ) of 1 to 10 steps
            "long": (1 / (5 * RATE * length), 2 / (RATE * length)),  # from half the sequence to five of them
        }
        low, high = ranges.get(arm.init, STEPS)
        uniform = torch.rand(channels, generator=generator, dtype=torch.float64)
        rate = torch.full((channels, modes), RATE, dtype=torch.float64)
        return {
            "kernel.log_A_real": _weights_of(rate, arm, S4D.title),
            "kernel.A_imag": math.pi * torch.arange(modes).float().repeat(channels, 1),
            "kernel.log_dt": (math.log(low) + uniform * math.log(high / low)).float(),
            "kernel.C": torch.randn(channels, modes, 2, generator=generator) / math.sqrt(2),
            "D": torch.randn(channels, generator=generator),
        }

    @staticmethod
    def apply(p: Mapping[str, Tensor], maps: MapsOfArms, u: Tensor) -> Tensor:
        """Return K ∗ u + D u, channel by channel."""
        K = S4D.kernel(p, maps, u.shape[2])
        return causal_convolution(u, torch.cat([K[..., :1] + p["D"][..., None], K[..., 1:]], -1))

    @staticmethod
    def kernel(p: Mapping[str, Tensor], maps: MapsOfArms, length: int) -> Tensor:
        """Return K (arm, channel, lag) by the split t = qS + s; phases are formed in float64."""
        ell, weights = S4D.modes(p, maps)
        inner = math.isqrt(length - 1) + 1
        lags = torch.arange(inner, device=ell.device, dtype=torch.float64)
        starts = inner * torch.arange(-(-length // inner), device=ell.device, dtype=torch.float64)
        within = _stored((ell[..., None] * lags).exp(), p)
        across = _stored(weights[..., None] * (ell[..., None] * starts).exp(), p)
        # One real product: Re Σ a b = [Re a, −Im a] · [Re b, Im b].
        left = torch.cat([across.real, -across.imag], 2).mT
        right = torch.cat([within.real, within.imag], 2)
        return (2 * left @ right).flatten(2)[..., :length]

    @staticmethod
    def modes(p: Mapping[str, Tensor], maps: MapsOfArms) -> tuple[Tensor, Tensor]:
        """Return ℓ = Δλ and C B̄, (arm, channel, mode) complex128."""
        rate = maps.rates(p["kernel.log_A_real"].double())
        eigenvalues = torch.complex(-rate, p["kernel.A_imag"].double())
        ell = eigenvalues * p["kernel.log_dt"].double().exp()[..., None]
        # (e^ℓ − 1)/λ at λ = 0 is Δ: a direct rate may cross it.
        near = ell.abs() < 1e-6
        safe = eigenvalues.where(~near, 1.0)
        gain = (torch.expm1(ell) / safe).where(~near, p["kernel.log_dt"].double().exp()[..., None] * (1 + ell / 2))
        return ell, torch.view_as_complex(p["kernel.C"].double()) * gain


class LRU:
    """One state that all channels feed and read."""

    name = "lru"
    title = "LRU"
    path = "lru_layers"
    rate = "nu_log"
    eigenvalues = (rate, "theta_log")
    step: tuple[str, ...] = ()

    @staticmethod
    def start(arm: Arm, channels: int, modes: int, length: int, generator: torch.Generator) -> Parameters:
        """Return one arm's parameters, without the arm axis."""
        ranges = {  # the time constants of S4D's
            "short": (math.exp(-1), math.exp(-1 / 10)),
            "long": (math.exp(-2 / length), math.exp(-1 / (5 * length))),
        }
        low, high = ranges.get(arm.init, RING)
        radius = (low**2 + torch.rand(modes, generator=generator, dtype=torch.float64) * (high**2 - low**2)).sqrt()
        angle = math.pi / 2 * torch.rand(modes, generator=generator, dtype=torch.float64)
        scale = {"B": 1 / math.sqrt(2 * channels), "C": 1 / math.sqrt(modes)}
        shape = {"B": (modes, channels), "C": (channels, modes)}
        parts = {
            f"{letter}_{part}": scale[letter] * torch.randn(shape[letter], generator=generator)
            for letter in "BC"
            for part in ("re", "im")
        }
        return {
            "nu_log": _weights_of(-radius.log(), arm, LRU.title),
            "theta_log": angle.log().float(),
            "gamma_log": (0.5 * torch.log1p(-radius.square())).float(),
            **parts,
            "D": torch.randn(channels, generator=generator),
        }

    @staticmethod
    def apply(p: Mapping[str, Tensor], maps: MapsOfArms, u: Tensor) -> Tensor:
        """Return Re(C h) + D u."""
        ell = torch.complex(-maps.rates(p["nu_log"].double()), p["theta_log"].double().exp())
        gain = p["gamma_log"].exp()[..., None]
        into = torch.cat([gain * p["B_re"], gain * p["B_im"]], 1)
        drive = linear(u, into, steps_fastest=True).permute(0, 3, 1, 2)
        states = modal_states(ell, drive).permute(0, 2, 3, 1)
        out = linear(states, torch.cat([p["C_re"], -p["C_im"]], -1))
        return torch.addcmul(out, p["D"][:, None, None], u)


RECURRENCES: dict[str, type[S4D] | type[LRU]] = {layer.name: layer for layer in (S4D, LRU)}


def _stored(values: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Return complex numbers in the precision of the weights."""
    return values.to(torch.complex128 if p["kernel.C"].dtype == torch.float64 else torch.complex64)


def _weights_of(rates: Tensor, arm: Arm, title: str) -> Tensor:
    """Return f⁻¹(rates). Raises MapError where f does not reach them, or only where its gradient is zero."""
    map = find_map(arm.param)
    if bool((beyond := rates >= map.high).any()):
        drawn = "" if arm.init == "family" else f" with --init {arm.init}"
        raise MapError(
            f"{map.name}, f(w) = {map.formula}, cannot hold {int(beyond.sum()):,} of {rates.numel():,} rates that the "
            f"modes of {title} start at{drawn}, up to {float(rates.max()):.4g}.",
            expected=f"rates below {map.high:.4g} per unit of time",
            advice=advise(map, float(rates.max()), math.inf, False),
        )
    return map.inverse(rates).float()
