"""JSON by the output contract: one object for one checkpoint, an array for several."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import Failure
from ssmdiag.reports.interface import Settings

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import LayerDecay
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.capacity.capacity import CapacitySummary
    from ssmdiag.decay.energy_curve import EnergyCurve
    from ssmdiag.decay.tail import Tail
    from ssmdiag.diagnosis import Diagnosis

SCHEMA_VERSION = 1
LAGS = ("half", "nine_tenths", "ninety_nine")
"""Names of the lags after which 50, 90 and 99 % of the energy have passed."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the results as indented JSON."""
    documents = [document(result) for result in results]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=not settings.unicode)


def document(result: Diagnosis | Failure) -> dict[str, Any]:
    """Return one result as plain data: unknown is None, infinity the string "inf"."""
    if isinstance(result, Failure):
        seen = "\n".join([result.seen, *(f"  {line}" for line in result.details)])
        advice = "\n".join([result.advice or "", *result.sample]) or None
        error = {"kind": result.kind, "seen": seen, "expected": result.expected, "advice": advice}
        return {"schema_version": SCHEMA_VERSION, "checkpoint": {"path": result.path}, "error": error}
    data = {
        "schema_version": SCHEMA_VERSION,
        "ssmdiag_version": result.ssmdiag_version,
        "torch_version": result.torch_version,
        "device": result.device,
        "seed": None,
        "checkpoint": {
            "path": result.path,
            "format": result.format,
            "bytes": result.size,
            "bytes_read": result.bytes_read,
            "train_step": result.train_step,
        },
        "context_length": result.context_length,
        "guess": result.guess,
        "layers": [layer_document(layer) for layer in result.layers],
        "assumptions": [
            {
                "option": a.assumption.option,
                "value": a.assumption.value,
                "choices": a.assumption.choices,
                "layers": a.layers,
                "slowest_layer": a.layer,
                "slowest_half_life": a.slowest,
                "otherwise": dict(a.others),
            }
            for a in result.alternatives
        ],
        "findings": [asdict(finding) for finding in result.findings],
        "known_findings": [asdict(finding) for finding in result.known],
        "not_judged": [{"code": code, "reason": reason} for code, reason in result.not_judged.items()],
        "problems": result.problems,
        "notes": result.notes,
        "unrecognised": result.unrecognised,
        "seconds": result.seconds,
    }
    return plain(data)


def layer_document(layer: LayerDiagnosis) -> dict[str, Any]:
    """Return one layer's numbers as the output contract names them."""
    return {
        "name": layer.name,
        "family": layer.family,
        "spelling": layer.spelling,
        "time_invariant": layer.time_invariant,
        "operating_point": layer.operating_point,
        "channels": layer.channels,
        "modes": layer.modes,
        "dtype": layer.dtype,
        "rate": layer.rate and asdict(layer.rate),
        "half_life": layer.half_life and asdict(layer.half_life),
        "time_constant": layer.time_constant and asdict(layer.time_constant),
        "spectral_radius": layer.spectral_radius,
        "margin": layer.margin,
        "nonfinite_modes": layer.nonfinite,
        "unstable_modes": layer.unstable,
        "marginal_modes": layer.marginal,
        "assumptions": {a.option: {"value": a.value, "source": a.source} for a in layer.assumptions},
        "tensors": layer.tensors,
        "notes": layer.notes,
        "horizon": layer.horizon and asdict(layer.horizon),
        "decay": layer.decay and decay_document(layer.decay),
        "capacity": layer.capacity and capacity_document(layer.capacity),
    }


def capacity_document(capacity: CapacitySummary) -> dict[str, Any]:
    """Return a layer's memory capacity, medians over its channels first, then all quantiles."""
    whole = {
        "length_half": capacity.length_half,
        "length_tenth": capacity.length_tenth,
        "accuracy": capacity.accuracy,
        "capacity": capacity.capacity,
        "held_half": capacity.held_half,
        "held_nine_tenths": capacity.held_nine_tenths,
        "effective_modes": capacity.effective_modes,
        "rounded_half": capacity.rounded_half,
        "rounded_tenth": capacity.rounded_tenth,
        **{f"surviving_{name}": quantiles for name, quantiles in capacity.surviving.items()},
    }
    return {
        **{name: quantiles and quantiles.median for name, quantiles in whole.items()},
        "modes": capacity.modes and capacity.modes.median,
        "state_dtype": capacity.state_dtype,
        "assumes": capacity.assumes,
        "swallowed": capacity.swallowed,
        "channels": capacity.channels,
        "channels_without_length": capacity.without_half,
        "channels_unknown": capacity.unknown,
        "excluded_modes": capacity.excluded,
        "over_channels": {name: quantiles and asdict(quantiles) for name, quantiles in whole.items()},
    }


def decay_document(decay: LayerDecay) -> dict[str, Any]:
    """Return the laws of a layer's channels and of the layer as one."""
    whole = decay.whole
    return {
        "channels": decay.counts,
        "tails": decay.tails,
        "layer": {
            "law": whole.law.value,
            "status": whole.status.value,
            "exponent": whole.exponent,
            "exponent_error": whole.exponent_error,
            "rate": whole.rate,
            "rate_error": whole.rate_error,
            "offset": whole.offset,
            "residual_db": whole.residual_db and {law.value: dB for law, dB in whole.residual_db.items()},
            "window": whole.window,
            "tail": decay.tail and tail_document(decay.tail),
            "tail_reason": decay.tail_status.value,
            "energy_curve": decay.energy_curve and curve_document(decay.energy_curve),
            "lags": dict(zip(LAGS, decay.lags, strict=True)),
            "heaviness": decay.heaviness,
            "slowest_rate": decay.slowest_rate,
            "local_exponents": [
                {"from": first, "to": last, "exponent": exponent} for first, last, exponent in decay.exponents
            ],
        },
    }


def tail_document(tail: Tail) -> dict[str, Any]:
    """Return the law of what remains, and from which lag on."""
    return {
        "from": tail.first,
        "to": tail.last,
        "law": tail.law.value,
        "rate": tail.rate,
        "rates": tail.rates or (tail.rate,),
        "energy_share": tail.energy_share,
    }


def curve_document(curve: EnergyCurve) -> dict[str, Any]:
    """Return the exponentials that describe the energy that remains, and how near they come."""
    terms = [{"rate": rate, "share": share} for rate, share in zip(curve.rates, curve.shares, strict=True)]
    return {
        "from": curve.first,
        "to": curve.last,
        "within_db": curve.within_db,
        "terms": terms,
        "energy_share": curve.energy_share,
    }


def plain(value: Any) -> Any:
    """Return nested data with NaN as None and infinity as the string "inf"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
