"""Layers → rows: short labels, and layers that repeat folded into one row that says which they are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.recurrence.quantiles import Quantiles

ALIKE = math.log(1.25)
"""Layers whose median and longest half-lives agree within 25 % are one row."""
LONGEST = 48
"""Characters of a label; names of 900 exist."""
MOST_ROWS = 8
"""Rows that fit on one screen with the pictures below them."""


@dataclass(frozen=True)
class Row:
    """One or several layers of one kind, shown as one."""

    label: str
    layers: tuple[LayerDiagnosis, ...]

    @property
    def first(self) -> LayerDiagnosis:
        return self.layers[0]

    @property
    def median_half_life(self) -> float | None:
        """Median over the layers of their median half-life, in steps."""
        values = sorted(layer.half_life.median for layer in self.layers if layer.half_life)
        return values[len(values) // 2] if values else None

    def longest(self, quantity: Literal["half_life", "time_constant", "horizon"]) -> float | None:
        """Return the longest half-life, time constant or horizon of any layer, in steps."""
        found: list[Quantiles | None] = [getattr(layer, quantity) for layer in self.layers]
        return max((quantiles.max for quantiles in found if quantiles), default=None)

    @property
    def margin(self) -> float | None:
        """Smallest margin of any layer."""
        return min((layer.margin for layer in self.layers if layer.margin is not None), default=None)

    @property
    def farthest(self) -> LayerDiagnosis:
        """The layer with the longest horizon, else the one with the slowest mode."""
        return max(self.layers, key=_reach)

    @property
    def law(self) -> str:
        """Decay law of the layers, or of their tails, and the lags it holds over; `mixed` where they differ."""
        laws = [layer.decay.law for layer in self.layers if layer.decay]
        if len({law for law, _ in laws}) != 1:
            return "mixed" if laws else "–"
        if not (windows := [window for _, window in laws if window]):
            return laws[0][0]
        first, last = max(first for first, _ in windows), min(last for _, last in windows)
        return f"{laws[0][0]} {first:,}–{last:,}" if first < last else laws[0][0]

    @property
    def histogram(self) -> tuple[int, ...]:
        return tuple(sum(counts) for counts in zip(*(layer.histogram for layer in self.layers), strict=True))


def _reach(layer: LayerDiagnosis) -> tuple[float, float]:
    return layer.horizon.max if layer.horizon else 0.0, layer.half_life.max if layer.half_life else 0.0


def label_layers(names: Sequence[str]) -> list[str]:
    """Return the part of each path that distinguishes the layers, numbers bare, the middle of long names left out.

    >>> label_layers(["backbone.layers.0.mixer", "backbone.layers.11.mixer"])
    ['0', '11']
    >>> label_layers(["layers.0.mamba", "layers.1.mamba_decoder.mamba"])
    ['0', '1']
    >>> label_layers(["enc.layers_0.seq (forward)", "enc.layers_0.seq (backward)", "dec.layers_0.seq (forward)"])
    ['enc (forward)', 'enc (backward)', 'dec (forward)']
    >>> label_layers(["gru", "lstm (l0)", "lstm (l1)"]), label_layers([""])
    (['gru', 'lstm (l0)', 'lstm (l1)'], ['0'])
    """
    split = [re.fullmatch(r"(.*?)(?: \((.*)\))?", name) for name in names]
    paths = [match.group(1).split(".") if match else [name] for match, name in zip(split, names, strict=True)]
    head = 0
    while all(len(path) > head + 1 for path in paths) and len({path[head] for path in paths}) == 1:
        head += 1
    tail = 0
    while all(len(path) > head + tail + 1 for path in paths) and len({path[-1 - tail] for path in paths}) == 1:
        tail += 1
    middles = [path[head : len(path) - tail] for path in paths]
    numbers = [[element for element in middle if element.isdigit()] for middle in middles]
    distinct = {(*n, match and match.group(2)) for n, match in zip(numbers, split, strict=True)}
    if all(numbers) and len(distinct) == len(names) > 1:
        middles = numbers
    if len({tuple(path) for path in paths}) == 1:
        digits = [element for element in paths[0] if element.isdigit()]
        middles = [[digits[0] if digits else paths[0][-1]]] * len(paths)
    stems = {re.sub(r"\d+$", "", middle[0]) for middle in middles if len(middle) == 1}
    labels = []
    for middle, match in zip(middles, split, strict=True):
        text = ".".join(middle) or "0"  # a file that holds one layer and nothing around it
        if len(stems) == 1 and len(middle) == 1 and re.search(r"\d$", text):
            text = text[len(next(iter(stems))) :]
        branch = match.group(2) if match else None
        labels.append(f"{text} ({branch})" if branch else text)
    short = [shortened(label) for label in labels]
    return short if len(set(short)) == len(set(labels)) else labels


def shortened(name: str, most: int = LONGEST) -> str:
    """Return a name without the middle of one that is longer.

    >>> shortened("layers.0.mixer"), shortened("abcdefgh", 5)
    ('layers.0.mixer', 'ab…gh')
    """
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def fold(
    layers: Sequence[LayerDiagnosis], labels: Sequence[str], *, all_layers: bool, most: int = MOST_ROWS
) -> list[Row]:
    """Return the rows of the table, at most so many, in layer order. Only neighbours of one kind are folded."""
    rows = [Row(label, (layer,)) for layer, label in zip(layers, labels, strict=True)]
    if all_layers:
        return rows
    kinds: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    groups = [_merge_alike(group) for group in kinds.values()]
    while sum(map(len, groups)) > most and any(len(group) > 1 for group in groups):
        position, at = min(
            ((g, i) for g, group in enumerate(groups) for i in range(len(group) - 1)),
            key=lambda where: _distance(groups[where[0]][where[1]], groups[where[0]][where[1] + 1]),
        )
        group = groups[position]
        groups[position] = [*group[:at], _join(group[at], group[at + 1]), *group[at + 2 :]]
    return [row for group in groups for row in group]


def _merge_alike(rows: list[Row]) -> list[Row]:
    merged = [rows[0]]
    for row in rows[1:]:
        if _distance(merged[-1], row) <= ALIKE:
            merged[-1] = _join(merged[-1], row)
        else:
            merged.append(row)
    return merged


def _join(a: Row, b: Row) -> Row:
    return Row(_range([*a.label.split(", "), *b.label.split(", ")]), a.layers + b.layers)


def _range(labels: list[str]) -> str:
    """Return `0-5, 7` for consecutive numbers, `0…14` for any others."""
    branch = re.search(r" \(.*\)$", labels[0])
    suffix = branch.group(0) if branch else ""
    bare = [label.removesuffix(suffix) for label in labels]
    spans: list[tuple[int, int]] = []
    for label in bare:
        if not (match := re.fullmatch(r"(\d{1,18})(?:[-…](\d{1,18}))?", label)):
            return f"{bare[0].split('…')[0]}…{bare[-1].split('…')[-1]}{suffix}"
        spans.append((int(match[1]), int(match[2] or match[1])))
    spans.sort()
    gapless = all(before[1] + 1 >= after[0] for before, after in pairwise(spans))
    between = "-" if gapless and not any("…" in label for label in bare) else "…"
    return f"{spans[0][0]}{between}{max(last for _, last in spans)}{suffix}"


def join_labels(labels: Sequence[str], most: int = 6) -> str:
    """Return labels as a list in which consecutive numbers are runs.

    >>> join_labels(["0", "1", "2", "7", "enc (forward)"])
    '0-2, 7, enc (forward)'
    """
    pieces: list[list[str]] = []
    for label in labels:
        if label.isdigit() and pieces and pieces[-1][-1].isdigit() and int(label) == int(pieces[-1][-1]) + 1:
            pieces[-1].append(label)
        else:
            pieces.append([label])
    said = [piece[0] if len(piece) == 1 else f"{piece[0]}-{piece[-1]}" for piece in pieces]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def _distance(a: Row, b: Row) -> float:
    """Return how far two rows are apart, in nats of half-life; broken layers are far from all others."""
    if a.median_half_life is None or b.median_half_life is None:
        alike = a.median_half_life is b.median_half_life and a.first.taps == b.first.taps
        return 0.0 if alike else math.inf
    pairs = ((a.median_half_life, b.median_half_life), (a.longest("half_life"), b.longest("half_life")))
    gaps = []
    for x, y in pairs:
        if x is None or y is None:
            continue
        if math.isinf(x) or math.isinf(y):
            gaps.append(0.0 if x == y else 1e3)
        else:
            gaps.append(abs(math.log(max(x, 1e-3)) - math.log(max(y, 1e-3))))
    unlike = any(bool(getattr(a.first, field)) != bool(getattr(b.first, field)) for field in ("nonfinite", "unstable"))
    return max(gaps) + 1e3 * unlike


def _kind(row: Row) -> tuple[object, ...]:
    layer = row.first
    branch = re.search(r" \(.*\)$", layer.name)
    return (layer.family, layer.channels, layer.modes, layer.dtype, layer.time_invariant, branch and branch.group(0))
