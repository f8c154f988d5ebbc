"""A conversion on the screen: proven or not, where it differs most, what was and was not looked at."""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.compare.conversion import Outcome
from ssmdiag.printable import printable, printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import Answer
from ssmdiag.reports.console import Column, Page
from ssmdiag.reports.folding import join_labels, label_layers

if TYPE_CHECKING:
    from ssmdiag.compare.conversion import ConversionProof, LayerProof
    from ssmdiag.compare.spectrum_matching import Difference
    from ssmdiag.compare.steering import SteeringDifference
    from ssmdiag.reports.interface import Settings

MOST_ROWS, FEW_ROWS = 12, 6
"""Rows of the table, with `--full` and without."""
_NOMINAL = "gates at rest"


def conversion_report(proof: ConversionProof, settings: Settings) -> str:
    """Return the report of a conversion, proven or not."""
    proof = printable_record(proof)
    labels = label_layers([layer.a or layer.b or "" for layer in proof.layers])
    page = Page(settings)
    names = [words.checkpoint_name(path) for path in (proof.a, proof.b)]
    if names[0] == names[1]:
        folders = [printable(Path(path).absolute().parent.name) for path in (proof.a, proof.b)]
        names = [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    layers = words.plural(len(proof.layers), "layer")
    said = proof_answer(proof, labels)
    page.paragraph(said.line, said.style)
    page.problems(proof.problems)
    if not settings.quiet:
        page.paragraph(f"a {names[0]}  b {names[1]}  {layers}  {proof.device} {proof.seconds:.1f} s")
        _write_table(page, proof, labels)
        page.remarks(proof_remarks(proof, labels))
    return page.text()


def proof_answer(proof: ConversionProof, labels: Sequence[str]) -> Answer:
    """Return whether the conversion is proven, and where it differs most."""
    wrong = [i for i, layer in enumerate(proof.layers) if not (layer.proven or layer.outcome is Outcome.NOMINAL)]
    if wrong:
        worst = max(wrong, key=lambda i: _size(proof.layers[i]))
        where = f"layer {labels[worst]}{_detail(proof.layers[worst])}"
        return Answer("differs", f"not the same memory in {_count(len(wrong), proof)}; {where}")
    if proof.problems:
        return Answer("undetermined", "not proven: part of a checkpoint could not be read")
    nominal = [i for i, layer in enumerate(proof.layers) if layer.outcome is Outcome.NOMINAL]
    if nominal:
        layer = proof.layers[nominal[0]]
        why = [*(layer.steering.unseen if layer.steering else ()), *(one.sentence for one in layer.settings)][0]
        return Answer(
            "same at rest",
            f"not proven: {_count(len(nominal), proof)} ha{'s' if len(nominal) == 1 else 've'} the same memory with "
            f"gates at rest, but not all that steers it by the input could be compared; layer {labels[nominal[0]]}: "
            f"{why}",
        )
    if not proof.proven:
        return Answer("undetermined", "not proven: part of a checkpoint could not be read")
    spectra = max((layer.spectrum.value for layer in proof.layers if layer.spectrum), default=None)
    kernels = max((layer.kernel.value for layer in proof.layers if layer.kernel), default=None)
    allowed = min(layer.tolerance for layer in proof.layers)
    parts = [f"rates and frequencies of every mode agree {_within(spectra)}"] if spectra is not None else []
    parts += [f"kernels {_within(kernels)}{' of their peak' if kernels else ''}"] if kernels is not None else []
    moved = sum(layer.outcome is Outcome.REORDERED for layer in proof.layers)
    order = f"; in {words.plural(moved, 'layer')} modes or channels are in another order" if moved else ""
    every = f"all {len(proof.layers)} layers" if len(proof.layers) > 1 else "its layer"
    agreed = f"{', '.join(parts)} ({_small(allowed)} allowed){_steered(proof)}"
    return Answer("same", f"proven: the same memory in {every}; {agreed}{order}")


def _steered(proof: ConversionProof) -> str:
    """Return how well the steering tensors agree, to follow the sentence on the decays."""
    compared = [one for layer in proof.layers if layer.steering for one in layer.steering.compared]
    if not compared:
        return ""
    worst, count = max(compared, key=lambda one: one.value), len({one.a for one in compared})
    allowed = f" ({_small(worst.tolerance)} allowed)" if worst.value else ""
    steer = f"{words.plural(count, 'tensor')} that steer{'s' * (count == 1)} it by the input"
    return f", and {steer} {_within(worst.value)}{allowed}"


def _count(layers: int, proof: ConversionProof) -> str:
    return f"{layers} of {words.plural(len(proof.layers), 'layer')}" if len(proof.layers) > 1 else "the layer"


def _within(value: float) -> str:
    return f"within {_small(value)}" if value else "to the last bit"


def _detail(layer: LayerProof) -> str:
    """Return what is wrong with a layer, to follow its label."""
    if layer.outcome is Outcome.MISSING or (layer.spectrum is None and layer.kernel is None):
        return f": {'; '.join(layer.notes)}"
    if layer.spectrum and layer.spectrum.value > layer.tolerance:
        mode = layer.spectrum
        if broken := [side for side, value in (("a", mode.a), ("b", mode.b)) if cmath.isnan(value)]:
            return f", channel {mode.channel}, mode {mode.at}: NaN in {' and in '.join(broken)}, which equals nothing"
        rates, turns = (-mode.a.real, -mode.b.real), (mode.a.imag, mode.b.imag)
        what = f"rate {_number(rates[0])} in a, {_number(rates[1])} in b"
        if abs(rates[0] - rates[1]) < 0.99 * mode.value * max(map(abs, rates)):
            what = f"frequency {_number(turns[0])} in a, {_number(turns[1])} in b"
        return (
            f", channel {mode.channel}, mode {mode.at}: {what}; {_small(mode.value)} apart, "
            f"{_small(layer.tolerance)} allowed"
        )
    if layer.steering and layer.steering.differing:
        return _steered_otherwise(layer.steering.differing, layer.a or "")
    if layer.kernel is None or layer.kernel.value <= layer.tolerance:
        return f": {'; '.join([one.sentence for one in layer.settings] or layer.notes)}"
    kernel = layer.kernel
    what = "its modes agree, its kernel does not" if layer.spectrum else "its taps differ"
    return (
        f", channel {kernel.channel}: {what}; at lag {kernel.at:,} it is "
        f"{_number(kernel.a.real)} in a, {_number(kernel.b.real)} in b, {_small(kernel.value)} of the peak apart, "
        f"{_small(layer.tolerance)} allowed"
    )


def _steered_otherwise(differing: Sequence[SteeringDifference], path: str) -> str:
    """Return which steering tensors of a layer differ, to follow its label; its nominal decays agree."""
    # One tensor can have several roles, as where query, key and value are rows of one matrix.
    worst, *others = dict.fromkeys(one.a.removeprefix(f"{path}.") for one in differing)
    what = differing[0].note
    if weights := differing[0].weights:
        at = ", ".join(str(index) for index in differing[0].at)
        what = f"{_number(weights[0])} in a, {_number(weights[1])} in b at [{at}]"
    also = f"; so do{'es' * (len(others) == 1)} {', '.join(others[:3])}{' …' * (len(others) > 3)}" if others else ""
    return (
        f": its decays agree with the gates at rest, what steers them by the input does not; {worst} "
        f"({differing[0].role}) differs: {what}; {_small(differing[0].tolerance)} allowed{also}"
    )


def _write_table(page: Page, proof: ConversionProof, labels: Sequence[str]) -> None:
    order = sorted(range(len(labels)), key=lambda i: (proof.layers[i].proven, -_size(proof.layers[i])))
    shown = sorted(order if page.settings.all_layers else order[: MOST_ROWS if page.settings.full else FEW_ROWS])
    layers = [proof.layers[i] for i in shown]
    steering = [layer.steering.compared if layer.steering else () for layer in layers]
    steered = any(layer.steering and layer.steering.compared for layer in proof.layers)
    kernels = not steered or any(layer.kernel for layer in proof.layers)
    columns = [
        (True, Column("layer", [labels[i] for i in shown], "left")),
        (True, Column("channels\n× modes", [f"{layer.channels:,} × {layer.modes:,}" for layer in layers])),
        (True, Column("stored\na, b", [_stored(layer) for layer in layers], "left")),
        (True, Column("largest difference\nof a mode", [_of(layer.spectrum) for layer in layers])),
        (kernels, Column("\nof kernels", [_of(layer.kernel) for layer in layers])),
        (steered, Column("of what\nsteers it", [_of(compared[0] if compared else None) for compared in steering])),
        (True, Column("\nallowed", [_small(layer.tolerance or None) for layer in layers])),
        (True, Column("\nmemory", [_memory(layer) for layer in layers], "left")),
    ]
    used = [column for is_used, column in columns if is_used]
    if left := len(order) - len(shown):
        more = ["…", f"{left} that differ less", *[""] * (len(used) - 2)]
        used = [column._replace(cells=[*column.cells, cell]) for column, cell in zip(used, more, strict=True)]
    page.tables(used, ["" if layer.proven else "red" for layer in layers] + [""] * bool(left))


def _stored(layer: LayerProof) -> str:
    return ", ".join(dict.fromkeys(layer.dtypes)).replace("bfloat", "bf").replace("float", "f")


def _memory(layer: LayerProof) -> str:
    return _NOMINAL if layer.outcome is Outcome.NOMINAL else layer.outcome.value


def proof_remarks(proof: ConversionProof, labels: Sequence[str]) -> list[str]:
    """Return what was and was not looked at."""
    noted: dict[str, list[str]] = {}
    for layer, label in zip(proof.layers, labels, strict=True):
        for note in (*layer.notes, *(layer.steering.unseen if layer.steering else ())):
            noted.setdefault(note, []).append(label)
    remarks = [f"layer{'s' * (len(where) > 1)} {join_labels(where)}: {note}" for note, where in noted.items()]
    remarks += [
        f"{a} beside {b}: rounding alone moves a rate, so that much is allowed (--tolerance)"
        for a, b in sorted({layer.dtypes for layer in proof.layers})
        if a != b
    ]
    with_kernel = [layer for layer in proof.layers if layer.kernel and layer.spectrum]
    taps = [layer for layer in proof.layers if layer.kernel and not layer.spectrum]
    looked = "compared: every tap of the convolutions"
    if len(taps) < len(proof.layers):
        more = f"; {looked.removeprefix('compared: ')}" if taps else ""
        looked = f"compared: the decay rate and frequency of every mode{more}"
    if with_kernel:
        at = f"{len(proof.lags)} lags from 0 to {proof.lags[-1]:,}"
        looked += f"; kernels of {words.plural(len(with_kernel), 'layer')} at {at}"
    steered = dict.fromkeys(
        one.a.removeprefix(f"{layer.a}.")
        for layer in proof.layers if layer.steering
        for one in layer.steering.compared
    )  # fmt: skip
    if steered:
        looked += f"; what steers it by the input: {join_labels(list(steered), 12)}"
    left = {
        "part of what steers a decay by the input": any(
            layer.steering and layer.steering.unseen for layer in proof.layers
        ),
        "B and C where the weights do not hold them": any(
            not layer.kernel and not (layer.steering and layer.steering.compared) for layer in proof.layers
        ),
        "all tensors outside the recurrence": True,
    }
    not_compared = ", ".join(what for what, applies in left.items() if applies)
    return [*proof.notes, *remarks, looked, f"not compared: {not_compared}"]


def _size(layer: LayerProof) -> float:
    """Return by how much a layer differs, in tolerances."""
    if layer.spectrum is None and layer.kernel is None:
        return float("inf")
    values = [difference.value for difference in (layer.spectrum, layer.kernel) if difference]
    most = max(values) / layer.tolerance if layer.tolerance else max(values)
    steered = layer.steering.compared if layer.steering else ()
    return max([most, *(one.value / one.tolerance if one.tolerance else one.value for one in steered)])


def _of(difference: Difference | SteeringDifference | None) -> str:
    if difference is not None and 1 <= difference.value < 10:
        return f"{100 * difference.value:.0f} %"
    return "–" if difference is None else _small(difference.value)


def _small(value: float | None) -> str:
    """Return a relative difference: 0, 3e-7, 0.4 %, 12 %.

    >>> _small(0.0), _small(3.14e-7), _small(0.004), _small(0.123), _small(7.0)
    ('0', '3.1e-7', '0.4 %', '12 %', '× 8')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if value == float("inf"):
        return "∞"
    if value < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    if value < 1:
        return f"{100 * value:.2g} %"
    return f"× {1 + value:.3g}"


def _number(value: float) -> str:
    return f"{value:.4g}".replace("e-0", "e-")
