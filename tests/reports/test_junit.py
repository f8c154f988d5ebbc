"""The XML is well formed whatever a name holds, obeys Jenkins' schema, and an independent reader counts the same."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, TestCase

from ssmdiag.printable import printable
from ssmdiag.reports import Settings, render
from ssmdiag.rules import known_rules
from tests.reports.example_diagnoses import CASES, diagnosis, finding, layer

GRAMMAR: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp", "hostname", "id", "package", "group", "file", "log", "url"},
        {"testcase", "properties", "system-out", "system-err", "testsuite"},
    ),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}
"""Element: attributes it must have, may have, and its children, by junit-10.xsd of Jenkins' xunit plugin."""

COUNTS = re.compile(r"\d+")
SECONDS = re.compile(r"[0-9]{0,3}(,[0-9]{3})*(\.[0-9]*)?")


def obeys(element: ElementTree.Element) -> None:
    needed, allowed, children = GRAMMAR[element.tag]
    assert needed <= set(element.keys()) <= needed | allowed, element.attrib
    assert {child.tag for child in element} <= children
    for name in ("tests", "failures", "errors", "skipped"):
        assert COUNTS.fullmatch(element.get(name, "0"))
    assert SECONDS.fullmatch(element.get("time", "0.0"))
    for child in element:
        obeys(child)


def junit(*results: object, fail_on: str = "error", **settings: object) -> str:
    return render(results, "junit", Settings(fail_on=fail_on, **settings))  # type: ignore[arg-type]


def cases(text: str) -> list[TestCase]:
    return [case for suite in JUnitXml.fromstring(text.encode()) for case in suite]


def failing(text: str) -> list[str]:
    """Return `class name` of the cases that an independent reader calls failed."""
    return [
        f"{case.classname} {case.name}"
        for case in cases(text)
        if any(isinstance(outcome, Failure) for outcome in case.result)
    ]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES)
def test_every_report_obeys_the_schema(case: str) -> None:
    for text in (junit(CASES[case]), junit(CASES[case], unicode=False)):
        obeys(ElementTree.fromstring(text.encode()))
    assert junit(CASES[case], unicode=False).isascii()


def test_the_counts_are_what_an_independent_reader_counts() -> None:
    text = junit(*CASES.values())
    read = JUnitXml.fromstring(text.encode())
    stated = [(suite.tests, suite.failures, suite.errors, suite.skipped) for suite in read]
    total = (read.tests, read.failures, read.errors)
    for suite in read:
        suite.update_statistics()
    read.update_statistics()
    assert stated == [(suite.tests, suite.failures, suite.errors, suite.skipped) for suite in read]
    assert total == (read.tests, read.failures, read.errors)
    assert read.failures == 3
    assert read.errors == 2


def test_a_rule_on_layers_has_a_case_for_every_layer() -> None:
    names = [f"{case.classname} {case.name}" for case in cases(junit(CASES["findings"]))]
    layers = [f"backbone.layers.{i}.mixer" for i in range(4)]
    assert names == [
        "checkpoint read",
        *(f"{name} SSM101 unstable-mode" for name in layers),
        *(f"{name} SSM401 non-finite" for name in layers),
        "checkpoint SSM401 non-finite",
    ]


def test_a_rule_on_the_checkpoint_has_one_case_though_it_names_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = (known_rules()[0], replace(known_rules()[1], code="SSM901", looks_at="checkpoint", name="made-up"))
    monkeypatch.setattr("ssmdiag.reports.junit.known_rules", lambda: rules)
    findings = tuple(finding(i, code="SSM901", rule="made-up") for i in range(3))
    text = junit(diagnosis(*(layer(i) for i in range(3)), rules=("SSM901",), findings=findings))
    assert [case.name for case in cases(text)] == ["read", "SSM901 made-up"]
    (failure,) = cases(text)[1].result
    assert failure.message.endswith("(and 2 more)")
    assert [f"backbone.layers.{i}.mixer: " in failure.text for i in range(3)] == [True] * 3


