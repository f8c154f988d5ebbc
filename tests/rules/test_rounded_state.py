"""SSM604: layers whose output a state in bfloat16 would spoil."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rules.probed import Document, findings_of

CODE = "SSM604"


@pytest.mark.parametrize(
    ("median", "worst", "reported"), [(0.021, 0.5, True), (0.019, 3.0, False), ("inf", "inf", True)]
)
def test_an_error_of_the_median_channel_past_the_limit_is_a_note(
    tmp_path: Path, median: Any, worst: Any, reported: bool
) -> None:
    def change(found: Document) -> None:
        found["layers"][1]["observed"]["rounded_state"]["bf16"] = {"median": median, "worst": worst}

    findings = findings_of(CODE, tmp_path, change)
    assert bool(findings) is reported
    for finding in findings:
        assert (finding.severity, finding.layer, finding.value) == ("note", "backbone.layers.1.mixer", float(median))
        assert f"{float(worst):.2g} in the worst" in finding.message


def test_a_state_that_was_not_stepped_is_not_judged(tmp_path: Path) -> None:
    def change(found: Document) -> None:
        for layer in found["layers"]:
            layer["observed"]["rounded_state"] = None

    assert not findings_of(CODE, tmp_path, change, error=0.0)
