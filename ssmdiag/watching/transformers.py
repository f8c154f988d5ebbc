"""`WatchMemory` for transformers' Trainer: `trainer.add_callback(WatchMemory(trainer, every=100))`.

A callback of transformers cannot log by itself, and what `Trainer.log` is given is also printed: a hundred numbers at
each reading. So it hands its numbers to the Trainer's other callbacks, but for those that print. Their names then begin
with `train/ssmdiag/`: the Trainer's loggers put `train/` before whatever is not of an evaluation.
"""

from __future__ import annotations

import importlib
from typing import Any

from ssmdiag.watching.reading import Reading
from ssmdiag.watching.watch import Watch

PRINTERS = frozenset({"PrinterCallback", "ProgressCallback"})
"""Callbacks of transformers that show on the screen what is logged."""


class Hooks:
    """Reads a model's memory while a Trainer trains it, logs it as `train/ssmdiag/…`, and stops at NaN.

    `every` counts steps of the optimiser; `stop=False` goes on where a layer is not finite. Other options are those of
    `ssmdiag.Watch`, which is at `watch` from the start of the training. Every rank reads its own copy of the weights,
    so that all of them stop alike; the first alone logs.
    """

    watch: Watch

    def __init__(self, trainer: Any, every: int = 100, *, stop: bool = True, **options: Any) -> None:
        self.trainer, self.every, self.stop, self.options = trainer, every, stop, options

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.watch = Watch(self.trainer.model if model is None else model, self.every, **self.options)
        self._take(args, state, control, self.watch.step(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(args, state, control, self.watch.step(state.global_step))

    def _take(self, args: Any, state: Any, control: Any, reading: Reading | None) -> None:
        if reading is None:
            return
        if state.is_world_process_zero:
            for callback in self.trainer.callback_handler.callbacks:
                if callback is not self and PRINTERS.isdisjoint(kind.__name__ for kind in type(callback).__mro__):
                    callback.on_log(args, state, control, logs=reading.scalars(), model=self.trainer.model)
        if self.stop and reading.broken:
            control.should_training_stop = True


def __getattr__(name: str) -> Any:
    """Return the callback, made when it is first asked for: transformers takes seconds to import."""
    if name != "WatchMemory":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    callback = importlib.import_module("transformers").TrainerCallback
    made = type(name, (Hooks, callback), {"__module__": __name__, "__doc__": Hooks.__doc__})
    globals()[name] = made
    return made
