"""The user's own functions: `--model package.module:function` and `--data package.module:function`.

| function | takes | returns |
|---|---|---|
| model | nothing | an nn.Module with a recurrence `ssmdiag families` lists |
| data | nothing | `TaskData`, or (train, validation), or (train, validation, loss) |

train and validation are each (inputs, targets), of which batches of --batch are drawn, or an iterable of such batches
(a DataLoader, a list) that can be read more than once. inputs: a tensor, or a tuple or mapping of
tensors, samples along the first axis; targets: a tensor. loss: loss(what the model returned, targets) → mean over
samples, or one of the words "squared error" (what floating-point targets get) and "cross-entropy" (integer ones).
Both are called with random numbers that --seed decides, and put back where they were.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.batches import (
    Batch,
    Loss,
    SampledBatches,
    as_batch,
    describe,
    is_batch,
    loss_of_nothing,
    require_numbers,
)
from ssmdiag.retrain.seeding import seeded
from ssmdiag.retrain.streamed_batches import StreamedBatches, first_batch
from ssmdiag.retrain.tasks import TaskData

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
LOSSES = ("squared error", "cross-entropy")
_DATA = (
    "TaskData, (train, validation) or (train, validation, loss); train and validation are (inputs, targets) or an "
    "iterable of such batches"
)


def names_function(text: str) -> bool:
    """Whether a value of --model or --data names a function rather than a file or a recurrence."""
    return FUNCTION.fullmatch(text) is not None


def find_function(option: str, name: str) -> Callable[[], Any]:
    """Return the function a value of --model or --data names, from the working directory or an installed package.

    Raises ConfigurationError where it is not there, cannot be imported, or cannot be called without arguments.
    """
    if not names_function(name):
        raise ConfigurationError(f"{option} {name}: not the name of a function.", expected="package.module:function")
    module_name, _, attribute = name.partition(":")
    # `python -m` adds this directory, the console script does not; later imports of the function need it too.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{option} {name}: there is no module {error.name}.",
                expected=f"one importable from {os.getcwd()}",
                advice=_nearby_modules(error.name),
            ) from error
        raise _broken(option, f"{name}: importing {module_name}", error) from error
    except (Exception, SystemExit) as error:  # a script that parses its arguments when it is imported exits
        raise _broken(option, f"{name}: importing {module_name}", error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            close = difflib.get_close_matches(part, own, n=3) or own[:5]
            raise ConfigurationError(
                f"{option} {name}: {getattr(found, '__name__', module_name)} has no {part}.",
                advice=f"did you mean {', '.join(close)}?" if close else None,
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(f"{option} {name}: is {describe(found)}.", expected="a function")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ConfigurationError(
            f"{option} {name}: takes {inspect.signature(found)}.",
            expected="a function that needs no arguments",
            advice=f"write one that calls {attribute} with them.",
        ) from error
    except ValueError:
        pass  # a builtin without a signature: the call will show it
    return found


def build_model(name: str, seed: int) -> nn.Module:
    """Return the module that --model's function builds with this seed. Raises ConfigurationError."""
    made = call("--model", name, ("model", seed))
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"--model {name}: returned {describe(made)}.", expected="a torch.nn.Module")
    return made


def read_data(name: str, size: int) -> SampledBatches | StreamedBatches:
    """Return what --data's function gives, in batches of `size` where it does not make its own.

    Raises ConfigurationError for anything but what is expected, and says what was seen.
    """
    made = call("--data", name, ("data",))
    if isinstance(made, TaskData):
        return SampledBatches.of(_with_numbers(made), size)
    if not isinstance(made, (tuple, list)) or len(made) not in (2, 3) or is_batch(made):
        raise ConfigurationError(f"--data {name}: returned {describe(made)}.", expected=_DATA)
    train, held_out = (_part(name, kind, part) for kind, part in zip(("training", "validation"), made, strict=False))
    if is_batch(train) != is_batch(held_out):
        raise ConfigurationError(
            f"--data {name}: training data are {describe(train)}, validation data {describe(held_out)}.",
            expected="both (inputs, targets), or both iterables of batches",
        )
    own_loss = made[2] if len(made) == 3 else None
    if not is_batch(train):
        return StreamedBatches(train, held_out, _loss(name, own_loss, first_batch(held_out, "validation")))
    first, last = as_batch(train, "training"), as_batch(held_out, "validation")
    loss = _loss(name, own_loss, first)
    require_numbers(first, "training data", loss)
    require_numbers(last, "validation data", loss)
    nothing = loss_of_nothing(last[1].float(), None) if loss == "squared error" else None
    return SampledBatches(first, last, size, loss, nothing=nothing)


