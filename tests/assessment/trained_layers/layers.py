"""Recurrent layers as published, in plain torch: parametrisation, tensor names and initialisation of each paper's code.

| family | paper | code | state |
|---|---|---|---|
| s4d | arXiv 2206.11893 | state-spaces/s4, models/s4/s4d.py | S4D-Lin, one for each channel |
| stablessm | arXiv 2311.14495 | radarFudan/StableSSM, `best` | the same under Re λ = −1/(w² + 0.5) |
| dss | arXiv 2203.14343 | ag1988/dss, DSS-exp | one spectrum, a step for each channel |
| s5 | arXiv 2208.04933 | lindermanlab/S5 | one state for all channels, halves of HiPPO-N |
| lru | arXiv 2303.06349 | minimal-LRU | one state for all channels, a ring |
| mamba | arXiv 2312.00752 | state-spaces/mamba | selective; read at the bias of Δ |

Every layer maps (batch, step, channel) to the same. `state_space` gives its recurrence in complex128 out of the saved
tensors, by the paper's formulas and by nothing of ssmdiag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Tensors = Mapping[str, NDArray[np.float32]]
Complex = NDArray[np.complex128]
STEPS = (1e-3, 1e-1)
"""Δ at the start, log-uniform."""


@dataclass(frozen=True)
class StateSpace:
    """h ← λ̄ h + B̄ u, y = κ Re(C h), in complex128."""

    decay: Complex
    """λ̄: (channel, mode), or (mode,) of one state for all channels."""
    drive: Complex
    """B̄: (channel, mode), or (mode, input)."""
    read: Complex
    """C: (channel, mode), or (output, mode)."""
    factor: float


class Layer(nn.Module):
    """A layer that says where it stands in a checkpoint and what its tensors mean."""

    path: ClassVar[str]
    """Name of the list of layers in the checkpoint."""
    recurrent: ClassVar[tuple[str, ...]]
    """Parameters with a smaller learning rate and without weight decay."""
    settings: ClassVar[dict[str, str]] = {}
    """Metadata that the checkpoint carries."""

    @staticmethod
    def state_space(tensors: Tensors) -> StateSpace:
        raise NotImplementedError


class Kernel(nn.Module):
    def __init__(self, channels: int, modes: int, rate: Tensor) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, modes, dtype=torch.complex64)))
        self.log_dt = nn.Parameter(_steps(channels).log())
        self.log_A_real = nn.Parameter(rate.expand(channels, modes).clone())
        self.A_imag = nn.Parameter(math.pi * torch.arange(modes).float().repeat(channels, 1))


class S4D(Layer):
    path = "layers"
    recurrent = ("kernel.log_dt", "kernel.log_A_real", "kernel.A_imag")
    start = math.log(0.5)

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.kernel = Kernel(channels, modes, torch.tensor(self.start))
        self.D = nn.Parameter(torch.randn(channels))

    @staticmethod
    def rate(weights: Tensor) -> Tensor:
        return weights.exp()

    def forward(self, u: Tensor) -> Tensor:
        own = self.kernel
        A = torch.complex(-self.rate(own.log_A_real), own.A_imag)
        step_A = A * own.log_dt.exp()[:, None]
        K = _kernel(2 * torch.view_as_complex(own.C) * torch.expm1(step_A) / A, step_A, u.shape[1])
        return _convolve(K, u) + self.D * u

    @classmethod
    def state_space(cls, tensors: Tensors) -> StateSpace:
        w = torch.from_numpy(tensors["kernel.log_A_real"]).double()
        A = -cls.rate(w).numpy() + 1j * tensors["kernel.A_imag"].astype(float)
        return _zero_order_hold(A, np.exp(tensors["kernel.log_dt"].astype(float))[:, None], _pair(tensors["kernel.C"]))


class StableSSM(S4D):
    path = "stablessm_layers"
    settings: ClassVar[dict[str, str]] = {"rate_map": "best"}
    start = math.sqrt(1 / 0.5 - 0.5)

    @staticmethod
    def rate(weights: Tensor) -> Tensor:
        return 1 / (weights.square() + 0.5)


class DSS(Layer):
    path = "layers"
    recurrent = ("Lambda_log_neg_re", "Lambda_im", "log_dt")

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.Lambda_log_neg_re = nn.Parameter(torch.full((modes,), math.log(0.5)))
        self.Lambda_im = nn.Parameter(_hippo_frequencies(2 * modes))
        self.log_dt = nn.Parameter(_steps(channels).log())
        self.W = nn.Parameter(torch.view_as_real(torch.randn(1, channels, modes, dtype=torch.complex64)))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        A = torch.complex(-self.Lambda_log_neg_re.exp(), self.Lambda_im)
        step_A = A * self.log_dt.exp()[:, None]
        K = _kernel(torch.view_as_complex(self.W)[0] * torch.expm1(step_A) / A, step_A, u.shape[1])
        return _convolve(K, u) + self.D * u

    @staticmethod
    def state_space(tensors: Tensors) -> StateSpace:
        A = -np.exp(tensors["Lambda_log_neg_re"].astype(float)) + 1j * tensors["Lambda_im"].astype(float)
        step = np.exp(tensors["log_dt"].astype(float))[:, None]
        return _zero_order_hold(A, step, _pair(tensors["W"])[0], factor=1.0)


class S5(Layer):
    path = "layers"
    recurrent = ("Lambda_re", "Lambda_im", "log_step", "B")

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.Lambda_re = nn.Parameter(torch.full((modes,), -0.5))
        self.Lambda_im = nn.Parameter(-_hippo_frequencies(2 * modes))
        self.log_step = nn.Parameter(_steps(modes).log()[:, None])
        self.B = nn.Parameter(torch.randn(modes, channels, 2) / math.sqrt(2 * channels))
        self.C = nn.Parameter(torch.randn(channels, modes, 2) / math.sqrt(2 * modes))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        A = torch.complex(self.Lambda_re, self.Lambda_im)
        step_A = A * self.log_step[:, 0].exp()
        gain = torch.expm1(step_A) / A
        return _shared_state(step_A, gain[:, None] * torch.view_as_complex(self.B), 2 * _as_complex(self.C), u, self.D)

    @staticmethod
    def state_space(tensors: Tensors) -> StateSpace:
        A = tensors["Lambda_re"].astype(float) + 1j * tensors["Lambda_im"].astype(float)
        decay = np.exp(A * np.exp(tensors["log_step"].astype(float))[:, 0])
        return StateSpace(decay, ((decay - 1) / A)[:, None] * _pair(tensors["B"]), _pair(tensors["C"]), 2.0)


class LRU(Layer):
    path = "layers"
    recurrent = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im")

    def __init__(self, channels: int, modes: int, ring: tuple[float, float] = (0.5, 0.999)) -> None:
        super().__init__()
        low, high = ring
        radius = (torch.rand(modes) * (high**2 - low**2) + low**2).sqrt()
        self.nu_log = nn.Parameter((-radius.log()).log())
        self.theta_log = nn.Parameter((math.tau * torch.rand(modes)).log())
        self.gamma_log = nn.Parameter((1 - radius**2).log() / 2)
        self.B_re = nn.Parameter(torch.randn(modes, channels) / math.sqrt(2 * channels))
        self.B_im = nn.Parameter(torch.randn(modes, channels) / math.sqrt(2 * channels))
        self.C_re = nn.Parameter(torch.randn(channels, modes) / math.sqrt(modes))
        self.C_im = nn.Parameter(torch.randn(channels, modes) / math.sqrt(modes))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        ell = torch.complex(-self.nu_log.exp(), self.theta_log.exp())
        drive = self.gamma_log.exp()[:, None] * torch.complex(self.B_re, self.B_im)
        return _shared_state(ell, drive, torch.complex(self.C_re, self.C_im), u, self.D)

    @staticmethod
    def state_space(tensors: Tensors) -> StateSpace:
        w = {name: values.astype(float) for name, values in tensors.items()}
        decay = np.exp(-np.exp(w["nu_log"]) + 1j * np.exp(w["theta_log"]))
        drive = np.exp(w["gamma_log"])[:, None] * (w["B_re"] + 1j * w["B_im"])
        return StateSpace(decay, drive, w["C_re"] + 1j * w["C_im"], 1.0)


class Mamba(Layer):
    """The mixer of Mamba-1, its scan step by step."""

    path = "layers"
    recurrent = ("A_log", "dt_proj.bias")

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        inner, self.rank = 2 * channels, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * modes, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        step = _steps(inner)
        self.dt_proj.bias.data = step + torch.log(-torch.expm1(-step))
        self.A_log = nn.Parameter(torch.arange(1, modes + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        x, gate = self.in_proj(u).chunk(2, -1)
        x = functional.silu(self.conv1d(x.mT)[..., : u.shape[1]].mT)
        modes = self.A_log.shape[1]
        delta, B, C = self.x_proj(x).split([self.rank, modes, modes], -1)
        delta = functional.softplus(self.dt_proj(delta))
        decay = (delta[..., None] * -self.A_log.exp()).exp()
        drive = (delta * x)[..., None] * B[:, :, None]
        state, states = torch.zeros_like(drive[:, 0]), []
        for own, new in zip(decay.unbind(1), drive.unbind(1), strict=True):
            state = torch.addcmul(new, own, state)
            states.append(state)
        y = torch.einsum("tbcn,btn->btc", torch.stack(states), C) + self.D * x
        return self.out_proj(y * functional.silu(gate))

    @staticmethod
    def state_space(tensors: Tensors) -> StateSpace:
        """Return the retention at the bias of Δ: the mean over a channel's modes of λ̄^t."""
        step = np.logaddexp(0.0, tensors["dt_proj.bias"].astype(float))[:, None]
        decay = np.exp(-step * np.exp(tensors["A_log"].astype(float))).astype(complex)
        return StateSpace(decay, np.ones_like(decay), np.full_like(decay, 1 / decay.shape[1]), 1.0)


