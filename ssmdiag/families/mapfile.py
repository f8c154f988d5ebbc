"""`--map map.toml`: families declared in a file, for models ssmdiag does not know.

    [[layer]]
    name = "my-rnn"                    # its name in the report
    weight = "*.rnn.log_decay"         # the tensor that decides the decay; * is the layer's path
    axes = "channel mode"              # its axes: mode, any other names (together the channels), 1
    map = "exp"                        # f, a positive magnitude of the stored weight w
    domain = "continuous"              # continuous: λ = −f(w) + iω per unit time, Δ by `step`
                                       # rate: f(w) nats per step; discrete: |λ̄| = f(w)
    step = "*.rnn.log_dt"              # Δ: a tensor, or a number; for continuous only
    step_axes = "channel"
    step_map = "exp"
    discretisation = "zoh"             # or bilinear; for continuous only
    frequency = "*.rnn.freq"           # ω, per unit time or per step; axes as the weight's
    frequency_map = "none"
    conjugate_pairs = false            # true: one of each pair is stored
    reviewed = true                    # false, as in a map that ssmdiag printed: every report says that it is a guess
    selective = false                  # true: the decay depends on the input and is read at a bias
    output = "*.rnn.C"                 # C, for kernels; with `input`, B (1 where it is not given)
    output_axes = "channel mode 2"

Complex eigenvalues in one tensor (a complex dtype, or a last axis 2 of re, im) take the map `none`
or `direct`: λ = −w, λ = w. Tensors of one declaration share the text before the last `*`.

The error for an unknown model prints a map only where names and values leave one reading: a projection, a regulariser
or a step is never taken for a decay, and where `exp` and `softplus` would both do, the candidates are listed, each with
what keeps it from being read. A `discrete` domain that the values prove wrong, as every f(w) is 1 or more, is refused;
so is a guess by which no mode decays. A map without `reviewed` is the user's own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.budget import MOST_TOML, parse_toml, read_text, shortened
from ssmdiag.checkpoint.names import LONGEST_NAME, MOST_ELEMENTS
from ssmdiag.errors import LayerError, MapFileError
from ssmdiag.families import known_families
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import as_complex, bilinear, bilinear_gain, log_of, zoh, zoh_gain
from ssmdiag.recurrence.maps import MAPS

CHOICES = {
    "domain": ("continuous", "rate", "discrete"),
    "discretisation": ("zoh", "bilinear"),
    "map": tuple(MAPS),
    "frequency_map": tuple(MAPS),
    "step_map": tuple(MAPS),
}
MOST_LAYERS = 1000
TENSOR_KEYS = ("weight", "frequency", "step", "input", "output")
"""Keys that name tensors; the first three decide the spectrum."""


@dataclass(frozen=True)
class Declaration:
    """One `[[layer]]` of a map file, its tensors under their local names."""

    name: str
    weight: str
    axes: str
    map: str
    domain: str
    step: str | float = 1.0
    step_axes: str = "channel"
    step_map: str = "exp"
    discretisation: str = "zoh"
    frequency: str = ""
    frequency_map: str = "none"
    conjugate_pairs: bool = False
    selective: bool = False
    reviewed: bool = True
    input: str = ""
    input_axes: str = ""
    output: str = ""
    output_axes: str = ""

    def axes_of(self, key: str) -> str:
        """Return the axes of the tensor under a key; those of the weight where none are declared."""
        own: str = "" if key in ("weight", "frequency") else getattr(self, f"{key}_axes")
        return own or (self.axes.removesuffix(" 2") if key == "frequency" else self.axes)

    def tensors(self) -> dict[str, str]:
        """Return local name → axes."""
        named = [key for key in TENSOR_KEYS if isinstance(getattr(self, key), str) and getattr(self, key)]
        return {getattr(self, key): self.axes_of(key) for key in named}

    def order(self) -> list[str]:
        """Return the names of all axes, the mode last."""
        return [axis for axis in self.axes.split() if not axis.isdigit() and axis != "mode"] + ["mode"]


def read_map(path: str | Path) -> tuple[Family, ...]:
    """Return the families that a map file declares; `recognise` uses them in addition to the known ones.

    Raises MapFileError where the file is not a valid declaration, with the key and its choices.
    """
    path = Path(path)
    try:
        content = parse_toml(read_text(path, MOST_TOML))
    except OSError as error:
        reason = error.strerror or error
        raise MapFileError(f"{path} cannot be read: {reason}.", advice="give --map a TOML file.") from error
    except ValueError as error:
        raise MapFileError(f"{path} is not TOML: {error}", advice="quote strings; one `key = value` a line.") from error
    layers = content.get("layer")
    valid = isinstance(layers, list) and layers and all(isinstance(layer, dict) for layer in layers)
    if set(content) != {"layer"} or not valid:
        seen = shortened(", ".join(content), 200) or "nothing"
        raise MapFileError(
            f"{path} has {seen} at its top level.", expected="one or more tables [[layer]], nothing else"
        )
    if len(content["layer"]) > MOST_LAYERS:
        raise MapFileError(f"{path} has {len(content['layer']):,} tables [[layer]].", expected=f"at most {MOST_LAYERS}")
    families = tuple(_family(layer, f"{path}, [[layer]] {number}") for number, layer in enumerate(content["layer"], 1))
    names = [family.name for family in families]
    known = {family.name for family in known_families()}
    for name in names:
        if names.count(name) > 1 or name in known:
            raise MapFileError(
                f'{path}: name = "{name}" is taken.', expected="a name of its own for each layer", advice="rename it."
            )
    return families


def _family(table: Mapping[str, Any], where: str) -> Family:
    path, declared = _declaration(table, where)
    return Family(
        name=declared.name,
        title=declared.name,
        paper=where.partition(",")[0],
        memory="nominal" if declared.selective else "exact",
        spellings=(Spelling("--map", declared.tensors(), path=path),),
        read=lambda layer: read(layer, declared),
        declared=True,
        reviewed=declared.reviewed,
    )


def _declaration(table: Mapping[str, Any], where: str) -> tuple[str | None, Declaration]:
    """Return a table as a checked declaration, and the regular expression of its layers' paths."""
    known = {field.name: field for field in fields(Declaration)}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key[:100], known, n=1)
            raise MapFileError(
                f"{where}: unknown key {shortened(key)}.",
                expected=f"one of {', '.join(known)}",
                advice=f"did you mean {close[0]}?" if close else "remove it.",
            )
        _check_value(key, value, where)
    missing = [key for key in ("name", "weight", "axes", "map", "domain") if key not in table]
    if table.get("domain") == "continuous" and "step" not in table:
        missing.append("step (1.0 if time has no step)")
    missing += [f"{key}_axes" for key in ("input", "output") if key in table and f"{key}_axes" not in table]
    if missing:
        raise MapFileError(
            f"{where}: missing {', '.join(missing)}.",
            advice="add it; `python -m pydoc ssmdiag.families.mapfile` explains each.",
        )
    misplaced = [key for key in ("step", "discretisation") if key in table and table["domain"] != "continuous"]
    misplaced += [
        f"{key}_{rest}" for key in TENSOR_KEYS[1:] for rest in ("axes", "map")
        if f"{key}_{rest}" in table and not isinstance(table.get(key), str)
    ]  # fmt: skip
    if misplaced:
        raise MapFileError(
            f"{where}: {', '.join(misplaced)} has no meaning here.",
            expected='step and discretisation with domain = "continuous"; _axes and _map with the tensor they describe',
            advice="remove it.",
        )
    tensors = {key: table[key] for key in TENSOR_KEYS if isinstance(table.get(key), str)}
    heads = {pattern.rpartition("*.")[0] for pattern in tensors.values()}
    location, names = _split(list(tensors.values()))
    if len(heads) > 1 or len(set(names)) < len(names):
        raise MapFileError(
            f"{where}: {', '.join(tensors.values())} are not different tensors of one layer.",
            expected="the same text up to the last *, different names after it",
        )
    declared = Declaration(**{**table, **dict(zip(tensors, names, strict=True))})
    _check_axes(declared, where)
    return location, declared


