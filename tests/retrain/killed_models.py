"""A model that sends its process a signal at a step of training, and data whose files stop being written.

SIGNAL=9 AT_STEP=155    at the forward pass of a training step, the first being 0; TO=parent: to torchrun
SIGNAL=9 AT_WRITE=7     when a file is written whole and not yet in its place, the first being 0
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task
from tests.retrain.given_models import Net

_forwards = _writes = 0
_fsync = os.fsync


def _stop() -> None:
    to_parent = os.environ.get("TO") == "parent"
    if not to_parent or os.environ.get("RANK") == "0":
        os.kill(os.getppid() if to_parent else os.getpid(), int(os.environ["SIGNAL"]))


def _stopping_fsync(file: Any) -> None:
    global _writes
    _fsync(file)
    if _writes == int(os.environ.get("AT_WRITE", -1)):
        _stop()
    _writes += 1


class Stopping(Net):
    def forward(self, x: Tensor) -> Tensor:
        global _forwards
        if self.training:
            if _forwards == int(os.environ.get("AT_STEP", -1)):
                _stop()
            _forwards += 1
        return super().forward(x)


def model() -> nn.Module:
    return Stopping()


def data() -> TaskData:
    os.fsync = _stopping_fsync
    whole = find_task("lf-exp").make(TaskSettings(length=12, samples=32))
    return replace(
        whole, validation_inputs=whole.validation_inputs[:8], validation_targets=whole.validation_targets[:8]
    )
