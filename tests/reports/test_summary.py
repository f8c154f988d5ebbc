"""Summaries, tables and representations: the values of the JSON document under its names, in harmless words."""

from __future__ import annotations

import builtins
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from ssmdiag.capacity.capacity import assess_capacity
from ssmdiag.errors import SsmdiagError
from ssmdiag.output.result import Result
from ssmdiag.reports import summary as module
from ssmdiag.reports.csv import HEADS
from ssmdiag.reports.json import document, plain
from ssmdiag.reports.page import PAGES
from tests.cli.test_hostile_names import assert_harmless
from tests.reports.test_page import CAPACITY, EVIL, MODEL, PAGED
from tests.test_diagnosis import recurrence

RESULTS: dict[str, Result] = {name: case.result for name, case in PAGED.items()} | {
    "layer capacity": assess_capacity(recurrence([0.01, 0.1]), 64)
}
each_result = pytest.mark.parametrize("name", RESULTS)
ROWS: dict[str, Callable[[Any], int]] = {
    "Diagnosis": lambda result: len(result.layers),
    "RunComparison": lambda result: len(result.layers),
    "ModelComparison": lambda result: len(result.a.layers) + len(result.b.layers),
    "ModelTable": lambda result: sum(len(model.layers) for model in result.models),
    "ConversionProof": lambda result: len(result.layers),
    "CapacityReport": lambda result: 1,
    "LayerCapacity": lambda result: 1,
    "ProbedMemory": lambda result: len(result.layers),
    "RetrainResult": lambda result: len(result.arms),
}
"""How many rows the table of each kind of result has."""


def leaves(data: Any) -> list[Any]:
    """Return every number and text of nested data."""
    if isinstance(data, dict):
        return [leaf for value in data.values() for leaf in leaves(value)]
    if isinstance(data, list):
        return [leaf for value in data for leaf in leaves(value)]
    return [data]


def test_every_kind_of_result_is_tested() -> None:
    kinds = {kind.__name__ for kind in Result.__subclasses__()}
    assert kinds == set(PAGES) == set(ROWS) == {type(result).__name__ for result in RESULTS.values()}


@each_result
def test_a_summary_is_a_small_dict_that_json_holds(name: str) -> None:
    told = RESULTS[name].summary()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(json.dumps(told)) < 6000


@each_result
def test_a_table_has_a_row_for_each_layer_or_arm_and_plain_cells(name: str) -> None:
    result = RESULTS[name]
    table = result.to_dataframe()
    assert isinstance(table, pd.DataFrame)
    assert len(table) == ROWS[type(result).__name__](result)
    cells = table.astype(object).to_numpy().flatten()
    assert {type(cell) for cell in cells} <= {str, int, float, bool, type(None)}
    assert not table.isin(["inf", "-inf"]).to_numpy().any()


@each_result
def test_a_representation_is_one_short_line_that_names_the_kind(name: str) -> None:
    line = repr(RESULTS[name])
    assert line.startswith(f"<{type(RESULTS[name]).__name__} ")
    assert line.endswith(">")
    assert len(line.splitlines()) == 1
    assert len(line) < 250


@pytest.mark.parametrize("name", sorted(PAGED.keys() - {"probe", "probe of no layer", "hybrid"}))
def test_the_values_of_a_table_are_those_of_the_document(name: str) -> None:
    """Every value of a row that has one stands in the JSON document, or is made of it under a name of its own."""
    said = Counter(map(repr, leaves(plain(PAGED[name].document(PAGED[name].result)))))
    made = {"model", "arm", "slowest_half_life_before", "slowest_half_life_after"}
    for row in RESULTS[name].to_dataframe().astype(object).to_dict("records"):
        for column, value in row.items():
            if column not in made and value is not None and value == value:
                shown = {math.inf: "inf", -math.inf: "-inf"}.get(value, value) if isinstance(value, float) else value
                assert repr(shown) in said or repr(int(shown)) in said, (column, value)


def test_a_table_of_a_diagnosis_has_the_columns_of_its_csv() -> None:
    assert set(MODEL.to_dataframe().columns) <= set(HEADS)
    data = document(MODEL)
    table = MODEL.to_dataframe()
    assert list(table["half_life_max"]) == [layer["half_life"]["max"] for layer in data["layers"]]
    assert list(table["name"]) == [layer["name"] for layer in data["layers"]]


def test_infinity_is_a_number_in_a_table_and_unknown_is_missing() -> None:
    boundary = RESULTS["on the boundary"].to_dataframe()
    assert math.inf in list(boundary["half_life_max"])
    assert RESULTS["on the boundary"].summary()["slowest_half_life"] == "inf"
    nothing = RESULTS["nothing finite"]
    assert nothing.to_dataframe()["margin"].isna().all()
    assert nothing.summary()["slowest_half_life"] is None


def test_a_summary_of_a_diagnosis_says_what_was_found() -> None:
    told, data = MODEL.summary(), document(MODEL)
    assert [told.get(name) for name in ("status", "answer")] == [data.get(name) for name in ("status", "answer")]
    assert told["layers"] == len(data["layers"])
    assert told["slowest_half_life"] == max(layer["half_life"]["max"] for layer in data["layers"])
    assert told["longest_horizon"] == max(layer["horizon"]["max"] for layer in data["layers"] if layer["horizon"])
    assert sum(told["counts"].values()) == len(data["findings"])
    assert {one["code"] for one in told["findings"]} == {one["code"] for one in data["findings"]}
    assert sum(one["count"] for one in told["findings"]) == len(data["findings"])
    assert told["exit_code"] == MODEL.exit_code()
    assert RESULTS["broken"].summary()["unstable_modes"] > 0


def test_a_representation_of_a_diagnosis_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "document", lambda model: document(model) | {"status": "ok", "answer": "remembers"})
    assert repr(MODEL) == "<Diagnosis model.safetensors: OK  remembers>"
    assert MODEL.summary()["answer"] == "remembers"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diagnosis", "4 layers, slowest half-life 1,000 steps with the gates at rest, 2 errors, 1 warning"),
        ("broken", "3 layers, slowest half-life 1,000 steps with the gates at rest, 12 modes growing, no findings"),
        ("on the boundary", "1 layer, slowest half-life ∞ steps with the gates at rest, no findings"),
        ("nothing finite", "1 layer, slowest half-life unknown with the gates at rest, 81,920 modes not finite"),
    ],
)
def test_a_representation_without_an_answer_has_the_longest_memory_and_what_is_wrong(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "document", lambda model: dict(tuple(document(model).items())[:1]))
    assert repr(RESULTS[name]).startswith(f"<Diagnosis model.safetensors: {words}")


def test_names_cannot_act_on_what_shows_them() -> None:
    evil = replace(MODEL, path=EVIL, layers=tuple(replace(layer, name=EVIL) for layer in MODEL.layers))
    assert_harmless(repr(evil))
    capacity = replace(CAPACITY, name=EVIL)
    assert_harmless(repr(capacity))


def test_without_pandas_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **settings: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SsmdiagError, match="a table needs pandas") as error:
        MODEL.to_dataframe()
    assert "pip install pandas" in str(error.value)
    assert MODEL.summary()["layers"]
