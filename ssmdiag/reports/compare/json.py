"""Comparisons as JSON by the output contract: unknown is null, infinity the string "inf"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssmdiag.assessment.spectrum import FIRST_DECADE
from ssmdiag.compare.conversion import Outcome
from ssmdiag.reports.compare.conversion import proof_answer
from ssmdiag.reports.compare.models import pair_answer, table_answer
from ssmdiag.reports.compare.words import answer
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import decay_document, document, head, pick, plain

if TYPE_CHECKING:
    from ssmdiag.compare.conversion import ConversionProof, LayerProof
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.compare.layer_point import LayerPoint
    from ssmdiag.compare.models import ModelComparison, ModelTable
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.compare.steering import SteeringDifference
    from ssmdiag.compare.trend import Trend
    from ssmdiag.reports.answer import Answer


def _answer(said: Answer) -> dict[str, Any]:
    return pick(said, "status answer=text")


def run_document(run: RunComparison) -> dict[str, Any]:
    """Return a run as plain data."""
    return plain({
        **head(run),
        "comparison": "run",
        "verdict": run.verdict,
        **_answer(answer(run, label_layers([layer.name for layer in run.layers]))),
        "order": run.order.name.lower(),
        **pick(run, "unit context_length checkpoints"),
        "layers": [_layer(layer) for layer in run.layers],
        **pick(run, "problems notes steering_changed seconds"),
    })  # fmt: skip


def _layer(layer: LayerHistory) -> dict[str, Any]:
    projected = "step=at earliest latest looked_up_to=reach unnamed not_before"
    return {
        **pick(layer, "name verdict"),
        "rests_on": "slow modes" if layer.by_tail else "slowest mode",
        **pick(layer, "steps_judged=used learning_rate=schedule"),
        "slowest_mode": {"verdict": layer.slowest_verdict, "trend": layer.slowest and _trend(layer.slowest)},
        "slow_modes": {"verdict": layer.tail_verdict, "trend": layer.tail and _trend(layer.tail)},
        "limits": [
            {
                **pick(limit, "name rate passed_at_step=passed from_start"),
                "projection": limit.projection and pick(limit.projection, projected),
            }
            for limit in layer.limits
        ],
        "points": [_point(point) for point in layer.points],
    }


def _trend(trend: Trend) -> dict[str, Any]:
    slopes = "log_rate_per_step=slope log_rate_change=change independent_noise=rank_slope"
    chances = "p_rank p_random_walk=p_walk p_correlated_steps=p_correlated p_first_slowest_modes=p_modes"
    return pick(trend, f"points {slopes} second_half_log_rate_per_step=late_slope {chances}")


def _point(point: LayerPoint) -> dict[str, Any]:
    modes = point.channels * point.modes
    return {
        **pick(point, "step family channels modes dtype learning_rate time_invariant rate"),
        **pick(point, "slowest_time_constant=slowest margin"),
        **pick(point, "nonfinite_modes=nonfinite unstable_modes=unstable marginal_modes=marginal"),
        "share_rounding_to_one": {name: count / modes for name, count in point.rounded.items()} if modes else None,
        "share_moved": point.moved / modes if modes and point.moved is not None else None,
        "horizon": point.horizon,
        "decay": point.decay and decay_document(point.decay),
    }


def models_document(pair: ModelComparison) -> dict[str, Any]:
    """Return two models as data for `json.render`: each as `inspect` gives it, and what each lacks."""
    return {
        **head(pair.a),
        "comparison": "models",
        **_answer(pair_answer(pair)),
        "context_length": pair.a.context_length,
        "gaps": pair.gaps,
        "first_decade": FIRST_DECADE,
        "share_per_decade": {"a": pair.shares[0], "b": pair.shares[1]},
        "a": document(pair.a),
        "b": document(pair.b),
        **pick(pair, "problems notes"),
    }


def table_document(table: ModelTable) -> dict[str, Any]:
    """Return three models or more as data for `json.render`: each as `inspect` gives it."""
    models = zip(table.models, table.shares, strict=True)
    return {
        **head(table.models[0]),
        "comparison": "table",
        **_answer(table_answer(table)),
        "context_length": table.models[0].context_length,
        "first_decade": FIRST_DECADE,
        "models": [document(model) | {"share_per_decade": shares} for model, shares in models],
        **pick(table, "problems notes"),
    }


def conversion_document(proof: ConversionProof) -> dict[str, Any]:
    """Return a proof as data for `json.render`."""
    return {
        **head(proof),
        "comparison": "conversion",
        **_answer(proof_answer(proof, label_layers([layer.a or layer.b or "" for layer in proof.layers]))),
        **pick(proof, "proven a b lags"),
        "layers": [_proof(layer) for layer in proof.layers],
        **pick(proof, "problems notes seconds"),
    }


def _proof(layer: LayerProof) -> dict[str, Any]:
    mode, kernel, steering = layer.spectrum, layer.kernel, layer.steering
    return {
        **pick(layer, "a b outcome proven"),
        "tolerance": layer.tolerance if layer.outcome is not Outcome.MISSING else None,
        **pick(layer, "channels modes time_invariant"),
        "dtypes": {"a": layer.dtypes[0], "b": layer.dtypes[1]},
        "largest_difference": mode and {
            **pick(mode, "relative=value channel mode=at"),
            "a": {"rate": -mode.a.real, "frequency": mode.a.imag},
            "b": {"rate": -mode.b.real, "frequency": mode.b.imag},
        },
        "kernel": kernel and pick(kernel, "relative=value channel lag=at a=a.real b=b.real"),
        "steering": steering and {
            "compared": [_steering(one) for one in steering.compared], "not_compared": steering.unseen,
        },
        "settings": [pick(one, "name a b meaning") for one in layer.settings],
        "notes": layer.notes,
    }  # fmt: skip


def _steering(one: SteeringDifference) -> dict[str, Any]:
    return {
        "role": one.role,
        "tensors": {"a": one.a, "b": one.b},
        **pick(one, "relative=value tolerance same=within at"),
        "a": one.weights and one.weights[0],
        "b": one.weights and one.weights[1],
    }
