"""One diagnosis in every format: each number of a table is that of JSON, at the precision that is shown."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from ssmdiag.diagnosis import Diagnosis
from ssmdiag.reports import Settings, render
from ssmdiag.reports.page.diagnosis import COLUMNS
from tests.reports.example_diagnoses import CASES, diagnosis, layer, remembering
from tests.reports.test_page import Node, read

SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, " %": 0.01}
FULL = Settings(width=220, full=True, all_layers=True)
DIAGNOSES = {name: case for name, case in CASES.items() if isinstance(case, Diagnosis)} | {
    "remembering": diagnosis(*(remembering(layer(i, half_life=3.0 * 7**i)) for i in range(6)), context_length=2048),
    "named like a formula": diagnosis(*(replace(layer(i), name=f"{mark}b.{i}") for i, mark in enumerate("=+-@"))),
}
each = pytest.mark.parametrize("case", DIAGNOSES)
TEXT = {
    "half-life": ("half_life", "median"), "slowest": ("half_life", "max"), "τ": ("time_constant", "max"),
    "margin": ("margin",), "horizon": ("horizon", "max"),
}  # fmt: skip
"""Columns of numbers of the text report's table, in order."""
PAGE = {
    "channels": ("channels",), "half-life, median": ("half_life", "median"), "half-life, slowest": ("half_life", "max"),
    "τ, slowest": ("time_constant", "max"), "margin": ("margin",), "horizon, longest": ("horizon", "max"),
    "90 % of energy after": ("decay", "layer", "lags", "nine_tenths"), "length": ("capacity", "length_half"),
    "modes left": ("capacity", "effective_modes"), "grow": ("unstable_modes",), "flat": ("marginal_modes",),
    "NaN": ("nonfinite_modes",),
}  # fmt: skip


def at(record: Any, way: Sequence[str]) -> Any:
    for key in way:
        record = record[key] if isinstance(record, Mapping) else None
    return record


def agrees(said: str, value: Any) -> bool:
    """Whether what is said is the value of JSON, rounded at the last digit that is said."""
    if said in ("–", ""):
        return value is None
    if said in ("∞", "inf"):
        return value in (math.inf, "inf")
    match = re.fullmatch(r"([−-]?[\d,]+(?:\.(\d+))?)(?:e([+-]?\d+))?( %|[kMGT]?)", said)
    assert match, said
    number, decimals, power, unit = match.groups()
    scale = SCALES[unit] * 10 ** int(power or 0)
    shown, half = float(number.replace(",", "").replace("−", "-")), 0.5 * 10 ** -len(decimals or "")
    return value is not None and abs(shown - float(value) / scale) <= half * (1 + 1e-9)


def answered(data: Mapping[str, Any]) -> str:
    return " ".join(f"{data['status'].upper()} {data['answer']}".split())


def test_a_number_agrees_with_its_value_at_the_digits_it_has() -> None:
    assert all(agrees(s, v) for s, v in {"1.2k": 1234.0, "85": 85.4, "–": None, "∞": "inf", "9.8e-4": 9.79e-4}.items())
    assert not any(agrees(s, v) for s, v in {"1.2k": 1260.0, "85": 85.6, "–": 0.0, "9.8e-4": 9.7e-4}.items())


@each
def test_the_text_report_says_the_answer_and_the_numbers_of_json(case: str) -> None:
    data = json.loads(render([DIAGNOSES[case]], "json", Settings()))
    said = render([DIAGNOSES[case]], "text", FULL)
    assert " ".join(said.split()).startswith(answered(data))
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines() if re.search(r"\d × \d", line)]
    assert len(rows) == len(data["layers"])
    ways = [way for way in TEXT.values() if way[0] != "horizon" or any(one["horizon"] for one in data["layers"])]
    for row, one in zip(rows, data["layers"], strict=True):
        (start,) = (k for k, cell in enumerate(row) if " × " in cell)
        assert row[start] == f"{one['channels']:,} × {one['modes']}"
        for said, way in zip(row[start + 1 : start + 1 + len(ways)], ways, strict=True):
            assert agrees(said, at(one, way)), (way, said)


