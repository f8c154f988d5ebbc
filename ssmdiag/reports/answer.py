"""The first line of every report: what the diagnosis comes to, in one sentence that claims no more than is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssmdiag.printable import first_of
from ssmdiag.reports import words
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.grouping import Group, group_findings
from ssmdiag.rules import known_rules

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.diagnosis import Diagnosis

AT_REST = "with the gates at rest (inputs can change this)"
"""What is said of a number that holds for a selective layer's gates at their operating point alone."""
Status = Literal["ok", "warning", "problem", "undetermined", "same", "same at rest", "differs"]
STYLES: dict[Status, str] = {
    "ok": "bold green",
    "warning": "bold yellow",
    "problem": "bold red",
    "undetermined": "bold magenta",
    "same": "bold green",
    "same at rest": "bold magenta",
    "differs": "bold yellow",
}


@dataclass(frozen=True)
class Answer:
    """What a diagnosis comes to."""

    status: Status
    """`problem`: an error was found, a mode grows or is not a number, or part could not be read. `warning`: the worst
    finding is a warning. `undetermined`: how far the layers remember rests on what nobody has said. Else `ok`.
    `same`, `same at rest`, `differs`: of two models."""
    text: str
    """A sentence in lower case without a full stop."""

    @property
    def line(self) -> str:
        """The answer as a report begins with it."""
        return f"{self.status.upper()}  {self.text}"

    @property
    def style(self) -> str:
        """How it is written where there are colours."""
        return STYLES[self.status]


def answer(diagnosis: Diagnosis) -> Answer:
    """Return the answer: what is wrong, worst first, else how far the layers remember; and what was not judged."""
    read = [layer for layer in diagnosis.layers if layer.half_life is not None or layer.taps is not None]
    wrong = [*_unread(diagnosis), *_broken(diagnosis)]
    status: Status = "problem" if wrong else "ok"
    groups = group_findings(diagnosis)
    if groups and groups[0].worst.severity != "note":
        status = "problem" if groups[0].worst.severity == "error" else ("problem" if wrong else "warning")
        if not any(groups[0].worst.code in text for text in wrong):
            wrong.append(_leading(groups[0], diagnosis))
    memory, known = _memory(diagnosis, read, brief=bool(wrong))
    said = [*wrong, *([] if wrong and not known else [memory])]
    caveat = _caveat(diagnosis)
    if status == "ok" and (caveat or not known):
        status = "undetermined"
    said += attention(diagnosis.attention_layers)
    return Answer(status, f"{caveat}{'; '.join(said)}")


def wrong(diagnosis: Diagnosis) -> list[str]:
    """Return what is wrong with a checkpoint itself, for the first line of a report that asks for something else."""
    said = [*_unread(diagnosis), *_broken(diagnosis)]
    for group in group_findings(diagnosis):
        if group.worst.severity == "error" and not any(group.worst.code in text for text in said):
            said.append(_leading(group, diagnosis))
    return said


def _caveat(diagnosis: Diagnosis) -> str:
    """Return what the whole answer rests on, to go before it: an unreviewed map, a setting that nothing decides."""
    if diagnosis.guess:
        return "by a map nobody has reviewed: "
    for alternative in diagnosis.alternatives:
        longest = words.steps(alternative.slowest)
        if any(words.steps(other) != longest for _, other in alternative.others):
            return f"assuming {alternative.assumption.option} = {alternative.assumption.value}: "
    return ""


def _unread(diagnosis: Diagnosis) -> Iterator[str]:
    if diagnosis.problems:
        problems = words.plural(len(diagnosis.problems), "problem")
        yield f"{'only partly' if diagnosis.layers else 'not'} read ({problems})"