def _check_value(key: str, value: Any, where: str) -> None:
    """Raise MapFileError if a value is not of its key's type."""
    if key in CHOICES:
        good, expected = value in CHOICES[key], f"one of {', '.join(CHOICES[key])}"
    elif key in ("conjugate_pairs", "selective", "reviewed"):
        good, expected = isinstance(value, bool), "true or false"
    elif key in TENSOR_KEYS and isinstance(value, str):
        elements = value.split(".")
        short = len(value) <= LONGEST_NAME and len(elements) <= MOST_ELEMENTS
        good = short and elements[-1] != "*" and all(e == "*" or re.fullmatch(r"[^*\s]+", e) for e in elements)
        expected = 'a tensor name, such as "*.rnn.log_decay"'
    elif key == "step":
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
        expected = "a tensor name or a positive number"
    elif key.endswith("axes"):
        short = isinstance(value, str) and len(value) <= LONGEST_NAME
        good = short and re.fullmatch(r"(1|[a-z]+)( (1|[a-z]+))*( 2)?", value) is not None
        expected = 'names such as "channel mode", 1 for an axis of one, 2 last for (re, im)'
    else:
        good, expected = isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST_NAME, "text"
    if not good:
        raise MapFileError(f"{where}: {key} = {shortened(repr(value))}.", expected=expected)


