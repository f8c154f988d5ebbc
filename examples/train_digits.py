"""Train a small S4D or LRU classifier on sequential digits, saving checkpoints on the way.

    pip install scikit-learn
    python examples/train_digits.py --model s4d --output examples/s4d-digits
    python examples/train_digits.py --model lru --output examples/lru-digits

The digits are scikit-learn's 8×8 images, read pixel by pixel as sequences of 64 steps. The class is
read off the last step alone, so the layers must carry what they saw of the first row 63 steps far.
These two commands wrote the checkpoints beside this file, in a minute or two of one CPU core each.

| model | paper | one step of one mode | output |
|---|---|---|---|
| S4D, per channel | arXiv 2206.11893 | h ← λ̄ h + B̄ u, λ̄ = exp(ΔA), B̄ = (λ̄ − 1)/A | y = 2 Re(C h) + D u |
| LRU, all to all | arXiv 2303.06349 | h ← λ̄ h + γ B u, λ̄ = exp(−e^ν + i e^θ), γ = e^gamma_log | y = Re(C h) + D u |

Tensors are named as in the published code (models/s4/s4d.py of state-spaces/s4; minimal-LRU), so that
`ssmdiag inspect` reads these files as it would anybody else's.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn
from torch.nn import functional

TASK = "sequential digits"
SEQUENCE_LENGTH = 64
CLASSES = 10
BATCH = 64
WARM_UP = 50
SAVE_AT = frozenset({0, 100, 250, 500, 1000, 1500})
"""Steps after which a checkpoint is written; the last step always is."""

Split = tuple[Tensor, Tensor]
"""Sequences (sample, time, 1) in [0, 1] and their classes (sample,)."""


class S4DKernel(nn.Module):
    """Convolution kernels of `channels` independent S4D systems; one of each conjugate pair is stored."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, modes, dtype=torch.complex64)))
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_A_real = nn.Parameter(torch.full((channels, modes), math.log(0.5)))  # S4D-Lin: A_n = −1/2 + iπn
        self.A_imag = nn.Parameter(math.pi * torch.arange(modes).float().repeat(channels, 1))

    def forward(self, length: int) -> Tensor:
        """Return K (channel, lag)."""
        # The phase Im(ΔA)·t reaches hundreds of radians: in float32 it would keep five digits.
        A = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        step_A = A * self.log_dt.double().exp()[:, None]
        output = torch.view_as_complex(self.C) * torch.expm1(step_A) / A
        powers = (step_A[..., None] * torch.arange(length)).exp()
        return 2 * torch.einsum("hn,hnl->hl", output, powers).real.float()


class S4D(nn.Module):
    """y = K ∗ u + D u, channel by channel; (batch, time, channel) → the same."""

    path = "s4_layers"
    recurrent = ("kernel.log_dt", "kernel.log_A_real", "kernel.A_imag")

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.kernel = S4DKernel(channels, modes)
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        size = 2 * u.shape[1]  # zero padding turns the circular convolution into a causal one
        K = torch.fft.rfft(self.kernel(u.shape[1]).T, n=size, dim=0)
        y = torch.fft.irfft(torch.fft.rfft(u, n=size, dim=1) * K, n=size, dim=1)
        return y[:, : u.shape[1]] + self.D * u


class LRU(nn.Module):
    """h_t = λ̄ h_{t−1} + γ B u_t, y = Re(C h) + D u; all inputs feed all modes, no conjugates implied."""

    path = "lru_layers"
    recurrent = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im")

    def __init__(self, channels: int, modes: int, r_min: float = 0.5, r_max: float = 0.99) -> None:
        super().__init__()
        radius = (torch.rand(modes) * (r_max**2 - r_min**2) + r_min**2).sqrt()  # uniform over the ring's area
        self.nu_log = nn.Parameter((-radius.log()).log())
        # Rows repeat every 8 steps: frequencies up to π/2 hold that period and its overtone.
        self.theta_log = nn.Parameter((math.pi / 2 * torch.rand(modes)).log())
        self.gamma_log = nn.Parameter((1 - radius**2).log() / 2)
        self.B_re = nn.Parameter(torch.randn(modes, channels) / math.sqrt(2 * channels))
        self.B_im = nn.Parameter(torch.randn(modes, channels) / math.sqrt(2 * channels))
        self.C_re = nn.Parameter(torch.randn(channels, modes) / math.sqrt(modes))
        self.C_im = nn.Parameter(torch.randn(channels, modes) / math.sqrt(modes))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        size = 2 * u.shape[1]
        ell = torch.complex(-self.nu_log.double().exp(), self.theta_log.double().exp())
        powers = (torch.arange(u.shape[1])[:, None] * ell).exp().to(torch.complex64)
        drive = u.to(torch.complex64) @ torch.complex(self.B_re, self.B_im).T * self.gamma_log.exp()
        # A mode's state is its drive convolved with λ̄ᵗ: the whole sequence at once.
        spectrum = torch.fft.fft(drive, n=size, dim=1) * torch.fft.fft(powers, n=size, dim=0)
        h = torch.fft.ifft(spectrum, dim=1)[:, : u.shape[1]]
        return (h @ torch.complex(self.C_re, self.C_im).T).real + self.D * u


