"""A conversion on the screen: proven or not, where it differs most, what was and was not looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ssmdiag.compare.conversion import Outcome
from ssmdiag.printable import printable, printable_record
from ssmdiag.reports import words
from ssmdiag.reports.compare.run import plain_table, write
from ssmdiag.reports.console import close_console, open_console
from ssmdiag.reports.folding import join_labels, label_layers

if TYPE_CHECKING:
    from ssmdiag.compare.conversion import ConversionProof, LayerProof
    from ssmdiag.compare.spectrum_matching import Difference
    from ssmdiag.reports.interface import Settings

MOST_ROWS = 12


def conversion_report(proof: ConversionProof, settings: Settings) -> str:
    """Return the report of a comparison that proves, or does not."""
    proof = printable_record(proof)
    labels = label_layers([layer.a or layer.b or "" for layer in proof.layers])
    out = open_console(settings)
    names = [words.checkpoint_name(path) for path in (proof.a, proof.b)]
    if names[0] == names[1]:
        folders = [printable(Path(path).absolute().parent.name) for path in (proof.a, proof.b)]
        names = [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    write(
        out,
        f"a {names[0]}  b {names[1]}  {words.plural(len(proof.layers), 'layer')}  {proof.device} {proof.seconds:.1f} s",
        "bold",
    )
    write(out, _answer(proof, labels), "bold green" if proof.proven else "bold red")
    for problem in proof.problems:
        write(out, f"not read: {problem}", "red", indent=2)
    if not settings.quiet:
        out.print()
        out.print(_table(proof, labels, settings))
        out.print()
        for remark in _remarks(proof, labels):
            write(out, remark, "", indent=2)
    return close_console(out, settings)


def _answer(proof: ConversionProof, labels: Sequence[str]) -> str:
    wrong = [i for i, layer in enumerate(proof.layers) if not layer.proven]
    if wrong:
        worst = max(wrong, key=lambda i: _size(proof.layers[i]))
        count = f"{len(wrong)} of {words.plural(len(proof.layers), 'layer')}" if len(proof.layers) > 1 else "the layer"
        return f"Not the same memory in {count}. Layer {labels[worst]}{_detail(proof.layers[worst])}."
    if not proof.proven:
        return "Not proven: part of a checkpoint could not be read."
    spectra = max((layer.spectrum.value for layer in proof.layers if layer.spectrum), default=None)
    kernels = max((layer.kernel.value for layer in proof.layers if layer.kernel), default=None)
    allowed = min(layer.tolerance for layer in proof.layers)
    parts = [f"rates and frequencies of every mode agree {_within(spectra)}"] if spectra is not None else []
    parts += [f"kernels {_within(kernels)}{' of their peak' if kernels else ''}"] if kernels is not None else []
    moved = sum(layer.outcome is Outcome.REORDERED for layer in proof.layers)
    order = f" In {words.plural(moved, 'layer')} modes or channels stand in another order." if moved else ""
    every = f"all {len(proof.layers)} layers" if len(proof.layers) > 1 else "its layer"
    return f"Proven: the same memory in {every}; {', '.join(parts)} ({_small(allowed)} allowed).{order}"


def _within(value: float) -> str:
    return f"within {_small(value)}" if value else "to the last bit"


def _detail(layer: LayerProof) -> str:
    """Return what is wrong with a layer, to follow its label."""
    if layer.outcome is Outcome.MISSING or layer.spectrum is None:
        return f": {'; '.join(layer.notes)}"
    if layer.spectrum.value > layer.tolerance:
        mode = layer.spectrum
        rates, turns = (-mode.a.real, -mode.b.real), (mode.a.imag, mode.b.imag)
        what = f"rate {_number(rates[0])} in a, {_number(rates[1])} in b"
        if abs(rates[0] - rates[1]) < 0.99 * mode.value * max(map(abs, rates)):
            what = f"frequency {_number(turns[0])} in a, {_number(turns[1])} in b"
        return (
            f", channel {mode.channel}, mode {mode.at}: {what}; {_small(mode.value)} apart, "
            f"{_small(layer.tolerance)} allowed"
        )
    assert layer.kernel is not None
    kernel = layer.kernel
    return (
        f", channel {kernel.channel}: its modes agree, its kernel does not; at lag {kernel.at:,} it is "
        f"{_number(kernel.a.real)} in a, {_number(kernel.b.real)} in b, {_small(kernel.value)} of the peak apart, "
        f"{_small(layer.tolerance)} allowed"
    )


def _table(proof: ConversionProof, labels: Sequence[str], settings: Settings) -> object:
    rows = sorted(range(len(labels)), key=lambda i: (proof.layers[i].proven, -_size(proof.layers[i])))
    shown = sorted(rows if settings.all_layers else rows[:MOST_ROWS])
    table = plain_table()
    heads = ("layer", "channels\n× modes", "stored\na, b", "largest difference\nof a mode", "\nof kernels", "\nallowed")
    for position, head in enumerate(heads):
        table.add_column(head, justify="left" if position in (0, 2) else "right", no_wrap=True)
    table.add_column("\nmemory", no_wrap=True)
    for i in shown:
        layer = proof.layers[i]
        stored = layer.dtypes[0] if layer.dtypes[0] == layer.dtypes[1] else ", ".join(layer.dtypes)
        cells = [
            labels[i],
            f"{layer.channels:,} × {layer.modes:,}",
            stored.replace("bfloat", "bf").replace("float", "f"),
            _of(layer.spectrum),
            _of(layer.kernel),
            _small(layer.tolerance) if layer.tolerance else "–",
            layer.outcome.value,
        ]
        table.add_row(*(Text(cell) for cell in cells), style="" if layer.proven else "red")
    left = len(rows) - len(shown)
    if left:
        table.add_row(Text("…"), Text(f"{left} that differ less"))
    return table


def _remarks(proof: ConversionProof, labels: Sequence[str]) -> list[str]:
    noted: dict[str, list[str]] = {}
    for layer, label in zip(proof.layers, labels, strict=True):
        for note in layer.notes:
            noted.setdefault(note, []).append(label)
    remarks = [f"layer{'s' * (len(where) > 1)} {join_labels(where)}: {note}" for note, where in noted.items()]
    mixed = {layer.dtypes for layer in proof.layers if layer.dtypes[0] != layer.dtypes[1]}
    for dtypes in sorted(mixed):
        remarks.append(
            f"{dtypes[0]} beside {dtypes[1]}: rounding alone moves a rate, so that much is allowed (--tolerance)"
        )
    with_kernel = [layer for layer in proof.layers if layer.kernel]
    looked = "compared: the decay rate and frequency of every mode"
    if with_kernel:
        at = f"{len(proof.lags)} lags from 0 to {proof.lags[-1]:,}"
        looked += f"; kernels of {words.plural(len(with_kernel), 'layer')} at {at}"
    unseen = ["all tensors outside the recurrence"]
    if len(with_kernel) < len(proof.layers):
        unseen.insert(0, "B and C where the weights do not hold them")
    if any(not layer.time_invariant for layer in proof.layers):
        unseen.insert(0, "the projections that steer a decay by the input")
    return [*remarks, looked, f"not compared: {', '.join(unseen)}"]


def _size(layer: LayerProof) -> float:
    """Return by how much a layer differs, in tolerances."""
    if layer.spectrum is None and layer.kernel is None:
        return float("inf")
    values = [difference.value for difference in (layer.spectrum, layer.kernel) if difference]
    return max(values) / layer.tolerance if layer.tolerance else max(values)


def _of(difference: Difference | None) -> str:
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