@pytest.mark.parametrize(("fail_on", "failed"), [("error", 1), ("warning", 2), ("note", 3)])
def test_findings_below_the_fail_level_are_output_and_no_failure(fail_on: str, failed: int) -> None:
    findings = tuple(finding(i, severity=severity) for i, severity in enumerate(("error", "warning", "note")))
    text = junit(diagnosis(*(layer(i) for i in range(3)), findings=findings), fail_on=fail_on)
    assert len(failing(text)) == failed
    assert sum("next: go back" in (case.system_out or "") for case in cases(text)) == 3 - failed


def test_what_the_baseline_knows_is_output_and_no_failure() -> None:
    model = diagnosis(layer(0), layer(1), findings=(finding(0, baseline="new"),), known=(finding(1, baseline="known"),))
    text = junit(model)
    assert failing(text) == ["backbone.layers.0.mixer SSM101 unstable-mode"]
    assert "error [known]: backbone.layers.1.mixer" in text


def test_a_failing_finding_takes_its_weaker_neighbours_into_the_output() -> None:
    model = diagnosis(layer(0), findings=(finding(0), finding(0, severity="note", message="and this")))
    (case,) = (case for case in cases(junit(model)) if case.result)
    assert "and this" in case.system_out
    assert "and this" not in case.result[0].text


def test_what_could_not_be_read_is_an_error_of_the_case_read() -> None:
    for name, said in (("failed", "runs/gone.pt does not exist."), ("partly-read", "shard model-00002-of-00002")):
        case = cases(junit(CASES[name]))[0]
        assert (case.classname, case.name) == ("checkpoint", "read")
        assert [type(outcome) for outcome in case.result] == [Error]
        assert case.result[0].message.startswith(said)


def test_cases_of_several_checkpoints_have_names_of_their_own() -> None:
    names = [f"{case.classname} {case.name}" for case in cases(junit(CASES["findings"], CASES["failed"]))]
    assert len(set(names)) == len(names)
    assert "runs/model.safetensors: backbone.layers.0.mixer SSM101 unstable-mode" in names
    assert "runs/gone.pt: checkpoint read" in names


def test_a_case_is_named_alike_in_every_run_whatever_was_found_and_whatever_the_path() -> None:
    def names(*numbers: int, path: str) -> set[tuple[str, str]]:
        model = diagnosis(*(layer(i) for i in range(4)), path=path, findings=tuple(finding(i) for i in numbers))
        return {(case.classname, case.name) for case in cases(junit(model))}

    assert names(1, 2, path="run/step-100.pt") == names(path="run/step-200.pt")


def test_sixty_four_layers_under_twenty_five_rules_take_less_than_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tuple(replace(known_rules()[0], code=f"SSM{100 + i}", name=f"rule-{i}") for i in range(25))
    monkeypatch.setattr("ssmdiag.reports.junit.known_rules", lambda: rules)
    model = diagnosis(*(layer(i) for i in range(64)), rules=tuple(rule.code for rule in rules))
    text = junit(model)
    assert len(cases(text)) == 1 + 64 * 25
    assert len(text) < 200_000
    found = replace(model, findings=tuple(finding(i, code=rule.code) for rule in rules for i in range(64)))
    assert len(junit(found)) < 1_000_000


@given(st.text(), st.text(), st.text())
def test_any_text_is_well_formed_xml(name: str, message: str, path: str) -> None:
    broken = finding(0, tensor=name, layer=name or None, message=message)
    text = junit(diagnosis(replace(layer(0), name=name), path=path, findings=(broken,)))
    root = ElementTree.fromstring(text.encode())
    obeys(root)
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == printable(message)


def test_control_characters_are_written_as_their_code_points() -> None:
    text = junit(diagnosis(layer(0), findings=(finding(0, message="a\x00\x1b[31m\ufffe\ud800b"),)))
    failure = ElementTree.fromstring(text.encode()).find(".//failure")
    assert failure is not None
    assert failure.get("message") == r"a\u0000\u001b[31m\ufffe\ud800b"
