"""A checkpoint of the built-in model to continue from: its sizes, its weights, and those weights under another map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.errors import CheckpointError, ConfigurationError, MapError
from ssmdiag.recurrence.maps import find_map
from ssmdiag.reparam.fit import advise
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.model import ModelSettings, shapes_of
from ssmdiag.retrain.recurrences import RECURRENCES, S4D
from ssmdiag.retrain.sources import refuse_nan
from ssmdiag.retrain.tasks import TaskData

_UNCHANGED = "give a step-….safetensors as `ssmdiag retrain` saved it."


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """Weights that a run of the built-in model saved."""

    path: Path
    settings: ModelSettings
    tensors: Mapping[str, Tensor]
    map: str
    """Map the rates of the file go through."""
    step: int | None
    """Steps it had been trained for."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know."""
        trained = f" after {self.step:,} steps" if self.step is not None else ""
        return (f"all arms start with the weights of {self.path}{trained}; seeds differ in their batches",)

    def weights(self, param: str) -> dict[str, Tensor]:
        """Return the weights with their rates through this map: the same function, to float32 rounding.

        Raises MapError where the map cannot hold the rates, and says which b of best can.
        """
        weights = dict(self.tensors)
        if param == self.map:
            return weights
        old, new = find_map(self.map), find_map(param)
        names = [name for name in weights if name.endswith(f".{RECURRENCES[self.settings.recurrence].rate}")]
        rates = {name: old(weights[name].double()) for name in names}
        every = torch.cat([rate.flatten() for rate in rates.values()])
        if not (held := new.holds(every)).all():
            wrong = every[~held]
            raise MapError(
                f"{new.name}, f(w) = {new.formula}, cannot hold {len(wrong):,} of {len(every):,} rates of {self.path}, "
                f"from {float(wrong.min()):.4g} to {float(wrong.max()):.4g}.",
                expected=f"values in ({new.low:g}, {new.high:g}{']' if new.reaches_high else ')'}",
                advice=advise(new, float(wrong.max()), math.inf, bool((wrong <= 0).any())),
            )
        return weights | {name: new.inverse(rate).to(weights[name].dtype) for name, rate in rates.items()}

    def require_fit(self, arms: Sequence[Arm], data: TaskData) -> None:
        """Raise ConfigurationError where the task has other inputs or outputs, MapError where a map does not reach."""
        encoder, decoder = self.tensors["encoder.weight"], self.tensors["decoder.weight"]
        own = None if "encoder.bias" in self.tensors else len(encoder)
        has, asked = (
            f"{f'{tokens} tokens' if tokens else f'{features} features'} and {outputs} outputs"
            for tokens, features, outputs in (
                (own, encoder.shape[1], len(decoder)),
                (data.vocabulary, data.features, data.outputs),
            )
        )
        if has != asked:
            raise ConfigurationError(
                f"{self.path} was trained with {has}; the task has {asked}.",
                expected="the task it was trained on, or one of the same shape",
            )
        for arm in arms:
            if arm.init != "family":
                raise ConfigurationError(
                    f"--init {arm.init}: {self.path} starts with the memory it has.", advice="leave out --init or PATH."
                )
            self.weights(arm.param)


def read_starting_point(path: Path) -> StartingPoint:
    """Return a checkpoint that `ssmdiag retrain` saved of its built-in model.

    Raises CheckpointError for any other file, LayerError where a weight of it is NaN.
    """
    checkpoint = read_checkpoint(path)
    tensors = {tensor.stored_name: tensor.load() for tensor in checkpoint.values()}
    depths = {
        name: sum(key.startswith(f"{layer.path}.") and key.endswith(f".{layer.rate}") for key in tensors)
        for name, layer in RECURRENCES.items()
    }
    name = next((name for name, depth in depths.items() if depth), None)
    map = checkpoint.settings.get("rate_map")
    if name is None or not isinstance(map, str) or not {"encoder.weight", "decoder.weight"} <= tensors.keys():
        if map is None and (path.name.startswith("step-") or "arm" in checkpoint.settings):
            raise CheckpointError(
                f"{path}: a checkpoint of a model of your own, not of the built-in one.",
                advice=f"name what builds the model as well: {path} --model package.module:function",
            )
        raise CheckpointError(
            f"{path}: {len(checkpoint)} tensors ({', '.join(list(checkpoint)[:3])}, …), not those of the built-in "
            "model with the map of its rates.",
            expected="a step-….safetensors that `ssmdiag retrain` saved, or a directory of transformers",
            advice="build any other model in a function: --model package.module:function.",
        )
    refuse_nan(str(path), tensors)
    find_map(map)
    settings = _settings_of(path, tensors, name, depths[name])
    return StartingPoint(path, settings, tensors, map, checkpoint.train_step)


def _settings_of(path: Path, tensors: Mapping[str, Tensor], recurrence: str, depth: int) -> ModelSettings:
    """Return the sizes of the model. Raises CheckpointError where a tensor of it is absent, or of another shape."""
    layer = RECURRENCES[recurrence]
    rate = f"{layer.path}.0.{layer.rate}"
    axes = {"encoder.weight": 2, "decoder.weight": 2, rate: 2 if recurrence == S4D.name else 1}
    for name, count in axes.items():
        if name not in tensors or tensors[name].ndim != count or 0 in tensors[name].shape:
            seen = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is not there"
            raise CheckpointError(
                f"{path}: {name} {seen}.", expected=f"{count} ax{'es' if count > 1 else 'is'}", advice=_UNCHANGED
            )
    encoder, decoder = tensors["encoder.weight"], tensors["decoder.weight"]
    settings = ModelSettings(recurrence, decoder.shape[1], tensors[rate].shape[-1], depth)
    tokens = "encoder.bias" not in tensors and encoder.shape[1] == settings.width
    expected = shapes_of(settings, encoder.shape[1], len(decoder), len(encoder) if tokens else None)
    wrong = [
        f"{name} {tuple(tensors[name].shape)}, not {tuple(shape)}" if name in tensors else f"no {name}"
        for name, shape in expected.items()
        if name not in tensors or tensors[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} of {len(expected)} tensors do not fit: {'; '.join(wrong[:3])}.",
            expected=f"those of {settings.title}",
            advice=_UNCHANGED,
        )
    return settings
