"""The log obeys the published schema of SARIF 2.1.0, and a result is known again in the next run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, FormatChecker

from ssmdiag.check.baseline import Baseline, compare_results
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.reports import Settings, render
from ssmdiag.reports.sarif import address, fingerprint
from ssmdiag.rules import known_rules
from tests.reports.example_diagnoses import CASES, diagnosis, finding, layer
from tests.schemas import schema

VALIDATOR = Draft7Validator(
    schema("https://json.schemastore.org/sarif-2.1.0.json"), format_checker=FormatChecker(["uri", "uri-reference"])
)


def sarif(*results: object, **settings: object) -> dict[str, Any]:
    """Return the log, after it has passed the schema, and so has every address in it."""
    text = render(results, "sarif", Settings(**settings))  # type: ignore[arg-type]
    log = json.loads(text, parse_constant=pytest.fail)
    problems = [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(log)]
    assert not problems
    (run,) = log["runs"]
    return dict(run)


def test_the_schema_refuses_what_is_no_log() -> None:
    log = {"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "x"}}, "results": [{"level": "fatal"}]}]}
    assert len(list(VALIDATOR.iter_errors(log))) >= 2
    log = {
        "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": "x"}}, "artifacts": [{"location": {"uri": "a b"}}]}],
    }
    assert [error.message for error in VALIDATOR.iter_errors(log)] == ["'a b' is not a 'uri-reference'"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES)
def test_every_report_obeys_the_schema(case: str) -> None:
    sarif(CASES[case])
    sarif(CASES[case], unicode=False)


def test_all_cases_together_are_one_run() -> None:
    run = sarif(*CASES.values())
    assert [artifact["location"]["uri"] for artifact in run["artifacts"]] == ["runs/model.safetensors", "runs/gone.pt"]
    assert len(run["results"]) == 4


def test_a_result_has_its_rule_level_file_layer_and_tensor() -> None:
    run = sarif(CASES["findings"])
    error, _, warning = run["results"]
    assert [error["level"], warning["level"]] == ["error", "warning"]
    assert run["tool"]["driver"]["rules"][error["ruleIndex"]]["id"] == error["ruleId"] == "SSM101"
    (where,) = error["locations"]
    assert where["physicalLocation"]["artifactLocation"]["uri"] == "runs/model.safetensors"
    assert [place["fullyQualifiedName"] for place in where["logicalLocations"]] == [
        "backbone.layers.1.mixer",
        "backbone.layers.1.mixer.A_log",
    ]
    assert "logicalLocations" not in warning["locations"][0], "it concerns the whole checkpoint"
    assert error["message"]["text"].startswith("backbone.layers.1.mixer: 12 of 81,920 modes grow")


def test_every_rule_is_described_whether_it_found_something_or_not() -> None:
    codes = tuple(rule.code for rule in known_rules())
    driver = sarif(diagnosis(layer(0), rules=codes))["tool"]["driver"]
    assert [rule["id"] for rule in driver["rules"]] == sorted(codes)
    for rule in driver["rules"]:
        assert rule["name"][0].isupper()
        assert "-" not in rule["name"]
        assert rule["shortDescription"]["text"]
        assert rule["fullDescription"]["text"]
        assert rule["help"]["text"] in rule["help"]["markdown"].replace(".** ", ": ").replace("**", "")
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
        assert len(rule["properties"]["tags"]) == 2


def test_a_rule_nobody_knows_any_more_is_named_all_the_same() -> None:
    run = sarif(diagnosis(layer(0), findings=(finding(0, code="ACME7", rule="home-made"),)))
    assert run["tool"]["driver"]["rules"][run["results"][0]["ruleIndex"]] == {"id": "ACME7", "name": "HomeMade"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"value": 7.0, "count": 99, "message": "otherwise", "severity": "note", "layer": "renamed"}, True),
        ({"tensor": "another"}, False),
        ({"code": "SSM401"}, False),
        ({"family": "s5"}, False),
    ],
)
def test_a_finding_is_known_again_by_rule_tensor_and_family(change: dict[str, object], same: bool) -> None:
    assert (fingerprint(replace(finding(1), **change)) == fingerprint(finding(1))) is same


def test_a_fingerprint_does_not_depend_on_the_path_and_is_unique_in_a_checkpoint() -> None:
    twice = (finding(1), finding(1), finding(2))
    marks = [
        [result["partialFingerprints"] for result in sarif(diagnosis(layer(1), path=path, findings=twice))["results"]]
        for path in ("a/step-1.pt", "b/step-2.pt")
    ]
    assert marks[0] == marks[1]
    assert len({mark["primaryLocationLineHash"] for mark in marks[0]}) == 3


def test_fingerprints_stay_what_they_are() -> None:
    """Alerts of earlier versions are matched by these: a change of this value opens every alert anew."""
    assert fingerprint(finding(1)) == "8577cb795f8cc74a1f579b293bc8169a9319399e84a9ac0f46bc7f1c512ae2db"


def test_a_baseline_gives_every_result_its_state() -> None:
    model = diagnosis(*(layer(i) for i in range(3)), findings=tuple(finding(i) for i in range(3)))
    assert all("baselineState" not in result for result in sarif(model)["results"])
    _, first = compare_results([diagnosis(layer(0), findings=(finding(0), finding(1)))], Baseline())
    worse = replace(model, findings=(finding(0), finding(1, value=1.5), finding(2)))
    (marked,), _ = compare_results([worse], first.updated(accept=True))
    assert isinstance(marked, Diagnosis)
    states = {result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"][16]: result["baselineState"]
              for result in sarif(marked)["results"]}  # fmt: skip
    assert states == {"0": "unchanged", "1": "updated", "2": "new"}


def test_what_could_not_be_read_makes_the_run_unsuccessful_and_says_why() -> None:
    (clean,) = sarif(CASES["hybrid"])["invocations"]
    assert clean == {"executionSuccessful": True, "toolExecutionNotifications": []}
    for case, said in (("failed", "runs/gone.pt does not exist."), ("partly-read", "shard model-00002-of-00002")):
        (invocation,) = sarif(CASES[case])["invocations"]
        assert not invocation["executionSuccessful"]
        (notification,) = invocation["toolExecutionNotifications"]
        assert notification["level"] == "error"
        assert notification["message"]["text"].startswith(said)
        assert notification["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith("runs/")


@given(path=st.text(), name=st.text(min_size=1), message=st.text(), value=st.none() | st.floats())
def test_any_text_and_any_number_obey_the_schema(path: str, name: str, message: str, value: float | None) -> None:
    broken = finding(0, tensor=name, layer=name, rule=name, message=message, value=value)
    (result,) = sarif(diagnosis(layer(0), path=path, findings=(broken,)))["results"]
    assert result["locations"][0]["logicalLocations"][1]["fullyQualifiedName"] == name


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("runs/model.safetensors", "runs/model.safetensors"),
        ("my runs/größe 100%.pt", "my%20runs/gr%C3%B6%C3%9Fe%20100%25.pt"),
        ("/data/a#b?.pt", "file:///data/a%23b%3F.pt"),
        ("//net/a.pt", "file:////net/a.pt"),
        ("run:1/a.pt", "run%3A1/a.pt"),
        ("../a.pt", "../a.pt"),
        ("not-utf8-\udcff.pt", "not-utf8-%FF.pt"),
    ],
)
def test_a_path_becomes_the_address_it_was_given_as(path: str, uri: str) -> None:
    assert address(path) == uri
