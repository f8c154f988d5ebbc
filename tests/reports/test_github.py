"""Annotations are read back as a runner reads them: nothing in a name ends one early, and ten of a kind are enough."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.printable import printable
from ssmdiag.reports import Settings, render
from tests.reports.example_diagnoses import CASES, diagnosis, finding, layer, remembering

COMMAND = re.compile(r"^::(?P<kind>\w+)(?: (?P<properties>[^:]*))?::(?P<message>.*)$")


@dataclass(frozen=True)
class Annotation:
    kind: str
    properties: dict[str, str]
    message: str


def annotations(text: str) -> list[Annotation]:
    """Return the workflow commands of a log: properties end at the first `::`, escapes are percent signs and hex."""
    found = []
    for line in text.split("\n"):
        if match := COMMAND.match(line):
            pairs = (pair.split("=", 1) for pair in (match["properties"] or "").split(",") if pair)
            properties = {key: unquote(value) for key, value in pairs}
            found.append(Annotation(match["kind"], properties, unquote(match["message"])))
        else:
            assert not line or line.startswith("ssmdiag: "), line
    return found


def github(*results: object, **settings: object) -> str:
    return render(results, "github", Settings(**settings))  # type: ignore[arg-type]


def test_findings_of_one_rule_are_one_annotation_with_its_layers() -> None:
    error, warning = annotations(github(CASES["findings"]))
    assert (error.kind, warning.kind) == ("error", "warning")
    assert error.properties == {"file": "runs/model.safetensors", "title": "SSM101 unstable-mode"}
    assert error.message.splitlines()[0].startswith("layers 1, 3 (worst: 3): 12 of 81,920 modes grow with every step")
    assert error.message.splitlines()[1:] == [
        "Next: go back to a checkpoint before it crossed",
        "ssmdiag explain SSM101",
    ]


def test_a_note_is_a_notice() -> None:
    model = diagnosis(layer(0), findings=(finding(0, severity="note"),))
    assert [one.kind for one in annotations(github(model))] == ["notice"]


@given(path=st.text(), message=st.text(), rule=st.text())
def test_any_text_arrives_as_it_is_shown_everywhere(path: str, message: str, rule: str) -> None:
    model = diagnosis(layer(0), path=path, findings=(finding(None, message=message, rule=rule),))
    (one,) = annotations(github(model))
    assert one.properties.get("file", "") == printable(path)
    assert one.properties["title"] == f"SSM101 {printable(rule)}"
    assert one.message.startswith(f"{printable(message)}.\n")


@pytest.mark.parametrize("evil", ["x\n::stop-commands::t", "a ##[error]b", "::warning::no", "%0A::error::no"])
def test_no_name_is_a_command_of_its_own(evil: str) -> None:
    model = diagnosis(layer(0), path=evil, findings=(finding(0, message=evil, tensor=evil),))
    text = github(model)
    lines = text.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("::error file=")
    assert lines[1].startswith("ssmdiag: ")
    assert "##[" not in lines[1]


def test_of_more_than_ten_of_a_kind_the_tenth_lists_the_rest() -> None:
    findings = tuple(finding(0, code=f"SSM1{number:02}") for number in range(25))
    shown = annotations(github(diagnosis(layer(0), findings=findings), CASES["findings"]))
    errors = [one for one in shown if one.kind == "error"]
    assert len(errors) == 10
    assert errors[-1].properties == {"title": "17 more"}
    codes = {code for one in errors for code in re.findall(r"SSM1\d\d", f"{one.properties['title']} {one.message}")}
    assert codes == {f"SSM1{number:02}" for number in range(25)}
    assert sum(one.kind == "warning" for one in shown) == 1


def test_the_list_of_the_rest_has_an_end() -> None:
    findings = tuple(finding(0, code=f"SSM{number}") for number in range(100, 500))
    shown = annotations(github(diagnosis(layer(0), findings=findings)))
    assert len(shown) == 10
    assert len(shown[-1].message.splitlines()) == 51
    assert shown[-1].message.endswith("and 341 more, which --format text shows")


def test_what_could_not_be_read_is_an_error() -> None:
    failed, shard = annotations(github(CASES["failed"], CASES["partly-read"]))
    assert failed.kind == shard.kind == "error"
    assert failed.properties == {"file": "runs/gone.pt", "title": "not diagnosed"}
    assert failed.message == "runs/gone.pt does not exist. Next: did you mean done.pt?"
    assert shard.message.startswith("shard model-00002-of-00002.safetensors is missing")


def test_what_the_baseline_knows_is_counted_and_not_annotated() -> None:
    text = github(diagnosis(layer(0), layer(1), known=(finding(0), finding(1))))
    assert annotations(text) == []
    assert "; 2 rules on 2 layers, 163,840 modes; 2 more in the baseline" in text


def test_a_clean_run_says_so_in_the_log() -> None:
    model = diagnosis(remembering(layer(0, complex_=True)), context_length=512)
    said = "OK  remembers at least 2,000 steps, further than its context of 512; 2 rules on 1 layer, 81,920 modes"
    assert github(model) == f"ssmdiag: runs/model.safetensors: {said}\n"


def test_ascii_is_ascii() -> None:
    model = diagnosis(layer(0), findings=(finding(0, message="|λ̄| ≥ 1 – blöck"),))
    assert github(model, unicode=False).isascii()
