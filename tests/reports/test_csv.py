"""Comma-separated values: the numbers of the JSON document, read back exactly, and no cell that is a formula."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from ssmdiag.diagnosis import Diagnosis
from ssmdiag.reports import Settings, render
from ssmdiag.reports.csv import HEADS
from ssmdiag.reports.json import document
from tests.reports.example_diagnoses import CASES


def rows_of(*results: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(list(results), "csv", Settings()))))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_a_row_with_its_numbers_in_full(case: str) -> None:
    result = CASES[case]
    rows = rows_of(result)
    assert all(tuple(row) == HEADS for row in rows)
    if not isinstance(result, Diagnosis):
        assert [row["error"] for row in rows] == [result.seen]
        return
    for row, layer in zip(rows, document(result)["layers"], strict=True):
        assert row["name"] == layer["name"]
        assert row["margin"] == ("" if layer["margin"] is None else repr(layer["margin"]))
        longest = (layer["half_life"] or {}).get("max", "")
        assert row["half_life_max"] == (longest if isinstance(longest, str) else repr(longest))
        assert row["decay_law"] == (layer["decay"]["layer"]["law"] if layer["decay"] else "")


def test_a_name_that_begins_like_a_formula_is_text() -> None:
    one = CASES["one-exact-layer"]
    assert isinstance(one, Diagnosis)
    evil = [replace(one.layers[0], name=f'{sign}HYPERLINK(1),"\n') for sign in "=+-@"]
    rows = rows_of(replace(one, layers=tuple(evil)))
    assert [row["name"] for row in rows] == [f"'{sign}HYPERLINK(1),\"\\n" for sign in "=+-@"]
    assert float(rows_of(CASES["unstable"])[1]["margin"]) < 0
