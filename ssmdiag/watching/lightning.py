"""`WatchMemory` for Lightning: `Trainer(callbacks=[WatchMemory(every=100)])`; it needs lightning or pytorch_lightning.

Every rank reads its own copy of the weights, which are the same: all of them then come to the same end, and no
communication is needed that one rank could wait in alone. Rank 0 alone logs, through the trainer's own loggers.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ssmdiag.watching.reading import Reading
from ssmdiag.watching.watch import Watch


class Hooks:
    """Reads a model's memory while Lightning trains it, logs it as `ssmdiag/…`, and stops at NaN.

    `every` counts steps of the optimiser; `stop=False` goes on where a layer is not finite. Other options are those of
    `ssmdiag.Watch`, which is at `watch` from the start of the training.
    """

    watch: Watch

    def __init__(self, every: int = 100, *, stop: bool = True, **options: Any) -> None:
        super().__init__()
        self.every, self.stop, self.options = every, stop, options

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # The weights are restored and on their device, and the strategy has wrapped or sharded them.
        self.watch = Watch(pl_module, self.every, **self.options)
        self._take(trainer, self.watch.step(trainer.global_step))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self._take(trainer, self.watch.step(trainer.global_step))

    def _take(self, trainer: Any, reading: Reading | None) -> None:
        if reading is None:
            return
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(reading.scalars(), step=reading.train_step)
        if self.stop and reading.broken:
            trainer.should_stop = True


def __getattr__(name: str) -> Any:
    """Return the callback, made when it is first asked for: Lightning takes seconds to import."""
    if name != "WatchMemory":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
    callback = importlib.import_module(f"{package}.callbacks").Callback
    made = type(name, (Hooks, callback), {"__module__": __name__, "__doc__": Hooks.__doc__})
    globals()[name] = made
    return made