MODELS: dict[str, type[S4D] | type[LRU]] = {"s4d": S4D, "lru": LRU}


class Classifier(nn.Module):
    """Encoder, residual blocks of norm → recurrence → GELU → GLU, and a linear readout of the last step."""

    def __init__(self, model: str, channels: int = 32, modes: int = 20, depth: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        layer = MODELS[model]
        self.encoder = nn.Linear(1, channels)
        self.add_module(layer.path, nn.ModuleList(layer(channels, modes) for _ in range(depth)))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.mixers = nn.ModuleList(nn.Linear(channels, 2 * channels) for _ in range(depth))
        self.decoder = nn.Linear(channels, CLASSES)
        self.dropout = nn.Dropout(dropout)
        self.layers_path = layer.path

    @property
    def layers(self) -> list[S4D | LRU]:
        return list(self.get_submodule(self.layers_path))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for layer, norm, mixer in zip(self.layers, self.norms, self.mixers, strict=True):
            y = self.dropout(functional.gelu(layer(norm(x))))
            x = x + self.dropout(functional.glu(mixer(y), dim=-1))
        return self.decoder(x[:, -1])


def train(model: str, train_set: Split, test_set: Split, steps: int, seed: int, output: Path) -> Classifier:
    """Return the trained classifier; write its checkpoints and a config.json to `output`."""
    torch.manual_seed(seed)
    classifier = Classifier(model)
    # Weight decay would pull log-rates to 0, a rate of one nat per step: it would shorten memory.
    recurrent = tuple(f".{name}" for name in MODELS[model].recurrent)
    slow = [p for name, p in classifier.named_parameters() if name.endswith(recurrent)]
    rest = [p for name, p in classifier.named_parameters() if not name.endswith(recurrent)]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "lr": 1e-3, "weight_decay": 0.0}, {"params": rest, "lr": 4e-3, "weight_decay": 0.05}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2
    )
    settings = {"model": model, "task": TASK, "seq_len": SEQUENCE_LENGTH, "seed": seed, "steps": steps}
    output.mkdir(parents=True, exist_ok=True)
    replace(output / "config.json", json.dumps(settings, indent=2).encode() + b"\n")
    sequences, classes = train_set
    batches = shuffled_batches(len(classes))
    for step in range(steps + 1):
        if step in SAVE_AT or step == steps:
            reached = f"{accuracy(classifier, test_set):.4f}"
            metadata = {"step": str(step), "task": TASK, "accuracy": reached}
            replace(output / f"step-{step:05d}.safetensors", as_safetensors(classifier.state_dict(), metadata))
            print(f"step {step:5d}  test accuracy {reached}", file=sys.stderr)
        if step < steps:
            batch = next(batches)
            loss = functional.cross_entropy(classifier(sequences[batch]), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier


def shuffled_batches(count: int) -> Iterator[Tensor]:
    """Yield indices of batches for ever, epoch after epoch."""
    while True:
        yield from torch.randperm(count).split(BATCH)


def accuracy(classifier: Classifier, data: Split) -> float:
    """Return the share of sequences put into the right class."""
    sequences, classes = data
    classifier.eval()
    with torch.no_grad():
        right = classifier(sequences).argmax(-1) == classes
    classifier.train()
    return float(right.double().mean())


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)


def load_sequential_digits() -> tuple[Split, Split]:
    """Return scikit-learn's digits as training and test sequences; a fifth is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    x_train, x_test, y_train, y_test = (torch.as_tensor(part) for part in parts)
    return (x_train.float()[..., None], y_train), (x_test.float()[..., None], y_test)


def main(
    model: Annotated[str, typer.Option(help="s4d or lru")],
    output: Annotated[Path, typer.Option(help="directory for the checkpoints")],
    steps: Annotated[int, typer.Option(min=0)] = 2000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train on sequential digits; the same seed gives the same weights."""
    if model not in MODELS:
        raise typer.BadParameter(f"{model}: expected one of {', '.join(MODELS)}", param_hint="--model")
    torch.set_num_threads(1)
    train_set, test_set = load_sequential_digits()
    train(model, train_set, test_set, steps, seed, output)


if __name__ == "__main__":
    typer.run(main)
