"""What every report promises: tested on every format that discovery finds, and on the reports of every comparison."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

import ssmdiag.reports
from ssmdiag.check.configuration import Configuration
from ssmdiag.cli import check, families, inspect, retrain
from ssmdiag.cli.options import FORMATS
from ssmdiag.cli.outputs import parse_also
from ssmdiag.compare.conversion import ConversionProof, LayerProof, Outcome
from ssmdiag.compare.models import ModelComparison, ModelTable
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.errors import ConfigurationError, Failure
from ssmdiag.printable import harmless
from ssmdiag.reports import Settings, declares, formats, render, render_each
from ssmdiag.reports.answer import STYLES
from ssmdiag.reports.compare import conversion, models, run
from ssmdiag.reports.compare import json as documents
from ssmdiag.reports.json import render as as_json
from ssmdiag.reports.retrain import json as retrain_json
from ssmdiag.reports.retrain import markdown, text
from tests.cli.test_hostile_names import EVIL, assert_harmless, strings
from tests.reports import test_compare_text, test_retrain_text
from tests.reports.example_diagnoses import CASES, diagnosis, finding, layer, remembering

each_format = pytest.mark.parametrize("format", formats())
NAMES = {
    "path",
    "given",
    "name",
    "layer",
    "tensor",
    "tensors",
    "notes",
    "problems",
    "spelling",
    "unrecognised",
    "message",
    "seen",
}
"""Fields of results that hold what a file says, in part."""
GUESS = {"guess": f"a guess: {EVIL}"}


def spoilt(value: Any, inside: str = "") -> Any:
    """Return a result with a hostile text in every name and every sentence that a file can have a say in."""
    if isinstance(value, str):
        return f"{value}{EVIL}" if inside in NAMES else value
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(spoilt(item, inside) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    new = copy(value)
    for field in fields(value):
        object.__setattr__(new, field.name, spoilt(getattr(value, field.name), field.name))
    return new


HOSTILE: list[Diagnosis | Failure] = [spoilt(CASES[case]) for case in ("findings", "partly-read", "failed")]
HOSTILE.append(replace(spoilt(CASES["guess"]), **GUESS))
BARE: dict[str, list[Diagnosis | Failure]] = {
    "no result": [],
    "no layer": [diagnosis()],
    "no layer and a problem": [diagnosis(problems=("nothing could be read",), rules=())],
    "a failure without advice": [Failure("a.pt", "CheckpointError", "a.pt is empty.", None, None)],
}


def test_formats_are_the_modules_that_render_a_diagnosis() -> None:
    for format in formats():
        module = importlib.import_module(f"ssmdiag.reports.{format}")
        assert callable(module.render_all)
        assert module.__doc__
    others = ssmdiag.reports.MACHINERY
    assert not any(
        hasattr(importlib.import_module(f"ssmdiag.reports.{name}"), "render_all") for name in others - {"check_text"}
    )
    assert {"json", "jsonl", "sarif"} == {format for format in formats() if declares(format, "EXACT")}


def test_every_command_offers_the_formats_there_are() -> None:
    assert sorted(get_args(check.Format)) == sorted(formats())
    assert set(get_args(inspect.Format)) - ssmdiag.reports.NUMBERS < set(formats())
    assert parse_also([f"{format}=file" for format in formats() if format != "text"], formats())
    assert set(get_args(families.Format)) == {"text", "json"}
    assert set(get_args(retrain.Format)) - {"markdown"} == set(FORMATS) == {"text", "json", "html", "svg"}
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert all(re.search(rf"\b{format}\b", readme) for format in formats())


@pytest.mark.one_in(3)
@each_format
@pytest.mark.parametrize("case", BARE)
def test_a_format_renders_a_bare_result(format: str, case: str) -> None:
    rendered = render(BARE[case], format, Settings())
    assert rendered.endswith("\n") or not BARE[case]
    for result in BARE[case]:
        assert "a.pt" in rendered or "model.safetensors" in rendered, result


@pytest.mark.one_in(5)
@each_format
@pytest.mark.parametrize("case", CASES)
def test_a_format_keeps_to_the_characters_of_the_output(format: str, case: str) -> None:
    assert render([CASES[case]], format, Settings(unicode=False, colour=format == "text")).isascii()


@pytest.mark.one_in(3)
@each_format
@pytest.mark.parametrize("colour", [False, True])
def test_no_name_acts_on_who_reads_a_format(format: str, colour: bool) -> None:
    settings = Settings(width=5000, colour=colour and format == "text")
    rendered = render(HOSTILE, format, settings)
    assert_harmless(rendered, coloured=settings.colour, commands=declares(format, "COMMANDS"))
    if declares(format, "EXACT"):
        lines = rendered.splitlines() if format == "jsonl" else [rendered]
        told = [text for line in lines for text in strings(json.loads(line))]
        assert f"backbone.layers.1.mixer{EVIL}" in told, "names are read back exactly"
    if format == "junit":
        assert ElementTree.fromstring(rendered.encode()) is not None


@each_format
def test_pieces_are_the_whole(format: str) -> None:
    results = [CASES["findings"], CASES["failed"], CASES["hybrid"]]
    assert "".join(render_each(results, format, Settings())) == render(results, format, Settings())


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of github, html, json"):
        render([], "console", Settings())
    with pytest.raises(ConfigurationError):
        Configuration(select=("SSM999",)).selection()


NUMBER = {"anyOf": [{"type": ["number", "null"]}, {"enum": ["inf", "-inf"]}]}
QUANTILES = {
    "type": ["object", "null"],
    "additionalProperties": NUMBER,
    "required": ["min", "p05", "median", "p95", "max"],
}
COUNT = {"type": "integer", "minimum": 0}
TEXT, NAME, LINES = {"type": "string"}, {"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}


def record(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has these keys and no others."""
    keys = list(properties)
    return {"type": "object", "properties": properties, "required": keys, "additionalProperties": False}


