"""A baseline accepts the findings it holds unless they get worse; its file is stable, and never written by accident."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.check.baseline import Baseline, Entry, compare, compare_results
from ssmdiag.check.baseline_file import as_text, keep_baseline, read_baseline, write_baseline
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.errors import BaselineError, Failure
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import Finding
from tests.reports.example_diagnoses import diagnosis, finding, layer


def accepted(*findings: Finding) -> Baseline:
    return compare(findings, Baseline()).updated(accept=True)


def states(findings: list[Finding], baseline: Baseline) -> list[str | None]:
    comparison = compare(findings, baseline)
    return [f.baseline for f in (*comparison.new, *comparison.worse, *comparison.known)]


def test_what_is_on_file_is_known_and_everything_else_is_new() -> None:
    baseline = accepted(finding(1))
    comparison = compare([finding(1), finding(2)], baseline)
    assert [f.layer for f in comparison.known] == ["backbone.layers.1.mixer"]
    assert [f.layer for f in comparison.new] == ["backbone.layers.2.mixer"]
    assert comparison.failing == comparison.new
    assert not comparison.gone


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"layer": "renamed"}, "known"),
        ({"message": "said otherwise", "advice": "done otherwise"}, "known"),
        ({"value": 1.0201}, "known"),
        ({"tensor": "another"}, "new"),
        ({"code": "SSM401"}, "new"),
        ({"family": "s5"}, "new"),
    ],
)
def test_a_finding_is_matched_by_rule_tensor_and_family(change: dict[str, object], state: str) -> None:
    assert states([replace(finding(1), **change)], accepted(finding(1))) == [state]


def test_a_finding_without_a_tensor_is_matched_by_its_layer_and_one_without_either_by_its_rule() -> None:
    layerwise, whole = replace(finding(1), tensor=None), finding(None)
    baseline = accepted(layerwise, whole)
    assert states([layerwise, whole], baseline) == ["known", "known"]
    assert states([replace(layerwise, layer="elsewhere")], baseline) == ["new"]


@pytest.mark.parametrize(
    ("count", "state"), [(11, "known"), (12, "known"), (13, "known"), (14, "worse"), (24, "worse")]
)
def test_a_count_may_grow_by_a_tenth(count: int, state: str) -> None:
    assert states([finding(1, count=count)], accepted(finding(1, count=12))) == [state]


def test_counts_are_shares_where_the_model_has_grown() -> None:
    baseline = accepted(finding(1, count=100, of=1000))
    assert states([finding(1, count=200, of=2000)], baseline) == ["known"]
    assert states([finding(1, count=230, of=2000)], baseline) == ["worse"]


@pytest.mark.parametrize(
    ("value", "state"), [(1.02, "known"), (1.0219, "known"), (1.0221, "worse"), (1.0001, "known"), (math.inf, "worse")]
)
def test_a_spectral_radius_is_held_against_its_excess_over_one(value: float, state: str) -> None:
    assert states([finding(1, value=value)], accepted(finding(1, value=1.02))) == [state]


def test_a_value_is_relative_to_zero_where_the_rule_says_nothing_else() -> None:
    assert {rule.code: rule.origin for rule in known_rules()}["SSM401"] == 0
    baseline = accepted(finding(1, code="SSM401", value=50.0))
    assert states([finding(1, code="SSM401", value=55.0)], baseline) == ["known"]
    assert states([finding(1, code="SSM401", value=55.1)], baseline) == ["worse"]


def test_worse_is_lower_for_rules_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = replace(known_rules()[0], code="SSM999", worse="lower", origin=0.0)
    monkeypatch.setattr("ssmdiag.check.baseline.known_rules", lambda: (rule,))
    baseline = accepted(finding(1, code="SSM999", value=800.0))
    assert states([finding(1, code="SSM999", value=5000.0)], baseline) == ["known"]
    assert states([finding(1, code="SSM999", value=721.0)], baseline) == ["known"]
    assert states([finding(1, code="SSM999", value=719.0)], baseline) == ["worse"]


def test_a_rule_nobody_knows_any_more_is_compared_all_the_same() -> None:
    baseline = accepted(finding(1, code="SSM998", value=1.0))
    assert states([finding(1, code="SSM998", value=2.0)], baseline) == ["worse"]


def test_severity_that_rises_is_worse_and_severity_that_falls_is_not() -> None:
    assert states([finding(1, severity="error")], accepted(finding(1, severity="warning"))) == ["worse"]
    assert states([finding(1, severity="note")], accepted(finding(1, severity="warning"))) == ["known"]


@pytest.mark.parametrize(
    ("before", "now", "state"),
    [
        (None, None, "known"),
        (None, 7.0, "known"),
        (7.0, None, "known"),
        (7.0, math.nan, "worse"),
        (math.inf, math.inf, "known"),
        (math.inf, 7.0, "known"),
        (0.0, 0.0, "known"),
        (0.0, 1e-300, "worse"),
    ],
)
def test_values_that_are_absent_or_not_finite(before: float | None, now: float | None, state: str) -> None:
    baseline = accepted(replace(finding(1, code="SSM401"), value=before))
    assert states([replace(finding(1, code="SSM401"), value=now)], baseline) == [state]


def test_what_got_worse_says_what_is_on_file() -> None:
    (worse,) = compare([finding(1, value=1.5, count=40)], accepted(finding(1))).worse
    assert worse.message.endswith("(worse than the baseline: was 12 of 81,920; value 1.5, was 1.02)")


@given(st.floats(1e-6, 1e6), st.integers(1, 10**6), st.floats(0, 0.0999), st.booleans())
def test_nothing_within_the_tolerance_is_worse_and_nothing_twice_as_bad_passes(
    value: float, count: int, share: float, high: bool
) -> None:
    baseline = accepted(finding(1, code="SSM401", value=value, count=count))
    moved = value * (1 + share if high else 1 - share)
    assert states([finding(1, code="SSM401", value=moved, count=math.floor(count * (1 + share)))], baseline) == [
        "known"
    ]
    assert states([finding(1, code="SSM401", value=2 * value, count=count)], baseline) == ["worse"]
    assert states([finding(1, code="SSM401", value=value, count=2 * count)], baseline) == ["worse"]


def test_two_findings_of_one_key_are_one_entry_and_one_more_of_them_is_worse() -> None:
    forward, backward = finding(1), replace(finding(1), layer="backbone.layers.1.mixer (backward)")
    baseline = accepted(forward, backward)
    assert [(entry.count, entry.of) for entry in baseline.entries] == [(24, 163_840)]
    assert states([forward, backward], baseline) == ["known", "known"]
    assert states([forward, backward], accepted(forward)) == ["known", "known"], "the same share of twice the modes"
    alone = replace(forward, of=None), replace(backward, of=None)
    assert states(list(alone), accepted(alone[0])) == ["worse", "worse"]


def test_only_what_was_looked_at_can_be_gone() -> None:
    baseline = accepted(finding(1), finding(2), finding(None, code="SSM401"))

    def gone(**looked: object) -> list[str]:
        return [entry.key[1] for entry in compare([], baseline, **looked).gone]  # type: ignore[arg-type]

    first = "backbone.layers.1.mixer"
    assert len(gone()) == 3
    assert gone(rules=["SSM101"], layers=[first]) == [f"{first}.A_log"]
    assert gone(rules=["SSM401"], layers=[first]) == [""]
    assert gone(rules=[]) == []


def test_a_later_step_of_the_run_is_held_against_an_earlier_one_whatever_its_path() -> None:
    early = diagnosis(layer(1), path="run/step-100.safetensors", findings=(finding(1),))
    late = diagnosis(layer(1), path="elsewhere/step-200.pt", findings=(finding(1, value=1.021),))
    _, first = compare_results([early], Baseline())
    (marked,), comparison = compare_results([late], first.updated(accept=True))
    assert isinstance(marked, Diagnosis)
    assert (marked.findings, marked.known_findings, marked.exit_code("note")) == ((), 1, 0)
    assert not comparison.gone


def test_of_several_checkpoints_the_worst_goes_on_file_and_all_of_them_then_pass() -> None:
    several = [
        diagnosis(layer(1), layer(2), findings=(finding(1, value=1.2, count=3),)),
        diagnosis(layer(1), layer(2), findings=(finding(1, value=1.1, count=30), finding(2))),
    ]
    _, comparison = compare_results(several, Baseline())
    baseline = comparison.updated(accept=True)
    assert [(entry.value, entry.count) for entry in baseline.entries] == [(1.2, 30), (1.02, 12)]
    marked, again = compare_results(several, baseline)
    assert not again.failing
    assert not again.gone, "layer 2 is clean in the first and not in the second"
    assert [result.exit_code("note") for result in marked if isinstance(result, Diagnosis)] == [0, 0]


def test_a_failure_is_passed_on_and_makes_nothing_gone() -> None:
    failure = Failure("x.pt", "CheckpointError", "x.pt does not exist.", None, None)
    marked, comparison = compare_results([failure], accepted(finding(1)))
    assert marked == [failure]
    assert not comparison.gone


def test_new_findings_fail_and_known_ones_do_not() -> None:
    result = diagnosis(layer(1), layer(2), findings=(finding(1), finding(2)))
    (marked,), _ = compare_results([result], accepted(finding(1)))
    assert isinstance(marked, Diagnosis)
    assert marked.exit_code("error") == 1
    assert [f.baseline for f in marked.findings + marked.known] == ["new", "known"]


FULL = Baseline(
    (
        Entry("SSM401", "non-finite", None, None, None, "error", 3, 9, 3.0),
        Entry("SSM101", "unstable-mode", "l.10", "l.10.A", "s5", "error", 3, None, math.inf, tolerance=0.5),
        Entry("SSM101", "unstable-mode", "l.2", "l.2.Ä", "s5", "warning", 1, 4, None),
    ),
    tolerance=0.2,
)


def test_a_baseline_survives_its_file(tmp_path: Path) -> None:
    write_baseline(tmp_path / "b.json", FULL)
    read = read_baseline(tmp_path / "b.json")
    assert set(read.entries) == set(FULL.entries)
    assert read.tolerance == 0.2
    assert list(tmp_path.iterdir()) == [tmp_path / "b.json"], "no temporary file is left"


def test_the_file_has_one_line_a_finding_in_natural_order_whatever_the_order_found() -> None:
    text = as_text(FULL)
    assert text == as_text(replace(FULL, entries=FULL.entries[::-1]))
    assert re.findall(r'"tensor": (?:"(l\.\d+)|null)', text) == ["l.2", "l.10", ""]
    assert sum('"code"' in line for line in text.splitlines()) == 3
    data = json.loads(text)
    assert data["schema_version"] == 1
    assert [item["value"] for item in data["findings"]] == [None, "inf", 3.0]
    assert json.loads(as_text(Baseline())) == {"schema_version": 1, "tolerance": 0.1, "findings": []}


def test_accepting_one_finding_changes_one_line() -> None:
    before = accepted(finding(1), finding(2), finding(30))
    found = [finding(1, value=1.0201), finding(2), finding(3), finding(30)]
    after = compare(found, before).updated(accept=True)
    difference = set(as_text(after).splitlines()) ^ set(as_text(before).splitlines())
    assert len(difference) == 1
    assert "layers.3." in difference.pop()


def test_an_entry_may_have_its_own_tolerance_which_accepting_keeps() -> None:
    baseline = accepted(finding(1))
    wide = replace(baseline, entries=(replace(baseline.entries[0], tolerance=1.0),))
    assert states([finding(1, value=1.039)], wide) == ["known"]
    comparison = compare([finding(1, value=1.05)], wide)
    assert [f.baseline for f in comparison.failing] == ["worse"]
    assert [(e.value, e.tolerance) for e in comparison.updated(accept=True).entries] == [(1.05, 1.0)]


def keep(
    path: Path, found: list[Finding], *, accept: bool = False, successful: bool = True, ci: str = ""
) -> str | None:
    baseline = read_baseline(path) if path.exists() else Baseline()
    comparison = compare(found, baseline)
    return keep_baseline(path, comparison, accept=accept, successful=successful, environment={"CI": ci} if ci else {})


def test_the_file_is_created_and_grows_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    assert keep(path, [finding(1)], successful=False) is None
    assert not path.exists()
    assert keep(path, [finding(1)], accept=True) == f"{path}: 1 accepted, 1 in the baseline; commit it"
    held = path.read_bytes()
    assert keep(path, [finding(1), finding(2)], successful=False) is None
    assert path.read_bytes() == held
    assert keep(path, [finding(1), finding(2)], accept=True) == f"{path}: 1 accepted, 2 in the baseline; commit it"


def test_the_file_shrinks_by_itself_after_a_successful_run_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    keep(path, [finding(1), finding(2)], accept=True)
    assert keep(path, [finding(1)], successful=False) is None
    assert len(read_baseline(path).entries) == 2
    assert keep(path, [finding(1)]) == f"{path}: 1 gone and dropped, 1 in the baseline; commit it"
    assert [entry.layer for entry in read_baseline(path).entries] == ["backbone.layers.1.mixer"]
    assert keep(path, [finding(1)]) is None


def test_a_clean_model_can_have_an_empty_baseline(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    assert keep(path, [], accept=True) == f"{path}: created, 0 in the baseline; commit it"
    assert read_baseline(path) == Baseline()


def test_nothing_is_written_under_ci(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    with pytest.raises(BaselineError, match="not written where CI is set"):
        keep(path, [finding(1)], accept=True, ci="true")
    assert not path.exists()
    keep(path, [finding(1), finding(2)], accept=True, ci="false")
    held = path.read_bytes()
    assert keep(path, [finding(1)], ci="1") == f"{path}: 1 of 2 findings are gone; a run outside CI drops them"
    assert path.read_bytes() == held


def test_nothing_is_accepted_of_a_run_that_read_only_a_part(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="not everything could be read"):
        keep(tmp_path / "b.json", [finding(1)], accept=True, successful=False)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "b.json"
    link.symlink_to(tmp_path / "store" / "real.json")
    write_baseline(link, FULL)
    assert link.is_symlink()
    assert len(read_baseline(tmp_path / "store" / "real.json").entries) == 3


GOOD = json.loads(as_text(FULL))
ITEM = GOOD["findings"][0]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no schema_version"),
        ("<<<<<<< ours\n{}\n=======\n{}\n>>>>>>> theirs\n", "merge conflict markers"),
        (json.dumps({**GOOD, "schema_version": 2}), "schema_version 2"),
        (json.dumps({**GOOD, "findings": {}}), "findings is not a list"),
        (json.dumps({**GOOD, "tolerence": 1}), "unknown key tolerence"),
        (json.dumps({**GOOD, "tolerance": -1}), "tolerance is -1, not a share"),
        (json.dumps({**GOOD, "tolerance": True}), "tolerance is True"),
        (json.dumps({**GOOD, "tolerance": math.nan}), "NaN is no JSON number"),
        (json.dumps({**GOOD, "findings": [3]}), "finding 1 is not an object"),
        (json.dumps({**GOOD, "findings": [ITEM, ITEM]}), "SSM101 of l.2.Ä is listed twice"),
        *(
            (json.dumps({**GOOD, "findings": [{**ITEM, **change}]}), seen)
            for change, seen in (
                ({"code": None}, "code of finding 1 is None, not a string"),
                ({"tensor": 3}, "tensor of finding 1 is 3"),
                ({"severity": "fatal"}, "severity of finding 1 is 'fatal'"),
                ({"severity": ["error"]}, "severity of finding 1"),
                ({"count": -1}, "count of finding 1 is -1"),
                ({"count": True}, "count of finding 1 is True"),
                ({"count": None}, "count of finding 1 is None"),
                ({"of": "many"}, "of of finding 1 is 'many'"),
                ({"value": "big"}, "value of finding 1 is 'big'"),
                ({"value": []}, "value of finding 1 is []"),
                ({"tolerance": "wide"}, "tolerance of finding 1 is 'wide'"),
                ({"note": "x"}, "finding 1 has an unknown key note"),
            )
        ),
        (json.dumps({**GOOD, "findings": [{k: v for k, v in ITEM.items() if k != "of"}]}), "finding 1 has no of"),
    ],
)
def test_a_corrupt_file_says_what_was_seen_and_what_to_do(tmp_path: Path, text: str, seen: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BaselineError) as caught:
        read_baseline(path)
    assert seen in caught.value.seen
    assert str(path) in caught.value.seen
    assert caught.value.advice


def test_a_file_that_is_absent_or_no_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="does not exist") as caught:
        read_baseline(tmp_path / "none.json")
    assert "--write-baseline" in str(caught.value)
    with pytest.raises(BaselineError, match="directory"):
        read_baseline(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BaselineError, match="not UTF-8"):
        read_baseline(tmp_path / "b.json")
    with pytest.raises(BaselineError, match="cannot be written"):
        write_baseline(tmp_path / "absent" / "b.json", Baseline())


@given(
    st.lists(
        st.builds(
            Entry,
            code=st.from_regex(r"SSM[1-5]\d\d", fullmatch=True),
            rule=st.text(),
            layer=st.none() | st.text(),
            tensor=st.none() | st.text(),
            family=st.none() | st.text(),
            severity=st.sampled_from(["note", "warning", "error"]),
            count=st.integers(0),
            of=st.none() | st.integers(0),
            value=st.none() | st.floats(allow_nan=False),
            tolerance=st.none() | st.floats(0, 10),
        ),
        unique_by=lambda entry: entry.key,
        max_size=4,
    )
)
def test_any_baseline_survives_its_file(tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_baseline(path, Baseline(tuple(entries)))
    assert set(read_baseline(path).entries) == set(entries)
