"""Small models trained on the tasks of `ssmdiag retrain`: encoder → blocks of norm, recurrence, GELU, GLU → decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task
from tests.assessment.trained_layers.layers import FAMILIES, Layer

TASKS = ("lf-poly", "delay", "digits")
LENGTHS = {"lf-poly": 256, "delay": 256}
"""Steps of a sequence; digits have 64."""
SAMPLES = 1_600
BATCH = 8
WARM_UP = 50
LR, RECURRENT_LR, WEIGHT_DECAY = 4e-3, 1e-3, 0.01


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    channels: int = 16
    modes: int = 16
    depth: int = 2


class Model(nn.Module):
    """A stack of one family's layers."""

    def __init__(self, family: str, data: TaskData, sizes: Sizes) -> None:
        super().__init__()
        layer: type[Layer] = FAMILIES[family]
        width, depth = sizes.channels, range(sizes.depth)
        self.last = data.read_out == "last step"
        self.encoder = nn.Linear(data.features, width)
        # Of Mamba's 2 × channels, half the modes each.
        modes = sizes.modes // 2 if family == "mamba" else sizes.modes
        self.add_module(layer.path, nn.ModuleList(layer(width, modes) for _ in depth))
        self.recurrences = layer.path
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in depth)
        self.mixers = nn.ModuleList(nn.Linear(width, 2 * width) for _ in depth)
        self.decoder = nn.Linear(width, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for norm, layer, mixer in zip(self.norms, self.get_submodule(self.recurrences), self.mixers, strict=True):
            x = x + functional.glu(mixer(functional.gelu(layer(norm(x)))), -1)
        return self.decoder(x[:, -1] if self.last else x)


@dataclass(frozen=True)
class Trained:
    """A trained model's file, and what training did."""

    path: Path
    family: str
    task: str
    length: int
    """Steps of a sequence."""
    start: float
    """Validation loss before training."""
    end: float
    """And after it."""


def data_of(task: str) -> TaskData:
    """Return a task's sequences."""
    samples = SAMPLES if task in LENGTHS else None
    return find_task(task).make(TaskSettings(length=LENGTHS.get(task), samples=samples))


def train(family: str, task: str, folder: Path, *, steps: int = 1000, sizes: Sizes | None = None) -> Trained:
    """Train a model for so many steps and save it; the same arguments give the same weights."""
    data = data_of(task)
    torch.manual_seed(0)
    model = Model(family, data, sizes or Sizes())
    slow = tuple(f".{name}" for name in FAMILIES[family].recurrent)
    named = list(model.named_parameters())
    optimiser = torch.optim.AdamW([
        {"params": [p for name, p in named if name.endswith(slow)], "lr": RECURRENT_LR, "weight_decay": 0.0},
        {"params": [p for name, p in named if not name.endswith(slow)], "lr": LR, "weight_decay": WEIGHT_DECAY},
    ])  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    start = _validation_loss(model, data)
    for _ in range(steps):
        batch = torch.randint(len(data.inputs), (BATCH,))
        loss = _loss(model(data.inputs[batch]), data.targets[batch], data)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    end = _validation_loss(model, data)
    path = folder / f"{family}-{task}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"family": family, "task": task, "length": str(data.length), "start": str(start), "end": str(end)}
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path, about | FAMILIES[family].settings)
    return read_trained(path)


def read_trained(path: Path) -> Trained:
    """Return what a file that `train` wrote says of itself."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
    losses = {name: float(about[name]) for name in ("start", "end")}
    return Trained(path, about["family"], about["task"], int(about["length"]), **losses)


def _loss(answers: Tensor, targets: Tensor, data: TaskData) -> Tensor:
    if data.loss == "cross-entropy":
        return functional.cross_entropy(answers, targets)
    return functional.mse_loss(answers, targets)


@torch.no_grad()
def _validation_loss(model: Model, data: TaskData) -> float:
    some = slice(256)
    return float(_loss(model(data.validation_inputs[some]), data.validation_targets[some], data))