FINDING = record(
    code={"pattern": r"^SSM\d{3}$"}, severity={"enum": ["error", "warning", "note"]}, layer=NAME, count=COUNT,
    value=NUMBER, threshold=NUMBER, message=TEXT, advice=TEXT, rule=TEXT, family=NAME, tensor=NAME,
    of={"type": ["integer", "null"]}, baseline={"enum": ["new", "worse", "known", None]},
)  # fmt: skip
LAYER = record(
    name=TEXT, family=TEXT, spelling=TEXT, time_invariant={"type": "boolean"}, operating_point=NAME, channels=COUNT,
    modes=COUNT, dtype=TEXT, rate=QUANTILES, half_life=QUANTILES, time_constant=QUANTILES, spectral_radius=NUMBER,
    margin=NUMBER, taps={"type": ["integer", "null"]}, nonfinite_modes=COUNT, unstable_modes=COUNT,
    marginal_modes=COUNT, assumptions={"type": "object"}, tensors=LINES, notes=LINES, horizon=QUANTILES,
    decay={"type": ["object", "null"]},
    capacity={"type": ["object", "null"]},
)  # fmt: skip
ASSUMPTION = record(
    option=TEXT, value=TEXT, choices=LINES, layers=COUNT, slowest_layer=TEXT, slowest_half_life=NUMBER,
    otherwise={"type": "object", "additionalProperties": NUMBER},
)  # fmt: skip
SETTINGS = {"type": ["object", "null"]}
NAMED = {"path": TEXT, "given": NAME, "modified": {"type": ["number", "null"]}}
DIAGNOSIS = record(
    schema_version={"const": 1}, ssmdiag_version=TEXT, torch_version=TEXT, device=TEXT, seed={"type": "null"},
    settings=SETTINGS,
    checkpoint=record(
        **NAMED, format=TEXT, bytes=COUNT, bytes_read=COUNT, train_step={"type": ["integer", "null"]},
    ),
    source={
        "anyOf": [
            {"type": "null"}, record(url=TEXT, revision={"type": ["string", "null"]}, bytes=COUNT, requests=COUNT),
        ]
    },
    status={"enum": ["ok", "warning", "problem", "undetermined"]}, answer=TEXT, attention_layers=LINES,
    context_length={"type": ["integer", "null"]}, guess=NAME, layers={"type": "array", "items": LAYER},
    assumptions={"type": "array", "items": ASSUMPTION}, findings={"type": "array", "items": FINDING},
    known_findings={"type": "array", "items": FINDING},
    not_judged={"type": "array", "items": record(code=TEXT, reason=TEXT)}, problems=LINES, notes=LINES,
    unrecognised=LINES, seconds={"type": "number"},
)  # fmt: skip
FAILURE = record(
    schema_version={"const": 1},
    settings=SETTINGS,
    checkpoint=record(**NAMED),
    error=record(kind=TEXT, seen=TEXT, expected=NAME, advice=NAME),
)


