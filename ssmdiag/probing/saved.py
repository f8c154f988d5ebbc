"""What `ssmdiag probe --format json` wrote, read back for `check --probe`: for the very model it was measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.checkpoint.budget import MOST_BASELINE, parse_json, read_text
from ssmdiag.errors import ProbeFileError
from ssmdiag.printable import module_name

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer

SCHEMA_VERSION = 1
DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class SavedLayer:
    """What was observed of one layer."""

    name: str
    """Its path; after `of`, that in the checkpoint."""
    family: str
    longest: float
    """The 99 % quantile of its half-lives, in steps."""
    at_least: bool
    """Whether that is a bound from below."""
    censored: float
    reset: float
    hold: float
    channels: int
    bf16_error: float | None
    """Relative error of its output in the median channel with the state rounded to bfloat16; None if not known."""
    bf16_worst: float | None
    """In the worst channel."""


@dataclass(frozen=True)
class SavedProbe:
    """What was observed of a model on some texts."""

    path: str
    length: int
    tokens: int
    layers: tuple[SavedLayer, ...]
    """Those that were observed."""
    sha256: str
    dtype: str
    """Of the digest of its recurrent weights."""
    tested: int | None
    """Most steps of the past that were kept; None where its use is not known."""
    reach: int | None
    """Steps that keep 99 % of the past's effect; None: not with those tested, or not to be told."""
    reach_at_most: int | None
    """The upper end of its 95 % interval."""

    def of(self, layers: Sequence[Layer]) -> SavedProbe:
        """Return the same, each layer under its path in a checkpoint.

        Raises ProbeFileError unless the checkpoint's recurrent weights are those of the model that was observed,
        LayerError where one of its layers cannot be read.
        """
        from ssmdiag.probing.digest import digest_recurrence

        own = digest_recurrence(layers, self.dtype)
        if own is None or own.sha256 != self.sha256:
            raise ProbeFileError(
                f"{self.path} was measured on another model: its recurrent weights are not those of this checkpoint.",
                expected=f"the digest {self.sha256[:12]}… of the weights in {self.dtype}"
                + (f", not {own.sha256[:12]}…" if own else ", and here are none"),
                advice="run ssmdiag probe on this checkpoint.",
            )
        paths = {layer.path for layer in layers}
        if all(layer.name in paths for layer in self.layers):
            return self
        # Weights are the same, names are not: a base model is saved without its prefix.
        named: dict[str, str] = {}
        for layer in self.layers:
            ends = [path for path in paths if path.endswith(f".{layer.name}") or layer.name.endswith(f".{path}")]
            if len(ends) != 1:
                raise ProbeFileError(f"{self.path}: the checkpoint has no layer {module_name(layer.name)}.")
            named[layer.name] = ends[0]
        return replace(self, layers=tuple(replace(layer, name=named[layer.name]) for layer in self.layers))


def read_probe(path: Path) -> SavedProbe:
    """Return what a file of `ssmdiag probe --format json` holds. Raises ProbeFileError."""
    try:
        data = parse_json(read_text(path, MOST_BASELINE))
    except OSError as error:
        raise ProbeFileError(
            f"{path} cannot be read: {error.strerror or error}.", advice="ssmdiag probe … --format json -o p.json"
        ) from error
    except ValueError as error:
        raise _no_probe(path, f"it is not JSON ({error})") from error
    try:
        return _parsed(str(path), data)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_probe(path, f"{type(error).__name__}: {error}") from error


def _parsed(path: str, data: Any) -> SavedProbe:
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {data['schema_version']!r}, and known is {SCHEMA_VERSION}")
    digest = data["recurrence"]
    if digest is None:
        raise ValueError("it is of a model without a recurrence")
    if digest["dtype"] not in DTYPES:
        raise ValueError(f"recurrence.dtype is {digest['dtype']!r}")
    cutting = (data["use"] or {}).get("by_cutting")
    return SavedProbe(
        path=path,
        length=_whole(data["length"]),
        tokens=_whole(data["tokens"]),
        layers=tuple(_layer(layer) for layer in data["layers"] if layer["observed"] is not None),
        sha256=str(digest["sha256"]),
        dtype=digest["dtype"],
        tested=cutting and _whole(cutting["tested"]),
        reach=cutting and _optional(_whole, cutting["all_but_a_hundredth"]),
        reach_at_most=cutting and _optional(_whole, cutting["interval"][1]),
    )


def _layer(layer: Mapping[str, Any]) -> SavedLayer:
    observed = layer["observed"]
    lives, rounded = observed["half_life"], observed["rounded_state"]
    return SavedLayer(
        name=str(layer["name"]),
        family=str(layer["family"]),
        longest=_number(lives["p99"]),
        at_least="p99" in lives["at_least"],
        censored=_share(observed["censored"]),
        reset=_share(observed["reset"]),
        hold=_share(observed["hold"]),
        channels=_whole(layer["channels"]),
        bf16_error=rounded and _number(rounded["bf16"]["median"]),
        bf16_worst=rounded and _number(rounded["bf16"]["worst"]),
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _number(value: Any) -> float:
    number = math.inf if value == "inf" else float(value)
    if math.isnan(number) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no number")
    return number


def _share(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is no share")
    return number


def _optional(read: Callable[[Any], int], value: Any) -> int | None:
    return None if value is None else read(value)


def _no_probe(path: Path, why: str) -> ProbeFileError:
    return ProbeFileError(
        f"{path} is not what ssmdiag probe wrote: {why}.", expected="a file of ssmdiag probe … --format json -o p.json"
    )
