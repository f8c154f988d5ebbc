"""Observed memory on the screen: what the model uses, what its layers retain, and what their weights say of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import Answer
from ssmdiag.reports.console import Column, Page, few
from ssmdiag.reports.folding import join_labels, label_layers
from ssmdiag.reports.pictures import heat_map
from ssmdiag.reports.probe.pictures import retention_picture, use_picture

if TYPE_CHECKING:
    from ssmdiag.probing.probe import ProbedLayer, ProbedMemory
    from ssmdiag.probing.retention import HalfLives
    from ssmdiag.reports.answer import Status
    from ssmdiag.reports.interface import Settings
    from ssmdiag.reports.probe.json import Shown

FEW_ROWS, MOST_REMARKS = 5, 4
"""Rows of the table and remarks of a short report."""
HIGH, LOW = 10, 7
"""Lines of a picture, with `--full` and without."""
WIDE = 100
"""Columns from which on the table has every column."""
USE_CAPTION = "share of the past's effect on the answers kept with so many steps of it"
ROUNDED_CAPTION = (
    " error of a layer's output with its state rounded at every step, in percent of the output: median channel / "
    "worst; an int8 state with one fixed scale per number, channel or layer"
)
Compared = tuple["Shown", "ProbedMemory"]


def report(memory: ProbedMemory, shown: Shown, settings: Settings, compared: Sequence[Compared] = ()) -> str:
    """Return the report of one model; `compared` is the same model on other texts."""
    memory, shown, compared = printable_record((memory, shown, tuple(compared)))
    labels = label_layers([layer.name for layer in memory.layers])
    page = Page(settings)
    said = answer(memory, labels)
    page.paragraph(said.line, said.style)
    if not settings.quiet:
        page.paragraph(_heading(memory, shown))
        _body(page, memory, labels)
        if settings.full:
            page.remarks([*use_remarks(memory), *remarks(memory, labels, settings.width >= WIDE)])
        else:
            page.remarks(_short_remarks(memory, labels))
    for texts, other in compared:
        page.gap()
        page.paragraph(f"On {', '.join(texts.texts)}: {answer(other, labels).text}", "bold")
        if not settings.quiet and other.layers:
            page.tables(_columns(*_shown(other.layers, labels, settings), settings))
    return page.text()


def _body(page: Page, memory: ProbedMemory, labels: Sequence[str]) -> None:
    """Write tables and pictures: of a short report one each, of the layers that retain longest."""
    settings = page.settings
    if memory.layers:
        page.tables(_columns(*_shown(memory.layers, labels, settings), settings))
    if settings.plots and (settings.full or not memory.use):
        _pictures(page, memory.layers, labels)
    if settings.plots and memory.use:
        picture = use_picture(memory.use.by_cutting.lost, settings, height=HIGH if settings.full else LOW)
        page.picture(picture, USE_CAPTION)
    if settings.full and any(layer.observed and layer.observed.rounded_state for layer in memory.layers):
        page.gap()
        page.paragraph(ROUNDED_CAPTION)
        page.tables(_rounded(memory.layers, labels))


def _shown(
    layers: Sequence[ProbedLayer], labels: Sequence[str], settings: Settings
) -> tuple[Sequence[ProbedLayer], Sequence[str]]:
    """Return the layers of the table and their labels: of a short report those that retain longest."""
    if settings.full or settings.all_layers or len(layers) <= FEW_ROWS:
        return layers, labels
    longest = sorted(sorted(range(len(layers)), key=lambda k: -_p95(layers[k]))[:FEW_ROWS])
    return [layers[k] for k in longest], [labels[k] for k in longest]


def _short_remarks(memory: ProbedMemory, labels: Sequence[str]) -> list[str]:
    """Return what a reader of the short report has to know."""
    said = [
        f"not observed: layer {label}: {layer.error}"
        for layer, label in zip(memory.layers, labels, strict=True)
        if layer.error
    ]
    said += list(use_remarks(memory))[-1:] if memory.use is None else []
    if len(memory.layers) > FEW_ROWS:
        said.append(f"the {FEW_ROWS} of {len(memory.layers):,} layers that retain longest: --full")
    return few([*said, *(f"left out: {sentence}" for sentence in memory.left_out)], MOST_REMARKS)


def _heading(memory: ProbedMemory, shown: Shown) -> str:
    families = words.families(layer.title for layer in memory.layers) or "no layer that ssmdiag can observe"
    texts = f"{words.plural(memory.texts, 'text')} of {memory.length:,} steps"
    source = f" ({', '.join(map(words.checkpoint_name, shown.texts))})" if shown.texts else ""
    return f"{words.checkpoint_name(shown.model)}  {families}  {texts}{source}  {memory.device} {memory.dtype}"


def answer(memory: ProbedMemory, labels: Sequence[str]) -> Answer:
    """Return what the model uses of its past, and what its layers retain of it."""
    use, errors = memory.use, sum(layer.error is not None for layer in memory.layers)
    parts = [_uncapitalised(use.sentence).rstrip(".")] if use else []
    told = use is not None and "half" not in use.by_cutting.untold
    status: Status = ("warning" if use.by_cutting.none else "ok") if use and told else "undetermined"
    if errors:
        status = "problem"
        parts.insert(0, f"{errors:,} of {words.plural(len(memory.layers), 'layer')} could not be observed")
    return Answer(status, "; ".join(part for part in (*parts, _retained(memory, labels)) if part))


def _retained(memory: ProbedMemory, labels: Sequence[str]) -> str:
    seen = [(layer, label) for layer, label in zip(memory.layers, labels, strict=True) if layer.observed]
    if not seen:
        if memory.layers:
            return "no layer could be observed"
        return "" if memory.use else f"{memory.model} has no layer whose memory ssmdiag can observe"
    layer, label = max(seen, key=lambda one: _p95(one[0]))
    assert layer.observed is not None
    lives = layer.observed.half_life
    where = f"layer {label} retains longest: half" if len(memory.layers) > 1 else "half"
    if len(memory.layers) > 1 and _is_sampled(layer):  # which is first may be by their choice
        where = f"of the channels looked at, those of layer {label} retain longest: half"
    text = f"{where} of a state is gone after {_said(lives, 'median')} in the median, "
    text += f"one in twenty lasts for {_said(lives, 'p95')}{' or more' * ('p95' not in lives.at_least)}"
    if layer.nominal:
        text += f"; with the gates at rest, {words.steps(layer.nominal.median)} and {words.steps(layer.nominal.p95)}"
    return text


def _is_sampled(layer: ProbedLayer) -> bool:
    return layer.observed is not None and layer.observed.channels_sampled != layer.channels


def _said(lives: HalfLives, name: str) -> str:
    return f"{'at least ' * (name in lives.at_least)}{words.in_steps(getattr(lives, name))}"


def _p95(layer: ProbedLayer) -> float:
    return layer.observed.half_life.p95 if layer.observed else -1.0


def _steps(lives: HalfLives, name: str) -> str:
    return f"{'≥ ' * (name in lives.at_least)}{words.steps(getattr(lives, name))}"


def use_remarks(memory: ProbedMemory) -> Iterator[str]:
    """Yield what is known of the use of the past beyond the headline."""
    use = memory.use
    if use is None:
        if memory.use_reason:
            yield f"how far back the answers use their past is not known: {memory.use_reason}"
        return
    cutting = use.by_cutting
    reached = {"half": "half", "nine_tenths": "90 %", "all_but_a_hundredth": "99 %"}
    parts = [
        f"{share} with {'more than ' if steps is None else ''}{steps if steps is not None else cutting.tested:,}"
        for name, share in reached.items()
        if name not in cutting.untold
        for steps in [getattr(cutting, name)]
    ]
    if parts and not cutting.none:
        yield f"of the past's effect on the answers there is kept {', '.join(parts)} steps of it (by cutting)"
    if use.loss is not None:
        useful = f"the loss, {use.loss:.3g} nats, gains from more context "
        if use.useful is None:
            yield f"{useful}nowhere that shows"
        else:
            yield f"{useful}up to {use.useful:,} steps at least"
    if use.sees_ahead:
        yield "the answers depend on later steps too: only their past was cut"


def _columns(layers: Sequence[ProbedLayer], labels: Sequence[str], settings: Settings) -> list[Column]:
    observed = [layer.observed for layer in layers]
    wide = settings.width >= WIDE
    nominal = [layer.nominal for layer in layers]

    def lives(name: str) -> list[str]:
        return [_steps(one.half_life, name) if one else "–" for one in observed]

    def share(name: str) -> list[str]:
        return [_percent(getattr(one, name)) if one else "–" for one in observed]

    columns = [
        (True, Column("\nlayer", labels, "left", overflow="fold")),
        (wide, Column("\nfamily", [layer.title for layer in layers], "left")),
        (wide, Column("at rest\nmedian", [words.steps(one.median if one else None) for one in nominal])),
        (
            True,
            Column(
                "at rest\n95 %" if not wide else "\n95 %", [words.steps(one.p95 if one else None) for one in nominal]
            ),
        ),
        (True, Column("observed\nmedian", lives("median"))),
        (True, Column("\n95 %", lives("p95"))),
        (settings.full, Column("\n99 %", lives("p99"))),
        (True, Column("beyond\nthe text", share("censored"))),
        (settings.full, Column("tokens\nhold", share("hold"))),
        (settings.full, Column("\nreset", share("reset"))),
        (True, Column("law,\nover lags", [_law(layer) for layer in layers], "left", wraps=True, overflow="fold")),
    ]
    return [column for is_shown, column in columns if is_shown]


def _rounded(layers: Sequence[ProbedLayer], labels: Sequence[str]) -> list[Column]:
    stepped = [
        (label, layer.observed.rounded_state)
        for layer, label in zip(layers, labels, strict=True)
        if layer.observed and layer.observed.rounded_state
    ]
    formats = stepped[0][1]
    columns = [Column("\nlayer", [label for label, _ in stepped], "left", overflow="fold")]
    for name in formats:
        kind, _, scale = name.replace(" state", " number").partition(" ")
        cells = [f"{_error(found[name].median)} / {_error(found[name].worst)}" for _, found in stepped]
        columns.append(Column(f"{kind}\n{scale}" if scale else f"\n{kind}", cells))
    return columns


def _error(share: float) -> str:
    """Return a relative error in percent, with two digits; with one below a tenth, so that a table fits 80 columns.

    >>> [_error(share) for share in (0.0, 2.4e-6, 4.24e-5, 0.0051, 0.164, 2.5, math.inf)]
    ['0', '<0.001', '0.004', '0.51', '16', '250', '∞']
    """
    percent = 100 * share
    if math.isinf(percent):
        return "∞"
    if 0 < percent < 0.095:
        return f"{percent:.1g}" if percent >= 0.00095 else "<0.001"
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.2g}"


def _law(layer: ProbedLayer) -> str:
    if layer.observed is None:
        return "not observed"
    law = layer.observed.law
    if law.window is None or law.law == "undetermined":
        return "none said"
    return f"{law.law} {law.window[0]:,}–{law.window[1]:,}"


def _percent(share: float) -> str:
    """Return a share in percent; one that is not 0 is never `0 %`."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 0.95 or percent == 0 else "< 1 %"


