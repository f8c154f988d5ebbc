"""Going on with a run: its state is that of the same arms, settings, data and weights to start from, or it is refused.

Both training loops keep what changes while they train in a state, and beside it what decides the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.arms import Arm, short
from ssmdiag.retrain.state_file import ANEW, bytes_of, read_state, write_state

STATE = ".state"
"""Suffix of a resumable state: one that no reader of checkpoints takes for its own."""
OTHERWISE = "ask for the same again, or start in another --output."
_SAID = {
    "validate_every": "validation every", "warm_up": "warm-up", "recurrence": "--model", "source": "--model",
    "loss": "loss", "read_out": "read-out", "optimiser": "optimiser",
}  # fmt: skip
"""What settings are called that are not an option of their own name."""


def save_run(folder: Path, arms: Sequence[Arm], settings: Mapping[str, Any], data: str, run: Mapping[str, Any]) -> None:
    """Write what is needed to go on from here, and what it was trained as and on; the last state stays until it is."""
    there = {"arms": [asdict(arm) for arm in arms], "settings": dict(settings), "data": data}
    write_state(state_path(folder, arms), there | {"run": dict(run)})


def load_run(
    folder: Path, arms: Sequence[Arm], settings: Mapping[str, Any], data: Callable[[int], str]
) -> dict[str, Any] | None:
    """Return what `save_run` was given of these arms; None where there is no state of them.

    `data` takes a step and returns the digest of what is trained on up to it. Raises ConfigurationError where the state
    is of another run, and says in what it differs; SsmdiagError where it is no whole state.
    """
    path = state_path(folder, arms)
    if not path.exists():
        _require_no_other_group(folder, arms)
        return None
    there = read_state(path)
    try:
        saved, run, step = there["settings"], there["run"], int(there["run"]["step"])
        same_data = there["data"] == data(step)
        different = _differences(saved, settings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SsmdiagError(f"{path}: not a state to resume from ({type(error).__name__}).", advice=ANEW) from error
    if same_data:  # whatever it is called
        different.pop("task", None)
    if different or not same_data:
        said = [*different.values(), *["other data"] * (not same_data)]
        advice = OTHERWISE
        if "steps" in different:
            advice += " More steps need another schedule: name the last step-… of the arm as PATH."
        raise ConfigurationError(
            f"--resume: {path.name} was trained otherwise: {'; '.join(said)}.",
            expected="the model, data and settings it was begun with",
            advice=advice,
        )
    return dict(run)


def require_asked_for(folder: Path, arms: Sequence[Arm]) -> None:
    """Raise ConfigurationError where a folder has states, and none of them has any of these arms."""
    there = [arm for path in _states(folder) for arm in read_state(path, tensors=False).get("arms", ())]
    asked = [asdict(arm) for arm in arms]
    if not there or any(arm in there for arm in asked):
        return
    pairs = [(was, now) for was in there for now in asked]
    was, now = min(pairs, key=lambda pair: len(_differences(*pair)))
    raise ConfigurationError(
        f"--resume: {folder} has no such arm; the nearest differs: {'; '.join(_differences(was, now).values())}.",
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


def digest_of(*values: Any) -> str:
    """Return the SHA-256 of tensors, mappings, tuples and plain values, in their order."""
    digest = hashlib.sha256()
    for value in values:
        update(digest, value)
    return digest.hexdigest()


def update(digest: hashlib._Hash, value: Any) -> None:
    """Add a value to a digest: of a tensor its shape, its dtype and all of its bytes."""
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        digest.update(bytes_of(value))
    elif isinstance(value, (Mapping, tuple, list)):
        entries = list(value.items()) if isinstance(value, Mapping) else list(value)
        digest.update(f"{type(entries[0]).__name__ if entries else ''} {len(entries)}".encode())
        for entry in entries:
            update(digest, entry)
    else:
        digest.update(repr(value).encode())


def _require_no_other_group(folder: Path, arms: Sequence[Arm]) -> None:
    """Raise where one of these arms was begun in a group of others: its state would be left aside unseen."""
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
        found[name] = f"{called} {_said(was)} saved, {_said(now)} asked" if name != "start" else "other initial weights"
    return found


def _said(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return short(value) if isinstance(value, float) else str(value)
