"""Pictures made of characters. The only module that imports plotext."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.reports.console import wrap
from ssmdiag.reports.folding import Row
from ssmdiag.reports.words import decade, steps

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import LayerDecay
    from ssmdiag.reports.interface import Settings

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"
COLOURS = (12, 2, 1, 6, 5, 3, 4, 10, 9, 14, 13, 11)
"""Of the signals of a figure, by their numbers in a terminal's palette: neither black, white nor grey."""
MOST_POINTS = 600
"""Most eigenvalues drawn in one disc; more only blacken it."""


def open_figure(settings: Settings, most: int, height: int) -> Any:
    """Return an empty figure of a height, as wide as the screen is or `most` columns."""
    import plotext

    plotext.terminal.limit(False, False)
    plotext.figure.clear()
    plotext.figure.plot_size(min(settings.width - 1, most), height)
    return _dressed(plotext.figure, settings)


def open_panels(figure: Any, columns: int, settings: Settings) -> list[Any]:
    """Return the panels of a figure, side by side."""
    figure.subplots(1, columns)
    return [_dressed(figure.subplot(1, column + 1), settings) for column in range(columns)]


def _dressed(panel: Any, settings: Settings) -> Any:
    """Return a figure, or a panel of one, in colours that are seen on a dark and on a light screen.

    A panel does not take the theme of its figure: by default its ground is bright white.
    """
    import plotext

    plotext.add_theme("ssmdiag", sequence=COLOURS)
    panel.theme("ssmdiag" if settings.colour else "colorless")
    return panel


def draw(panel: Any, points: Sequence[tuple[float, float]], marker: str, *, lines: bool = False) -> None:
    """Draw points, or the lines between them, into a figure or a panel of one."""
    if points:
        signal = panel.signal([x for x, _ in points], [y for _, y in points], marker=marker)
        panel.draw(signal.lines() if lines else signal)


def rule(panel: Any, first: float, last: float) -> None:
    """Put five ticks in steps on the x axis."""
    where = [first + (last - first) * k / 4 for k in range(5)]
    panel.ruler("x").lim(first, last)
    panel.ruler("x").ticks(where, [steps(step) if step else "0" for step in where])


def drawn(figure: Any, settings: Settings) -> list[str]:
    """Return the lines of a figure."""
    import plotext

    text = re.sub(r"38;5;(?:0|7|8|15)m", "38;5;12m", str(figure.build()))  # plotext's own colours follow ours
    return (text if settings.colour else plotext.uncolorize(text)).splitlines()


