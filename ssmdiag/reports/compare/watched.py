"""One checkpoint of a run that is being watched, as one line of text or of JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.printable import printable
from ssmdiag.reports import words
from ssmdiag.reports.compare.words import SAID
from ssmdiag.reports.folding import join_labels, label_layers
from ssmdiag.reports.json import head, pick, plain

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.answer import Status


def text_line(
    diagnosis: Diagnosis, unit: str, step: int | None, histories: Sequence[LayerHistory], width: int = 80
) -> str:
    """Return the line of text: its status, what is wrong, the layer nearest to the boundary, as far as they fit."""
    names = [layer.name for layer in diagnosis.layers]
    labels = dict(zip(names, label_layers(names), strict=True))
    parts = [*_wrong(diagnosis, histories, labels), *_numbers(diagnosis, labels)]
    name = f"{unit} {step:>9,}" if step is not None else Path(diagnosis.path).name
    line = f"{status(diagnosis, histories).upper():<7}  {printable(name)}"
    for number, part in enumerate(map(printable, parts)):
        if number and len(line) + 2 + len(part.rstrip()) >= width:
            break
        line += f"  {part}"
    return line.rstrip() + "\n"


def status(diagnosis: Diagnosis, histories: Sequence[LayerHistory]) -> Status:
    """Return whether there is something to look at: in the checkpoint itself, or in what the run does up to it."""
    severities = {finding.severity for finding in diagnosis.findings}
    broken = any(layer.nonfinite or layer.unstable for layer in diagnosis.layers)
    if broken or diagnosis.problems or "error" in severities or any(one.fails("crossing") for one in histories):
        return "problem"
    return "warning" if "warning" in severities or any(one.fails("converging") for one in histories) else "ok"


def _wrong(diagnosis: Diagnosis, histories: Sequence[LayerHistory], labels: Mapping[str, str]) -> Iterator[str]:
    broken = [layer for layer in diagnosis.layers if layer.nonfinite]
    if broken:
        modes = words.plural(sum(layer.nonfinite for layer in broken), "mode")
        yield f"{modes} not finite in {_layers([labels[layer.name] for layer in broken])}"
    if grow := [layer for layer in diagnosis.layers if layer.unstable]:
        modes = words.plural(sum(layer.unstable for layer in grow), "mode")
        yield f"{modes} growing in {_layers([labels[layer.name] for layer in grow])}"
    told = {layer.name for layer in diagnosis.layers if layer.nonfinite or layer.unstable}
    failing = [one for one in histories if one.fails("converging") and one.name not in told]
    for verdict in dict.fromkeys(one.verdict for one in failing):
        some = [labels.get(one.name, one.name) for one in failing if one.verdict is verdict]
        yield f"{_layers(some)} {SAID[verdict]}"
    counts = Counter(finding.severity for finding in diagnosis.findings)
    yield from (words.plural(counts[severity], severity) for severity in ("error", "warning") if counts[severity])
    if diagnosis.problems:
        yield f"{words.plural(len(diagnosis.problems), 'part')} unread"


def _numbers(diagnosis: Diagnosis, labels: Mapping[str, str]) -> Iterator[str]:
    if worst := _worst(diagnosis):
        yield f"margin {words.margin(worst.margin):<7} layer {labels[worst.name]}"
        yield f"half-life {words.steps(worst.half_life.max if worst.half_life else None):<5}"
        yield f"{worst.decay.law[0] if worst.decay else '–':<11}"
    if notes := sum(finding.severity == "note" for finding in diagnosis.findings):
        yield words.plural(notes, "note")


def _layers(labels: Sequence[str]) -> str:
    return f"layer{'s' * (len(labels) > 1)} {join_labels(labels, 3)}"


def json_line(diagnosis: Diagnosis, unit: str, step: int | None, histories: Sequence[LayerHistory]) -> str:
    """Return the line of JSON: the layers' margins, half-lives and laws, findings, and what became of them so far."""
    verdicts = {history.name: history for history in histories}
    worst = _worst(diagnosis)
    document: dict[str, Any] = {
        **head(diagnosis),
        "checkpoint": pick(diagnosis, "path format train_step"),
        "unit": unit,
        "step": step,
        "status": status(diagnosis, histories),
        "margin": worst and worst.margin,
        "slowest_layer": worst and worst.name,
        "half_life": worst and worst.half_life and worst.half_life.max,
        "layers": [
            {
                **pick(layer, "name family margin nonfinite_modes=nonfinite"),
                "half_life": layer.half_life and layer.half_life.max,
                "law": layer.decay and layer.decay.law[0],
                "verdict": verdicts[layer.name].verdict if layer.name in verdicts else None,
                "fails": verdicts[layer.name].fails("converging") if layer.name in verdicts else None,
            }
            for layer in diagnosis.layers
        ],
        "findings": [pick(finding, "code severity layer message") for finding in diagnosis.findings],
        **pick(diagnosis, "problems guess seconds"),
    }
    return json.dumps(plain(document), allow_nan=False) + "\n"


def _worst(diagnosis: Diagnosis) -> LayerDiagnosis | None:
    """Return the layer with the smallest margin; one with modes that are not finite before all others."""
    return min(
        diagnosis.layers,
        key=lambda layer: (not layer.nonfinite, math.inf if layer.margin is None else layer.margin),
        default=None,
    )
