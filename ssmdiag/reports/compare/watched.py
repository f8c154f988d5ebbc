"""One checkpoint of a run that is being watched, as one line of text or of JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.printable import printable
from ssmdiag.reports import words
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import head, pick, plain

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.diagnosis import Diagnosis


def text_line(diagnosis: Diagnosis, unit: str, step: int | None, histories: Sequence[LayerHistory]) -> str:
    """Return the line of text, marked with `!` where there is something to look at."""
    failing = [history for history in histories if history.fails("converging")]
    names = [layer.name for layer in diagnosis.layers]
    labels = dict(zip(names, label_layers(names), strict=True))
    worst = _worst(diagnosis)
    name = f"{unit} {step:>9,}" if step is not None else Path(diagnosis.path).name
    parts = []
    if worst:
        longest = worst.half_life.max if worst.half_life else None
        parts.append(f"margin {words.margin(worst.margin):<7} layer {labels[worst.name]}")
        parts.append(f"half-life {words.steps(longest):<5}")
        parts.append(f"{worst.decay.law[0] if worst.decay else '–':<11}")
    broken = sum(layer.nonfinite for layer in diagnosis.layers)
    if broken:
        parts.append(f"{words.plural(broken, 'mode')} not finite")
    counts = Counter(finding.severity for finding in diagnosis.findings)
    parts += [words.plural(counts[severity], severity) for severity in ("error", "warning", "note") if counts[severity]]
    if diagnosis.problems:
        parts.append(f"{words.plural(len(diagnosis.problems), 'part')} unread")
    for verdict in dict.fromkeys(history.verdict for history in failing):
        some = [labels.get(history.name, history.name) for history in failing if history.verdict is verdict]
        parts.append(f"{verdict.value}: {', '.join(some[:4])}{' …' * (len(some) > 4)}")
    marked = failing or broken or counts["error"] or counts["warning"] or diagnosis.problems
    return printable(f"{'!' if marked else ' '} {name}  {'  '.join(parts)}").rstrip() + "\n"


def json_line(diagnosis: Diagnosis, unit: str, step: int | None, histories: Sequence[LayerHistory]) -> str:
    """Return the line of JSON: the layers' margins, half-lives and laws, findings, and what became of them so far."""
    verdicts = {history.name: history for history in histories}
    worst = _worst(diagnosis)
    document: dict[str, Any] = {
        **head(diagnosis),
        "checkpoint": pick(diagnosis, "path format train_step"),
        "unit": unit,
        "step": step,
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