def time_constant_strip(
    rows: Sequence[Row], context: int | None, first_decade: int, bins_per_decade: int, settings: Settings
) -> list[str]:
    """Return one line per row: share of its modes per bin of log time constant, under a ruler in steps."""
    ramp = BLOCKS if settings.unicode else ASCII_BLOCKS
    total = [sum(counts) for counts in zip(*(row.histogram for row in rows), strict=True)]
    if not any(total):
        return []
    used = [position for position, count in enumerate(total) if count]
    there = len(total) // bins_per_decade
    start = min(used[0] // bins_per_decade, there - 2)
    stop = max(used[-1] // bins_per_decade + 1, start + 2)
    if context:
        start = min(start, math.floor(math.log10(context)) - first_decade)
        stop = max(stop, min(math.ceil(math.log10(context)) - first_decade, there))
    gutter = max([len(row.label) for row in rows] + [5]) + 3
    decades = stop - start
    cell = next((w for w in (3, 2) if gutter + decades * bins_per_decade * w + 5 <= settings.width), 1)
    wide = bins_per_decade * cell
    ruler = [" "] * (decades * wide + 6)
    for tick in range(decades + 1):
        text = decade(first_decade + start + tick) if wide >= 5 or tick % 2 == 0 else ""
        ruler[tick * wide : tick * wide + len(text)] = text
    lines = [f" {'layer':<{gutter - 1}}{''.join(ruler).rstrip()}"]
    for row in rows:
        counts = row.histogram[start * bins_per_decade : stop * bins_per_decade]
        top = max(counts) or 1
        bar = "".join(_block(count, top, ramp) * cell for count in counts)
        lines.append(f" {row.label:<{gutter - 1}}{bar.rstrip()}")
    if context:
        at = (math.log10(context) - first_decade) * bins_per_decade - start * bins_per_decade
        column = gutter + min(max(int(at * cell), 0), decades * wide)
        text = f"▲ context {context:,}"
        lines.append(
            " " * column + text
            if column + len(text) <= settings.width
            else " " * (column - len(text) + 1) + text[2:] + " ▲"
        )
    return lines


def heat_map(rows: Mapping[str, Sequence[tuple[float, float]]], settings: Settings) -> list[str]:
    """Return one line per row: (lag, share in [0, 1]) curves as shades against log lag, under a ruler in steps."""
    ramp = BLOCKS if settings.unicode else ASCII_BLOCKS
    gutter = max([len(label) for label in rows] + [5]) + 3
    columns = min(settings.width - gutter - 6, 72)
    last = max((lag for curve in rows.values() for lag, value in curve if value >= 0.01), default=0.0)
    top = max(math.ceil(2 * math.log10(1 + last)) / 2, 1.0)
    ruler = [" "] * (columns + 6)
    for tick in range(math.floor(top) + 1):
        at = round(columns * tick / top)
        text = decade(tick)
        ruler[at : at + len(text)] = text
    lines = [f" {'layer':<{gutter - 1}}{''.join(ruler).rstrip()}"]
    for label, curve in rows.items():
        lags = (10 ** ((column + 0.5) / columns * top) - 1 for column in range(columns))
        shades = "".join(_shade(_interpolate(curve, lag), ramp) for lag in lags)
        lines.append(f" {label:<{gutter - 1}}{shades.rstrip()}")
    key = "  ".join(
        f"{ramp[-1 if level == 1 else round(level * (len(ramp) - 1))]} {level:g}" for level in (1, 0.5, 0.1)
    )
    return [*lines, f" {'':<{gutter - 1}}{key}"]


def _interpolate(curve: Sequence[tuple[float, float]], lag: float) -> float:
    """Return the curve at a lag, linear in log(1 + lag); zero past its end."""
    before = [point for point in curve if point[0] <= lag]
    after = [point for point in curve if point[0] > lag]
    if not before or not after:
        return (before or after)[-1 if before else 0][1] if not before or before[-1][0] == lag else 0.0
    (x0, y0), (x1, y1) = before[-1], after[0]
    share = (math.log1p(lag) - math.log1p(x0)) / (math.log1p(x1) - math.log1p(x0))
    return y0 + (y1 - y0) * share


def _shade(value: float, ramp: str) -> str:
    return ramp[0] if value < 0.01 else ramp[max(1, round(min(value, 1.0) * (len(ramp) - 1)))]


def _block(count: int, top: int, ramp: str) -> str:
    return ramp[0] if count == 0 else ramp[max(1, round(count / top * (len(ramp) - 1)))]


def disc(rows: Sequence[Row], settings: Settings) -> list[str]:
    """Return the complex disc unrolled and zoomed to its edge: depth below |λ̄| = 1 against angle, with a caption.

    Empty where all eigenvalues are real and positive: there the strip of time constants says it all.
    """
    points = [
        (rate, abs(math.remainder(frequency, 2 * math.pi)), position)
        for position, row in enumerate(rows)
        for layer in row.layers
        for rate, frequency in _thinned(layer.eigenvalues, 1 + MOST_POINTS // sum(len(r.layers) for r in rows))
        if 0 < rate < math.inf
    ]
    if not any(angle > 1e-9 for _, angle, _ in points):
        return []
    slowest = min(points)[2]
    figure = open_figure(settings, 100, 10)
    depths = [_depth(rate) for rate, _, _ in points]
    for chosen, marker, plain in ((False, "braille", "."), (True, "dot", "*")):
        mine = [(angle / math.pi, _depth(rate)) for rate, angle, at in points if (at == slowest) is chosen]
        draw(figure, mine, marker if settings.unicode else plain)
    low, high = math.floor(min(depths)), math.ceil(max(depths) + 0.01)
    pi = "π" if settings.unicode else "pi"
    every = 1 + (high - low) // 6
    figure.ruler("y").lim(low, high)
    figure.ruler("y").ticks(list(range(low, high + 1, every)), [_power(-d) for d in range(low, high + 1, every)])
    figure.ruler("x").lim(0, 1)
    figure.ruler("x").ticks([0, 0.25, 0.5, 0.75, 1], ["0", f"{pi}/4", f"{pi}/2", f"3{pi}/4", pi])
    marked = f"; • layer {rows[slowest].label}" if len(rows) > 1 else ""
    caption = f" eigenvalues: 1 − |λ̄| against angle, the boundary at the top{marked}"
    return [caption, *drawn(figure, settings)]


def _thinned(modes: Sequence[tuple[float, float]], most: int) -> Sequence[tuple[float, float]]:
    return modes[:: max(1, math.ceil(len(modes) / most))]


def _depth(rate: float) -> float:
    """Return how many decades a mode lies inside the unit circle: −log₁₀(1 − |λ̄|)."""
    return -math.log10(-math.expm1(-rate))


def _power(exponent: int) -> str:
    return {0: "1", -1: "0.1", -2: "0.01"}.get(exponent, f"1e{exponent}")


def decay_picture(decay: LayerDecay, what: str, settings: Settings) -> list[str]:
    """Return a layer's kernel in dB against log lag and against lag, with the laws that were compared."""
    letters = {law.value[0]: list(curve) for law, curve in decay.curves.items()}
    names = ", ".join(f"{law.value[0]} {law.value}" for law in decay.curves)
    if tail := _tail_curve(decay):
        letters["m"], names = tail, f"{names}, m by its modes"
    found = decay.tail or decay.whole.law.value != "undetermined"
    chosen = f"chosen: {decay.law[0]}" if found else "none of them chosen"
    caption = f"{what}rms envelope in dB below its peak: • as read, {names}; {chosen}"
    return [*wrap(f" {caption}", settings, hanging=0), *_decay_panels(decay.envelope, letters, settings)]


def decay_strip(decay: LayerDecay, what: str, settings: Settings) -> list[str]:
    """Return a layer's kernel in dB against log lag in eight lines, with the law that was found, if any."""
    law = None if decay.whole.law.value == "undetermined" else decay.whole.law
    curve = list(decay.curves.get(law, ())) if law else _tail_curve(decay)
    figure = open_figure(settings, 72, 7)
    low = 10 * math.floor(min(level for _, level in decay.envelope) / 10) - 5
    last = max(lag for lag, _ in decay.envelope)
    dot = "dot" if settings.unicode else "*"
    for marker, points in ((decay.law[0][0], curve), (dot, decay.envelope)):
        draw(figure, [(math.log10(1 + lag), level) for lag, level in points if low <= level <= 5], marker)
    _rule_lags(figure, low, last, 2)
    named = f", {decay.law[0][0]} {decay.law[0]}" if curve else ""
    caption = f" {what} in dB below its peak, against lag: • as read{named}"
    return [*wrap(caption, settings, hanging=0), *drawn(figure, settings)]


def _rule_lags(panel: Any, low: float, last: float, most: int) -> None:
    """Put ticks on the axes of a kernel in dB, at most so many below 0, against log lag."""
    panel.ruler("y").lim(low, 5)
    every = 10 * max(1, math.ceil(-low / (10 * most)))
    levels = list(range(0, int(low), -every))
    panel.ruler("y").ticks(levels, [str(level) for level in levels])
    ticks = [10.0**d for d in range(math.ceil(math.log10(last + 1)) + 1) if 10**d <= last + 1]
    panel.ruler("x").ticks([math.log10(1 + t) for t in ticks], [decade(round(math.log10(t))) for t in ticks])
    panel.ruler("x").lim(0.0, math.log10(1 + last))


def _tail_curve(decay: LayerDecay) -> list[tuple[float, float]]:
    """Return the line of the tail's rate through the envelope, where no law was fitted."""
    tail = decay.tail
    inside = [(lag, level) for lag, level in decay.envelope if tail and tail.first <= lag <= tail.last]
    if tail is None or len(tail.rates) > 1 or decay.whole.law.value != "undetermined" or not inside:
        return []
    fall = 20 / math.log(10) * tail.rate
    height = sum(level + fall * lag for lag, level in inside) / len(inside)
    return [(lag, height - fall * lag) for lag, _ in inside]


def _decay_panels(
    points: Sequence[tuple[float, float]], curves: Mapping[str, Sequence[tuple[float, float]]], settings: Settings
) -> list[str]:
    """Return (lag, dB) points against log lag and against lag side by side, with curves drawn by their letters."""
    figure = open_figure(settings, 120, 12)
    low = 10 * math.floor(min(level for _, level in points) / 10) - 5
    last = max(lag for lag, _ in points)
    panels = open_panels(figure, 2, settings)
    for panel, scale in zip(panels, (lambda lag: math.log10(1 + lag), lambda lag: lag), strict=True):
        for marker, curve in (*curves.items(), ("dot" if settings.unicode else "*", points)):
            draw(panel, [(scale(lag), level) for lag, level in curve if low <= level <= 5], marker)
        panel.ruler("y").lim(low, 5)
        every = 10 * max(1, math.ceil(-low / 60))
        levels = list(range(0, int(low), -every))
        panel.ruler("y").ticks(levels, [str(level) for level in levels])
        if panel is panels[0]:
            ticks = [10.0**d for d in range(math.ceil(math.log10(last + 1)) + 1) if 10**d <= last + 1]
            panel.ruler("x").ticks([scale(t) for t in ticks], [decade(round(math.log10(t))) for t in ticks])
            panel.title("lag, log")
        else:
            rule(panel, 0.0, last)
            panel.title("lag")
        panel.ruler("x").lim(scale(0.0), scale(last))
    return drawn(figure, settings)


def run_picture(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    limits: Mapping[str, float],
    settings: Settings,
    say: Callable[[float], str] = steps,
    *,
    height: int = 14,
) -> list[str]:
    """Return (train step, value) curves on a log axis by their letters, with limits near them as dotted lines."""
    figure = open_figure(settings, 100, height)
    logs = [math.log10(tau) for curve in curves.values() for _, tau in curve]
    low, high = min(logs), max(logs)
    # A limit is drawn where it is at most as far off as the curves are tall, and a factor of two at least.
    room = max(high - low, math.log10(2))
    near = {name: math.log10(tau) for name, tau in limits.items() if low - room <= math.log10(tau) <= high + room}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    pad = max(0.06 * (high - low), 0.02)
    first = min(step for curve in curves.values() for step, _ in curve)
    last = max(step for curve in curves.values() for step, _ in curve)
    for level in near.values():
        draw(figure, [(first, level), (last, level)], "·" if settings.unicode else ".", lines=True)
    for letter, curve in curves.items():
        points = [(step, math.log10(tau)) for step, tau in curve]
        draw(figure, points, "braille" if settings.unicode else "-", lines=True)
        draw(figure, points, letter)
    ticks: dict[float, str] = {}
    count = 4 if height > 10 else 2
    row = (high - low + 2 * pad) / (height - 4)
    for level, text in [
        *((level, f"{name} {say(10**level)}") for name, level in near.items()),
        *((level, say(10**level)) for level in (low + (high - low) * k / count for k in range(count + 1))),
    ]:
        if all(abs(level - other) >= row for other in ticks):
            ticks[level] = text
    figure.ruler("y").lim(low - pad, high + pad)
    figure.ruler("y").ticks(sorted(ticks), [ticks[level] for level in sorted(ticks)])
    rule(figure, first, last)
    return drawn(figure, settings)
