"""Observed memory as JSON by the output contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import SCHEMA_VERSION, pick, plain

if TYPE_CHECKING:
    from ssmdiag.probing.probe import ObservedMemory, ProbedLayer, ProbedMemory
    from ssmdiag.probing.use import Use


@dataclass(frozen=True)
class Shown:
    """What a model was, and what it was shown, as the user named them."""

    model: str
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it was shown, in a word."""
        first, *others = self.texts
        return first + (f" and {len(others)} more" if others else "")


def document(memory: ProbedMemory, shown: Shown, compared: Sequence[tuple[Shown, ProbedMemory]] = ()) -> dict[str, Any]:
    """Return what was observed as plain data; `compared` is the same model on other texts."""
    return plain({
        "schema_version": SCHEMA_VERSION,
        **pick(memory, "ssmdiag_version torch_version device dtype seed"),
        "model": {"path": shown.model, "class": memory.model},
        **_observed(memory, shown),
        "recurrence": memory.digest and pick(memory.digest, "sha256 dtype"),
        "compared": [_observed(other, texts) for texts, other in compared],
    })  # fmt: skip


def _observed(memory: ProbedMemory, shown: Shown) -> dict[str, Any]:
    """Return what depends on the texts."""
    from ssmdiag.reports.probe.text import answer

    return {
        **pick(answer(memory, label_layers([layer.name for layer in memory.layers])), "status answer=text"),
        "text": list(shown.texts),
        **pick(memory, "length texts tokens left_out"),
        "layers": [_layer(layer) for layer in memory.layers],
        "without_clock": [pick(one, "name family reason=why") for one in memory.without_clock],
        "use": memory.use and _use(memory.use),
        "use_reason": memory.use_reason,
    }


def _use(use: Use) -> dict[str, Any]:
    cutting = "half nine_tenths all_but_a_hundredth tested interval intervals effect noise untold none lost"
    return {
        **pick(use, "distance texts length tokens sees_ahead"),
        "by_cutting": pick(use.by_cutting, cutting),
        "by_replacement": use.by_replacement,
        "loss": use.loss,
        "loss_by_context": use.loss_by_context and [(one.steps, one.nats) for one in use.loss_by_context],
        "gain_by_context": use.loss_by_context
        and [(one.steps, one.gain, one.low, one.high) for one in use.loss_by_context],
        "useful": use.useful,
    }


def _layer(layer: ProbedLayer) -> dict[str, Any]:
    return {
        **pick(layer, "name family channels modes overwrites nominal nominal_retention"),
        "observed": layer.observed and _memory(layer.observed),
        "error": layer.error,
    }


def _memory(observed: ObservedMemory) -> dict[str, Any]:
    law = "law=law.law law_window=law.window law_reason=law.reason law_agreement=law.agreement"
    return pick(
        observed, f"half_life censored reset hold retention {law} channels_sampled rounded_state rounded_reason"
    )