FAMILIES: dict[str, type[Layer]] = {
    "s4d": S4D,
    "stablessm": StableSSM,
    "dss": DSS,
    "s5": S5,
    "lru": LRU,
    "mamba": Mamba,
}


def _steps(count: int) -> Tensor:
    low, high = (math.log(step) for step in STEPS)
    return torch.empty(count).uniform_(low, high).exp()


def _hippo_frequencies(size: int) -> Tensor:
    """Return the positive Im λ of HiPPO-LegS's normal part, size/2 of them, ascending."""
    root = np.sqrt(2 * np.arange(size) + 1.0)
    skew = np.tril(np.outer(root, root), -1) / 2
    values = np.linalg.eigvals(skew.T - skew).imag
    return torch.from_numpy(np.sort(values[values > 0])).float()


def _kernel(weights: Tensor, ell: Tensor, length: int) -> Tensor:
    """Return Re Σ_n w_n e^{ℓ_n t}, (channel, lag)."""
    return torch.einsum("hn,hnl->hl", weights, (ell[..., None] * torch.arange(length)).exp()).real


def _convolve(K: Tensor, u: Tensor) -> Tensor:
    size = 2 * u.shape[1]
    spectrum = torch.fft.rfft(u, n=size, dim=1) * torch.fft.rfft(K.T, n=size, dim=0)
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, : u.shape[1]]


def _shared_state(ell: Tensor, drive: Tensor, read: Tensor, u: Tensor, D: Tensor) -> Tensor:
    """Return Re(C h) + D u of one state that all channels feed: every mode's drive convolved with λ̄^t."""
    size = 2 * u.shape[1]
    powers = (torch.arange(u.shape[1])[:, None] * ell).exp()
    driven = u.to(torch.complex64) @ drive.T
    spectrum = torch.fft.fft(driven, n=size, dim=1) * torch.fft.fft(powers, n=size, dim=0)
    return (torch.fft.ifft(spectrum, dim=1)[:, : u.shape[1]] @ read.T).real + D * u


def _as_complex(values: Tensor) -> Tensor:
    return torch.view_as_complex(values)


def _pair(values: NDArray[np.float32]) -> Complex:
    return values[..., 0].astype(float) + 1j * values[..., 1].astype(float)


def _zero_order_hold(A: Complex, step: NDArray[np.float64], read: Complex, factor: float = 2.0) -> StateSpace:
    decay = np.exp(A * step)
    return StateSpace(decay, (decay - 1) / A, read, factor)
