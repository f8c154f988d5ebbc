"""A rule that needs what the file does not tell is named with its reason, in every report."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ssmdiag import diagnose
from ssmdiag.reports import Settings, render
from ssmdiag.rules.selection import select_rules
from tests.rules.healthy import initial_state, save
from tests.rules.training_states import save_training

OF_THE_CONTEXT = {"SSM201", "SSM202", "SSM204", "SSM207"}
OF_THE_OPTIMISER = {"SSM501", "SSM502"}


def test_without_a_context_and_an_optimiser_six_rules_cannot_judge(tmp_path: Path) -> None:
    model = save(tmp_path / "m", initial_state("s4d-minimal"), {})
    assert set(diagnose(model, memory=False).not_judged) == OF_THE_CONTEXT | OF_THE_OPTIMISER
    known = diagnose(model, memory=False, context_length=64)
    assert set(known.not_judged) == OF_THE_OPTIMISER
    text = render([known], "text", Settings(width=80, full=True))
    assert "not judged: SSM501, SSM502 (no optimiser's state is in or beside the file)" in text


def test_with_both_all_judge(tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda name: 0, [{"weight_decay": 0.1}])
    assert diagnose(path, memory=False, context_length=64).not_judged == {}


def test_rules_that_were_not_asked_for_are_not_named(tmp_path: Path) -> None:
    model = save(tmp_path / "m", initial_state("s4d-minimal"), {})
    found = diagnose(model, memory=False, rules=select_rules(select=["SSM1", "SSM501"]))
    assert set(found.not_judged) == {"SSM501"}


@pytest.mark.parametrize("form", ["json", "jsonl", "markdown", "junit"])
def test_every_report_that_lists_rules_says_so(form: str, tmp_path: Path) -> None:
    model = save(tmp_path / "m", initial_state("s4d-minimal"), {})
    text = render([diagnose(model, memory=False)], form, Settings())
    if form in ("json", "jsonl"):
        named = {entry["code"] for entry in json.loads(text)["not_judged"]}
    elif form == "junit":
        cases = ElementTree.fromstring(text).iter("testcase")
        named = {(case.get("name") or "").split()[0] for case in cases if case.find("skipped") is not None}
    else:
        line = next(line for line in text.splitlines() if line.startswith("Not judged: "))
        named = {code for code in OF_THE_CONTEXT | OF_THE_OPTIMISER if code in line}
    assert named == OF_THE_CONTEXT | OF_THE_OPTIMISER
