"""SSM602: layers that forget hardly anything within a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.probed import Document, findings_of

CODE = "SSM602"


@pytest.mark.parametrize(
    ("reset", "censored", "reported"), [(0.0, 0.51, True), (0.0, 0.49, False), (0.001, 0.9, False), (0.0, 1.0, True)]
)
def test_a_layer_without_a_reset_that_outlasts_its_texts_is_a_note(
    tmp_path: Path, reset: float, censored: float, reported: bool
) -> None:
    def change(found: Document) -> None:
        found["layers"][0]["observed"] |= {"reset": reset, "censored": censored}

    findings = findings_of(CODE, tmp_path, change)
    assert bool(findings) is reported
    for finding in findings:
        assert (finding.severity, finding.layer, finding.value) == ("note", "backbone.layers.0.mixer", censored)
        assert "none of 128 tokens reset a channel" in finding.message
        assert f"{censored:.0%} of its half-lives" in finding.message


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    def change(found: Document) -> None:
        found["layers"][1]["observed"] |= {"reset": 0.0, "censored": 0.3}

    assert findings_of(CODE, tmp_path, change, censored=0.2)