@each
def test_markdown_says_the_answer_and_the_numbers_of_json(case: str) -> None:
    data = json.loads(render([DIAGNOSES[case]], "json", Settings()))
    said = render([DIAGNOSES[case]], "markdown", FULL)
    plain = re.sub(r"\\(.)", r"\1", said)
    assert " ".join(plain.split()).startswith(f"**{answered(data)}**")
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if re.search(r"\| [\d,]+ × \d", line)]
    assert len(rows) == len(data["layers"])
    for row, one in zip(rows, data["layers"], strict=True):
        median, slowest, margin, horizon = row[3:7]
        assert agrees(median, at(one, ("half_life", "median")))
        assert agrees(slowest, at(one, ("half_life", "max")))
        assert agrees(margin, one["margin"])
        assert agrees(horizon, at(one, ("horizon", "max")))


@each
def test_a_page_says_the_answer_and_has_the_numbers_of_json_in_full(case: str) -> None:
    data = json.loads(render([DIAGNOSES[case]], "json", Settings()))
    page = read(render([DIAGNOSES[case]], "html", Settings()))
    verdict = next(page.all("p")).said
    assert verdict.replace(".", "", 1).strip().lower() == answered(data).lower()
    table = next(table for table in page.all("table") if COLUMNS[1] in next(table.all("thead")).said)
    heads = [head.said.replace("\xa0", " ") for head in next(table.all("thead")).all("th")]
    rows = list(next(table.all("tbody")).all("tr"))
    assert len(rows) == len(data["layers"])
    for row, one in zip(rows, data["layers"], strict=True):
        cells = dict(zip(heads, row.all("th", "td"), strict=True))
        assert cells["module"].said == one["name"] if "module" in cells else len(rows) == 1
        for head in cells.keys() & PAGE.keys():
            wanted = at(one, PAGE[head])
            assert_cell(cells[head], None if head in ("grow", "flat", "NaN") and not wanted else wanted)
        unseen = [head for head in PAGE.keys() - cells.keys() if at(one, PAGE[head])]
        assert not unseen, "a column is left out only where nothing is known"


def assert_cell(cell: Node, value: Any) -> None:
    """Assert that a cell is read as the value, and holds all its digits where it is read as fewer."""
    assert agrees(cell.said, value)
    exact = [data.attributes["value"] for data in cell.all("data")]
    if exact:
        assert float(exact[0]) == float(value)
    elif value is not None:
        assert float(cell.said.replace("∞", "inf").replace(",", "")) == float(value)


@each
def test_comma_separated_values_are_the_numbers_of_json_in_full(case: str) -> None:
    data = json.loads(render([DIAGNOSES[case]], "json", Settings()))
    rows = list(csv.DictReader(io.StringIO(render([DIAGNOSES[case]], "csv", Settings()))))
    for row, one in zip(rows, data["layers"], strict=True):
        assert row["name"].lstrip("'") == one["name"]
        for name in ("rate", "half_life", "time_constant", "horizon"):
            for part in ("min", "p05", "median", "p95", "max"):
                wanted, said = at(one, (name, part)), row[f"{name}_{part}"]
                assert said == "" if wanted is None else float(said) == float(wanted)
        for name in ("channels", "modes", "margin", "spectral_radius", "unstable_modes"):
            assert row[name] == "" if one[name] is None else float(row[name]) == float(one[name])
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in (row["name"], row["checkpoint"]))


@each
def test_every_format_of_findings_says_what_json_says_of_them(case: str) -> None:
    data = json.loads(render([DIAGNOSES[case]], "json", Settings()))
    messages = sorted(one["message"] for one in data["findings"])
    sarif = json.loads(render([DIAGNOSES[case]], "sarif", Settings()))
    said = [result["message"]["text"] for result in sarif["runs"][0]["results"]]
    assert len(said) == len(messages)
    assert all(any(message.rstrip(".") in text for text in said) for message in messages)
    junit = ElementTree.fromstring(render([DIAGNOSES[case]], "junit", Settings()))
    failed = [one.get("message", "") + (one.text or "") for one in junit.iter() if one.tag in ("failure", "error")]
    for one in data["findings"]:
        if one["severity"] == "error":
            assert any(one["message"] in text for text in failed)