def _broken(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what is wrong with modes, by the numbers themselves: also where no rule was asked."""
    layers = diagnosis.layers
    labels = label_layers([layer.name for layer in layers])
    if grow := [layer for layer in layers if layer.unstable]:
        count, fastest = sum(layer.unstable for layer in grow), max(layer.spectral_radius or 0.0 for layer in grow)
        yield (
            f"{_modes(count, grow, layers, labels)} grow{'s' * (count == 1)} with every step, "
            f"{'the fastest ' if count > 1 else ''}by a factor of {words.factor(fastest)}{_code('SSM101', diagnosis)}"
        )
    if broken := [layer for layer in layers if layer.nonfinite]:
        count = sum(layer.nonfinite for layer in broken)
        which = _modes(count, broken, layers, labels)
        yield f"{which} {'is' if count == 1 else 'are'} NaN or infinite{_code('SSM401', diagnosis)}"


def _code(code: str, diagnosis: Diagnosis) -> str:
    return f" ({code})" if any(finding.code == code for finding in diagnosis.findings) else ""


def _leading(group: Group, diagnosis: Diagnosis) -> str:
    """Return the worst finding as where it is and what it means."""
    code = group.worst.code
    found = {finding.layer for finding in group.findings}
    layers = [layer for layer in diagnosis.layers if layer.name in found]
    where = group.where
    if len(layers) > 1 and len(layers) == len(found):
        where = f"{len(layers)} of {words.plural(len(diagnosis.layers), 'recurrent layer')}"
    summary = next((rule.summary for rule in known_rules() if rule.code == code), group.worst.message)
    return f"{where}: {summary} ({code})" if where else f"{summary} ({code})"


def _memory(diagnosis: Diagnosis, read: Sequence[LayerDiagnosis], *, brief: bool) -> tuple[str, bool]:
    """Return how far the layers remember, and whether that is known; `brief` where it is not the first to be said."""
    if not read:
        return "no mode could be read", False
    context = diagnosis.context_length
    horizons = [layer.horizon.max for layer in read if layer.horizon]
    if all(layer.taps is not None for layer in read):
        return _convolutions(read, horizons), True
    at_rest = AT_REST.partition(" (")[0] if brief else AT_REST
    rest = "" if all(layer.time_invariant for layer in read) else f" {at_rest}"
    if not horizons:
        slowest = max(layer.half_life.max for layer in read if layer.half_life)
        halves = "a mode never decays"
        if math.isfinite(slowest):
            halves = f"its slowest mode loses half in {_steps(slowest)}"
        return f"how far it remembers is not known; {halves}{rest}", False
    reach = max(horizons)
    if math.isinf(reach):
        if any(map(_grows, read)) and not any(layer.marginal for layer in read):
            return f"how far it remembers is not known: modes grow{rest}", False
        beyond = f", further than its context of {context:,}" if context else ""
        if any(layer.half_life and math.isinf(layer.half_life.max) for layer in read):
            return f"its slowest modes never decay{rest}: what they hold lasts until it is overwritten{beyond}", True
        return f"remembers for more than 10¹² steps{rest}{beyond}", True
    # A lower bound where a layer's horizon is unknown, or only some of its channels were examined.
    whole = len(horizons) == len(diagnosis.layers) and all(_examined(layer) for layer in read)
    # What one layer forgets the next may still hold, and attention holds it all: only each layer's reach is known.
    about = f"about {_number(reach)}" if whole else f"at least {_number(reach)}"
    which = "remembers"
    if diagnosis.attention_layers or (len(diagnosis.layers) > 1 and not (context and reach > context)):
        several = len(diagnosis.layers) > 1
        recurrent = "recurrent " * bool(diagnosis.attention_layers)
        which = (
            f"{recurrent or 'its '}layers remember{' up to' * whole}" if several else "its recurrent layer remembers"
        )
    if context is None:
        return f"{which} {about} step{_s(reach)}{rest}; its context is unknown: --length gives it", True
    if reach > context:
        return f"{which} {about} step{_s(reach)}{rest}, further than its context of {context:,}", True
    return f"{which} {about} of its {words.plural(context, 'step')} of context{rest}", True


def _convolutions(layers: Sequence[LayerDiagnosis], horizons: Sequence[float]) -> str:
    """Return how far back convolutions reach: to their last tap that is not zero, of the K that they have."""
    most = max(layer.taps or 0 for layer in layers) - 1
    last = int(max(horizons, default=most))
    steps = f"K − 1 = {words.plural(most, 'step')}"
    return f"remembers {steps if last == most else f'{last:,} of {steps}'} by its convolutions"


def _grows(layer: LayerDiagnosis) -> bool:
    """Whether modes grow: also those of a linearised layer, which is not unstable for it; rounding is no growth."""
    return layer.unstable > 0 or (layer.spectral_radius or 0.0) > 1 + 1e-6


def _examined(layer: LayerDiagnosis) -> bool:
    """Whether the longest horizon is among those found: a selective layer's is that of its slowest mode."""
    return layer.every_horizon or not layer.time_invariant or layer.taps is not None


def attention(paths: Sequence[str]) -> list[str]:
    """Return what every answer about a whole model says of its attention layers; nothing where there are none."""
    shared = "shared " if all("shared" in path for path in paths) else ""
    return [f"{words.plural(len(paths), f'{shared}attention layer')} not judged"] if paths else []


def _steps(value: float) -> str:
    return f"{_number(value)} step{_s(value)}"


def _s(value: float) -> str:
    return "" if _number(value) == "1" else "s"


def _number(value: float) -> str:
    """Return a number of steps to two digits, written out.

    >>> [_number(value) for value in (0.034, 1.0, 4.96, 823.0, 4437.0, 3.4e7)]
    ['0.034', '1', '5', '820', '4,400', '34 million']
    """
    for size, unit in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if value >= 0.995 * size:
            return f"{float(f'{value / size:.2g}'):,g}{unit}"
    return f"{float(f'{value:.2g}'):,g}"


def _modes(count: int, some: Sequence[LayerDiagnosis], layers: Sequence[LayerDiagnosis], labels: Sequence[str]) -> str:
    """Return how many of their modes, or of the taps of convolutions, and in which layers."""
    modes = f"{count:,} of {words.plural(sum(layer.channels * layer.modes for layer in some), 'mode')}"
    if all(layer.taps is not None for layer in some):
        modes = words.plural(count, "tap")
    if len(layers) == 1:
        return modes
    if len(some) == len(layers):
        return f"{modes} in {'both' if len(layers) == 2 else f'all {len(layers)}'} layers"
    return f"{modes} in layer{'s' * (len(some) > 1)} {first_of([labels[list(layers).index(one)] for one in some], 4)}"