def _pictures(page: Page, layers: Sequence[ProbedLayer], labels: Sequence[str]) -> None:
    rows = {
        label: [(float(lag), left) for lag, left in layer.observed.retention]
        for layer, label in zip(layers, labels, strict=True)
        if layer.observed
    }
    if not rows:
        return
    longest = max((layer for layer in layers if layer.observed), key=_p95)
    label = labels[list(layers).index(longest)]
    assert longest.observed is not None
    dot, rest = ("•", "·") if page.settings.unicode else ("*", ".")
    caption = f"layer {label}: share of a state left after so many steps: observed {dot}, at rest {rest}"
    curves = {"observed": longest.observed.retention, "nominal": longest.nominal_retention}
    full = page.settings.full
    height = HIGH if full else LOW
    page.picture(retention_picture(curves["nominal"], curves["observed"], page.settings, height=height), caption)
    if len(rows) > 1 and full:
        page.picture(heat_map(rows, page.settings), "the same of every layer, observed")


def remarks(memory: ProbedMemory, labels: Sequence[str], wide: bool) -> Iterator[str]:
    """Yield what a reader must know of how it was observed; `wide`: the table names the families."""
    for layer, label in zip(memory.layers, labels, strict=True):
        if layer.error:
            yield f"not observed: layer {label}: {layer.error}"
    if any(layer.observed for layer in memory.layers):
        yield "a state that is retained need not be used" * bool(memory.use) or (
            "a state that is retained need not be used: nothing here says how far back the answers depend on it"
        )
        yield (
            "half-lives in steps, over channels, positions and modes alike; at rest: with the gates at their bias, as "
            "`ssmdiag inspect` reads them; ≥: some are longer than the text before their position"
        )
        yield (
            "hold, reset: tokens at which a channel's slowest mode loses at most a hundredth of its state, half of it "
            "or more"
        )
    by_family: dict[str, list[str]] = {}
    for layer, label in zip(memory.layers, labels, strict=True):
        by_family.setdefault(layer.title, []).append(label)
    if len(by_family) > 1 and not wide:
        parts = [f"{family}: {join_labels(where)}" for family, where in by_family.items()]
        yield f"layers of {'; '.join(parts)}"
    sampled = [layer for layer in memory.layers if _is_sampled(layer)]
    if sampled and sampled[0].observed:
        channels = words.plural(sampled[0].observed.channels_sampled, "channel")
        yield (
            f"half-lives and retention are of {channels} a layer, spread evenly over the rates of their weights: "
            "the longest half-lives, and which layer is first in them, can change with more --channels"
        )
    by_reason: dict[str, list[str]] = {}
    for layer, label in zip(memory.layers, labels, strict=True):
        law = layer.observed.law if layer.observed else None
        if law is not None and law.law == "undetermined":
            by_reason.setdefault(law.reason, []).append(label)
    for reason, where in by_reason.items():
        yield f"no law is said of layer{'s' * (len(where) > 1)} {join_labels(where)}: {reason}"
    overwriting = [label for layer, label in zip(memory.layers, labels, strict=True) if layer.overwrites]
    if overwriting:
        yield f"layer {join_labels(overwriting)}: writing replaces what is stored, so these bound memory from above"
    for (family, why), count in Counter((one.family, one.why) for one in memory.without_clock).items():
        yield f"not observed: {words.plural(count, 'layer')} of {family}: {why}"
    yield from (f"left out: {sentence}" for sentence in memory.left_out)


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]