def _check_axes(declared: Declaration, where: str) -> None:
    order = set(declared.order())
    for local, axes in declared.tensors().items():
        named = [axis for axis in axes.split() if not axis.isdigit()]
        stray = sorted(set(named) - order)
        if stray or len(set(named)) < len(named):
            raise MapFileError(
                f'{where}: axes "{axes}" of {local}.',
                expected=f"each once, of those of the weight: {', '.join(declared.axes.split())}",
            )


def _split(patterns: list[str]) -> tuple[str | None, list[str]]:
    """Return the regular expression of the layer's path (None for any) and the local names.

    The text before the last `*`, and the prefix common to all names after it, belong to the path.

    >>> _split(["*.rnn.decay", "*.rnn.dt"]), _split(["net.layers.*.decay"])
    (('(?:^|\\\\.)rnn$', ['decay', 'dt']), ('^net\\\\.layers\\\\.[^.]+$', ['decay']))
    """
    head = patterns[0].rpartition("*.")[0]
    tails = [pattern.rpartition("*.")[2].split(".") for pattern in patterns]
    depth = min(len(tail) for tail in tails) - 1
    while any(tail[:depth] != tails[0][:depth] for tail in tails):
        depth -= 1
    shared = [re.escape(element) for element in tails[0][:depth]]
    if head:
        before = head.replace("*", "\0").removesuffix(".")
        elements = [re.escape(element) if element != "\0" else "[^.]+" for element in before.split(".")]
        path: str | None = "^" + r"\.".join([*elements, "[^.]+", *shared]) + "$"
    else:
        path = r"(?:^|\.)" + r"\.".join(shared) + "$" if shared else None
    return path, [".".join(tail[depth:]) for tail in tails]


