"""Results in few words, as a small dict and as the rows of a table: `summary`, `rows`, `words_on`.

Names and values are those of the JSON documents, so that the three say what a report says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssmdiag.capacity.report import report_alone
from ssmdiag.printable import module_name, printable
from ssmdiag.reports import capacity_text, words
from ssmdiag.reports.compare.json import conversion_document, run_document
from ssmdiag.reports.csv import rows_of
from ssmdiag.reports.json import capacity_document, document, pick, plain
from ssmdiag.reports.probe.json import Shown
from ssmdiag.reports.probe.json import document as probe_document
from ssmdiag.reports.retrain.json import document as retrain_document
from ssmdiag.rules.finding import SEVERITIES

if TYPE_CHECKING:
    from ssmdiag.capacity.report import CapacityReport
    from ssmdiag.compare.conversion import ConversionProof
    from ssmdiag.compare.models import ModelComparison, ModelTable
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.probing.probe import ProbedMemory
    from ssmdiag.retrain.results import RetrainResult
    from ssmdiag.rules.finding import Finding

Row = dict[str, Any]
_REST = ("over_channels", "points", "limits", "initialisations", "step_factors", "memory_function", "memory")
"""Parts of a document that are tables of their own."""


def summary(result: Any) -> Row:
    """Return a result as a small dict that JSON can hold."""
    found: Row = plain(_KINDS[type(result).__name__].summary(result))
    return found


def rows(result: Any) -> list[Row]:
    """Return a row for each layer, of a comparison of arms for each arm; infinity is a float here."""
    found = map(plain, _KINDS[type(result).__name__].rows(result))
    return [{name: _cell(value) for name, value in row.items()} for row in found]


def words_on(result: Any) -> str:
    """Return a result in one line in which every character shows."""
    return printable(_KINDS[type(result).__name__].words(result))


def _cell(value: Any) -> Any:
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value


def _flat(data: Mapping[str, Any], above: str = "") -> Row:
    """Return the values of nested mappings under their joined names; lists are tables of their own."""
    flat: Row = {}
    for name, value in data.items():
        if name in _REST or isinstance(value, (list, tuple)):
            continue
        flat |= _flat(value, f"{above}{name}_") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat


def _longest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None and not math.isnan(value)), default=None)


def _steps(value: float | None) -> str:
    if value is None or math.isinf(value):
        return "unknown" if value is None else "∞ steps"
    number = f"{float(f'{value:.4g}'):,g}"
    return f"{number} step{'' if number == '1' else 's'}"


def _counted(values: Iterable[Any]) -> dict[str, int]:
    """Return how often each value occurs."""
    return {str(plain(value)): count for value, count in Counter(values).items()}


# One checkpoint.


def _slowest(model: Diagnosis) -> float | None:
    return _longest(layer.half_life.max for layer in model.layers if layer.half_life)


def _severities(model: Diagnosis) -> dict[str, int]:
    found = Counter(finding.severity for finding in model.findings)
    return {severity: found[severity] for severity in reversed(SEVERITIES)}


def _of_model(model: Diagnosis) -> Row:
    data = document(model)
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in model.findings:
        found.setdefault((finding.code, finding.severity), []).append(finding)
    return {
        "path": model.path,
        "train_step": model.train_step,
        **{name: data[name] for name in ("status", "answer") if name in data},
        "exit_code": model.exit_code(),
        "context_length": model.context_length,
        "layers": len(model.layers),
        "time_invariant": all(layer.time_invariant for layer in model.layers),
        "modes": sum(layer.channels * layer.modes for layer in model.layers),
        "unstable_modes": sum(layer.unstable for layer in model.layers),
        "nonfinite_modes": sum(layer.nonfinite for layer in model.layers),
        "slowest_half_life": _slowest(model),
        "longest_horizon": _longest(layer.horizon.max for layer in model.layers if layer.horizon),
        "counts": _severities(model),
        "findings": [
            {"code": code, "severity": severity, "count": len(some), "message": some[0].message}
            for (code, severity), some in found.items()
        ],
        **pick(model, "problems guess"),
    }


def _words_on_model(model: Diagnosis) -> str:
    data = document(model)
    if "answer" in data:
        return f"{words.checkpoint_name(model.path)}: {data['status'].upper()}  {data['answer']}"
    counts = [words.plural(count, severity) for severity, count in _severities(model).items() if count]
    told = [
        words.plural(len(model.layers), "layer"),
        f"slowest half-life {_steps(_slowest(model))}{_at_rest(model)}",
        *_broken(model),
        *(counts or (["no findings"] if model.rules else [])),
        *([words.plural(len(model.problems), "problem")] if model.problems else []),
    ]
    return f"{words.checkpoint_name(model.path)}: {', '.join(told)}"


def _at_rest(model: Diagnosis) -> str:
    return "" if all(layer.time_invariant for layer in model.layers) else " with the gates at rest"


def _broken(model: Diagnosis) -> list[str]:
    """Return what is wrong with modes, also where no rule was asked."""
    counts = {name: sum(getattr(layer, name) for layer in model.layers) for name in ("unstable", "nonfinite")}
    said = {"unstable": "growing", "nonfinite": "not finite"}
    return [f"{words.plural(count, 'mode')} {said[name]}" for name, count in counts.items() if count]


# Several.


def _of_pair(pair: ModelComparison) -> Row:
    return {
        "comparison": "models",
        "context_length": pair.a.context_length,
        "a": _of_model(pair.a),
        "b": _of_model(pair.b),
        "gaps": [pick(gap, "lacking low high share share_lacking") for gap in pair.gaps],
        "problems": pair.problems,
    }


def _rows_of_pair(pair: ModelComparison) -> list[Row]:
    return [{"model": side} | row for side in ("a", "b") for row in rows_of(document(getattr(pair, side)))]


def _words_on_pair(pair: ModelComparison) -> str:
    names = " and ".join(words.checkpoint_name(model.path) for model in (pair.a, pair.b))
    slowest = " and ".join(_steps(_slowest(model)) for model in (pair.a, pair.b))
    return f"of {names}: slowest half-lives {slowest}, {words.plural(len(pair.gaps), 'gap')} in their time constants"


def _of_table(table: ModelTable) -> Row:
    return {"comparison": "table", "models": [_of_model(model) for model in table.models], "problems": table.problems}


def _rows_of_table(table: ModelTable) -> list[Row]:
    return [row for model in table.models for row in rows_of(document(model))]


def _words_on_table(table: ModelTable) -> str:
    return f"of {', '.join(words.checkpoint_name(model.path) for model in table.models)}"


def _of_run(run: RunComparison) -> Row:
    return {
        "comparison": "run",
        **pick(run, "verdict unit context_length"),
        "checkpoints": len(run.checkpoints),
        "first": run.checkpoints[0].step,
        "last": run.checkpoints[-1].step,
        "layers": len(run.layers),
        "verdicts": _counted(layer.verdict for layer in run.layers),
        "slowest_time_constant": {
            "first": _longest(layer.first.slowest for layer in run.layers),
            "last": _longest(layer.last.slowest for layer in run.layers),
        },
        "problems": run.problems,
    }


def _rows_of_run(run: RunComparison) -> list[Row]:
    told = []
    for layer, data in zip(run.layers, run_document(run)["layers"], strict=True):
        point = {one["step"]: _flat(one) for one in data["points"]}
        ends = {"first": point[layer.first.step], "last": point[layer.last.step]}
        told.append(_flat(data) | {f"{end}_{name}": value for end, one in ends.items() for name, value in one.items()})
    return told


def _words_on_run(run: RunComparison) -> str:
    return (
        f"of {words.plural(len(run.checkpoints), 'checkpoint')}, {run.unit} {run.checkpoints[0].step:,} to "
        f"{run.checkpoints[-1].step:,}, {words.plural(len(run.layers), 'layer')}: {run.verdict.value}"
    )


def _of_proof(proof: ConversionProof) -> Row:
    return {
        "comparison": "conversion",
        **pick(proof, "proven a b"),
        "exit_code": proof.exit_code(),
        "layers": len(proof.layers),
        "outcomes": _counted(layer.outcome for layer in proof.layers),
        "largest_difference": _longest(layer.spectrum.value for layer in proof.layers if layer.spectrum),
        "problems": proof.problems,
    }


def _words_on_proof(proof: ConversionProof) -> str:
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in _of_proof(proof)["outcomes"].items())
    names = " and ".join(map(words.checkpoint_name, (proof.a, proof.b)))
    return f"of {names}: {'proven' if proof.proven else 'not proven'} ({outcomes or 'no layers'})"


# One layer.


def _of_capacity(report: CapacityReport) -> Row:
    own = report.own
    told = {name: value for name, value in capacity_document(own).items() if name != "over_channels"}
    return {
        **pick(report, "name family time_invariant channels"),
        "context_length": own.context,
        **told,
        "modes": report.modes,
        "answer": own.sentence,
        "states_used": report.states_used,
    }


def _rows_of_capacity(report: CapacityReport) -> list[Row]:
    return [_flat(layer) for layer in capacity_text.document("", [report], report.own.context)["layers"]]


def _words_on_capacity(report: CapacityReport) -> str:
    own, rest = report.own, "" if report.time_invariant else " with the gates at rest"
    of = f"of {module_name(report.name)} ({report.family})"
    if own.unknown == own.channels:
        return f"{of}: not known"
    if own.length_half is None:
        return f"{of}: no channel rebuilds its input to one half{rest}"
    able = f"{own.channels - own.unknown - own.without_half:,} of {words.plural(own.channels, 'channel')}"
    return f"{of}: {able} rebuild inputs {_steps(own.length_half.median)} back in the median{rest}"


# A live model.


def _of_probe(memory: ProbedMemory) -> Row:
    use = memory.use
    observed = [layer.observed.half_life for layer in memory.layers if layer.observed]
    return {
        **pick(memory, "model length texts tokens"),
        "layers": len(memory.layers),
        "observed": len(observed),
        "without_clock": len(memory.without_clock),
        "median_half_life": _longest(lives.median for lives in observed),
        "slowest_half_life": _longest(lives.max for lives in observed),
        "at_least": any("max" in lives.at_least for lives in observed),
        "answer": use.sentence if use else None,
        "all_but_a_hundredth": use.by_cutting.all_but_a_hundredth if use else None,
        "use_reason": memory.use_reason,
        "problems": [layer.error for layer in memory.layers if layer.error],
    }


def _rows_of_probe(memory: ProbedMemory) -> list[Row]:
    return [_flat(layer) for layer in probe_document(memory, Shown(memory.model, ()))["layers"]]


def _words_on_probe(memory: ProbedMemory) -> str:
    told = _of_probe(memory)
    least = "at least " if told["at_least"] else ""
    slowest = f", slowest half-life {least}{_steps(told['slowest_half_life'])}" if told["observed"] else ""
    texts = f"{words.plural(memory.texts, 'text')} of {words.plural(memory.length, 'step')}"
    layers = f"{told['observed']} of {words.plural(len(memory.layers), 'layer')} observed"
    return f"of {memory.model} on {texts}: {layers}{slowest}"


# Training.


def _of_training(result: RetrainResult) -> Row:
    ended = [run for run in result.arms if run.final_loss is not None]
    best = min(ended, key=lambda run: run.final_loss or 0.0, default=None)
    return {
        **pick(result, "task model steps=budget.steps context_length=context device interrupted_at"),
        "arms": len(result.arms),
        "diverged": sum(run.diverged_at is not None for run in result.arms),
        "best": best and {"arm": best.arm.label, "final_loss": best.final_loss},
        "losses": {run.arm.label: run.final_loss for run in result.arms},
    }


def _rows_of_training(result: RetrainResult) -> list[Row]:
    told = []
    for run, data in zip(result.arms, retrain_document(result)["arms"], strict=True):
        ends = {"before": run.before, "after": run.after}
        slowest = {
            f"slowest_half_life_{end}": _longest(layer.half_life.max for layer in layers if layer.half_life)
            for end, layers in ends.items()
        }
        told.append({"arm": run.arm.label} | _flat(data) | slowest)
    return told


def _words_on_training(result: RetrainResult) -> str:
    told = _of_training(result)
    best = f", best {told['best']['arm']} with a loss of {told['best']['final_loss']:.4g}" if told["best"] else ""
    return f"of {result.task}: {words.plural(len(result.arms), 'arm')}, {told['diverged']:,} diverged{best}"


@dataclass(frozen=True)
class _Kind:
    """How one kind of result is told."""

    summary: Callable[[Any], Row]
    rows: Callable[[Any], Iterable[Row]]
    words: Callable[[Any], str]


_KINDS = {
    "Diagnosis": _Kind(_of_model, lambda model: rows_of(document(model)), _words_on_model),
    "ModelComparison": _Kind(_of_pair, _rows_of_pair, _words_on_pair),
    "ModelTable": _Kind(_of_table, _rows_of_table, _words_on_table),
    "RunComparison": _Kind(_of_run, _rows_of_run, _words_on_run),
    "ConversionProof": _Kind(
        _of_proof, lambda proof: [_flat(layer) for layer in conversion_document(proof)["layers"]], _words_on_proof
    ),
    "CapacityReport": _Kind(_of_capacity, _rows_of_capacity, _words_on_capacity),
    "LayerCapacity": _Kind(
        lambda capacity: _of_capacity(report_alone(capacity)),
        lambda capacity: _rows_of_capacity(report_alone(capacity)),
        lambda capacity: _words_on_capacity(report_alone(capacity)),
    ),
    "ProbedMemory": _Kind(_of_probe, _rows_of_probe, _words_on_probe),
    "RetrainResult": _Kind(_of_training, _rows_of_training, _words_on_training),
}
"""Results by the name of their class."""
