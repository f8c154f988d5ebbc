"""Arrays: sequences of the user's own, from an .npz file.

| array | shape and type | meaning |
|---|---|---|
| x | (sample, step) or (sample, step, feature), floating point | numbers |
| x | (sample, step), integer | tokens, from 0 |
| y | (sample,), integer | a class, read at the last step |
| y | (sample, step), integer | a class at every step |
| y | (sample,) or (sample, output), floating point | numbers, read at the last step |
| y | (sample, step) or (sample, step, output), floating point | numbers at every step |

A fifth of the samples, drawn by the seed, is for validation, unless x_validation and y_validation are there.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssmdiag.checkpoint.budget import open_regular, shortened
from ssmdiag.checkpoint.formats.npz_file import BROKEN
from ssmdiag.checkpoint.formats.zip_file import open_zip
from ssmdiag.checkpoint.sources import LocalFile
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.tasks.interface import Task, TaskData, TaskSettings

NPY = b"\x93NUMPY"
MOST_CODES = 100_000
"""More tokens or classes than this are numbers that were stored as integers."""
PART = 5
"""One sample in this many is for validation."""


def make(settings: TaskSettings) -> TaskData:
    """Return the file's sequences. Raises ConfigurationError for shapes, types and values no model can learn from."""
    path = settings.path
    if path is None:
        raise ConfigurationError("--task arrays needs arrays.", expected="--data FILE.npz with x and y")
    x, y, *validation = (_tensor(path, name, array) for name, array in _read(path).items())
    if validation:
        held_x, held_y = validation
        _require_alike(path, x, y, held_x, held_y)
        x, y = torch.cat([held_x, x]), torch.cat([held_y, y])
    x = x[..., None] if x.ndim == 2 and x.is_floating_point() else x
    per_step = _require_shapes(path, x, y)
    if settings.length is not None:
        x, y = _shortened(path, x, y, settings.length, per_step)
    held = len(held_x) if validation else max(1, len(x) // PART)
    if not validation:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(settings.seed))
        x, y = x[order], y[order]
    count = min(settings.samples or len(x), len(x) - held)
    classes = None if y.is_floating_point() else _codes(path, "y", y)
    if classes is None and y.ndim == 1 + per_step:
        y = y[..., None]
    return TaskData(
        x[held:][:count],
        y[held:][:count],
        x[:held],
        y[:held],
        "squared error" if classes is None else "cross-entropy",
        "every step" if per_step else "last step",
        outputs=classes or y.shape[-1],
        vocabulary=None if x.is_floating_point() else _codes(path, "x", x),
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = _arrays(path)
    except BROKEN as error:
        reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigurationError(
            f"{path}: cannot be read as arrays ({shortened(reason, 200)}).",
            expected="an .npz of numbers: numpy.savez(FILE, x=…, y=…)",
        ) from error
    names = ["x", "y"] + [f"{name}_validation" for name in "xy"] * any(key.endswith("_validation") for key in arrays)
    missing = [name for name in names if name not in arrays]
    if missing:
        there = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise ConfigurationError(
            f"{path} has no {' and no '.join(missing)}; it has {there}.", expected=" and ".join(names)
        )
    return {name: arrays[name] for name in names}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive by name; none of a .npy, whose array has no name."""
    with open_regular(path) as file:
        if file.read(len(NPY)) == NPY:
            return {}
    with (
        open_zip(LocalFile(path)),
        warnings.catch_warnings(action="ignore"),
        np.load(path, allow_pickle=False) as content,
    ):
        return {name: content[name] for name in content.files}


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise ConfigurationError(f"{path}: {name} is {array.dtype}.", expected="floating-point or integer numbers")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        wrong = ~np.isfinite(single)
        if wrong.any():
            where = ", ".join(map(str, np.unravel_index(int(wrong.argmax()), array.shape)))
            raise ConfigurationError(
                f"{path}: {int(wrong.sum()):,} of {array.size:,} numbers in {name} are not finite in float32, "
                f"the first of them {name}[{where}].",
                advice="leave those samples out, or fill the gaps.",
            )
        return torch.from_numpy(single)
    return torch.from_numpy(array.astype(np.int64))


def _require_shapes(path: Path, x: Tensor, y: Tensor) -> bool:
    """Return whether there is a target at every step."""
    codes = not x.is_floating_point()
    if x.ndim != (2 if codes else 3) or 0 in x.shape:
        kind = "integer" if codes else "floating point"
        raise ConfigurationError(
            f"{path}: x is {kind} of shape {tuple(x.shape)}.",
            expected="(sample, step) tokens" if codes else "(sample, step) or (sample, step, feature)",
        )
    if len(x) < 2 or len(y) != len(x):
        raise ConfigurationError(
            f"{path}: x has {len(x):,} samples, y {len(y) if y.ndim else 0:,}.",
            expected="as many in both, and 2 at least",
        )
    per_step = y.ndim >= 2 and y.shape[1] == x.shape[1]
    classes = not y.is_floating_point()
    if y.ndim > (1 if classes else 2) + per_step or 0 in y.shape:
        steps = x.shape[1]
        expected = (
            f"({len(x)},) or ({len(x)}, {steps}) classes"
            if classes
            else f"({len(x)},), ({len(x)}, outputs), ({len(x)}, {steps}) or ({len(x)}, {steps}, outputs)"
        )
        raise ConfigurationError(
            f"{path}: y has shape {tuple(y.shape)} and x {tuple(x.shape)}.", expected=f"{expected} in y"
        )
    return per_step


def _require_alike(path: Path, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> None:
    for name, train, held in (("x", x, held_x), ("y", y, held_y)):
        if train.shape[1:] != held.shape[1:] or train.dtype != held.dtype or not len(held):
            raise ConfigurationError(
                f"{path}: {name} is {train.dtype} {tuple(train.shape)}, {name}_validation {held.dtype} "
                f"{tuple(held.shape)}.",
                expected="the same but for the number of samples",
            )
    if len(held_x) != len(held_y):
        raise ConfigurationError(f"{path}: x_validation has {len(held_x):,} samples, y_validation {len(held_y):,}.")


def _shortened(path: Path, x: Tensor, y: Tensor, length: int, per_step: bool) -> tuple[Tensor, Tensor]:
    """Return the first steps; where one answer is read at the end, the last ones."""
    if length > x.shape[1]:
        raise ConfigurationError(
            f"--length {length}: {path} has {x.shape[1]} steps.", expected=f"{x.shape[1]} or fewer"
        )
    return (x[:, :length], y[:, :length]) if per_step else (x[:, -length:], y)


def _codes(path: Path, name: str, values: Tensor) -> int:
    """Return the number of tokens or classes."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= MOST_CODES:
        raise ConfigurationError(
            f"{path}: {name} is integer, from {low:,} to {high:,}.",
            expected=f"{'tokens' if name == 'x' else 'classes'} from 0 to {MOST_CODES - 1:,}",
            advice=f"store {name} as floating point if these are numbers.",
        )
    return high + 1


TASKS = (Task("arrays", "sequences x and targets y of --data FILE.npz", "the user's", make, needs_path=True),)
