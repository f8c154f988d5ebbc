"""SSM406: a recurrent module lacks a tensor that its siblings have.

Formula. A module that has only the telltale tensor of a family found elsewhere in the file, or everything except it; or
a layer of a selective family that lacks a part (D, conv1d, in_proj …) which at least two and more than half of the
layers like it have. A Mamba-1 without any D is a warning.

Why it hurts. Loaders that are not strict leave a missing tensor at its initial value, or at uninitialised memory. The
model runs and returns noise.

What to do. Find the tensor in the source of the conversion under another name, add it to the converter's table, and
load with strict=True. ssmdiag names the gap as a problem too, because the layer's memory could not be read.

Example. ServiceNow/Fast-LLM issue 380 (https://github.com/ServiceNow/Fast-LLM/issues/380): after conversion A_log, D
and dt are reported as newly initialised, and logits have nothing to do with the original's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.checkpoint.names import join
from ssmdiag.rules.interface import Limits, Observation, Rule, page

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer

SKIPS = frozenset({"D", "Ds", "D_b", "ssm_d"})
"""Names of Mamba-1's skip; a Mamba-2 layer without its skip is not recognised at all."""


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    for miss in evidence.recognition.incomplete:
        yield Observation(
            f"looks like {miss.family.title}, but {miss.reason}",
            count=max(1, len(miss.missing)),
            tensor=join(miss.path, miss.missing[0]) if miss.missing else None,
            layer=miss.path,
            family=miss.family.name,
        )
    alike: dict[tuple[str, str], list[Layer]] = defaultdict(list)
    for layer in evidence.recognition.layers:
        if "layers alike" in layer.family.traits:
            alike[layer.family.name, layer.spelling.name].append(layer)
    for layers in alike.values():
        yield from _examine_alike(evidence, layers)


def _examine_alike(evidence: CheckpointEvidence, layers: list[Layer]) -> Iterator[Observation]:
    """Compare layers of one spelling by the parts each has: `D`, `conv1d`, `in_proj`, packed or not."""
    parts = {layer.path: _parts(layer, evidence.names_by_layer[layer.path]) for layer in layers}
    counts = Counter(part for found in parts.values() for part in found)
    for layer in layers:
        # What most of the other layers have: at least two, and more than half.
        usual = {part for part, count in counts.items() if count >= 2 and 2 * count > len(layers) - 1}
        if missing := sorted(usual - parts[layer.path]):
            yield Observation(
                f"{', '.join(missing)} missing, which {counts[missing[0]]:,} of {len(layers):,} layers like it have",
                count=len(missing),
                tensor=layer.full_name(missing[0]),
                layer=layer.path,
            )
    if layers[0].family.name in ("mamba", "zamba") and not SKIPS & set(counts):
        yield Observation(
            f"no layer has a skip D, which every published {layers[0].family.title} has",
            count=len(layers),
            family=layers[0].family.name,
            severity="warning",
        )


def _parts(layer: Layer, names: tuple[str, ...]) -> set[str]:
    """Return the first element of each local name: quantised weights have other endings."""
    prefix = len(layer.path) + 1 if layer.path else 0
    parts = {name[prefix:].partition(".")[0] for name in names}
    # GGUF has no module for the mixer: the rest of its block may differ from layer to layer.
    return {part for part in parts if part.startswith("ssm_")} or parts


RULE = Rule(
    code="SSM406",
    name="missing-tensor",
    severity="error",
    summary="a recurrent module lacks a tensor that its siblings have",
    looks_at="checkpoint",
    examine=examine,
    advice="convert or save the file again: whoever loads it fills the gap with a fresh or an uninitialised tensor.",
    **page(__doc__),
)
