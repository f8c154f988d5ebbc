"""What every rule promises, tested on every rule that discovery finds."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ssmdiag.rules
from ssmdiag import diagnose
from ssmdiag.rules import Rule, known_rules
from ssmdiag.rules.finding import SEVERITIES
from tests.rules.healthy import EACH, Healthy

FILES = {
    path.stem for path in Path(ssmdiag.rules.__file__).parent.glob("*.py")
} - {"__init__"} - ssmdiag.rules.MACHINERY  # fmt: skip
each_rule = pytest.mark.parametrize("rule", known_rules(), ids=lambda rule: rule.name)

CHANNELS = 8
"""Channels of a layer whose memory is found, the slowest and the fastest among them."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices on a busy machine: threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.one_in(40)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", EACH)
def test_no_rule_warns_of_a_healthy_model(model: Healthy, tmp_path: Path) -> None:
    report = diagnose(model.write(tmp_path / "model"), most_channels=CHANNELS, tails=False)
    assert report.layers
    assert report.problems == ()
    alarms = [f for f in report.findings if f.severity != "note"]
    assert not alarms, "\n".join(f"{f.code} {f.severity} {f.layer}: {f.message}" for f in alarms)


def test_rules_are_named_after_their_files_and_no_two_alike() -> None:
    rules = known_rules()
    assert {rule.name.replace("-", "_") for rule in rules} == FILES
    assert len({rule.code for rule in rules} | {rule.name for rule in rules}) == 2 * len(rules)


@each_rule
def test_a_rule_goes_to_other_processes(rule: Rule) -> None:
    """Many checkpoints are diagnosed in several, to which rules are sent."""
    assert pickle.loads(pickle.dumps(rule)).code == rule.code


@each_rule
def test_a_rule_says_what_it_is(rule: Rule) -> None:
    assert re.fullmatch(r"SSM[1-6]\d\d", rule.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
    assert rule.severity in SEVERITIES
    assert rule.looks_at in ("layer", "checkpoint", "probe")
    assert rule.worse in ("higher", "lower")
    assert 0 < len(rule.summary) <= 80, "one line of `ssmdiag rules`"
    for text in (rule.advice, rule.formula, rule.why, rule.fix, rule.example):
        assert len(text.split()) > 3, "its page in `ssmdiag explain`"
    assert "https://" in rule.example, "a public case, with its address"
    for name, threshold in rule.thresholds.items():
        assert name.isidentifier()
        assert threshold.value == threshold.value
        assert threshold.meaning


@each_rule
def test_a_rule_has_tests_of_its_own(rule: Rule) -> None:
    assert (Path(__file__).parent / f"test_{rule.name.replace('-', '_')}.py").exists()


def test_rules_import_no_torch() -> None:
    code = "import sys; from ssmdiag.rules import known_rules; known_rules(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
