"""A run as far as it has come: what `compare` says of its layers, from numbers kept of every checkpoint.

Checkpoints may be deleted once they are read, as trainers do that keep the last few. A test that is repeated after
every checkpoint, as by `watch --fail-on converging`, lets chance in more often than one at the end of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.compare.layer_history import LayerHistory, judge_layers
from ssmdiag.compare.layer_point import LayerPoint, read_point
from ssmdiag.compare.learning_rate import read_learning_rates
from ssmdiag.compare.run_order import OrderSource, RunOrder, order_checkpoints, stored_step
from ssmdiag.compare.trend import LEAST_CHANGE
from ssmdiag.diagnosis import context_length_of
from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family
from ssmdiag.families.recognition import recognise
from ssmdiag.guard import guard


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Return checkpoints in the order of the steps they hold, or of those in their names, else as given."""
    order = (
        order_checkpoints(paths, [stored_step(path) for path in paths]).order
        if len(paths) > 1
        else [*range(len(paths))]
    )
    return [paths[i] for i in order]


@dataclass
class RunSoFar:
    """The layers of a run's checkpoints, each in a few numbers."""

    assume: Mapping[str, str] | None = None
    families: Sequence[Family] | None = None
    device: str = "cpu"
    context_length: int | None = None
    _points: dict[Path, list[LayerPoint]] = field(default_factory=dict)
    _stored: dict[Path, int | None] = field(default_factory=dict)
    _first_rates: dict[str, Tensor] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        """Read a checkpoint, layer by layer, those that cannot be read left out. Raises SsmdiagError."""
        checkpoint = read_checkpoint(path)
        found = recognise(checkpoint, assume=self.assume, families=self.families, device=self.device)
        found.require_layers(checkpoint)
        learning_rates = read_learning_rates(checkpoint)
        points: list[LayerPoint] = []
        for layer in found.layers:
            try:
                for recurrence in layer.read():
                    with guard(recurrence.layer, "its examination"):
                        point = read_point(
                            0,
                            recurrence,
                            layer.family.title,
                            context=None,
                            before=self._first_rates.get(recurrence.layer),
                            least_change=LEAST_CHANGE,
                            learning_rate=learning_rates.of(recurrence),
                        )
                    self._first_rates.setdefault(recurrence.layer, recurrence.rate)
                    points.append(point)
            except LayerError:  # the diagnosis says so
                continue
        self._points[path] = points
        self._stored[path] = checkpoint.train_step
        self.context_length = self.context_length or context_length_of(checkpoint.settings)

    def is_of_another_model(self, path: Path) -> bool:
        """Whether none of a checkpoint's layers is, by name and family, one of the first checkpoint's."""
        first = {(point.name, point.family) for point in next(iter(self._points.values()), [])}
        own = {(point.name, point.family) for point in self._points[path]}
        return bool(first and own) and not first & own

    def step_of(self, path: Path) -> tuple[str, int | None]:
        """Return what a checkpoint's step counts, and the step; None where neither file nor name says it."""
        order = self._order()
        if order.source is OrderSource.GIVEN:
            return order.unit, None
        return order.unit, order.steps[list(self._points).index(path)]

    def judge(self) -> tuple[LayerHistory, ...]:
        """Return the histories of its layers, as `compare` judges them; none of fewer than two checkpoints."""
        order, paths = self._order(), list(self._points)
        by_step = {order.steps[i]: paths[i] for i in order.order}
        if len(by_step) < 2:
            return ()
        layers: dict[str, list[LayerPoint]] = {}
        for step, path in by_step.items():
            for point in self._points[path]:
                layers.setdefault(point.name, []).append(replace(point, step=step))
        return judge_layers(layers, list(by_step), order.unit, self.context_length, LEAST_CHANGE)[0]

    def _order(self) -> RunOrder:
        return order_checkpoints(list(self._points), list(self._stored.values()))
