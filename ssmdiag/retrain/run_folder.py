"""The folder of a run: can it be written, does it hold a run already, and does its state belong to this one?

A state of other arms, settings, data or initial weights is refused, before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.arms import Arm, Budget, short
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.results import Point
from ssmdiag.retrain.saving import advice_for
from ssmdiag.retrain.state_file import ANEW, read_state, write_state

if TYPE_CHECKING:
    from ssmdiag.retrain.training import Trainee

STATE = ".state"
"""Suffix of a resumable state: one that no reader of checkpoints accepts."""
SAME_START = 1e-3
"""Largest relative difference between two losses of the same untrained model: machines round differently."""
OTHERWISE = "repeat the settings it was begun with, or start in another --output."
_SAID = {
    "validate_every": "validation every", "warm_up": "warm-up", "recurrence": "--model", "source": "--model",
    "loss": "loss", "read_out": "read-out", "optimiser": "optimiser",
}  # fmt: skip
"""Names of settings that are not the name of their option."""


@dataclass
class Run:
    """What changes while arms train together, apart from their weights."""

    history: list[list[Point]]
    """Validations of each arm."""
    step: int = 0
    seconds: float = 0.0
    diverged: dict[int, int] = field(default_factory=dict)
    """Step at which an arm diverged, by its position."""
    places: list[str] = field(default_factory=list)
    """Devices and numbers of ranks that took steps, in order: rounding differs between them."""

    def load(self, values: Mapping[str, Any]) -> None:
        """Put back what a state keeps of it, by name. Raises KeyError or TypeError for anything else."""
        histories, diverged = values["history"], values.get("diverged")
        if "diverged_at" in values:  # of one module, as states held it before modules and ensembles were kept alike
            histories, diverged = [histories], {} if values["diverged_at"] is None else {0: values["diverged_at"]}
        self.history = [[Point(**point) for point in points] for points in histories]
        self.step, self.seconds, self.diverged = values["step"], values["seconds"], diverged or {}
        self.places = values.get("places", [])


class RunState:
    """The state of arms that are trained together; made before anything is trained."""

    def __init__(self, folder: Path, trainee: Trainee, run: Run, budget: Budget, task: str) -> None:
        self.trainee, self.run = trainee, run
        self.folder, self.path = folder, state_path(folder, trainee.arms)
        self.settings = {"task": task, **trainee.settings(), **asdict(budget)}

    def save(self) -> None:
        """Write what is needed to resume, with arms, settings and data. The last state stays until that is done.

        Raises SsmdiagError where it cannot be written.
        """
        arms, data = [asdict(arm) for arm in self.trainee.arms], self.trainee.data(self.run.step)
        run = asdict(self.run) | self.trainee.state()
        write_state(self.path, {"arms": arms, "settings": self.settings, "data": data, "run": run})

    def load(self) -> None:
        """Put back the state of these arms, if there is one.

        The untrained arms are validated before that: code that has changed since shows in the loss they began with.
        Raises ConfigurationError, with the differences, where the state is of another run; SsmdiagError where it is
        not a whole state.
        """
        if not self.path.exists():
            _require_no_other_group(self.folder, self.trainee.arms)
            return
        there = read_state(self.path)
        try:
            values = there["run"]
            self.run.load(values)
            weights = {"weights": values["weights"], "optimiser": values["optimiser"]}
            same_data = there["data"] == self.trainee.data(int(self.run.step))
            different = _differences(there["settings"], self.settings)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SsmdiagError(
                f"{self.path}: not a state to resume from ({type(error).__name__}).", advice=ANEW
            ) from error
        if same_data:  # its name does not matter
            different.pop("task", None)
        else:
            different["data"] = "other data"
        if different:
            longer = " More steps need another schedule: name the last step-… of the arm as PATH."
            raise ConfigurationError(
                f"--resume: {self.path.name} was trained with other settings: {'; '.join(different.values())}.",
                expected="the model, data and settings it was begun with",
                advice=OTHERWISE + longer * ("steps" in different),
            )
        begun = {k: points[0].loss for k, points in enumerate(self.run.history) if points and points[0].step == 0}
        now = self.trainee.validate(0) if begun else []
        for k, loss in begun.items():
            if not math.isclose(loss, now[k].loss, rel_tol=SAME_START):
                raise ConfigurationError(
                    f"--resume: {self.path.name} is of another model or loss function: the loss before training "
                    f"was {loss:.6g}, and is {now[k].loss:.6g} now.",
                    expected="the code it was begun with",
                    advice=OTHERWISE,
                )
        self.trainee.load(weights)


def require_asked_for(folder: Path, arms: Sequence[Arm]) -> None:
    """Raise ConfigurationError where a folder has states, and none of them has any of these arms."""
    there = [arm for path in _states(folder) for arm in read_state(path, tensors=False).get("arms", ())]
    asked = [asdict(arm) for arm in arms]
    if not there or any(arm in there for arm in asked):
        return
    nearest = min((_differences(was, now) for was in there for now in asked), key=len)
    raise ConfigurationError(
        f"--resume: {folder} has none of these arms; the nearest differs: {'; '.join(nearest.values())}.",
        expected="one arm of the run at least",
        advice=OTHERWISE,
    )


def state_path(folder: Path, arms: Sequence[Arm]) -> Path:
    """Return where the state of arms that are trained together is kept: a name by what the arms are."""
    digest = hashlib.sha256(json.dumps([asdict(arm) for arm in arms]).encode()).hexdigest()[:12]
    return folder / f"state-{digest}{STATE}"


def can_resume(folder: Path) -> bool:
    """Whether there is a state in a folder that --resume goes on from."""
    return bool(_states(folder))


def _require_no_other_group(folder: Path, arms: Sequence[Arm]) -> None:
    """Raise where one of these arms began in another group: its state would be ignored silently."""
    wanted = [asdict(arm) for arm in arms]
    for path in _states(folder):
        there = read_state(path, tensors=False).get("arms", ())
        shared = [arm for arm, fields in zip(arms, wanted, strict=True) if fields in there]
        if shared:
            raise ConfigurationError(
                f"--resume: {path.name} has {shared[0].label} in a group of {len(there)} arms; now it is one of "
                f"{len(arms)}.",
                expected="the same arms in the same order, the same --together and as many ranks",
                advice=OTHERWISE,
            )


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"state-*{STATE}"))


def _differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs, in words, by the name of the setting."""
    found = {}
    for name in dict.fromkeys([*asked, *saved]):
        was, now = saved.get(name), asked.get(name)
        if was == now:
            continue
        called = _SAID.get(name, f"--{name.replace('_', '-')}")
        found[name] = f"{called} was {_said(was)}, now {_said(now)}" if name != "start" else "other initial weights"
    return found


