"""JSON by the output contract: one object for one checkpoint, an array for several. All documents are written here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import Failure
from ssmdiag.reports.answer import answer
from ssmdiag.reports.interface import Settings

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import LayerDecay
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.capacity.capacity import CapacitySummary
    from ssmdiag.decay.tail import Tail
    from ssmdiag.diagnosis import Diagnosis

EXACT = TAILS = True
SCHEMA_VERSION = 1
LAGS = ("half", "nine_tenths", "ninety_nine")
"""Names of the lags after which 50, 90 and 99 % of the energy have passed."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the results as indented JSON."""
    documents = [document(result, settings.run) for result in results]
    return render(documents[0] if len(documents) == 1 else documents, ascii=not settings.unicode)


def render(data: Any, *, ascii: bool = True) -> str:
    """Return a document as indented JSON, ending in a newline."""
    return json.dumps(plain(data), indent=2, ensure_ascii=ascii, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Return nested data as JSON holds it: a record as an object, NaN as None, infinity as the string "inf"."""
    if type(value) in (str, int, bool, type(None)):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def pick(record: Any, names: str) -> dict[str, Any]:
    """Return attributes of a record by their names; `key=attribute` gives one another key.

    >>> pick(3 + 4j, "imag x=real")
    {'imag': 4.0, 'x': 3.0}
    """
    pairs = [name.rpartition("=") for name in names.split()]
    return {key or attribute: attrgetter(attribute)(record) for key, _, attribute in pairs}


def head(source: Any) -> dict[str, Any]:
    """Return what a document of one computation begins with: versions and device, and that nothing was drawn."""
    return {"schema_version": SCHEMA_VERSION, **pick(source, "ssmdiag_version torch_version device"), "seed": None}


def document(result: Diagnosis | Failure, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return one result as plain data: unknown is None, infinity the string "inf"; `run` is what was asked for."""
    if isinstance(result, Failure):
        seen = "\n".join([result.seen, *(f"  {line}" for line in result.details)])
        advice = "\n".join([result.advice or "", *result.sample]) or None
        error = {"kind": result.kind, "seen": seen, "expected": result.expected, "advice": advice}
        checkpoint = pick(result, "path given modified")
        return {"schema_version": SCHEMA_VERSION, "settings": plain(run), "checkpoint": checkpoint, "error": error}
    assumed = "option=assumption.option value=assumption.value choices=assumption.choices layers"
    return plain({
        **head(result),
        "settings": run,
        "checkpoint": pick(result, "path given modified format bytes=size bytes_read train_step"),
        "source": result.source,
        **pick(answer(result), "status answer=text"),
        **pick(result, "context_length guess attention_layers"),
        "layers": [layer_document(layer) for layer in result.layers],
        "assumptions": [
            {**pick(one, f"{assumed} slowest_layer=layer slowest_half_life=slowest"), "otherwise": dict(one.others)}
            for one in result.alternatives
        ],
        **pick(result, "findings known_findings=known"),
        "not_judged": [{"code": code, "reason": reason} for code, reason in result.not_judged.items()],
        "problems": result.problems,
        "notes": [*([result.chosen] if result.chosen else []), *result.notes],
        **pick(result, "unrecognised seconds"),
    })  # fmt: skip


def layer_document(layer: LayerDiagnosis) -> dict[str, Any]:
    """Return one layer's numbers as the output contract names them."""
    return plain({
        **pick(layer, "name family spelling time_invariant operating_point channels modes dtype"),
        **pick(layer, "rate half_life time_constant spectral_radius margin taps"),
        **pick(layer, "nonfinite_modes=nonfinite unstable_modes=unstable marginal_modes=marginal"),
        "assumptions": {one.option: pick(one, "value source") for one in layer.assumptions},
        **pick(layer, "tensors notes horizon"),
        "decay": layer.decay and decay_document(layer.decay),
        "capacity": layer.capacity and capacity_document(layer.capacity),
    })  # fmt: skip


def capacity_document(capacity: CapacitySummary) -> dict[str, Any]:
    """Return a layer's memory capacity, medians over its channels first, then all quantiles."""
    whole = pick(
        capacity,
        "length_half length_tenth accuracy capacity held_half held_nine_tenths effective_modes rounded_half "
        "rounded_tenth",
    ) | {f"surviving_{name}": quantiles for name, quantiles in capacity.surviving.items()}
    return {
        **{name: quantiles and quantiles.median for name, quantiles in whole.items()},
        "modes": capacity.modes and capacity.modes.median,
        **pick(capacity, "state_dtype assumes swallowed channels"),
        **pick(capacity, "channels_without_length=without_half channels_unknown=unknown excluded_modes=excluded"),
        "over_channels": whole,
    }


def decay_document(decay: LayerDecay) -> dict[str, Any]:
    """Return the laws of a layer's channels and of the layer as one."""
    whole, curve = decay.whole, decay.energy_curve
    parameters = "law status exponent exponent_error rate rate_error offset residual_db window"
    return {
        "channels": decay.counts,
        "tails": decay.tails,
        "layer": {
            **pick(whole, parameters),
            "tail": decay.tail and tail_document(decay.tail),
            "tail_reason": decay.tail_status,
            "energy_curve": curve and {
                **pick(curve, "from=first to=last within_db"),
                "terms": [{"rate": rate, "share": part} for rate, part in zip(curve.rates, curve.shares, strict=True)],
                "energy_share": curve.energy_share,
            },
            "lags": dict(zip(LAGS, decay.lags, strict=True)),
            **pick(decay, "heaviness slowest_rate"),
            "local_exponents": [dict(zip(("from", "to", "exponent"), one, strict=True)) for one in decay.exponents],
        },
    }  # fmt: skip


def tail_document(tail: Tail) -> dict[str, Any]:
    """Return the law of what remains, and from which lag on."""
    known = pick(tail, "from=first to=last law rate")
    return {**known, "rates": tail.rates or (tail.rate,), "energy_share": tail.energy_share}
