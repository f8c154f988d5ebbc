"""Models and data as a user of `ssmdiag retrain --model --data` writes them; an LRU of another's package in it."""

from __future__ import annotations

import torch
from LRU_pytorch import LRU
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, MODES, STEPS = 3, 4, 12


class BatchedLRU(LRU):
    """The package's layer, which steps through the sequences of a batch one by one, with all of them at once."""

    def forward(self, x: Tensor) -> Tensor:
        eigenvalue = torch.complex(-self.nu_log.exp(), self.theta_log.exp()).exp()
        drive = x.to(self.B.dtype) @ (self.gamma_log.exp()[:, None] * self.B).mT
        states = [drive[:, 0]]
        for u in drive.unbind(1)[1:]:
            states.append(eigenvalue * states[-1] + u)
        return (torch.stack(states, 1) @ self.C.mT).real + x @ self.D.mT


class Net(nn.Module):
    """Encoder, LRU, decoder: (batch, step, 1) → (batch, step, outputs)."""

    def __init__(self, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, WIDTH)
        self.lru = BatchedLRU(WIDTH, WIDTH, MODES, max_phase=1.0)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.dropout(nn.functional.gelu(self.lru(self.encoder(x)))))


def regressor() -> nn.Module:
    return Net()


def noisy() -> nn.Module:
    return Net(dropout=0.3)


def sequences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, STEPS, 1, generator=torch.Generator().manual_seed(seed))
    return x, 0.3 * x.cumsum(1)


def pairs() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return sequences(22, 1), sequences(9, 2)


def absolute(answers: Tensor, targets: Tensor) -> Tensor:
    return (answers - targets).abs().mean()


def loaders() -> tuple[object, object, object]:
    """Shuffled by the global generator, as most loaders are, with a short batch at the end."""
    train, held_out = TensorDataset(*sequences(22, 1)), TensorDataset(*sequences(9, 2))
    return DataLoader(train, batch_size=8, shuffle=True), DataLoader(held_out, batch_size=4), absolute
