"""SSM601: layers that no token leaves as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.probed import Document, findings_of

CODE = "SSM601"


@pytest.mark.parametrize(("share", "reported"), [(0.0, True), (0.0009, True), (0.0011, False), (0.4, False)])
def test_a_layer_that_hardly_holds_is_a_note(tmp_path: Path, share: float, reported: bool) -> None:
    def change(found: Document) -> None:
        found["layers"][1]["observed"]["hold"] = share
        found["layers"][1]["observed"]["half_life"]["p99"] = 12.25

    findings = findings_of(CODE, tmp_path, change)
    assert bool(findings) is reported
    for finding in findings:
        assert (finding.severity, finding.layer, finding.family) == ("note", "backbone.layers.1.mixer", "mamba2")
        assert finding.value == share
        assert "of 128 tokens " in finding.message
        assert "12.2 steps" in finding.message
        assert ("none left" in finding.message) is (share == 0)


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    def change(found: Document) -> None:
        found["layers"][0]["observed"]["hold"] = 0.05

    assert findings_of(CODE, tmp_path, change, share=0.1)


def test_a_bound_is_called_one(tmp_path: Path) -> None:
    def change(found: Document) -> None:
        found["layers"][0]["observed"] |= {"hold": 0.0}
        found["layers"][0]["observed"]["half_life"] |= {"p99": "inf", "at_least": ["p99", "max"]}

    (finding,) = findings_of(CODE, tmp_path, change)
    assert "at least inf" in finding.message