def read_task_data(name: str) -> TaskData:
    """Return what --data's function gives for the built-in model, which takes TaskData alone."""
    made = call("--data", name, ("data",))
    if not isinstance(made, TaskData):
        raise ConfigurationError(
            f"--data {name}: returned {describe(made)}.",
            expected="ssmdiag.retrain.tasks.TaskData, for the built-in model",
            advice="batches of any other kind go with a model of your own: --model package.module:function.",
        )
    return _with_numbers(made)


def _with_numbers(data: TaskData) -> TaskData:
    """Return the data. Raises ConfigurationError where there is NaN in them."""
    require_numbers((data.inputs, data.targets), "training data", data.loss)
    require_numbers((data.validation_inputs, data.validation_targets), "validation data", data.loss)
    return data


def call(option: str, name: str, place: tuple[object, ...]) -> Any:
    """Return what the function that an option names returns; `place` decides its random numbers."""
    function = find_function(option, name)
    try:
        with seeded(*place):
            return function()
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken(option, name, error) from error


def _part(name: str, kind: str, part: Any) -> Any:
    """Return training or validation data with arrays as tensors, checked as far as can be without reading them."""
    if isinstance(part, (tuple, list)) and any(isinstance(entry, np.ndarray) for entry in part):
        part = tuple(torch.as_tensor(entry) if isinstance(entry, np.ndarray) else entry for entry in part)
    if is_batch(part):
        if not len(part[1]):
            raise ConfigurationError(f"--data {name}: no {kind} samples: {describe(part)}.")
        return part
    pair = isinstance(part, (tuple, list)) and any(isinstance(entry, torch.Tensor) for entry in part)
    if pair or not hasattr(part, "__iter__") or isinstance(part, (str, torch.Tensor, dict)):
        raise ConfigurationError(
            f"--data {name}: {kind} data are {describe(part)}.",
            expected="(inputs, targets) with as many samples in both, or an iterable of such batches",
        )
    with seeded("once"):  # a DataLoader draws a seed for its workers
        once = iter(part) is part
    if once:
        raise ConfigurationError(
            f"--data {name}: {kind} data are {describe(part)}, which can be read only once.",
            expected="an iterable that every arm can read from its beginning, such as a DataLoader or a list",
        )
    return part


def _loss(name: str, loss: Any, batch: Batch) -> Loss:
    if loss is None:
        return "squared error" if batch[1].is_floating_point() else "cross-entropy"
    if not callable(loss) and loss not in LOSSES:
        raise ConfigurationError(
            f"--data {name}: the third value is {describe(loss) if not isinstance(loss, str) else repr(loss)}.",
            expected=f"loss(answers, targets), {' or '.join(map(repr, LOSSES))}",
        )
    return loss


def _broken(option: str, what: str, error: BaseException) -> ConfigurationError:
    """Return an error that says where the user's own code failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not re.search(r"site-packages|importlib|<frozen", frame.filename)]
    last = next((frame for frame in reversed(own) if Path(frame.filename).parent != Path(__file__).parent), None)
    place = f" at {os.path.relpath(last.filename)}, line {last.lineno}" if last else ""
    return ConfigurationError(f"{option} {what} raised {type(error).__name__}{place}: {error}")


def _nearby_modules(name: str) -> str:
    here = [entry.removesuffix(".py") for entry in os.listdir() if entry.endswith(".py") or os.path.isdir(entry)]
    close = difflib.get_close_matches(name.rpartition(".")[2], here, n=3)
    return f"did you mean {', '.join(close)}?" if close else "write it as in an import: package.module:function."