def read(layer: Layer, declared: Declaration) -> Iterator[Recurrence]:
    """Yield the single recurrence of a declared layer."""
    magnitude, turn = _magnitude(layer, declared)
    if declared.frequency:
        turn = turn + _arrange(
            layer.weight(declared.frequency, declared.frequency_map, role="frequency"), declared, "frequency"
        )
    eigenvalues = as_complex(-magnitude) + 1j * turn
    step: Tensor | None = None
    if declared.domain == "continuous":
        if isinstance(declared.step, str):
            step = _arrange(layer.weight(declared.step, declared.step_map, role="step"), declared, "step")
        else:
            step = magnitude.new_tensor(declared.step)
        rule, gain_of = (bilinear, bilinear_gain) if declared.discretisation == "bilinear" else (zoh, zoh_gain)
        ell, gain = rule(eigenvalues, step), gain_of(eigenvalues, step)
    else:
        ell = log_of(magnitude) + 1j * turn if declared.domain == "discrete" else eigenvalues
        gain = as_complex(magnitude.new_ones(magnitude.shape))
    _require_decay(layer, declared, magnitude, ell)
    sizes = [layer.axes.get(axis, 1) for axis in declared.order()]
    flat = lambda values: values.expand(sizes).reshape(-1, sizes[-1])  # noqa: E731
    b = _arrange(_values(layer, declared, "input"), declared, "input") if declared.input else 1.0
    c = _arrange(_values(layer, declared, "output"), declared, "output") if declared.output else None
    yield layer.recurrence(
        flat(ell),
        step=None if step is None else (step if step.ndim == 0 else flat(step)),
        conjugate_pairs=declared.conjugate_pairs,
        kernel_factor=2.0 if declared.conjugate_pairs else 1.0,
        input_matrix=None if c is None else flat(b * gain),
        output_matrix=None if c is None else flat(as_complex(c))[None],
    )


def _require_decay(layer: Layer, declared: Declaration, magnitude: Tensor, ell: Tensor) -> None:
    """Raise LayerError where no mode would decay: then f(w) is not |λ̄|, or a guess is wrong.

    A rate from a reviewed map is reported as it is: a direct parametrisation may have become unstable.
    """
    growth = ell.real[ell.real.isfinite()]
    if declared.domain != "discrete" and declared.reviewed:
        return
    if not growth.numel() or bool((growth <= 0).all()) or bool((growth < 0).any()):
        return
    low, high = (float(end) for end in magnitude[magnitude.isfinite()].aminmax())
    formula = MAPS[declared.map].formula
    raise LayerError(
        f'{layer.names[declared.weight]}: read by map = "{declared.map}" and domain = "{declared.domain}", no mode '
        f"decays; f(w) = {formula} runs from {low:.4g} to {high:.4g}.",
        expected={
            "discrete": "|λ̄| = f(w) below 1",
            "rate": "nats per step, f(w) above 0",
            "continuous": "Re λ = −f(w) below 0, f(w) above 0",
        }[declared.domain],
        advice="correct the domain or the map in the map file.",
    )


def _magnitude(layer: Layer, declared: Declaration) -> tuple[Tensor, Tensor]:
    """Return f(w) and, for complex eigenvalues, the ω that belongs to it."""
    values = _values(layer, declared, "weight")
    discrete = declared.domain == "discrete"
    if not values.is_complex():
        magnitude = _arrange(layer.weight(declared.weight, declared.map, discrete=discrete), declared, "weight")
        return magnitude, magnitude.new_zeros(magnitude.shape)
    if declared.map not in ("none", "direct"):
        raise LayerError(
            f"{layer.names[declared.weight]} is complex; map = {declared.map!r} takes real weights.",
            expected='map = "direct" for λ = w, "none" for λ = −w, or for domain = "discrete" λ̄ = w',
        )
    if discrete:
        magnitude, turn = layer.weight(declared.weight, "none", part=values.abs(), discrete=True), values.angle()
    else:
        magnitude = layer.weight(declared.weight, declared.map, part=values.real)
        turn = -MAPS[declared.map](values.imag)
    return _arrange(magnitude, declared, "weight"), _arrange(turn, declared, "weight")


def _values(layer: Layer, declared: Declaration, key: str) -> Tensor:
    local = getattr(declared, key)
    return layer.complex(local) if declared.axes_of(key).endswith(" 2") else layer[local]


def _arrange(values: Tensor, declared: Declaration, key: str) -> Tensor:
    """Return values with every axis of the declaration, in its order; size 1 where the tensor lacks an axis."""
    axes = declared.axes_of(key).removesuffix(" 2").split()
    sizes = {axis: size for axis, size in zip(axes, values.shape, strict=True) if axis != "1"}
    order = declared.order()
    named = values.reshape(tuple(sizes.values())).permute([list(sizes).index(axis) for axis in order if axis in sizes])
    return named.reshape([sizes.get(axis, 1) for axis in order])