def problems_of(document: object, schema: dict[str, Any]) -> Iterator[str]:
    for error in Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message[:200]}"


@pytest.mark.parametrize("case", CASES)
def test_json_obeys_its_schema(case: str) -> None:
    result = CASES[case]
    if isinstance(result, Diagnosis):
        result = replace(result, known=(finding(2, baseline="known"),))
    schema = FAILURE if isinstance(result, Failure) else DIAGNOSIS
    (line,) = render([result], "jsonl", Settings()).splitlines()
    whole = json.loads(render([result], "json", Settings()), parse_constant=pytest.fail)
    assert json.loads(line) == whole
    assert not list(problems_of(whole, schema))


def test_the_schema_refuses_other_keys_and_other_values() -> None:
    whole = json.loads(render([CASES["findings"]], "json", Settings()))
    whole["layers"][0] |= {"margin": "wide", "colour": "red"}
    del whole["findings"][0]["code"]
    assert len(list(problems_of(whole, DIAGNOSIS))) == 3


RUN = test_compare_text.CASES["converging"]
TRAINED = test_retrain_text.CASES["three-maps"]
SIDE = diagnosis(remembering(layer(0, complex_=True)), remembering(layer(1, complex_=True)), context_length=512)
SHARES = (0.5, 0.5)
PAIR = ModelComparison(
    SIDE, replace(SIDE, path="other/model.pt"), (), (SHARES, SHARES), notes=("step 7 stands for it",)
)
TABLE = ModelTable((SIDE, SIDE, SIDE), (SHARES,) * 3, ("c.pt is empty",), ("step 7 stands for it",))
LAYER_PROOF = LayerProof(
    "a.0", None, Outcome.MISSING, 1e-3, 4, 2, True, ("float32", "bfloat16"), None, None, ("absent",)
)
PROOF = ConversionProof("a.pt", "b.pt", (LAYER_PROOF,), (0, 1), ("shard 2 is missing",), "cpu", 0.1)

COMPARISONS: dict[str, tuple[Any, Callable[[Any, Settings], str], Callable[[Any], str]]] = {
    "run": (RUN, run.report, lambda result: as_json(documents.run_document(result))),
    "models": (PAIR, models.models_report, lambda result: as_json(documents.models_document(result))),
    "table": (TABLE, models.table_report, lambda result: as_json(documents.table_document(result))),
    "conversion": (PROOF, conversion.conversion_report, lambda result: as_json(documents.conversion_document(result))),
    "retrain": (TRAINED, text.report, retrain_json.render),
    "retrain in markdown": (TRAINED, lambda result, settings: markdown.render(result), retrain_json.render),
}
each_comparison = pytest.mark.parametrize("case", COMPARISONS)


@pytest.mark.one_in(5)
@each_comparison
@pytest.mark.parametrize("settings", [Settings(), Settings(width=40, quiet=True), Settings(colour=True, width=200)])
def test_a_comparison_shows_names_that_act_on_nobody(case: str, settings: Settings) -> None:
    result, report, _ = COMPARISONS[case]
    shown = harmless(report(spoilt(result), settings), colours=settings.colour)
    assert_harmless(shown, coloured=settings.colour)
    assert shown == harmless(report(spoilt(result), settings), colours=True), "its own escape, not the last one's"


@each_comparison
def test_a_comparison_keeps_to_the_characters_of_the_screen(case: str) -> None:
    result, report, _ = COMPARISONS[case]
    if case != "retrain in markdown":  # which goes into a file or a comment
        shown = report(result, Settings(unicode=False, width=60))
        assert shown.isascii()
        assert max(map(len, shown.splitlines())) <= 60


@each_comparison
def test_a_comparison_has_a_document_that_is_read_back_exactly(case: str) -> None:
    result, _, document = COMPARISONS[case]
    whole = json.loads(harmless(document(spoilt(result))), parse_constant=pytest.fail)
    assert whole["schema_version"] == 1
    assert {"ssmdiag_version", "device", "notes"} <= whole.keys()
    if "comparison" in whole:
        assert whole["status"] in STYLES
        assert whole["answer"]
    assert any(EVIL in text for text in strings(whole))
    plain = json.loads(document(result))
    assert sorted(_keys(plain)) == sorted(key.removesuffix(EVIL) for key in _keys(whole))


def _keys(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from _keys(value)
    elif isinstance(document, list):
        for value in document:
            yield from _keys(value)
