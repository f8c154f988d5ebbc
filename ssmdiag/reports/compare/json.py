"""Comparisons as JSON by the output contract: unknown is null, infinity the string "inf"."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ssmdiag.assessment.spectrum import FIRST_DECADE
from ssmdiag.compare.conversion import Outcome
from ssmdiag.reports.json import SCHEMA_VERSION, decay_document, document, plain

if TYPE_CHECKING:
    from ssmdiag.compare.conversion import ConversionProof, LayerProof
    from ssmdiag.compare.layer_history import LayerHistory, Limit
    from ssmdiag.compare.layer_point import LayerPoint
    from ssmdiag.compare.models import ModelComparison, ModelTable
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.compare.significance import Slope
    from ssmdiag.compare.steering import SteeringDifference
    from ssmdiag.compare.trend import Trend


def render(data: dict[str, Any]) -> str:
    """Return a document as indented ASCII JSON, ending in a newline."""
    return json.dumps(data, indent=2) + "\n"


def run_document(run: RunComparison) -> dict[str, Any]:
    """Return a run as plain data."""
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "ssmdiag_version": run.ssmdiag_version,
            "torch_version": run.torch_version,
            "device": run.device,
            "seed": None,
            "comparison": "run",
            "verdict": run.verdict.value,
            "order": run.order.name.lower(),
            "unit": run.unit,
            "context_length": run.context_length,
            "checkpoints": [asdict(checkpoint) for checkpoint in run.checkpoints],
            "layers": [_layer(layer) for layer in run.layers],
            "problems": run.problems,
            "notes": run.notes,
            "steering_changed": run.steering_changed,
            "seconds": run.seconds,
        }
    )


def _layer(layer: LayerHistory) -> dict[str, Any]:
    return {
        "name": layer.name,
        "verdict": layer.verdict.value,
        "rests_on": "slow modes" if layer.by_tail else "slowest mode",
        "steps_judged": layer.used,
        "learning_rate": layer.schedule and layer.schedule.value,
        "slowest_mode": {"verdict": layer.slowest_verdict.value, "trend": layer.slowest and _trend(layer.slowest)},
        "slow_modes": {"verdict": layer.tail_verdict.value, "trend": layer.tail and _trend(layer.tail)},
        "limits": [_limit(limit) for limit in layer.limits],
        "points": [_point(point) for point in layer.points],
    }


def _trend(trend: Trend) -> dict[str, Any]:
    return {
        "points": trend.points,
        "log_rate_per_step": _slope(trend.slope),
        "log_rate_change": trend.change,
        "independent_noise": _slope(trend.rank_slope),
        "second_half_log_rate_per_step": trend.late_slope,
        "p_rank": trend.p_rank,
        "p_random_walk": trend.p_walk,
        "p_correlated_steps": trend.p_correlated,
        "p_first_slowest_modes": trend.p_modes,
    }


def _slope(slope: Slope) -> dict[str, Any]:
    return {"value": slope.value, "low": slope.low, "high": slope.high}


def _limit(limit: Limit) -> dict[str, Any]:
    projection = limit.projection and {
        "step": limit.projection.at,
        "earliest": limit.projection.earliest,
        "latest": limit.projection.latest,
        "looked_up_to": limit.projection.reach,
        "unnamed": limit.projection.unnamed and limit.projection.unnamed.value,
        "not_before": limit.projection.not_before,
    }
    return {
        "name": limit.name,
        "rate": limit.rate,
        "passed_at_step": limit.passed,
        "from_start": limit.from_start,
        "projection": projection,
    }


def _point(point: LayerPoint) -> dict[str, Any]:
    modes = point.channels * point.modes
    return {
        "step": point.step,
        "family": point.family,
        "channels": point.channels,
        "modes": point.modes,
        "dtype": point.dtype,
        "learning_rate": point.learning_rate,
        "time_invariant": point.time_invariant,
        "rate": point.rate and asdict(point.rate),
        "slowest_time_constant": point.slowest,
        "margin": point.margin,
        "nonfinite_modes": point.nonfinite,
        "unstable_modes": point.unstable,
        "marginal_modes": point.marginal,
        "share_rounding_to_one": {name: count / modes for name, count in point.rounded.items()} if modes else None,
        "share_moved": point.moved / modes if modes and point.moved is not None else None,
        "horizon": point.horizon and asdict(point.horizon),
        "decay": point.decay and decay_document(point.decay),
    }


def models_document(pair: ModelComparison) -> dict[str, Any]:
    """Return two models as plain data: each as `inspect` gives it, and what each lacks."""
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "ssmdiag_version": pair.a.ssmdiag_version,
            "torch_version": pair.a.torch_version,
            "device": pair.a.device,
            "seed": None,
            "comparison": "models",
            "context_length": pair.a.context_length,
            "gaps": [asdict(gap) for gap in pair.gaps],
            "first_decade": FIRST_DECADE,
            "share_per_decade": {"a": pair.shares[0], "b": pair.shares[1]},
            "a": document(pair.a),
            "b": document(pair.b),
            "problems": pair.problems,
            "notes": pair.notes,
        }
    )


def table_document(table: ModelTable) -> dict[str, Any]:
    """Return three models or more as plain data: each as `inspect` gives it."""
    first = table.models[0]
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "ssmdiag_version": first.ssmdiag_version,
            "torch_version": first.torch_version,
            "device": first.device,
            "seed": None,
            "comparison": "table",
            "context_length": first.context_length,
            "first_decade": FIRST_DECADE,
            "models": [
                {**document(model), "share_per_decade": shares}
                for model, shares in zip(table.models, table.shares, strict=True)
            ],
            "problems": table.problems,
            "notes": table.notes,
        }
    )


def conversion_document(proof: ConversionProof) -> dict[str, Any]:
    """Return a proof as plain data."""
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "ssmdiag_version": proof.ssmdiag_version,
            "torch_version": proof.torch_version,
            "device": proof.device,
            "seed": None,
            "comparison": "conversion",
            "proven": proof.proven,
            "a": proof.a,
            "b": proof.b,
            "lags": proof.lags,
            "layers": [_proof(layer) for layer in proof.layers],
            "problems": proof.problems,
            "notes": proof.notes,
            "seconds": proof.seconds,
        }
    )


def _proof(layer: LayerProof) -> dict[str, Any]:
    mode, kernel = layer.spectrum, layer.kernel
    return {
        "a": layer.a,
        "b": layer.b,
        "outcome": layer.outcome.value,
        "proven": layer.proven,
        "tolerance": layer.tolerance if layer.outcome is not Outcome.MISSING else None,
        "channels": layer.channels,
        "modes": layer.modes,
        "time_invariant": layer.time_invariant,
        "dtypes": {"a": layer.dtypes[0], "b": layer.dtypes[1]},
        "largest_difference": mode
        and {
            "relative": mode.value,
            "channel": mode.channel,
            "mode": mode.at,
            "a": {"rate": -mode.a.real, "frequency": mode.a.imag},
            "b": {"rate": -mode.b.real, "frequency": mode.b.imag},
        },
        "kernel": kernel
        and {
            "relative": kernel.value,
            "channel": kernel.channel,
            "lag": kernel.at,
            "a": kernel.a.real,
            "b": kernel.b.real,
        },
        "steering": layer.steering
        and {
            "compared": [_steering(one) for one in layer.steering.compared],
            "not_compared": layer.steering.unseen,
        },
        "settings": [{"name": one.name, "a": one.a, "b": one.b, "meaning": one.meaning} for one in layer.settings],
        "notes": layer.notes,
    }


def _steering(one: SteeringDifference) -> dict[str, Any]:
    return {
        "role": one.role,
        "tensors": {"a": one.a, "b": one.b},
        "relative": one.value,
        "tolerance": one.tolerance,
        "same": one.within,
        "at": one.at,
        "a": one.weights and one.weights[0],
        "b": one.weights and one.weights[1],
    }