def _said(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return short(value) if isinstance(value, float) else str(value)


def prepare(
    folder: Path, arms: Sequence[Arm], states: Sequence[Path], *, resume: bool, ranks: Ranks, writes: bool
) -> tuple[str, ...]:
    """Make the folder and return what a reader of the results must know of it.

    `states` are where the states of these arms would lie; `writes` says whether this rank writes. Every rank looks
    before any of them trains. Raises ConfigurationError where the folder cannot be written, without `resume` holds
    a run of these arms, or with it holds runs of other arms alone, or checkpoints of these without a state.
    """
    if writes:
        _require_writable(folder)
    # Only the first rank's view counts: the others may have another disk.
    held, resumable = ranks.gather((_held(folder, arms, states), any(path.exists() for path in states)))[0]
    if held and not resume:
        raise ConfigurationError(
            f"--output {folder} holds a run already: {held}.",
            advice="give --resume to go on with it, or another --output.",
        )
    if held and not resumable:
        raise ConfigurationError(
            f"--resume: {folder} has no state to go on from, but {held}, which a new run would replace.",
            advice="give another --output, or remove what is there.",
        )
    if resume and not resumable and writes:
        require_asked_for(folder, arms)
    return (f"nothing to resume from in {folder}: started anew",) if resume and not resumable else ()


def require_apart(folder: Path, arms: Sequence[Arm], reads: Sequence[Path]) -> None:
    """Raise ConfigurationError where a run would write beside what it reads: over its config.json, at the least."""
    for arm in arms:
        place = folder / arm.label
        for read in reads:
            if place.is_dir() and place.samefile(read if read.is_dir() else read.absolute().parent):
                raise ConfigurationError(
                    f"--output {folder}: {read} lies where {arm.label} would be kept.",
                    advice="give another --output.",
                )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"--output {folder}: cannot be written ({error.strerror or error}).",
            expected="a folder, or the name of one that can be made",
            advice=advice_for(error),
        ) from error


def _held(folder: Path, arms: Sequence[Arm], states: Sequence[Path]) -> str:
    """Return what already exists where these arms would be kept; empty if nothing does."""
    for arm in arms:
        steps = sorted(path.name for path in (folder / arm.label).glob("step-*"))
        if steps:
            return f"{arm.label} has {steps[0]}{f' to {steps[-1]}' if len(steps) > 1 else ''}"
    return next((path.name for path in states if path.exists()), "")
