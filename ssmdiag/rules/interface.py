"""The contract of a rule: what it examines, when it fires, and what `ssmdiag explain` prints about it.

A rule is one module in this package (or an object under the entry point group `ssmdiag.rules`) with a
module-level `RULE`. It must not import torch at the top: `examine` gets tensors and uses their methods.
Its docstring is its page in `ssmdiag explain`: see `page`.

A rule fires on evidence, not on taste: never on a healthy model, trained or freshly initialised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ssmdiag.assessment.evidence import CheckpointEvidence


@dataclass(frozen=True)
class Threshold:
    """A number a user can set in the configuration."""

    value: float
    meaning: str
    """What it is compared with, with its unit."""


@dataclass(frozen=True)
class Observation:
    """What a rule saw; `Selection` adds the layer, the code and the severity."""

    message: str
    """A phrase that follows `layer 3: `, in lower case, with the numbers, without a full stop."""
    count: int
    """How many modes, channels or values are affected."""
    of: int | None = None
    """How many there are of them."""
    value: float | None = None
    """The number compared with the threshold, and with the baseline."""
    threshold: float | None = None
    tensor: str | None = None
    """Cleaned name of the tensor at fault."""
    layer: str | None = None
    """Path of the layer, if a rule for whole checkpoints knows it."""
    family: str | None = None
    """That of the layer, if it is not given."""
    severity: Literal["error", "warning", "note"] | None = None
    """Replaces the rule's severity, where the evidence is weaker or stronger."""
    advice: str | None = None
    """Replaces the rule's advice."""


Limits = Mapping[str, float]
"""A rule's thresholds by name, as the user set them."""


def lacks_nothing(evidence: CheckpointEvidence) -> str | None:
    """Say that every checkpoint can be judged."""
    return None


def lacks_context(evidence: CheckpointEvidence) -> str | None:
    """Say that the context length is not known."""
    return None if evidence.context else "no context length is known: --length gives one"


def lacks_optimizer(evidence: CheckpointEvidence) -> str | None:
    """Say that there is no optimiser's state to look at."""
    from ssmdiag.errors import CheckpointError

    try:
        return None if evidence.checkpoint.optimizer_groups else "no optimiser's state is in or beside the file"
    except CheckpointError:
        return "the optimiser's state was not read"


def lacks_probe(evidence: CheckpointEvidence) -> str | None:
    """Say that nothing was observed of the live model."""
    if evidence.probe is None:
        return "nothing was observed of the model: --probe gives what ssmdiag probe wrote"
    return None if evidence.probe.layers else "the probe observed no layer"


def are(names: Sequence[str]) -> str:
    """Return names as the subject of a sentence.

    >>> are(["A_log"]), are(["A_log", "dt_bias", "D"])
    ('A_log is', 'A_log, dt_bias and D are')
    """
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


HEADINGS = {"formula": "Formula. ", "why": "Why it hurts. ", "fix": "What to do. ", "example": "Example. "}
"""The paragraphs of a rule's page by what they begin with."""


def page(docstring: str | None) -> dict[str, Any]:
    """Return a rule's formula, why, fix and example out of the docstring of its module, where they are read best.

    Each is the one paragraph that begins with its heading. Without docstrings (`python -OO`) all are empty.

    >>> page("SSM999: an example.\\n\\nFormula. a + b.\\n\\nWhat to do. Nothing,\\nfor once.")["fix"]
    'Nothing, for once.'
    """
    paragraphs = [" ".join(paragraph.split()) for paragraph in (docstring or "").split("\n\n")]
    return {
        name: next((text.removeprefix(heading) for text in paragraphs if text.startswith(heading)), "")
        for name, heading in HEADINGS.items()
    }


@dataclass(frozen=True)
class Rule:
    """One check: its code, when it fires, and its page in `ssmdiag explain`."""

    code: str
    """SSM and three digits: 1 stability, 2 memory, 3 precision, 4 integrity and initialisation, 5 training state,
    6 what was observed."""
    name: str
    """Short and stable, such as `unstable-mode`; usable wherever the code is."""
    severity: Literal["error", "warning", "note"]
    summary: str
    """One line for `ssmdiag rules`."""
    looks_at: Literal["layer", "checkpoint", "probe"]
    """What it is given; `probe`: the checkpoint with what was observed of it, and it only runs where that is known."""
    examine: Callable[[Any, Limits], Iterable[Observation]]
    """(LayerEvidence or CheckpointEvidence, limits) → what it saw; nothing where all is well."""
    advice: str
    """What to do, in one sentence, printed under the finding."""
    formula: str
    """What is computed, in the notation of the field, with its source."""
    why: str
    """Why it hurts."""
    fix: str
    """How to fix it, in full."""
    example: str
    """A public case, with its address."""
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    worse: Literal["higher", "lower"] = "higher"
    """The direction in which `value` gets worse: a finding in the baseline fails only when it has got worse."""
    lacks: Callable[[CheckpointEvidence], str | None] = lacks_nothing
    """Return what the checkpoint lacks for the rule to judge it, as a phrase, or None."""
    origin: float = 0.0
    """The `value` of a healthy layer, such as 1 for a spectral radius: a baseline allows a tenth of the way from
    there to the value it holds."""

    @property
    def limits(self) -> dict[str, float]:
        """The thresholds' values where the user sets none."""
        return {name: threshold.value for name, threshold in self.thresholds.items()}
